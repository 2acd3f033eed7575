//! A block device as the target: whole sectors by O_DIRECT, zeroes by `BLKZEROOUT`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use super::{Disk, HostDisk, Target, TargetError};
use crate::range::ByteRange;
use crate::sys::{aligned::AlignedBuffer, block};
use crate::verify::{Run, VerifiedChunk};

/// Zeroes inside a chunk go out by the device's own command from this length on; below it, one request
/// more costs more than the bytes do.
const ZERO_RUN: usize = 512 << 10;

/// A block device that was opened exclusively.
pub(super) struct Device {
    disk: HostDisk,
}

impl Device {
    pub(super) fn new(file: File, sector_size: u32) -> Result<Self, TargetError> {
        let disk =
            HostDisk::of_device(file, sector_size).map_err(TargetError::during("asking for the size"))?;
        Ok(Self { disk })
    }

    fn write_aligned(&self, range: ByteRange, bytes: &[u8]) -> Result<(), TargetError> {
        self.disk.file.write_all_at(bytes, range.start()).map_err(TargetError::when("writing", range))
    }
}

impl Disk for Device {
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

impl Target for Device {
    fn is_new(&self) -> bool {
        false
    }

    fn write(&self, chunk: &VerifiedChunk) -> Result<(), TargetError> {
        let sector = usize::try_from(self.sector_size()).expect("a sector is small");
        for run in chunk.runs(ZERO_RUN, sector) {
            match run {
                Run::Zero(range) => self.write_zeroes(range)?,
                Run::Data(range, bytes) => self.write_aligned(range, bytes)?,
            }
        }
        Ok(())
    }

    fn write_zeroes(&self, range: ByteRange) -> Result<(), TargetError> {
        match block::zero_out(&self.disk.file, range) {
            Ok(()) => Ok(()),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOTTY)) => {
                let zeroes = AlignedBuffer::zeroed(1 << 20).map_err(TargetError::when("zeroing", range))?;
                range.cut(1 << 20).try_for_each(|part| {
                    self.write_aligned(part, &zeroes[..super::disk::to_index(part.len())])
                })
            }
            Err(error) => Err(TargetError::new("zeroing", Some(range), error)),
        }
    }

    fn sync(&self) -> Result<(), TargetError> {
        // fsync on a block device also flushes the device's own cache.
        self.disk.file.sync_data().map_err(TargetError::during("syncing"))?;
        self.disk.drop_cache().map_err(TargetError::during("dropping the page cache"))
    }

    fn forget_partitions(&self) -> Result<(), TargetError> {
        let numbers =
            partition_numbers(&self.disk.file).map_err(TargetError::during("listing partitions"))?;
        for number in numbers {
            match block::forget_partition(&self.disk.file, number) {
                // Somebody else forgot it first.
                Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {}
                result => result.map_err(TargetError::during("dropping a stale partition"))?,
            }
        }
        Ok(())
    }
}

/// The numbers of the partitions that the kernel knows of this disk; none of a partition.
fn partition_numbers(device: &File) -> io::Result<Vec<i32>> {
    let number = device.metadata()?.rdev();
    let folder = format!("/sys/dev/block/{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
    let Ok(entries) = fs::read_dir(folder) else { return Ok(Vec::new()) };
    let number_of = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("partition")).ok();
    let numbers = entries.flatten().filter_map(number_of);
    Ok(numbers.filter_map(|text| text.trim().parse().ok()).collect())
}
