//! A power cut before and after every operation, with the unsynced writes in many orders.

use std::sync::atomic::{AtomicUsize, Ordering};

use reimage::{Mode, RunMode, SimAction, SimHistory, SimWhen};

use super::lab::{Bench, Home, Recording, in_parallel, none_of};
use super::phases::middle;
use super::scenarios::{Kind, Packing, Scenario, all_scenarios, tries_all};
use super::states::{State, check_goes_on, classify};

/// How many (point, order) pairs a plain `cargo test` tries at least.
const SAMPLE: usize = 2000;
/// Orders of the unsynced writes at each point, when every point is tried.
const ORDERS: u64 = 8;

#[derive(Default)]
struct Tried {
    points: AtomicUsize,
    pairs: AtomicUsize,
    possible: AtomicUsize,
    resumed: AtomicUsize,
}

/// A crash point of a scenario: how many operations are done, which snapshot goes with it, and the order.
fn points(bench: &Bench, tried: &Tried, per_scenario: Option<usize>) -> Vec<String> {
    let Recording { history, snapshots, outcome } = bench.record();
    if let Err(fault) = outcome.done() {
        return vec![format!("{}: undisturbed, {fault}", bench.scenario)];
    }
    let (mut complaints, late) = (Vec::new(), late_half(bench, &history));
    let mut all = Vec::new();
    for (number, when, snapshot) in &snapshots {
        let done = if *when == SimWhen::Before { number - 1 } else { *number };
        // Where all is durable, every order gives the same disk.
        let orders = if history.after(done).unsynced() == 0 { 1 } else { ORDERS };
        tried.points.fetch_add(1, Ordering::Relaxed);
        all.extend((0..orders).map(|rng_seed| (*number, *when, done, snapshot, rng_seed)));
    }
    tried.possible.fetch_add(all.len(), Ordering::Relaxed);
    let step = per_scenario.map_or(1, |count| (all.len() / count).max(1));
    let first = bench.scenario.to_string().bytes().map(usize::from).sum::<usize>() % step;
    let mut moment = (0, history.after(0));
    for (number, when, done, snapshot, rng_seed) in all.into_iter().skip(first).step_by(step) {
        tried.pairs.fetch_add(1, Ordering::Relaxed);
        if moment.0 != done {
            moment = (done, history.after(done));
        }
        let disk = moment.1.crash(rng_seed);
        let state =
            classify(bench, &disk.contents(), snapshot).map_err(|fault| format!("the disk is {fault}"));
        let result = state.and_then(|state| {
            let mode = check_goes_on(bench, &disk, &Home::of(snapshot))?;
            let is_late = state == State::Unfinished && done >= late;
            if is_late && mode != RunMode::Resumed { Err(format!("begins anew: {mode:?}")) } else { Ok(mode) }
        });
        if matches!(result, Ok(RunMode::Resumed)) {
            tried.resumed.fetch_add(1, Ordering::Relaxed);
        }
        if let Err(fault) = result {
            let action = history.log()[number - 1];
            let place = format!("{when:?} operation {number} ({:?} {:?})", action.action, action.range);
            complaints.push(format!("{}: {place}, rng_seed {rng_seed}: {fault}", bench.scenario));
        }
    }
    complaints
}

/// From which operation on a crash leaves something to go on with: when half of what lies between the ends is written
/// and synced, and as many operations have come since as the run may have asked for before it took note of the sync.
fn late_half(bench: &Bench, history: &SimHistory) -> usize {
    let Scenario { kind, mode, threads, .. } = bench.scenario;
    if kind == Kind::FileReplaced || mode != Mode::Full {
        return usize::MAX;
    }
    let (log, middle) = (history.log(), middle(bench.finished.len()));
    let is_chunk = |at: &usize| {
        let start = log[*at].range.map_or(0, |range| range.start());
        log[*at].action == SimAction::Write && (middle.start as u64..middle.end as u64).contains(&start)
    };
    let chunks: Vec<_> = (0..log.len()).filter(is_chunk).collect();
    let half = chunks[chunks.len().div_ceil(2) - 1];
    let syncs = (half..log.len()).filter(|at| log[*at].action == SimAction::Sync);
    syncs.map(|at| at + 1 + 4 * threads).next().unwrap_or(usize::MAX)
}

#[test]
fn a_crash_anywhere_leaves_the_old_disk_an_unfinished_one_or_the_finished_one_and_the_next_run_completes_it()
{
    let all = tries_all();
    // A sample has every disk with one packing of the usual image.
    let is_usual = |packing| matches!(packing, Packing::Raw | Packing::Compressed);
    let scenarios = all_scenarios().into_iter().enumerate();
    let scenarios =
        scenarios.filter(|(at, it)| all || at % 2 == 0 || !is_usual(it.packing) || it.threads > 1);
    let scenarios: Vec<Scenario> = scenarios.map(|(_, scenario)| scenario).collect();
    let per_scenario = (!all).then(|| SAMPLE.div_ceil(scenarios.len()));
    let (tried, started) = (Tried::default(), std::time::Instant::now());
    let complaints = in_parallel(&scenarios, |scenario| points(&Bench::new(*scenario), &tried, per_scenario));
    let (points, pairs) = (tried.points.into_inner(), tried.pairs.into_inner());
    let (possible, resumed) = (tried.possible.into_inner(), tried.resumed.into_inner());
    eprintln!(
        "{pairs} of {possible} crashes at {points} points of {} rebuilds in {:?}; {resumed} went on where they stopped",
        scenarios.len(),
        started.elapsed()
    );
    none_of(complaints);
    assert!(resumed * 10 > pairs, "only {resumed} of {pairs} runs went on");
    assert!(pairs >= if all { 20_000 } else { SAMPLE }, "only {pairs} crashes were tried");
}
