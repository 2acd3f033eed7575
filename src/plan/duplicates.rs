//! Whether a data disk could be mistaken for the system disk, or for the seed, once the machine starts.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, ErrorKind};
use crate::layout::{self, DiskLayout, SeedLabel, SharedId, SharedKind};

/// How many ids a sentence names; the plan as JSON has them all.
const MOST_NAMED: usize = 4;

/// An id that the image and a data disk have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Duplicate {
    /// The data disk.
    #[serde(serialize_with = "crate::error::path_text")]
    pub path: PathBuf,
    /// What both have, and where.
    pub shared: SharedId,
}

/// A data disk that cloud-init would take for a seed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct OtherSeed {
    /// The data disk.
    #[serde(serialize_with = "crate::error::path_text")]
    pub path: PathBuf,
    /// What it is labelled, and where.
    pub seed: SeedLabel,
}

/// Every id that the image has in common with one of the data disks.
pub(crate) fn compare(image: &DiskLayout, data_disks: &[(PathBuf, DiskLayout)]) -> Vec<Duplicate> {
    let of_disk = |(path, layout): &(PathBuf, DiskLayout)| {
        let shared = layout::shared_ids(image, layout).into_iter();
        let path = path.clone();
        shared.map(move |shared| Duplicate { path: path.clone(), shared })
    };
    data_disks.iter().flat_map(of_disk).collect()
}

/// Every label on a data disk by which cloud-init would take it for a seed.
pub(crate) fn other_seeds(data_disks: &[(PathBuf, DiskLayout)]) -> Vec<OtherSeed> {
    let of_disk = |(path, layout): &(PathBuf, DiskLayout)| {
        let path = path.clone();
        layout::seed_labels(layout).into_iter().map(move |seed| OtherSeed { path: path.clone(), seed })
    };
    data_disks.iter().flat_map(of_disk).collect()
}

/// The data disk and the image could be mistaken for each other.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Alike(String);

/// The same as refusals, one for each data disk.
pub(super) fn refusals(duplicates: &[Duplicate]) -> Vec<Error> {
    let same_disk = duplicates.chunk_by(|left, right| left.path == right.path);
    let about = |duplicates: &[Duplicate]| {
        Error::new(ErrorKind::Identity, Alike(of_one_disk(duplicates)))
            .at_path(&duplicates[0].path)
            .hint_that(
                "give the data disk ids of its own (sgdisk -G, tune2fs -U), or leave --deny-duplicates out",
            )
    };
    same_disk.map(about).collect()
}

/// The refusal of a data disk of which it is not known what it carries.
pub(super) fn unknown(path: &Path) -> Error {
    Error::new(ErrorKind::Identity, Alike("it is not known what ids the data disk carries".to_owned()))
        .at_path(path)
        .hint_that("let it be read (--data-disk-digest sampled), or leave --deny-duplicates out")
}

/// What a person is told: one sentence for each data disk of duplicates, and one for each label of a seed.
pub(crate) fn sentences(duplicates: &[Duplicate], seeds: &[OtherSeed]) -> Vec<String> {
    let same_disk = duplicates.chunk_by(|left, right| left.path == right.path);
    same_disk.map(of_one_disk).chain(seeds.iter().map(of_seed)).collect()
}

fn of_one_disk(duplicates: &[Duplicate]) -> String {
    let named: Vec<_> = duplicates.iter().take(MOST_NAMED).map(|found| in_words(&found.shared)).collect();
    let more = match duplicates.len().saturating_sub(MOST_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let path = &duplicates[0].path;
    format!(
        "the image and the data disk {path:?} share {}{more}: the machine may boot or mount the wrong one",
        named.join(", ")
    )
}

fn in_words(shared: &SharedId) -> String {
    let SharedId { kind, value, image, data_disk, .. } = shared;
    let places = format!("{image} of the image, {data_disk} of the data disk");
    match kind {
        SharedKind::DiskId => format!("the disk's id {value}"),
        SharedKind::PartitionId => format!("the PARTUUID {value} ({places})"),
        // Debug escapes what a hostile name could do to a terminal.
        SharedKind::PartitionName => format!("the partition name {value:?} ({places})"),
        SharedKind::FileSystemUuid => format!("the file-system UUID {value} ({places})"),
        SharedKind::FileSystemLabel => format!("the file-system label {value:?} ({places})"),
        SharedKind::MemberUuid => format!("the LVM or RAID UUID {value} ({places})"),
    }
}

fn of_seed(found: &OtherSeed) -> String {
    let OtherSeed { path, seed } = found;
    let SeedLabel { label, place, .. } = seed;
    format!(
        "the data disk {path:?} carries a file system labelled {label} ({place}): cloud-init may take it for the \
         seed"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk without a table that carries swap space with an id and a label.
    fn swap(id: u8, label: &[u8]) -> DiskLayout {
        let mut disk = vec![0; 65536];
        disk[4086..4096].copy_from_slice(b"SWAPSPACE2");
        disk[1036..1052].fill(id);
        disk[1052..1052 + label.len()].copy_from_slice(label);
        layout::describe(&disk).unwrap()
    }

    #[test]
    fn each_data_disk_that_shares_an_id_is_named_with_it() {
        let disks =
            [("/dev/vdb", swap(1, b"b")), ("/dev/vdc", swap(2, b"c")), ("/dev/v\u{1b}d", swap(3, b"A\x1b"))];
        let disks = disks.map(|(path, layout)| (PathBuf::from(path), layout));
        let found = compare(&swap(1, b"A\x1b"), &disks);
        let uuid = "01010101-0101-0101-0101-010101010101";
        let values: Vec<_> = found.iter().map(|found| (&*found.path, &*found.shared.value)).collect();
        assert_eq!(values, [("/dev/vdb".as_ref(), uuid), ("/dev/v\u{1b}d".as_ref(), "A\u{1b}")]);
        assert_eq!(
            sentences(&found, &[]),
            [
                "the image and the data disk \"/dev/vdb\" share the file-system UUID \
                 01010101-0101-0101-0101-010101010101 (whole disk of the image, whole disk of the data disk): \
                 the machine may boot or mount the wrong one",
                "the image and the data disk \"/dev/v\\u{1b}d\" share the file-system label \"A\\u{1b}\" \
                 (whole disk of the image, whole disk of the data disk): the machine may boot or mount the \
                 wrong one",
            ]
        );
        let json = serde_json::to_value(&found[0]).unwrap();
        assert_eq!(
            (&json["path"], &json["shared"]["kind"]),
            (&"/dev/vdb".into(), &"file_system_uuid".into())
        );
    }

    #[test]
    fn a_data_disk_with_the_label_of_a_seed_is_named() {
        let disks = [(PathBuf::from("/dev/vdb"), swap(1, b"data")), ("/dev/vdc".into(), swap(2, b"CIDATA"))];
        assert_eq!(
            sentences(&[], &other_seeds(&disks)),
            [
                "the data disk \"/dev/vdc\" carries a file system labelled CIDATA (whole disk): cloud-init may take \
              it for the seed"
            ]
        );
    }

    #[test]
    fn a_sentence_names_four_ids_and_counts_the_others() {
        let layout = swap(1, b"x");
        let shared = layout::shared_ids(&layout, &layout).remove(0);
        let of = |path: &str| Duplicate { path: path.into(), shared: shared.clone() };
        let mut found = vec![of("/dev/vdb"); 4];
        assert!(!sentences(&found, &[])[0].contains(" more:"));
        found.extend([of("/dev/vdb"), of("/dev/vdc")]);
        let told = sentences(&found, &[]);
        assert_eq!(told.len(), 2);
        assert!(told[0].contains("data disk) and 1 more: the machine"), "{}", told[0]);
        assert_eq!(told[0].matches("UUID").count(), 4);
    }
}
