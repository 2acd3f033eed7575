//! Every operation fails once with every error: what the error says, and what the disk is.

use reimage::{
    ByteRange, CancelToken, Error, ErrorKind, SimAction, SimDisk, SimFault, SimOperation, TargetState,
};

use super::lab::{Bench, Home, Outcome, chain, differing, in_parallel, none_of};
use super::operations::{Known, each, part};
use super::phases::{Phase, middle, phase};
use super::probe;
use super::scenarios::{Kind, Packing, Scenario, few_scenarios, tries_all};
use super::states::{State, check_crashes, check_resume, classify, is_beginning, is_first_block_marked};

/// How a run ends of which one operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// It mends what the fault has done.
    Done,
    /// With error 30, which tells this state.
    Fails(TargetState),
}

#[test]
fn whatever_operation_fails_the_error_says_what_the_disk_is_and_the_next_run_completes_it() {
    each("faults", &SimFault::ALL, |known, operation, fault| {
        let (disk, home) = (known.bench.disk(), Home::new());
        // A failing sync loses something else with every fault.
        let nth = SimFault::ALL.iter().position(|other| *other == fault);
        disk.set_rng_seed((operation.number * SimFault::ALL.len() + nth.unwrap_or(0)) as u64);
        disk.fail(operation.number, fault);
        let outcome = known.bench.run(&disk, &home, &CancelToken::new());
        let log = disk.log();
        let Some(operation) = log.get(operation.number - 1) else {
            return outcome.done().and_then(|_| known.bench.check_done(&disk, &home.snapshot()));
        };
        let expected = expected(known, &log[..operation.number], fault);
        match outcome {
            Outcome::Failed(error) if expected.contains(&Ending::Fails(error.target_state())) => {
                check_error(&error, *operation)?;
                check_left(&known.bench, &error, (&disk, *operation), &home)
            }
            Outcome::Done(_) if expected.contains(&Ending::Done) => {
                known.bench.check_done(&disk, &home.snapshot())
            }
            Outcome::Failed(error) => Err(format!("{expected:?} is right, not {}", chain(&error))),
            other => {
                Err(format!("{expected:?} is right, not {:?}", other.done().map(|report| report.repairs)))
            }
        }
    });
}

/// What may become of a run by one fault, in the last of these operations.
fn expected(known: &Known, log: &[SimOperation], fault: SimFault) -> Vec<Ending> {
    use TargetState::{Invalidated, Partial, Untouched, Verified, Written};
    let (phase, action) = (phase(log, known.bench.finished.len()), log[log.len() - 1].action);
    match action {
        // Of what somebody wrote before this run nothing can be written again.
        SimAction::Sync if phase == Phase::Looking => return vec![Ending::Fails(Untouched)],
        // It is not believed: all before it is written again.
        SimAction::Sync => return vec![Ending::Done],
        // Where the disk seems to end too early, nothing lies that could be kept: in delta mode it is written.
        SimAction::Read if fault == SimFault::Short && is_compared(phase) => return vec![Ending::Done],
        _ => {}
    }
    // The system disk is the old file until the exchange.
    let is_new = known.bench.scenario.kind == Kind::FileReplaced;
    let states = match phase {
        // A short exchange has taken place.
        Phase::Exchanging if action == SimAction::Settle || fault == SimFault::Short => vec![Verified],
        _ if is_new => vec![Untouched],
        // While one thread looks on, the disk may already be told of what another has found to differ.
        Phase::Looking => vec![Untouched, Partial],
        Phase::Invalidating => vec![Invalidated],
        Phase::Copying => vec![Partial],
        Phase::ReadingBack | Phase::Ending | Phase::Exchanging => vec![Written],
    };
    states.into_iter().map(Ending::Fails).collect()
}

/// Whether a read is made to find what need not be written.
fn is_compared(phase: Phase) -> bool {
    matches!(phase, Phase::Looking | Phase::Copying)
}

/// Kind, exit code and range.
fn check_error(error: &Error, operation: SimOperation) -> Result<(), String> {
    if error.kind() != ErrorKind::TargetIo || error.kind().exit_code() != 30 {
        return Err(format!("the wrong kind, exit code {}: {}", error.kind().exit_code(), chain(error)));
    }
    let covers = |range: ByteRange| error.range().and_then(|told| told.intersection(range)) == Some(range);
    if operation.range.is_some_and(|range| !covers(range)) {
        return Err(format!("the range is not told but {:?}: {}", error.range(), chain(error)));
    }
    Ok(())
}

/// Whether the disk is what the error says, whatever happens next, and can be completed.
pub(crate) fn check_left(
    bench: &Bench,
    error: &Error,
    (disk, operation): (&SimDisk, SimOperation),
    home: &Home,
) -> Result<(), String> {
    let snapshot = home.snapshot();
    let told = error.target_state();
    let found = classify(bench, &disk.contents(), &snapshot)
        .map_err(|fault| format!("told {told}, it is {fault}"))?;
    check_told(bench, told, &disk.contents()).map_err(|fault| format!("{fault}: {}", chain(error)))?;
    match told {
        // The exchange of a file may still be undone.
        TargetState::Verified if found == State::Finished => {}
        TargetState::Verified => return Err(format!("told {told}, it is {found:?}: {}", chain(error))),
        _ => {
            check_told(bench, told, &disk.durable()).map_err(|fault| format!("after a power cut: {fault}"))?
        }
    }
    check_crashes(bench, disk, &snapshot)?;
    // A sample completes every fifth.
    let takes_part = tries_all() || operation.number.is_multiple_of(5);
    if takes_part { check_resume(bench, disk, home).map(drop) } else { Ok(()) }
}

/// Whether a disk is byte for byte what a state says of it.
fn check_told(bench: &Bench, told: TargetState, disk: &[u8]) -> Result<(), String> {
    let about = |what: &str, at: Option<usize>| match at {
        Some(at) => Err(format!("told {told}, and byte {at} is not that of the {what}")),
        None => Ok(()),
    };
    let marked = || match probe::marker(disk) {
        true => Ok(()),
        false => Err(format!("told {told}, and its head does not say that it is unfinished")),
    };
    match told {
        TargetState::Untouched => about("old disk", differing(disk, &bench.old)),
        TargetState::Verified => about("finished disk", differing(disk, &bench.finished)),
        TargetState::Partial => marked(),
        TargetState::Written => {
            let middle = middle(bench.finished.len());
            let at = differing(&disk[middle.clone()], &bench.finished[middle.clone()]);
            about("finished disk", at.map(|at| middle.start + at)).and_then(|()| marked())
        }
        TargetState::Invalidated if is_beginning(bench, disk) && is_first_block_marked(bench, disk) => Ok(()),
        TargetState::Invalidated => Err(format!("told {told}, and more than its ends has changed")),
        _ => Err(format!("told {told}")),
    }
}

#[test]
fn a_new_file_that_stays_after_an_error_holds_what_was_copied_and_cannot_boot() {
    let scenarios = [Packing::Raw, Packing::Bare].map(|packing| {
        let all = few_scenarios().into_iter().find(|scenario| scenario.kind == Kind::FileReplaced);
        Scenario { packing, ..all.unwrap() }
    });
    let complaints = in_parallel(&scenarios, |scenario| {
        let bench = Bench::new(*scenario).preserving();
        let history = bench.record().history;
        let check = |operation: &SimOperation| {
            let complain = |fault: String| format!("{scenario}: operation {}: {fault}", operation.number);
            check_preserved(&bench, operation.number).map_err(complain).err()
        };
        history.log().iter().filter_map(check).collect()
    });
    none_of(complaints);
}

/// Lets an operation fail and looks at the new file.
fn check_preserved(bench: &Bench, number: usize) -> Result<(), String> {
    let (disk, home) = (bench.disk(), Home::new());
    disk.fail(number, SimFault::Eio);
    let outcome = bench.run(&disk, &home, &CancelToken::new());
    let log = disk.log();
    let phase = log.get(..number).map(|log| (phase(log, bench.finished.len()), log[number - 1].action));
    let phase = match (outcome, phase) {
        (Outcome::Done(_), None | Some((_, SimAction::Sync))) => return Ok(()),
        (Outcome::Failed(_), Some((_, SimAction::Settle))) if disk.preserved().is_none() => return Ok(()),
        (Outcome::Failed(error), Some((phase, _))) if error.target_state() == TargetState::Untouched => {
            check_error(&error, log[number - 1])?;
            phase
        }
        (Outcome::Failed(error), _) => return Err(chain(&error)),
        (other, phase) => return Err(format!("{phase:?}: {:?}", other.done().map(|report| report.mode))),
    };
    check_told(bench, TargetState::Untouched, &disk.contents())?;
    let Some(kept) = disk.preserved() else { return Err("nothing stays".to_owned()) };
    if !probe::marker(&kept) || !probe::tables(&kept).is_empty() {
        return Err(format!("it says {:?} and not that it is unfinished", probe::tables(&kept)));
    }
    if matches!(phase, Phase::ReadingBack | Phase::Ending | Phase::Exchanging) {
        let middle = middle(bench.finished.len());
        let range = ByteRange::between(middle.start as u64, middle.end as u64);
        if part(&kept, range) != part(&bench.finished, range) {
            return Err("what was copied is not in it".to_owned());
        }
    }
    // The next run begins a file of its own and completes it.
    check_resume(bench, &disk, &home).map(drop)
}
