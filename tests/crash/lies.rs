//! A disk that says that all is well when it is not: once, or at one place again and again.

use std::collections::BTreeSet;
use std::sync::Mutex;

use reimage::{
    ByteRange, CancelToken, ErrorKind, Pattern, RepairReport, SimAction, SimHistory, SimLie, SimOperation,
};

use super::lab::{Home, Outcome, Snapshot, chain, differing, journals};
use super::operations::{Known, each, part};
use super::phases::{Phase, phase};
use super::probe;
use super::scenarios::{Kind, tries_all};
use super::states::{State, check_resume, classify};

#[test]
fn a_lie_that_is_told_once_is_mended_and_the_report_says_what_it_was() {
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
        let report = known.bench.run(&disk, &home, &CancelToken::new()).done()?;
        known.bench.check_done(&disk, &home.snapshot())?;
        let history = disk.history();
        // Of another operation than in the undisturbed run this may be no lie.
        let told = history.log().get(operation.number - 1).copied();
        let Some(operation) = told.filter(|now| now.action == operation.action) else { return Ok(()) };
        for repair in &report.repairs {
            check_repair(&history, (operation, lie), repair)?;
        }
        let Some(wrong) = first_wrong(known, &history, operation) else { return Ok(()) };
        // What lies wrong in one place may be found in a piece that begins before it.
        let names = |repair: &&RepairReport| repair.range.contains(wrong) && repair.first_differing.is_some();
        match report.repairs.iter().find(names) {
            Some(_) => Ok(()),
            None => Err(format!("byte {wrong} was mended, and of that the report says {:?}", report.repairs)),
        }
    });
}

/// The first byte of the image that the lie has left wrong; what the image comes over anyway does not count.
///
/// None of these images has another label behind its first block than the backup GPT.
fn first_wrong(known: &Known, history: &SimHistory, operation: SimOperation) -> Option<u64> {
    let size = known.bench.finished.len();
    if !matches!(phase(&history.log()[..operation.number], size), Phase::Copying | Phase::Ending) {
        return None;
    }
    let place = operation.range.filter(|_| operation.action != SimAction::Read)?;
    let written = history.after(operation.number).written();
    // The backup GPT's header is written alone, behind the rest of its end.
    let sector = known.bench.scenario.sector() as u64;
    let place = match place.len() > sector && place.end() == size as u64 {
        true => ByteRange::between(place.start(), place.end() - sector),
        false => place,
    };
    let at = differing(part(&written, place), part(&known.bench.finished, place))?;
    Some(place.start() + at as u64)
}

/// Whether a repair tells what was really wrong: the piece as it was read, and as it was written again.
fn check_repair(
    history: &SimHistory,
    (operation, lie): (SimOperation, SimLie),
    repair: &RepairReport,
) -> Result<(), String> {
    let (log, number) = (history.log(), operation.number);
    if lie == SimLie::Stale {
        // The second look has found it right, or the end was written again because of the first.
        return Ok(());
    }
    let is_read = |other: &SimOperation| other.action == SimAction::Read && other.range == Some(repair.range);
    let is_again = |other: &SimOperation| {
        let starts = other.range.is_some_and(|range| range.start() == repair.range.start());
        starts && matches!(other.action, SimAction::Write | SimAction::Zero)
    };
    for read in log[number..].iter().filter(|other| is_read(other)) {
        let Some(again) = log[read.number..].iter().find(|other| is_again(other)) else { continue };
        let (found, right) = (history.after(read.number).written(), history.after(again.number).written());
        let (found, right) = (part(&found, repair.range), part(&right, repair.range));
        let Some(at) = differing(found, right) else { continue };
        let first = repair.range.start() + at as u64;
        if repair.first_differing != Some(first) {
            return Err(format!("the first wrong byte is {first}, and it is told of {repair:?}"));
        }
        let old = history.after(number - 1).written();
        let old = part(&old, repair.range);
        let pattern = repair.pattern.ok_or("no pattern is told")?;
        let is_true = is_so(pattern, (found, right), old);
        let is_told =
            repair.range != operation.range.unwrap_or(repair.range) || fits(pattern, lie, (found, right));
        return match is_true && is_told {
            true => Ok(()),
            false => Err(format!("{pattern:?} is told of {:?} (true: {is_true})", repair.range)),
        };
    }
    Err(format!("nothing was wrong with {repair:?}"))
}

/// Whether a pattern is what the wrong bytes look like.
fn is_so(pattern: Pattern, (found, right): (&[u8], &[u8]), old: &[u8]) -> bool {
    let wrong = || (0..right.len()).filter(|at| found[*at] != right[*at]);
    match pattern {
        Pattern::OldContents => found == old,
        Pattern::SingleBit { bit } => {
            wrong().count() == 1 && wrong().all(|at| found[at] ^ right[at] == 1 << bit)
        }
        Pattern::Zeroes => wrong().all(|at| found[at] == 0),
        Pattern::Shifted { by } => {
            let from = |at: usize| usize::try_from(i64::try_from(at).unwrap() - by).ok();
            let moved = wrong().filter(|at| from(*at).and_then(|from| right.get(from)) == Some(&found[*at]));
            moved.count() * 2 >= wrong().count()
        }
        Pattern::WholeSectors => right.chunks(512).zip(found.chunks(512)).all(|(right, found)| {
            let wrong = right.iter().zip(found).filter(|(right, found)| right != found).count();
            wrong == 0 || wrong * 2 > right.len()
        }),
        _ => true,
    }
}

/// Whether a pattern is one that the lie leads to.
fn fits(pattern: Pattern, lie: SimLie, (found, right): (&[u8], &[u8])) -> bool {
    let was_empty = found.iter().all(|byte| *byte == 0);
    match lie {
        SimLie::Flipped => matches!(pattern, Pattern::SingleBit { .. }),
        SimLie::Zeroed => pattern == Pattern::Zeroes,
        SimLie::Dropped if was_empty => matches!(pattern, Pattern::Zeroes | Pattern::OldContents),
        SimLie::Dropped => {
            // Of what lay there before, some bytes may be right by chance, or be the right ones elsewhere.
            matches!(pattern, Pattern::OldContents | Pattern::WholeSectors | Pattern::Other | Pattern::Zeroes)
        }
        // A piece of which most is the same again and again is at many places.
        SimLie::Shifted if right.len() < 4096 || was_empty => true,
        SimLie::Shifted => matches!(
            pattern,
            Pattern::Shifted { by: 512 | 4096 }
                | Pattern::OldContents
                | Pattern::Other
                | Pattern::WholeSectors
                | Pattern::Zeroes
        ),
        _ => true,
    }
}

#[test]
fn a_place_that_never_keeps_what_is_written_ends_the_run_with_its_offset_and_an_unfinished_disk() {
    const LIES: [SimLie; 4] = [SimLie::Dropped, SimLie::Flipped, SimLie::Zeroed, SimLie::Shifted];
    // Every place once for each scenario and lie.
    let seen = Mutex::new(BTreeSet::new());
    each("bad places", &LIES, |known, operation, lie| {
        let Some(place) = operation.range.filter(|_| operation.action != SimAction::Read) else {
            return Ok(());
        };
        let key = (known.bench.scenario.to_string(), place.start(), place.end(), format!("{lie:?}"));
        if !seen.lock().unwrap().insert(key) {
            return Ok(());
        }
        let (disk, home) = (known.bench.disk(), Home::new());
        disk.set_rng_seed(operation.number as u64);
        disk.lie_always(place, lie);
        match known.bench.run(&disk, &home, &CancelToken::new()) {
            Outcome::Failed(error) if error.kind() == ErrorKind::Mismatch => {
                if error.kind().exit_code() != 31 {
                    return Err(format!("exit code {}", error.kind().exit_code()));
                }
                if error.range().and_then(|told| told.intersection(place)).is_none() {
                    return Err(format!("told {:?}: {}", error.range(), chain(&error)));
                }
                check_bad_place(known, (place, lie), (&disk.contents(), &home.snapshot()))?;
                // A sample is completed when the disk is whole again.
                let healed = disk.crash(1);
                let takes_part = tries_all() || operation.number.is_multiple_of(5);
                if takes_part { check_resume(&known.bench, &healed, &home).map(drop) } else { Ok(()) }
            }
            done => {
                done.done().and_then(|_| known.bench.check_done(&disk, &home.snapshot()))?;
                if is_bad(known, (place, lie)) { Err("says done".to_owned()) } else { Ok(()) }
            }
        }
    });
}

/// What error 31 leaves: an unfinished disk, or one that cannot be told anything.
fn check_bad_place(
    known: &Known,
    (place, lie): (ByteRange, SimLie),
    (disk, home): (&[u8], &Snapshot),
) -> Result<(), String> {
    let (bench, sector) = (&known.bench, known.bench.scenario.sector());
    // The marker of such a disk always lands behind the first sector, of which nobody can take the table: only the
    // journal says so, and nothing else is written.
    if lie == SimLie::Shifted && place.start() == 0 && disk[..sector] == bench.old[..sector] {
        let is_noted = journals(home).any(|(_, journal)| probe::is_unfinished(journal));
        let rest = 2 * sector..bench.old.len();
        let is_old =
            bench.scenario.kind == Kind::FileReplaced || is_noted && disk[rest.clone()] == bench.old[rest];
        return if is_old { Ok(()) } else { Err("31, and more than two sectors have changed".to_owned()) };
    }
    let may_be_old = place.start() == 0 || bench.scenario.kind == Kind::FileReplaced;
    match classify(bench, disk, home)? {
        State::Unfinished => Ok(()),
        State::Old if may_be_old => Ok(()),
        state => Err(format!("31, and the disk is {state:?}")),
    }
}

/// Whether a place cannot come to hold what it should.
fn is_bad(known: &Known, (place, lie): (ByteRange, SimLie)) -> bool {
    let first = known.history.after(0).written();
    let (old, right) = (part(&first, place), part(&known.bench.finished, place));
    let sector = known.bench.scenario.sector();
    match lie {
        SimLie::Flipped => true,
        SimLie::Dropped => old != right,
        // Its first sector stays as it was.
        SimLie::Shifted => old[..sector.min(old.len())] != right[..sector.min(right.len())],
        _ => right.iter().any(|byte| *byte != 0),
    }
}
