//! What is held of a disk for the whole run, under every name that leads to its bytes.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::claim::Access;
use super::devices::MadeOf;
use super::identity::{StorageIdentity, identify};
use super::in_use::{self, Excused, Wait};
use super::kernel::Kernel;
use super::locked;
use super::refusal::Refusal;
use super::sight::SightLimit;
use super::topology::{Storage, Topology};
use crate::sys::durable;
use crate::sys::lock_file::{self, LockFile};

/// The lock of a disk in the state folder, where every run of this program looks for it.
pub(super) struct DiskLock(Option<LockFile>);

impl DiskLock {
    /// Takes the lock, before the disk is opened; `Look` only asks whether it could.
    pub(super) fn take(storage: &Storage, state_dir: &Path, access: Access) -> Result<Self, Refusal> {
        let folder = lock_folder(state_dir);
        let name = lock_name(storage.bytes.base, storage.bytes.range.start());
        let path = folder.join(&name);
        let failed = |source| Refusal::StateFolder { folder: folder.clone(), source };
        if access == Access::Look {
            let nothing = [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied];
            return match lock_file::is_held(&folder, &name) {
                Ok(true) => Err(Refusal::AnotherRun { path }),
                Err(error) if !nothing.contains(&error.kind()) => Err(failed(error)),
                _ => Ok(Self(None)),
            };
        }
        durable::make_folder(&folder).map_err(failed)?;
        let lock = lock_file::acquire(&folder, &name).map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => Refusal::AnotherRun { path },
            _ => failed(source),
        })?;
        Ok(Self(Some(lock)))
    }
}

impl Drop for DiskLock {
    fn drop(&mut self) {
        // One that cannot be removed is not held either, and the next run takes it.
        let _ = self.0.take().map(LockFile::remove);
    }
}

/// Where the lock files of disks lie in a state folder.
pub(crate) fn lock_folder(state_dir: &Path) -> PathBuf {
    state_dir.join("locks")
}

/// Never the path, which another disk may get: where the bytes really lie.
fn lock_name(base: StorageIdentity, start: u64) -> String {
    match base {
        StorageIdentity::Device { major, minor } => format!("device-{major}-{minor}-{start}.lock"),
        StorageIdentity::File { device, inode } => format!("file-{device}-{inode}-{start}.lock"),
    }
}

/// The lock of a disk as a journal names it: the storage in which its bytes lie, and where in it they begin.
pub(crate) fn lock_name_of(bytes: &serde_json::Value) -> Option<String> {
    let (base, start) = (&bytes[0], bytes[1].as_u64()?);
    let number = |name: &str| base[name].as_u64();
    match base["kind"].as_str()? {
        "file" => Some(format!("file-{}-{}-{start}.lock", number("device")?, number("inode")?)),
        "device" => Some(format!("device-{}-{}-{start}.lock", number("major")?, number("minor")?)),
        _ => None,
    }
}

/// Locks on a disk and on what lies below it; they end with it.
pub(crate) struct Hold {
    kernel: Kernel,
    pub(super) storage: Storage,
    /// The disk as it was named, its usual node, the whole disk, the file below a loop device.
    files: Vec<File>,
    excused: Vec<u32>,
    /// Kept to its end.
    lock: Option<DiskLock>,
}

impl Hold {
    /// Takes hold of `disk`, which is open, and of everything below it; `Look` only asks whether it could.
    pub(super) fn take(
        topology: &Topology,
        storage: Storage,
        (named, disk): (&Path, &File),
        (access, excused): (Access, &[u32]),
        limits: &mut Vec<SightLimit>,
    ) -> Result<Self, Refusal> {
        let cannot_open = |source| Refusal::CannotOpen { source };
        let mut files = vec![disk.try_clone().map_err(cannot_open)?];
        for (identity, path) in names_below(topology, &storage) {
            match open_same(&path, identity) {
                Ok(file) if is_among(&files, &file) => {}
                Ok(file) => files.push(file),
                // The usual node of a device that was named by another is no further place to hold.
                Err(_) if identity == storage.identity => {}
                Err(_) => limits.push(SightLimit::NotHeld { path: path.display().to_string() }),
            }
        }
        let kernel = topology.kernel.clone();
        let hold = Self { kernel, storage, files, excused: excused.to_vec(), lock: None };
        for file in &hold.files {
            match access {
                Access::Look => locked::ask(file)?,
                Access::Hold | Access::Write => locked::lock(file)?,
            }
        }
        if hold.files.iter().any(|file| !locked::are_known(file)) {
            limits.push(SightLimit::NoLocks { path: named.display().to_string() });
        }
        hold.refuse_other_locks(topology)?;
        Ok(hold)
    }

    /// What tells the storage in which the disk's bytes lie from another that gets its numbers later.
    pub(super) fn lasting_id(&self) -> Option<String> {
        match self.storage.bytes.base {
            StorageIdentity::Device { major, minor } => self.kernel.lasting_id((major, minor)),
            base @ StorageIdentity::File { .. } => {
                let is_base =
                    |file: &&File| file.metadata().is_ok_and(|metadata| identify(&metadata) == Some(base));
                made(&self.files.iter().find(is_base)?.metadata().ok()?)
            }
        }
    }

    /// Keeps the state folder's lock as well.
    pub(super) fn keep(&mut self, lock: DiskLock) {
        self.lock = Some(lock);
    }

    pub(super) fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Looks at the whole host again: who uses the disk now, now that it is held.
    pub(crate) fn look_again(&self) -> Vec<Refusal> {
        let topology = Topology::read(&self.kernel);
        // Followed anew: what lies below may be another file by now.
        let mut refusals = Vec::new();
        if !topology.again(&self.storage).is_as(&self.storage) {
            refusals.push(Refusal::Moved);
        }
        refusals.extend(in_use::standing(&topology, &self.storage));
        refusals.extend(self.refuse_other_locks(&topology).err());
        let wait = if refusals.is_empty() { Wait::ForPassersBy } else { Wait::No };
        refusals.extend(self.openers(&topology, wait).0);
        refusals
    }

    /// The processes that have the disk open, and how many could not be asked.
    pub(super) fn openers(&self, topology: &Topology, wait: Wait) -> (Vec<Refusal>, usize) {
        openers(topology, &self.storage, Excused::Readers(&self.excused), wait)
    }

    /// A lock of somebody else: it says who only where all that have the disk open are excused.
    fn refuse_other_locks(&self, topology: &Topology) -> Result<(), Refusal> {
        self.files.iter().try_for_each(|file| match locked::others(file) {
            None => Ok(()),
            Some(locked::Use::Other) if self.are_all_excused(topology) => Ok(()),
            Some(use_of_it) => Err(Refusal::Locked { who: use_of_it.who() }),
        })
    }

    /// Whether those that were excused are seen to have the disk, and nobody else is or could be.
    fn are_all_excused(&self, topology: &Topology) -> bool {
        let all = openers(topology, &self.storage, Excused::Readers(&[]), Wait::No);
        let others = self.openers(topology, Wait::No);
        !all.0.is_empty() && others.0.is_empty() && others.1 == 0
    }
}

/// What tells a file from another that gets its numbers later: when it was made, where the file system knows.
pub(crate) fn made(of: &std::fs::Metadata) -> Option<String> {
    let since = of.created().ok()?.duration_since(std::time::SystemTime::UNIX_EPOCH).ok()?;
    Some(format!("made {}.{:09}", since.as_secs(), since.subsec_nanos()))
}

/// The processes that have a storage open as refusals, and how many processes could not be asked.
pub(super) fn openers(
    topology: &Topology,
    storage: &Storage,
    excused: Excused<'_>,
    wait: Wait,
) -> (Vec<Refusal>, usize) {
    let wanted = in_use::wanted(topology, std::iter::once(storage));
    let seen = in_use::lasting(&topology.kernel, &wanted, excused, wait);
    let found = seen.found.into_iter().map(|opener| Refusal::OpenedBy {
        process: opener.process,
        access: opener.access,
        path: opener.path,
    });
    (found.collect(), seen.hidden)
}

/// The usual names of a storage and of everything that it was followed to.
fn names_below(topology: &Topology, storage: &Storage) -> Vec<(StorageIdentity, PathBuf)> {
    let mut names = Vec::new();
    for identity in &storage.chain {
        let StorageIdentity::Device { major, minor } = *identity else { continue };
        let Some(device) = topology.devices.get(&(major, minor)) else { continue };
        // In sysfs a slash of a name is an exclamation mark (cciss!c0d0).
        names.push((*identity, topology.kernel.dev.join(device.name.replace('!', "/"))));
        if let MadeOf::Loop(backing) = &device.made_of
            && let Some(file @ StorageIdentity::File { .. }) = backing.storage
        {
            names.push((file, backing.path.clone()));
        }
    }
    names
}

/// Opens a path for reading if it leads to that very storage.
fn open_same(path: &Path, identity: StorageIdentity) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let same = identify(&file.metadata()?) == Some(identity);
    if same { Ok(file) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Whether one of the files is the same inode: a second lock on it would wait for the first.
fn is_among(files: &[File], file: &File) -> bool {
    let inode = |file: &File| file.metadata().map(|metadata| (metadata.dev(), metadata.ino())).ok();
    let this = inode(file);
    files.iter().any(|other| this.is_some() && inode(other) == this)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_names_the_lock_that_its_disk_has() {
        let bases =
            [StorageIdentity::Device { major: 8, minor: 16 }, StorageIdentity::File { device: 7, inode: 9 }];
        for base in bases {
            assert_eq!(lock_name_of(&serde_json::json!((base, 4096))), Some(lock_name(base, 4096)));
        }
        assert_eq!(lock_name_of(&serde_json::json!(null)), None);
    }
}
