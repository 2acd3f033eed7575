//! Clusters whose reference count says less than the image does, and the entries that use them.

use std::collections::HashMap;

use super::Qcow2;
use super::besides::Besides;
use super::owners::MEETINGS_MAX;
use super::recount::EntryUse;
use super::uses::{Users, UsesRoom};
use crate::image::error::ImageError;
use crate::image::fault::{Fault, Sink};
use crate::image::file::SourceFile;
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
        if self.count < TOLD_MAX {
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

/// All of one layer.
#[derive(Default)]
pub(super) struct Contradictions {
    kept: HashMap<u64, Contradiction>,
    /// How many more there are.
    further: u64,
}

impl Contradictions {
    /// Compares what uses a cluster with its reference count.
    pub(super) fn look(&mut self, cluster: u64, users: Users, count: u64) {
        let is_low = count < u64::from(users.count());
        let is_sound = !is_low && (users.count() < 2 || !users.said_alone());
        if is_sound {
            return;
        }
        if self.kept.len() < MEETINGS_MAX {
            self.kept.insert(cluster, Contradiction { users, count });
        } else {
            self.further += 1;
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

/// The first two of each.
#[derive(Default)]
struct Named(HashMap<u64, [Option<User>; 2]>);

impl Named {
    /// The first that says that it is alone comes first.
    fn add(&mut self, cluster: u64, user: User) {
        let users = self.0.entry(cluster).or_default();
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

impl Qcow2 {
    /// Tells of each that is remembered, and with the last how many are not.
    pub(super) fn name_contradictions(
        &self,
        file: &SourceFile,
        besides: &Besides,
        (found, room): (Contradictions, UsesRoom),
        sink: &mut Sink<'_>,
    ) -> Result<(), ImageError> {
        if found.kept.is_empty() {
            return Ok(());
        }
        let bits = self.header.cluster_bits;
        let mut named = Named::default();
        let mut add = |cluster: u64, user: User| {
            if found.kept.contains_key(&cluster) {
                named.add(cluster, user);
            }
        };
        self.each_slot(file, |slot| {
            let Ok(slot) = slot else { return Ok(()) };
            let Some(EntryUse { clusters, said_alone }) = self.used_by(file, (slot.value, slot.bitmap))
            else {
                return Ok(());
            };
            for cluster in clusters.0..=clusters.1 {
                add(cluster, User { at: slot.at, guest: Some(slot.guest), said_alone });
            }
            Ok(())
        })?;
        self.each_table(file, besides, |table| {
            add(table.offset >> bits, User { at: table.at, guest: None, said_alone: table.said_alone });
        })?;
        self.each_table_once(room, file, besides, |table, _, window, following| {
            self.each_use(file, (window, table, following), |entry, used| {
                for cluster in used.clusters.0..=used.clusters.1 {
                    add(cluster, User { at: entry.at, guest: None, said_alone: false });
                }
            })
        })?;
        let mut all: Vec<_> = found.kept.iter().collect();
        all.sort_unstable_by_key(|(cluster, _)| **cluster);
        let last = all.len() - 1;
        for (index, (cluster, said)) in all.into_iter().enumerate() {
            let users = named.0.get(cluster).copied().unwrap_or_default();
            let further = if index == last { found.further } else { 0 };
            sink(Fault { further, ..self.fault_of(file, *cluster, *said, users) })?;
        }
        Ok(())
    }

    fn fault_of(
        &self,
        file: &SourceFile,
        cluster: u64,
        said: Contradiction,
        users: [Option<User>; 2],
    ) -> Fault {
        let bits = self.header.cluster_bits;
        let [first, second] = users;
        let (path, range) = (file.path().into(), ByteRange::new(cluster << bits, 1 << bits));
        let (uses, entry, other) =
            (said.users.count(), first.map(|user| user.at), second.map(|user| user.at));
        let guest = first.and_then(|user| user.guest);
        let error = match entry {
            Some(entry) if said.count >= u64::from(uses) => {
                ImageError::SaidAlone { path, range, uses, entry, other_entry: other }
            }
            _ => {
                ImageError::RefcountTooLow { path, range, uses, count: said.count, entry, other_entry: other }
            }
        };
        Fault::told(error, guest)
    }
}
