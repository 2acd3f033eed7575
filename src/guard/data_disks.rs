//! The disks that must survive: opened read-only or not at all, and compared before and after the run.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde::Serialize;

use super::OpenBytes;
use super::devices::MadeOf;
use super::hold;
use super::identity::{DiskFacts, StorageIdentity, identify};
use super::in_use::{self, Excused, Wait};
use super::kernel::{Kernel, line};
use super::refusal::Refusal;
use super::sight::SightLimit;
use super::topology::{Storage, Topology};
use crate::layout::ReadBytes;
use crate::range::ByteRange;
use crate::request::{DataDisk as Spec, DataDiskDigest};
use crate::sys::{block, sparse};

/// The pieces of a sampled digest: head, tail, and evenly spread between them.
const SAMPLES: u64 = 16;
const SAMPLE_LEN: u64 = 64 << 10;
/// The pieces of a full digest.
const STEP: u64 = 1 << 20;

/// A data disk, and what it looked like before the run.
pub(crate) struct DataDisk {
    pub(super) path: PathBuf,
    pub(super) storage: Storage,
    kernel: Kernel,
    /// Open for reading, from the first look to the last; `None` when its content is not to be looked at.
    file: Option<File>,
    digest: DataDiskDigest,
    before: DataDiskEvidence,
}

/// What a data disk looks like at one moment; sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DataDiskEvidence {
    /// The path as it was named.
    #[serde(serialize_with = "crate::error::path_text")]
    pub path: PathBuf,
    /// Whether another machine may write it.
    pub shareable: bool,
    /// What it is known by.
    pub facts: DiskFacts,
    /// Writes and discards that the kernel has counted for a device; `None` for a file, and where the kernel
    /// keeps no count (`queue/iostats` is 0), which is then no evidence.
    pub writes: Option<u64>,
    /// When the files in which its bytes lie changed last; none for a device on no file.
    pub files: Vec<FileTimes>,
    /// The BLAKE3 of the pieces that were looked at, where they were: of each that is not all zero its offset in 8
    /// bytes, the least significant first, and its bytes.
    pub digest: Option<String>,
}

/// When a file changed, in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FileTimes {
    /// Its size in bytes.
    pub size: u64,
    /// When its content changed last.
    pub modified_ns: i64,
    /// When its content or its attributes changed last.
    pub changed_ns: i64,
}

/// A data disk after the run.
pub(crate) struct SecondLook {
    pub(crate) after: Option<DataDiskEvidence>,
    /// Writes and discards that the kernel has counted meanwhile, where it counts.
    pub(crate) writes: Option<u64>,
    /// What is not as it was; empty when all is.
    pub(crate) differences: Vec<&'static str>,
}

impl DataDisk {
    /// Looks at a data disk; nothing of it changes, not even the time of the last access where that can be helped.
    pub(crate) fn look(
        topology: &Topology,
        spec: &Spec,
        digest: DataDiskDigest,
        limits: &mut Vec<SightLimit>,
    ) -> io::Result<Self> {
        let metadata = fs::metadata(&spec.path)?;
        let wrong = || io::Error::new(io::ErrorKind::InvalidInput, "neither a block device nor a file");
        let identity = identify(&metadata).ok_or_else(wrong)?;
        let real = fs::canonicalize(&spec.path)?;
        let storage = topology.storage(identity, Some(&real));
        let opened = match digest {
            DataDiskDigest::Off => Err(None),
            _ => open_quietly(&spec.path, identity).map_err(Some),
        };
        if let Err(error) = &opened {
            let why = error.as_ref().map_or_else(|| "it is not to be opened".to_owned(), ToString::to_string);
            limits.push(SightLimit::DataDisk { path: spec.path.display().to_string(), why });
        }
        let file = opened.ok();
        let (size, sector_size) = match (&file, identity) {
            (_, StorageIdentity::File { .. }) => (metadata.len(), None),
            (Some(file), _) => (block::size(file)?, block::sector_size(file).ok()),
            (None, StorageIdentity::Device { major, minor }) => {
                (topology.devices.get(&(major, minor)).map_or(0, |device| device.size), None)
            }
        };
        let kernel = topology.kernel.clone();
        let bytes = file.as_ref().map(|file| OpenBytes { file, size });
        let bytes = bytes.as_ref().map(|bytes| bytes as &dyn ReadBytes);
        let facts = DiskFacts::of(&kernel, &storage, (size, sector_size), bytes);
        let mut before = DataDiskEvidence {
            path: spec.path.clone(),
            shareable: spec.shareable,
            facts,
            writes: None,
            files: times(topology, &storage, &real),
            digest: None,
        };
        before.digest = file.as_ref().map(|file| read_digest(file, size, digest)).transpose()?;
        // Counted last: what was dirty in the cache may have been written out by our reading.
        before.writes = writes(&kernel, identity);
        Ok(Self { path: spec.path.clone(), storage, kernel, file, digest, before })
    }

    /// One that no host has.
    #[cfg(test)]
    pub(super) fn made_up(topology: &Topology, storage: Storage) -> Self {
        let kernel = topology.kernel.clone();
        let facts = DiskFacts::of(&kernel, &storage, (0, None), None);
        let (path, files) = (PathBuf::from("data"), Vec::new());
        let before = DataDiskEvidence {
            path: path.clone(),
            shareable: false,
            facts,
            writes: None,
            files,
            digest: None,
        };
        Self { path, storage, kernel, file: None, digest: DataDiskDigest::Off, before }
    }

    /// Where it cannot be told what it really is: then it cannot be told apart from the system disk.
    pub(crate) fn untold(&self, topology: &Topology) -> Option<Refusal> {
        topology.untold(&self.storage).map(|device| Refusal::Untold { device })
    }

    /// Who may be writing it: mounts of it, and processes that have it open for that.
    pub(crate) fn users(&self, topology: &Topology) -> Vec<Refusal> {
        let mut users = in_use::mounts(topology, &self.storage);
        users.extend(hold::openers(topology, &self.storage, Excused::AllReaders, Wait::No).0);
        users
    }

    /// The host as it is now.
    pub(crate) fn host(&self) -> Topology {
        Topology::read(&self.kernel)
    }

    /// What it looked like before the run.
    pub(crate) fn before(&self) -> &DataDiskEvidence {
        &self.before
    }

    /// Its bytes, where they may be looked at.
    pub(crate) fn bytes(&self) -> Option<OpenBytes<'_>> {
        Some(OpenBytes { file: self.file.as_ref()?, size: self.before.facts.size })
    }

    /// Looks once more, through the same open file, and says what is not as it was.
    pub(crate) fn look_again(&self, topology: &Topology) -> SecondLook {
        let mut after = self.before.clone();
        let real = fs::canonicalize(&self.path).unwrap_or_default();
        let leads_to = fs::metadata(&self.path).ok().and_then(|metadata| identify(&metadata));
        let size = match (&self.file, leads_to) {
            (Some(file), Some(StorageIdentity::Device { .. })) => block::size(file).ok(),
            (None, Some(StorageIdentity::Device { major, minor })) => {
                topology.devices.get(&(major, minor)).map(|device| device.size)
            }
            _ => fs::metadata(&self.path).ok().map(|metadata| metadata.len()),
        };
        after.writes = writes(&self.kernel, self.storage.identity);
        after.files = times(topology, &self.storage, &real);
        let same_place = leads_to.is_some_and(|identity| {
            identity == self.storage.identity
                && topology.storage(identity, Some(&real)).bytes == self.storage.bytes
        });
        let mut differences = Vec::new();
        let mut differs = |is_so: bool, what| differences.extend(is_so.then_some(what));
        differs(!same_place, "its name leads to another disk");
        differs(size != Some(self.before.facts.size), "its size");
        differs(after.writes != self.before.writes, "the kernel has counted writes to it");
        differs(after.files != self.before.files, "the time of the last change of its file");
        after.facts.size = size.unwrap_or(0);
        if let Some(file) = &self.file {
            let digest = read_digest(file, self.before.facts.size, self.digest);
            after.digest = digest.ok();
            differs(after.digest != self.before.digest, "the digest of its content");
        }
        let counted = self.before.writes.zip(after.writes);
        let writes = counted.map(|(before, after)| after.saturating_sub(before));
        SecondLook { after: leads_to.map(|_| after), writes, differences }
    }
}

/// Opens for reading, past the page cache and without a new access time where that is allowed.
fn open_quietly(path: &Path, identity: StorageIdentity) -> io::Result<File> {
    let plain = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let quiet = OFlags::NOATIME;
    let ways = [plain | quiet | OFlags::DIRECT, plain | quiet, plain | OFlags::DIRECT, plain];
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for flags in ways {
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(file) => {
                let file = File::from(file);
                let is_it = identify(&file.metadata()?) == Some(identity);
                return if is_it { Ok(file) } else { Err(io::ErrorKind::NotFound.into()) };
            }
            Err(error @ (rustix::io::Errno::PERM | rustix::io::Errno::INVAL)) => last = error.into(),
            Err(error) => return Err(error.into()),
        }
    }
    Err(last)
}

/// Pieces of zeroes do not count, so that a hole and zeroes are the same; each other piece with its offset.
fn read_digest(file: &File, size: u64, digest: DataDiskDigest) -> io::Result<String> {
    let bytes = OpenBytes { file, size };
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; usize::try_from(STEP).expect("a piece fits in memory")];
    let mut add = |range: ByteRange| {
        let piece = &mut piece[..usize::try_from(range.len()).expect("a piece is short")];
        bytes.read_at(range, piece)?;
        if piece.iter().any(|byte| *byte != 0) {
            hasher.update(&range.start().to_le_bytes());
            hasher.update(piece);
        }
        io::Result::Ok(())
    };
    match digest {
        DataDiskDigest::Full => every_piece(file, size, &mut add)?,
        _ => samples(size).into_iter().try_for_each(&mut add)?,
    }
    Ok(hasher.finalize().to_string())
}

/// Every piece of a disk but those that lie in holes.
fn every_piece(file: &File, size: u64, add: &mut impl FnMut(ByteRange) -> io::Result<()>) -> io::Result<()> {
    use std::os::fd::AsFd as _;
    let is_file = file.metadata()?.is_file();
    let mut at = 0;
    while at < size {
        if is_file {
            match sparse::next_data(file.as_fd(), at) {
                Ok(None) => break,
                Ok(Some(data)) => at = at.max(data - data % STEP),
                Err(_) => {}
            }
        }
        let range = ByteRange::between(at, size.min(at + STEP));
        add(range)?;
        at = range.end();
    }
    Ok(())
}

/// Where the samples of a disk of that size lie.
fn samples(size: u64) -> Vec<ByteRange> {
    if size <= SAMPLES * SAMPLE_LEN {
        return ByteRange::between(0, size).cut(STEP).collect();
    }
    let last = size - SAMPLE_LEN;
    // Rounded down to whole blocks, but for the last one.
    let start = |number: u64| (u128::from(last) * u128::from(number) / u128::from(SAMPLES - 1)) & !4095;
    let spread = (0..SAMPLES - 1).filter_map(|number| u64::try_from(start(number)).ok());
    spread.chain([last]).map(|at| ByteRange::new(at, SAMPLE_LEN)).collect()
}

/// How many sectors of the block device of that number the kernel has counted as written or discarded; none where it
/// does not count. A flush that finds nothing to write counts as a write, but has no sectors.
pub(crate) fn sectors_written_to(device: u64) -> Option<u64> {
    let numbers = counted(&Kernel::of_this_host(Vec::new()), super::device_identity(device))?;
    // The 7th number is the sectors written, the 14th those discarded.
    Some(numbers.get(6)? + numbers.get(13).copied().unwrap_or(0))
}

/// `Documentation/block/stat.rst`: writes completed is the 5th number, discards completed the 12th.
fn writes(kernel: &Kernel, identity: StorageIdentity) -> Option<u64> {
    let numbers = counted(kernel, identity)?;
    Some(numbers.get(4)? + numbers.get(11).copied().unwrap_or(0))
}

/// What the kernel has counted of a device.
fn counted(kernel: &Kernel, identity: StorageIdentity) -> Option<Vec<u64>> {
    let StorageIdentity::Device { major, minor } = identity else { return None };
    let folder = kernel.folder((major, minor))?;
    let kept = [folder.join("queue/iostats"), folder.parent()?.join("queue/iostats")];
    if kept.iter().find_map(|path| line(path))? == "0" {
        return None;
    }
    let text = line(&folder.join("stat"))?;
    Some(text.split_whitespace().map_while(|number| number.parse().ok()).collect())
}

/// The times of every file that is all of the disk; those of a file of which it is a part say nothing.
fn times(topology: &Topology, storage: &Storage, real: &Path) -> Vec<FileTimes> {
    let path_of = |identity: &StorageIdentity| -> Option<PathBuf> {
        if *identity == storage.identity {
            return Some(real.to_owned());
        }
        topology.devices.values().find_map(|device| match &device.made_of {
            MadeOf::Loop(backing) if backing.storage == Some(*identity) => Some(backing.path.clone()),
            _ => None,
        })
    };
    let of = |identity: &StorageIdentity| {
        let metadata = fs::metadata(path_of(identity)?).ok()?;
        (identify(&metadata) == Some(*identity)).then_some(())?;
        let time = |seconds: i64, nanoseconds: i64| {
            seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
        };
        Some(FileTimes {
            size: metadata.len(),
            modified_ns: time(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: time(metadata.ctime(), metadata.ctime_nsec()),
        })
    };
    if storage.bytes.range != ByteRange::between(0, u64::MAX) {
        return Vec::new();
    }
    let files = storage.chain.iter().filter(|identity| matches!(identity, StorageIdentity::File { .. }));
    files.filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::FileExt as _;

    use super::*;

    fn look(path: &Path, digest: DataDiskDigest) -> DataDisk {
        let spec = Spec { path: path.to_owned(), shareable: false };
        let topology = Topology::of_this_host(Vec::new());
        DataDisk::look(&topology, &spec, digest, &mut Vec::new()).unwrap()
    }

    #[test]
    fn a_file_that_nobody_touches_is_the_same_and_a_change_of_content_time_size_or_name_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.raw");
        let size = 5 * STEP + 777;
        let fresh = || {
            let _ = fs::remove_file(&path);
            let file = File::create(&path).unwrap();
            file.set_len(size).unwrap();
            file.write_all_at(b"data", 3 * STEP).unwrap();
            file
        };
        for digest in [DataDiskDigest::Off, DataDiskDigest::Sampled, DataDiskDigest::Full] {
            fresh();
            let disk = look(&path, digest);
            assert_eq!(disk.before().digest.is_some(), digest != DataDiskDigest::Off);
            assert!(disk.look_again(&disk.host()).differences.is_empty(), "{digest:?}");
            let file = File::options().append(true).open(&path).unwrap();
            (&file).write_all(b"x").unwrap();
            let told = disk.look_again(&disk.host()).differences;
            assert!(told.contains(&"its size") && told.len() >= 2, "{told:?}");
            fs::rename(&path, folder.path().join("elsewhere")).unwrap();
            fresh();
            assert!(disk.look_again(&disk.host()).differences.contains(&"its name leads to another disk"));
        }
        let file = fresh();
        let disk = look(&path, DataDiskDigest::Full);
        let times = fs::FileTimes::new().set_modified(file.metadata().unwrap().modified().unwrap());
        file.write_all_at(b"D", 3 * STEP).unwrap();
        file.set_times(times).unwrap();
        assert!(disk.look_again(&disk.host()).differences.contains(&"the digest of its content"));
    }

    #[test]
    fn samples_lie_at_head_and_tail_and_evenly_between_them_without_overlap() {
        for size in
            [0, 1, SAMPLE_LEN, SAMPLES * SAMPLE_LEN, SAMPLES * SAMPLE_LEN + 1, 5 << 30, (3 << 40) + 513]
        {
            let samples = samples(size);
            let end = samples.last().map_or(0, |last| last.end());
            assert_eq!((samples.first().map_or(0, |first| first.start()), end), (0, size));
            assert!(samples.iter().map(|range| range.len()).sum::<u64>() <= SAMPLES * SAMPLE_LEN, "{size}");
            assert!(samples.windows(2).all(|pair| pair[0].start() < pair[1].start()), "{size}");
        }
    }
}
