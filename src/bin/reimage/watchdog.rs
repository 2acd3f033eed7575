//! Ends the process when the library cannot: a thread that waits in the kernel for a disk cannot be stopped.
//!
//! What went wrong is told first. A thread that no signal reaches (state D in proc(5)) keeps the process, and with it
//! the locks, until the kernel lets go of it: until then whoever waits for the process gets no exit code.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use reimage::{Error, ErrorKind, Event, Observer, Phase, TargetKind, TargetState};

use crate::exit::{self, Failure};
use crate::output::Output;
use crate::progress::Progress;

/// How long the library may take to return once it has said that the disk does nothing.
const PATIENCE: Duration = Duration::from_secs(2);

/// Lets the library do what it was asked, tells its events, and ends the process where it does not return.
///
/// Of the target the kind is known, but for a disk that is only read.
pub(crate) fn watched<T>(
    target: (&Path, Option<TargetKind>),
    (output, progress): (Output, &Progress),
    run: impl FnOnce(&dyn Observer) -> Result<T, Error>,
) -> Result<T, Failure> {
    let parting = progress.parting();
    let watchdog = Watchdog::of(target, PATIENCE, move |failure: &Failure| {
        parting(failure);
        exit::end(failure, output)
    });
    let observer = |event: &Event| {
        progress.event(event);
        watchdog.event(event);
    };
    let done = run(&observer);
    watchdog.returned();
    Ok(done?)
}

/// Waits for a run to return that has given its disk up.
struct Watchdog<F> {
    target: PathBuf,
    kind: Option<TargetKind>,
    patience: Duration,
    end: F,
    has_returned: Arc<Mutex<bool>>,
}

impl<F: Fn(&Failure) + Clone + Send + 'static> Watchdog<F> {
    /// Watches a run; `end` tells the failure and ends the process.
    fn of((target, kind): (&Path, Option<TargetKind>), patience: Duration, end: F) -> Self {
        Self { target: target.to_owned(), kind, patience, end, has_returned: Arc::default() }
    }

    /// The library has returned: from here on the process ends by itself.
    fn returned(&self) {
        *self.has_returned.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    fn wait(&self, phase: Phase, seconds: u64) {
        let message = format!("the disk has done nothing for {seconds} s, and does not let go of the run");
        let failure = Failure::of(ErrorKind::TargetIo, message)
            .hinting("check the disk and the kernel's log, then run it again")
            .at(&self.target)
            .leaving(state_in(phase, self.kind));
        let (patience, end) = (self.patience, self.end.clone());
        let has_returned = Arc::clone(&self.has_returned);
        let waiting = thread::Builder::new().name("watchdog".into()).spawn(move || {
            thread::sleep(patience);
            // Held to the end, so that what the library says when it returns just now is not told as well.
            let has_returned = has_returned.lock().unwrap_or_else(PoisonError::into_inner);
            if !*has_returned {
                end(&failure);
            }
        });
        // Without the thread the run ends when the disk lets go of it.
        drop(waiting);
    }
}

impl<F: Fn(&Failure) + Clone + Send + 'static> Observer for Watchdog<F> {
    fn event(&self, event: &Event) {
        if let Event::Stalled { phase, seconds } = event {
            self.wait(*phase, *seconds);
        }
    }
}

/// What a run that is lost in a phase leaves at the most of the system disk.
fn state_in(phase: Phase, kind: Option<TargetKind>) -> TargetState {
    let Some(kind) = kind else { return TargetState::Untouched };
    let is_beside = matches!(kind, TargetKind::ReplacedFile | TargetKind::NewFile);
    match phase {
        Phase::Preflight | Phase::Keep => TargetState::Untouched,
        // Until the exchange the new file is not the system disk, and that is short.
        _ if is_beside => TargetState::Untouched,
        Phase::ReadBack | Phase::Finish => TargetState::Written,
        _ => TargetState::Partial,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::exit::ErrorDocument;

    /// What is told, if anything is, of a run that stalls and returns, or does not.
    fn told(returns: bool) -> Option<(u8, String, TargetState)> {
        let (sender, receiver) = mpsc::channel();
        let tell = move |failure: &Failure| {
            let document = ErrorDocument::of(failure);
            let (code, message, state) = document.parts();
            sender.send((code, message.to_owned(), state)).unwrap();
        };
        let patience = Duration::from_millis(if returns { 200 } else { 10 });
        let watchdog = Watchdog::of((Path::new("disk"), Some(TargetKind::Device)), patience, tell);
        watchdog.event(&Event::NoProgress { phase: Phase::Copy, seconds: 29 });
        watchdog.event(&Event::Stalled { phase: Phase::Copy, seconds: 30 });
        if returns {
            watchdog.returned();
        }
        receiver.recv_timeout(Duration::from_millis(if returns { 600 } else { 30_000 })).ok()
    }

    #[test]
    fn a_run_that_does_not_return_is_ended_and_one_that_does_is_not() {
        let (code, message, state) = told(false).expect("the run is ended");
        assert_eq!((code, state), (30, TargetState::Partial));
        assert!(message.contains("30 s"), "{message}");
        assert_eq!(told(true), None);
    }

    #[test]
    fn a_disk_that_would_be_replaced_is_untouched_until_it_is() {
        use TargetKind::{Device, InPlaceFile, NewFile, ReplacedFile};
        use TargetState::{Partial, Untouched, Written};
        for (phase, into, beside) in [
            (Phase::Keep, Untouched, Untouched),
            (Phase::Copy, Partial, Untouched),
            (Phase::ReadBack, Written, Untouched),
            (Phase::Finish, Written, Untouched),
        ] {
            for kind in [Device, InPlaceFile] {
                assert_eq!(state_in(phase, Some(kind)), into, "{phase:?}");
            }
            for kind in [NewFile, ReplacedFile] {
                assert_eq!(state_in(phase, Some(kind)), beside, "{phase:?}");
            }
            assert_eq!(state_in(phase, None), Untouched, "only read: {phase:?}");
        }
    }
}
