//! `VerifiedChunk`: bytes that carry their digest. A target's writer takes nothing else.

use crate::range::ByteRange;
use crate::sys::aligned::AlignedBuffer;
use crate::verify::Digest;

/// Bytes of the disk together with their digest; only this room makes one.
///
/// Behind the last byte the buffer is zero up to the next multiple of 4096, so that a device can be
/// written in whole sectors.
pub struct VerifiedChunk {
    range: ByteRange,
    digest: Digest,
    buffer: AlignedBuffer,
}

/// The largest sector of a block device that a chunk's padding serves.
const PADDED_TO: usize = 4096;

impl VerifiedChunk {
    /// Takes the first `range.len()` bytes of `buffer` as the disk's bytes at `range` and digests them.
    pub(crate) fn digest(range: ByteRange, mut buffer: AlignedBuffer) -> Self {
        let len = usize::try_from(range.len()).expect("a chunk fits in memory");
        assert!(len <= buffer.len(), "a chunk's bytes lie in its buffer");
        let padded = len.next_multiple_of(PADDED_TO).min(buffer.len());
        buffer[len..padded].fill(0);
        Self { range, digest: Digest::of(&buffer[..len]), buffer }
    }

    /// The same for bytes that lie elsewhere: a few sectors, a patched end of the disk.
    pub(crate) fn copy_of(range: ByteRange, bytes: &[u8]) -> std::io::Result<Self> {
        let mut buffer = AlignedBuffer::zeroed(bytes.len().next_multiple_of(PADDED_TO).max(PADDED_TO))?;
        buffer[..bytes.len()].copy_from_slice(bytes);
        assert_eq!(range.len(), bytes.len() as u64, "a chunk's range is as long as its bytes");
        Ok(Self::digest(range, buffer))
    }

    /// Where on the disk the bytes belong.
    #[must_use]
    pub fn range(&self) -> ByteRange {
        self.range
    }

    /// The digest of the bytes.
    #[must_use]
    pub fn chunk_digest(&self) -> Digest {
        self.digest
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..usize::try_from(self.range.len()).expect("a chunk fits in memory")]
    }

    /// The bytes and the zeroes behind them up to a multiple of `sector` (a power of two, 4096 at most).
    #[must_use]
    pub fn padded_bytes(&self, sector: usize) -> &[u8] {
        assert!(sector.is_power_of_two() && sector <= PADDED_TO, "a sector is 512 to 4096 bytes");
        &self.buffer[..self.bytes().len().next_multiple_of(sector)]
    }

    /// Gives the buffer back for the next chunk.
    pub(crate) fn into_buffer(self) -> AlignedBuffer {
        self.buffer
    }
}
