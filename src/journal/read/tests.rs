//! What is read of journals: whole, torn, spoilt, huge and foreign ones.

use std::fs;

use serde_json::{Value, json};

use super::super::{Bound, GoOn, Journal, Record};
use super::*;
use crate::verify::Digest;

fn begin(state_dir: &Path) -> Journal {
    Journal::begin(state_dir, &json!("a disk"), Bound::of(&1, 1), GoOn::IfItCan).unwrap().0
}

fn record_begun(journal: &Journal, ptuuid: Option<&str>) {
    let begun = Record::Begun {
        journal: journal.id(),
        instance: Some("i-1"),
        path: "/disk.raw",
        pid: 7,
        started_s: 42,
        ptuuid,
        image: &Value::Null,
        target: &Value::Null,
        chunk_bytes: 1,
        target_bytes: 1,
        gpt: &Value::Null,
        undoes: None,
    };
    journal.record(&begun).unwrap();
}

/// The one journal in a state folder.
#[track_caller]
fn only(state_dir: &Path) -> JournalSummary {
    let mut listing = list(state_dir).unwrap();
    assert_eq!((listing.journals.len(), listing.unread), (1, 0));
    listing.journals.remove(0)
}

fn file_in(state_dir: &Path) -> PathBuf {
    let paths = fs::read_dir(folder(state_dir)).unwrap().map(|entry| entry.unwrap().path());
    let is_journal = |path: &PathBuf| path.extension().is_some_and(|name| name == "journal");
    paths.into_iter().find(is_journal).expect("a journal is there")
}

fn interrupted(state_dir: &Path, ptuuid: Option<&str>) -> String {
    let journal = begin(state_dir);
    record_begun(&journal, ptuuid);
    journal.record(&Record::Invalidated).unwrap();
    journal.progress("copy", 0, 100);
    journal.id().to_owned()
}

#[test]
fn what_was_recorded_is_read_and_a_living_run_is_told_from_a_dead_one() {
    let state = tempfile::tempdir().unwrap();
    assert!(list(state.path()).unwrap().journals.is_empty(), "a folder that is not there is empty");
    let journal = begin(state.path());
    record_begun(&journal, None);
    journal.record(&Record::Invalidated).unwrap();
    journal.progress("copy", 50, 100);
    journal.record(&Record::Verified { root: Digest::of(b"") }).unwrap();
    let message = "a\nb";
    let (kind, target_state) = (ErrorKind::Mismatch, TargetState::Written);
    journal.record(&Record::Failed { kind, target_state, message }).unwrap();
    let read = only(state.path());
    let last = read.last();
    assert_eq!((last.instance.as_deref(), last.path.as_str()), (Some("i-1"), "/disk.raw"));
    assert_eq!((last.pid, last.started_s), (7, 42));
    assert!(read.names(journal.id()) && read.held && read.invalidated && read.verified);
    assert!(!read.exchanging && !read.finished);
    assert_eq!(read.failed.unwrap().message, message);
    let progress = read.progress.unwrap();
    assert_eq!((progress.phase.as_str(), progress.bytes_done, progress.bytes_total), ("copy", 50, 100));
    drop(journal);
    assert!(!only(state.path()).held);
}

#[test]
fn a_torn_tail_is_cut_at_the_last_whole_line() {
    let state = tempfile::tempdir().unwrap();
    interrupted(state.path(), None);
    let whole = fs::read(file_in(state.path())).unwrap();
    let ends: Vec<_> = (1..=whole.len()).filter(|end| whole[end - 1] == b'\n').collect();
    assert_eq!(ends.len(), 3);
    for len in 0..=whole.len() {
        let (read, kept) = parse(&whole[..len]);
        let lines = ends.iter().filter(|end| **end <= len).count();
        let found = (read.runs.len(), read.invalidated, read.progress.is_some());
        assert_eq!(found, (lines.min(1), lines > 1, lines > 2), "{len} bytes");
        assert_eq!(kept, ends[..lines].last().copied().unwrap_or(0) as u64, "{len} bytes");
    }
}

#[test]
fn a_line_of_which_a_byte_is_flipped_ends_the_reading() {
    let state = tempfile::tempdir().unwrap();
    interrupted(state.path(), None);
    let whole = fs::read(file_in(state.path())).unwrap();
    for at in 0..whole.len() {
        let mut bad = whole.clone();
        bad[at] ^= 1;
        let lines = whole[..at].iter().filter(|byte| **byte == b'\n').count();
        let read = parse(&bad).0;
        let found = (read.runs.len(), read.invalidated, read.progress.is_some());
        assert_eq!(found, (lines.min(1), lines > 1, lines > 2), "byte {at}");
    }
}

#[test]
fn records_of_a_later_version_are_passed_over() {
    let line = |text: &str| format!("{} {text}\n", checksum(text));
    let text = [
        line(r#"{"record":"begun","journal":"j","colour":"red"}"#),
        line(r#"{"record":"chunks","digests":[1,2]}"#),
        line(r#"{"record":"failed","kind":"bored","target_state":"partial","message":""}"#),
        line(r#"{"record":"verified","root":"00"}"#),
    ];
    let read = parse(text.concat().as_bytes()).0;
    assert!(read.names("j") && read.verified && read.failed.is_none());
}

#[test]
fn huge_lines_and_other_files_are_passed_over() {
    let state = tempfile::tempdir().unwrap();
    interrupted(state.path(), None);
    let folder = folder(state.path());
    let good = fs::read(file_in(state.path())).unwrap();
    let huge = vec![b'x'; 8 << 20];
    fs::write(folder.join("1.journal"), &huge).unwrap();
    fs::write(folder.join("2.journal"), [&good[..], &huge].concat()).unwrap();
    File::create(folder.join("3.journal")).unwrap().set_len(1 << 40).unwrap();
    std::os::unix::fs::symlink(file_in(state.path()), folder.join("4.journal")).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, folder.join("5.journal"), mode).unwrap();
    fs::create_dir(folder.join("6.journal")).unwrap();
    fs::write(folder.join("else"), "").unwrap();
    let listing = list(state.path()).unwrap();
    assert_eq!((listing.journals.len(), listing.unread), (2, 5));
    assert!(listing.journals.iter().all(|journal| journal.invalidated));
}

#[test]
fn of_ten_thousand_files_and_of_many_bytes_a_bounded_part_is_read() {
    let state = tempfile::tempdir().unwrap();
    interrupted(state.path(), None);
    let folder = folder(state.path());
    let good = file_in(state.path());
    for number in 1..10_000 {
        fs::hard_link(&good, folder.join(format!("{number}.journal"))).unwrap();
    }
    let listing = list(state.path()).unwrap();
    assert_eq!((listing.journals.len(), listing.unread), (MOST_FILES, 10_000 - MOST_FILES));
    let large = [fs::read(&good).unwrap(), vec![0; 1 << 20]].concat();
    fs::write(&good, large).unwrap();
    let most = usize::try_from(MOST_BYTES_OF_ALL / MOST_BYTES).unwrap();
    assert_eq!(list(state.path()).unwrap().journals.len(), most);
}

#[test]
fn progress_takes_the_place_of_the_last_one_until_a_record_follows() {
    let state = tempfile::tempdir().unwrap();
    let journal = begin(state.path());
    record_begun(&journal, None);
    let len = || fs::metadata(file_in(state.path())).unwrap().len();
    journal.progress("copy", 0, u64::MAX);
    let with_one = len();
    journal.progress("copy", 1, u64::MAX);
    assert_eq!(only(state.path()).progress.unwrap().bytes_done, 0, "it is noted once a second");
    journal.progress("read_back", u64::MAX, u64::MAX);
    assert_eq!(len(), with_one);
    let progress = only(state.path()).progress.unwrap();
    assert_eq!((progress.phase.as_str(), progress.bytes_done), ("read_back", u64::MAX));
    journal.record(&Record::Invalidated).unwrap();
    journal.progress("copy", 3, 4);
    journal.record(&Record::Verified { root: Digest::of(b"") }).unwrap();
    let read = only(state.path());
    assert!(read.invalidated && read.verified && read.progress.unwrap().bytes_done == 3);
}

#[test]
fn what_an_unfinished_run_left_stays_until_the_disk_is_complete() {
    let state = tempfile::tempdir().unwrap();
    let ptuuid = |journal: &str| earlier_ptuuid(state.path(), journal);
    let first = interrupted(state.path(), Some("abc"));
    assert_eq!(ptuuid(&first).as_deref(), Some("abc"));
    assert_eq!(ptuuid("another"), None);
    // A second run that is killed at once, and a third that gives up, change nothing of it.
    drop(begin(state.path()));
    let third = begin(state.path());
    record_begun(&third, ptuuid(&first).as_deref());
    assert_eq!(ptuuid(third.id()).as_deref(), Some("abc"));
    assert!(only(state.path()).names(&first), "the disk still carries the first run's marker");
    third.discard();
    let read = only(state.path());
    assert!(read.invalidated && read.last().journal == first);
    assert_eq!(read.target_state(), TargetState::Partial);
    let fourth = begin(state.path());
    record_begun(&fourth, None);
    assert!(only(state.path()).invalidated, "it has not begun to write, and the disk is unfinished");
    fourth.record(&Record::Finished).unwrap();
    drop(fourth);
    // As after a kill between the last record and the file's end.
    let fifth = begin(state.path());
    record_begun(&fifth, None);
    assert!(!only(state.path()).names(&first));
    fifth.finish().unwrap();
    assert!(list(state.path()).unwrap().journals.is_empty());
}

#[test]
fn a_run_that_touched_nothing_leaves_nothing() {
    let state = tempfile::tempdir().unwrap();
    let journal = begin(state.path());
    record_begun(&journal, None);
    journal.discard();
    assert_eq!(fs::read_dir(folder(state.path())).unwrap().count(), 0);
}

#[test]
fn records_do_not_pile_up_without_end() {
    let state = tempfile::tempdir().unwrap();
    let long = "x".repeat(100 << 10);
    for _ in 0..8 {
        interrupted(state.path(), Some(&long));
    }
    assert!(fs::metadata(file_in(state.path())).unwrap().len() < 512 << 10);
    assert!(only(state.path()).invalidated);
}
