//! Where receipts lie in the state folder, and how they are found again.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Contents, FORMAT, ReceiptNote, ReceiptOf, VERSION, Written, WrittenPiece};
use crate::plan::TargetKind;
use crate::sys::durable;
use crate::verify::Digest;

/// Ends the name of a note.
const NOTE: &str = "note";
/// More of a note than this is not read, and no more notes than these.
const MOST_OF_NOTE: u64 = 16 << 10;
const MOST_NOTES: usize = 4096;

/// Whose receipt lies beside it.
#[derive(Serialize, Deserialize)]
struct Note {
    instance: Option<String>,
    target: PathBuf,
    time_s: u64,
}

/// Keeps the receipt of a rebuild; it takes the place of the one that the disk had.
///
/// # Errors
///
/// When the state folder cannot be written.
pub(crate) fn keep(state_dir: &Path, contents: &Contents<'_>) -> io::Result<()> {
    let report = contents.report;
    let target = place_of(&report.target);
    let folder = folder(state_dir);
    durable::make_folder(&folder)?;
    forget(state_dir, &report.target)?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let piece = |piece: &super::EndPiece| WrittenPiece {
        offset: piece.range.start(),
        len: piece.range.len(),
        digest: piece.digest,
        table: piece.is_table,
    };
    let written = Written {
        format: FORMAT,
        version: VERSION,
        time_s: now.as_secs(),
        instance: report.plan.instance.as_deref(),
        target: target.to_string_lossy().into_owned(),
        target_bytes: report.target_bytes,
        virtual_size: contents.digests.virtual_size(),
        root: report.root,
        report,
        ends: contents.ends.iter().map(piece).collect(),
        chunks: contents.digests,
    };
    let name = name_of(report.plan.target_kind, contents.key, &target);
    let path = folder.join(format!("{name}.json"));
    durable::write_whole_with(&path, |file| {
        let mut out = io::BufWriter::new(file);
        let form = serde_json::ser::PrettyFormatter::with_indent(b" ");
        written.serialize(&mut serde_json::Serializer::with_formatter(&mut out, form))?;
        out.write_all(b"\n")?;
        out.flush()
    })?;
    let note = Note { instance: report.plan.instance.clone(), target, time_s: now.as_secs() };
    durable::write_whole(&path.with_extension(NOTE), &serde_json::to_vec(&note)?)
}

/// Removes what is known of a disk: something else is on it.
pub(crate) fn forget(state_dir: &Path, target: &Path) -> io::Result<()> {
    for note in notes(state_dir).into_iter().filter(|note| same_disk(&note.target, target)) {
        for path in [note.path.with_extension(NOTE), note.path] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// The receipt that is meant: the latest of several.
pub(crate) fn find(state_dir: &Path, of: ReceiptOf<'_>) -> Option<ReceiptNote> {
    let is_it = |note: &ReceiptNote| match of {
        ReceiptOf::File(path) => note.path == path,
        ReceiptOf::Instance(id) => note.instance.as_deref() == Some(id),
        ReceiptOf::Disk(path) => same_disk(&note.target, path),
    };
    notes(state_dir).into_iter().filter(is_it).max_by_key(|note| note.time_s)
}

fn notes(state_dir: &Path) -> Vec<ReceiptNote> {
    let Ok(entries) = fs::read_dir(folder(state_dir)) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    let paths = paths.filter(|path| path.extension().is_some_and(|ending| ending == NOTE)).take(MOST_NOTES);
    paths.filter_map(|path| read_note(&path)).collect()
}

fn read_note(path: &Path) -> Option<ReceiptNote> {
    let metadata = path.symlink_metadata().ok()?;
    if !metadata.is_file() || metadata.len() > MOST_OF_NOTE {
        return None;
    }
    let Note { instance, target, time_s } = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let path = path.with_extension("json");
    path.is_file().then_some(ReceiptNote { path, time_s, instance, target })
}

fn folder(state_dir: &Path) -> PathBuf {
    std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.to_owned()).join("receipts")
}

/// A file that is replaced is another one after each rebuild, and bears the same name.
fn name_of(kind: TargetKind, key: &Value, target: &Path) -> String {
    let by_name = json!({ "file": target.to_string_lossy() });
    let key = if kind == TargetKind::Device { key } else { &by_name };
    Digest::of(key.to_string().as_bytes()).to_string()[..32].to_owned()
}

fn place_of(target: &Path) -> PathBuf {
    std::path::absolute(target).unwrap_or_else(|_| target.to_owned())
}

/// Whether both names lead to one disk.
fn same_disk(one: &Path, other: &Path) -> bool {
    let storage = |path| {
        let metadata = fs::metadata(path).ok()?;
        let device = metadata.file_type().is_block_device().then(|| metadata.rdev());
        Some(device.map_or((metadata.dev(), metadata.ino()), |device| (device, 0)))
    };
    place_of(one) == place_of(other) || storage(one).is_some_and(|one| storage(other) == Some(one))
}
