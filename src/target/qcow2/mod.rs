//! A new qcow2 file as the target: clusters as they come, tables and header when the disk is complete.
//!
//! It is never written into a file that is there: a new one is staged beside it and takes its place. Until `seal` it
//! has no header, so that nothing takes it for a disk.

mod format;
mod tables;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk::to_index;
use super::file::FileTarget;
use super::{Disk, Target, TargetError};
use crate::image::{Compression, NewHeader, encode_header, plain_entry};
use crate::range::ByteRange;
use crate::verify::{VerifiedChunk, is_zero};
use format::Refcounts;
pub(crate) use format::{Backing, Qcow2Shape};
use tables::Tables;

/// What is looked up in the tables at once.
const STEP: u64 = 1 << 20;
/// In which portions tables are written at the end.
const PORTION: usize = 1 << 20;

/// A qcow2 file that is being written.
pub(crate) struct NewQcow2 {
    store: FileTarget,
    shape: Qcow2Shape,
    virtual_size: AtomicU64,
    tables: Mutex<Tables>,
}

/// A stretch of the disk, and where in the file it lies.
struct Stretch {
    range: ByteRange,
    host: Option<u64>,
}

impl NewQcow2 {
    /// In a file that was just made.
    pub(super) fn new(file: File, shape: Qcow2Shape, virtual_size: u64) -> Self {
        assert!((9..=21).contains(&shape.cluster_bits), "a cluster has 512 bytes to 2 MiB");
        assert!(virtual_size <= shape.most_bytes(), "whoever plans bounds the tables");
        let tables = Mutex::new(Tables::new(&shape, virtual_size));
        Self { store: FileTarget::growing(file), shape, virtual_size: virtual_size.into(), tables }
    }

    /// Makes the file a qcow2 file: L1 and reference counts first, and when they are durable the header.
    ///
    /// What is written to it afterwards counts when it is sealed once more, and leaves the first counts as a leak.
    ///
    /// # Errors
    ///
    /// When not all of it is durable: then it is no disk.
    pub(crate) fn seal(&self) -> Result<(), TargetError> {
        let mut tables = self.tables();
        let failed = || TargetError::during("completing the qcow2 file");
        let refcounts = self.write_tables(&tables).map_err(failed())?;
        self.store.file().sync_all().map_err(failed())?;
        let header = self.header(&tables, &refcounts);
        self.store.file().write_all_at(&header, 0).map_err(failed())?;
        self.store.file().sync_all().map_err(failed())?;
        tables.end_at(refcounts.end());
        drop(tables);
        self.store.sync()
    }

    /// Opens the same file once more, to be read by whoever knows the format.
    ///
    /// # Errors
    ///
    /// When the system does not open it.
    pub(crate) fn reopen(&self) -> Result<File, TargetError> {
        let path = format!("/proc/self/fd/{}", self.store.file().as_raw_fd());
        File::open(path).map_err(TargetError::during("opening the new file again"))
    }

    fn size(&self) -> u64 {
        self.virtual_size.load(Ordering::Relaxed)
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn header(&self, tables: &Tables, refcounts: &Refcounts) -> Vec<u8> {
        let backing = self.shape.backing.as_ref();
        encode_header(&NewHeader {
            version: self.shape.version,
            cluster_bits: self.shape.cluster_bits,
            virtual_size: self.size(),
            // Nothing in it is compressed; this is what says nothing.
            compression: Compression::Zlib,
            l1_entries: u32::try_from(tables.l1.len()).expect("a shape bounds its L1 table"),
            l1_offset: self.shape.cluster(),
            refcount_table: refcounts.table(),
            backing: backing.map(|backing| (backing.path.as_os_str().as_encoded_bytes(), backing.format)),
        })
    }

    /// Writes the L1 table in its place, and the reference counts behind everything else.
    fn write_tables(&self, tables: &Tables) -> io::Result<Refcounts> {
        let (file, cluster) = (self.store.file(), self.shape.cluster());
        let refcounts = Refcounts::behind(tables.next, cluster);
        file.set_len(refcounts.end())?;
        for (part, at) in tables.l1.chunks(PORTION / 8).zip((cluster..).step_by(PORTION)) {
            let entry = |offset: &u64| if *offset == 0 { 0 } else { plain_entry(*offset) }.to_be_bytes();
            file.write_all_at(&part.iter().flat_map(entry).collect::<Vec<_>>(), at)?;
        }
        let mut block = vec![0; to_index(cluster)];
        let mut portion = Vec::with_capacity(PORTION + block.len());
        let mut at = refcounts.blocks;
        for index in 0..refcounts.block_count {
            refcounts.block(index, &mut block);
            portion.extend_from_slice(&block);
            if portion.len() >= PORTION || index + 1 == refcounts.block_count {
                file.write_all_at(&portion, at)?;
                at += portion.len() as u64;
                portion.clear();
            }
        }
        for first in (0..refcounts.block_count).step_by(PORTION / 8) {
            let last = (first + PORTION as u64 / 8).min(refcounts.block_count);
            let entries = (first..last).flat_map(|index| (refcounts.blocks + index * cluster).to_be_bytes());
            file.write_all_at(&entries.collect::<Vec<_>>(), refcounts.table().start() + first * 8)?;
        }
        Ok(refcounts)
    }

    /// The stretches of `range`, of which each is at most a `STEP` long; `hosts` are the places of its clusters.
    fn stretches(&self, range: ByteRange, hosts: &[Option<u64>]) -> Vec<Stretch> {
        let cluster = self.shape.cluster();
        let first = range.start() / cluster;
        let mut stretches: Vec<Stretch> = Vec::new();
        for (host, number) in hosts.iter().zip(first..) {
            let whole = ByteRange::new(number * cluster, cluster);
            let Some(part) = whole.intersection(range) else { continue };
            let host = host.map(|host| host + (part.start() - whole.start()));
            let goes_on = |last: &Stretch| match (last.host, host) {
                (None, None) => true,
                (Some(last_host), Some(host)) => last_host + last.range.len() == host,
                _ => false,
            };
            match stretches.last_mut() {
                Some(last) if goes_on(last) => {
                    last.range = ByteRange::between(last.range.start(), part.end());
                }
                _ => stretches.push(Stretch { range: part, host }),
            }
        }
        stretches
    }

    /// The numbers of the clusters in which `range` lies: the first, and how many.
    fn clusters_of(&self, range: ByteRange) -> (u64, usize) {
        let cluster = self.shape.cluster();
        let first = range.start() / cluster;
        (first, to_index(range.end().div_ceil(cluster) - first))
    }

    fn found(&self, range: ByteRange) -> Result<Vec<Stretch>, TargetError> {
        let (first, count) = self.clusters_of(range);
        let hosts = self.tables().find(self.store.file(), first, count);
        Ok(self.stretches(range, &hosts.map_err(TargetError::when("looking up", range))?))
    }

    /// Makes room for the clusters of `range` that `wanted` asks for, and for those of an overlay all: what is absent
    /// there shows what lies below.
    fn placed(&self, range: ByteRange, wanted: &[bool]) -> Result<Vec<Option<u64>>, TargetError> {
        let (first, count) = self.clusters_of(range);
        let all = vec![true; count];
        let wanted = if self.shape.backing.is_some() { &all } else { wanted };
        let hosts = self.tables().place(self.store.file(), first, wanted);
        hosts.map_err(TargetError::when("making room for", range))
    }

    /// Writes a part of a chunk; in an overlay it is made of whole clusters.
    fn write_part(&self, range: ByteRange, bytes: &[u8]) -> Result<(), TargetError> {
        let cluster = self.shape.cluster();
        let (first, count) = self.clusters_of(range);
        let part_of = |number: u64| {
            let part = ByteRange::new(number * cluster, cluster).intersection(range);
            part.expect("it is one of the range's clusters")
        };
        let place =
            |part: ByteRange| to_index(part.start() - range.start())..to_index(part.end() - range.start());
        let holds_data: Vec<_> =
            (first..first + count as u64).map(|number| !is_zero(&bytes[place(part_of(number))])).collect();
        let hosts = self.placed(range, &holds_data)?;
        // What becomes zero is cut out of what is written.
        let of_kind = |data: bool| {
            let chosen = hosts.iter().zip(&holds_data).map(|(host, holds)| host.filter(|_| *holds == data));
            self.stretches(range, &chosen.collect::<Vec<_>>())
        };
        for Stretch { range: part, host } in of_kind(true) {
            let Some(host) = host else { continue };
            self.store.write_bytes(ByteRange::new(host, part.len()), &bytes[place(part)])?;
        }
        for Stretch { range: part, host } in of_kind(false) {
            let Some(host) = host else { continue };
            self.store.write_zeroes(ByteRange::new(host, part.len()))?;
        }
        Ok(())
    }
}

impl Disk for Arc<NewQcow2> {
    fn size(&self) -> u64 {
        NewQcow2::size(self)
    }

    fn sector_size(&self) -> u32 {
        1
    }

    fn read(&self, range: ByteRange, buffer: &mut [u8]) -> Result<(), TargetError> {
        for step in range.cut(STEP) {
            for Stretch { range: part, host } in self.found(step)? {
                let from = to_index(part.start() - range.start());
                match host {
                    // What a read of whole blocks leaves behind the part belongs to the next one.
                    Some(host) => self.store.read(ByteRange::new(host, part.len()), &mut buffer[from..])?,
                    None => buffer[from..from + to_index(part.len())].fill(0),
                }
            }
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> Result<Option<ByteRange>, TargetError> {
        let cluster = self.shape.cluster();
        let size = self.size();
        if offset >= size {
            return Ok(None);
        }
        let stored = self.tables().next_stored(self.store.file(), offset / cluster);
        let stored = stored.map_err(TargetError::during("looking for what is stored"))?;
        Ok(stored.and_then(|(first, end)| {
            let run = ByteRange::between(first * cluster, end * cluster);
            run.intersection(ByteRange::between(offset, size))
        }))
    }
}

impl Target for Arc<NewQcow2> {
    fn is_new(&self) -> bool {
        true
    }

    fn write(&self, chunk: &VerifiedChunk) -> Result<(), TargetError> {
        let range = chunk.range();
        range.cut(STEP).try_for_each(|part| {
            let from = to_index(part.start() - range.start());
            self.write_part(part, &chunk.bytes()[from..from + to_index(part.len())])
        })
    }

    fn write_zeroes(&self, range: ByteRange) -> Result<(), TargetError> {
        for step in range.cut(STEP) {
            let (_, count) = self.clusters_of(step);
            let hosts = self.placed(step, &vec![false; count])?;
            for Stretch { range: part, host } in self.stretches(step, &hosts) {
                if let Some(host) = host {
                    self.store.write_zeroes(ByteRange::new(host, part.len()))?;
                }
            }
        }
        Ok(())
    }

    fn end_at(&self, size: u64) -> Result<(), TargetError> {
        assert!(size <= NewQcow2::size(self), "the tables were made for the largest size that it may get");
        self.tables().shorten(self.shape.l1_entries(size));
        self.virtual_size.store(size, Ordering::Relaxed);
        Ok(())
    }

    fn sync(&self) -> Result<(), TargetError> {
        self.store.sync()
    }
}
