//! Clusters whose reference count says less than the image does, and the entries that use them.

use std::collections::HashMap;

use super::owners::MEETINGS_MAX;
use super::recount::{Bounds, Counted, EntryUse, TableOnce, Work};
use super::uses::{MANY_LEAST, Users};
use crate::image::error::ImageError;
use crate::image::fault::{Fault, Sink};
use crate::range::{ByteRange, RangeSet};

/// How many faults are remembered, so that no cluster is told of twice.
const TOLD_MAX: u32 = 64 << 10;

/// Clusters of which was told already.
#[derive(Default)]
pub(super) struct Told {
    clusters: RangeSet,
    count: u32,
}

impl Told {
    /// Remembers what a fault is about.
    pub(super) fn note(&mut self, fault: &Fault, cluster_size: u64) {
        let (ImageError::Overlap { range, .. } | ImageError::SharedCluster { range, .. }) = &fault.error
        else {
            return;
        };
        // Of what is longer not all lies on something else.
        if self.count < TOLD_MAX && range.len() <= cluster_size {
            self.count += 1;
            let start = range.start() - range.start() % cluster_size;
            self.clusters.insert(ByteRange::between(start, range.end().next_multiple_of(cluster_size)));
        }
    }

    /// Puts it in order; asked before `has`.
    pub(super) fn finish(&mut self) {
        self.clusters.merge();
    }

    pub(super) fn has(&self, cluster: u64, cluster_bits: u32) -> bool {
        self.clusters.holds(ByteRange::new(cluster << cluster_bits, 1 << cluster_bits))
    }
}

/// A cluster that is used otherwise than is said.
#[derive(Clone, Copy, Debug)]
struct Contradiction {
    users: Users,
    /// Its reference count.
    count: u64,
}

impl Contradiction {
    /// Whether it is one, if the cluster is used so often.
    fn is_one(self, uses: u64) -> bool {
        self.count < uses || uses > 1 && self.users.said_alone()
    }

    /// Whether only counting again tells how often.
    fn is_of_many(self) -> bool {
        self.users.count() == Users::MANY
    }
}

/// All of one layer.
#[derive(Default)]
pub(super) struct Contradictions {
    kept: HashMap<u64, Contradiction>,
    /// How many more there are.
    further: u64,
    /// Whether there may be others.
    are_others: bool,
}

impl Contradictions {
    /// Compares what uses a cluster with its reference count.
    pub(super) fn look(&mut self, cluster: u64, users: Users, count: u64) {
        let found = Contradiction { users, count };
        let uses = if found.is_of_many() { MANY_LEAST } else { u64::from(users.count()) };
        let is_one = found.is_one(uses);
        if !is_one && !found.is_of_many() {
            return;
        }
        if self.kept.len() < MEETINGS_MAX {
            self.kept.insert(cluster, found);
        } else if is_one {
            self.further += 1;
        } else {
            self.are_others = true;
        }
    }
}

/// Who uses a cluster.
#[derive(Clone, Copy)]
struct User {
    /// The entry that points there.
    at: ByteRange,
    /// What of the disk it is about.
    guest: Option<ByteRange>,
    said_alone: bool,
}

/// The first two of each, and how often it is used by entries.
#[derive(Default)]
struct Named(HashMap<u64, ([Option<User>; 2], u64)>);

impl Named {
    /// The first that says that it is alone comes first.
    fn add(&mut self, cluster: u64, user: User) {
        let (users, _) = self.0.entry(cluster).or_default();
        if users.iter().flatten().any(|known| known.at == user.at) {
            return;
        }
        match users {
            [None, _] => users[0] = Some(user),
            [Some(first), _] if user.said_alone && !first.said_alone => *users = [Some(user), Some(*first)],
            [Some(_), None] => users[1] = Some(user),
            [Some(_), Some(_)] => {}
        }
    }
}

impl Counted<'_> {
    /// Tells of each that is remembered, and with the last how many are not.
    pub(super) fn name_contradictions(
        self,
        bounds: Bounds,
        found: Contradictions,
        sink: &mut Sink<'_>,
    ) -> Result<(), ImageError> {
        if found.kept.is_empty() {
            return Ok(());
        }
        let mut named = Named::default();
        let result = self.name_users(bounds, &found, &mut named);
        let mut all: Vec<_> = found.kept.iter().collect();
        all.sort_unstable_by_key(|(cluster, _)| **cluster);
        let mut last = None;
        for (cluster, said) in all {
            let (users, uses) = named.0.get(cluster).copied().unwrap_or_default();
            let uses = if said.is_of_many() { uses } else { u64::from(said.users.count()) };
            if said.is_one(uses) {
                let fault = self.fault_of(*cluster, (*said, uses), users);
                last.replace(fault).map_or(Ok(()), &mut *sink)?;
            }
        }
        last.map_or(Ok(()), |fault| sink(Fault { further: found.further, ..fault }))?;
        if found.are_others {
            sink(Fault::told(ImageError::CheckIncomplete { path: self.file.path().into() }, None))?;
        }
        result
    }

    /// Finds who uses the clusters that were found.
    fn name_users(self, bounds: Bounds, found: &Contradictions, named: &mut Named) -> Result<(), ImageError> {
        let Self { qcow2, file, .. } = self;
        let bits = qcow2.header.cluster_bits;
        let mut work = Work::of(bounds, file);
        let mut add = |cluster: u64, user: User, times: u32| {
            if found.kept.contains_key(&cluster) {
                named.add(cluster, user);
                named.0.entry(cluster).or_default().1 += u64::from(times);
            }
        };
        qcow2.each_slot(file, |slot| {
            let Ok(slot) = slot else { return Ok(()) };
            if let Some(EntryUse { clusters, said_alone }) = qcow2.used_by(file, (slot.value, slot.bitmap)) {
                for cluster in clusters.0..=clusters.1 {
                    add(cluster, User { at: slot.at, guest: Some(slot.guest), said_alone }, 0);
                }
            }
            Ok(())
        })?;
        self.each_table(&mut work, |table| {
            add(table.offset >> bits, User { at: table.at, guest: None, said_alone: table.said_alone }, 1);
        })?;
        self.each_table_once((bounds, &mut None), &mut work, |table| {
            let TableOnce { offset, users, .. } = table;
            let is_of_disk = qcow2.tables.has_l2_table(offset);
            self.each_use(table, |entry, used| {
                if let Some(EntryUse { clusters, said_alone }) = used {
                    let user = User { at: entry.at, guest: None, said_alone: is_of_disk && said_alone };
                    (clusters.0..=clusters.1).for_each(|cluster| add(cluster, user, users.count()));
                }
                Ok(())
            })
        })
    }

    fn fault_of(self, cluster: u64, (said, uses): (Contradiction, u64), users: [Option<User>; 2]) -> Fault {
        let bits = self.qcow2.header.cluster_bits;
        let [first, second] = users;
        let (path, range) = (self.file.path().into(), ByteRange::new(cluster << bits, 1 << bits));
        let (entry, other_entry) = (first.map(|user| user.at), second.map(|user| user.at));
        let guest = first.and_then(|user| user.guest);
        let error = match entry {
            Some(entry) if said.count >= uses => {
                ImageError::SaidAlone { path, range, uses, entry, other_entry }
            }
            _ => ImageError::RefcountTooLow { path, range, uses, count: said.count, entry, other_entry },
        };
        Fault::told(error, guest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::fault::refuse;
    use crate::image::file::SourceFile;
    use crate::image::qcow2::recount::BOUNDS;
    use crate::image::qcow2::{Budget, Qcow2};
    use crate::image::tests::Folder;

    #[test]
    fn what_has_no_room_to_be_counted_again_is_told() {
        let folder = Folder::new();
        let file = &SourceFile::open(&folder.unpack("v3-64k.qcow2", "made.qcow2")).unwrap();
        let qcow2 = &Qcow2::open(file, &mut Budget::new(64 << 20), &mut refuse).unwrap();
        let besides = &qcow2.read_besides(file, &mut refuse).unwrap();
        let many = Users::new(Users::MANY, false);
        for (others, count) in [(0, 1000), (1, 1001)] {
            let mut found = Contradictions::default();
            (0..1000).for_each(|number| found.look(1000 + number, Users::new(2, false), 1));
            (0..others).for_each(|number| found.look(5000 + number, many, MANY_LEAST));
            let mut told = Vec::new();
            let mut sink = |fault: Fault| {
                told.push(fault.error.code());
                Ok(())
            };
            Counted { qcow2, file, besides }.name_contradictions(BOUNDS, found, &mut sink).unwrap();
            assert_eq!(told.len(), count);
            assert_eq!(told.contains(&"check_incomplete"), others == 1);
        }
    }

    #[test]
    fn only_what_lies_on_something_else_counts_as_told() {
        let overlap = |len| {
            let (path, range) = ("image".into(), ByteRange::new(3 << 16 | 512, len));
            let error =
                ImageError::Overlap { path, what: "a cluster", range, other: "the header", entry: None };
            let mut told = Told::default();
            told.note(&Fault::told(error, None), 1 << 16);
            told.finish();
            [2, 3, 4].map(|cluster| told.has(cluster, 16))
        };
        assert_eq!(overlap(1), [false, true, false]);
        assert_eq!(overlap(1 << 16), [false, true, true]);
        assert_eq!(overlap(2 << 16), [false; 3]);
    }
}
