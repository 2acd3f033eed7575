//! The journal is begun and the target opened: what can fail of it leaves the disk as it was.

use super::container::Sealable;
use super::noted;
use super::run::journal_error;
use crate::error::{Error, ErrorKind};
use crate::guard::Claim;
use crate::journal::kept::Kept;
use crate::journal::{Earlier, Journal, Staged};
use crate::plan::{self, Fit, Known, PlanSummary};
use crate::request::Options;
use crate::sys::beside;
use crate::target::{self, Beside, Exchange, Opened, Target, TargetError, Wanted, WantedSize};
use crate::verify::DigestTable;

/// What a run writes to, and where it takes note of it.
pub(super) struct Prepared {
    pub(super) journal: Journal,
    pub(super) target: Box<dyn Target>,
    pub(super) exchange: Option<Box<dyn Exchange>>,
    /// The new file that takes the disk's place by it, where it lies on this host.
    pub(super) beside: Option<Beside>,
    /// The same, where it is one of qcow2.
    pub(super) sealable: Option<Sealable>,
    /// The chunks that an earlier run wrote, where this one goes on with it.
    pub(super) noted: Option<DigestTable>,
}

/// Begins the journal, and opens the target; what an earlier run left is taken up, or removed.
pub(super) fn prepare(
    options: &Options,
    (summary, known, undoes): (&PlanSummary, &Known, Option<&Kept>),
    most_bytes: u64,
    (claim, brought, fit): (Claim, Option<Box<dyn Target>>, &Fit),
) -> Result<Prepared, Error> {
    let path = claim.path().to_owned();
    let ptuuid = noted::ptuuid(&claim, &options.state_dir);
    let begun = Journal::begin(&options.state_dir, &known.key, known.bound, plan::go_on(options, fit));
    let (journal, earlier) = begun.map_err(journal_error)?;
    let (chunks, left) = match earlier {
        Earlier::GoesOn { chunks, staged, .. } => (Some(chunks), staged),
        Earlier::StartsOver { staged, .. } => (None, staged),
        Earlier::Nothing => (None, None),
    };
    let opened = noted::begin(&journal, (summary, &known.key), (ptuuid.as_deref(), undoes))
        .map_err(journal_error)
        .and_then(|()| {
            let numbers = left.as_ref().filter(|_| chunks.is_some()).map(numbers_of);
            let opened = match brought {
                Some(target) => Ok(target::bring(claim, target)),
                None => target::open(claim, wanted(options, fit), numbers),
            };
            let unusable = |fault| unusable(fault).at_path(&path);
            let mut opened = opened.map_err(unusable)?;
            noted::staged(&journal, opened.beside.as_ref()).map_err(journal_error)?;
            opened.exchange.as_mut().map_or(Ok(()), |exchange| exchange.wait()).map_err(unusable)?;
            Ok(opened)
        });
    match opened {
        Ok(Opened { target, exchange, beside, qcow2 }) => {
            let taken_up = beside.as_ref().map(|beside| (beside.device, beside.inode));
            if let Some(left) = left.filter(|left| Some(numbers_of(left)) != taken_up) {
                // What stays is found by `prune`.
                let _ = beside::remove_leftover(&left.temporary, numbers_of(&left));
            }
            let noted = chunks.map(|chunks| DigestTable::of_notes(most_bytes, chunks));
            let path = beside.as_ref().map(|beside| beside.path.clone());
            let sealable = qcow2.zip(path).map(|(qcow2, path)| Sealable { qcow2, path });
            Ok(Prepared { journal, target, exchange, beside, sealable, noted })
        }
        Err(error) => {
            journal.discard();
            Err(error)
        }
    }
}

fn wanted(options: &Options, fit: &Fit) -> Wanted {
    let qcow2 = fit.container.as_ref().map(|container| container.shape.clone());
    let size = fit.at_most.map_or(WantedSize::Known(fit.size), WantedSize::AtMost);
    Wanted { placement: options.placement, size, qcow2 }
}

fn numbers_of(staged: &Staged) -> (u64, u64) {
    (staged.device, staged.inode)
}

fn unusable(fault: TargetError) -> Error {
    Error::new(ErrorKind::TargetUnusable, fault)
        .hint_that("check the folder's rights and room, or --in-place to write into the old file")
}
