//! Clusters whose reference count says less than the image does, and the entries that use them.

use std::collections::HashMap;

use super::owners::MEETINGS_MAX;
use super::recount::{EntryUse, Recount, Search, TableOnce};
use super::uses::{MANY_LEAST, Users};
use crate::image::error::ImageError;
use crate::image::fault::{Fault, Sink};
use crate::range::{ByteRange, RangeSet};

/// How many faults are remembered, so that no cluster is told of twice.
const TOLD_MAX: u32 = 64 << 10;

/// Notes the clusters of which is told.
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

    pub(super) fn finish(mut self) -> ToldClusters {
        self.clusters.merge();
        ToldClusters(self.clusters)
    }
}

/// Clusters of which was told already.
#[derive(Default)]
pub(super) struct ToldClusters(RangeSet);

impl ToldClusters {
    pub(super) fn has(&self, cluster: u64, cluster_bits: u32) -> bool {
        self.0.holds(ByteRange::new(cluster << cluster_bits, 1 << cluster_bits))
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
    /// Those of which only counting again tells whether they are any.
    unsure: HashMap<u64, Contradiction>,
    /// Whether there may be others.
    are_others: bool,
}

impl Contradictions {
    /// Compares what uses a cluster with its reference count.
    pub(super) fn look(&mut self, cluster: u64, users: Users, count: u64) {
        let found = Contradiction { users, count };
        let uses = if found.is_of_many() { MANY_LEAST } else { u64::from(users.count()) };
        let is_one = found.is_one(uses);
        let kept = match (is_one, found.is_of_many()) {
            (true, _) => &mut self.kept,
            (false, true) => &mut self.unsure,
            (false, false) => return,
        };
        if kept.len() < MEETINGS_MAX {
            kept.insert(cluster, found);
        } else if is_one {
            self.further += 1;
        } else {
            self.are_others = true;
        }
    }

    fn has(&self, cluster: u64) -> bool {
        self.kept.contains_key(&cluster) || self.unsure.contains_key(&cluster)
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

/// The first two of each, and how often it is used by entries; what no entry points to is not counted again.
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

impl Recount<'_> {
    /// Tells of each that is remembered, and with the last how many are not.
    pub(super) fn name_contradictions(
        self,
        search: &mut Search,
        found: Contradictions,
        sink: &mut Sink<'_>,
    ) -> Result<(), ImageError> {
        let mut all: Vec<_> = found.kept.iter().chain(&found.unsure).collect();
        if all.is_empty() {
            return Ok(());
        }
        all.sort_unstable_by_key(|(cluster, _)| **cluster);
        let mut named = Named::default();
        let result = self.name_users(search, &found, &mut named);
        let mut last = None;
        for (cluster, said) in all {
            let (users, uses) = named.0.get(cluster).copied().unwrap_or_default();
            let uses = if said.is_of_many() { uses.max(MANY_LEAST) } else { u64::from(said.users.count()) };
            if said.is_one(uses)
                && let Some(fault) = self.fault_of(*cluster, (*said, uses), users)
            {
                last.replace(fault).map_or(Ok(()), &mut *sink)?;
            }
        }
        last.map_or(Ok(()), |fault| sink(Fault { further: found.further, ..fault }))?;
        match found.are_others {
            true => result.and(Err(ImageError::CheckIncomplete { path: self.file.path().into() })),
            false => result,
        }
    }

    /// Finds who uses the clusters that were found.
    fn name_users(
        self,
        search: &mut Search,
        found: &Contradictions,
        named: &mut Named,
    ) -> Result<(), ImageError> {
        let Self { qcow2, file, .. } = self;
        let bits = qcow2.header.cluster_bits;
        let mut add = |cluster: u64, user: User, times: u32| {
            if found.has(cluster) {
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
        self.each_table(&mut search.work, |table| {
            add(table.offset >> bits, User { at: table.at, guest: None, said_alone: table.said_alone }, 1);
        })?;
        self.each_table_once(search, |table| {
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

    /// None where nobody was found of whom it could be said.
    fn fault_of(
        self,
        cluster: u64,
        (said, uses): (Contradiction, u64),
        [first, second]: [Option<User>; 2],
    ) -> Option<Fault> {
        let bits = self.qcow2.header.cluster_bits;
        let (path, range) = (self.file.path().into(), ByteRange::new(cluster << bits, 1 << bits));
        let (entry, other_entry) = (first.map(|user| user.at), second.map(|user| user.at));
        let error = if said.count < uses {
            ImageError::RefcountTooLow { path, range, uses, count: said.count, entry, other_entry }
        } else {
            let entry = first.filter(|user| user.said_alone)?.at;
            ImageError::SaidAlone { path, range, uses, entry, other_entry }
        };
        Some(Fault::told(error, first.and_then(|user| user.guest)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::fault::refuse;
    use crate::image::file::SourceFile;
    use crate::image::qcow2::{Budget, Qcow2};
    use crate::image::tests::Folder;

    #[test]
    fn what_has_no_room_to_be_counted_again_is_told() {
        let folder = Folder::new();
        let file = &SourceFile::open(&folder.unpack("v3-64k.qcow2", "made.qcow2")).unwrap();
        let qcow2 = &Qcow2::open(file, &mut Budget::new(64 << 20), &mut refuse).unwrap();
        let besides = &qcow2.read_besides(file, &mut refuse).unwrap();
        let many = Users::new(Users::MANY, false);
        for (others, is_told) in [(1000, false), (1001, true)] {
            let mut found = Contradictions::default();
            (0..1000).for_each(|number| found.look(1000 + number, Users::new(2, false), 1));
            (0..others).for_each(|number| found.look(5000 + number, many, MANY_LEAST));
            let mut told = Vec::new();
            let mut sink = |fault: Fault| {
                told.push(fault.error.code());
                Ok(())
            };
            let recount = Recount { qcow2, file, besides };
            let result = recount.name_contradictions(&mut Search::of_all(file), found, &mut sink);
            assert_eq!(told.len(), 1000);
            assert_eq!(result.is_err(), is_told);
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
            let told = told.finish();
            [2, 3, 4].map(|cluster| told.has(cluster, 16))
        };
        assert_eq!(overlap(1), [false, true, false]);
        assert_eq!(overlap(1 << 16), [false, true, true]);
        assert_eq!(overlap(2 << 16), [false; 3]);
    }
}
