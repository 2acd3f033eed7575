//! What is kept of a disk as it was before a rebuild: what `undo` would bring back.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

use super::{Subject, same_disk};
use crate::guard::Topology;
use crate::journal::kept::{self, Form, Kept, Place};
use crate::plan::{KeptForm, form_of};

/// A disk as it was before a rebuild, as it is kept.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// let status = reimage::status(reimage::Subject::Id("i-0a1b"), folder.path())?;
/// assert!(status.kept.is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct KeptStatus {
    /// The rebuild that it undoes, by its journal's name.
    pub journal: String,
    /// The instance's name, where one is known.
    pub instance: Option<String>,
    /// Where the disk was.
    #[serde(serialize_with = "crate::error::path_text")]
    pub target: PathBuf,
    /// When it was kept, in seconds since 1970.
    pub kept_s: u64,
    /// The size of the disk in bytes.
    pub size: u64,
    /// In which form.
    pub form: KeptForm,
    /// Where it lies.
    #[serde(serialize_with = "crate::error::path_text")]
    pub path: PathBuf,
    /// How many bytes it takes there.
    pub bytes: u64,
    /// The seed that comes back with it.
    pub seed: Option<String>,
    /// Whether it is there.
    pub is_there: bool,
}

impl KeptStatus {
    pub(crate) fn of(kept: &Kept, state_dir: &Path) -> Self {
        let path = match &kept.form {
            Form::File { kept_as, .. } => PathBuf::from(kept_as),
            Form::Copy { .. } => kept::content(state_dir, &kept.journal),
        };
        let path = std::path::absolute(&path).unwrap_or(path);
        Self {
            journal: kept.journal.clone(),
            instance: kept.instance.clone(),
            target: PathBuf::from(&kept.path),
            kept_s: kept.kept_ms / 1000,
            size: kept.size,
            form: form_of(kept),
            bytes: stored_bytes(&path),
            path,
            seed: kept.seed.as_ref().map(|seed| seed.path.to_string_lossy().into_owned()),
            is_there: kept.place(state_dir) == Place::Whole,
        }
    }
}

fn stored_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::symlink_metadata(path).map_or(0, |of| of.blocks().saturating_mul(512))
}

/// What is kept of the subject's disk, the last one first; what lies where the disk does comes before what only bears
/// the same name.
pub(crate) fn of_subject(subject: Subject<'_>, state_dir: &Path) -> io::Result<Vec<Kept>> {
    let all = kept::list(state_dir)?.kept;
    if all.is_empty() {
        return Ok(Vec::new());
    }
    let (id, path) = match subject {
        Subject::Instance(spec) => (spec.id.as_deref(), Some(spec.system_disk.path.as_path())),
        Subject::Id(id) => (Some(id), None),
        Subject::Disk(path) => (None, Some(path)),
    };
    let path = path.filter(|path| !path.as_os_str().is_empty());
    let here = path.and_then(named_as);
    let lies_there = |kept: &Kept| {
        let is = |key: &Value| here.as_ref().is_some_and(|here| is_same(key, here));
        kept.keys.iter().any(is) || is(&kept.old_key)
    };
    let (there, others): (Vec<_>, Vec<_>) = all.into_iter().partition(lies_there);
    if !there.is_empty() {
        return Ok(there);
    }
    let is_named = |kept: &Kept| {
        let same_path = path.is_some_and(|path| same_disk(path, Path::new(&kept.path)));
        same_path || (id.is_some() && kept.instance.as_deref() == id)
    };
    Ok(others.into_iter().filter(is_named).collect())
}

/// Whether both name one disk: a device by what it keeps when its number goes to another, where it has that.
fn is_same(key: &Value, here: &Value) -> bool {
    match (&key["id"], &here["id"]) {
        (Value::String(then), Value::String(now)) => then == now && key["bytes"][1] == here["bytes"][1],
        _ => key["bytes"] == here["bytes"],
    }
}

/// What names the disk at a path in the state folder, as far as can be told without opening it.
fn named_as(path: &Path) -> Option<Value> {
    // The kernel's tables name whole paths.
    let path = std::path::absolute(path).ok()?;
    let ((base, offset), id) = Topology::of_this_host(vec![path.clone()]).place_of(&path)?;
    Some(json!({ "bytes": (base, offset), "id": id }))
}
