//! What was supposed of a packed image is decided when its disk has been copied beside the old one.
//!
//! A stream is decoded once where a file is replaced whole, so its length and what lies at its end are known only then.
//! Nothing of it is anybody's disk yet: a refusal leaves the old file.

use std::io;

use super::run::{Run, mismatch};
use crate::copy::CopyError;
use crate::error::Error;
use crate::layout::{self, ReadBytes};
use crate::observe::Event;
use crate::plan::{self, DiskBytes, Ends};
use crate::range::ByteRange;
use crate::sys::aligned::AlignedBuffer;
use crate::target::Target;
use crate::verify::{CHUNK_LEN, VerifiedChunk};

impl Run<'_> {
    /// Decides what the plan supposed; refuses what it would have refused, had it seen all.
    pub(super) fn settle(&mut self) -> Result<(), Error> {
        if !self.settles {
            return Ok(());
        }
        self.decide_end()?;
        let copied = self.copied.as_ref().expect("the copy came before");
        let disk = CopiedDisk {
            target: self.target.as_ref(),
            ends: self.fit.ends(),
            withheld: &copied.withheld,
            size: self.image.virtual_size(),
        };
        let (image, sector_size) = (self.image.as_ref(), self.target.sector_size());
        let supposed = (&mut self.summary, &mut self.fit);
        for message in plan::settle(supposed, (image, &self.options), (&disk, sector_size))? {
            self.observer.event(&Event::Warning { code: "plan", message });
        }
        Ok(())
    }

    /// Ends a new file where the image ends, and takes its tail back, which is written last as everywhere.
    fn decide_end(&mut self) -> Result<(), Error> {
        if self.fit.at_most.is_none() {
            return Ok(());
        }
        self.fit.settle(self.image.virtual_size(), &self.summary.target)?;
        let failed = |fault: CopyError| super::copy_error(fault, &self.summary.target);
        let (target, Ends { head, tail }) = (self.target.as_ref(), self.fit.ends());
        target.end_at(self.fit.size).map_err(|fault| failed(fault.into()))?;
        let copied = self.copied.as_mut().expect("the copy came before");
        for (range, digest) in copied.digests.iter().filter(|(range, _)| tail.contains(range.start())) {
            let mut buffer =
                AlignedBuffer::zeroed(CHUNK_LEN).map_err(|error| failed(CopyError::Memory(error)))?;
            target.read(range, &mut buffer).map_err(|fault| failed(fault.into()))?;
            let chunk = VerifiedChunk::digest(range, buffer);
            if chunk.chunk_digest() != Some(digest) {
                return Err(mismatch((range, 1), &self.summary.target));
            }
            // It is counted when it is written as an end.
            copied.bytes_written -= range.len().min(copied.bytes_written);
            copied.withheld.push(chunk);
        }
        let middle = ByteRange::between(head.end(), tail.start());
        copied.doubtful.retain(|piece| middle.intersection(piece.range).is_some());
        if !tail.is_empty() {
            target.write_zeroes(tail).map_err(|fault| failed(fault.into()))?;
        }
        target.sync().map_err(|fault| failed(fault.into()))
    }
}

/// The image's disk as it was copied: what lies between its ends from the target, the ends from memory.
struct CopiedDisk<'a> {
    target: &'a dyn Target,
    ends: Ends,
    withheld: &'a [VerifiedChunk],
    size: u64,
}

impl ReadBytes for CopiedDisk<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, range: ByteRange, buffer: &mut [u8]) -> io::Result<()> {
        let buffer = &mut buffer[..usize::try_from(range.len()).map_err(io::Error::other)?];
        buffer.fill(0);
        if let Some(part) = range.intersection(self.ends.middle()) {
            let place = |at: u64| usize::try_from(at - range.start()).expect("it is in memory");
            DiskBytes(self.target).read_at(part, &mut buffer[place(part.start())..place(part.end())])?;
        }
        for chunk in self.withheld {
            layout::overlay((chunk.range(), chunk.bytes()), range, buffer);
        }
        Ok(())
    }
}
