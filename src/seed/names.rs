//! The names that a seed carries: account, host, instance.

use super::error::SeedError;

/// Account names as `useradd` takes them everywhere: `[a-z_][a-z0-9_-]{0,31}`.
pub(super) fn check_user(user: &str) -> Result<(), SeedError> {
    let refused = |why| Err(SeedError::User { user: user.into(), why });
    match user.as_bytes() {
        [] => return refused("is empty"),
        [b'a'..=b'z' | b'_', rest @ ..] if rest.iter().all(|b| is_lower_word(*b) || *b == b'-') => {}
        _ => return refused("is not of a-z, 0-9, _ and -, beginning with a letter or _"),
    }
    match user {
        // In a list of users cloud-init takes this word for the image's own user.
        "default" => refused("means the image's own user to cloud-init"),
        _ if user.len() > 32 => refused("is longer than 32 characters"),
        _ => Ok(()),
    }
}

/// Host names as RFC 1123, section 2.1, has them; a full domain name is one too.
pub(super) fn check_hostname(hostname: &str) -> Result<(), SeedError> {
    let refused = |why| Err(SeedError::Hostname { hostname: hostname.into(), why });
    if hostname.is_empty() || hostname.len() > 253 {
        return refused("is not 1 to 253 characters long");
    }
    for label in hostname.split('.') {
        if label.is_empty() || label.len() > 63 {
            return refused("has a part that is not 1 to 63 characters long");
        }
        if !label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return refused("holds a character that is no letter, digit or hyphen");
        }
        if label.starts_with('-') || label.ends_with('-') {
            return refused("has a part that begins or ends with a hyphen");
        }
    }
    if hostname.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return refused("is a number");
    }
    Ok(())
}

/// Instance ids that are safe as a folder's name in the guest and make cloud-init run again.
pub(super) fn check_instance_id(instance_id: &str) -> Result<(), SeedError> {
    let refused = |why| Err(SeedError::InstanceId { instance_id: instance_id.into(), why });
    match instance_id {
        "" => refused("is empty"),
        // What cloud-init calls an instance whose seed names none: it would never run again.
        "nocloud" | "iid-dsconfigdrive" => refused("is the one that cloud-init gives by itself"),
        "." | ".." => refused("is no name of a folder"),
        _ if instance_id.contains(['/', '\\']) => refused("holds a slash"),
        _ if !instance_id.bytes().all(|b| b.is_ascii_graphic()) => {
            refused("holds a space, a control character, or one outside ASCII")
        }
        _ if instance_id.len() > 64 => refused("is longer than 64 characters"),
        _ => Ok(()),
    }
}

fn is_lower_word(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(checker: fn(&str) -> Result<(), SeedError>, good: &[&str], bad: &[&str]) {
        for name in good {
            assert!(checker(name).is_ok(), "{name:?} is refused");
        }
        for name in bad {
            assert!(checker(name).is_err(), "{name:?} is taken");
        }
    }

    #[test]
    fn only_names_that_useradd_takes_are_users() {
        let most = "a".repeat(32);
        let more = "a".repeat(33);
        check(
            check_user,
            &["root", "_apt", "web-1", "a", &most],
            &["", "default", "Root", "1st", "-a", "a b", "a:b", "a/b", "a\nb", "a.b", "ё", "42", &more],
        );
    }

    #[test]
    fn only_names_of_rfc_1123_are_host_names() {
        let most = "a".repeat(63);
        let more = "a".repeat(64);
        let full = [most.as_str(); 4].join(".")[..253].to_owned();
        let fuller = [most.as_str(); 4].join(".")[..254].to_owned();
        check(
            check_hostname,
            &["web", "Web-01.example.org", "3com", &most, &full],
            &[
                "", ".", "web.", "-web", "web-", "a..b", "we_b", "web\n", "ё", "10.0.0.1", "42", &more,
                &fuller,
            ],
        );
    }

    #[test]
    fn only_safe_and_telling_ids_are_instance_ids() {
        let most = "a".repeat(64);
        let more = "a".repeat(65);
        check(
            check_instance_id,
            &["i-0a1b", "ri-7f", "a.b", "{x}", &most],
            &["", "nocloud", "iid-dsconfigdrive", ".", "..", "a/b", "a\\b", "a b", "a\nb", "a\0", "ё", &more],
        );
    }
}
