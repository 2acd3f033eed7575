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
    digest: Option<Digest>,
    buffer: AlignedBuffer,
}

/// A part of a chunk as a writer wants it.
pub(crate) enum Run<'a> {
    /// These bytes are zero.
    Zero(ByteRange),
    /// These are not all zero, and are as long as the range but for padding to whole sectors.
    Data(ByteRange, &'a [u8]),
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
        let digest = (!is_zero(&buffer[..len])).then(|| Digest::of(&buffer[..len]));
        Self { range, digest, buffer }
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

    /// The digest of the bytes; `None` when all are zero, which needs no digest.
    #[must_use]
    pub fn chunk_digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..usize::try_from(self.range.len()).expect("a chunk fits in memory")]
    }

    /// The parts: runs of zeroes of at least `hole` bytes (whole blocks of that size, counted from the
    /// chunk's first byte), and what lies between; the last is padded with zeroes to whole sectors.
    ///
    /// `sector` is a power of two, 4096 at most.
    pub(crate) fn runs(&self, hole: usize, sector: usize) -> impl Iterator<Item = Run<'_>> {
        assert!(sector.is_power_of_two() && sector <= PADDED_TO, "a sector is 1 to 4096 bytes");
        let bytes = &self.buffer[..self.bytes().len().next_multiple_of(sector)];
        let mut at = 0;
        std::iter::from_fn(move || {
            let rest = bytes.get(at..).filter(|rest| !rest.is_empty())?;
            let first_is_zero = is_zero(&rest[..hole.min(rest.len())]);
            let same = rest.chunks(hole).take_while(|block| is_zero(block) == first_is_zero);
            let run = &rest[..same.map(<[u8]>::len).sum()];
            let range = ByteRange::new(self.range.start() + at as u64, run.len() as u64);
            at += run.len();
            Some(if first_is_zero { Run::Zero(range) } else { Run::Data(range, run) })
        })
    }

    /// Gives the buffer back for the next chunk.
    pub(crate) fn into_buffer(self) -> AlignedBuffer {
        self.buffer
    }
}

/// Whether every byte is zero; stops at the first block of 64 bytes that is not.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let blocks = bytes.chunks_exact(64);
    let rest = blocks.remainder();
    let any = |bytes: &[u8]| bytes.iter().fold(0, |bits, byte| bits | byte) != 0;
    !any(rest) && !blocks.into_iter().any(any)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes(chunk: &VerifiedChunk, hole: usize, sector: usize) -> Vec<(char, u64, u64)> {
        let shape = |run| match run {
            Run::Zero(range) => ('0', range.start(), range.len()),
            Run::Data(range, bytes) => {
                assert_eq!(range.len(), bytes.len() as u64);
                ('d', range.start(), range.len())
            }
        };
        chunk.runs(hole, sector).map(shape).collect()
    }

    #[test]
    fn runs_are_gapless_and_padded_to_whole_sectors() {
        let mut bytes = vec![0; 10_000];
        bytes[4096] = 1;
        let chunk = VerifiedChunk::copy_of(ByteRange::new(8192, 10_000), &bytes).unwrap();
        assert_eq!(shapes(&chunk, 4096, 1), [('0', 8192, 4096), ('d', 12288, 4096), ('0', 16384, 1808)]);
        assert_eq!(shapes(&chunk, 4096, 512), [('0', 8192, 4096), ('d', 12288, 4096), ('0', 16384, 2048)]);
        assert_eq!(shapes(&chunk, 1 << 20, 512), [('d', 8192, 10_240)]);
    }

    #[test]
    fn a_single_bit_anywhere_is_not_zero() {
        for len in [1, 63, 64, 65, 4096] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in [0, len / 2, len - 1] {
                bytes[at] = 0x80;
                assert!(!is_zero(&bytes), "byte {at} of {len}");
                bytes[at] = 0;
            }
        }
        assert!(is_zero(&[]));
    }
}
