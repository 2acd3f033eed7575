//! Files of the customer's that the seed passes on: read whole, or not at all.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use zeroize::Zeroizing;

use super::error::SeedError;
use super::network;
use super::user_data::CustomerData;
use crate::error::Error;
use crate::request::{NetworkPolicy, Os, SeedFormat, SeedSpec};

/// The customer's files, and what stands for one that is not given.
pub(super) struct Inputs {
    pub(super) user_data: UserData,
    pub(super) network_config: Option<Zeroizing<Vec<u8>>>,
}

/// User-data as the guest's reader takes it.
pub(super) enum UserData {
    None,
    /// Of a kind that cloud-init acts on.
    Linux(CustomerData),
    /// As it is: cloudbase-init knows other kinds.
    Windows(Zeroizing<Vec<u8>>),
}

impl UserData {
    /// The bytes as they were given.
    pub(super) fn into_given(self) -> Option<Zeroizing<Vec<u8>>> {
        match self {
            Self::None => None,
            Self::Linux(customer) => Some(customer.into_given()),
            Self::Windows(bytes) => Some(bytes),
        }
    }
}

impl Inputs {
    /// Reads and checks what is named; what is refused is added to the refusals and left out.
    pub(super) fn read(spec: &SeedSpec, (os, format): (Os, SeedFormat), refusals: &mut Vec<Error>) -> Self {
        let mut noted = |checked: Result<UserData, Error>| {
            checked.map_err(|error| refusals.push(error)).unwrap_or(UserData::None)
        };
        let user_data = match &spec.user_data {
            None => UserData::None,
            Some(path) => noted(user_data(path, os, format).map_err(|error| error.at(path))),
        };
        let given = match &spec.network_config {
            None => None,
            Some(path) => {
                let read = network_config(path);
                read.map_err(|error| refusals.push(error.at(path))).ok()
            }
        };
        let network_config = match (spec.network, given) {
            (NetworkPolicy::Keep, Some(_)) => {
                let why = "is given, and the image's own is to stay";
                refusals.push(SeedError::NetworkConfig { why }.into());
                None
            }
            // Windows keeps its own where it is told nothing.
            (NetworkPolicy::Keep, None) if os == Os::Windows => None,
            (NetworkPolicy::Keep, None) => Some(Zeroizing::new(network::keep().to_vec())),
            (NetworkPolicy::Fresh, given) => given,
        };
        if format == SeedFormat::ConfigDrive && network_config.is_some() {
            let what = match spec.network {
                NetworkPolicy::Fresh => "a cloud-init network configuration",
                NetworkPolicy::Keep => "the wish to keep the image's network",
            };
            refusals.push(SeedError::NoPlaceFor { what }.into());
        }
        Self { user_data, network_config }
    }
}

fn user_data(path: &Path, os: Os, format: SeedFormat) -> Result<UserData, SeedError> {
    let refused = |why| SeedError::UserData { why };
    let most = match format {
        // OpenStack's limit, which its readers may count on.
        SeedFormat::ConfigDrive => Limit { bytes: 64 << 10, told: "is longer than 64 KiB" },
        SeedFormat::Nocloud | SeedFormat::NocloudVfat => {
            Limit { bytes: 1 << 20, told: "is longer than 1 MiB" }
        }
    };
    let bytes = read(path, most, "reading the user-data", refused)?;
    Ok(match os {
        Os::Linux => UserData::Linux(CustomerData::new(bytes)?),
        Os::Windows if bytes.trim_ascii().is_empty() => return Err(refused("is empty")),
        Os::Windows => UserData::Windows(bytes),
    })
}

fn network_config(path: &Path) -> Result<Zeroizing<Vec<u8>>, SeedError> {
    let refused = |why| SeedError::NetworkConfig { why };
    let most = Limit { bytes: 64 << 10, told: "is longer than 64 KiB" };
    let bytes = read(path, most, "reading the network configuration", refused)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| refused("is not UTF-8"))?;
    if text.contains('\0') {
        return Err(refused("holds a zero byte"));
    }
    network::check(text).map_err(refused)?;
    Ok(bytes)
}

/// How much is read of a file, and what is said of a longer one.
struct Limit {
    bytes: usize,
    told: &'static str,
}

/// The bytes of a plain file.
fn read(
    path: &Path,
    most: Limit,
    doing: &'static str,
    refused: impl Fn(&'static str) -> SeedError,
) -> Result<Zeroizing<Vec<u8>>, SeedError> {
    let unusable = |source: io::Error| SeedError::Unusable { doing, source };
    // NONBLOCK: a pipe must not stop a rebuild.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| unusable(errno.into()))?;
    let stat = rustix::fs::fstat(&file).map_err(|errno| unusable(errno.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(refused("is no plain file"));
    }
    // Room for all of it from the start: a buffer that grows leaves copies of what may be secret behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(most.bytes + 1));
    let limit = u64::try_from(most.bytes + 1).expect("limits are small");
    File::from(file).take(limit).read_to_end(&mut bytes).map_err(unusable)?;
    if bytes.len() > most.bytes { Err(refused(most.told)) } else { Ok(bytes) }
}
