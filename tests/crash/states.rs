//! The three states in which a crash may leave a disk, and what a run makes of it afterwards.

use reimage::{CancelToken, Report, RunMode, SimDisk};

use super::disks::MIB;
use super::lab::{Bench, Home, Snapshot, journals};
use super::phases::middle;
use super::probe::{self, FIRST_BLOCK, SECTOR};

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
    if is_finished && bench.is_seeded(home) {
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
        bench.scenario.sector()
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

/// The instant of invalidating: nothing but the first block and the ends differ from the old disk, and of the ends
/// every sector is as it was, or zero.
pub(crate) fn is_beginning(bench: &Bench, disk: &[u8]) -> bool {
    let (old, middle) = (&bench.old, middle(bench.finished.len()));
    let is_old = |start: usize, found: &[u8]| {
        let there = old.get(start..).unwrap_or(&[]);
        let (there, behind) = found.split_at(found.len().min(there.len()));
        old[start.min(old.len())..].starts_with(there) && is_zero(behind)
    };
    let mut sectors = disk.chunks(SECTOR).enumerate().skip(FIRST_BLOCK / SECTOR);
    disk.len() >= old.len()
        && sectors.all(|(at, found)| {
            is_old(at * SECTOR, found) || (!middle.contains(&(at * SECTOR)) && is_zero(found))
        })
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// Whether each sector of the first block is as it was, or as the marker has it.
pub(crate) fn is_first_block_marked(bench: &Bench, disk: &[u8]) -> bool {
    let old = disk[..SECTOR] == bench.old[..SECTOR];
    probe::marker(disk) || old || disk.starts_with(probe::MARK)
}

/// The instant of finishing: everything but the first block and sectors that hold a label is there.
fn is_ending(bench: &Bench, disk: &[u8]) -> bool {
    let (finished, sector) = (&bench.finished, bench.scenario.sector());
    let label_sectors: Vec<_> = probe::labels(finished).iter().map(|(_, at)| at / sector).collect();
    let sectors = || disk.chunks(sector).zip(finished.chunks(sector)).enumerate();
    let differing = || sectors().skip(FIRST_BLOCK / sector).filter(|(_, (found, right))| found != right);
    disk.len() == finished.len() && differing().all(|(sector, _)| label_sectors.contains(&sector))
}

/// Which of the first eight sectors and of the chunks are old (o), finished (f), both (=), zero (0), or neither (?).
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
pub(crate) fn check_resume(bench: &Bench, disk: &SimDisk, home: &Home) -> Result<Box<Report>, String> {
    let run = bench.run(disk, home, &CancelToken::new());
    let report = run.done().map_err(|fault| format!("run again, {fault}"))?;
    bench.check_done(disk, &home.snapshot()).map_err(|fault| format!("run again, it {fault}"))?;
    Ok(Box::new(report))
}

/// The same behind a power cut of an honest disk: what was noted is there, and is not written again.
pub(crate) fn check_goes_on(bench: &Bench, disk: &SimDisk, home: &Home) -> Result<RunMode, String> {
    let report = check_resume(bench, disk, home)?;
    let (kept, written, fresh) = (report.bytes_kept, report.bytes_written, bench.fresh_bytes());
    if report.mode == RunMode::Resumed && (kept == 0 || written >= fresh) {
        return Err(format!("it goes on, keeps {kept} bytes and writes {written} of {fresh}"));
    }
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
