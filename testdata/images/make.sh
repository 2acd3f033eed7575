#!/bin/sh
# Makes the images beside this script with qemu-img and qemu-io 10.0, and expected.txt with what they hold.
# The images are kept compressed (zstd), because large clusters are mostly empty.
set -eu
out=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# A disk of 1 MiB and three sectors: text, a hole, text across the end of a 64 KiB cluster, a hole.
seq 1 60000 | head -c 300000 >disk.raw
seq 60001 99999 | head -c 100000 | dd of=disk.raw bs=4096 seek=150 conv=notrunc status=none
truncate -s $((1048576 + 3 * 512)) disk.raw
# The same twice, for clusters of 2 MiB.
seq 1 400000 | head -c 2200000 >large.raw
seq 1 9999 | dd of=large.raw bs=1M seek=4 conv=notrunc status=none
truncate -s $((5 * 1048576 + 512)) large.raw

from() { # SOURCE NAME OPTIONS [-c]
    qemu-img convert -q -f raw -O qcow2 -o "$3" ${4:-} "$1" "$2.qcow2"
}

from disk.raw v2-64k compat=v2
from disk.raw v3-512 cluster_size=512
from disk.raw v3-1k cluster_size=1k
from disk.raw v3-4k cluster_size=4k
from disk.raw v3-64k compat=v3
from large.raw v3-2m cluster_size=2M
from disk.raw v3-refcount1 refcount_bits=1
from disk.raw v3-refcount64 refcount_bits=64
from disk.raw v3-lazy lazy_refcounts=on
from disk.raw v3-prealloc preallocation=metadata
from disk.raw zlib-512 cluster_size=512 -c
from disk.raw zlib-4k cluster_size=4k -c
from disk.raw zlib-64k cluster_size=64k -c
from large.raw zlib-2m cluster_size=2M -c
from disk.raw zlib-v2 compat=v2 -c
from disk.raw zstd-4k cluster_size=4k,compression_type=zstd -c
from disk.raw zstd-64k compression_type=zstd -c
from large.raw zstd-2m cluster_size=2M,compression_type=zstd -c
from disk.raw extl2-16k extended_l2=on,cluster_size=16k
from disk.raw extl2-64k extended_l2=on
from disk.raw extl2-zlib extended_l2=on -c
from disk.raw extl2-zstd extended_l2=on,compression_type=zstd -c

create() { # NAME OPTIONS SIZE [further arguments]
    name=$1 options=$2 size=$3
    shift 3
    qemu-img create -q -f qcow2 -o "$options" "$@" "$name.qcow2" "$size"
}
io() { # NAME COMMAND...
    name=$1
    shift
    for command in "$@"; do set -- "$@" -c "$command"; shift; done
    qemu-io -f qcow2 "$@" "$name.qcow2" >io.log || { cat io.log; exit 1; }
}

create size0 compat=v3 0
create empty compat=v3 1M
create extl2-sparse extended_l2=on 1M
io extl2-sparse "write -P 1 0 2k" "write -P 2 6k 4k" "write -P 3 100k 30k" "write -z 102k 4k" \
    "write -P 4 1000k 2k" "write -z 300k 100k"
create descending cluster_size=4k 1M
io descending "write -P 9 900k 4k" "write -P 8 600k 9k" "write -P 7 300k 1k" "write -P 6 304k 8k" \
    "write -P 5 16k 12k"
create zero-plain compat=v3 1M
io zero-plain "write -z 64k 128k" "write -P 1 320k 64k"
create zero-alloc compat=v3 1M
io zero-alloc "write -P 1 0 256k" "write -z 64k 128k"
from disk.raw snapshots compat=v3
qemu-img snapshot -c first snapshots.qcow2
io snapshots "write -P 7 0 100k"
qemu-img snapshot -c second snapshots.qcow2
io snapshots "write -P 8 64k 10k"
create dirty lazy_refcounts=on 1M
qemu-io -f qcow2 -c "write -P 3 70k 100k" -c flush -c abort dirty.qcow2 >/dev/null 2>&1 || true

# Chains: the names in them are relative.
cp disk.raw chain-base.raw
create chain-mid cluster_size=4k 1M -b chain-base.raw -F raw
io chain-mid "write -P 1 8k 12k" "write -z 32k 8k"
create chain-top compat=v3 2M -b chain-mid.qcow2 -F qcow2
io chain-top "write -P 2 64k 64k" "write -P 3 1900k 5k"
create chain-v2 compat=v2 700k -b chain-base.raw -F raw
io chain-v2 "write -P 4 100k 1k"
create chain-over-zlib cluster_size=4k 777k -b zlib-64k.qcow2 -F qcow2
io chain-over-zlib "write -P 5 68k 4k" "write -P 6 80k 1k"
create chain-subclusters extended_l2=on 2M -b zstd-64k.qcow2 -F qcow2
io chain-subclusters "write -P 5 68k 4k" "write -z 80k 6k" "write -P 6 1047k 3k"
create chain-mid-longer cluster_size=512 1536k -b zstd-4k.qcow2 -F qcow2
io chain-mid-longer "write -P 7 1300k 1k"

: >"$out/expected.txt"
for image in *.qcow2; do
    qemu-img convert -f qcow2 -O raw "$image" content.raw
    echo "${image%.qcow2} $(stat -c %s content.raw) $(sha256sum <content.raw | cut -d' ' -f1)" >>"$out/expected.txt"
    zstd -q -f -19 "$image" -o "$out/$image.zst"
done
zstd -q -f -19 chain-base.raw -o "$out/chain-base.raw.zst"
