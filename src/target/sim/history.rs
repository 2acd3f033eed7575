//! What a simulated disk has been through, and what a power cut at any moment of it leaves.

use std::sync::Arc;

use super::SimDisk;
use super::faults::{Random, SimOperation};
use crate::range::ByteRange;

/// A disk tears a write at borders of this size at least.
const LEAST_TEAR: u64 = 512;

/// The bytes of a change.
#[derive(Clone, Debug)]
pub(super) enum Bytes {
    Zeroes,
    Data(Arc<[u8]>),
}

impl Bytes {
    pub(super) fn to_vec(&self, len: u64) -> Vec<u8> {
        match self {
            Self::Zeroes => vec![0; to_index(len)],
            Self::Data(bytes) => bytes[..to_index(len)].to_vec(),
        }
    }

    /// The `len` bytes from `start` on.
    pub(super) fn part(&self, start: u64, len: u64) -> Self {
        match self {
            Self::Zeroes => Self::Zeroes,
            Self::Data(bytes) => Self::Data(bytes[to_index(start)..to_index(start + len)].into()),
        }
    }
}

/// A change of what a disk holds, not durable until it is synced.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Stored(ByteRange, Bytes),
    Grown(u64),
}

impl Change {
    pub(super) fn apply(&self, contents: &mut Vec<u8>) {
        match self {
            Self::Grown(size) => {
                let size = to_index(*size).max(contents.len());
                contents.resize(size, 0);
            }
            Self::Stored(range, bytes) => store(contents, *range, bytes, range.start()),
        }
    }

    /// The same in part: every sector or none of it, as chance will have it.
    fn tear(&self, contents: &mut Vec<u8>, sector: u64, random: &mut Random) {
        let Self::Stored(range, bytes) = self else {
            return if random.coin() {
                self.apply(contents)
            };
        };
        let sectors: Vec<ByteRange> = range.cut(sector).collect();
        if sectors.is_empty() {
            return;
        }
        let (shape, border) = (random.below(3), random.below(sectors.len() + 1));
        for (at, part) in sectors.into_iter().enumerate() {
            let is_stored = match shape {
                0 => at < border,
                1 => at >= border,
                _ => random.coin(),
            };
            if is_stored {
                store(contents, part, bytes, range.start());
            }
        }
    }
}

/// Stores the part of `bytes` (which begin at `start`) that belongs at `range`.
fn store(contents: &mut Vec<u8>, range: ByteRange, bytes: &Bytes, start: u64) {
    let place = place(range);
    if contents.len() < place.end {
        contents.resize(place.end, 0);
    }
    match bytes {
        Bytes::Zeroes => contents[place].fill(0),
        Bytes::Data(bytes) => {
            let from = to_index(range.start() - start);
            contents[place.clone()].copy_from_slice(&bytes[from..from + place.len()]);
        }
    }
}

pub(super) fn place(range: ByteRange) -> std::ops::Range<usize> {
    to_index(range.start())..to_index(range.end())
}

pub(super) fn to_index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("what is in memory is counted by usize")
}

/// What kind of disk is simulated, and what stays the same when it crashes.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) medium: Medium,
    pub(super) size: u64,
    pub(super) sector_size: u32,
    pub(super) name: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Medium {
    Device,
    FileInPlace,
    FileReplaced,
}

/// Whether a new file has the old one's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Waiting,
    /// Until the folder is synced, a power cut may undo it.
    Exchanged,
    Settled,
}

/// Something that matters to what a power cut leaves.
#[derive(Clone, Debug)]
pub(super) enum Happening {
    Changed(Change),
    Synced,
    /// Of the changes that were not durable, those that stay so and the others, which never will be.
    SyncFailed {
        kept: Vec<bool>,
    },
    /// A new file is begun beside what has the disk's name now.
    Begun,
    Exchanged,
    Settled,
}

/// What is stored for good, and what is on its way.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    /// The disk, or the new file that is to replace it.
    pub(super) durable: Arc<Vec<u8>>,
    pub(super) pending: Vec<Change>,
    /// The disk that is to be replaced.
    pub(super) old: Arc<Vec<u8>>,
    pub(super) place: Place,
}

impl Stored {
    pub(super) fn new(model: &Model, contents: Arc<Vec<u8>>) -> Self {
        let (durable, old) = match model.medium {
            Medium::FileReplaced => (Arc::new(vec![0; to_index(model.size)]), contents),
            Medium::Device | Medium::FileInPlace => (contents, Arc::default()),
        };
        Self { durable, pending: Vec::new(), old, place: Place::Waiting }
    }

    pub(super) fn happen(&mut self, happening: &Happening) {
        match happening {
            Happening::Changed(change) => self.pending.push(change.clone()),
            Happening::Synced => {
                for change in self.pending.drain(..) {
                    change.apply(Arc::make_mut(&mut self.durable));
                }
            }
            Happening::SyncFailed { kept } => {
                let mut kept = kept.iter();
                self.pending.retain(|_| *kept.next().expect("one word for every change"));
            }
            Happening::Begun => {
                let fresh = Arc::new(vec![0; self.durable.len()]);
                let last = std::mem::replace(&mut self.durable, fresh);
                self.pending.clear();
                if self.place != Place::Waiting {
                    self.old = last;
                }
                self.place = Place::Waiting;
            }
            Happening::Exchanged => self.place = Place::Exchanged,
            Happening::Settled => self.place = Place::Settled,
        }
    }

    /// What bears the disk's name after a power cut.
    pub(super) fn after_a_crash(mut self, model: &Model, rng_seed: u64) -> Arc<Vec<u8>> {
        let mut random = Random::new(rng_seed);
        let is_exchanged = match (model.medium, self.place, rng_seed) {
            (Medium::Device | Medium::FileInPlace, ..) | (_, Place::Settled, _) => true,
            (_, Place::Waiting, _) | (_, Place::Exchanged, 0) => false,
            (_, Place::Exchanged, 1) => true,
            (_, Place::Exchanged, _) => random.coin(),
        };
        if !is_exchanged {
            return self.old;
        }
        let mut pending = std::mem::take(&mut self.pending);
        if rng_seed > 1 {
            random.shuffle(&mut pending);
        }
        let sector = LEAST_TEAR.max(u64::from(model.sector_size));
        for change in pending {
            let fate = if rng_seed > 1 { random.below(4) } else { to_index(rng_seed) };
            match fate {
                0 => {}
                1 => change.apply(Arc::make_mut(&mut self.durable)),
                _ => change.tear(Arc::make_mut(&mut self.durable), sector, &mut random),
            }
        }
        self.durable
    }
}

/// What a simulated disk has been through, from the day it was made.
///
/// One run gives as many crashes as are wanted: of every moment, in every order.
///
/// ```
/// use reimage::{ByteRange, SimDisk, Target};
/// let disk = SimDisk::device(vec![1; 4096], 512);
/// disk.write_zeroes(ByteRange::new(0, 4096)).unwrap();
/// disk.sync().unwrap();
/// let history = disk.history();
/// let none_of_it = history.after(1).crash(0);
/// assert_eq!(*none_of_it.contents(), vec![1; 4096], "it was not synced yet");
/// assert_eq!(*history.after(2).crash(0).contents(), vec![0; 4096]);
/// ```
#[derive(Clone, Debug)]
pub struct SimHistory {
    pub(super) model: Model,
    pub(super) first: Arc<Vec<u8>>,
    /// What happened, and in which operation.
    pub(super) happenings: Vec<(usize, Happening)>,
    pub(super) log: Vec<SimOperation>,
}

impl SimHistory {
    /// The operations, in their order.
    #[must_use]
    pub fn log(&self) -> &[SimOperation] {
        &self.log
    }

    /// The moment after the first `operations` operations and before the next.
    #[must_use]
    pub fn after(&self, operations: usize) -> SimMoment {
        let mut stored = Stored::new(&self.model, Arc::clone(&self.first));
        for (_, happening) in self.happenings.iter().take_while(|(number, _)| *number <= operations) {
            stored.happen(happening);
        }
        SimMoment { model: self.model.clone(), stored }
    }
}

/// A moment in a simulated disk's life, at which the power may go.
///
/// ```
/// use reimage::{ByteRange, SimDisk, Target};
/// let disk = SimDisk::device(vec![1; 4096], 512);
/// disk.write_zeroes(ByteRange::new(0, 4096)).unwrap();
/// let moment = disk.history().after(1);
/// assert_eq!(moment.unsynced(), 1);
/// let torn = (2..).map(|rng_seed| moment.crash(rng_seed).contents());
/// let torn = torn.into_iter().find(|bytes| bytes.contains(&0) && bytes.contains(&1));
/// assert!(torn.is_some());
/// ```
#[derive(Clone, Debug)]
pub struct SimMoment {
    model: Model,
    stored: Stored,
}

impl SimMoment {
    /// How many changes a power cut may still undo, the exchange of a file among them.
    #[must_use]
    pub fn unsynced(&self) -> usize {
        match self.stored.place {
            Place::Exchanged => self.stored.pending.len() + 1,
            Place::Settled => self.stored.pending.len(),
            Place::Waiting if self.model.medium == Medium::FileReplaced => 0,
            Place::Waiting => self.stored.pending.len(),
        }
    }

    /// What the disk, or the new file that is to replace it, holds when everything has arrived.
    #[must_use]
    pub fn written(&self) -> Arc<Vec<u8>> {
        let mut stored = self.stored.clone();
        stored.happen(&Happening::Synced);
        stored.durable
    }

    /// The disk that a power cut leaves; `rng_seed` chooses what of the unsynced changes is on it.
    ///
    /// 0 is none of them, 1 is all of them in order. Every other seed takes each wholly, not at all, or some sectors
    /// of it, in any order where they overlap. A new file that is not settled has its place or has it not.
    #[must_use]
    pub fn crash(&self, rng_seed: u64) -> SimDisk {
        SimDisk::of(self.model.clone(), self.stored.clone().after_a_crash(&self.model, rng_seed))
    }
}
