//! What lies in the state folder and in a disk's head: whatever became of it, a later run copies no wrong byte.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use reimage::{
    ByteRange, CancelToken, Credential, Disk, Error, ErrorKind, Promise, Request, Subject, Target,
    TargetError, TargetState, VerifiedChunk,
};

use super::{damaged, inputs};
use crate::random::Random;
use crate::stored;
use crate::watched::watched;

const MIB: usize = 1 << 20;

/// A disk in memory whose writes fail from one on.
#[derive(Clone)]
struct Failing {
    bytes: Arc<Mutex<Vec<u8>>>,
    writes_left: Arc<AtomicUsize>,
}

impl Failing {
    fn of(bytes: Vec<u8>, writes: usize) -> Self {
        Self { bytes: Arc::new(Mutex::new(bytes)), writes_left: Arc::new(AtomicUsize::new(writes)) }
    }

    fn write_at(&self, range: ByteRange, fill: impl FnOnce(&mut [u8])) -> Result<(), TargetError> {
        let spent =
            self.writes_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if spent.is_err() {
            return Err(TargetError::new("write", Some(range), std::io::Error::from_raw_os_error(5)));
        }
        let place = usize::try_from(range.start()).unwrap()..usize::try_from(range.end()).unwrap();
        fill(&mut self.bytes.lock().unwrap()[place]);
        Ok(())
    }
}

impl Disk for Failing {
    fn size(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }

    fn sector_size(&self) -> u32 {
        512
    }

    fn read(&self, range: ByteRange, buffer: &mut [u8]) -> Result<(), TargetError> {
        let start = usize::try_from(range.start()).unwrap();
        let len = usize::try_from(range.len()).unwrap();
        buffer[..len].copy_from_slice(&self.bytes.lock().unwrap()[start..start + len]);
        Ok(())
    }

    fn next_data(&self, offset: u64) -> Result<Option<ByteRange>, TargetError> {
        Ok(Some(ByteRange::between(offset, self.size())).filter(|rest| !rest.is_empty()))
    }
}

impl Target for Failing {
    fn identity(&self) -> Option<String> {
        Some("the disk of this test".to_owned())
    }

    fn is_new(&self) -> bool {
        false
    }

    fn write(&self, chunk: &VerifiedChunk) -> Result<(), TargetError> {
        self.write_at(chunk.range(), |place| place.copy_from_slice(chunk.bytes()))
    }

    fn write_zeroes(&self, range: ByteRange) -> Result<(), TargetError> {
        self.write_at(range, |place| place.fill(0))
    }

    fn sync(&self) -> Result<(), TargetError> {
        Ok(())
    }
}

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

    fn restore(&self, files: &Files) {
        std::fs::remove_dir_all(self.state()).ok();
        for (path, content) in files {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
    }
}

fn rebuild(folder: &Path, disk: &Failing) -> Result<(), Error> {
    let mut request = Request::new(folder.join("image.raw"), "");
    request.options.state_dir = folder.join("state");
    request.options.checkpoint = std::time::Duration::ZERO;
    let own: (Box<dyn Target>, _) = (Box::new(disk.clone()), Promise::NobodyElseUsesIt);
    let plan = reimage::plan_onto(&request, &Credential::keep_image(), own, &())?;
    reimage::rebuild(plan, &(), &CancelToken::new()).map(drop)
}

/// Everything that reads the state folder.
fn everything(folder: &Path, disk: &Failing) -> Result<(), (ErrorKind, TargetState)> {
    let file = folder.join("disk.raw");
    std::fs::write(&file, &disk.bytes.lock().unwrap()[..]).unwrap();
    for subject in [Subject::Disk(&file), Subject::Id("i-0a1b")] {
        reimage::status(subject, &folder.join("state")).map(drop).ok();
        reimage::what_is_kept(subject, &folder.join("state")).map(drop).ok();
    }
    let result = rebuild(folder, disk).map_err(|error| (error.kind(), error.target_state()));
    reimage::prune(&folder.join("state")).map(drop).ok();
    result
}

#[test]
fn no_damage_to_what_a_run_left_makes_a_wrong_disk_done() {
    let lab = Lab::new();
    // One run that breaks off in the middle, and one that ends well: each leaves other files.
    let broken = Failing::of(vec![0xaa; 7 * MIB], 7);
    assert_eq!(rebuild(lab.folder.path(), &broken).unwrap_err().kind(), ErrorKind::TargetIo);
    let unfinished = (lab.files(), broken.bytes.lock().unwrap().clone());
    assert!(unfinished.1.starts_with(b"reimage: unfinished rebuild"));
    let whole = Failing::of(unfinished.1.clone(), usize::MAX);
    rebuild(lab.folder.path(), &whole).unwrap();
    let finished = (lab.files(), whole.bytes.lock().unwrap().clone());
    let (mut done, mut refused) = (0, 0);
    for rng_seed in inputs(150) {
        let mut random = Random::new(rng_seed);
        let (files, bytes) = if random.once_in(4) { &finished } else { &unfinished };
        let (mut files, mut bytes) = (files.clone(), bytes.clone());
        if random.once_in(4) {
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
        let disk = Failing::of(bytes, usize::MAX);
        let (folder, given) = (lab.folder.path().to_owned(), disk.clone());
        let (result, _) = watched(move || everything(&folder, &given))
            .unwrap_or_else(|why| panic!("rng_seed {rng_seed}: {why}"));
        let after = disk.bytes.lock().unwrap();
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
