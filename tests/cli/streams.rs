//! Goal: a packed image is decoded before a disk is overwritten, and only once where a file is replaced whole.

use std::fs;

use crate::support::{Room, Seen};

/// A disk with an MBR table of one partition, data, and a long way of nothing.
fn disk() -> Vec<u8> {
    let mut disk: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 5 % 253) as u8).collect();
    disk[..512].fill(0);
    disk[446 + 4] = 0x83;
    disk[446 + 8..446 + 16].copy_from_slice(&[0, 8, 0, 0, 0, 8, 0, 0]);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    // Further than a plan looks ahead.
    disk.resize(80_000_000, 0);
    disk
}

/// One frame that says its length and carries a checksum.
fn zstd(disk: &[u8]) -> Vec<u8> {
    let mut encoder = zstd_safe::CCtx::create();
    encoder.set_parameter(zstd_safe::CParameter::ChecksumFlag(true)).unwrap();
    let mut packed = vec![0; zstd_safe::compress_bound(disk.len())];
    let len = encoder.compress2(&mut packed[..], disk).unwrap();
    packed.truncate(len);
    packed
}

#[test]
fn a_packed_image_is_rebuilt_verified_and_has_a_manifest() {
    let (room, disk) = (Room::new(), disk());
    room.file("disk.raw.zst", zstd(&disk));
    fs::write(room.path("old.raw"), &disk[1..]).unwrap();
    fs::File::options().write(true).open(room.path("old.raw")).unwrap().set_len(disk.len() as u64).unwrap();
    for words in [&["disk.raw.zst", "new.raw"][..], &["disk.raw.zst", "old.raw", "--in-place"]] {
        room.rebuild(words).document();
        assert!(fs::read(room.path(words[1])).unwrap() == disk, "{words:?}");
    }
    let made = room.plain(&["manifest", "disk.raw.zst", "--output", "disk.raw.zst.manifest.json"]);
    assert_eq!(made.code, Some(0), "{made:?}");
    let verified = room.plain(&["verify", "disk.raw.zst", "new.raw", "--json"]).document();
    assert!(verified.to_string().contains("manifest.json"), "{verified}");
}

#[test]
fn a_damaged_stream_is_refused_and_the_old_disk_stays_wherever_the_damage_is() {
    let (room, whole) = (Room::new(), zstd(&disk()));
    let old = room.file("old.raw", b"the old disk");
    fs::File::options().write(true).open(&old).unwrap().set_len(81_000_000).unwrap();
    let seen = Seen::of(&old);
    let last = whole.len() - 1;
    let flipped = |at: usize| {
        let mut packed = whole.clone();
        packed[at] ^= 1;
        packed
    };
    for (what, packed) in [
        ("cut in the middle", whole[..last / 2].to_vec()),
        ("cut at the end", whole[..last].to_vec()),
        ("damaged in the middle", flipped(last / 2)),
        ("a wrong checksum", flipped(last)),
        ("followed by something", [&whole[..], b"more"].concat()),
    ] {
        room.file("disk.raw.zst", packed);
        for words in [&["disk.raw.zst", "old.raw"][..], &["disk.raw.zst", "old.raw", "--in-place"]] {
            let error = room.rebuild(words).error(20);
            assert_eq!(error["target_state"], "untouched", "{what}: {error}");
            assert!(error["path"].as_str().unwrap().ends_with("disk.raw.zst"), "{what}: {error}");
            seen.check(&old);
        }
    }
}

#[test]
fn a_plan_says_whether_the_stream_was_decoded() {
    let room = Room::new();
    room.file("disk.raw.zst", zstd(&disk()));
    fs::File::create(room.path("old.raw")).unwrap().set_len(81_000_000).unwrap();
    for (flag, expected) in [(None, true), (Some("--in-place"), false), (Some("--preflight=deep"), false)] {
        let words: Vec<_> = ["disk.raw.zst", "old.raw"].into_iter().chain(flag).collect();
        let plan = room.run("plan", &words).document();
        let is_said = plan.to_string().contains("is decoded once, while it is copied");
        assert_eq!(is_said, expected, "{flag:?}: {plan}");
    }
}

#[test]
fn no_overlay_is_built_on_a_packed_image() {
    let room = Room::new();
    room.file("disk.raw.zst", zstd(&disk()));
    let words = ["disk.raw.zst", "new.qcow2", "--target-format", "qcow2", "--linked"];
    for ran in [room.run("plan", &words), room.rebuild(&words)] {
        let error = ran.error(20);
        assert_eq!(error["target_state"], "untouched", "{error}");
        assert!(error["path"].as_str().unwrap().ends_with("disk.raw.zst"), "{error}");
        assert!(error["hint"].as_str().unwrap().contains("`zstd -d disk.raw.zst`"), "{error}");
    }
    assert_eq!(room.names(), ["disk.raw.zst"]);
}

#[test]
fn the_text_says_that_the_image_is_packed() {
    let room = Room::new();
    room.file("disk.raw.zst", zstd(&disk()));
    let ran =
        room.plain(&["plan", "disk.raw.zst", "new.raw", "--keep-image-credentials", "--state-dir", "state"]);
    assert!(ran.stdout.contains("disk.raw.zst (raw packed with zstd, a file of"), "{ran:?}");
}
