//! System disks that are qcow2 files: what they become, what is refused, and overlays on the image.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use serde_json::Value;

use crate::support::{PASSWORD, Ran, Room, Seen, expected, sha256, text};
use crate::without_image::gpt_disk;

/// The disk in a qcow2 file, as a raw file that this program makes of it, but with the size and digest of `name`.
#[track_caller]
fn holds(room: &Room, file: &Path, name: &str, allowed: &[&str]) {
    let raw = room.path("export.raw");
    let words = [&[text(file), text(&raw)][..], allowed].concat();
    room.rebuild(&words).document();
    let (size, digest) = expected(name);
    let bytes = fs::read(&raw).unwrap();
    fs::remove_file(&raw).unwrap();
    let size = usize::try_from(size).unwrap();
    assert!(bytes[size..].iter().all(|byte| *byte == 0), "{name}: not zero behind the image");
    assert_eq!(sha256(&bytes[..size]), digest, "{name}");
}

fn inspected(room: &Room, file: &Path) -> Value {
    room.plain(&["inspect", "--json", text(file)]).document()["image"]["chain"][0].take()
}

/// A qcow2 file of that many bytes of disk, made by this program out of `image`.
fn disk(room: &Room, image: &str, name: &str, size: &str) -> std::path::PathBuf {
    let path = room.path(name);
    let words = [image, text(&path), "--target-format", "qcow2", "--size", size];
    room.rebuild(&words).document();
    path
}

/// An image of `testdata` as somebody's disk.
fn old(room: &Room, name: &str, disk: &str) -> std::path::PathBuf {
    let path = room.path(disk);
    fs::rename(room.image(name), &path).unwrap();
    path
}

#[track_caller]
fn refused(room: &Room, words: &[&str], code: i32, disk: &Path) -> Value {
    let before = Seen::of(disk);
    let names = room.names();
    let planned = room.run("plan", words).error(code);
    let error = room.rebuild(words).error(code);
    before.check(disk);
    assert_eq!(room.names(), names, "a refused run left something behind");
    assert_eq!((&planned["kind"], &error["target_state"]), (&error["kind"], &Value::from("untouched")));
    assert!(error["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "no hint: {error}");
    error
}

#[test]
fn a_qcow2_disk_keeps_its_version_cluster_size_and_size_and_holds_the_image() {
    for (name, version, cluster) in [
        ("v2-64k", 2, 65536),
        ("v3-512", 3, 512),
        ("v3-1k", 3, 1024),
        ("v3-4k", 3, 4096),
        ("v3-2m", 3, 2 << 20),
    ] {
        let room = Room::new();
        let image = room.image("zstd-4k");
        let target = old(&room, name, "disk.qcow2");
        let before = inspected(&room, &target);
        let report = room.rebuild(&[text(&image), text(&target)]).document();
        let after = inspected(&room, &target);
        assert_eq!((&after["version"], &after["cluster_size"]), (&version.into(), &cluster.into()), "{name}");
        assert_eq!(after["virtual_size"], before["virtual_size"], "{name}");
        assert_eq!(report["target_state"], "verified");
        assert_eq!(report["plan"]["qcow2"]["cluster_size"], cluster);
        assert_eq!(room.names(), ["disk.qcow2", "zstd-4k.qcow2"], "something was left behind");
        holds(&room, &target, "zstd-4k", &[]);
        let verified = room.plain(&["verify", "--json", text(&image), text(&target)]).document();
        assert_eq!(verified["root"], report["root"], "{name}");
    }
}

#[test]
fn a_new_qcow2_file_is_made_only_where_that_is_said() {
    let room = Room::new();
    let image = room.image("zlib-64k");
    for words in [&["new.qcow2"][..], &["new.qcow2", "--linked"]] {
        room.rebuild(&[&[text(&image)], words].concat()).error(2);
    }
    for name in ["new.qcow2", "new.img"] {
        let target = room.path(name);
        room.rebuild(&[text(&image), text(&target), "--target-format", "qcow2"]).document();
        let made = room.plain(&["inspect", "--json", "--image-format", "qcow2", text(&target)]).document();
        let made = &made["image"]["chain"][0];
        assert_eq!((&made["version"], &made["cluster_size"]), (&3.into(), &65536.into()), "{name}");
        assert_eq!(fs::metadata(&target).unwrap().mode() & 0o777, 0o600);
    }
}

#[test]
fn name_and_content_of_a_target_must_agree_or_its_format_must_be_said() {
    let room = Room::new();
    let image = text(&room.image("zlib-64k")).to_owned();
    let hidden = old(&room, "v3-64k", "disk.img");
    refused(&room, &[&image, text(&hidden)], 14, &hidden);
    room.plain(&["verify", "--json", &image, text(&hidden)]).error(14);
    let plain = room.old_disk("disk.qcow2", 2 << 20);
    refused(&room, &[&image, text(&plain)], 14, &plain);
    refused(&room, &[&image, text(&plain), "--target-format", "qcow2"], 14, &plain);
    let said = [&image, text(&hidden), "--target-format", "qcow2"];
    for (flags, code, hint) in [
        (&["--in-place"][..], 14, "leave --in-place out"),
        (&["--mode", "delta"], 2, "leave --mode delta out"),
    ] {
        let error = refused(&room, &[&said[..], flags].concat(), code, &hidden);
        assert_eq!(error["hint"], hint, "{flags:?}");
    }
    let report = room.rebuild(&[&image, text(&hidden), "--target-format", "qcow2"]).document();
    assert_eq!(report["plan"]["qcow2"]["version"], 3);
    let named = room.path("said.qcow2");
    fs::rename(&hidden, &named).unwrap();
    holds(&room, &named, "zlib-64k", &[]);
}

#[test]
fn a_larger_qcow2_disk_is_zero_behind_the_image_and_a_smaller_one_is_refused() {
    let room = Room::new();
    let image = text(&room.image("zlib-64k")).to_owned();
    let target = disk(&room, &image, "disk.qcow2", "20000001");
    // qemu counts in sectors.
    assert_eq!(inspected(&room, &target)["virtual_size"], 20_000_001_u64.next_multiple_of(512));
    let report = room.rebuild(&[&image, text(&target), "--size", "1T"]).document();
    assert_eq!(report["target_bytes"], 1_u64 << 40);
    let (size, _) = expected("zlib-64k");
    let error = refused(&room, &[&image, text(&target), "--size", &(size - 512).to_string()], 12, &target);
    assert!(error["message"].as_str().unwrap().contains("does not fit"), "{error}");
    let small = old(&room, "v3-512", "small.qcow2");
    refused(&room, &[&image, text(&small), "--size", "1T"], 12, &small);
}

#[test]
fn internal_snapshots_are_lost_only_where_that_is_allowed() {
    let room = Room::new();
    let image = text(&room.image("zlib-64k")).to_owned();
    let target = old(&room, "snapshots", "disk.qcow2");
    let error = refused(&room, &[&image, text(&target)], 14, &target);
    assert!(error["hint"].as_str().unwrap().contains("--allow-losing-snapshots"), "{error}");
    let plan = room.run("plan", &[&image, text(&target), "--allow-losing-snapshots"]).document();
    assert!(plan["qcow2"]["lost_snapshots"].as_u64() > Some(0), "{plan}");
    assert!(plan["warnings"].to_string().contains("internal snapshot"), "{plan}");
    room.rebuild(&[&image, text(&target), "--allow-losing-snapshots"]).document();
    assert_eq!(inspected(&room, &target)["snapshots"], 0);
}

#[test]
fn a_header_that_says_corrupt_still_says_the_size_and_one_of_another_kind_is_refused() {
    let room = Room::new();
    let image = text(&room.image("zlib-64k")).to_owned();
    let target = old(&room, "v3-64k", "disk.qcow2");
    let whole = fs::read(&target).unwrap();
    // The qcow2 specification: crypt_method at 32, incompatible features at 72 (bit 1 corrupt, bit 2 external data).
    for (place, value) in [(35, 2), (79, 4), (73, 1), (4, 9), (23, 40)] {
        let mut bytes = whole.clone();
        bytes[place] = value;
        fs::write(&target, bytes).unwrap();
        let error = refused(&room, &[&image, text(&target)], 14, &target);
        assert!(error.to_string().contains("header"), "byte {place}: {error}");
    }
    let mut bytes = whole;
    bytes[79] |= 2;
    fs::write(&target, bytes).unwrap();
    let report = room.rebuild(&[&image, text(&target)]).document();
    assert!(report["plan"]["warnings"].to_string().contains("marked corrupt"), "{report}");
    holds(&room, &target, "zlib-64k", &[]);
}

#[test]
fn a_disk_on_which_another_one_is_built_is_refused_with_its_name() {
    let room = Room::new();
    let image = text(&room.image("zlib-64k")).to_owned();
    let base = room.path("base.raw");
    room.rebuild(&[&image, text(&base)]).document();
    let overlay = room.path("over.img");
    let words = [text(&base), text(&overlay), "--target-format", "qcow2", "--linked"];
    room.rebuild(&words).document();
    let error = refused(&room, &[&image, text(&base)], 11, &base);
    assert!(error.to_string().contains("over.img"), "{error}");
    refused(&room, &[&image, text(&base), "--in-place"], 11, &base);
    // In another folder it is found where it is named.
    fs::create_dir(room.path("elsewhere")).unwrap();
    let elsewhere = room.path("elsewhere/over.img");
    fs::rename(&overlay, &elsewhere).unwrap();
    refused(&room, &[&image, text(&base), "--data-disk", text(&elsewhere)], 11, &base);
    room.rebuild(&[&image, text(&base)]).document();
}

#[test]
fn a_linked_disk_is_an_overlay_that_reads_as_the_image_and_zeroes() {
    let room = Room::new();
    for (name, size) in [("zlib-64k", None), ("zstd-4k", Some("64M"))] {
        let image = room.image(name);
        let target = room.path(&format!("{name}-disk.qcow2"));
        let mut words = vec![text(&image), text(&target), "--target-format", "qcow2", "--linked"];
        words.extend(size.iter().flat_map(|size| ["--size", size]));
        let report = room.rebuild(&words).document();
        assert_eq!((&report["mode"], &report["target_state"]), (&"linked".into(), &"verified".into()));
        assert_eq!(report["bytes_written"], 0, "no GPT had to move");
        assert!(fs::metadata(&target).unwrap().blocks() * 512 < 1 << 20);
        let folder = room.path("");
        room.plain(&["inspect", "--json", text(&target)]).error(20);
        let allowed = ["--allow-backing", text(&folder)];
        let verified = room.plain(&["verify", "--json", text(&image), text(&target), allowed[0], allowed[1]]);
        assert_eq!(verified.document()["root"], report["root"]);
        holds(&room, &target, name, &allowed);
        // Without it the plan says that the disk becomes a flat one.
        let plan = room.run("plan", &[text(&image), text(&target)]).document();
        assert!(plan["warnings"].to_string().contains("becomes a flat disk"), "{plan}");
        let again = room.rebuild(&[text(&image), text(&target), "--linked"]).document();
        assert_eq!(again["root"], report["root"], "what is remembered is what was found");
    }
}

#[test]
fn a_linked_image_is_decoded_again_when_it_changed_and_refused_when_it_is_damaged() {
    let room = Room::new();
    let image = room.image("zlib-64k");
    let target = room.path("disk.qcow2");
    let words = [text(&image), text(&target), "--linked", "--target-format", "qcow2"];
    room.rebuild(&words).document();
    let checked = |words: &[&str]| {
        let ran = room.rebuild(&[words, &["--progress", "json"]].concat());
        ran.document();
        ran.stderr.contains("was decoded from end to end before")
    };
    assert!(checked(&words), "the second time it is known");
    crate::faults::damage_last(&image);
    let before = Seen::of(&target);
    let ran = room.rebuild(&words);
    assert_eq!(ran.code, Some(20), "{ran:?}");
    before.check(&target);
}

#[test]
fn an_image_of_which_qemu_would_not_read_the_last_bytes_is_copied_and_not_linked() {
    let room = Room::new();
    let image = room.image("zlib-64k");
    let mut bytes = fs::read(&image).unwrap();
    let size = u64::from_be_bytes(bytes[24..32].try_into().unwrap());
    bytes[24..32].copy_from_slice(&(size - 1).to_be_bytes());
    fs::write(&image, bytes).unwrap();
    let words = [text(&image), "disk.qcow2", "--target-format", "qcow2"];
    let error = room.rebuild(&[&words[..], &["--linked"]].concat()).error(20);
    assert!(error["hint"].as_str().unwrap().contains("leave --linked out"), "{error}");
    assert!(!room.path("disk.qcow2").exists());
    room.rebuild(&words).document();
    // Of a raw file qemu reads all there is.
    let raw = room.old_disk("base.raw", 1000);
    room.rebuild(&[text(&raw), "over.qcow2", "--target-format", "qcow2", "--linked"]).document();
}

#[test]
fn a_linked_image_that_was_changed_under_its_old_size_and_time_is_decoded_again() {
    let room = Room::new();
    let mut bytes = vec![7; 4 << 20];
    let image = room.file("image.raw", &bytes);
    let target = room.path("disk.qcow2");
    let words = [text(&image), text(&target), "--linked", "--target-format", "qcow2"];
    let first = room.rebuild(&words).document();
    let before = fs::metadata(&image).unwrap();
    bytes[3 << 20] = 8;
    fs::write(&image, &bytes).unwrap();
    fs::File::options().write(true).open(&image).unwrap().set_modified(before.modified().unwrap()).unwrap();
    let now = fs::metadata(&image).unwrap();
    assert_eq!((now.ino(), now.len()), (before.ino(), before.len()));
    assert_eq!((now.mtime(), now.mtime_nsec()), (before.mtime(), before.mtime_nsec()), "forged");
    let second = room.rebuild(&words).document();
    assert_ne!(second["root"], first["root"]);
}

#[test]
fn an_image_with_stretches_that_were_allocated_and_never_written_is_linked() {
    let room = Room::new();
    let image = room.path("image.raw");
    let file = fs::File::create(&image).unwrap();
    // Each cluster's second half is allocated and never written, and behind them comes a hole.
    file.set_len(9 << 20).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 8 << 20).unwrap();
    for at in (0..8_u64 << 20).step_by(64 << 10) {
        file.write_all_at(&[5; 32 << 10], at).unwrap();
    }
    drop(file);
    for round in 0..4 {
        // What the page cache holds of such a stretch makes it data.
        let file = fs::File::open(&image).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let target = room.path(&format!("disk{round}.qcow2"));
        let report = room.rebuild(&[text(&image), text(&target), "--linked", "--target-format", "qcow2"]);
        assert_eq!(report.document()["target_state"], "verified");
    }
}

#[test]
fn a_linked_disk_has_a_receipt_whether_its_image_was_known_or_not() {
    let room = Room::new();
    let (target, folder) = (room.path("disk.qcow2"), room.path(""));
    let rebuild = |image: &Path| {
        let words = [text(image), text(&target), "--linked", "--target-format", "qcow2", "--size", "16M"];
        room.rebuild(&words).document()
    };
    let receipt = ["verify", "--json", "--state-dir", "state", "--receipt", text(&target)];
    let allowed = [&receipt[..], &["--allow-backing", text(&folder)]].concat();
    for image in [room.image("zlib-64k"), room.file("gpt.raw", gpt_disk(512, 3 << 20))] {
        for _ in 0..2 {
            let report = rebuild(&image);
            room.plain(&receipt).error(14);
            let verified = room.plain(&allowed).document();
            assert_eq!((&verified["root"], verified["places"].as_u64()), (&report["root"], Some(0)));
        }
        // What was noted of the image is of no use without its chunks.
        for entry in fs::read_dir(room.path("state/images")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|ending| ending == "chunks") {
                fs::write(path, "[]").unwrap();
            }
        }
        rebuild(&image);
        room.plain(&allowed).document();
    }
    let image = room.file("other.raw", vec![3; 4 << 20]);
    let other = room.path("other.qcow2");
    room.rebuild(&[text(&image), text(&other), "--target-format", "qcow2", "--size", "16M"]).document();
    fs::rename(&other, &target).unwrap();
    room.plain(&allowed).error(31);
}

#[test]
fn linked_goes_with_qcow2_files_alone_and_without_what_copies() {
    let room = Room::new();
    let image = text(&room.image("zlib-64k")).to_owned();
    let raw = room.old_disk("disk.raw", 2 << 20);
    refused(&room, &[&image, text(&raw), "--linked"], 14, &raw);
    let target = disk(&room, &image, "disk.qcow2", "8M");
    for flags in [&["--in-place"][..], &["--mode", "delta"], &["--whole-digest"]] {
        refused(&room, &[&[&image, text(&target), "--linked"], flags].concat(), 2, &target);
    }
}

#[test]
fn a_full_file_system_or_a_kill_is_the_old_disks_business() {
    let room = Room::new();
    let image = room.image("v3-64k");
    let target = disk(&room, text(&image), "disk.qcow2", "8M");
    let before = Seen::of(&target);
    let error = on_a_full_disk(&room, &["--keep-image-credentials", text(&image), text(&target)]).error(30);
    assert_eq!(error["target_state"], "untouched", "{error}");
    before.check(&target);
    assert_eq!(room.names(), ["disk.qcow2", "v3-64k.qcow2"], "something was left behind");
}

/// A rebuild where no file may have more than 2 MiB: more fails as on a full disk.
fn on_a_full_disk(room: &Room, words: &[&str]) -> Ran {
    let mut command = room.command(["rebuild", "--json", "--yes", "--state-dir", "state"]);
    command.args(words);
    let mut limited = std::process::Command::new("sh");
    // dash counts in blocks of 512 bytes.
    limited.args(["-c", "trap '' XFSZ; ulimit -f 4096; exec \"$0\" \"$@\""]).arg(command.get_program());
    limited.args(command.get_args()).env_clear().current_dir(room.path("")).env("HOME", room.path(""));
    Ran::of(limited.env("PATH", "/usr/bin:/bin").output().unwrap())
}

#[test]
fn a_file_that_cannot_be_completed_leaves_the_old_disk_and_the_old_seed() {
    let room = Room::new();
    let image = room.image("zlib-64k");
    // Clusters so small that the tables of a disk of that size are too large.
    let target = old(&room, "v3-512", "disk.qcow2");
    let (seed, password) = (room.path("seed.iso"), room.file("password", PASSWORD));
    let seeded = ["--seed", text(&seed), "--password-file", text(&password)];
    let words = ["rebuild", "--json", "--yes", "--state-dir", "state", text(&image), text(&target)];
    room.plain(&[&words[..], &seeded].concat()).document();
    let (before, seed_before) = (Seen::of(&target), Seen::of(&seed));
    let names = room.names();
    let words = [text(&image), text(&target), "--linked", "--size", "16G"];
    let error = on_a_full_disk(&room, &[&words[..], &seeded].concat()).error(30);
    assert_eq!(error["target_state"], "untouched", "{error}");
    before.check(&target);
    seed_before.check(&seed);
    assert_eq!(room.names(), names, "something was left behind");
}
