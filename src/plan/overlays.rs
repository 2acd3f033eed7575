//! Whether the system disk is the file below another disk, which would change with it.
//!
//! Looked for among the data disks and beside the target, where hypervisors keep overlays: only headers are read.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::guard::{Claim, Refusal, StorageIdentity, device_identity};
use crate::image::backing_of;
use crate::journal::kept::{Form, Kept};
use crate::request::{DataDiskDigest, Request};

/// More files than this are not looked at in the target's folder.
const MOST_FILES: usize = 4096;
/// Longer chains are refused by the reader as well.
const MOST_LAYERS: usize = 64;

/// What was found.
pub(super) struct Found {
    pub(super) refusal: Option<Refusal>,
    /// Where not all of the folder was looked at.
    pub(super) warning: Option<String>,
}

/// Looks for a disk that reads from the claimed one what it does not hold itself.
pub(super) fn look(request: &Request, claim: &Claim) -> Found {
    let Some(target) = claim.facts().map(|facts| facts.identity) else {
        return Found { refusal: None, warning: None };
    };
    let target_path = &request.instance.system_disk.path;
    let (beside, warning) = match target {
        StorageIdentity::File { .. } => files_beside(target_path),
        StorageIdentity::Device { .. } => (Vec::new(), None),
    };
    let unopened = unopened(request);
    let beside = beside.into_iter().filter(|path| !unopened.contains(&identity(path)));
    let overlay = data_disks(request).chain(beside).find(|path| is_built_on(path, target));
    Found { refusal: overlay.map(|overlay| Refusal::BackingOf { overlay }), warning }
}

/// Looks for a disk that is built on a file that was kept: it needs that under the name that it has now.
pub(super) fn look_at_kept(request: &Request, kept: &Kept) -> Option<Error> {
    refuse_if_built_on(kept, data_disks(request).collect(), &unopened(request))
}

/// The same where nothing is known but the file's own folder.
pub(crate) fn built_on_kept(kept: &Kept) -> Option<Error> {
    refuse_if_built_on(kept, Vec::new(), &[])
}

fn refuse_if_built_on(
    kept: &Kept,
    mut others: Vec<PathBuf>,
    unopened: &[Option<StorageIdentity>],
) -> Option<Error> {
    let Form::File { kept_as, old, .. } = &kept.form else { return None };
    let path = Path::new(kept_as);
    let target = identity(path)?;
    if target != (StorageIdentity::File { device: old.device, inode: old.inode }) {
        return None;
    }
    others.extend(files_beside(path).0.into_iter().filter(|path| !unopened.contains(&identity(path))));
    let overlay = others.into_iter().find(|path| is_built_on(path, target))?;
    Some(Refusal::BackingOf { overlay }.about(path))
}

/// The data disks that may be opened.
fn data_disks(request: &Request) -> impl Iterator<Item = PathBuf> {
    let opens = request.options.data_disk_digest != DataDiskDigest::Off;
    request.instance.data_disks.iter().filter(move |_| opens).map(|disk| disk.path.clone())
}

/// Those that may not, under whatever name they lie in a folder.
fn unopened(request: &Request) -> Vec<Option<StorageIdentity>> {
    match request.options.data_disk_digest {
        DataDiskDigest::Off => request.instance.data_disks.iter().map(|disk| identity(&disk.path)).collect(),
        _ => Vec::new(),
    }
}

fn is_built_on(path: &Path, target: StorageIdentity) -> bool {
    identity(path) != Some(target) && leads_to(path, target)
}

/// The regular files in the folder in which the target really lies.
fn files_beside(target: &Path) -> (Vec<PathBuf>, Option<String>) {
    let real = target.canonicalize().unwrap_or_else(|_| target.to_owned());
    let folder = real.parent().unwrap_or(Path::new("/"));
    let Ok(entries) = std::fs::read_dir(folder) else {
        let warning = format!(
            "the folder {folder:?} cannot be read: whether a disk in it is built on this one is unknown"
        );
        return (Vec::new(), Some(warning));
    };
    let is_file = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_file());
    let mut files: Vec<_> =
        entries.flatten().filter(is_file).map(|entry| entry.path()).take(MOST_FILES + 1).collect();
    let warning = (files.len() > MOST_FILES).then(|| {
        format!(
            "of the files in {folder:?} only {MOST_FILES} were looked at for a disk that is built on this one"
        )
    });
    files.truncate(MOST_FILES);
    (files, warning)
}

/// Whether a chain of backing files, as the headers name them, has `target` in it.
fn leads_to(path: &Path, target: StorageIdentity) -> bool {
    let mut path = path.to_owned();
    for _ in 0..MOST_LAYERS {
        let Some(below) = open(&path).and_then(|file| backing_of(file, &path)) else { return false };
        let Some(below) = resolve(&path, &below) else { return false };
        if identity(&below) == Some(target) {
            return true;
        }
        path = below;
    }
    false
}

/// The first file that a chain of overlays names and that is not there.
pub(super) fn missing_below(path: &Path) -> Option<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LAYERS {
        let named = open(&path).and_then(|file| backing_of(file, &path))?;
        // What another protocol leads to is not looked for.
        let is_remote =
            |text: &str| !text.starts_with("json:") && !text.starts_with("file:") && text.contains(':');
        let below = resolve(&path, &named).filter(|_| !named.to_str().is_some_and(is_remote))?;
        if !below.exists() {
            return Some(below);
        }
        path = below;
    }
    None
}

/// Opens a regular file and nothing else.
fn open(path: &Path) -> Option<File> {
    path.metadata().ok().filter(std::fs::Metadata::is_file)?;
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    let open = |more| std::fs::OpenOptions::new().read(true).custom_flags(flags | more).open(path);
    let file = open(libc::O_NOATIME).or_else(|_| open(0)).ok()?;
    file.metadata().is_ok_and(|metadata| metadata.is_file()).then_some(file)
}

/// What a backing file's name means: a path relative to the overlay's folder, or a description that holds one.
fn resolve(overlay: &Path, name: &Path) -> Option<PathBuf> {
    let folder = overlay.canonicalize().ok()?.parent()?.to_owned();
    let Some(text) = name.to_str() else { return Some(folder.join(name)) };
    if let Some(description) = text.strip_prefix("json:") {
        let description: serde_json::Value = serde_json::from_str(description).ok()?;
        return file_name_in(&description).map(|name| folder.join(name));
    }
    Some(folder.join(text.strip_prefix("file:").unwrap_or(text)))
}

fn file_name_in(description: &serde_json::Value) -> Option<&str> {
    let fields = description.as_object()?;
    let dotted = ["filename", "file.filename"].iter().find_map(|key| fields.get(*key)?.as_str());
    dotted.or_else(|| fields.values().find_map(file_name_in))
}

fn identity(path: &Path) -> Option<StorageIdentity> {
    let metadata = path.metadata().ok()?;
    if metadata.file_type().is_block_device() {
        return Some(device_identity(metadata.rdev()));
    }
    metadata.is_file().then(|| StorageIdentity::File { device: metadata.dev(), inode: metadata.ino() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backing_files_name_is_found_in_whatever_form_qemu_wrote_it() {
        let folder = tempfile::tempdir().unwrap();
        let overlay = folder.path().join("overlay.qcow2");
        std::fs::write(&overlay, b"").unwrap();
        let real = folder.path().canonicalize().unwrap();
        for name in [
            "base.raw",
            "./base.raw",
            "file:base.raw",
            r#"json:{"driver":"raw","file":{"driver":"file","filename":"base.raw"}}"#,
            r#"json:{"driver":"raw","file.filename":"base.raw"}"#,
        ] {
            let path = resolve(&overlay, Path::new(name)).unwrap();
            assert_eq!(path.components().collect::<PathBuf>(), real.join("base.raw"), "{name}");
        }
        assert_eq!(resolve(&overlay, Path::new("/a/b.raw")), Some("/a/b.raw".into()));
        assert_eq!(resolve(&overlay, Path::new("json:{}")), None);
    }
}
