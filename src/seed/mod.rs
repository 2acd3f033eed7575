//! Stub until the room is merged.
use crate::error::Error;
use crate::request::SeedSpec;
#[derive(Debug)]
pub struct Credential;
impl Credential {
    pub fn keep_image() -> Self {
        Credential
    }
    pub fn keeps_image(&self) -> bool {
        true
    }
}
#[derive(Clone, Debug, serde::Serialize)]
pub struct SeedReport {}
pub enum Replace {
    Existing,
    Refuse,
}
pub(crate) struct ComposedSeed;
pub(crate) struct StagedSeed;
pub(crate) fn compose(_: &SeedSpec, _: Option<&str>, _: &Credential) -> Result<ComposedSeed, Error> {
    Ok(ComposedSeed)
}
impl ComposedSeed {
    pub(crate) fn stage(self, _: Replace) -> Result<StagedSeed, Error> {
        Ok(StagedSeed)
    }
    pub(crate) fn summary(&self) -> SeedReport {
        SeedReport {}
    }
}
impl StagedSeed {
    pub(crate) fn publish(self) -> Result<SeedReport, Error> {
        Ok(SeedReport {})
    }
}
