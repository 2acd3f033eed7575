//! Goal: a request becomes a seed or a refusal with its reason, and no report holds a secret.
//! Method: through the front door, in a temporary folder.

use std::error::Error as _;
use std::fs;

use super::*;
use crate::error::ErrorKind;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti ops";
const HASH: &str = include_str!("../../testdata/seed/sha512-crypt-ascii.txt");

fn password() -> Credential {
    Credential::password(Password::new(String::from("correct horse")).unwrap())
}

fn hash_and_key() -> Credential {
    let hash = PasswordHash::from_file_bytes(HASH.as_bytes().to_vec()).unwrap();
    Credential::password_hash(hash).with_ssh_keys(vec![SshKey::parse(KEY).unwrap()]).unwrap()
}

fn spec_in(folder: &Path) -> SeedSpec {
    SeedSpec { path: folder.join("seed.iso"), ..SeedSpec::default() }
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn a_seed_is_written_as_the_report_says() {
    let folder = tempfile::tempdir().unwrap();
    let mut spec = spec_in(folder.path());
    spec.user = Some("root".into());
    let report = write_seed(&spec, Some("web-1"), &hash_and_key(), Replace::Refuse).unwrap();
    let bytes = fs::read(&spec.path).unwrap();
    assert_eq!(report.blake3, blake3::hash(&bytes).to_hex().as_str());
    assert_eq!(report.size, bytes.len());
    assert_eq!(report.credentials, [CredentialKind::PasswordHash, CredentialKind::SshKey]);
    assert_eq!(report.ssh_key_fingerprints, ["SHA256:UCUiLr7Pjs9wFFJMDByLgc3NrtdU344OgUM45wZPcIQ"]);
    for text in [HASH.trim_end(), KEY, "web-1", &report.instance_id] {
        assert!(holds(&bytes, text), "{text}");
    }
    let shown = serde_json::to_string(&report).unwrap() + &format!("{report:?}");
    assert!(!shown.contains("$6$"), "{shown}");
}

#[test]
fn two_seeds_of_one_request_have_two_identities_and_two_salts() {
    let spec = spec_in(Path::new("/nowhere"));
    let [one, other] = [(); 2].map(|()| compose(&spec, None, &password()).unwrap());
    assert!(one.report.instance_id.starts_with("ri-"));
    assert_ne!(one.report.instance_id, other.report.instance_id);
    assert_ne!(one.report.blake3, other.report.blake3);
    assert!(!holds(&one.bytes, "correct horse"));
}

#[test]
fn the_same_request_gives_the_same_bytes() {
    let mut spec = spec_in(Path::new("/nowhere"));
    spec.instance_id = Some("i-1".into());
    let seed = compose(&spec, Some("web-1"), &hash_and_key()).unwrap();
    assert_eq!(seed.report.blake3, "23fe3ce700a2e61f327cd0764223d3af35954990eadc4b07ab15ad0983423a34");
}

#[test]
fn every_refusal_of_a_request_is_told_at_once() {
    let mut spec = spec_in(Path::new("/nowhere"));
    spec.user = Some("default".into());
    spec.instance_id = Some("nocloud".into());
    spec.network_config = Some("/nowhere/network-config".into());
    let error = compose(&spec, Some("-"), &Credential::keep_image()).err().unwrap();
    assert_eq!((error.kind(), error.also().len()), (ErrorKind::Credentials, 4));
    assert!(error.hint().is_some());
}

#[test]
fn a_network_configuration_is_passed_on_as_it_is_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("network-config");
    let mut spec = spec_in(folder.path());
    spec.network_config = Some(path.clone());
    let most = vec![b'#'; 64 << 10];
    let more = vec![b'#'; (64 << 10) + 1];
    let table: &[(&[u8], Option<&str>)] = &[
        (b"{\"config\":\"disabled\"}", None),
        (&most, None),
        (&more, Some("is longer than 64 KiB")),
        (b"", Some("is empty")),
        (b" \n", Some("is empty")),
        (b"a\0", Some("holds a zero byte")),
        (b"\xff", Some("is not UTF-8")),
    ];
    for (bytes, expected) in table {
        fs::write(&path, bytes).unwrap();
        match (compose(&spec, None, &password()), expected) {
            (Ok(seed), None) => assert!(seed.bytes.windows(bytes.len()).any(|window| window == *bytes)),
            (Err(error), Some(why)) => {
                assert_eq!(error.path(), Some(path.as_path()));
                let cause = error.source().unwrap().to_string();
                assert!(cause.ends_with(why), "{cause:?} does not say {why:?}");
            }
            (outcome, expected) => panic!("accepted: {} instead of {expected:?}", outcome.is_ok()),
        }
    }
    spec.network_config = Some(folder.path().into());
    assert!(compose(&spec, None, &password()).is_err());
}

#[test]
fn a_staged_seed_shows_nothing_until_it_is_published() {
    let folder = tempfile::tempdir().unwrap();
    let spec = spec_in(folder.path());
    fs::write(&spec.path, b"old").unwrap();
    let seed = compose(&spec, None, &password()).unwrap();
    seed.check_place().unwrap();
    let staged = seed.stage().unwrap();
    assert_eq!(fs::read(&spec.path).unwrap(), b"old");
    drop(staged);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

    let error = write_seed(&spec, None, &password(), Replace::Refuse).unwrap_err();
    assert_eq!((error.kind(), error.path()), (ErrorKind::Credentials, Some(spec.path.as_path())));
    assert_eq!(fs::read(&spec.path).unwrap(), b"old");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

    let report = compose(&spec, None, &password()).unwrap().stage().unwrap().publish(Replace::Existing);
    assert_eq!(report.unwrap().blake3, blake3::hash(&fs::read(&spec.path).unwrap()).to_hex().as_str());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
