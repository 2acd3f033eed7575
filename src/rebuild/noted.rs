//! What the journal notes of a run besides its steps: who began it, how far it comes, how it fails.

use std::error::Error as _;
use std::path::Path;
use std::time::SystemTime;

use super::report;
use crate::error::{Error, TargetState};
use crate::guard::Claim;
use crate::journal::kept::Kept;
use crate::journal::{self, Journal, JournalError, Record};
use crate::observe::{Event, Observer, Phase};
use crate::plan::PlanSummary;
use crate::target::Beside;
use crate::verify::CHUNK;

/// Tells an observer, and the journal how far the run is.
pub(super) struct Noting<'a> {
    pub(super) observer: &'a dyn Observer,
    pub(super) journal: &'a Journal,
}

impl Observer for Noting<'_> {
    fn event(&self, event: &Event) {
        match event {
            Event::Started { phase, bytes_total } => self.journal.progress(name(*phase), 0, *bytes_total),
            Event::Progress { phase, bytes_done, bytes_total } => {
                self.journal.progress(name(*phase), *bytes_done, *bytes_total);
            }
            _ => {}
        }
        self.observer.event(event);
    }
}

/// A phase as its events name it.
fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Preflight => "preflight",
        Phase::Keep => "keep",
        Phase::Copy => "copy",
        Phase::ReadBack => "read_back",
        Phase::Finish => "finish",
    }
}

/// The first record: who begins what.
pub(super) fn begin(
    journal: &Journal,
    (summary, key): (&PlanSummary, &serde_json::Value),
    (ptuuid, undoes): (Option<&str>, Option<&Kept>),
) -> Result<(), JournalError> {
    let path = std::path::absolute(&summary.target).unwrap_or_else(|_| summary.target.clone());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    journal.record(&Record::Begun {
        journal: journal.id(),
        instance: summary.instance.as_deref(),
        path: &path.to_string_lossy(),
        pid: std::process::id(),
        started_s: now.as_secs(),
        ptuuid,
        image: &report::to_json(&summary.image),
        target: key,
        chunk_bytes: CHUNK,
        target_bytes: summary.size_after,
        gpt: &report::to_json(&summary.gpt),
        undoes: undoes.map(|kept| kept.journal.as_str()),
    })
}

/// The second record, where a new file is written beside the disk's.
pub(super) fn staged(journal: &Journal, beside: Option<&Beside>) -> Result<(), JournalError> {
    let Some(Beside { path, device, inode, .. }) = beside else { return Ok(()) };
    let temporary = path.to_string_lossy();
    journal.record(&Record::Staged { temporary: &temporary, device: *device, inode: *inode })
}

/// The partition table's id that the disk has, or had before a run that is unfinished on it.
pub(super) fn ptuuid(claim: &Claim, state_dir: &Path) -> Option<String> {
    let facts = claim.facts()?;
    match &facts.unfinished {
        Some(journal) => journal::earlier_ptuuid(state_dir, journal),
        None => facts.ptuuid.clone(),
    }
}

/// An error and its causes in one line.
pub(super) fn in_full(error: &Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        cause = error.source();
    }
    message
}

/// The last record of a run that left the disk changed.
pub(super) fn fail(journal: &Journal, error: &Error, target_state: TargetState) {
    let message = in_full(error);
    // The error is told to the caller anyway; without this record the run counts as interrupted.
    let _ = journal.record(&Record::Failed { kind: error.kind(), target_state, message: &message });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_has_the_name_that_its_events_have() {
        for phase in [Phase::Preflight, Phase::Keep, Phase::Copy, Phase::ReadBack, Phase::Finish] {
            assert_eq!(report::to_json(&phase), name(phase));
        }
    }
}
