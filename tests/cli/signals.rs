//! Signals: each cancels with its own exit code, and the disk is what the error says.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Ran, Room};

/// A disk whose zeroes take longer to hash than any test waits.
const LARGE: u64 = 200 << 30;

/// Sends a signal to a rebuild when its copy is under way.
#[track_caller]
fn signalled(room: &Room, signal: Signal, words: &[&str]) -> Ran {
    File::create(room.path("large.raw")).unwrap().set_len(LARGE).unwrap();
    let mut command = room.command(["rebuild", "--yes", "--json", "--keep-image-credentials"]);
    command.args(["--state-dir", "state", "large.raw", "disk.raw", "--whole-digest", "--progress", "json"]);
    let mut child = command.args(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let (mut said, mut line) = (String::new(), String::new());
    while !line.contains("\"progress\",\"phase\":\"copy\"") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "it ended before it was cancelled: {said}");
        said.push_str(&line);
    }
    kill_process(Pid::from_child(&child), signal).unwrap();
    stderr.read_to_string(&mut said).unwrap();
    let output = child.wait_with_output().unwrap();
    Ran { stderr: said, ..Ran::of(output) }
}

#[test]
fn each_signal_has_its_exit_code_and_a_new_file_is_not_left_behind() {
    for (signal, code) in [(Signal::HUP, 129), (Signal::INT, 130), (Signal::TERM, 143)] {
        let room = Room::new();
        let error = signalled(&room, signal, &[]).error(code);
        assert_eq!((&error["kind"], &error["target_state"]), (&"cancelled".into(), &"untouched".into()));
        assert_eq!(room.names(), ["large.raw"], "something was left behind");
    }
}

#[test]
fn a_cancelled_rebuild_in_place_leaves_a_disk_that_says_so() {
    let room = Room::new();
    File::create(room.path("disk.raw")).unwrap().set_len(LARGE).unwrap();
    let error = signalled(&room, Signal::TERM, &["--in-place"]).error(143);
    assert_eq!(error["target_state"], "partial");
    let status = room.plain(&["status", "--json", "disk.raw"]).document();
    assert_eq!(status["state"], "failed");
}
