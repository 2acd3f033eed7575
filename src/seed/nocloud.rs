//! The files of cloud-init's NoCloud data source.
//!
//! Each user-data form was tried with cloud-init 17.1 to 26.2: both the old and the new spelling
//! stand side by side where versions differ, and neither gives a deprecation warning.

use serde::Serialize;
use zeroize::Zeroizing;

use super::iso9660::Folder;

/// What the files say.
pub(super) struct Content<'a> {
    pub(super) instance_id: &'a str,
    pub(super) hostname: Option<&'a str>,
    pub(super) user: Option<&'a str>,
    pub(super) hash: Option<&'a str>,
    pub(super) keys: &'a [&'a str],
    pub(super) network_config: Option<Zeroizing<Vec<u8>>>,
}

impl Content<'_> {
    /// The seed's root folder.
    pub(super) fn into_folder(self) -> Folder {
        let mut folder = Folder::default();
        folder.add("meta-data", self.meta_data());
        folder.add("user-data", self.user_data());
        if let Some(bytes) = self.network_config {
            folder.add("network-config", bytes);
        }
        folder
    }

    fn meta_data(&self) -> Zeroizing<Vec<u8>> {
        let keys = (!self.keys.is_empty()).then_some(self.keys);
        let meta_data =
            MetaData { instance_id: self.instance_id, local_hostname: self.hostname, public_keys: keys };
        json_line("", &meta_data)
    }

    fn user_data(&self) -> Zeroizing<Vec<u8>> {
        let user_data = match self.user {
            None => self.for_the_default_user(),
            Some("root") => self.for_root(),
            Some(name) => self.for_user(name),
        };
        json_line("#cloud-config\n", &user_data)
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

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct MetaData<'a> {
    instance_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    local_hostname: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    public_keys: Option<&'a [&'a str]>,
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

/// JSON on one line, which is YAML too once the characters that PyYAML refuses, drops or takes for
/// line breaks are escaped. All others stay as they are: PyYAML reads an escaped surrogate pair as
/// two characters.
fn json_line(head: &str, value: &impl Serialize) -> Zeroizing<Vec<u8>> {
    let json = Zeroizing::new(serde_json::to_string(value).expect("these values have string keys only"));
    let escaped: usize = json.chars().filter(|c| breaks_yaml(*c)).count();
    // Enough from the start: a buffer that grows leaves copies of the hash behind.
    let mut line = Zeroizing::new(String::with_capacity(head.len() + json.len() + escaped * 6 + 1));
    line.push_str(head);
    for character in json.chars() {
        if breaks_yaml(character) {
            line.push_str(&format!("\\u{:04x}", u32::from(character)));
        } else {
            line.push(character);
        }
    }
    line.push('\n');
    Zeroizing::new(std::mem::take(&mut *line).into_bytes())
}

fn breaks_yaml(character: char) -> bool {
    matches!(character, '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(user: Option<&str>, hash: Option<&str>, keys: &[&str], expected: &str) {
        let content = Content { instance_id: "i-1", hostname: None, user, hash, keys, network_config: None };
        let text = String::from_utf8(content.user_data().to_vec()).unwrap();
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

    #[test]
    fn meta_data_says_only_what_is_known() {
        let mut content = Content {
            instance_id: "i-1",
            hostname: None,
            user: None,
            hash: None,
            keys: &[],
            network_config: None,
        };
        assert_eq!(*content.meta_data(), b"{\"instance-id\":\"i-1\"}\n");
        content.hostname = Some("web");
        content.keys = &["K é 🔑 \u{85}\u{feff}"];
        let expected =
            r#"{"instance-id":"i-1","local-hostname":"web","public-keys":["K é 🔑 \u0085\ufeff"]}"#;
        assert_eq!(String::from_utf8(content.meta_data().to_vec()).unwrap(), format!("{expected}\n"));
    }
}
