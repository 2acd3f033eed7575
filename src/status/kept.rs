//! What is kept of a disk as it was before a rebuild: what `undo` would bring back.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

use super::{Subject, same_disk};
use crate::guard::{self, StorageIdentity, Topology};
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
    fs::symlink_metadata(path).map_or(0, |of| of.blocks().saturating_mul(512))
}

/// What is kept of a subject.
#[derive(Debug, Default)]
pub(crate) struct OfSubject {
    /// Of its disk, the last one first.
    pub(crate) kept: Vec<Kept>,
    /// Of another disk, which bore the name that it has now.
    pub(crate) of_namesakes: Vec<Kept>,
}

/// What is kept of the subject's disk: of what lies at its path, else of what bears its id; by the path alone only where
/// nothing lies there.
pub(crate) fn of_subject(subject: Subject<'_>, state_dir: &Path) -> io::Result<OfSubject> {
    let all = kept::list(state_dir)?.kept;
    if all.is_empty() {
        return Ok(OfSubject::default());
    }
    let (id, path) = match subject {
        Subject::Instance(spec) => (spec.id.as_deref(), Some(spec.system_disk.path.as_path())),
        Subject::Id(id) => (Some(id), None),
        Subject::Disk(path) => (None, Some(path)),
    };
    let path = path.filter(|path| !path.as_os_str().is_empty());
    let here = path.and_then(Here::find);
    let lies_there =
        |kept: &Kept| here.as_ref().is_some_and(|here| kept.all_keys().any(|key| here.is_named(key)));
    let (there, others): (Vec<_>, Vec<_>) = all.into_iter().partition(lies_there);
    if !there.is_empty() {
        return Ok(OfSubject { kept: there, of_namesakes: Vec::new() });
    }
    let of_id = |kept: &Kept| id.is_some() && kept.instance.as_deref() == id;
    let (of_id, others): (Vec<_>, Vec<_>) = others.into_iter().partition(of_id);
    let of_path = |kept: &Kept| path.is_some_and(|path| same_disk(path, Path::new(&kept.path)));
    let of_path = others.into_iter().filter(of_path);
    match here {
        _ if !of_id.is_empty() => Ok(OfSubject { kept: of_id, of_namesakes: Vec::new() }),
        Some(_) => Ok(OfSubject { kept: Vec::new(), of_namesakes: of_path.collect() }),
        None => Ok(OfSubject { kept: of_path.collect(), of_namesakes: Vec::new() }),
    }
}

/// What lies at a path, as far as can be told without opening it.
struct Here {
    bytes: Value,
    /// What tells it from another that gets its numbers later.
    id: Option<String>,
    is_file: bool,
}

impl Here {
    fn find(path: &Path) -> Option<Self> {
        // The kernel's tables name whole paths.
        let path = std::path::absolute(path).ok()?;
        let ((base, offset), id) = Topology::of_this_host(vec![path.clone()]).place_of(&path)?;
        let bytes = json!((base, offset));
        match base {
            StorageIdentity::Device { .. } => Some(Self { bytes, id, is_file: false }),
            StorageIdentity::File { .. } => Some(Self { bytes, id: made_below(&path, base), is_file: true }),
        }
    }

    /// Whether that key of the state folder is of it: a device is known by what it keeps when its number goes to
    /// another, where it has that.
    fn is_named(&self, key: &Value) -> bool {
        match (&key["id"], &self.id) {
            (Value::String(then), Some(now)) if self.is_file => then == now && key["bytes"] == self.bytes,
            (Value::String(then), Some(now)) => then == now && key["bytes"][1] == self.bytes[1],
            _ => key["bytes"] == self.bytes,
        }
    }
}

/// When the file was made in which a disk's bytes lie: the disk itself, or the file below a loop device.
fn made_below(path: &Path, base: StorageIdentity) -> Option<String> {
    let of = fs::metadata(path).ok()?;
    let of = match of.file_type().is_block_device() {
        false => of,
        true => {
            let (major, minor) = (rustix::fs::major(of.rdev()), rustix::fs::minor(of.rdev()));
            let name =
                fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/loop/backing_file")).ok()?;
            fs::metadata(name.trim_end_matches('\n')).ok()?
        }
    };
    let is_it = base == StorageIdentity::File { device: of.dev(), inode: of.ino() };
    is_it.then(|| guard::made(&of)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_of_another_file_with_the_same_numbers_is_not_of_this_one() {
        let (folder, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let disk = folder.path().join("disk.raw");
        fs::write(&disk, "disk").unwrap();
        let here = Here::find(&disk).unwrap();
        let is = |key: Value| here.is_named(&key);
        assert!(is(crate::plan::key_of_file(&disk.metadata().unwrap())));
        assert_eq!(is(json!({ "bytes": here.bytes, "id": "made 1.000000000" })), here.id.is_none());
        assert!(!is(json!({ "bytes": [{ "file": [1, 1] }, 0], "id": here.id })));
        let kept = |path: &str, id: &str| Kept {
            journal: "00000000-0000-4000-8000-000000000001".to_owned(),
            instance: Some("i-1".to_owned()),
            path: path.to_owned(),
            kept_ms: 1,
            size: 512,
            ptuuid: None,
            keys: vec![json!({ "bytes": here.bytes, "id": id })],
            old_key: Value::Null,
            form: Form::Copy { stage: kept::Stage::Begun, root: None, bytes: 1 },
            seed: None,
        };
        let counts = |subject: Subject<'_>| {
            let found = of_subject(subject, state.path()).unwrap();
            (found.kept.len(), found.of_namesakes.len())
        };
        kept::write(state.path(), &kept("/elsewhere", "made 1.000000000")).unwrap();
        let expected = if here.id.is_some() { (0, 0) } else { (1, 0) };
        assert_eq!(counts(Subject::Disk(&disk)), expected, "another disk's");
        assert_eq!(counts(Subject::Id("i-1")), (1, 0));
        assert_eq!(counts(Subject::Disk(Path::new("/elsewhere"))), (1, 0), "nothing lies there");
        kept::write(state.path(), &kept(disk.to_str().unwrap(), "made 1.000000000")).unwrap();
        let expected = if here.id.is_some() { (0, 1) } else { (1, 0) };
        assert_eq!(counts(Subject::Disk(&disk)), expected, "of the file that had its name");
        if let Some(id) = &here.id {
            kept::write(state.path(), &kept("/elsewhere", id)).unwrap();
            assert_eq!(counts(Subject::Disk(&disk)), (1, 0), "its own");
        }
    }
}
