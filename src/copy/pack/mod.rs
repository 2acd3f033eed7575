//! The way into a new image: read, digest, compress in parallel; laid out in order of the disk; written in any order.
//!
//! The threads compress stretches of the disk and write parts of the file. In between the calling thread gives the
//! clusters their places, in order of the disk, so that the file does not depend on which thread was faster.

mod bad;
mod pass;
mod squeeze;
mod stretches;
#[cfg(test)]
mod tests;

pub(crate) use bad::OnBad;
pub(super) use squeeze::Press;

use std::cell::RefCell;
use std::fs::File;

use super::farm::Pool;
use super::patience::{MayOpen, patiently};
use super::{CopyError, Watch};
use crate::image::{Image, NewImage};
use crate::range::ByteRange;
use crate::sys::store::{self, UncachedWrites};
use crate::target::TargetError;
use crate::verify::{Digest, DigestTable, WholeDigester};
use pass::Pass;
use squeeze::Shared;

/// A disk that becomes a new image.
pub(crate) struct Pack<'a> {
    pub(crate) image: &'a dyn Image,
    /// What the file is to be; of the same virtual size as the disk.
    pub(crate) format: &'a NewImage,
    /// Empty, and open for reading and writing.
    pub(crate) file: &'a File,
    /// Present when the digest of the whole disk is wanted too.
    pub(crate) whole: Option<WholeDigester>,
    pub(crate) on_bad: OnBad,
}

/// What was packed; the file is complete and durable.
pub(crate) struct Packed {
    /// Of what the image holds, where sectors were bad as well.
    pub(crate) digests: DigestTable,
    pub(crate) whole: Option<Digest>,
    /// How long the file is.
    pub(crate) file_bytes: u64,
    /// What of the disk could not be read and became zero, in order and apart.
    pub(crate) bad: Vec<ByteRange>,
}

/// Makes the image; after an error the file holds no header that any reader would take for one.
///
/// # Errors
///
/// When there can be no such image, the disk cannot be read, or the file cannot be written or synced: a sync that
/// failed is not tried again.
///
/// # Panics
///
/// If the image to be made has another virtual size than the disk.
pub(crate) fn pack(pool: &Pool, pack: Pack<'_>, watch: &Watch<'_>) -> Result<Packed, CopyError> {
    let Pack { image, format, file, whole, on_bad } = pack;
    assert_eq!(
        image.virtual_size(),
        format.virtual_size,
        "the new image holds the whole disk and nothing else"
    );
    let shared = Shared {
        image,
        format,
        file,
        writes: UncachedWrites::default(),
        hashes_all: whole.is_some(),
        on_bad,
        cancel: watch.cancel,
    };
    let pass = RefCell::new(Pass::new(image, *format, (whole, pool.thread_count()))?);
    watch.started();
    let next = || match watch.cancel.is_cancelled() {
        true => Err(CopyError::Cancelled),
        false => pass.borrow_mut().next(),
    };
    let done = |outcome| {
        let mut pass = pass.borrow_mut();
        pass.absorb(outcome);
        watch.progress(pass.bytes_done().min(watch.bytes_total));
        Ok(())
    };
    pool.run_paced(next, |worker, job| shared.work(worker, job), done, watch)?;
    let (packed, header) = pass.into_inner().finish();
    complete(&shared, &header, packed.file_bytes, watch)?;
    watch.progress(watch.bytes_total);
    Ok(packed)
}

/// Writes the header behind everything else.
fn complete(shared: &Shared<'_>, header: &[u8], file_bytes: u64, watch: &Watch<'_>) -> Result<(), CopyError> {
    let file = shared.file;
    let sync = || file.sync_all().map_err(TargetError::during("syncing the image"));
    unhurried(sync, watch)?;
    if watch.cancel.is_cancelled() {
        return Err(CopyError::Cancelled);
    }
    let write_header = || {
        let range = ByteRange::new(0, header.len() as u64);
        let written = shared.writes.write_all_at(file, header, 0);
        written.map_err(TargetError::when("writing the image's header", range))?;
        sync()?;
        // What is read back is to come from the disk.
        store::drop_pages(file, ByteRange::new(0, file_bytes))
            .map_err(TargetError::during("dropping the page cache"))
    };
    unhurried(write_header, watch)
}

/// Does what a disk may take its time for.
fn unhurried(
    act: impl FnOnce() -> Result<(), TargetError> + Send,
    watch: &Watch<'_>,
) -> Result<(), CopyError> {
    let (done, stalled) = patiently(MayOpen::Nothing, act, watch)?;
    done?;
    stalled.map_or(Ok(()), Err)
}
