//! The seed: the volume from which cloud-init gives the machine its new credentials.
//!
//! `compose` checks a request and makes the bytes; `ComposedSeed::stage` writes them beside their
//! place while the disk is still untouched; `StagedSeed::publish` renames them into it before the
//! disk can boot.

// The front door is used by `plan` and `rebuild`, which are built apart.

mod commands;
mod credential;
mod error;
#[cfg_attr(not(test), expect(dead_code, reason = "wired with the request for user-data"))]
mod forms;
mod hash;
mod iso9660;
#[cfg_attr(not(test), expect(dead_code, reason = "wired with the request for user-data"))]
mod lint;
mod mime;
mod names;
#[cfg_attr(not(test), expect(dead_code, reason = "wired with the request for user-data"))]
mod network;
mod nocloud;
mod place;
mod revoke;
mod ssh_key;
#[cfg_attr(not(test), expect(dead_code, reason = "wired with the request for user-data"))]
mod user_data;
mod yaml;

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use serde::Serialize;
use zeroize::Zeroizing;

use self::credential::Secret;
use self::nocloud::Content;
use self::place::{Beside, Place};
use crate::error::Error;
use crate::request::{SeedFormat, SeedSpec};

pub use self::credential::{Credential, Password, PasswordHash};
pub use self::error::SeedError;
pub use self::place::Replace;
pub use self::ssh_key::SshKey;

const LABEL: &str = "cidata";
const MOST_NETWORK_CONFIG_BYTES: u64 = 64 << 10;

/// What was written as the seed; it holds neither the password nor its hash.
///
/// ```no_run
/// # fn main() -> Result<(), reimage::Error> {
/// use reimage::{Credential, Password, Replace, SeedSpec};
/// let mut spec = SeedSpec::default();
/// spec.path = "/var/lib/vm/i-0a1b/seed.iso".into();
/// let credential = Credential::password(Password::new(String::from("correct horse"))?);
/// let report = reimage::write_seed(&spec, Some("web-1"), &credential, Replace::Existing)?;
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
    /// Which data source reads it.
    pub format: SeedFormat,
    /// The volume's label, by which the guest finds it.
    pub label: &'static str,
    /// The file's length in bytes.
    pub size: usize,
    /// The file's BLAKE3, in hexadecimal digits, as `b3sum` prints it.
    pub blake3: String,
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
    /// A password, of which the seed holds the hash.
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
}

/// A seed on disk that is not in its place yet; dropped, it is removed.
pub(crate) struct StagedSeed {
    beside: Beside,
    report: SeedReport,
}

/// Writes a seed on its own, without a rebuild.
///
/// # Errors
///
/// [`Credentials`](crate::ErrorKind::Credentials) if the request is refused, and
/// [`Seed`](crate::ErrorKind::Seed) if the file could not be written. The file that was there is
/// there still, unless only the last step failed: syncing the folder after the rename.
pub fn write_seed(
    spec: &SeedSpec,
    hostname: Option<&str>,
    credential: &Credential,
    replace: Replace,
) -> Result<SeedReport, Error> {
    compose(spec, hostname, credential)?.stage()?.publish(replace)
}

/// Checks everything that a seed says and makes its bytes; all refusals are collected.
///
/// A credential that keeps the image's is refused: nothing may be written then.
pub(crate) fn compose(
    spec: &SeedSpec,
    hostname: Option<&str>,
    credential: &Credential,
) -> Result<ComposedSeed, Error> {
    let instance_id = match &spec.instance_id {
        Some(given) => given.clone(),
        None => format!("ri-{}", uuid::Uuid::new_v4()),
    };
    let mut refusals: Vec<Error> = [
        spec.user.as_deref().map(names::check_user),
        hostname.map(names::check_hostname),
        Some(names::check_instance_id(&instance_id)),
        credential.keeps_image().then_some(Err(SeedError::NothingToSeed)),
    ]
    .into_iter()
    .flatten()
    .filter_map(|checked| checked.err().map(Error::from))
    .collect();
    let network_config = match spec.network_config.as_deref().map(read_network_config).transpose() {
        Ok(network_config) => network_config,
        Err(error) => {
            refusals.push(error);
            None
        }
    };
    if !refusals.is_empty() {
        return Err(Error::first_of(refusals));
    }

    let made;
    let (hash, kind) = match &credential.secret {
        Secret::Password(password) => {
            made = hash::sha512_crypt(password)?;
            (Some(made.expose()), Some(CredentialKind::Password))
        }
        Secret::Hash(hash) => (Some(hash.expose()), Some(CredentialKind::PasswordHash)),
        Secret::KeysOnly | Secret::KeepImage => (None, None),
    };
    let keys: Vec<&str> = credential.keys.iter().map(SshKey::as_line).collect();
    let user = spec.user.as_deref();
    let content = Content { instance_id: &instance_id, hostname, user, hash, keys: &keys, network_config };
    let bytes = match spec.format {
        SeedFormat::Nocloud => iso9660::write(&content.into_folder(), LABEL)?,
    };
    let report = SeedReport {
        path: spec.path.clone(),
        format: spec.format,
        label: LABEL,
        size: bytes.len(),
        blake3: blake3::hash(&bytes).to_hex().to_string(),
        instance_id,
        hostname: hostname.map(String::from),
        user: spec.user.clone(),
        credentials: kind.into_iter().chain((!keys.is_empty()).then_some(CredentialKind::SshKey)).collect(),
        ssh_key_fingerprints: credential.keys.iter().map(SshKey::fingerprint).collect(),
    };
    Ok(ComposedSeed { bytes, report })
}

impl ComposedSeed {
    /// Looks at the seed's path without writing anything, as a plan does.
    pub(crate) fn check_place(&self) -> Result<(), Error> {
        Place::examine(&self.report.path).map(drop).map_err(|error| error.at(&self.report.path))
    }

    /// What will be written.
    pub(crate) fn summary(&self) -> SeedReport {
        self.report.clone()
    }

    /// Writes the seed beside its place, durably: what can fail has then failed.
    pub(crate) fn stage(self) -> Result<StagedSeed, Error> {
        let beside = Place::examine(&self.report.path)
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

fn read_network_config(path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    network_config_of(path).map_err(|error| error.at(path))
}

fn network_config_of(path: &Path) -> Result<Zeroizing<Vec<u8>>, SeedError> {
    let unusable =
        |source: io::Error| SeedError::Unusable { doing: "reading the network configuration", source };
    let refused = |why| Err(SeedError::NetworkConfig { why });
    // NONBLOCK: a pipe must not stop a rebuild.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| unusable(errno.into()))?;
    let stat = rustix::fs::fstat(&file).map_err(|errno| unusable(errno.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return refused("is no plain file");
    }
    let mut bytes = Zeroizing::new(Vec::new());
    File::from(file).take(MOST_NETWORK_CONFIG_BYTES + 1).read_to_end(&mut bytes).map_err(unusable)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > MOST_NETWORK_CONFIG_BYTES) {
        return refused("is longer than 64 KiB");
    }
    match std::str::from_utf8(&bytes) {
        Err(_) => refused("is not UTF-8"),
        Ok(text) if text.trim().is_empty() => refused("is empty"),
        Ok(text) if text.contains('\0') => refused("holds a zero byte"),
        Ok(_) => Ok(bytes),
    }
}

#[cfg(test)]
mod tests;
