//! What a run tells while it goes on: events to an `Observer`, and the `CancelToken` that stops it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::range::ByteRange;

/// A part of a rebuild that has progress of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Phase {
    /// The image is examined.
    Preflight,
    /// The disk as it was is saved, and what was saved is read back.
    Keep,
    /// The image is written to the target.
    Copy,
    /// The target is read back and compared.
    ReadBack,
    /// The seed is put in place and the disk's ends are written.
    Finish,
}

/// Something that happened; times are the observer's own business.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// A phase begins.
    Started {
        /// Which phase.
        phase: Phase,
        /// How many bytes it will go through.
        bytes_total: u64,
    },
    /// A phase went on.
    Progress {
        /// Which phase.
        phase: Phase,
        /// Bytes gone through so far.
        bytes_done: u64,
        /// How many bytes it will go through.
        bytes_total: u64,
    },
    /// A check was made and passed.
    Checked {
        /// The check's short name.
        name: &'static str,
        /// What was found, for a person.
        detail: String,
    },
    /// Something that a person should know and that stops nothing.
    Warning {
        /// A stable short name.
        code: &'static str,
        /// What was found and what to do.
        message: String,
    },
    /// The disk has done nothing for a while; told once a second from the fifth on, until it does something.
    NoProgress {
        /// In which phase.
        phase: Phase,
        /// For how many seconds.
        seconds: u64,
    },
    /// The run has waited longer than it may for a disk that does nothing, and ends as soon as the disk lets go of it.
    Stalled {
        /// In which phase.
        phase: Phase,
        /// For how many seconds.
        seconds: u64,
    },
    /// Bytes did not read back as written, and are written again.
    Rewriting {
        /// Which bytes of the target.
        range: ByteRange,
    },
}

/// Who is told about events; `()` and every `Fn(&Event)` are observers.
///
/// Events come from the thread that called `rebuild`, one at a time.
///
/// ```
/// use reimage::{Event, Observer};
/// let watch = |event: &Event| {
///     if let Event::Warning { message, .. } = event {
///         // show it
///         let _ = message;
///     }
/// };
/// let observer: &dyn Observer = &watch;
/// # observer.event(&Event::Warning { code: "example", message: String::new() });
/// ```
pub trait Observer {
    /// Takes one event; it must return soon, the run waits for it.
    fn event(&self, event: &Event);
}

impl Observer for () {
    fn event(&self, _: &Event) {}
}

impl<F: Fn(&Event)> Observer for F {
    fn event(&self, event: &Event) {
        self(event);
    }
}

/// Stops a run at the next chunk boundary, when it is told to or at a time that was set; clones share one flag.
///
/// ```
/// let cancel = reimage::CancelToken::new();
/// let elsewhere = cancel.clone();
/// elsewhere.cancel();
/// assert!(cancel.is_cancelled());
/// ```
#[derive(Clone, Debug, Default)]
pub struct CancelToken {
    flag: Arc<AtomicBool>,
    deadline: Option<Instant>,
}

impl CancelToken {
    /// A token that nobody has used yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks every run that holds a clone to stop; safe in a signal handler.
    pub fn cancel(&self) {
        self.flag.store(true, Ordering::Relaxed);
    }

    /// The same token, but for a deadline, at which what holds it stops by itself.
    ///
    /// ```
    /// let cancel = reimage::CancelToken::new().with_deadline(std::time::Instant::now());
    /// assert!(cancel.is_cancelled());
    /// ```
    #[must_use]
    pub fn with_deadline(self, deadline: Instant) -> Self {
        Self { deadline: Some(deadline), ..self }
    }

    /// Whether `cancel` was called, or the deadline has come.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.flag.load(Ordering::Relaxed) || self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// The flag itself, for a signal handler that can only store to one.
    #[must_use]
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.flag)
    }
}
