//! The parallel engine: an image's bytes, chunk by chunk, onto a target, and back from it.
//!
//! It knows two traits (`Image`, `Target`) and digests: no format, no path, no policy. The calling thread
//! walks the extent map, tells the observer and looks for a cancel; the pool's threads do the rest.

mod check;
mod error;
mod farm;
mod faults;
mod manifest;
mod pack;
mod patience;
mod pieces;
mod series;
mod transfer;
mod units;

pub use crate::sys::landlock::Sandbox;
pub(crate) use check::{Exceptions, Piece, ReadBack, Scope, check, repair};
pub(crate) use error::CopyError;
pub(crate) use farm::Pool;
pub(crate) use faults::{BadCluster, Tables, bad_clusters};
pub(crate) use manifest::{ByManifest, Standing, digest_file};
pub(crate) use pack::{OnBad, Pack, Packed, pack};
pub(crate) use patience::{MayOpen, patiently};
pub(crate) use series::{apart, in_series};
pub(crate) use transfer::{Compare, Ledger, Onto, Sink, Transfer, Transferred, transfer};

use std::time::Duration;

use crate::observe::{CancelToken, Event, Observer, Phase};

/// What accompanies every pass: who is told, who may stop it, and what it is called.
pub(crate) struct Watch<'a> {
    pub(crate) observer: &'a dyn Observer,
    pub(crate) cancel: &'a CancelToken,
    pub(crate) phase: Phase,
    pub(crate) bytes_total: u64,
    /// After how long without any progress the pass ends.
    pub(crate) stall_timeout: Option<Duration>,
}

impl Watch<'_> {
    pub(crate) fn started(&self) {
        self.observer.event(&Event::Started { phase: self.phase, bytes_total: self.bytes_total });
    }

    pub(crate) fn progress(&self, bytes_done: u64) {
        let (phase, bytes_total) = (self.phase, self.bytes_total);
        self.observer.event(&Event::Progress { phase, bytes_done, bytes_total });
    }
}
