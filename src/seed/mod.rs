//! Stub until the room is merged.
#![allow(missing_docs, dead_code)]
use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind};
use crate::request::{SeedFormat, SeedSpec};

#[derive(Debug)]
pub struct Credential(Option<(Option<Secret>, Vec<SshKey>)>);
#[derive(Debug)]
pub struct Password(Zeroizing<Vec<u8>>);
#[derive(Debug)]
pub struct PasswordHash(Zeroizing<Vec<u8>>);
#[derive(Clone, Debug)]
pub struct SshKey(String);
#[derive(Debug)]
pub enum Secret {
    Password(Password),
    Hash(PasswordHash),
}
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Fault(&'static str);
impl Password {
    pub fn from_file_bytes(bytes: Zeroizing<Vec<u8>>) -> Result<Self, Error> {
        if bytes.len() < 8 {
            return Err(Error::new(ErrorKind::Credentials, Fault("the password is too short")));
        }
        Ok(Self(bytes))
    }
}
impl PasswordHash {
    pub fn from_file_bytes(bytes: Zeroizing<Vec<u8>>) -> Result<Self, Error> {
        Ok(Self(bytes))
    }
}
impl SshKey {
    pub fn parse_file(bytes: &[u8]) -> Result<Vec<Self>, Error> {
        Ok(vec![Self(String::from_utf8_lossy(bytes).into_owned())])
    }
}
impl Credential {
    pub fn keep_image() -> Self {
        Credential(None)
    }
    pub fn new(secret: Option<Secret>, keys: Vec<SshKey>) -> Result<Self, Error> {
        Ok(Self(Some((secret, keys))))
    }
    pub fn keeps_image(&self) -> bool {
        self.0.is_none()
    }
}
#[derive(Clone, Debug, serde::Serialize)]
pub struct SeedReport {
    pub path: PathBuf,
    pub format: SeedFormat,
    pub label: String,
    pub instance_id: String,
    pub user: Option<String>,
    pub blake3: String,
    pub credentials: Vec<&'static str>,
}
pub enum Replace {
    Existing,
    Refuse,
}
pub(crate) struct ComposedSeed(SeedReport);
pub(crate) struct StagedSeed(SeedReport);
pub fn write_seed(
    spec: &SeedSpec,
    hostname: Option<&str>,
    credential: &Credential,
    replace: Replace,
) -> Result<SeedReport, Error> {
    compose(spec, hostname, credential)?.stage(replace)?.publish()
}
pub(crate) fn compose(
    spec: &SeedSpec,
    _: Option<&str>,
    credential: &Credential,
) -> Result<ComposedSeed, Error> {
    if credential.keeps_image() {
        return Err(Error::new(ErrorKind::Credentials, Fault("a seed replaces the image's credentials")));
    }
    Ok(ComposedSeed(SeedReport {
        path: spec.path.clone(),
        format: spec.format,
        label: "cidata".into(),
        instance_id: spec.instance_id.clone().unwrap_or_else(|| format!("ri-{}", uuid::Uuid::new_v4())),
        user: spec.user.clone(),
        blake3: String::new(),
        credentials: vec!["password"],
    }))
}
impl ComposedSeed {
    pub(crate) fn stage(self, replace: Replace) -> Result<StagedSeed, Error> {
        if matches!(replace, Replace::Refuse) && self.0.path.exists() {
            return Err(Error::new(ErrorKind::Credentials, Fault("there is a seed already")));
        }
        Ok(StagedSeed(self.0))
    }
    pub(crate) fn summary(&self) -> SeedReport {
        self.0.clone()
    }
}
impl StagedSeed {
    pub(crate) fn publish(self) -> Result<SeedReport, Error> {
        std::fs::write(&self.0.path, "stub").map_err(|error| Error::new(ErrorKind::Seed, error))?;
        Ok(self.0)
    }
}
