//! The walk over every L2 entry of a layer, also where a layer above covers it: each is checked, and so is who owns
//! which cluster of the file.

use super::Qcow2;
use super::entry::{self, Entry, OFFSET_MASK};
use super::map::be64;
use super::owners::{Meetings, Owners, STREAMS_MAX, Stream};
use super::tables::Window;
use crate::image::decoder::{Decoder, Source};
use crate::image::error::ImageError;
use crate::image::fault::{Fault, Scope, Sink};
use crate::image::file::SourceFile;
use crate::range::ByteRange;

/// How many streams are decoded to see how far they go; the others are believed to end before what they might reach.
const DOUBTS_MAX: u32 = 64;

/// How many walks one layer may take, however little it holds: enough for a file of 512 TiB in clusters of 64 KiB, or
/// of 4 TiB in those of 512 bytes.
const WALKS_MAX: u64 = 64;

/// An L2 entry that says something.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    /// Which bytes of the layer's disk it is about.
    pub(super) guest: ByteRange,
    /// Where in the file it is.
    pub(super) at: ByteRange,
    pub(super) value: u64,
    /// The second half of an extended one.
    bitmap: u64,
}

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
    ///
    /// A walk looks after a bounded part of the file; it is repeated for the rest, where anything lies there.
    pub(in crate::image) fn walk(
        &self,
        file: &SourceFile,
        scope: Scope,
        sink: &mut Sink<'_>,
    ) -> Result<(), ImageError> {
        let besides = match scope {
            Scope::Refusals => None,
            Scope::Everything => Some(self.read_besides(file, sink)?),
        };
        let clusters = file.len().div_ceil(self.header.cluster_size());
        let mut found = Meetings::default();
        let (mut decoder, mut doubts) = (Decoder::default(), 0);
        let (mut first, mut limit, mut slots, mut walks) = (0, clusters, 0, 0);
        // Of all streams, a walk looks after half of `STREAMS_MAX` at least, and may have to be begun again for that.
        while walks < WALKS_MAX + 4 * slots / STREAMS_MAX as u64 {
            let mut owners = Owners::of(self.header.cluster_bits, first, limit);
            let mut inspector = Inspector::of(self, file);
            let is_first = walks == 0;
            walks += 1;
            self.each_slot(file, |slot| {
                slots += u64::from(is_first);
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
                match besides.as_ref().filter(|_| is_first) {
                    Some(besides) => self.look_besides(file, besides, (slot, owned), sink),
                    None => Ok(()),
                }
            })?;
            if let Some(narrower) = owners.narrower() {
                limit = narrower;
                continue;
            }
            let table = |offset| self.tables.next_behind(&self.header, offset).map(|(table, _)| table);
            let reaches = |stream, at| self.reaches(file, (&mut decoder, &mut doubts), stream, at);
            match owners.finish(&mut found, table, reaches)? {
                Some(next) => (first, limit) = (next, clusters),
                None => return self.name_meetings(file, &found, sink),
            }
        }
        sink(Fault::refused(ImageError::TooScattered { path: file.path().into() }, None))
    }

    /// Gives every entry that is not all zero, and what cannot be read instead of those that would be there.
    pub(super) fn each_slot(
        &self,
        file: &SourceFile,
        mut visit: impl FnMut(Result<Slot, Box<Fault>>) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let header = &self.header;
        let (cluster_size, entry_bits) = (header.cluster_size(), header.l2_entry_bits());
        let entry_len = 1 << entry_bits;
        let mut window = Window::default();
        for (l1_index, table) in self.tables.l1.iter().enumerate().filter(|(_, table)| **table != 0) {
            let disk = u64::try_from(l1_index).expect("an L1 table is short") << header.l2_span_bits();
            let needed = (header.virtual_size - disk).div_ceil(cluster_size).min(cluster_size >> entry_bits);
            let (whole, mut part) =
                (ByteRange::new(*table, cluster_size), ByteRange::new(*table, needed << entry_bits));
            while !part.is_empty() {
                let start = part.start();
                let bytes = match self.tables.entry_bytes(file, &mut window, whole, start, l1_index) {
                    Ok(Some(bytes)) => bytes,
                    Ok(None) => break,
                    Err(error) => {
                        visit(Err(Box::new(Fault::refused(error, None))))?;
                        break;
                    }
                };
                let len = part.len().min(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
                let bytes = &bytes[..usize::try_from(len).expect("a window is short")];
                let first = disk + ((start - table) >> entry_bits << header.cluster_bits);
                for (index, bytes) in (0..).zip(bytes.chunks_exact(1 << entry_bits)) {
                    let value = be64(bytes);
                    let bitmap = bytes.get(8..).filter(|half| !half.is_empty()).map_or(0, be64);
                    if value == 0 && bitmap == 0 {
                        continue;
                    }
                    let guest = first + (index << header.cluster_bits);
                    let guest = ByteRange::new(guest, cluster_size.min(header.virtual_size - guest));
                    let at = ByteRange::new(start + (index << entry_bits), entry_len);
                    visit(Ok(Slot { guest, at, value, bitmap }))?;
                }
                part = ByteRange::between(start + len, part.end());
            }
        }
        Ok(())
    }

    /// Whether a stream needs bytes from an offset on that its entry says may be its own.
    ///
    /// How many sectors it takes is an upper bound; only its bytes tell. What is no stream at all is not told here.
    fn reaches(
        &self,
        file: &SourceFile,
        (decoder, doubts): (&mut Decoder, &mut u32),
        stream: Stream,
        at: u64,
    ) -> Result<bool, ImageError> {
        // An image could be all doubt, each of which costs a cluster's decoding.
        *doubts += 1;
        if *doubts > DOUBTS_MAX {
            return Ok(false);
        }
        let source = Source { file, codec: Some((self.header.compression, self.header.cluster_size())) };
        let end = stream.end.min(file.len());
        Ok(!decoder.is_cluster(&source, ByteRange::between(stream.start, at.min(end)))?
            && decoder.is_cluster(&source, ByteRange::between(stream.start, end))?)
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
                self.check_place(ByteRange::new(host_offset, 1), "a compressed cluster")?;
                return Ok(Owned::Stream { key: entry::stream_key(slot.value, header.cluster_bits) });
            }
        };
        let host_offset = slot.value & OFFSET_MASK;
        if used != 0 {
            self.check_place(ByteRange::new(host_offset, used), "a data cluster")?;
        }
        // A cluster that reads as zeroes may have its place in the file all the same.
        let has_place = host_offset != 0 && host_offset < self.file.len();
        Ok(if has_place { Owned::Cluster { host_offset } } else { Owned::Nothing })
    }

    #[inline]
    fn check_place(&mut self, range: ByteRange, what: &'static str) -> Result<(), ImageError> {
        let is_free = self.free.start() <= range.start() && range.end() <= self.free.end();
        if !is_free || range.end() > self.file.len() {
            self.qcow2.check_stored(self.file, range, what)?;
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
