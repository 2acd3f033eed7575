//! Targets: the system disk that is written. Only a `Claim` becomes one.

mod error;

pub use error::TargetError;

use crate::range::ByteRange;
use crate::verify::VerifiedChunk;

/// A system disk that may be written.
///
/// Every method may be called from several threads; what one thread wrote, another reads back after `sync`.
pub trait Target: Send + Sync {
    /// The disk's size in bytes.
    fn size(&self) -> u64;

    /// The unit in which it is written: 1 for files, the logical sector's bytes for devices.
    fn sector_size(&self) -> u32;

    /// Whether every byte that was not written yet reads as zero (a new file).
    fn is_new(&self) -> bool;

    /// Writes the bytes of a chunk to where they belong, padded to whole sectors.
    ///
    /// # Errors
    ///
    /// When not all of them could be handed to the kernel.
    fn write(&self, chunk: &VerifiedChunk) -> Result<(), TargetError>;

    /// Makes `range` (whole sectors) read as zero, whatever was there.
    ///
    /// # Errors
    ///
    /// When that could not be guaranteed.
    fn write_zeroes(&self, range: ByteRange) -> Result<(), TargetError>;

    /// Makes everything written so far durable.
    ///
    /// # Errors
    ///
    /// When it is not: then nothing since the last good sync may be believed.
    fn sync(&self) -> Result<(), TargetError>;

    /// Reads what the disk holds, not what the page cache holds, into the first `range.len()` bytes of
    /// `buffer`; whole sectors, and the buffer is page-aligned and has room for them.
    ///
    /// # Errors
    ///
    /// When the bytes cannot be read.
    fn read(&self, range: ByteRange, buffer: &mut [u8]) -> Result<(), TargetError>;

    /// The first run at or behind `offset` that is not proved to be a hole; `None` when all the rest is.
    ///
    /// A device proves nothing and answers with all that remains.
    ///
    /// # Errors
    ///
    /// When the file cannot be asked.
    fn next_data(&self, offset: u64) -> Result<Option<ByteRange>, TargetError>;
}
