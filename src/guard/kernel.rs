//! Where the kernel shows what it knows: `/proc`, `/sys` and `/dev`, or trees that a test made.

use std::fs;
use std::path::{Path, PathBuf};

/// The major and minor number of a block device.
pub(super) type Number = (u32, u32);

/// The roots of the kernel's own file systems.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    pub(super) proc: PathBuf,
    pub(super) sys: PathBuf,
    pub(super) dev: PathBuf,
    /// What the run touches anyway: on the file systems of these paths it may wait for a server. A path elsewhere
    /// on such a file system counts as not there, and a loop device over it as one that cannot be told.
    pub(super) near: Vec<PathBuf>,
}

impl Kernel {
    /// Those of the machine that this runs on, for a run that touches the paths `near`.
    pub(crate) fn of_this_host(near: Vec<PathBuf>) -> Self {
        Self { proc: "/proc".into(), sys: "/sys".into(), dev: "/dev".into(), near }
    }

    /// The sysfs folder of a block device, behind all links.
    pub(super) fn folder(&self, number: Number) -> Option<PathBuf> {
        fs::canonicalize(self.sys.join(format!("dev/block/{}:{}", number.0, number.1))).ok()
    }

    /// The first of these attributes of a device that says anything.
    pub(super) fn attribute(&self, number: Number, names: &[&str]) -> Option<String> {
        let folder = self.folder(number)?;
        names.iter().find_map(|name| line(&folder.join(name)))
    }

    /// The device's serial number, where its driver tells it.
    pub(super) fn serial(&self, number: Number) -> Option<String> {
        // virtio-blk, NVMe, SCSI by its unit serial number page.
        self.attribute(number, &["serial", "device/serial"])
    }

    /// The device's World Wide Name, where its driver tells it.
    pub(super) fn wwn(&self, number: Number) -> Option<String> {
        self.attribute(number, &["wwid", "device/wwid"])
    }

    /// What a device keeps when its number goes to another.
    pub(super) fn lasting_id(&self, number: Number) -> Option<String> {
        let of_stack = || self.attribute(number, &["dm/uuid", "md/uuid"]);
        of_stack().or_else(|| self.wwn(number)).or_else(|| self.serial(number))
    }

    /// The number that a `dev` attribute or a line of `mountinfo` says.
    pub(super) fn number(text: &str) -> Option<Number> {
        let (major, minor) = text.trim().split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    }
}

/// What a file of one line says; `None` when it says nothing.
pub(super) fn line(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The number that a file of one line says.
pub(super) fn count(path: &Path) -> Option<u64> {
    line(path)?.parse().ok()
}

/// The names in a folder; none where it cannot be read.
pub(super) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}
