#!/bin/sh
# Makes demo.qcow2 and data.raw beside this script; needs no root.
# Tools: sgdisk 1.0, mkfs.ext4 1.47 (-d), mkfs.vfat 4.2, qemu-img 10.0.
# The disk is laid out as Debian's cloud images are: 1 root, 14 BIOS boot, 15 EFI.
set -eu
out=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export SOURCE_DATE_EPOCH=1735689600 TZ=UTC LC_ALL=C
export E2FSPROGS_FAKE_TIME=$SOURCE_DATE_EPOCH

truncate -s 64M disk.raw
sgdisk --disk-guid=6d656465-0000-4000-8000-000000000001 --set-alignment=2048 \
    --new=14:2048:8191 --typecode=14:ef02 --partition-guid=14:6d656465-0000-4000-8000-00000000000e \
    --new=15:8192:28671 --typecode=15:ef00 --partition-guid=15:6d656465-0000-4000-8000-00000000000f \
    --new=1:28672:131038 --typecode=1:8304 --partition-guid=1:6d656465-0000-4000-8000-000000000002 \
    disk.raw >/dev/null

mkdir -p root/boot root/etc root/home root/usr/share/doc root/var/log
printf 'PRETTY_NAME="reimage demo"\nID=demo\n' >root/etc/os-release
printf 'LABEL=root / ext4 defaults 0 1\nLABEL=EFI /boot/efi vfat defaults 0 1\n' >root/etc/fstab
seq 1 60000 >root/usr/share/doc/numbers.txt
find root -exec touch -d @$SOURCE_DATE_EPOCH {} +
mkfs.ext4 -q -L root -U 6d656465-0000-4000-8000-000000000003 -E hash_seed=6d656465-0000-4000-8000-000000000004,root_owner=0:0 \
    -d root root.ext4 51183k >/dev/null
mkfs.vfat -n EFI -i 6D656465 --invariant -C efi.vfat 10240 >/dev/null

dd if=root.ext4 of=disk.raw bs=1M seek=14 conv=notrunc,sparse status=none
dd if=efi.vfat of=disk.raw bs=1M seek=4 conv=notrunc,sparse status=none
printf 'BIOS boot code would be here.' | dd of=disk.raw bs=1M seek=1 conv=notrunc status=none
qemu-img convert -q -m 1 -f raw -O qcow2 -o cluster_size=16k -c disk.raw "$out/demo.qcow2"

# 64 KiB that can be recognised: the disk that must survive.
yes 'data disk: not one byte of this may change.' | head -c 65536 >"$out/data.raw"
