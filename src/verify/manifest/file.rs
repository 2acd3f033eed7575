//! Where a manifest lies: beside the image, or where somebody names it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, RenameFlags};

use super::super::runs::MOST_CHUNKS;
use super::json::{MOST_BYTES, says_manifest};
use super::{Manifest, ManifestError};
use crate::sys::beside;

/// Ends the name of an image's manifest.
const SUFFIX: &str = ".manifest.json";

/// Where the manifest of an image lies: `IMAGE.manifest.json`.
pub(crate) fn beside(image: &Path) -> PathBuf {
    let mut name = OsString::from(image);
    name.push(SUFFIX);
    PathBuf::from(name)
}

/// The bytes of a manifest's file as they are: what a signature is of, and what is then parsed.
///
/// # Errors
///
/// When it cannot be read, is no regular file, or is longer than any manifest.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, ManifestError> {
    let failed = |doing| move |source| ManifestError::Io { doing, source };
    // A FIFO must not make the open wait.
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags).open(path);
    let file = file.map_err(failed("opening the manifest"))?;
    let metadata = file.metadata().map_err(failed("looking at the manifest"))?;
    if !metadata.is_file() {
        return Err(ManifestError::WrongKind);
    }
    let too_long = |bytes| ManifestError::TooLong { bytes, most: MOST_BYTES };
    if metadata.len() > MOST_BYTES {
        return Err(too_long(metadata.len()));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(failed("reading the manifest"))?;
    let len = bytes.len() as u64;
    if len > MOST_BYTES { Err(too_long(len)) } else { Ok(bytes) }
}

/// Whether a manifest may be put at `path`: nothing lies there, or a manifest that may go.
///
/// # Errors
///
/// When something else is there, or a file that must stay.
pub(crate) fn check_place(path: &Path, old: OldManifest) -> Result<(), ManifestError> {
    let found = match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(failed("looking at the file of that name"))?,
    };
    match old {
        OldManifest::Refuse => Err(ManifestError::Exists),
        OldManifest::Replace if !found.is_file() => Err(ManifestError::WrongKind),
        // All of it: a disk may begin with whatever its guest has written there.
        OldManifest::Replace => match read(path) {
            Ok(bytes) if says_manifest(&bytes) => Ok(()),
            Ok(_) | Err(ManifestError::TooLong { .. }) => Err(ManifestError::OtherThere),
            Err(fault) => Err(fault),
        },
    }
}

/// What becomes of a file that has the manifest's name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OldManifest {
    /// It stays, and the new one is not written.
    Refuse,
    /// The new one takes its place.
    Replace,
}

/// Writes a manifest beside its place and renames it: the name does not exist, or is whole and durable.
///
/// # Errors
///
/// When there is a file of that name that must stay, or it cannot be written; then nothing is left beside it.
pub(crate) fn write_new(path: &Path, manifest: &Manifest, old: OldManifest) -> Result<(), ManifestError> {
    check_place(path, old)?;
    let staged = StagedManifest::make(path, old)?;
    staged.write(manifest)?;
    // Another file may have come there in the meantime.
    check_place(path, old)?;
    staged.publish()
}

/// A manifest on its way: beside its place, without its name yet; dropped, it is removed.
pub(crate) struct StagedManifest {
    folder: OwnedFd,
    temporary: OsString,
    name: OsString,
    file: File,
    old: OldManifest,
    waits: bool,
}

impl StagedManifest {
    /// Makes the file beside the manifest's place; it is empty.
    ///
    /// # Errors
    ///
    /// When there is a file of that name that must stay, or none can be made.
    pub(crate) fn make(path: &Path, old: OldManifest) -> Result<Self, ManifestError> {
        let name = path.file_name().ok_or(ManifestError::WrongKind)?.to_owned();
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(parent, flags, Mode::empty());
        let folder: OwnedFd = folder.map_err(io::Error::from).map_err(failed("opening the folder"))?;
        if old == OldManifest::Refuse && path.symlink_metadata().is_ok() {
            return Err(ManifestError::Exists);
        }
        let (temporary, file) = beside::make(&folder, &name).map_err(failed("making the manifest's file"))?;
        Ok(Self { folder, temporary, name, file, old, waits: true })
    }

    /// Gives the file the name under which it waits, which whoever is to find it knows by now.
    ///
    /// # Errors
    ///
    /// When it cannot get the name.
    pub(crate) fn wait(&self) -> Result<(), ManifestError> {
        beside::give_name(&self.folder, &self.temporary, &self.file)
            .map_err(failed("naming the manifest's file"))
    }

    /// The file, and the name under which it waits in that folder.
    pub(crate) fn made(&self) -> (&OwnedFd, &OsStr, &File) {
        (&self.folder, &self.temporary, &self.file)
    }

    /// Writes the manifest, durably.
    ///
    /// # Errors
    ///
    /// When it cannot be written, or has more chunks than one may have.
    pub(crate) fn write(&self, manifest: &Manifest) -> Result<(), ManifestError> {
        let chunks = manifest.data_chunks();
        if chunks > MOST_CHUNKS {
            return Err(ManifestError::TooManyChunks { chunks, most: MOST_CHUNKS });
        }
        manifest
            .write_json(&self.file)
            .and_then(|()| beside::give_usual_mode(&self.file))
            .and_then(|()| self.file.sync_all())
            .map_err(failed("writing the manifest"))
    }

    /// Gives the manifest its name, durably.
    ///
    /// # Errors
    ///
    /// When there is a file of that name that must stay, or it cannot be renamed.
    pub(crate) fn publish(mut self) -> Result<(), ManifestError> {
        self.wait()?;
        let flags = match self.old {
            OldManifest::Refuse => RenameFlags::NOREPLACE,
            OldManifest::Replace => RenameFlags::empty(),
        };
        match rustix::fs::renameat_with(&self.folder, &self.temporary, &self.folder, &self.name, flags) {
            Err(rustix::io::Errno::EXIST) => return Err(ManifestError::Exists),
            renamed => renamed.map_err(io::Error::from).map_err(failed("giving the manifest its name"))?,
        }
        self.waits = false;
        rustix::fs::fsync(&self.folder).map_err(io::Error::from).map_err(failed("syncing the folder"))
    }
}

impl Drop for StagedManifest {
    fn drop(&mut self) {
        if self.waits {
            beside::forget(&self.folder, &self.temporary, &self.file);
        }
    }
}

fn failed(doing: &'static str) -> impl Fn(io::Error) -> ManifestError {
    move |source| ManifestError::Io { doing, source }
}
