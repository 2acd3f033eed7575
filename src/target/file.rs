//! A regular file as the target: written through the page cache, but not left in it.

use std::fs::File;
use std::io;

use super::disk::to_index;
use super::{Disk, HostDisk, Target, TargetError};
use crate::range::ByteRange;
use crate::sys::store::{self, UncachedWrites};
use crate::verify::{Run, VerifiedChunk};

/// A new file keeps holes of this length on: a cluster of qcow2 as a rule, and cheap for every file system.
const HOLE_OF_NEW_FILE: usize = 64 << 10;
/// In a file that had content every hole costs a request, so only long ones are worth it.
const HOLE_OF_OLD_FILE: usize = 512 << 10;

/// A regular file, new or old.
pub(super) struct FileTarget {
    disk: HostDisk,
    age: Age,
    writes: UncachedWrites,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Age {
    New,
    /// New, and partly written by an earlier run.
    Resumed,
    Old,
}

impl FileTarget {
    /// A file that was just made; it gets `size` bytes, all of them a hole.
    pub(super) fn new(file: File, size: u64) -> Result<Self, TargetError> {
        file.set_len(size).map_err(TargetError::during("setting the size"))?;
        Ok(Self { disk: HostDisk::of_file(file, size), age: Age::New, writes: UncachedWrites::default() })
    }

    /// A new file whose length whoever writes it decides; what is no more needed of it in memory is told to the end.
    pub(super) fn growing(file: File) -> Self {
        Self { disk: HostDisk::of_file(file, 0), age: Age::New, writes: UncachedWrites::default() }
    }

    /// The same of a file that an earlier run has begun to write.
    pub(super) fn growing_on(file: File) -> Self {
        Self { age: Age::Resumed, ..Self::growing(file) }
    }

    /// The file itself.
    pub(super) fn file(&self) -> &File {
        &self.disk.file
    }

    /// A new file that an earlier run has begun to write; it gets `size` bytes.
    pub(super) fn resumed(file: File, size: u64) -> Result<Self, TargetError> {
        Ok(Self { age: Age::Resumed, ..Self::new(file, size)? })
    }

    /// A file that is there and keeps its inode; `take_size` gives it `size` bytes.
    pub(super) fn in_place(file: File, size: u64) -> Self {
        Self { disk: HostDisk::of_file(file, size), age: Age::Old, writes: UncachedWrites::default() }
    }

    pub(super) fn write_bytes(&self, range: ByteRange, bytes: &[u8]) -> Result<(), TargetError> {
        let written = self.writes.write_all_at(&self.disk.file, bytes, range.start());
        written.map_err(TargetError::when("writing", range))
    }
}

impl Disk for FileTarget {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn sector_size(&self) -> u32 {
        self.disk.sector_size()
    }

    fn read(&self, range: ByteRange, buffer: &mut [u8]) -> Result<(), TargetError> {
        self.disk.read(range, buffer)
    }

    fn next_data(&self, offset: u64) -> Result<Option<ByteRange>, TargetError> {
        self.disk.next_data(offset)
    }
}

impl Target for FileTarget {
    fn is_new(&self) -> bool {
        self.age == Age::New
    }

    fn write(&self, chunk: &VerifiedChunk) -> Result<(), TargetError> {
        let hole = match self.age {
            Age::New | Age::Resumed => HOLE_OF_NEW_FILE,
            Age::Old => HOLE_OF_OLD_FILE,
        };
        for run in chunk.runs(hole, 1) {
            match run {
                // In a new file only a rewrite finds anything there; punching a hole in one costs little.
                Run::Zero(range) => self.write_zeroes(range)?,
                Run::Data(range, bytes) => self.write_bytes(range, bytes)?,
            }
        }
        Ok(())
    }

    fn write_zeroes(&self, range: ByteRange) -> Result<(), TargetError> {
        let unsupported =
            |error: &io::Error| matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS));
        let zeroed = match store::punch_hole(&self.disk.file, range) {
            Err(error) if unsupported(&error) => store::zero_range(&self.disk.file, range),
            result => result,
        };
        match zeroed {
            Err(error) if unsupported(&error) => {
                let zeroes = vec![0; 1 << 20];
                range
                    .cut(1 << 20)
                    .try_for_each(|part| self.write_bytes(part, &zeroes[..to_index(part.len())]))
            }
            result => result.map_err(TargetError::when("zeroing", range)),
        }
    }

    fn take_size(&self) -> Result<(), TargetError> {
        let failed = || TargetError::during("giving the file its size");
        let now = self.disk.file.metadata().map_err(failed())?.len();
        if now != self.disk.size() {
            self.disk.file.set_len(self.disk.size()).map_err(failed())
        } else {
            Ok(())
        }
    }

    fn end_at(&self, size: u64) -> Result<(), TargetError> {
        self.disk.end_at(size);
        self.take_size()
    }

    fn sync(&self) -> Result<(), TargetError> {
        // The size counts as data here: fdatasync writes what is needed to read the file back.
        self.disk.file.sync_data().map_err(TargetError::during("syncing"))?;
        self.disk.drop_cache().map_err(TargetError::during("dropping the page cache"))
    }
}
