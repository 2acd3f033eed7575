//! Goal: our reading and writing of tables and labels is that of the programs that administrators use.
//! Method: those programs make files, and their answers are compared with ours.

use std::path::Path;
use std::process::Command;

use super::samples::{MIB, gpt_disk};
use super::sector::SectorSize;
use super::{Outcome, describe, marker, probe, ptuuid, relocate};

/// Runs a program and gives what it printed; `args` are separated by blanks.
#[track_caller]
fn run(program: &str, args: &str, file: &Path) -> String {
    let mut command = Command::new(program);
    let output = command.args(args.split_whitespace()).arg(file).output().expect(program);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {args}: {printed}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    printed
}

fn file_of(folder: &Path, bytes: &[u8]) -> std::path::PathBuf {
    let path = folder.join("disk");
    std::fs::write(&path, bytes).unwrap();
    path
}

/// The image on `size` bytes with its backup GPT moved.
fn moved(image: &Vec<u8>, size: u64) -> Vec<u8> {
    let relocation = relocate(image, size, SectorSize::B512).unwrap();
    assert!(matches!(relocation.outcome, Outcome::Moved { .. }));
    let mut disk = image.clone();
    disk.resize(usize::try_from(size).unwrap(), 0);
    for patch in relocation.patches {
        let at = usize::try_from(patch.range.start()).unwrap();
        disk[at..at + patch.bytes.len()].copy_from_slice(&patch.bytes);
    }
    disk
}

/// An MBR without what sgdisk sets anew each time: the disk signature (to zero) and the records' cylinders.
fn comparable_mbr(disk: &[u8]) -> Vec<u8> {
    let mut mbr = disk[..512].to_vec();
    mbr[440..444].fill(0);
    for record in mbr[446..510].chunks_exact_mut(16) {
        record[1..4].fill(0);
        record[5..8].fill(0);
    }
    mbr
}

#[test]
#[ignore = "needs sgdisk"]
fn a_moved_backup_is_byte_for_byte_that_of_sgdisk() {
    let folder = tempfile::tempdir().unwrap();
    let plain = gpt_disk(SectorSize::B512, 4 * MIB, &[(1, 4096, 8000), (14, 34, 40), (15, 2048, 4095)]);
    let mut hybrid = plain.clone();
    hybrid[446 + 12..446 + 16].copy_from_slice(&2047_u32.to_le_bytes());
    hybrid[446 + 16 + 4] = 0x0c;
    hybrid[446 + 16 + 8..446 + 16 + 16].copy_from_slice(&[0, 8, 0, 0, 0, 8, 0, 0]);
    for image in [&plain, &hybrid] {
        for more in [1, 2, 3, 31, 32, 33, 34, 65, 66, 67, 2048, 16384] {
            let size = 4 * MIB + more * 512;
            let ours = moved(image, size);
            let mut grown = image.clone();
            grown.resize(ours.len(), 0);
            let file = file_of(folder.path(), &grown);
            run("sgdisk", "-e", &file);
            let theirs = std::fs::read(&file).unwrap();
            assert_eq!(comparable_mbr(&ours), comparable_mbr(&theirs), "{more}");
            assert_eq!(ours[..458], image[..458], "boot code and disk signature stay");
            if image == &hybrid {
                assert_eq!(ours[..512], image[..512], "a hybrid MBR stays");
            }
            assert!(ours[512..] == theirs[512..], "{more}");
            let file = file_of(folder.path(), &ours);
            let verdict = run("sgdisk", "-v", &file);
            assert!(verdict.contains("No problems found") || image == &hybrid, "{more}: {verdict}");
        }
    }
}

#[test]
#[ignore = "needs sfdisk"]
fn a_moved_backup_is_that_of_sfdisk_where_the_first_mebibyte_is_not_usable() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("disk");
    std::fs::write(&file, vec![0; 8 << 20]).unwrap();
    let script = "label: gpt\nsize=1M,type=21686148-6449-6E6F-744E-656564454649\nsize=2M\n";
    std::fs::write(folder.path().join("script"), script).unwrap();
    let shell = format!("sfdisk -q {0} < {0}.script", file.display());
    std::fs::rename(folder.path().join("script"), folder.path().join("disk.script")).unwrap();
    assert!(Command::new("sh").args(["-c", &shell]).status().unwrap().success());
    let image = std::fs::read(&file).unwrap();
    let ours = moved(&image, 16 * MIB);
    let mut grown = image.clone();
    grown.resize(ours.len(), 0);
    std::fs::write(&file, grown).unwrap();
    assert!(
        Command::new("sfdisk")
            .args(["-q", "--relocate", "gpt-bak-std"])
            .arg(&file)
            .status()
            .unwrap()
            .success()
    );
    let theirs = std::fs::read(&file).unwrap();
    assert!(ours[..] == theirs[..]);
}

#[test]
#[ignore = "needs sfdisk"]
fn partitions_of_an_mbr_are_those_that_sfdisk_lists() {
    let folder = tempfile::tempdir().unwrap();
    let file = file_of(folder.path(), &vec![0; 32 << 20]);
    let script = "label: dos\nlabel-id: 0x00c0ffee\nsize=4M,type=7\nsize=20M,type=5\nsize=2M\nsize=3M,type=82\nsize=1M,type=8e\n";
    let shell = format!("printf '%b' '{}' | sfdisk -q {}", script.replace('\n', "\\n"), file.display());
    assert!(Command::new("sh").args(["-c", &shell]).status().unwrap().success());
    let listed: serde_json::Value = serde_json::from_str(&run("sfdisk", "-J", &file)).unwrap();
    let layout = describe(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(layout.id.as_deref(), Some("00c0ffee"));
    let listed = listed["partitiontable"]["partitions"].as_array().unwrap().clone();
    assert_eq!(listed.len(), layout.partitions.len());
    for (theirs, ours) in listed.iter().zip(&layout.partitions) {
        assert!(theirs["node"].as_str().unwrap().ends_with(&format!("disk{}", ours.number)));
        assert_eq!(theirs["start"], ours.range.start() / 512);
        assert_eq!(theirs["size"], ours.range.len() / 512);
        assert_eq!(
            theirs["type"].as_str().unwrap(),
            format!("{:x}", u8::from_str_radix(&ours.type_id, 16).unwrap())
        );
    }
}

/// What blkid says of a file: the values of TYPE, LABEL, UUID.
fn blkid(file: &Path) -> [Option<String>; 3] {
    let output = Command::new("blkid").args(["-p", "-o", "export"]).arg(file).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    ["TYPE=", "LABEL=", "UUID="].map(|name| {
        printed.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.replace("\\ ", " "))
    })
}

#[test]
#[ignore = "needs mkfs, mdadm, blkid"]
fn labels_and_ids_are_those_that_blkid_prints() {
    let folder = tempfile::tempdir().unwrap();
    let iso = |file: &Path| {
        let args = "-quiet -V cidata -J -r -o";
        let output = format!("{args} {} {}", file.display(), "src/layout");
        assert!(Command::new("genisoimage").args(output.split_whitespace()).status().unwrap().success());
    };
    for (program, args) in [
        ("mkfs.ext2", "-q -F -L boot"),
        ("mkfs.ext3", "-q -F -L old"),
        ("mkfs.ext4", "-q -F -L cloudimg-rootfs"),
        ("mkfs.ext4", "-q -F -O ^has_journal"),
        ("mkfs.ext4", "-q -F -O journal_dev"),
        ("mkfs.vfat", "-F 12 -n UEFI"),
        ("mkfs.vfat", "-F 16 -n CIDATA"),
        ("mkfs.vfat", "-F 32 -n config-2"),
        ("mkfs.vfat", "-F 32"),
        ("mkswap", "-L swap"),
        ("genisoimage", ""),
    ] {
        let file = file_of(folder.path(), &vec![0; 40 << 20]);
        if program == "genisoimage" {
            iso(&file)
        } else {
            drop(run(program, args, &file))
        }
        let found = probe(&std::fs::read(&file).unwrap()).unwrap();
        let [ours] = &found[..] else { panic!("{program} {args}: {found:?}") };
        let ours = [Some(ours.kind.to_owned()), ours.label.clone(), ours.uuid.clone()];
        assert_eq!(ours, blkid(&file), "{program} {args}");
    }
}

#[test]
#[ignore = "needs blkid"]
fn superblocks_that_no_program_here_makes_are_known_to_blkid_too() {
    let folder = tempfile::tempdir().unwrap();
    const ID: &[u8] = &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    // blkid looks for ZFS on disks of 64 MiB and more only.
    const LEN: usize = 64 << 20;
    let md = |sector: u8| {
        [&[0xfc, 0x4e, 0x2b, 0xa9, 1, 0, 0, 0][..], &[0; 8], ID, b"host:0", &[0; 106], &[sector]].concat()
    };
    let (md_11, md_12) = (md(0), md(8));
    let uberblocks: Vec<u8> =
        (0..8).flat_map(|_| [&[0x0c, 0xb1, 0xba, 0][..], &[0; 1020]].concat()).collect();
    let table: &[&[(usize, &[u8])]] = &[
        &[(0, &md_11)],
        &[(4096, &md_12)],
        &[
            (LEN - 65536, &[0xfc, 0x4e, 0x2b, 0xa9, 0, 0, 0, 0, 90]),
            (LEN - 65516, &ID[..4]),
            (LEN - 65504, &[0xc0, 0xff]),
            (LEN - 65484, ID),
        ],
        &[(0, b"LUKS\xba\xbe\0\x01"), (168, b"1f0e0d0c-0b0a-0908-0706-050403020100")],
        &[(65600, b"_BHRfS_M"), (65568, ID), (65536 + 0x12b, b"pool")],
        &[(128 << 10, &uberblocks)],
    ];
    for fields in table {
        let mut disk = vec![0; LEN];
        for (at, bytes) in *fields {
            disk[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        let found = probe(&disk).unwrap();
        let [ours] = &found[..] else { panic!("{found:?}") };
        let ours = [Some(ours.kind.to_owned()), ours.label.clone(), ours.uuid.clone()];
        assert_eq!(ours, blkid(&file_of(folder.path(), &disk)), "{fields:?}");
    }
}

#[test]
#[ignore = "needs blkid, wipefs"]
fn table_ids_are_those_that_blkid_prints_and_a_marker_is_nothing_to_it() {
    let folder = tempfile::tempdir().unwrap();
    // A file has 512-byte sectors to blkid.
    let disk = gpt_disk(SectorSize::B512, 4 * MIB, &[(1, 100, 200)]);
    let file = file_of(folder.path(), &disk);
    let printed = run("blkid", "-p -s PTUUID -o value", &file);
    assert_eq!(ptuuid(&disk).unwrap().as_deref(), Some(printed.trim()));
    let marker = marker::write(&marker::Marker { journal: "i-0a1b".into(), image: None });
    let mut disk = vec![0; 4 << 20];
    disk[..4096].copy_from_slice(&marker);
    let file = file_of(folder.path(), &disk);
    assert_eq!(blkid(&file), [None, None, None]);
    assert_eq!(run("wipefs", "", &file), "");
}
