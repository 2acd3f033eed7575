//! Block devices as sysfs shows them.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::identity::{StorageIdentity, device_identity, identify};
use super::kernel::{Kernel, Number, count, line, names};
use super::mounts::Mounts;
use crate::sys::block;

/// A block device as sysfs shows it.
#[derive(Debug)]
pub(super) struct Device {
    /// Its name in `/sys/class/block` and, as a rule, in `/dev`.
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) made_of: MadeOf,
}

/// What the bytes of a device are.
#[derive(Debug)]
pub(super) enum MadeOf {
    /// Its own.
    Itself,
    /// A disk's that has another number as well: two paths to one unit.
    Twin(Number),
    /// A piece of a disk; `None` where it cannot be told which, so that it counts as all of it.
    Partition { disk: Number, place: Option<(u64, u64)> },
    /// A file's, or another device's.
    Loop(Backing),
    /// Other devices', in an order that only their driver knows.
    Others { devices: Vec<Number>, what: String },
}

/// What a loop device is over.
#[derive(Debug)]
pub(super) struct Backing {
    /// As the kernel names it; another mount namespace may know it by another name.
    pub(super) path: PathBuf,
    /// `None` when it cannot be told.
    pub(super) storage: Option<StorageIdentity>,
    pub(super) offset: u64,
    /// 0 for no limit.
    pub(super) limit: u64,
}

/// Reads what the sysfs folder of a device says.
pub(super) fn read_device(
    (kernel, mounts): (&Kernel, &Mounts),
    folder: &Path,
    (name, number): (String, Number),
) -> Device {
    const SECTOR: u64 = 512;
    let size = count(&folder.join("size")).unwrap_or(0).saturating_mul(SECTOR);
    let number_in = |folder: &Path| Kernel::number(&line(&folder.join("dev"))?);
    let disk = || folder.join("partition").exists().then(|| number_in(folder.parent()?)).flatten();
    let made_of = if let Some(disk) = disk() {
        let bytes = |name: &str| count(&folder.join(name))?.checked_mul(SECTOR);
        MadeOf::Partition { disk, place: bytes("start").zip(bytes("size")) }
    } else if let Some(path) = backing_path(folder) {
        MadeOf::Loop(read_backing((kernel, mounts), folder, (&name, number), path))
    } else {
        let slaves = folder.join("slaves");
        let devices: Vec<_> =
            names(&slaves).iter().filter_map(|name| number_in(&slaves.join(name))).collect();
        match devices.is_empty() {
            true => MadeOf::Itself,
            false => MadeOf::Others { devices, what: kind_of_stack(folder, &name) },
        }
    };
    Device { name, size, made_of }
}

/// `None` of what is no loop device, or is over nothing; a path may hold any byte, and be too long to be told.
fn backing_path(folder: &Path) -> Option<PathBuf> {
    let attribute = folder.join("loop/backing_file");
    let mut path = attribute.exists().then(|| fs::read(attribute).unwrap_or_default())?;
    path.pop_if(|byte| *byte == b'\n');
    Some(OsString::from_vec(path).into())
}

/// The kernel's numbers of what lies below are surer than its path, which is that of another mount namespace.
fn read_backing(
    (kernel, mounts): (&Kernel, &Mounts),
    folder: &Path,
    (name, number): (&str, Number),
    path: PathBuf,
) -> Backing {
    // Even the kernel's own answer may have to come from the server of the file's file system.
    let at_once = path.as_os_str().is_empty() || mounts.answers_at_once(&path);
    let told = at_once.then(|| block::loop_backing(&kernel.dev.join(name), number).ok()).flatten();
    let storage = told.map(|told| match told.block_device {
        Some(device) => device_identity(device),
        None => StorageIdentity::File { device: told.device, inode: told.inode },
    });
    let look = || identify(&fs::metadata(&path).ok()?);
    let by_path = || at_once.then(look).flatten();
    let attribute = |name: &str| count(&folder.join("loop").join(name)).unwrap_or(0);
    Backing {
        storage: storage.or_else(by_path),
        offset: attribute("offset"),
        limit: attribute("sizelimit"),
        path,
    }
}

fn kind_of_stack(folder: &Path, name: &str) -> String {
    match (line(&folder.join("dm/name")), line(&folder.join("md/level"))) {
        (Some(volume), _) => format!("the device-mapper volume {volume:?}"),
        (_, Some(level)) => format!("the {level} array {name}"),
        _ => format!("the device {name}"),
    }
}
