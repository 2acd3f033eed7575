//! Names that steer who shows them: in no output is one of their characters, and as JSON they are what they were.

use std::fs;

use serde_json::Value;

use crate::support::{Ran, Room, text};

/// A control character of 8 bits, which begins a command to a terminal; one that turns the line around, an Arabic one
/// that does so less often, one that nobody sees, and one behind the first 65,536.
const STEERING: &str = "\u{9b}31m\u{202e}\u{61c}\u{200b}\u{e0041}";

#[track_caller]
fn check(ran: &Ran, code: i32) {
    assert_eq!(ran.code, Some(code), "{ran:?}");
    for output in [&ran.stdout, &ran.stderr] {
        let found =
            output.chars().find(|c| c.is_control() && *c != '\n' || STEERING.contains(*c) && !c.is_ascii());
        assert_eq!(found, None, "{output:?}");
    }
}

#[test]
fn a_name_that_steers_is_escaped_in_every_output() {
    let room = Room::new();
    let name = |name: &str| room.path(&format!("{name}{STEERING}"));
    let (image, target, copy, state) = (name("image"), name("target"), name("copy"), name("state"));
    fs::copy(room.image("v3-64k"), &image).unwrap();
    let (image, target, copy, state) = (text(&image), text(&target), text(&copy), text(&state));
    let manifest = format!("{image}.manifest.json");
    let commands: [(&[&str], i32); 14] = [
        (&["plan", image, target, "--keep-image-credentials", "--progress", "json"], 0),
        (&["plan", image, "--keep-image-credentials", target, "--progress", "plain"], 0),
        (&["inspect", image], 0),
        (&["inspect", "--check", image], 0),
        (&["rebuild", image, target, "--yes", "--keep-image-credentials", "--progress", "json"], 0),
        (
            &[
                "rebuild",
                image,
                target,
                "--yes",
                "--keep-image-credentials",
                "--keep-old",
                "--progress",
                "plain",
            ],
            0,
        ),
        (&["verify", image, target], 0),
        (&["status", target], 0),
        (&["undo", target, "--yes"], 0),
        (&["manifest", image, "--output", &manifest], 0),
        (&["capture", target, copy], 0),
        (&["status", "--prune", target], 0),
        (&["inspect", &format!("{image}.missing")], 20),
        (&["rebuild", image, "/dev/null", "--yes", "--keep-image-credentials"], 14),
    ];
    let mut named = 0;
    for (words, code) in commands {
        for form in [&[][..], &["--json"]] {
            for made in [copy, &format!("{copy}.manifest.json"), &manifest] {
                fs::remove_file(made).ok();
            }
            if words[0] == "undo" && form == ["--json"] {
                let again = ["rebuild", image, target, "--yes", "--keep-image-credentials", "--keep-old"];
                room.plain(&[&again[..], &["--state-dir", state, "--json"]].concat()).document();
            }
            let ran = room.plain(&[words, &["--state-dir", state], form].concat());
            check(&ran, code);
            if form == ["--json"] {
                let said: Value = serde_json::from_str(&ran.stdout).unwrap();
                named += usize::from(said.to_string().contains(STEERING));
            }
        }
    }
    // But for one or two, each has a name in what it says.
    assert!(named >= 11, "{named}");
}

#[test]
fn what_an_image_says_of_itself_is_escaped() {
    let room = Room::new();
    let image = room.image("chain-v2");
    let bytes = fs::read(&image).unwrap();
    // The name of the file below: its own length in bytes, of which the characters here take some.
    let at = usize::try_from(u64::from_be_bytes(bytes[8..16].try_into().unwrap())).unwrap();
    let len = usize::try_from(u32::from_be_bytes(bytes[16..20].try_into().unwrap())).unwrap();
    let mut changed = bytes.clone();
    let steering = "\u{9b}\u{202e}\u{61c}\u{200b}";
    changed[at..at + len].fill(b'x');
    changed[at..at + steering.len()].copy_from_slice(steering.as_bytes());
    fs::write(&image, changed).unwrap();
    let folder = room.path("");
    for words in
        [&["inspect"][..], &["inspect", "--check"], &["inspect", "--json"], &["inspect", "--check", "--json"]]
    {
        check(&room.plain(&[words, &[text(&image), "--allow-backing", text(&folder)]].concat()), 20);
    }
}
