//! The seed's file: written beside its place, and renamed into it in one step.
//!
//! Everything goes through one descriptor of the folder, so that nobody can exchange the folder
//! between the check and the rename. A crash leaves the old seed or the new one.

use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RenameFlags};

use zeroize::Zeroizing;

use super::error::SeedError;
use crate::sys::beside;

/// No seed is larger: its content has 1 MiB at most.
const MOST_OF_A_SEED: u64 = 4 << 20;

/// Whether a seed may take the place of a file that is there.
///
/// ```
/// assert_ne!(reimage::Replace::Refuse, reimage::Replace::Existing);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replace {
    /// It may not.
    #[default]
    Refuse,
    /// It may: a rebuild gives a machine its next seed.
    Existing,
}

/// A place that was found fit for a seed: the folder is held.
pub(super) struct Place {
    folder: OwnedFd,
    name: OsString,
}

impl Place {
    /// Looks at a path without writing anything.
    pub(super) fn examine(path: &Path) -> Result<Self, SeedError> {
        let refused = |why| SeedError::Place { why };
        let name = path.file_name().ok_or_else(|| refused("names no file"))?;
        if path.as_os_str().as_bytes().ends_with(b"/") {
            return Err(refused("names a folder"));
        }
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = fs::open(parent, flags, Mode::empty()).map_err(unusable("opening the folder"))?;
        let mode = Mode::from_raw_mode(stat_mode(fs::fstat(&folder), "looking at the folder")?);
        // A sticky one too: whoever may write there can lay a seed at the place while none is there.
        if mode.contains(Mode::WOTH) {
            return Err(refused("lies in a folder that everybody may write"));
        }
        match fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(rustix::io::Errno::NOENT) => {}
            found => match FileType::from_raw_mode(stat_mode(found, "looking at the file")?) {
                FileType::RegularFile => {}
                FileType::Symlink => return Err(refused("is a symbolic link")),
                FileType::Directory => return Err(refused("is a folder")),
                FileType::BlockDevice | FileType::CharacterDevice => return Err(refused("is a device")),
                _ => return Err(refused("is no plain file")),
            },
        }
        Ok(Self { folder, name: name.to_owned() })
    }

    /// The file that is there, if there is one; a file that is no seed must not be replaced by one.
    pub(super) fn present(&self) -> Result<Option<Zeroizing<Vec<u8>>>, SeedError> {
        let unusable =
            |source: io::Error| SeedError::Unusable { doing: "reading the file that is there", source };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match fs::openat(&self.folder, &self.name, flags, Mode::empty()) {
            Ok(file) => std::fs::File::from(file),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(unusable(error.into())),
        };
        let mut bytes = Zeroizing::new(Vec::with_capacity(1 << 20));
        file.take(MOST_OF_A_SEED + 1).read_to_end(&mut bytes).map_err(unusable)?;
        let is_seed = bytes.len() as u64 <= MOST_OF_A_SEED && is_labelled(&bytes);
        if bytes.is_empty() || is_seed { Ok(Some(bytes)) } else { Err(SeedError::OtherFile) }
    }

    /// Writes the bytes to a file of their own beside the place, durably.
    pub(super) fn write_beside(self, bytes: &[u8]) -> Result<Beside, SeedError> {
        let making = |source: io::Error| SeedError::Unusable { doing: "making a file in the folder", source };
        let (name, mut file) = beside::create(&self.folder, &self.name).map_err(making)?;
        let beside = Beside { place: self, name: Some(name) };
        file.write_all(bytes).map_err(|source| SeedError::Io { doing: "writing the new seed", source })?;
        fs::fsync(&file).map_err(failed("syncing the new seed"))?;
        Ok(beside)
    }
}

impl Place {
    /// Removes the file that is there, if there is one, durably.
    pub(super) fn remove(self) -> Result<(), SeedError> {
        match fs::unlinkat(&self.folder, &self.name, AtFlags::empty()) {
            Err(rustix::io::Errno::NOENT) => {}
            removed => removed.map_err(failed("removing the seed"))?,
        }
        fs::fsync(&self.folder).map_err(failed("syncing the folder"))
    }
}

/// Whether a volume bears one of the labels by which a guest finds a seed: on ISO 9660, or on FAT.
fn is_labelled(bytes: &[u8]) -> bool {
    let has_label = |at: usize, len: usize| {
        let label = bytes.get(at..at + len).unwrap_or_default().trim_ascii_end();
        ["cidata", "config-2"].iter().any(|known| label.eq_ignore_ascii_case(known.as_bytes()))
    };
    // ECMA-119, 8.4: the primary descriptor at 32 KiB, its volume identifier at byte 40. FAT12 and FAT16: byte 43.
    bytes.get(32769..32774) == Some(b"CD001") && has_label(32808, 32)
        || bytes.get(510..512) == Some(&[0x55, 0xaa]) && has_label(43, 11)
}

/// A written seed that is not in its place yet; dropped, it is removed.
pub(super) struct Beside {
    place: Place,
    name: Option<OsString>,
}

impl Beside {
    /// Renames it into its place, durably.
    pub(super) fn rename(mut self, replace: Replace) -> Result<(), SeedError> {
        let name = self.name.as_deref().expect("it is renamed once");
        let flags = match replace {
            Replace::Refuse => RenameFlags::NOREPLACE,
            Replace::Existing => RenameFlags::empty(),
        };
        let folder = self.place.folder.as_fd();
        match fs::renameat_with(folder, name, folder, &self.place.name, flags) {
            Err(rustix::io::Errno::EXIST) if replace == Replace::Refuse => return Err(SeedError::Exists),
            renamed => renamed.map_err(failed("renaming the new seed into its place"))?,
        }
        self.name = None;
        fs::fsync(&self.place.folder).map_err(failed("syncing the folder"))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // Nothing can be done about a failure here; the error that led here is on its way.
            let _ = beside::remove(&self.place.folder, name);
        }
    }
}

fn stat_mode(stat: rustix::io::Result<fs::Stat>, doing: &'static str) -> Result<u32, SeedError> {
    Ok(stat.map_err(unusable(doing))?.st_mode)
}

fn unusable(doing: &'static str) -> impl Fn(rustix::io::Errno) -> SeedError {
    move |errno| SeedError::Unusable { doing, source: io::Error::from(errno) }
}

fn failed(doing: &'static str) -> impl Fn(rustix::io::Errno) -> SeedError {
    move |errno| SeedError::Io { doing, source: io::Error::from(errno) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entry = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(entry).collect();
        names.sort();
        names
    }

    fn place(path: &Path, bytes: &[u8], replace: Replace) -> Result<(), SeedError> {
        Place::examine(path)?.write_beside(bytes)?.rename(replace)
    }

    #[test]
    fn a_seed_is_for_its_owner_alone_and_leaves_nothing_beside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seed.iso");
        place(&path, b"one", Replace::Refuse).unwrap();
        place(&path, b"two", Replace::Existing).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode(), 0o100_600);
        assert_eq!(names(folder.path()), ["seed.iso"]);
    }

    #[test]
    fn a_seed_that_is_there_stays_unless_it_may_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seed.iso");
        fs::write(&path, b"old").unwrap();
        assert!(matches!(place(&path, b"new", Replace::Refuse), Err(SeedError::Exists)));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["seed.iso"]);
    }

    #[test]
    fn what_is_written_beside_goes_when_it_is_not_renamed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seed.iso");
        let beside = Place::examine(&path).unwrap().write_beside(b"new").unwrap();
        assert_eq!(names(folder.path()).len(), 1);
        drop(beside);
        let beside = Place::examine(&path).unwrap().write_beside(b"new").unwrap();
        fs::create_dir(&path).unwrap();
        assert!(matches!(beside.rename(Replace::Existing), Err(SeedError::Io { .. })));
        assert_eq!(names(folder.path()), ["seed.iso"]);
    }

    #[test]
    fn a_link_that_came_between_is_replaced_and_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, victim) = (folder.path().join("seed.iso"), folder.path().join("victim"));
        fs::write(&victim, b"mine").unwrap();
        let beside = Place::examine(&path).unwrap().write_beside(b"new").unwrap();
        symlink(&victim, &path).unwrap();
        beside.rename(Replace::Existing).unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"mine");
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
    }

    #[test]
    fn no_place_but_a_plain_file_in_a_trusted_folder_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        symlink("nowhere", at("link")).unwrap();
        fs::create_dir(at("folder")).unwrap();
        for (name, mode) in [("open", 0o707), ("sticky", 0o1777), ("group", 0o770)] {
            fs::create_dir(at(name)).unwrap();
            fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let table = [
            (at("link"), "is a symbolic link"),
            (at("folder"), "is a folder"),
            (at("new/"), "names a folder"),
            (at("folder/.."), "names no file"),
            (at("socket"), "is no plain file"),
            (at("open/seed.iso"), "everybody may write"),
            (at("sticky/seed.iso"), "everybody may write"),
            (at("none/seed.iso"), "opening the folder failed"),
            (at("link/seed.iso"), "opening the folder failed"),
            ("/dev/null".into(), "is a device"),
        ];
        for (path, why) in table {
            let cause = Place::examine(&path).err().unwrap().to_string();
            assert!(cause.ends_with(why), "{path:?}: {cause:?} does not say {why:?}");
        }
        place(&at("group/seed.iso"), b"new", Replace::Refuse).unwrap();
        assert_eq!(names(&at("open")).len() + names(&at("folder")).len(), 0);
    }
}
