//! The files of OpenStack's ConfigDrive, version 2: what cloudbase-init reads, and cloud-init too.
//!
//! Only `latest` is written: both readers look for it where no dated folder is there.

use std::collections::BTreeMap;

use serde::Serialize;
use zeroize::Zeroizing;

use super::folder::Folder;
use super::json;

/// What the files say.
pub(super) struct Content<'a> {
    pub(super) instance_id: &'a str,
    pub(super) hostname: Option<&'a str>,
    pub(super) keys: &'a [&'a str],
    /// What Windows reads from the meta-data; cloud-init has it from the user-data.
    pub(super) admin: Admin<'a>,
    pub(super) user_data: Option<Zeroizing<Vec<u8>>>,
}

/// The account that cloudbase-init makes or changes; the password is in clear text, for Windows takes no hash.
#[derive(Default, Serialize)]
pub(super) struct Admin<'a> {
    #[serde(rename = "admin_username", skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<&'a str>,
    #[serde(rename = "admin_pass", skip_serializing_if = "Option::is_none")]
    pub(super) password: Option<&'a str>,
}

impl Content<'_> {
    /// The seed's root folder.
    pub(super) fn into_folder(self) -> Folder {
        let mut latest = Folder::default();
        latest.add("meta_data.json", self.meta_data());
        if let Some(bytes) = self.user_data {
            latest.add("user_data", bytes);
        }
        let mut openstack = Folder::default();
        openstack.add_folder("latest", latest);
        let mut root = Folder::default();
        root.add_folder("openstack", openstack);
        root
    }

    fn meta_data(&self) -> Zeroizing<Vec<u8>> {
        let keys = self.keys.iter().enumerate().map(|(number, key)| (format!("key-{number}"), *key));
        json::line(
            "",
            &MetaData {
                uuid: self.instance_id,
                hostname: self.hostname,
                name: self.hostname,
                public_keys: keys.collect(),
                meta: &self.admin,
            },
        )
    }
}

#[derive(Serialize)]
struct MetaData<'a> {
    uuid: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    hostname: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    public_keys: BTreeMap<String, &'a str>,
    meta: &'a Admin<'a>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meta_data_says_what_both_readers_know() {
        let mut content = Content {
            instance_id: "i-1",
            hostname: None,
            keys: &[],
            admin: Admin::default(),
            user_data: None,
        };
        assert_eq!(*content.meta_data(), b"{\"uuid\":\"i-1\",\"meta\":{}}\n");
        content.hostname = Some("web");
        content.keys = &["K", "L"];
        content.admin = Admin { user: Some("Admin"), password: Some("Pä55\"word") };
        let expected = r#"{"uuid":"i-1","hostname":"web","name":"web","public_keys":{"key-0":"K","key-1":"L"},"meta":{"admin_username":"Admin","admin_pass":"Pä55\"word"}}"#;
        assert_eq!(String::from_utf8(content.meta_data().to_vec()).unwrap(), format!("{expected}\n"));
    }
}
