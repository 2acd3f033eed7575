//! The disk as it was, kept before its first byte changes, and the seed as it was.
//!
//! A file that is replaced is kept by its exchange: this step only notes under which name. Anything else is packed into
//! a compressed copy, which is durable, read back and compared when this step ends. A record says how far that came.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use zeroize::Zeroizing;

use super::run::{Run, copy_error};
use crate::copy::{self, CopyError, OnBad, Pack, Packed, Sink, Transfer};
use crate::error::{Error, ErrorKind};
use crate::image::{self, NewImage, Packing};
use crate::journal::Record;
use crate::journal::kept::{self, Form, Kept, KeptSeed, Place, Stage};
use crate::observe::{Event, Phase};
use crate::plan::{DiskImage, Keeps, key_of_file};
use crate::prune;
use crate::range::ByteRange;
use crate::seed::former::{self, ReturningSeed};
use crate::sys::{beside, durable, store};
use crate::target::{Beside, TargetError, changed_ns, modified_ns};
use crate::verify::Digest;

/// The clusters of a copy.
const CLUSTER: u32 = 64 << 10;
/// Comes before the bytes of a seed: their BLAKE3.
const SUM_LEN: usize = 32;

/// What this run keeps of the disk as it was.
pub(super) struct Keeping {
    pub(super) kept: Kept,
    /// Whether the disk has changed, or is about to.
    begun: Cell<bool>,
    /// What earlier runs kept of the disk: it goes when this is kept for good.
    earlier: Vec<Kept>,
}

/// What is kept cannot be kept.
#[derive(Debug, thiserror::Error)]
enum KeepFault {
    #[error("what is to be kept of the old disk cannot be written")]
    Write(#[source] io::Error),
    #[error("the copy of the old disk does not read back as it was written")]
    ReadsBackWrong,
    #[error("the old disk cannot be read, so that it cannot be kept")]
    Disk(#[source] CopyError),
    #[error("this target cannot keep the file that it replaces")]
    Exchange(#[source] TargetError),
    #[error("the seed that was kept is damaged")]
    Seed,
}

impl Keeping {
    /// The disk is about to change: what is kept counts from now on, and what was kept before goes.
    ///
    /// # Errors
    ///
    /// When that could not be noted: then the disk must not change.
    pub(super) fn begin(&self, state_dir: &Path) -> Result<Vec<String>, Error> {
        if self.begun.get() {
            return Ok(Vec::new());
        }
        if let Form::Copy { root, bytes, .. } = &self.kept.form {
            let form = Form::Copy { stage: Stage::Begun, root: root.clone(), bytes: *bytes };
            let kept = Kept { form, ..self.kept.clone() };
            kept::write(state_dir, &kept).map_err(|error| write_error(error, state_dir))?;
        }
        self.begun.set(true);
        let stays = |earlier: &Kept| match kept::remove(state_dir, earlier) {
            Ok(None) => None,
            Ok(Some(why)) => Some(why.to_owned()),
            Err(error) => Some(error.to_string()),
        };
        let told = |(earlier, why): (&Kept, String)| {
            format!("what was kept before the rebuild {} could not be removed: {why}", earlier.journal)
        };
        let left = self.earlier.iter().filter_map(|earlier| Some((earlier, stays(earlier)?)));
        Ok(left.map(told).collect())
    }
}

impl Run<'_> {
    /// Keeps the disk as it was, where that is asked for; the disk itself is only read.
    pub(super) fn keep(&mut self) -> Result<(), Error> {
        self.stop_if_cancelled()?;
        let state_dir = self.options.state_dir.clone();
        let mut entries = std::mem::take(&mut self.old_disks.entries);
        for void in entries.iter().filter(|kept| kept.place(&state_dir) == Place::NotNeeded) {
            // What stays by a failure is removed with its record.
            let _ = release(&state_dir, void);
        }
        match self.old_disks.keeps {
            Keeps::Nothing => {
                self.keep_seed_of(&mut entries)?;
                self.old_disks.entries = entries;
                return Ok(());
            }
            Keeps::File => self.keep_file(&entries)?,
            Keeps::Copy => self.keep_copy(&entries)?,
        }
        if let Some(keeping) = &mut self.keeping {
            keeping.earlier = entries;
        }
        Ok(())
    }

    /// Lets the exchange keep the file that it replaces.
    fn keep_file(&mut self, entries: &[Kept]) -> Result<(), Error> {
        let unable = |fault| {
            Error::new(ErrorKind::Usage, KeepFault::Exchange(fault)).hint_that(
                "leave the old disk to be discarded: only the caller can keep what it brought along",
            )
        };
        let journal = self.journal.id().to_owned();
        let exchange = self.exchange.as_mut().expect("a file is replaced by an exchange");
        exchange.keep_old(&journal).map_err(unable)?;
        let Some(Beside { place, device, inode, old: Some(old), file, .. }) = &self.beside else {
            return Ok(());
        };
        let failed = |error| write_error(error, place);
        let (was, will) = (old.metadata().map_err(failed)?, file.metadata().map_err(failed)?);
        let kept_as = place.with_file_name(beside::old_name(place.file_name().unwrap_or_default(), &journal));
        let [place, kept_as] = [place, &kept_as].map(|path| path.to_string_lossy().into_owned());
        let (old, new) = (numbers_of(&was), (*device, *inode).into());
        let (len, modified_ns) = (was.len(), modified_ns(&was));
        let is_qcow2 = self.summary.qcow2.is_some();
        let form = Form::File { place, kept_as, old, new, len, modified_ns, changed_ns: None, is_qcow2 };
        let entry = Kept { keys: vec![key_of_file(&will)], ..self.entry(form) };
        self.write_entry(entry, entries)
    }

    /// Packs all of the disk that is not zero into a copy, and makes sure of it.
    fn keep_copy(&mut self, entries: &[Kept]) -> Result<(), Error> {
        let state_dir = self.options.state_dir.clone();
        let form = Form::Copy { stage: Stage::Saving, root: None, bytes: 0 };
        self.write_entry(self.entry(form), entries)?;
        let path = kept::content(&state_dir, self.journal.id());
        let packed = self.pack(&path)?;
        let root = packed.digests.root();
        if self.root_of(&path)? != root {
            return Err(Error::new(ErrorKind::TargetIo, KeepFault::ReadsBackWrong)
                .at_path(&path)
                .hint_that("the state folder's disk does not keep what is written to it: replace it"));
        }
        let keeping = self.keeping.as_mut().expect("the entry was written");
        let (root, bytes) = (Some(root.to_string()), packed.file_bytes);
        keeping.kept.form = Form::Copy { stage: Stage::Saved, root, bytes };
        kept::write(&state_dir, &keeping.kept).map_err(|error| write_error(error, &state_dir))
    }

    fn pack(&self, path: &Path) -> Result<Packed, Error> {
        let failed = |error| write_error(error, path);
        let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let mut create = File::options();
        create.read(true).write(true).create_new(true).mode(0o600).custom_flags(flags);
        let file = create.open(path).map_err(failed)?;
        // What a write of an earlier program left in the page cache is to be read as it will be after a power cut.
        self.target.sync().map_err(|fault| self.error(fault.into()))?;
        // A file that is going to grow has its old size yet.
        let virtual_size = self.summary.target_bytes;
        let disk = DiskImage::new(self.target.as_ref(), virtual_size, &self.summary.target);
        let format = NewImage { virtual_size, cluster_size: CLUSTER, packing: Packing::Zstd };
        let noting = self.noting();
        let watch = self.watch(&noting, Phase::Keep, virtual_size);
        let pack = Pack { image: &disk, format: &format, file: &file, whole: None, on_bad: OnBad::Fail };
        let packed = copy::pack(&self.pool, pack, &watch).map_err(|fault| self.pack_error(fault, path))?;
        durable::sync_folder(&kept::folder(&self.options.state_dir)).map_err(failed)?;
        // What is read back next comes from the store.
        let len = file.metadata().map_err(failed)?.len();
        store::drop_pages(&file, ByteRange::new(0, len)).map_err(failed)?;
        Ok(packed)
    }

    /// Decodes all of a copy, and digests it.
    fn root_of(&self, path: &Path) -> Result<Digest, Error> {
        let options = image::OpenOptions { format: image::Format::Qcow2, ..image::OpenOptions::default() };
        let unreadable = |fault| crate::plan::image_error(ErrorKind::TargetIo, fault);
        let image = image::open(path, &options).map_err(unreadable)?;
        crate::plan::check_tables(image.as_ref()).map_err(unreadable)?;
        let noting = self.noting();
        let watch = self.watch(&noting, Phase::Keep, image.virtual_size());
        let all = Transfer { image: image.as_ref(), sink: Sink::Digests, manifest: None, whole: None };
        let read = copy::transfer(&self.pool, all, (&watch, &mut ()));
        Ok(read.map_err(|fault| copy_error(fault, path))?.digests.root())
    }

    /// A fault while the copy is made: the disk is as it was.
    fn pack_error(&self, fault: CopyError, path: &Path) -> Error {
        match fault {
            CopyError::Cancelled | CopyError::Memory(_) | CopyError::Stalled { .. } => self.error(fault),
            CopyError::Image(_) => Error::new(ErrorKind::TargetUnusable, KeepFault::Disk(fault))
                .at_path(&self.summary.target)
                .hint_that("check the disk and the kernel's log, or leave --keep-old out"),
            CopyError::Target(fault) => {
                use std::error::Error as _;
                let cause = fault.source().and_then(|cause| cause.downcast_ref::<io::Error>());
                let kind = cause.map_or(io::ErrorKind::Other, io::Error::kind);
                write_error(io::Error::new(kind, fault), path)
            }
            fault => copy_error(fault, path),
        }
    }

    /// An entry of this run about the disk as it is named now.
    fn entry(&self, form: Form) -> Kept {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let path = std::path::absolute(&self.summary.target).unwrap_or_else(|_| self.summary.target.clone());
        Kept {
            journal: self.journal.id().to_owned(),
            instance: self.summary.instance.clone(),
            path: path.to_string_lossy().into_owned(),
            kept_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            size: self.summary.target_bytes,
            ptuuid: self.summary.target_disk.as_ref().and_then(|disk| disk.ptuuid.clone()),
            keys: vec![self.known.key.clone()],
            old_key: self.known.key.clone(),
            form,
            seed: None,
        }
    }

    /// Writes the entry and the seed of before, durably.
    fn write_entry(&mut self, mut kept: Kept, entries: &[Kept]) -> Result<(), Error> {
        let state_dir = self.options.state_dir.clone();
        let failed = |error| write_error(error, &kept::folder(&state_dir));
        kept::write(&state_dir, &kept).map_err(failed)?;
        let begun = Cell::new(false);
        self.keeping = Some(Keeping { kept: kept.clone(), begun, earlier: Vec::new() });
        kept.seed = self.keep_seed((&kept.journal, entries))?;
        if kept.seed.is_some() {
            kept::write(&state_dir, &kept).map_err(failed)?;
        }
        self.keeping.as_mut().expect("it was just made").kept = kept;
        Ok(())
    }

    /// What an entry that stands says of the seed, where the runs since wrote none and this one does: the seed that
    /// is there is the one that comes back with the old disk.
    fn keep_seed_of(&self, entries: &mut [Kept]) -> Result<(), Error> {
        let state_dir = &self.options.state_dir;
        for kept in entries {
            if kept.seed.is_some() || kept.place(state_dir) != Place::Whole {
                continue;
            }
            kept.seed = self.keep_seed((&kept.journal, &[]))?;
            if kept.seed.is_some() {
                kept.instance = kept.instance.take().or_else(|| self.summary.instance.clone());
                kept::write(state_dir, kept).map_err(|error| write_error(error, state_dir))?;
            }
        }
        Ok(())
    }

    /// Keeps the seed that is about to be replaced; `None` where the run writes none.
    fn keep_seed(&self, (journal, entries): (&str, &[Kept])) -> Result<Option<KeptSeed>, Error> {
        let Some(seed) = &self.summary.seed else { return Ok(None) };
        let state_dir = &self.options.state_dir;
        let path = std::path::absolute(&seed.path).unwrap_or_else(|_| seed.path.clone());
        let next_instance_id = seed.instance_id.clone();
        let present = former::present(&path)?;
        // A run that did not change the disk may have put its own seed there: then what it kept is the old one.
        let of_dead_run = present.as_ref().and_then(|present| {
            let kept = |entry: &&Kept| entry.seed.as_ref().is_some_and(|kept| is_from(present, kept, &path));
            entries.iter().filter(|entry| entry.place(state_dir) == Place::NotNeeded).find(kept)
        });
        let (was_there, bytes, last) = match of_dead_run.and_then(|entry| Some((entry, entry.seed.as_ref()?)))
        {
            Some((entry, seed)) => {
                (seed.was_there, read_seed(state_dir, &entry.journal, seed)?, seed.last.clone())
            }
            None => {
                let instance = self.summary.instance.as_deref();
                (present.is_some(), present, former::remembered(state_dir, instance, &path))
            }
        };
        if let Some(bytes) = bytes {
            let sealed = Zeroizing::new([&Digest::of(&bytes).as_bytes()[..], &bytes[..]].concat());
            let place = kept::seed(state_dir, journal);
            durable::write_whole(&place, &sealed).map_err(|error| write_error(error, &place))?;
        }
        Ok(Some(KeptSeed { path, was_there, next_instance_id, last }))
    }

    /// What this run was to keep goes where the disk is as it was.
    pub(super) fn keep_nothing(&mut self) {
        let state_dir = &self.options.state_dir;
        let untouched = |keeping: &mut Keeping| !keeping.begun.get();
        if let Some(keeping) = self.keeping.take_if(untouched) {
            // What stays by a failure is found by the next run, and by `prune`.
            let _ = kept::remove(state_dir, &keeping.kept);
        }
    }

    /// The file that is about to become the disk is known as the one of which earlier runs kept something.
    pub(super) fn name_again(&self) -> Result<(), Error> {
        let (Some(beside), state_dir) = (&self.beside, &self.options.state_dir) else { return Ok(()) };
        let failed = |error| write_error(error, state_dir);
        let key = key_of_file(&beside.file.metadata().map_err(failed)?);
        for mut kept in self.old_disks.entries.iter().cloned() {
            if kept.place(state_dir) == Place::Whole {
                kept.also_named(&key);
                kept::write(state_dir, &kept).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// The disk is complete: what dead runs were to keep of it is of no use, and what this one kept counts.
    pub(super) fn settle_kept(&mut self) {
        let state_dir = self.options.state_dir.clone();
        if let Err(error) = self.note_exchanged() {
            self.tell_kept(Err(write_error(error, &state_dir)));
        }
        match &self.keeping {
            Some(Keeping { kept: Kept { form: Form::Copy { .. }, .. }, begun, .. }) if !begun.get() => {
                if self.seeded.is_some() {
                    let message = "nothing had to be written to the disk, so that nothing of it is kept, and nothing of \
                                   the seed that was replaced";
                    self.observer.event(&Event::Warning { code: "kept", message: message.to_owned() });
                }
                self.keep_nothing();
            }
            Some(keeping) => self.tell_kept(keeping.begin(&state_dir)),
            None => {}
        }
        for void in self.old_disks.entries.iter().filter(|kept| kept.place(&state_dir) != Place::Whole) {
            let _ = kept::remove(&state_dir, void);
        }
        // The same.
        let _ = prune::remove_orphans(&state_dir);
    }

    /// The exchange of the names was the last change of the file that is kept, so that any later one can be told.
    fn note_exchanged(&mut self) -> io::Result<()> {
        let old = self.beside.as_ref().and_then(|beside| beside.old.as_ref());
        let (Some(Keeping { kept, .. }), Some(old)) = (&mut self.keeping, old) else { return Ok(()) };
        if let Form::File { changed_ns: at, .. } = &mut kept.form {
            *at = Some(changed_ns(&old.metadata()?));
            kept::write(&self.options.state_dir, kept)?;
        }
        Ok(())
    }

    /// The seed of before back into its place, as `seed` puts a new one there.
    pub(super) fn return_seed(&mut self) -> Result<(), Error> {
        let Some(kept) = &self.undoes else { return Ok(()) };
        let (Some(seed), Some(returning)) = (&kept.seed, self.returning_seed.take()) else { return Ok(()) };
        returning.publish(&seed.path)?;
        self.record(&Record::Seeded)?;
        let whose = (kept.instance.as_deref(), seed.path.as_path());
        if let Err(error) = former::restore(&self.options.state_dir, whose, &seed.last) {
            let message = format!("which seed this was could not be noted: {error}");
            self.observer.event(&Event::Warning { code: "seed", message });
        }
        Ok(())
    }

    fn tell_kept(&self, done: Result<Vec<String>, Error>) {
        let messages = done.unwrap_or_else(|error| vec![super::noted::in_full(&error)]);
        for message in messages {
            self.observer.event(&Event::Warning { code: "kept", message });
        }
    }
}

/// Whether the seed that lies at a place is the one that a run wrote which kept another.
fn is_from(present: &[u8], kept: &KeptSeed, path: &Path) -> bool {
    let id = kept.next_instance_id.as_bytes();
    kept.path == path && !id.is_empty() && present.windows(id.len()).any(|part| part == id)
}

/// The bytes of a seed that was kept; `None` where there was none.
fn read_seed(state_dir: &Path, journal: &str, seed: &KeptSeed) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
    if !seed.was_there {
        return Ok(None);
    }
    let path = kept::seed(state_dir, journal);
    let damaged = || {
        Error::new(ErrorKind::Credentials, KeepFault::Seed)
            .at_path(&path)
            .hint_that("remove the file to bring the disk back without it: the present seed then stays")
    };
    let sealed = Zeroizing::new(std::fs::read(&path).map_err(|_| damaged())?);
    let (sum, bytes) = sealed.split_at_checked(SUM_LEN).ok_or_else(damaged)?;
    if Digest::of(bytes).as_bytes()[..] != *sum {
        return Err(damaged());
    }
    Ok(Some(Zeroizing::new(bytes.to_vec())))
}

/// The seed of the time that is to come back, written beside its place.
pub(crate) fn stage_seed(state_dir: &Path, kept: Option<&Kept>) -> Result<Option<ReturningSeed>, Error> {
    let Some((kept, seed)) = kept.and_then(|kept| Some((kept, kept.seed.as_ref()?))) else { return Ok(None) };
    let bytes = read_seed(state_dir, &kept.journal, seed)?;
    ReturningSeed::stage(&seed.path, bytes.as_deref().map(Vec::as_slice)).map(Some)
}

/// Removes what a dead run left that takes room: its record stays, which knows of the seed.
fn release(state_dir: &Path, kept: &Kept) -> io::Result<()> {
    match &kept.form {
        Form::Copy { .. } => kept::remove_file(&kept::content(state_dir, &kept.journal)),
        Form::File { kept_as, new, .. } => {
            let numbers = (new.device, new.inode);
            beside::remove_old(&PathBuf::from(kept_as), &kept.journal, numbers).map(drop)
        }
    }
}

fn numbers_of(of: &std::fs::Metadata) -> kept::Numbers {
    use std::os::unix::fs::MetadataExt;
    (of.dev(), of.ino()).into()
}

fn write_error(error: io::Error, path: &Path) -> Error {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let kind = if full { ErrorKind::DoesNotFit } else { ErrorKind::TargetIo };
    Error::new(kind, KeepFault::Write(error)).at_path(path).hint_that(
        "see to the state folder and its room, name another with --state-dir, or leave --keep-old out",
    )
}
