//! Which image a disk holds, as far as a finished run here made it so.
//!
//! It only decides whether the next run compares before it writes: what a disk really holds is read.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{checksum, name_of};
use crate::sys::durable;
use crate::verify::Digest;

/// More of a file than this is not read.
const MOST_BYTES: u64 = 4096;

#[derive(Serialize, Deserialize)]
struct Holds {
    binding: String,
}

/// Notes that the disk of that key holds what a run of that binding made of it.
pub(crate) fn remember(state_dir: &Path, key: &serde_json::Value, binding: Digest) -> io::Result<()> {
    let path = place(state_dir, key);
    let folder = path.parent().expect("it lies in a folder");
    durable::make_folder(folder)?;
    let text = serde_json::to_string(&Holds { binding: binding.to_string() })?;
    durable::write_whole(&path, format!("{} {text}\n", checksum(&text)).as_bytes())
}

/// What the disk of that key holds is about to change.
pub(crate) fn forget(state_dir: &Path, key: &serde_json::Value) -> io::Result<()> {
    match fs::remove_file(place(state_dir, key)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Whether a finished run of that binding was the last one on the disk of that key.
pub(crate) fn holds(state_dir: &Path, key: &serde_json::Value, binding: Digest) -> bool {
    let path = place(state_dir, key);
    let is_short = |metadata: fs::Metadata| metadata.is_file() && metadata.len() <= MOST_BYTES;
    if !path.symlink_metadata().is_ok_and(is_short) {
        return false;
    }
    let text = fs::read_to_string(path).unwrap_or_default();
    let Some((sum, text)) = text.trim_end().split_once(' ') else { return false };
    let said: Option<Holds> = serde_json::from_str(text).ok().filter(|_| sum == checksum(text));
    said.is_some_and(|said| said.binding == binding.to_string())
}

fn place(state_dir: &Path, key: &serde_json::Value) -> PathBuf {
    state_dir.join("disks").join(format!("{}.holds", name_of(key)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_disk_holds_what_was_remembered_last_until_it_is_forgotten() {
        let state = tempfile::tempdir().unwrap();
        let (key, one, other) = (json!({"inode": 7}), Digest::of(b"1"), Digest::of(b"2"));
        assert!(!holds(state.path(), &key, one));
        remember(state.path(), &key, one).unwrap();
        assert!(holds(state.path(), &key, one) && !holds(state.path(), &key, other));
        assert!(!holds(state.path(), &json!({"inode": 8}), one), "another disk");
        remember(state.path(), &key, other).unwrap();
        assert!(!holds(state.path(), &key, one) && holds(state.path(), &key, other));
        let path = place(state.path(), &key);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() - 1 {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, bad).unwrap();
            assert!(!holds(state.path(), &key, other), "byte {at}");
        }
        fs::write(&path, good).unwrap();
        forget(state.path(), &key).unwrap();
        forget(state.path(), &key).expect("it is forgotten already");
        assert!(!holds(state.path(), &key, other));
    }
}
