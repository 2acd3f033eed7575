//! Whose images are taken: keys and lists that are named, and the policy of the host, which no flag replaces.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use reimage::{BackingPolicy, Options, Policy, SignedManifests, SignedSums, TrustKey};
use serde::Deserialize;

use crate::args::TrustArgs;
use crate::exit::Failure;
use crate::request::not_toml;

/// The policy of this host.
const HOST_POLICY: &str = "/etc/reimage/policy.toml";
const POLICY_MAX: u64 = 64 << 10;
const KEY_MAX: u64 = 4096;

/// How many links a name may go through, as the kernel has it (path_resolution(7)).
const LINKS_MAX: usize = 40;

/// Adds what was typed, and the host's policy, to the options.
pub(crate) fn apply(options: &mut Options, args: &TrustArgs) -> Result<(), Failure> {
    options.policies = policies(args)?;
    options.image.trust_keys =
        args.trust_key.iter().map(|path| read_key(path, Owner::Anyone)).collect::<Result<_, _>>()?;
    options.image.sums = match (&args.sha256sums, &args.keyring) {
        (Some(list), Some(keyring)) => Some(SignedSums::new(list, keyring)),
        (None, None) => None,
        (Some(_), None) => {
            return Err(Failure::usage("--sha256sums is given without --keyring").hinting(
                "give the publisher's keys with --keyring FILE: a list that nobody signed does not tell where an \
                 image comes from (for a digest alone there is --expect-digest)",
            ));
        }
        (None, Some(_)) => {
            return Err(Failure::usage("--keyring is given without --sha256sums")
                .hinting("name the signed list with --sha256sums FILE"));
        }
    };
    Ok(())
}

/// The host's policy, if it has one, and those that were typed; every one of them must be met.
fn policies(args: &TrustArgs) -> Result<Vec<Policy>, Failure> {
    let host = Path::new(HOST_POLICY);
    let mut policies = Vec::new();
    // Whatever is the matter: where there may be a policy, nothing runs without it.
    if !is_missing(host) {
        policies.push(read_policy(host, Owner::Root)?);
    }
    for path in &args.policy {
        policies.push(read_policy(path, Owner::Anyone)?);
    }
    Ok(policies)
}

/// Whether there is certainly no such file: its folder is not there, or is a real one without it.
///
/// Behind a link that leads nowhere there may be one when what it leads to is there again.
fn is_missing(policy: &Path) -> bool {
    let folder = policy.parent().unwrap_or(Path::new("/"));
    match folder.symlink_metadata() {
        Ok(found) if !found.is_dir() => false,
        Ok(_) => not_found(&policy.symlink_metadata()),
        missing => not_found(&missing),
    }
}

fn not_found(found: &io::Result<Metadata>) -> bool {
    matches!(found, Err(error) if error.kind() == io::ErrorKind::NotFound)
}

/// A policy as its file says it.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PolicyFile {
    require_signed_manifests: bool,
    allowed_keys: Option<Vec<String>>,
    allowed_image_folders: Option<Vec<PathBuf>>,
    forbid_backing: bool,
}

fn read_policy(path: &Path, owner: Owner) -> Result<Policy, Failure> {
    let text = read("the policy", path, (owner, POLICY_MAX))?;
    let file: PolicyFile =
        toml::from_str(&text).map_err(|error| not_toml("the policy", path, (&text, &error)))?;
    let relative = |folder: &&PathBuf| !folder.is_absolute();
    if let Some(folder) = file.allowed_image_folders.iter().flatten().find(relative) {
        return Err(Failure::usage(format!("the policy {path:?}: the folder {folder:?} is not absolute"))
            .hinting("name folders from / on")
            .at(path));
    }
    let mut policy = Policy::default();
    policy.file = Some(path.to_owned());
    if file.require_signed_manifests {
        policy.signed_manifests = SignedManifests::Required;
    }
    if file.forbid_backing {
        policy.backing = BackingPolicy::Forbidden;
    }
    policy.allowed_image_folders = file.allowed_image_folders;
    let folder = path.parent().unwrap_or(Path::new(""));
    let key = |word: &String| match TrustKey::parse(word) {
        Ok(key) => Ok(key),
        Err(_) => read_key(&folder.join(word), owner),
    };
    policy.allowed_keys = file.allowed_keys.map(|keys| keys.iter().map(key).collect()).transpose()?;
    Ok(policy)
}

fn read_key(path: &Path, owner: Owner) -> Result<TrustKey, Failure> {
    let text = read("the public key", path, (owner, KEY_MAX))?;
    TrustKey::parse(&text).map_err(|error| Failure::From { path: path.to_owned(), error })
}

/// Who may be able to change a file that is relied on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// Root alone: it binds everybody else.
    Root,
    /// Whoever: it binds only who names it.
    Anyone,
}

fn read(what: &str, path: &Path, (owner, most): (Owner, u64)) -> Result<String, Failure> {
    let unreadable = |error: io::Error| {
        Failure::usage(format!("{what} {path:?} cannot be read: {error}"))
            .hinting("correct its path, its rights or its content")
            .at(path)
    };
    let real = match owner {
        Owner::Anyone => path.to_owned(),
        Owner::Root => resolve(path, 0).map_err(unreadable)?.map_err(|fault| {
            Failure::usage(format!("{what} {path:?} cannot be relied on: {fault}"))
                .hinting("let it and every folder above it belong to root, and let nobody else write to them")
                .at(path)
        })?,
    };
    // A pipe must not make anybody wait.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).expect("flags fit");
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(&real).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(unreadable(io::Error::new(io::ErrorKind::InvalidInput, "it is no plain file")));
    }
    let mut text = String::new();
    let len = file.take(most + 1).read_to_string(&mut text).map_err(unreadable)?;
    if len as u64 > most {
        return Err(unreadable(io::Error::other(format!("it is longer than {most} bytes"))));
    }
    Ok(text)
}

/// Follows a name link by link, and says what on the way somebody else than root and `owner` could change.
fn resolve(path: &Path, owner: u32) -> io::Result<Result<PathBuf, String>> {
    let absolute = std::path::absolute(path)?;
    let mut left: VecDeque<OsString> = parts(&absolute);
    let (mut at, mut links) = (PathBuf::from("/"), 0);
    if let Some(fault) = weakness(&at, &at.symlink_metadata()?, owner) {
        return Ok(Err(fault));
    }
    while let Some(part) = left.pop_front() {
        if part == ".." {
            at.pop();
            continue;
        }
        let next = at.join(part);
        let found = next.symlink_metadata()?;
        if let Some(fault) = weakness(&next, &found, owner) {
            return Ok(Err(fault));
        }
        if !found.is_symlink() {
            at = next;
            continue;
        }
        links += 1;
        if links > LINKS_MAX {
            return Ok(Err(format!("{path:?} goes through more than {LINKS_MAX} links")));
        }
        let link = fs::read_link(&next)?;
        if link.is_absolute() {
            at = PathBuf::from("/");
        }
        for part in parts(&link).into_iter().rev() {
            left.push_front(part);
        }
    }
    Ok(Ok(at))
}

fn parts(path: &Path) -> VecDeque<OsString> {
    let part = |part: Component<'_>| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    };
    path.components().filter_map(part).collect()
}

/// Why somebody else could change it, or what it leads to.
fn weakness(path: &Path, found: &Metadata, owner: u32) -> Option<String> {
    // In a folder with the sticky bit nobody renames or removes what is somebody else's.
    let sticky = found.is_dir() && found.mode() & 0o1000 != 0;
    match () {
        () if found.uid() != 0 && found.uid() != owner => {
            Some(format!("{path:?} belongs to user {}", found.uid()))
        }
        // The rights of a link say nothing.
        () if found.mode() & 0o022 != 0 && !sticky && !found.is_symlink() => {
            Some(format!("others than root may write to {path:?} (mode {:04o})", found.mode() & 0o7777))
        }
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// A folder of the test's own, with a file in it, that only its owner can change.
    fn safe() -> (tempfile::TempDir, PathBuf, u32) {
        let folder = tempfile::tempdir().unwrap();
        mode(folder.path(), 0o755);
        let file = folder.path().join("policy.toml");
        fs::write(&file, "").unwrap();
        mode(&file, 0o644);
        let owner = fs::metadata(&file).unwrap().uid();
        (folder, file, owner)
    }

    #[test]
    fn a_file_that_others_may_change_is_not_relied_on() {
        let (folder, file, owner) = safe();
        let real = file.canonicalize().unwrap();
        assert_eq!(resolve(&file, owner).unwrap(), Ok(real.clone()));
        for (path, loose, tight) in [
            (&*file, 0o664, 0o644),
            (&*file, 0o646, 0o644),
            (folder.path(), 0o775, 0o755),
            (folder.path(), 0o757, 0o755),
        ] {
            mode(path, loose);
            let fault = resolve(&file, owner).unwrap().unwrap_err();
            assert!(fault.contains("others than root may write"), "{fault}");
            mode(path, tight);
            assert_eq!(resolve(&file, owner).unwrap(), Ok(real.clone()));
        }
        mode(folder.path(), 0o1777);
        assert_eq!(resolve(&file, owner).unwrap(), Ok(real));
    }

    #[test]
    fn a_link_is_followed_through_folders_that_only_root_can_change() {
        let (folder, file, owner) = safe();
        let (loose, link) = (folder.path().join("loose"), folder.path().join("link.toml"));
        fs::create_dir(&loose).unwrap();
        symlink("../policy.toml", loose.join("hop.toml")).unwrap();
        symlink("loose/hop.toml", &link).unwrap();
        assert_eq!(resolve(&link, owner).unwrap(), Ok(file.canonicalize().unwrap()));
        mode(&loose, 0o777);
        let fault = resolve(&link, owner).unwrap().unwrap_err();
        assert!(fault.contains("loose"), "{fault}");
        symlink("round.toml", folder.path().join("round.toml")).unwrap();
        assert!(resolve(&folder.path().join("round.toml"), owner).unwrap().is_err());
        assert!(resolve(&folder.path().join("missing.toml"), owner).is_err());
    }

    #[test]
    fn a_policy_is_missing_only_where_no_link_could_lead_to_one() {
        let folder = tempfile::tempdir().unwrap();
        let here = |name: &str| folder.path().join(name);
        fs::create_dir(here("real")).unwrap();
        fs::create_dir(here("full")).unwrap();
        fs::write(here("full/policy.toml"), "").unwrap();
        fs::create_dir(here("linked")).unwrap();
        symlink("nowhere", here("linked/policy.toml")).unwrap();
        symlink("nowhere", here("dangling")).unwrap();
        symlink("real", here("link")).unwrap();
        fs::write(here("file"), "").unwrap();
        for (name, missing) in [
            ("none", true),
            ("real", true),
            ("full", false),
            ("linked", false),
            ("dangling", false),
            ("link", false),
            ("file", false),
        ] {
            assert_eq!(is_missing(&here(name).join("policy.toml")), missing, "{name}");
        }
    }

    #[test]
    fn what_belongs_to_another_user_is_not_relied_on() {
        let (_folder, file, owner) = safe();
        // Nobody owns by this number; root's own files count whoever asks.
        let fault = resolve(&file, u32::MAX - 1).unwrap();
        assert_eq!(fault.is_err(), owner != 0, "{fault:?}");
        if owner == 0 {
            std::os::unix::fs::chown(&file, Some(1), None).unwrap();
            let fault = resolve(&file, 0).unwrap().unwrap_err();
            assert!(fault.contains("belongs to user 1"), "{fault}");
        }
    }
}
