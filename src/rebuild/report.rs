//! What a rebuild did, for a person and for another program.

use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use crate::copy::Sandbox;
use crate::error::{Error, ErrorKind, TargetState};
use crate::guard::{DataDisk, DataDiskEvidence, Refusal, SecondLook, Topology};
use crate::observe::{Event, Observer};
use crate::plan::{GptPlan, PlanSummary, RunMode};
use crate::range::ByteRange;
use crate::request::PowerState;
use crate::seed::SeedReport;
use crate::verify::{Digest, Pattern};

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
    /// How the run went about the disk.
    pub mode: RunMode,
    /// Bytes of chunks that hold data and were written.
    pub bytes_written: u64,
    /// Bytes that were made zero; none in a new file, which is zero from the start.
    pub bytes_zeroed: u64,
    /// Bytes that were read, found right, and not written.
    pub bytes_kept: u64,
    /// Of these, the bytes that the image was not asked for, because its manifest says what is right.
    pub bytes_by_manifest: u64,
    /// Bytes that were read back and compared, those that were kept among them.
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
    /// What kept the threads that touched the image's bytes from opening any file.
    pub sandbox: Sandbox,
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
    /// What the wrong bytes looked like.
    pub pattern: Option<Pattern>,
    /// How often it was written again.
    pub rewrites: u32,
}

/// A data disk before and after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DataDiskReport {
    /// The path as it was named.
    #[serde(serialize_with = "crate::error::path_text")]
    pub path: PathBuf,
    /// Whether it is as it was.
    pub verdict: Verdict,
    /// Writes and discards that the kernel has counted during the run; `None` where it keeps no count.
    pub writes: Option<u64>,
    /// What is not as it was.
    pub differences: Vec<&'static str>,
    /// What it looked like before the first byte was written.
    pub before: DataDiskEvidence,
    /// What it looked like at the end; `None` when it was no longer there.
    pub after: Option<DataDiskEvidence>,
}

impl DataDiskReport {
    /// What differs, and whether the content does, as far as it was looked at.
    fn in_words(&self) -> String {
        let digest = |evidence: &DataDiskEvidence| evidence.digest.clone();
        let same =
            digest(&self.before).is_some() && self.after.as_ref().and_then(digest) == digest(&self.before);
        let but = if same { ", but not what was compared of its content" } else { "" };
        format!("{}{but}", self.differences.join(", "))
    }
}

/// Whether a data disk is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Verdict {
    /// All that was looked at is the same.
    Unchanged,
    /// It is still there, and nothing of it could be compared.
    NotCompared,
    /// Something that is not this run has written to it.
    Changed,
    /// It changed, and may: another machine shares it.
    ChangedElsewhere,
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

pub(crate) fn ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn to_json(value: &impl Serialize) -> serde_json::Value {
    serde_json::to_value(value).expect("reports are plain data")
}

/// Notes that a piece was written again, so many times more.
pub(super) fn note_repair(
    repairs: &mut Vec<RepairReport>,
    range: ByteRange,
    differing: Option<(u64, Pattern)>,
    rewrites: u32,
) {
    let (first_differing, pattern) = differing.unzip();
    match repairs.iter_mut().find(|repair| repair.range == range) {
        Some(repair) => repair.rewrites += rewrites,
        None => repairs.push(RepairReport { range, first_differing, pattern, rewrites }),
    }
}

/// Looks at every data disk again, and tells of those that changed and may.
pub(crate) fn compare_data_disks(disks: &[DataDisk], observer: &dyn Observer) -> Vec<DataDiskReport> {
    let host = disks.first().map(DataDisk::host);
    let look = |disk| compare(disk, host.as_ref().expect("there is a data disk"));
    let reports: Vec<_> = disks.iter().map(look).collect();
    for disk in reports.iter().filter(|disk| disk.verdict == Verdict::ChangedElsewhere) {
        let message =
            format!("the shareable data disk {:?} changed: {}", disk.path, disk.differences.join(", "));
        observer.event(&Event::Warning { code: "data_disk", message });
    }
    reports
}

/// An error for each data disk that changed and may not; `else_is` says what of the run is complete nevertheless.
pub(crate) fn changed_data_disks(reports: &[DataDiskReport], else_is: &str) -> Vec<Error> {
    let about = |disk: &DataDiskReport| {
        let (path, what) = (disk.path.clone(), disk.in_words());
        Error::new(ErrorKind::DataDiskChanged, Refusal::DataDiskChanged { path: path.clone(), what })
            .at_path(path)
            .hint_that(format!("something other than this run wrote to it; {else_is}"))
    };
    reports.iter().filter(|disk| disk.verdict == Verdict::Changed).map(about).collect()
}

/// Looks at a data disk again.
fn compare(disk: &DataDisk, topology: &Topology) -> DataDiskReport {
    let SecondLook { after, writes, differences } = disk.look_again(topology);
    let before = disk.before().clone();
    let compared = before.digest.is_some() || before.writes.is_some() || !before.files.is_empty();
    let verdict = match differences.is_empty() {
        true if !compared => Verdict::NotCompared,
        true => Verdict::Unchanged,
        false if before.shareable => Verdict::ChangedElsewhere,
        false => Verdict::Changed,
    };
    DataDiskReport { path: before.path.clone(), verdict, writes, differences, before, after }
}
