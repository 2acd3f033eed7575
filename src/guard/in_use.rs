//! Who uses a disk: mounts, swap, devices built on it, loop devices over it, exports, and processes.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::kernel::{Kernel, line, names};
use super::mounts::unescape;
use super::processes::{OpenFor, Openers, Wanted, openers};
use super::refusal::Refusal;
use super::topology::{MadeOf, Storage, Topology, device_at};

/// Who has let go by then, such as udev and blkid, is no holder.
const PATIENCE: Duration = Duration::from_secs(2);
/// Newcomers are waited for, too; but not for ever.
const LAST_CALL: Duration = Duration::from_secs(6);
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);
/// A mount that a thousand containers see is told once, and of many different ones a few.
const MOST_MOUNTS: usize = 8;

/// Everything that the kernel itself shows of a storage's users: all but processes.
pub(super) fn standing(topology: &Topology, storage: &Storage) -> Vec<Refusal> {
    let above = topology.above(storage);
    let mut found = mounts(topology, storage);
    found.extend(swap(topology, storage));
    for (number, device) in &above {
        if storage.chain.contains(&(*number).into()) {
            continue;
        }
        match &device.made_of {
            MadeOf::Loop(_) => found.push(Refusal::LoopOver { device: device.name.clone() }),
            MadeOf::Others { what, .. } => found.push(Refusal::BuiltUpon { what: what.clone() }),
            MadeOf::Itself | MadeOf::Partition { .. } => {}
        }
    }
    found.extend(pools(topology, storage));
    found.extend(exports(topology, storage));
    found
}

/// Every mount of the storage, or of a part of it, that some process sees.
pub(super) fn mounts(topology: &Topology, storage: &Storage) -> Vec<Refusal> {
    let above = topology.above(storage);
    let mut seen = HashSet::new();
    let of_it = topology.mounts.all.iter().filter_map(|mount| {
        let devices = topology.of_mount(mount.number, &mount.source);
        let (number, device) = devices.iter().find_map(|number| Some((number, above.get(number)?)))?;
        seen.insert((*number, mount.point.clone())).then(|| Refusal::Mounted {
            device: device.name.clone(),
            mount_point: mount.point.clone(),
            pid: mount.pid,
        })
    });
    of_it.take(MOST_MOUNTS).collect()
}

/// The swap areas that lie on the storage, or are it.
fn swap(topology: &Topology, storage: &Storage) -> Option<Refusal> {
    let table = fs::read_to_string(topology.kernel.proc.join("swaps")).ok()?;
    let mut paths = table.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(unescape);
    paths.find_map(|path| {
        let area = topology.storage_at(Path::new(&path)).filter(|_| Path::new(&path).exists())?;
        area.overlaps(storage).then(|| Refusal::Swap { path: path.into() })
    })
}

/// An active btrfs holds its devices, mounted here or not.
fn pools(topology: &Topology, storage: &Storage) -> Vec<Refusal> {
    let folder = topology.kernel.sys.join("fs/btrfs");
    let above = topology.above(storage);
    let holds = |pool: &String| {
        let devices = folder.join(pool).join("devices");
        let numbers = names(&devices).into_iter();
        let mut numbers = numbers.filter_map(|name| Kernel::number(&line(&devices.join(name).join("dev"))?));
        numbers.any(|number| above.contains_key(&number))
    };
    let pools = names(&folder).into_iter().filter(holds);
    pools.map(|pool| Refusal::BuiltUpon { what: format!("the active btrfs {pool}") }).collect()
}

/// What the kernel's own servers give to other machines; they take no exclusive claim, or not all of them do.
fn exports(topology: &Topology, storage: &Storage) -> Vec<Refusal> {
    let folder = topology.kernel.sys.join("kernel/config");
    let nvme = below(&folder.join("nvmet/subsystems"), &["*", "namespaces", "*", "device_path"]);
    let scsi = below(&folder.join("target/core"), &["*", "*", "udev_path"]);
    let all = nvme.into_iter().map(|path| ("NVMe target", path));
    let all = all.chain(scsi.into_iter().map(|path| ("SCSI target", path)));
    let exported = |(by, attribute): (&'static str, PathBuf)| {
        let path = PathBuf::from(line(&attribute)?);
        let exported =
            path.is_absolute().then(|| topology.storage_at(&path).filter(|_| path.exists())).flatten()?;
        exported.overlaps(storage).then_some(Refusal::Exported { by, path })
    };
    all.filter_map(exported).collect()
}

/// The paths that a pattern of names leads to; `*` is every name.
fn below(folder: &Path, pattern: &[&str]) -> Vec<PathBuf> {
    let Some((first, rest)) = pattern.split_first() else { return vec![folder.to_owned()] };
    match *first {
        "*" => names(folder).iter().flat_map(|name| below(&folder.join(name), rest)).collect(),
        name => below(&folder.join(name), rest),
    }
}

/// What a process must have open to be a user of these storages, under any of their names.
pub(super) fn wanted<'a>(topology: &Topology, storages: impl Iterator<Item = &'a Storage>) -> Wanted {
    let mut wanted = Wanted::default();
    for storage in storages {
        storage.chain.iter().for_each(|identity| wanted.add(*identity));
        wanted.devices.extend(topology.above(storage).into_keys());
    }
    wanted
}

/// Who may have a storage open without being in the way.
#[derive(Clone, Copy, Debug)]
pub(super) enum Excused<'a> {
    /// These processes, while they only read.
    Readers(&'a [u32]),
    /// Whoever only reads.
    AllReaders,
}

impl Excused<'_> {
    fn contains(self, pid: u32, access: OpenFor) -> bool {
        access == OpenFor::Reading
            && match self {
                Self::Readers(pids) => pids.contains(&pid),
                Self::AllReaders => true,
            }
    }
}

/// How long somebody who has the storage open is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Who looks at a new disk for a moment, as udev does, is none that uses it.
    ForPassersBy,
    /// What is seen now is evidence of something that is certain already.
    No,
}

/// The processes that have the storage open, and still have it when passers-by have gone.
pub(super) fn lasting(kernel: &Kernel, wanted: &Wanted, excused: Excused<'_>, wait: Wait) -> Openers {
    let began = Instant::now();
    let mut since: HashMap<u32, Instant> = HashMap::new();
    loop {
        let mut seen = openers(kernel, wanted);
        seen.found.retain(|opener| !excused.contains(opener.pid, opener.access));
        let now = Instant::now();
        since.retain(|pid, _| seen.found.iter().any(|opener| opener.pid == *pid));
        for opener in &seen.found {
            since.entry(opener.pid).or_insert(now);
        }
        let stays = since.values().any(|since| now.duration_since(*since) >= PATIENCE);
        if seen.found.is_empty() || wait == Wait::No || stays || now.duration_since(began) >= LAST_CALL {
            return seen;
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
}

/// The mounts through which an image could be written, and the processes that have it open for writing.
pub(super) fn writers(topology: &Topology, storage: &Storage) -> Vec<Refusal> {
    let above = topology.above(storage);
    let mounted = topology.mounts.all.iter().find(|mount| {
        let devices = topology.of_mount(mount.number, &mount.source);
        mount.is_writable() && devices.iter().any(|number| above.contains_key(number))
    });
    let mounted = mounted.map(|mount| Refusal::ImageMounted { mount_point: mount.point.clone() });
    let wanted = wanted(topology, std::iter::once(storage));
    let openers = lasting(&topology.kernel, &wanted, Excused::AllReaders, Wait::ForPassersBy).found;
    let openers = openers.into_iter().map(|opener| Refusal::ImageWritten {
        pid: opener.pid,
        command: opener.command,
        path: opener.path,
    });
    mounted.into_iter().chain(openers).collect()
}

/// The host's own file systems that a device holds: what keeps the host running.
pub(super) fn host_file_systems(topology: &Topology, storage: &Storage) -> Vec<Refusal> {
    const PLACES: [&str; 7] = ["/", "/usr", "/boot", "/boot/efi", "/efi", "/var", "/etc"];
    let mut found: Vec<Refusal> = Vec::new();
    for mount in topology.mounts.at(&PLACES) {
        let devices = topology.of_mount(mount.number, &mount.source);
        let holds = |number: &super::kernel::Number| topology.storage((*number).into(), None).is_on(storage);
        let told =
            found.iter().any(|told| matches!(told, Refusal::HostDisk { place } if *place == mount.point));
        if !told && devices.iter().any(holds) {
            found.push(Refusal::HostDisk { place: mount.point.clone() });
        }
    }
    let root = fs::read_to_string(topology.kernel.proc.join("cmdline")).ok();
    let root = root.and_then(|text| {
        Some(text.split_whitespace().find_map(|word| word.strip_prefix("root="))?.to_owned())
    });
    let number = root.and_then(|path| device_at(Path::new(&path)));
    if found.is_empty() && number.is_some_and(|number| topology.storage(number.into(), None).is_on(storage)) {
        // In a container the host's root is not mounted where we see it.
        found.push(Refusal::HostDisk { place: "/".into() });
    }
    found
}
