//! sha512-crypt: the one strong hash that every guest from CentOS 7 to musl verifies.

use sha_crypt::{PasswordHasher, ShaCrypt};
use zeroize::Zeroizing;

use super::credential::{Password, PasswordHash};
use super::error::SeedError;

/// Bytes of salt that encode to 16 characters. crypt(3) cuts a longer salt off and then never
/// finds the string equal: the account would be locked.
const SALT_BYTES: usize = 12;
const SALT_CHARACTERS: usize = 16;

/// The `$6$` hash of a password under a fresh salt, at crypt(3)'s default of 5000 rounds.
pub(super) fn sha512_crypt(password: &Password) -> Result<PasswordHash, SeedError> {
    let mut salt = [0; SALT_BYTES];
    getrandom::fill(&mut salt)
        .map_err(|error| SeedError::Io { doing: "reading random bytes", source: error.into() })?;
    Ok(with_salt(password, salt))
}

fn with_salt(password: &Password, salt: [u8; SALT_BYTES]) -> PasswordHash {
    let hashed = ShaCrypt::SHA512
        .hash_password_with_salt(password.expose().as_bytes(), &salt)
        .expect("sha512-crypt takes every password and a salt of 12 bytes");
    let hashed = Zeroizing::new(String::from(hashed));
    let rest = hashed.strip_prefix("$6$rounds=5000$").expect("sha-crypt states its default rounds");
    let hash = PasswordHash::new(format!("$6${rest}")).expect("the hash is well formed");
    let salt_characters = rest.find('$').expect("the salt ends");
    assert_eq!(salt_characters, SALT_CHARACTERS, "crypt(3) takes 16 characters of salt");
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_what_crypt_3_gives_for_the_same_salt() {
        for (password, expected) in [
            ("correct horse", include_str!("../../testdata/seed/sha512-crypt-ascii.txt")),
            ("пароль 🔑 $HOME", include_str!("../../testdata/seed/sha512-crypt-unicode.txt")),
        ] {
            let password = Password::new(String::from(password)).unwrap();
            assert_eq!(with_salt(&password, [0; SALT_BYTES]).expose(), expected.trim_end());
        }
    }

    #[test]
    fn two_hashes_of_one_password_differ() {
        let password = Password::new(String::from("correct horse")).unwrap();
        let [first, second] = [(); 2].map(|()| sha512_crypt(&password).unwrap());
        assert_ne!(first.expose(), second.expose());
    }
}
