//! A signed list of SHA-256 digests: what it says of an image.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::fault::TrustFault;
use super::gpgv::{self, Signed};
use crate::error::Error;
use crate::request::SignedSums;
use crate::sys::small_file;

/// A list of 20,000 images has about 2 MiB.
const LIST_MAX: usize = 4 << 20;
const SIGNATURE_MAX: usize = 64 << 10;
const KEYRING_MAX: usize = 16 << 20;

/// How signatures beside a list are called, the first that is there counts.
const ENDINGS: [&str; 4] = [".gpg", ".asc", ".sig", ".sign"];

/// What a signed list says of an image.
#[derive(Debug)]
pub(crate) struct Listed {
    /// The SHA-256 that the image's file must have.
    pub(crate) sha256: [u8; 32],
    /// The fingerprint of the key that has signed the list.
    pub(crate) signer: String,
}

/// What the list says of the image, after its signature was found good.
///
/// # Errors
///
/// With kind `ImageDigest` where it is not signed as it should be or does not say one thing of the image, and with
/// kind `Usage` where the list, the keyring or gpgv is not there.
pub(crate) fn listed(sums: &SignedSums, image: &Path, layers: usize) -> Result<Listed, Error> {
    if layers > 1 {
        return Err(TrustFault::ProvesOneFile.about(image));
    }
    let list =
        small_file::read(&sums.list, LIST_MAX).map_err(|error| TrustFault::List(error).about(&sums.list))?;
    let keyring = read_keyring(&sums.keyring).map_err(|fault| fault.about(&sums.keyring))?;
    let signature = match gpgv::is_clear_signed(&list) {
        true => None,
        false => Some(read_signature(&sums.list)?),
    };
    let signed = match &signature {
        None => Signed::Inside(&list),
        Some((_, signature)) => Signed::Beside { signature, list: &list },
    };
    let verified = gpgv::verify(&sums.gpgv, &keyring, signed).map_err(|fault| match &fault {
        TrustFault::NoGpgv(_) => fault.about(&sums.gpgv),
        _ => fault.about(signature.as_ref().map_or(&sums.list, |(path, _)| path)),
    })?;
    let text = verified.text.as_deref().unwrap_or(&list);
    let name = image.file_name().unwrap_or_default();
    let sha256 = digest_of(text, name).map_err(|fault| fault.about(&sums.list))?;
    Ok(Listed { sha256, signer: verified.signer })
}

fn read_keyring(path: &Path) -> Result<Vec<u8>, TrustFault> {
    let keyring = small_file::read(path, KEYRING_MAX).map_err(TrustFault::Keyring)?;
    // gpgv would only say that it has no key.
    if keyring.trim_ascii_start().starts_with(b"-----BEGIN PGP") {
        return Err(TrustFault::ArmouredKeyring);
    }
    Ok(keyring)
}

fn read_signature(list: &Path) -> Result<(PathBuf, Vec<u8>), Error> {
    for ending in ENDINGS {
        let mut path = OsString::from(list);
        path.push(ending);
        let path = PathBuf::from(path);
        match small_file::read(&path, SIGNATURE_MAX) {
            Ok(signature) => return Ok((path, signature)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(TrustFault::ListSignature(error).about(&path)),
        }
    }
    Err(TrustFault::NoListSignature.about(list))
}

/// The one SHA-256 that a list has of this name.
fn digest_of(list: &[u8], name: &OsStr) -> Result<[u8; 32], TrustFault> {
    let told = || name.to_string_lossy().into_owned();
    let mut found = None;
    for line in list.split(|byte| *byte == b'\n') {
        let Some((digest, of)) = entry(line.trim_ascii_end()) else { continue };
        if of.strip_prefix(b"./").unwrap_or(of) != name.as_bytes() {
            continue;
        }
        if found.replace(digest).is_some_and(|other| other != digest) {
            return Err(TrustFault::ListedTwice { name: told() });
        }
    }
    found.ok_or_else(|| TrustFault::NotListed { name: told() })
}

/// A line as sha256sum writes it (`HASH  name`, `HASH *name`), or as BSD's programs do (`SHA256 (name) = HASH`).
fn entry(line: &[u8]) -> Option<([u8; 32], &[u8])> {
    if let Some(rest) = line.strip_prefix(b"SHA256 (") {
        let (head, digest) = rest.split_at_checked(rest.len().checked_sub(64)?)?;
        return Some((digest_from_hex(digest)?, head.strip_suffix(b") = ")?));
    }
    let (digest, rest) = line.split_at_checked(64)?;
    let name = rest.strip_prefix(b"  ").or_else(|| rest.strip_prefix(b" *"))?;
    Some((digest_from_hex(digest)?, name))
}

fn digest_from_hex(hex: &[u8]) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    base16(hex, &mut bytes).then_some(bytes)
}

fn base16(hex: &[u8], bytes: &mut [u8; 32]) -> bool {
    let value = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let pairs = hex.chunks_exact(2).map(|pair| Some(value(pair[0])? << 4 | value(pair[1])?));
    let mut whole = hex.len() == 64;
    for (byte, pair) in bytes.iter_mut().zip(pairs) {
        *byte = pair.unwrap_or_default();
        whole &= pair.is_some();
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF";

    #[track_caller]
    fn check(list: &str, name: &str, expected: Option<u8>) {
        let found = digest_of(list.as_bytes(), OsStr::new(name));
        assert_eq!(found.as_ref().ok().map(|digest| digest[1]), expected, "{list:?}: {found:?}");
    }

    #[test]
    fn a_name_is_found_in_the_forms_of_sha256sum_and_of_bsd() {
        for line in [
            format!("{ONE}  disk.img"),
            format!("{ONE} *disk.img"),
            format!("{ONE}  ./disk.img\r"),
            format!("SHA256 (disk.img) = {ONE}"),
            format!("# disk.img: 7 bytes\nSHA256 (other) = {}\nSHA256 (disk.img) = {ONE}\n", "0".repeat(64)),
            format!("{ONE}  disk.img\n{ONE} *disk.img\n"),
        ] {
            check(&line, "disk.img", Some(0x11));
        }
        check(&format!("SHA256 (a) = b) = {ONE}"), "a) = b", Some(0x11));
        check(&format!("{ONE}    two  spaces "), "  two  spaces", Some(0x11));
    }

    #[test]
    fn a_line_that_is_not_quite_one_is_none() {
        for line in [
            String::new(),
            ONE.to_owned(),
            format!("{ONE} disk.img"),
            format!("{}  disk.img", &ONE[1..]),
            format!("0{ONE}  disk.img"),
            format!("+{}  disk.img", &ONE[1..]),
            format!("{ONE}  sub/disk.img"),
            format!("{ONE}  disk.img.xz"),
            format!("\\{ONE}  disk.img"),
            format!("SHA512 (disk.img) = {ONE}"),
            format!("SHA256 (disk.img) = {}", &ONE[2..]),
            "SHA256 (".to_owned(),
        ] {
            check(&line, "disk.img", None);
        }
    }

    #[test]
    fn a_name_with_two_digests_is_refused() {
        let twice = format!("{ONE}  disk.img\nSHA256 (disk.img) = {}\n", "0".repeat(64));
        let fault = digest_of(twice.as_bytes(), OsStr::new("disk.img")).unwrap_err();
        assert!(matches!(fault, TrustFault::ListedTwice { .. }), "{fault}");
    }
}
