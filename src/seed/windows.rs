//! What Windows and cloudbase-init take: checked here, because they would refuse it when nobody looks.
//!
//! A password that Windows refuses leaves the account with a random one or the image's.

use zeroize::Zeroizing;

use super::credential::{Credential, Secret};
use super::error::SeedError;
use crate::request::OldCredentials;

/// The account that cloudbase-init uses where none is named (`username` in its configuration).
const DEFAULT_USER: &str = "Admin";
const MOST_PASSWORD_UNITS: usize = 127;
const MOST_USER_CHARACTERS: usize = 20;
const MOST_NETBIOS_NAME: usize = 15;

/// The credential as Windows takes it: a password in clear text, and keys besides it at most.
pub(super) fn check_credential(credential: &Credential, user: Option<&str>) -> Result<(), SeedError> {
    match &credential.secret {
        Secret::Password(password) => check_password(password.expose(), user.unwrap_or(DEFAULT_USER)),
        Secret::Hash(_) => Err(SeedError::PasswordHash { why: "is nothing that Windows takes" }),
        Secret::KeysOnly => Err(SeedError::KeyAloneForWindows),
        Secret::KeepImage => Ok(()),
    }
}

/// "Password must meet complexity requirements", as Windows Server has it by default.
fn check_password(password: &str, user: &str) -> Result<(), SeedError> {
    let refused = |why| Err(SeedError::Password { why });
    let classes: [fn(char) -> bool; 4] = [
        char::is_uppercase,
        char::is_lowercase,
        |c| c.is_ascii_digit(),
        |c| !c.is_uppercase() && !c.is_lowercase() && !c.is_ascii_digit(),
    ];
    if classes.iter().filter(|class| password.chars().any(**class)).count() < 3 {
        return refused(
            "has fewer than three of capital letters, small letters, digits and others, as Windows wants",
        );
    }
    if password.encode_utf16().count() > MOST_PASSWORD_UNITS {
        return refused("is longer than the 127 characters that Windows takes");
    }
    // Windows does not look for names that are shorter than three characters.
    let (password, user) = (Zeroizing::new(password.to_lowercase()), user.to_lowercase());
    let holds_name = user.chars().count() >= 3 && password.contains(&user);
    if holds_name { refused("contains the user name, which Windows refuses") } else { Ok(()) }
}

/// Account names as Windows takes them (the rules of `NetUserAdd`).
pub(super) fn check_user(user: &str) -> Result<(), SeedError> {
    let refused = |why| Err(SeedError::User { user: user.into(), why });
    if !(1..=MOST_USER_CHARACTERS).contains(&user.encode_utf16().count()) {
        return refused("is not 1 to 20 characters long, as Windows wants");
    }
    if user.chars().any(|c| c.is_control() || "\"/\\[]:;|=,+*?<>@".contains(c)) {
        return refused("holds a character that Windows refuses");
    }
    if user.ends_with('.') {
        return refused("ends with a dot, which Windows refuses");
    }
    if user.starts_with(' ') || user.ends_with(' ') {
        return refused("begins or ends with a space");
    }
    Ok(())
}

/// The computer's name is the first part; it is a NetBIOS name too.
pub(super) fn check_hostname(hostname: &str) -> Result<(), SeedError> {
    let refused = |why| Err(SeedError::Hostname { hostname: hostname.into(), why });
    let name = hostname.split('.').next().unwrap_or(hostname);
    if name.len() > MOST_NETBIOS_NAME {
        return refused("is longer than the 15 characters that Windows takes");
    }
    if name.bytes().all(|b| b.is_ascii_digit()) {
        return refused("is a number, which Windows refuses");
    }
    Ok(())
}

/// cloudbase-init writes `authorized_keys` anew by itself, and can lock no other account.
pub(super) fn check_old_credentials(old: OldCredentials) -> Result<(), SeedError> {
    match old {
        OldCredentials::Stay => Ok(()),
        OldCredentials::Revoke => Err(SeedError::WindowsRevoke),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(outcome: Result<(), SeedError>, expected: Option<&str>) {
        assert_eq!(outcome.err().map(|error| error.to_string()).as_deref(), expected);
    }

    #[test]
    fn a_password_is_what_windows_would_take() {
        let classes = "the password has fewer than three of capital letters, small letters, digits and others, \
                       as Windows wants";
        let long = "the password is longer than the 127 characters that Windows takes";
        let name = "the password contains the user name, which Windows refuses";
        let most = "Aa1".repeat(42) + "x";
        let more = most.clone() + "x";
        for (password, user, expected) in [
            ("Secret-1", "Admin", None),
            ("secret-1", "Admin", None),
            ("Пароль-один", "Admin", None),
            ("SecretPass", "Admin", Some(classes)),
            ("12345678-", "Admin", Some(classes)),
            ("secretsecret1", "Admin", Some(classes)),
            (&most, "Admin", None),
            (&more, "Admin", Some(long)),
            ("My-Admin-1", "Admin", Some(name)),
            ("my-aDMIN-1", "Admin", Some(name)),
            ("Web-Pass-1", "we", None),
            ("Web-Pass-1", "WEB", Some(name)),
        ] {
            check(check_password(password, user), expected);
        }
    }

    #[test]
    fn a_user_is_one_that_windows_would_make() {
        let of = |user: &str, why: &str| Some(format!("the user name {user:?} {why}"));
        for good in ["Admin", "Administrator", "Иван", "a b", "a.b", "12345678901234567890"] {
            check(check_user(good), None);
        }
        for (bad, why) in [
            ("", "is not 1 to 20 characters long, as Windows wants"),
            ("123456789012345678901", "is not 1 to 20 characters long, as Windows wants"),
            ("a@b", "holds a character that Windows refuses"),
            ("a\\b", "holds a character that Windows refuses"),
            ("a\tb", "holds a character that Windows refuses"),
            ("a.", "ends with a dot, which Windows refuses"),
            ("a ", "begins or ends with a space"),
        ] {
            check(check_user(bad), of(bad, why).as_deref());
        }
    }

    #[test]
    fn a_host_name_is_a_netbios_name_too() {
        for good in ["web", "fifteen-letters", "web.a-longer-domain.example.org"] {
            check(check_hostname(good), None);
        }
        check(
            check_hostname("sixteen-letters-"),
            Some("the host name \"sixteen-letters-\" is longer than the 15 characters that Windows takes"),
        );
        check(check_hostname("42.org"), Some("the host name \"42.org\" is a number, which Windows refuses"));
    }
}
