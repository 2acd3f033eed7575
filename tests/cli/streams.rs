//! Goal: a packed image is decoded before a disk is overwritten, and only once where a file is replaced whole.

use std::fs;
use std::io::Write as _;

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

/// One frame that says no length.
fn zstd_from_a_pipe(disk: &[u8]) -> Vec<u8> {
    let mut encoder = zstd_safe::CCtx::create();
    let mut packed = vec![0; zstd_safe::compress_bound(disk.len())];
    let mut to = zstd_safe::OutBuffer::around(&mut packed[..]);
    let mut from = zstd_safe::InBuffer::around(disk);
    while from.pos() < disk.len() {
        encoder.compress_stream(&mut to, &mut from).unwrap();
    }
    while encoder.end_stream(&mut to).unwrap() > 0 {}
    let len = to.pos();
    packed.truncate(len);
    packed
}

fn gzip(disk: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(disk).unwrap();
    encoder.finish().unwrap()
}

/// Two members, so that no last word tells the length.
fn members(disk: &[u8]) -> Vec<u8> {
    let (first, second) = disk.split_at(70_000_000);
    [gzip(first), gzip(second)].concat()
}

fn xz(disk: &[u8]) -> Vec<u8> {
    liblzma::encode_all(disk, 0).unwrap()
}

/// A disk, its file, and how many bytes a pass before the copy was to decode; 0 where there was none.
fn rebuilt(room: &Room, words: &[&str]) -> (serde_json::Value, u64) {
    let ran = room.rebuild(&[words, &["--progress", "json"]].concat());
    let report = ran.document();
    let lines = ran.stderr.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let before = lines.filter(|line| line["type"] == "progress" && line["phase"] == "preflight");
    let decoded = before.map(|line| line["bytes_total"].as_u64().unwrap()).max().unwrap_or_default();
    (report, decoded)
}

#[test]
fn each_codec_is_decoded_once_onto_a_file_that_is_replaced_and_twice_into_one_that_is_not() {
    let room = Room::new();
    let bare = |mut disk: Vec<u8>| {
        disk[510] = 0;
        disk
    };
    for (table, disk) in [("mbr", disk()), ("no table", bare(disk()))] {
        for (name, packed) in [
            ("disk.raw.zst", zstd_from_a_pipe(&disk)),
            ("disk.raw.gz", gzip(&disk)),
            ("more.raw.gz", members(&disk)),
            ("disk.raw.xz", xz(&disk)),
        ] {
            let len = packed.len() as u64;
            room.file(name, packed);
            for (words, is_decoded_before) in [
                (&[name, "new.raw"][..], false),
                (&[name, "new.raw"], false),
                (&[name, "new.qcow2", "--target-format", "qcow2"], false),
                (&[name, "new.raw", "--in-place"], true),
            ] {
                let (report, decoded) = rebuilt(&room, words);
                assert_eq!(decoded, if is_decoded_before { len } else { 0 }, "{table}, {words:?}");
                assert_eq!(report["plan"]["image"]["virtual_size"], disk.len() as u64, "{table}, {words:?}");
                if words[1] == "new.raw" {
                    assert!(fs::read(room.path("new.raw")).unwrap() == disk, "{table}, {words:?}");
                }
                let verified = room.plain(&["verify", name, words[1], "--json"]);
                assert_eq!(verified.code, Some(0), "{table}, {words:?}: {verified:?}");
            }
            fs::remove_file(room.path("new.raw")).unwrap();
            fs::remove_file(room.path("new.qcow2")).unwrap();
        }
    }
}

#[test]
fn a_stream_that_turns_out_to_be_longer_than_the_disk_is_refused_and_nothing_is_left() {
    let (room, disk) = (Room::new(), disk());
    let old = room.file("old.raw", b"the old disk");
    fs::File::options().write(true).open(&old).unwrap().set_len(79_000_000).unwrap();
    let seen = Seen::of(&old);
    for (name, packed) in [("disk.raw.zst", zstd_from_a_pipe(&disk)), ("more.raw.gz", members(&disk))] {
        room.file(name, packed);
        let error = room.rebuild(&[name, "old.raw"]).error(20);
        assert_eq!(error["target_state"], "untouched", "{error}");
        seen.check(&old);
    }
    assert_eq!(room.names(), ["disk.raw.zst", "more.raw.gz", "old.raw"]);
}

#[test]
fn a_stream_of_which_all_that_fits_was_looked_at_is_followed_to_its_end_all_the_same() {
    const MIB: usize = 1 << 20;
    let (room, disk) = (Room::new(), disk());
    let whole = gzip(&disk[..MIB]);
    let (cut, behind) = (whole[..whole.len() - 2].to_vec(), [&whole[..], b"garbage"].concat());
    for (size, name, packed) in [
        (0, "one.raw.gz", gzip(&disk[..1])),
        (0, "all.raw.zst", zstd_from_a_pipe(&disk)),
        (MIB, "longer.raw.gz", gzip(&disk[..=MIB])),
        (MIB, "longer.raw.zst", zstd_from_a_pipe(&disk[..=MIB])),
        (MIB, "cut.raw.gz", cut),
        (MIB, "behind.raw.gz", behind),
        (MIB + 9000, "far.raw.gz", gzip(&disk[..MIB + 9001])),
    ] {
        room.file(name, packed);
        let old = room.file("old.raw", vec![7; size]);
        let seen = Seen::of(&old);
        let error = room.rebuild(&[name, "old.raw"]).error(20);
        assert_eq!(error["target_state"], "untouched", "{name}: {error}");
        seen.check(&old);
        if size != 0 {
            continue;
        }
        room.rebuild(&[name, "new.raw", "--size", "0"]).error(20);
        assert!(!room.path("new.raw").exists(), "{name}");
    }
    room.file("right.raw.gz", whole);
    room.file("old.raw", vec![7; MIB]);
    assert_eq!(room.rebuild(&["right.raw.gz", "old.raw"]).code, Some(0));
    assert!(fs::read(room.path("old.raw")).unwrap() == disk[..MIB]);
}

#[test]
fn a_plan_says_that_the_length_is_supposed() {
    let (room, disk) = (Room::new(), disk());
    room.file("disk.raw.zst", zstd_from_a_pipe(&disk));
    fs::File::create(room.path("old.raw")).unwrap().set_len(81_000_000).unwrap();
    let plan = room.run("plan", &["disk.raw.zst", "old.raw"]).document();
    assert!(plan.to_string().contains("81000000 bytes are supposed"), "{plan}");
    let (report, _) = rebuilt(&room, &["disk.raw.zst", "old.raw"]);
    assert_eq!(report["plan"]["image"]["virtual_size"], disk.len() as u64);
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
