//! Whose images are taken: keys, signed lists, and what a host's policy demands of every rebuild.

use std::fmt;
use std::path::PathBuf;

use base64ct::{Base64, Encoding as _};
use serde::{Serialize, Serializer};

use crate::error::{Error, ErrorKind};

/// The mark of an Ed25519 key, its id, and the key itself, as minisign writes them.
const KEY_LEN: usize = 2 + ID_LEN + 32;
const ID_LEN: usize = 8;

/// A minisign public key.
///
/// ```
/// let key = reimage::TrustKey::parse("RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3")?;
/// assert_eq!(key.id(), "E7620F1842B4E81F");
/// # Ok::<(), reimage::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct TrustKey([u8; KEY_LEN]);

/// A text that is no public key.
#[derive(Debug, thiserror::Error)]
#[error("it is no minisign public key: {why}")]
struct KeyFault {
    why: &'static str,
}

impl TrustKey {
    /// Reads a public key: all of minisign's file, or its second line alone.
    ///
    /// # Errors
    ///
    /// With kind `Usage` for any other text.
    pub fn parse(text: &str) -> Result<Self, Error> {
        decode(text).map(Self).map_err(|why| {
            Error::new(ErrorKind::Usage, KeyFault { why })
                .hint_that("give the public key that `minisign -G` wrote, minisign.pub, unchanged")
        })
    }

    /// Its id, as minisign shows it: 16 hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> String {
        let mut id = [0; ID_LEN];
        id.copy_from_slice(&self.0[2..2 + ID_LEN]);
        format!("{:016X}", u64::from_le_bytes(id))
    }

    /// The key as the second line of minisign's file has it.
    #[must_use]
    pub fn to_base64(&self) -> String {
        Base64::encode_string(&self.0)
    }
}

fn decode(text: &str) -> Result<[u8; KEY_LEN], &'static str> {
    let lines: Vec<_> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let line = match lines[..] {
        [line] => line,
        [comment, line] if comment.starts_with("untrusted comment:") => line,
        _ => return Err("it is not one line, with an untrusted comment above it or without"),
    };
    let mut bytes = [0; KEY_LEN];
    let length = Base64::decode(line, &mut bytes).map_err(|_| "it is not base64 of 42 bytes")?.len();
    match () {
        () if length != KEY_LEN => Err("it is not base64 of 42 bytes"),
        () if bytes[..2] != *b"Ed" => Err("it is no Ed25519 key"),
        () => Ok(bytes),
    }
}

impl fmt::Debug for TrustKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustKey({})", self.id())
    }
}

impl Serialize for TrustKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.to_base64())
    }
}

/// A signed list of SHA-256 digests, such as a distributor's `SHA256SUMS`, and the keys that may sign it.
///
/// ```
/// let sums = reimage::SignedSums::new("SHA256SUMS", "/usr/share/keyrings/ubuntu-cloudimage-keyring.gpg");
/// assert_eq!(sums.gpgv.to_str(), Some("/usr/bin/gpgv"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SignedSums {
    /// The list: clear-signed, or with its signature beside it (`.gpg`, `.asc`, `.sig`, `.sign`).
    pub list: PathBuf,
    /// The OpenPGP keys that are trusted, as gpgv reads them: binary, or a keybox.
    pub keyring: PathBuf,
    /// The program that checks OpenPGP signatures.
    pub gpgv: PathBuf,
}

impl SignedSums {
    /// A list and the keys that may sign it, to be checked by `/usr/bin/gpgv`.
    pub fn new(list: impl Into<PathBuf>, keyring: impl Into<PathBuf>) -> Self {
        Self { list: list.into(), keyring: keyring.into(), gpgv: PathBuf::from("/usr/bin/gpgv") }
    }
}

/// What a host demands of every rebuild, whatever the request says; by default nothing.
///
/// A request may demand more, and nothing in it takes a demand back.
///
/// ```
/// let mut request = reimage::Request::new("debian-13.qcow2", "/dev/vg0/i-0a1b");
/// let mut policy = reimage::Policy::default();
/// policy.allowed_image_folders = Some(vec!["/var/lib/images".into()]);
/// request.options.policies.push(policy);
/// let error = reimage::preview(&request, &reimage::Credential::keep_image(), &()).err().unwrap();
/// assert!(error.kind().exit_code() > 0);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Policy {
    /// The file that says so; refusals name it.
    pub file: Option<PathBuf>,
    /// Whether an image needs a manifest that one of the allowed keys has signed.
    pub signed_manifests: SignedManifests,
    /// The keys that a request may trust; `None` allows any.
    pub allowed_keys: Option<Vec<TrustKey>>,
    /// The folders in which images and all files below them must lie; `None` allows any.
    pub allowed_image_folders: Option<Vec<PathBuf>>,
    /// Whether an image may have backing files at all.
    pub backing: BackingPolicy,
}

/// Whether an image needs a signed manifest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SignedManifests {
    /// It does not.
    #[default]
    Optional,
    /// It does, signed by one of the allowed keys.
    Required,
}

/// Whether an image may have backing files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum BackingPolicy {
    /// It may, where the request allows their folder.
    #[default]
    AsRequested,
    /// It may not.
    Forbidden,
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";

    #[test]
    fn a_key_is_its_line_or_its_whole_file_and_nothing_else() {
        let file = format!("untrusted comment: minisign public key E7620F1842B4E81F\n{KEY}\n");
        for text in [KEY, &file, &file.replace('\n', "\r\n")] {
            let key = TrustKey::parse(text).unwrap();
            assert_eq!((key.id().as_str(), key.to_base64().as_str()), ("E7620F1842B4E81F", KEY));
        }
        for text in [
            String::new(),
            KEY[..55].to_owned(),
            format!("{KEY}AA=="),
            format!("x{}", &KEY[1..]),
            format!("\u{e9}{}", &KEY[2..]),
            format!("{KEY}\n{KEY}"),
            format!("{file}{KEY}"),
            // A secret key's and a signature's beginning.
            "untrusted comment: minisign encrypted secret key\nRWRTY0IyAAAA".to_owned(),
        ] {
            let error = TrustKey::parse(&text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{text}");
        }
    }
}
