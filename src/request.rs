//! What was asked for: values only. Nothing here opens a file.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Everything that is asked of one rebuild, but for the credentials.
///
/// ```
/// let request = reimage::Request::new("debian-13.qcow2", "/var/lib/vm/i-0a1b/disk.raw");
/// assert_eq!(request.instance.system_disk.path.to_str(), Some("/var/lib/vm/i-0a1b/disk.raw"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Request {
    /// The machine and its disks.
    pub instance: InstanceSpec,
    /// How to go about it.
    pub options: Options,
}

impl Request {
    /// A rebuild of the system disk `target` from `image`, everything else as by default.
    ///
    /// Who is not root also names a folder for journals in `options.state_dir`.
    pub fn new(image: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        let mut request = Self::default();
        request.instance.image = Some(image.into());
        request.instance.system_disk.path = target.into();
        request
    }
}

/// A virtual machine, as an instance file says it; paths are relative to that file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct InstanceSpec {
    /// The instance's name in its cloud.
    pub id: Option<String>,
    /// What runs in it.
    #[serde(default)]
    pub os: Os,
    /// Whether it runs; a rebuild wants `stopped`.
    #[serde(default)]
    pub power_state: PowerState,
    /// The image it was created from, which is the default for a rebuild.
    pub image: Option<PathBuf>,
    /// The host name it will have.
    pub hostname: Option<String>,
    /// The disk that is replaced.
    pub system_disk: SystemDisk,
    /// The disks that must survive.
    #[serde(default, rename = "data_disk")]
    pub data_disks: Vec<DataDisk>,
    /// Where the seed goes; without it a rebuild must keep the image's credentials.
    pub seed: Option<SeedSpec>,
}

/// The operating system of an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Os {
    /// Linux with cloud-init.
    #[default]
    Linux,
    /// Windows with cloudbase-init.
    Windows,
}

/// Whether an instance runs, as the caller knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum PowerState {
    /// It is off, or the caller says nothing; the guard looks for itself.
    #[default]
    Stopped,
    /// It is on.
    Running,
    /// It is on and its processors are halted.
    Paused,
    /// Its memory is saved and it would go on.
    Suspended,
}

/// The disk that a rebuild replaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct SystemDisk {
    /// A block device, or a file; a file that does not exist is made.
    pub path: PathBuf,
    /// What the disk is, where `auto` would not be certain.
    #[serde(default)]
    pub format: TargetFormat,
    /// What the disk must be, else it is refused.
    #[serde(default)]
    pub expect: Expect,
}

/// What a system disk must be; fields that are absent are not compared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Expect {
    /// The device's serial number, as its sysfs folder says it.
    pub serial: Option<String>,
    /// The device's World Wide Name, as its sysfs folder says it.
    pub wwn: Option<String>,
    /// The size in bytes.
    pub size: Option<u64>,
    /// The partition table's identifier: a GPT's GUID, or an MBR's eight hex digits.
    pub ptuuid: Option<String>,
}

/// A disk that must survive: it is never opened for writing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct DataDisk {
    /// A block device or a file.
    pub path: PathBuf,
    /// Whether another machine may write it meanwhile: then a change is a warning, not a failure.
    #[serde(default)]
    pub shareable: bool,
}

/// Where the seed goes and what it says besides the credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct SeedSpec {
    /// The file that the machine gets as a CD-ROM.
    pub path: PathBuf,
    /// Which data source the guest reads; by default NoCloud for Linux and ConfigDrive for Windows.
    pub format: Option<SeedFormat>,
    /// The account that gets the credentials; by default the image's default user.
    pub user: Option<String>,
    /// The customer's own user-data, which the guest gets beside ours.
    pub user_data: Option<PathBuf>,
    /// A cloud-init network configuration (version 1 or 2), passed on as it is.
    pub network_config: Option<PathBuf>,
    /// What becomes of the image's network set-up where no configuration is given.
    #[serde(default)]
    pub network: NetworkPolicy,
    /// What becomes of passwords and keys that the image has.
    #[serde(default)]
    pub old_credentials: OldCredentials,
    /// Whether user-data may partition or format disks.
    #[serde(skip)]
    pub user_data_disks: UserDataDisks,
    /// The identity under which cloud-init runs again; by default a fresh `ri-<uuid4>`.
    #[serde(skip)]
    pub instance_id: Option<String>,
}

impl SeedSpec {
    /// A seed in the file `path`, everything else as by default.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }
}

/// The seed formats that guests read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SeedFormat {
    /// cloud-init's NoCloud on ISO 9660, label `cidata`.
    Nocloud,
    /// OpenStack's ConfigDrive on ISO 9660, label `config-2`: what cloudbase-init reads.
    ConfigDrive,
    /// NoCloud on a FAT file system, label `cidata`, for machines without a CD-ROM drive.
    NocloudVfat,
}

/// What becomes of the image's network set-up when cloud-init runs again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NetworkPolicy {
    /// The guest decides: cloud-init sets its first interface to DHCP.
    #[default]
    Fresh,
    /// It stays as the image has it.
    Keep,
}

/// What becomes of passwords and keys that a private image has besides the new ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum OldCredentials {
    /// They stay: cloud-init adds keys, and sets the password of one account.
    #[default]
    Stay,
    /// All other passwords are locked, and all other keys removed, before the new ones are set.
    Revoke,
}

/// Whether user-data may partition or format disks, which a new identity makes it do once more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum UserDataDisks {
    /// It may not: the data disks would be wiped.
    #[default]
    Refuse,
    /// The caller says that it does no harm.
    Allow,
}

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
    /// How often what was written is made durable and noted, so that a later run can go on from there.
    pub checkpoint: Duration,
    /// After how long without any progress the run ends; by default it waits.
    pub stall_timeout: Option<Duration>,
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
            checkpoint: Duration::from_secs(3),
            stall_timeout: None,
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
