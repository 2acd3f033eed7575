//! The seed: the volume from which cloud-init gives the machine its new credentials.

// The front door comes with the volume's writer.
#![allow(dead_code)]

mod credential;
mod error;
mod hash;
mod iso9660;
mod names;
mod nocloud;
mod ssh_key;

pub use self::credential::{Credential, Password, PasswordHash};
pub use self::error::SeedError;
pub use self::ssh_key::SshKey;
