//! Which block devices there are and what each is made of: partitions, loop devices, device-mapper, md.
//!
//! A name leads to a `Storage`: the bytes that it is (followed through partitions and loop devices to where they
//! really lie) and everything that it rests on (through device-mapper, md and file systems as well). Two storages
//! overlap when the bytes of one are among what the other rests on; so two partitions of a disk do not, nor two
//! logical volumes of a group, but a disk and its partition do, and a file and the loop device over it.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::devices::{Device, MadeOf, read_device};
use super::identity::{StorageIdentity, identify};
use super::kernel::{Kernel, Number, line, names};
use super::mounts::{Mount, Mounts, POOLS};
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
    pools: Vec<Vec<Number>>,
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
        let devices = names(&folder).into_iter().filter_map(device).collect();
        let btrfs = kernel.sys.join("fs/btrfs");
        let members = |pool: String| {
            let folder = btrfs.join(pool).join("devices");
            names(&folder)
                .iter()
                .filter_map(|name| Kernel::number(&line(&folder.join(name).join("dev"))?))
                .collect()
        };
        let pools = names(&btrfs).into_iter().map(members).filter(|pool: &Vec<_>| !pool.is_empty()).collect();
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
        let pool = self.pools.iter().find(|pool| pool.contains(&number));
        pool.cloned().unwrap_or_else(|| vec![number])
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
            MadeOf::Partition { disk, start } => Some(((*disk).into(), *start, Some(device.size), None)),
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

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt as _;

    use super::super::fake::FakeHost;
    use super::*;

    const SDA: Number = (8, 0);
    const SDA1: Number = (8, 1);
    const SDA2: Number = (8, 2);
    const SDB: Number = (8, 16);

    /// A disk with two partitions and another disk.
    fn host() -> FakeHost {
        let host = FakeHost::new();
        host.disk("pci0/block/sda", SDA);
        host.partition("pci0/block/sda/sda1", SDA1, (2048, 4096));
        host.partition("pci0/block/sda/sda2", SDA2, (6144, 8192));
        host.disk("pci0/block/sdb", SDB);
        host
    }

    #[track_caller]
    fn check(host: &FakeHost, left: Number, right: Number, overlap: bool) {
        let (left, right) = (host.storage(left), host.storage(right));
        assert_eq!((left.overlaps(&right), right.overlaps(&left)), (overlap, overlap), "{left:?} {right:?}");
    }

    #[test]
    fn a_partition_is_part_of_its_disk_and_its_neighbours_are_not() {
        let host = host();
        check(&host, SDA, SDA, true);
        check(&host, SDA, SDA1, true);
        check(&host, SDA1, SDA2, false);
        check(&host, SDA, SDB, false);
    }

    #[test]
    fn a_volume_rests_on_its_disks_and_volumes_of_one_group_do_not_overlap() {
        let host = host();
        let (root, home, mirror, crypt) = ((254, 0), (254, 1), (9, 0), (254, 2));
        host.stacked("dm-0", root, &["sda2"]);
        host.stacked("dm-1", home, &["sda2", "sdb"]);
        host.stacked("dm-2", crypt, &["dm-0"]);
        check(&host, root, home, false);
        for (below, overlap) in [(SDA, true), (SDA2, true), (SDA1, false), (SDB, false), (crypt, true)] {
            check(&host, root, below, overlap);
        }
        check(&host, home, SDB, true);
        check(&host, crypt, SDA2, true);
        check(&host, crypt, home, false);
        host.stacked("md0", mirror, &["sdb", "sda1"]);
        host.partition("virtual/block/md0/md0p1", (259, 0), (2048, 2048));
        check(&host, (259, 0), SDA1, true);
        check(&host, (259, 0), SDA2, false);
        let above: Vec<_> = host.topology().above(&host.storage(SDB)).into_keys().collect();
        assert_eq!(above, [SDB, mirror, home, (259, 0)]);
    }

    #[test]
    fn a_loop_device_is_the_part_of_its_file_that_it_shows() {
        let host = host();
        let file = host.write("disk.raw", "");
        let (whole, first, second) = ((7, 0), (7, 1), (7, 2));
        host.loop_over("loop0", whole, &file, (0, 0));
        host.loop_over("loop1", first, &file, (0, 1 << 20));
        host.loop_over("loop2", second, &file, (1 << 20, 1 << 20));
        host.partition("virtual/block/loop0/loop0p1", (259, 1), (2048, 2048));
        let of_file = host.topology().storage_at(&file).unwrap();
        for loop_device in [whole, first, second, (259, 1)] {
            assert!(host.storage(loop_device).overlaps(&of_file), "{loop_device:?}");
            check(&host, whole, loop_device, true);
        }
        check(&host, first, second, false);
        check(&host, (259, 1), first, false);
        check(&host, (259, 1), second, true);
        let chain = host.storage((259, 1)).chain;
        assert_eq!(chain, [(259, 1).into(), whole.into(), of_file.identity]);
    }

    #[test]
    fn a_loop_device_is_followed_to_a_file_whose_name_is_no_text() {
        let host = host();
        for (number, name) in [b"\xff.raw".as_slice(), b"blank ", b"end\n"].into_iter().enumerate() {
            let name = OsString::from_vec(name.to_vec());
            let file = host.write("files/x", "").with_file_name(name);
            fs::write(&file, "").unwrap();
            let over = (7, u32::try_from(number).unwrap());
            host.loop_over(&format!("loop{number}"), over, &file, (0, 0));
            let of_file = host.topology().storage_at(&file).unwrap();
            assert!(host.storage(over).overlaps(&of_file), "{file:?}");
        }
    }

    #[test]
    fn a_file_lies_on_the_disk_of_its_file_system() {
        let host = host();
        let file = host.write("images/disk.raw", "");
        let metadata = fs::metadata(&file).unwrap();
        let numbers = super::super::identity::numbers(metadata.dev());
        host.loop_over("loop0", (7, 0), &file, (0, 0));
        let place = host.path("images");
        let topology = || {
            let mut topology = host.topology();
            topology.pools = vec![vec![SDB, SDA2]];
            topology
        };
        // As btrfs has it: the files' device number is no device's.
        host.mounts(&[("0:30", "/", "btrfs", "/no/such/device")]);
        assert!(topology().below_path(&place, DEEPEST).is_empty());
        host.mounts(&[("8:1", "/", "ext4", "none"), ("8:2", place.to_str().unwrap(), "btrfs", "none")]);
        assert_eq!(topology().below_path(Path::new("/other"), DEEPEST), [SDA1]);
        assert_eq!(topology().below_path(&place, DEEPEST), [SDB, SDA2], "a btrfs lies on all of its devices");
        if numbers.0 != 0 {
            assert_eq!(topology().storage_at(&file).unwrap().chain.len(), 1);
        }
    }

    #[test]
    fn a_file_of_an_overlay_is_the_file_in_its_layer_and_lies_on_the_layers_disks() {
        let host = host();
        let (upper, lower) = (host.path("upper"), host.path("lower"));
        let (file, base) = (host.write("upper/dir/disk.raw", ""), host.write("lower/dir/base.raw", ""));
        let merged = host.path("merged");
        let options = format!(
            "/ {} rw - overlay overlay rw,lowerdir={},upperdir={}",
            merged.display(),
            lower.display(),
            upper.display()
        );
        let line = |number, rest: &str| format!("9 1 {number} {rest}\n");
        let table = [
            line("0:40", &options),
            line("8:1", &format!("/ {} rw - ext4 none rw", upper.display())),
            line("8:16", &format!("/ {} rw - ext4 none rw", lower.display())),
        ];
        host.write("proc/self/mountinfo", &table.concat());
        let topology = host.topology();
        let seen = StorageIdentity::File { device: 0x1_0000_0000, inode: 1 };
        for (name, real) in [("dir/disk.raw", &file), ("dir/base.raw", &base)] {
            let real = topology.storage_at(real).unwrap();
            let through = topology.storage(seen, Some(&merged.join(name)));
            assert_eq!(through.chain, [seen, real.identity], "{name}");
            assert!(through.overlaps(&real));
        }
        assert_eq!(topology.below_path(&merged.join("new"), DEEPEST), [SDA1, SDB]);
    }
}
