//! The user-data forms that give a machine its credentials, alone and beside a customer's.
//!
//! Each was tried with cloud-init 17.1 to 26.2: both the old and the new spelling stand side by
//! side where versions differ, and neither gives a deprecation warning.

use serde::Serialize;
use zeroize::Zeroizing;

use super::json;
use crate::request::OldCredentials;

/// Which credentials the user-data is to give, and whether the image's own are taken away first.
pub(super) struct OurParts<'a> {
    pub(super) user: Option<&'a str>,
    pub(super) hash: Option<&'a str>,
    pub(super) keys: &'a [&'a str],
    pub(super) image_credentials: OldCredentials,
}

impl OurParts<'_> {
    /// The whole cloud-config, when nothing stands beside it.
    pub(super) fn alone(&self) -> Zeroizing<Vec<u8>> {
        let whole = CloudConfig { users: self.users(), ..self.settings(Beside::Nothing) };
        json::line("#cloud-config\n", &whole)
    }

    /// What must replace the customer's values: cloud-init merges a later part by replacing keys.
    pub(super) fn replacing(&self) -> Option<Zeroizing<Vec<u8>>> {
        let settings = self.settings(Beside::Customer);
        (!settings.is_empty()).then(|| json::line("#cloud-config\n", &settings))
    }

    /// The accounts, put before the customer's: of two entries with one name, the first one's
    /// values win in every version, and the default user is made last wherever it stands.
    pub(super) fn accounts(&self, customers: CustomersUsers) -> Option<Zeroizing<Vec<u8>>> {
        // A list of users without `default` hides the default user, who is to get the password.
        let hidden = customers == CustomersUsers::Perhaps;
        let users = self.users().or_else(|| hidden.then(|| vec![Listed::Default("default")]))?;
        let merge_how = Some([
            Merger { name: "list", settings: &["prepend"] },
            Merger { name: "dict", settings: &["no_replace", "recurse_list"] },
        ]);
        let part = CloudConfig { users: Some(users), merge_how, ..CloudConfig::default() };
        Some(json::line("#cloud-config\n", &part))
    }

    fn settings(&self, beside: Beside) -> CloudConfig<'_> {
        let common = CloudConfig { ssh_pwauth: self.hash.map(|_| true), ..CloudConfig::default() };
        match self.user {
            // The keys come from meta-data.
            None => CloudConfig {
                password: self.hash,
                chpasswd: self.hash.map(|_| Chpasswd { expire: false, users: None }),
                ..common
            },
            Some("root") => {
                CloudConfig { chpasswd: self.chpasswd("root"), disable_root: Some(false), ..common }
            }
            // The account takes the default user's place, with its groups and sudo rule. Up to 22.2
            // cloud-init overlooks `chpasswd.users`, and a customer's `password` would be this
            // user's.
            Some(name) => CloudConfig {
                user: Some(self.account(name)),
                password: self.hash.filter(|_| beside == Beside::Customer),
                chpasswd: self.chpasswd(name),
                ..common
            },
        }
    }

    fn users(&self) -> Option<Vec<Listed<'_>>> {
        match self.user? {
            "root" => Some(vec![Listed::Default("default"), Listed::Account(self.account("root"))]),
            _ => Some(vec![Listed::Default("default")]),
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

/// Whether the customer's user-data may hold a list of users.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum CustomersUsers {
    None,
    Perhaps,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nothing,
    Customer,
}

#[derive(Default, Serialize)]
struct CloudConfig<'a> {
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
    #[serde(skip_serializing_if = "Option::is_none")]
    merge_how: Option<[Merger; 2]>,
}

impl CloudConfig<'_> {
    fn is_empty(&self) -> bool {
        let Self { user, users, password, chpasswd, ssh_pwauth, disable_root, merge_how: _ } = self;
        let accounts = user.is_some() || users.is_some() || password.is_some() || chpasswd.is_some();
        !accounts && ssh_pwauth.is_none() && disable_root.is_none()
    }
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

#[derive(Serialize)]
struct Merger {
    name: &'static str,
    settings: &'static [&'static str],
}

#[cfg(test)]
mod tests {
    use super::*;

    const MERGE: &str = r#""merge_how":[{"name":"list","settings":["prepend"]},{"name":"dict","settings":["no_replace","recurse_list"]}]"#;

    fn ours<'a>(user: Option<&'a str>, hash: Option<&'a str>, keys: &'a [&'a str]) -> OurParts<'a> {
        OurParts { user, hash, keys, image_credentials: OldCredentials::Stay }
    }

    fn text(part: Zeroizing<Vec<u8>>) -> String {
        String::from_utf8(part.to_vec()).unwrap()
    }

    #[track_caller]
    fn check(ours: OurParts<'_>, replacing: Option<&str>, accounts: Option<&str>) {
        let line = |json: &str| format!("#cloud-config\n{json}\n");
        assert_eq!(ours.replacing().map(text), replacing.map(line));
        let accounts = accounts.map(|users| line(&format!("{{{users},{MERGE}}}")));
        assert_eq!(ours.accounts(CustomersUsers::Perhaps).map(text), accounts);
    }

    // Tried beside 19 kinds of customer data with cloud-init 18.5 to 26.2.
    #[test]
    fn beside_a_customers_data_each_form_is_split_into_what_replaces_and_what_is_added() {
        check(
            ours(None, Some("H"), &[]),
            Some(r#"{"password":"H","chpasswd":{"expire":false},"ssh_pwauth":true}"#),
            Some(r#""users":["default"]"#),
        );
        check(ours(None, None, &["K"]), None, Some(r#""users":["default"]"#));
        check(
            ours(Some("root"), Some("H"), &[]),
            Some(
                r#"{"chpasswd":{"expire":false,"users":[{"name":"root","password":"H","type":"hash"}]},"ssh_pwauth":true,"disable_root":false}"#,
            ),
            Some(r#""users":["default",{"name":"root","hashed_passwd":"H","lock_passwd":false}]"#),
        );
        check(
            ours(Some("root"), None, &["K"]),
            Some(r#"{"disable_root":false}"#),
            Some(r#""users":["default",{"name":"root","ssh_authorized_keys":["K"]}]"#),
        );
        check(
            ours(Some("web"), Some("H"), &["K"]),
            Some(
                r#"{"user":{"name":"web","hashed_passwd":"H","lock_passwd":false,"ssh_authorized_keys":["K"]},"password":"H","chpasswd":{"expire":false,"users":[{"name":"web","password":"H","type":"hash"}]},"ssh_pwauth":true}"#,
            ),
            Some(r#""users":["default"]"#),
        );
        check(
            ours(Some("web"), None, &["K"]),
            Some(r#"{"user":{"name":"web","ssh_authorized_keys":["K"]}}"#),
            Some(r#""users":["default"]"#),
        );
    }

    #[test]
    fn the_default_user_is_listed_only_where_a_customer_may_hide_it() {
        assert!(ours(None, Some("H"), &[]).accounts(CustomersUsers::None).is_none());
        assert!(ours(Some("root"), Some("H"), &[]).accounts(CustomersUsers::None).is_some());
    }

    #[test]
    fn alone_each_form_is_one_line_that_every_version_takes() {
        let alone = |user, hash, keys: &[&str]| text(ours(user, hash, keys).alone());
        assert_eq!(
            alone(None, Some("H"), &[]),
            "#cloud-config\n{\"password\":\"H\",\"chpasswd\":{\"expire\":false},\"ssh_pwauth\":true}\n"
        );
        assert_eq!(alone(None, None, &["K"]), "#cloud-config\n{}\n");
        assert_eq!(
            alone(Some("root"), None, &["K"]),
            "#cloud-config\n{\"users\":[\"default\",{\"name\":\"root\",\"ssh_authorized_keys\":[\"K\"]}],\"disable_root\":false}\n"
        );
        assert_eq!(
            alone(Some("web"), Some("H"), &[]),
            "#cloud-config\n{\"user\":{\"name\":\"web\",\"hashed_passwd\":\"H\",\"lock_passwd\":false},\"users\":[\"default\"],\"chpasswd\":{\"expire\":false,\"users\":[{\"name\":\"web\",\"password\":\"H\",\"type\":\"hash\"}]},\"ssh_pwauth\":true}\n"
        );
    }
}
