//! Goal: our reading and writing of partition tables is that of the programs that administrators use.
//! Method: those programs make files, and their answers are compared with ours.

use std::path::Path;
use std::process::Command;

use super::samples::{MIB, gpt_disk};
use super::sector::SectorSize;
use super::{Outcome, describe, relocate};

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
    let script = "label: dos\nlabel-id: 0x00c0ffee\nsize=4M,type=7\nsize=20M,type=5\nsize=2M\nsize=3M,type=82\n\
                  size=1M,type=8e\n";
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
