//! Every refusal has its exit code, says what to do, and has not changed a byte.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::Value;

use crate::support::{Ran, Room, Seen, text};

/// Plan and rebuild both refuse with this code; `disk` stays as it is. Returns the rebuild's error.
#[track_caller]
pub(crate) fn refused(room: &Room, words: &[&str], code: i32, disk: &Path) -> Value {
    let before = Seen::of(disk);
    let names = room.names();
    let planned = room.run("plan", words).error(code);
    before.check(disk);
    let error = room.rebuild(words).error(code);
    before.check(disk);
    assert_eq!(room.names(), names, "a refused run left something behind");
    assert_eq!(planned["kind"], error["kind"], "plan and rebuild refuse differently");
    assert_eq!(error["target_state"], "untouched");
    assert!(error["message"].is_string() && error["also"].is_array(), "{error}");
    assert!(error["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "no hint: {error}");
    error
}

/// A room with an image and an old disk of 2 MiB.
pub(crate) fn room() -> (Room, String, std::path::PathBuf) {
    let room = Room::new();
    let image = text(&room.image("zlib-64k")).to_owned();
    let disk = room.old_disk("disk.raw", 2 << 20);
    (room, image, disk)
}

#[test]
fn words_that_are_not_understood_are_2_with_a_document() {
    let (room, image, disk) = room();
    let disk_text = text(&disk);
    for words in [
        &["--colour"][..],
        &["--size", "big"],
        &["--expect", "colour=red"],
        &["--expect-digest", "md5:00"],
        &["--threads", "0"],
        &["--image", "x", "y", "z"],
        &["--seed", "x"],
        &["--user", "root"],
        &["--preflight", "digest"],
        &["--mode", "delta"],
        &["--checkpoint", "0"],
        &["--stall-timeout", "soon"],
    ] {
        let words = [&[&image, disk_text], words].concat();
        refused(&room, &words, 2, &disk);
    }
    refused(&room, &[], 2, &disk);
    refused(&room, &[&image], 2, &disk);
}

#[test]
fn an_instance_file_with_an_unknown_key_is_2_with_its_line() {
    let (room, _, disk) = room();
    let lines = "id = \"i-1\"\n\n[system_disk]\npath = \"disk.raw\"\ncolour = \"red\"\n";
    let instance = room.file("instance.toml", lines);
    let error = refused(&room, &["--instance", text(&instance), "image.qcow2"], 2, &disk);
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("line 5") && message.contains("colour"), "{message}");
    assert_eq!(error["path"], text(&instance));
}

#[test]
fn without_a_terminal_nobody_says_yes() {
    let (room, image, disk) = room();
    let before = Seen::of(&disk);
    let error = room.run("rebuild", &[&image, text(&disk)]).error(2);
    assert!(error["hint"].as_str().unwrap().contains("--yes"), "{error}");
    before.check(&disk);
}

#[test]
fn errors_without_json_are_text_with_a_hint_on_standard_error() {
    let room = Room::new();
    let ran = room.plain(&["inspect", "missing.qcow2"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(20), ""));
    assert!(ran.stderr.starts_with("error: ") && ran.stderr.contains("missing.qcow2"), "{}", ran.stderr);
    let ran = room.plain(&["inspect"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""));
}

#[test]
fn an_instance_that_runs_is_10() {
    let (room, image, disk) = room();
    for state in ["running", "paused", "suspended"] {
        let lines = format!("power_state = \"{state}\"\n[system_disk]\npath = \"disk.raw\"\n");
        room.file("instance.toml", lines);
        let error = refused(&room, &["--instance", "instance.toml", &image], 10, &disk);
        assert_eq!(error["kind"], "not_stopped");
    }
}

#[test]
fn a_data_disk_is_11_under_whichever_name() {
    let (room, image, disk) = room();
    symlink(&disk, room.path("link.raw")).unwrap();
    fs::hard_link(&disk, room.path("other-name.raw")).unwrap();
    for (target, data) in [
        ("disk.raw", "disk.raw"),
        ("link.raw", "disk.raw"),
        ("disk.raw", "link.raw"),
        ("disk.raw", "other-name.raw"),
        ("other-name.raw", "disk.raw"),
    ] {
        let words = [&image, target, "--data-disk", data, "--in-place"];
        let error = refused(&room, &words, 11, &disk);
        assert_eq!(error["kind"], "identity", "{target} and {data}");
    }
    fs::remove_file(room.path("other-name.raw")).unwrap();
    let error = refused(&room, &[&image, text(&disk), "--data-disk", "missing.raw"], 11, &disk);
    assert!(error["message"].as_str().unwrap().contains("missing.raw"), "{error}");
}

#[test]
fn the_image_itself_as_the_target_is_11() {
    let room = Room::new();
    let disk = room.old_disk("disk.raw", 1 << 20);
    refused(&room, &["disk.raw", "disk.raw"], 11, &disk);
    refused(&room, &["disk.raw", "disk.raw", "--in-place"], 11, &disk);
}

#[test]
fn another_disk_than_expected_is_11() {
    let (room, image, disk) = room();
    for expect in ["size=1MiB", "serial=abc", "wwn=naa.5", "ptuuid=12345678"] {
        refused(&room, &[&image, text(&disk), "--expect", expect], 11, &disk);
    }
}

#[test]
fn an_image_that_is_larger_than_the_disk_is_12() {
    let room = Room::new();
    let image = room.image("zlib-64k");
    let disk = room.old_disk("disk.raw", 4096);
    for words in [&[][..], &["--in-place"], &["--size", "64K"]] {
        let words = [&[text(&image), text(&disk)], words].concat();
        refused(&room, &words, 12, &disk);
    }
}

/// The error of a rebuild with these words and no others.
#[track_caller]
fn refused_bare(room: &Room, words: &[&str], code: i32, disk: &Path) -> Value {
    let before = Seen::of(disk);
    let words = [&["rebuild", "--yes", "--json", "--state-dir", "state"], words].concat();
    let error = room.plain(&words).error(code);
    before.check(disk);
    assert_eq!(error["target_state"], "untouched");
    error
}

#[test]
fn a_rebuild_without_a_seed_or_without_credentials_is_13() {
    let (room, image, disk) = room();
    let disk_text = text(&disk);
    let error = refused_bare(&room, &[&image, disk_text], 13, &disk);
    assert!(error["hint"].as_str().unwrap().contains("--keep-image-credentials"), "{error}");
    let error = refused_bare(&room, &[&image, disk_text, "--seed", "seed.iso"], 13, &disk);
    assert!(error["hint"].as_str().unwrap().contains("--password-file"), "{error}");
    room.file("short", "abc\n");
    let words = [&image, disk_text, "--seed", "seed.iso", "--password-file", "short"];
    let error = refused_bare(&room, &words, 13, &disk);
    assert_eq!(error["path"], "short", "{error}");
    let words = [&image, disk_text, "--seed", "seed.iso", "--ssh-key", "missing.pub"];
    let error = refused_bare(&room, &words, 13, &disk);
    assert_eq!(error["path"], "missing.pub", "{error}");
    assert!(!room.path("seed.iso").exists());
}

#[test]
fn a_target_of_the_wrong_kind_is_14() {
    let (room, image, disk) = room();
    fs::create_dir(room.path("folder")).unwrap();
    for target in ["folder", "/proc/reimage-test", "/sys/reimage-test", "/dev/reimage-test", "/dev/null"] {
        refused(&room, &[&image, target], 14, &disk);
    }
    fs::hard_link(&disk, room.path("other-name.raw")).unwrap();
    let error = refused(&room, &[&image, text(&disk)], 14, &disk);
    assert!(error["hint"].as_str().unwrap().contains("--in-place"), "{error}");
}

#[test]
fn an_image_that_is_missing_is_20_and_the_hint_says_what_to_name_instead() {
    let (room, _, disk) = room();
    refused(&room, &["missing.qcow2", text(&disk)], 20, &disk);
    room.file("instance.toml", "id = \"i-42\"\nimage = \"gone.qcow2\"\n[system_disk]\npath = \"disk.raw\"\n");
    let error = refused(&room, &["--instance", "instance.toml"], 20, &disk);
    let hint = error["hint"].as_str().unwrap();
    assert!(hint.contains("i-42") && hint.contains("--image"), "{hint}");
}

#[test]
fn an_image_that_ends_too_early_or_is_of_another_format_is_20() {
    let (room, image, disk) = room();
    let whole = fs::read(&image).unwrap();
    room.file("short.qcow2", &whole[..whole.len() / 2]);
    room.file("nested.raw", &whole);
    refused(&room, &["short.qcow2", text(&disk)], 20, &disk);
    refused(&room, &["nested.raw", text(&disk)], 20, &disk);
    refused(&room, &[text(&room.image("chain-v2")), text(&disk)], 20, &disk);
}

#[test]
fn an_image_with_another_digest_is_21_and_the_right_one_is_taken() {
    let (room, image, disk) = room();
    let wrong = format!("sha256:{}", "0".repeat(64));
    let error = refused(&room, &[&image, text(&disk), "--expect-digest", &wrong], 21, &disk);
    assert_eq!(error["kind"], "image_digest");
    let bytes = fs::read(&image).unwrap();
    let right =
        [format!("sha256:{}", crate::support::sha256(&bytes)), format!("blake3:{}", blake3::hash(&bytes))];
    for digest in right {
        let ran: Ran = room.run("plan", &[&image, text(&disk), "--expect-digest", &digest]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
}

#[test]
fn all_refusals_are_told_and_the_first_by_the_documented_order_is_the_exit_code() {
    let (room, _, disk) = room();
    let lines =
        "power_state = \"running\"\n[system_disk]\npath = \"disk.raw\"\n[[data_disk]]\npath = \"disk.raw\"\n";
    let check = |state: &str, code, others: &[u64]| {
        room.file("instance.toml", lines.replace("running", state));
        let error = refused(&room, &["--instance", "instance.toml", "missing.qcow2"], code, &disk);
        let also = error["also"].as_array().unwrap();
        let codes: Vec<_> = also.iter().map(|other| other["code"].as_u64().unwrap()).collect();
        assert_eq!(codes, others, "{error}");
    };
    // The disks of a machine that runs are not even looked at.
    check("running", 10, &[20]);
    check("stopped", 20, &[11]);
}

#[test]
fn a_seed_never_replaces_the_image_a_data_disk_or_the_system_disk() {
    let (room, image, disk) = room();
    let password = room.file("password", "correct horse battery staple\n");
    let data = room.old_disk("data.raw", 4096);
    symlink(&data, room.path("link.raw")).unwrap();
    let (disk_text, data_text, password) = (text(&disk), text(&data), text(&password));
    for seed in [&image, disk_text, data_text] {
        let before = Seen::of(Path::new(seed));
        let words =
            ["--seed", seed, "--data-disk", data_text, "--password-file", password, &image, disk_text];
        let planned = room.plain(&[&["plan", "--json"][..], &words].concat()).error(11);
        let error = room.plain(&[&["rebuild", "--yes", "--json"][..], &words].concat()).error(11);
        assert_eq!(planned["kind"], error["kind"]);
        before.check(Path::new(seed));
    }
    let words = ["--seed", "new.raw", "--password-file", password, &image, "./new.raw"];
    room.plain(&[&["rebuild", "--yes", "--json"][..], &words].concat()).error(11);
    assert!(!room.path("new.raw").exists());
}

#[test]
fn a_disk_that_is_expected_to_be_a_certain_one_is_no_new_file() {
    let (room, image, _) = room();
    for expect in ["serial=1", "wwn=1", "size=5", "ptuuid=0b2d4f2a"] {
        room.run("plan", &[&image, "new.raw", "--expect", expect]).error(11);
        room.rebuild(&[&image, "new.raw", "--expect", expect]).error(11);
        assert!(!room.path("new.raw").exists());
    }
}

#[test]
fn a_temporary_name_is_never_that_of_the_image_or_a_data_disk() {
    let (room, image, disk) = room();
    let data = room.old_disk(".disk.raw.reimage-unfinished", 4096);
    let before = Seen::of(&data);
    refused(&room, &[&image, text(&disk), "--data-disk", text(&data)], 11, &disk);
    before.check(&data);
    let image = room.path(".other.raw.reimage-unfinished");
    fs::copy(room.image("v3-64k"), &image).unwrap();
    room.rebuild(&[text(&image), "other.raw"]).error(11);
    assert!(image.exists());
}

#[test]
fn what_a_rebuild_would_refuse_for_want_of_a_folder_a_plan_refuses() {
    let (room, image, disk) = room();
    let file = room.file("file", "");
    let state = format!("{}/state", text(&file));
    let words = ["--keep-image-credentials", "--json", "--state-dir", &state, &image, text(&disk)];
    let before = Seen::of(&disk);
    room.plain(&[&["plan"][..], &words].concat()).error(2);
    room.plain(&[&["rebuild", "--yes"][..], &words].concat()).error(2);
    before.check(&disk);
}

#[test]
fn missing_credentials_hide_no_other_refusal() {
    let (room, _, disk) = room();
    let words = ["--state-dir", "state", "--json", "--data-disk", text(&disk), "missing.qcow2", text(&disk)];
    for verb in [&["plan"][..], &["rebuild", "--yes"]] {
        let error = room.plain(&[verb, &words].concat()).error(13);
        let also: Vec<_> =
            error["also"].as_array().unwrap().iter().map(|other| other["code"].clone()).collect();
        assert_eq!(also, [20, 11]);
    }
}
