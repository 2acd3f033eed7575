//! Progress: events that a program can read, and readers that go away.

use std::fs;
use std::process::Stdio;

use serde_json::Value;

use crate::support::{Ran, Room, expected, sha256, text};

fn events(ran: &Ran) -> Vec<Value> {
    let lines = ran.stderr.lines().filter(|line| line.starts_with('{'));
    let check = |line: &str| {
        assert!(line.starts_with("{\"type\":\""), "the type does not come first: {line}");
        serde_json::from_str(line).unwrap()
    };
    lines.map(check).collect()
}

#[test]
fn events_are_one_object_a_line_from_start_to_summary() {
    let room = Room::new();
    let image = room.image("zlib-64k");
    let ran = room.rebuild(&[text(&image), "disk.raw", "--progress", "json"]);
    let report = ran.document();
    let events = events(&ran);
    assert_eq!(events.len(), ran.stderr.lines().count(), "{}", ran.stderr);
    let kinds: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!((kinds[0], kinds[kinds.len() - 1]), ("start", "summary"));
    for kind in ["check", "plan", "progress"] {
        assert!(kinds.contains(&kind), "{kind} is not in {kinds:?}");
    }
    // However short they are: with an image like this one each takes a few milliseconds.
    for phase in ["copy", "read_back"] {
        let is_its = |event: &&Value| event["type"] == "progress" && event["phase"] == phase;
        let first =
            events.iter().find(is_its).unwrap_or_else(|| panic!("{phase} is not told of: {events:?}"));
        assert_eq!(first["bytes_done"], 0, "{phase} is not told of when it begins");
    }
    let progress = events.iter().find(|event| event["type"] == "progress").unwrap();
    for field in ["bytes_done", "bytes_total", "bytes_per_second", "elapsed_ms"] {
        assert!(progress[field].is_u64(), "{field}: {progress}");
    }
    assert_eq!(events[events.len() - 1]["report"]["root"], report["root"]);
}

#[test]
fn a_run_that_fails_ends_with_an_error_event() {
    let room = Room::new();
    let ran = room.rebuild(&["missing.qcow2", "disk.raw", "--progress", "json"]);
    let error = ran.error(20);
    let events = events(&ran);
    let last = events.last().unwrap();
    assert_eq!((&last["type"], &last["code"]), (&"error".into(), &error["code"]));
    assert_eq!(last["target_state"], "untouched");
}

#[test]
fn there_are_at_most_ten_progress_events_a_second() {
    let room = Room::new();
    // Closed at once: an image that somebody may be writing is refused.
    fs::File::create(room.path("large.raw")).unwrap().set_len(2 << 30).unwrap();
    let words = ["large.raw", "disk.raw", "--whole-digest", "--progress", "json"];
    let ran = room.rebuild(&words);
    ran.document();
    let times = events(&ran).into_iter().filter(|event| event["type"] == "progress");
    let times: Vec<_> = times.map(|event| event["elapsed_ms"].as_u64().unwrap()).collect();
    // Eleven of them take at least a second; a millisecond is lost by rounding.
    assert!(times.windows(11).all(|window| window[10] - window[0] >= 999), "{times:?}");
}

#[test]
fn readers_that_go_away_stop_nothing() {
    for form in ["plain", "bar", "json", "none"] {
        let room = Room::new();
        let image = room.image("zlib-64k");
        let mut command =
            room.command(["rebuild", "--yes", "--keep-image-credentials", "--state-dir", "state"]);
        command.args([text(&image), "disk.raw", "--progress", form]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop((child.stdout.take(), child.stderr.take()));
        assert_eq!(child.wait().unwrap().code(), Some(0), "{form}");
        assert_eq!(sha256(&fs::read(room.path("disk.raw")).unwrap()), expected("zlib-64k").1, "{form}");
    }
}
