//! What became of a rebuild, asked while it runs, after it was killed, after it failed and after it ended well.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, WaitOptions, kill_process};
use serde_json::Value;

use crate::during::{COPYING, interrupted, large};
use crate::support::{Room, Seen, text};

/// The status in the state folder that the tests' rebuilds use.
#[track_caller]
fn status(room: &Room, subject: &str) -> Value {
    room.plain(&["status", "--json", "--state-dir", "state", subject]).document()
}

/// An instance with the disk that `large` rebuilds.
fn instance(room: &Room) -> &'static str {
    room.file("instance.toml", "id = \"i-1\"\nimage = \"large.raw\"\n[system_disk]\npath = \"disk.raw\"\n");
    "instance.toml"
}

/// The rebuild of that instance, whose zeroes take longer to hash than any test waits.
fn rebuild_of_instance(room: &Room, words: &[&str]) -> std::process::Command {
    drop(large(room));
    let mut command = room.command(["rebuild", "--yes", "--json", "--keep-image-credentials"]);
    command.args(["--state-dir", "state", "--whole-digest", "--progress", "json"]);
    command.args(["--instance", instance(room)]).args(words);
    command
}

/// Kills the rebuild in the middle of its copy.
#[track_caller]
fn killed(room: &Room, words: &[&str]) {
    let ran = interrupted(rebuild_of_instance(room, words), COPYING, |child| {
        kill_process(Pid::from_child(child), Signal::KILL).unwrap();
    });
    assert_eq!(ran.code, None, "{ran:?}");
}

/// A disk that is larger than the image, and empty.
fn empty_disk(room: &Room) {
    File::create(room.path("disk.raw")).unwrap().set_len(201 << 30).unwrap();
}

fn journals(room: &Room) -> usize {
    fs::read_dir(room.path("state/journals")).map_or(0, Iterator::count)
}

fn notices(status: &Value) -> String {
    status["notices"].to_string()
}

#[test]
fn while_a_rebuild_runs_its_status_says_who_how_far_and_since_when() {
    for (disk, words) in [("missing", &[][..]), ("there", &[]), ("there", &["--in-place"])] {
        let room = Room::new();
        if disk == "there" {
            empty_disk(&room);
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        interrupted(rebuild_of_instance(&room, words), COPYING, |child| {
            let pid = Pid::from_child(child);
            kill_process(pid, Signal::STOP).unwrap();
            stopped(pid);
            let path = room.path("disk.raw");
            let mut subjects = vec!["i-1", "instance.toml", "disk.raw", "./disk.raw", text(&path)];
            if path.exists() {
                std::os::unix::fs::symlink("disk.raw", room.path("link")).unwrap();
                subjects.push("link");
            }
            for subject in subjects {
                let status = status(&room, subject);
                assert_eq!(status["state"], "rebuilding", "{subject}: {status}");
                assert_eq!((&status["instance"], &status["failure"]), (&"i-1".into(), &Value::Null));
                let run = &status["run"];
                assert_eq!((&run["pid"], &run["phase"]), (&child.id().into(), &"copy".into()), "{status}");
                assert!((now..now + 60).contains(&run["started_s"].as_u64().unwrap()), "{run}");
                let (done, total) =
                    (run["bytes_done"].as_u64().unwrap(), run["bytes_total"].as_u64().unwrap());
                assert!(done < total && total == 200 << 30, "{run}");
                assert_eq!(run["percent"], done * 100 / total);
            }
            let ran = room.plain(&["status", "--state-dir", "state", "i-1"]);
            for said in ["rebuilding", &format!("process {}, begun 20", child.id()), " UTC", "copy, 0 % ("] {
                assert!(ran.stdout.contains(said), "{said} is not in {}", ran.stdout);
            }
            if words == ["--in-place"] {
                let elsewhere =
                    room.plain(&["status", "--json", "--state-dir", "other", "disk.raw"]).document();
                assert_eq!((&elsewhere["state"], &elsewhere["run"]), (&"rebuilding".into(), &Value::Null));
                assert!(notices(&elsewhere).contains("another --state-dir"), "{elsewhere}");
            }
            kill_process(pid, Signal::CONT).unwrap();
            let before = status(&room, "i-1")["run"]["bytes_done"].as_u64();
            let begun = Instant::now();
            while status(&room, "i-1")["run"]["bytes_done"].as_u64() <= before {
                assert!(begun.elapsed() < Duration::from_secs(30), "progress stands still");
                std::thread::sleep(Duration::from_millis(50));
            }
            kill_process(pid, Signal::TERM).unwrap();
        })
        .error(143);
        let expected = if words.is_empty() { "stopped" } else { "failed" };
        assert_eq!(status(&room, "instance.toml")["state"], expected);
    }
}

/// Waits until a process stands still.
fn stopped(pid: Pid) {
    let status = rustix::process::waitpid(Some(pid), WaitOptions::UNTRACED).unwrap();
    assert!(status.is_some_and(|(_, status)| status.stopped()));
}

#[test]
fn a_rebuild_in_place_that_was_killed_has_failed_until_it_is_run_again() {
    let room = Room::new();
    empty_disk(&room);
    killed(&room, &["--in-place"]);
    std::os::unix::fs::symlink("disk.raw", room.path("link")).unwrap();
    for subject in ["i-1", "instance.toml", "disk.raw", "link"] {
        let status = status(&room, subject);
        assert_eq!(status["state"], "failed", "{subject}: {status}");
        assert_eq!(
            (&status["failure"]["target_state"], &status["run"]["phase"]),
            (&"partial".into(), &"copy".into())
        );
        assert!(status["failure"]["message"].as_str().unwrap().contains("interrupted"), "{status}");
        assert!(status["advice"].as_str().unwrap().contains("run the rebuild again"), "{status}");
        assert_eq!(status["notices"], Value::Array(Vec::new()), "{status}");
    }
    let elsewhere = room.plain(&["status", "--json", "--state-dir", "other", "disk.raw"]).document();
    assert_eq!(elsewhere["state"], "failed");
    assert!(notices(&elsewhere).contains("another host"), "{elsewhere}");
    // A run that is refused or touches nothing leaves the failure as it is.
    let image = room.image("zlib-64k");
    room.rebuild(&["--instance", "instance.toml", "missing.raw"]).error(20);
    assert_eq!(status(&room, "i-1")["state"], "failed");
    room.rebuild(&["--instance", "instance.toml", text(&image), "--in-place"]).document();
    let status = status(&room, "disk.raw");
    assert_eq!((&status["state"], &status["notices"]), (&"stopped".into(), &Value::Array(Vec::new())));
    assert_eq!(journals(&room), 0);
}

#[test]
fn a_disk_that_was_replaced_by_hand_is_no_longer_failed() {
    let room = Room::new();
    empty_disk(&room);
    killed(&room, &["--in-place"]);
    room.old_disk("disk.raw", 1 << 20);
    for subject in ["i-1", "instance.toml", "disk.raw"] {
        let status = status(&room, subject);
        assert_eq!(status["state"], "stopped", "{subject}: {status}");
        assert!(notices(&status).contains("written or replaced since"), "{status}");
    }
}

#[test]
fn the_new_file_of_a_killed_rebuild_is_removed_by_one_that_writes_in_place() {
    let room = Room::new();
    empty_disk(&room);
    killed(&room, &[]);
    let temporary = ".disk.raw.reimage-unfinished".to_owned();
    assert!(room.names().contains(&temporary), "{:?}", room.names());
    let image = room.image("zlib-64k");
    let report = room.rebuild(&["--instance", "instance.toml", text(&image), "--in-place"]).document();
    assert_eq!(report["mode"], "full", "what was noted of another file is of no use");
    assert!(!room.names().contains(&temporary), "{:?}", room.names());
    assert_eq!(journals(&room), 0);
}

#[test]
fn a_killed_rebuild_that_would_have_replaced_the_file_left_no_change() {
    let room = Room::new();
    empty_disk(&room);
    let before = fs::metadata(room.path("disk.raw")).unwrap();
    killed(&room, &[]);
    let now = fs::metadata(room.path("disk.raw")).unwrap();
    assert_eq!(now.modified().unwrap(), before.modified().unwrap());
    for subject in ["i-1", "instance.toml", "disk.raw"] {
        let status = status(&room, subject);
        assert_eq!(
            (&status["state"], &status["run"]["phase"]),
            (&"stopped".into(), &"copy".into()),
            "{subject}"
        );
        assert!(notices(&status).contains("before it had changed anything"), "{status}");
        assert!(status["advice"].as_str().unwrap().contains("the disk is the old one"), "{status}");
    }
    let temporary = ".disk.raw.reimage-unfinished".to_owned();
    assert!(room.names().contains(&temporary), "{:?}", room.names());
    room.plain(&["status", "--prune", "--state-dir", "state"]);
    assert!(!room.names().contains(&temporary), "{:?}", room.names());
    assert_eq!((journals(&room), status(&room, "i-1")["state"].take()), (0, "stopped".into()));
    let now = fs::metadata(room.path("disk.raw")).unwrap();
    assert_eq!(now.modified().unwrap(), before.modified().unwrap());
}

#[test]
fn after_a_rebuild_that_went_well_the_instance_is_stopped_and_no_journal_is_left() {
    let room = Room::new();
    let image = room.image("zlib-64k");
    instance(&room);
    room.rebuild(&["--instance", "instance.toml", text(&image)]).document();
    for subject in ["i-1", "instance.toml", "disk.raw"] {
        let before = Seen::of(&room.path("disk.raw"));
        let status = status(&room, subject);
        before.check(&room.path("disk.raw"));
        assert_eq!((&status["state"], &status["journal"]), (&"stopped".into(), &Value::Null), "{subject}");
        assert_eq!(status["notices"], serde_json::json!([]), "{subject}: its receipt is the record");
        assert_eq!(status["disk"].is_object(), subject != "i-1");
    }
    assert_eq!(journals(&room), 0);
}

#[test]
fn a_failure_is_told_with_its_kind_and_its_message() {
    let room = Room::new();
    let image = room.image("zlib-64k");
    crate::faults::damage_last(&image);
    instance(&room);
    room.old_disk("disk.raw", 2 << 20);
    let words = ["--instance", "instance.toml", text(&image), "--in-place"];
    let error = room.rebuild(&words).error(32);
    let status = status(&room, "i-1");
    let failure = &status["failure"];
    assert_eq!((&status["state"], &failure["kind"]), (&"failed".into(), &error["kind"]));
    assert_eq!(failure["target_state"], error["target_state"]);
    assert!(failure["message"].as_str().unwrap().contains(text(&image)), "{failure}");
}

#[test]
fn what_killed_runs_left_is_pruned_and_what_an_unfinished_disk_needs_stays() {
    let room = Room::new();
    empty_disk(&room);
    let prune = |subject: &[&str]| {
        let words = [&["status", "--json", "--prune", "--state-dir", "state"], subject].concat();
        room.plain(&words).document()
    };
    assert_eq!(prune(&[]), serde_json::json!({ "prune": { "removed": [], "kept": [] } }));
    // A run that lives loses nothing.
    interrupted(rebuild_of_instance(&room, &["--in-place"]), COPYING, |child| {
        let report = &prune(&[])["prune"];
        assert_eq!(
            (&report["removed"], report["kept"].as_array().unwrap().len()),
            (&Value::Array(Vec::new()), 2)
        );
        kill_process(Pid::from_child(child), Signal::KILL).unwrap();
    });
    assert_eq!(fs::read_dir(room.path("state/locks")).unwrap().count(), 1);
    let pruned = prune(&["disk.raw"]);
    assert_eq!(pruned["state"], "failed");
    let (removed, kept) = (&pruned["prune"]["removed"], &pruned["prune"]["kept"]);
    assert!(removed.as_array().unwrap().iter().any(|of| of["path"].as_str().unwrap().ends_with(".lock")));
    assert!(kept[0]["reason"].as_str().unwrap().contains("run the rebuild again"), "{kept}");
    assert_eq!(status(&room, "i-1")["state"], "failed", "the journal is still there");
    let text = room.plain(&["status", "--prune", "--state-dir", "state"]).stdout;
    assert!(text.contains("removed     nothing") && text.contains("kept        "), "{text}");
    // A disk that is no longer the one that was being rebuilt.
    room.old_disk("disk.raw", 1 << 20);
    let before = Seen::of(&room.path("disk.raw"));
    prune(&[]);
    before.check(&room.path("disk.raw"));
    assert_eq!((journals(&room), &prune(&["i-1"])["state"]), (0, &"stopped".into()));
    room.plain(&["status", "--json", "--state-dir", "state"]).error(2);
}

/// The partition table's id in the last journal entry that begins a run.
fn recorded_ptuuid(room: &Room) -> Value {
    let paths = fs::read_dir(room.path("state/journals")).unwrap().map(|entry| entry.unwrap().path());
    let is_journal = |path: &std::path::PathBuf| path.extension().is_some_and(|name| name == "journal");
    let journal = fs::read_to_string(paths.into_iter().find(is_journal).unwrap()).unwrap();
    let begun = journal.lines().rfind(|line| line.contains("\"begun\"")).unwrap();
    let record: Value = serde_json::from_str(begun.split_once(' ').unwrap().1).unwrap();
    record["ptuuid"].clone()
}

#[test]
fn the_partition_table_that_a_disk_had_is_remembered_over_several_failed_runs() {
    let room = Room::new();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/demo/demo.qcow2");
    room.rebuild(&[text(&demo), "disk.raw"]).document();
    let image = room.image("zlib-64k");
    crate::faults::damage_last(&image);
    let words = [text(&image), "disk.raw", "--in-place"];
    room.rebuild(&words).error(32);
    let first = recorded_ptuuid(&room);
    assert!(first.is_string(), "{first}");
    room.rebuild(&words).error(32);
    assert_eq!(recorded_ptuuid(&room), first);
}

#[test]
fn what_is_not_there_is_an_error_and_an_unknown_id_is_not() {
    let room = Room::new();
    let unknown = status(&room, "i-2");
    assert_eq!((&unknown["state"], &unknown["target"]), (&"stopped".into(), &Value::Null));
    assert!(notices(&unknown).contains("no rebuild of it is recorded here"));
    room.plain(&["status", "--json", "--state-dir", "state", "./no-such-disk"]).error(14);
    room.plain(&["status", "--json", "--state-dir", "state", "no-such-file.toml"]).error(2);
    room.plain(&["status", "--json", "--state-dir", "state", "."]).error(14);
    assert!(!room.path("state").exists(), "asking made a state folder");
    // A disk that is to be made has nothing unfinished on it.
    assert_eq!(status(&room, instance(&room))["state"], "stopped");
}
