//! Who owns which cluster of the file: nothing there may belong to two places of the disk.
//!
//! A bit for each cluster of a stretch of the file says that an entry has it to itself, and a list has the streams of
//! compressed clusters, which share clusters and even sectors. What is found here is only where two meet; who they
//! are is asked in a further walk, which sound images never see.

use std::collections::HashSet;

use super::entry;

/// How many clusters of the file one walk looks after: 16 MiB of bits.
const CLUSTERS_MAX: u64 = 1 << 27;

/// How many streams that begin apart one walk looks after; twice as many are held: 32 MiB.
///
/// One cluster has no more bytes for them to begin at.
pub(super) const STREAMS_MAX: usize = 2 << 20;

/// How far behind the stretch is seen what its streams may reach: a stream touches at most three clusters.
const MARGIN: u64 = 3;

/// How many meetings are kept, to ask who meets; further ones are counted.
pub(super) const MEETINGS_MAX: usize = 1000;

/// Where two things begin that share bytes of the file: the same offset twice, or a stream and what it reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Meeting {
    pub(super) first: u64,
    pub(super) second: u64,
}

/// All that was found of one layer.
#[derive(Debug, Default)]
pub(super) struct Meetings {
    pub(super) kept: HashSet<Meeting>,
    /// How often a thing was met that another has.
    pub(super) count: u64,
}

impl Meetings {
    fn add(&mut self, first: u64, second: u64) {
        self.count += 1;
        if self.kept.len() < MEETINGS_MAX {
            self.kept.insert(Meeting { first, second });
        }
    }

    fn take_in(&mut self, other: Self) {
        self.count += other.count;
        for meeting in other.kept {
            if self.kept.len() < MEETINGS_MAX {
                self.kept.insert(meeting);
            }
        }
    }
}

/// A compressed cluster's bytes in the file, as its entry says them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stream {
    pub(super) start: u64,
    /// Behind its last sector, which is an upper bound.
    pub(super) end: u64,
}

/// What one walk learns of a stretch of the file.
pub(super) struct Owners {
    cluster_bits: u32,
    /// The number of the stretch's first cluster, and that of the first behind it.
    first: u64,
    end: u64,
    /// A bit for each cluster from `first` on, `MARGIN` more than the stretch has.
    bits: Vec<u64>,
    /// What begins there, in the form that `entry::stream_key` gives.
    streams: Vec<u64>,
    meetings: Meetings,
    /// The number of the first cluster behind the stretch that anything owns.
    next: Option<u64>,
    /// Too many streams begin here: the walk is of no use, and the next one should end at this cluster.
    narrower: Option<u64>,
}

impl Owners {
    /// Of the stretch that begins at the cluster `first` and does not reach beyond `limit`.
    pub(super) fn of(cluster_bits: u32, first: u64, limit: u64) -> Self {
        let end = limit.min(first.saturating_add(CLUSTERS_MAX));
        let words = (end - first + MARGIN).div_ceil(64);
        Self {
            cluster_bits,
            first,
            end,
            bits: vec![0; usize::try_from(words).expect("at most 2 Mi words")],
            streams: Vec::new(),
            meetings: Meetings::default(),
            next: None,
            narrower: None,
        }
    }

    /// An entry has the cluster at this offset to itself.
    #[inline]
    pub(super) fn own(&mut self, host_offset: u64) {
        let cluster = host_offset >> self.cluster_bits;
        let Some((word, bit)) = self.place(cluster) else { return };
        if self.bits[word] & bit != 0 && cluster < self.end {
            self.meetings.add(host_offset, host_offset);
        }
        self.bits[word] |= bit;
    }

    /// A compressed cluster's stream; `key` is what `entry::stream_key` makes of its entry.
    #[inline]
    pub(super) fn own_stream(&mut self, key: u64) {
        let cluster = self.stream(key).start >> self.cluster_bits;
        if self.place(cluster).is_none() || self.narrower.is_some() {
            return;
        }
        if self.streams.len() == 2 * STREAMS_MAX {
            self.make_room();
        }
        self.streams.push(key);
    }

    /// The bit of a cluster, if it lies in the stretch or a little behind it.
    #[inline]
    fn place(&mut self, cluster: u64) -> Option<(usize, u64)> {
        let index = cluster.checked_sub(self.first)?;
        if cluster >= self.end {
            self.next = Some(self.next.map_or(cluster, |next| next.min(cluster)));
            if cluster >= self.end + MARGIN {
                return None;
            }
        }
        Some((usize::try_from(index / 64).ok()?, 1 << (index % 64)))
    }

    fn owns(&self, cluster: u64) -> bool {
        cluster.checked_sub(self.first).is_some_and(|index| {
            let word = usize::try_from(index / 64).ok().and_then(|word| self.bits.get(word));
            word.is_some_and(|word| word >> (index % 64) & 1 == 1)
        })
    }

    fn stream(&self, key: u64) -> Stream {
        entry::stream_of_key(key, self.cluster_bits)
    }

    /// Lets go of streams that begin where another does; if that is not enough, the stretch must be shorter.
    fn make_room(&mut self) {
        self.streams.sort_unstable();
        let (mut last, cluster_bits, meetings) = (None, self.cluster_bits, &mut self.meetings);
        self.streams.retain(|key| {
            let start = entry::stream_of_key(*key, cluster_bits).start;
            let is_first = last != Some(start);
            last = Some(start);
            if !is_first {
                meetings.add(start, start);
            }
            is_first
        });
        if self.streams.len() > STREAMS_MAX {
            let middle = self.stream(self.streams[self.streams.len() / 2]).start >> self.cluster_bits;
            self.narrower = Some(middle.max(self.first + 1));
        }
    }

    /// Where the stretch should have ended, if it was too long for what begins in it: then nothing was learned.
    pub(super) fn narrower(&self) -> Option<u64> {
        self.narrower
    }

    /// Ends the walk: where things meet, and the cluster at which the next stretch begins, if there is one.
    ///
    /// `reaches` says whether a stream really needs bytes from that offset on.
    pub(super) fn finish<E>(
        mut self,
        found: &mut Meetings,
        mut next_table: impl FnMut(u64) -> Option<u64>,
        mut reaches: impl FnMut(Stream, u64) -> Result<bool, E>,
    ) -> Result<Option<u64>, E> {
        self.streams.sort_unstable();
        let mut meetings = std::mem::take(&mut self.meetings);
        for (index, key) in self.streams.iter().enumerate() {
            let stream = self.stream(*key);
            let cluster = stream.start >> self.cluster_bits;
            if cluster >= self.end {
                break;
            }
            let next = self.streams.get(index + 1).map(|key| self.stream(*key).start);
            if next == Some(stream.start) {
                meetings.add(stream.start, stream.start);
                continue;
            }
            if self.owns(cluster) {
                meetings.add(cluster << self.cluster_bits, stream.start);
                continue;
            }
            // The last sector may hold the beginning of another stream, but of nothing else.
            let last_sector = (stream.end - 1) / 512 * 512;
            let next = next.filter(|next| *next < last_sector);
            let others = [next, self.next_owned(stream), self.table_in(stream, &mut next_table)];
            if let Some(other) = others.into_iter().flatten().min()
                && reaches(stream, other)?
            {
                meetings.add(stream.start, other);
            }
        }
        found.take_in(meetings);
        Ok(self.next)
    }

    /// Where the first cluster begins behind the stream's first that something else owns and the stream may reach.
    fn next_owned(&self, stream: Stream) -> Option<u64> {
        let clusters = (stream.start >> self.cluster_bits) + 1..=(stream.end - 1) >> self.cluster_bits;
        clusters.into_iter().find(|cluster| self.owns(*cluster)).map(|cluster| cluster << self.cluster_bits)
    }

    /// The same of the image's own structures.
    fn table_in(&self, stream: Stream, next_table: &mut impl FnMut(u64) -> Option<u64>) -> Option<u64> {
        let leaves = stream.start >> self.cluster_bits != (stream.end - 1) >> self.cluster_bits;
        next_table(stream.start).filter(|table| leaves && *table < stream.end)
    }
}
