//! What people and other programs write for a rebuild: manifests, plans, keys, hashes, user-data, signatures.

use std::path::{Path, PathBuf};

use reimage::{
    BoundPlan, Credential, ErrorKind, ImageOptions, InstanceSpec, Manifest, ManifestSource, Password,
    PasswordHash, Preflight, Replace, SeedFormat, SeedSpec, SshKey, TrustKey,
};

use serde_json::{Value, json};

use super::json::{damaged_json, each_value_otherwise};
use super::{MEMORY_MAX, check, check_inputs, contents, inputs, testdata};
use crate::random::Random;
use crate::stored;
use crate::watched::watched;

/// The root of a manifest's chunks, as ARCHITECTURE.md has it; `None` where they are none.
fn root_of(document: &Value) -> Option<String> {
    let mut table = document["virtual_size"].as_u64()?.to_le_bytes().to_vec();
    table.extend(document["chunk_size"].as_u64()?.to_le_bytes());
    for run in document["chunks"].as_array()? {
        for (digest, index) in run["digests"].as_array()?.iter().zip(run["first"].as_u64()?..) {
            table.extend(index.to_le_bytes());
            table.extend(*blake3::Hash::from_hex(digest.as_str()?).ok()?.as_bytes());
        }
    }
    Some(blake3::hash(&table).to_string())
}

/// Takes a manifest; what it says then must be true of itself.
fn manifest(input: &[u8]) -> bool {
    let Ok(manifest) = Manifest::from_json(input) else { return false };
    let text = manifest.to_json();
    let again = Manifest::from_json(text.as_bytes()).expect("what was taken is taken again");
    assert_eq!(again.to_json(), text);
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["root"].as_str(), root_of(&document).as_deref(), "the root is that of the chunks");
    let given: Value = serde_json::from_slice(input).unwrap();
    assert_eq!(given["root"], document["root"], "the root is what the manifest says");
    let mut end = 0;
    for range in document["made"]["filled"].as_array().into_iter().flatten() {
        let (offset, len) = (range["offset"].as_u64().unwrap(), range["len"].as_u64().unwrap());
        assert!(len > 0 && offset >= end, "ranges are in order, and none is empty");
        end = offset + len;
        assert!(end <= document["virtual_size"].as_u64().unwrap(), "they lie on the disk");
    }
    true
}

#[test]
fn damaged_manifests_are_taken_or_refused() {
    let corpus = contents(&["fuzz/manifest"]);
    check("manifest", &corpus, manifest);
    let mut whole: Value = serde_json::from_slice(&corpus[0]).unwrap();
    whole["gpt_head"] = json!([{"offset": 512, "bytes": "00ff".repeat(46)}, {"offset": 1024, "bytes": "aa"}]);
    whole["made"]["filled"] = json!([{"offset": 0, "len": 512}, {"offset": 4096, "len": 4096}]);
    let harmed = inputs(600).map(|rng_seed| {
        let mut random = Random::new(rng_seed);
        let mut document = damaged_json(&whole, &mut random);
        // A wrong root would hide all else.
        if !random.once_in(4)
            && let Some(root) = root_of(&document)
            && document.is_object()
        {
            document["root"] = json!(root);
        }
        (rng_seed, document.to_string().into_bytes())
    });
    let each =
        each_value_otherwise(&whole).into_iter().map(|document| (0, document.to_string().into_bytes()));
    let whole = std::iter::once((0, whole.to_string().into_bytes()));
    check_inputs("manifest-json", whole.chain(each).chain(harmed), manifest);
}

/// The digest of a plan, as serde_json writes the rest of it.
fn digest_of(plan: &Value) -> String {
    let mut plan = plan.clone();
    if let Value::Object(fields) = &mut plan {
        fields.remove("digest");
    }
    blake3::hash(plan.to_string().as_bytes()).to_string()
}

/// Takes a plan, which binds by what its digest is of.
fn plan(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input);
    let is_taken = BoundPlan::from_json(&text).is_ok();
    let is_whole = || {
        let document: Value = serde_json::from_str(&text).unwrap();
        document["digest"].as_str() == Some(&digest_of(&document))
    };
    assert!(!is_taken || is_whole(), "a plan is taken that is not what its digest was made of");
    is_taken
}

#[test]
fn damaged_plans_are_taken_or_refused() {
    let corpus = contents(&["fuzz/plan"]);
    check("plan", &corpus, plan);
    let whole: Value = serde_json::from_slice(&corpus[0]).unwrap();
    let harmed = inputs(300).map(|rng_seed| {
        let mut random = Random::new(rng_seed);
        let mut document = damaged_json(&whole, &mut random);
        if random.once_in(2) && document.get("digest").is_some() {
            document["digest"] = json!(digest_of(&document));
        }
        (rng_seed, document.to_string().into_bytes())
    });
    let each =
        each_value_otherwise(&whole).into_iter().map(|document| (0, document.to_string().into_bytes()));
    check_inputs("plan-json", each.chain(harmed), plan);
}

#[test]
fn damaged_ssh_keys_are_taken_or_refused() {
    let lines = contents(&["seed/ssh-keys-accepted.pub", "seed/ssh-key-rsa-1024.pub"]).concat();
    let lines: Vec<_> = lines.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    check("ssh-key", &lines, |input| {
        let Ok(key) = SshKey::parse(&String::from_utf8_lossy(input)) else { return false };
        let line = key.to_string();
        assert!(!line.chars().any(|c| c.is_control() && c != '\t'), "a key is one line: {line:?}");
        assert_eq!(SshKey::parse(&line).expect("what was taken is taken again"), key);
        true
    });
    // What would end a line of authorized_keys, or steer who reads it, anywhere in a comment.
    for line in lines.iter().filter_map(|line| std::str::from_utf8(line).ok()) {
        for c in [
            '\0', '\n', '\r', '\u{b}', '\u{c}', '\u{1b}', '\u{7f}', '\u{85}', '\u{9b}', '\u{2028}',
            '\u{2029}',
        ] {
            for text in [
                format!("{line} a{c}b"),
                format!("{line} a {c}"),
                format!("{line}{c} b"),
                format!("{c}{line}"),
            ] {
                assert!(SshKey::parse(&text).is_err(), "{text:?} is taken");
            }
        }
    }
}

#[test]
fn damaged_public_keys_are_taken_or_refused() {
    let corpus = contents(&["trust/minisign.pub", "trust/other.pub"]);
    check("trust-key", &corpus, |input| TrustKey::parse(&String::from_utf8_lossy(input)).is_ok());
}

#[test]
fn damaged_passwords_and_their_hashes_are_taken_or_refused() {
    let corpus = contents(&["seed/sha512-crypt-ascii.txt", "seed/sha512-crypt-unicode.txt"]);
    check("password-hash", &corpus, |input| PasswordHash::from_file_bytes(input.to_vec()).is_ok());
    check("password", &corpus, |input| Password::from_file_bytes(input.to_vec()).is_ok());
}

/// A seed with what the caller brings for the guest.
fn seed(input: &[u8], set: fn(&mut SeedSpec, PathBuf)) -> bool {
    let folder = stored::scratch();
    let file = folder.path().join("brought");
    std::fs::write(&file, input).unwrap();
    let credential = Credential::password(Password::new("correct horse battery staple".to_owned()).unwrap());
    let written = |format| {
        let mut instance = InstanceSpec::default();
        let mut spec = SeedSpec::at(folder.path().join("seed.iso"));
        spec.format = Some(format);
        set(&mut spec, file.clone());
        instance.seed = Some(spec);
        let result =
            reimage::write_seed(&instance, &credential, &folder.path().join("state"), Replace::Existing);
        match result {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::Credentials => false,
            Err(error) => panic!("another error than one of the request: {error:?}"),
        }
    };
    // FAT has rules of its own, and so has what is in it.
    let vfat = written(SeedFormat::NocloudVfat);
    written(SeedFormat::Nocloud) || vfat
}

#[test]
fn damaged_user_data_is_taken_or_refused() {
    let parse = |input: &[u8]| seed(input, |spec, file| spec.user_data = Some(file));
    for (open, close) in [("[", "]"), ("{b: ", "}"), ("- ", "")] {
        for times in [1, 10, 100, 1000, 20_000] {
            let deep = format!("#cloud-config\na:\n {}1{}\n", open.repeat(times), close.repeat(times));
            let (taken, memory) = watched(move || parse(deep.as_bytes())).unwrap();
            assert!(memory <= MEMORY_MAX, "{memory} bytes of memory");
            // Who reads it recurses, so that there is a bound.
            assert_eq!(taken, times <= 10, "{times} times {open:?}");
        }
    }
    check("user-data", &contents(&["fuzz/user-data"]), parse);
}

#[test]
fn damaged_network_configurations_are_taken_or_refused() {
    check("network-config", &contents(&["fuzz/network-config"]), |input| {
        seed(input, |spec, file| spec.network_config = Some(file))
    });
}

/// An image with a signed manifest, of which one file is changed.
fn inspect_signed(folder: &Path) -> Result<(), reimage::Error> {
    let image = folder.join("zlib-64k.qcow2");
    let key = std::fs::read_to_string(testdata("trust/minisign.pub")).unwrap();
    let mut options = ImageOptions::default();
    options.manifest = ManifestSource::Beside;
    options.trust_keys = vec![TrustKey::parse(&key).unwrap()];
    reimage::inspect(&image, &options, Preflight::Auto, &()).map(drop)
}

#[test]
fn a_changed_manifest_is_never_taken_as_signed() {
    let names = ["zlib-64k.qcow2.manifest.json", "zlib-64k.qcow2.manifest.json.minisig"];
    let whole = names.map(|name| std::fs::read(testdata("trust").join(name)).unwrap());
    let image = stored::unpacked("zlib-64k.qcow2");
    let mut refused = 0;
    for rng_seed in super::inputs(100) {
        let folder = stored::scratch();
        std::fs::write(folder.path().join("zlib-64k.qcow2"), &image).unwrap();
        let mut random = Random::new(rng_seed);
        let changed = random.place(2);
        for (number, name) in names.iter().enumerate() {
            let content = match number == changed {
                true => super::damaged(&[whole[number].clone()], &mut random),
                false => whole[number].clone(),
            };
            std::fs::write(folder.path().join(name), &content).unwrap();
        }
        let path = folder.path().to_owned();
        let (result, _) = watched(move || inspect_signed(&path).map_err(|error| error.kind()))
            .unwrap_or_else(|why| panic!("rng_seed {rng_seed}: {why}"));
        refused += u64::from(result.is_err());
        let same = std::fs::read(folder.path().join(names[0])).unwrap() == whole[0];
        assert!(result.is_err() || same, "rng_seed {rng_seed}: a changed manifest is taken as signed");
    }
    assert!(refused > 10, "{refused} were refused");
}
