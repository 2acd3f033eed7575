//! Decides whether a disk may be written, and holds it. The only maker of a `Claim`; never writes to a disk.
//!
//! Order of the questions: what is it really (`topology`, from what `kernel` and `mounts` show), is it something
//! that must survive (`aliases`, `data_disks`), does anybody use it (`in_use`, `processes`, `locked`), is it the one
//! that was meant (`identity`). The disk is opened (`open`) and held (`hold`) before the last look at its users, and
//! the hold lasts to the end of the run. What could not be looked at is said (`sight`).

mod aliases;
mod bytes;
mod claim;
mod data_disks;
mod devices;
#[cfg(test)]
mod fake;
mod hold;
mod identity;
mod in_use;
mod kernel;
mod locked;
mod mounts;
mod open;
mod output;
mod processes;
mod refusal;
mod sight;
mod topology;

pub(crate) use aliases::{ImageFile, check_seed_path, check_written, image_files, image_writers, writers_at};
pub(crate) use bytes::{Inside, OpenBytes};
pub(crate) use claim::{Access, Claim, Held, ReadClaim, Subject, claim_host_disk, hold_host_disk};
pub(crate) use data_disks::{DataDisk, SecondLook, sectors_written_to};
pub use data_disks::{DataDiskEvidence, FileTimes};
pub(crate) use hold::{Hold, lock_folder, lock_name_of, made};
pub(crate) use identity::device_identity;
pub use identity::{DiskFacts, StorageIdentity};
pub(crate) use output::{MustSurvive, check_folder, check_new_file};
pub use processes::OpenFor;
pub use refusal::{Process, Refusal, Relation};
pub use sight::{Sight, SightLimit};
pub(crate) use topology::Topology;

/// What an embedder promises when it brings a target of its own, which the guard cannot examine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Promise {
    /// Nobody else reads or writes the storage behind this target until the rebuild has ended, and it is
    /// no data disk.
    NobodyElseUsesIt,
}
