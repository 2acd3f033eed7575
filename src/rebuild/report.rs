//! What a rebuild did, for a person and for another program.

use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use crate::error::TargetState;
use crate::guard::{self, Claim, DataDiskEvidence, Held};
use crate::plan::{GptPlan, PlanSummary};
use crate::range::ByteRange;
use crate::request::PowerState;
use crate::seed::SeedReport;
use crate::verify::Digest;

/// What a rebuild did; sizes in bytes, times in milliseconds.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The system disk.
    #[serde(serialize_with = "crate::error::path_text")]
    pub target: PathBuf,
    /// Its size.
    pub target_bytes: u64,
    /// What it holds: `verified`, or `written` where nothing was read back.
    pub target_state: TargetState,
    /// The instance's state: nothing is ever started.
    pub power_state: PowerState,
    /// The root of the image's chunk digests; the same for the same disk in every image format.
    pub root: Digest,
    /// The size of a chunk.
    pub chunk_bytes: u64,
    /// The BLAKE3 of the image's whole disk, where it was asked for.
    pub whole_digest: Option<Digest>,
    /// Bytes of chunks that hold data.
    pub bytes_written: u64,
    /// Bytes that were made zero; none in a new file, which is zero from the start.
    pub bytes_zeroed: u64,
    /// Bytes that were read back and compared.
    pub bytes_read_back: u64,
    /// Bytes that the file system proves to be holes.
    pub bytes_proved_holes: u64,
    /// What did not read back right until it was written again.
    pub repairs: Vec<RepairReport>,
    /// What became of the backup GPT, and which bytes differ from the image because of it.
    pub gpt: GptPlan,
    /// The seed that was put in place.
    pub seed: Option<SeedReport>,
    /// The disks that were not written.
    pub data_disks: Vec<DataDiskReport>,
    /// How long the parts took.
    pub durations: Durations,
    /// What was planned.
    pub plan: PlanSummary,
}

/// A piece of the disk that did not read back right until it was written again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RepairReport {
    /// The piece.
    pub range: ByteRange,
    /// The first byte that was wrong when it was read back.
    pub first_differing: Option<u64>,
    /// How often it was written again.
    pub rewrites: u32,
}

/// A data disk before and after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DataDiskReport {
    /// What it looked like before the first byte was written.
    pub before: DataDiskEvidence,
    /// Whether identity, size and time of change are still the same.
    pub unchanged: bool,
}

/// How long the parts took, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Durations {
    /// Until the first byte of the target changed.
    pub prepare_ms: u64,
    /// Reading, decoding, writing and the sync behind it.
    pub copy_ms: u64,
    /// Reading back and comparing.
    pub read_back_ms: u64,
    /// The disk's ends.
    pub finish_ms: u64,
    /// All of it.
    pub total_ms: u64,
}

pub(super) fn ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn to_json(value: &impl Serialize) -> serde_json::Value {
    serde_json::to_value(value).expect("reports are plain data")
}

/// What names a disk in the state folder: never its path, which another disk may get.
pub(super) fn claim_key(claim: &Claim) -> serde_json::Value {
    match claim.held() {
        Held::NewFile { folder, name } => {
            let folder = rustix::fs::fstat(folder).map(|stat| (stat.st_dev, stat.st_ino)).ok();
            serde_json::json!({ "folder": folder, "name": name.to_string_lossy() })
        }
        Held::Promised(_) => serde_json::json!({ "own": uuid::Uuid::new_v4().to_string() }),
        Held::Device { .. } | Held::File { .. } => {
            serde_json::json!({ "identity": claim.identity(), "size": claim.size() })
        }
    }
}

/// Notes one more rewrite of a piece.
pub(super) fn note_repair(
    repairs: &mut Vec<RepairReport>,
    range: ByteRange,
    first_differing: Option<u64>,
    rewrites: u32,
) {
    match repairs.iter_mut().find(|repair| repair.range == range) {
        Some(repair) => repair.rewrites = rewrites,
        None => repairs.push(RepairReport { range, first_differing, rewrites }),
    }
}

/// Looks at the data disks again; the first that changed is named.
pub(super) fn compare_data_disks(before: &[DataDiskEvidence]) -> (Vec<DataDiskReport>, Option<PathBuf>) {
    let compare = |before: &DataDiskEvidence| {
        let now = guard::data_disks_now(std::iter::once(before.path.clone()));
        let unchanged = now.is_ok_and(|now| now.first() == Some(before));
        DataDiskReport { before: before.clone(), unchanged }
    };
    let reports: Vec<_> = before.iter().map(compare).collect();
    let changed = reports.iter().find(|report| !report.unchanged).map(|report| report.before.path.clone());
    (reports, changed)
}
