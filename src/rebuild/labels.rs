//! By which sectors of a disk's ends anybody would know what it holds: they are written behind all others.

use std::io;

use super::ends::first_block;
use crate::layout::{self, ReadBytes};
use crate::plan::Ends;
use crate::range::ByteRange;

/// More sectors than this are not looked for: two of ZFS's labels have 128 blocks each at the end, and two at the head.
const MOST: usize = 1024;

/// The disk as it is when all but its first block is written; between the ends nothing is a label.
pub(super) struct Unlabelled {
    pub(super) size: u64,
    pub(super) ends: Ends,
    pub(super) head: Vec<u8>,
    pub(super) tail: Vec<u8>,
}

impl ReadBytes for Unlabelled {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, range: ByteRange, buffer: &mut [u8]) -> io::Result<()> {
        buffer[..usize::try_from(range.len()).map_err(io::Error::other)?].fill(0);
        for (end, bytes) in [(self.ends.head, &self.head), (self.ends.tail, &self.tail)] {
            layout::overlay((end, bytes), range, buffer);
        }
        Ok(())
    }
}

impl Unlabelled {
    /// Takes away the sector that holds `offset`, if it lies in an end and behind the first block; says which it was,
    /// unless it is one of those that were `found` before.
    fn take(&mut self, offset: u64, sector: u64, found: &[ByteRange]) -> Option<ByteRange> {
        let start = offset / sector * sector;
        let range = ByteRange::between(start, (start + sector).min(self.size.max(start)));
        let is_new = start >= first_block(self.ends).end() && !range.is_empty() && !found.contains(&range);
        (is_new && self.clear(range)).then_some(range)
    }

    /// Takes one sector away, if it lies in an end.
    fn clear(&mut self, sector: ByteRange) -> bool {
        for (end, bytes) in [(self.ends.head, &mut self.head), (self.ends.tail, &mut self.tail)] {
            if let Some(part) = end.intersection(sector) {
                let index = |place: u64| usize::try_from(place - end.start()).expect("an end fits in memory");
                bytes[index(part.start())..index(part.end())].fill(0);
                return true;
            }
        }
        false
    }
}

/// The sectors without which nobody finds a label behind the first block, in no order; each within one end.
pub(super) fn sectors(ends: Ends, (head, tail): (&[u8], &[u8]), sector: u64) -> Vec<ByteRange> {
    let mut disk = Unlabelled { size: ends.tail.end(), ends, head: head.to_vec(), tail: tail.to_vec() };
    disk.clear(first_block(ends));
    let mut found = Vec::new();
    // A backup GPT counts only behind a protective MBR, but there are programs that bring it back from itself.
    for size in [512, 4096] {
        let Some(place) = disk.size.checked_sub(size) else { continue };
        let mut magic = [0; 8];
        let range = ByteRange::new(place, 8);
        if disk.read_at(range, &mut magic).is_ok() && magic == *b"EFI PART" {
            let taken = disk.take(place, sector, &found);
            found.extend(taken);
        }
    }
    while found.len() < MOST {
        // What cannot be read is in memory.
        let seen = layout::probe(&disk).unwrap_or_default();
        let before = found.len();
        for signature in seen {
            let taken = disk.take(signature.offset, sector, &found);
            found.extend(taken);
        }
        if found.len() == before {
            break;
        }
    }
    found
}
