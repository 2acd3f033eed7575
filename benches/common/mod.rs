//! What the benches share: which images, and how a figure is taken.

use std::path::{Path, PathBuf};
use std::time::Instant;

/// Runs of each measurement; the median is told.
const RUNS: usize = 5;

/// The images that were named, or the demo's.
pub(crate) fn images() -> Vec<PathBuf> {
    // Cargo itself passes `--bench`.
    let named: Vec<_> =
        std::env::args_os().skip(1).filter(|word| word != "--bench").map(PathBuf::from).collect();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/demo/demo.qcow2");
    if named.is_empty() { vec![demo] } else { named }
}

/// Tells the median of some runs of `work`, which returns how many bytes it went through.
pub(crate) fn measure(path: &Path, mut work: impl FnMut() -> u64) {
    let mut seconds = Vec::new();
    let mut bytes = 0;
    for _ in 0..RUNS {
        let started = Instant::now();
        bytes = work();
        seconds.push(started.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds[RUNS / 2];
    #[expect(clippy::cast_precision_loss, reason = "a figure for a person")]
    let rate = bytes as f64 / median / f64::from(1 << 20);
    println!("{}: {rate:.0} MiB/s (median of {RUNS}: {median:.3} s)", path.display());
}
