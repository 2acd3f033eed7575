//! Seeds as the command writes them: every flag, every refusal, and nothing of a secret beside the file.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{PASSWORD, Ran, Room, Seen, text};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti ops\n";

/// A room with a password for Linux, one for Windows, and a key.
fn room() -> Room {
    let room = Room::new();
    room.file("password", format!("{PASSWORD}\n"));
    room.file("windows-password", "Correct Horse 1\n");
    room.file("key.pub", KEY);
    room
}

fn seed(room: &Room, words: &[&str]) -> Ran {
    room.plain(&[&["seed", "--json", "--seed", "seed.iso"], words].concat())
}

/// The last clause of the message, and no seed.
#[track_caller]
fn check_refused(room: &Room, words: &[&str], expected: &str) -> Value {
    let error = seed(room, words).error(13);
    let message = error["message"].as_str().unwrap();
    assert!(message.ends_with(expected), "{message:?} does not end in {expected:?}");
    assert!(error["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "no hint: {error}");
    assert!(!room.path("seed.iso").exists());
    error
}

#[test]
fn each_format_is_written_under_its_label() {
    let room = room();
    for (format, password, os, label) in [
        ("nocloud", "password", "linux", "cidata"),
        ("config-drive", "password", "linux", "config-2"),
        ("nocloud-vfat", "password", "linux", "cidata"),
        ("config-drive", "windows-password", "windows", "config-2"),
    ] {
        let words = ["--seed-format", format, "--password-file", password, "--os", os, "--replace"];
        let report = seed(&room, &words).document();
        assert_eq!((&report["format"], &report["label"]), (&format.into(), &label.into()));
        let seed = fs::metadata(room.path("seed.iso")).unwrap();
        assert_eq!(
            (seed.len(), seed.permissions().mode() & 0o777),
            (report["size"].as_u64().unwrap(), 0o600)
        );
    }
    let words = ["--os", "windows", "--password-file", "windows-password", "--replace"];
    assert_eq!(seed(&room, &words).document()["format"], "config-drive");
}

#[test]
fn what_the_guest_would_not_take_is_13_with_the_rule() {
    let room = room();
    let windows = |words: &[&str], expected: &str| {
        check_refused(&room, &[&["--os", "windows"], words].concat(), expected);
    };
    let weak = "has fewer than three of capital letters, small letters, digits and others, as Windows wants";
    windows(&["--password-file", "password"], weak);
    windows(
        &["--ssh-key", "key.pub"],
        "an SSH key alone is no credential for Windows: its administrator has a password",
    );
    windows(
        &["--password-file", "windows-password", "--seed-format", "nocloud"],
        "a Windows guest reads no nocloud seed: cloudbase-init finds no password there and sets a random one",
    );
    windows(
        &["--password-file", "windows-password", "--user", "horse"],
        "the password contains the user name, which Windows refuses",
    );
    let linux = |words: &[&str], expected: &str| {
        check_refused(&room, &[&["--password-file", "password"], words].concat(), expected);
    };
    linux(&["--user", "1st"], "is not of a-z, 0-9, _ and -, beginning with a letter or _");
    linux(&["--hostname", "a_b"], "holds a character that is no letter, digit or hyphen");
    for (id, why) in [
        ("", "is empty"),
        ("nocloud", "is the one that cloud-init gives by itself"),
        ("iid-dsconfigdrive", "is the one that cloud-init gives by itself"),
        ("a/b", "holds a slash"),
        ("a\nb", "holds a space, a control character, or one outside ASCII"),
        (&"x".repeat(65), "is longer than 64 characters"),
    ] {
        linux(&["--instance-id", id], why);
    }
    let keep = ["--seed-format", "config-drive", "--network", "keep"];
    linux(&keep, "a config-drive seed has no place for the wish to keep the image's network");
    room.file("net", "version: 3\n");
    linux(&["--network-config", "net"], "has a version that is neither 1 nor 2");
    room.file("user-data", "#cloud-config\nruncmd:\n- mkfs.xfs /dev/vdb\n");
    let expected = "line 3 of the user-data (\"mkfs.xfs /dev/vdb\") runs again, and may wipe a data disk";
    linux(&["--user-data", "user-data"], expected);
    let words = ["--password-file", "password", "--user-data", "user-data", "--allow-user-data-disk-setup"];
    let report = seed(&room, &words).document();
    assert_eq!(report["warnings"][0], expected);
}

#[test]
fn a_place_where_others_could_put_a_seed_is_13() {
    let room = room();
    fs::create_dir(room.path("open")).unwrap();
    fs::set_permissions(room.path("open"), fs::Permissions::from_mode(0o777)).unwrap();
    symlink("elsewhere", room.path("link.iso")).unwrap();
    for (place, why) in [
        ("open/seed.iso", "the seed's path lies in a folder that everybody may write"),
        ("link.iso", "the seed's path is a symbolic link"),
        ("/dev/null", "the seed's path is a device"),
    ] {
        let words = ["seed", "--json", "--replace", "--seed", place, "--password-file", "password"];
        let error = room.plain(&words).error(13);
        assert!(error["message"].as_str().unwrap().ends_with(why), "{error}");
        assert_eq!(error["path"], place);
    }
}

#[test]
fn a_seed_alone_never_takes_the_place_of_a_disk_or_the_image() {
    let room = room();
    let lines =
        "image = \"image.raw\"\n[system_disk]\npath = \"disk.raw\"\n[[data_disk]]\npath = \"data.raw\"\n";
    room.file("instance.toml", lines);
    for name in ["image.raw", "disk.raw", "data.raw"] {
        room.old_disk(name, 4096);
    }
    fs::hard_link(room.path("data.raw"), room.path("other.iso")).unwrap();
    for (place, why) in [
        ("data.raw", "the seed would replace a data disk, or lie on one"),
        ("other.iso", "the seed would replace a data disk, or lie on one"),
        ("disk.raw", "the seed would replace the system disk, or lie on it"),
        ("image.raw", "the seed would replace the image"),
    ] {
        let before = Seen::of(&room.path(place));
        let words = ["seed", "--json", "--instance", "instance.toml", "--replace", "--seed", place];
        for more in [&["--password-file", "password"][..], &["--scrub", "--instance-id", "i-1"]] {
            let error = room.plain(&[&words[..], more].concat()).error(11);
            assert!(error["message"].as_str().unwrap().ends_with(why), "{error}");
        }
        before.check(&room.path(place));
    }
    let words = ["seed", "--json", "--instance", "instance.toml", "--seed", "seed.iso"];
    room.plain(&[&words[..], &["--password-file", "password"]].concat()).document();
}

#[test]
fn words_that_contradict_each_other_are_2() {
    let room = room();
    room.file("net", "version: 2\nethernets: {}\n");
    for words in [
        &["--network", "keep", "--network-config", "net"][..],
        &["--password-file", "password", "--password-fd", "3"],
        &["--password-hash-file", "password", "--password-fd", "3"],
        &["--allow-user-data-disk-setup", "--password-file", "password"],
        &["--scrub", "--password-file", "password"],
        &["--scrub", "--ssh-key", "key.pub"],
        &["--scrub", "--user", "root"],
        &["--scrub", "--revoke-image-credentials"],
        &["--keep-image-credentials", "--revoke-image-credentials"],
    ] {
        let words = [&["seed", "--json", "--seed", "seed.iso"], words].concat();
        room.plain(&words).error(2);
    }
    let words = ["plan", "--json", "--keep-image-credentials", "--network", "keep", "image", "disk"];
    room.plain(&words).error(2);
}

#[test]
fn a_scrubbed_seed_has_the_same_identity_and_no_secret() {
    let room = room();
    let words = ["--password-file", "password", "--hostname", "web-1"];
    let written = seed(&room, &words).document();
    let before = Seen::of(&room.path("seed.iso"));
    seed(&room, &["--scrub"]).error(13);
    before.check(&room.path("seed.iso"));
    let scrubbed = seed(&room, &["--scrub", "--replace"]).document();
    assert_eq!(scrubbed["instance_id"], written["instance_id"]);
    assert_eq!((&scrubbed["hostname"], &scrubbed["credentials"]), (&"web-1".into(), &Value::Array(vec![])));
    let bytes = fs::read(room.path("seed.iso")).unwrap();
    assert!(!bytes.windows(3).any(|window| window == b"$6$"));
}

/// A password through a descriptor, as a shell passes it on.
fn through_descriptor(room: &Room, script: &str) -> Ran {
    let seed = format!("exec \"$0\" seed --json --seed seed.iso --replace {script}");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &seed, env!("CARGO_BIN_EXE_reimage")]).current_dir(room.path("."));
    command.env_clear().env("HOME", room.path(".")).stdin(Stdio::null());
    Ran::of(command.output().unwrap())
}

#[test]
fn a_password_comes_through_an_inherited_descriptor_and_no_other() {
    let room = room();
    through_descriptor(&room, "--password-fd 7 7< password").document();
    for (script, why) in [
        ("--password-fd 7", "file descriptor 7 cannot be read: nothing is open under this number"),
        ("--password-fd 2", "file descriptor 2 cannot be read: the number must be 3 or more"),
        ("--password-fd 7 7< .", "file descriptor 7 cannot be read: Is a directory (os error 21)"),
        ("--password-fd 7 7< /dev/null", "the password is empty"),
    ] {
        let error = through_descriptor(&room, script).error(13);
        assert!(error["message"].as_str().unwrap().ends_with(why), "{error}");
    }
}

#[test]
fn a_rebuild_remembers_its_seed_and_refuses_the_same_identity_twice() {
    let room = room();
    let image = room.image("zlib-64k");
    let rebuild = |verb: &str, id: &str| {
        let words = [verb, "--json", "--state-dir", "state", "--seed", "seed.iso", "--instance-id", id];
        let mut words = words.to_vec();
        words.extend(["--password-file", "password", text(&image), "disk.raw"]);
        words.extend((verb == "rebuild").then_some("--yes"));
        room.plain(&words)
    };
    assert_eq!(rebuild("plan", "i-1").document()["seed"]["old_credentials"], "stay");
    rebuild("rebuild", "i-1").document();
    let before = Seen::of(&room.path("seed.iso"));
    let expected = "is that of the machine's last seed, so that nothing would be set";
    for verb in ["plan", "rebuild"] {
        let error = rebuild(verb, "i-1").error(13);
        assert!(error["message"].as_str().unwrap().ends_with(expected), "{error}");
    }
    before.check(&room.path("seed.iso"));
    rebuild("rebuild", "i-2").document();
    let words = ["seed", "--json", "--seed", "seed.iso", "--scrub", "--replace", "--state-dir", "state"];
    assert_eq!(room.plain(&words).document()["instance_id"], "i-2");
}

#[test]
fn a_plan_tells_an_image_of_another_system_and_what_stays_of_its_logins() {
    let room = room();
    let mut windows = vec![0; 256 << 10];
    windows[446..462].copy_from_slice(&[0, 0, 0, 0, 7, 0, 0, 0, 8, 0, 0, 0, 0xf8, 1, 0, 0]);
    windows[510..512].copy_from_slice(&[0x55, 0xaa]);
    windows[4099..4107].copy_from_slice(b"NTFS    ");
    room.file("windows.raw", windows);
    let linux = text(&room.image("zlib-64k")).to_owned();
    let plan = |words: &[&str]| {
        let common = ["plan", "--state-dir", "state", "--seed", "seed.iso"];
        room.plain(&[&common, words, &["disk.raw"]].concat())
    };
    let on_linux = ["--password-file", "password"];
    let on_windows = ["--os", "windows", "--password-file", "windows-password"];
    let looks = "the image looks like Windows";
    let holds = "the image holds no NTFS";
    for (words, image, warning) in [
        (&on_linux[..], linux.as_str(), None),
        (&on_linux, "windows.raw", Some(looks)),
        (&on_windows, "windows.raw", None),
        (&on_windows, &linux, Some(holds)),
    ] {
        let told = plan(&[words, &["--json", image]].concat()).document()["warnings"].to_string();
        for known in [looks, holds] {
            assert_eq!(told.contains(known), warning == Some(known), "{image}: {told}");
        }
    }
    for (words, told) in [
        (&on_linux[..], "stay (--revoke-image-credentials ends them)"),
        (
            &["--password-file", "password", "--revoke-image-credentials"],
            "are locked, all other SSH keys removed",
        ),
        (&on_windows, "other accounts' passwords that the image has stay"),
    ] {
        let shown = plan(&[words, &["windows.raw"]].concat()).stdout;
        assert!(shown.contains(told), "{shown}");
    }
}
