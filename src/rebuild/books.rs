//! What must be noted before and behind a write: that the disk is unfinished, and what of it is durable.

use std::path::Path;

use super::ends::{self, Check, Rewritten};
use super::keep::Keeping;
use super::run::{end_error, journal_error};
use crate::copy::{self, CopyError, Ledger, MayOpen, Watch};
use crate::error::{Error, TargetState};
use crate::journal::{self, Journal, Record};
use crate::observe::{Event, Observer};
use crate::plan::{Ends, Known};
use crate::target::Target;
use crate::verify::Digest;

/// Keeps the books of a run.
pub(super) struct Books<'a> {
    pub(super) journal: &'a Journal,
    pub(super) known: &'a Known,
    pub(super) keeping: Option<&'a Keeping>,
    pub(super) state_dir: &'a Path,
    pub(super) observer: &'a dyn Observer,
    pub(super) path: &'a Path,
    pub(super) target: &'a dyn Target,
    pub(super) ends: Ends,
    pub(super) check: Check,
    pub(super) watch: Watch<'a>,
    /// What the disk is, as far as these books have changed it.
    pub(super) state: TargetState,
    pub(super) rewritten: Vec<Rewritten>,
}

impl Books<'_> {
    /// The disk says that it is unfinished when this returns; the journal says so before.
    pub(super) fn invalidate(&mut self) -> Result<(), Error> {
        if let Some(keeping) = self.keeping {
            for message in keeping.begin(self.state_dir)? {
                self.observer.event(&Event::Warning { code: "kept", message });
            }
        }
        self.journal.record(&Record::Invalidated).map_err(journal_error)?;
        self.state = TargetState::Invalidated;
        if let Err(error) = journal::forget(self.state_dir, &self.known.key) {
            // It says what the disk held, and the next run compares anyway.
            let message = format!("what this disk held before could not be forgotten: {error}");
            self.observer.event(&Event::Warning { code: "journal", message });
        }
        let (target, ends, check) = (self.target, self.ends, (self.check, self.journal.id()));
        let poison = || ends::poison(target, ends, check);
        let failed = |fault| end_error(fault, self.path);
        let (poisoned, stalled) =
            copy::patiently(MayOpen::Nothing, poison, &self.watch).map_err(|fault| failed(fault.into()))?;
        self.rewritten.extend(poisoned.map_err(failed)?);
        if let Some(fault) = stalled {
            return Err(failed(fault.into()));
        }
        // Not on a thread of its own: it looks into /sys.
        target.forget_partitions().map_err(|fault| failed(fault.into()))
    }
}

impl Ledger for Books<'_> {
    fn before_first_write(&mut self) -> Result<(), CopyError> {
        self.invalidate().map_err(|error| CopyError::Books(Box::new(error)))?;
        self.state = TargetState::Partial;
        Ok(())
    }

    fn durable(&mut self, chunks: &[(u64, Digest)]) {
        if !self.known.can_go_on {
            return;
        }
        if let Err(error) = self.journal.note(chunks) {
            // The disk must be rebuilt nevertheless.
            let message =
                format!("{error}: a run that goes on after this one would copy more of the image again");
            self.observer.event(&Event::Warning { code: "journal", message });
        }
    }
}
