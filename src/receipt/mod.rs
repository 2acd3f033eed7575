//! Receipts: what a finished rebuild left on a disk, kept in the state folder, so that the disk can be compared with it
//! later, without the image.
//!
//! One for each disk, the latest wins: the report, the digests of the chunks between both ends, and those of the pieces
//! of the ends, the partition table apart from the rest. A small note beside it says whose it is. No secret is in it: a
//! report has none.

mod drift;
mod store;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use drift::{Drift, DriftCause, DriftReport, verify_receipt};
pub(crate) use store::{find, forget, keep};

use crate::range::ByteRange;
use crate::rebuild::Report;
use crate::verify::{Digest, DigestTable};

/// What a receipt says that it is.
const FORMAT: &str = "reimage-receipt";
const VERSION: u64 = 1;

/// Which receipt is meant.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum ReceiptOf<'a> {
    /// The one in this file.
    File(&'a Path),
    /// That of the last rebuild of the instance of that id.
    Instance(&'a str),
    /// That of the last rebuild of that disk.
    Disk(&'a Path),
}

/// A receipt that is there.
///
/// ```
/// # let state = tempfile::tempdir().unwrap();
/// # let disk = state.path().join("disk.raw");
/// # std::fs::write(&disk, [7; 4096]).unwrap();
/// let status = reimage::status(reimage::Subject::Disk(&disk), state.path()).unwrap();
/// assert_eq!(status.receipt, None);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ReceiptNote {
    /// Its file.
    #[serde(serialize_with = "crate::error::path_text")]
    pub path: PathBuf,
    /// When the rebuild ended, in seconds since 1970.
    pub time_s: u64,
    /// The instance, where one was named.
    pub instance: Option<String>,
    /// The disk, where it was.
    #[serde(serialize_with = "crate::error::path_text")]
    pub target: PathBuf,
}

/// A piece of one end of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EndPiece {
    pub(crate) range: ByteRange,
    pub(crate) digest: Digest,
    pub(crate) is_table: bool,
}

/// What a receipt is made of.
pub(crate) struct Contents<'a> {
    pub(crate) report: &'a Report,
    /// What the disk is called in the state folder.
    pub(crate) key: &'a serde_json::Value,
    /// The chunks between both ends.
    pub(crate) digests: &'a DigestTable,
    pub(crate) ends: &'a [EndPiece],
}

#[derive(Serialize)]
struct Written<'a> {
    format: &'static str,
    version: u64,
    time_s: u64,
    instance: Option<&'a str>,
    target: String,
    target_bytes: u64,
    virtual_size: u64,
    root: Digest,
    report: &'a Report,
    ends: Vec<WrittenPiece>,
    chunks: &'a DigestTable,
}

#[derive(Serialize, Deserialize)]
struct WrittenPiece {
    offset: u64,
    len: u64,
    digest: Digest,
    table: bool,
}
