//! How a rebuild goes about it.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::trust::{Policy, SignedSums, TrustKey};

/// How a rebuild goes about it; the defaults are the careful ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Options {
    /// How the image is read.
    pub image: ImageOptions,
    /// What is checked of the image before the target changes.
    pub preflight: Preflight,
    /// The size that a target file gets, in bytes.
    pub size: Option<u64>,
    /// Whether a target file is replaced whole or written into.
    pub placement: Placement,
    /// What happens to the backup GPT on a larger disk.
    pub gpt: GptPolicy,
    /// How much is read back.
    pub verify: VerifyPolicy,
    /// Whether the digest that `b3sum` gives for the raw disk is computed too.
    pub whole_digest: WholeDigest,
    /// Threads that decode, write and compare; by default twice the processors, 12 at most.
    pub threads: Option<NonZeroUsize>,
    /// Where journals are kept.
    pub state_dir: PathBuf,
    /// How the data disks' contents are compared before and after.
    pub data_disk_digest: DataDiskDigest,
    /// What it means when some of the host cannot be looked at.
    pub sight: SightPolicy,
    /// Processes that may have the target open for reading.
    pub open_readers: Vec<u32>,
    /// The plan that the rebuild is bound to: what was looked at must still be the same.
    pub plan: Option<BoundPlan>,
    /// What it means when image and data disk carry the same ids or labels.
    pub duplicates: DuplicatePolicy,
    /// Whether every chunk is written, or only those that differ.
    pub mode: Mode,
    /// Whether a run goes on where an earlier one stopped.
    pub earlier_run: EarlierRun,
    /// What stays of a new file that could not be completed.
    pub on_error: OnError,
    /// Whether the disk as it was is kept, so that `undo` can bring it back.
    pub old_disk: OldDisk,
    /// How often what was written is made durable and noted, so that a later run can go on from there.
    pub checkpoint: Duration,
    /// What the host demands of every rebuild; all of them must be met.
    pub policies: Vec<Policy>,
    /// After how long without any progress the run ends; by default it waits.
    pub stall_timeout: Option<Duration>,
    /// What becomes of internal snapshots and bitmaps of a qcow2 file that is replaced.
    pub old_snapshots: OldSnapshots,
    /// Whether the disk gets the image's bytes, or becomes an overlay on the image.
    pub linking: Linking,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            image: ImageOptions::default(),
            preflight: Preflight::default(),
            size: None,
            placement: Placement::default(),
            gpt: GptPolicy::default(),
            verify: VerifyPolicy::default(),
            whole_digest: WholeDigest::default(),
            threads: None,
            state_dir: PathBuf::from("/var/lib/reimage"),
            data_disk_digest: DataDiskDigest::default(),
            sight: SightPolicy::default(),
            open_readers: Vec::new(),
            plan: None,
            duplicates: DuplicatePolicy::default(),
            mode: Mode::default(),
            earlier_run: EarlierRun::default(),
            on_error: OnError::default(),
            old_disk: OldDisk::default(),
            checkpoint: Duration::from_secs(3),
            policies: Vec::new(),
            stall_timeout: None,
            old_snapshots: OldSnapshots::default(),
            linking: Linking::default(),
        }
    }
}

/// Whether every chunk is written, or only those that differ from the image's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Mode {
    /// `Delta` where the state folder knows that the disk held this image, else `Full`.
    #[default]
    Auto,
    /// Every chunk is written.
    Full,
    /// Every chunk is read and compared, and written only where it differs.
    Delta,
}

/// What becomes of internal snapshots and bitmaps of a qcow2 file that is replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum OldSnapshots {
    /// A file that has any is not replaced.
    #[default]
    Refuse,
    /// They are lost with the old file.
    Lose,
}

/// Whether the disk gets the image's bytes, or becomes an overlay on the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Linking {
    /// The disk gets the bytes, and needs the image no more.
    #[default]
    Copy,
    /// A qcow2 disk becomes an overlay that reads from the image what it does not hold itself.
    Linked,
}

/// Whether a run goes on where an earlier one stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EarlierRun {
    /// It does, where image and disk are the same.
    #[default]
    GoOn,
    /// It does not: everything is written anew.
    StartOver,
}

/// What stays of a new file that could not be completed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum OnError {
    /// Nothing.
    #[default]
    Discard,
    /// Its bytes, under its temporary name and made unbootable, to be looked at.
    Preserve,
}

/// What becomes of the disk as it was before the rebuild.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum OldDisk {
    /// It is lost.
    #[default]
    Discard,
    /// It is kept: a file that is replaced under another name, anything else as a compressed copy in the state folder.
    Keep,
}

/// How an image is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ImageOptions {
    /// Its format.
    pub format: ImageFormat,
    /// Whether a raw image may begin like an image of another format.
    pub nested: NestedFormat,
    /// Folders in which an image may name backing files; none by default.
    pub allow_backing: Vec<PathBuf>,
    /// The digest that the image file must have, as it lies.
    pub expect_digest: Option<ExpectedDigest>,
    /// Where its manifest is.
    pub manifest: ManifestSource,
    /// The keys of which one must have signed the image's manifest; none by default, and then nobody need have.
    pub trust_keys: Vec<TrustKey>,
    /// The signed list that must have the image file's digest.
    pub sums: Option<SignedSums>,
}

/// Where the manifest of an image is.
///
/// ```
/// assert_eq!(reimage::ImageOptions::default().manifest, reimage::ManifestSource::Beside);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ManifestSource {
    /// Beside the image, as `IMAGE.manifest.json`, if there is one.
    #[default]
    Beside,
    /// Nowhere: one that lies beside the image is not looked at.
    None,
    /// In this file, which must be there.
    File(PathBuf),
}

/// The format of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ImageFormat {
    /// Content decides, and must agree with the name.
    #[default]
    Auto,
    /// The bytes of the disk as they are.
    Raw,
    /// qcow2, version 2 or 3.
    Qcow2,
}

/// Whether a raw image's content may look like an image of another format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum NestedFormat {
    /// It may not: somebody would be fooled.
    #[default]
    Refuse,
    /// The caller says that the disk really begins so.
    Allow,
}

/// A digest of the image file that was given from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ExpectedDigest {
    /// SHA-256, as in a distributor's `SHA256SUMS`.
    Sha256([u8; 32]),
    /// BLAKE3, as `b3sum` prints it.
    Blake3([u8; 32]),
}

/// What is checked of the image before byte 0 of the target changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Preflight {
    /// `Digest` where one is expected, else `Tables`.
    #[default]
    Auto,
    /// All metadata.
    Tables,
    /// All metadata, and the image file against its expected digest.
    Digest,
    /// Also every cluster is decoded.
    Deep,
}

/// What a target is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum TargetFormat {
    /// Raw, unless name or content say qcow2.
    #[default]
    Auto,
    /// The bytes of the disk as they are.
    Raw,
    /// qcow2, which is not written yet.
    Qcow2,
}

/// How a file becomes the new system disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Placement {
    /// Written beside and exchanged with the old file when it is verified.
    #[default]
    Replace,
    /// Written into the file that is there.
    InPlace,
}

/// What happens to the backup GPT when the target is larger than the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum GptPolicy {
    /// It moves to the end of the disk, as `sgdisk -e` would move it.
    #[default]
    Relocate,
    /// It stays where the image has it.
    Keep,
}

/// How much of the target is read back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum VerifyPolicy {
    /// Every byte of the target.
    #[default]
    Full,
    /// What was written as data, and both ends.
    Written,
    /// Nothing.
    Off,
}

/// Whether the whole raw disk's BLAKE3 is computed beside the chunk digests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum WholeDigest {
    /// It is not.
    #[default]
    Skip,
    /// It is; zeroes are hashed too, which costs time on sparse disks.
    Compute,
}

/// How the contents of data disks are compared before and after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DataDiskDigest {
    /// A few pieces: head, tail and some between, spread evenly.
    #[default]
    Sampled,
    /// Every byte.
    Full,
    /// Not at all: the disks are not opened, and their counters and times remain as evidence.
    Off,
}

/// What it means when a part of the host cannot be looked at, such as other users' processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SightPolicy {
    /// It is said in plan and report.
    #[default]
    Report,
    /// The rebuild is refused.
    RequireFull,
}

/// What it means when the image and a data disk carry the same id or label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DuplicatePolicy {
    /// It is a warning in the plan.
    #[default]
    Warn,
    /// The rebuild is refused.
    Deny,
}

/// A plan that was made earlier, as its JSON document; see `from_json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BoundPlan {
    /// The file that it was read from: it must not lie on the disk.
    #[serde(skip)]
    pub(crate) file: Option<PathBuf>,
    pub(crate) document: serde_json::Value,
}
