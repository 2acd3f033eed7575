//! A rebuild under way: what it holds from the first step to the last, and how it begins.

use std::path::Path;
use std::time::Instant;

use super::container::Sealable;
use super::ends::{self, EndFault, MOST_REWRITES};
use super::keep::{self, Keeping};
use super::noted::{self, Noting};
use super::prepare::{self, Prepared};
use super::report::{self, Durations, RepairReport};
use crate::copy::{CopyError, Pool, ReadBack, Transferred, Watch};
use crate::error::{Error, ErrorKind, TargetState};
use crate::guard::{DataDisk, Hold};
use crate::image::Image;
use crate::journal::kept::Kept;
use crate::journal::{Journal, JournalError, Record};
use crate::observe::{CancelToken, Event, Observer, Phase};
use crate::plan::{
    self, FETCH_BOTH, Fit, Known, KnownManifest, LinkedImage, OldDisks, Plan, PlanSummary, RunMode,
    SeenImage, image_error,
};
use crate::range::ByteRange;
use crate::request::{OnError, Options};
use crate::seed::former::ReturningSeed;
use crate::seed::{ComposedSeed, SeedReport, StagedSeed};
use crate::target::{Beside, Exchange, Target, TargetError};
use crate::verify::{DigestTable, Pattern};

/// A rebuild under way.
pub(super) struct Run<'a> {
    pub(super) observer: &'a dyn Observer,
    pub(super) cancel: &'a CancelToken,
    pub(super) options: Options,
    pub(super) summary: PlanSummary,
    pub(super) image: Box<dyn Image>,
    pub(super) seen_image: SeenImage,
    pub(super) manifest: Option<KnownManifest>,
    pub(super) fit: Fit,
    pub(super) pool: Pool,
    pub(super) target: Box<dyn Target>,
    /// The new file that replaces the old disk; until it does, the old disk is untouched.
    pub(super) exchange: Option<Box<dyn Exchange>>,
    /// The same file, where it is one of qcow2 that needs its tables first.
    pub(super) sealable: Option<Sealable>,
    /// What is known of the image, where the disk becomes an overlay on it.
    pub(super) linked: Option<LinkedImage>,
    /// That new file on this host.
    pub(super) beside: Option<Beside>,
    /// What earlier runs kept of the disk, and what this one is to keep.
    pub(super) old_disks: OldDisks,
    /// What this run keeps of it.
    pub(super) keeping: Option<Keeping>,
    /// What it brings back, and the seed of that time.
    pub(super) undoes: Option<Kept>,
    pub(super) returning_seed: Option<ReturningSeed>,
    pub(super) seed: Option<StagedSeed>,
    pub(super) journal: Journal,
    pub(super) known: Known,
    /// How the run really goes about the disk: the journal may have changed since the plan.
    pub(super) mode: RunMode,
    /// The chunks that an earlier run wrote.
    pub(super) noted: DigestTable,
    /// Whether the disk says before the copy that it is unfinished; else it is told by the first byte that differs.
    pub(super) may_write: bool,
    /// Whether the plan has not seen all of the image's disk, so that some of it is decided behind the copy.
    pub(super) settles: bool,
    /// The locks on the disk; none on a new file or a caller's own target.
    pub(super) hold: Option<Hold>,
    pub(super) data_disks: Vec<DataDisk>,
    /// What the target holds; that is the system disk itself unless a new file is staged.
    pub(super) state: TargetState,
    pub(super) copied: Option<Transferred>,
    pub(super) read: ReadBack,
    pub(super) repairs: Vec<RepairReport>,
    pub(super) seeded: Option<SeedReport>,
    pub(super) durations: Durations,
}

impl<'a> Run<'a> {
    /// Everything that can fail without touching the disk.
    pub(super) fn prepare(
        plan: Plan,
        observer: &'a dyn Observer,
        cancel: &'a CancelToken,
    ) -> Result<Self, Error> {
        let started = Instant::now();
        let summary = plan.summary().clone();
        let Plan {
            request,
            image,
            mut claim,
            brought,
            fit,
            seed,
            data_disks,
            known,
            seen_image,
            manifest,
            linked,
            old_disks,
            undoes,
            ..
        } = plan;
        let options = request.options;
        let pool = start_pool(&options)?;
        let seed = seed.map(ComposedSeed::stage).transpose()?;
        let returning_seed = keep::stage_seed(&options.state_dir, undoes.as_ref())?;
        let hold = claim.take_hold();
        let to_open = (claim, brought, &fit);
        let about = (&summary, &known, undoes.as_ref());
        let Prepared { journal, target, exchange, beside, sealable, noted } =
            prepare::prepare(&options, about, image.most_bytes(), to_open)?;
        let mode = mode_of(&summary, noted.as_ref().filter(|_| !target.is_new()));
        let may_write = may_write(&summary, mode);
        let settles = exchange.is_some() && undoes.is_none() && !plan::is_all_at_hand(image.as_ref());
        let durations = Durations { prepare_ms: report::ms(started), ..Durations::default() };
        Ok(Self {
            observer,
            cancel,
            options,
            summary,
            image,
            seen_image,
            manifest,
            fit,
            pool,
            target,
            exchange,
            beside,
            sealable,
            linked,
            old_disks,
            keeping: None,
            undoes,
            returning_seed,
            seed,
            journal,
            known,
            mode,
            noted: noted.unwrap_or_else(|| DigestTable::new(0)),
            may_write,
            settles,
            hold,
            data_disks,
            state: TargetState::Untouched,
            copied: None,
            read: ReadBack::default(),
            repairs: Vec::new(),
            seeded: None,
            durations,
        })
    }

    /// Ends a run that failed and says what the system disk holds; one that was not touched needs no journal.
    pub(super) fn abandon(mut self, error: &Error) -> (TargetState, Option<&'static str>) {
        if self.options.on_error == OnError::Preserve {
            self.preserve();
        }
        let waits = self.exchange.as_ref().is_some_and(|exchange| !exchange.has_its_place());
        let state = if waits { TargetState::Untouched } else { self.state };
        // The old disk beside the new seed is something to tell, too.
        let hint = (state == TargetState::Untouched && self.seeded.is_some()).then_some(
            "the disk is the old one, and the new seed is in its place already: run the rebuild again before the \
             machine is started",
        );
        let hint = hint.or(match (state, error.kind()) {
            (TargetState::Untouched, ErrorKind::Cancelled) => {
                Some("the disk is the old one; the next run begins anew")
            }
            _ => None,
        });
        if state == TargetState::Untouched && self.seeded.is_none() {
            // A new file that waits goes first: what was to be kept is found by its name.
            self.exchange = None;
            self.keep_nothing();
            self.journal.discard();
        } else {
            noted::fail(&self.journal, error, state);
        }
        (state, hint)
    }

    /// Lets a new file stay that could not be completed, without what could make it boot.
    fn preserve(&mut self) {
        let bounds = self.fit.ends();
        let empty = |end: ByteRange| vec![0; usize::try_from(end.len()).expect("an end fits in memory")];
        let (head, tail) = match &self.copied {
            Some(_) => self.assembled_ends(),
            None => (empty(bounds.head), empty(bounds.tail)),
        };
        let Some(exchange) = self.exchange.as_mut().filter(|exchange| !exchange.has_its_place()) else {
            return;
        };
        let marked = ends::mark_again(self.target.as_ref(), bounds, (&head, &tail), self.journal.id());
        let failed = |fault: EndFault| end_error(fault, &self.summary.target);
        // Without its tables a qcow2 file shows nothing to anybody.
        let sealed =
            marked.and_then(|()| Ok(self.sealable.as_ref().map_or(Ok(()), |file| file.qcow2.seal())?));
        let kept = sealed.and_then(|()| Ok(exchange.preserve(self.journal.id())?)).map_err(failed);
        let message = match kept {
            Ok(Some(path)) => {
                format!("what was written stays in {path:?}, to be looked at; remove it afterwards")
            }
            Ok(None) => return,
            Err(error) => format!("what was written could not be kept: {}", noted::in_full(&error)),
        };
        self.observer.event(&Event::Warning { code: "preserved", message });
    }

    /// The observer of the passes over the disk, of which the journal takes note.
    pub(super) fn noting(&self) -> Noting<'_> {
        Noting { observer: self.observer, journal: &self.journal }
    }

    pub(super) fn watch<'w>(
        &'w self,
        observer: &'w dyn Observer,
        phase: Phase,
        bytes_total: u64,
    ) -> Watch<'w> {
        let stall_timeout = self.options.stall_timeout;
        Watch { observer, cancel: self.cancel, phase, bytes_total, stall_timeout }
    }

    pub(super) fn digests(&self) -> &DigestTable {
        &self.copied.as_ref().expect("the copy comes before what asks for its digests").digests
    }

    pub(super) fn record(&self, record: &Record<'_>) -> Result<(), Error> {
        self.journal.record(record).map_err(journal_error)
    }

    /// A fault of a pass over the disk, with the path that it is about.
    pub(super) fn error(&self, fault: CopyError) -> Error {
        copy_error(fault, &self.summary.target)
    }
}

fn start_pool(options: &Options) -> Result<Pool, Error> {
    Pool::start(options.threads).map_err(|error| {
        Error::new(ErrorKind::Internal, TargetError::new("starting threads", None, error))
            .hint_that("check the limits on threads and memory of this user")
    })
}

/// How the run really goes about the disk, with the chunks that an earlier run wrote where it goes on.
fn mode_of(summary: &PlanSummary, noted: Option<&DigestTable>) -> RunMode {
    match summary.mode {
        RunMode::Delta => RunMode::Delta,
        RunMode::Linked => RunMode::Linked,
        RunMode::Full | RunMode::Resumed if noted.is_some() => RunMode::Resumed,
        RunMode::Full | RunMode::Resumed => RunMode::Full,
    }
}

/// Whether the disk is to say before the copy that it is unfinished.
fn may_write(summary: &PlanSummary, mode: RunMode) -> bool {
    // A disk that is to grow first has nothing that could be compared behind its end.
    let grows = summary.size_after != summary.target_bytes;
    mode != RunMode::Delta || summary.unfinished.is_some() || grows
}

/// A fault of a pass over a disk, as the caller sees it.
pub(crate) fn copy_error(fault: CopyError, target: &Path) -> Error {
    match fault {
        CopyError::Image(fault) => image_error(ErrorKind::ImageFault, fault),
        CopyError::ImageChanged { range } => Error::new(ErrorKind::ImageFault, fault)
            .at_range(range)
            .hint_that("start again when nobody changes the image"),
        CopyError::OtherThanManifest { range, .. } => {
            Error::new(ErrorKind::ImageFault, fault).at_range(range).hint_that(FETCH_BOTH)
        }
        CopyError::Target(fault) => {
            let range = fault.range();
            let error = Error::new(ErrorKind::TargetIo, fault)
                .at_path(target)
                .hint_that("check the disk, its room and the kernel's log, then run the rebuild again");
            match range {
                Some(range) => error.at_range(range),
                None => error,
            }
        }
        CopyError::NewImage(fault) => {
            let hint = fault.hint();
            Error::new(ErrorKind::Usage, fault).hint_that(hint)
        }
        CopyError::Books(error) => *error,
        CopyError::Stalled { .. } => Error::new(ErrorKind::TargetIo, fault)
            .at_path(target)
            .hint_that("check the disk and the kernel's log, then run the rebuild again"),
        CopyError::Memory(_) => {
            Error::new(ErrorKind::Internal, fault).hint_that("free memory, or use fewer threads (--threads)")
        }
        CopyError::Cancelled => {
            Error::new(ErrorKind::Cancelled, fault).hint_that("run the rebuild again to complete the disk")
        }
    }
}

pub(crate) fn journal_error(fault: JournalError) -> Error {
    let (kind, hint) = match &fault {
        JournalError::Folder { .. } => {
            (ErrorKind::Usage, "name a folder that can be written with --state-dir")
        }
        JournalError::Held { .. } => (ErrorKind::InUse, "wait for the other run to end"),
        JournalError::Write { .. } => {
            (ErrorKind::TargetIo, "make room in the state folder, then run the rebuild again")
        }
    };
    let path = fault.path().to_owned();
    Error::new(kind, fault).at_path(path).hint_that(hint)
}

/// A fault at the ends of a disk.
pub(super) fn end_error(fault: EndFault, target: &Path) -> Error {
    match fault {
        EndFault::Copy(fault) => copy_error(fault, target),
        EndFault::Mismatch(range, differing) => {
            let looks = differing.map(|differing| looks_wrong(range, differing, target));
            mismatch((range, 1), target).and(looks)
        }
    }
}

/// The disk does not hold what was written, or not what the image holds.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} not read back as written, in spite of {MOST_REWRITES} rewrites",
    if *.count == 1 { "a piece of the disk does".to_owned() } else { format!("{} pieces of the disk do", .count) }
)]
struct ReadsBackWrong {
    count: usize,
}

/// What one piece looked like.
#[derive(Debug, thiserror::Error)]
#[error("byte {first_differing} is the first that is wrong: {}", .pattern.in_words())]
struct LooksWrong {
    first_differing: u64,
    pattern: Pattern,
}

pub(super) fn mismatch((first, count): (ByteRange, usize), target: &Path) -> Error {
    Error::new(ErrorKind::Mismatch, ReadsBackWrong { count })
        .at_path(target)
        .at_range(first)
        .hint_that("the disk does not keep what is written to it: replace it")
}

fn looks_wrong(range: ByteRange, (first_differing, pattern): (u64, Pattern), target: &Path) -> Error {
    let fault = LooksWrong { first_differing, pattern };
    Error::new(ErrorKind::Mismatch, fault).at_path(target).at_range(range)
}

/// The same, and what each of the pieces looked like that were written again.
pub(super) fn mismatches(wrong: &[ByteRange], repairs: &[RepairReport], target: &Path) -> Error {
    /// More pieces are counted and not told.
    const MOST_TOLD: usize = 64;
    let first = mismatch((*wrong.first().expect("a piece is wrong"), wrong.len()), target);
    let looks = |range: &ByteRange| {
        let repair = repairs.iter().find(|repair| repair.range == *range)?;
        Some(looks_wrong(*range, (repair.first_differing?, repair.pattern?), target))
    };
    first.and(wrong.iter().filter_map(looks).take(MOST_TOLD))
}
