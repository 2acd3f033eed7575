//! Which unfinished files a capture is writing: a note in the state folder, held while the capture lives.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::checksum;
use crate::sys::durable;
use crate::sys::lock_file::{self, LockFile};
use crate::verify::Digest;

/// Ends the name of a note.
const SUFFIX: &str = ".capture";
/// More of a note than this is not read.
const MOST_BYTES: u64 = 16 << 10;
/// More notes than this are not looked at.
const MOST_NOTES: usize = 4096;

/// A file that is no image yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unfinished {
    /// Where it lies; a name that is no text is not found again.
    #[serde(serialize_with = "crate::error::path_text")]
    pub(crate) path: PathBuf,
    /// The device number of its file system.
    pub(crate) device: u64,
    /// Its inode there.
    pub(crate) inode: u64,
}

/// The note of a capture that lives; dropped, it is removed.
pub(crate) struct CaptureNote(Option<LockFile>);

impl CaptureNote {
    /// Notes which files a capture is writing, durably; the first tells one capture from another.
    ///
    /// # Errors
    ///
    /// When it cannot be noted, or another capture that lives has noted the same path (`WouldBlock`).
    pub(crate) fn begin(state_dir: &Path, unfinished: &[Unfinished]) -> io::Result<Self> {
        let folder = folder(state_dir);
        durable::make_folder(&folder)?;
        let first = unfinished.first().ok_or(io::ErrorKind::InvalidInput)?;
        let name = Digest::of(first.path.as_os_str().as_encoded_bytes()).to_string();
        let lock = lock_file::acquire(&folder, &format!("{}{SUFFIX}", &name[..16]))?;
        let note = Self(Some(lock));
        let text = serde_json::to_string(unfinished)?;
        let file = note.0.as_ref().expect("it is held").file();
        file.set_len(0)?;
        file.write_all_at(format!("{} {text}\n", checksum(&text)).as_bytes(), 0)?;
        file.sync_all()?;
        durable::sync_folder(&folder)?;
        Ok(note)
    }
}

impl Drop for CaptureNote {
    fn drop(&mut self) {
        // A note that stays says what is not there, and is removed with the other things of dead runs.
        let _ = self.0.take().map(LockFile::remove);
    }
}

/// The note of a capture, as it was found.
pub(crate) struct Found {
    /// The note's own file.
    pub(crate) path: PathBuf,
    /// What it says.
    pub(crate) says: Says,
}

/// What a note says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Says {
    /// A living capture holds it.
    Held,
    /// A dead capture was writing these files.
    Left(Vec<Unfinished>),
    /// The capture died before it had said anything.
    Nothing,
}

/// Every note in a state folder.
///
/// # Errors
///
/// When the folder cannot be read.
pub(crate) fn list(state_dir: &Path) -> io::Result<Vec<Found>> {
    let folder = folder(state_dir);
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<_> = names.filter(|name| name.ends_with(SUFFIX)).take(MOST_NOTES).collect();
    names.sort_unstable();
    let look = |name: &String| {
        let path = folder.join(name);
        let says = match lock_file::is_held(&folder, name) {
            Ok(false) => read(&path).map_or(Says::Nothing, Says::Left),
            _ => Says::Held,
        };
        Found { path, says }
    };
    Ok(names.iter().map(look).collect())
}

impl Found {
    /// Removes the note, unless a capture has taken it meanwhile; says whether it is gone.
    pub(crate) fn remove(&self) -> io::Result<bool> {
        let (Some(folder), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return Ok(false);
        };
        match lock_file::acquire(folder, &name.to_string_lossy()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            lock => lock.and_then(LockFile::remove).map(|()| true),
        }
    }
}

fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("captures")
}

fn read(path: &Path) -> Option<Vec<Unfinished>> {
    path.symlink_metadata().ok().filter(|metadata| metadata.is_file() && metadata.len() <= MOST_BYTES)?;
    let text = fs::read_to_string(path).ok()?;
    let (sum, text) = text.trim_end().split_once(' ')?;
    serde_json::from_str(text).ok().filter(|_| sum == checksum(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_says_what_a_dead_capture_was_writing_and_a_living_one_holds_it() {
        let state = tempfile::tempdir().unwrap();
        let unfinished = Unfinished { path: "/images/.a.reimage-unfinished".into(), device: 7, inode: 9 };
        let unfinished = vec![unfinished.clone(), Unfinished { inode: 10, ..unfinished }];
        let says = || list(state.path()).unwrap().into_iter().map(|found| found.says).collect::<Vec<_>>();
        assert!(says().is_empty());
        let note = CaptureNote::begin(state.path(), &unfinished).unwrap();
        assert_eq!(says(), [Says::Held]);
        let second = CaptureNote::begin(state.path(), &unfinished).err().unwrap();
        assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
        assert!(!list(state.path()).unwrap()[0].remove().unwrap(), "it lives");
        drop(note);
        assert!(says().is_empty(), "a capture that has ended leaves none");

        // A process that is killed drops nothing but its locks.
        std::mem::forget(CaptureNote::begin(state.path(), &unfinished).unwrap());
        let path = list(state.path()).unwrap()[0].path.clone();
        let text = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, &text).unwrap();
        assert_eq!(says(), [Says::Left(unfinished.clone())]);
        for cut in 0..text.len() {
            fs::write(&path, &text[..cut]).unwrap();
            let expected = if cut + 1 == text.len() { Says::Left(unfinished.clone()) } else { Says::Nothing };
            assert_eq!(says(), [expected], "{cut} bytes of it");
        }
        CaptureNote::begin(state.path(), &unfinished).expect("the next capture takes it over");
        assert!(says().is_empty());
    }
}
