//! The old disk kept and brought back, byte for byte: files that are replaced, files that are written into, the seed;
//! and what is refused, with everything as it was.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::during::{COPYING, interrupted, large};
use crate::support::{PASSWORD, Ran, Room, Seen, expected, text};

pub(crate) const MIB: usize = 1 << 20;

/// A room with an old disk, two images and a password.
pub(crate) struct Old {
    pub(crate) room: Room,
    pub(crate) disk: PathBuf,
    pub(crate) bytes: Vec<u8>,
    pub(crate) image: PathBuf,
    pub(crate) other: PathBuf,
}

impl Old {
    pub(crate) fn new() -> Self {
        let room = Room::new();
        let disk = room.old_disk("disk.raw", 5 * MIB + 300);
        room.file("password", format!("{PASSWORD}\n"));
        let image = room.file("image.raw", vec![3; 3 * MIB]);
        let other = room.file("other.raw", vec![4; 2 * MIB]);
        let bytes = fs::read(&disk).unwrap();
        Self { room, disk, bytes, image, other }
    }

    pub(crate) fn rebuild(&self, image: &Path, words: &[&str]) -> Ran {
        self.room.rebuild(&[&[text(image), "disk.raw"], words].concat())
    }

    pub(crate) fn undo(&self, words: &[&str]) -> Ran {
        self.room.plain(&[&["undo", "--json", "--yes", "--state-dir", "state"], words].concat())
    }

    pub(crate) fn kept(&self) -> Value {
        let status = self.room.plain(&["status", "--json", "--state-dir", "state", "disk.raw"]);
        status.document()["kept"].take()
    }

    #[track_caller]
    pub(crate) fn check_back(&self) {
        assert!(fs::read(&self.disk).unwrap() == self.bytes, "the disk is not what it was");
        assert_eq!(self.room.names(), ["disk.raw", "image.raw", "other.raw", "password"]);
        assert_eq!(self.names_in("kept"), Vec::<String>::new());
        assert_eq!(self.names_in("journals"), Vec::<String>::new());
        assert_eq!(self.kept(), Value::Null);
    }

    pub(crate) fn names_in(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.room.path(&format!("state/{folder}"))).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

/// Ways to rebuild a file.
pub(crate) const WAYS: [&[&str]; 3] =
    [&["--keep-old"], &["--keep-old", "--in-place"], &["--keep-old", "--in-place", "--mode", "delta"]];

#[test]
fn what_was_kept_comes_back_byte_for_byte_and_nothing_stays() {
    for words in WAYS {
        let old = Old::new();
        let inode = fs::metadata(&old.disk).unwrap().ino();
        let plan = old.rebuild(&old.image, words).document()["plan"].take();
        let form = if words.len() == 1 { "file" } else { "copy" };
        assert_eq!(plan["keep"]["form"], form, "{words:?}");
        assert_eq!(fs::read(&old.disk).unwrap()[..3 * MIB], fs::read(&old.image).unwrap()[..]);
        let kept = old.kept();
        assert_eq!((&kept["form"], &kept["size"]), (&form.into(), &old.bytes.len().into()), "{kept}");
        assert!(fs::metadata(kept["path"].as_str().unwrap()).unwrap().blocks() > 0, "{kept}");
        old.room.plain(&["status", "--prune", "--state-dir", "state"]);
        let report = old.undo(&["disk.raw"]).document();
        assert_eq!((&report["target_state"], &report["form"]), (&"verified".into(), &form.into()));
        assert_eq!(report["journal"], kept["journal"]);
        old.check_back();
        assert_eq!(fs::metadata(&old.disk).unwrap().ino(), inode, "{words:?}");
        let error = old.undo(&["disk.raw"]).error(14);
        assert!(error["message"].as_str().unwrap().contains("nothing is kept"), "{error}");
    }
}

#[test]
fn a_file_that_grew_in_place_has_its_size_again() {
    let old = Old::new();
    old.rebuild(&old.image, &["--keep-old", "--in-place", "--size", "9M"]).document();
    assert_eq!(fs::metadata(&old.disk).unwrap().len(), 9 << 20);
    old.undo(&["disk.raw"]).document();
    old.check_back();
}

#[test]
fn a_rebuild_that_keeps_nothing_leaves_what_is_kept_and_says_so() {
    for first in WAYS {
        for second in [&[][..], &["--in-place"]] {
            let old = Old::new();
            old.rebuild(&old.image, first).document();
            let kept = old.kept();
            let plan = old.rebuild(&old.other, second).document()["plan"].take();
            assert!(plan["warnings"].to_string().contains("stays kept"), "{first:?} {second:?}: {plan}");
            assert_eq!(old.kept()["journal"], kept["journal"]);
            let report = old.undo(&["disk.raw"]).document();
            assert_eq!(report["journal"], kept["journal"]);
            old.check_back();
        }
    }
}

#[test]
fn a_rebuild_that_keeps_again_gives_the_first_one_up() {
    for words in WAYS {
        let mut old = Old::new();
        old.rebuild(&old.image, words).document();
        old.bytes = fs::read(&old.disk).unwrap();
        let first = old.kept();
        let plan = old.rebuild(&old.other, words).document()["plan"].take();
        assert_eq!(plan["keep"]["replaces"], first["journal"], "{words:?}: {plan}");
        assert!(!fs::exists(first["path"].as_str().unwrap()).unwrap(), "{words:?}");
        old.undo(&["disk.raw"]).document();
        old.check_back();
    }
}

#[test]
fn a_delta_that_finds_nothing_to_write_keeps_nothing_new() {
    let old = Old::new();
    old.rebuild(&old.image, &["--keep-old", "--in-place"]).document();
    let first = old.kept();
    let report = old.rebuild(&old.image, &["--keep-old", "--in-place", "--mode", "delta"]).document();
    assert_eq!(report["bytes_written"], 0);
    assert_eq!(old.kept()["journal"], first["journal"], "what was kept before stands");
    assert_eq!(old.names_in("kept").len(), 2);
    old.undo(&["disk.raw"]).document();
    old.check_back();
}

#[test]
fn another_disk_behind_the_same_name_is_refused() {
    for words in WAYS {
        let old = Old::new();
        old.rebuild(&old.image, words).document();
        // The inode of the disk stays in use, so that the other file gets another one.
        fs::rename(&old.disk, old.room.path("moved.raw")).unwrap();
        old.room.old_disk("disk.raw", 5 * MIB);
        let before = Seen::of(&old.disk);
        let error = old.undo(&["disk.raw"]).error(11);
        assert!(error["message"].as_str().unwrap().contains("another disk"), "{error}");
        old.undo(&["--discard-old", "disk.raw"]).error(11);
        assert_eq!(old.kept(), Value::Null, "it is another disk's");
        before.check(&old.disk);
        fs::rename(old.room.path("moved.raw"), &old.disk).unwrap();
        assert_eq!(old.kept()["is_there"], true, "{words:?}: it is kept still");
        old.undo(&["disk.raw"]).document();
        old.check_back();
    }
}

#[test]
fn a_renamed_disk_is_told_beside_which_name_its_old_file_lies() {
    let old = Old::new();
    old.rebuild(&old.image, &["--keep-old"]).document();
    let kept = PathBuf::from(old.kept()["path"].as_str().unwrap());
    let moved = old.room.path("moved.raw");
    fs::rename(&old.disk, &moved).unwrap();
    let disk = Seen::of(&moved);
    let error = old.undo(&["moved.raw"]).error(14);
    let (message, hint) = (error["message"].as_str().unwrap(), error["hint"].as_str().unwrap());
    assert!(message.contains("kept beside") && message.contains("/disk.raw"), "{error}");
    assert!(hint.contains("/disk.raw") && !hint.contains("discard"), "{error}");
    disk.check(&moved);
    assert!(kept.exists());
    fs::remove_file(&kept).unwrap();
    let error = old.undo(&["moved.raw"]).error(14);
    assert!(error["hint"].as_str().unwrap().contains("discard-old"), "{error}");
}

#[test]
fn after_an_undo_no_receipt_is_of_what_was_undone() {
    for words in WAYS {
        let old = Old::new();
        old.rebuild(&old.image, words).document();
        let verify =
            || old.room.plain(&["verify", "--json", "--state-dir", "state", "--receipt", "disk.raw"]);
        verify().document();
        old.undo(&["disk.raw"]).document();
        let status = old.room.plain(&["status", "--json", "--state-dir", "state", "disk.raw"]).document();
        match &status["receipt"] {
            Value::Null => drop(verify().error(2)),
            _ => drop(verify().document()),
        }
        assert_eq!(status["receipt"] == Value::Null, words.len() == 1, "{words:?}: {status}");
    }
}

#[test]
fn the_sizes_of_a_qcow2_disk_are_those_of_the_disk_and_not_of_its_file() {
    for name in ["disk.qcow2", "disk.img"] {
        let room = Room::new();
        let disk = room.path(name);
        fs::rename(room.image("v3-64k"), &disk).unwrap();
        let (before, size) = (fs::read(&disk).unwrap(), expected("v3-64k").0);
        let image = room.file("image.raw", vec![3; 3 * MIB]);
        let larger = size + (8 << 20);
        let as_qcow2 = ["--target-format", "qcow2", "--size", &larger.to_string(), "--keep-old"];
        room.rebuild(&[&[text(&image), name], &as_qcow2[..]].concat()).document();
        let status = room.plain(&["status", "--json", "--state-dir", "state", name]).document();
        assert_eq!(status["kept"]["size"], size, "{status}");
        let undo = ["undo", "--json", "--yes", "--state-dir", "state", name];
        let report = room.plain(&undo).document();
        let plan = &report["plan"];
        assert_eq!((&plan["target_bytes"], &plan["size_after"]), (&larger.into(), &size.into()), "{plan}");
        assert_eq!(report["target_bytes"], size);
        assert!(fs::read(&disk).unwrap() == before, "the file is not what it was");
    }
}

#[test]
fn what_is_kept_and_is_not_what_it_was_is_refused() {
    let old = Old::new();
    old.rebuild(&old.image, &["--keep-old"]).document();
    let kept = PathBuf::from(old.kept()["path"].as_str().unwrap());
    let disk = Seen::of(&old.disk);
    let reader = fs::File::open(&kept).unwrap();
    old.undo(&["disk.raw"]).error(10);
    drop(reader);
    fs::OpenOptions::new().append(true).open(&kept).unwrap().set_len(7).unwrap();
    let error = old.undo(&["disk.raw"]).error(11);
    assert!(error["message"].as_str().unwrap().contains("written since"), "{error}");
    fs::remove_file(&kept).unwrap();
    old.undo(&["disk.raw"]).error(14);
    disk.check(&old.disk);
}

#[test]
fn a_damaged_copy_is_refused_or_gives_back_the_right_bytes() {
    let mut old = Old::new();
    // What cannot be compressed leaves little in the copy that no reader looks at.
    noise(&mut old.bytes);
    fs::write(&old.disk, &old.bytes).unwrap();
    let mut refused = 0;
    for place in 0..DAMAGED {
        old.rebuild(&old.image, &["--keep-old", "--in-place"]).document();
        let kept = PathBuf::from(old.kept()["path"].as_str().unwrap());
        let (disk, good) = (Seen::of(&old.disk), fs::read(&kept).unwrap());
        let at = place * good.len() / DAMAGED;
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(&kept, bad).unwrap();
        let ran = old.undo(&["disk.raw"]);
        if ran.code != Some(0) {
            assert!(matches!(ran.code, Some(20 | 21)), "byte {at}: {ran:?}");
            disk.check(&old.disk);
            refused += 1;
            fs::write(&kept, &good).unwrap();
            old.undo(&["disk.raw"]).document();
        }
        old.check_back();
    }
    assert!(refused >= DAMAGED * 3 / 4, "of {DAMAGED} damages {refused} were refused");
}

/// In so many places a copy is damaged, one after another.
const DAMAGED: usize = 16;

/// Bytes that cannot be compressed, the same each time.
fn noise(bytes: &mut [u8]) {
    let mut state = 1_u64;
    for byte in bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = state.to_be_bytes()[0];
    }
}

#[test]
fn a_whole_copy_of_another_disk_is_not_what_was_kept() {
    let (old, another) = (Old::new(), Old::new());
    fs::write(&another.disk, vec![9; another.bytes.len()]).unwrap();
    let copies = [&old, &another].map(|old| {
        old.rebuild(&old.image, &["--keep-old", "--in-place"]).document();
        PathBuf::from(old.kept()["path"].as_str().unwrap())
    });
    let (disk, good) = (Seen::of(&old.disk), fs::read(&copies[0]).unwrap());
    fs::copy(&copies[1], &copies[0]).unwrap();
    let error = old.undo(&["disk.raw"]).error(21);
    assert!(error["message"].as_str().unwrap().contains("root of its digests"), "{error}");
    disk.check(&old.disk);
    fs::write(&copies[0], good).unwrap();
    old.undo(&["disk.raw"]).document();
    old.check_back();
}

#[test]
fn what_is_kept_can_be_given_up() {
    for words in WAYS {
        let old = Old::new();
        old.undo(&["--discard-old", "disk.raw"]).error(14);
        old.rebuild(&old.image, words).document();
        let kept = old.kept();
        let nobody = old.room.plain(&["undo", "--json", "--state-dir", "state", "--discard-old", "disk.raw"]);
        nobody.error(2);
        let disk = Seen::of(&old.disk);
        let given_up = old.undo(&["--discard-old", "disk.raw"]).document();
        assert_eq!(given_up["discarded"][0]["journal"], kept["journal"], "{given_up}");
        disk.check(&old.disk);
        assert_eq!(old.kept(), Value::Null);
        assert_eq!((old.names_in("kept").len(), old.room.names().len()), (0, 4), "{:?}", old.room.names());
        old.undo(&["disk.raw"]).error(14);
    }
}

#[test]
fn a_new_file_has_nothing_to_keep() {
    let old = Old::new();
    fs::remove_file(&old.disk).unwrap();
    let report = old.rebuild(&old.image, &["--keep-old"]).document();
    assert_eq!(report["plan"]["keep"], Value::Null);
    assert_eq!(old.kept(), Value::Null);
}

/// An instance with a seed, as its file says it.
fn instance(old: &Old) -> &'static str {
    let text = "id = \"i-1\"\nimage = \"image.raw\"\n[system_disk]\npath = \"disk.raw\"\n[seed]\npath = \"seed.iso\"\n";
    old.room.file("instance.toml", text);
    "instance.toml"
}

pub(crate) fn rebuild_instance(old: &Old, words: &[&str]) -> Ran {
    let all = ["rebuild", "--json", "--yes", "--state-dir", "state", "--instance", instance(old)];
    old.room.plain(&[&all[..], &["--password-file", "password"], words].concat())
}

#[test]
fn the_seed_of_that_time_comes_back_with_the_disk_and_where_there_was_none_there_is_none() {
    for words in WAYS {
        for had_seed in [true, false] {
            let old = Old::new();
            if had_seed {
                rebuild_instance(&old, &["--instance-id", "before"]).document();
                fs::write(&old.disk, &old.bytes).unwrap();
            }
            let seed = old.room.path("seed.iso");
            let before = fs::read(&seed).ok();
            rebuild_instance(&old, &[words, &["--instance-id", "after"]].concat()).document();
            assert!(Some(fs::read(&seed).unwrap()) != before);
            let report = old.undo(&["i-1"]).document();
            assert!(report["seed"].as_str().unwrap().ends_with("/seed.iso"), "{report}");
            assert!(fs::read(&seed).ok() == before, "{words:?}, {had_seed}");
            assert!(fs::read(&old.disk).unwrap() == old.bytes);
            // The identity that was remembered is that of the seed that is there.
            let again = rebuild_instance(&old, &["--instance-id", "before"]);
            assert_eq!(again.code, Some(if had_seed { 13 } else { 0 }), "{again:?}");
            rebuild_instance(&old, &["--instance-id", "after"]).document();
        }
    }
}

/// Kills a rebuild of a large image in its copy.
#[track_caller]
pub(crate) fn killed(old: &Old, words: &[&str]) {
    let mut command = large(&old.room);
    command.args(words);
    let ran = interrupted(command, COPYING, |child| {
        kill_process(Pid::from_child(child), Signal::KILL).unwrap();
    });
    assert_eq!(ran.code, None, "{ran:?}");
}

#[test]
fn an_interrupted_rebuild_is_undone_or_gone_on_with_and_its_old_disk_stays_kept() {
    for again in [false, true] {
        let old = Old::new();
        killed(&old, &["--in-place", "--keep-old", "--size", "201G"]);
        let kept = old.kept();
        assert_eq!(kept["is_there"], true, "{kept}");
        let status = old.room.plain(&["status", "--json", "--state-dir", "state", "disk.raw"]).document();
        assert_eq!(status["state"], "failed");
        if again {
            let report = old.rebuild(&old.other, &["--in-place", "--keep-old"]).document();
            let keep = &report["plan"]["keep"];
            assert_eq!(keep["already"], kept["journal"], "{keep}");
            assert_eq!(old.kept()["journal"], kept["journal"], "the half-written disk was not kept");
        }
        old.undo(&["disk.raw"]).document();
        fs::remove_file(old.room.path("large.raw")).unwrap();
        old.check_back();
    }
}

#[test]
fn a_disk_that_is_spoilt_already_cannot_be_kept() {
    let old = Old::new();
    killed(&old, &["--in-place", "--size", "201G"]);
    let error = old.rebuild(&old.other, &["--in-place", "--keep-old"]).error(2);
    assert!(error["message"].as_str().unwrap().contains("kept nowhere"), "{error}");
    old.undo(&["disk.raw"]).error(14);
    old.rebuild(&old.other, &["--in-place"]).document();
}

#[test]
fn a_rebuild_that_was_killed_before_its_exchange_left_the_old_disk() {
    let old = Old::new();
    killed(&old, &["--keep-old", "--size", "201G"]);
    let before = Seen::of(&old.disk);
    assert_eq!(old.kept(), Value::Null, "it is the disk still");
    let report = old.undo(&["disk.raw"]).document();
    assert_eq!(report["plan"]["is_old_still"], true, "{report}");
    before.check(&old.disk);
    fs::remove_file(old.room.path("large.raw")).unwrap();
    old.check_back();
}

#[test]
fn the_text_of_a_rebuild_says_where_the_old_disk_is_kept() {
    let old = Old::new();
    let words =
        ["rebuild", "image.raw", "disk.raw", "--yes", "--keep-image-credentials", "--state-dir", "state"];
    for (flags, wanted) in [(&["--keep-old"][..], "kept under another name"), (&[], "")] {
        let ran = old.room.plain(&[&words[..], flags].concat());
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let line = ran.stdout.lines().find(|line| line.starts_with("old disk"));
        assert_eq!(line.is_some(), !wanted.is_empty(), "{ran:?}");
        assert!(line.unwrap_or_default().contains(wanted), "{ran:?}");
    }
    let status = old.room.plain(&["status", "--state-dir", "state", "disk.raw"]);
    assert!(!status.stdout.contains("no rebuild of it"), "{status:?}");
    let asked = old.room.plain(&["undo", "--discard-old", "--json", "--state-dir", "state", "disk.raw"]);
    assert_eq!(asked.error(2)["message"], "nobody can be asked: there is no terminal");
}
