//! OpenPGP signatures, as gpgv judges them.
//!
//! gpgv ends with 0 also where the key has expired or was revoked, and where the digest is SHA-1: what counts are the
//! lines that it writes to `--status-fd` (doc/DETAILS of GnuPG). It gets copies of the very bytes that are used
//! afterwards, in memory, and no home folder.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::ExitStatus;

use super::fault::TrustFault;
use crate::sys::program::{self, Limits, inherited_name, memory_file};

/// gpgv needs milliseconds; a message that unpacks to more than this is no list.
const LIMITS: Limits = Limits { cpu_seconds: 30, file_bytes: 8 << 20 };

/// The first line of a text with its signature around it.
const CLEAR_SIGNED: &[u8] = b"-----BEGIN PGP SIGNED MESSAGE-----";

/// What is signed, and where the signature is.
#[derive(Clone, Copy)]
pub(super) enum Signed<'a> {
    /// In the same text.
    Inside(&'a [u8]),
    /// In a file of its own.
    Beside { signature: &'a [u8], list: &'a [u8] },
}

/// A good signature.
#[derive(Debug)]
pub(super) struct Verified {
    /// The fingerprint of the key that made it.
    pub(super) signer: String,
    /// The text that was signed, where the signature was around it.
    pub(super) text: Option<Vec<u8>>,
}

/// What is wrong with a signature.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum OpenPgpFault {
    #[error("does not belong to this list")]
    Bad,
    #[error("is by the key {key}, which is not in the keyring")]
    UnknownKey { key: String },
    #[error("is by a key that has expired ({key})")]
    ExpiredKey { key: String },
    #[error("is by a key that was revoked ({key})")]
    RevokedKey { key: String },
    #[error("has expired")]
    Expired,
    #[error("uses a digest that is broken, MD5, SHA-1 or RIPEMD-160")]
    WeakDigest,
    #[error("is none that gpgv understands")]
    Malformed,
    #[error("could not be judged: gpgv {0}")]
    Unjudged(String),
}

impl OpenPgpFault {
    pub(super) fn hint(&self) -> &'static str {
        match self {
            Self::Bad => "fetch the list and its signature again from who publishes the image",
            Self::UnknownKey { .. } => "give the publisher's keyring with --keyring",
            Self::ExpiredKey { .. } | Self::RevokedKey { .. } => "fetch the publisher's keyring as it is now",
            Self::Expired | Self::WeakDigest => "fetch the list and its signature as they are now",
            Self::Malformed => "fetch the signature again: it is OpenPGP's, detached or around the list",
            Self::Unjudged(_) => "try gpgv by hand: gpgv --keyring KEYRING SIGNATURE LIST",
        }
    }
}

/// Whether a text has its signature around it.
pub(super) fn is_clear_signed(text: &[u8]) -> bool {
    text.starts_with(CLEAR_SIGNED)
}

/// Lets gpgv look at a signature.
pub(super) fn verify(gpgv: &Path, keyring: &[u8], signed: Signed<'_>) -> Result<Verified, TrustFault> {
    let file = |bytes| memory_file(bytes).map_err(TrustFault::NoGpgv);
    let (signature, list) = match signed {
        Signed::Inside(text) => (text, None),
        Signed::Beside { signature, list } => (signature, Some(list)),
    };
    let (keyring, signature, status, output) = (file(keyring)?, file(signature)?, file(b"")?, file(b"")?);
    let list = list.map(file).transpose()?;
    // With a keyring that is named, gpgv looks for nothing in the folder.
    let mut words: Vec<OsString> = vec!["--homedir".into(), "/nonexistent".into(), "--keyring".into()];
    words.extend([
        inherited_name(&keyring).into(),
        "--status-fd".into(),
        status.as_raw_fd().to_string().into(),
    ]);
    words.extend(["--output".into(), inherited_name(&output).into(), inherited_name(&signature).into()]);
    words.extend(list.as_ref().map(|list| inherited_name(list).into()));
    let files: Vec<_> = [&keyring, &signature, &status, &output].into_iter().chain(&list).collect();
    let ended = program::run(gpgv, &words, &files, LIMITS).map_err(TrustFault::NoGpgv)?;
    let said = content(status).map_err(TrustFault::NoGpgv)?;
    let texts = if list.is_some() { 0 } else { 1 };
    let signer = judge(&String::from_utf8_lossy(&said), ended, texts).map_err(TrustFault::OpenPgp)?;
    let text = match list {
        Some(_) => None,
        None => Some(content(output).map_err(TrustFault::NoGpgv)?),
    };
    Ok(Verified { signer, text })
}

fn content(mut file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    // The program could write no more than its limit.
    file.take(LIMITS.file_bytes).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What gpgv said of one signature.
#[derive(Default)]
struct Opinion<'a> {
    good: bool,
    /// Fingerprint, and whether the digest is one to rely on.
    valid: Option<(&'a str, bool)>,
    fault: Option<OpenPgpFault>,
}

/// The fingerprint of the key that made a good signature.
///
/// A signature by an unknown key does not spoil a good one beside it: lists are signed by old and new keys together.
fn judge(said: &str, ended: ExitStatus, texts: usize) -> Result<String, OpenPgpFault> {
    let mut opinions: Vec<Opinion<'_>> = Vec::new();
    let (mut seen_texts, mut trouble) = (0, None);
    for line in said.lines() {
        let Some(line) = line.strip_prefix("[GNUPG:] ") else { continue };
        let mut words = line.split(' ');
        let word = words.next().unwrap_or_default();
        match word {
            "NEWSIG" => opinions.push(Opinion::default()),
            "PLAINTEXT" => seen_texts += 1,
            "NODATA" | "UNEXPECTED" | "ERROR" | "FAILURE" | "BADARMOR" => {
                trouble = Some(OpenPgpFault::Malformed)
            }
            _ => {}
        }
        if let Some(opinion) = opinions.last_mut() {
            opinion.hear(word, &words.collect::<Vec<_>>());
        }
    }
    if opinions.iter().any(|opinion| opinion.fault == Some(OpenPgpFault::Bad)) {
        return Err(OpenPgpFault::Bad);
    }
    let sound = |opinion: &&Opinion<'_>| opinion.good && opinion.fault.is_none();
    // Of several the one with a digest to rely on.
    let signer =
        opinions.iter().filter(sound).filter_map(|opinion| opinion.valid).max_by_key(|(_, strong)| *strong);
    match (signer, trouble) {
        (_, Some(trouble)) => Err(trouble),
        // One text and no more, and the one that is asked about.
        (Some(_), None) if seen_texts != texts => Err(OpenPgpFault::Malformed),
        (Some((_, false)), None) => Err(OpenPgpFault::WeakDigest),
        (Some((signer, true)), None) => {
            let unknown =
                |opinion: &Opinion<'_>| matches!(opinion.fault, Some(OpenPgpFault::UnknownKey { .. }));
            // gpgv ends with 2 where it lacks a key.
            let expected = if opinions.iter().any(unknown) { Some(2) } else { Some(0) };
            match ended.code() {
                code if code == expected => Ok(signer.to_owned()),
                Some(code) => Err(OpenPgpFault::Unjudged(format!("ended with {code}"))),
                None => Err(OpenPgpFault::Unjudged("was ended".into())),
            }
        }
        (None, None) => Err(opinions
            .into_iter()
            .find_map(|opinion| opinion.fault)
            .unwrap_or_else(|| OpenPgpFault::Unjudged(format!("said nothing of a signature ({ended})")))),
    }
}

impl<'a> Opinion<'a> {
    fn hear(&mut self, word: &str, words: &[&'a str]) {
        let key = || (*words.first().unwrap_or(&"?")).to_owned();
        let fault = match word {
            "GOODSIG" => {
                self.good = true;
                return;
            }
            "VALIDSIG" => {
                // Fingerprint, date, times (2), version, reserved, key and digest algorithm, class, primary key.
                let weak = words.get(7).is_none_or(|digest| ["1", "2", "3"].contains(digest));
                self.valid = words.get(9).or(words.first()).map(|signer| (*signer, !weak));
                return;
            }
            "BADSIG" => OpenPgpFault::Bad,
            "EXPSIG" => OpenPgpFault::Expired,
            "EXPKEYSIG" => OpenPgpFault::ExpiredKey { key: key() },
            "REVKEYSIG" => OpenPgpFault::RevokedKey { key: key() },
            // The sixth word is the reason: 9 is a key that is not there.
            "ERRSIG" if words.get(5) == Some(&"9") => OpenPgpFault::UnknownKey { key: key() },
            "ERRSIG" => OpenPgpFault::Malformed,
            _ => return,
        };
        self.fault.get_or_insert(fault);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt as _;

    const SIGNER: &str = "AA31BD894C678D2783E6851BE2A5803D4D10A774";
    const GOOD: &str = "[GNUPG:] NEWSIG good@example.org
[GNUPG:] KEY_CONSIDERED AA31BD894C678D2783E6851BE2A5803D4D10A774 0
[GNUPG:] GOODSIG E2A5803D4D10A774 good <good@example.org>
[GNUPG:] VALIDSIG AA31BD894C678D2783E6851BE2A5803D4D10A774 2024-01-02 1704153600 0 4 0 22 8 00 AA31BD894C678D2783E6851BE2A5803D4D10A774
";
    const UNKNOWN: &str = "[GNUPG:] NEWSIG other@example.org
[GNUPG:] ERRSIG CCBB4E5672C21B13 22 8 00 1704153600 9 0D1A0978F3F80C1B10BE1CB5CCBB4E5672C21B13
[GNUPG:] NO_PUBKEY CCBB4E5672C21B13
";

    #[track_caller]
    fn check(said: &str, code: i32, texts: usize, expected: Result<(), OpenPgpFault>) {
        let found = judge(said, ExitStatus::from_raw(code << 8), texts);
        assert_eq!(found, expected.map(|()| SIGNER.to_owned()), "{said}");
    }

    #[test]
    fn a_good_signature_counts_only_with_the_exit_code_that_belongs_to_it() {
        check(GOOD, 0, 0, Ok(()));
        check(&format!("{UNKNOWN}{GOOD}"), 2, 0, Ok(()));
        check(&format!("{GOOD}{UNKNOWN}"), 2, 0, Ok(()));
        check(&format!("{GOOD}{UNKNOWN}"), 0, 0, Err(OpenPgpFault::Unjudged("ended with 0".into())));
        check(GOOD, 2, 0, Err(OpenPgpFault::Unjudged("ended with 2".into())));
        let killed = judge(GOOD, ExitStatus::from_raw(9), 0);
        assert_eq!(killed, Err(OpenPgpFault::Unjudged("was ended".into())));
    }

    #[test]
    fn what_is_not_said_to_be_good_and_valid_is_no_signature() {
        let without = |word: &str| {
            GOOD.lines()
                .filter(|line| !line.contains(word))
                .map(|line| format!("{line}\n"))
                .collect::<String>()
        };
        for said in ["", &without("GOODSIG"), &without("VALIDSIG"), &GOOD.replace("[GNUPG:]", "gpgv:")] {
            let found = judge(said, ExitStatus::from_raw(0), 0);
            assert!(matches!(found, Err(OpenPgpFault::Unjudged(_))), "{found:?}: {said}");
        }
        let key = || "E2A5803D4D10A774".to_owned();
        for (word, fault) in [
            ("EXPKEYSIG", OpenPgpFault::ExpiredKey { key: key() }),
            ("REVKEYSIG", OpenPgpFault::RevokedKey { key: key() }),
            ("EXPSIG", OpenPgpFault::Expired),
            ("BADSIG", OpenPgpFault::Bad),
        ] {
            check(&GOOD.replace("GOODSIG", word), 0, 0, Err(fault));
        }
        check(UNKNOWN, 2, 0, Err(OpenPgpFault::UnknownKey { key: "CCBB4E5672C21B13".into() }));
    }

    #[test]
    fn a_bad_signature_spoils_a_good_one() {
        let bad = "[GNUPG:] NEWSIG\n[GNUPG:] BADSIG E2A5803D4D10A774 good\n";
        check(&format!("{GOOD}{bad}"), 0, 0, Err(OpenPgpFault::Bad));
        check(&format!("{bad}{GOOD}"), 1, 0, Err(OpenPgpFault::Bad));
    }

    #[test]
    fn there_is_one_text_around_which_a_signature_is_and_none_beside_one() {
        let text = "[GNUPG:] PLAINTEXT 74 0 \n";
        check(&format!("{text}{GOOD}"), 0, 1, Ok(()));
        check(&format!("{text}{GOOD}"), 0, 0, Err(OpenPgpFault::Malformed));
        check(GOOD, 0, 1, Err(OpenPgpFault::Malformed));
        check(&format!("{text}{text}{GOOD}"), 0, 1, Err(OpenPgpFault::Malformed));
        check(
            &format!("{text}{GOOD}[GNUPG:] ERROR proc_pkt.plaintext 89\n"),
            0,
            1,
            Err(OpenPgpFault::Malformed),
        );
    }

    #[test]
    fn a_digest_that_is_broken_counts_for_nothing() {
        for digest in ["1", "2", "3"] {
            let weak = GOOD.replace(" 22 8 00", &format!(" 22 {digest} 00"));
            check(&weak, 0, 0, Err(OpenPgpFault::WeakDigest));
            check(&format!("{weak}{GOOD}"), 0, 0, Ok(()));
        }
        check(
            &GOOD.replace(" 22 8 00 AA31BD894C678D2783E6851BE2A5803D4D10A774", ""),
            0,
            0,
            Err(OpenPgpFault::WeakDigest),
        );
    }

    const LIST: &[u8] = include_bytes!("../../testdata/trust/SHA256SUMS");
    const KEYRING: &[u8] = include_bytes!("../../testdata/trust/keyring.gpg");

    const MADE_BY: &str = include_str!("../../testdata/trust/good.fingerprint").trim_ascii();

    fn fixture(ending: &str) -> Vec<u8> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/trust/SHA256SUMS");
        std::fs::read(format!("{folder}.{ending}")).unwrap()
    }

    fn beside(signature: &[u8], list: &[u8]) -> Result<Verified, TrustFault> {
        verify(Path::new("/usr/bin/gpgv"), KEYRING, Signed::Beside { signature, list })
    }

    #[test]
    #[ignore = "needs gpgv"]
    fn gpgv_finds_good_signatures_good_and_gives_the_text_within() {
        for ending in ["gpg", "armoured", "both"] {
            let verified = beside(&fixture(ending), LIST).unwrap();
            assert_eq!((verified.signer.as_str(), verified.text), (MADE_BY, None), "{ending}");
        }
        let clear = fixture("clear");
        let around = [b"evil  image\n".as_slice(), &clear, b"evil  image\n"].concat();
        assert!(is_clear_signed(&clear) && !is_clear_signed(&around));
        for text in [clear, around] {
            let verified = verify(Path::new("/usr/bin/gpgv"), KEYRING, Signed::Inside(&text)).unwrap();
            assert_eq!((verified.signer.as_str(), verified.text.as_deref()), (MADE_BY, Some(LIST)));
        }
    }

    #[test]
    #[ignore = "needs gpgv"]
    fn gpgv_finds_fault_with_every_other_signature() {
        for (ending, part) in [
            ("other", "which is not in the keyring"),
            ("expired", "by a key that has expired"),
            ("revoked", "was revoked"),
            ("lapsed", "has expired"),
            ("sha1", "SHA-1"),
            ("inside", ""),
            ("clear", ""),
        ] {
            let fault = beside(&fixture(ending), LIST).unwrap_err();
            assert!(
                matches!(fault, TrustFault::OpenPgp(_)) && fault.to_string().contains(part),
                "{ending}: {fault}"
            );
        }
        let good = fixture("gpg");
        let mut changed = LIST.to_vec();
        changed[3] ^= 1;
        for (signature, list) in
            [(&good[..], &changed[..]), (&good, b""), (b"", LIST), (&good[..70], LIST), (LIST, LIST)]
        {
            assert!(matches!(beside(signature, list), Err(TrustFault::OpenPgp(_))));
        }
        let clear = fixture("clear");
        for text in [
            &clear[..clear.len() - 80],
            &[&clear[..], &clear].concat(),
            b"-----BEGIN PGP SIGNED MESSAGE-----\n",
        ] {
            let found = verify(Path::new("/usr/bin/gpgv"), KEYRING, Signed::Inside(text));
            assert!(matches!(found, Err(TrustFault::OpenPgp(_))), "{found:?}");
        }
    }

    #[test]
    fn without_gpgv_nothing_is_believed() {
        for program in ["/nonexistent/gpgv", "/bin/true"] {
            let found = verify(Path::new(program), KEYRING, Signed::Inside(b"text"));
            assert!(found.is_err(), "{program}");
        }
    }
}
