//! The new image on its way: written beside its place, readable by its owner only, then put into it in one step.
//!
//! The image gets its name before its manifest does, and an old manifest goes before both: whenever the power goes,
//! no manifest lies beside an image that it does not belong to, and no image is there in part. What a crash in between
//! leaves is a whole image without a manifest, of which `reimage manifest` makes one.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};

use super::fault::{CaptureFault, output_error};
use crate::error::{Error, ErrorKind};
use crate::seed::Replace;
use crate::sys::beside;

/// A place in a folder that is held; nothing has been written there.
pub(super) struct Place {
    /// The path as it was named.
    path: PathBuf,
    folder: OwnedFd,
    name: OsString,
    /// The file that is there, by its numbers.
    old: Option<(u64, u64)>,
}

impl Place {
    /// Looks at a place, where a file may be only if it may be replaced.
    pub(super) fn examine(path: &Path, replace: Replace) -> Result<Self, Error> {
        let unusable = |fault| {
            Error::new(ErrorKind::TargetUnusable, fault)
                .at_path(path)
                .hint_that("make the folder first, correct the path, or run as a user that may write there")
        };
        let name = path.file_name().expect("a request names a file").to_owned();
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(parent, flags, Mode::empty());
        let folder = folder.map_err(|error| unusable(CaptureFault::Folder(error.into())))?;
        rustix::fs::accessat(&folder, ".", rustix::fs::Access::WRITE_OK, AtFlags::empty())
            .map_err(|error| unusable(CaptureFault::Folder(error.into())))?;
        let mut place = Self { path: path.to_owned(), folder, name, old: None };
        place.old = place.numbers_there().map_err(|error| unusable(CaptureFault::Folder(error)))?;
        if place.old.is_some() && replace == Replace::Refuse {
            return Err(Error::new(ErrorKind::Usage, CaptureFault::Exists)
                .at_path(path)
                .hint_that("name another file, or say --replace to put the new image into its place"));
        }
        Ok(place)
    }

    /// The numbers of the file that is there now.
    fn numbers_there(&self) -> io::Result<Option<(u64, u64)>> {
        match rustix::fs::statat(&self.folder, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some((stat.st_dev, stat.st_ino))),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// How many bytes its file system has for this user.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        let file_system = rustix::fs::fstatvfs(&self.folder).ok()?;
        Some(file_system.f_bavail.saturating_mul(file_system.f_frsize))
    }

    /// Makes the new file, which is locked for as long as it is open, and has no name until it waits.
    pub(super) fn make(self) -> Result<NewFile, Error> {
        let (temporary, file) =
            beside::make(&self.folder, &self.name).map_err(|source| unmade(source, &self.path))?;
        Ok(NewFile { place: self, temporary, file, is_placed: false })
    }
}

/// Why the new file could not be made, or named.
pub(super) fn unmade(source: io::Error, path: &Path) -> Error {
    let kind = match source.kind() {
        io::ErrorKind::ResourceBusy => ErrorKind::InUse,
        _ => ErrorKind::TargetUnusable,
    };
    Error::new(kind, CaptureFault::New { what: "the new image", source })
        .at_path(path)
        .hint_that("wait for a capture that is under way, or look at the folder's rights and room")
}

/// A file that is no image yet; dropped before it has its place, it is removed.
pub(super) struct NewFile {
    place: Place,
    temporary: OsString,
    file: File,
    is_placed: bool,
}

impl NewFile {
    /// The file itself.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Whether it takes the place of a file that is there.
    pub(super) fn replaces(&self) -> bool {
        self.place.old.is_some()
    }

    /// Gives it the name under which it waits, which whoever is to find it knows by now.
    pub(super) fn wait(&self) -> Result<(), Error> {
        let named = beside::give_name(&self.place.folder, &self.temporary, &self.file);
        named.map_err(|source| unmade(source, &self.place.path))
    }

    /// Where it waits until it has its place, and its numbers.
    pub(super) fn lies_at(&self) -> io::Result<(PathBuf, (u64, u64))> {
        beside::lies_at(&self.place.folder, &self.temporary, &self.file)
    }

    /// The same file, opened anew to be read.
    pub(super) fn reader(&self) -> io::Result<File> {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
    }

    /// Puts it into its place, durably, as any new file of this user.
    pub(super) fn publish(mut self) -> Result<(), Error> {
        let path = self.place.path.clone();
        let failed = |doing| {
            let path = path.clone();
            move |source| output_error(CaptureFault::Place { doing, source }, &path)
        };
        beside::give_usual_mode(&self.file).map_err(failed("setting the image's mode"))?;
        self.file.sync_all().map_err(failed("syncing the image"))?;
        // What came there meanwhile is somebody else's.
        let usurped = || output_error(CaptureFault::Usurped, &path);
        let flags = match (
            self.place.old,
            self.place.numbers_there().map_err(failed("looking at the image's place"))?,
        ) {
            (None, _) => RenameFlags::NOREPLACE,
            (Some(old), Some(there)) if there == old => RenameFlags::empty(),
            (Some(_), None) => RenameFlags::NOREPLACE,
            (Some(_), Some(_)) => return Err(usurped()),
        };
        let (folder, name): (_, &OsStr) = (&self.place.folder, &self.place.name);
        match rustix::fs::renameat_with(folder, &self.temporary, folder, name, flags) {
            Err(rustix::io::Errno::EXIST) => return Err(usurped()),
            renamed => renamed.map_err(io::Error::from).map_err(failed("giving the image its name"))?,
        }
        self.is_placed = true;
        rustix::fs::fsync(folder).map_err(io::Error::from).map_err(failed("syncing the image's folder"))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_placed {
            beside::forget(&self.place.folder, &self.temporary, &self.file);
        }
    }
}

/// Removes a file that belonged to the old image, durably, and says whether there was one.
pub(super) fn remove_old(path: &Path) -> Result<bool, Error> {
    let failed = |source| {
        output_error(CaptureFault::Place { doing: "removing the old image's manifest", source }, path)
    };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        removed => removed.map_err(failed)?,
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    crate::sys::durable::sync_folder(parent).map_err(failed)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    fn new_file(path: &Path, replace: Replace) -> NewFile {
        let new = Place::examine(path, replace).unwrap().make().unwrap();
        assert!(new.lies_at().unwrap().0.metadata().is_err(), "it has no name before that can be known");
        new.wait().unwrap();
        new.file().write_all(b"new").unwrap();
        new
    }

    fn names(folder: &tempfile::TempDir) -> Vec<String> {
        let entries = std::fs::read_dir(folder.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_name_exists_only_when_the_file_is_whole_and_then_nothing_lies_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let new = new_file(&path, Replace::Refuse);
        let (beside, _) = new.lies_at().unwrap();
        assert_eq!(beside.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!path.exists());
        drop(new);
        assert!(names(&folder).is_empty());
        new_file(&path, Replace::Refuse).publish().unwrap();
        assert_eq!((names(&folder), std::fs::read(&path).unwrap()), (vec!["image".into()], b"new".to_vec()));
        let plain = folder.path().join("plain");
        File::create(&plain).unwrap();
        assert_eq!(path.metadata().unwrap().mode(), plain.metadata().unwrap().mode(), "the umask decides");
    }

    #[test]
    fn an_image_is_replaced_only_when_that_is_said_and_only_the_one_that_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        std::fs::write(&path, "old").unwrap();
        let refused = Place::examine(&path, Replace::Refuse).err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Usage);
        new_file(&path, Replace::Existing).publish().unwrap();
        assert_eq!((names(&folder), std::fs::read(&path).unwrap()), (vec!["image".into()], b"new".to_vec()));

        let usurp = |path: &Path| {
            std::fs::write(folder.path().join("other"), "other").unwrap();
            std::fs::rename(folder.path().join("other"), path).unwrap();
        };
        let new = new_file(&path, Replace::Existing);
        usurp(&path);
        assert_eq!(new.publish().unwrap_err().kind(), ErrorKind::TargetIo);
        assert_eq!(
            (names(&folder), std::fs::read(&path).unwrap()),
            (vec!["image".into()], b"other".to_vec())
        );
        std::fs::remove_file(&path).unwrap();
        let new = new_file(&path, Replace::Existing);
        usurp(&path);
        assert_eq!(new.publish().unwrap_err().kind(), ErrorKind::TargetIo, "it was not there before");
        assert_eq!(std::fs::read(&path).unwrap(), b"other");
    }

    #[test]
    fn a_folder_that_is_not_there_is_told_and_a_living_capture_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let nowhere = Place::examine(&folder.path().join("no/image"), Replace::Refuse).err().unwrap();
        assert_eq!(nowhere.kind(), ErrorKind::TargetUnusable);
        let path = folder.path().join("image");
        let living = new_file(&path, Replace::Refuse);
        let second = Place::examine(&path, Replace::Refuse).unwrap().make().err().unwrap();
        assert_eq!(second.kind(), ErrorKind::InUse);
        drop(living);
        remove_old(&path).unwrap();
    }
}
