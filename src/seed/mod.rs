//! The seed: the volume from which cloud-init or cloudbase-init gives the machine its new credentials.
//!
//! `compose` checks a request and makes the bytes; `ComposedSeed::stage` writes them beside their
//! place while the disk is still untouched; `StagedSeed::publish` renames them into it before the
//! disk can boot; `remember` notes the identity once it can.
//!
//! From the request to the volume: `input` (the customer's files), `user_data` with `forms` (ours beside
//! theirs) and `findings` with `lint` (what would hurt), `nocloud` and `config_drive` (which files), then
//! `iso9660` and `vfat` (the bytes). `names` and `windows` have the guests' rules, `last` what the last seed said,
//! `former` the seed that was there before.

mod commands;
mod compose;
mod config_drive;
mod credential;
mod error;
mod findings;
mod folder;
pub(crate) mod former;
mod forms;
mod hash;
mod input;
mod iso9660;
mod json;
mod last;
mod lint;
mod mime;
mod names;
mod network;
mod nocloud;
mod place;
mod revoke;
mod ssh_key;
mod user_data;
mod vfat;
mod windows;
mod yaml;

use std::path::{Path, PathBuf};

use serde::Serialize;
use zeroize::Zeroizing;

use self::place::{Beside, Place};
use crate::error::Error;
use crate::request::{InstanceSpec, OldCredentials, Os, SeedFormat, SeedSpec};

pub(crate) use self::compose::{Asked, compose, scrub};
pub use self::credential::{Credential, Password, PasswordHash};
pub use self::error::SeedError;
pub(crate) use self::last::remember;
pub use self::place::Replace;
pub use self::ssh_key::SshKey;

/// What was written as the seed; it holds neither the password nor its hash.
///
/// ```no_run
/// # fn main() -> Result<(), reimage::Error> {
/// use reimage::{Credential, InstanceSpec, Password, Replace, SeedSpec};
/// let mut instance = InstanceSpec::default();
/// instance.hostname = Some("web-1".into());
/// instance.seed = Some(SeedSpec::at("/var/lib/vm/i-0a1b/seed.iso"));
/// let credential = Credential::password(Password::new(String::from("correct horse"))?);
/// let state_dir = "/var/lib/reimage".as_ref();
/// let report = reimage::write_seed(&instance, &credential, state_dir, Replace::Existing)?;
/// assert_eq!(report.label, "cidata");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SeedReport {
    /// The file.
    #[serde(serialize_with = "crate::error::path_text")]
    pub path: PathBuf,
    /// The system that it is for.
    pub os: Os,
    /// Which data source reads it.
    pub format: SeedFormat,
    /// The volume's label, by which the guest finds it.
    pub label: &'static str,
    /// The file's length in bytes.
    pub size: usize,
    /// The file's BLAKE3, in hexadecimal digits, as `b3sum` prints it; `None` where it holds a clear-text password.
    pub blake3: Option<String>,
    /// The identity under which cloud-init runs again.
    pub instance_id: String,
    /// The host name, if one is set.
    pub hostname: Option<String>,
    /// The account that gets the credentials, unless it is the image's default user.
    pub user: Option<String>,
    /// What the machine gets.
    pub credentials: Vec<CredentialKind>,
    /// The fingerprints of the SSH keys, as `ssh-keygen -l` prints them.
    pub ssh_key_fingerprints: Vec<String>,
    /// What becomes of the passwords and keys that the image has.
    pub old_credentials: OldCredentials,
    /// What a person should know; a rebuild's plan has it among its own warnings.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl SeedReport {
    fn of(spec: &SeedSpec, (os, format): (Os, SeedFormat), instance_id: String) -> Self {
        Self {
            path: spec.path.clone(),
            os,
            format,
            label: "",
            size: 0,
            blake3: None,
            instance_id,
            hostname: None,
            user: None,
            credentials: Vec::new(),
            ssh_key_fingerprints: Vec::new(),
            old_credentials: OldCredentials::default(),
            warnings: Vec::new(),
        }
    }
}

/// A kind of credential.
///
/// ```
/// assert_eq!(format!("{:?}", reimage::CredentialKind::SshKey), "SshKey");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CredentialKind {
    /// A password, of which a seed for Linux holds the hash.
    Password,
    /// A password hash that the caller gave.
    PasswordHash,
    /// SSH keys.
    SshKey,
}

/// A seed in memory: checked, and not written anywhere; its bytes are wiped when it is dropped.
pub(crate) struct ComposedSeed {
    bytes: Zeroizing<Vec<u8>>,
    report: SeedReport,
    warnings: Vec<String>,
}

/// A seed on disk that is not in its place yet; dropped, it is removed.
pub(crate) struct StagedSeed {
    beside: Beside,
    report: SeedReport,
}

/// The seed of an instance, where one is asked for.
pub(crate) fn spec_of(instance: &InstanceSpec) -> Result<&SeedSpec, Error> {
    instance.seed.as_ref().ok_or_else(|| SeedError::NoSeed.into())
}

impl ComposedSeed {
    /// Looks at the seed's path without writing anything, as a plan does.
    pub(crate) fn check_place(&self) -> Result<(), Error> {
        let present = Place::examine(&self.report.path).and_then(|place| place.present());
        present.map(drop).map_err(|error| error.at(&self.report.path))
    }

    /// What a person should know before it is written.
    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// What will be written.
    pub(crate) fn summary(&self) -> SeedReport {
        self.report.clone()
    }

    /// Writes the seed beside its place, durably: what can fail has then failed.
    pub(crate) fn stage(self) -> Result<StagedSeed, Error> {
        let beside = Place::examine(&self.report.path)
            .and_then(|place| place.present().map(|_| place))
            .and_then(|place| place.write_beside(&self.bytes))
            .map_err(|error| error.at(&self.report.path))?;
        Ok(StagedSeed { beside, report: self.report })
    }
}

impl StagedSeed {
    /// Renames the seed into its place, durably.
    pub(crate) fn publish(self, replace: Replace) -> Result<SeedReport, Error> {
        let Self { beside, report } = self;
        beside.rename(replace).map_err(|error| error.at(&report.path))?;
        Ok(report)
    }
}

/// What is said where the state folder could not take note of a seed that is in its place.
pub(crate) fn not_remembered(error: &Error) -> String {
    let path = error.path().unwrap_or(Path::new(""));
    format!("{path:?} could not be written: the next seed will not be compared with this one's instance id")
}

#[cfg(test)]
mod tests;
