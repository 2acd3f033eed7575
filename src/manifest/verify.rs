//! A disk against a manifest alone: no image is needed.
//!
//! Where the backup GPT was moved to the end of a larger disk, a few sectors at both ends are not the image's. What the
//! image has there in its head is in the manifest, what it has at its own end follows from that; put back in its place
//! it must give the chunks' digests, and the disk must hold what the move makes of it.

use std::io;
use std::path::Path;

use super::head::original_backup;
use crate::copy::{self, CopyError, Exceptions, Pool, Scope, Watch};
use crate::error::{Error, ErrorKind};
use crate::inspect::{VerifyReport, differs, open_complete};
use crate::layout::{self, LayoutError, Patch, ReadBytes, Relocation};
use crate::observe::{CancelToken, Observer, Phase};
use crate::plan::{self, DiskBytes, Ends, GptPlan, ManifestUse};
use crate::range::{ByteRange, RangeSet};
use crate::rebuild::copy_error;
use crate::request::{GptPolicy, Options, SystemDisk};
use crate::target::Disk;
use crate::verify::{CHUNK, Digest, Former, Manifest, is_zero};

/// Compares a disk with a manifest; writes nothing, and whatever uses the disk may go on.
///
/// Behind the end of the manifest's disk it must be zero; a backup GPT that moved is what it should be. Of the options,
/// those of the GPT, of threads and time, and of who must have signed the manifest count.
///
/// # Errors
///
/// With kind `Mismatch` where the disk differs, `ImageDigest` where the manifest is none, `TargetUnusable` where the
/// disk cannot be read.
pub fn verify_manifest(
    manifest: &Path,
    disk: &SystemDisk,
    options: &Options,
    (observer, cancel): (&dyn Observer, &CancelToken),
) -> Result<VerifyReport, Error> {
    let (place, path) = (manifest, disk.path.as_path());
    let manifest = plan::read_manifest(place, options)?;
    let disk = open_complete((disk, &options.image), manifest.virtual_size())?;
    let failed = |fault: CopyError| copy_error(fault, path);
    let pool = Pool::start(options.threads).map_err(|error| failed(CopyError::Memory(error)))?;
    let (size, stall_timeout) = (disk.size(), options.stall_timeout);
    let ends = Ends::of(size);
    let watch = Watch { observer, cancel, phase: Phase::ReadBack, bytes_total: size, stall_timeout };
    let middle = (manifest.digests(), ends.middle());
    let exceptions = Exceptions { kept: &RangeSet::default(), doubtful: &[] };
    let read = copy::check(&pool, disk.as_ref(), middle, (Scope::Everything, exceptions), &watch);
    let read = read.map_err(failed)?;
    let mut wrong: Vec<_> = read.mismatches.iter().map(|mismatch| mismatch.range).collect();
    let moved = Moved::find(&manifest, disk.as_ref(), options.gpt).map_err(|fault| about(fault, path))?;
    match &moved {
        Some(moved) => {
            for end in [ends.head, ends.tail] {
                wrong.extend(
                    moved.compare(&manifest, disk.as_ref(), end).map_err(|error| unreadable(error, path))?,
                );
            }
        }
        // Not even a table is there that could have been moved.
        None => wrong.push(ends.head),
    }
    if !wrong.is_empty() {
        return Err(differs(wrong, path));
    }
    let used = ManifestUse { path: place.to_owned(), root: manifest.root(), image_file: None };
    Ok(VerifyReport {
        root: manifest.root(),
        manifest: Some(used),
        target_bytes: size,
        bytes_read: read.bytes_read + ends.head.len() + ends.tail.len(),
        bytes_proved_holes: read.bytes_proved,
        gpt: GptPlan::of(moved.as_ref().and_then(|moved| moved.relocation.as_ref())),
    })
}

fn about(fault: LayoutError, path: &Path) -> Error {
    match fault {
        LayoutError::Read(error) => unreadable(error, path),
        fault => Error::new(fault.kind(), fault).at_path(path).hint_that("compare with --gpt keep"),
    }
}

fn unreadable(error: io::Error, path: &Path) -> Error {
    Error::new(ErrorKind::TargetUnusable, error).at_path(path)
}

/// What the move of a backup GPT made of a disk, and what was there before.
struct Moved {
    relocation: Option<Relocation>,
    /// What the image has where the disk has something else.
    before: Vec<Former>,
}

impl Moved {
    /// What a rebuild would have moved on this disk; `None` where the disk shows that it is not the manifest's.
    fn find(manifest: &Manifest, disk: &dyn Disk, gpt: GptPolicy) -> Result<Option<Self>, LayoutError> {
        let virtual_size = manifest.virtual_size();
        let nothing = || Some(Self { relocation: None, before: Vec::new() });
        if gpt == GptPolicy::Keep || disk.size() == virtual_size || manifest.head().is_empty() {
            return Ok(nothing());
        }
        let image = Undone { disk, size: virtual_size, before: manifest.head() };
        let sector = match layout::fits_sector(&image, disk.sector_size())? {
            Some(sector) => sector,
            None => return Ok(nothing()),
        };
        let relocation = match layout::relocate(&image, disk.size(), sector) {
            Ok(relocation) => relocation,
            // The image has a table that can be moved, and the disk has not.
            Err(LayoutError::NotRelocatable(_)) => return Ok(None),
            Err(fault) => return Err(fault),
        };
        let is_patched = |range: ByteRange| relocation.patches.iter().any(|patch| patch.range == range);
        let of_head = manifest.head().iter().filter(|former| is_patched(former.range)).cloned();
        let mut before: Vec<_> = of_head.collect();
        // The last one is the backup at the end, which may lie on the one that the image has at its own.
        let image_disk = ByteRange::new(0, virtual_size);
        let overwritten = relocation.patches.last().and_then(|backup| backup.range.intersection(image_disk));
        if let Some(overwritten) = overwritten {
            before.extend(original_backup(&image, sector)?.and_then(|former| former.part(overwritten)));
        }
        Ok(Some(Self { relocation: Some(relocation), before }))
    }

    fn patches(&self) -> &[Patch] {
        self.relocation.as_ref().map_or(&[], |relocation| &relocation.patches)
    }

    /// The parts of one end that are not what they should be.
    fn compare(&self, manifest: &Manifest, disk: &dyn Disk, end: ByteRange) -> io::Result<Vec<ByteRange>> {
        let mut bytes = vec![0; to_index(end.len())];
        DiskBytes(disk).read_at(end, &mut bytes)?;
        let mut wrong = Vec::new();
        for patch in self.patches() {
            let Some(common) = patch.range.intersection(end) else { continue };
            let found =
                &mut bytes[to_index(common.start() - end.start())..to_index(common.end() - end.start())];
            let right = &patch.bytes[to_index(common.start() - patch.range.start())..];
            if let Some(at) = found.iter().zip(right).position(|(found, right)| found != right) {
                wrong.push(ByteRange::between(common.start() + at as u64, common.end()));
            }
            // Behind the image's end there was nothing.
            found.fill(0);
        }
        for former in &self.before {
            layout::overlay((former.range, &former.bytes), end, &mut bytes);
        }
        let size = manifest.virtual_size();
        let image = end.intersection(ByteRange::new(0, size)).unwrap_or(ByteRange::new(end.start(), 0));
        for chunk in image.cut(CHUNK) {
            let bytes = &bytes[to_index(chunk.start() - end.start())..to_index(chunk.end() - end.start())];
            let right = match manifest.digests().get(chunk.start()) {
                Some(digest) => Digest::of(bytes) == digest,
                None => is_zero(bytes),
            };
            if !right {
                wrong.push(chunk);
            }
        }
        let behind = &bytes[to_index(image.len())..];
        let first = behind.iter().position(|byte| *byte != 0);
        wrong.extend(first.map(|at| ByteRange::between(image.end() + at as u64, end.end())));
        Ok(wrong)
    }
}

/// The image's disk as a larger one shows it, its head put back.
struct Undone<'a> {
    disk: &'a dyn Disk,
    size: u64,
    before: &'a [Former],
}

impl ReadBytes for Undone<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, range: ByteRange, buffer: &mut [u8]) -> io::Result<()> {
        DiskBytes(self.disk).read_at(range, buffer)?;
        for former in self.before {
            layout::overlay((former.range, &former.bytes), range, &mut buffer[..to_index(range.len())]);
        }
        Ok(())
    }
}

fn to_index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("an end fits in memory")
}
