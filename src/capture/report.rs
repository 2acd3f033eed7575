//! What a capture did, for a person and for another program.

use std::path::PathBuf;

use serde::Serialize;

use super::request::BadSectors;
use crate::copy::Sandbox;
use crate::guard::{DiskFacts, Sight};
use crate::image::{ImageInfo, Packing, TableReport};
use crate::layout::DiskLayout;
use crate::range::ByteRange;
use crate::rebuild::DataDiskReport;
use crate::request::PowerState;
use crate::verify::{Digest, ImageFileDigests};

/// What a capture did; sizes in bytes, times in milliseconds.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let here = |name: &str| folder.path().join(name);
/// # std::fs::write(here("system.raw"), vec![7; 3 << 20])?;
/// let mut request = reimage::CaptureRequest::new(here("system.raw"), here("private.qcow2"));
/// request.options.state_dir = here("state");
/// let report = reimage::capture(&request, &(), &reimage::CancelToken::new())?;
/// assert_eq!(report.image_file.bytes, here("private.qcow2").metadata()?.len());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct CaptureReport {
    /// The instance's name, where one is known.
    pub instance: Option<String>,
    /// The system disk.
    #[serde(serialize_with = "crate::error::path_text")]
    pub disk: PathBuf,
    /// What the disk is known by.
    pub disk_facts: Option<DiskFacts>,
    /// What the disk was read as, with its backing files.
    pub source: ImageInfo,
    /// What it consists of, as far as its format and its file's holes tell.
    pub content: TableReport,
    /// The partitions and file systems on it; `None` where they could not be read.
    pub layout: Option<DiskLayout>,
    /// The instance's state: nothing is ever started.
    pub power_state: PowerState,
    /// The new image.
    #[serde(serialize_with = "crate::error::path_text")]
    pub image: PathBuf,
    /// The size of its disk.
    pub virtual_size: u64,
    /// The size of its clusters.
    pub cluster_size: u32,
    /// How they are compressed.
    pub packing: Packing,
    /// Its file.
    pub image_file: ImageFileDigests,
    /// Whether it took the place of another file.
    pub replaced: bool,
    /// Its manifest, where one was made.
    #[serde(serialize_with = "optional_path")]
    pub manifest: Option<PathBuf>,
    /// The root of the disk's chunk digests; the same for the same disk in every image format.
    pub root: Digest,
    /// The size of a chunk.
    pub chunk_bytes: u64,
    /// The BLAKE3 of the whole disk, where it was asked for.
    pub whole_digest: Option<Digest>,
    /// What was to become of sectors that could not be read.
    pub bad_sectors: BadSectors,
    /// The bytes of the disk that could not be read, and are zero in the image.
    pub filled: Vec<ByteRange>,
    /// The disks that were not captured, before and after.
    pub data_disks: Vec<DataDiskReport>,
    /// What of the host could not be looked at.
    pub sight: Sight,
    /// What a person should know of the image.
    pub warnings: Vec<String>,
    /// What kept the threads that touched the disk's bytes from opening any file.
    pub sandbox: Sandbox,
    /// How long the parts took.
    pub durations: CaptureDurations,
}

/// How long the parts of a capture took, in milliseconds.
///
/// ```
/// let none = reimage::CaptureDurations::default();
/// assert_eq!(none.prepare_ms + none.pack_ms + none.read_back_ms, none.total_ms);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CaptureDurations {
    /// Until the new file was made.
    pub prepare_ms: u64,
    /// Reading, packing, writing and the sync behind it.
    pub pack_ms: u64,
    /// Reading the image back, comparing and digesting its file.
    pub read_back_ms: u64,
    /// All of it.
    pub total_ms: u64,
}

#[expect(clippy::ref_option, reason = "serde hands the field over like this")]
fn optional_path<S: serde::Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => crate::error::path_text(path, serializer),
        None => serializer.serialize_none(),
    }
}
