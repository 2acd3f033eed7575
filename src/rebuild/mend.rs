//! Reading back: what the disk holds is compared with what was copied, and what differs is written again.

use std::time::Instant;

use super::ends::MOST_REWRITES;
use super::report;
use super::run::{Run, mismatches};
use crate::copy::{self, CopyError, Exceptions, Piece, Scope};
use crate::error::Error;
use crate::journal::Record;
use crate::observe::{Event, Phase};
use crate::range::ByteRange;
use crate::request::VerifyPolicy;
use crate::sys::aligned::AlignedBuffer;
use crate::verify::{CHUNK, CHUNK_LEN, Expected, holds};

impl Run<'_> {
    /// What the disk holds between its ends, compared with what was copied; what differs is written again.
    pub(super) fn read_back(&mut self) -> Result<(), Error> {
        if self.linked.is_some() {
            return Ok(());
        }
        let started = Instant::now();
        let copied = self.copied.as_ref().expect("the copy came before");
        let scope = match self.options.verify {
            VerifyPolicy::Full => Scope::Everything,
            VerifyPolicy::Written => Scope::Data,
            VerifyPolicy::Off if copied.doubtful.is_empty() => return Ok(()),
            VerifyPolicy::Off => Scope::Listed,
        };
        let exceptions = Exceptions { kept: &copied.kept, doubtful: &copied.doubtful };
        let middle = self.fit.ends().middle();
        let noting = self.noting();
        let watch = self.watch(&noting, Phase::ReadBack, middle.len());
        let part = (&copied.digests, middle);
        let read = copy::check(&self.pool, self.target.as_ref(), part, (scope, exceptions), &watch);
        self.read = read.map_err(|fault| self.error(fault))?;
        self.read.bytes_read += self.copied.as_ref().map_or(0, |copied| copied.bytes_kept);
        let wrong = std::mem::take(&mut self.read.mismatches);
        self.mend(wrong)?;
        let root = self.digests().root();
        self.record(&Record::Verified { root })?;
        self.durations.read_back_ms = report::ms(started);
        Ok(())
    }

    /// What lies beside the ends, where a write of one of them may have landed.
    pub(super) fn mend_beside_ends(&mut self) -> Result<(), Error> {
        let middle = self.fit.ends().middle();
        let boundaries = [middle.start(), middle.end()];
        let pieces: Vec<_> = boundaries.into_iter().flat_map(|place| self.beside(place)).collect();
        let wrong = self.those_that_are_wrong(&pieces)?;
        self.mend(wrong)
    }

    /// Writes what differs again, a bounded number of times.
    fn mend(&mut self, mut wrong: Vec<Piece>) -> Result<(), Error> {
        for rewrites in 1..=MOST_REWRITES {
            if wrong.is_empty() {
                break;
            }
            if !self.may_write && self.exchange.is_none() {
                self.say_unfinished()?;
            }
            wrong = self.write_again(&wrong, rewrites)?;
        }
        if wrong.is_empty() {
            return Ok(());
        }
        let ranges: Vec<_> = wrong.iter().map(|piece| piece.range).collect();
        Err(mismatches(&ranges, &self.repairs, &self.summary.target))
    }

    /// Writes the mismatches again, syncs, reads them back; returns those that are still wrong.
    fn write_again(&mut self, wrong: &[Piece], rewrites: u32) -> Result<Vec<Piece>, Error> {
        for mismatch in wrong {
            self.stop_if_cancelled()?;
            self.observer.event(&Event::Rewriting { range: mismatch.range });
            let (target, copied) =
                (self.target.as_ref(), self.copied.as_ref().expect("the copy came before"));
            let known = (&copied.digests, copied.old(mismatch.range));
            let repaired = copy::repair(self.image.as_ref(), target, mismatch, known);
            let differing = repaired.map_err(|fault| self.error(fault))?;
            report::note_repair(&mut self.repairs, mismatch.range, differing, 1);
        }
        let target = self.target.as_ref();
        match target.sync() {
            Ok(()) => {}
            Err(fault) if rewrites == MOST_REWRITES => return Err(self.error(fault.into())),
            // Nothing that was written before it is believed.
            Err(_) => return Ok(wrong.to_vec()),
        }
        // What was written again may have landed beside its place.
        let mut pieces = wrong.to_vec();
        for piece in wrong {
            pieces.extend(self.beside(piece.range.start()));
            pieces.extend(self.beside(piece.range.end()));
        }
        pieces.sort_unstable_by_key(|piece| piece.range);
        pieces.dedup();
        self.those_that_are_wrong(&pieces)
    }

    fn those_that_are_wrong(&self, pieces: &[Piece]) -> Result<Vec<Piece>, Error> {
        let buffer = AlignedBuffer::zeroed(CHUNK_LEN).map_err(CopyError::Memory);
        let mut buffer = buffer.map_err(|fault| self.error(fault))?;
        let mut wrong = Vec::new();
        for piece in pieces {
            let right = holds(self.target.as_ref(), piece.range, piece.expected, &mut buffer);
            if !right.map_err(|fault| self.error(fault.into()))? {
                wrong.push(*piece);
            }
        }
        Ok(wrong)
    }

    /// The chunks of the middle that a boundary between two lies beside, and what they should hold.
    fn beside(&self, boundary: u64) -> Vec<Piece> {
        let (middle, digests) = (self.fit.ends().middle(), self.digests());
        let places = [boundary.checked_sub(1), Some(boundary)];
        let piece = |place: u64| {
            let index = place / CHUNK;
            let whole = ByteRange::between(index * CHUNK, (index + 1) * CHUNK).intersection(middle)?;
            Some(match digests.get(place) {
                Some(digest) => Piece { range: digests.range(index), expected: Expected::Digest(digest) },
                None => Piece { range: whole, expected: Expected::Zeroes },
            })
        };
        places.into_iter().flatten().filter(|place| middle.contains(*place)).filter_map(piece).collect()
    }
}
