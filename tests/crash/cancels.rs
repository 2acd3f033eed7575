//! A cancel at every operation, and how much is still written behind it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use reimage::{CancelToken, ErrorKind, Mode, SimAction, SimWhen, TargetState};

use super::disks::Old;
use super::faults::check_left;
use super::lab::{Bench, Home, Outcome, chain};
use super::operations::each;
use super::phases::middle;
use super::scenarios::{Kind, Packing, Scenario};
use super::states::{State, check_resume, classify};

#[test]
fn a_cancel_at_any_operation_leaves_a_disk_that_the_next_run_completes() {
    each("cancels", &[SimWhen::Before, SimWhen::After], |known, operation, when| {
        let (disk, home, cancel) = (known.bench.disk(), Home::new(), CancelToken::new());
        let stop = cancel.clone();
        disk.on_operation(move |now, then| {
            if (now.number, then) == (operation.number, when) {
                stop.cancel();
            }
        });
        match known.bench.run(&disk, &home, &cancel) {
            Outcome::Failed(error) if error.kind() == ErrorKind::Cancelled => {
                let state = classify(&known.bench, &disk.contents(), &home.snapshot())?;
                if state == State::Finished {
                    return Err(format!("cancelled, and the disk is finished: {}", chain(&error)));
                }
                check_left(&known.bench, &error, (&disk, operation), &home)
            }
            done => done.done().and_then(|_| known.bench.check_done(&disk, &home.snapshot())),
        }
    });
}

/// What is under way when the cancel comes.
struct Instant {
    mode: Mode,
    action: SimAction,
    /// How many such operations between the ends come before.
    nth: usize,
}

/// Cancels one of several threads in the midst of an operation; says how many writes begin afterwards.
///
/// That operation takes as long as the run needs to hear of the cancel; the other threads' wait for it.
fn writes_behind_a_cancel(instant: &Instant, threads: usize) -> usize {
    let Instant { mode, action, nth } = *instant;
    let scenario = Scenario::new(Kind::Device, Packing::Long, (mode, Old::Gpt));
    let bench = Bench::new(Scenario { threads, ..scenario });
    let (disk, home, cancel) = (bench.disk(), Home::new(), CancelToken::new());
    let (stop, seen) = (cancel.clone(), Arc::new(AtomicUsize::new(0)));
    let (cancelled_at, between) = (Arc::new(AtomicUsize::new(0)), middle(bench.finished.len()));
    let noted = Arc::clone(&cancelled_at);
    let has_begun = AtomicBool::new(false);
    disk.on_operation(move |now, when| {
        let inside = |place: u64| (between.start as u64..=between.end as u64).contains(&place);
        let is_between = now.range.is_some_and(|range| inside(range.start()) && inside(range.end()));
        // In delta mode the disk is told by the first byte that differs that it is unfinished.
        let is_copy = is_between && now.action == SimAction::Write;
        has_begun.fetch_or(is_copy, Ordering::SeqCst);
        let counts = has_begun.load(Ordering::SeqCst) && is_between && now.action == action;
        if counts && when == SimWhen::Before && seen.fetch_add(1, Ordering::SeqCst) == nth {
            noted.store(now.number, Ordering::SeqCst);
            stop.cancel();
            std::thread::sleep(Duration::from_millis(700));
        }
    });
    match bench.run(&disk, &home, &cancel) {
        Outcome::Failed(error) => {
            let told = (error.kind(), error.target_state());
            assert_eq!(told, (ErrorKind::Cancelled, TargetState::Partial), "{}", chain(&error));
        }
        done => panic!("it was cancelled and goes on: {:?}", done.done().map(|report| report.mode)),
    }
    let ended = disk.history();
    check_resume(&bench, &disk, &home).unwrap();
    let behind = &ended.log()[cancelled_at.load(Ordering::SeqCst)..];
    behind.iter().filter(|other| matches!(other.action, SimAction::Write | SimAction::Zero)).count()
}

#[test]
fn no_thread_begins_another_write_behind_the_job_that_it_does_when_the_run_is_cancelled() {
    for threads in [1, 3] {
        for nth in [0, 2, 5] {
            // The write that is under way has begun; each of the other threads may have one that waits for its turn.
            let behind =
                writes_behind_a_cancel(&Instant { mode: Mode::Full, action: SimAction::Write, nth }, threads);
            assert!(behind < threads, "{behind} writes behind a cancel at write {nth} of {threads} threads");
            // A thread that compares may write once what it has found to differ.
            let behind =
                writes_behind_a_cancel(&Instant { mode: Mode::Delta, action: SimAction::Read, nth }, threads);
            assert!(behind <= threads, "{behind} writes behind a cancel at read {nth} of {threads} threads");
        }
    }
}
