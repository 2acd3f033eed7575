//! What becomes of a kept old disk between the rebuild and the undo: other disks that are built on it, runs that are
//! killed and run again, seeds that later rebuilds write, and files that somebody changes.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::Value;

use crate::support::{Ran, Room, Seen, text};
use crate::undo::{MIB, Old, WAYS, killed, rebuild_instance};

/// A qcow2 file without a cluster of its own, built on another file.
fn overlay(room: &Room, name: &str, below: &Path) -> PathBuf {
    let below = below.file_name().unwrap().as_encoded_bytes();
    let mut header = vec![0; 3 * 65536];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb\0\0\0\x02");
    put(8, &512_u64.to_be_bytes());
    put(16, &u32::try_from(below.len()).unwrap().to_be_bytes());
    put(20, &16_u32.to_be_bytes());
    put(24, &(5_u64 << 20).to_be_bytes());
    put(36, &1_u32.to_be_bytes());
    put(40, &65536_u64.to_be_bytes());
    put(48, &131_072_u64.to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    // A header extension says that the file below is a raw disk.
    put(72, &[&0xE279_2ACA_u32.to_be_bytes()[..], &3_u32.to_be_bytes(), b"raw\0\0\0\0\0"].concat());
    put(512, below);
    room.file(name, header)
}

#[test]
fn no_undo_and_no_giving_up_takes_a_file_from_below_another_disk() {
    let old = Old::new();
    old.rebuild(&old.image, &["--keep-old"]).document();
    let kept = PathBuf::from(old.kept()["path"].as_str().unwrap());
    let files = [&old.disk, &kept].map(|path| Seen::of(path));
    let refused = |ran: Ran| {
        let error = ran.error(11);
        assert!(error["message"].as_str().unwrap().contains("is built on it"), "{error}");
        files[0].check(&old.disk);
        files[1].check(&kept);
    };
    let data = overlay(&old.room, "data.qcow2", &old.disk);
    refused(old.undo(&["disk.raw"]));
    refused(old.undo(&["--data-disk", "data.qcow2", "disk.raw"]));
    fs::remove_file(data).unwrap();
    let data = overlay(&old.room, "data.qcow2", &kept);
    refused(old.undo(&["disk.raw"]));
    refused(old.undo(&["--discard-old", "disk.raw"]));
    refused(old.rebuild(&old.other, &["--keep-old"]));
    fs::remove_file(data).unwrap();
    old.undo(&["disk.raw"]).document();
    old.check_back();
}

/// The record of what is kept.
fn record(old: &Old) -> Value {
    let name = old.names_in("kept").into_iter().find(|name| name.ends_with(".json")).unwrap();
    let line = fs::read_to_string(old.room.path(&format!("state/kept/{name}"))).unwrap();
    serde_json::from_str(line.split_once(' ').unwrap().1).unwrap()
}

#[test]
fn a_rebuild_that_was_killed_after_its_exchange_and_runs_again_keeps_the_old_disk() {
    let old = Old::new();
    killed(&old, &["--keep-old", "--size", "201G"]);
    let kept = record(&old);
    let kept_as = PathBuf::from(kept["form"]["kept_as"].as_str().unwrap());
    let unfinished = old.room.path(".disk.raw.reimage-unfinished");
    fs::write(&unfinished, fs::read(&old.image).unwrap()).unwrap();
    fs::rename(&unfinished, &kept_as).unwrap();
    renameat_with(CWD, &kept_as, CWD, &old.disk, RenameFlags::EXCHANGE).unwrap();
    let plan = old.rebuild(&old.other, &["--keep-old"]).document()["plan"].take();
    assert_eq!(plan["keep"]["already"], kept["journal"], "{plan}");
    let later = old.room.run("plan", &["other.raw", "disk.raw", "--keep-old"]).document();
    assert!(!later.to_string().contains("was cut off"), "that is over: {later}");
    fs::remove_file(old.room.path("large.raw")).unwrap();
    old.undo(&["disk.raw"]).document();
    old.check_back();
}

#[test]
fn the_seed_that_comes_back_is_the_one_beside_the_old_disk_whichever_rebuild_wrote_over_it() {
    for words in WAYS {
        let old = Old::new();
        rebuild_instance(&old, &["--instance-id", "before"]).document();
        fs::write(&old.disk, &old.bytes).unwrap();
        let seed = old.room.path("seed.iso");
        let before = fs::read(&seed).unwrap();
        old.rebuild(&old.image, words).document();
        for id in ["second", "third"] {
            rebuild_instance(&old, &["--instance-id", id]).document();
        }
        old.undo(&["disk.raw"]).document();
        assert!(fs::read(&seed).unwrap() == before, "{words:?}");
        assert!(fs::read(&old.disk).unwrap() == old.bytes);
        rebuild_instance(&old, &["--instance-id", "before"]).error(13);
    }
}

#[test]
fn a_delta_that_replaces_the_seed_alone_says_that_the_old_one_is_not_kept() {
    let old = Old::new();
    rebuild_instance(&old, &["--instance-id", "before"]).document();
    let words = ["--keep-old", "--in-place", "--mode", "delta"];
    let ran = rebuild_instance(&old, &[&words[..], &["--instance-id", "after"]].concat());
    assert_eq!(ran.document()["bytes_written"], 0);
    assert!(ran.stderr.contains("nothing of the seed that was replaced"), "{ran:?}");
    assert_eq!(old.kept(), Value::Null);
}

#[test]
fn a_kept_qcow2_file_that_was_changed_or_cannot_be_read_is_refused() {
    let room = Room::new();
    let image = room.file("image.raw", vec![3; 3 * MIB]);
    let base = room.old_disk("base.raw", 5 * MIB);
    let disk = overlay(&room, "disk.qcow2", &base);
    let bytes = fs::read(&disk).unwrap();
    room.rebuild(&[text(&image), "disk.qcow2", "--keep-old"]).document();
    let undo = || room.plain(&["undo", "--json", "--yes", "--state-dir", "state", "disk.qcow2"]);
    let name = room.names().into_iter().find(|name| name.contains("reimage-old")).unwrap();
    let (kept, present) = (room.path(&name), Seen::of(&disk));
    fs::rename(&base, room.path("moved.raw")).unwrap();
    let error = undo().error(14);
    assert!(error["path"].as_str().unwrap().ends_with("base.raw"), "{error}");
    present.check(&disk);
    fs::rename(room.path("moved.raw"), &base).unwrap();
    let report = undo().document();
    assert!(report["plan"]["warnings"].to_string().contains("is not read"), "{report}");
    assert!(fs::read(&disk).unwrap() == bytes);

    room.rebuild(&[text(&image), "disk.qcow2", "--keep-old"]).document();
    let name = room.names().into_iter().find(|name| name.contains("reimage-old")).unwrap();
    let (kept, present) = (kept.with_file_name(name), Seen::of(&disk));
    let modified = fs::metadata(&kept).unwrap().modified().unwrap();
    let mut bad = bytes;
    bad[1000] ^= 1;
    fs::write(&kept, &bad).unwrap();
    fs::File::options().write(true).open(&kept).unwrap().set_modified(modified).unwrap();
    let error = undo().error(11);
    assert!(error["message"].as_str().unwrap().contains("written since"), "{error}");
    present.check(&disk);
}
