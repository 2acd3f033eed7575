//! Images: what the disk to be restored holds. Opens, checks and reads; knows no target.
//!
//! An image answers two questions: which kind of bytes lie where (`map`), and what they are (`read`).
//! Both take slices, so that memory does not grow with the image.

mod error;

use std::fmt;

use serde::Serialize;

pub use error::ImageError;

use crate::range::ByteRange;

/// A run of the virtual disk's bytes of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Extent {
    /// Which bytes of the virtual disk.
    pub range: ByteRange,
    /// Where they come from.
    pub kind: ExtentKind,
}

impl Extent {
    /// The part of it that lies in `range`, which must share a byte with it.
    pub(crate) fn part(self, range: ByteRange) -> Self {
        let part = self.range.intersection(range).expect("a part of an extent has at least one byte");
        let before = part.start() - self.range.start();
        let kind = match self.kind {
            ExtentKind::Zero => ExtentKind::Zero,
            ExtentKind::Data { layer, host_offset } => {
                ExtentKind::Data { layer, host_offset: host_offset + before }
            }
            ExtentKind::Compressed { layer, host_offset, host_len, skip } => {
                let before = u32::try_from(before).expect("a cluster is at most 2 MiB long");
                ExtentKind::Compressed { layer, host_offset, host_len, skip: skip + before }
            }
        };
        Self { range: part, kind }
    }
}

/// Where an extent's bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExtentKind {
    /// They read as zero and nothing stores them.
    Zero,
    /// They lie in a layer's file as they are.
    Data {
        /// 0 is the image itself, 1 its backing file, and so on.
        layer: u8,
        /// The first byte's offset in that file.
        host_offset: u64,
    },
    /// They are part of one compressed cluster.
    Compressed {
        /// 0 is the image itself, 1 its backing file, and so on.
        layer: u8,
        /// The offset of the compressed bytes in that file.
        host_offset: u64,
        /// How many bytes the compressed form takes at most.
        host_len: u32,
        /// How many bytes of the decompressed cluster come before the extent's first.
        skip: u32,
    },
}

/// The disk that an image describes.
///
/// Implementations are immutable once open: every method may be called from several threads.
pub trait Image: Send + Sync {
    /// The virtual disk's size in bytes; any number, not rounded.
    fn virtual_size(&self) -> u64;

    /// The extents from `range.start()` on: in order, gapless, each within `range`.
    ///
    /// They may stop before `range.end()` when a slice is full, but hold at least one extent unless `range`
    /// is empty. A run of zeroes is as long as it can be told cheaply.
    ///
    /// # Errors
    ///
    /// When metadata cannot be read or is not as the format demands.
    fn map(&self, range: ByteRange) -> Result<Vec<Extent>, ImageError>;

    /// Fills `buffer` with the bytes of `extents`, which are neighbours and come from `map`.
    ///
    /// # Errors
    ///
    /// When bytes cannot be read or decompressed; the error names the bytes of the layer's file.
    fn read(&self, extents: &[Extent], buffer: &mut [u8], decoder: &mut Decoder) -> Result<(), ImageError>;

    /// What is known about the image without reading its content.
    fn info(&self) -> ImageInfo;

    /// Fails if the image's files are no longer the ones that were opened (device, inode, size, times).
    ///
    /// # Errors
    ///
    /// When a file changed since it was opened.
    fn check_unchanged(&self) -> Result<(), ImageError>;
}

/// One thread's decompression contexts and scratch space.
#[derive(Default)]
pub struct Decoder {
    // Filled in by the qcow2 reader.
    _private: (),
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Decoder")
    }
}

/// What is known about an image.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ImageInfo {
    /// `raw` or `qcow2`.
    pub format: &'static str,
    /// The virtual disk's size in bytes.
    pub virtual_size: u64,
    /// The image file's size in bytes.
    pub file_size: u64,
}
