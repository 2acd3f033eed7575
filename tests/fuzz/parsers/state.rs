//! What lies in the state folder and in a disk's head: whatever became of it, a later run copies no wrong byte.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use reimage::{
    CancelToken, Credential, Error, ErrorKind, Plan, Promise, Request, Subject, Target, TargetState,
};

use serde_json::Value;

use super::json::each_value_otherwise;
use super::{damaged, inputs};
use crate::memory_disk::MemoryDisk;
use crate::random::Random;
use crate::stored;
use crate::watched::watched;

const MIB: usize = 1 << 20;

/// What all of it may take, the disk and the threads that copy included.
const MEMORY_MAX: usize = 128 << 20;

/// An image, a disk and a state folder.
struct Lab {
    folder: tempfile::TempDir,
    image: Vec<u8>,
}

type Files = BTreeMap<PathBuf, Vec<u8>>;

impl Lab {
    fn new() -> Self {
        let folder = stored::scratch();
        let image = Random::new(7).bytes(6 * MIB);
        std::fs::write(folder.path().join("image.raw"), &image).unwrap();
        Self { folder, image }
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// The state folder's files; locks say nothing.
    fn files(&self) -> Files {
        let mut found = Files::new();
        let mut folders = vec![self.state()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false if path.extension().is_some_and(|ending| ending == "lock") => {}
                    false => drop(found.insert(path.clone(), std::fs::read(&path).unwrap())),
                }
            }
        }
        found
    }

    /// What a run leaves that breaks off in the middle: the state folder's files, and the disk.
    fn unfinished(&self) -> (Files, Vec<u8>) {
        for writes in 7..20 {
            std::fs::remove_dir_all(self.state()).ok();
            let broken = MemoryDisk::failing_after(vec![0xaa; 7 * MIB], writes);
            assert_eq!(rebuild(self.folder.path(), &broken).unwrap_err().kind(), ErrorKind::TargetIo);
            let (files, disk) = (self.files(), broken.bytes().clone());
            assert!(disk.starts_with(b"reimage: unfinished rebuild"));
            if files.iter().any(|(path, notes)| is_notes(path) && notes.len() > NOTES_HEAD) {
                return (files, disk);
            }
        }
        panic!("no run has noted a chunk before it broke off");
    }

    fn restore(&self, files: &Files) {
        std::fs::remove_dir_all(self.state()).ok();
        for (path, content) in files {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
    }
}

/// The length of what notes of chunks begin with: a magic, what they are bound to, and a checksum.
const NOTES_HEAD: usize = 80;

fn is_notes(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "chunks")
}

fn plan(folder: &Path, disk: &MemoryDisk) -> Result<Plan, Error> {
    let mut request = Request::new(folder.join("image.raw"), "");
    request.options.state_dir = folder.join("state");
    request.options.checkpoint = std::time::Duration::ZERO;
    let own: (Box<dyn Target>, _) = (Box::new(disk.clone()), Promise::NobodyElseUsesIt);
    reimage::plan_onto(&request, &Credential::keep_image(), own, &())
}

fn rebuild(folder: &Path, disk: &MemoryDisk) -> Result<(), Error> {
    reimage::rebuild(plan(folder, disk)?, &(), &CancelToken::new()).map(drop)
}

/// What the status of the disk says of the run that left it: its journal, and what that tells.
fn told(folder: &Path, disk: &MemoryDisk) -> BTreeSet<String> {
    let file = folder.join("disk.raw");
    std::fs::write(&file, &disk.bytes()[..]).unwrap();
    let mut told = BTreeSet::new();
    for subject in [Subject::Disk(&file), Subject::Id("i-0a1b")] {
        let status = reimage::status(subject, &folder.join("state")).ok();
        let status = serde_json::to_value(status).unwrap();
        for name in ["instance", "target", "journal", "run"] {
            collect(&status[name], &mut told);
        }
        reimage::what_is_kept(subject, &folder.join("state")).map(drop).ok();
    }
    told
}

/// All texts and numbers of a value.
fn collect(value: &Value, told: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => fields.values().for_each(|value| collect(value, told)),
        Value::Array(items) => items.iter().for_each(|value| collect(value, told)),
        Value::String(text) => drop(told.insert(text.clone())),
        Value::Number(number) => drop(told.insert(number.to_string())),
        Value::Null | Value::Bool(_) => {}
    }
}

/// Everything that reads the state folder; `known` is what the records said when they were whole, if they alone were
/// damaged: a head that was torn still says which journal is its, and has no checksum then.
fn everything(
    folder: &Path,
    disk: &MemoryDisk,
    known: Option<&BTreeSet<String>>,
) -> Result<(), (ErrorKind, TargetState)> {
    let told = told(folder, disk);
    if let Some(known) = known {
        assert!(told.is_subset(known), "what nobody wrote is told: {:?}", told.difference(known));
    }
    let result = rebuild(folder, disk).map_err(|error| (error.kind(), error.target_state()));
    reimage::prune(&folder.join("state")).map(drop).ok();
    result
}

/// What the records of all journals say, line by line.
fn phases(files: &Files) -> BTreeSet<String> {
    let mut said = BTreeSet::new();
    for content in files.values() {
        let lines = String::from_utf8_lossy(content);
        let records = lines.lines().filter_map(|line| serde_json::from_str(line.split_once(' ')?.1).ok());
        records.for_each(|record: Value| collect(&record, &mut said));
    }
    said
}

#[test]
fn no_damage_to_what_a_run_left_makes_a_wrong_disk_done() {
    let lab = Lab::new();
    // One run that breaks off in the middle, and one that ends well: each leaves other files.
    let unfinished = lab.unfinished();
    let whole = MemoryDisk::of(unfinished.1.clone());
    rebuild(lab.folder.path(), &whole).unwrap();
    let finished = (lab.files(), whole.bytes().clone());
    let mut known = BTreeSet::new();
    for (files, bytes) in [&unfinished, &finished] {
        lab.restore(files);
        known.extend(told(lab.folder.path(), &MemoryDisk::of(bytes.clone())));
    }
    // How far the run had come, which lines before the last say, too.
    known.extend(phases(&unfinished.0));
    assert!(known.iter().any(|text| text.contains("image.raw") || text.len() > 30), "{known:?}");
    let (mut done, mut refused) = (0, 0);
    for rng_seed in inputs(150) {
        let mut random = Random::new(rng_seed);
        let (files, bytes) = if random.once_in(4) { &finished } else { &unfinished };
        let (mut files, mut bytes) = (files.clone(), bytes.clone());
        let of_records = !random.once_in(4);
        if !of_records {
            let head = damaged(&[bytes[..4096].to_vec()], &mut random);
            let len = head.len().min(4096);
            bytes[..len].copy_from_slice(&head[..len]);
        } else {
            let names: Vec<_> = files.keys().cloned().collect();
            let content = files.get_mut(&names[random.place(names.len())]).unwrap();
            *content = damaged(std::slice::from_ref(content), &mut random);
        }
        lab.restore(&files);
        let before = bytes.clone();
        let disk = MemoryDisk::of(bytes);
        let (folder, given) = (lab.folder.path().to_owned(), disk.clone());
        let known = of_records.then(|| known.clone());
        let (result, memory) = watched(move || everything(&folder, &given, known.as_ref()))
            .unwrap_or_else(|why| panic!("rng_seed {rng_seed}: {why}"));
        assert!(memory <= MEMORY_MAX, "rng_seed {rng_seed}: {memory} bytes of memory");
        let after = disk.bytes();
        match result {
            Ok(()) => {
                done += 1;
                let right = after.starts_with(&lab.image) && after[6 * MIB..].iter().all(|byte| *byte == 0);
                assert!(right, "rng_seed {rng_seed}: a wrong disk is called done");
            }
            Err((ErrorKind::Internal, _)) => panic!("rng_seed {rng_seed}: a fault of ours"),
            Err((_, TargetState::Untouched)) => {
                refused += 1;
                assert!(*after == before, "rng_seed {rng_seed}: an untouched disk has changed");
            }
            Err(error) => panic!("rng_seed {rng_seed}: it begins and does not end: {error:?}"),
        }
    }
    println!("state: {done} done, {refused} refused");
    assert!(done > 20, "{done} were done");
}

/// What is told of a disk in that state, in little time and memory.
fn watched_told(lab: &Lab, files: &Files, disk: &MemoryDisk, what: &str) -> BTreeSet<String> {
    lab.restore(files);
    let (folder, disk) = (lab.folder.path().to_owned(), disk.clone());
    let (told, memory) = watched(move || told(&folder, &disk)).unwrap_or_else(|why| panic!("{what}: {why}"));
    assert!(memory <= MEMORY_MAX / 2, "{what}: {memory} bytes of memory");
    told
}

#[test]
fn no_record_is_believed_that_its_checksum_does_not_carry() {
    let lab = Lab::new();
    let (files, bytes) = lab.unfinished();
    let disk = MemoryDisk::of(bytes);
    let mut known = watched_told(&lab, &files, &disk, "nothing");
    known.extend(phases(&files));
    let mut changes = 0;
    for (path, content) in &files {
        let Ok(text) = std::str::from_utf8(content) else { continue };
        for line in text.split_inclusive('\n') {
            let Some((sum, record)) = line.trim_end().split_once(' ') else { continue };
            let Ok(record) = serde_json::from_str(record) else { continue };
            for other in each_value_otherwise(&record).into_iter().step_by(5) {
                let mut files = files.clone();
                files.insert(path.clone(), text.replace(line, &format!("{sum} {other}\n")).into_bytes());
                let told = watched_told(&lab, &files, &disk, &other.to_string());
                assert!(told.is_subset(&known), "told of {other}: {:?}", told.difference(&known));
                changes += 1;
            }
        }
    }
    assert!(changes > 50, "{changes} records were changed");
}

#[test]
fn no_number_in_the_notes_of_chunks_takes_memory() {
    let lab = Lab::new();
    let (files, bytes) = lab.unfinished();
    let disk = MemoryDisk::of(bytes);
    let path = files.keys().find(|path| is_notes(path)).expect("the run noted its chunks").clone();
    for at in (0..files[&path].len() - 4).step_by(4).take(200) {
        for value in [0x00ff_ffff_u32, u32::MAX >> 1, u32::MAX] {
            let mut files = files.clone();
            files.get_mut(&path).unwrap()[at..at + 4].copy_from_slice(&value.to_le_bytes());
            lab.restore(&files);
            let (folder, disk) = (lab.folder.path().to_owned(), disk.clone());
            let (_, memory) = watched(move || plan(&folder, &disk).map(drop).ok())
                .unwrap_or_else(|why| panic!("{value:#x} at {at}: {why}"));
            assert!(memory <= MEMORY_MAX / 2, "{value:#x} at {at}: {memory} bytes of memory");
        }
    }
}
