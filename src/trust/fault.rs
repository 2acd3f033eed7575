//! Why an image is not trusted, or cannot be judged.

use std::io;
use std::path::{Path, PathBuf};

use super::gpgv::OpenPgpFault;
use super::minisign::MinisignFault;
use crate::error::{Error, ErrorKind};

/// Why an image is not trusted, or cannot be judged.
#[derive(Debug, thiserror::Error)]
pub(super) enum TrustFault {
    #[error("{} wants every image to have a signed manifest, and {why}", named(.policy.as_deref()))]
    ManifestRequired { policy: Option<PathBuf>, why: &'static str },
    #[error("{} wants signed manifests and names no key that may sign them", named(.policy.as_deref()))]
    NoKeyNamed { policy: Option<PathBuf> },
    #[error("{} does not allow the key {id}", named(.policy.as_deref()))]
    KeyNotAllowed { policy: Option<PathBuf>, id: String },
    #[error("{} forbids backing files", named(.policy.as_deref()))]
    BackingForbidden { policy: Option<PathBuf> },
    #[error("it is in no folder from which {} allows images", named(.policy.as_deref()))]
    OutsideFolders { policy: Option<PathBuf> },
    #[error("it cannot be told in which folder it is")]
    Nowhere(#[source] io::Error),
    #[error("it was exchanged while it was being looked at")]
    Exchanged,
    #[error("a key is given, and {why}")]
    NothingToVerify { why: &'static str },
    #[error("a key is given, and the manifest that it must have signed is left out")]
    ManifestLeftOut,
    #[error("there is no signature of the manifest")]
    NoManifestSignature(#[source] io::Error),
    #[error("the manifest's signature {0}")]
    ManifestSignature(MinisignFault),
    #[error("the list of digests cannot be read")]
    List(#[source] io::Error),
    #[error("the keyring cannot be read")]
    Keyring(#[source] io::Error),
    #[error("the keyring is armoured text, which gpgv does not read")]
    ArmouredKeyring,
    #[error("gpgv cannot be run")]
    NoGpgv(#[source] io::Error),
    #[error("there is no signature of the list")]
    NoListSignature,
    #[error("the list's signature cannot be read")]
    ListSignature(#[source] io::Error),
    #[error("the list's signature {0}")]
    OpenPgp(OpenPgpFault),
    #[error("the signed list has no SHA-256 of {name:?}")]
    NotListed { name: String },
    #[error("the signed list has two different SHA-256 of {name:?}")]
    ListedTwice { name: String },
    #[error("the signed list proves the image's own file, and the image has a backing file")]
    ProvesOneFile,
    #[error("a list of images' digests is given, and a manifest instead of an image")]
    ListWithoutImage,
}

fn named(policy: Option<&Path>) -> String {
    policy.map_or("the caller's policy".to_owned(), |file| format!("the host's policy {file:?}"))
}

impl TrustFault {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoKeyNamed { .. }
            | Self::ListWithoutImage
            | Self::List(_)
            | Self::Keyring(_)
            | Self::ArmouredKeyring
            | Self::NoGpgv(_) => ErrorKind::Usage,
            Self::BackingForbidden { .. }
            | Self::OutsideFolders { .. }
            | Self::Nowhere(_)
            | Self::Exchanged => ErrorKind::Image,
            _ => ErrorKind::ImageDigest,
        }
    }

    fn hint(&self) -> &'static str {
        match self {
            Self::ManifestRequired { .. } => {
                "make one with `reimage manifest IMAGE`, sign it with `minisign -Sm`, or take an image that has both"
            }
            Self::NoKeyNamed { .. } => "add allowed_keys to the policy",
            Self::KeyNotAllowed { .. } => {
                "leave --trust-key out, or have the key added to the policy's allowed_keys"
            }
            Self::BackingForbidden { .. } => {
                "leave --allow-backing out, and make the image one file with `qemu-img convert`"
            }
            Self::OutsideFolders { .. } => "name an image inside the policy's allowed_image_folders",
            Self::Nowhere(_) => "check the rights of its folders",
            Self::Exchanged => "start again when nobody exchanges the image",
            Self::NothingToVerify { .. } => {
                "put the manifest and its .minisig beside the image, or name the manifest with --manifest FILE"
            }
            Self::ManifestLeftOut => {
                "leave --manifest none out: it leaves out the manifest that the key must have signed"
            }
            Self::NoManifestSignature(_) => {
                "fetch the signature too, or sign the manifest with `minisign -Sm`"
            }
            Self::ManifestSignature(fault) => fault.hint(),
            Self::List(_) | Self::Keyring(_) => "correct its path, or its rights",
            Self::ArmouredKeyring => "make it binary with `gpg --dearmor`",
            Self::NoGpgv(_) => "install gpgv",
            Self::NoListSignature => {
                "fetch its signature too, and put it beside the list (.gpg, .asc, .sig or .sign)"
            }
            Self::ListSignature(_) => "check the file's rights, or fetch it again",
            Self::OpenPgp(fault) => fault.hint(),
            Self::NotListed { .. } => "name the image as the list does, or fetch the list that belongs to it",
            Self::ListedTwice { .. } => "fetch the list again from who publishes the image",
            Self::ListWithoutImage => "name the image, or have the manifest signed and give --trust-key",
            Self::ProvesOneFile => {
                "make the image one file with `qemu-img convert`, or sign a manifest of it"
            }
        }
    }

    /// As an error about this file.
    pub(super) fn about(self, path: &Path) -> Error {
        let (kind, hint) = (self.kind(), self.hint());
        Error::new(kind, self).at_path(path).hint_that(hint)
    }
}
