//! Who uses a disk: mounts in every mount namespace that can be seen, and swap.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

use super::identity::{StorageIdentity, identify, whole_disk};
use super::refusal::Refusal;

/// Every mount of the device, or of a partition of it, that some process sees.
pub(crate) fn mounts(storage: StorageIdentity) -> Vec<Refusal> {
    let StorageIdentity::Device { .. } = storage else { return Vec::new() };
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        // One process of each mount namespace is enough.
        let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/mnt")) else { continue };
        if !seen.insert(namespace) {
            continue;
        }
        let Ok(table) = fs::read_to_string(format!("/proc/{pid}/mountinfo")) else { continue };
        found.extend(table.lines().filter_map(|line| mount_of(line, storage, pid)));
    }
    found
}

/// `proc_pid_mountinfo(5)`: field 3 is major:minor, field 5 the mount point.
fn mount_of(line: &str, storage: StorageIdentity, pid: u32) -> Option<Refusal> {
    let mut fields = line.split(' ');
    let device = fields.nth(2)?;
    let mount_point = fields.nth(1)?.to_owned();
    let (major, minor) = device.split_once(':')?;
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    let mounted = StorageIdentity::Device { major, minor };
    let uses = mounted == storage || whole_disk(major, minor) == Some(storage);
    uses.then(|| Refusal::Mounted { device: device.to_owned(), mount_point, pid })
}

/// The swap area that lies on the disk or is the file, if there is one.
pub(crate) fn swap(storage: StorageIdentity) -> Option<Refusal> {
    let table = fs::read_to_string("/proc/swaps").ok()?;
    let paths = table.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    paths.map(PathBuf::from).find(|path| is_on(path, storage)).map(|path| Refusal::Swap { path })
}

fn is_on(path: &PathBuf, storage: StorageIdentity) -> bool {
    fs::metadata(path)
        .ok()
        .and_then(|metadata| identify(&metadata))
        .is_some_and(|swap| swap.overlaps(storage))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_device_number_and_by_no_other() {
        let line = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw";
        let disk = |major, minor| StorageIdentity::Device { major, minor };
        let Some(Refusal::Mounted { device, mount_point, pid }) = mount_of(line, disk(98, 0), 7) else {
            panic!("the mount is found");
        };
        assert_eq!((device.as_str(), mount_point.as_str(), pid), ("98:0", "/mnt2", 7));
        assert!(mount_of(line, disk(98, 1), 7).is_none());
        assert!(mount_of("", disk(98, 0), 7).is_none());
    }
}
