//! A file whose lock means "somebody is at work", and which its holder may remove.
//!
//! Whoever holds the lock holds it on the file that bears the name: otherwise one run could hold a file that has
//! been removed, while another holds a new one of that name. A lock ends with its process, however that ends.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::locks;

/// The byte that is locked. A lock of an open file description, unlike flock(2), can be asked about without
/// being taken, so that who only asks keeps nobody out.
const BYTE: i64 = 0;
/// How long one try waits for the next.
const INSTANT: Duration = Duration::from_millis(5);
/// Each further try means that another holder removed the file in between.
const MOST_TRIES: u32 = 100;

/// A lock file that this process holds.
#[derive(Debug)]
pub(crate) struct LockFile {
    file: File,
    folder: OwnedFd,
    name: String,
}

/// Takes the lock `name` in a folder that exists, without waiting; the file is made if it is not there.
///
/// A lock that somebody else holds is an error (`WouldBlock`).
pub(crate) fn acquire(folder: &Path, name: &str) -> io::Result<LockFile> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty())?;
    for _ in 0..MOST_TRIES {
        // O_NONBLOCK: a FIFO under that name must not stop us.
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = File::from(rustix::fs::openat(&folder, name, flags, Mode::RUSR | Mode::WUSR)?);
        refuse_other_kinds(&file)?;
        lock_soon(&file)?;
        if bears_name(&folder, name, &file)? {
            return Ok(LockFile { file, folder, name: name.to_owned() });
        }
    }
    Err(io::ErrorKind::WouldBlock.into())
}

/// Who only removes what a dead run left holds a lock for an instant.
fn lock_soon(file: &File) -> io::Result<()> {
    for _ in 0..4 {
        match locks::lock_exclusive(file.as_fd(), BYTE) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(INSTANT),
            result => return result,
        }
    }
    locks::lock_exclusive(file.as_fd(), BYTE)
}

/// Whether somebody holds the lock `name`; nothing is made, and nobody is kept out meanwhile.
pub(crate) fn is_held(folder: &Path, name: &str) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match rustix::fs::open(folder.join(name), flags, Mode::empty()) {
        Ok(file) => {
            // A child that the last holder's process has just forked has it until its own program begins.
            for _ in 0..4 {
                if !locks::is_locked_by_others(file.as_fd(), BYTE)? {
                    return Ok(false);
                }
                thread::sleep(INSTANT);
            }
            locks::is_locked_by_others(file.as_fd(), BYTE)
        }
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl LockFile {
    /// The locked file, to read and write.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Removes the file, and then gives the lock up.
    pub(crate) fn remove(self) -> io::Result<()> {
        // Another file of that name cannot be there: who makes one needs this one gone first.
        Ok(rustix::fs::unlinkat(&self.folder, &self.name, AtFlags::empty())?)
    }
}

fn refuse_other_kinds(file: &File) -> io::Result<()> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode);
    if kind == FileType::RegularFile { Ok(()) } else { Err(Errno::INVAL.into()) }
}

fn bears_name(folder: &OwnedFd, name: &str, file: &File) -> io::Result<bool> {
    let locked = rustix::fs::fstat(file)?;
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(named) => Ok((named.st_dev, named.st_ino) == (locked.st_dev, locked.st_ino)),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const NAME: &str = "disk.lock";

    #[test]
    fn a_lock_is_held_by_one_and_seen_by_others_until_it_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_held(folder.path(), NAME).unwrap());
        assert!(!folder.path().join(NAME).exists(), "asking made the file");
        let lock = acquire(folder.path(), NAME).unwrap();
        assert_eq!(lock.file().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(is_held(folder.path(), NAME).unwrap());
        let second = acquire(folder.path(), NAME).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
        drop(lock);
        assert!(!is_held(folder.path(), NAME).unwrap(), "the file stays, and the lock is gone");
        acquire(folder.path(), NAME).unwrap().remove().unwrap();
        assert!(!folder.path().join(NAME).exists());
        acquire(folder.path(), NAME).expect("the lock is free again");
    }

    #[test]
    fn a_lock_on_a_removed_file_is_no_lock_on_the_name() {
        let folder = tempfile::tempdir().unwrap();
        let first = acquire(folder.path(), NAME).unwrap();
        std::fs::remove_file(folder.path().join(NAME)).unwrap();
        let file = File::create(folder.path().join(NAME)).unwrap();
        let opened = OwnedFd::from(File::open(folder.path()).unwrap());
        assert!(bears_name(&opened, NAME, &file).unwrap());
        assert!(!bears_name(&opened, NAME, first.file()).unwrap());
    }

    #[test]
    fn links_and_other_kinds_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("elsewhere", folder.path().join("link")).unwrap();
        std::fs::create_dir(folder.path().join("folder")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, folder.path().join("fifo"), Mode::RUSR | Mode::WUSR).unwrap();
        for name in ["link", "folder", "fifo"] {
            acquire(folder.path(), name).expect_err(name);
        }
        assert!(!folder.path().join("elsewhere").exists());
    }

    #[test]
    fn of_many_threads_that_take_and_remove_a_lock_never_two_hold_it() {
        let folder = tempfile::tempdir().unwrap();
        let (inside, taken) = (AtomicU32::new(0), AtomicU32::new(0));
        let take_and_remove = || {
            while taken.load(Ordering::SeqCst) < 200 {
                match acquire(folder.path(), NAME) {
                    Ok(lock) => {
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two hold the lock");
                        thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        taken.fetch_add(1, Ordering::SeqCst);
                        lock.remove().unwrap();
                    }
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
                is_held(folder.path(), NAME).unwrap();
            }
        };
        thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(take_and_remove))));
    }
}
