//! Which block devices there are and what each is made of: partitions, loop devices, device-mapper, md.
//!
//! A name leads to a `Storage`: the bytes that it is (followed through partitions and loop devices to where they
//! really lie) and everything that it rests on (through device-mapper, md and file systems as well). Two storages
//! overlap when the bytes of one are among what the other rests on; so two partitions of a disk do not, nor two
//! logical volumes of a group, but a disk and its partition do, and a file and the loop device over it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::devices::{Device, MadeOf, read_device};
use super::identity::{StorageIdentity, identify};
use super::kernel::{Kernel, Number, line, names};
use super::mounts::{Mount, Mounts, POOLS};
use super::sight;
use crate::range::ByteRange;

/// Stacks of devices are this deep at most; the kernel allows 8 loops over loops.
const DEEPEST: usize = 64;

/// All block devices and mounts at one moment.
#[derive(Debug)]
pub(crate) struct Topology {
    pub(super) kernel: Kernel,
    pub(super) devices: BTreeMap<Number, Device>,
    pub(super) mounts: Mounts,
    /// The devices of each btrfs.
    pub(super) pools: Vec<Pool>,
}

/// An active btrfs and its devices.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) name: String,
    pub(super) devices: Vec<Number>,
}

/// A run of bytes of a file or device that is made of nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Piece {
    pub(super) base: StorageIdentity,
    pub(super) range: ByteRange,
}

impl Piece {
    fn whole(base: StorageIdentity) -> Self {
        Self { base, range: ByteRange::between(0, u64::MAX) }
    }

    fn meets(&self, other: &Self) -> bool {
        self.base == other.base && self.range.intersection(other.range).is_some()
    }
}

/// What a name leads to.
#[derive(Clone, Debug)]
pub(crate) struct Storage {
    pub(super) identity: StorageIdentity,
    /// Where a file really lies.
    path: Option<PathBuf>,
    /// The storage itself and what it was followed to: each holds at least these bytes.
    pub(super) chain: Vec<StorageIdentity>,
    /// Where its bytes really lie.
    pub(super) bytes: Piece,
    /// `bytes`, and every device below that holds some of them.
    rests_on: Vec<Piece>,
}

impl Storage {
    /// Whether both are made up of the same.
    pub(super) fn is_as(&self, other: &Self) -> bool {
        (self.identity, self.bytes, &self.chain) == (other.identity, other.bytes, &other.chain)
    }

    /// Whether writing one could change the other.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.is_on(other) || other.is_on(self)
    }

    /// Whether it lies on bytes of the other.
    pub(super) fn is_on(&self, other: &Self) -> bool {
        self.rests_on.iter().any(|piece| piece.meets(&other.bytes))
    }
}

impl Topology {
    /// What this host shows now to a run that touches the paths `near`.
    pub(crate) fn of_this_host(near: Vec<PathBuf>) -> Self {
        Self::read(&Kernel::of_this_host(near))
    }

    /// Reads what the kernel shows now.
    pub(super) fn read(kernel: &Kernel) -> Self {
        let mounts = Mounts::read(kernel);
        let folder = kernel.sys.join("class/block");
        let device = |name: String| {
            let folder = fs::canonicalize(folder.join(&name)).ok()?;
            let number = Kernel::number(&line(&folder.join("dev"))?)?;
            Some((number, read_device((kernel, &mounts), &folder, (name, number))))
        };
        let mut devices: BTreeMap<Number, Device> = names(&folder).into_iter().filter_map(device).collect();
        join_twins(kernel, &mut devices);
        let btrfs = kernel.sys.join("fs/btrfs");
        let members = |pool: &str| {
            let folder = btrfs.join(pool).join("devices");
            names(&folder)
                .iter()
                .filter_map(|name| Kernel::number(&line(&folder.join(name).join("dev"))?))
                .collect()
        };
        let pool = |name: String| Pool { devices: members(&name), name };
        let pools = names(&btrfs).into_iter().map(pool).filter(|pool| !pool.devices.is_empty()).collect();
        Self { kernel: kernel.clone(), devices, mounts, pools }
    }

    /// What `identity` is made of; `path` is where a file really lies.
    pub(super) fn storage(&self, identity: StorageIdentity, path: Option<&Path>) -> Storage {
        let named = path.map(Path::to_owned);
        let mut chain = vec![identity];
        let (bytes, path) = self.follow((Piece::whole(identity), path.map(Path::to_owned)), &mut chain);
        let mut rests_on = Vec::new();
        let mut seen = HashSet::new();
        let mut todo = vec![(bytes, path)];
        while let Some((piece, path)) = todo.pop() {
            if !seen.insert(piece) {
                continue;
            }
            rests_on.push(piece);
            let below = self.below(piece.base, path.as_deref()).into_iter();
            todo.extend(
                below.map(|number| self.follow((Piece::whole(number.into()), None), &mut Vec::new())),
            );
        }
        Storage { identity, path: named, chain, bytes, rests_on }
    }

    /// Where it cannot be told what a storage really is: then it could be any other.
    pub(super) fn untold(&self, storage: &Storage) -> Option<String> {
        let StorageIdentity::Device { major, minor } = storage.bytes.base else { return None };
        match self.devices.get(&(major, minor)) {
            None => Some(format!("{major}:{minor}")),
            Some(Device { name, made_of: MadeOf::Loop(_), .. }) => Some(name.clone()),
            Some(_) => None,
        }
    }

    /// How hosts that are not seen from here may reach a storage.
    pub(super) fn shared_by(&self, storage: &Storage) -> Vec<&'static str> {
        let of_device = |piece: &Piece| match piece.base {
            StorageIdentity::Device { major, minor } => sight::shared_transport(&self.kernel, (major, minor)),
            StorageIdentity::File { .. } => None,
        };
        let mount = storage.path.as_deref().and_then(|path| self.mounts.holding(path));
        let of_files = match (storage.identity, mount) {
            (StorageIdentity::File { .. }, Some(mount)) if mount.may_be_shared() => {
                Some("its file system, which is not one of this host alone")
            }
            _ => None,
        };
        let mut by: Vec<_> = storage.rests_on.iter().filter_map(of_device).chain(of_files).collect();
        by.dedup();
        by
    }

    /// The same storage as it is made up now.
    pub(super) fn again(&self, storage: &Storage) -> Storage {
        self.storage(storage.identity, storage.path.as_deref())
    }

    /// The storage behind a path that exists, or behind the nearest of its parents that does.
    pub(super) fn storage_at(&self, path: &Path) -> Option<Storage> {
        let absolute = std::path::absolute(path).ok()?;
        let (there, metadata) =
            absolute.ancestors().find_map(|path| Some((path, fs::metadata(path).ok()?)))?;
        let real = fs::canonicalize(there).ok();
        let identity = identify(&metadata)
            .unwrap_or(StorageIdentity::File { device: metadata.dev(), inode: metadata.ino() });
        Some(self.storage(identity, real.as_deref()))
    }

    /// Where the bytes of the disk at a path lie that some record names, and what a device keeps when its number goes
    /// to another; nothing where a look at it could hang.
    pub(crate) fn place_of(&self, path: &Path) -> Option<((StorageIdentity, u64), Option<String>)> {
        let bytes = self.storage_named(path)?.bytes;
        let lasting_id = match bytes.base {
            StorageIdentity::Device { major, minor } => self.kernel.lasting_id((major, minor)),
            StorageIdentity::File { .. } => None,
        };
        Some(((bytes.base, bytes.range.start()), lasting_id))
    }

    /// The storage at a path that one of the kernel's tables names, unless a look at it could hang.
    pub(super) fn storage_named(&self, path: &Path) -> Option<Storage> {
        let is_there = self.mounts.answers_at_once(path) && path.exists();
        is_there.then(|| self.storage_at(path)).flatten()
    }

    /// The number of the block device at such a path.
    pub(super) fn device_at(&self, path: &Path) -> Option<Number> {
        let look = || identify(&fs::metadata(path).ok()?);
        match self.mounts.answers_at_once(path).then(look).flatten()? {
            StorageIdentity::Device { major, minor } => Some((major, minor)),
            StorageIdentity::File { .. } => None,
        }
    }

    /// The device that a mount, or a file system without a number of its own, lies on, and its companions.
    pub(super) fn of_mount(&self, mount: &Mount) -> Vec<Number> {
        let of_pool = || self.device_at(&mount.source).filter(|_| POOLS.contains(&mount.kind.as_str()));
        self.with_companions(if mount.number.0 == 0 {
            of_pool().unwrap_or(mount.number)
        } else {
            mount.number
        })
    }

    fn with_companions(&self, number: Number) -> Vec<Number> {
        if number.0 == 0 {
            return Vec::new();
        }
        let pool = self.pools.iter().find(|pool| pool.devices.contains(&number));
        pool.map_or_else(|| vec![number], |pool| pool.devices.clone())
    }

    /// Every device that holds some of these bytes, other names of them included.
    pub(super) fn above(&self, storage: &Storage) -> BTreeMap<Number, &Device> {
        let holds = |number: Number| self.storage(number.into(), None).is_on(storage);
        let named = |number: Number| storage.chain.contains(&number.into());
        let chosen = self.devices.iter().filter(|(number, _)| named(**number) || holds(**number));
        chosen.map(|(number, device)| (*number, device)).collect()
    }

    /// Goes down as long as it is known where the bytes lie; the path is that of a file, where one is known.
    fn follow(
        &self,
        (mut piece, mut path): (Piece, Option<PathBuf>),
        chain: &mut Vec<StorageIdentity>,
    ) -> (Piece, Option<PathBuf>) {
        for _ in 0..DEEPEST {
            let (base, start, size) = match piece.base {
                StorageIdentity::File { .. } => {
                    match path.as_deref().and_then(|path| self.below_overlay(path)) {
                        Some((base, place)) if base != piece.base => {
                            path = Some(place);
                            (base, 0, None)
                        }
                        _ => break,
                    }
                }
                StorageIdentity::Device { major, minor } => match self.below_device((major, minor)) {
                    Some((base, start, size, file)) => {
                        path = file;
                        (base, start, size)
                    }
                    None => break,
                },
            };
            let end = |at: u64| {
                start.saturating_add(at).min(size.map_or(u64::MAX, |size| start.saturating_add(size)))
            };
            let from = end(piece.range.start());
            piece = Piece { base, range: ByteRange::between(from, end(piece.range.end()).max(from)) };
            chain.push(base);
        }
        (piece, path)
    }

    /// Where the bytes of a partition or a loop device begin, how many they are, and the path of a file.
    fn below_device(&self, number: Number) -> Option<(StorageIdentity, u64, Option<u64>, Option<PathBuf>)> {
        let device = self.devices.get(&number)?;
        match &device.made_of {
            MadeOf::Twin(first) => Some(((*first).into(), 0, None, None)),
            MadeOf::Partition { disk, place } => {
                let (start, size) = place.map_or((0, None), |(start, size)| (start, Some(size)));
                Some(((*disk).into(), start, size, None))
            }
            MadeOf::Loop(backing) => {
                let limit = Some(backing.limit).filter(|limit| *limit > 0);
                Some((backing.storage?, backing.offset, limit, Some(backing.path.clone())))
            }
            MadeOf::Itself | MadeOf::Others { .. } => None,
        }
    }

    /// The file that an overlay shows under that path: what is written there changes it, or was copied from it.
    fn below_overlay(&self, path: &Path) -> Option<(StorageIdentity, PathBuf)> {
        let look = |place: PathBuf| {
            let metadata =
                self.mounts.answers_at_once(&place).then(|| fs::metadata(&place).ok()).flatten()?;
            Some((identify(&metadata)?, place))
        };
        self.mounts.below_overlay(path).into_iter().find_map(look)
    }

    /// The devices that hold the bytes of `base`, where that is all that is known.
    fn below(&self, base: StorageIdentity, path: Option<&Path>) -> Vec<Number> {
        match base {
            StorageIdentity::Device { major, minor } => {
                match self.devices.get(&(major, minor)).map(|it| &it.made_of) {
                    Some(MadeOf::Others { devices, .. }) => devices.clone(),
                    _ => Vec::new(),
                }
            }
            StorageIdentity::File { device, .. } => {
                let number = super::identity::numbers(device);
                if number.0 != 0 {
                    return self.with_companions(number);
                }
                // btrfs and overlay show a number that is no device's: the mount table knows more.
                let path = path.map(Path::to_owned).or_else(|| self.path_of(base));
                path.map(|path| self.below_path(&path, DEEPEST)).unwrap_or_default()
            }
        }
    }

    /// The devices of the file system that a path lies on; those of an overlay are its layers'.
    fn below_path(&self, path: &Path, depth: usize) -> Vec<Number> {
        let Some(mount) = self.mounts.holding(path) else { return Vec::new() };
        let layers = self.mounts.below_overlay(path);
        if layers.is_empty() || depth == 0 {
            return self.of_mount(mount);
        }
        // A new file goes to the layer that is written, and what lies in another stays there.
        let layers = layers.iter().filter(|layer| self.mounts.answers_at_once(layer));
        layers.flat_map(|layer| self.below_path(layer, depth - 1)).collect()
    }

    fn path_of(&self, file: StorageIdentity) -> Option<PathBuf> {
        self.devices.values().find_map(|device| match &device.made_of {
            MadeOf::Loop(backing) if backing.storage == Some(file) => Some(backing.path.clone()),
            _ => None,
        })
    }
}

/// Disks of one World Wide Name and one size are one disk; the one of the smallest number stands for all.
fn join_twins(kernel: &Kernel, devices: &mut BTreeMap<Number, Device>) {
    let mut first = BTreeMap::new();
    for (number, device) in devices.iter_mut().filter(|(_, device)| matches!(device.made_of, MadeOf::Itself))
    {
        let Some(wwn) = kernel.wwn(*number) else { continue };
        match first.entry((wwn, device.size)) {
            Entry::Vacant(entry) => _ = entry.insert(*number),
            Entry::Occupied(entry) => device.made_of = MadeOf::Twin(*entry.get()),
        }
    }
}

#[cfg(test)]
mod tests;
