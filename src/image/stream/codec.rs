//! `Codec`: the three ways in which a whole image may be packed, and what none of them may ask for.

use std::path::Path;

use super::super::error::ImageError;
use super::super::file::SourceFile;
use super::input::Input;
use crate::range::ByteRange;

/// A decoder may keep so much of what it has decoded: an xz dictionary, a zstd window.
pub(super) const MOST_WINDOW: u64 = 64 << 20;
/// No disk is larger: the kernel counts the bytes of a file in 63 bits.
pub(super) const MOST_BYTES: u64 = i64::MAX as u64;
/// So many zeroes may follow the last member or stream: what tapes and blocks are filled up with.
pub(super) const MOST_PADDING: u64 = 1 << 20;
/// Places to begin at that lie closer together gain nothing, and no more of them are kept: 2 MiB.
pub(super) const POINTS_APART: u64 = 1 << 20;
pub(super) const MOST_POINTS: usize = 128 << 10;

/// How a whole image is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Codec {
    Gzip,
    Xz,
    Zstd,
}

/// A place where decoding can begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Point {
    /// The offset on the disk of the first byte that comes out.
    pub(super) disk: u64,
    /// The offset in the file.
    pub(super) host: u64,
}

impl Codec {
    /// What begins with these bytes.
    pub(in super::super) fn of(head: &[u8]) -> Option<Self> {
        match head {
            // The third byte is the method, and deflate is the only one (RFC 1952).
            [0x1f, 0x8b, 8, ..] => Some(Self::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::Zstd),
            _ => None,
        }
    }

    /// How many bytes at the beginning tell it.
    pub(in super::super) fn magic_len(self) -> usize {
        match self {
            Self::Gzip => 3,
            Self::Xz => 6,
            Self::Zstd => 4,
        }
    }

    /// What a file of that name is packed with.
    pub(in super::super) fn of_name(path: &Path) -> Option<Self> {
        let ending = path.extension()?;
        [Self::Gzip, Self::Xz, Self::Zstd]
            .into_iter()
            .find(|codec| ending.eq_ignore_ascii_case(codec.ending()))
    }

    pub(in super::super) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
        }
    }

    pub(in super::super) fn ending(self) -> &'static str {
        match self {
            Self::Gzip => "gz",
            Self::Xz => "xz",
            Self::Zstd => "zst",
        }
    }

    /// How many bytes come out of one at most; without a bound for xz, which tells how many do.
    pub(super) fn most_for_one(self) -> u64 {
        match self {
            // 258 bytes for two bits (RFC 1951, 3.2.5).
            Self::Gzip => 1032,
            Self::Xz => u64::MAX,
            // A block of one repeated byte: 128 KiB for four (RFC 8878, 3.1.1.2).
            Self::Zstd => 32 << 10,
        }
    }

    /// The packed bytes at `at` are not as the format demands.
    pub(super) fn bad(self, file: &SourceFile, at: u64, why: &str) -> ImageError {
        let (path, codec) = (file.path().into(), self.name());
        ImageError::BadStream { path, codec, range: from(file, at), why: why.to_owned() }
    }

    /// The packed bytes at `at` ask for something that they do not get.
    pub(super) fn too_much(self, file: &SourceFile, at: u64, what: String) -> ImageError {
        let (path, codec) = (file.path().into(), self.name());
        ImageError::StreamNeeds { path, codec, range: from(file, at), what }
    }
}

/// From a place in the file to its end.
fn from(file: &SourceFile, at: u64) -> ByteRange {
    ByteRange::between(at.min(file.len()), file.len())
}

/// Whether nothing but zeroes comes to the file's end, and of them not too many.
pub(super) fn only_zeroes_follow(input: &mut Input, file: &SourceFile) -> Result<bool, ImageError> {
    if file.len() - input.offset() > MOST_PADDING {
        return Ok(false);
    }
    loop {
        let bytes = input.bytes(file)?;
        if bytes.is_empty() {
            return Ok(true);
        }
        if bytes.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        let count = bytes.len();
        input.consume(count);
    }
}
