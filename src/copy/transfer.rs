//! The way there: read or decode, digest, write.

use super::farm::{Pool, Worker};
use super::units::{Unit, Units};
use super::{CopyError, Watch};
use crate::image::{Extent, Image};
use crate::range::ByteRange;
use crate::target::Target;
use crate::verify::{CHUNK, Digest, DigestTable, VerifiedChunk, WholeDigester};

/// Zeroes go out in requests of this size, so that a cancel is not kept waiting.
const ZERO_REQUEST: u64 = 64 << 20;

/// Where the chunks go.
pub(crate) enum Sink<'a> {
    /// Nowhere: they are only digested.
    Digests,
    /// Onto a target, but for its ends, which are kept in memory to be written last.
    Target {
        target: &'a dyn Target,
        /// Everything between the two ends.
        middle: ByteRange,
    },
}

/// What a transfer is about.
pub(crate) struct Transfer<'a> {
    pub(crate) image: &'a dyn Image,
    pub(crate) sink: Sink<'a>,
    /// Present when the digest of the whole disk is wanted too.
    pub(crate) whole: Option<WholeDigester>,
}

/// What a transfer found and did.
pub(crate) struct Transferred {
    pub(crate) digests: DigestTable,
    /// The chunks of both ends that hold data, in no order.
    pub(crate) withheld: Vec<VerifiedChunk>,
    /// Bytes that were handed to the target as data.
    pub(crate) bytes_written: u64,
    /// Bytes that were made zero.
    pub(crate) bytes_zeroed: u64,
    pub(crate) whole: Option<Digest>,
}

enum Job {
    Copy(Vec<(ByteRange, Vec<Extent>)>),
    Zero(ByteRange),
    HashZeroes(ByteRange),
}

enum Outcome {
    Chunks(Vec<Outcome>),
    Chunk {
        range: ByteRange,
        digest: Option<Digest>,
        whole: Option<[u8; 32]>,
        withheld: Option<VerifiedChunk>,
    },
    Zeroed(ByteRange),
    Hashed(ByteRange, [u8; 32]),
}

/// Carries the image's chunks to the sink; zeroes behind the image's end are the caller's.
pub(crate) fn transfer(
    pool: &Pool,
    transfer: Transfer<'_>,
    watch: &Watch<'_>,
) -> Result<Transferred, CopyError> {
    let Transfer { image, sink, mut whole } = transfer;
    let size = image.virtual_size();
    let hashes_all = whole.is_some();
    let mut units = Units::of(image);
    let mut pending = std::collections::VecDeque::new();
    let mut result = Transferred {
        digests: DigestTable::new(size),
        withheld: Vec::new(),
        bytes_written: 0,
        bytes_zeroed: 0,
        whole: None,
    };
    let (skipped, mut done_bytes) = (std::cell::Cell::new(0_u64), 0_u64);
    watch.started();
    let next = || loop {
        if watch.cancel.is_cancelled() {
            return Err(CopyError::Cancelled);
        }
        if let Some(job) = pending.pop_front() {
            return Ok(Some(job));
        }
        match units.next()? {
            None => return Ok(None),
            Some(Unit::Chunks(chunks)) => return Ok(Some(Job::Copy(chunks))),
            Some(Unit::Zeroes(range)) if hashes_all => {
                pending.extend(zero_jobs(&sink, range));
                pending.extend(range.cut(CHUNK).map(Job::HashZeroes));
            }
            Some(Unit::Zeroes(range)) => {
                pending.extend(zero_jobs(&sink, range));
                if pending.is_empty() {
                    skipped.set(skipped.get() + range.len());
                }
            }
        }
    };
    let work = |worker: &mut Worker, job| match job {
        Job::Copy(chunks) => {
            let whole_of = hashes_all.then_some(size);
            let copied = chunks.iter().map(|chunk| copy_chunk(worker, image, &sink, chunk, whole_of));
            copied.collect::<Result<_, _>>().map(Outcome::Chunks)
        }
        Job::Zero(range) => zero_run(&sink, range),
        Job::HashZeroes(range) => hash_zeroes(worker, range, size),
    };
    pool.run(next, work, |outcome| {
        done_bytes += absorb(outcome, &mut result, &mut whole);
        watch.progress((done_bytes + skipped.get()).min(watch.bytes_total));
        Ok(())
    })?;
    watch.progress((done_bytes + skipped.get()).min(watch.bytes_total));
    result.digests.sort();
    result.whole = whole.map(WholeDigester::finish);
    Ok(result)
}

/// Makes `range` of the target zero, on every thread of the pool; returns the bytes that it took.
pub(crate) fn zero(
    pool: &Pool,
    target: &dyn Target,
    range: ByteRange,
    watch: &Watch<'_>,
) -> Result<u64, CopyError> {
    let sink = Sink::Target { target, middle: range };
    let mut jobs = zero_jobs(&sink, range);
    let mut bytes_zeroed = 0;
    let next = || match watch.cancel.is_cancelled() {
        true => Err(CopyError::Cancelled),
        false => Ok(jobs.next()),
    };
    let work = |_: &mut Worker, job| match job {
        Job::Zero(range) => zero_run(&sink, range),
        _ => unreachable!("only zeroes were asked for"),
    };
    pool.run(next, work, |outcome| {
        if let Outcome::Zeroed(range) = outcome {
            bytes_zeroed += range.len();
        }
        Ok(())
    })?;
    Ok(bytes_zeroed)
}

/// What has to be zeroed of `range`: nothing in a new file, and nothing of the ends, which are zero already.
fn zero_jobs(sink: &Sink<'_>, range: ByteRange) -> impl Iterator<Item = Job> + use<> {
    let part = match sink {
        Sink::Target { target, middle } if !target.is_new() => {
            // An image may end within a sector; the bytes behind it are to be zero anyway.
            let end = range.end().next_multiple_of(u64::from(target.sector_size()));
            ByteRange::between(range.start(), end).intersection(*middle)
        }
        _ => None,
    };
    part.into_iter().flat_map(|part| part.cut(ZERO_REQUEST)).map(Job::Zero)
}

fn zero_run(sink: &Sink<'_>, range: ByteRange) -> Result<Outcome, CopyError> {
    if let Sink::Target { target, .. } = sink {
        target.write_zeroes(range)?;
    }
    Ok(Outcome::Zeroed(range))
}

fn hash_zeroes(worker: &mut Worker, range: ByteRange, disk_size: u64) -> Result<Outcome, CopyError> {
    let mut buffer = worker.take_buffer()?;
    let bytes = &mut buffer[..usize::try_from(range.len()).expect("a chunk fits in memory")];
    bytes.fill(0);
    let value = WholeDigester::chaining_value(disk_size, range, bytes);
    worker.give_back(buffer);
    Ok(Outcome::Hashed(range, value))
}

fn copy_chunk(
    worker: &mut Worker,
    image: &dyn Image,
    sink: &Sink<'_>,
    (range, extents): &(ByteRange, Vec<Extent>),
    whole_of: Option<u64>,
) -> Result<Outcome, CopyError> {
    let range = *range;
    let mut buffer = worker.take_buffer()?;
    let len = usize::try_from(range.len()).expect("a chunk fits in memory");
    image.read(extents, &mut buffer[..len], &mut worker.decoder)?;
    let chunk = VerifiedChunk::digest(range, buffer);
    let digest = chunk.chunk_digest();
    let whole = whole_of.map(|size| WholeDigester::chaining_value(size, range, chunk.bytes()));
    let mut outcome = Outcome::Chunk { range, digest, whole, withheld: None };
    match sink {
        Sink::Target { middle, .. } if middle.intersection(range) != Some(range) => {
            let Outcome::Chunk { withheld, .. } = &mut outcome else { unreachable!("it was made above") };
            *withheld = Some(chunk);
            return Ok(outcome);
        }
        Sink::Target { target, .. } => target.write(&chunk)?,
        Sink::Digests => {}
    }
    worker.give_back(chunk.into_buffer());
    Ok(outcome)
}

/// Notes an outcome; returns how many bytes of the disk it was about.
fn absorb(outcome: Outcome, result: &mut Transferred, all: &mut Option<WholeDigester>) -> u64 {
    match outcome {
        Outcome::Chunks(chunks) => chunks.into_iter().map(|chunk| absorb(chunk, result, all)).sum(),
        Outcome::Chunk { range, digest, whole, withheld } => {
            match digest {
                Some(digest) => {
                    result.digests.insert(range, digest);
                    result.bytes_written += range.len();
                }
                None => result.bytes_zeroed += range.len(),
            }
            if let (Some(all), Some(value)) = (all.as_mut(), whole) {
                all.insert(range, value);
            }
            result.withheld.extend(withheld);
            range.len()
        }
        Outcome::Zeroed(range) => {
            result.bytes_zeroed += range.len();
            if all.is_some() { 0 } else { range.len() }
        }
        Outcome::Hashed(range, value) => {
            if let Some(all) = all {
                all.insert(range, value);
            }
            range.len()
        }
    }
}
