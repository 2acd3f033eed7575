//! The steps of a run, in their order.

use std::path::Path;
use std::time::Instant;

use super::books::Books;
use super::ends::{self, Check, EndFault, MOST_REWRITES, Rewritten};
use super::receipt::{self, Rest};
use super::report::{self, Report};
use super::run::{Run, end_error, journal_error, mismatch};
use crate::copy::{self, Compare, CopyError, MayOpen, Onto, Sink, Transfer, Transferred};
use crate::error::{Error, ErrorKind, TargetState};
use crate::guard::Hold;
use crate::image::ImageError;
use crate::journal::{self, Record};
use crate::observe::{Event, Phase};
use crate::plan::{self, Ends, KnownManifest, RunMode, TargetKind};
use crate::prune;
use crate::request::{PowerState, VerifyPolicy, WholeDigest};
use crate::seed::{self, Replace};
use crate::target::{Target, TargetError};
use crate::verify::{CHUNK, WholeDigester};

impl Run<'_> {
    /// Makes a disk that is written into say that it is unfinished; a new file is nobody's disk yet, and in delta mode
    /// the disk stays as it is until a byte differs.
    pub(super) fn invalidate(&mut self) -> Result<(), Error> {
        self.stop_if_cancelled()?;
        if self.exchange.is_some() || !self.may_write {
            return Ok(());
        }
        self.say_unfinished()
    }

    /// The image's chunks onto the disk, and zeroes behind them; the ends are kept back.
    pub(super) fn copy(&mut self) -> Result<(), Error> {
        let started = Instant::now();
        if self.linked.is_some() {
            self.link()?;
            self.durations.copy_ms = report::ms(started);
            return Ok(());
        }
        if self.may_write {
            self.state = TargetState::Partial;
        } else {
            // What is found right is to be there after a power cut, too, whoever wrote it.
            self.patiently(|target| Ok(target.sync().map(|()| Vec::new())?))?;
        }
        let mut books = self.books();
        let copied = self.transfer(&mut books);
        let (state, rewritten) = (books.state, books.rewritten);
        self.close_books(state, rewritten);
        let copied = copied?;
        self.seen_image.check_unchanged(self.image.as_ref(), copied.digests.root())?;
        self.copied = Some(copied);
        self.may_write = self.state != TargetState::Untouched;
        if !self.may_write && !self.ends_are_complete()? {
            self.say_unfinished()?;
        }
        if self.may_write {
            self.state = TargetState::Written;
        }
        self.durations.copy_ms = report::ms(started);
        Ok(())
    }

    fn transfer(&self, books: &mut Books<'_>) -> Result<Transferred, Error> {
        let (target, middle) = (self.target.as_ref(), self.fit.ends().middle());
        let virtual_size = self.image.virtual_size();
        let whole = match self.options.whole_digest {
            WholeDigest::Compute => Some(WholeDigester::new(virtual_size)),
            WholeDigest::Skip => None,
        };
        let compare = match self.mode {
            RunMode::Full | RunMode::Linked => Compare::Nothing,
            // Nothing tells whether a device that is the image has been written between the two runs.
            RunMode::Resumed if self.image.identities().iter().any(|file| file.block_device.is_some()) => {
                Compare::Everything
            }
            RunMode::Resumed => Compare::Noted(&self.noted),
            RunMode::Delta => Compare::Everything,
        };
        let (may_write, checkpoint) = (self.may_write, self.options.checkpoint);
        let sink = Sink::Target(Onto { target, middle, compare, may_write, checkpoint });
        let noting = self.noting();
        let watch = self.watch(&noting, Phase::Copy, virtual_size);
        let manifest = self.manifest.as_ref().map(KnownManifest::chunks);
        let transfer = Transfer { image: self.image.as_ref(), sink, manifest, whole };
        let copied = copy::transfer(&self.pool, transfer, (&watch, books));
        copied.map_err(|fault| match fault {
            CopyError::OtherThanManifest { .. } => self.other_than_manifest(fault, books.state),
            // As long as the disk is the old one, a stream that turns out to be damaged is a refused image.
            CopyError::Image(fault) if fault.is_of_stream() && self.is_untouched(books.state) => {
                plan::image_error(self.kind_of(&fault), fault)
            }
            fault => self.error(fault),
        })
    }

    /// A stream may be right and longer than a disk whose size the plan found out only behind the image's outline.
    fn kind_of(&self, fault: &ImageError) -> ErrorKind {
        let summary = &self.summary;
        let is_told_late = summary.target_kind == TargetKind::CallersOwn
            || summary.qcow2.is_some() && self.options.size.is_none();
        match fault {
            ImageError::StreamTooLong { .. } if is_told_late => ErrorKind::DoesNotFit,
            _ => ErrorKind::Image,
        }
    }

    /// Whether the system disk is the old one, before the exchange.
    fn is_untouched(&self, state: TargetState) -> bool {
        self.exchange.is_some() || state == TargetState::Untouched
    }

    /// A chunk that is not what the manifest says is a wrong image as long as the disk is the old one, and a fault that
    /// came too late afterwards.
    fn other_than_manifest(&self, fault: CopyError, state: TargetState) -> Error {
        let image = self.summary.image.chain.first().map(|layer| layer.path.clone()).unwrap_or_default();
        match self.is_untouched(state) {
            true => plan::other_than_manifest(fault, &image),
            false => self.error(fault).at_path(image),
        }
    }

    /// The seed into its place: before the disk can boot, so that no machine comes up with the old password.
    pub(super) fn seed(&mut self) -> Result<(), Error> {
        self.stop_if_cancelled()?;
        if let Some(seed) = self.seed.take() {
            self.seeded = Some(seed.publish(Replace::Existing)?);
            self.record(&Record::Seeded)?;
        }
        self.return_seed()
    }

    /// The ends of the disk, its first block last; then a new file takes the old one's place.
    pub(super) fn finish(&mut self) -> Result<(), Error> {
        let started = Instant::now();
        refuse_holders(self.hold.as_ref(), &self.summary.target)?;
        // A file that is sealed has its ends.
        if self.sealable.is_none() {
            self.finish_ends()?;
        }
        // Where nothing had to be written, everything has been compared.
        if !self.may_write || self.check() == Check::ReadBack {
            self.state = TargetState::Verified;
        }
        if self.exchange.is_some() {
            self.record(&Record::Exchanging)?;
            self.name_again()?;
            self.take_place()?;
        }
        self.durations.finish_ms += report::ms(started);
        Ok(())
    }

    pub(super) fn finish_ends(&mut self) -> Result<(), Error> {
        let bounds = self.fit.ends();
        let (head, tail) = self.assembled_ends();
        if self.may_write {
            self.write_ends(bounds, (&head, &tail))?;
            self.count_ends();
        }
        if self.may_write && self.check() == Check::ReadBack {
            self.read.bytes_read += bounds.head.len() + bounds.tail.len();
        }
        Ok(())
    }

    /// The new file into the old one's place: from here on it is the system disk.
    fn take_place(&mut self) -> Result<(), Error> {
        let Some(mut exchange) = self.exchange.take() else { return Ok(()) };
        if let Err(error) = self.watched(|| exchange.publish()) {
            self.exchange = Some(exchange);
            return Err(error);
        }
        self.watched(|| exchange.settle())
    }

    pub(super) fn watched(&self, act: impl FnOnce() -> Result<(), TargetError> + Send) -> Result<(), Error> {
        let watch = self.watch(self.observer, Phase::Finish, 0);
        let done = copy::patiently(MayOpen::Anything, act, &watch).map(|(done, _)| done);
        done.and_then(|done| Ok(done?)).map_err(|fault| self.error(fault))
    }

    /// What was done; an error only where a data disk changed meanwhile.
    pub(super) fn report(mut self, started: Instant) -> Result<Report, Error> {
        self.settle_kept();
        self.remember_seed();
        self.remember_image();
        self.remember_linked();
        let rest = self.rest_of_receipt();
        let data_disks = report::compare_data_disks(&self.data_disks, self.observer);
        self.journal.finish().map_err(|fault| journal_error(fault).leaving(self.state))?;
        if matches!(self.summary.target_kind, TargetKind::ReplacedFile | TargetKind::NewFile)
            && let Ok(path) = std::path::absolute(&self.summary.target)
        {
            // What stays by a failure is found by `prune`.
            let _ = prune::after_exchange(&self.options.state_dir, &path);
        }
        let changed = report::changed_data_disks(&data_disks, "the system disk is complete");
        if !changed.is_empty() {
            rest.iter().for_each(Rest::forget);
            return Err(Error::first_of(changed).leaving(self.state));
        }
        let copied = self.copied.expect("the copy came before");
        let mut durations = self.durations;
        durations.total_ms = report::ms(started);
        let report = Report {
            target: self.summary.target.clone(),
            target_bytes: self.fit.size,
            target_state: self.state,
            power_state: PowerState::Stopped,
            root: copied.digests.root(),
            chunk_bytes: CHUNK,
            mode: self.mode,
            bytes_kept: copied.bytes_kept,
            bytes_by_manifest: copied.bytes_by_manifest,
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
        };
        rest.iter().for_each(|rest| receipt::keep(rest, (&report, &copied.digests), self.observer));
        Ok(report)
    }

    /// So that the next overlay on it needs no second look.
    fn remember_linked(&self) {
        let Some(linked) = self.linked.as_ref().filter(|linked| linked.is_news) else { return };
        let about = (&linked.whole, self.digests());
        if let Err(error) = journal::remember_image(&self.options.state_dir, &linked.files, about) {
            let message = format!("that the image is whole could not be noted: {error}");
            self.observer.event(&Event::Warning { code: "journal", message });
        }
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

    /// What the disk holds now, so that the next run may compare before it writes.
    fn remember_image(&self) {
        let is_kept = match self.summary.target_kind {
            TargetKind::Device | TargetKind::InPlaceFile => true,
            TargetKind::CallersOwn => self.target.identity().is_some() && !self.target.is_new(),
            TargetKind::ReplacedFile | TargetKind::NewFile => false,
        };
        let (state_dir, known) = (&self.options.state_dir, &self.known);
        let noted = match is_kept {
            true => journal::remember(state_dir, &known.key, known.bound.binding),
            // The file that had that key is gone.
            false => journal::forget(state_dir, &known.key),
        };
        if let Err(error) = noted {
            let message = format!("what this disk holds could not be noted: {error}");
            self.observer.event(&Event::Warning { code: "journal", message });
        }
    }

    pub(super) fn stop_if_cancelled(&self) -> Result<(), Error> {
        if self.cancel.is_cancelled() { Err(self.error(CopyError::Cancelled)) } else { Ok(()) }
    }

    /// Where a write of an end has landed elsewhere, what lies beside it is looked at again.
    fn write_ends(&mut self, bounds: Ends, (head, tail): (&[u8], &[u8])) -> Result<(), Error> {
        for _ in 0..=MOST_REWRITES {
            let (check, bytes) = (self.check(), (head, tail));
            let rest = self.patiently(|target| ends::write_rest(target, bounds, bytes, check))?;
            let rewritten = !rest.is_empty();
            self.note_rewritten(rest);
            if rewritten {
                self.mend_beside_ends()?;
            }
            let (target, journal) = (self.target.as_ref(), self.journal.id());
            let first =
                self.patiently(|target| ends::write_first(target, bounds, bytes, (check, journal)))?;
            let rewritten = rewritten || !first.is_empty();
            if !rewritten || ends::are_complete(target, bounds, bytes).map_err(|fault| self.error(fault))? {
                self.note_rewritten(first);
                return Ok(());
            }
            // The fault is found again, or it is mended; meanwhile the disk does not look complete.
            let marked = ends::mark_again(target, bounds, bytes, journal);
            self.note_rewritten(first);
            marked.map_err(|fault| end_error(fault, &self.summary.target))?;
        }
        Err(mismatch((bounds.head, 1), &self.summary.target))
    }

    /// A disk that took its time is complete nevertheless.
    fn patiently(
        &self,
        act: impl FnOnce(&dyn Target) -> Result<Vec<Rewritten>, EndFault> + Send,
    ) -> Result<Vec<Rewritten>, Error> {
        let (target, watch) = (self.target.as_ref(), self.watch(self.observer, Phase::Finish, 0));
        let (done, _) =
            copy::patiently(MayOpen::Nothing, || act(target), &watch).map_err(|fault| self.error(fault))?;
        done.map_err(|fault| end_error(fault, &self.summary.target))
    }

    /// The ends that are written count as the rest of the disk does.
    fn count_ends(&mut self) {
        let copied = self.copied.as_mut().expect("the copy came before");
        for chunk in &copied.withheld {
            match chunk.chunk_digest() {
                Some(_) => copied.bytes_written += chunk.range().len(),
                None => copied.bytes_zeroed += chunk.range().len(),
            }
        }
    }

    /// In delta mode: whether the disk's ends hold what they should, too.
    fn ends_are_complete(&mut self) -> Result<bool, Error> {
        let (head, tail) = self.assembled_ends();
        let bounds = self.fit.ends();
        let complete = ends::are_complete(self.target.as_ref(), bounds, (&head, &tail));
        let complete = complete.map_err(|fault| self.error(fault))?;
        if complete {
            let copied = self.copied.as_mut().expect("the copy came before");
            copied.bytes_kept += bounds.head.len() + bounds.tail.len();
        }
        Ok(complete)
    }

    pub(super) fn assembled_ends(&self) -> (Vec<u8>, Vec<u8>) {
        let (bounds, patches) = (self.fit.ends(), self.fit.patches());
        let withheld = &self.copied.as_ref().expect("the copy came before").withheld;
        (ends::assemble(bounds.head, withheld, patches), ends::assemble(bounds.tail, withheld, patches))
    }

    pub(super) fn check(&self) -> Check {
        match self.options.verify {
            VerifyPolicy::Off => Check::Trust,
            VerifyPolicy::Full | VerifyPolicy::Written => Check::ReadBack,
        }
    }

    fn books(&self) -> Books<'_> {
        Books {
            journal: &self.journal,
            known: &self.known,
            keeping: self.keeping.as_ref(),
            state_dir: &self.options.state_dir,
            observer: self.observer,
            path: &self.summary.target,
            target: self.target.as_ref(),
            ends: self.fit.ends(),
            check: self.check(),
            watch: self.watch(self.observer, Phase::Copy, 0),
            state: self.state,
            rewritten: Vec::new(),
        }
    }

    fn close_books(&mut self, state: TargetState, rewritten: Vec<Rewritten>) {
        self.state = state;
        self.note_rewritten(rewritten);
    }

    fn note_rewritten(&mut self, rewritten: Vec<Rewritten>) {
        for part in rewritten {
            report::note_repair(&mut self.repairs, part.range, part.differing, part.rewrites);
        }
    }

    /// The first change to the disk.
    pub(super) fn say_unfinished(&mut self) -> Result<(), Error> {
        let mut books = self.books();
        let said = books.invalidate();
        let (state, rewritten) = (books.state, books.rewritten);
        self.close_books(state, rewritten);
        self.may_write = true;
        said
    }
}

/// Whoever took hold of the disk in spite of the locks would see it change under their hands.
pub(crate) fn refuse_holders(hold: Option<&Hold>, target: &Path) -> Result<(), Error> {
    let holders = hold.map(Hold::look_again).unwrap_or_default();
    let about = |refusal| {
        Error::new(ErrorKind::TargetIo, refusal)
            .at_path(target)
            .hint_that("somebody took hold of the disk during the run: stop it, then rebuild again")
    };
    let errors: Vec<_> = holders.into_iter().map(about).collect();
    if errors.is_empty() { Ok(()) } else { Err(Error::first_of(errors)) }
}
