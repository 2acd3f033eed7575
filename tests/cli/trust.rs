//! Signed lists and policies: nobody gets a disk from an image that is not trusted, and no flag takes a policy back.

use std::fs;
use std::os::unix::fs::symlink;

use crate::refusals::{refused, room};
use crate::support::{Room, text};

fn fixture(name: &str) -> String {
    format!("{}/testdata/trust/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// The list, under the name of its image, with this signature; `SHA256SUMS` and its keyring, in the room.
fn list(room: &Room, ending: &str) -> [String; 4] {
    let list = room.path("SHA256SUMS");
    fs::copy(fixture("SHA256SUMS"), &list).unwrap();
    fs::copy(fixture(&format!("SHA256SUMS.{ending}")), room.path("SHA256SUMS.gpg")).unwrap();
    ["--sha256sums", text(&list), "--keyring", &fixture("keyring.gpg")].map(str::to_owned)
}

fn words<'a>(image: &'a str, disk: &'a std::path::Path, more: &'a [String]) -> Vec<&'a str> {
    [image, text(disk)].into_iter().chain(more.iter().map(String::as_str)).collect()
}

#[test]
fn a_list_without_a_keyring_and_a_keyring_without_a_list_are_2() {
    let (room, image, disk) = room();
    let disk_text = text(&disk);
    for (flag, other) in [("--sha256sums", "--keyring"), ("--keyring", "--sha256sums")] {
        let error = refused(&room, &[&image, disk_text, flag, "x"], 2, &disk);
        assert!(error["hint"].as_str().unwrap().contains(other), "{error}");
    }
}

#[test]
fn what_is_named_and_cannot_be_read_is_2() {
    let (room, image, disk) = room();
    let keyring = fixture("keyring.gpg");
    let armoured = text(&room.file("armoured", "-----BEGIN PGP PUBLIC KEY BLOCK-----\n")).to_owned();
    let sums = fixture("SHA256SUMS");
    for flags in [
        ["--sha256sums", "missing", "--keyring", &keyring],
        ["--sha256sums", "/dev/zero", "--keyring", &keyring],
        ["--sha256sums", &sums, "--keyring", "missing"],
        ["--sha256sums", &sums, "--keyring", &armoured],
        ["--trust-key", "missing", "--trust-key", "missing"],
        ["--trust-key", "/dev/zero", "--trust-key", &keyring],
        ["--trust-key", &fixture("minisign.pub"), "--trust-key", &fixture("signed.txt.minisig")],
    ] {
        let error = refused(&room, &[&[&*image, text(&disk)], &flags[..]].concat(), 2, &disk);
        assert_ne!(error["path"], serde_json::Value::Null, "{error}");
    }
}

#[test]
fn a_list_that_nobody_has_signed_is_21() {
    let (room, image, disk) = room();
    let list = text(&room.file("SHA256SUMS", fs::read(fixture("SHA256SUMS")).unwrap())).to_owned();
    let flags = ["--sha256sums", &list, "--keyring", &fixture("keyring.gpg")];
    let error = refused(&room, &[&[&*image, text(&disk)], &flags[..]].concat(), 21, &disk);
    assert!(error["message"].as_str().unwrap().contains("no signature of the list"), "{error}");
}

#[test]
#[ignore = "needs gpgv"]
fn an_image_of_a_signed_list_is_taken_and_its_signer_is_told() {
    for ending in ["gpg", "armoured", "both"] {
        let (room, image, disk) = room();
        let flags = list(&room, ending);
        let plan = room.run("plan", &words(&image, &disk, &flags)).document();
        assert_eq!(plan["signatures"][0]["kind"], "openpgp", "{plan}");
        let fingerprint = fs::read_to_string(fixture("good.fingerprint")).unwrap();
        assert_eq!(plan["signatures"][0]["fingerprint"], fingerprint.trim_end());
        room.rebuild(&words(&image, &disk, &flags)).document();
    }
    let (room, image, disk) = room();
    let flags = ["--sha256sums", &fixture("SHA256SUMS.clear"), "--keyring", &fixture("keyring.gpg")];
    room.rebuild(&[&[&*image, text(&disk)], &flags[..]].concat()).document();
}

#[test]
#[ignore = "needs gpgv"]
fn another_image_signature_or_list_is_21() {
    let (room, image, disk) = room();
    for ending in ["other", "expired", "revoked", "lapsed", "sha1", "inside", "clear"] {
        refused(&room, &words(&image, &disk, &list(&room, ending)), 21, &disk);
    }
    let flags = list(&room, "gpg");
    // Not listed; listed with another digest; a name that is not the list's; a byte that is not the image's.
    let not_listed = text(&room.image("zlib-2m")).to_owned();
    let wrong = text(&room.image("v3-64k")).to_owned();
    let renamed = room.path("renamed.qcow2");
    fs::copy(&image, &renamed).unwrap();
    for image in [&*not_listed, &wrong, text(&renamed)] {
        refused(&room, &words(image, &disk, &flags), 21, &disk);
        refused(&room, &[&words(image, &disk, &flags)[..], &["--preflight", "tables"]].concat(), 21, &disk);
    }
    fs::OpenOptions::new()
        .append(true)
        .open(&image)
        .unwrap()
        .set_len(fs::metadata(&image).unwrap().len() + 1)
        .unwrap();
    refused(&room, &words(&image, &disk, &flags), 21, &disk);
    // An entry that somebody put in.
    let sums = room.path("SHA256SUMS");
    fs::write(&sums, [fs::read(&sums).unwrap(), b"\n".to_vec()].concat()).unwrap();
    refused(&room, &words(&image, &disk, &flags), 21, &disk);
}

#[test]
fn a_list_does_not_speak_for_a_backing_file() {
    let (room, _, disk) = room();
    let image = chain(&room);
    let folder = text(room.path("").as_path()).to_owned();
    let flags = list(&room, "gpg");
    let words = [&words(&image, &disk, &flags)[..], &["--allow-backing", &folder]].concat();
    let error = refused(&room, &words, 21, &disk);
    assert!(error["message"].as_str().unwrap().contains("backing file"), "{error}");
}

/// An image with a backing file, both in the room.
fn chain(room: &Room) -> String {
    room.image("zlib-64k");
    fs::rename(room.image("chain-over-zlib"), room.path("top.qcow2")).unwrap();
    text(&room.path("top.qcow2")).to_owned()
}

#[test]
fn a_policy_that_is_not_understood_lets_nothing_run() {
    let (room, image, disk) = room();
    for (lines, part) in [
        ("forbid_backing = true\ncolour = \"red\"", "line 2"),
        ("forbid_backing = \"yes\"", "line 1"),
        ("allowed_image_folders = [\"images\"]", "not absolute"),
        ("allowed_keys = [\"missing.pub\"]", "missing.pub"),
        ("allowed_keys = [\"policy.toml\"]", "no minisign public key"),
        ("require_signed_manifests = true", "names no key"),
        ("[", "line 1"),
    ] {
        let policy = room.file("policy.toml", lines);
        let error = refused(&room, &[&image, text(&disk), "--policy", text(&policy)], 2, &disk);
        assert!(error["message"].as_str().unwrap().contains(part), "{lines}: {error}");
        room.plain(&["verify", &image, text(&disk), "--policy", text(&policy), "--json"]).error(2);
    }
    refused(&room, &[&image, text(&disk), "--policy", "missing.toml"], 2, &disk);
    refused(&room, &[&image, text(&disk), "--policy", text(room.path("").as_path())], 2, &disk);
}

#[test]
fn an_image_outside_the_allowed_folders_is_20_and_the_policy_is_named() {
    let (room, image, disk) = room();
    fs::create_dir(room.path("images")).unwrap();
    let allowed = room.path("images/zlib-64k.qcow2");
    fs::copy(&image, &allowed).unwrap();
    let line = format!("allowed_image_folders = [{:?}]\n", room.path("images"));
    let policy = text(&room.file("policy.toml", line)).to_owned();
    symlink(&image, room.path("images/link.qcow2")).unwrap();
    for image in [&*image, text(&room.path("images/link.qcow2"))] {
        let error = refused(&room, &[image, text(&disk), "--policy", &policy], 20, &disk);
        assert!(error["message"].as_str().unwrap().contains("policy.toml"), "{error}");
        let target = text(&disk);
        let verified = room.plain(&["verify", image, target, "--policy", &policy, "--json"]);
        verified.error(20);
    }
    room.rebuild(&[text(&allowed), text(&disk), "--policy", &policy]).document();
    // A second policy tightens, whatever the first allows.
    let none = text(&room.file("none.toml", "allowed_image_folders = []")).to_owned();
    for policies in [[&policy, &none], [&none, &policy]] {
        let flags = ["--policy", policies[0], "--policy", policies[1]];
        let words = [&[text(&allowed), text(&disk)], &flags[..]].concat();
        let error = refused(&room, &words, 20, &disk);
        assert!(error["message"].as_str().unwrap().contains("none.toml"), "{error}");
    }
}

#[test]
fn backing_files_that_a_policy_forbids_are_20_whatever_the_flags_allow() {
    let (room, _, disk) = room();
    let image = chain(&room);
    let folder = text(room.path("").as_path()).to_owned();
    let words = [&*image, text(&disk), "--allow-backing", &folder];
    let policy = text(&room.file("policy.toml", "forbid_backing = true")).to_owned();
    let error = refused(&room, &[&words[..], &["--policy", &policy]].concat(), 20, &disk);
    assert!(error["message"].as_str().unwrap().contains("policy.toml"), "{error}");
    // The base lies outside, too.
    fs::create_dir(room.path("images")).unwrap();
    fs::rename(&image, room.path("images/zlib-64k.qcow2")).unwrap();
    let line = format!("allowed_image_folders = [{:?}]\n", room.path("images"));
    let policy = text(&room.file("policy.toml", line)).to_owned();
    fs::rename(room.path("images/zlib-64k.qcow2"), room.path("images/top.qcow2")).unwrap();
    symlink(room.path("zlib-64k.qcow2"), room.path("images/zlib-64k.qcow2")).unwrap();
    let inside = text(&room.path("images/top.qcow2")).to_owned();
    let words = [&*inside, text(&disk), "--allow-backing", &folder, "--policy", &policy];
    let error = refused(&room, &words, 20, &disk);
    assert!(error["path"].as_str().unwrap().ends_with("/zlib-64k.qcow2"), "{error}");
}

#[test]
fn a_key_that_a_policy_does_not_allow_is_21() {
    let (room, image, disk) = room();
    let mine = fixture("minisign.pub");
    let other = fs::read_to_string(fixture("other.pub")).unwrap();
    let line = format!("allowed_keys = [{:?}]", other.lines().nth(1).unwrap());
    let policy = text(&room.file("policy.toml", line)).to_owned();
    let error = refused(&room, &[&image, text(&disk), "--policy", &policy, "--trust-key", &mine], 21, &disk);
    assert!(error["message"].as_str().unwrap().contains("policy.toml"), "{error}");
}

/// The manifest of the room's image, signed by `minisign.pub`, beside the image of that name.
fn signed_manifest(room: &Room, image: &str) -> std::path::PathBuf {
    for ending in [".manifest.json", ".manifest.json.minisig"] {
        let to = format!("{image}{ending}");
        fs::copy(fixture(&format!("zlib-64k.qcow2{ending}")), room.path(&to)).unwrap();
    }
    room.path(&format!("{image}.manifest.json"))
}

#[test]
fn an_image_with_a_signed_manifest_is_taken_and_its_signer_is_told() {
    let (room, image, disk) = room();
    let manifest = signed_manifest(&room, "zlib-64k.qcow2");
    let [mine, other] = [fixture("minisign.pub"), fixture("other.pub")];
    let words = [&*image, text(&disk), "--trust-key", &other, "--trust-key", &mine];
    let plan = room.run("plan", &words).document();
    let key = fs::read_to_string(&mine).unwrap();
    let id = key.lines().next().unwrap().rsplit(' ').next().unwrap();
    assert_eq!(plan["signatures"], serde_json::json!([{ "kind": "minisign", "key": id }]));
    assert!(plan["manifest"]["image_file"].is_string(), "the file is compared: {plan}");
    for verb in [&["plan"][..], &["rebuild", "--yes"]] {
        let more = ["--keep-image-credentials", "--state-dir", "state"];
        let ran = room.plain(&[verb, &words[..], &more[..]].concat());
        assert!(ran.stdout.contains(&format!("signed by   the minisign key {id}\n")), "{ran:?}");
    }
    room.rebuild(&words).document();
    room.plain(&["verify", text(&manifest), text(&disk), "--trust-key", &mine, "--json"]).document();
    room.plain(&["verify", text(&manifest), text(&disk), "--trust-key", &other, "--json"]).error(21);
    // Nobody asks, and nobody is told.
    assert_eq!(room.run("plan", &[&image, text(&disk)]).document()["signatures"], serde_json::json!([]));
}

#[test]
fn a_manifest_that_is_not_signed_as_it_should_be_is_21() {
    let (room, image, disk) = room();
    let [mine, other] = [fixture("minisign.pub"), fixture("other.pub")];
    let words = [&*image, text(&disk), "--trust-key", &mine];
    let error = refused(&room, &words, 21, &disk);
    assert!(error["hint"].as_str().unwrap().contains(".minisig"), "{error}");
    let manifest = signed_manifest(&room, "zlib-64k.qcow2");
    refused(&room, &[&image, text(&disk), "--trust-key", &other], 21, &disk);
    let error = refused(&room, &[&words[..], &["--manifest", "none"]].concat(), 21, &disk);
    assert!(error["hint"].as_str().unwrap().starts_with("leave --manifest none out"), "{error}");
    // Another image under the name, with the right size of the disk.
    let right = fs::read(&image).unwrap();
    let wrong = fs::read(room.image("v3-64k")).unwrap();
    for (bytes, flags) in
        [(&wrong, &[][..]), (&wrong, &["--preflight", "tables"]), (&right[..right.len() - 1].to_vec(), &[])]
    {
        fs::write(&image, bytes).unwrap();
        refused(&room, &[&words[..], flags].concat(), 21, &disk);
    }
    fs::write(&image, &right).unwrap();
    // The digest of one chunk.
    let signed = fs::read_to_string(&manifest).unwrap();
    let at = signed.find("\"digests\"").unwrap() + 30;
    assert!(signed.as_bytes()[at].is_ascii_hexdigit(), "{signed}");
    let digit = if &signed[at..=at] == "0" { "1" } else { "0" };
    fs::write(&manifest, format!("{}{digit}{}", &signed[..at], &signed[at + 1..])).unwrap();
    let error = refused(&room, &words, 21, &disk);
    assert!(error["message"].as_str().unwrap().contains("signature"), "{error}");
    fs::write(&manifest, &signed).unwrap();
    room.run("plan", &words).document();
    fs::remove_file(room.path("zlib-64k.qcow2.manifest.json.minisig")).unwrap();
    let error = refused(&room, &words, 21, &disk);
    assert!(error["path"].as_str().unwrap().ends_with(".minisig"), "{error}");
}

#[test]
fn a_policy_that_wants_signed_manifests_gets_them_whatever_the_flags_are() {
    let (room, image, disk) = room();
    let lines = format!("require_signed_manifests = true\nallowed_keys = [{:?}]\n", fixture("minisign.pub"));
    let policy = text(&room.file("policy.toml", lines)).to_owned();
    let words = [&*image, text(&disk), "--policy", &policy];
    refused(&room, &words, 21, &disk);
    let manifest = signed_manifest(&room, "zlib-64k.qcow2");
    let [plain, other] = [text(&room.path("plain.json")).to_owned(), fixture("other.pub")];
    fs::copy(&manifest, &plain).unwrap();
    for flags in [["--manifest", "none"], ["--manifest", &plain], ["--trust-key", &other]] {
        refused(&room, &[&words[..], &flags].concat(), 21, &disk);
        let verify = ["verify", &image, text(&disk), "--policy", &policy, "--json"];
        room.plain(&[&verify[..], &flags].concat()).error(21);
    }
    room.plain(&["verify", &plain, text(&disk), "--policy", &policy, "--json"]).error(21);
    let report = room.rebuild(&[&words[..], &["--preflight", "tables"]].concat()).document();
    assert_eq!(report["plan"]["signatures"][0]["kind"], "minisign", "{report}");
    room.plain(&["verify", text(&manifest), text(&disk), "--policy", &policy, "--json"]).document();
}
