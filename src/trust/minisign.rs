//! A minisign signature over bytes in memory.

use base64ct::{Base64, Encoding as _};
use minisign_verify::{Error as Verdict, PublicKey, Signature};

use crate::request::TrustKey;

/// What is wrong with a signature.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum MinisignFault {
    #[error("is not one that minisign writes")]
    Malformed,
    #[error("is by the key {id}, which is not one of the trusted keys")]
    OtherKey { id: String },
    #[error("is in minisign's legacy form")]
    Legacy,
    #[error("does not belong to these bytes: the manifest, or the signature, is not what was signed")]
    Wrong,
}

impl MinisignFault {
    pub(super) fn hint(&self) -> &'static str {
        match self {
            Self::Malformed => {
                "fetch the signature again: it is the .minisig file that `minisign -Sm` writes"
            }
            Self::OtherKey { .. } => "give that key with --trust-key if it is the publisher's",
            Self::Legacy => {
                "have the manifest signed again with minisign 0.11 or newer, or with `minisign -S -H`"
            }
            Self::Wrong => "fetch the manifest and its signature again from who publishes the image",
        }
    }
}

/// Which of the keys has signed these bytes.
///
/// Only prehashed signatures count. The mark that tells them from the legacy ones is not covered by the signature, so
/// that one form leaves nothing to confuse.
pub(super) fn signer<'a>(
    bytes: &[u8],
    signature: &[u8],
    keys: &'a [TrustKey],
) -> Result<&'a TrustKey, MinisignFault> {
    let text = std::str::from_utf8(signature).map_err(|_| MinisignFault::Malformed)?;
    let signature = Signature::decode(text).map_err(|_| MinisignFault::Malformed)?;
    let mut fault = MinisignFault::OtherKey { id: signer_id(text) };
    for key in keys {
        let verdict = PublicKey::from_base64(&key.to_base64())
            .and_then(|public_key| public_key.verify(bytes, &signature, false));
        match verdict {
            Ok(()) => return Ok(key),
            Err(Verdict::UnexpectedKeyId) => {}
            Err(Verdict::UnexpectedAlgorithm) => fault = MinisignFault::Legacy,
            Err(_) => fault = MinisignFault::Wrong,
        }
    }
    Err(fault)
}

/// The id of the key by which a well-formed signature says that it was made.
fn signer_id(text: &str) -> String {
    let mut bytes = [0; 74];
    let line = text.lines().nth(1).unwrap_or_default();
    let _ = Base64::decode(line, &mut bytes);
    let id: [u8; 8] = bytes[2..10].try_into().expect("eight bytes");
    format!("{:016X}", u64::from_le_bytes(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNED: &[u8] = include_bytes!("../../testdata/trust/signed.txt");
    const SIGNATURE: &str = include_str!("../../testdata/trust/signed.txt.minisig");
    const LEGACY: &str = include_str!("../../testdata/trust/signed.txt.legacy.minisig");
    const BY_OTHER: &str = include_str!("../../testdata/trust/signed.txt.other.minisig");

    fn key() -> TrustKey {
        TrustKey::parse(include_str!("../../testdata/trust/minisign.pub")).unwrap()
    }

    fn other_key() -> TrustKey {
        TrustKey::parse(include_str!("../../testdata/trust/other.pub")).unwrap()
    }

    #[track_caller]
    fn check(bytes: &[u8], signature: &str, expected: Result<&TrustKey, MinisignFault>) {
        assert_eq!(signer(bytes, signature.as_bytes(), &[key()]), expected);
    }

    #[test]
    fn a_signature_by_one_of_the_keys_names_the_key() {
        check(SIGNED, SIGNATURE, Ok(&key()));
        let keys = [other_key(), key()];
        assert_eq!(signer(SIGNED, SIGNATURE.as_bytes(), &keys), Ok(&keys[1]));
        assert_eq!(signer(SIGNED, BY_OTHER.as_bytes(), &keys), Ok(&keys[0]));
    }

    #[test]
    fn another_key_is_named_by_its_id() {
        check(SIGNED, BY_OTHER, Err(MinisignFault::OtherKey { id: other_key().id() }));
        assert!(signer(SIGNED, SIGNATURE.as_bytes(), &[]).is_err(), "nobody is trusted");
    }

    #[test]
    fn a_signature_fits_no_other_bytes() {
        for place in 0..SIGNED.len() {
            let mut changed = SIGNED.to_vec();
            changed[place] ^= 1;
            check(&changed, SIGNATURE, Err(MinisignFault::Wrong));
        }
        check(&SIGNED[1..], SIGNATURE, Err(MinisignFault::Wrong));
        check(&[SIGNED, b"\n"].concat(), SIGNATURE, Err(MinisignFault::Wrong));
        check(b"", SIGNATURE, Err(MinisignFault::Wrong));
    }

    #[test]
    fn a_changed_signature_is_no_signature() {
        // But for the untrusted comment, every line counts: the trusted comment is signed too.
        let from = SIGNATURE.find('\n').unwrap();
        let mut refused = 0;
        for place in from..SIGNATURE.trim_end().len() {
            let mut changed = SIGNATURE.as_bytes().to_vec();
            changed[place] = if changed[place] == b'A' { b'B' } else { b'A' };
            refused += usize::from(signer(SIGNED, &changed, &[key()]).is_err());
        }
        assert_eq!(refused, SIGNATURE.trim_end().len() - from);
        for end in 0..SIGNATURE.trim_end().len() {
            assert!(signer(SIGNED, &SIGNATURE.as_bytes()[..end], &[key()]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn the_legacy_form_is_refused_whatever_the_bytes() {
        check(SIGNED, LEGACY, Err(MinisignFault::Legacy));
        check(b"", LEGACY, Err(MinisignFault::Legacy));
    }
}
