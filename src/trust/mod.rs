//! Whether an image comes from whom it should: signatures, signed lists, and the policies of the host.
//!
//! Nothing here knows an image's content. A manifest is looked at before it is parsed: its signature covers its bytes.
//! OpenPGP is left to gpgv, which makes this the only room that runs another program.

mod fault;
mod gpgv;
mod manifest;
mod minisign;
mod policy;
mod sums;

pub(crate) use manifest::{ManifestBytes, check_manifest};
pub(crate) use policy::{Opened, check_places, check_request, check_without_image};
pub(crate) use sums::{Listed, listed};

use serde::Serialize;

use crate::request::TrustKey;

/// Who has signed for an image.
///
/// ```
/// # fn signers(plan: &reimage::PlanSummary) -> Vec<&str> {
/// let signer = |signature| match signature {
///     &reimage::ImageSignature::Minisign { ref key } => key.as_str(),
///     &reimage::ImageSignature::OpenPgp { ref fingerprint } => fingerprint.as_str(),
///     _ => "somebody",
/// };
/// plan.signatures.iter().map(signer).collect()
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
#[non_exhaustive]
pub enum ImageSignature {
    /// Its manifest is signed.
    Minisign {
        /// The id of the key.
        key: String,
    },
    /// A list with the SHA-256 of its file is signed.
    OpenPgp {
        /// The fingerprint of the key.
        fingerprint: String,
    },
}

impl From<Listed> for ImageSignature {
    fn from(listed: Listed) -> Self {
        Self::OpenPgp { fingerprint: listed.signer }
    }
}

impl From<&TrustKey> for ImageSignature {
    fn from(key: &TrustKey) -> Self {
        Self::Minisign { key: key.id() }
    }
}
