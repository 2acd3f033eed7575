//! What the machine gets: a password, its hash, SSH keys, or what the image has.
//!
//! Secrets are wiped when they are dropped, and `Debug` does not show them.

use std::fmt;

use zeroize::Zeroizing;

use super::error::SeedError;
use super::ssh_key::{self, SshKey};
use crate::error::Error;

/// crypt(3) takes 512 bytes and musl 256, but cloudbase-init only 127 and PAM modules differ.
const MOST_PASSWORD_BYTES: usize = 128;
const LEAST_PASSWORD_CHARACTERS: usize = 8;

/// A password in clear text; it is hashed before it is written anywhere.
///
/// ```
/// let password = reimage::Password::from_file_bytes(b"correct horse\n".to_vec())?;
/// assert_eq!(format!("{password:?}"), "Password(redacted)");
/// # Ok::<(), reimage::Error>(())
/// ```
pub struct Password(Zeroizing<String>);

impl Password {
    /// A password as it will be typed.
    ///
    /// # Errors
    ///
    /// If it is shorter than 8 characters or longer than 128 bytes, holds a control character, or
    /// looks like a hash.
    pub fn new(password: impl Into<Zeroizing<String>>) -> Result<Self, Error> {
        let password = password.into();
        let refused = |why| Err(SeedError::Password { why }.into());
        if password.is_empty() {
            return refused("is empty");
        }
        if password.chars().any(char::is_control) {
            return refused("holds a control character or a line break");
        }
        if looks_like_hash(&password) {
            return refused("looks like a hash");
        }
        if password.chars().count() < LEAST_PASSWORD_CHARACTERS {
            return refused("is shorter than 8 characters");
        }
        if password.len() > MOST_PASSWORD_BYTES {
            return refused("is longer than 128 bytes");
        }
        Ok(Self(password))
    }

    /// The password that a file holds: one trailing line break is no part of it.
    ///
    /// # Errors
    ///
    /// As for [`Password::new`], and if the bytes are not UTF-8.
    pub fn from_file_bytes(bytes: impl Into<Zeroizing<Vec<u8>>>) -> Result<Self, Error> {
        let bytes = bytes.into();
        match std::str::from_utf8(without_line_break(&bytes)) {
            Ok(text) => Self::new(String::from(text)),
            Err(_) => Err(SeedError::Password { why: "is not UTF-8" }.into()),
        }
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(redacted)")
    }
}

/// A password hash of crypt(3) that every guest verifies: `$6$`, or `$5$`.
///
/// ```
/// let hash = "$6$................$short";
/// assert!(reimage::PasswordHash::new(String::from(hash)).is_err());
/// ```
pub struct PasswordHash(Zeroizing<String>);

impl PasswordHash {
    /// A hash as `/etc/shadow` holds it.
    ///
    /// # Errors
    ///
    /// If it is no sha512-crypt or sha256-crypt hash, or not a whole one: the account would be
    /// locked, or get the hash itself as its password.
    pub fn new(hash: impl Into<Zeroizing<String>>) -> Result<Self, Error> {
        let hash = hash.into();
        match fault_of_hash(&hash) {
            None => Ok(Self(hash)),
            Some(why) => Err(SeedError::PasswordHash { why }.into()),
        }
    }

    /// The hash that a file holds: one trailing line break is no part of it.
    ///
    /// # Errors
    ///
    /// As for [`PasswordHash::new`], and if the bytes are not UTF-8.
    pub fn from_file_bytes(bytes: impl Into<Zeroizing<Vec<u8>>>) -> Result<Self, Error> {
        let bytes = bytes.into();
        match std::str::from_utf8(without_line_break(&bytes)) {
            Ok(text) => Self::new(String::from(text)),
            Err(_) => Err(SeedError::PasswordHash { why: "is not text" }.into()),
        }
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(redacted)")
    }
}

/// What the machine gets: at least a password, a hash or a key; or nothing, by name.
///
/// ```
/// use reimage::{Credential, Password, SshKey};
/// let password = Password::new(String::from("correct horse"))?;
/// let keys = SshKey::from_file_bytes(
///     b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti ops\n",
/// )?;
/// let credential = Credential::password(password).with_ssh_keys(keys)?;
/// assert!(!credential.keeps_image());
/// # Ok::<(), reimage::Error>(())
/// ```
#[derive(Debug)]
pub struct Credential {
    pub(super) secret: Secret,
    pub(super) keys: Vec<SshKey>,
}

#[derive(Debug)]
pub(super) enum Secret {
    KeepImage,
    KeysOnly,
    Password(Password),
    Hash(PasswordHash),
}

impl Credential {
    /// A password, hashed under a fresh salt when the seed is made.
    #[must_use]
    pub fn password(password: Password) -> Self {
        Self { secret: Secret::Password(password), keys: Vec::new() }
    }

    /// A password of which only the hash is known.
    #[must_use]
    pub fn password_hash(hash: PasswordHash) -> Self {
        Self { secret: Secret::Hash(hash), keys: Vec::new() }
    }

    /// SSH keys alone; the account's old password is locked.
    ///
    /// # Errors
    ///
    /// If there is none, or more than 64 different ones.
    pub fn ssh_keys(keys: Vec<SshKey>) -> Result<Self, Error> {
        Self { secret: Secret::KeysOnly, keys: Vec::new() }.with_ssh_keys(keys)
    }

    /// Nothing: the machine comes up with what the image has. It stands alone and takes no seed.
    #[must_use]
    pub fn keep_image() -> Self {
        Self { secret: Secret::KeepImage, keys: Vec::new() }
    }

    /// The same with these SSH keys too; a key that is there already counts once.
    ///
    /// # Errors
    ///
    /// If there is none, if there are more than 64 different ones with those that are there, or if
    /// the image's credentials are kept.
    pub fn with_ssh_keys(mut self, keys: Vec<SshKey>) -> Result<Self, Error> {
        if self.keeps_image() {
            return Err(SeedError::KeptAndGiven.into());
        }
        self.keys = ssh_key::merge(self.keys, keys)?;
        Ok(self)
    }

    /// Whether the image's credentials stay as they are.
    #[must_use]
    pub fn keeps_image(&self) -> bool {
        matches!(self.secret, Secret::KeepImage)
    }
}

fn without_line_break(bytes: &[u8]) -> &[u8] {
    let line = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    if line.len() < bytes.len() { line.strip_suffix(b"\r").unwrap_or(line) } else { line }
}

/// `$id$…$…`, as crypt(5) writes all its hashes but DES.
fn looks_like_hash(text: &str) -> bool {
    let mut fields = text.split('$');
    fields.next() == Some("")
        && fields.next().is_some_and(|id| {
            (1..=8).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
        && fields.count() >= 2
}

fn fault_of_hash(hash: &str) -> Option<&'static str> {
    let (rest, digest_characters, last_values) = match hash {
        // The digest's last character holds what 6 does not divide: 512 = 85 × 6 + 2, 256 = 42 × 6 + 4.
        _ if hash.starts_with("$6$") => (&hash[3..], 86, 4),
        _ if hash.starts_with("$5$") => (&hash[3..], 43, 16),
        _ => return Some(fault_of_scheme(hash)),
    };
    let rest = match rest.strip_prefix("rounds=") {
        None => rest,
        Some(rest) => {
            let Some((rounds, rest)) = rest.split_once('$') else {
                return Some("has no digest");
            };
            if !are_rounds(rounds) {
                return Some("states rounds outside 1000 to 999999999");
            }
            rest
        }
    };
    let Some((salt, digest)) = rest.split_once('$') else {
        return Some("has no digest");
    };
    if salt.is_empty() || salt.len() > 16 {
        return Some("has a salt that is not 1 to 16 characters long");
    }
    if !salt.bytes().chain(digest.bytes()).all(|b| crypt_value(b).is_some()) {
        return Some("holds a character that is none of ./0-9A-Za-z");
    }
    if digest.len() != digest_characters {
        return Some("has a digest of the wrong length");
    }
    match digest.bytes().last().and_then(crypt_value) {
        Some(value) if value < last_values => None,
        _ => Some("has a digest that no password gives"),
    }
}

fn fault_of_scheme(hash: &str) -> &'static str {
    match hash {
        "" => "is empty",
        _ if hash.starts_with(['!', '*']) => "locks the account",
        _ if hash.starts_with("$1$") => "is md5-crypt, which is weak",
        _ if hash.starts_with("$2") => "is bcrypt, which glibc's guests do not verify",
        _ if hash.starts_with("$y$") || hash.starts_with("$gy$") || hash.starts_with("$7$") => {
            "is yescrypt or scrypt, which cloud-init may take for a plain password"
        }
        _ if hash.starts_with('$') => "is of an unknown scheme",
        _ => "is a DES hash or none at all",
    }
}

fn are_rounds(rounds: &str) -> bool {
    (4..=9).contains(&rounds.len()) && rounds.bytes().all(|b| b.is_ascii_digit()) && !rounds.starts_with('0')
}

fn crypt_value(character: u8) -> Option<u8> {
    match character {
        b'.' => Some(0),
        b'/' => Some(1),
        b'0'..=b'9' => Some(character - b'0' + 2),
        b'A'..=b'Z' => Some(character - b'A' + 12),
        b'a'..=b'z' => Some(character - b'a' + 38),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;
    use crate::error::ErrorKind;

    const DIGEST: &str =
        "svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjlO/O817G3uBnIFNJnjQJuesI68OTLiBFdcbYEdFCoEOfaS35inz1";
    const DIGEST_256: &str = "5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc8";

    #[track_caller]
    fn check<T>(outcome: Result<T, Error>, expected: Option<&str>) {
        match (outcome, expected) {
            (Ok(_), None) => {}
            (Ok(_), Some(why)) => panic!("accepted, though it {why}"),
            (Err(error), expected) => {
                assert_eq!(error.kind(), ErrorKind::Credentials);
                let cause = error.source().unwrap().to_string();
                let why = expected.unwrap_or_else(|| panic!("refused: {cause}"));
                assert!(cause.ends_with(why), "{cause:?} does not say {why:?}");
            }
        }
    }

    #[test]
    fn a_password_is_refused_for_the_reason_that_is_true() {
        let long = "x".repeat(129);
        let table: &[(&[u8], Option<&str>)] = &[
            (b"correct horse", None),
            (b"correct horse\n", None),
            (b"correct horse\r\n", None),
            (b" spaces stay ", None),
            ("пароль №1".as_bytes(), None),
            (&[b'x'; 128], None),
            (b"$HOME is where", None),
            (b"", Some("is empty")),
            (b"\n", Some("is empty")),
            (b"correct horse\n\n", Some("line break")),
            (b"correct horse\r", Some("line break")),
            (b"correct\0horse", Some("line break")),
            ("correct\u{85}horse".as_bytes(), Some("line break")),
            (b"seven77", Some("shorter than 8 characters")),
            ("шесть6".as_bytes(), Some("shorter than 8 characters")),
            (long.as_bytes(), Some("longer than 128 bytes")),
            (b"\xff\xfe\xfd1234567", Some("is not UTF-8")),
            (b"$6$salt$digest", Some("looks like a hash")),
            (b"$y$j9T$salt$digest", Some("looks like a hash")),
        ];
        for (bytes, expected) in table {
            check(Password::from_file_bytes(bytes.to_vec()), *expected);
        }
    }

    #[test]
    fn a_hash_is_refused_for_the_reason_that_is_true() {
        let bad_end = format!("$6$saltstring${}z", &DIGEST[..85]);
        let table: &[(String, Option<&str>)] = &[
            (format!("$6$saltstring${DIGEST}"), None),
            (format!("$6$saltstring${DIGEST}\n"), None),
            (format!("$6$rounds=10000$saltstring${DIGEST}"), None),
            (format!("$5$saltstring${DIGEST_256}"), None),
            (format!("$6$saltstring${DIGEST}:"), Some("none of ./0-9A-Za-z")),
            (format!("$6$saltstring${DIGEST}\n\n"), Some("none of ./0-9A-Za-z")),
            (format!("$6$saltstring${DIGEST_256}"), Some("wrong length")),
            (format!("$6$12345678901234567${DIGEST}"), Some("1 to 16 characters long")),
            (format!("$6$${DIGEST}"), Some("1 to 16 characters long")),
            (format!("$6$rounds=999$salt${DIGEST}"), Some("999999999")),
            (format!("$6$rounds=05000$salt${DIGEST}"), Some("999999999")),
            (String::from("$6$rounds=5000"), Some("has no digest")),
            (String::from("$6$salt"), Some("has no digest")),
            (bad_end, Some("no password gives")),
            (String::new(), Some("is empty")),
            (String::from("!"), Some("locks the account")),
            (String::from("*"), Some("locks the account")),
            (format!("!$6$saltstring${DIGEST}"), Some("locks the account")),
            (String::from("$1$salt$digest"), Some("weak")),
            (String::from("$2b$10$digest"), Some("do not verify")),
            (String::from("$y$j9T$salt$digest"), Some("plain password")),
            (String::from("$9$salt$digest"), Some("unknown scheme")),
            (String::from("ab1OZ7mlS4Mlw"), Some("none at all")),
        ];
        for (hash, expected) in table {
            check(PasswordHash::from_file_bytes(hash.clone().into_bytes()), *expected);
        }
    }

    #[test]
    fn no_debug_output_shows_a_secret() {
        let hash = format!("$6$saltstring${DIGEST}");
        let shown = [
            format!("{:?}", Credential::password(Password::new(String::from("correct horse")).unwrap())),
            format!("{:?}", Credential::password_hash(PasswordHash::new(hash).unwrap())),
            format!("{:?}", Password::new(String::from("$6$hidden$hidden")).unwrap_err()),
            format!("{:?}", PasswordHash::new(String::from("$1$hidden$hidden")).unwrap_err()),
        ];
        for text in shown {
            for secret in ["horse", "svn8", "hidden"] {
                assert!(!text.contains(secret), "{text}");
            }
        }
    }

    #[test]
    fn what_keeps_the_image_takes_no_keys() {
        check(Credential::keep_image().with_ssh_keys(Vec::new()), Some("yet others were given"));
        check(Credential::ssh_keys(Vec::new()), Some("1 to 64 are taken"));
    }
}
