//! What a simulated disk does wrong: faults, lies, and the randomness that chooses among them.

use std::io;

use serde::Serialize;

use super::history::Bytes;
use crate::range::ByteRange;

/// What an operation of a simulated disk does.
///
/// ```
/// use reimage::{SimAction, SimDisk, Target};
/// let disk = SimDisk::device(vec![1; 4096], 512);
/// disk.sync().unwrap();
/// assert_eq!(disk.log()[0].action, SimAction::Sync);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SimAction {
    /// `Disk::read`.
    Read,
    /// `Target::write`.
    Write,
    /// `Target::write_zeroes`.
    Zero,
    /// `Target::sync`.
    Sync,
    /// `Target::take_size` of a disk that has another size yet.
    Resize,
    /// `Exchange::publish`: the rename.
    Publish,
    /// `Exchange::settle`: the folder is synced and the old file removed.
    Settle,
    /// `Exchange::preserve`: a new file that is not complete gets a name under which it stays.
    Preserve,
}

impl SimAction {
    pub(super) fn doing(self) -> &'static str {
        match self {
            Self::Read => "reading",
            Self::Write => "writing",
            Self::Zero => "zeroing",
            Self::Sync => "syncing",
            Self::Resize => "growing the file",
            Self::Publish => "putting the new file into its place",
            Self::Settle => "removing the old file",
            Self::Preserve => "keeping the new file",
        }
    }
}

/// An operation of a simulated disk.
///
/// ```
/// use reimage::{ByteRange, SimDisk, Target};
/// let disk = SimDisk::device(vec![1; 4096], 512);
/// disk.write_zeroes(ByteRange::new(512, 1024)).unwrap();
/// let operation = disk.log()[0];
/// assert_eq!((operation.number, operation.range), (1, Some(ByteRange::new(512, 1024))));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SimOperation {
    /// Its place among all operations of the disk, from 1.
    pub number: usize,
    /// What it does.
    pub action: SimAction,
    /// The bytes that it is about; `None` where it is about the whole disk.
    pub range: Option<ByteRange>,
}

/// Whether an operation is about to begin or has ended.
///
/// ```
/// use reimage::{SimDisk, SimWhen, Target};
/// let disk = SimDisk::device(vec![1; 4096], 512);
/// let ended = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
/// let last = ended.clone();
/// disk.on_operation(move |operation, when| {
///     if when == SimWhen::After {
///         last.store(operation.number, std::sync::atomic::Ordering::SeqCst);
///     }
/// });
/// disk.sync().unwrap();
/// assert_eq!(ended.load(std::sync::atomic::Ordering::SeqCst), 1);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SimWhen {
    /// It is about to begin: nothing has changed.
    Before,
    /// It has ended, well or not.
    After,
}

/// How an operation of a simulated disk fails.
///
/// A failing sync makes nothing durable, and a part of what was not durable yet never will be: Linux marks the pages
/// of a failed write-back clean, and the next sync succeeds without them.
///
/// ```
/// use reimage::{ByteRange, SimDisk, SimFault, Target};
/// let disk = SimDisk::device(vec![1; 4096], 512);
/// disk.fail(1, SimFault::Enospc);
/// assert!(disk.write_zeroes(ByteRange::new(0, 512)).is_err());
/// assert_eq!(*disk.contents(), vec![1; 4096]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SimFault {
    /// EIO; nothing was done.
    Eio,
    /// ENOSPC; nothing was done.
    Enospc,
    /// EINTR; nothing was done.
    Interrupted,
    /// EAGAIN; nothing was done.
    Again,
    /// The first half was done, in whole sectors, and then the disk gave up.
    ///
    /// A publish or a settle is done for the most part: the exchange takes place, what follows it does not.
    Short,
}

impl SimFault {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Eio, Self::Enospc, Self::Interrupted, Self::Again, Self::Short];

    pub(super) fn error(self, action: SimAction) -> io::Error {
        match (self, action) {
            (Self::Eio, _) => io::Error::from_raw_os_error(libc::EIO),
            (Self::Enospc, _) => io::Error::from_raw_os_error(libc::ENOSPC),
            (Self::Interrupted, _) => io::Error::from_raw_os_error(libc::EINTR),
            (Self::Again, _) => io::Error::from_raw_os_error(libc::EAGAIN),
            (Self::Short, SimAction::Read) => io::ErrorKind::UnexpectedEof.into(),
            (Self::Short, SimAction::Write | SimAction::Zero) => io::ErrorKind::WriteZero.into(),
            (Self::Short, _) => io::Error::from_raw_os_error(libc::EIO),
        }
    }
}

/// How an operation of a simulated disk says that all is well and it is not.
///
/// ```
/// use reimage::{ByteRange, SimDisk, SimLie, Target};
/// let disk = SimDisk::device(vec![1; 4096], 512);
/// disk.lie(1, SimLie::Dropped);
/// disk.write_zeroes(ByteRange::new(0, 512)).unwrap();
/// assert_eq!(*disk.contents(), vec![1; 4096]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SimLie {
    /// A write or a zeroing that is acknowledged and dropped.
    Dropped,
    /// A write or a zeroing after which one bit is the other one.
    Flipped,
    /// A write that stores zeroes.
    Zeroed,
    /// A write or a zeroing that lands one sector too far.
    Shifted,
    /// A read that gives, once, what lay there before the last write.
    Stale,
}

impl SimLie {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Dropped, Self::Flipped, Self::Zeroed, Self::Shifted, Self::Stale];

    /// What a write of `bytes` at `range` becomes on a disk of `size` bytes; `None` where nothing is stored.
    pub(super) fn spoil(
        self,
        (range, bytes): (ByteRange, Bytes),
        (sector, size): (u64, u64),
        random: &mut Random,
    ) -> Option<(ByteRange, Bytes)> {
        match self {
            Self::Dropped => None,
            Self::Stale => Some((range, bytes)),
            Self::Zeroed => Some((range, Bytes::Zeroes)),
            Self::Flipped if range.is_empty() => None,
            Self::Flipped => {
                let mut flipped = bytes.to_vec(range.len());
                let at = random.below(flipped.len());
                flipped[at] ^= 1 << random.below(8);
                Some((range, Bytes::Data(flipped.into())))
            }
            Self::Shifted => {
                let start = (range.start() + sector).min(size);
                let landed = ByteRange::between(start, (range.end() + sector).min(size));
                Some((landed, bytes.part(0, landed.len()))).filter(|_| !landed.is_empty())
            }
        }
    }
}

/// Repeatable randomness: SplitMix64.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(rng_seed: u64) -> Self {
        Self(rng_seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("it is smaller than an index")
    }

    pub(super) fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }

    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at + 1));
        }
    }
}
