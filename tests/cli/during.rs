//! What comes from outside during a run: signals cancel with their exit codes, and a change of a data disk is
//! told.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Ran, Room};

/// A disk whose zeroes take longer to hash than any test waits.
const LARGE: u64 = 200 << 30;

/// Part of the event that says that the copy is under way.
pub(crate) const COPYING: &str = "\"progress\",\"phase\":\"copy\"";

/// The rebuild of a large disk.
pub(crate) fn large(room: &Room) -> Command {
    File::create(room.path("large.raw")).unwrap().set_len(LARGE).unwrap();
    let mut command = room.command(["rebuild", "--yes", "--json", "--keep-image-credentials"]);
    command.args(["--state-dir", "state", "large.raw", "disk.raw", "--whole-digest", "--progress", "json"]);
    command
}

/// Sends signals to a run as soon as it has told this event.
#[track_caller]
fn signalled(command: Command, event: &str, signals: &[Signal]) -> Ran {
    interrupted(command, event, |child| {
        for signal in signals {
            kill_process(Pid::from_child(child), *signal).unwrap();
        }
    })
}

/// Does something as soon as a run has told this event.
#[track_caller]
pub(crate) fn interrupted(mut command: Command, event: &str, act: impl FnOnce(&Child)) -> Ran {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let (mut said, mut line) = (String::new(), String::new());
    while !line.contains(event) {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "it ended before it was cancelled: {said}");
        said.push_str(&line);
    }
    act(&child);
    stderr.read_to_string(&mut said).unwrap();
    let output = child.wait_with_output().unwrap();
    Ran { stderr: said, ..Ran::of(output) }
}

#[test]
fn each_signal_has_its_exit_code_and_a_new_file_is_not_left_behind() {
    for (signal, code) in [(Signal::HUP, 129), (Signal::INT, 130), (Signal::TERM, 143)] {
        let room = Room::new();
        let error = signalled(large(&room), COPYING, &[signal]).error(code);
        assert_eq!((&error["kind"], &error["target_state"]), (&"cancelled".into(), &"untouched".into()));
        assert_eq!(room.names(), ["large.raw"], "something was left behind");
    }
}

#[test]
fn a_cancelled_rebuild_in_place_leaves_a_disk_that_says_so() {
    let room = Room::new();
    File::create(room.path("disk.raw")).unwrap().set_len(LARGE).unwrap();
    let mut command = large(&room);
    command.arg("--in-place");
    let error = signalled(command, COPYING, &[Signal::TERM]).error(143);
    assert_eq!(error["target_state"], "partial");
    let status = room.plain(&["status", "--json", "disk.raw"]).document();
    assert_eq!(status["state"], "failed");
}

#[test]
fn a_second_signal_changes_neither_the_exit_code_nor_what_the_journal_says() {
    // Of signals that come at the same time the kernel delivers the one with the lower number first.
    let cases = [
        (Signal::HUP, Signal::INT, 129),
        (Signal::INT, Signal::TERM, 130),
        (Signal::TERM, Signal::TERM, 143),
    ];
    for (first, second, code) in cases {
        let room = Room::new();
        File::create(room.path("disk.raw")).unwrap().set_len(LARGE).unwrap();
        let mut command = large(&room);
        command.arg("--in-place");
        let error = signalled(command, COPYING, &[first, second, second]).error(code);
        assert_eq!((&error["kind"], &error["target_state"]), (&"cancelled".into(), &"partial".into()));
        let status = room.plain(&["status", "--json", "--state-dir", "state", "disk.raw"]).document();
        assert_eq!((&status["state"], &status["failure"]["kind"]), (&"failed".into(), &"cancelled".into()));
    }
}

#[test]
fn a_signal_before_the_run_ends_it_at_once_with_its_exit_code() {
    let room = Room::new();
    let mut command = large(&room);
    command.args(["--expect-digest", &format!("sha256:{}", "0".repeat(64))]);
    let error = signalled(command, "\"check\",\"name\":\"image\"", &[Signal::TERM]).error(143);
    assert_eq!((&error["kind"], &error["target_state"]), (&"cancelled".into(), &"untouched".into()));
    assert_eq!(room.names(), ["large.raw"], "something was left behind");
}

#[test]
fn a_signal_that_nohup_had_ignored_stays_ignored() {
    let room = Room::new();
    let inner = large(&room);
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(inner.get_program()).args(inner.get_args());
    command.current_dir(room.path("."));
    signalled(command, COPYING, &[Signal::HUP, Signal::TERM]).error(143);
}

#[test]
fn a_data_disk_that_somebody_else_writes_during_the_run_is_33_and_the_disk_is_complete() {
    let room = Room::new();
    let data = room.file("data.raw", "old");
    File::create(room.path("image.raw")).unwrap().set_len(2 << 30).unwrap();
    let mut command = room.command(["rebuild", "--yes", "--json", "--keep-image-credentials"]);
    command.args(["--state-dir", "state", "--whole-digest", "--progress", "json", "--data-disk", "data.raw"]);
    command.args(["image.raw", "disk.raw"]);
    let error = interrupted(command, COPYING, |_| std::fs::write(&data, "new").unwrap()).error(33);
    assert_eq!((&error["kind"], &error["target_state"]), (&"data_disk_changed".into(), &"verified".into()));
    assert_eq!(error["path"], "data.raw");
    room.plain(&["verify", "--json", "image.raw", "disk.raw"]).document();
}
