//! Which images were decoded from end to end and found whole, so that an overlay on one is made in no time.
//!
//! An image is known again by what its files are (device, inode, size, times, head); what changed is another one. The
//! digests of its chunks lie beside the note: a receipt of a disk that is built on it needs them.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{checksum, name_of};
use crate::sys::durable;
use crate::verify::Digest;

/// More of a file than this is not read.
const MOST_BYTES: u64 = 4096;
/// The same of the digests of its chunks.
const MOST_OF_CHUNKS: u64 = 256 << 20;

/// What is known of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WholeImage {
    /// The root of its chunk digests.
    pub(crate) root: Digest,
    /// The digest that its file was found to have, where one was expected.
    pub(crate) file_digest: Option<String>,
}

/// Ends the name of the file that holds the digests.
const CHUNKS: &str = "chunks";

#[derive(Serialize, Deserialize)]
struct Line {
    files: String,
    root: String,
    file_digest: Option<String>,
}

/// Notes what is known of the image of these files, and the digests of its chunks.
pub(crate) fn remember_image(
    state_dir: &Path,
    files: &serde_json::Value,
    (image, chunks): (&WholeImage, &impl Serialize),
) -> io::Result<()> {
    let path = place(state_dir, files);
    durable::make_folder(path.parent().expect("it lies in a folder"))?;
    durable::write_whole_with(&path.with_extension(CHUNKS), |file| {
        let mut out = io::BufWriter::new(file);
        serde_json::to_writer(&mut out, chunks)?;
        out.flush()
    })?;
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

/// The digests that were noted with it; whoever asks makes sure that they are those of its root.
pub(crate) fn known_chunks<Chunks: DeserializeOwned>(
    state_dir: &Path,
    files: &serde_json::Value,
) -> Option<Chunks> {
    let path = place(state_dir, files).with_extension(CHUNKS);
    path.symlink_metadata().ok().filter(|found| found.is_file() && found.len() <= MOST_OF_CHUNKS)?;
    serde_json::from_slice(&fs::read(path).ok()?).ok()
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
        assert_eq!(known_chunks::<Vec<u64>>(state.path(), &files), None);
        remember_image(state.path(), &files, (&image, &[3, 5])).unwrap();
        assert_eq!(known_chunks(state.path(), &files), Some(vec![3, 5]));
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
