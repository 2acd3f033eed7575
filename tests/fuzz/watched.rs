//! One thing at a time, in a thread of its own, by the clock and with its memory counted.

use std::panic::AssertUnwindSafe;
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

use crate::memory;

/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(10);

/// Memory is counted for the whole process, so that nobody else may use much of it meanwhile.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// What came of it, and how many bytes of memory it took at once; `Err` if it panics or hangs.
pub(crate) fn watched<T: Send + 'static>(
    act: impl FnOnce() -> T + Send + 'static,
) -> Result<(T, usize), String> {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let measured = AssertUnwindSafe(|| memory::most_during(act));
        let result = std::panic::catch_unwind(measured);
        sender.send(result.map_err(|_| "it panics".to_owned())).ok();
    });
    receiver.recv_timeout(PATIENCE).unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))
}
