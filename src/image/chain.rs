//! The files that an image names: opened only inside the folders that the caller allowed.
//!
//! A name from an image is hostile. It is followed from the image's own folder to a path without links, which is compared
//! with the allowed folders component by component, and then opened beneath that folder in a way that follows
//! no link, so that nothing can be exchanged between the look and the open.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::error::{BackingFault, ImageError};
use super::fault::{Fault, Sink, refuse};
use super::file::SourceFile;
use super::follow::{Allowed, Astray, follow};
use super::layer::{Layer, LayerFormat};
use super::qcow2::{Backing, Budget};
use super::{Format, OpenOptions};

/// How many layers an image may have.
const LAYERS_MAX: usize = 64;

/// How many bytes the tables of all layers may take in memory.
const TABLES_MAX: u64 = 48 << 20;

/// Opens a file that is open already, and every file below it.
pub(super) fn open_file(
    file: File,
    path: &Path,
    options: &OpenOptions<'_>,
) -> Result<Vec<Layer>, ImageError> {
    open(SourceFile::hold_disk(file, path)?, options, &mut refuse)
}

/// The layers of an open file and every file below it; those below what the sink passes over are left out.
pub(super) fn open(
    top: SourceFile,
    options: &OpenOptions<'_>,
    sink: &mut Sink<'_>,
) -> Result<Vec<Layer>, ImageError> {
    let mut budget = Budget::new(TABLES_MAX);
    let allowed = allowed(options.backing_folders, top.path())?;
    let mut layers = vec![Layer::open(top, options.format, options.nested, (&mut budget, sink))?];
    loop {
        match open_next(&layers, (options, &allowed), (&mut budget, sink)) {
            Ok(Some(layer)) => layers.push(layer),
            Ok(None) => return Ok(layers),
            Err(fault) => {
                sink(Fault::refused(fault, None))?;
                return Ok(layers);
            }
        }
    }
}

/// Opens the file that the last layer names, if it names one.
fn open_next(
    layers: &[Layer],
    (options, allowed): (&OpenOptions<'_>, &Allowed),
    (budget, sink): (&mut Budget, &mut Sink<'_>),
) -> Result<Option<Layer>, ImageError> {
    let Some((layer, backing)) = layers.last().and_then(names_another) else { return Ok(None) };
    let from = layer.file.path().to_path_buf();
    let (file, format) = open_backing(&from, backing, allowed)?;
    let identity = file.identity();
    let same = |other: &Layer| {
        let other = other.file.identity();
        (other.device, other.inode) == (identity.device, identity.inode)
    };
    if layers.iter().any(same) {
        let name = String::from_utf8_lossy(&backing.name).into_owned();
        return Err(ImageError::ChainLoops { path: from, name, range: backing.range });
    }
    if layers.len() == LAYERS_MAX {
        return Err(ImageError::ChainTooDeep { path: from, range: backing.range, limit: LAYERS_MAX });
    }
    Layer::open(file, format, options.nested, (budget, sink)).map(Some)
}

fn names_another(layer: &Layer) -> Option<(&Layer, &Backing)> {
    match &layer.format {
        LayerFormat::Qcow2(qcow2) => Some((layer, qcow2.header.backing.as_ref()?)),
        LayerFormat::Raw => None,
    }
}

fn allowed(folders: &[PathBuf], image: &Path) -> Result<Allowed, ImageError> {
    let canonical = |folder: &PathBuf| {
        folder.canonicalize().map_err(|source| ImageError::Io {
            doing: "looking for an allowed folder",
            path: folder.clone(),
            range: None,
            source,
        })
    };
    let own = std::path::absolute(image).ok().and_then(|image| Some(image.parent()?.to_owned()));
    let written = folders.iter().filter_map(|folder| std::path::absolute(folder).ok()).chain(own).collect();
    Ok(Allowed { folders: folders.iter().map(canonical).collect::<Result<_, _>>()?, written })
}

fn open_backing(
    from: &Path,
    backing: &Backing,
    allowed: &Allowed,
) -> Result<(SourceFile, Format), ImageError> {
    let refused = |why| ImageError::BackingRefused {
        path: from.into(),
        name: String::from_utf8_lossy(&backing.name).into_owned(),
        range: backing.range,
        why,
    };
    let failed = |doing| {
        move |source: io::Error| match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => refused(BackingFault::Missing),
            Some(libc::ELOOP) => refused(BackingFault::LinksInCircle),
            Some(libc::ENAMETOOLONG) => refused(BackingFault::TooLong),
            _ => ImageError::Io { doing, path: from.into(), range: None, source },
        }
    };
    if allowed.folders.is_empty() {
        return Err(refused(BackingFault::NotAllowed));
    }
    let format = backing_format(backing).map_err(refused)?;
    let name = plain_name(&backing.name).map_err(refused)?;
    let image = from.canonicalize().map_err(failed("finding the image's folder"))?;
    let base = image.parent().unwrap_or(Path::new("/"));
    let path = follow(base, name, allowed).map_err(|astray| match astray {
        Astray::Outside => refused(BackingFault::NotAllowed),
        Astray::Inside(error) => failed("finding the backing file")(error),
    })?;
    // `starts_with` compares whole components.
    let folder = allowed.folders.iter().find(|folder| path.starts_with(folder));
    let folder = folder.ok_or_else(|| refused(BackingFault::NotAllowed))?;
    let inside = path.strip_prefix(folder).unwrap_or(Path::new(""));
    if inside.as_os_str().is_empty() || !std::fs::metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
        return Err(refused(BackingFault::WrongKind));
    }
    let file = open_beneath(folder, inside).map_err(failed("opening the backing file"))?;
    if !file.metadata().map_err(failed("looking at the backing file"))?.is_file() {
        return Err(refused(BackingFault::WrongKind));
    }
    Ok((SourceFile::hold(file, &path)?, format))
}

fn backing_format(backing: &Backing) -> Result<Format, BackingFault> {
    match backing.format.as_deref() {
        Some(b"raw") => Ok(Format::Raw),
        Some(b"qcow2") => Ok(Format::Qcow2),
        Some(_) => Err(BackingFault::UnknownFormat),
        None => Err(BackingFault::NoFormat),
    }
}

/// The name as a path, if it is one: qemu takes what stands before a colon for a protocol, unless a slash
/// comes first.
fn plain_name(name: &[u8]) -> Result<&Path, BackingFault> {
    if name.contains(&0) {
        return Err(BackingFault::NulInName);
    }
    let first_part = name.split(|byte| *byte == b'/').next().unwrap_or(name);
    if first_part.contains(&b':') {
        return Err(BackingFault::Protocol);
    }
    Ok(Path::new(OsStr::from_bytes(name)))
}

/// Opens a file below a folder; the kernel follows no link on the way and leaves the folder by none.
fn open_beneath(folder: &Path, inside: &Path) -> io::Result<File> {
    let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(folder, inside, flags, Mode::empty(), resolve)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::range::ByteRange;

    #[test]
    fn only_a_path_is_a_plain_name() {
        for (name, expected) in [
            (&b"base.raw"[..], None),
            (b"./a:b", None),
            (b"/a:b", None),
            (b"dir/a:b", None),
            (b"json:{}", Some(BackingFault::Protocol)),
            (b"file:base.raw", Some(BackingFault::Protocol)),
            (b"nbd://host/x", Some(BackingFault::Protocol)),
            (b"a\0b", Some(BackingFault::NulInName)),
        ] {
            assert_eq!(plain_name(name).err(), expected, "{}", name.escape_ascii());
        }
    }

    #[test]
    fn a_folder_whose_name_only_begins_alike_is_outside() {
        let folder = tempfile::tempdir().unwrap();
        let (allowed, alike) = (folder.path().join("images"), folder.path().join("images-private"));
        std::fs::create_dir(&allowed).unwrap();
        std::fs::create_dir(&alike).unwrap();
        std::fs::write(alike.join("base.raw"), b"secret").unwrap();
        let name = b"../images-private/base.raw".to_vec();
        let range = ByteRange::new(512, 26);
        let backing = Backing { name, range, format: Some(b"raw".to_vec()) };
        let image = allowed.join("top.qcow2");
        std::fs::write(&image, b"").unwrap();
        let allowed = super::allowed(&[allowed], &image).unwrap();
        let error = open_backing(&image, &backing, &allowed).err().unwrap();
        assert!(matches!(error, ImageError::BackingRefused { why: BackingFault::NotAllowed, .. }), "{error}");
    }
}
