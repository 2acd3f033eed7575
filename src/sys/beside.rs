//! A new file beside the one whose place it will take.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags};

use super::locks;

/// Ends the name of a file that is not complete yet.
const SUFFIX: &str = ".reimage-unfinished";
/// Comes before the journal's name in that of a file that never became complete and was to be kept.
const PRESERVED: &str = ".reimage-failed-";
/// Comes before the journal's name in that of an old disk that is kept.
const OLD: &str = ".reimage-old-";

/// Makes a file that only its owner reads, locked for as long as it is open; returns its name in `folder`.
///
/// The name follows from that of the place, so that the next run finds and removes what a killed one left.
/// A file that a living run holds is an error (`ResourceBusy`).
pub(crate) fn create(folder: &OwnedFd, place: &OsStr) -> io::Result<(OsString, File)> {
    let (name, file) = make(folder, place)?;
    give_name(folder, &name, &file)?;
    Ok((name, file))
}

/// As `create`, but the file has no name until `give_name`, where the file system can make such files: a run that is
/// killed before it has noted the file leaves none.
pub(crate) fn make(folder: &OwnedFd, place: &OsStr) -> io::Result<(OsString, File)> {
    use rustix::io::Errno;
    let name = name_beside(place);
    remove_stale(folder, &name)?;
    let (flags, mode) = (OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
    let named =
        || rustix::fs::openat(folder, &name, flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW, mode);
    let opened = match rustix::fs::openat(folder, ".", flags | OFlags::TMPFILE, mode) {
        // What open(2) says of file systems and kernels that cannot.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => named(),
        opened => opened,
    };
    let file = File::from(opened?);
    let prepared = rustix::fs::fchmod(&file, mode)
        .and_then(|()| rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive));
    if let Err(error) = prepared {
        forget(folder, &name, &file);
        return Err(error.into());
    }
    Ok((name, file))
}

/// Gives a file that `make` made its name; one that has it keeps it.
pub(crate) fn give_name(folder: &OwnedFd, name: &OsStr, file: &File) -> io::Result<()> {
    if has_name(file)? {
        return Ok(());
    }
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let link = || rustix::fs::linkat(rustix::fs::CWD, &path, folder, name, AtFlags::SYMLINK_FOLLOW);
    match link() {
        Err(rustix::io::Errno::EXIST) => {
            remove_stale(folder, name)?;
            Ok(link()?)
        }
        linked => Ok(linked?),
    }
}

/// Removes a file that `make` made, under whatever name it waits, if it has one.
pub(crate) fn forget(folder: &OwnedFd, name: &OsStr, file: &File) {
    // Nothing more can be done about a failure here; the next run removes what is left. What bears the name while
    // this file has none is another's.
    if has_name(file).unwrap_or(true) {
        let _ = remove(folder, name);
    }
}

fn has_name(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.nlink() > 0)
}

/// A file that was made beside its place: where it lies, and its numbers.
pub(crate) fn lies_at(folder: &OwnedFd, name: &OsStr, file: &File) -> io::Result<(PathBuf, (u64, u64))> {
    let folder = std::fs::read_link(format!("/proc/self/fd/{}", folder.as_raw_fd()))?;
    let metadata = file.metadata()?;
    Ok((folder.join(name), (metadata.dev(), metadata.ino())))
}

/// Gives a file that `create` made the mode of any new file of this process.
pub(crate) fn give_usual_mode(file: &File) -> io::Result<()> {
    // umask(2) could only ask by setting it, for all threads at once; Linux 4.7 and later show it.
    let status = std::fs::read_to_string("/proc/self/status")?;
    let mask =
        status.lines().find_map(|line| u32::from_str_radix(line.strip_prefix("Umask:")?.trim(), 8).ok());
    match mask {
        Some(mask) => Ok(rustix::fs::fchmod(file, Mode::from_raw_mode(0o666 & !mask))?),
        None => Ok(()),
    }
}

/// Whether the file of these numbers still lies there as `create` made it.
pub(crate) fn is_left(path: &Path, numbers: (u64, u64)) -> bool {
    rustix::fs::lstat(path).is_ok_and(|stat| is_as_made(&stat, numbers))
}

fn is_as_made(stat: &rustix::fs::Stat, (device, inode): (u64, u64)) -> bool {
    let is_regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    is_regular && (stat.st_dev, stat.st_ino) == (device, inode) && stat.st_nlink == 1
}

/// Opens and locks a file that `create` made in an earlier run, if it is the one of these numbers and nobody has it
/// open, as a loop device would; from then on nobody else can open it.
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
    if !is_as_made(&rustix::fs::fstat(&file)?, (device, inode)) {
        return Ok(None);
    }
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| io::Error::new(io::ErrorKind::ResourceBusy, "another run is writing it"))?;
    // A run that was about to put it into its place had given it the old file's owner and mode.
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    let is_ours = rustix::fs::fchown(&file, Some(user), Some(group)).is_ok();
    let is_closed = is_ours && rustix::fs::fchmod(&file, Mode::RUSR | Mode::WUSR).is_ok();
    // Who opened it before has it open still, or has left it; what is in it is compared.
    Ok((is_closed && locks::is_open_here_alone(file.as_fd())).then_some(file))
}

/// The name under which the file lies that will take the place of `place`.
pub(crate) fn name_beside(place: &OsStr) -> OsString {
    hidden_name(place, SUFFIX)
}

/// The name under which a file stays that did not get the place, of the run `journal`.
pub(crate) fn preserved_name(place: &OsStr, journal: &str) -> OsString {
    hidden_name(place, &format!("{PRESERVED}{journal}"))
}

/// The name under which the old disk stays that the run `journal` replaced at `place`.
pub(crate) fn old_name(place: &OsStr, journal: &str) -> OsString {
    hidden_name(place, &format!("{OLD}{journal}"))
}

/// Opens the old disk of that name for writing, if it is the file of these numbers and has no other name; from then on
/// no other run takes it. Nobody may have it open.
///
/// One that somebody uses is an error (`ResourceBusy`).
pub(crate) fn reopen_old(folder: &OwnedFd, name: &OsStr, numbers: (u64, u64)) -> io::Result<Option<File>> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match rustix::fs::openat(folder, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::LOOP) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if !is_as_made(&rustix::fs::fstat(&file)?, numbers) {
        return Ok(None);
    }
    let is_free = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
        && !is_in_use(&file)
        && locks::is_open_here_alone(file.as_fd());
    if is_free {
        Ok(Some(file))
    } else {
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "somebody uses it"))
    }
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

/// What became of a file that a dead run may have left.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Leftover {
    Removed,
    /// It is not there any more.
    Gone,
    /// It stays, for this reason.
    Stays(&'static str),
}

/// Removes the file at `path` if it is the one that `create` made, with these numbers, and nobody uses it.
pub(crate) fn remove_leftover(path: &Path, numbers: (u64, u64)) -> io::Result<Leftover> {
    let is_ours = |name: &OsStr| name.as_encoded_bytes().ends_with(SUFFIX.as_bytes());
    match path.file_name().is_some_and(is_ours) {
        true => remove_same(path, numbers),
        false => Ok(Leftover::Stays("its name is not that of an unfinished file")),
    }
}

/// Removes the file at `path` if it has the name of an old disk that the run `journal` kept, and these numbers, and
/// nobody uses it.
pub(crate) fn remove_old(path: &Path, journal: &str, numbers: (u64, u64)) -> io::Result<Leftover> {
    let ending = format!("{OLD}{journal}");
    let is_ours = |name: &OsStr| name.as_encoded_bytes().ends_with(ending.as_bytes());
    match path.file_name().is_some_and(is_ours) {
        true => remove_same(path, numbers),
        false => Ok(Leftover::Stays("its name is not that of an old disk")),
    }
}

fn remove_same(path: &Path, (device, inode): (u64, u64)) -> io::Result<Leftover> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(Leftover::Stays("it is no file's name"));
    };
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(parent, flags, Mode::empty());
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let opened =
        folder.and_then(|folder| Ok((rustix::fs::openat(&folder, name, flags, Mode::empty())?, folder)));
    let (file, folder) = match opened {
        Ok((file, folder)) => (File::from(file), folder),
        Err(rustix::io::Errno::NOENT) => return Ok(Leftover::Gone),
        Err(error) => return Err(error.into()),
    };
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() || is_in_use(&file) {
        return Ok(Leftover::Stays("somebody uses it"));
    }
    // Whoever makes or removes one of that name asks for the lock first.
    let named = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let is_regular = rustix::fs::FileType::from_raw_mode(named.st_mode) == rustix::fs::FileType::RegularFile;
    let opened = rustix::fs::fstat(&file)?;
    let is_it = |stat: &rustix::fs::Stat| (stat.st_dev, stat.st_ino) == (device, inode);
    if !is_regular || !is_it(&named) || !is_it(&opened) {
        return Ok(Leftover::Stays("it is another file than the one that the run made"));
    }
    if named.st_nlink != 1 {
        return Ok(Leftover::Stays("it has another name as well"));
    }
    remove(&folder, name)?;
    Ok(Leftover::Removed)
}

/// Whether a hypervisor has laid its locks on it.
fn is_in_use(file: &File) -> bool {
    let locked = |byte| locks::is_locked_by_others(file.as_fd(), byte).unwrap_or(false);
    locks::USES.chain(locks::FORBIDS).any(locked)
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
        let numbers = (metadata.dev(), metadata.ino());
        let place = OsStr::new("disk.raw");
        assert_eq!(reopen(&folder, place, numbers).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        drop(file);
        assert!(reopen(&folder, place, (numbers.0, numbers.1 + 1)).unwrap().is_none(), "another file");
        assert!(reopen(&folder, OsStr::new("other.raw"), numbers).unwrap().is_none());
        reopen(&folder, place, numbers).unwrap().expect("it is the file of before");
        let path = temporary.path().join(&name);
        let other = File::open(&path).unwrap();
        assert!(reopen(&folder, place, numbers).unwrap().is_none(), "somebody has it open");
        assert!(is_left(&path, numbers) && !is_left(&path, (numbers.0, numbers.1 + 1)));
        drop(other);
        std::fs::hard_link(&path, temporary.path().join("link")).unwrap();
        assert!(reopen(&folder, place, numbers).unwrap().is_none(), "somebody else has a name for it");
        std::fs::remove_file(temporary.path().join("link")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let file = reopen(&folder, place, numbers).unwrap().expect("nobody has it open");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        drop(file);
        create(&folder, OsStr::new("disk.raw")).expect("the lock went with the run");
    }

    #[test]
    fn a_file_has_no_name_until_it_gets_one_and_then_nobody_else_may_take_that() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = OwnedFd::from(File::open(temporary.path()).unwrap());
        let (place, path) = (OsStr::new("disk.raw"), temporary.path().join(".disk.raw.reimage-unfinished"));
        let (name, file) = make(&folder, place).unwrap();
        assert!(!path.exists(), "a run that is killed now leaves nothing");
        drop(file);
        assert!(!path.exists());
        let (_, file) = make(&folder, place).unwrap();
        // What a run left meanwhile that was killed goes; what a living one holds stays.
        std::fs::write(&path, "left").unwrap();
        give_name(&folder, &name, &file).unwrap();
        let metadata = path.metadata().unwrap();
        assert!(is_left(&path, (metadata.dev(), metadata.ino())) && metadata.len() == 0);
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        give_name(&folder, &name, &file).expect("it has its name");
        assert_eq!(make(&folder, place).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        forget(&folder, &name, &file);
        let (_, other) = make(&folder, place).unwrap();
        let (_, file) = make(&folder, place).unwrap();
        give_name(&folder, &name, &other).unwrap();
        assert_eq!(give_name(&folder, &name, &file).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        forget(&folder, &name, &file);
        assert!(path.exists(), "it is the other run's");
    }

    #[test]
    fn only_the_very_file_that_a_run_made_and_nobody_uses_is_removed() {
        let temporary = tempfile::tempdir().unwrap();
        let at = |name: &str| temporary.path().join(name);
        let numbers = |file: &File| file.metadata().map(|of| (of.dev(), of.ino())).unwrap();
        let path = at(".disk.raw.reimage-unfinished");
        let folder = OwnedFd::from(File::open(temporary.path()).unwrap());
        let (_, file) = create(&folder, OsStr::new("disk.raw")).unwrap();
        let made = numbers(&file);
        let check = |path: &Path, numbers, expected: &str| match remove_leftover(path, numbers).unwrap() {
            Leftover::Stays(reason) => assert!(reason.contains(expected), "{reason}"),
            other => panic!("{other:?} instead of {expected}"),
        };
        check(&path, made, "uses it");
        drop(file);
        let hypervisor = File::open(&path).unwrap();
        locks::lock_shared(hypervisor.as_fd(), locks::USES_READ).unwrap();
        check(&path, made, "uses it");
        drop(hypervisor);
        check(&path, (made.0, made.1 + 1), "another file");
        check(&path, (made.0 + 1, made.1), "another file");
        std::fs::hard_link(&path, at("link")).unwrap();
        check(&path, made, "another name");
        check(&at("link"), made, "not that of an unfinished");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("link", &path).unwrap();
        remove_leftover(&path, made).expect_err("a link is not followed");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(remove_leftover(&path, made).unwrap(), Leftover::Gone);
        assert_eq!(remove_leftover(&at("no/.x.reimage-unfinished"), made).unwrap(), Leftover::Gone);
        std::fs::rename(at("link"), &path).unwrap();
        assert_eq!(remove_leftover(&path, made).unwrap(), Leftover::Removed);
        assert!(!path.exists());
    }

    #[test]
    fn an_old_disk_is_opened_and_removed_by_its_run_and_its_numbers_alone() {
        use std::os::unix::fs::MetadataExt;
        let temporary = tempfile::tempdir().unwrap();
        let folder = OwnedFd::from(File::open(temporary.path()).unwrap());
        let name = old_name(OsStr::new("disk.raw"), "run-1");
        assert_eq!(name, ".disk.raw.reimage-old-run-1");
        let path = temporary.path().join(&name);
        std::fs::write(&path, "old").unwrap();
        let of = path.metadata().unwrap();
        let numbers = (of.dev(), of.ino());
        assert!(reopen_old(&folder, OsStr::new("none"), numbers).unwrap().is_none());
        assert!(reopen_old(&folder, &name, (of.dev(), of.ino() + 1)).unwrap().is_none(), "another file");
        let reader = File::open(&path).unwrap();
        assert_eq!(reopen_old(&folder, &name, numbers).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        drop(reader);
        drop(reopen_old(&folder, &name, numbers).unwrap().expect("nobody has it open"));
        for (journal, numbers) in [("run-2", numbers), ("run-1", (of.dev(), of.ino() + 1))] {
            assert!(matches!(remove_old(&path, journal, numbers).unwrap(), Leftover::Stays(_)), "{journal}");
        }
        assert!(matches!(remove_leftover(&path, numbers).unwrap(), Leftover::Stays(_)));
        assert_eq!(remove_old(&path, "run-1", numbers).unwrap(), Leftover::Removed);
        assert_eq!(remove_old(&path, "run-1", numbers).unwrap(), Leftover::Gone);
    }
}
