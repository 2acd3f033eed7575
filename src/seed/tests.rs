//! Goal: a request becomes a seed or a refusal with its reason, and no report holds a secret.
//! Method: through the front door, in a temporary folder.

use std::error::Error as _;
use std::fs;

use super::*;
use crate::error::ErrorKind;
use crate::request::{NetworkPolicy, UserDataDisks};
use crate::scrub_seed;
use crate::write_seed;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti ops";
const HASH: &str = include_str!("../../testdata/seed/sha512-crypt-ascii.txt");

fn password() -> Credential {
    Credential::password(Password::new(String::from("correct horse")).unwrap())
}

fn hash_and_key() -> Credential {
    let hash = PasswordHash::from_file_bytes(HASH.as_bytes().to_vec()).unwrap();
    Credential::password_hash(hash).with_ssh_keys(vec![SshKey::parse(KEY).unwrap()]).unwrap()
}

fn instance_in(folder: &Path) -> InstanceSpec {
    let seed = SeedSpec::at(folder.join("seed.iso"));
    InstanceSpec { seed: Some(seed), ..InstanceSpec::default() }
}

fn nowhere() -> InstanceSpec {
    instance_in(Path::new("/nowhere"))
}

/// The request of the instance's seed, to change it.
fn spec(instance: &mut InstanceSpec) -> &mut SeedSpec {
    instance.seed.as_mut().unwrap()
}

fn try_compose(instance: &InstanceSpec, credential: &Credential) -> Result<ComposedSeed, Error> {
    let state_dir = Path::new("/nowhere/state");
    compose(&Asked { instance, spec: instance.seed.as_ref().unwrap(), credential, state_dir })
}

/// The refusals of a request, each cause in words.
fn refusals(instance: &InstanceSpec, credential: &Credential) -> Vec<String> {
    let Err(error) = try_compose(instance, credential) else { return Vec::new() };
    let all = std::iter::once(&error).chain(error.also());
    all.map(|error| {
        assert_eq!(error.kind(), ErrorKind::Credentials);
        assert!(error.hint().is_some(), "{error:?}");
        error.source().unwrap().to_string()
    })
    .collect()
}

pub(super) fn empty_report() -> SeedReport {
    SeedReport::of(&SeedSpec::default(), (Os::Linux, SeedFormat::Nocloud), String::new())
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn a_seed_is_written_as_the_report_says() {
    let folder = tempfile::tempdir().unwrap();
    let mut instance = instance_in(folder.path());
    instance.hostname = Some("web-1".into());
    spec(&mut instance).user = Some("root".into());
    let report = write_seed(&instance, &hash_and_key(), folder.path(), Replace::Refuse).unwrap();
    let bytes = fs::read(&report.path).unwrap();
    assert_eq!(report.blake3.as_deref().unwrap(), blake3::hash(&bytes).to_hex().as_str());
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
    let [one, other] = [(); 2].map(|()| try_compose(&nowhere(), &password()).unwrap());
    assert!(one.report.instance_id.starts_with("ri-"));
    assert_ne!(one.report.instance_id, other.report.instance_id);
    assert_ne!(one.report.blake3, other.report.blake3);
    assert!(!holds(&one.bytes, "correct horse"));
}

#[test]
fn the_same_request_gives_the_same_bytes() {
    let mut instance = nowhere();
    instance.hostname = Some("web-1".into());
    spec(&mut instance).instance_id = Some("i-1".into());
    for (format, expected) in [
        (SeedFormat::Nocloud, "23fe3ce700a2e61f327cd0764223d3af35954990eadc4b07ab15ad0983423a34"),
        (SeedFormat::ConfigDrive, "92117179400ea8f39b0ee0986393f885e3da6d0a6850bb5c6b273492dff5d093"),
        (SeedFormat::NocloudVfat, "3ab2f3e7c76a1a94c0f491836f1e40fc29c6dfedff16a8b449c4e57f961579fa"),
    ] {
        spec(&mut instance).format = Some(format);
        let seed = try_compose(&instance, &hash_and_key()).unwrap();
        assert_eq!(seed.report.blake3.as_deref(), Some(expected), "{format:?}");
    }
}

#[test]
fn every_refusal_of_a_request_is_told_at_once() {
    let mut instance = nowhere();
    instance.hostname = Some("-".into());
    let seed = spec(&mut instance);
    seed.user = Some("default".into());
    seed.instance_id = Some("nocloud".into());
    seed.user_data = Some("/nowhere/user-data".into());
    seed.network_config = Some("/nowhere/network-config".into());
    let expected = [
        "the user name \"default\" means the image's own user to cloud-init",
        "the host name \"-\" has a part that begins or ends with a hyphen",
        "the instance id \"nocloud\" is the one that cloud-init gives by itself",
        "the image's credentials are kept, so there is no seed to write",
        "reading the user-data failed",
        "reading the network configuration failed",
    ];
    assert_eq!(refusals(&instance, &Credential::keep_image()), expected);
}

#[test]
fn a_seed_for_windows_holds_the_password_as_it_is_and_no_hash() {
    let folder = tempfile::tempdir().unwrap();
    let script = b"#ps1_sysnative\r\nGet-Date\r\n";
    fs::write(folder.path().join("user-data"), script).unwrap();
    let mut instance = nowhere();
    instance.os = Os::Windows;
    instance.hostname = Some("win-1".into());
    spec(&mut instance).user = Some("Administrator".into());
    spec(&mut instance).user_data = Some(folder.path().join("user-data"));
    let password = || Credential::password(Password::new(String::from("Correct Horse 1 ä")).unwrap());
    let seed = try_compose(&instance, &password()).unwrap();
    assert_eq!((seed.report.format, seed.report.label), (SeedFormat::ConfigDrive, "config-2"));
    let meta = r#""meta":{"admin_username":"Administrator","admin_pass":"Correct Horse 1 ä"}"#;
    assert!(holds(&seed.bytes, meta));
    assert!(seed.bytes.windows(script.len()).any(|window| window == script));
    assert!(!holds(&seed.bytes, "$6$") && !holds(&seed.bytes, "#cloud-config"));
    let shown = serde_json::to_string(&seed.report).unwrap() + &format!("{:?}", seed.report);
    assert!(!shown.contains("Horse"), "{shown}");
}

#[test]
fn a_linux_seed_on_a_config_drive_holds_the_hash_in_its_user_data() {
    let mut instance = nowhere();
    spec(&mut instance).format = Some(SeedFormat::ConfigDrive);
    let seed = try_compose(&instance, &password()).unwrap();
    assert_eq!(seed.report.label, "config-2");
    assert!(holds(&seed.bytes, "#cloud-config\n{\"password\":\"$6$"));
    assert!(!holds(&seed.bytes, "admin_pass") && !holds(&seed.bytes, "correct horse"));
}

#[test]
fn what_windows_would_not_take_is_refused_with_the_reason() {
    #[track_caller]
    fn check(change: fn(&mut InstanceSpec), credential: &Credential, expected: &str) {
        let mut instance = nowhere();
        instance.os = Os::Windows;
        change(&mut instance);
        assert_eq!(refusals(&instance, credential), [expected]);
    }
    let good = || Credential::password(Password::new(String::from("Correct Horse 1")).unwrap());
    let keys = || Credential::ssh_keys(vec![SshKey::parse(KEY).unwrap()]).unwrap();
    check(|_| {}, &hash_and_key(), "the password hash is nothing that Windows takes");
    check(|_| {}, &keys(), "an SSH key alone is no credential for Windows: its administrator has a password");
    check(
        |_| {},
        &password(),
        "the password has fewer than three of capital letters, small letters, digits and others, as Windows wants",
    );
    let why = "cloudbase-init finds no password there and sets a random one";
    check(
        |instance| spec(instance).format = Some(SeedFormat::Nocloud),
        &good(),
        &format!("a Windows guest reads no nocloud seed: {why}"),
    );
    check(
        |instance| spec(instance).format = Some(SeedFormat::NocloudVfat),
        &good(),
        &format!("a Windows guest reads no nocloud-vfat seed: {why}"),
    );
    check(
        |instance| spec(instance).old_credentials = OldCredentials::Revoke,
        &good(),
        "old credentials of a Windows image cannot be revoked from a seed",
    );
    check(
        |instance| spec(instance).user = Some("a/b".into()),
        &good(),
        "the user name \"a/b\" holds a character that Windows refuses",
    );
    check(
        |instance| instance.hostname = Some("sixteen-letters0".into()),
        &good(),
        "the host name \"sixteen-letters0\" is longer than the 15 characters that Windows takes",
    );
}

#[test]
fn a_network_configuration_is_passed_on_as_it_is_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("network-config");
    let mut instance = instance_in(folder.path());
    spec(&mut instance).network_config = Some(path.clone());
    let of_length = |len: usize| {
        let mut bytes = b"{\"config\":\"disabled\"}".to_vec();
        bytes.resize(len, b' ');
        bytes
    };
    let (most, more) = (of_length(64 << 10), of_length((64 << 10) + 1));
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
        match (try_compose(&instance, &password()), expected) {
            (Ok(seed), None) => assert!(seed.bytes.windows(bytes.len()).any(|window| window == *bytes)),
            (Err(error), Some(why)) => {
                assert_eq!(error.path(), Some(path.as_path()));
                let cause = error.source().unwrap().to_string();
                assert_eq!(cause, format!("the network configuration {why}"));
            }
            (outcome, expected) => panic!("accepted: {} instead of {expected:?}", outcome.is_ok()),
        }
    }
    spec(&mut instance).network_config = Some(folder.path().into());
    assert_eq!(refusals(&instance, &password()), ["the network configuration is no plain file"]);
}

#[test]
fn a_customers_user_data_stands_before_ours_and_what_would_hurt_is_refused_at_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("user-data");
    let mut instance = nowhere();
    spec(&mut instance).user_data = Some(path.clone());
    fs::write(&path, "#!/bin/sh\necho 1\n").unwrap();
    for format in [SeedFormat::Nocloud, SeedFormat::ConfigDrive, SeedFormat::NocloudVfat] {
        spec(&mut instance).format = Some(format);
        let seed = try_compose(&instance, &password()).unwrap();
        let at = |text: &str| seed.bytes.windows(text.len()).position(|window| window == text.as_bytes());
        // The script in base64, and the type of ours.
        let (customers, ours) = (at("IyEvYmluL3NoCmVjaG8gMQo="), at("Content-Type: text/cloud-config"));
        assert!(customers.is_some() && customers < ours, "{format:?}: {customers:?}, {ours:?}");
        assert!(!holds(&seed.bytes, "text/cloud-boothook"));
        spec(&mut instance).old_credentials = OldCredentials::Revoke;
        let seed = try_compose(&instance, &password()).unwrap();
        assert!(holds(&seed.bytes, "text/cloud-boothook"));
        assert_eq!(seed.report.old_credentials, OldCredentials::Revoke);
        spec(&mut instance).old_credentials = OldCredentials::Stay;
    }

    fs::write(&path, "#cloud-config\nbootcmd:\n- wipefs -a /dev/vdb\n").unwrap();
    let line = "line 3 of the user-data (\"wipefs /dev/vdb\") runs again, and may wipe a data disk";
    assert_eq!(refusals(&instance, &password()), [line]);
    assert_eq!(try_compose(&instance, &password()).err().unwrap().path(), Some(path.as_path()));
    spec(&mut instance).user_data_disks = UserDataDisks::Allow;
    assert_eq!(try_compose(&instance, &password()).unwrap().warnings(), [line]);

    for (bytes, expected) in [
        (&b"echo\n"[..], "the user-data begins like nothing that cloud-init knows, and would be overlooked"),
        (b" \n", "the user-data is empty"),
        (&[b'#'; (1 << 20) + 1], "the user-data is longer than 1 MiB"),
    ] {
        fs::write(&path, bytes).unwrap();
        assert_eq!(refusals(&instance, &password()), [expected]);
    }
    spec(&mut instance).format = Some(SeedFormat::ConfigDrive);
    fs::write(&path, [b'#'; (64 << 10) + 1]).unwrap();
    assert_eq!(refusals(&instance, &password()), ["the user-data is longer than 64 KiB"]);
    spec(&mut instance).user_data = Some(folder.path().into());
    assert_eq!(refusals(&instance, &password()), ["the user-data is no plain file"]);
}

#[test]
fn the_network_of_the_image_stays_where_it_is_to_stay_and_can() {
    let mut instance = nowhere();
    let seed = try_compose(&instance, &password()).unwrap();
    assert!(!holds(&seed.bytes, "disabled"));
    spec(&mut instance).network = NetworkPolicy::Keep;
    for format in [SeedFormat::Nocloud, SeedFormat::NocloudVfat] {
        spec(&mut instance).format = Some(format);
        let seed = try_compose(&instance, &password()).unwrap();
        assert!(holds(&seed.bytes, "{\"config\":\"disabled\"}\n"));
    }
    spec(&mut instance).format = Some(SeedFormat::ConfigDrive);
    let expected = "a config-drive seed has no place for the wish to keep the image's network";
    assert_eq!(refusals(&instance, &password()), [expected]);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("network-config");
    fs::write(&path, "version: 2\nethernets: {}\n").unwrap();
    spec(&mut instance).network_config = Some(path);
    spec(&mut instance).network = NetworkPolicy::Fresh;
    let expected = "a config-drive seed has no place for a cloud-init network configuration";
    assert_eq!(refusals(&instance, &password()), [expected]);
    spec(&mut instance).format = None;
    spec(&mut instance).network = NetworkPolicy::Keep;
    let expected = "the network configuration is given, and the image's own is to stay";
    assert_eq!(refusals(&instance, &password()), [expected]);
}

#[test]
fn the_instance_id_of_the_last_seed_is_refused_and_another_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let mut instance = instance_in(folder.path());
    let state = folder.path().join("state");
    let write = |instance: &InstanceSpec| write_seed(instance, &password(), &state, Replace::Existing);
    spec(&mut instance).instance_id = Some("i-1".into());
    write(&instance).unwrap();
    let error = write(&instance).unwrap_err();
    assert_eq!(
        error.source().unwrap().to_string(),
        "the instance id \"i-1\" is that of the machine's last seed, so that nothing would be set"
    );
    spec(&mut instance).instance_id = Some("i-2".into());
    write(&instance).unwrap();
}

#[test]
fn a_scrubbed_seed_is_the_last_one_without_its_secrets() {
    for format in [SeedFormat::Nocloud, SeedFormat::ConfigDrive, SeedFormat::NocloudVfat] {
        let folder = tempfile::tempdir().unwrap();
        let mut instance = instance_in(folder.path());
        instance.hostname = Some("web-1".into());
        spec(&mut instance).format = Some(format);
        let written = write_seed(&instance, &hash_and_key(), folder.path(), Replace::Refuse).unwrap();
        // Neither name nor format is said again.
        let asked = instance_in(folder.path());
        let error = scrub_seed(&asked, folder.path(), Replace::Refuse).unwrap_err();
        assert_eq!(error.source().unwrap().to_string(), "a file is there already");
        let scrubbed = scrub_seed(&asked, folder.path(), Replace::Existing).unwrap();
        assert_eq!(
            (&scrubbed.instance_id, &scrubbed.hostname, scrubbed.format, scrubbed.label),
            (&written.instance_id, &written.hostname, written.format, written.label)
        );
        assert!(scrubbed.credentials.is_empty() && scrubbed.ssh_key_fingerprints.is_empty());
        let bytes = fs::read(&scrubbed.path).unwrap();
        assert!(holds(&bytes, &written.instance_id) && holds(&bytes, "web-1"));
        for gone in ["$6$", "AAAAC3NzaC1lZDI1NTE5", "password", "admin_"] {
            assert!(!holds(&bytes, gone), "{format:?} holds {gone}");
        }
        // The same again is the same.
        let again = scrub_seed(&asked, folder.path(), Replace::Existing).unwrap();
        assert_eq!(again.blake3, scrubbed.blake3);
    }
}

#[test]
fn a_scrubbed_seed_never_has_another_identity_than_the_last() {
    let folder = tempfile::tempdir().unwrap();
    let mut instance = instance_in(folder.path());
    let scrub = |instance: &InstanceSpec| scrub_seed(instance, folder.path(), Replace::Existing);
    let cause = |error: Error| {
        assert_eq!(error.kind(), ErrorKind::Credentials);
        error.source().unwrap().to_string()
    };
    let error = scrub(&instance).unwrap_err();
    assert_eq!(cause(error), "it is not known which instance id the seed has");
    spec(&mut instance).instance_id = Some("i-1".into());
    assert_eq!(scrub(&instance).unwrap().instance_id, "i-1");
    spec(&mut instance).instance_id = Some("i-2".into());
    let error = scrub(&instance).unwrap_err();
    assert_eq!(cause(error), "the instance id \"i-2\" is not that of the last seed, \"i-1\"");
}

#[test]
fn a_staged_seed_shows_nothing_until_it_is_published() {
    let folder = tempfile::tempdir().unwrap();
    let instance = instance_in(folder.path());
    let path = folder.path().join("seed.iso");
    let old = try_compose(&instance, &password()).unwrap().bytes.to_vec();
    fs::write(&path, &old).unwrap();
    let seed = try_compose(&instance, &password()).unwrap();
    seed.check_place().unwrap();
    let staged = seed.stage().unwrap();
    assert_eq!(fs::read(&path).unwrap(), old);
    drop(staged);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

    let state = tempfile::tempdir().unwrap();
    let error = write_seed(&instance, &password(), state.path(), Replace::Refuse).unwrap_err();
    assert_eq!((error.kind(), error.path()), (ErrorKind::Credentials, Some(path.as_path())));
    assert_eq!(fs::read(&path).unwrap(), old);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

    let seed = try_compose(&instance, &password()).unwrap();
    let report = seed.stage().unwrap().publish(Replace::Existing);
    assert_eq!(report.unwrap().blake3.unwrap(), blake3::hash(&fs::read(&path).unwrap()).to_hex().as_str());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_seed_that_cannot_be_remembered_is_written_with_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("nowhere", folder.path().join("seeds")).unwrap();
    let instance = instance_in(folder.path());
    let report = write_seed(&instance, &password(), folder.path(), Replace::Refuse).unwrap();
    assert!(report.path.exists());
    let [warning] = &report.warnings[..] else { panic!("{:?}", report.warnings) };
    assert!(warning.ends_with("the next seed will not be compared with this one's instance id"), "{warning}");
}

#[test]
fn a_state_folder_that_cannot_be_looked_into_is_told_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, b"").unwrap();
    let instance = instance_in(folder.path());
    let error = write_seed(&instance, &password(), &file.join("state"), Replace::Refuse).unwrap_err();
    assert_eq!(error.source().unwrap().to_string(), "reading what the last seed said failed");
    assert!(!folder.path().join("seed.iso").exists());
}

#[test]
fn a_file_that_is_no_seed_is_not_replaced_by_one_and_a_seed_is() {
    let folder = tempfile::tempdir().unwrap();
    for format in [SeedFormat::Nocloud, SeedFormat::ConfigDrive, SeedFormat::NocloudVfat] {
        let mut instance = instance_in(folder.path());
        spec(&mut instance).format = Some(format);
        let path = spec(&mut instance).path.clone();
        let write = || try_compose(&instance, &password()).unwrap().stage();
        let _ = fs::remove_file(&path);
        write().unwrap().publish(Replace::Existing).unwrap();
        write().expect("a seed that is there may be replaced").publish(Replace::Existing).unwrap();
        for other in [b"#!/bin/sh\n".to_vec(), vec![7; 5 << 20], vec![0; 1 << 20]] {
            fs::write(&path, &other).unwrap();
            let error = write().err().expect("anything else may not");
            assert_eq!(error.kind(), crate::error::ErrorKind::Identity, "{format:?}");
            assert_eq!(fs::read(&path).unwrap(), other);
        }
        fs::write(&path, b"").unwrap();
        write().expect("nothing is lost with an empty file");
    }
}
