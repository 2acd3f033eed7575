//! The shape of a network configuration, as far as a wrong one would cost the machine its network.

use super::yaml::{self, Document, Node};

/// What makes cloud-init keep the image's network: tried with 19.4, 22.4.2 and 26.2.
pub(super) fn keep() -> &'static [u8] {
    b"{\"config\":\"disabled\"}\n"
}

/// A mapping of version 1 or 2, or `config: disabled`, with or without `network:` around it.
///
/// # Errors
///
/// The reason why cloud-init would not take it, to stand after "the network configuration".
pub(super) fn check(text: &str) -> Result<(), &'static str> {
    let document = yaml::parse(text).map_err(|_| "is neither YAML nor JSON")?;
    let root = document.root().ok_or("is empty")?;
    if !document.is_map(root) {
        return Err("is no mapping");
    }
    let config = document.get(root, "network").unwrap_or(root);
    if !document.is_map(config) {
        return Err("has no mapping under network");
    }
    if document.get(config, "config").is_some_and(|value| document.text(value) == Some("disabled")) {
        return Ok(());
    }
    let version = document.get(config, "version").ok_or("has no version")?;
    match plain(&document, version) {
        Some("1") => match document.get(config, "config") {
            Some(list) if document.is_list(list) => Ok(()),
            _ => Err("is of version 1 and has no list under config"),
        },
        Some("2") => check_second(&document, config),
        _ => Err("has a version that is neither 1 nor 2"),
    }
}

const SECTIONS: [&str; 10] = [
    "ethernets",
    "wifis",
    "bonds",
    "bridges",
    "vlans",
    "tunnels",
    "vrfs",
    "modems",
    "dummy-devices",
    "virtual-ethernets",
];

fn check_second(document: &Document, config: usize) -> Result<(), &'static str> {
    let sections: Vec<_> = SECTIONS.iter().filter_map(|name| document.get(config, name)).collect();
    if !sections.iter().all(|section| document.is_map(*section)) {
        return Err("is of version 2 and has a kind of device that is no mapping");
    }
    let told = !sections.is_empty() || document.get(config, "renderer").is_some();
    if told { Ok(()) } else { Err("is of version 2 and names no devices") }
}

/// A number, which in quotes would be none.
fn plain(document: &Document, at: usize) -> Option<&str> {
    match document.node(at) {
        Node::Scalar { text, is_quoted: false, .. } => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_that_cloud_init_takes_are_taken() {
        for text in [
            std::str::from_utf8(keep()).unwrap(),
            "config: disabled\n",
            "network:\n  config: disabled\n",
            "network: {config: disabled}",
            "version: 1\nconfig:\n- type: physical\n  name: eth0\n",
            "version: 2\nethernets:\n  eth0:\n    dhcp4: true\n",
            "network:\n  version: 2\n  ethernets: {eth0: {dhcp4: true}}\n",
            "#network\nversion: 2\nrenderer: networkd\n",
            "{\"version\": 1, \"config\": []}",
            "version: 2\nbonds: &b {}\nvlans: *b\n",
        ] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn all_others_are_refused_with_the_reason() {
        for (text, why) in [
            ("", "is empty"),
            ("# nothing\n", "is empty"),
            ("eth0", "is no mapping"),
            ("- version: 1\n", "is no mapping"),
            ("network: eth0\n", "has no mapping under network"),
            ("network: [1]\n", "has no mapping under network"),
            ("ethernets: {}\n", "has no version"),
            ("version: 3\n", "has a version that is neither 1 nor 2"),
            ("version: '2'\nethernets: {}\n", "has a version that is neither 1 nor 2"),
            ("version: 1\n", "is of version 1 and has no list under config"),
            ("version: 1\nconfig: {}\n", "is of version 1 and has no list under config"),
            ("version: 2\n", "is of version 2 and names no devices"),
            (
                "version: 2\nethernets: [eth0]\n",
                "is of version 2 and has a kind of device that is no mapping",
            ),
            ("version: 2\nethernets: {\n", "is neither YAML nor JSON"),
            ("version: 2\n---\nversion: 2\n", "is neither YAML nor JSON"),
            ("iface eth0 inet: dhcp\n\tx: y: z", "is neither YAML nor JSON"),
        ] {
            assert_eq!(check(text), Err(why), "{text}");
        }
    }
}
