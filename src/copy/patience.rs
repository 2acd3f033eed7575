//! Waiting for a disk: who wants the run to end meanwhile, and for how long nothing has happened.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::{CopyError, Watch};
use crate::observe::Event;
use crate::sys::landlock;

/// How often the calling thread looks up when no thread has anything to say.
const LOOK_UP: Duration = Duration::from_millis(50);
/// From how many seconds on it is told that nothing happens.
const SLOW_S: u64 = 5;

/// What the threads of a pool report, as long as it is worth waiting for.
pub(super) struct Patience<'a, R> {
    reports: &'a mpsc::Receiver<Result<R, CopyError>>,
    /// What the threads get done within their jobs, and how much of it was seen.
    beats: (&'a AtomicU64, u64),
    clock: Clock<'a>,
}

pub(super) enum Waited<R> {
    Report(R),
    Nothing,
    Gone,
}

impl<'a, R> Patience<'a, R> {
    pub(super) fn new(
        reports: &'a mpsc::Receiver<Result<R, CopyError>>,
        beats: &'a AtomicU64,
        watch: &'a Watch<'a>,
    ) -> Self {
        Self { reports, beats: (beats, beats.load(Ordering::Relaxed)), clock: Clock::new(watch) }
    }

    /// What has been reported already.
    pub(super) fn at_once(&mut self) -> Result<Option<R>, CopyError> {
        let report = self.reports.try_recv().ok();
        if report.is_some() {
            self.clock = Clock::new(self.clock.watch);
        }
        report.transpose()
    }

    /// Waits a little.
    pub(super) fn wait(&mut self) -> Result<Waited<R>, CopyError> {
        match self.reports.recv_timeout(LOOK_UP) {
            Ok(report) => {
                self.clock = Clock::new(self.clock.watch);
                report.map(Waited::Report)
            }
            Err(RecvTimeoutError::Disconnected) => Ok(Waited::Gone),
            Err(RecvTimeoutError::Timeout) if self.clock.watch.cancel.is_cancelled() => {
                Err(CopyError::Cancelled)
            }
            Err(RecvTimeoutError::Timeout) => {
                let (beats, seen) = &mut self.beats;
                let now = beats.load(Ordering::Relaxed);
                if std::mem::replace(seen, now) != now {
                    self.clock = Clock::new(self.clock.watch);
                }
                self.clock.look().map(|()| Waited::Nothing)
            }
        }
    }
}

/// What the thread that acts may open, make and rename.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum MayOpen {
    /// It handles bytes of the image.
    Nothing,
    Anything,
}

/// Does something that must not be cancelled, and tells when it takes long; besides what came of it, says whether that
/// was longer than the caller wants to wait.
pub(crate) fn patiently<T: Send>(
    may_open: MayOpen,
    act: impl FnOnce() -> T + Send,
    watch: &Watch<'_>,
) -> Result<(T, Option<CopyError>), CopyError> {
    let (report, reports) = mpsc::sync_channel(1);
    thread::scope(|scope| {
        let acting = thread::Builder::new().name("reimage-disk".into());
        let acting = acting.spawn_scoped(scope, move || {
            if may_open == MayOpen::Nothing {
                // As the pool's threads, whose start has shown what this kernel can do.
                let _ = landlock::forbid_opening();
            }
            // Nobody waits for it any more only when the run has panicked.
            let _ = report.send(act());
        });
        acting.map_err(CopyError::Memory)?;
        let (mut clock, mut stalled) = (Clock::new(watch), None);
        loop {
            match reports.recv_timeout(LOOK_UP) {
                Ok(value) => return Ok((value, stalled)),
                Err(RecvTimeoutError::Timeout) if stalled.is_none() => stalled = clock.look().err(),
                // What was begun is waited for: its locks must not be given up before.
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => panic!("the thread that acts has panicked"),
            }
        }
    })
}

/// For how long nothing has happened.
struct Clock<'a> {
    watch: &'a Watch<'a>,
    since: Instant,
    /// For how many seconds nothing had happened when it was told last.
    told: u64,
}

impl<'a> Clock<'a> {
    fn new(watch: &'a Watch<'a>) -> Self {
        Self { watch, since: Instant::now(), told: 0 }
    }

    fn look(&mut self) -> Result<(), CopyError> {
        let (waited, phase) = (self.since.elapsed(), self.watch.phase);
        let seconds = waited.as_secs();
        if self.watch.stall_timeout.is_some_and(|most| waited >= most) {
            self.watch.observer.event(&Event::Stalled { phase, seconds });
            return Err(CopyError::Stalled { seconds });
        }
        if seconds >= SLOW_S && seconds > self.told {
            self.told = seconds;
            self.watch.observer.event(&Event::NoProgress { phase, seconds });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::observe::{CancelToken, Phase};

    fn waits(takes_ms: u64, stall_timeout: Option<Duration>) -> (Option<CopyError>, Vec<Event>) {
        let told = Mutex::new(Vec::new());
        let observer = |event: &Event| told.lock().unwrap().push(event.clone());
        let cancel = CancelToken::new();
        cancel.cancel();
        let watch = Watch {
            observer: &observer,
            cancel: &cancel,
            phase: Phase::Finish,
            bytes_total: 0,
            stall_timeout,
        };
        let act = || {
            thread::sleep(Duration::from_millis(takes_ms));
            7
        };
        let (done, stalled) = patiently(MayOpen::Nothing, act, &watch).unwrap();
        assert_eq!(done, 7, "it is done, however long it takes");
        (stalled, told.into_inner().unwrap())
    }

    #[test]
    fn what_must_not_be_cancelled_is_waited_for_and_told_when_it_takes_long() {
        let (stalled, told) = waits(1, None);
        assert!(stalled.is_none() && told.is_empty());
        let (stalled, told) = waits(6_200, None);
        assert!(stalled.is_none());
        assert!(matches!(
            told.as_slice(),
            [Event::NoProgress { seconds: 5, .. }, Event::NoProgress { seconds: 6, .. }]
        ));
        let (stalled, told) = waits(400, Some(Duration::from_millis(100)));
        assert!(matches!(stalled, Some(CopyError::Stalled { .. })));
        assert!(matches!(told.as_slice(), [Event::Stalled { phase: Phase::Finish, .. }]));
    }
}
