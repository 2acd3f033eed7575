//! Whether an instance is stopped, being rebuilt, or failed: what the state folder and the disk itself say.
//!
//! The journal knows who and how far, and whether its run lives; the disk's head knows whether it can boot. Where
//! they differ, the disk is believed about itself, and a notice says what the journal says. Writes nothing.

mod kept;
mod verdict;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, ErrorKind, TargetState};
use crate::inspect::{open_as, open_disk, read_marker};
use crate::journal::kept::Place;
use crate::journal::{self, JournalSummary};
use crate::layout::{self, DiskLayout, Signature, marker};
use crate::observe::Phase;
use crate::plan::DiskBytes;
use crate::receipt::{self, ReceiptNote, ReceiptOf};
use crate::request::{ImageOptions, InstanceSpec, SystemDisk, TargetFormat};
use crate::target::Disk;
use crate::verify::CHUNK;
use verdict::judge;

pub use kept::KeptStatus;
pub(crate) use kept::of_subject;

/// Whose status is asked for.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Subject<'a> {
    /// An instance, by its id and by its system disk.
    Instance(&'a InstanceSpec),
    /// The instance that was rebuilt under that id; where its disk is, its journal says.
    Id(&'a str),
    /// A system disk.
    Disk(&'a Path),
}

/// What became of the rebuilds of an instance.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct InstanceStatus {
    /// Whether it can be started.
    pub state: InstanceState,
    /// The instance's name, where one is known.
    pub instance: Option<String>,
    /// The system disk, where one is known.
    #[serde(serialize_with = "path_text")]
    pub target: Option<PathBuf>,
    /// The journal that the disk's head or the state folder names.
    pub journal: Option<String>,
    /// The run under way, or the one that ended in between.
    pub run: Option<RunStatus>,
    /// How it failed.
    pub failure: Option<FailureStatus>,
    /// What lies on the disk, where it could be read.
    pub disk: Option<DiskContent>,
    /// The receipt of the last finished rebuild, with which the disk can be compared.
    pub receipt: Option<ReceiptNote>,
    /// The disk as it was before a rebuild, which `undo` would bring back.
    pub kept: Option<KeptStatus>,
    /// What a person should know besides.
    pub notices: Vec<String>,
    /// What to do.
    pub advice: &'static str,
}

/// Whether an instance can be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum InstanceState {
    /// No rebuild is under way or unfinished: it can be started.
    Stopped,
    /// A rebuild is writing its disk.
    Rebuilding,
    /// A rebuild is unfinished; the disk cannot boot.
    Failed,
}

/// A run as its journal tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RunStatus {
    /// Its process.
    pub pid: u32,
    /// When it began, in seconds since 1970.
    pub started_s: u64,
    /// The phase it is in, once it has begun to write; noted at most once a second.
    pub phase: Option<Phase>,
    /// Bytes that the phase has gone through.
    pub bytes_done: u64,
    /// How many bytes the phase goes through.
    pub bytes_total: u64,
    /// The same in percent, rounded down.
    pub percent: u64,
    /// Bytes that it has noted as being on the disk for good: what a run that goes on need not write again.
    pub bytes_noted: u64,
}

/// How a run failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FailureStatus {
    /// What the disk holds, at the least.
    pub target_state: TargetState,
    /// The kind of the error; none where the run could not tell any more.
    pub kind: Option<ErrorKind>,
    /// What went wrong.
    pub message: String,
}

/// What lies on a disk.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct DiskContent {
    /// Its size in bytes.
    pub size: u64,
    /// Every label that firmware, kernel or udev would find at its head or its end.
    pub signatures: Vec<Signature>,
    /// The partitions and file systems on it.
    pub layout: DiskLayout,
}

/// Says what became of the rebuilds of an instance, from the state folder and from its disk.
///
/// ```
/// use reimage::{InstanceState, Subject};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// let state_dir = folder.path();
/// let status = reimage::status(Subject::Id("i-0a1b"), state_dir)?;
/// assert_eq!(status.state, InstanceState::Stopped);
///
/// # let disk = folder.path().join("system.raw");
/// # std::fs::write(&disk, [7; 4096])?;
/// let status = reimage::status(Subject::Disk(&disk), state_dir)?;
/// assert_eq!(status.state, InstanceState::Stopped);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// When neither the disk nor a journal tells enough: the disk that is named cannot be read, or the state folder.
pub fn status(subject: Subject<'_>, state_dir: &Path) -> Result<InstanceStatus, Error> {
    let (id, named) = match subject {
        Subject::Instance(spec) => (spec.id.as_deref(), Some(spec.system_disk.path.as_path())),
        Subject::Id(id) => (Some(id), None),
        Subject::Disk(path) => (None, Some(path)),
    };
    let named = named.filter(|path| !path.as_os_str().is_empty());
    let mut notices = Vec::new();
    let journals = journals_in(state_dir, named, &mut notices)?;
    let format = match subject {
        Subject::Instance(spec) => spec.system_disk.format,
        Subject::Id(_) | Subject::Disk(_) => TargetFormat::Auto,
    };
    let looked = named.map(|path| Seen::of(path, format));
    let marker = looked.as_ref().and_then(|looked| looked.as_ref().ok()?.marker.as_ref());
    let journal = choose(journals, (id, named, marker.map(|marker| marker.journal.as_str())));
    let recorded = journal.as_ref().map(|journal| PathBuf::from(&journal.last().path));
    let path = named.map(Path::to_owned).or(recorded.filter(|path| !path.as_os_str().is_empty()));
    let looked = looked.or_else(|| path.as_deref().map(|path| Seen::of(path, format)));
    let seen = match looked.transpose() {
        Ok(seen) => seen,
        Err(error) if can_do_without(&error, subject, journal.as_ref()) => {
            notices.push(format!("the disk cannot be read, so only the journal speaks: {error}"));
            None
        }
        Err(error) => return Err(error),
    };
    notices.extend(seen.as_ref().and_then(|seen| seen.notice.clone()));
    let kept = match kept_of(subject, (path.as_deref(), state_dir)) {
        Ok(kept) => kept,
        Err(error) => {
            notices.push(format!("what is kept of disks cannot be read: {error}"));
            None
        }
    };
    let verdict = judge(journal.as_ref(), seen.as_ref());
    notices.extend(verdict.notice);
    let tells = journal.as_ref().filter(|journal| {
        verdict.state != InstanceState::Stopped || (journal.staged.is_some() && !journal.finished)
    });
    let run = tells.map(|journal| run_of(journal, state_dir));
    let of_marker = seen.as_ref().and_then(|seen| Some(seen.marker.as_ref()?.journal.clone()));
    let of_disk = path.as_deref().and_then(|path| receipt::find(state_dir, ReceiptOf::Disk(path)));
    let receipt = of_disk.or_else(|| receipt::find(state_dir, ReceiptOf::Instance(id?)));
    let is_known = journal.is_some() || seen.is_some() || receipt.is_some() || kept.is_some();
    notices.extend((!is_known).then(|| "no rebuild of it is recorded here".to_owned()));
    Ok(InstanceStatus {
        receipt,
        state: verdict.state,
        instance: id.map(str::to_owned).or_else(|| journal.as_ref()?.last().instance.clone()),
        target: path,
        journal: journal.as_ref().map(|journal| journal.last().journal.clone()).or(of_marker),
        run,
        failure: verdict.failure,
        disk: seen.map(|seen| seen.content),
        kept,
        notices,
        advice: verdict.advice,
    })
}

/// The journals of a state folder; where a disk is named, the answer does not hang on them.
fn journals_in(
    state_dir: &Path,
    named: Option<&Path>,
    notices: &mut Vec<String>,
) -> Result<Vec<JournalSummary>, Error> {
    match journal::list(state_dir) {
        Ok(listing) => {
            notices.extend(overlooked(listing.unread));
            Ok(listing.journals)
        }
        // The disk speaks for itself.
        Err(error) if named.is_some() => {
            notices.push(format!("the state folder {state_dir:?} cannot be read: {error}"));
            Ok(Vec::new())
        }
        Err(error) => Err(Error::new(ErrorKind::Usage, error)
            .at_path(state_dir)
            .hint_that("name the folder with --state-dir, or ask as the user who ran the rebuild")),
    }
}

/// What an undo of the subject would bring back; an id leads to its disk by what journals say.
fn kept_of(
    subject: Subject<'_>,
    (path, state_dir): (Option<&Path>, &Path),
) -> std::io::Result<Option<KeptStatus>> {
    let mut kept = of_subject(subject, state_dir)?.kept;
    if let (true, Subject::Id(_), Some(path)) = (kept.is_empty(), subject, path) {
        kept = of_subject(Subject::Disk(path), state_dir)?.kept;
    }
    let whole = kept.iter().find(|kept| kept.place(state_dir) == Place::Whole);
    Ok(whole.map(|kept| KeptStatus::of(kept, state_dir)))
}

fn overlooked(unread: usize) -> Option<String> {
    (unread > 0).then(|| format!("{unread} journals in the state folder could not be read"))
}

/// What a look at the disk found.
struct Seen {
    marker: Option<marker::Marker>,
    /// Whether a run that holds no journal here writes it.
    is_locked: bool,
    content: DiskContent,
    notice: Option<String>,
}

impl Seen {
    fn of(path: &Path, format: TargetFormat) -> Result<Self, Error> {
        let disk = open_disk(path)?;
        let marker = read_marker(&disk, path)?;
        let is_locked = marker.is_some() && disk.is_locked_by_another();
        let unreadable = |error| Error::new(ErrorKind::TargetUnusable, error).at_path(path);
        // The state does not hang on what is in a qcow2 file: while it is unfinished, it is not in its place.
        let mut spec = SystemDisk::default();
        (spec.path, spec.format) = (path.to_owned(), format);
        let (disk, notice): (Box<dyn Disk>, _) = match open_as(&spec, &ImageOptions::default()) {
            Ok(disk) => (disk, None),
            Err(error) => {
                let notice = format!("what is in the file is not shown, only the file itself: {error}");
                (Box::new(disk), Some(notice))
            }
        };
        let layout = layout::describe(&DiskBytes(disk.as_ref())).map_err(unreadable)?;
        let signatures = layout::probe(&DiskBytes(disk.as_ref())).map_err(unreadable)?;
        let content = DiskContent { size: disk.size(), signatures, layout };
        Ok(Self { marker, is_locked, content, notice })
    }
}

/// The journal that says most about the subject: of a living run, else of the disk's marker, else the last one.
fn choose(
    journals: Vec<JournalSummary>,
    (id, path, marker): (Option<&str>, Option<&Path>, Option<&str>),
) -> Option<JournalSummary> {
    let rank = |journal: &JournalSummary| {
        let begun = journal.last();
        let is_named = marker.is_some_and(|marker| journal.names(marker));
        let is_there = path.is_some_and(|path| same_disk(path, Path::new(&begun.path)));
        let is_it = id.is_some() && begun.instance.as_deref() == id;
        (is_named || is_there || is_it).then_some((journal.held, is_named, is_there, begun.started_s))
    };
    let ranked = journals.into_iter().filter_map(|journal| Some((rank(&journal)?, journal)));
    ranked.max_by_key(|(rank, _)| *rank).map(|(_, journal)| journal)
}

/// Whether both names are those of one disk, or would be if it were there.
fn same_disk(one: &Path, other: &Path) -> bool {
    if std::path::absolute(one).is_ok_and(|one| one == other) {
        return true;
    }
    let storage = |path| {
        let metadata = fs::metadata(path).ok()?;
        let device = metadata.file_type().is_block_device().then(|| metadata.rdev());
        Some(device.map_or((metadata.dev(), metadata.ino()), |device| (device, 0)))
    };
    storage(one).is_some_and(|one| storage(other) == Some(one))
}

/// Whether the answer is certain although the disk cannot be read.
fn can_do_without(error: &Error, subject: Subject<'_>, journal: Option<&JournalSummary>) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    let is_missing = source.is_some_and(|source| source.kind() == std::io::ErrorKind::NotFound);
    match journal {
        // A disk that is not there yet has nothing unfinished on it.
        None => is_missing && matches!(subject, Subject::Instance(_)),
        Some(journal) => is_missing || journal.held || journal.invalidated,
    }
}

fn run_of(journal: &JournalSummary, state_dir: &Path) -> RunStatus {
    let begun = journal.last();
    let progress = journal.progress.as_ref();
    let (bytes_done, bytes_total) =
        progress.map_or((0, 0), |progress| (progress.bytes_done, progress.bytes_total));
    let percent = (u128::from(bytes_done) * 100).checked_div(u128::from(bytes_total)).unwrap_or(0);
    let phase = progress.map(|progress| serde_json::Value::from(progress.phase.as_str()));
    RunStatus {
        pid: begun.pid,
        started_s: begun.started_s,
        phase: phase.and_then(|phase| serde_json::from_value(phase).ok()),
        bytes_done,
        bytes_total,
        percent: u64::try_from(percent.min(100)).expect("a hundred is small"),
        bytes_noted: journal.chunks_noted(state_dir).saturating_mul(CHUNK),
    }
}

fn path_text<S: serde::Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_ref().map(|path| path.to_string_lossy()).serialize(serializer)
}
