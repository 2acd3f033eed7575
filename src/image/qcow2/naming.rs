//! Who meets whom: a walk that names the entries which have the same bytes of the file.

use std::collections::{HashMap, HashSet};

use super::Qcow2;
use super::entry;
use super::owners::{Meeting, Meetings};
use super::placed::Placed;
use super::slots::Slot;
use super::walk::{Inspector, Owned};
use crate::image::error::ImageError;
use crate::image::fault::{Fault, Sink, Weight};
use crate::image::file::SourceFile;
use crate::range::ByteRange;

/// An entry, and the bytes of the file that it says are its own.
#[derive(Clone, Copy)]
struct Claim {
    slot: Slot,
    host: ByteRange,
}

impl Qcow2 {
    /// Tells of each meeting that is remembered, and with the last how many are not.
    pub(super) fn name_meetings(
        &self,
        file: &SourceFile,
        (found, weight): (&Meetings, Weight),
        sink: &mut Sink<'_>,
    ) -> Result<(), ImageError> {
        if found.kept.is_empty() {
            return Ok(());
        }
        let places: HashSet<u64> =
            found.kept.iter().flat_map(|meeting| [meeting.first, meeting.second]).collect();
        let mut first_there: HashMap<u64, Claim> = HashMap::new();
        let (mut left, mut last) = (found.count, None);
        let mut tell = |fault: Fault| {
            left = left.saturating_sub(1);
            last.replace(Fault { weight, ..fault }).map_or(Ok(()), &mut *sink)
        };
        let mut inspector = Inspector::of(self, file);
        self.each_slot(file, |slot| {
            // What is wrong with an entry has been told.
            let Ok(slot) = slot else { return Ok(()) };
            let Ok(owned) = inspector.look(slot) else { return Ok(()) };
            let Some(host) = self.bytes_of(file, owned) else { return Ok(()) };
            let place = host.start();
            if !places.contains(&place) {
                return Ok(());
            }
            let claim = Claim { slot, host };
            match first_there.get(&place) {
                Some(first) if found.kept.contains(&Meeting { first: place, second: place }) => {
                    tell(shared(file, first, &claim))
                }
                Some(_) => Ok(()),
                None => {
                    first_there.insert(place, claim);
                    Ok(())
                }
            }
        })?;
        let mut apart: Vec<_> = found.kept.iter().filter(|meeting| meeting.first != meeting.second).collect();
        apart.sort_unstable();
        for meeting in apart {
            match (first_there.get(&meeting.first), first_there.get(&meeting.second)) {
                (Some(one), Some(other)) if one.slot.at < other.slot.at => tell(shared(file, one, other))?,
                (Some(one), Some(other)) => tell(shared(file, other, one))?,
                (Some(first), None) => tell(self.on_table(file, first, meeting.second))?,
                (None, _) => {}
            }
        }
        last.map_or(Ok(()), |fault| sink(Fault { further: left, ..fault }))
    }

    /// The bytes of the file that an entry has.
    pub(super) fn bytes_of(&self, file: &SourceFile, owned: Owned) -> Option<ByteRange> {
        match owned {
            Owned::Nothing => None,
            Owned::Cluster { host_offset } => Some(ByteRange::new(host_offset, self.header.cluster_size())),
            Owned::Stream { key } => {
                let stream = entry::stream_of_key(key, self.header.cluster_bits);
                Some(ByteRange::between(stream.start, stream.end.min(file.len())))
            }
        }
    }

    /// A stream that reaches into a structure of the image.
    fn on_table(&self, file: &SourceFile, claim: &Claim, table: u64) -> Fault {
        let behind = self.tables.next_behind(&self.header, table - 1);
        let other = behind.map_or("a structure of the image", |(_, what)| what);
        let range = ByteRange::between(table.min(claim.host.end()), claim.host.end());
        let error = Placed::by(claim.slot.at, "a compressed cluster", range).lies_on(file, other);
        error.about(claim.slot)
    }
}

fn shared(file: &SourceFile, first: &Claim, second: &Claim) -> Fault {
    let error = ImageError::SharedCluster {
        path: file.path().into(),
        range: first.host.intersection(second.host).unwrap_or(second.host),
        entry: second.slot.at,
        guest: second.slot.guest,
        other_entry: first.slot.at,
        other_guest: first.slot.guest,
    };
    error.about(second.slot)
}
