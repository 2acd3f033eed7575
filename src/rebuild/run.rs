//! A rebuild under way: what it holds from the first step to the last, and how it begins.

use std::path::Path;
use std::time::Instant;

use super::ends::{self, EndFault, MOST_REWRITES};
use super::noted::{self, Noting};
use super::report::{self, Durations, RepairReport};
use crate::copy::{CopyError, Pool, ReadBack, Transferred, Watch};
use crate::error::{Error, ErrorKind, TargetState};
use crate::guard::{DataDisk, Hold};
use crate::image::Image;
use crate::journal::{self, Earlier, Journal, JournalError, Record};
use crate::observe::{CancelToken, Event, Observer, Phase};
use crate::plan::{self, Fit, Known, Plan, PlanSummary, RunMode, SeenImage, image_error};
use crate::range::ByteRange;
use crate::request::{OnError, Options};
use crate::seed::{ComposedSeed, SeedReport, StagedSeed};
use crate::target::{self, Exchange, Opened, Target, TargetError};
use crate::verify::DigestTable;

/// A rebuild under way.
pub(super) struct Run<'a> {
    pub(super) observer: &'a dyn Observer,
    pub(super) cancel: &'a CancelToken,
    pub(super) options: Options,
    pub(super) summary: PlanSummary,
    pub(super) image: Box<dyn Image>,
    pub(super) seen_image: SeenImage,
    pub(super) fit: Fit,
    pub(super) pool: Pool,
    pub(super) target: Box<dyn Target>,
    /// The new file that replaces the old disk; until it does, the old disk is untouched.
    pub(super) exchange: Option<Box<dyn Exchange>>,
    pub(super) seed: Option<StagedSeed>,
    pub(super) journal: Journal,
    pub(super) known: Known,
    /// How the run really goes about the disk: the journal may have changed since the plan.
    pub(super) mode: RunMode,
    /// The chunks that an earlier run wrote.
    pub(super) noted: DigestTable,
    /// Whether the disk says before the copy that it is unfinished; else it is told by the first byte that differs.
    pub(super) may_write: bool,
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
        let Plan { request, image, mut claim, brought, fit, seed, data_disks, known, seen_image, .. } = plan;
        let options = request.options;
        let no_threads = |error| {
            Error::new(ErrorKind::Internal, TargetError::new("starting threads", None, error))
                .hint_that("check the limits on threads and memory of this user")
        };
        let pool = Pool::start(options.threads).map_err(no_threads)?;
        let seed = seed.map(ComposedSeed::stage).transpose()?;
        let (hold, path) = (claim.take_hold(), claim.path().to_owned());
        let ptuuid = noted::ptuuid(&claim, &options.state_dir);
        let (journal, earlier) =
            Journal::begin(&options.state_dir, &known.key, known.bound, plan::go_on(&options))
                .map_err(journal_error)?;
        let (chunks, beside) = match earlier {
            Earlier::GoesOn { chunks, staged, .. } => (chunks, staged),
            Earlier::Nothing | Earlier::StartsOver { .. } => (Vec::new(), None),
        };
        let goes_on = !chunks.is_empty();
        let noted = DigestTable::of_notes(image.virtual_size(), chunks);
        let begun = noted::begin(&journal, (&summary, &known.key), ptuuid.as_deref()).map_err(journal_error);
        let opened = begun.and_then(|()| {
            let opened = match brought {
                Some(target) => Ok(target::bring(claim, target)),
                None => target::open(claim, options.placement, (fit.size, beside.map(of_journal))),
            };
            let opened = opened.map_err(|fault| unusable(fault).at_path(&path))?;
            noted::staged(&journal, opened.beside.as_ref()).map_err(journal_error)?;
            Ok(opened)
        });
        let Opened { target, exchange, .. } = match opened {
            Ok(opened) => opened,
            Err(error) => {
                journal.discard();
                return Err(error);
            }
        };
        let mode = match summary.mode {
            RunMode::Delta => RunMode::Delta,
            RunMode::Full | RunMode::Resumed if goes_on && !target.is_new() => RunMode::Resumed,
            RunMode::Full | RunMode::Resumed => RunMode::Full,
        };
        // A disk that is to grow first has nothing that could be compared behind its end.
        let grows = summary.size_after != summary.target_bytes;
        let may_write = mode != RunMode::Delta || summary.unfinished.is_some() || grows;
        let durations = Durations { prepare_ms: report::ms(started), ..Durations::default() };
        Ok(Self {
            observer,
            cancel,
            options,
            summary,
            image,
            seen_image,
            fit,
            pool,
            target,
            exchange,
            seed,
            journal,
            known,
            mode,
            noted,
            may_write,
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
    pub(super) fn abandon(mut self, error: &Error) -> TargetState {
        if self.options.on_error == OnError::Preserve {
            self.preserve();
        }
        let waits = self.exchange.as_ref().is_some_and(|exchange| !exchange.has_its_place());
        let state = if waits { TargetState::Untouched } else { self.state };
        match state {
            TargetState::Untouched => self.journal.discard(),
            state => noted::fail(&self.journal, error, state),
        }
        state
    }

    /// Lets a new file stay that could not be completed, without what could make it boot.
    fn preserve(&mut self) {
        let Some(exchange) = self.exchange.as_mut().filter(|exchange| !exchange.has_its_place()) else {
            return;
        };
        let marked = ends::mark_again(self.target.as_ref(), self.fit.ends(), self.journal.id());
        let failed = |fault: EndFault| end_error(fault, &self.summary.target);
        let kept = marked.and_then(|()| Ok(exchange.preserve(self.journal.id())?)).map_err(failed);
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

/// A fault of a pass over a disk, as the caller sees it.
pub(crate) fn copy_error(fault: CopyError, target: &Path) -> Error {
    match fault {
        CopyError::Image(fault) => image_error(ErrorKind::ImageFault, fault),
        CopyError::ImageChanged { range } => Error::new(ErrorKind::ImageFault, fault)
            .at_range(range)
            .hint_that("start again when nobody changes the image"),
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

pub(super) fn journal_error(fault: JournalError) -> Error {
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
        EndFault::Mismatch(range) => mismatch((range, 1), target),
    }
}

/// The disk does not hold what was written, or not what the image holds.
#[derive(Debug, thiserror::Error)]
#[error("{count} pieces of the disk do not read back as written, in spite of {MOST_REWRITES} rewrites")]
struct ReadsBackWrong {
    count: usize,
}

pub(super) fn mismatch((first, count): (ByteRange, usize), target: &Path) -> Error {
    Error::new(ErrorKind::Mismatch, ReadsBackWrong { count })
        .at_path(target)
        .at_range(first)
        .hint_that("the disk does not keep what is written to it: replace it")
}

fn of_journal(staged: journal::Staged) -> (u64, u64) {
    (staged.device, staged.inode)
}

fn unusable(fault: TargetError) -> Error {
    Error::new(ErrorKind::TargetUnusable, fault)
        .hint_that("check the folder's rights and room, or --in-place to write into the old file")
}
