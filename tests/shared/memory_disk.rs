//! `MemoryDisk`: a system disk that is bytes in memory, whose writes may fail from one on.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use reimage::{ByteRange, Disk, Target, TargetError, VerifiedChunk};

/// A disk in memory; its clones are the same disk.
#[derive(Clone)]
pub(crate) struct MemoryDisk {
    bytes: Arc<Mutex<Vec<u8>>>,
    writes_left: Arc<AtomicUsize>,
}

impl MemoryDisk {
    pub(crate) fn of(bytes: Vec<u8>) -> Self {
        Self::failing_after(bytes, usize::MAX)
    }

    /// One on which so many writes go well.
    pub(crate) fn failing_after(bytes: Vec<u8>, writes: usize) -> Self {
        Self { bytes: Arc::new(Mutex::new(bytes)), writes_left: Arc::new(AtomicUsize::new(writes)) }
    }

    pub(crate) fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap()
    }

    fn write_at(&self, range: ByteRange, fill: impl FnOnce(&mut [u8])) -> Result<(), TargetError> {
        let spent =
            self.writes_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if spent.is_err() {
            return Err(TargetError::new("write", Some(range), std::io::Error::from_raw_os_error(5)));
        }
        fill(&mut self.bytes()[place(range)]);
        Ok(())
    }
}

fn place(range: ByteRange) -> std::ops::Range<usize> {
    usize::try_from(range.start()).unwrap()..usize::try_from(range.end()).unwrap()
}

impl Disk for MemoryDisk {
    fn size(&self) -> u64 {
        self.bytes().len() as u64
    }

    fn sector_size(&self) -> u32 {
        512
    }

    fn read(&self, range: ByteRange, buffer: &mut [u8]) -> Result<(), TargetError> {
        let bytes = self.bytes();
        let read = &bytes[place(range)];
        buffer[..read.len()].copy_from_slice(read);
        Ok(())
    }

    fn next_data(&self, offset: u64) -> Result<Option<ByteRange>, TargetError> {
        Ok(Some(ByteRange::between(offset, self.size())).filter(|rest| !rest.is_empty()))
    }
}

impl Target for MemoryDisk {
    fn identity(&self) -> Option<String> {
        Some("the disk of this test".to_owned())
    }

    fn is_new(&self) -> bool {
        false
    }

    fn write(&self, chunk: &VerifiedChunk) -> Result<(), TargetError> {
        // The last sector is written whole.
        let end = chunk.range().end().next_multiple_of(512).min(self.size());
        self.write_at(ByteRange::between(chunk.range().start(), end), |place| {
            let (of_chunk, padding) = place.split_at_mut(chunk.bytes().len());
            of_chunk.copy_from_slice(chunk.bytes());
            padding.fill(0);
        })
    }

    fn write_zeroes(&self, range: ByteRange) -> Result<(), TargetError> {
        self.write_at(range, |place| place.fill(0))
    }

    fn sync(&self) -> Result<(), TargetError> {
        Ok(())
    }
}
