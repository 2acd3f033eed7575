//! Goal: what we say lies on a disk is what blkid says, for everything that a machine's disk may carry.
//! Method: the programs that make file systems make them, each is looked at bare and within a partition of
//! a GPT and of an MBR, and our answer is compared with that of blkid.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use super::bytes::ReadBytes;
use super::samples::{MIB, gpt_disk};
use super::sector::SectorSize;
use super::{DiskLayout, Signature, TableKind, describe, marker, probe, ptuuid};
use crate::range::ByteRange;

/// Where a partition begins that something is put into.
const PLACE: u64 = 3 * MIB;
const ID: &[u8] = &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
const ID_TEXT: &str = "1f0e0d0c-0b0a-0908-0706-050403020100";

struct OnFile(File);

impl ReadBytes for OnFile {
    fn size(&self) -> u64 {
        self.0.metadata().unwrap().len()
    }

    fn read_at(&self, range: ByteRange, buffer: &mut [u8]) -> io::Result<()> {
        let len = usize::try_from(range.len()).unwrap();
        self.0.read_exact_at(&mut buffer[..len], range.start())
    }
}

/// Runs a line of shell with `file` as its `$1`, and gives what it printed.
#[track_caller]
fn run(line: &str, file: &Path) -> String {
    let output = Command::new("sh").args(["-c", line, "sh"]).arg(file).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{line}: {printed}{}", String::from_utf8_lossy(&output.stderr));
    printed
}

/// What blkid says of a file from `offset` on: one value by its name.
fn blkid(file: &Path, range: ByteRange, name: &str) -> Option<String> {
    let (offset, size) = (range.start().to_string(), range.len().to_string());
    let args = ["-p", "-O", &offset, "-S", &size, "-o", "value", "-s", name];
    let output = Command::new("blkid").args(args).arg(file).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    Some(printed.trim_end().to_owned()).filter(|value| !value.is_empty())
}

/// What blkid finds in a range of a file; the label in a FAT's boot sector counts where it has no other.
fn content(file: &Path, range: ByteRange) -> [Option<String>; 3] {
    let value = |name| blkid(file, range, name);
    [value("TYPE"), value("UUID"), value("LABEL").or_else(|| value("LABEL_FATBOOT"))]
}

fn ours(found: Option<&Signature>) -> [Option<String>; 3] {
    let found = found.cloned();
    found.map_or([const { None }; 3], |found| [Some(found.kind.to_owned()), found.uuid, found.label])
}

fn whole(file: &Path) -> ByteRange {
    ByteRange::new(0, std::fs::metadata(file).unwrap().len())
}

fn layout(file: &Path) -> DiskLayout {
    describe(&OnFile(File::open(file).unwrap())).unwrap()
}

fn empty(path: &Path, len: u64) {
    File::create(path).unwrap().set_len(len).unwrap();
}

/// Puts `volume` into the second partition of a fresh `disk`.
fn put(volume: &Path, disk: &Path, label: &str) {
    let len = whole(volume).len();
    empty(disk, PLACE + len + MIB);
    let (start, sectors) = (PLACE / 512, len / 512);
    let script = format!("label: {label}\\nstart=2048,size=100\\nstart={start},size={sectors}\\n");
    run(&format!("printf '{script}' | sfdisk -q \"$1\""), disk);
    let (from, to) = (File::open(volume).unwrap(), File::options().write(true).open(disk).unwrap());
    let (mut piece, zeroes) = (vec![0; 65536], [0; 65536]);
    for at in (0..len).step_by(piece.len()) {
        let read = from.read_at(&mut piece, at).unwrap();
        // What is all zero stays a hole: some file systems are large.
        if piece[..read] != zeroes[..read] {
            to.write_all_at(&piece[..read], PLACE + at).unwrap();
        }
    }
}

/// Compares our answer with that of blkid for a volume, bare and within partitions.
#[track_caller]
fn check(volume: &Path, what: &str, label: Option<&str>) {
    let bare = layout(volume);
    let theirs = content(volume, whole(volume));
    assert_eq!(ours(bare.file_system.as_ref()), theirs, "{what}");
    assert_eq!((bare.table, theirs[0].is_some()), (None, true), "{what}");
    assert_eq!(theirs[2].as_deref(), label, "{what}: the label that was asked for");
    let disk = volume.with_file_name("partitioned");
    for (name, kind) in [("gpt", TableKind::Gpt), ("dos", TableKind::Dos)] {
        put(volume, &disk, name);
        let found = layout(&disk);
        assert_eq!(found.table, Some(kind), "{what}");
        assert_eq!(blkid(&disk, whole(&disk), "PTTYPE").as_deref(), Some(name));
        assert_eq!(found.id, blkid(&disk, whole(&disk), "PTUUID"), "{what}");
        let partition = &found.partitions[1];
        assert_eq!(partition.range, ByteRange::new(PLACE, whole(volume).len()));
        assert_eq!(content(&disk, partition.range), theirs, "{what}: blkid sees the same within");
        assert_eq!(ours(partition.file_system.as_ref()), theirs, "{what} in {name}");
        assert_eq!(ours(found.partitions[0].file_system.as_ref()), [const { None }; 3]);
    }
}

#[test]
#[ignore = "needs mkfs.*, mkswap, cryptsetup, genisoimage, sfdisk, blkid"]
fn what_programs_make_has_the_kind_id_and_label_that_blkid_prints() {
    let folder = tempfile::tempdir().unwrap();
    let volume = folder.path().join("volume");
    let luks = "printf secret | cryptsetup luksFormat -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000";
    let luks = [("1", ""), ("2", ""), ("2", "--label 'my data'")]
        .map(|(version, label)| format!("{luks} --type luks{version} {label} --uuid {ID_TEXT} \"$1\" -"));
    for (len, command, label) in [
        (40, "mkfs.ext2 -q -F -L boot", Some("boot")),
        (40, "mkfs.ext3 -q -F -L 'sixteen letters.'", Some("sixteen letters.")),
        (40, "mkfs.ext4 -q -F -L cloudimg-rootfs", Some("cloudimg-rootfs")),
        (40, "mkfs.ext4 -q -F -O ^has_journal", None),
        (40, "mkfs.ext4 -q -F -O journal_dev", None),
        (300, "mkfs.xfs -q -L 'twelve chars'", Some("twelve chars")),
        (300, "mkfs.xfs -q -m crc=0 -m uuid=1f0e0d0c-0b0a-0908-0706-050403020100", None),
        (120, "mkfs.btrfs -q -L 'a pool of data'", Some("a pool of data")),
        (120, "mkfs.btrfs -q -U 1f0e0d0c-0b0a-0908-0706-050403020100", None),
        (4, "mkfs.vfat -F 12 -n UEFI", Some("UEFI")),
        (40, "mkfs.vfat -F 16 -n CIDATA", Some("CIDATA")),
        (40, "mkfs.vfat -F 16 -S 4096 -s 1 -n LARGE", Some("LARGE")),
        (40, "mkfs.vfat -F 32 -n config-2", Some("config-2")),
        (40, "mkfs.vfat -F 32 -i 00C0FFEE", None),
        (40, "LC_ALL=C.UTF-8 mkfs.exfat -L 'Daten ä'", Some("Daten ä")),
        (40, "mkfs.exfat", None),
        (40, "mkfs.ntfs -F -Q -q -L 'Daten ä, and a long name'", Some("Daten ä, and a long name")),
        (40, "mkfs.ntfs -F -Q -q -c 65536", None),
        (40, "mkswap -L swap", Some("swap")),
        (40, "mkswap -p 65536 -U 1f0e0d0c-0b0a-0908-0706-050403020100", None),
        (40, &luks[0], None),
        (40, &luks[1], None),
        (40, &luks[2], Some("my data")),
        (1, "genisoimage -quiet -V cidata -J -r src/layout/mbr.rs >", Some("cidata")),
    ] {
        empty(&volume, len * MIB);
        let file = if command.contains("\"$1\"") { "" } else { " \"$1\"" };
        run(&format!("{command}{file}"), &volume);
        check(&volume, command, label);
    }
}

#[test]
#[ignore = "needs mkfs.vfat, fatlabel, blkid"]
fn a_fat_that_was_labelled_anew_has_the_label_in_its_root_directory() {
    let folder = tempfile::tempdir().unwrap();
    let volume = folder.path().join("volume");
    for (bits, len, boot_label) in [(12, 2, 43), (16, 8, 43), (32, 40, 71)] {
        empty(&volume, len * MIB);
        run(&format!("mkfs.vfat -F {bits} -s 1 -n OLD \"$1\""), &volume);
        // As Windows does: it changes the root directory and leaves the boot sector.
        run("fatlabel \"$1\" NEW", &volume);
        let file = File::options().write(true).open(&volume).unwrap();
        file.write_all_at(b"OLD        ", boot_label).unwrap();
        check(&volume, &format!("FAT{bits}"), Some("NEW"));
        run("fatlabel -r \"$1\"", &volume);
        file.write_all_at(b"BOOT ONLY  ", boot_label).unwrap();
        check(&volume, &format!("FAT{bits}"), Some("BOOT ONLY"));
    }
}

/// The bytes of an LVM physical volume's label, with the checksum that LVM and blkid demand.
fn lvm_label(sector: u8) -> Vec<u8> {
    let id = b"abcdefghijklmnopqrstuvwxyz012345";
    let mut label =
        [b"LABELONE", &[sector, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32][..], &[0; 3], b"LVM2 001", id].concat();
    label.resize(512, 0);
    // lib/misc/crc.c: the usual polynomial, another beginning, nothing done to the end.
    let crc = label[20..].iter().fold(0xf597_a6cf_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    });
    label[16..20].copy_from_slice(&crc.to_le_bytes());
    label
}

#[test]
#[ignore = "needs sfdisk, blkid"]
fn superblocks_that_no_program_here_makes_are_known_to_blkid_too() {
    let folder = tempfile::tempdir().unwrap();
    // blkid looks for ZFS on disks of 64 MiB and more only.
    const LEN: usize = 64 << 20;
    let md = |sector: u32| {
        let sector = sector.to_le_bytes();
        [&[0xfc, 0x4e, 0x2b, 0xa9, 1, 0, 0, 0][..], &[0; 8], ID, b"host:0", &[0; 106], &sector].concat()
    };
    let before_end = LEN - 8192;
    let (md_11, md_12) = (md(0), md(8));
    let md_10 = md(u32::try_from(before_end / 512).unwrap());
    let uberblocks: Vec<u8> =
        (0..8).flat_map(|_| [&[0x0c, 0xb1, 0xba, 0][..], &[0; 1020]].concat()).collect();
    let (lvm_0, lvm_1) = (lvm_label(0), lvm_label(1));
    type Fields<'a> = &'a [(usize, &'a [u8])];
    let table: &[(Fields, Option<&str>)] = &[
        (&[(before_end, &md_10)], Some("host:0")),
        (&[(0, &md_11)], Some("host:0")),
        (&[(4096, &md_12)], Some("host:0")),
        (
            &[
                (LEN - 65536, &[0xfc, 0x4e, 0x2b, 0xa9, 0, 0, 0, 0, 90]),
                (LEN - 65516, &ID[..4]),
                (LEN - 65504, &[0xc0, 0xff]),
                (LEN - 65484, ID),
            ],
            None,
        ),
        (&[(0, &lvm_0)], None),
        (&[(512, &lvm_1)], None),
        (&[(0, b"LUKS\xba\xbe\0\x01"), (168, ID_TEXT.as_bytes())], None),
        (&[(128 << 10, &uberblocks)], None),
    ];
    for (fields, label) in table {
        let mut disk = vec![0; LEN];
        for (at, bytes) in *fields {
            disk[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        let volume = folder.path().join("volume");
        std::fs::write(&volume, &disk).unwrap();
        let found = probe(&disk).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        check(&volume, &format!("{fields:?}"), *label);
    }
}

/// A byte of a name as `partx --raw` prints it.
fn escaped(byte: u8) -> String {
    if byte.is_ascii_graphic() { char::from(byte).to_string() } else { format!("\\x{byte:02x}") }
}

#[test]
#[ignore = "needs sfdisk, partx"]
fn ids_and_names_of_partitions_are_those_that_partx_prints() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    let logical = "start=,size=1M\\n".repeat(12);
    let dos = format!("label: dos\\nlabel-id: 0x00c0ffee\\nsize=1M\\nsize=50M,type=5\\n{logical}");
    let gpt = "label: gpt\\nsize=1M,name=\"Daten ä\"\\nstart=8192,size=1M\\nsize=2M,name=root\\n";
    for (script, count) in [(dos.as_str(), 14), (gpt, 3)] {
        empty(&disk, 64 * MIB);
        run(&format!("printf '{script}' | sfdisk -q \"$1\""), &disk);
        let listed = run("partx --raw --noheadings -o NR,UUID,NAME \"$1\"", &disk);
        let partitions = layout(&disk).partitions;
        let ours = partitions.iter().map(|partition| {
            let name: String = partition.name.iter().flat_map(|name| name.bytes()).map(escaped).collect();
            format!("{} {} {name}", partition.number, partition.id.as_deref().unwrap())
        });
        let ours: Vec<_> = ours.map(|line| line.trim_end().to_owned()).collect();
        assert_eq!(ours.len(), count, "{listed}");
        assert_eq!(ours, listed.lines().map(str::trim_end).collect::<Vec<_>>());
    }
}

#[test]
#[ignore = "needs blkid, wipefs"]
fn table_ids_are_those_that_blkid_prints_and_a_marker_is_nothing_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("disk");
    // A file has 512-byte sectors to blkid.
    let disk = gpt_disk(SectorSize::B512, 4 * MIB, &[(1, 100, 200)]);
    std::fs::write(&file, &disk).unwrap();
    assert_eq!(ptuuid(&disk).unwrap(), blkid(&file, whole(&file), "PTUUID"));
    let marker = marker::write(&marker::Marker { journal: "i-0a1b".into(), image: None });
    let mut disk = vec![0; 4 << 20];
    disk[..4096].copy_from_slice(&marker);
    std::fs::write(&file, &disk).unwrap();
    assert_eq!(content(&file, whole(&file)), [const { None }; 3]);
    assert_eq!(run("wipefs \"$1\"", &file), "");
}
