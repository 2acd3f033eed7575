//! Our own user-data: the cloud-config that gives an account its password and keys.
//!
//! Each form was tried with cloud-init 17.1 to 26.2: both the old and the new spelling
//! stand side by side where versions differ, and neither gives a deprecation warning.

use serde::Serialize;
use zeroize::Zeroizing;

use super::json;

/// What the account gets.
pub(super) struct CloudConfig<'a> {
    pub(super) user: Option<&'a str>,
    pub(super) hash: Option<&'a str>,
    pub(super) keys: &'a [&'a str],
}

impl CloudConfig<'_> {
    /// The whole of it, as user-data that stands alone.
    pub(super) fn user_data(&self) -> Zeroizing<Vec<u8>> {
        let user_data = match self.user {
            None => self.for_the_default_user(),
            Some("root") => self.for_root(),
            Some(name) => self.for_user(name),
        };
        json::line("#cloud-config\n", &user_data)
    }

    /// The keys come from meta-data.
    fn for_the_default_user(&self) -> UserData<'_> {
        UserData {
            password: self.hash,
            chpasswd: self.hash.map(|_| Chpasswd { expire: false, users: None }),
            ssh_pwauth: self.hash.map(|_| true),
            ..UserData::default()
        }
    }

    fn for_root(&self) -> UserData<'_> {
        UserData {
            users: Some(vec![Listed::Default("default"), Listed::Account(self.account("root"))]),
            chpasswd: self.chpasswd("root"),
            ssh_pwauth: self.hash.map(|_| true),
            disable_root: Some(false),
            ..UserData::default()
        }
    }

    /// The account takes the default user's place, with its groups and sudo rule.
    fn for_user<'a>(&'a self, name: &'a str) -> UserData<'a> {
        UserData {
            user: Some(self.account(name)),
            users: Some(vec![Listed::Default("default")]),
            chpasswd: self.chpasswd(name),
            ssh_pwauth: self.hash.map(|_| true),
            ..UserData::default()
        }
    }

    /// Without a hash cloud-init locks the old password: the key takes its place.
    fn account<'a>(&'a self, name: &'a str) -> Account<'a> {
        Account {
            name,
            hashed_passwd: self.hash,
            lock_passwd: self.hash.map(|_| false),
            ssh_authorized_keys: (!self.keys.is_empty()).then_some(self.keys),
        }
    }

    /// From 22.3 on, an account that the image has gets its password only here.
    fn chpasswd<'a>(&'a self, name: &'a str) -> Option<Chpasswd<'a>> {
        let password = self.hash?;
        Some(Chpasswd { expire: false, users: Some([NewPassword { name, password, kind: "hash" }]) })
    }
}

#[derive(Default, Serialize)]
struct UserData<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<Account<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    users: Option<Vec<Listed<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chpasswd: Option<Chpasswd<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ssh_pwauth: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disable_root: Option<bool>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Listed<'a> {
    Default(&'static str),
    Account(Account<'a>),
}

#[derive(Serialize)]
struct Account<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    hashed_passwd: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lock_passwd: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ssh_authorized_keys: Option<&'a [&'a str]>,
}

#[derive(Serialize)]
struct Chpasswd<'a> {
    expire: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    users: Option<[NewPassword<'a>; 1]>,
}

#[derive(Serialize)]
struct NewPassword<'a> {
    name: &'a str,
    password: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(user: Option<&str>, hash: Option<&str>, keys: &[&str], expected: &str) {
        let text = CloudConfig { user, hash, keys }.user_data().to_vec();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text, format!("#cloud-config\n{expected}\n"));
    }

    #[test]
    fn user_data_is_one_of_the_forms_that_every_version_takes() {
        check(None, Some("H"), &[], r#"{"password":"H","chpasswd":{"expire":false},"ssh_pwauth":true}"#);
        check(None, None, &["K"], "{}");
        check(
            Some("root"),
            Some("H"),
            &[],
            r#"{"users":["default",{"name":"root","hashed_passwd":"H","lock_passwd":false}],"chpasswd":{"expire":false,"users":[{"name":"root","password":"H","type":"hash"}]},"ssh_pwauth":true,"disable_root":false}"#,
        );
        check(
            Some("root"),
            None,
            &["K"],
            r#"{"users":["default",{"name":"root","ssh_authorized_keys":["K"]}],"disable_root":false}"#,
        );
        check(
            Some("web"),
            Some("H"),
            &["K", "L"],
            r#"{"user":{"name":"web","hashed_passwd":"H","lock_passwd":false,"ssh_authorized_keys":["K","L"]},"users":["default"],"chpasswd":{"expire":false,"users":[{"name":"web","password":"H","type":"hash"}]},"ssh_pwauth":true}"#,
        );
        check(
            Some("web"),
            None,
            &["K"],
            r#"{"user":{"name":"web","ssh_authorized_keys":["K"]},"users":["default"]}"#,
        );
    }
}
