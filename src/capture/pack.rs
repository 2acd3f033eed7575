//! A capture under way: what it holds from the first written byte to the last.

use std::io;
use std::path::Path;
use std::time::Instant;

use super::bad;
use super::fault::{self, CaptureFault, output_error, unreadable};
use super::place::{NewFile, remove_old};
use super::prepare::Prepared;
use super::report::{CaptureDurations, CaptureReport};
use super::request::{BadSectors, CaptureRequest};
use crate::copy::{self, CopyError, OnBad, Pack, Packed, Pool, Sink, Transfer, Watch};
use crate::error::{Error, ErrorKind};
use crate::guard::StorageIdentity;
use crate::image;
use crate::journal::captures::{CaptureNote, Unfinished};
use crate::manifest;
use crate::observe::{CancelToken, Observer, Phase};
use crate::plan::ImageBytes;
use crate::range::ByteRange;
use crate::rebuild::{changed_data_disks, compare_data_disks, ms};
use crate::request::{PowerState, WholeDigest};
use crate::seed::Replace;
use crate::sys::{beside, store};
use crate::verify::{
    self, CHUNK, Digest, DigestTable, Former, ImageFileDigests, Made, Manifest, ManifestError, OldManifest,
    SourceKind, StagedManifest, WholeDigester,
};

/// As many threads pack and read clusters of 2 MiB, each of which has compressor, decoder and both forms in memory.
const MOST_OF_LARGE: usize = 8;

/// A capture under way; dropped before the image has its place, nothing is left of it.
pub(super) struct Capture<'a> {
    request: &'a CaptureRequest,
    observer: &'a dyn Observer,
    cancel: &'a CancelToken,
    prepared: Prepared,
    pool: Pool,
    new: NewFile,
    manifest: Option<StagedManifest>,
    /// Removed behind the files that it names.
    note: CaptureNote,
    pub(super) durations: CaptureDurations,
}

impl<'a> Capture<'a> {
    /// Makes the new files, and notes where they will wait before they get these names.
    pub(super) fn begin(
        (request, mut prepared): (&'a CaptureRequest, Prepared),
        (observer, cancel): (&'a dyn Observer, &'a CancelToken),
    ) -> Result<Self, Error> {
        let most = if prepared.format.cluster_size > 1 << 20 { MOST_OF_LARGE } else { usize::MAX };
        let pool = Pool::start_at_most(request.options.threads, most).map_err(|error| {
            Error::new(ErrorKind::Internal, CopyError::Memory(error))
                .hint_that("check the limits on threads and memory of this user")
        })?;
        let new = prepared.place.take().expect("a capture begins once").make()?;
        let manifest = prepared.manifest.as_deref().map(|path| stage_manifest(request, path)).transpose()?;
        let note = note(request, &new, manifest.as_ref())?;
        let durations = CaptureDurations::default();
        let capture = Self { request, observer, cancel, prepared, pool, new, manifest, note, durations };
        capture.new.wait()?;
        if let (Some(manifest), Some(path)) = (&capture.manifest, &capture.prepared.manifest) {
            manifest.wait().map_err(|fault| unstaged(fault, path))?;
        }
        capture.stop_if_cancelled()?;
        Ok(capture)
    }

    /// The disk's chunks into the new file, which is durable afterwards.
    pub(super) fn pack(&mut self) -> Result<Packed, Error> {
        let started = Instant::now();
        let (request, disk) = (self.request, self.prepared.disk.as_ref());
        let whole = match request.options.whole_digest {
            WholeDigest::Compute => Some(WholeDigester::new(disk.virtual_size())),
            WholeDigest::Skip => None,
        };
        let on_bad = match request.bad_sectors {
            BadSectors::Fail => OnBad::Fail,
            BadSectors::FillZeroes => OnBad::FillZeroes,
        };
        let (format, file) = (&self.prepared.format, self.new.file());
        let pack = Pack { image: disk, format, file, whole, on_bad };
        let packed = copy::pack(&self.pool, pack, &self.watch(Phase::Copy));
        let packed = packed.map_err(|fault| self.unpacked(fault))?;
        self.durations.pack_ms = ms(started);
        Ok(packed)
    }

    /// Why the disk could not be packed; of one that cannot be read, where else that is so.
    fn unpacked(&self, fault: CopyError) -> Error {
        let (files, disk) = (self.request.files(), self.prepared.disk.as_ref());
        let first = match &fault {
            // In a qcow2 file, places are none of the disk's.
            CopyError::Image(fault) if fault.is_unreadable() && disk.info().format == "raw" => fault.range(),
            _ => None,
        };
        let further =
            first.map(|first| bad::further(&ImageBytes(disk), first, self.cancel)).unwrap_or_default();
        files.packing(fault).and(bad::errors(files.disk, further))
    }

    /// Reads the new file back, from its disk and through the image reader, and compares it with what was packed.
    pub(super) fn read_back(&mut self, packed: &Packed) -> Result<ReadBack, Error> {
        let started = Instant::now();
        let path = &self.request.image;
        let unopened =
            |source| output_error(CaptureFault::Place { doing: "opening the new image", source }, path);
        store::drop_pages(self.new.file(), ByteRange::new(0, 0)).map_err(unopened)?;
        let options = image::OpenOptions {
            format: image::Format::Qcow2,
            nested: image::Nested::Refuse,
            backing_folders: &[],
        };
        let reader = self.new.reader().map_err(unopened)?;
        let image = image::open_file(reader, path, &options).map_err(|fault| unreadable(fault, path))?;
        let whole = ByteRange::new(0, self.prepared.format.virtual_size);
        if image.virtual_size() != whole.len() {
            return Err(fault::mismatch(whole, path));
        }
        crate::plan::check_tables(image.as_ref()).map_err(|fault| unreadable(fault, path))?;
        let transfer = Transfer { image: image.as_ref(), sink: Sink::Digests, whole: None, manifest: None };
        let read = copy::transfer(&self.pool, transfer, (&self.watch(Phase::ReadBack), &mut ()));
        let read = read.map_err(|fault| self.request.files().reading_back(fault))?;
        if let Some(range) = first_difference(&packed.digests, &read.digests) {
            return Err(fault::mismatch(range, path));
        }
        let watch = Watch { bytes_total: packed.file_bytes, ..self.watch(Phase::ReadBack) };
        let file = manifest::digest_file(image.as_ref(), &watch);
        let file = file.map_err(|fault| self.request.files().reading_back(fault))?;
        // Of what the image holds: the head of the disk may be one that cannot be read.
        let head = manifest::former_head(&ImageBytes(image.as_ref()));
        let head = head.map_err(|error| {
            output_error(CaptureFault::Place { doing: "reading the image's head", source: error }, path)
        })?;
        self.durations.read_back_ms = ms(started);
        Ok(ReadBack { file, head })
    }

    /// Fails if the disk was another by the end, or somebody took hold of it in spite of the locks.
    pub(super) fn refuse_changed_disk(&self, packed: &Packed) -> Result<(), Error> {
        let path = self.request.disk();
        let prepared = &self.prepared;
        prepared.seen.check_unchanged(prepared.disk.as_ref(), packed.digests.root()).map_err(|error| {
            Error::new(ErrorKind::ImageFault, CaptureFault::Changed)
                .at_path(path)
                .hint_that("find out who writes to the disk, then capture again")
                .and([error])
        })?;
        let about = |refusal| {
            Error::new(ErrorKind::TargetIo, refusal)
                .at_path(path)
                .hint_that("somebody took hold of the disk during the capture: stop it, then capture again")
        };
        let holders: Vec<_> = prepared.claim.hold().look_again().into_iter().map(about).collect();
        if holders.is_empty() { Ok(()) } else { Err(Error::first_of(holders)) }
    }

    /// The image into its place, then its manifest; an old manifest goes before both.
    pub(super) fn publish(self, packed: Packed, read: ReadBack) -> Result<CaptureReport, Error> {
        self.stop_if_cancelled()?;
        let (request, root, image_file) = (self.request, packed.digests.root(), read.file);
        if let Some(manifest) = &self.manifest {
            self.write_manifest(manifest, (packed.digests, packed.whole, &packed.bad), read)?;
        }
        let replaced = self.new.replaces();
        if request.replace == Replace::Existing {
            let beside = verify::beside(&request.image);
            let old: Vec<_> = self.prepared.manifest.iter().chain([&beside]).collect();
            let removed = old.into_iter().map(|path| remove_old(path)).collect::<Result<Vec<_>, _>>()?;
            let is_gone = removed.contains(&true);
            self.new.publish().map_err(|error| if is_gone { without_manifest(error) } else { error })?;
        } else {
            self.new.publish()?;
        }
        if let Some(manifest) = self.manifest {
            manifest.publish().map_err(|fault| {
                manifest_error(fault, self.prepared.manifest.as_deref())
                    .hint_that("the image is complete without it: reimage manifest makes it again")
            })?;
        }
        drop(self.note);
        let prepared = self.prepared;
        let data_disks = compare_data_disks(&prepared.data_disks, self.observer);
        let changed =
            changed_data_disks(&data_disks, "the image is complete, and may be of a machine that ran");
        if !changed.is_empty() {
            return Err(Error::first_of(changed));
        }
        Ok(CaptureReport {
            instance: request.instance.id.clone(),
            disk: request.disk().to_owned(),
            disk_facts: prepared.claim.facts().cloned(),
            source: prepared.disk.info(),
            content: prepared.content,
            layout: prepared.layout,
            power_state: PowerState::Stopped,
            image: request.image.clone(),
            virtual_size: prepared.format.virtual_size,
            cluster_size: request.cluster_size,
            packing: request.packing,
            image_file,
            replaced,
            manifest: prepared.manifest,
            root,
            chunk_bytes: CHUNK,
            whole_digest: packed.whole,
            bad_sectors: request.bad_sectors,
            filled: packed.bad,
            data_disks,
            sight: prepared.sight,
            warnings: prepared.warnings,
            sandbox: self.pool.sandbox(),
            durations: self.durations,
        })
    }

    /// The manifest is complete afterwards, but for its name.
    fn write_manifest(
        &self,
        staged: &StagedManifest,
        (digests, whole, filled): (DigestTable, Option<Digest>, &[ByteRange]),
        read: ReadBack,
    ) -> Result<(), Error> {
        let source = match self.prepared.claim.facts().map(|facts| facts.identity) {
            Some(StorageIdentity::Device { .. }) => SourceKind::Device,
            _ => SourceKind::File,
        };
        let made = Made::now(source, "qcow2", filled.to_vec());
        let manifest = Manifest::new(digests, whole, read.file, made).with_head(read.head);
        staged.write(&manifest).map_err(|fault| manifest_error(fault, self.prepared.manifest.as_deref()))
    }

    fn watch(&self, phase: Phase) -> Watch<'_> {
        let (bytes_total, stall_timeout) =
            (self.prepared.format.virtual_size, self.request.options.stall_timeout);
        Watch { observer: self.observer, cancel: self.cancel, phase, bytes_total, stall_timeout }
    }

    fn stop_if_cancelled(&self) -> Result<(), Error> {
        match self.cancel.is_cancelled() {
            true => Err(self.request.files().packing(CopyError::Cancelled)),
            false => Ok(()),
        }
    }
}

/// What the image was found to be when it was read back.
pub(super) struct ReadBack {
    file: ImageFileDigests,
    /// What a moved backup GPT would change of the disk's head.
    head: Vec<Former>,
}

/// The new image has not got its name, and the old one has lost its manifest.
fn without_manifest(error: Error) -> Error {
    let hint = error.hint().unwrap_or_default().to_owned();
    error.hint_that(format!(
        "the old image's manifest is removed already, and reimage manifest makes it again; {hint}"
    ))
}

/// Makes the file of the manifest.
fn stage_manifest(request: &CaptureRequest, path: &Path) -> Result<StagedManifest, Error> {
    let old = match request.replace {
        Replace::Refuse => OldManifest::Refuse,
        Replace::Existing => OldManifest::Replace,
    };
    StagedManifest::make(path, old).map_err(|fault| unstaged(fault, path))
}

fn unstaged(fault: ManifestError, path: &Path) -> Error {
    match fault {
        ManifestError::Io { .. } => Error::new(ErrorKind::TargetUnusable, fault)
            .at_path(path)
            .hint_that("wait for a capture that is under way, or look at the folder's rights and room"),
        fault => Error::new(ErrorKind::Usage, fault).at_path(path).hint_that("name another file for it"),
    }
}

fn manifest_error(fault: ManifestError, path: Option<&Path>) -> Error {
    let (kind, hint) = match &fault {
        ManifestError::TooManyChunks { .. } => {
            (ErrorKind::DoesNotFit, "say --manifest none; a rebuild from such an image is not proved by one")
        }
        _ => (ErrorKind::TargetIo, "check the manifest's folder and its room, then capture again"),
    };
    Error::new(kind, fault).at_path(path.unwrap_or(Path::new(""))).hint_that(hint)
}

fn note(
    request: &CaptureRequest,
    new: &NewFile,
    manifest: Option<&StagedManifest>,
) -> Result<CaptureNote, Error> {
    let lies_at = |manifest: &StagedManifest| {
        let (folder, name, file) = manifest.made();
        beside::lies_at(folder, name, file)
    };
    let unfinished = |(path, (device, inode))| Unfinished { path, device, inode };
    let noted = [new.lies_at()].into_iter().chain(manifest.map(lies_at)).collect::<io::Result<Vec<_>>>();
    let noted = noted.and_then(|files| {
        let files: Vec<_> = files.into_iter().map(unfinished).collect();
        CaptureNote::begin(&request.options.state_dir, &files)
    });
    noted.map_err(|source| {
        // Another capture of that image holds the note.
        if source.kind() == io::ErrorKind::WouldBlock {
            return super::place::unmade(io::ErrorKind::ResourceBusy.into(), &request.image);
        }
        Error::new(
            ErrorKind::Usage,
            CaptureFault::Place { doing: "noting the capture in the state folder", source },
        )
        .at_path(&request.options.state_dir)
        .hint_that("name a folder that can be written with --state-dir")
    })
}

/// The first chunk that is not in both tables alike.
fn first_difference(left: &DigestTable, right: &DigestTable) -> Option<ByteRange> {
    let (mut left, mut right) = (left.iter(), right.iter());
    loop {
        match (left.next(), right.next()) {
            (None, None) => return None,
            (left, right) if left == right => {}
            (left, right) => return [left, right].into_iter().flatten().map(|(range, _)| range).min(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(chunks: &[(u64, &[u8])]) -> DigestTable {
        let mut table = DigestTable::new(10 * CHUNK);
        for (index, bytes) in chunks {
            table.insert(table.range(*index), Digest::of(bytes));
        }
        table.sort();
        table
    }

    #[test]
    fn the_first_chunk_that_reads_back_otherwise_is_found_wherever_it_is() {
        let right = table(&[(1, b"a"), (4, b"b"), (9, b"c")]);
        for (other, expected) in [
            (table(&[(1, b"a"), (4, b"b"), (9, b"c")]), None),
            (table(&[(1, b"a"), (4, b"x"), (9, b"x")]), Some(4)),
            (table(&[(1, b"a"), (9, b"c")]), Some(4)),
            (table(&[(0, b"a"), (1, b"a"), (4, b"b"), (9, b"c")]), Some(0)),
            (table(&[(1, b"a"), (4, b"b")]), Some(9)),
            (table(&[]), Some(1)),
        ] {
            let expected = expected.map(|index| right.range(index));
            assert_eq!(first_difference(&right, &other), expected);
            assert_eq!(first_difference(&other, &right), expected);
        }
    }
}
