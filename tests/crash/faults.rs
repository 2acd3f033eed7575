//! Every operation fails once with every error, lies once in every way, or sees a cancel.

use std::sync::atomic::{AtomicUsize, Ordering};

use reimage::{
    ByteRange, CancelToken, Error, ErrorKind, SimAction, SimDisk, SimFault, SimHistory, SimLie, SimOperation,
    SimWhen, TargetState,
};

use super::lab::{Bench, Home, Outcome, chain, few_scenarios, in_parallel, none_of, tries_all};
use super::states::{State, check_crashes, check_resume, classify};

/// A bench and the history of an undisturbed run on it.
struct Known {
    bench: Bench,
    history: SimHistory,
}

fn known() -> Vec<Known> {
    let (benches, made) = (few_scenarios(), std::sync::Mutex::new(Vec::new()));
    in_parallel(&benches, |scenario| {
        let bench = Bench::new(*scenario);
        let history = bench.record().history;
        made.lock().unwrap().push(Known { bench, history });
        Vec::new()
    });
    made.into_inner().unwrap()
}

/// Calls `check` for every operation of every scenario, and with each of `ways`.
fn each<W: Copy + Sync + std::fmt::Debug>(
    what: &str,
    ways: &[W],
    check: impl Fn(&Known, SimOperation, W) -> Result<(), String> + Sync,
) {
    let (known, started, tried) = (known(), std::time::Instant::now(), AtomicUsize::new(0));
    let operations: Vec<_> = known
        .iter()
        .flat_map(|known| known.history.log().iter().map(move |operation| (known, *operation)))
        .collect();
    let complaints = in_parallel(&operations, |(known, operation)| {
        let with = |way: &W| {
            tried.fetch_add(1, Ordering::Relaxed);
            let place =
                format!("operation {} ({:?} {:?})", operation.number, operation.action, operation.range);
            check(known, *operation, *way)
                .err()
                .map(|fault| format!("{}: {place}, {way:?}: {fault}", known.bench.scenario))
        };
        ways.iter().filter_map(with).collect()
    });
    eprintln!("{} {what} in {:?}", tried.into_inner(), started.elapsed());
    none_of(complaints);
}

#[test]
fn whatever_operation_fails_the_error_says_what_the_disk_is_and_the_next_run_completes_it() {
    each("faults", &SimFault::ALL, |known, operation, fault| {
        let (disk, home) = (known.bench.disk(), Home::new());
        // A failing sync loses something else with every fault.
        let nth = SimFault::ALL.iter().position(|other| *other == fault);
        disk.set_rng_seed((operation.number * SimFault::ALL.len() + nth.unwrap_or(0)) as u64);
        disk.fail(operation.number, fault);
        match known.bench.run(&disk, &home, &CancelToken::new()) {
            Outcome::Failed(error) => {
                check_error(known, &error, (&disk, operation))?;
                check_left(&known.bench, &error, (&disk, operation), &home)
            }
            done => done.done().and_then(|_| known.bench.check_done(&disk, &home.snapshot())),
        }
    });
}

/// Kind, exit code and range.
fn check_error(
    known: &Known,
    error: &Error,
    (disk, operation): (&SimDisk, SimOperation),
) -> Result<(), String> {
    let kind = error.kind();
    let code = match kind {
        ErrorKind::TargetIo => 30,
        ErrorKind::Mismatch => 31,
        _ => return Err(format!("the wrong kind: {}", chain(error))),
    };
    if kind.exit_code() != code {
        return Err(format!("exit code {} of {kind:?}", kind.exit_code()));
    }
    // Other numbers than in the undisturbed run tell of another operation.
    let same = disk.log()[operation.number - 1] == known.history.log()[operation.number - 1];
    let covers = |range: ByteRange| error.range().and_then(|told| told.intersection(range)) == Some(range);
    match operation.range {
        Some(range) if same && kind == ErrorKind::TargetIo && !covers(range) => {
            Err(format!("the range is not told: {}", chain(error)))
        }
        _ => Ok(()),
    }
}

/// Whether the disk is what the error says, whatever happens next, and can be completed.
fn check_left(
    bench: &Bench,
    error: &Error,
    (disk, operation): (&SimDisk, SimOperation),
    home: &Home,
) -> Result<(), String> {
    let snapshot = home.snapshot();
    let told = error.target_state();
    let found = classify(bench, &disk.contents(), &snapshot)
        .map_err(|fault| format!("told {told}, it is {fault}"))?;
    let fits = match told {
        TargetState::Untouched => disk.contents() == bench.old && disk.durable() == bench.old,
        TargetState::Invalidated => found != State::Finished || bench.old == bench.finished,
        TargetState::Verified => found == State::Finished,
        _ => true,
    };
    if !fits {
        return Err(format!("told {told}, it is {found:?}: {}", chain(error)));
    }
    check_crashes(bench, disk, &snapshot)?;
    // A sample completes every third.
    let takes_part = tries_all() || operation.number.is_multiple_of(3);
    if takes_part { check_resume(bench, disk, home).map(drop) } else { Ok(()) }
}

#[test]
fn no_lie_of_the_disk_ends_in_a_run_that_says_done_wrongly() {
    each("lies", &SimLie::ALL, |known, operation, lie| {
        let fits = match operation.action {
            SimAction::Read => lie == SimLie::Stale,
            SimAction::Write | SimAction::Zero => lie != SimLie::Stale,
            _ => false,
        };
        if !fits {
            return Ok(());
        }
        let (disk, home) = (known.bench.disk(), Home::new());
        disk.set_rng_seed(operation.number as u64);
        disk.lie(operation.number, lie);
        match known.bench.run(&disk, &home, &CancelToken::new()) {
            Outcome::Failed(error) if error.kind() == ErrorKind::Mismatch => Ok(()),
            done => {
                let report = done.done()?;
                known.bench.check_done(&disk, &home.snapshot())?;
                if matters(known, &disk, operation) && report.repairs.is_empty() {
                    return Err("it was mended, and the report does not say so".to_owned());
                }
                Ok(())
            }
        }
    });
}

/// Whether what the disk stored instead would have stayed: nothing that the run does anyway comes over it.
fn matters(known: &Known, disk: &SimDisk, operation: SimOperation) -> bool {
    let (history, log, number) = (disk.history(), known.history.log(), operation.number);
    let Some(range) = operation.range.filter(|_| operation.action != SimAction::Read) else { return false };
    if history.log()[number - 1] != operation {
        return false;
    }
    let changes = |other: &&SimOperation| matches!(other.action, SimAction::Write | SimAction::Zero);
    let later = log[number..].iter().filter(changes).filter_map(|other| other.range);
    if later.into_iter().any(|other| other.intersection(range).is_some()) {
        return false;
    }
    let written = |history: &SimHistory| {
        let contents = history.after(number).written();
        let place = usize::try_from(range.start()).unwrap()..usize::try_from(range.end()).unwrap();
        contents[place].to_vec()
    };
    written(&history) != written(&known.history)
}

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
