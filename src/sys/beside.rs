//! A new file beside the one whose place it will take.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags};

/// Ends the name of a file that is not complete yet.
const SUFFIX: &str = ".reimage-unfinished";
/// Comes before the journal's name in that of a file that never became complete and was to be kept.
const PRESERVED: &str = ".reimage-failed-";

/// Makes a file that only its owner reads, locked for as long as it is open; returns its name in `folder`.
///
/// The name follows from that of the place, so that the next run finds and removes what a killed one left.
/// A file that a living run holds is an error (`ResourceBusy`).
pub(crate) fn create(folder: &OwnedFd, place: &OsStr) -> io::Result<(OsString, File)> {
    let name = name_beside(place);
    remove_stale(folder, &name)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(folder, &name, flags, Mode::RUSR | Mode::WUSR)?);
    let prepared = rustix::fs::fchmod(&file, Mode::RUSR | Mode::WUSR)
        .and_then(|()| rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive));
    if let Err(error) = prepared {
        remove(folder, &name)?;
        return Err(error.into());
    }
    Ok((name, file))
}

/// Opens and locks a file that `create` made in an earlier run, if it is the one of these numbers and nobody else's.
///
/// A file that a living run holds is an error (`ResourceBusy`).
pub(crate) fn reopen(
    folder: &OwnedFd,
    place: &OsStr,
    (device, inode): (u64, u64),
) -> io::Result<Option<File>> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match rustix::fs::openat(folder, name_beside(place), flags, Mode::empty()) {
        Ok(file) => File::from(file),
        // Whatever it is, `create` deals with it.
        Err(_) => return Ok(None),
    };
    let stat = rustix::fs::fstat(&file)?;
    let is_regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    // Nobody else could open it, so nobody else has it open.
    let is_ours = stat.st_uid == rustix::process::geteuid().as_raw() && stat.st_mode & 0o7777 == 0o600;
    let is_it = (stat.st_dev, stat.st_ino) == (device, inode) && stat.st_nlink == 1;
    if !(is_regular && is_ours && is_it) {
        return Ok(None);
    }
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| io::Error::new(io::ErrorKind::ResourceBusy, "another run is writing it"))?;
    Ok(Some(file))
}

/// The name under which the file lies that will take the place of `place`.
pub(crate) fn name_beside(place: &OsStr) -> OsString {
    hidden_name(place, SUFFIX)
}

/// The name under which a file stays that did not get the place, of the run `journal`.
pub(crate) fn preserved_name(place: &OsStr, journal: &str) -> OsString {
    hidden_name(place, &format!("{PRESERVED}{journal}"))
}

fn hidden_name(place: &OsStr, suffix: &str) -> OsString {
    // NAME_MAX of linux/limits.h.
    const LONGEST: usize = 255;
    let mut name = OsString::from(".");
    if place.len() + 1 + suffix.len() <= LONGEST {
        name.push(place);
    } else {
        // The name alone must tell one place from another.
        let mut hasher = std::hash::DefaultHasher::new();
        place.hash(&mut hasher);
        name.push(format!("{:016x}", hasher.finish()));
    }
    name.push(suffix);
    name
}

/// Removes a file that `create` made.
pub(crate) fn remove(folder: &OwnedFd, name: &OsStr) -> io::Result<()> {
    Ok(rustix::fs::unlinkat(folder, name, AtFlags::empty())?)
}

fn remove_stale(folder: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match rustix::fs::openat(folder, name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| io::Error::new(io::ErrorKind::ResourceBusy, "another run is writing it"))?;
    remove(folder, name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_a_killed_run_left_is_removed_and_what_a_living_one_holds_is_not() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = OwnedFd::from(File::open(temporary.path()).unwrap());
        let (name, file) = create(&folder, OsStr::new("disk.raw")).unwrap();
        assert_eq!(name, ".disk.raw.reimage-unfinished");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let second = create(&folder, OsStr::new("disk.raw")).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::ResourceBusy);
        let metadata = file.metadata().unwrap();
        let numbers =
            (std::os::unix::fs::MetadataExt::dev(&metadata), std::os::unix::fs::MetadataExt::ino(&metadata));
        let place = OsStr::new("disk.raw");
        assert_eq!(reopen(&folder, place, numbers).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        drop(file);
        assert!(reopen(&folder, place, (numbers.0, numbers.1 + 1)).unwrap().is_none(), "another file");
        assert!(reopen(&folder, OsStr::new("other.raw"), numbers).unwrap().is_none());
        reopen(&folder, place, numbers).unwrap().expect("it is the file of before");
        let path = temporary.path().join(&name);
        std::fs::hard_link(&path, temporary.path().join("link")).unwrap();
        assert!(reopen(&folder, place, numbers).unwrap().is_none(), "somebody else has a name for it");
        std::fs::remove_file(temporary.path().join("link")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(reopen(&folder, place, numbers).unwrap().is_none(), "somebody else may have opened it");
        create(&folder, OsStr::new("disk.raw")).expect("the lock went with the run");
    }
}
