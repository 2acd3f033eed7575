//! Work that goes on step by step, each step on whichever of the pool's threads is free.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::farm::{Pool, Worker};
use super::{CopyError, Watch};
use crate::image::{Decoder, ImageError};
use crate::observe::{CancelToken, Phase};

/// Takes steps until one gives `None`; the others say how far the work has come.
///
/// The steps handle bytes of an image, so they are taken by threads that can open nothing, one at a time.
pub(crate) fn in_series(
    pool: &Pool,
    step: impl FnMut(&mut Decoder) -> Result<Option<u64>, ImageError> + Send,
    watch: &Watch<'_>,
) -> Result<(), CopyError> {
    let (step, is_over) = (Mutex::new(step), AtomicBool::new(false));
    watch.started();
    let next = || match () {
        () if watch.cancel.is_cancelled() => Err(CopyError::Cancelled),
        () if is_over.load(Ordering::SeqCst) => Ok(None),
        () => Ok(Some(())),
    };
    let work = |worker: &mut Worker, ()| {
        let mut step = step.lock().expect("a step that panics ends the run");
        if is_over.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let done = step(&mut worker.decoder);
        if !matches!(done, Ok(Some(_))) {
            is_over.store(true, Ordering::SeqCst);
        }
        Ok(done?)
    };
    let mut furthest = 0;
    let done = |done: Option<u64>| {
        furthest = furthest.max(done.unwrap_or_default());
        watch.progress(furthest.min(watch.bytes_total));
        Ok(())
    };
    pool.run(next, work, done, watch)?;
    watch.progress(watch.bytes_total);
    Ok(())
}

/// Does one piece of work with an image's bytes on a thread that can open nothing.
pub(crate) fn apart<R: Send>(work: impl FnOnce() -> Result<R, ImageError> + Send) -> Result<R, CopyError> {
    let pool = Pool::start(NonZeroUsize::new(1)).map_err(CopyError::Memory)?;
    let (mut work, mut result) = (Some(work), None);
    let step = |_: &mut Decoder| {
        result = work.take().map(|work| work()).transpose()?;
        Ok(None)
    };
    let cancel = CancelToken::new();
    let (phase, bytes_total, stall_timeout) = (Phase::Preflight, 0, None);
    in_series(&pool, step, &Watch { observer: &(), cancel: &cancel, phase, bytes_total, stall_timeout })?;
    Ok(result.expect("the work was done, for nobody cancels it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many steps were taken, and what came of them.
    fn count(last: u64, fails: bool) -> (u64, Result<(), CopyError>) {
        let (pool, cancel) = (Pool::start(std::num::NonZeroUsize::new(4)).unwrap(), CancelToken::new());
        let watch = Watch {
            observer: &(),
            cancel: &cancel,
            phase: Phase::Preflight,
            bytes_total: last,
            stall_timeout: None,
        };
        let mut taken = 0;
        let step = |_: &mut Decoder| {
            taken += 1;
            let missing = || ImageError::Missing { path: "gone".into() };
            if taken < last {
                Ok(Some(taken))
            } else if fails {
                Err(missing())
            } else {
                Ok(None)
            }
        };
        let ended = in_series(&pool, step, &watch);
        (taken, ended)
    }

    #[test]
    fn what_is_done_apart_can_open_nothing() {
        let opened = apart(|| Ok(std::fs::File::open("/dev/null").is_ok())).unwrap();
        let sandbox = Pool::start(NonZeroUsize::new(1)).unwrap().sandbox();
        assert_eq!(opened, sandbox == crate::sys::landlock::Sandbox::None, "{sandbox:?}");
        assert!(std::fs::File::open("/dev/null").is_ok(), "this thread is free");
    }

    #[test]
    fn no_step_is_taken_behind_the_last() {
        for last in [1, 2, 100] {
            assert!(matches!(count(last, false), (taken, Ok(())) if taken == last));
            assert!(matches!(count(last, true), (taken, Err(CopyError::Image(_))) if taken == last));
        }
    }
}
