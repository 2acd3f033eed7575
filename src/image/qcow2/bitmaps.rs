//! Where dirty bitmaps have their tables. Sections "Bitmaps extension" and "Bitmaps".

use super::Qcow2;
use super::snapshots::{Entries, Table};
use crate::image::error::ImageError;
use crate::image::file::SourceFile;
use crate::range::ByteRange;

const AUTOCLEAR_AT: u64 = 88;
const HEADER_LENGTH_AT: u64 = 100;
const EXTENSION: u64 = 0x2385_2875;
/// How long it is.
const EXTENSION_LEN: u64 = 24;
/// The autoclear bit without which nothing of it counts.
const ARE_CONSISTENT: u64 = 1;
/// The fixed part of a directory's entry.
const ENTRY_LEN: u64 = 24;
/// Bounds that qemu sets too.
const BITMAPS_MAX: u64 = 65535;
const DIRECTORY_LEN_MAX: u64 = 64 << 20;

impl Qcow2 {
    /// The bitmap directory; none where the header says that it does not count.
    pub(super) fn bitmap_directory(&self, file: &SourceFile) -> Result<Option<Table>, ImageError> {
        let Some((entry, [head, len, offset])) = self.bitmaps_extension(file)? else { return Ok(None) };
        let len = len.min(DIRECTORY_LEN_MAX).min(u64::MAX - offset);
        let is_empty = head >> 32 == 0 || len == 0;
        Ok((!is_empty).then_some(Table { range: ByteRange::new(offset, len), entry }))
    }

    /// The tables that a directory in the file gives.
    pub(super) fn bitmap_tables(
        &self,
        file: &SourceFile,
        directory: ByteRange,
    ) -> Result<Vec<Table>, ImageError> {
        let (mut tables, mut at, mut entries) = (Vec::new(), directory.start(), Entries::of(file));
        for _ in 0..BITMAPS_MAX {
            let entry = ByteRange::new(at, ENTRY_LEN);
            if entry.end() > directory.end() {
                break;
            }
            let bytes = entries.at(entry)?;
            let number = |at: usize, len: usize| {
                bytes[at..at + len].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
            };
            let (table, len) = (number(0, 8), number(8, 4) * 8);
            if len > 0 {
                let range = ByteRange::new(table, len.min(u64::MAX - table));
                tables.push(Table { range, entry: ByteRange::new(at, 8) });
            }
            at = (at + ENTRY_LEN + number(18, 2) + number(20, 4)).next_multiple_of(8);
        }
        Ok(tables)
    }

    /// Where the header says where the directory is, and the numbers of the extension.
    fn bitmaps_extension(&self, file: &SourceFile) -> Result<Option<(ByteRange, [u64; 3])>, ImageError> {
        if !self.header.bitmaps || self.header.version < 3 {
            return Ok(None);
        }
        let len = self.header.cluster_size().min(file.len());
        let mut bytes = vec![0; usize::try_from(len).expect("a cluster is at most 2 MiB")];
        file.read_exact_at(&mut bytes, 0)?;
        let number = |at: u64, len: usize| {
            let start = usize::try_from(at).ok()?;
            let bytes = bytes.get(start..start.checked_add(len)?)?;
            Some(bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
        };
        let counts = number(AUTOCLEAR_AT, 8).is_some_and(|bits| bits & ARE_CONSISTENT != 0);
        let mut next = number(HEADER_LENGTH_AT, 4).filter(|_| counts);
        while let Some(at) = next {
            let (Some(kind), Some(len)) = (number(at, 4), number(at + 4, 4)) else { break };
            if kind == EXTENSION
                && len == EXTENSION_LEN
                && let (Some(head), Some(len), Some(offset)) =
                    (number(at + 8, 8), number(at + 16, 8), number(at + 24, 8))
            {
                return Ok(Some((ByteRange::new(at + 24, 8), [head, len, offset])));
            }
            next = (kind != 0).then(|| at + 8 + len.next_multiple_of(8));
        }
        Ok(None)
    }
}
