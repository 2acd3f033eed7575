//! What one thread does with a piece of the disk: read, digest, compare, write.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::check::read_chunk;
use super::farm::Worker;
use super::manifest::{ByManifest, Standing};
use super::transfer::{Compare, Onto, Sink};
use super::{CopyError, Piece};
use crate::image::{Extent, Image};
use crate::observe::CancelToken;
use crate::range::ByteRange;
use crate::target::{Disk, TargetError};
use crate::verify::{CHUNK, Digest, Expected, VerifiedChunk, WholeDigester, is_zero};

/// The longest request for zeroes, and the shortest: how long they take is the device's secret.
const LONGEST_ZERO_REQUEST: u64 = 256 << 20;
const SHORTEST_ZERO_REQUEST: u64 = 1 << 20;
/// A request for zeroes should take about as long: a cancel waits for it.
const ZERO_REQUEST_TIME: Duration = Duration::from_millis(50);

pub(super) enum Job {
    Copy(Vec<(ByteRange, Vec<Extent>)>),
    Zero(ByteRange),
    HashZeroes(ByteRange),
    /// What was written before a sync failed, once more.
    Anew(Piece),
    Sync,
}

pub(super) enum Outcome {
    Several(Vec<Outcome>),
    Chunk {
        range: ByteRange,
        digest: Option<Digest>,
        whole: Option<[u8; 32]>,
        fate: Fate,
    },
    Zeroes {
        range: ByteRange,
        fate: Fate,
    },
    Hashed(ByteRange, [u8; 32]),
    Anew(Piece),
    /// The disk does not hold what it should, and nothing may be written yet.
    Differs(Job),
    Synced(Result<(), TargetError>),
}

/// What became of a piece of the disk.
pub(super) enum Fate {
    /// It was only digested.
    Digested,
    /// It was read and found right.
    Kept,
    /// The same, and the image was not asked: its manifest says what is right.
    KeptByManifest,
    /// The file system proves that it is a hole.
    Proved,
    Written {
        /// The digest of what was there, where it was read.
        old: Option<Digest>,
    },
    /// It belongs to an end, which is written last.
    Withheld(VerifiedChunk),
}

/// What lies where a chunk belongs.
enum InPlace {
    Right,
    /// Something else: its digest, or nothing at all.
    Other(Option<Digest>),
}

/// What is known of a chunk before the image is asked.
enum Known {
    Nothing,
    /// The disk holds it.
    Right(Outcome),
    /// The disk holds something else: its digest, or nothing at all.
    Other(Option<Digest>),
}

/// What the threads share.
pub(super) struct Shared<'a> {
    pub(super) image: &'a dyn Image,
    pub(super) sink: &'a Sink<'a>,
    pub(super) manifest: Option<ByManifest<'a>>,
    pub(super) hashes_all: bool,
    /// Whether the disk says that it is unfinished, so that it may be written.
    pub(super) may_write: AtomicBool,
    pub(super) cancel: &'a CancelToken,
}

impl Shared<'_> {
    pub(super) fn work(&self, worker: &mut Worker, job: Job) -> Result<Outcome, CopyError> {
        match (job, self.sink) {
            (Job::Copy(chunks), _) => {
                let mut outcomes = Vec::with_capacity(chunks.len());
                for chunk in chunks {
                    let asked = chunk.0;
                    outcomes.push(self.copy(worker, chunk)?);
                    outcomes.extend(self.behind_the_end(worker, asked)?);
                }
                Ok(Outcome::Several(outcomes))
            }
            (Job::HashZeroes(range), _) => {
                let value = hash_zeroes(worker, self.image.most_bytes(), range)?;
                Ok(Outcome::Hashed(range, value))
            }
            (Job::Zero(range), Sink::Target(onto)) => match onto.compare {
                Compare::Nothing => self.zero(worker, onto, range),
                Compare::Noted(_) => self.zero_what_is_stored(worker, onto, range),
                Compare::Everything => self.compare_zeroes(worker, onto, range),
            },
            (Job::Anew(piece), Sink::Target(onto)) => self.write_anew(worker, onto, piece),
            (Job::Sync, Sink::Target(onto)) => Ok(Outcome::Synced(onto.target.sync())),
            _ => unreachable!("without a target only chunks and zeroes are digested"),
        }
    }

    fn copy(
        &self,
        worker: &mut Worker,
        (asked, extents): (ByteRange, Vec<Extent>),
    ) -> Result<Outcome, CopyError> {
        if let Some(kept) = self.noted(worker, asked)? {
            return Ok(kept);
        }
        let known = match self.by_manifest(worker, asked)? {
            Known::Right(kept) => return Ok(kept),
            Known::Other(old) => Some(InPlace::Other(old)),
            Known::Nothing => None,
        };
        let mut buffer = worker.take_buffer()?;
        self.image.read(&extents, &mut buffer[..to_index(asked.len())], &mut worker.decoder)?;
        // Where the disk ends may be known only now.
        let Some(range) = asked.intersection(ByteRange::new(0, self.image.most_bytes())) else {
            worker.give_back(buffer);
            return Ok(Outcome::Several(Vec::new()));
        };
        let chunk = VerifiedChunk::digest(range, buffer);
        let (digest, whole) = (chunk.chunk_digest(), self.whole(range, chunk.bytes()));
        self.manifest.map_or(Ok(()), |manifest| manifest.check(range, digest))?;
        let fate = match self.sink {
            Sink::Digests => Fate::Digested,
            Sink::Target(onto) if onto.middle.intersection(range) != Some(range) => {
                let fate = Fate::Withheld(chunk);
                return Ok(Outcome::Chunk { range, digest, whole, fate });
            }
            Sink::Target(onto) => {
                let old = match onto.compare {
                    Compare::Everything => match self.found(worker, onto, (&chunk, known))? {
                        InPlace::Right => {
                            worker.give_back(chunk.into_buffer());
                            return Ok(Outcome::Chunk { range, digest, whole, fate: Fate::Kept });
                        }
                        InPlace::Other(old) => old,
                    },
                    Compare::Nothing | Compare::Noted(_) => None,
                };
                if !self.may_write.load(Ordering::SeqCst) {
                    worker.give_back(chunk.into_buffer());
                    return Ok(Outcome::Differs(Job::Copy(vec![(asked, extents)])));
                }
                onto.target.write(&chunk)?;
                Fate::Written { old }
            }
        };
        worker.give_back(chunk.into_buffer());
        Ok(Outcome::Chunk { range, digest, whole, fate })
    }

    /// Zeroes what a chunk has behind the end of a disk whose length was not known when it was asked for.
    fn behind_the_end(&self, worker: &Worker, asked: ByteRange) -> Result<Option<Outcome>, CopyError> {
        let Sink::Target(onto) = self.sink else { return Ok(None) };
        let end = self.image.most_bytes().next_multiple_of(u64::from(onto.target.sector_size()));
        if onto.target.is_new() || end >= asked.end() {
            return Ok(None);
        }
        let behind = ByteRange::between(end.max(asked.start()), asked.end()).intersection(onto.middle);
        behind.map(|behind| self.zero_what_is_stored(worker, onto, behind)).transpose()
    }

    /// A chunk that an earlier run noted, if the disk still holds it.
    fn noted(&self, worker: &mut Worker, range: ByteRange) -> Result<Option<Outcome>, CopyError> {
        let Sink::Target(Onto { target, middle, compare: Compare::Noted(noted), .. }) = self.sink else {
            return Ok(None);
        };
        let is_between = middle.intersection(range) == Some(range);
        let is_so = |digest: &Digest| {
            self.manifest.is_none_or(|manifest| manifest.digests.get(range.start()) == Some(*digest))
        };
        let noted = noted.get(range.start()).filter(|digest| is_between && is_so(digest));
        let Some(digest) = noted else { return Ok(None) };
        let mut buffer = worker.take_buffer()?;
        let padded = padded(*target, range);
        match target.read(padded, &mut buffer) {
            // A file whose size is not decided yet may end within the chunk.
            Err(fault) if fault.is_behind_the_end() => {
                worker.give_back(buffer);
                return Ok(None);
            }
            read => read?,
        }
        let (bytes, padding) = buffer[..to_index(padded.len())].split_at(to_index(range.len()));
        let right = Digest::of(bytes) == digest && is_zero(padding);
        let whole = self.whole(range, bytes);
        worker.give_back(buffer);
        let kept = Outcome::Chunk { range, digest: Some(digest), whole, fate: Fate::Kept };
        Ok(right.then_some(kept))
    }

    /// Whether the disk holds what a manifest says of a chunk, where that is as good as what the image would give.
    fn by_manifest(&self, worker: &mut Worker, range: ByteRange) -> Result<Known, CopyError> {
        let Sink::Target(Onto { target, middle, compare: Compare::Everything, .. }) = self.sink else {
            return Ok(Known::Nothing);
        };
        let is_between = middle.intersection(range) == Some(range);
        let Some(manifest) =
            self.manifest.filter(|manifest| is_between && manifest.standing == Standing::Proved)
        else {
            return Ok(Known::Nothing);
        };
        let digest = manifest.digests.get(range.start());
        let mut buffer = worker.take_buffer()?;
        let padded = padded(*target, range);
        let known = match target.read(padded, &mut buffer) {
            Ok(()) => {
                let (bytes, padding) = buffer[..to_index(padded.len())].split_at(to_index(range.len()));
                let found = if is_zero(bytes) { None } else { Some(Digest::of(bytes)) };
                if found == digest && is_zero(padding) {
                    let (whole, fate) = (self.whole(range, bytes), Fate::KeptByManifest);
                    Known::Right(Outcome::Chunk { range, digest, whole, fate })
                } else {
                    Known::Other(Some(found.unwrap_or_else(|| Digest::of(bytes))))
                }
            }
            Err(fault) if fault.is_behind_the_end() => Known::Other(None),
            Err(fault) => return Err(fault.into()),
        };
        worker.give_back(buffer);
        Ok(known)
    }

    /// What the disk holds in the chunk's place, if it is not known from before.
    fn found(
        &self,
        worker: &mut Worker,
        onto: &Onto<'_>,
        (chunk, known): (&VerifiedChunk, Option<InPlace>),
    ) -> Result<InPlace, CopyError> {
        if let Some(known) = known {
            return Ok(known);
        }
        let mut found = worker.take_second()?;
        let padded = padded(onto.target, chunk.range());
        let in_place = match onto.target.read(padded, &mut found) {
            Ok(()) => match found[..to_index(padded.len())].split_at(chunk.bytes().len()) {
                (bytes, padding) if bytes == chunk.bytes() && is_zero(padding) => InPlace::Right,
                (bytes, _) => InPlace::Other(Some(Digest::of(bytes))),
            },
            Err(fault) if fault.is_behind_the_end() => InPlace::Other(None),
            Err(fault) => return Err(fault.into()),
        };
        worker.give_back_second(found);
        Ok(in_place)
    }

    fn whole(&self, range: ByteRange, bytes: &[u8]) -> Option<[u8; 32]> {
        self.hashes_all.then(|| WholeDigester::chaining_value(self.image.most_bytes(), range, bytes))
    }

    /// Zeroes, in requests that a cancel can wait for.
    fn zero(&self, worker: &Worker, onto: &Onto<'_>, range: ByteRange) -> Result<Outcome, CopyError> {
        let (mut at, mut step) = (range.start(), 16 * SHORTEST_ZERO_REQUEST);
        while at < range.end() {
            if self.cancel.is_cancelled() {
                return Err(CopyError::Cancelled);
            }
            let request = ByteRange::between(at, at.saturating_add(step).min(range.end()));
            let began = Instant::now();
            onto.target.write_zeroes(request)?;
            worker.beat();
            step = match began.elapsed() {
                took if took < ZERO_REQUEST_TIME / 2 => (step * 2).min(LONGEST_ZERO_REQUEST),
                took if took > ZERO_REQUEST_TIME => (step / 2).max(SHORTEST_ZERO_REQUEST),
                _ => step,
            };
            at = request.end();
        }
        Ok(Outcome::Zeroes { range, fate: Fate::Written { old: None } })
    }

    /// Zeroes all but holes: on a device to read costs more than to zero.
    fn zero_what_is_stored(
        &self,
        worker: &Worker,
        onto: &Onto<'_>,
        range: ByteRange,
    ) -> Result<Outcome, CopyError> {
        let (mut outcomes, mut at) = (Vec::new(), range.start());
        while at < range.end() {
            let stored = stored(onto.target, ByteRange::between(at, range.end()))?;
            if stored.start() > at {
                let range = ByteRange::between(at, stored.start());
                outcomes.push(Outcome::Zeroes { range, fate: Fate::Proved });
            }
            if !stored.is_empty() {
                outcomes.push(self.zero(worker, onto, stored)?);
            }
            at = stored.end();
        }
        Ok(Outcome::Several(outcomes))
    }

    /// Reads what should be zero, where it is no hole, and zeroes what is not.
    fn compare_zeroes(
        &self,
        worker: &mut Worker,
        onto: &Onto<'_>,
        range: ByteRange,
    ) -> Result<Outcome, CopyError> {
        let mut outcomes = Vec::new();
        let mut at = range.start();
        while at < range.end() {
            if self.cancel.is_cancelled() {
                return Err(CopyError::Cancelled);
            }
            let stored = stored(onto.target, ByteRange::between(at, range.end()))?;
            if stored.start() > at {
                let range = ByteRange::between(at, stored.start());
                outcomes.push(Outcome::Zeroes { range, fate: Fate::Proved });
            }
            let end = stored.end();
            for piece in stored.cut(CHUNK) {
                if self.cancel.is_cancelled() {
                    return Err(CopyError::Cancelled);
                }
                let mut buffer = worker.take_buffer()?;
                let right = match onto.target.read(piece, &mut buffer) {
                    Ok(()) => is_zero(&buffer[..to_index(piece.len())]),
                    Err(fault) if fault.is_behind_the_end() => false,
                    Err(fault) => return Err(fault.into()),
                };
                worker.give_back(buffer);
                worker.beat();
                if right {
                    outcomes.push(Outcome::Zeroes { range: piece, fate: Fate::Kept });
                } else if self.may_write.load(Ordering::SeqCst) {
                    onto.target.write_zeroes(piece)?;
                    outcomes.push(Outcome::Zeroes { range: piece, fate: Fate::Written { old: None } });
                } else {
                    let rest = ByteRange::between(piece.start(), range.end());
                    outcomes.push(Outcome::Differs(Job::Zero(rest)));
                    return Ok(Outcome::Several(outcomes));
                }
            }
            at = end;
        }
        Ok(Outcome::Several(outcomes))
    }

    fn write_anew(&self, worker: &Worker, onto: &Onto<'_>, piece: Piece) -> Result<Outcome, CopyError> {
        match piece.expected {
            Expected::Zeroes => {
                let end = piece.range.end().next_multiple_of(u64::from(onto.target.sector_size()));
                self.zero(worker, onto, ByteRange::between(piece.range.start(), end))?;
            }
            Expected::Digest(digest) => {
                let chunk = read_chunk(self.image, piece.range)?;
                if chunk.chunk_digest() != Some(digest) {
                    return Err(CopyError::ImageChanged { range: piece.range });
                }
                onto.target.write(&chunk)?;
            }
        }
        Ok(Outcome::Anew(piece))
    }
}

/// The value of a chunk of zeroes in the digest of a whole disk of `size` bytes.
pub(super) fn hash_zeroes(worker: &mut Worker, size: u64, range: ByteRange) -> Result<[u8; 32], CopyError> {
    let mut buffer = worker.take_buffer()?;
    let bytes = &mut buffer[..to_index(range.len())];
    bytes.fill(0);
    let value = WholeDigester::chaining_value(size, range, bytes);
    worker.give_back(buffer);
    Ok(value)
}

/// The first run of `range` that is not proved to be a hole, in whole sectors; empty, and at its end, where all is.
fn stored(disk: &dyn Disk, range: ByteRange) -> Result<ByteRange, CopyError> {
    let (stored, sector) = (disk.next_data(range.start())?, u64::from(disk.sector_size()));
    let Some(stored) = stored else { return Ok(ByteRange::between(range.end(), range.end())) };
    let start = (stored.start() / sector * sector).clamp(range.start(), range.end());
    let end = stored.end().next_multiple_of(sector).clamp(start, range.end());
    Ok(ByteRange::between(start, end))
}

/// The range up to the end of its last sector, which is written whole; what lies behind an image's end is zero.
fn padded(disk: &dyn Disk, range: ByteRange) -> ByteRange {
    let end = range.end().next_multiple_of(u64::from(disk.sector_size())).min(disk.size());
    ByteRange::between(range.start(), end.max(range.end()))
}

fn to_index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a chunk fits in memory")
}
