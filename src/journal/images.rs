//! Which images were decoded from end to end and found whole, so that an overlay on one is made in no time.
//!
//! An image is known again by what its files are (device, inode, size, times, head); what changed is another one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{checksum, name_of};
use crate::sys::durable;
use crate::verify::Digest;

/// More of a file than this is not read.
const MOST_BYTES: u64 = 4096;

/// What is known of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WholeImage {
    /// The root of its chunk digests.
    pub(crate) root: Digest,
    /// The digest that its file was found to have, where one was expected.
    pub(crate) file_digest: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    files: String,
    root: String,
    file_digest: Option<String>,
}

/// Notes what is known of the image of these files.
pub(crate) fn remember_image(
    state_dir: &Path,
    files: &serde_json::Value,
    image: &WholeImage,
) -> io::Result<()> {
    let path = place(state_dir, files);
    durable::make_folder(path.parent().expect("it lies in a folder"))?;
    let line =
        Line { files: name_of(files), root: image.root.to_string(), file_digest: image.file_digest.clone() };
    let text = serde_json::to_string(&line)?;
    durable::write_whole(&path, format!("{} {text}\n", checksum(&text)).as_bytes())
}

/// What is known of the image of these files; `None` where it is not known, or the note is damaged.
pub(crate) fn known_image(state_dir: &Path, files: &serde_json::Value) -> Option<WholeImage> {
    let path = place(state_dir, files);
    path.symlink_metadata().ok().filter(|found| found.is_file() && found.len() <= MOST_BYTES)?;
    let text = fs::read_to_string(path).ok()?;
    let (sum, text) = text.trim_end().split_once(' ')?;
    let line: Line = serde_json::from_str(text).ok().filter(|_| sum == checksum(text))?;
    let root = digest_of(&line.root).filter(|_| line.files == name_of(files))?;
    Some(WholeImage { root, file_digest: line.file_digest })
}

fn digest_of(hex: &str) -> Option<Digest> {
    let mut bytes = [0; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&hex[at..at + 2], 16).ok()?;
    }
    Some(Digest::from_bytes(bytes))
}

fn place(state_dir: &Path, files: &serde_json::Value) -> PathBuf {
    state_dir.join("images").join(format!("{}.whole", name_of(files)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_image_is_known_until_its_files_change_or_the_note_is_damaged() {
        let state = tempfile::tempdir().unwrap();
        let files = json!([{"inode": 7, "modified_ns": 1}]);
        assert_eq!(known_image(state.path(), &files), None);
        let image = WholeImage { root: Digest::of(b"root"), file_digest: Some("sha256:00".into()) };
        remember_image(state.path(), &files, &image).unwrap();
        assert_eq!(known_image(state.path(), &files), Some(image.clone()));
        assert_eq!(known_image(state.path(), &json!([{"inode": 7, "modified_ns": 2}])), None);
        let path = place(state.path(), &files);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() - 1 {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, bad).unwrap();
            assert_eq!(known_image(state.path(), &files), None, "byte {at}");
        }
    }
}
