//! What people and other programs write for a rebuild: manifests, plans, keys, hashes, user-data, signatures.

use std::path::{Path, PathBuf};

use reimage::{
    BoundPlan, Credential, ErrorKind, ImageOptions, InstanceSpec, Manifest, ManifestSource, Password,
    PasswordHash, Preflight, Replace, SeedFormat, SeedSpec, SshKey, TrustKey,
};

use super::{check, contents, testdata};
use crate::random::Random;
use crate::stored;
use crate::watched::watched;

#[test]
fn damaged_manifests_are_taken_or_refused() {
    check("manifest", &contents(&["fuzz/manifest"]), |input| Manifest::from_json(input).is_ok());
}

#[test]
fn damaged_plans_are_taken_or_refused() {
    let parse = |input: &[u8]| BoundPlan::from_json(&String::from_utf8_lossy(input)).is_ok();
    check("plan", &contents(&["fuzz/plan"]), parse);
}

#[test]
fn damaged_ssh_keys_are_taken_or_refused() {
    let lines = contents(&["seed/ssh-keys-accepted.pub", "seed/ssh-key-rsa-1024.pub"]).concat();
    let lines: Vec<_> = lines.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    check("ssh-key", &lines, |input| SshKey::parse(&String::from_utf8_lossy(input)).is_ok());
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
    check("user-data", &contents(&["fuzz/user-data"]), |input| {
        seed(input, |spec, file| spec.user_data = Some(file))
    });
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
