//! What goes wrong in the middle is told with its place, and the disk says what it is.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::support::{PASSWORD, Room, Seen, text};

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Which of an image's compressed clusters.
#[derive(PartialEq, Eq)]
enum Which {
    First,
    Last,
}

/// Makes the stream of a compressed cluster undecodable.
fn damage(image: &Path, which: Which) {
    let bytes = fs::read(image).unwrap();
    let at = |offset: u64, len: u64| {
        number(&bytes[usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap()])
    };
    // The qcow2 specification: cluster_bits at 20, l1_table_offset at 40; bit 62 of an L2 entry: compressed.
    let (cluster_bits, l1) = (at(20, 4), at(40, 8));
    let l2 = at(l1, 8) & 0x00ff_ffff_ffff_fe00;
    let mut entries = (0..1 << (cluster_bits - 3)).map(|place| at(l2 + 8 * place, 8));
    let compressed = |entry: &u64| entry >> 62 & 1 == 1;
    let entry = match which {
        Which::First => entries.find(compressed).unwrap(),
        Which::Last => entries.rfind(compressed).unwrap(),
    };
    let offset = entry & ((1 << (62 - (cluster_bits - 8))) - 1);
    let file = File::options().write(true).open(image).unwrap();
    file.write_all_at(&[0xff; 64], offset).unwrap();
}

/// Makes an image fail in the middle of the copy.
pub(crate) fn damage_last(image: &Path) {
    // Not the first, which a plan reads to find the partition table.
    damage(image, Which::Last);
}

fn damaged(room: &Room) -> PathBuf {
    let image = room.image("zlib-64k");
    damage_last(&image);
    image
}

#[test]
fn a_damaged_cluster_found_during_the_copy_is_32_and_the_disk_says_that_it_is_unfinished() {
    let room = Room::new();
    let image = damaged(&room);
    let disk = room.old_disk("disk.raw", 2 << 20);
    let error = room.rebuild(&[text(&image), text(&disk), "--in-place"]).error(32);
    assert_eq!(error["kind"], "image_fault");
    assert_ne!(error["target_state"], "untouched");
    assert!(error["offset"].is_u64(), "{error}");
    let status = room.plain(&["status", "--json", text(&disk)]).document();
    assert_eq!(status["state"], "failed");
    assert!(status["journal"].is_string(), "{status}");
    let good = room.image("zlib-4k");
    let verified = room.plain(&["verify", "--json", text(&good), text(&disk)]).error(31);
    assert!(verified["hint"].is_string(), "{verified}");
    room.rebuild(&[text(&good), text(&disk), "--in-place"]).document();
    room.plain(&["verify", "--json", text(&good), text(&disk)]).document();
    let status = room.plain(&["status", "--json", text(&disk)]).document();
    assert_eq!(status["state"], "stopped");
}

#[test]
fn a_damaged_cluster_leaves_a_file_that_would_be_replaced_as_it_was() {
    let room = Room::new();
    let image = damaged(&room);
    let disk = room.old_disk("disk.raw", 2 << 20);
    let before = Seen::of(&disk);
    let error = room.rebuild(&[text(&image), text(&disk)]).error(32);
    assert_eq!(error["target_state"], "untouched");
    before.check(&disk);
    assert_eq!(room.names(), ["disk.raw", "zlib-64k.qcow2"], "something was left behind");
}

#[test]
fn an_image_whose_partition_table_cannot_be_read_is_20_and_is_named() {
    let room = Room::new();
    let image = room.image("zlib-64k");
    damage(&image, Which::First);
    let disk = room.old_disk("disk.raw", 2 << 20);
    let before = Seen::of(&disk);
    let error = room.rebuild(&[text(&image), text(&disk), "--in-place"]).error(20);
    assert_eq!((&error["path"], &error["target_state"]), (&text(&image).into(), &"untouched".into()));
    before.check(&disk);
}

#[test]
fn a_deep_preflight_finds_a_damaged_cluster_before_the_disk_changes() {
    let room = Room::new();
    let image = damaged(&room);
    let disk = room.old_disk("disk.raw", 2 << 20);
    let before = Seen::of(&disk);
    let words = [text(&image), text(&disk), "--in-place", "--preflight", "deep"];
    let error = room.rebuild(&words).error(20);
    assert_eq!(error["target_state"], "untouched");
    before.check(&disk);
}

#[test]
fn a_difference_is_31_with_its_offset_and_nothing_is_written() {
    let room = Room::new();
    let image = room.image("zlib-64k");
    let disk = room.path("disk.raw");
    room.rebuild(&[text(&image), text(&disk), "--size", "8M"]).document();
    for at in [0, 511, 300_000, (1 << 20) + 1600, (8 << 20) - 1] {
        let file = File::options().read(true).write(true).open(&disk).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        let before = Seen::of(&disk);
        let error = room.plain(&["verify", "--json", text(&image), text(&disk)]).error(31);
        before.check(&disk);
        let (offset, length) = (error["offset"].as_u64().unwrap(), error["length"].as_u64().unwrap());
        assert!((offset..offset + length).contains(&at), "{at} is not in {error}");
        file.write_all_at(&byte, at).unwrap();
    }
    room.plain(&["verify", "--json", text(&image), text(&disk)]).document();
}

#[test]
fn the_journal_that_a_failed_run_leaves_holds_no_password() {
    let room = Room::new();
    let image = damaged(&room);
    let disk = room.old_disk("disk.raw", 2 << 20);
    room.file("password", PASSWORD);
    let words = ["rebuild", "--yes", "--json", "--in-place", "--state-dir", "state"];
    let seed = ["--seed", "seed.iso", "--password-file", "password"];
    room.plain(&[&words[..], &seed, &[text(&image), text(&disk)]].concat()).error(32);
    let kept = files_below(&room.path("state"));
    assert!(!kept.is_empty(), "a failed run leaves its journal");
    for path in kept {
        let bytes = fs::read(&path).unwrap();
        let journal = String::from_utf8_lossy(&bytes);
        assert!(!journal.contains(PASSWORD) && !journal.contains("$6$"), "{path:?}: {journal}");
    }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files
}
