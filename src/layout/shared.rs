//! Which ids and labels two disks have in common, and which labels cloud-init would take for a seed.
//!
//! An id is there to tell disks apart: of two that have the same, a machine boots or mounts whichever it
//! meets first. Only what `describe` sees is compared: what lies within LVM, RAID or LUKS stays unseen.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::describe::DiskLayout;
use super::probe::{Signature, Usage};

/// What kind of id two disks have in common.
///
/// ```
/// let kind = serde_json::to_value(reimage::SharedKind::FileSystemUuid).unwrap();
/// assert_eq!(kind, "file_system_uuid");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SharedKind {
    /// The id of a partition table (`PTUUID`): a GPT's GUID, or an MBR's signature.
    DiskId,
    /// The id of a partition (`PARTUUID`).
    PartitionId,
    /// The name of a partition in a GPT (`PARTLABEL`).
    PartitionName,
    /// The id of a file system, of swap space or of a LUKS volume (`UUID`).
    FileSystemUuid,
    /// The label of a file system, of swap space or of a LUKS volume (`LABEL`).
    FileSystemLabel,
    /// The id of an LVM physical volume, or of the array that an md member belongs to.
    MemberUuid,
}

/// An id that the image's disk and a data disk have in common.
///
/// ```
/// fn tell(shared: &reimage::SharedId) -> String {
///     format!("{:?}: {} of the image, {} of the data disk", shared.value, shared.image, shared.data_disk)
/// }
/// # let _ = tell;
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SharedId {
    /// What kind of id it is.
    pub kind: SharedKind,
    /// The id, as the image has it; a label may hold anything, so escape it for a terminal.
    pub value: String,
    /// Where the image has it: `partition 1`, `partition table`, or `whole disk`.
    pub image: String,
    /// Where the data disk has it, in the same words.
    pub data_disk: String,
}

/// A label by which cloud-init looks for a seed.
///
/// ```
/// fn tell(seed: &reimage::SeedLabel) -> String {
///     format!("{} on its {}", seed.label, seed.place)
/// }
/// # let _ = tell;
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SeedLabel {
    /// The label, as it lies there.
    pub label: String,
    /// Where: `partition 1`, or `whole disk`.
    pub place: String,
}

/// The names that partitioning programs give unasked; in lower case.
///
/// They are on many disks that have nothing else in common, so nobody can mount by them. Names that a
/// distribution chose (`root`, `p.lxroot`, `EFI-SYSTEM`) are not among them: some do mount by those.
const GIVEN_NAMES: [&str; 24] = [
    // parted, whose GPTs have names where its MBRs have kinds.
    "primary",
    "logical",
    "extended",
    // gdisk and sgdisk: the names of the types.
    "linux filesystem",
    "linux swap",
    "linux lvm",
    "linux raid",
    "linux reserved",
    "linux luks",
    "linux dm-crypt",
    "linux /home",
    "linux x86-64 root (/)",
    "linux arm64 root (/)",
    "efi system",
    "bios boot partition",
    "microsoft basic data",
    "microsoft reserved",
    "microsoft storage spaces",
    "windows re",
    // Windows and macOS; anaconda and partman name the EFI system partition so too.
    "efi system partition",
    "basic data partition",
    "microsoft reserved partition",
    "ldm data partition",
    "ldm metadata partition",
];

/// The labels by which cloud-init finds NoCloud and the configuration drive.
const SEED_LABELS: [&str; 2] = ["cidata", "config-2"];

/// An id, ready to be compared, with what a reader is told of it.
struct Id<'a> {
    kind: SharedKind,
    value: &'a str,
    place: String,
}

impl Id<'_> {
    /// What makes two ids the same: names and labels are told apart by case, as udev does, others are not.
    fn key(&self) -> (SharedKind, String) {
        let value = match self.kind {
            SharedKind::PartitionName | SharedKind::FileSystemLabel => self.value.to_owned(),
            _ => self.value.to_ascii_lowercase(),
        };
        (self.kind, value)
    }

    fn tells_something(&self) -> bool {
        match self.kind {
            SharedKind::PartitionName => !GIVEN_NAMES.contains(&&*self.value.to_ascii_lowercase()),
            // What Windows calls every volume that nobody named.
            SharedKind::FileSystemLabel => self.value != "New Volume",
            _ => self.value.bytes().any(|byte| !matches!(byte, b'0' | b'-')),
        }
    }
}

/// Each id and label that both disks have, once, in the order in which the image has them.
///
/// A value that a disk has more than once is told with its first place.
pub(crate) fn shared_ids(image: &DiskLayout, data_disk: &DiskLayout) -> Vec<SharedId> {
    let mut theirs = BTreeMap::new();
    for id in ids(data_disk) {
        theirs.entry(id.key()).or_insert(id.place);
    }
    let mut told = BTreeSet::new();
    let mut shared = Vec::new();
    for id in ids(image) {
        let key = id.key();
        let Some(place) = theirs.get(&key) else { continue };
        if told.insert(key) {
            let value = id.value.to_owned();
            shared.push(SharedId { kind: id.kind, value, image: id.place, data_disk: place.clone() });
        }
    }
    shared
}

/// The labels on a disk and its partitions by which cloud-init would take it for a seed.
pub(crate) fn seed_labels(layout: &DiskLayout) -> Vec<SeedLabel> {
    let is_seed = |label: &str| SEED_LABELS.iter().any(|seed| seed.eq_ignore_ascii_case(label));
    contents(layout)
        .filter(|(_, content)| content.usage == Usage::FileSystem)
        .filter_map(|(place, content)| Some((place, content.label.as_deref()?)))
        .filter(|(_, label)| is_seed(label))
        .map(|(place, label)| SeedLabel { label: label.to_owned(), place })
        .collect()
}

/// All ids of a disk that tell something.
fn ids(layout: &DiskLayout) -> Vec<Id<'_>> {
    let table = || "partition table".to_owned();
    let mut ids = Vec::new();
    ids.extend(layout.id.as_deref().map(|id| Id { kind: SharedKind::DiskId, value: id, place: table() }));
    for partition in &layout.partitions {
        let names = [(SharedKind::PartitionId, &partition.id), (SharedKind::PartitionName, &partition.name)];
        for (kind, value) in names {
            let place = partition_place(partition.number);
            ids.extend(value.as_deref().map(|value| Id { kind, value, place }));
        }
    }
    for (place, content) in contents(layout) {
        let (uuid, label) = match content.usage {
            Usage::FileSystem | Usage::Crypto => {
                (SharedKind::FileSystemUuid, Some(SharedKind::FileSystemLabel))
            }
            // An array's name is often that of the installer's host, and arrays are assembled by their ids.
            Usage::Member => (SharedKind::MemberUuid, None),
            Usage::PartitionTable | Usage::Marker => continue,
        };
        let values = [(Some(uuid), &content.uuid), (label, &content.label)];
        for (kind, value) in values {
            let found = kind.zip(value.as_deref());
            ids.extend(found.map(|(kind, value)| Id { kind, value, place: place.clone() }));
        }
    }
    ids.retain(Id::tells_something);
    ids
}

/// What lies on the disk itself and in its partitions, with the place of each.
pub(crate) fn contents(layout: &DiskLayout) -> impl Iterator<Item = (String, &Signature)> {
    let whole = layout.file_system.iter().map(|content| ("whole disk".to_owned(), content));
    let parts = layout
        .partitions
        .iter()
        .filter_map(|partition| Some((partition_place(partition.number), partition.file_system.as_ref()?)));
    whole.chain(parts)
}

pub(super) fn partition_place(number: u32) -> String {
    format!("partition {number}")
}

#[cfg(test)]
mod tests {
    use super::super::describe::{self, Partition};
    use super::*;
    use crate::range::ByteRange;

    fn content(kind: &'static str, usage: Usage, label: Option<&str>, uuid: Option<&str>) -> Signature {
        Signature::new(kind, 0, usage).named(label.map(str::to_owned), uuid.map(str::to_owned))
    }

    fn bare(content: Signature) -> DiskLayout {
        let nothing = describe::describe(&vec![0; 4096]).unwrap();
        DiskLayout { file_system: Some(content), ..nothing }
    }

    /// A disk with an id and partitions of (number, id, name, content).
    fn disk(id: &str, partitions: &[(u32, &str, &str, Option<Signature>)]) -> DiskLayout {
        let partition = |(number, id, name, content): &(u32, &str, &str, Option<Signature>)| Partition {
            number: *number,
            range: ByteRange::new(0, 0),
            type_name: None,
            type_id: String::new(),
            name: Some((*name).to_owned()).filter(|name| !name.is_empty()),
            id: Some((*id).to_owned()),
            file_system: content.clone(),
        };
        let nothing = describe::describe(&vec![0; 4096]).unwrap();
        let partitions = partitions.iter().map(partition).collect();
        DiskLayout { id: Some(id.to_owned()), partitions, ..nothing }
    }

    #[track_caller]
    fn check(image: &DiskLayout, data_disk: &DiskLayout, expected: &[(SharedKind, &str, &str, &str)]) {
        let found = shared_ids(image, data_disk);
        let found: Vec<_> =
            found.iter().map(|id| (id.kind, &*id.value, &*id.image, &*id.data_disk)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_copy_shares_every_id_and_says_where() {
        let root = content("ext4", Usage::FileSystem, Some("cloudimg-rootfs"), Some("UUID-1"));
        let esp = content("vfat", Usage::FileSystem, None, Some("1234-ABCD"));
        let image = disk("d1", &[(1, "p1", "root", Some(root)), (15, "p15", "", Some(esp))]);
        let mut copy = image.clone();
        copy.partitions.iter_mut().for_each(|partition| partition.number += 1);
        let one = ("partition 1", "partition 2");
        check(
            &image,
            &copy,
            &[
                (SharedKind::DiskId, "d1", "partition table", "partition table"),
                (SharedKind::PartitionId, "p1", one.0, one.1),
                (SharedKind::PartitionName, "root", one.0, one.1),
                (SharedKind::PartitionId, "p15", "partition 15", "partition 16"),
                (SharedKind::FileSystemUuid, "UUID-1", one.0, one.1),
                (SharedKind::FileSystemLabel, "cloudimg-rootfs", one.0, one.1),
                (SharedKind::FileSystemUuid, "1234-ABCD", "partition 15", "partition 16"),
            ],
        );
        check(&image, &disk("d2", &[]), &[]);
    }

    #[test]
    fn ids_are_compared_without_their_case_and_labels_with_it() {
        let image = bare(content("vfat", Usage::FileSystem, Some("DATA"), Some("12ab-CDEF")));
        let other = bare(content("vfat", Usage::FileSystem, Some("data"), Some("12AB-cdef")));
        check(&image, &other, &[(SharedKind::FileSystemUuid, "12ab-CDEF", "whole disk", "whole disk")]);
    }

    #[test]
    fn a_volume_and_a_file_system_of_one_id_are_one_to_udev_and_a_member_is_another() {
        let of = |usage| bare(content("x", usage, Some("name"), Some("1-2")));
        let whole = ("whole disk", "whole disk");
        let both = [
            (SharedKind::FileSystemUuid, "1-2", whole.0, whole.1),
            (SharedKind::FileSystemLabel, "name", whole.0, whole.1),
        ];
        check(&of(Usage::FileSystem), &of(Usage::Crypto), &both);
        check(&of(Usage::FileSystem), &of(Usage::Member), &[]);
        let member = [(SharedKind::MemberUuid, "1-2", whole.0, whole.1)];
        check(&of(Usage::Member), &of(Usage::Member), &member);
        check(&of(Usage::Marker), &of(Usage::Marker), &[]);
    }

    #[test]
    fn names_that_programs_give_unasked_and_ids_of_zeroes_tell_nothing() {
        let unasked = [
            "primary",
            "Linux filesystem",
            "EFI System Partition",
            "EFI system partition",
            "Basic data partition",
        ];
        for name in unasked {
            let disk = disk("00000000-0000", &[(1, "0000-01", name, None)]);
            check(&disk, &disk, &[(SharedKind::PartitionId, "0000-01", "partition 1", "partition 1")]);
        }
        let fresh = bare(content("ntfs", Usage::FileSystem, Some("New Volume"), Some("0000000000000000")));
        check(&fresh, &fresh, &[]);
    }

    #[test]
    fn a_value_that_is_there_many_times_is_told_once() {
        let many: Vec<_> = (1..=1000).map(|number| (number, "same", "same", None)).collect();
        let many = disk("d", &many);
        let one = ("partition 1", "partition 1");
        check(
            &many,
            &many,
            &[
                (SharedKind::DiskId, "d", "partition table", "partition table"),
                (SharedKind::PartitionId, "same", one.0, one.1),
                (SharedKind::PartitionName, "same", one.0, one.1),
            ],
        );
    }

    #[test]
    fn a_seed_is_known_by_its_label_on_a_disk_and_on_a_partition() {
        for (label, is_seed) in [("cidata", true), ("CIDATA", true), ("Config-2", true), ("config-20", false)]
        {
            let content = content("vfat", Usage::FileSystem, Some(label), None);
            let expected = |place: &str| match is_seed {
                true => vec![SeedLabel { label: label.to_owned(), place: place.to_owned() }],
                false => Vec::new(),
            };
            assert_eq!(
                seed_labels(&disk("d", &[(3, "", "", Some(content.clone()))])),
                expected("partition 3")
            );
            assert_eq!(seed_labels(&bare(content)), expected("whole disk"));
        }
        assert!(seed_labels(&bare(content("crypto_LUKS", Usage::Crypto, Some("cidata"), None))).is_empty());
    }
}
