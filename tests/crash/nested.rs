//! A power cut during a run that goes on after a power cut.

use std::sync::atomic::{AtomicUsize, Ordering};

use reimage::SimWhen;

use super::lab::{Bench, Home, Recording, Snapshot, in_parallel, journals, none_of};
use super::probe;
use super::scenarios::{Scenario, all_scenarios, tries_all};
use super::states::{State, check_goes_on, classify};

/// How many scenarios a plain `cargo test` takes, and how many crashes of the first run and of the second.
const SAMPLE: (usize, usize, usize) = (24, 3, 4);
/// The same when everything is tried.
const ALL: (usize, usize, usize) = (usize::MAX, 12, 24);

/// Calls `check` with evenly chosen moments of a recording: operations done, the state folder, and a seed.
fn moments(
    recording: &Recording,
    (count, first): (usize, usize),
    mut check: impl FnMut(usize, &Snapshot, u64) -> Result<(), String>,
) -> Vec<String> {
    let moments = &recording.snapshots;
    let step = (moments.len() / count).max(1);
    let mut complaints = Vec::new();
    for (at, (number, when, snapshot)) in moments.iter().enumerate().skip(first % step).step_by(step) {
        let (done, rng_seed) =
            (if *when == SimWhen::Before { number - 1 } else { *number }, (at + first) as u64 % 8);
        if let Err(fault) = check(done, snapshot, rng_seed) {
            let action = recording.history.log()[number - 1];
            complaints.push(format!(
                "{when:?} operation {number} ({:?} {:?}), rng_seed {rng_seed}, {fault}",
                action.action, action.range
            ));
        }
    }
    complaints
}

/// What the second crash has left is one of the three too, or what the first has left, on its way to be zeroed again.
fn classify_again(bench: &Bench, second: &Bench, disk: &[u8], home: &Snapshot) -> Result<State, String> {
    let Err(fault) = classify(bench, disk, home) else { return classify(bench, disk, home) };
    let state = classify(second, disk, home).map_err(|also| format!("{fault}; since the first, {also}"))?;
    let says_so = probe::marker(disk) || journals(home).any(|(_, journal)| probe::is_unfinished(journal));
    if state == State::Old && !says_so { Err(fault) } else { Ok(state) }
}

fn crash_twice(bench: &Bench, (firsts, seconds): (usize, usize), tried: &AtomicUsize) -> Vec<String> {
    let first_run = bench.record();
    let offset = bench.scenario.to_string().bytes().map(usize::from).sum::<usize>();
    let mut complaints = Vec::new();
    complaints.extend(moments(&first_run, (firsts, offset), |done, snapshot, rng_seed| {
        let disk = first_run.history.after(done).crash(rng_seed);
        if classify(bench, &disk.contents(), snapshot)? != State::Unfinished {
            return Ok(());
        }
        let second = bench.of_disk(disk.contents());
        let run = second.record_on(&disk, &Home::of(snapshot));
        let found = moments(&run, (seconds, offset + done), |done, snapshot, rng_seed| {
            tried.fetch_add(1, Ordering::Relaxed);
            let disk = run.history.after(done).crash(rng_seed);
            classify_again(bench, &second, &disk.contents(), snapshot)
                .map_err(|fault| format!("the disk is {fault}"))?;
            check_goes_on(bench, &disk, &Home::of(snapshot)).map(drop)
        });
        run.outcome.done().map_err(|fault| format!("then {fault}"))?;
        found.into_iter().next().map_or(Ok(()), |fault| Err(format!("then {fault}")))
    }));
    let scenario = bench.scenario;
    complaints.into_iter().map(|fault| format!("{scenario}: {fault}")).collect()
}

#[test]
fn a_crash_of_the_run_that_goes_on_after_a_crash_leaves_one_of_the_three_too() {
    let (scenarios, firsts, seconds) = if tries_all() { ALL } else { SAMPLE };
    let all = all_scenarios();
    let step = (all.len() / scenarios.min(all.len())).max(1);
    let chosen: Vec<Scenario> = all.into_iter().skip(step - 1).step_by(step).collect();
    let (tried, started) = (AtomicUsize::new(0), std::time::Instant::now());
    let complaints =
        in_parallel(&chosen, |scenario| crash_twice(&Bench::new(*scenario), (firsts, seconds), &tried));
    let tried = tried.into_inner();
    eprintln!(
        "{tried} crashes of runs that went on, of {} rebuilds, in {:?}",
        chosen.len(),
        started.elapsed()
    );
    none_of(complaints);
    assert!(tried >= if tries_all() { 1000 } else { 150 }, "only {tried} crashes were tried");
}
