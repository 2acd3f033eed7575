//! Who owns which cluster of the file: nothing there may belong to two places of the disk.
//!
//! A set of clusters of a stretch of the file says which an entry has to itself, and a list has the streams of
//! compressed clusters, which share clusters and even sectors. Where more is found than has room, the stretch ends
//! earlier. What is found here is only where two meet; who they are is asked in a further walk, which sound images
//! never see.

use std::collections::HashSet;

use super::clusters::Clusters;
use super::entry;

/// How much one walk looks after.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// How many clusters of the file, one behind the other, if these are too many for the list.
    pub(super) clusters: u64,
    /// How many that lie apart are listed; after a walk it may be half of them.
    pub(super) listed: usize,
    /// The same of streams.
    pub(super) streams: usize,
}

/// 16 MiB of bits, or as many of cluster numbers, and 32 MiB of streams.
pub(super) const ROOM: Room = Room { clusters: 1 << 27, listed: 2 << 20, streams: 4 << 20 };

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
pub(super) struct Found {
    pub(super) meetings: Meetings,
    /// Streams of which one ends in the sector in which the other begins, and not before it.
    pub(super) in_last_sector: Meetings,
}

/// Where a stream may reach what is another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// In sectors that should be its own.
    Sectors,
    /// In its last sector, in which streams rightly end and begin.
    LastSector,
}

/// Things that met.
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

    /// Forgets those from an offset on, which will be met again.
    fn cut(&mut self, end: u64) {
        let before = self.kept.len();
        self.kept.retain(|meeting| meeting.first < end);
        self.count -= u64::try_from(before - self.kept.len()).unwrap_or(0);
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
    room: Room,
    /// The number of the stretch's first cluster, and that of the first behind it.
    first: u64,
    end: u64,
    clusters: Clusters,
    /// What begins there, in the form that `entry::stream_key` gives.
    streams: Vec<u64>,
    meetings: Meetings,
    /// The first cluster behind the stretch that an entry has to itself.
    cluster_behind: Option<u64>,
    /// Where the first stream behind the stretch begins.
    stream_behind: Option<u64>,
}

/// What a walk leaves for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rest {
    /// The first cluster in which anything lies that was not looked after.
    pub(super) first: u64,
    /// Whether the stretch ended because clusters lie far apart.
    pub(super) is_scattered: bool,
}

impl Owners {
    /// Of what lies in a file of so many clusters, from the cluster `first` on.
    pub(super) fn of(cluster_bits: u32, first: u64, file_clusters: u64, room: Room) -> Self {
        Self {
            cluster_bits,
            room,
            first,
            end: u64::MAX,
            clusters: Clusters::of(first, file_clusters, room),
            streams: Vec::new(),
            meetings: Meetings::default(),
            cluster_behind: None,
            stream_behind: None,
        }
    }

    /// An entry has the cluster at this offset to itself.
    #[inline]
    pub(super) fn own(&mut self, host_offset: u64) {
        let cluster = host_offset >> self.cluster_bits;
        if cluster < self.first {
            return;
        }
        if cluster >= self.end {
            self.cluster_behind = least(self.cluster_behind, Some(cluster));
            return;
        }
        if self.clusters.add(cluster) {
            self.meetings.add(host_offset, host_offset);
        }
        if self.clusters.is_full() {
            let bits = self.cluster_bits;
            let end = self.clusters.make_room(|cluster| self.meetings.add(cluster << bits, cluster << bits));
            if let Some(end) = end {
                self.end_at(end);
            }
        }
    }

    /// A compressed cluster's stream; `key` is what `entry::stream_key` makes of its entry.
    #[inline]
    pub(super) fn own_stream(&mut self, key: u64) {
        let start = self.stream(key).start;
        let cluster = start >> self.cluster_bits;
        if cluster < self.first {
            return;
        }
        if cluster >= self.end {
            self.stream_behind = least(self.stream_behind, Some(start));
            return;
        }
        self.streams.push(key);
        if self.streams.len() >= self.room.streams {
            self.make_room();
        }
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
        let half = self.room.streams / 2;
        if self.streams.len() > half {
            // One cluster has no more bytes for streams to begin at than the half of a list.
            let middle = self.stream(self.streams[half]).start >> self.cluster_bits;
            self.end_at(middle.max(self.first + 1));
        }
    }

    /// Ends the stretch at a cluster that lies in it: what lies behind is left to the next walk.
    fn end_at(&mut self, end: u64) {
        self.end = end;
        let bits = self.cluster_bits;
        let behind = self.clusters.cut(end, |cluster| self.meetings.add(cluster << bits, cluster << bits));
        self.cluster_behind = least(self.cluster_behind, behind);
        let mut first_behind = None;
        self.streams.retain(|key| {
            let start = entry::stream_of_key(*key, bits).start;
            let is_within = start >> bits < end;
            if !is_within {
                first_behind = least(first_behind, Some(start));
            }
            is_within
        });
        self.stream_behind = least(self.stream_behind, first_behind);
        self.meetings.cut(end.saturating_mul(1 << bits));
    }

    /// Ends the walk: where things meet, and what is left, if there is anything.
    ///
    /// `reaches` says whether a stream really needs bytes from that offset on.
    pub(super) fn finish<E>(
        mut self,
        found: &mut Found,
        mut next_table: impl FnMut(u64) -> Option<u64>,
        mut reaches: impl FnMut(Stream, u64, Reach) -> Result<bool, E>,
    ) -> Result<Option<Rest>, E> {
        self.streams.sort_unstable();
        let mut meetings = std::mem::take(&mut self.meetings);
        let bits = self.cluster_bits;
        self.clusters.finish(|cluster| meetings.add(cluster << bits, cluster << bits));
        let streams = std::mem::take(&mut self.streams);
        for (index, key) in streams.iter().enumerate() {
            let stream = self.stream(*key);
            let cluster = stream.start >> bits;
            let next = streams.get(index + 1).map(|key| self.stream(*key).start).or(self.stream_behind);
            if next == Some(stream.start) {
                meetings.add(stream.start, stream.start);
                continue;
            }
            // The first cluster from its own on that something else owns and that it may reach.
            let last_cluster = (stream.end - 1) >> bits;
            let behind = self.cluster_behind.filter(|owned| *owned <= last_cluster);
            let owned = self.clusters.first_of(cluster..=last_cluster).or(behind);
            if owned == Some(cluster) {
                meetings.add(cluster << bits, stream.start);
                continue;
            }
            // The last sector may hold the beginning of another stream, but of nothing else.
            let last_sector = (stream.end - 1) / 512 * 512;
            let (next, neighbour) = match next {
                Some(next) if next < last_sector => (Some(next), None),
                next => (None, next.filter(|next| *next < stream.end)),
            };
            let table =
                next_table(stream.start).filter(|table| cluster != last_cluster && *table < stream.end);
            let others = [next, owned.map(|owned| owned << bits), table];
            match (others.into_iter().flatten().min(), neighbour) {
                (Some(other), _) if reaches(stream, other, Reach::Sectors)? => {
                    meetings.add(stream.start, other);
                }
                (_, Some(next)) if reaches(stream, next, Reach::LastSector)? => {
                    found.in_last_sector.add(stream.start, next);
                }
                _ => {}
            }
        }
        found.meetings.take_in(meetings);
        let first = least(self.cluster_behind, self.stream_behind.map(|start| start >> bits));
        Ok(first.map(|first| Rest { first, is_scattered: self.clusters.is_list() }))
    }
}

fn least(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const BITS: u32 = 9;

    /// What is owned: a cluster by its number, or a stream by its first byte, of one sector.
    #[derive(Clone, Copy)]
    enum Thing {
        Cluster(u64),
        Stream(u64),
    }

    /// All meetings and how many there are, in so much memory; how many walks it took, and how many of them ended
    /// because clusters lie apart.
    fn walk(things: &[Thing], file_clusters: u64, room: Room) -> (Meetings, u32, u32) {
        let (mut found, mut walks, mut scattered) = (Found::default(), 0, 0);
        let mut next = Some(0);
        while let Some(first) = next {
            let mut owners = Owners::of(BITS, first, file_clusters, room);
            for thing in things {
                match *thing {
                    Thing::Cluster(cluster) => owners.own(cluster << BITS),
                    Thing::Stream(start) => owners.own_stream(entry::stream_key(start, BITS)),
                }
            }
            let rest = owners.finish(&mut found, |_| None, |_, _, _| Ok::<_, ()>(false)).unwrap();
            walks += 1;
            scattered += u32::from(rest.is_some_and(|rest| rest.is_scattered));
            next = rest.map(|rest| rest.first);
            assert!(next.is_none_or(|next| next > first), "each walk gets on");
        }
        (found.meetings, walks, scattered)
    }

    /// The same by the simplest means.
    fn expected(things: &[Thing]) -> HashSet<Meeting> {
        let (mut clusters, mut streams) = (BTreeMap::new(), BTreeMap::new());
        for thing in things {
            match *thing {
                Thing::Cluster(cluster) => *clusters.entry(cluster).or_insert(0) += 1,
                Thing::Stream(start) => *streams.entry(start).or_insert(0) += 1,
            }
        }
        let twice = |place: u64| Meeting { first: place, second: place };
        let mut meetings: HashSet<_> = clusters
            .iter()
            .filter(|(_, count)| **count > 1)
            .map(|(cluster, _)| twice(cluster << BITS))
            .collect();
        for (start, count) in &streams {
            let cluster = start >> BITS;
            if *count > 1 {
                meetings.insert(twice(*start));
            }
            if clusters.contains_key(&cluster) {
                meetings.insert(Meeting { first: cluster << BITS, second: *start });
            }
        }
        meetings
    }

    #[test]
    fn meetings_are_found_once_whatever_has_room() {
        let mut state = 7_u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for (file_clusters, clusters, streams) in [
            (1 << 20, 1 << 20, 1 << 20),
            (1 << 20, 1 << 20, 128),
            (1 << 20, 100, 1 << 20),
            (1 << 20, 5000, 128),
            (1 << 40, 100, 128),
            (1 << 40, 1 << 30, 128),
        ] {
            let room = Room { clusters, listed: 64, streams };
            for (count, spread) in [(300, 2000), (3000, 200_000), (3000, 1 << 19)] {
                let things: Vec<_> = (0..count)
                    .map(|_| match random(3) {
                        0 => Thing::Cluster(random(spread)),
                        _ => Thing::Stream(random(spread << BITS)),
                    })
                    .chain([Thing::Stream(5), Thing::Stream(spread << BITS), Thing::Stream(5)])
                    .collect();
                let (found, walks, _) = walk(&things, file_clusters, room);
                let expected = expected(&things);
                assert!((1..MEETINGS_MAX).contains(&expected.len()), "{}", expected.len());
                assert_eq!(found.kept, expected, "{room:?}, {count} within {spread}");
                assert!(walks <= 2 + 3000 / 32, "{room:?}, {count} within {spread}: {walks} walks");
            }
        }
    }

    #[test]
    fn a_walk_ends_early_only_where_it_must() {
        let room = Room { clusters: 1000, listed: 64, streams: 1024 };
        let dense: Vec<_> = (0..4000).map(Thing::Cluster).collect();
        assert_eq!(walk(&dense, 1 << 40, room).1, 4);
        let apart: Vec<_> = (0..640).map(|number| Thing::Cluster(number << 20)).collect();
        let (found, walks, scattered) = walk(&apart, 1 << 40, room);
        assert_eq!((found.count, walks, scattered), (0, 20, 19));
        assert_eq!(walk(&apart[..63], 1 << 40, room).1, 1);
        // 512 streams in each of eight clusters, byte behind byte.
        let streams: Vec<_> = (0..4096).map(Thing::Stream).collect();
        assert_eq!(walk(&streams, 1 << 20, room).1, 8);
        let streams: Vec<_> = (0..4096).rev().map(Thing::Stream).collect();
        assert!(walk(&streams, 1 << 40, room).1 <= 8);
    }
}
