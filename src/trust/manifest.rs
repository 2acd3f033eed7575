//! A manifest's signature: what must be signed, and by whom.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use super::fault::TrustFault;
use super::minisign::{self, MinisignFault};
use crate::error::Error;
use crate::request::{ImageOptions, ManifestSource, Policy, SignedManifests, TrustKey};
use crate::sys::small_file;

/// What a signature's file is called: the manifest's name with this behind it.
const SIGNATURE_ENDING: &str = ".minisig";

/// minisign's signatures have under 500 bytes; a trusted comment may make them longer.
const SIGNATURE_MAX: usize = 4096;

/// A manifest as it lies in its file.
#[derive(Clone, Copy)]
pub(crate) struct ManifestBytes<'a> {
    /// Its file.
    pub(crate) path: &'a Path,
    /// All of it.
    pub(crate) bytes: &'a [u8],
}

/// Who has signed the manifest, where the request or a policy wants it signed; `None` where nobody does.
///
/// # Errors
///
/// With kind `ImageDigest` where there is no manifest, no signature, or not the right one.
pub(crate) fn check_manifest(
    image: (&Path, &ImageOptions),
    policies: &[Policy],
    manifest: Option<ManifestBytes<'_>>,
) -> Result<Option<TrustKey>, Error> {
    let (image, options) = image;
    let demands = demands(options, policies);
    if demands.is_empty() {
        return Ok(None);
    }
    let Some(manifest) = manifest else {
        let required = policies.iter().find(|policy| requires(policy));
        let why = match options.manifest {
            ManifestSource::None => "the one of this image is not to be looked at",
            _ => "this image has no manifest",
        };
        return Err(match required {
            Some(policy) => TrustFault::ManifestRequired { policy: policy.file.clone(), why },
            None if options.manifest == ManifestSource::None => TrustFault::ManifestLeftOut,
            None => TrustFault::NothingToVerify { why },
        }
        .about(image));
    };
    let path = signature_path(manifest.path);
    let signature = small_file::read(&path, SIGNATURE_MAX).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => TrustFault::ManifestSignature(MinisignFault::Malformed).about(&path),
        _ => TrustFault::NoManifestSignature(error).about(&path),
    })?;
    let mut signer = None;
    for keys in demands {
        let found = minisign::signer(manifest.bytes, &signature, keys);
        signer =
            Some(found.map_err(|fault| TrustFault::ManifestSignature(fault).about(manifest.path))?.clone());
    }
    Ok(signer)
}

fn signature_path(manifest: &Path) -> PathBuf {
    let mut name = OsString::from(manifest);
    name.push(SIGNATURE_ENDING);
    name.into()
}

/// Each is a set of keys of which one must have signed the manifest.
fn demands<'a>(options: &'a ImageOptions, policies: &'a [Policy]) -> Vec<&'a [TrustKey]> {
    let typed = Some(&options.trust_keys[..]).filter(|keys| !keys.is_empty());
    let required = policies.iter().filter(|policy| requires(policy));
    typed
        .into_iter()
        .chain(required.map(|policy| policy.allowed_keys.as_deref().unwrap_or_default()))
        .collect()
}

/// Whether a policy wants the manifest signed.
pub(super) fn requires(policy: &Policy) -> bool {
    policy.signed_manifests == SignedManifests::Required
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const SIGNED: &[u8] = include_bytes!("../../testdata/trust/signed.txt");

    fn key() -> TrustKey {
        TrustKey::parse(include_str!("../../testdata/trust/minisign.pub")).unwrap()
    }

    fn other_key() -> TrustKey {
        TrustKey::parse(include_str!("../../testdata/trust/other.pub")).unwrap()
    }

    fn options(keys: &[TrustKey]) -> ImageOptions {
        ImageOptions { trust_keys: keys.to_vec(), ..ImageOptions::default() }
    }

    fn requiring(keys: &[TrustKey]) -> Policy {
        let signed_manifests = SignedManifests::Required;
        Policy { signed_manifests, allowed_keys: Some(keys.to_vec()), ..Policy::default() }
    }

    /// A manifest with this signature beside it.
    fn beside(signature: Option<&[u8]>) -> (tempfile::TempDir, PathBuf) {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("image.manifest.json");
        if let Some(signature) = signature {
            std::fs::write(signature_path(&path), signature).unwrap();
        }
        (room, path)
    }

    const GOOD: &[u8] = include_bytes!("../../testdata/trust/signed.txt.minisig");

    #[test]
    fn whoever_wants_a_signature_gets_it_or_a_refusal() {
        let (_room, path) = beside(Some(GOOD));
        let manifest = ManifestBytes { path: &path, bytes: SIGNED };
        let (mine, others) = (&[key()][..], &[other_key()][..]);
        let both = &[other_key(), key()][..];
        let optional = Policy { signed_manifests: SignedManifests::Optional, ..requiring(others) };
        for (typed, policies, expected) in [
            (&[][..], vec![], Ok(None)),
            (&[], vec![optional], Ok(None)),
            (mine, vec![], Ok(Some(key()))),
            (both, vec![], Ok(Some(key()))),
            (others, vec![], Err(())),
            (&[], vec![requiring(mine)], Ok(Some(key()))),
            (&[], vec![requiring(others)], Err(())),
            (&[], vec![requiring(&[])], Err(())),
            (mine, vec![requiring(others)], Err(())),
            (others, vec![requiring(mine)], Err(())),
            (mine, vec![requiring(both), requiring(others)], Err(())),
            (both, vec![requiring(both), requiring(mine)], Ok(Some(key()))),
        ] {
            let found = check_manifest((Path::new("image"), &options(typed)), &policies, Some(manifest));
            let kind = found.as_ref().err().map(Error::kind);
            assert!(kind.is_none_or(|kind| kind == ErrorKind::ImageDigest), "{kind:?}");
            assert_eq!(found.map_err(|_| ()), expected, "{typed:?} {policies:?}");
        }
    }

    #[test]
    fn a_manifest_or_a_signature_that_is_not_there_is_refused() {
        for (typed, policies) in [(&[key()][..], vec![]), (&[], vec![requiring(&[key()])])] {
            let typed = options(typed);
            let found = check_manifest((Path::new("image"), &typed), &policies, None);
            assert_eq!(found.unwrap_err().kind(), ErrorKind::ImageDigest);
            let long = [GOOD, &[b'\n'; SIGNATURE_MAX]].concat();
            for signature in [None, Some(&b""[..]), Some(&long), Some(b"\xff"), Some(&GOOD[..200])] {
                let (_room, path) = beside(signature);
                let manifest = Some(ManifestBytes { path: &path, bytes: SIGNED });
                let error = check_manifest((Path::new("image"), &typed), &policies, manifest).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ImageDigest, "{error:?}");
            }
        }
    }
}
