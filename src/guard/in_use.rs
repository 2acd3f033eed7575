//! Who uses a disk: mounts, swap, devices built on it, loop devices over it, exports, and processes.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::devices::MadeOf;
use super::kernel::{Kernel, Number, names};
use super::mounts::unescape;
use super::processes::{OpenFor, Openers, Wanted, openers, process};
use super::refusal::Refusal;
use super::topology::{Storage, Topology};

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
            MadeOf::Itself | MadeOf::Twin(_) | MadeOf::Partition { .. } => {}
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
        let devices = topology.of_mount(mount);
        let (number, device) = devices.iter().find_map(|number| Some((number, above.get(number)?)))?;
        seen.insert((*number, mount.point.clone())).then(|| Refusal::Mounted {
            device: device.name.clone(),
            mount_point: mount.point.clone(),
            by: mount.by.map(|pid| process(&topology.kernel, pid)),
        })
    });
    of_it.take(MOST_MOUNTS).collect()
}

/// The swap areas that lie on the storage, or are it.
fn swap(topology: &Topology, storage: &Storage) -> Option<Refusal> {
    let table = fs::read(topology.kernel.proc.join("swaps")).ok()?;
    let lines = table.split(|byte| *byte == b'\n').skip(1);
    let mut paths =
        lines.filter_map(|line| line.split(|byte| *byte == b' ' || *byte == b'\t').next()).map(unescape);
    paths.find_map(|path| {
        let area = topology.storage_named(&path)?;
        area.overlaps(storage).then_some(Refusal::Swap { path })
    })
}

/// An active btrfs holds its devices, mounted here or not.
fn pools(topology: &Topology, storage: &Storage) -> Vec<Refusal> {
    let above = topology.above(storage);
    let holds = |devices: &[Number]| devices.iter().any(|number| above.contains_key(number));
    let pools = topology.pools.iter().filter(|pool| holds(&pool.devices));
    pools.map(|pool| Refusal::BuiltUpon { what: format!("the active btrfs {}", pool.name) }).collect()
}

/// What the kernel's own servers give to other machines; they take no exclusive claim, or not all of them do.
fn exports(topology: &Topology, storage: &Storage) -> Vec<Refusal> {
    let folder = topology.kernel.sys.join("kernel/config");
    let nvme = below(&folder.join("nvmet/subsystems"), &["*", "namespaces", "*", "device_path"]);
    let scsi = below(&folder.join("target/core"), &["*", "*", "udev_path"]);
    let all = nvme.into_iter().map(|path| ("NVMe target", path));
    let all = all.chain(scsi.into_iter().map(|path| ("SCSI target", path)));
    let exported = |(by, attribute): (&'static str, PathBuf)| {
        let mut path = fs::read(&attribute).ok()?;
        path.pop_if(|byte| *byte == b'\n');
        let path = PathBuf::from(OsString::from_vec(path));
        let exported = topology.storage_named(&path)?;
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
        seen.found.retain(|opener| !excused.contains(opener.process.pid, opener.access));
        let now = Instant::now();
        since.retain(|pid, _| seen.found.iter().any(|opener| opener.process.pid == *pid));
        for opener in &seen.found {
            since.entry(opener.process.pid).or_insert(now);
        }
        let stays = since.values().any(|since| now.duration_since(*since) >= PATIENCE);
        if seen.found.is_empty() || wait == Wait::No || stays || now.duration_since(began) >= LAST_CALL {
            return seen;
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
}

/// The mounts through which an image could be written, and the processes that have it open for writing.
pub(super) fn writers(topology: &Topology, storage: &Storage, wait: Wait) -> Vec<Refusal> {
    let above = topology.above(storage);
    let mounted = topology.mounts.all.iter().find(|mount| {
        let devices = topology.of_mount(mount);
        mount.is_writable() && devices.iter().any(|number| above.contains_key(number))
    });
    let mounted = mounted.map(|mount| Refusal::ImageMounted { mount_point: mount.point.clone() });
    let wanted = wanted(topology, std::iter::once(storage));
    let openers = lasting(&topology.kernel, &wanted, Excused::AllReaders, wait).found;
    let openers = openers
        .into_iter()
        .map(|opener| Refusal::ImageWritten { process: opener.process, path: opener.path });
    mounted.into_iter().chain(openers).collect()
}

/// The host's own file systems that a device holds: what keeps the host running.
pub(super) fn host_file_systems(topology: &Topology, storage: &Storage) -> Vec<Refusal> {
    const PLACES: [&str; 7] = ["/", "/usr", "/boot", "/boot/efi", "/efi", "/var", "/etc"];
    let mut found: Vec<Refusal> = Vec::new();
    for mount in topology.mounts.at(&PLACES) {
        let devices = topology.of_mount(mount);
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
    let number = root.and_then(|path| topology.device_at(Path::new(&path)));
    if found.is_empty() && number.is_some_and(|number| topology.storage(number.into(), None).is_on(storage)) {
        // In a container the host's root is not mounted where we see it.
        found.push(Refusal::HostDisk { place: "/".into() });
    }
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::fake::FakeHost;
    use super::super::kernel::Number;
    use super::*;

    const DISK: Number = (8, 0);
    const PART: Number = (8, 1);
    const OTHER: Number = (8, 16);

    fn host() -> FakeHost {
        let host = FakeHost::new();
        host.disk("pci0/block/sda", DISK);
        host.partition("pci0/block/sda/sda1", PART, (2048, 4096));
        host.disk("pci0/block/sdb", OTHER);
        host
    }

    /// What is told of these devices, and that nothing is told of the other disk.
    #[track_caller]
    fn check(host: &FakeHost, devices: &[Number], expected: &[&str]) {
        let told = |number: Number| -> Vec<String> {
            standing(&host.topology(), &host.storage(number)).iter().map(ToString::to_string).collect()
        };
        for device in devices {
            assert_eq!(told(*device), expected, "{device:?}");
        }
        assert!(told(OTHER).is_empty(), "{:?}", told(OTHER));
    }

    #[test]
    fn nothing_is_told_of_a_disk_that_nobody_uses() {
        check(&host(), &[DISK, PART], &[]);
    }

    #[test]
    fn a_mount_is_told_wherever_it_is_seen_and_once() {
        let host = host();
        let mount = [("8:1", "/mnt\\040two", "ext4", "/dev/sda1")];
        host.mounts_of("7", &mount);
        host.mounts_of("8", &mount);
        let theirs = "sda1 is mounted on \"/mnt two\", in the mount namespace of pid 7 (\"somebody\")";
        check(&host, &[DISK, PART], &[theirs]);
        host.mounts(&mount);
        check(&host, &[DISK, PART], &["sda1 is mounted on \"/mnt two\""]);
    }

    #[test]
    fn volumes_arrays_and_pools_are_told() {
        let host = host();
        let volume = host.stacked("dm-3", (254, 3), &["sda1"]);
        fs::create_dir(volume.join("dm")).unwrap();
        fs::write(volume.join("dm/name"), "vg-root\n").unwrap();
        let built = "the device-mapper volume \"vg-root\" is built on it";
        check(&host, &[DISK, PART], &[built]);
        let array = host.stacked("md7", (9, 7), &["sda"]);
        fs::create_dir(array.join("md")).unwrap();
        fs::write(array.join("md/level"), "raid1\n").unwrap();
        check(&host, &[DISK], &["the raid1 array md7 is built on it", built]);
        let pool = host.path("sys/fs/btrfs/some-uuid/devices");
        fs::create_dir_all(&pool).unwrap();
        symlink(host.path("sys/class/block/dm-3"), pool.join("dm-3")).unwrap();
        check(&host, &[(254, 3)], &["the active btrfs some-uuid is built on it"]);
    }

    #[test]
    fn loop_devices_and_what_is_on_them_are_told_and_the_target_itself_is_not() {
        let host = host();
        let file = host.write("disk.raw", "");
        host.loop_over("loop0", (7, 0), &file, (0, 0));
        check(&host, &[(7, 0)], &[]);
        let of_file = || host.topology().storage_at(&file).unwrap();
        let told = |host: &FakeHost| standing(&host.topology(), &of_file()).len();
        assert_eq!(told(&host), 1, "the loop device");
        host.loop_over("loop1", (7, 1), &file, (4096, 0));
        check(&host, &[(7, 0)], &["the loop device loop1 lies over it"]);
        host.mounts(&[("7:1", "/mnt", "ext4", "/dev/loop1")]);
        assert_eq!(told(&host), 3, "two loop devices and a mount");
    }

    #[test]
    fn swap_and_exports_are_told() {
        let host = host();
        let area = host.write("swap file", "");
        host.loop_over("loop0", (7, 0), &area, (0, 0));
        let name = area.to_str().unwrap().replace(' ', "\\040");
        host.write("proc/swaps", &format!("Filename Type Size Used Priority\n{name} file 1 0 -2\n"));
        check(&host, &[(7, 0)], &[&format!("{area:?} is in use as swap")]);
        host.write("proc/swaps", "");
        for (attribute, by) in [
            ("nvmet/subsystems/nqn/namespaces/1/device_path", "NVMe target"),
            ("target/core/fileio_0/disk/udev_path", "SCSI target"),
        ] {
            let attribute = host.write(&format!("sys/kernel/config/{attribute}"), area.to_str().unwrap());
            check(&host, &[(7, 0)], &[&format!("this host's {by} exports {area:?}")]);
            fs::remove_file(attribute).unwrap();
        }
    }

    #[test]
    fn a_disk_below_the_hosts_own_file_systems_is_told_and_a_neighbour_is_not() {
        let host = host();
        host.stacked("dm-0", (254, 0), &["sda1"]);
        let told = |number: Number| -> Vec<String> {
            let found = host_file_systems(&host.topology(), &host.storage(number));
            found.iter().map(ToString::to_string).collect()
        };
        host.mounts(&[
            ("254:0", "/", "ext4", "/dev/mapper/root"),
            ("254:0", "/srv", "ext4", "/dev/mapper/root"),
        ]);
        for number in [DISK, PART, (254, 0)] {
            assert_eq!(told(number), ["it holds this host's \"/\""], "{number:?}");
        }
        assert!(told(OTHER).is_empty());
        // In a container: what the first process has mounted counts as well.
        host.mounts(&[("0:30", "/", "overlay", "overlay")]);
        assert!(told(DISK).is_empty());
        host.mounts_of("1", &[("8:1", "/boot", "ext4", "/dev/sda1")]);
        assert_eq!(told(DISK), ["it holds this host's \"/boot\""]);
    }
}
