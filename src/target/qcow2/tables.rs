//! Which cluster of the disk lies where in the new file.
//!
//! Only the L1 table is kept in memory. L2 tables lie in the file from the start, through the page cache, so that
//! memory does not grow with the disk. Clusters are taken one behind the other and never given back: in the
//! finished file each is in use, once.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::format::{ENTRY, Qcow2Shape};
use crate::image::{OFFSET_MASK, plain_entry};

/// By how much the file grows at a time; its end is cut off when it is complete.
const GROWTH: u64 = 64 << 20;

/// The tables of a file that is being written.
pub(super) struct Tables {
    /// The offset of each L2 table, 0 where there is none yet.
    pub(super) l1: Vec<u64>,
    cluster: u64,
    /// The first byte of the file that nothing has taken yet.
    pub(super) next: u64,
    len: u64,
}

/// Clusters of one L2 table, by their number on the disk: how many, and where their entries lie.
struct Part {
    table: usize,
    at: u64,
    count: usize,
}

impl Tables {
    /// The tables of a file in which nothing is stored yet; header and L1 have their place already.
    pub(super) fn new(shape: &Qcow2Shape, virtual_size: u64) -> Self {
        let entries = shape.l1_entries(virtual_size);
        let next = shape.cluster() + (entries * ENTRY).next_multiple_of(shape.cluster());
        let entries = usize::try_from(entries).expect("a shape bounds its L1 table");
        Self { l1: vec![0; entries], cluster: shape.cluster(), next, len: 0 }
    }

    /// Where `count` clusters from the one of that number lie; `None` where they are stored nowhere.
    pub(super) fn find(&self, file: &File, first: u64, count: usize) -> io::Result<Vec<Option<u64>>> {
        let mut found = Vec::with_capacity(count);
        for part in self.parts(first, count) {
            match self.l1[part.table] {
                0 => found.resize(found.len() + part.count, None),
                table => found.extend(read_entries(file, table + part.at, part.count)?),
            }
        }
        Ok(found)
    }

    /// The same, after a place was found for each of them that `wanted` asks for.
    ///
    /// Entries are written whether or not they change: where a sync has failed, the kernel may have dropped them, and
    /// what is written again after it must be found again, too.
    pub(super) fn place(&mut self, file: &File, first: u64, wanted: &[bool]) -> io::Result<Vec<Option<u64>>> {
        let mut found = Vec::with_capacity(wanted.len());
        for part in self.parts(first, wanted.len()) {
            let wanted = &wanted[found.len()..found.len() + part.count];
            if self.l1[part.table] == 0 {
                if !wanted.contains(&true) {
                    found.resize(found.len() + part.count, None);
                    continue;
                }
                self.l1[part.table] = self.take(file)?;
            }
            let at = self.l1[part.table] + part.at;
            let mut places = read_entries(file, at, part.count)?;
            for (place, wanted) in places.iter_mut().zip(wanted) {
                if place.is_none() && *wanted {
                    *place = Some(self.take(file)?);
                }
            }
            let entries = places.iter().flat_map(|place| place.map_or(0, plain_entry).to_be_bytes());
            file.write_all_at(&entries.collect::<Vec<_>>(), at)?;
            found.extend(places);
        }
        Ok(found)
    }

    /// The number of the first cluster from that one on that is stored, and where the run of such clusters ends at
    /// the earliest; `None` where nothing more is stored.
    pub(super) fn next_stored(&self, file: &File, first: u64) -> io::Result<Option<(u64, u64)>> {
        /// As many entries as are looked at together.
        const STEP: u64 = 4096;
        let per_table = self.cluster / ENTRY;
        let mut at = first;
        while let Ok(table) = usize::try_from(at / per_table)
            && table < self.l1.len()
        {
            if self.l1[table] == 0 {
                at = (at / per_table + 1) * per_table;
                continue;
            }
            let count = STEP.min(per_table - at % per_table);
            let places = self.find(file, at, usize::try_from(count).expect("a step is small"))?;
            let stored = |place: &Option<u64>| place.is_some();
            if let Some(start) = places.iter().position(stored) {
                let run = places[start..].iter().take_while(|place| stored(place)).count();
                let start = at + start as u64;
                return Ok(Some((start, start + run as u64)));
            }
            at += count;
        }
        Ok(None)
    }

    /// Leaves the L1 table as long as a smaller disk needs it; a cluster in which it lies it keeps, so that each is in use.
    pub(super) fn shorten(&mut self, entries: u64) {
        let per_cluster = self.cluster / ENTRY;
        let in_last = (self.l1.len() as u64 - 1) / per_cluster * per_cluster + 1;
        let entries = usize::try_from(entries.max(in_last)).expect("a shape bounds its L1 table");
        self.l1.truncate(entries);
    }

    /// Lets what is taken from now on lie behind `end`, where the file ends.
    pub(super) fn end_at(&mut self, end: u64) {
        (self.next, self.len) = (end, end);
    }

    fn parts(&self, first: u64, count: usize) -> Vec<Part> {
        let per_table = self.cluster / ENTRY;
        let (mut at, end) = (first, first + count as u64);
        let mut parts = Vec::new();
        while at < end {
            let table_end = (at / per_table + 1) * per_table;
            parts.push(Part {
                table: usize::try_from(at / per_table).expect("it lies on the disk"),
                at: at % per_table * ENTRY,
                count: usize::try_from(table_end.min(end) - at).expect("a part of what is in memory"),
            });
            at = table_end;
        }
        parts
    }

    /// A cluster that reads as zeroes.
    fn take(&mut self, file: &File) -> io::Result<u64> {
        let taken = self.next;
        let next = taken + self.cluster;
        if next > self.len {
            let len = next.next_multiple_of(GROWTH);
            file.set_len(len)?;
            self.len = len;
        }
        self.next = next;
        Ok(taken)
    }
}

fn read_entries(file: &File, at: u64, count: usize) -> io::Result<Vec<Option<u64>>> {
    let mut bytes = vec![0; count * 8];
    file.read_exact_at(&mut bytes, at)?;
    let entries = bytes.as_chunks::<8>().0.iter().map(|entry| u64::from_be_bytes(*entry) & OFFSET_MASK);
    Ok(entries.map(|host| Some(host).filter(|host| *host != 0)).collect())
}
