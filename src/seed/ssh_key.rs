//! Public SSH keys: read strictly, written anew.
//!
//! `ssh-key` takes a line break within a comment, which would smuggle a second key into
//! `authorized_keys`; so a line is looked at before it is parsed, and never passed on as it came.

use std::fmt;

use ssh_key::public::KeyData;
use ssh_key::{HashAlg, PublicKey};

use super::error::SeedError;
use crate::error::Error;

const MOST_LINE_BYTES: usize = 16 << 10;
const MOST_KEYS: usize = 64;
const LEAST_RSA_BITS: usize = 2048;

const ALGORITHMS: [&str; 7] = [
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// A public SSH key that `authorized_keys` may hold.
///
/// ```
/// let line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti ops";
/// let key = reimage::SshKey::parse(line)?;
/// assert_eq!(key.to_string(), line);
/// assert_eq!(key.fingerprint(), "SHA256:UCUiLr7Pjs9wFFJMDByLgc3NrtdU344OgUM45wZPcIQ");
/// # Ok::<(), reimage::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshKey {
    data: KeyData,
    line: String,
}

impl SshKey {
    /// A key from one line: algorithm, base64, and perhaps a comment.
    ///
    /// # Errors
    ///
    /// If the line is anything else than a plain public key that a current sshd takes.
    pub fn parse(line: &str) -> Result<Self, Error> {
        Ok(Self::parse_line(1, line)?)
    }

    /// The keys of a file, one a line; blank lines and lines that begin with `#` are passed over.
    ///
    /// # Errors
    ///
    /// If any other line is no key as [`SshKey::parse`] takes it, or if there are none or more
    /// than 64 different ones.
    pub fn from_file_bytes(bytes: &[u8]) -> Result<Vec<Self>, Error> {
        let Ok(text) = std::str::from_utf8(bytes) else {
            return Err(SeedError::SshKey { line: 1, why: "is not UTF-8" }.into());
        };
        let mut keys = Vec::new();
        for (line, number) in text.split('\n').zip(1..) {
            let line = line.strip_suffix('\r').unwrap_or(line).trim_matches([' ', '\t']);
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            keys.push(Self::parse_line(number, line)?);
            if keys.len() > MOST_KEYS {
                keys = merge(Vec::new(), keys)?;
            }
        }
        Ok(merge(Vec::new(), keys)?)
    }

    /// The fingerprint as `ssh-keygen -l` prints it: `SHA256:` and base64.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        self.data.fingerprint(HashAlg::Sha256).to_string()
    }

    pub(super) fn as_line(&self) -> &str {
        &self.line
    }

    fn parse_line(number: usize, line: &str) -> Result<Self, SeedError> {
        let refused = |why| SeedError::SshKey { line: number, why };
        if line.len() > MOST_LINE_BYTES {
            return Err(refused("is longer than 16 KiB"));
        }
        if line.contains("PRIVATE KEY") {
            return Err(refused("is a private key"));
        }
        if line.chars().any(breaks_a_line) {
            return Err(refused("holds a control character"));
        }
        let mut words = line.split([' ', '\t']).filter(|word| !word.is_empty());
        let algorithm = words.next().unwrap_or_default();
        check_algorithm(algorithm, line).map_err(refused)?;
        let base64 = words.next().ok_or_else(|| refused("has no key after its algorithm"))?;
        let key = PublicKey::from_openssh(&format!("{algorithm} {base64}")).map_err(|error| {
            refused(match error {
                ssh_key::Error::AlgorithmUnknown => "is of another algorithm than it says",
                _ => "is damaged",
            })
        })?;
        if key.key_data().rsa().is_some_and(|rsa| bits(rsa.n.as_positive_bytes()) < LEAST_RSA_BITS) {
            return Err(refused("is an RSA key of less than 2048 bits"));
        }
        let mut line = key.to_openssh().map_err(|_| refused("is damaged"))?;
        for word in words {
            line.push(' ');
            line.push_str(word);
        }
        Ok(Self { data: KeyData::from(key), line })
    }
}

impl fmt::Display for SshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

/// All keys of both, each once, in order.
pub(super) fn merge(mut keys: Vec<SshKey>, more: Vec<SshKey>) -> Result<Vec<SshKey>, SeedError> {
    for key in more {
        if !keys.iter().any(|known| known.data == key.data) {
            keys.push(key);
        }
    }
    match keys.len() {
        1..=MOST_KEYS => Ok(keys),
        count => Err(SeedError::SshKeyCount { count, most: MOST_KEYS }),
    }
}

/// Control characters but the tab, and the separators that some readers take for line breaks.
fn breaks_a_line(character: char) -> bool {
    (character.is_control() && character != '\t') || matches!(character, '\u{2028}' | '\u{2029}')
}

fn check_algorithm(algorithm: &str, line: &str) -> Result<(), &'static str> {
    if ALGORITHMS.contains(&algorithm) {
        return Ok(());
    }
    if algorithm.contains("-cert-v0") {
        return Err("is a certificate");
    }
    if algorithm == "ssh-dss" {
        return Err("is a DSA key, which no current sshd takes");
    }
    let has_options = line.split([' ', '\t']).any(|word| ALGORITHMS.contains(&word) || word == "ssh-dss");
    Err(if has_options || algorithm.contains('=') {
        "has options before it"
    } else {
        "is of an unknown algorithm, or no public key"
    })
}

fn bits(positive: Option<&[u8]>) -> usize {
    let Some([first, rest @ ..]) = positive else { return 0 };
    let leading = usize::try_from(first.leading_zeros()).expect("a byte has at most 8 bits");
    (8 - leading) + rest.len() * 8
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";

    #[track_caller]
    fn check(file: &str, expected: Result<&[&str], &str>) {
        let outcome = SshKey::from_file_bytes(file.as_bytes())
            .map(|keys| keys.iter().map(SshKey::to_string).collect::<Vec<_>>())
            .map_err(|error| error.source().unwrap().to_string());
        match (outcome, expected) {
            (Ok(lines), Ok(expected)) => assert_eq!(lines, expected),
            (Err(cause), Err(why)) => assert!(cause.ends_with(why), "{cause:?} does not say {why:?}"),
            (outcome, expected) => panic!("{outcome:?} instead of {expected:?}"),
        }
    }

    fn of_testdata(name: &str) -> String {
        std::fs::read_to_string(format!("{}/testdata/seed/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    #[test]
    fn a_file_of_keys_is_read_line_by_line_and_written_anew() {
        let with_comment = format!("{ED25519} ops at example");
        check(ED25519, Ok(&[ED25519]));
        check(&format!("# ours\n\n  {ED25519}  ops \t at   example \r\n"), Ok(&[&with_comment]));
        check(&format!("{with_comment}\n{ED25519} twice\n"), Ok(&[&with_comment]));
        let all = of_testdata("ssh-keys-accepted.pub");
        check(&all, Ok(&all.lines().collect::<Vec<_>>()));
    }

    #[test]
    fn a_line_is_refused_for_the_reason_that_is_true() {
        let base64 = ED25519.split(' ').nth(1).unwrap();
        let long = format!("{ED25519} {}", "x".repeat(MOST_LINE_BYTES));
        let table = [
            ("", "1 to 64 are taken"),
            ("# nothing\n", "1 to 64 are taken"),
            ("-----BEGIN OPENSSH PRIVATE KEY-----\n", "is a private key"),
            (&format!("command=\"true\" {ED25519}"), "has options before it"),
            (&format!("restrict {ED25519}"), "has options before it"),
            (&format!("ssh-ed25519-cert-v01@openssh.com {base64}"), "is a certificate"),
            (&format!("ssh-dss {base64}"), "is a DSA key, which no current sshd takes"),
            (&format!("ssh-unknown {base64}"), "no public key"),
            (&format!("ssh-rsa {base64}"), "is of another algorithm than it says"),
            ("ssh-ed25519", "has no key after its algorithm"),
            ("ssh-ed25519 AAAA", "is damaged"),
            (&format!("ssh-ed25519 {}", &base64[..base64.len() - 4]), "is damaged"),
            (&format!("{ED25519}AAAA"), "is damaged"),
            (&format!("{ED25519} a\rb"), "holds a control character"),
            (&format!("{ED25519} a\u{1b}b"), "holds a control character"),
            (&format!("{ED25519} a\u{85}b"), "holds a control character"),
            (&format!("{ED25519} a\u{2028}b"), "holds a control character"),
            (&long, "is longer than 16 KiB"),
            (&of_testdata("ssh-key-rsa-1024.pub"), "is an RSA key of less than 2048 bits"),
        ];
        for (file, why) in table {
            check(file, Err(why));
        }
        assert!(SshKey::parse(&format!("{ED25519} a\n{ED25519}")).is_err());
        assert!(SshKey::from_file_bytes(b"\xff").is_err());
    }

    #[test]
    fn the_sixty_fifth_key_is_refused() {
        use ssh_key::public::Ed25519PublicKey;
        let keys = |count: u8| {
            let key = |n| PublicKey::from(KeyData::Ed25519(Ed25519PublicKey([n; 32])));
            (0..count).map(|n| key(n).to_openssh().unwrap() + "\n").collect::<String>()
        };
        assert_eq!(SshKey::from_file_bytes(keys(64).repeat(2).as_bytes()).unwrap().len(), 64);
        check(&keys(65), Err("65 SSH keys were given where 1 to 64 are taken"));
    }
}
