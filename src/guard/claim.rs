//! `Claim`: the right to write one disk, held from the examination to the end of the run.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Promise;
use super::aliases::{self, ImageFile};
use super::bytes::{Inside, OpenBytes};
use super::data_disks::DataDisk;
use super::hold::{self, DiskLock, Hold};
use super::identity::{DiskFacts, StorageIdentity, identify, open_path_only};
use super::in_use::{self, Excused, Wait};
use super::locked;
use super::open::{self, kind_name, real_path};
use super::refusal::Refusal;
use super::sight::{self, Sight, SightLimit};
use super::topology::{Storage, Topology};
use crate::layout::ReadBytes;
use crate::request::{Expect, Placement, SightPolicy, TargetFormat};

/// Whether the disk will be written, read to its end, or only looked at for a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everything is opened read-only.
    Look,
    /// The disk is opened read-only and locked: nothing of it changes, and nobody else changes it meanwhile.
    Hold,
    /// The disk is opened for writing and locked.
    Write,
}

/// What is asked of the guard: may this disk be written?
pub(crate) struct Subject<'a> {
    pub(crate) path: &'a Path,
    pub(crate) format: TargetFormat,
    /// Looks into an open qcow2 file of that path: the guard knows no image format.
    pub(crate) look_inside: &'a dyn Fn(&File, &Path) -> io::Result<Inside>,
    pub(crate) placement: Placement,
    pub(crate) expect: &'a Expect,
    /// The partition table that a disk had before the unfinished run of that journal.
    pub(crate) earlier_ptuuid: &'a dyn Fn(&str) -> Option<String>,
    /// The image and its backing files.
    pub(crate) image_files: &'a [ImageFile],
    pub(crate) data_disks: &'a [DataDisk],
    pub(crate) seed: Option<&'a Path>,
    /// What the run needs besides, each with what it is: it must not lie on the disk.
    pub(crate) needed: &'a [(&'static str, PathBuf)],
    pub(crate) state_dir: &'a Path,
    /// Processes that may have the disk open for reading.
    pub(crate) open_readers: &'a [u32],
    pub(crate) sight: SightPolicy,
}

/// A disk that is held while it is read to its end: examined and locked as for a claim, and never a target.
pub(crate) struct ReadClaim(Claim);

impl ReadClaim {
    /// What the disk is known by.
    pub(crate) fn facts(&self) -> Option<&DiskFacts> {
        self.0.facts()
    }

    /// What of the host could not be looked at.
    pub(crate) fn sight_limits(&self) -> &[SightLimit] {
        self.0.sight_limits()
    }

    /// Another handle of the open disk, under the same locks.
    pub(crate) fn reader(&self) -> io::Result<File> {
        self.0.held.file().expect("a disk that is read is open").try_clone()
    }

    /// The locks on it.
    pub(crate) fn hold(&self) -> &Hold {
        self.0.hold.as_ref().expect("nobody takes the locks of a disk that is read")
    }
}

/// Examines the disk behind `subject.path` as for a claim, and takes hold of it to read it.
pub(crate) fn hold_host_disk(topology: &Topology, subject: &Subject<'_>) -> Result<ReadClaim, Vec<Refusal>> {
    claim_host_disk(topology, subject, Access::Hold).map(ReadClaim)
}

/// The right to write one disk; only this room makes one, and only a `Claim` becomes a target.
pub(crate) struct Claim {
    path: PathBuf,
    facts: Option<DiskFacts>,
    size: u64,
    sight: Sight,
    held: Held,
    hold: Option<Hold>,
}

/// What a claim holds.
pub(crate) enum Held {
    /// A block device, opened exclusively.
    Device { file: File, sector_size: u32 },
    /// A regular file that exists, the folder in which its name stands, and the disk in a qcow2 file.
    File { file: File, folder: OwnedFd, name: OsString, inside: Option<Inside> },
    /// A device or a file that is only read, with the size of a device's sectors.
    ReadOnly { file: File, sector_size: Option<u32> },
    /// A name under which nothing lies yet.
    NewFile { folder: OwnedFd, name: OsString },
    /// A caller's own storage, which nobody here can examine.
    Promised(Promise),
}

impl Held {
    fn file(&self) -> Option<&File> {
        match self {
            Self::Device { file, .. } | Self::File { file, .. } | Self::ReadOnly { file, .. } => Some(file),
            Self::NewFile { .. } | Self::Promised(_) => None,
        }
    }

    fn look_at<T>(&self, size: u64, look: impl FnOnce(&dyn ReadBytes) -> T) -> Option<T> {
        match self {
            Self::File { inside: Some(inside), .. } => Some(look(inside.bytes.as_deref()?)),
            _ => Some(look(&OpenBytes { file: self.file()?, size })),
        }
    }

    fn sector_size(&self) -> Option<u32> {
        match self {
            Self::Device { sector_size, .. } => Some(*sector_size),
            Self::ReadOnly { sector_size, .. } => *sector_size,
            _ => None,
        }
    }
}

impl Claim {
    /// A claim on storage that only the caller knows, with the promise that stands for the examination.
    pub(crate) fn promised(promise: Promise, size: u64) -> Self {
        let (path, held, sight) =
            (PathBuf::new(), Held::Promised(promise), Sight::of(vec![SightLimit::Promised]));
        Self { path, facts: None, size, sight, held, hold: None }
    }

    /// The path as it was named.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What the disk is known by; none for a new file.
    pub(crate) fn facts(&self) -> Option<&DiskFacts> {
        self.facts.as_ref()
    }

    /// The disk's size in bytes as it is now; 0 for a new file.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// What of the host could not be looked at.
    pub(crate) fn sight_limits(&self) -> &[SightLimit] {
        &self.sight.limits
    }

    /// What is held, to look at.
    pub(crate) fn held(&self) -> &Held {
        &self.held
    }

    /// Hands the disk's present bytes to whoever wants to look at them; none of a new file, or where none can be read.
    pub(crate) fn look_at<T>(&self, look: impl FnOnce(&dyn ReadBytes) -> T) -> Option<T> {
        self.held.look_at(self.size, look)
    }

    /// The locks, which whoever gets them keeps to the end of the run.
    pub(crate) fn take_hold(&mut self) -> Option<Hold> {
        self.hold.take()
    }

    /// Gives up the claim's form; whoever gets what it holds keeps it open to the end of the run.
    pub(crate) fn into_held(self) -> Held {
        self.held
    }
}

/// Examines the disk behind `subject.path` and takes hold of it; every refusal that applies is returned.
pub(crate) fn claim_host_disk(
    topology: &Topology,
    subject: &Subject<'_>,
    access: Access,
) -> Result<Claim, Vec<Refusal>> {
    let alone = |refusal| vec![refusal];
    let looked_at = match open_path_only(subject.path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound && access != Access::Hold => {
            return new_file(topology, subject);
        }
        Err(source) if access == Access::Hold => return Err(alone(Refusal::CannotRead { source })),
        Err(source) => return Err(alone(Refusal::CannotOpen { source })),
    };
    let metadata = looked_at.metadata().map_err(|source| alone(Refusal::CannotOpen { source }))?;
    let Some(identity) = identify(&metadata) else {
        return Err(alone(Refusal::WrongKind { found: kind_name(&metadata) }));
    };
    let real = real_path(&looked_at).map_err(alone)?;
    let storage = topology.storage(identity, Some(&real));
    let excused = Excused::Readers(subject.open_readers);
    let evidence = |topology| hold::openers(topology, &storage, excused, Wait::No).0;
    let mut refusals = aliases::of_target(topology, subject, &storage);
    refusals.extend(topology.untold(&storage).map(|device| Refusal::Untold { device }));
    // Of a disk that is not the one that was meant this is said first, and not only that it is in use.
    let size = match identity {
        // Of a file that describes a disk it is known when it is open.
        StorageIdentity::File { .. } => Some(metadata.len()).filter(|_| !open::may_be_qcow2(subject)),
        StorageIdentity::Device { major, minor } => topology.devices.get(&(major, minor)).map(|it| it.size),
    };
    refusals.extend(DiskFacts::unlike(&topology.kernel, &storage, size, subject.expect));
    refusals.extend(in_use::standing(topology, &storage));
    if !refusals.is_empty() {
        refusals.extend(evidence(topology));
        return Err(refusals);
    }
    // Of several runs the first has the lock before any of them opens the disk, and the others are told.
    let lock = match DiskLock::take(&storage, subject.state_dir, access) {
        Ok(lock) => lock,
        Err(refusal) => return Err(std::iter::once(refusal).chain(evidence(topology)).collect()),
    };
    let mut limits = Vec::new();
    let opened = || {
        let (held, size) = match identity {
            _ if access == Access::Hold => open::to_read(&looked_at, &metadata)?,
            StorageIdentity::Device { .. } => open::device(subject, &looked_at, access)?,
            StorageIdentity::File { .. } => open::file((topology, subject), (&looked_at, &metadata), access)?,
        };
        let file = held.file().expect("a disk that is there is open");
        let mut unseen = Vec::new();
        let hold = Hold::take(
            topology,
            storage.clone(),
            (subject.path, file),
            (access, subject.open_readers),
            &mut unseen,
        )?;
        Ok((held, size, hold, unseen))
    };
    let (held, size, hold) = match patiently(opened) {
        Ok((held, size, mut hold, unseen)) => {
            hold.keep(lock);
            limits.extend(unseen);
            (held, size, hold)
        }
        Err(refusal @ (Refusal::Busy { .. } | Refusal::Locked { .. })) => {
            return Err(std::iter::once(refusal).chain(evidence(topology)).collect());
        }
        Err(refusal) => return Err(alone(refusal)),
    };
    let describe = |bytes: Option<&dyn ReadBytes>| {
        DiskFacts::of(&topology.kernel, &storage, (size, held.sector_size()), bytes)
    };
    let facts = held.look_at(size, |bytes| describe(Some(bytes))).unwrap_or_else(|| describe(None));
    let facts = DiskFacts { lasting_id: hold.lasting_id(), ..facts };
    let mut refusals = facts.against(subject.expect, subject.earlier_ptuuid);
    // What changed and whoever came between the first look and the locks is seen now, and kept out from here on.
    let topology = Topology::read(hold.kernel());
    if !topology.again(&storage).is_as(&storage) {
        refusals.push(Refusal::Moved);
    }
    refusals.extend(aliases::of_target(&topology, subject, &storage));
    let (found, more) = look_at_users(&topology, &hold, &storage);
    refusals.extend(found);
    limits.extend(more);
    finish(subject, refusals, limits, |sight| Claim {
        path: subject.path.to_owned(),
        facts: Some(facts),
        size,
        sight,
        held,
        hold: Some(hold),
    })
}

/// Tries again for a while when somebody is in the way who may be a passer-by, such as udev.
fn patiently<T>(mut attempt: impl FnMut() -> Result<T, Refusal>) -> Result<T, Refusal> {
    for _ in 0..20 {
        match attempt() {
            Err(Refusal::Busy { .. } | Refusal::Locked { who: locked::FLOCK }) => {
                std::thread::sleep(Duration::from_millis(100));
            }
            result => return result,
        }
    }
    attempt()
}

/// Who uses the disk, and what could not be looked at.
fn look_at_users(topology: &Topology, hold: &Hold, storage: &Storage) -> (Vec<Refusal>, Vec<SightLimit>) {
    let mut refusals = in_use::standing(topology, storage);
    let wait = if refusals.is_empty() { Wait::ForPassersBy } else { Wait::No };
    let (openers, hidden) = hold.openers(topology, wait);
    refusals.extend(openers);
    let mut limits = sight::limits(topology);
    if hidden > 0 {
        limits.push(SightLimit::Processes { count: hidden });
    }
    limits.extend(topology.shared_by(storage).into_iter().map(|by| SightLimit::SharedTransport { by }));
    (refusals, limits)
}

fn finish(
    subject: &Subject<'_>,
    mut refusals: Vec<Refusal>,
    limits: Vec<SightLimit>,
    claim: impl FnOnce(Sight) -> Claim,
) -> Result<Claim, Vec<Refusal>> {
    if subject.sight == SightPolicy::RequireFull {
        refusals.extend(limits.iter().map(|limit| Refusal::Unseen { limit: limit.clone() }));
    }
    if refusals.is_empty() { Ok(claim(Sight::of(limits))) } else { Err(refusals) }
}

fn new_file(topology: &Topology, subject: &Subject<'_>) -> Result<Claim, Vec<Refusal>> {
    let held = open::new_file(topology, subject).map_err(|refusal| vec![refusal])?;
    // A disk that is expected to be a certain one is not a file that does not exist.
    let refusals = DiskFacts::nothing_against(subject.expect);
    finish(subject, refusals, sight::limits(topology), |sight| Claim {
        path: subject.path.to_owned(),
        facts: None,
        size: 0,
        sight,
        held,
        hold: None,
    })
}
