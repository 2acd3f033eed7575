//! What a disk held comes back, also where it looks like something that no image may be.

use std::fs;

use crate::build::Spec;
use crate::run::{Room, reimage};

/// More than any format is known by.
const HEAD: usize = 4096;

#[test]
fn a_disk_that_began_like_a_qcow2_image_comes_back_as_it_was() {
    let room = Room::new();
    let disk = room.path().join("disks/disk.raw");
    let mut before = room.disk();
    before[..HEAD].copy_from_slice(&Spec::default().lay().bytes[..HEAD]);
    fs::write(&disk, &before).unwrap();
    let image = room.images().join("image.qcow2");
    fs::write(&image, Spec::default().lay().bytes).unwrap();
    let flags = ["--in-place", "--keep-old", "--target-format", "raw"];
    let rebuilt = room.rebuild(image.to_str().unwrap(), &flags);
    assert_eq!(rebuilt.code, Some(0), "{rebuilt:?}");
    assert!(room.disk() != before);
    let words = ["undo", "disks/disk.raw", "--yes", "--json", "--state-dir", "state"];
    let undone = reimage(room.path(), &words);
    assert_eq!(undone.code, Some(0), "{undone:?}");
    assert!(room.disk() == before, "the disk is not what it was");
}
