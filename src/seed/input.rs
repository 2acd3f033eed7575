//! Files of the customer's that the seed passes on: read whole, or not at all.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use zeroize::Zeroizing;

use super::error::SeedError;
use super::folder::MOST_CONTENT;

/// Which file it is.
#[derive(Clone, Copy)]
pub(super) enum Input {
    UserData,
    NetworkConfig,
}

impl Input {
    fn refused(self, why: &'static str) -> SeedError {
        match self {
            Self::UserData => SeedError::UserData { why },
            Self::NetworkConfig => SeedError::NetworkConfig { why },
        }
    }

    fn unusable(self, source: io::Error) -> SeedError {
        let doing = match self {
            Self::UserData => "reading the user-data",
            Self::NetworkConfig => "reading the network configuration",
        };
        SeedError::Unusable { doing, source }
    }

    fn most(self) -> (usize, &'static str) {
        match self {
            Self::UserData => (MOST_CONTENT, "is longer than 1 MiB"),
            Self::NetworkConfig => (64 << 10, "is longer than 64 KiB"),
        }
    }

    /// Whether a guest could make anything of it.
    pub(super) fn check(self, bytes: &[u8]) -> Result<(), SeedError> {
        match self {
            Self::UserData => Ok(()),
            Self::NetworkConfig => match std::str::from_utf8(bytes) {
                Err(_) => Err(self.refused("is not UTF-8")),
                Ok(text) if text.contains('\0') => Err(self.refused("holds a zero byte")),
                Ok(_) => Ok(()),
            },
        }
    }

    /// The file's bytes; a plain file of no more than any guest needs, and not an empty one.
    pub(super) fn read(self, path: &Path) -> Result<Zeroizing<Vec<u8>>, SeedError> {
        // NONBLOCK: a pipe must not stop a rebuild.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file =
            rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| self.unusable(errno.into()))?;
        let stat = rustix::fs::fstat(&file).map_err(|errno| self.unusable(errno.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(self.refused("is no plain file"));
        }
        let (most, too_long) = self.most();
        // Room for all of it from the start: a buffer that grows leaves copies of what may be secret behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(most + 1));
        File::from(file)
            .take(u64::try_from(most + 1).expect("it is small"))
            .read_to_end(&mut bytes)
            .map_err(|error| self.unusable(error))?;
        match bytes.len() {
            len if len > most => Err(self.refused(too_long)),
            _ if bytes.trim_ascii().is_empty() => Err(self.refused("is empty")),
            _ => Ok(bytes),
        }
    }
}
