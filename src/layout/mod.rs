//! What the bytes of a disk mean: partition tables, labels of file systems, and our own marker.
//!
//! The room sees bytes only, through [`ReadBytes`]; every byte may be hostile. From the top:
//! `describe` (all of a disk, for `inspect`), `probe` (what lies at its head and end), `relocate` (the
//! backup GPT at the end of a larger disk), `sector` (512 or 4096), `marker` (a disk in the middle of a
//! rebuild), `shared` (ids that two disks have in common), `unclean` (file systems that were not unmounted), then
//! `gpt` and `mbr`, which read the tables, and `bytes`.

#[cfg(test)]
mod against_blkid;
#[cfg(test)]
mod against_tools;
mod bytes;
mod describe;
mod gpt;
pub(crate) mod marker;
mod mbr;
mod probe;
mod raid;
mod relocate;
#[cfg(test)]
mod samples;
mod sector;
mod shared;
mod superblocks;
mod type_names;
mod unclean;
mod volume_labels;

use std::io;

pub(crate) use bytes::{ReadBytes, Window};
pub(crate) use describe::describe;
pub use describe::{DiskLayout, Partition, TableKind};
pub(crate) use gpt::{GptFault, table_places, told_size};
pub use probe::{Signature, Usage};
pub(crate) use probe::{probe, ptuuid};
pub(crate) use relocate::{ImageBackup, Outcome, Patch, Relocation, apply, overlay, relocate};
pub(crate) use sector::{SectorSize, fits_sector};
pub use shared::{SeedLabel, SharedId, SharedKind};
pub(crate) use shared::{contents, seed_labels, shared_ids};
pub(crate) use unclean::unclean;

use crate::error::ErrorKind;

/// Why an image's partition table does not go onto a target.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayoutError {
    /// The image could not be read.
    #[error("the partition table could not be read")]
    Read(#[from] io::Error),
    /// The table would not be found, or would count wrongly.
    #[error("the partition table counts in sectors of {image} bytes, the device has {device}")]
    SectorSize { image: u64, device: u32 },
    /// A disk ends with a whole sector; this one would not.
    #[error("{size} bytes are no whole number of {sector}-byte sectors, and the backup GPT lies in the last")]
    PartialSector { size: u64, sector: u64 },
    /// The partitions and the backup GPT need more room.
    #[error("the partitions and the backup GPT need {needed} bytes, the target has {size}")]
    TooSmall { needed: u64, size: u64 },
    /// The table is not one that can be moved without guessing.
    #[error("the backup GPT cannot be moved to the end of the disk")]
    NotRelocatable(#[source] NotRelocatable),
}

/// What keeps a GPT from being moved without guessing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotRelocatable {
    /// The first copy is damaged, or the only one is the backup.
    #[error(transparent)]
    Fault(#[from] GptFault),
    /// Entries elsewhere than behind the header have a reason that is not known here.
    #[error("the GPT's entries begin at sector {lba} instead of 2")]
    ArrayElsewhere { lba: u64 },
}

impl LayoutError {
    /// Which refusal it is.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::SectorSize { .. } | Self::PartialSector { .. } | Self::TooSmall { .. } => {
                ErrorKind::DoesNotFit
            }
            Self::Read(_) | Self::NotRelocatable(_) => ErrorKind::Image,
        }
    }
}
