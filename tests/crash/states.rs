//! The three states in which a crash may leave a disk, and what a run makes of it afterwards.

use reimage::{CancelToken, RunMode, SimDisk};

use super::disks::MIB;
use super::lab::{Bench, Home, Snapshot, is_seeded, journals};
use super::probe::{self, FIRST_BLOCK, FIRST_SECTOR};

/// What a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Old,
    Unfinished,
    Finished,
}

/// Decides which of the three a disk is, or says why it is none.
pub(crate) fn classify(bench: &Bench, disk: &[u8], home: &Snapshot) -> Result<State, String> {
    let is_finished = disk == *bench.finished;
    if is_finished && is_seeded(home) {
        return Ok(State::Finished);
    }
    if disk == *bench.old {
        return Ok(State::Old);
    }
    if is_finished {
        return Err("complete without its seed".to_owned());
    }
    let says_so = probe::marker(disk) || journals(home).any(|(_, journal)| probe::is_unfinished(journal));
    if !says_so {
        return Err(format!("half-written, and nothing says so; {}", difference(bench, disk)));
    }
    let tables = probe::tables(disk);
    if !tables.is_empty() {
        return Err(format!("half-written with {tables:?}; {}", difference(bench, disk)));
    }
    // A disk writes sector by sector: while the first block is on its way, and nothing else is, what lies in its other
    // sectors or behind it is still (or already) that of a whole disk.
    let tolerated_from = if is_marking(bench, disk) || is_ending(bench, disk) {
        FIRST_SECTOR
    } else if is_beginning(bench, disk) {
        FIRST_BLOCK
    } else {
        usize::MAX
    };
    match probe::labels(disk).iter().find(|(_, at)| *at < tolerated_from) {
        Some(label) => Err(format!("half-written with {label:?}; {}", difference(bench, disk))),
        None => Ok(State::Unfinished),
    }
}

/// The first instant: nothing but the first block differs from the old disk.
fn is_marking(bench: &Bench, disk: &[u8]) -> bool {
    disk.len() == bench.old.len() && disk[FIRST_BLOCK..] == bench.old[FIRST_BLOCK..]
}

/// The instant of invalidating: nothing but the first block and the ends differ from the old disk.
fn is_beginning(bench: &Bench, disk: &[u8]) -> bool {
    let middle = MIB..(bench.old.len() - MIB) / MIB * MIB;
    disk.len() >= bench.old.len() && disk[middle.clone()] == bench.old[middle]
}

/// The instant of finishing: everything but the first block and sectors that hold a label is there.
fn is_ending(bench: &Bench, disk: &[u8]) -> bool {
    let finished = &bench.finished;
    let label_sectors: Vec<_> = probe::labels(finished).iter().map(|(_, at)| at / FIRST_SECTOR).collect();
    let sectors = || disk.chunks(FIRST_SECTOR).zip(finished.chunks(FIRST_SECTOR)).enumerate();
    let differing =
        || sectors().skip(FIRST_BLOCK / FIRST_SECTOR).filter(|(_, (found, right))| found != right);
    disk.len() == finished.len() && differing().all(|(sector, _)| label_sectors.contains(&sector))
}

/// Which of the first eight sectors and of the chunks are old (o), finished (f), both (=), zero (0), something else (?).
pub(crate) fn difference(bench: &Bench, disk: &[u8]) -> String {
    let letter = |start: usize, len: usize| {
        let part = |bytes: &'_ [u8]| bytes.get(start..(start + len).min(bytes.len())).unwrap_or(&[]).to_vec();
        let (found, old, new) = (part(disk), part(&bench.old), part(&bench.finished));
        match (found == old, found == new) {
            (true, true) => '=',
            (true, false) => 'o',
            (false, true) => 'f',
            _ if found.iter().all(|byte| *byte == 0) => '0',
            _ => '?',
        }
    };
    let sectors: String = (0..8).map(|at| letter(at * 512, 512)).collect();
    let rest = letter(FIRST_BLOCK, MIB - FIRST_BLOCK);
    let chunks: String = (MIB..disk.len()).step_by(MIB).map(|at| letter(at, MIB)).collect();
    format!("sectors {sectors}, head {rest}, chunks {chunks}")
}

/// The same rebuild once more on what was left, with the state folder of that moment: it must complete the disk.
/// Says how it went about it.
pub(crate) fn check_resume(bench: &Bench, disk: &SimDisk, home: &Home) -> Result<RunMode, String> {
    let run = bench.run(disk, home, &CancelToken::new());
    let report = run.done().map_err(|fault| format!("run again, {fault}"))?;
    bench.check_done(disk, &home.snapshot()).map_err(|fault| format!("run again, it {fault}"))?;
    Ok(report.mode)
}

/// Whatever of the unsynced writes a power cut leaves now, the disk is one of the three.
pub(crate) fn check_crashes(bench: &Bench, disk: &SimDisk, home: &Snapshot) -> Result<(), String> {
    for rng_seed in 0..6 {
        classify(bench, &disk.crash(rng_seed).contents(), home)
            .map_err(|fault| format!("a power cut now (rng_seed {rng_seed}) leaves it {fault}"))?;
    }
    Ok(())
}
