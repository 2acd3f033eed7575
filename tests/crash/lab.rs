//! Runs, and what a state folder looked like when an operation began and ended.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel, sync_channel};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use reimage::{
    CancelToken, Credential, Error, ErrorKind, OldDisk, OnError, Options, PasswordHash, Promise, Report,
    Request, SeedSpec, SimDisk, SimHistory, SimWhen, Target, UndoReport,
};

use super::disks::MIB;
use super::scenarios::{Packing, Scenario};

/// A run that is not over by then hangs.
const LONGEST_RUN: Duration = Duration::from_secs(120);
const HASH: &str =
    "$6$saltsaltsalt$aGG2fEUe3rpHavE2WyvcJbwCx4IsWPyqj7WbbuzGp8bP40d3GekpoqY3KRusnF2yFZXr3nz7dqHvCdi2xtTq21";

/// Everything in a folder: a path inside it, and the bytes.
pub(crate) type Snapshot = Arc<BTreeMap<PathBuf, Arc<Vec<u8>>>>;

fn snapshot(folder: &Path) -> Snapshot {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(inside) = folders.pop() {
        for entry in fs::read_dir(inside).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(bytes) = fs::read(&path) {
                found.insert(path.strip_prefix(folder).unwrap().to_owned(), shared(bytes));
            }
        }
    }
    Arc::new(found)
}

/// The same bytes once in memory, however many snapshots have them: what is kept of a disk is as long as the disk.
fn shared(bytes: Vec<u8>) -> Arc<Vec<u8>> {
    static KNOWN: Mutex<BTreeMap<[u8; 32], Weak<Vec<u8>>>> = Mutex::new(BTreeMap::new());
    if bytes.len() < 64 << 10 {
        return Arc::new(bytes);
    }
    let mut known = KNOWN.lock().unwrap();
    let entry = known.entry(*blake3::hash(&bytes).as_bytes()).or_default();
    entry.upgrade().unwrap_or_else(|| {
        let bytes = Arc::new(bytes);
        *entry = Arc::downgrade(&bytes);
        bytes
    })
}

/// What a run works with besides the disk and the image: state folder and seed.
pub(crate) struct Home(tempfile::TempDir);

impl Home {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir_in(fast_folder()).unwrap())
    }

    /// The same as it was when the snapshot was made.
    pub(crate) fn of(snapshot: &Snapshot) -> Self {
        let home = Self::new();
        for (path, bytes) in snapshot.iter() {
            let path = home.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes.as_slice()).unwrap();
        }
        home
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        snapshot(self.0.path())
    }
}

/// Whether the seed is in its place.
fn is_seeded(home: &Snapshot) -> bool {
    home.get(Path::new("seed.iso")).is_some_and(|seed| seed.get(32_769..32_774) == Some(b"CD001"))
}

pub(crate) fn journals(home: &Snapshot) -> impl Iterator<Item = (&PathBuf, &[u8])> {
    home.iter()
        .map(|(path, bytes)| (path, bytes.as_slice()))
        .filter(|(path, _)| path.extension().is_some_and(|name| name == "journal"))
}

fn fast_folder() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if tempfile::tempfile_in(&memory).is_ok() { memory } else { std::env::temp_dir() }
}

/// How a run ended.
pub(crate) enum Outcome {
    Done(Box<Report>),
    Failed(Error),
    Panicked(String),
    Hangs,
}

impl Outcome {
    #[track_caller]
    pub(crate) fn done(self) -> Result<Report, String> {
        match self {
            Self::Done(report) => Ok(*report),
            Self::Failed(error) => Err(format!("it fails: {}", chain(&error))),
            Self::Panicked(message) => Err(format!("it panics: {message}")),
            Self::Hangs => Err("it hangs".to_owned()),
        }
    }
}

/// An error and its causes.
pub(crate) fn chain(error: &Error) -> String {
    let mut text = format!("{error} ({:?}, {})", error.kind(), error.target_state());
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// What the operations of one run and the state folder were.
pub(crate) struct Recording {
    pub(crate) history: SimHistory,
    /// Before the first operation, after it, before the second, and so on; at last, when the run has returned.
    pub(crate) snapshots: Vec<(usize, SimWhen, Snapshot)>,
    pub(crate) outcome: Outcome,
}

/// What a disk of a size and a sector size becomes, by the address and length of the image's bytes.
type Known = BTreeMap<[usize; 4], Arc<Vec<u8>>>;

/// A scenario with its image and its disks.
pub(crate) struct Bench {
    pub(crate) scenario: Scenario,
    pub(crate) old: Arc<Vec<u8>>,
    size: usize,
    /// What an undisturbed rebuild makes of it.
    pub(crate) finished: Arc<Vec<u8>>,
    folder: Arc<tempfile::TempDir>,
    on_error: OnError,
    old_disk: OldDisk,
}

impl Bench {
    pub(crate) fn new(scenario: Scenario) -> Self {
        let folder = Arc::new(tempfile::tempdir_in(fast_folder()).unwrap());
        let image = scenario.image();
        let (size, old_size) = (scenario.size(), scenario.old_size());
        let (old, finished) = (vec![0; old_size].into(), Arc::default());
        let (on_error, old_disk) = (OnError::Discard, OldDisk::Discard);
        let mut bench = Self { scenario, old, size, finished, folder, on_error, old_disk };
        fs::write(bench.image_path(), scenario.image_file()).unwrap();
        bench.finished = bench.undisturbed(image);
        bench.old = scenario.old.disk((old_size, scenario.sector()), &bench.finished).into();
        bench
    }

    /// The same rebuild of a disk that holds something else.
    pub(crate) fn of_disk(&self, old: Arc<Vec<u8>>) -> Self {
        let (finished, folder) = (Arc::clone(&self.finished), Arc::clone(&self.folder));
        let Self { scenario, size, on_error, old_disk, .. } = *self;
        Self { scenario, old, size, finished, folder, on_error, old_disk }
    }

    /// The same, and a new file that is not completed stays.
    pub(crate) fn preserving(self) -> Self {
        Self { on_error: OnError::Preserve, ..self }
    }

    /// The same, and the disk as it was is kept; no seed is written, for what is kept of one names its place, and the
    /// state folder of a moment is looked at in another.
    pub(crate) fn keeping(self) -> Self {
        Self { old_disk: OldDisk::Keep, ..self }
    }

    /// What a rebuild makes of a disk of that size when nothing goes wrong; the first that asks carries it out.
    fn undisturbed(&self, image: &[u8]) -> Arc<Vec<u8>> {
        static KNOWN: Mutex<Known> = Mutex::new(BTreeMap::new());
        let mut known = KNOWN.lock().unwrap();
        let key = [self.size, self.scenario.sector(), image.as_ptr().addr(), image.len()];
        let finished = known.entry(key).or_insert_with(|| {
            let (disk, home) = (self.disk(), Home::new());
            self.run(&disk, &home, &CancelToken::new()).done().expect("an undisturbed rebuild");
            let finished = disk.durable();
            check_finished(&finished, image, self.scenario.sector());
            finished
        });
        Arc::clone(finished)
    }

    fn image_path(&self) -> PathBuf {
        self.folder.path().join(match self.scenario.packing {
            Packing::Compressed => "image.qcow2",
            _ => "image.raw",
        })
    }

    /// The bytes of the image's chunks that are not all zero: a rebuild that keeps nothing writes them.
    pub(crate) fn fresh_bytes(&self) -> u64 {
        let chunks = self.scenario.image().chunks(MIB);
        chunks.filter(|chunk| chunk.iter().any(|byte| *byte != 0)).map(|chunk| chunk.len() as u64).sum()
    }

    /// The disk before the rebuild.
    pub(crate) fn disk(&self) -> SimDisk {
        self.scenario.disk(Arc::clone(&self.old), self.size)
    }

    /// A rebuild, on a thread of its own.
    pub(crate) fn run(&self, disk: &SimDisk, home: &Home, cancel: &CancelToken) -> Outcome {
        let mut request = Request::new(self.image_path(), "");
        request.options.state_dir = home.0.path().join("state");
        request.options.mode = self.scenario.mode;
        request.options.threads = NonZeroUsize::new(self.scenario.threads);
        request.options.on_error = self.on_error;
        request.options.old_disk = self.old_disk;
        // Every chunk is noted as soon as it can be, so that there is something to go on with.
        request.options.checkpoint = std::time::Duration::ZERO;
        let is_seeded = self.old_disk == OldDisk::Discard;
        request.instance.seed = is_seeded.then(|| SeedSpec::at(home.0.path().join("seed.iso")));
        let (own, cancel) = (Box::new(disk.clone()), cancel.clone());
        let (tell, told) = channel();
        std::thread::spawn(move || {
            let credential = match is_seeded {
                true => Credential::password_hash(PasswordHash::new(HASH.to_owned()).unwrap()),
                false => Credential::keep_image(),
            };
            let rebuild = || {
                let own: Box<dyn Target> = own;
                let plan = reimage::plan_onto(&request, &credential, (own, Promise::NobodyElseUsesIt), &())?;
                reimage::rebuild(plan, &(), &cancel)
            };
            let outcome = match catch_unwind(AssertUnwindSafe(rebuild)) {
                Ok(Ok(report)) => Outcome::Done(Box::new(report)),
                Ok(Err(error)) => Outcome::Failed(error),
                Err(panic) => Outcome::Panicked(panic.downcast_ref::<String>().cloned().unwrap_or_default()),
            };
            let _ = tell.send(outcome);
        });
        match told.recv_timeout(LONGEST_RUN) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => Outcome::Hangs,
            Err(RecvTimeoutError::Disconnected) => Outcome::Panicked(String::new()),
        }
    }

    /// An undo of it; `None` where nothing is kept.
    pub(crate) fn undo(&self, disk: &SimDisk, home: &Home) -> Result<Option<UndoReport>, String> {
        let mut options = Options::default();
        options.state_dir = home.0.path().join("state");
        options.threads = NonZeroUsize::new(self.scenario.threads);
        options.checkpoint = std::time::Duration::ZERO;
        let own: Box<dyn Target> = Box::new(disk.clone());
        let plan = match reimage::plan_undo_onto(&options, (own, Promise::NobodyElseUsesIt), &()) {
            Ok(plan) => plan,
            Err(error) if error.kind() == ErrorKind::TargetUnusable => return Ok(None),
            Err(error) => return Err(format!("the undo is refused: {}", chain(&error))),
        };
        let report = reimage::undo(plan, &(), &CancelToken::new());
        report.map(Some).map_err(|error| format!("the undo fails: {}", chain(&error)))
    }

    /// An undo of which every moment is kept.
    pub(crate) fn record_undo(
        &self,
        disk: &SimDisk,
        home: &Home,
    ) -> (SimHistory, Vec<(usize, SimWhen, Snapshot)>) {
        let (noted, asked) = (Arc::new(Mutex::new(Vec::new())), Mutex::new(ask(home)));
        let notes = Arc::clone(&noted);
        disk.on_operation(move |operation, when| {
            let snapshot = asked.lock().unwrap()();
            notes.lock().unwrap().push((operation.number, when, snapshot));
        });
        self.undo(disk, home).expect("an undisturbed undo").expect("something is kept");
        let snapshots = std::mem::take(&mut *noted.lock().unwrap());
        (disk.history(), snapshots)
    }

    /// A rebuild of which every moment is kept.
    pub(crate) fn record(&self) -> Recording {
        self.record_on(&self.disk(), &Home::new())
    }

    /// The same on a disk and with a state folder that are there already.
    pub(crate) fn record_on(&self, disk: &SimDisk, home: &Home) -> Recording {
        let (noted, asked) = (Arc::new(Mutex::new(Vec::new())), Mutex::new(ask(home)));
        let notes = Arc::clone(&noted);
        disk.on_operation(move |operation, when| {
            let snapshot = asked.lock().unwrap()();
            notes.lock().unwrap().push((operation.number, when, snapshot));
        });
        let outcome = self.run(disk, home, &CancelToken::new());
        let mut snapshots = std::mem::take(&mut *noted.lock().unwrap());
        snapshots.push((disk.operations(), SimWhen::After, home.snapshot()));
        Recording { history: disk.history(), snapshots, outcome }
    }

    /// Whether the seed is in its place, where one is written.
    pub(crate) fn is_seeded(&self, home: &Snapshot) -> bool {
        self.old_disk == OldDisk::Keep || is_seeded(home)
    }

    /// Whether the disk is complete, durably, and the seed in its place.
    pub(crate) fn check_done(&self, disk: &SimDisk, home: &Snapshot) -> Result<(), String> {
        if let Some(at) = differing(&disk.contents(), &self.finished) {
            return Err(format!("says done, and byte {at} is wrong"));
        }
        if let Some(at) = differing(&disk.durable(), &self.finished) {
            return Err(format!("says done, and byte {at} is not durable"));
        }
        if !self.is_seeded(home) {
            return Err("says done, and no seed is there".to_owned());
        }
        let left: Vec<_> = journals(home).map(|(path, _)| path).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("leaves {left:?}")) }
    }
}

/// A way to get snapshots from any thread: those of a rebuild cannot open files.
fn ask(home: &Home) -> impl Fn() -> Snapshot + Send + use<> {
    let folder = home.0.path().to_owned();
    let (ask, asked) = sync_channel::<()>(0);
    let (answer, answers) = channel();
    std::thread::spawn(move || {
        for () in asked {
            if answer.send(snapshot(&folder)).is_err() {
                break;
            }
        }
    });
    move || {
        ask.send(()).unwrap();
        answers.recv().unwrap()
    }
}

/// The first byte that differs.
pub(crate) fn differing(left: &[u8], right: &[u8]) -> Option<usize> {
    if left == right {
        return None;
    }
    let at = left.iter().zip(right).position(|(left, right)| left != right);
    Some(at.unwrap_or(left.len().min(right.len())))
}

/// Everything is as the image has it, and zero behind it, but for what belongs to a GPT that moved.
fn check_finished(finished: &[u8], image: &[u8], sector: usize) {
    let table = 16_384 + 2 * sector;
    if image[510..512] != [0x55, 0xaa] {
        let (start, behind) = finished.split_at(image.len());
        assert_eq!(differing(start, image), None, "the image");
        assert!(behind.iter().all(|byte| *byte == 0), "zeroes behind the image");
        return;
    }
    let end = image.len() - table;
    assert!(finished[..440] == image[..440], "boot code");
    assert_eq!(differing(&finished[table..end], &image[table..end]), None, "the image");
    let moved = finished.len() > image.len();
    let behind = if moved { &finished[image.len()..finished.len() - table] } else { &[][..] };
    assert!(behind.iter().all(|byte| *byte == 0), "zeroes behind the image");
    if !moved {
        assert_eq!(differing(finished, image), None, "the whole image");
    }
    for at in [sector, finished.len() - sector] {
        let mut header = std::io::Cursor::new(&finished[at..at + 512]);
        let header = gptman::GPTHeader::read_from(&mut header).expect("a whole GPT");
        assert_eq!(header.primary_lba * sector as u64, at as u64);
        assert_eq!(header.disk_guid, [0xd1; 16]);
    }
}

/// Does `work` for every item on as many threads as there are processors; the complaints, in no order.
pub(crate) fn in_parallel<T: Sync>(items: &[T], work: impl Fn(&T) -> Vec<String> + Sync) -> Vec<String> {
    let (next, complaints) = (std::sync::atomic::AtomicUsize::new(0), Mutex::new(Vec::new()));
    let count = std::thread::available_parallelism().map_or(2, NonZeroUsize::get);
    std::thread::scope(|scope| {
        for _ in 0..count {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    let found = work(item);
                    complaints.lock().unwrap().extend(found);
                }
            });
        }
    });
    complaints.into_inner().unwrap()
}

/// Fails with the complaints: how many there are of each, and the first of them.
#[track_caller]
pub(crate) fn none_of(complaints: Vec<String>) {
    let mut kinds: BTreeMap<String, (usize, String)> = BTreeMap::new();
    let count = complaints.len();
    for complaint in complaints {
        // What differs from one to the next are names of scenarios before the last colons, numbers and digests.
        let fault = complaint.split_once(": ").map_or("", |(_, fault)| fault);
        let fault = fault.split_once(": ").map_or(fault, |(_, fault)| fault);
        let kind: String = fault.chars().filter(|letter| !letter.is_ascii_hexdigit()).collect();
        let (count, first) = kinds.entry(kind).or_insert((0, complaint.clone()));
        *count += 1;
        if complaint < *first {
            *first = complaint;
        }
    }
    let shown: Vec<_> = kinds.values().take(60).map(|(count, first)| format!("{count} x {first}")).collect();
    assert!(count == 0, "{count} complaints:\n{}", shown.join("\n"));
}
