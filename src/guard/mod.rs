//! Decides whether a disk may be written, and holds it. The only maker of a `Claim`; never writes.
//!
//! Order of the questions: what is it (`resolve`), is it one of the disks that must survive (`identity`),
//! does anybody use it (`in_use`). The claim is taken before the last question, and held to the end.

mod claim;
mod identity;
mod in_use;
mod locked;
mod refusal;

pub(crate) use claim::{Access, Claim, Held, Subject, check_seed_path, claim_host_disk};
pub use identity::{DataDiskEvidence, StorageIdentity};
pub(crate) use identity::{data_disks_now, device_identity};
pub use refusal::Refusal;

/// What an embedder promises when it brings a target of its own, which the guard cannot examine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Promise {
    /// Nobody else reads or writes the storage behind this target until the rebuild has ended, and it is
    /// no data disk.
    NobodyElseUsesIt,
}
