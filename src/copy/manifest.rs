//! An image's bytes against its manifest, and the digest of its file.

use super::farm::{Pool, Worker};
use super::{CopyError, Watch};
use crate::image::Image;
use crate::range::ByteRange;
use crate::verify::{CHUNK, Digest, DigestTable, WholeDigester};

/// What the chunks of an image should be, as its manifest says.
#[derive(Clone, Copy)]
pub(crate) struct ByManifest<'a> {
    pub(crate) digests: &'a DigestTable,
    pub(crate) standing: Standing,
}

/// What a manifest's word of a chunk is worth before the chunk is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is to be compared with what the image gives.
    Claimed,
    /// The image was found to be the file that the manifest was made with: a disk that holds what the manifest says
    /// holds what the image does.
    Proved,
}

impl ByManifest<'_> {
    /// Whether the chunk at `range` has the digest that it should have; `None` is that of zeroes.
    pub(super) fn check(&self, range: ByteRange, found: Option<Digest>) -> Result<(), CopyError> {
        let said = self.digests.get(range.start());
        if found == said { Ok(()) } else { Err(CopyError::OtherThanManifest { range, said, found }) }
    }

    /// Whether all chunks of `range` should be zero.
    pub(super) fn check_zeroes(&self, range: ByteRange) -> Result<(), CopyError> {
        match self.digests.first_in(range) {
            None => Ok(()),
            Some(chunk) => self.check(chunk, None),
        }
    }
}

/// The BLAKE3 of the image's own file, of `watch.bytes_total` bytes, as it lies: read once, by all threads.
pub(crate) fn digest_file(pool: &Pool, image: &dyn Image, watch: &Watch<'_>) -> Result<Digest, CopyError> {
    let size = watch.bytes_total;
    let (mut whole, mut bytes_done) = (WholeDigester::new(size), 0);
    let mut pieces = ByteRange::new(0, size).cut(CHUNK);
    watch.started();
    let next = || match watch.cancel.is_cancelled() {
        true => Err(CopyError::Cancelled),
        false => Ok(pieces.next()),
    };
    let work = |worker: &mut Worker, piece: ByteRange| {
        let mut buffer = worker.take_buffer()?;
        let bytes = &mut buffer[..usize::try_from(piece.len()).expect("a chunk fits in memory")];
        image.read_file(piece.start(), bytes)?;
        let value = WholeDigester::chaining_value(size, piece, bytes);
        worker.give_back(buffer);
        Ok((piece, value))
    };
    let done = |(piece, value): (ByteRange, _)| {
        whole.insert(piece, value);
        bytes_done += piece.len();
        watch.progress(bytes_done);
        Ok(())
    };
    pool.run(next, work, done, watch)?;
    Ok(whole.finish())
}
