//! The operations of undisturbed rebuilds, each to be disturbed in every way.

use std::sync::atomic::{AtomicUsize, Ordering};

use reimage::{ByteRange, SimHistory, SimOperation};

use super::lab::{Bench, in_parallel, none_of};
use super::scenarios::few_scenarios;

/// A bench and the history of an undisturbed run on it.
pub(crate) struct Known {
    pub(crate) bench: Bench,
    pub(crate) history: SimHistory,
}

fn known() -> Vec<Known> {
    let (scenarios, made) = (few_scenarios(), std::sync::Mutex::new(Vec::new()));
    in_parallel(&scenarios, |scenario| {
        let bench = Bench::new(*scenario);
        let history = bench.record().history;
        made.lock().unwrap().push(Known { bench, history });
        Vec::new()
    });
    made.into_inner().unwrap()
}

/// Calls `check` for every operation of every scenario, and with each of `ways`.
///
/// In the next run the operation of that number may be another, for syncs come when there is time for them.
pub(crate) fn each<W: Copy + Sync + std::fmt::Debug>(
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
            let SimOperation { number, action, range, .. } = operation;
            let place = format!("operation {number} ({action:?} {range:?})");
            check(known, *operation, *way)
                .err()
                .map(|fault| format!("{}: {place}, {way:?}: {fault}", known.bench.scenario))
        };
        ways.iter().filter_map(with).collect()
    });
    eprintln!("{} {what} in {:?}", tried.into_inner(), started.elapsed());
    none_of(complaints);
}

/// The bytes of a range.
pub(crate) fn part(disk: &[u8], range: ByteRange) -> &[u8] {
    let index = |place: u64| usize::try_from(place).unwrap().min(disk.len());
    &disk[index(range.start())..index(range.end())]
}
