//! What rebuilds kept of the disks that they replaced or overwrote: a record each, named by the run that it undoes.
//!
//! A file that was replaced lies under another name beside the new one; of anything else a compressed copy lies in the
//! state folder, beside the record. The old seed lies there as well, readable by its owner alone. A record comes before
//! what it tells of, and says how far that came: what a killed run left of it is found, and never taken for whole.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::checksum;
use super::read::{MOST_FILES, read_bounded};
use crate::sys::beside::{self, Leftover};
use crate::sys::durable;

/// More of a record than this is not read.
const MOST_BYTES: u64 = 64 << 10;
/// So many names of one disk are remembered: every rebuild of a file that is replaced gives it another.
const MOST_KEYS: usize = 16;
const RECORD: &str = "json";
const CONTENT: &str = "qcow2";
const SEED: &str = "seed";

/// What one rebuild kept of the disk as it was before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// The run that it undoes.
    pub(crate) journal: String,
    /// The instance's name, where one is known.
    pub(crate) instance: Option<String>,
    /// Where the disk was, for people and for whoever asks by path; it identifies nothing.
    pub(crate) path: String,
    /// When it was kept, in milliseconds since 1970.
    pub(crate) kept_ms: u64,
    /// The size in bytes of the disk as it was.
    pub(crate) size: u64,
    /// The id of its partition table.
    pub(crate) ptuuid: Option<String>,
    /// What names the disk in the state folder since the rebuild; a file that is replaced gets another name each time.
    pub(crate) keys: Vec<Value>,
    /// What named it before.
    pub(crate) old_key: Value,
    pub(crate) form: Form,
    /// The seed that the rebuild replaced, where it wrote one.
    pub(crate) seed: Option<KeptSeed>,
}

/// How the old disk is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "form", rename_all = "snake_case")]
pub(crate) enum Form {
    /// The file itself, under another name beside the one that took its place.
    File {
        place: String,
        kept_as: String,
        old: Numbers,
        new: Numbers,
        /// The file's length in bytes, which is not the disk's size where the file is one of qcow2.
        len: u64,
        modified_ns: i64,
        /// When its names or content changed last, which was at the exchange; none where the run ended at it.
        #[serde(default)]
        changed_ns: Option<i64>,
        /// Whether it is one of qcow2, and therefore the file that took its place as well.
        is_qcow2: bool,
    },
    /// A compressed copy of its content, with the root of its chunk digests once it is whole.
    Copy { stage: Stage, root: Option<String>, bytes: u64 },
}

/// How far a copy has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stage {
    /// It is being written.
    Saving,
    /// It is whole, and the disk is as it was.
    Saved,
    /// The disk changes, or has changed.
    Begun,
}

/// What tells one file from another as long as both are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Numbers {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

impl From<(u64, u64)> for Numbers {
    fn from((device, inode): (u64, u64)) -> Self {
        Self { device, inode }
    }
}

/// What was at the seed's place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct KeptSeed {
    pub(crate) path: PathBuf,
    /// Whether a file was there, whose bytes are kept.
    pub(crate) was_there: bool,
    /// The identity that the rebuild's own seed has.
    pub(crate) next_instance_id: String,
    /// What the state folder remembered of the seed that was there.
    pub(crate) last: Value,
}

/// Where what was kept lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Where it should.
    Whole,
    /// The run that was to keep it ended before it had changed the disk.
    NotNeeded,
    /// It is not there any more, or another file is.
    Gone,
}

impl Kept {
    /// Whether it is about the disk of that key.
    pub(crate) fn is_of(&self, key: &Value) -> bool {
        self.all_keys().any(|own| own == key)
    }

    /// Everything that names the disk, or did.
    pub(crate) fn all_keys(&self) -> impl Iterator<Item = &Value> {
        self.keys.iter().chain([&self.old_key])
    }

    /// The disk has got another name.
    pub(crate) fn also_named(&mut self, key: &Value) {
        if !self.keys.contains(key) {
            self.keys.push(key.clone());
            let surplus = self.keys.len().saturating_sub(MOST_KEYS);
            self.keys.drain(..surplus);
        }
    }

    /// Where what was kept lies now.
    pub(crate) fn place(&self, state_dir: &Path) -> Place {
        match &self.form {
            Form::File { place, kept_as, old, new, .. } => match numbers_at(Path::new(kept_as)) {
                Some(found) if found == *old => Place::Whole,
                // The new file waits for its exchange, or has been exchanged back.
                Some(found) if found == *new => Place::NotNeeded,
                _ if numbers_at(Path::new(place)) == Some(*old) => Place::NotNeeded,
                _ => Place::Gone,
            },
            Form::Copy { stage: Stage::Begun, .. } => match content(state_dir, &self.journal).is_file() {
                true => Place::Whole,
                false => Place::Gone,
            },
            Form::Copy { stage: Stage::Saving | Stage::Saved, .. } => Place::NotNeeded,
        }
    }
}

fn numbers_at(path: &Path) -> Option<Numbers> {
    let found = rustix::fs::lstat(path).ok()?;
    Some(Numbers { device: found.st_dev, inode: found.st_ino })
}

/// Where kept content and records lie in a state folder.
pub(crate) fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("kept")
}

/// The copy of the disk that the run `journal` overwrote.
pub(crate) fn content(state_dir: &Path, journal: &str) -> PathBuf {
    place_of(state_dir, journal, CONTENT)
}

/// The seed that the run `journal` replaced.
pub(crate) fn seed(state_dir: &Path, journal: &str) -> PathBuf {
    place_of(state_dir, journal, SEED)
}

fn place_of(state_dir: &Path, journal: &str, ending: &str) -> PathBuf {
    folder(state_dir).join(format!("{journal}.{ending}"))
}

/// Puts a record into its place, or in that of the run's earlier one; durable when this returns.
pub(crate) fn write(state_dir: &Path, kept: &Kept) -> io::Result<()> {
    durable::make_folder(&folder(state_dir))?;
    let text = serde_json::to_string(kept)?;
    let line = format!("{} {text}\n", checksum(&text));
    durable::write_whole(&place_of(state_dir, &kept.journal, RECORD), line.as_bytes())
}

/// What a folder of kept disks holds.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// The last one kept first.
    pub(crate) kept: Vec<Kept>,
    /// Records that say nothing that could be read.
    pub(crate) unread: Vec<PathBuf>,
    /// Files without a record, and the run whose they are.
    pub(crate) orphans: Vec<(PathBuf, String)>,
}

/// Everything that is kept in a state folder; one that is not there keeps nothing.
pub(crate) fn list(state_dir: &Path) -> io::Result<Listing> {
    let entries = match fs::read_dir(folder(state_dir)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Listing::default()),
        entries => entries?,
    };
    let mut listing = Listing::default();
    let mut others = Vec::new();
    for entry in entries.take(MOST_FILES) {
        let path = entry?.path();
        let Some(stem) = path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned) else { continue };
        match path.extension().and_then(|ending| ending.to_str()) {
            Some(RECORD) => match read(&path, &stem) {
                Ok(Some(kept)) => listing.kept.push(kept),
                Ok(None) => {}
                Err(_) => listing.unread.push(path),
            },
            Some(CONTENT | SEED | "new") if is_run(&stem) => others.push((path, stem)),
            _ => {}
        }
    }
    let has_record = |stem: &String| place_of(state_dir, stem, RECORD).symlink_metadata().is_ok();
    listing.orphans.extend(others.into_iter().filter(|(_, stem)| !has_record(stem)));
    listing.orphans.sort_unstable();
    listing.kept.sort_by_key(|kept| std::cmp::Reverse(kept.kept_ms));
    Ok(listing)
}

/// What is kept of the disk of that key, the last one first.
pub(crate) fn of_disk(state_dir: &Path, key: &Value) -> io::Result<Vec<Kept>> {
    let mut kept = list(state_dir)?.kept;
    kept.retain(|kept| kept.is_of(key));
    Ok(kept)
}

/// Whether a name is one that a run's journal has.
fn is_run(name: &str) -> bool {
    uuid::Uuid::try_parse(name).is_ok()
}

/// A record that is gone meanwhile is none.
fn read(path: &Path, stem: &str) -> io::Result<Option<Kept>> {
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
    let file = match File::options().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let wrong = || io::Error::from(io::ErrorKind::InvalidData);
    if !file.metadata()?.is_file() {
        return Err(wrong());
    }
    let bytes = read_bounded(&file, MOST_BYTES)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| wrong())?;
    let (sum, text) = text.trim_end().split_once(' ').ok_or_else(wrong)?;
    let kept: Kept = serde_json::from_str(text)?;
    // Its files bear the run's name.
    let is_right = sum == checksum(text) && kept.journal == stem && is_run(stem);
    if is_right { Ok(Some(kept)) } else { Err(wrong()) }
}

/// Removes what is kept, or what a run has left of its attempt; says why something of it stays.
///
/// A file beside a disk goes before its record, which tells of it, and a copy after its record, which says that it is
/// whole; a copy without one is removed by whoever looks for them.
pub(crate) fn remove(state_dir: &Path, kept: &Kept) -> io::Result<Option<&'static str>> {
    if let Form::File { kept_as, old, new, .. } = &kept.form {
        let path = Path::new(kept_as);
        let found = numbers_at(path).filter(|found| found == old || found == new);
        if let Some(found) = found
            && let Leftover::Stays(why) =
                beside::remove_old(path, &kept.journal, (found.device, found.inode))?
        {
            return Ok(Some(why));
        }
        if found.is_some() {
            path.parent().map_or(Ok(()), durable::sync_folder)?;
        }
    }
    for ending in [RECORD, CONTENT, SEED, "new"] {
        remove_file(&place_of(state_dir, &kept.journal, ending))?;
        if ending == RECORD {
            durable::sync_folder(&folder(state_dir))?;
        }
    }
    Ok(None)
}

/// Removes a file, if it is there.
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use serde_json::json;

    use super::*;

    const RUN: &str = "00000000-0000-4000-8000-000000000001";

    fn numbers(path: &Path) -> Numbers {
        let of = path.metadata().unwrap();
        Numbers { device: of.dev(), inode: of.ino() }
    }

    fn copy(journal: &str, stage: Stage) -> Kept {
        Kept {
            journal: journal.to_owned(),
            instance: Some("i-1".to_owned()),
            path: "/disk".to_owned(),
            kept_ms: 7,
            size: 512,
            ptuuid: None,
            keys: vec![json!("disk")],
            old_key: json!("disk"),
            form: Form::Copy { stage, root: None, bytes: 9 },
            seed: None,
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_a_flipped_byte_is_told() {
        let state = tempfile::tempdir().unwrap();
        assert!(list(state.path()).unwrap().kept.is_empty());
        let kept = copy(RUN, Stage::Begun);
        write(state.path(), &kept).unwrap();
        assert_eq!(list(state.path()).unwrap().kept, std::slice::from_ref(&kept));
        assert_eq!(of_disk(state.path(), &json!("disk")).unwrap().len(), 1);
        assert!(of_disk(state.path(), &json!("another")).unwrap().is_empty());
        let path = place_of(state.path(), RUN, RECORD);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() - 1 {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, bad).unwrap();
            let listing = list(state.path()).unwrap();
            assert_eq!((listing.kept.len(), listing.unread.len()), (0, 1), "byte {at}");
        }
        let other = place_of(state.path(), "00000000-0000-4000-8000-000000000002", RECORD);
        fs::write(&other, &good).unwrap();
        assert!(list(state.path()).unwrap().unread.contains(&other), "a record of another run's name");
    }

    #[test]
    fn a_copy_counts_from_the_first_change_of_its_disk_on_and_as_long_as_it_is_there() {
        let state = tempfile::tempdir().unwrap();
        let place = |stage| copy(RUN, stage).place(state.path());
        assert_eq!(place(Stage::Begun), Place::Gone);
        write(state.path(), &copy(RUN, Stage::Begun)).unwrap();
        fs::write(content(state.path(), RUN), "copy").unwrap();
        assert_eq!((place(Stage::Saving), place(Stage::Saved)), (Place::NotNeeded, Place::NotNeeded));
        assert_eq!(place(Stage::Begun), Place::Whole);
        fs::write(seed(state.path(), RUN), "secret").unwrap();
        assert!(list(state.path()).unwrap().orphans.is_empty());
        fs::remove_file(place_of(state.path(), RUN, RECORD)).unwrap();
        assert_eq!(list(state.path()).unwrap().orphans.len(), 2);
        assert_eq!(remove(state.path(), &copy(RUN, Stage::Begun)).unwrap(), None);
        assert_eq!(fs::read_dir(folder(state.path())).unwrap().count(), 0);
    }

    #[test]
    fn who_bears_which_name_tells_whether_a_file_was_exchanged_and_only_what_was_kept_is_removed() {
        let state = tempfile::tempdir().unwrap();
        let at = |name: &str| state.path().join(name);
        let (disk, aside) = (at("disk"), at(&format!(".disk.reimage-old-{RUN}")));
        fs::write(&disk, "old").unwrap();
        fs::write(&aside, "new").unwrap();
        let (old, new) = (numbers(&disk), numbers(&aside));
        let kept_as = aside.to_str().unwrap().to_owned();
        let place = disk.to_str().unwrap().to_owned();
        let form = Form::File {
            place,
            kept_as,
            old,
            new,
            len: 3,
            modified_ns: 0,
            changed_ns: None,
            is_qcow2: false,
        };
        let kept = Kept { form, ..copy(RUN, Stage::Begun) };
        assert_eq!(kept.place(state.path()), Place::NotNeeded, "not exchanged yet");
        fs::rename(&disk, at("between")).unwrap();
        fs::rename(&aside, &disk).unwrap();
        assert_eq!(kept.place(state.path()), Place::Gone);
        fs::rename(at("between"), &aside).unwrap();
        assert_eq!(kept.place(state.path()), Place::Whole);
        fs::hard_link(&aside, at("link")).unwrap();
        write(state.path(), &kept).unwrap();
        assert!(remove(state.path(), &kept).unwrap().is_some() && aside.exists(), "it has another name");
        assert_eq!(list(state.path()).unwrap().kept.len(), 1);
        fs::remove_file(at("link")).unwrap();
        assert_eq!(remove(state.path(), &kept).unwrap(), None);
        assert!(!aside.exists() && disk.exists());
        fs::write(&aside, "somebody else's").unwrap();
        let is_another = numbers(&aside) != old;
        assert_eq!(remove(state.path(), &kept).unwrap(), None);
        assert!(aside.exists() || !is_another, "another file of that name");
        assert_eq!(fs::read_to_string(&disk).unwrap(), "new");
    }

    #[test]
    fn a_disk_that_gets_many_names_is_known_by_the_last_of_them() {
        let mut kept = copy(RUN, Stage::Begun);
        for number in 0..100 {
            kept.also_named(&json!(number));
            kept.also_named(&json!(number));
        }
        assert_eq!(kept.keys.len(), MOST_KEYS);
        assert!(kept.is_of(&json!(99)) && !kept.is_of(&json!(3)) && kept.is_of(&json!("disk")));
    }
}
