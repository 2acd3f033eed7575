//! A power cut before and after every operation, with the unsynced writes in many orders.

use std::sync::atomic::{AtomicUsize, Ordering};

use reimage::{RunMode, SimWhen};

use super::lab::{Bench, Home, Scenario, all_scenarios, in_parallel, none_of, tries_all};
use super::states::{check_resume, classify};

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
    let recording = bench.record();
    if let Err(fault) = recording.outcome.done() {
        return vec![format!("{}: undisturbed, {fault}", bench.scenario)];
    }
    let mut complaints = Vec::new();
    let mut all = Vec::new();
    for (number, when, snapshot) in &recording.snapshots {
        let done = if *when == SimWhen::Before { number - 1 } else { *number };
        // Where all is durable, every order gives the same disk.
        let orders = if recording.history.after(done).unsynced() == 0 { 1 } else { ORDERS };
        tried.points.fetch_add(1, Ordering::Relaxed);
        all.extend((0..orders).map(|rng_seed| (*number, *when, done, snapshot, rng_seed)));
    }
    tried.possible.fetch_add(all.len(), Ordering::Relaxed);
    let step = per_scenario.map_or(1, |count| (all.len() / count).max(1));
    let first = bench.scenario.to_string().bytes().map(usize::from).sum::<usize>() % step;
    let mut moment = (0, recording.history.after(0));
    for (number, when, done, snapshot, rng_seed) in all.into_iter().skip(first).step_by(step) {
        tried.pairs.fetch_add(1, Ordering::Relaxed);
        if moment.0 != done {
            moment = (done, recording.history.after(done));
        }
        let disk = moment.1.crash(rng_seed);
        let state =
            classify(bench, &disk.contents(), snapshot).map_err(|fault| format!("the disk is {fault}"));
        let result = state.and_then(|_| check_resume(bench, &disk, &Home::of(snapshot)));
        if matches!(result, Ok(RunMode::Resumed)) {
            tried.resumed.fetch_add(1, Ordering::Relaxed);
        }
        if let Err(fault) = result {
            let action = recording.history.log()[number - 1];
            let place = format!("{when:?} operation {number} ({:?} {:?})", action.action, action.range);
            complaints.push(format!("{}: {place}, rng_seed {rng_seed}: {fault}", bench.scenario));
        }
    }
    complaints
}

#[test]
fn a_crash_anywhere_leaves_the_old_disk_an_unfinished_one_or_the_finished_one_and_the_next_run_completes_it()
{
    let scenarios: Vec<Scenario> = all_scenarios();
    let all = tries_all();
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
