//! The steps of a run, in their order.

use std::time::Instant;

use super::ends::{self, Check, EndFault, MOST_REWRITES};
use super::report::{self, DataDiskReport, Report, Verdict};
use super::run::{Run, journal_error};
use crate::copy::{self, CopyError, Mismatch, Scope, Sink, Transfer};
use crate::error::{Error, ErrorKind, TargetState};
use crate::guard::{DataDisk, Hold, Refusal};
use crate::journal::Record;
use crate::observe::{Event, Phase};
use crate::plan::image_error;
use crate::range::ByteRange;
use crate::request::{PowerState, VerifyPolicy, WholeDigest};
use crate::seed::{self, Replace};
use crate::sys::aligned::AlignedBuffer;
use crate::verify::{CHUNK, CHUNK_LEN, WholeDigester, holds};

/// The disk does not hold what was written, or not what the image holds.
#[derive(Debug, thiserror::Error)]
#[error("{count} pieces of the disk do not read back as written, in spite of {MOST_REWRITES} rewrites")]
struct ReadsBackWrong {
    count: usize,
}

impl Run<'_> {
    /// Makes a disk that is written into say that it is unfinished; a new file is nobody's disk yet.
    pub(super) fn invalidate(&mut self) -> Result<(), Error> {
        self.stop_if_cancelled()?;
        if self.target.is_new() {
            return Ok(());
        }
        self.record(&Record::Invalidated)?;
        self.state = TargetState::Invalidated;
        let poisoned = ends::poison(self.target.as_ref(), self.fit.ends(), self.journal.id());
        poisoned.map_err(|fault| self.error(fault))
    }

    /// The image's chunks onto the disk, and zeroes behind them; the ends are kept back.
    pub(super) fn copy(&mut self) -> Result<(), Error> {
        let started = Instant::now();
        self.state = TargetState::Partial;
        let (target, middle) = (self.target.as_ref(), self.fit.ends().middle());
        let virtual_size = self.image.virtual_size();
        let whole = match self.options.whole_digest {
            WholeDigest::Compute => Some(WholeDigester::new(virtual_size)),
            WholeDigest::Skip => None,
        };
        let transfer = Transfer { image: self.image.as_ref(), sink: Sink::Target { target, middle }, whole };
        let noting = self.noting();
        let watch = self.watch(&noting, Phase::Copy, virtual_size);
        let copied = copy::transfer(&self.pool, transfer, &watch);
        let mut copied = copied.map_err(|fault| self.error(fault))?;
        // A chunk is written in whole sectors, so the zeroes begin at the next one.
        let image_end = virtual_size.next_multiple_of(u64::from(target.sector_size())).min(self.fit.size);
        let behind = ByteRange::between(image_end, self.fit.size);
        if let Some(rest) = behind.intersection(middle).filter(|_| !target.is_new()) {
            let zeroed = copy::zero(&self.pool, target, rest, &watch);
            copied.bytes_zeroed += zeroed.map_err(|fault| self.error(fault))?;
        }
        target.sync().map_err(|fault| self.error(fault.into()))?;
        self.image.check_unchanged().map_err(|fault| image_error(ErrorKind::ImageFault, fault))?;
        self.copied = Some(copied);
        self.state = TargetState::Written;
        self.durations.copy_ms = report::ms(started);
        Ok(())
    }

    /// What the disk holds between its ends, compared with what was copied; what differs is written again.
    pub(super) fn read_back(&mut self) -> Result<(), Error> {
        let started = Instant::now();
        let scope = match self.options.verify {
            VerifyPolicy::Full => Scope::Everything,
            VerifyPolicy::Written => Scope::Data,
            VerifyPolicy::Off => return Ok(()),
        };
        let middle = self.fit.ends().middle();
        let noting = self.noting();
        let watch = self.watch(&noting, Phase::ReadBack, middle.len());
        let read = copy::check(&self.pool, self.target.as_ref(), (self.digests(), middle), scope, &watch);
        self.read = read.map_err(|fault| self.error(fault))?;
        let mut wrong = std::mem::take(&mut self.read.mismatches);
        for rewrites in 1..=MOST_REWRITES {
            if wrong.is_empty() {
                break;
            }
            wrong = self.write_again(&wrong, rewrites)?;
        }
        if let Some(first) = wrong.first() {
            return Err(self.mismatch(first.range, wrong.len()));
        }
        let root = self.digests().root();
        self.record(&Record::Verified { root })?;
        self.durations.read_back_ms = report::ms(started);
        Ok(())
    }

    /// Writes the mismatches again, syncs, reads them back; returns those that are still wrong.
    fn write_again(&mut self, wrong: &[Mismatch], rewrites: u32) -> Result<Vec<Mismatch>, Error> {
        for mismatch in wrong {
            self.observer.event(&Event::Rewriting { range: mismatch.range });
            let target = self.target.as_ref();
            let repaired = copy::repair(self.image.as_ref(), target, mismatch, self.digests());
            let first_differing = repaired.map_err(|fault| self.error(fault))?;
            report::note_repair(&mut self.repairs, mismatch.range, first_differing, rewrites);
        }
        let target = self.target.as_ref();
        target.sync().map_err(|fault| self.error(fault.into()))?;
        let buffer = AlignedBuffer::zeroed(CHUNK_LEN).map_err(CopyError::Memory);
        let mut buffer = buffer.map_err(|fault| self.error(fault))?;
        let mut still_wrong = Vec::new();
        for mismatch in wrong {
            let right = holds(target, mismatch.range, mismatch.expected, &mut buffer);
            if !right.map_err(|fault| self.error(fault.into()))? {
                still_wrong.push(*mismatch);
            }
        }
        Ok(still_wrong)
    }

    /// The seed into its place: before the disk can boot, so that no machine comes up with the old password.
    pub(super) fn seed(&mut self) -> Result<(), Error> {
        self.stop_if_cancelled()?;
        if let Some(seed) = self.seed.take() {
            self.seeded = Some(seed.publish(Replace::Existing)?);
            self.record(&Record::Seeded)?;
        }
        Ok(())
    }

    /// The ends of the disk, its first block last; then a new file takes the old one's place.
    pub(super) fn finish(&mut self) -> Result<(), Error> {
        let started = Instant::now();
        self.refuse_new_holders()?;
        let bounds = self.fit.ends();
        let patches = self.fit.patches();
        let withheld = &self.copied.as_ref().expect("the copy came before").withheld;
        let (head, tail) =
            (ends::assemble(bounds.head, withheld, patches), ends::assemble(bounds.tail, withheld, patches));
        let check = match self.options.verify {
            VerifyPolicy::Off => Check::Trust,
            VerifyPolicy::Full | VerifyPolicy::Written => Check::ReadBack,
        };
        let completed =
            ends::complete(self.target.as_ref(), bounds, (&head, &tail), (check, self.journal.id()));
        for part in completed.map_err(|fault| self.end_error(fault))? {
            report::note_repair(&mut self.repairs, part.range, part.first_differing, part.rewrites);
        }
        if check == Check::ReadBack {
            self.read.bytes_read += bounds.head.len() + bounds.tail.len();
            self.state = TargetState::Verified;
        }
        if self.exchange.is_some() {
            self.record(&Record::Exchanging)?;
        }
        if let Some(exchange) = &mut self.exchange {
            exchange.publish().map_err(CopyError::from).map_err(|fault| self.error(fault))?;
        }
        // From here on the new file is the system disk.
        if let Some(mut exchange) = self.exchange.take() {
            exchange.settle().map_err(|fault| self.error(fault.into()))?;
        }
        self.durations.finish_ms = report::ms(started);
        Ok(())
    }

    /// Whoever took hold of the disk in spite of the locks would see it change under their hands.
    fn refuse_new_holders(&self) -> Result<(), Error> {
        let holders = self.hold.as_ref().map(Hold::look_again).unwrap_or_default();
        let about = |refusal| {
            Error::new(ErrorKind::TargetIo, refusal)
                .at_path(&self.summary.target)
                .hint_that("somebody took hold of the disk during the run: stop it, then rebuild again")
        };
        let errors: Vec<_> = holders.into_iter().map(about).collect();
        if errors.is_empty() { Ok(()) } else { Err(Error::first_of(errors)) }
    }

    /// What was done; an error only where a data disk changed meanwhile.
    pub(super) fn report(self, started: Instant) -> Result<Report, Error> {
        self.remember_seed();
        let host = self.data_disks.first().map(DataDisk::host);
        let compare = |disk| report::compare(disk, host.as_ref().expect("there is a data disk"));
        let data_disks: Vec<_> = self.data_disks.iter().map(compare).collect();
        self.journal.finish().map_err(|fault| journal_error(fault).leaving(self.state))?;
        let by = |verdict: Verdict| data_disks.iter().filter(move |disk| disk.verdict == verdict);
        for disk in by(Verdict::ChangedElsewhere) {
            let message =
                format!("the shareable data disk {:?} changed: {}", disk.path, disk.differences.join(", "));
            self.observer.event(&Event::Warning { code: "data_disk", message });
        }
        let about = |disk: &DataDiskReport| {
            let (path, what) = (disk.path.clone(), disk.in_words());
            Error::new(ErrorKind::DataDiskChanged, Refusal::DataDiskChanged { path: path.clone(), what })
                .at_path(path)
                .hint_that("something other than this run wrote to it; the system disk is complete")
        };
        let changed: Vec<_> = by(Verdict::Changed).map(about).collect();
        if !changed.is_empty() {
            return Err(Error::first_of(changed).leaving(self.state));
        }
        let copied = self.copied.expect("the copy came before");
        let mut durations = self.durations;
        durations.total_ms = report::ms(started);
        Ok(Report {
            target: self.summary.target.clone(),
            target_bytes: self.fit.size,
            target_state: self.state,
            power_state: PowerState::Stopped,
            root: copied.digests.root(),
            chunk_bytes: CHUNK,
            whole_digest: copied.whole,
            bytes_written: copied.bytes_written,
            bytes_zeroed: copied.bytes_zeroed,
            bytes_read_back: self.read.bytes_read,
            bytes_proved_holes: self.read.bytes_proved,
            repairs: self.repairs,
            gpt: self.summary.gpt.clone(),
            seed: self.seeded,
            data_disks,
            sandbox: self.pool.sandbox(),
            durations,
            plan: self.summary,
        })
    }

    /// Only now: a run that did not end may be repeated with the same instance id.
    fn remember_seed(&self) {
        let Some(seed) = &self.seeded else { return };
        let remembered = seed::remember(&self.options.state_dir, self.summary.instance.as_deref(), seed);
        if let Err(error) = remembered {
            let message = seed::not_remembered(&error);
            self.observer.event(&Event::Warning { code: "seed", message });
        }
    }

    fn stop_if_cancelled(&self) -> Result<(), Error> {
        if self.cancel.is_cancelled() { Err(self.error(CopyError::Cancelled)) } else { Ok(()) }
    }

    fn mismatch(&self, first: ByteRange, count: usize) -> Error {
        Error::new(ErrorKind::Mismatch, ReadsBackWrong { count })
            .at_path(&self.summary.target)
            .at_range(first)
            .hint_that("the disk does not keep what is written to it: replace it")
    }

    fn end_error(&self, fault: EndFault) -> Error {
        match fault {
            EndFault::Copy(fault) => self.error(fault),
            EndFault::Mismatch(range) => self.mismatch(range, 1),
        }
    }
}
