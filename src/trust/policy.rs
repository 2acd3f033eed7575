//! What a host's policies leave of a request: they are asked first, and nothing in the request takes them back.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::fault::TrustFault;
use super::manifest::requires;
use crate::error::Error;
use crate::request::{BackingPolicy, ImageOptions, Policy};

/// What the policies refuse of the request itself, before anything is opened.
pub(crate) fn check_request(image: &Path, options: &ImageOptions, policies: &[Policy]) -> Vec<Error> {
    let refused = |policy: &Policy| refusals(policy, options);
    policies.iter().flat_map(refused).map(|fault| fault.about(image)).collect()
}

/// Refuses what is about an image's file where a manifest stands for it.
///
/// # Errors
///
/// With kind `Usage`.
pub(crate) fn check_without_image(manifest: &Path, options: &ImageOptions) -> Result<(), Error> {
    match options.sums {
        Some(_) => Err(TrustFault::ListWithoutImage.about(manifest)),
        None => Ok(()),
    }
}

fn refusals(policy: &Policy, options: &ImageOptions) -> Vec<TrustFault> {
    let file = || policy.file.clone();
    let mut faults = Vec::new();
    if policy.backing == BackingPolicy::Forbidden && !options.allow_backing.is_empty() {
        faults.push(TrustFault::BackingForbidden { policy: file() });
    }
    if requires(policy) && policy.allowed_keys.is_none() {
        faults.push(TrustFault::NoKeyNamed { policy: file() });
    }
    if let Some(allowed) = &policy.allowed_keys {
        let others = options.trust_keys.iter().filter(|key| !allowed.contains(key));
        faults.extend(others.map(|key| TrustFault::KeyNotAllowed { policy: file(), id: key.id() }));
    }
    faults
}

/// A file of an image: its name when it was opened, and what it is.
pub(crate) struct Opened {
    pub(crate) path: PathBuf,
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// Refuses an image of which a file lies in no allowed folder.
///
/// The files are open already: what their names lead to must still be them.
///
/// # Errors
///
/// With kind `Image` and the file's path.
pub(crate) fn check_places(policies: &[Policy], files: &[Opened]) -> Result<(), Error> {
    for policy in policies {
        let Some(folders) = &policy.allowed_image_folders else { continue };
        let folders: Vec<_> = folders.iter().filter_map(|folder| folder.canonicalize().ok()).collect();
        for file in files {
            let place = place_of(file).map_err(|fault| fault.about(&file.path))?;
            // `starts_with` compares whole components.
            if !folders.iter().any(|folder| place.starts_with(folder)) {
                return Err(TrustFault::OutsideFolders { policy: policy.file.clone() }.about(&file.path));
            }
        }
    }
    Ok(())
}

fn place_of(file: &Opened) -> Result<PathBuf, TrustFault> {
    let look = || -> io::Result<_> {
        let place = file.path.canonicalize()?;
        let found = place.symlink_metadata()?;
        Ok((place, (found.dev(), found.ino())))
    };
    let (place, found) = look().map_err(TrustFault::Nowhere)?;
    if found == (file.device, file.inode) { Ok(place) } else { Err(TrustFault::Exchanged) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::request::{SignedManifests, TrustKey};
    use std::fs;
    use std::os::unix::fs::symlink;

    fn opened(path: &Path) -> Opened {
        let found = fs::metadata(path).unwrap();
        Opened { path: path.to_owned(), device: found.dev(), inode: found.ino() }
    }

    fn policy(folders: &[&Path]) -> Policy {
        let folders = folders.iter().map(|folder| (*folder).to_owned()).collect();
        Policy { allowed_image_folders: Some(folders), ..Policy::default() }
    }

    #[test]
    fn an_image_lies_where_its_name_leads_and_not_where_the_name_is() {
        let room = tempfile::tempdir().unwrap();
        let room = room.path();
        let (inside, alike, outside) =
            (room.join("images"), room.join("images-private"), room.join("outside"));
        for folder in [&inside, &alike, &outside] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("image"), b"").unwrap();
        }
        symlink(outside.join("image"), inside.join("out")).unwrap();
        symlink(inside.join("image"), outside.join("in")).unwrap();
        symlink(&inside, room.join("link")).unwrap();
        let gone = room.join("gone");
        for (path, folders, allowed) in [
            (inside.join("image"), &[&*inside][..], true),
            (inside.join("../images/image"), &[&inside], true),
            (outside.join("in"), &[&inside], true),
            (inside.join("image"), &[&room.join("link")], true),
            (inside.join("image"), &[&gone, &outside, &inside], true),
            (inside.join("image"), &[room], true),
            (inside.join("out"), &[&inside], false),
            (alike.join("image"), &[&inside], false),
            (outside.join("image"), &[&inside, &gone], false),
            (inside.join("image"), &[&inside.join("image-of-another")], false),
            (inside.join("image"), &[], false),
        ] {
            let found = check_places(&[policy(folders)], &[opened(&path)]);
            assert_eq!(found.is_ok(), allowed, "{path:?} in {folders:?}");
            let error = found.err().map(|error| (error.kind(), error.path().map(ToOwned::to_owned)));
            assert_eq!(error, (!allowed).then_some((ErrorKind::Image, Some(path))));
        }
    }

    #[test]
    fn every_file_must_satisfy_every_policy() {
        let room = tempfile::tempdir().unwrap();
        let (one, two) = (room.path().join("one"), room.path().join("two"));
        for folder in [&one, &two] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("image"), b"").unwrap();
        }
        let files = [opened(&one.join("image")), opened(&two.join("image"))];
        assert!(check_places(&[policy(&[room.path()]), policy(&[&one, &two])], &files).is_ok());
        assert!(check_places(&[policy(&[room.path()]), policy(&[&one])], &files).is_err());
        assert!(check_places(&[policy(&[&two]), policy(&[room.path()])], &files).is_err());
        assert!(check_places(&[Policy::default()], &files).is_ok());
    }

    #[test]
    fn a_name_that_leads_to_another_file_by_now_is_refused() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("image");
        fs::write(&path, b"").unwrap();
        let was = opened(&path);
        fs::write(room.path().join("new"), b"").unwrap();
        fs::rename(room.path().join("new"), &path).unwrap();
        assert_eq!(check_places(&[policy(&[room.path()])], &[was]).unwrap_err().kind(), ErrorKind::Image);
        let was = opened(&path);
        fs::remove_file(&path).unwrap();
        assert_eq!(check_places(&[policy(&[room.path()])], &[was]).unwrap_err().kind(), ErrorKind::Image);
    }

    #[test]
    fn a_request_takes_back_nothing_that_a_policy_demands() {
        let key = TrustKey::parse(include_str!("../../testdata/trust/minisign.pub")).unwrap();
        let other = TrustKey::parse(include_str!("../../testdata/trust/other.pub")).unwrap();
        let keys = |keys: &[&TrustKey]| Policy {
            allowed_keys: Some(keys.iter().map(|key| (*key).clone()).collect()),
            ..Policy::default()
        };
        let no_backing = Policy { backing: BackingPolicy::Forbidden, ..Policy::default() };
        let signed = Policy { signed_manifests: SignedManifests::Required, ..Policy::default() };
        let trusting =
            |key: &TrustKey| ImageOptions { trust_keys: vec![key.clone()], ..ImageOptions::default() };
        let backed = ImageOptions { allow_backing: vec!["/".into()], ..ImageOptions::default() };
        let plain = ImageOptions::default();
        for (policies, options, refused) in [
            (vec![Policy::default()], &trusting(&key), None),
            (vec![Policy::default()], &backed, None),
            (vec![no_backing.clone()], &plain, None),
            (vec![no_backing.clone()], &backed, Some(ErrorKind::Image)),
            (vec![Policy::default(), no_backing], &backed, Some(ErrorKind::Image)),
            (vec![keys(&[&key])], &plain, None),
            (vec![keys(&[&other, &key])], &trusting(&key), None),
            (vec![keys(&[&other])], &trusting(&key), Some(ErrorKind::ImageDigest)),
            (vec![keys(&[])], &trusting(&key), Some(ErrorKind::ImageDigest)),
            (vec![keys(&[&key]), keys(&[&other])], &trusting(&key), Some(ErrorKind::ImageDigest)),
            (vec![signed], &trusting(&key), Some(ErrorKind::Usage)),
        ] {
            let found = check_request(Path::new("image"), options, &policies);
            assert_eq!(found.first().map(Error::kind), refused, "{policies:?} {found:?}");
        }
    }
}
