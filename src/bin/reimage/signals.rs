//! Signals: the first of SIGHUP, SIGINT and SIGTERM cancels, and is the exit code.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use reimage::{CancelToken, ErrorKind};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

use crate::exit::{self, Failure};
use crate::output::Output;

static FIRST: AtomicI32 = AtomicI32::new(0);
/// Whether a run is under way that ends in its own way when it is cancelled.
static RUNNING: Mutex<bool> = Mutex::new(false);

/// Listens from now on. Until `run_begins`, a signal ends the process: nothing has been written.
pub(crate) fn listen(cancel: &CancelToken, output: Output) {
    // A file that outgrows RLIMIT_FSIZE is an error to report, not a reason to die.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::<AtomicBool>::default());
    let ignored = ignored_by_the_caller();
    let wanted = [SIGHUP, SIGINT, SIGTERM].into_iter().filter(|signal| !is_in(ignored, *signal));
    let Ok(mut signals) = Signals::new(wanted) else { return };
    let cancel = cancel.clone();
    let listening = thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            let _ = FIRST.compare_exchange(0, signal, Ordering::Relaxed, Ordering::Relaxed);
            cancel.cancel();
            // Held until the process is gone, so that no run begins meanwhile.
            let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
            if !*running {
                end(output);
            }
        }
    });
    // Without the thread signals act as they do by default.
    drop(listening);
}

/// From now on a signal stops the run at its next chunk.
pub(crate) fn run_begins() {
    *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) = true;
}

fn end(output: Output) -> ! {
    let cancelled = Failure::of(ErrorKind::Cancelled, "cancelled before anything was written");
    exit::end(&cancelled, output)
}

/// The exit code of a cancelled run.
pub(crate) fn exit_code() -> u8 {
    match FIRST.load(Ordering::Relaxed) {
        0 => ErrorKind::Cancelled.exit_code(),
        signal => u8::try_from(128 + signal).unwrap_or(u8::MAX),
    }
}

/// The signals that `nohup`, or a shell that starts a job in the background, wants ignored.
fn ignored_by_the_caller() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

fn is_in(mask: u64, signal: i32) -> bool {
    // Signal 1 is bit 0 of the masks in proc(5).
    mask >> (signal - 1) & 1 == 1
}
