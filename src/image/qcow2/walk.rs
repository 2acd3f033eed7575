//! The walk over every L2 entry of a layer, also where a layer above covers it: each is checked, and so is who owns
//! which cluster of the file.

use super::Qcow2;
use super::besides::{Beside, Besides};
use super::contradictions::Told;
use super::entry::{self, Entry, OFFSET_MASK};
use super::owners::{Found, Owners, ROOM, Reach, Room, Stream};
use super::placed::Placed;
use super::slots::Slot;
use crate::image::decoder::{Decoder, Source};
use crate::image::error::ImageError;
use crate::image::fault::{Fault, Scope, Sink, Weight};
use crate::image::file::SourceFile;
use crate::range::ByteRange;

/// How many streams are decoded to see how far they go; the others are believed to end before what they might reach.
const DOUBTS_MAX: u64 = 64;

/// How many bytes those may give of which only the last sector is in doubt: in sound images that is nearly each.
const DOUBTS_LEN_MAX: u64 = 4 << 20;

/// How many walks one layer may take of which each ended early because clusters lie far apart.
///
/// Enough for each file of 512 TiB in clusters of 64 KiB, or of 4 TiB in those of 512 bytes.
const SCATTERED_MAX: u32 = 64;

/// What an entry has of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owned {
    /// Nothing.
    Nothing,
    /// A cluster to itself, whatever part of it is in use: nothing else is put there.
    Cluster { host_offset: u64 },
    /// A stream, in the form that `entry::stream_key` gives.
    Stream { key: u64 },
}

/// Checks one entry after the other.
pub(super) struct Inspector<'a> {
    qcow2: &'a Qcow2,
    file: &'a SourceFile,
    /// Bytes of the file in which no structure lies; most entries point where the one before them did.
    free: ByteRange,
}

impl Qcow2 {
    /// Checks every entry that the disk needs, and that no two have the same bytes of the file.
    pub(in crate::image) fn walk(
        &self,
        file: &SourceFile,
        scope: Scope,
        sink: &mut Sink<'_>,
    ) -> Result<(), ImageError> {
        self.walk_in(ROOM, file, scope, sink)
    }

    /// The same in so much memory.
    ///
    /// A walk looks after a bounded part of the file; it is repeated for the rest, where anything lies there.
    fn walk_in(
        &self,
        room: Room,
        file: &SourceFile,
        scope: Scope,
        sink: &mut Sink<'_>,
    ) -> Result<(), ImageError> {
        if scope == Scope::Refusals {
            return self.walk_entries(room, file, (scope, None), sink);
        }
        let mut told = Told::default();
        let mut noting = |fault: Fault| {
            told.note(&fault, self.header.cluster_size());
            sink(fault)
        };
        let mut besides = self.read_besides(file, &mut noting)?;
        self.walk_entries(room, file, (scope, Some(&besides)), &mut noting)?;
        self.walk_held(file, &mut besides, &mut noting)?;
        self.recount(file, &besides, &told.finish(), sink)
    }

    /// Checks each entry, and what more than one have; for whom it is given, also what lies on what reading needs
    /// nothing of.
    fn walk_entries(
        &self,
        room: Room,
        file: &SourceFile,
        (scope, besides): (Scope, Option<&Besides>),
        sink: &mut Sink<'_>,
    ) -> Result<(), ImageError> {
        let clusters = file.len().div_ceil(self.header.cluster_size());
        let mut found = Found::default();
        let (mut doubts, mut scattered) = (Doubts::of(self.header.cluster_size(), scope), 0);
        let mut next = Some(0);
        let mut is_first = true;
        let mut beside = besides.map(|besides| Beside::of(self, file, besides));
        while let Some(first) = next {
            let mut owners = Owners::of(self.header.cluster_bits, first, clusters, room);
            let mut inspector = Inspector::of(self, file);
            self.each_slot(file, |slot| {
                let slot = match slot {
                    Ok(slot) => slot,
                    Err(fault) => return if is_first { sink(*fault) } else { Ok(()) },
                };
                let owned = match inspector.look(slot) {
                    Ok(owned) => owned,
                    Err(error) => return if is_first { sink(error.about(slot)) } else { Ok(()) },
                };
                match owned {
                    Owned::Nothing => {}
                    Owned::Cluster { host_offset } => owners.own(host_offset),
                    Owned::Stream { key } => owners.own_stream(key),
                }
                match &mut beside {
                    Some(beside) => beside.look(slot, owned, sink),
                    None => Ok(()),
                }
            })?;
            (is_first, beside) = (false, None);
            let table = |offset| self.tables.next_behind(&self.header, offset).map(|(table, _)| table);
            let reaches = |stream, at, reach| {
                Ok(doubts.take(reach) && self.reaches(file, &mut doubts.decoder, stream, at)?)
            };
            let rest = owners.finish(&mut found, table, reaches)?;
            scattered += u32::from(rest.is_some_and(|rest| rest.is_scattered));
            if scattered == SCATTERED_MAX {
                return sink(Fault::refused(ImageError::TooScattered { path: file.path().into() }, None));
            }
            next = rest.map(|rest| rest.first);
        }
        self.name_meetings(file, (&found.meetings, Weight::Refused), sink)?;
        self.name_meetings(file, (&found.in_last_sector, Weight::Told), sink)
    }

    /// Whether a stream needs bytes from an offset on that its entry says may be its own.
    ///
    /// How many sectors it takes is an upper bound; only its bytes tell. What is no stream at all is not told here.
    fn reaches(
        &self,
        file: &SourceFile,
        decoder: &mut Decoder,
        stream: Stream,
        at: u64,
    ) -> Result<bool, ImageError> {
        let source = Source { file, codec: Some((self.header.compression, self.header.cluster_size())) };
        let end = stream.end.min(file.len());
        Ok(!decoder.is_cluster(&source, ByteRange::between(stream.start, at.min(end)))?
            && decoder.is_cluster(&source, ByteRange::between(stream.start, end))?)
    }
}

/// How many more streams are decoded to see how far they go.
struct Doubts {
    decoder: Decoder,
    in_sectors: u64,
    in_last_sector: u64,
}

impl Doubts {
    fn of(cluster_size: u64, scope: Scope) -> Self {
        let in_last_sector = match scope {
            // What is made of it is what every reader makes of it.
            Scope::Refusals => 0,
            Scope::Everything => DOUBTS_MAX.min(DOUBTS_LEN_MAX / cluster_size),
        };
        Self { decoder: Decoder::default(), in_sectors: DOUBTS_MAX, in_last_sector }
    }

    /// Whether one more may be decoded: an image could be all doubt.
    fn take(&mut self, reach: Reach) -> bool {
        let left = match reach {
            Reach::Sectors => &mut self.in_sectors,
            Reach::LastSector => &mut self.in_last_sector,
        };
        let has_room = *left > 0;
        *left -= u64::from(has_room);
        has_room
    }
}

impl<'a> Inspector<'a> {
    pub(super) fn of(qcow2: &'a Qcow2, file: &'a SourceFile) -> Self {
        Self { qcow2, file, free: ByteRange::new(0, 0) }
    }

    /// Checks an entry; what it has of the file.
    #[inline]
    pub(super) fn look(&mut self, slot: Slot) -> Result<Owned, ImageError> {
        let header = &self.qcow2.header;
        let entry = Entry::decode(header, slot.value, slot.bitmap).map_err(|why| ImageError::BadEntry {
            path: self.file.path().into(),
            table: "L2",
            range: slot.at,
            value: slot.value,
            why,
        })?;
        let len = slot.guest.len();
        let used = match entry {
            Entry::Unallocated | Entry::Zero => 0,
            Entry::Data(_) => len,
            Entry::Subclusters { data, .. } => {
                // Behind the last subcluster that holds something the file may end.
                let end = u64::from(u32::BITS - data.leading_zeros()) << (header.cluster_bits - 5);
                end.min(len)
            }
            Entry::Compressed { host_offset, .. } => {
                // Only the first byte is sure to be the stream's: see `Qcow2::run_at`.
                self.check_place(slot, "a compressed cluster", ByteRange::new(host_offset, 1))?;
                return Ok(Owned::Stream { key: entry::stream_key(slot.value, header.cluster_bits) });
            }
        };
        let host_offset = slot.value & OFFSET_MASK;
        if used != 0 {
            self.check_place(slot, "a data cluster", ByteRange::new(host_offset, used))?;
        }
        // A cluster that reads as zeroes may have its place in the file all the same.
        let has_place = host_offset != 0 && host_offset < self.file.len();
        Ok(if has_place { Owned::Cluster { host_offset } } else { Owned::Nothing })
    }

    #[inline]
    fn check_place(&mut self, slot: Slot, what: &'static str, range: ByteRange) -> Result<(), ImageError> {
        let is_free = self.free.start() <= range.start() && range.end() <= self.free.end();
        if !is_free || range.end() > self.file.len() {
            self.qcow2.check_stored(self.file, Placed::by(slot.at, what, range))?;
            self.free = self.qcow2.tables.free_around(&self.qcow2.header, range.start());
        }
        Ok(())
    }
}

impl ImageError {
    /// It, as a fault of what an entry is about.
    pub(super) fn about(self, slot: Slot) -> Fault {
        Fault::refused(self, Some(slot.guest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::fault::refuse;
    use crate::image::qcow2::Budget;
    use crate::image::tests::Folder;

    #[test]
    fn clusters_that_lie_apart_in_a_long_file_are_walked_a_bounded_number_of_times() {
        let folder = Folder::new();
        let path = folder.with_clusters_apart();
        let source = SourceFile::open(&path).unwrap();
        let qcow2 = Qcow2::open(&source, &mut Budget::new(64 << 20), &mut refuse).unwrap();
        let walk = |listed| {
            qcow2.walk_in(Room { clusters: 64, listed, ..ROOM }, &source, Scope::Refusals, &mut refuse)
        };
        walk(1024).unwrap();
        walk(16).unwrap();
        assert!(matches!(walk(6), Err(ImageError::TooScattered { .. })));
    }
}
