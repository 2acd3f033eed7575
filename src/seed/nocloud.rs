//! The files of cloud-init's NoCloud data source.

use serde::Serialize;
use zeroize::Zeroizing;

use super::folder::Folder;
use super::json;

/// What the files say.
pub(super) struct Content<'a> {
    pub(super) instance_id: &'a str,
    pub(super) hostname: Option<&'a str>,
    pub(super) keys: &'a [&'a str],
    pub(super) user_data: Zeroizing<Vec<u8>>,
    pub(super) network_config: Option<Zeroizing<Vec<u8>>>,
}

impl Content<'_> {
    /// The seed's root folder.
    pub(super) fn into_folder(self) -> Folder {
        let mut folder = Folder::default();
        folder.add("meta-data", self.meta_data());
        folder.add("user-data", self.user_data);
        if let Some(bytes) = self.network_config {
            folder.add("network-config", bytes);
        }
        folder
    }

    fn meta_data(&self) -> Zeroizing<Vec<u8>> {
        let keys = (!self.keys.is_empty()).then_some(self.keys);
        let meta_data =
            MetaData { instance_id: self.instance_id, local_hostname: self.hostname, public_keys: keys };
        json::line("", &meta_data)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meta_data_says_only_what_is_known() {
        let user_data = Zeroizing::default();
        let mut content =
            Content { instance_id: "i-1", hostname: None, keys: &[], user_data, network_config: None };
        assert_eq!(*content.meta_data(), b"{\"instance-id\":\"i-1\"}\n");
        content.hostname = Some("web");
        content.keys = &["K é 🔑 \u{85}\u{feff}"];
        let expected =
            r#"{"instance-id":"i-1","local-hostname":"web","public-keys":["K é 🔑 \u0085\ufeff"]}"#;
        assert_eq!(String::from_utf8(content.meta_data().to_vec()).unwrap(), format!("{expected}\n"));
    }
}
