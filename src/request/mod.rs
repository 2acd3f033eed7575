//! What was asked for: values only. Nothing here opens a file.

mod options;
mod trust;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use options::{
    BoundPlan, DataDiskDigest, DuplicatePolicy, EarlierRun, ExpectedDigest, GptPolicy, ImageFormat,
    ImageOptions, Linking, ManifestSource, Mode, NestedFormat, OldDisk, OldSnapshots, OnError, Options,
    Placement, Preflight, SightPolicy, TargetFormat, VerifyPolicy, WholeDigest,
};
pub use trust::{BackingPolicy, Policy, SignedManifests, SignedSums, TrustKey};

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
