//! A power cut during a rebuild that keeps the old disk, and during the undo: the old disk comes back in every byte.

use std::sync::atomic::{AtomicUsize, Ordering};

use reimage::{Mode, SimDisk, SimWhen};

use super::disks::Old;
use super::lab::{Bench, Home, Recording, Snapshot, differing, in_parallel, none_of};
use super::scenarios::{Kind, Packing, Scenario, tries_all};
use super::states::{State, check_goes_on, classify};

/// How many crashes of each rebuild and of each undo a plain `cargo test` tries.
const SAMPLE: usize = 10;

fn scenarios() -> Vec<Scenario> {
    let kinds = [Kind::Device, Kind::LargerDevice, Kind::Device4k, Kind::FileInPlace];
    let hows = [
        (Mode::Full, Old::Nearly),
        (Mode::Delta, Old::Nearly),
        (Mode::Full, Old::Zfs),
        (Mode::Full, Old::Mbr),
    ];
    let all = kinds.into_iter().flat_map(|kind| hows.map(|how| Scenario::new(kind, Packing::Raw, how)));
    let step = if tries_all() { 1 } else { 3 };
    all.step_by(step).collect()
}

/// Evenly chosen moments: operations done, the state folder, and a seed for what a power cut leaves.
fn chosen(
    snapshots: &[(usize, SimWhen, Snapshot)],
    first: usize,
) -> impl Iterator<Item = (usize, &Snapshot, u64)> {
    let step = if tries_all() { 1 } else { (snapshots.len() / SAMPLE).max(1) };
    snapshots.iter().enumerate().skip(first % step).step_by(step).map(|(at, (number, when, snapshot))| {
        (if *when == SimWhen::Before { number - 1 } else { *number }, snapshot, at as u64 % 8)
    })
}

/// The undo brings the old disk back, durably, and forgets what was kept; where nothing was kept, it is there.
fn check_undone(bench: &Bench, disk: &SimDisk, home: &Home) -> Result<(), String> {
    let undone = bench.undo(disk, home)?;
    let is_back = [disk.contents(), disk.durable()].iter().all(|disk| differing(disk, &bench.old).is_none());
    if !is_back {
        let at = differing(&disk.contents(), &bench.old);
        let said = undone.map_or("nothing is kept", |_| "it says that the old disk is back");
        return Err(format!("{said}, and byte {at:?} is wrong"));
    }
    let home = home.snapshot();
    let kept: Vec<_> = home.keys().filter(|path| path.starts_with("state/kept")).collect();
    // A run that died before its record was whole is cleaned up after by `prune`.
    if undone.is_none() || kept.is_empty() { Ok(()) } else { Err(format!("{kept:?} stay")) }
}

fn crashes(scenario: Scenario, tried: &AtomicUsize) -> Vec<String> {
    let bench = Bench::new(scenario).keeping();
    let Recording { history, snapshots, outcome } = bench.record();
    if let Err(fault) = outcome.done() {
        return vec![format!("{scenario}: undisturbed, {fault}")];
    }
    let first = scenario.to_string().bytes().map(usize::from).sum::<usize>();
    let mut complaints = Vec::new();
    for (done, snapshot, rng_seed) in chosen(&snapshots, first) {
        tried.fetch_add(1, Ordering::Relaxed);
        let left = || history.after(done).crash(rng_seed);
        let check = || {
            let state = classify(&bench, &left().contents(), snapshot)
                .map_err(|fault| format!("the disk is {fault}"))?;
            let undone = check_undone(&bench, &left(), &Home::of(snapshot));
            undone.map_err(|fault| format!("{state:?}, undone: {fault}"))?;
            if state == State::Finished {
                return Ok(());
            }
            // The same rebuild again first: what was kept of the old disk is still that.
            let (disk, home) = (left(), Home::of(snapshot));
            check_goes_on(&bench, &disk, &home)?;
            check_undone(&bench, &disk, &home)
                .map_err(|fault| format!("{state:?}, completed, undone: {fault}"))
        };
        if let Err(fault) = check() {
            complaints
                .push(format!("{scenario}: rebuild, {done} operations done, rng_seed {rng_seed}: {fault}"));
        }
    }
    complaints.extend(crashes_of_undo(&bench, first, tried));
    complaints
}

fn crashes_of_undo(bench: &Bench, first: usize, tried: &AtomicUsize) -> Vec<String> {
    let (disk, home) = (bench.disk(), Home::new());
    bench.run(&disk, &home, &reimage::CancelToken::new()).done().expect("an undisturbed rebuild");
    let finished = home.snapshot();
    let disk = bench.scenario.disk(disk.durable(), bench.finished.len());
    let (history, snapshots) = bench.record_undo(&disk, &Home::of(&finished));
    let mut complaints = Vec::new();
    for (done, snapshot, rng_seed) in chosen(&snapshots, first) {
        tried.fetch_add(1, Ordering::Relaxed);
        let left = || history.after(done).crash(rng_seed);
        let check = || {
            check_undone(bench, &left(), &Home::of(snapshot))
                .map_err(|fault| format!("undone again: {fault}"))?;
            // A rebuild instead, and then the undo: where the first had not begun, it keeps what is on the disk.
            let (disk, home) = (left(), Home::of(snapshot));
            let is_untouched = differing(&disk.contents(), &bench.finished).is_none();
            bench.run(&disk, &home, &reimage::CancelToken::new()).done()?;
            if let Some(at) = differing(&disk.durable(), &bench.finished) {
                return Err(format!("rebuilt, and byte {at} is wrong"));
            }
            match is_untouched {
                true => Ok(()),
                false => {
                    check_undone(bench, &disk, &home).map_err(|fault| format!("rebuilt, undone: {fault}"))
                }
            }
        };
        if let Err(fault) = check() {
            let scenario = bench.scenario;
            complaints
                .push(format!("{scenario}: undo, {done} operations done, rng_seed {rng_seed}: {fault}"));
        }
    }
    complaints
}

#[test]
fn a_crash_of_a_rebuild_or_of_an_undo_loses_nothing_of_what_is_kept() {
    let (scenarios, tried, started) = (scenarios(), AtomicUsize::new(0), std::time::Instant::now());
    let complaints = in_parallel(&scenarios, |scenario| crashes(*scenario, &tried));
    let tried = tried.into_inner();
    eprintln!("{tried} crashes of {} rebuilds and undos in {:?}", scenarios.len(), started.elapsed());
    none_of(complaints);
    assert!(tried >= 100, "only {tried} crashes were tried");
}
