//! Why a credential or a seed request is refused, or a seed could not be put in place.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind};

/// Why a credential or a seed request is refused, or a seed could not be put in place.
///
/// It never carries a password, a hash, or a line of a file that may hold one.
///
/// ```
/// use std::error::Error;
/// let error = reimage::Password::new(String::from("short")).unwrap_err();
/// assert!(error.source().unwrap().is::<reimage::SeedError>());
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SeedError {
    /// A password that no guest should get, or that some guest would not take.
    #[error("the password {why}")]
    Password {
        /// What is wrong with it.
        why: &'static str,
    },
    /// A password hash that would lock the account or weaken it.
    #[error("the password hash {why}")]
    PasswordHash {
        /// What is wrong with it.
        why: &'static str,
    },
    /// A line that is no usable public key.
    #[error("the SSH key in line {line} {why}")]
    SshKey {
        /// The line of the file, from 1.
        line: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// No key where one was promised, or too many.
    #[error("{count} SSH keys were given where 1 to {most} are taken")]
    SshKeyCount {
        /// How many there are.
        count: usize,
        /// How many are taken.
        most: usize,
    },
    /// Keys were added to a credential that keeps what the image has.
    #[error("the image's credentials are kept, and yet others were given")]
    KeptAndGiven,
    /// A seed was asked for that would give the machine nothing.
    #[error("the image's credentials are kept, so there is no seed to write")]
    NothingToSeed,
    /// An account name that cloud-init or the guest would not take.
    #[error("the user name {user:?} {why}")]
    User {
        /// The name.
        user: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A host name that is none by RFC 1123.
    #[error("the host name {hostname:?} {why}")]
    Hostname {
        /// The name.
        hostname: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An instance id under which cloud-init would not run again, or not safely.
    #[error("the instance id {instance_id:?} {why}")]
    InstanceId {
        /// The id.
        instance_id: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// User-data that cloud-init would overlook, or that cannot be passed on.
    #[error("the user-data {why}")]
    UserData {
        /// What is wrong with it.
        why: &'static str,
    },
    /// A network configuration that cannot be passed on.
    #[error("the network configuration {why}")]
    NetworkConfig {
        /// What is wrong with it.
        why: &'static str,
    },
    /// A seed was asked for, and no place for it named.
    #[error("no seed is named")]
    NoSeed,
    /// User-data that partitions or formats disks, and would do it again.
    #[error("line {line} of the user-data ({what:?}) runs again, and may wipe a data disk")]
    UserDataDisk {
        /// The line of the file, from 1; unpacked if it is compressed.
        line: usize,
        /// The key, or the program with its device.
        what: String,
    },
    /// User-data that cannot be judged, though cloud-init may act on it.
    #[error(
        "line {line} of the user-data ({what:?}) cannot be read here, so that nobody knows what it does to disks and \
         passwords"
    )]
    UserDataUnread {
        /// The line of the file, from 1; unpacked if it is compressed.
        line: usize,
        /// What it is.
        what: String,
    },
    /// User-data beside which cloud-init cannot make the account that gets the new credentials.
    #[error(
        "line {line} of the user-data ({what:?}) keeps cloud-init from the account that gets the credentials"
    )]
    UserDataLockout {
        /// The line of the file, from 1; unpacked if it is compressed.
        line: usize,
        /// The key.
        what: String,
    },
    /// A format that the guest does not read.
    #[error("a {guest} guest reads no {format} seed: {why}")]
    Format {
        /// What runs in the machine.
        guest: &'static str,
        /// The format.
        format: &'static str,
        /// What would happen.
        why: &'static str,
    },
    /// A key and no password for a guest that wants a password.
    #[error("an SSH key alone is no credential for Windows: its administrator has a password")]
    KeyAloneForWindows,
    /// Old credentials were to be revoked where no reader can do it.
    #[error("old credentials of a Windows image cannot be revoked from a seed")]
    WindowsRevoke,
    /// A network set-up that the format has no place for.
    #[error("a config-drive seed has no place for {what}")]
    NoPlaceFor {
        /// What it has no place for.
        what: &'static str,
    },
    /// Nothing says which seed is to be scrubbed.
    #[error("it is not known which instance id the seed has")]
    NothingToScrub,
    /// A scrubbed seed with another id would make cloud-init run again, and reset the credentials.
    #[error("the instance id {given:?} is not that of the last seed, {last:?}")]
    OtherThanLast {
        /// What was given.
        given: String,
        /// What the last seed had.
        last: String,
    },
    /// The seed's files are larger than any guest needs.
    #[error("the seed would hold {size} bytes where {most} are allowed")]
    TooLarge {
        /// Bytes of content.
        size: usize,
        /// Bytes that are allowed.
        most: usize,
    },
    /// A place where a seed must not lie.
    #[error("the seed's path {why}")]
    Place {
        /// What is wrong with it.
        why: &'static str,
    },
    /// The folder or an input file cannot be used.
    #[error("{doing} failed")]
    Unusable {
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A file is there that is no seed: it could be anything, and would be lost.
    #[error("the file that is there is no seed, and would be lost")]
    OtherFile,
    /// More than one identity may be the machine's.
    #[error("the instance ids {ids:?} are both known for it, and only one is the machine's")]
    ManyIds {
        /// The ids.
        ids: Vec<String>,
    },
    /// A file is there and may not be replaced.
    #[error("a file is there already")]
    Exists,
    /// The operating system failed while the seed was written or put in place.
    #[error("{doing} failed")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl SeedError {
    /// The crate's error, with the file that it is about.
    pub(super) fn at(self, path: &Path) -> Error {
        Error::from(self).at_path(PathBuf::from(path))
    }

    fn hint(&self) -> &'static str {
        match self {
            Self::Password { .. } => {
                "put a password of 8 to 128 bytes on one line of its file; a hash goes into --password-hash-file"
            }
            Self::PasswordHash { .. } => {
                "make one with `openssl passwd -6` or `mkpasswd -m sha512crypt`, or give the password itself"
            }
            Self::SshKey { .. } | Self::SshKeyCount { .. } => {
                "give the public half, one key a line, as `ssh-keygen` writes it to a file ending in .pub"
            }
            Self::KeptAndGiven => "give new credentials or keep the image's, not both",
            Self::NothingToSeed => "leave the seed out, or give a password or an SSH key",
            Self::User { .. } => "name an account as `useradd` would take it, or none for the image's own",
            Self::Hostname { .. } => {
                "use letters, digits and hyphens, at most 63 between dots and 253 in all"
            }
            Self::InstanceId { .. } => "leave it out for a fresh one, or use one that this machine never had",
            Self::UserData { .. } => {
                "give a plain file that begins with #cloud-config, #!, or another line that cloud-init knows"
            }
            Self::NetworkConfig { .. } => "give a cloud-init network configuration, version 1 or 2, as text",
            Self::NoSeed => "name the seed's file with --seed FILE",
            Self::UserDataDisk { .. } => {
                "take it out; if it harms no data disk, say --allow-user-data-disk-setup"
            }
            Self::UserDataUnread { .. } => {
                "write it in plainer words; if it harms no data disk, say --allow-user-data-disk-setup"
            }
            Self::UserDataLockout { .. } => "make it a list of users, or take it out",
            Self::Format { .. } => "leave --seed-format out, or name the guest's system with --os",
            Self::KeyAloneForWindows => "give a password too: --password-file",
            Self::WindowsRevoke => "leave it out: cloudbase-init writes the account's keys anew by itself",
            Self::NoPlaceFor { .. } => {
                "leave it out, or use --seed-format nocloud where the image reads that"
            }
            Self::NothingToScrub => "give the id of the seed that the machine booted with: --instance-id",
            Self::OtherThanLast { .. } => "leave --instance-id out: the last seed's id is known",
            Self::TooLarge { .. } => "shorten the user-data, or give fewer keys",
            Self::Place { .. } => {
                "name a plain file in a folder of the instance that only trusted users can write"
            }
            Self::Unusable { .. } => "check that the folder and the file exist and may be used",
            Self::OtherFile => "name another path, or remove the file if it really may go",
            Self::ManyIds { .. } => {
                "give the one that the machine has: --instance-id (cloud-init query instance-id)"
            }
            Self::Exists => "say --replace if the seed that is there may go",
            Self::Io { .. } => "look for a full or failing file system, then run the same command again",
        }
    }
}

impl From<SeedError> for Error {
    fn from(error: SeedError) -> Self {
        let kind = match error {
            SeedError::Io { .. } => ErrorKind::Seed,
            SeedError::OtherFile => ErrorKind::Identity,
            _ => ErrorKind::Credentials,
        };
        let hint = error.hint();
        Error::new(kind, error).hint_that(hint)
    }
}
