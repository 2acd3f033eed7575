//! The way there: read or decode, digest, compare where that is wanted, write.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::farm::Pool;
use super::manifest::ByManifest;
use super::pieces::{Fate, Job, Outcome, Shared};
use super::series::apart;
use super::units::{Unit, Units};
use super::{CopyError, Piece, Watch};
use crate::image::Image;
use crate::observe::Event;
use crate::range::{ByteRange, RangeSet};
use crate::target::{Target, TargetError};
use crate::verify::{CHUNK, Digest, DigestTable, Expected, VerifiedChunk, WholeDigester};

/// Zeroes are shared out among the threads in parts of this size.
const ZERO_JOB: u64 = 256 << 20;
/// How often what was written since the last good sync is written anew, because the next one failed.
const MOST_ROUNDS: u32 = 2;

/// Where the chunks go.
pub(crate) enum Sink<'a> {
    /// Nowhere: they are only digested.
    Digests,
    /// Onto a target, but for its ends, which are kept in memory to be written last.
    Target(Onto<'a>),
}

/// A target, and what is asked of it before it is written.
pub(crate) struct Onto<'a> {
    pub(crate) target: &'a dyn Target,
    /// Everything between the two ends; what lies behind the image's end becomes zero.
    pub(crate) middle: ByteRange,
    pub(crate) compare: Compare<'a>,
    /// Whether the disk says already that it is unfinished; else it is told before the first write.
    pub(crate) may_write: bool,
    pub(crate) checkpoint: Duration,
}

/// What is read and compared, so that it need not be written.
#[derive(Clone, Copy)]
pub(crate) enum Compare<'a> {
    /// Nothing.
    Nothing,
    /// The chunks of this table, which an earlier run wrote; all others are written, and holes stay.
    Noted(&'a DigestTable),
    /// Every byte.
    Everything,
}

/// What a pass asks of whoever started it, on the calling thread.
pub(crate) trait Ledger {
    /// The first byte that differs was found: when this returns, the disk says that it is unfinished.
    ///
    /// # Errors
    ///
    /// When it does not: then nothing is written.
    fn before_first_write(&mut self) -> Result<(), CopyError>;

    /// These chunks are on the disk for good.
    fn durable(&mut self, chunks: &[(u64, Digest)]);
}

/// Of a pass that changes nothing.
impl Ledger for () {
    fn before_first_write(&mut self) -> Result<(), CopyError> {
        Ok(())
    }

    fn durable(&mut self, _: &[(u64, Digest)]) {}
}

/// What a transfer is about.
pub(crate) struct Transfer<'a> {
    pub(crate) image: &'a dyn Image,
    pub(crate) sink: Sink<'a>,
    /// What the chunks should be, where that is known.
    pub(crate) manifest: Option<ByManifest<'a>>,
    /// Present when the digest of the whole disk is wanted too.
    pub(crate) whole: Option<WholeDigester>,
}

/// What a transfer found and did; everything that it wrote is durable.
pub(crate) struct Transferred {
    pub(crate) digests: DigestTable,
    /// The chunks of both ends that hold data, in no order.
    pub(crate) withheld: Vec<VerifiedChunk>,
    /// Bytes that were handed to the target as data.
    pub(crate) bytes_written: u64,
    /// Bytes that were made zero.
    pub(crate) bytes_zeroed: u64,
    /// What was read from the disk and found right, so that it needs no reading back.
    pub(crate) kept: RangeSet,
    pub(crate) bytes_kept: u64,
    /// Of these, the bytes that the image was not asked for: the manifest says what they are.
    pub(crate) bytes_by_manifest: u64,
    /// What chunks held that were found to differ, by their index.
    old: Vec<(u64, Digest)>,
    /// What was written again after a failed sync: it is read back whatever else is.
    pub(crate) doubtful: Vec<Piece>,
    pub(crate) whole: Option<Digest>,
}

impl Transferred {
    /// Of a disk of which nothing had to be copied; `withheld` is what lies in its ends.
    pub(crate) fn nothing(digests: DigestTable, withheld: Vec<VerifiedChunk>) -> Self {
        Self {
            digests,
            withheld,
            bytes_written: 0,
            bytes_zeroed: 0,
            kept: RangeSet::default(),
            bytes_kept: 0,
            bytes_by_manifest: 0,
            old: Vec::new(),
            doubtful: Vec::new(),
            whole: None,
        }
    }

    /// The digest of what a chunk held before it was written, where it was read.
    pub(crate) fn old(&self, range: ByteRange) -> Option<Digest> {
        let index = range.start() / CHUNK;
        let place = self.old.binary_search_by_key(&index, |(index, _)| *index).ok()?;
        Some(self.old[place].1)
    }
}

/// Carries the image's chunks to the sink, and zeroes to what lies behind them.
pub(crate) fn transfer(
    pool: &Pool,
    transfer: Transfer<'_>,
    (watch, ledger): (&Watch<'_>, &mut dyn Ledger),
) -> Result<Transferred, CopyError> {
    let Transfer { image, sink, manifest, whole } = transfer;
    let pieces = Shared {
        image,
        sink: &sink,
        manifest,
        hashes_all: whole.is_some(),
        may_write: AtomicBool::new(matches!(&sink, Sink::Target(onto) if onto.may_write)),
        cancel: watch.cancel,
    };
    watch.started();
    let pass = RefCell::new(Pass::new(&pieces, whole, ledger));
    loop {
        let next = || match watch.cancel.is_cancelled() {
            true => Err(CopyError::Cancelled),
            false => pass.borrow_mut().next(),
        };
        let done = |outcome| {
            let mut pass = pass.borrow_mut();
            pass.absorb(outcome)?;
            watch.progress(pass.bytes_done().min(watch.bytes_total));
            Ok(())
        };
        pool.run(next, |worker, job| pieces.work(worker, job), done, watch)?;
        let mut pass = pass.borrow_mut();
        match pass.sync_fault.take() {
            // A sync that failed once and then succeeds says nothing of what it was asked for the first time.
            Some(fault) if pass.failed_syncs > MOST_ROUNDS => return Err(fault.into()),
            Some(_) => pass.write_anew(watch),
            None if pass.is_over() => break,
            None => {}
        }
    }
    apart(|| image.see_end())?;
    let result = pass.into_inner().finish()?;
    watch.progress(watch.bytes_total);
    Ok(result)
}

/// A pass under way, as the calling thread sees it.
struct Pass<'a> {
    pieces: &'a Shared<'a>,
    ledger: &'a mut dyn Ledger,
    units: Units<'a>,
    is_at_end: bool,
    pending: VecDeque<Job>,
    /// What was written since the last sync began.
    written: Vec<Piece>,
    /// What the sync under way is about.
    in_sync: Option<Vec<Piece>>,
    last_sync: Instant,
    sync_fault: Option<TargetError>,
    /// How many syncs have failed since the last good one.
    failed_syncs: u32,
    skipped: u64,
    done: u64,
    whole: Option<WholeDigester>,
    result: Transferred,
}

impl<'a> Pass<'a> {
    fn new(pieces: &'a Shared<'a>, whole: Option<WholeDigester>, ledger: &'a mut dyn Ledger) -> Self {
        let result = Transferred::nothing(DigestTable::new(pieces.image.most_bytes()), Vec::new());
        let units = match pieces.sink {
            Sink::Digests if !pieces.hashes_all => Units::with_long_zeroes(pieces.image),
            _ => Units::of(pieces.image),
        };
        Self {
            pieces,
            ledger,
            units,
            is_at_end: false,
            pending: VecDeque::new(),
            written: Vec::new(),
            in_sync: None,
            last_sync: Instant::now(),
            sync_fault: None,
            failed_syncs: 0,
            skipped: 0,
            done: 0,
            whole,
            result,
        }
    }

    fn bytes_done(&self) -> u64 {
        self.done + self.skipped
    }

    /// The next job; none where the run is to come to rest.
    fn next(&mut self) -> Result<Option<Job>, CopyError> {
        loop {
            if self.sync_fault.is_some() {
                return Ok(None);
            }
            if self.wants_sync() {
                return Ok(Some(self.sync()));
            }
            if let Some(job) = self.pending.pop_front() {
                return Ok(Some(job));
            }
            if self.is_at_end {
                return Ok(None);
            }
            match self.units.next()? {
                Some(Unit::Chunks(chunks)) => return Ok(Some(Job::Copy(chunks))),
                Some(Unit::Zeroes(range)) => {
                    self.pieces.manifest.map_or(Ok(()), |manifest| manifest.check_zeroes(range))?;
                    self.pending.extend(self.zero_jobs(range));
                    if self.pieces.hashes_all {
                        self.pending.extend(range.cut(CHUNK).map(Job::HashZeroes));
                    } else if self.pending.is_empty() {
                        self.skipped += range.len();
                    }
                }
                None => {
                    self.is_at_end = true;
                    self.pending.extend(self.behind());
                }
            }
        }
    }

    /// What becomes zero behind the image's end.
    fn behind(&self) -> Vec<Job> {
        let Sink::Target(onto) = self.pieces.sink else { return Vec::new() };
        // A chunk is written in whole sectors, so the zeroes begin at the next one.
        let size = self.pieces.image.most_bytes().next_multiple_of(u64::from(onto.target.sector_size()));
        let end = onto.middle.end();
        if size >= end { Vec::new() } else { self.zero_jobs(ByteRange::between(size, end)).collect() }
    }

    /// What has to be zeroed of `range`: nothing in a new file, and nothing of the ends.
    fn zero_jobs(&self, range: ByteRange) -> impl Iterator<Item = Job> + use<> {
        let part = match self.pieces.sink {
            Sink::Target(onto) if !onto.target.is_new() => {
                // An image may end within a sector; the bytes behind it are to be zero anyway.
                let end = range.end().next_multiple_of(u64::from(onto.target.sector_size()));
                ByteRange::between(range.start(), end).intersection(onto.middle)
            }
            _ => None,
        };
        part.into_iter().flat_map(|part| part.cut(ZERO_JOB)).map(Job::Zero)
    }

    /// Whether a sync is due in between.
    fn wants_sync(&self) -> bool {
        let Sink::Target(onto) = self.pieces.sink else { return false };
        let is_due = self.last_sync.elapsed() >= onto.checkpoint;
        is_due && self.in_sync.is_none() && !self.written.is_empty()
    }

    fn sync(&mut self) -> Job {
        self.in_sync = Some(std::mem::take(&mut self.written));
        Job::Sync
    }

    /// Whether everything is written and durable; else the sync for it waits to be made.
    fn is_over(&mut self) -> bool {
        if !self.written.is_empty() {
            let sync = self.sync();
            self.pending.push_back(sync);
        }
        self.pending.is_empty() && self.is_at_end
    }

    /// Lets everything be written again of which it is not known whether it is on the disk.
    fn write_anew(&mut self, watch: &Watch<'_>) {
        let mut doubtful = self.in_sync.take().unwrap_or_default();
        doubtful.append(&mut self.written);
        let message = format!(
            "a sync failed, and {} pieces that were written before it are written again",
            doubtful.len()
        );
        watch.observer.event(&Event::Warning { code: "sync", message });
        let jobs = doubtful.iter().map(|piece| Job::Anew(*piece));
        self.pending.extend(jobs);
        self.result.doubtful.extend(doubtful);
    }

    fn finish(self) -> Result<Transferred, CopyError> {
        let (mut result, size) = (self.result, self.pieces.image.most_bytes());
        // What an earlier run noted behind the end was of another image.
        result.digests.end_at(size).map_err(|range| CopyError::ImageChanged { range })?;
        result.digests.sort();
        result.old.sort_unstable_by_key(|(index, _)| *index);
        result.kept.merge();
        result.whole = self.whole.map(|mut whole| {
            whole.end_at(size);
            whole.finish()
        });
        Ok(result)
    }

    /// Notes an outcome.
    fn absorb(&mut self, outcome: Outcome) -> Result<(), CopyError> {
        match outcome {
            Outcome::Several(outcomes) => {
                for outcome in outcomes {
                    self.absorb(outcome)?;
                }
            }
            Outcome::Chunk { range, digest, whole, fate } => {
                self.chunk(range, digest, fate);
                if let (Some(all), Some(value)) = (self.whole.as_mut(), whole) {
                    all.insert(range, value);
                }
                self.done += range.len();
            }
            Outcome::Zeroes { range, fate } => {
                match fate {
                    Fate::Kept | Fate::KeptByManifest => self.keep(range),
                    Fate::Written { .. } => {
                        self.result.bytes_zeroed += range.len();
                        self.written.push(Piece { range, expected: Expected::Zeroes });
                    }
                    Fate::Proved | Fate::Digested | Fate::Withheld(_) => {}
                }
                self.done += if self.whole.is_some() { 0 } else { range.len() };
            }
            Outcome::Hashed(range, value) => {
                if let Some(all) = self.whole.as_mut() {
                    all.insert(range, value);
                }
                self.done += range.len();
            }
            Outcome::Anew(piece) => self.written.push(piece),
            Outcome::Differs(job) => {
                if !self.pieces.may_write.load(Ordering::SeqCst) {
                    self.ledger.before_first_write()?;
                    self.pieces.may_write.store(true, Ordering::SeqCst);
                }
                self.pending.push_front(job);
            }
            Outcome::Synced(result) => self.synced(result),
        }
        Ok(())
    }

    fn chunk(&mut self, range: ByteRange, digest: Option<Digest>, fate: Fate) {
        if let Some(digest) = digest {
            self.result.digests.insert(range, digest);
        }
        match fate {
            Fate::Kept => self.keep(range),
            Fate::KeptByManifest => {
                self.keep(range);
                self.result.bytes_by_manifest += range.len();
            }
            Fate::Written { old } => {
                self.result.old.extend(old.map(|old| (range.start() / CHUNK, old)));
                match digest {
                    Some(_) => self.result.bytes_written += range.len(),
                    None => self.result.bytes_zeroed += range.len(),
                }
                let expected = digest.map_or(Expected::Zeroes, Expected::Digest);
                self.written.push(Piece { range, expected });
            }
            Fate::Withheld(chunk) => self.result.withheld.push(chunk),
            Fate::Proved | Fate::Digested => {}
        }
    }

    fn keep(&mut self, range: ByteRange) {
        self.result.kept.insert(range);
        self.result.bytes_kept += range.len();
    }

    fn synced(&mut self, result: Result<(), TargetError>) {
        self.last_sync = Instant::now();
        match result {
            Ok(()) => {
                self.failed_syncs = 0;
                let noted = |piece: Piece| match piece.expected {
                    Expected::Digest(digest) => Some((piece.range.start() / CHUNK, digest)),
                    Expected::Zeroes => None,
                };
                let pieces = self.in_sync.take().unwrap_or_default();
                let chunks: Vec<_> = pieces.into_iter().filter_map(noted).collect();
                self.ledger.durable(&chunks);
            }
            Err(fault) => {
                self.failed_syncs += 1;
                self.sync_fault = Some(fault);
            }
        }
    }
}
