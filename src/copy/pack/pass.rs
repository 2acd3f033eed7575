//! A pass under way, as the calling thread sees it: what is given out, what comes back, and where it is laid.

use std::collections::{BTreeMap, VecDeque};

use super::Packed;
use super::squeeze::{Job, Outcome, Squeezed};
use super::stretches::{Stretch, Stretches};
use crate::copy::CopyError;
use crate::copy::farm::Next;
use crate::image::{FilePart, Finished, Image, ImageWriter, NewImage};
use crate::range::{ByteRange, RangeSet};
use crate::verify::{CHUNK, DigestTable, WholeDigester};

/// How many stretches and parts are in memory for each thread: two wait, one is dealt with, one waits for its turn.
pub(super) const MOST_A_THREAD: u64 = 4;
/// How much memory of stretches that have their place waits for further ones.
const SPARE_MAX: usize = 2;
/// Parts up to so many bytes together are written by one thread.
const WRITTEN_AT_ONCE: usize = 1 << 20;

pub(super) struct Pass<'a> {
    stretches: Stretches<'a>,
    is_at_end: bool,
    /// How many stretches were given out, and how many have their place.
    given: u64,
    laid: u64,
    /// What came before it was its turn.
    early: BTreeMap<u64, Squeezed>,
    spare: Vec<Vec<u8>>,
    /// Until all stretches have their place.
    writer: Option<ImageWriter>,
    parts: VecDeque<FilePart>,
    parts_under_way: usize,
    most: u64,
    zeroes: VecDeque<ByteRange>,
    done: u64,
    whole: Option<WholeDigester>,
    digests: DigestTable,
    bad: RangeSet,
    header: Vec<u8>,
    file_bytes: u64,
}

impl<'a> Pass<'a> {
    pub(super) fn new(
        image: &'a dyn Image,
        format: NewImage,
        (whole, threads): (Option<WholeDigester>, usize),
    ) -> Result<Self, CopyError> {
        Ok(Self {
            stretches: Stretches::of(image, u64::from(format.cluster_size)),
            is_at_end: false,
            given: 0,
            laid: 0,
            early: BTreeMap::new(),
            spare: Vec::new(),
            writer: Some(ImageWriter::new(format)?),
            parts: VecDeque::new(),
            parts_under_way: 0,
            // Stretches of 2 MiB, half as many.
            most: MOST_A_THREAD * threads as u64 / (u64::from(format.cluster_size) / CHUNK).max(1),
            zeroes: VecDeque::new(),
            done: 0,
            whole,
            digests: DigestTable::new(image.virtual_size()),
            bad: RangeSet::default(),
            header: Vec::new(),
            file_bytes: 0,
        })
    }

    pub(super) fn bytes_done(&self) -> u64 {
        self.done
    }

    /// The next job, if there can be one by now.
    pub(super) fn next(&mut self) -> Result<Next<Job>, CopyError> {
        loop {
            if !self.parts.is_empty() {
                return Ok(Next::Job(Job::Write(self.some_parts())));
            }
            if let Some(range) = self.zeroes.pop_front() {
                return Ok(Next::Job(Job::HashZeroes(range)));
            }
            if self.is_at_end && self.laid == self.given {
                let Some(writer) = self.writer.take() else { return Ok(Next::End) };
                let Finished { parts, header, file_bytes } = writer.finish();
                self.parts.extend(parts);
                (self.header, self.file_bytes) = (header, file_bytes);
                continue;
            }
            // Every stretch that is given out, and every part, comes back some time.
            if self.is_at_end || self.given - self.laid + self.parts_under_way as u64 >= self.most {
                return Ok(Next::Later);
            }
            match self.stretches.next()? {
                Some(Stretch::Chunks(chunks)) => {
                    self.given += 1;
                    let memory = self.spare.pop().unwrap_or_default();
                    return Ok(Next::Job(Job::Squeeze(self.given - 1, chunks, memory)));
                }
                Some(Stretch::Zeroes(range)) if self.whole.is_some() => self.zeroes.extend(range.cut(CHUNK)),
                Some(Stretch::Zeroes(range)) => self.done += range.len(),
                None => self.is_at_end = true,
            }
        }
    }

    fn some_parts(&mut self) -> Vec<FilePart> {
        let mut bytes = 0;
        let fits = |part: &&FilePart| {
            bytes += part.bytes.len();
            bytes <= WRITTEN_AT_ONCE
        };
        let count = self.parts.iter().take_while(fits).count().max(1);
        let parts: Vec<_> = self.parts.drain(..count).collect();
        self.parts_under_way += parts.len();
        parts
    }

    /// Notes an outcome; every stretch whose turn it is gets its place.
    pub(super) fn absorb(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Squeezed(squeezed) => {
                self.early.insert(squeezed.number, squeezed);
                while let Some(squeezed) = self.early.remove(&self.laid) {
                    self.lay(&squeezed);
                    self.laid += 1;
                    self.spare.push(squeezed.bytes);
                    self.spare.truncate(SPARE_MAX);
                }
            }
            Outcome::Hashed(range, value) => {
                if let Some(all) = self.whole.as_mut() {
                    all.insert(range, value);
                }
                self.done += range.len();
            }
            Outcome::Written(parts) => {
                self.parts_under_way -= parts.len();
                if let Some(writer) = &mut self.writer {
                    writer.take_back(parts);
                }
            }
        }
    }

    fn lay(&mut self, squeezed: &Squeezed) {
        for chunk in &squeezed.chunks {
            if let Some(digest) = chunk.digest {
                self.digests.insert(chunk.range, digest);
            }
            if let (Some(all), Some(value)) = (self.whole.as_mut(), chunk.whole) {
                all.insert(chunk.range, value);
            }
            self.done += chunk.range.len();
        }
        for range in &squeezed.bad {
            self.bad.insert(*range);
        }
        let writer = self.writer.as_mut().expect("an image is finished when all stretches have their place");
        for (cluster, stored) in squeezed.clusters() {
            writer.append(cluster, stored);
        }
        self.parts.extend(writer.take_parts());
    }

    /// What was packed, and the header that is still to be written.
    pub(super) fn finish(mut self) -> (Packed, Vec<u8>) {
        self.digests.sort();
        let packed = Packed {
            digests: self.digests,
            whole: self.whole.map(WholeDigester::finish),
            file_bytes: self.file_bytes,
            bad: self.bad.into_ranges(),
        };
        (packed, self.header)
    }
}
