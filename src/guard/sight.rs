//! What the guard could not look at: said in plan and report, and a refusal where full sight is demanded.

use std::fs;

use serde::{Serialize, Serializer};

use super::devices::MadeOf;
use super::kernel::{Kernel, names};
use super::topology::Topology;

/// A part of the host that could not be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SightLimit {
    /// Processes of other users do not show their open files.
    Processes {
        /// How many.
        count: usize,
    },
    /// `/proc` is mounted so that other users' processes are not in it.
    HiddenProcesses,
    /// This program runs in a process namespace of its own, and sees no process outside of it.
    ProcessNamespace,
    /// `/proc` or `/sys` is not there.
    NoKernelTables {
        /// Which.
        folder: &'static str,
    },
    /// It cannot be told what a loop device is over.
    LoopDevice {
        /// Its name.
        name: String,
    },
    /// The file or device below the target cannot be held.
    NotHeld {
        /// Its name, as far as it is known.
        path: String,
    },
    /// A data disk's content cannot be read.
    DataDisk {
        /// As it was named.
        path: String,
        /// What the system said.
        why: String,
    },
    /// The file system knows no locks, so that no hypervisor is seen by them or kept out.
    NoLocks {
        /// The file or device.
        path: String,
    },
    /// The storage is the caller's own, and only its promise is known.
    Promised,
    /// Other hosts may reach the disk, and are never seen.
    SharedTransport {
        /// How they reach it.
        by: &'static str,
    },
}

impl std::fmt::Display for SightLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Processes { count } => {
                write!(f, "the open files of {count} processes of other users cannot be looked at")
            }
            Self::HiddenProcesses => f.write_str("/proc hides the processes of other users (hidepid)"),
            Self::ProcessNamespace => {
                f.write_str("processes outside of this container's process namespace cannot be seen")
            }
            Self::NoKernelTables { folder } => write!(f, "{folder} cannot be read"),
            Self::LoopDevice { name } => write!(f, "it cannot be told what {name} is over"),
            Self::NotHeld { path } => write!(f, "{path:?} below the target cannot be opened and held"),
            Self::DataDisk { path, why } => {
                write!(f, "the content of the data disk {path:?} cannot be read ({why})")
            }
            Self::NoLocks { path } => {
                write!(f, "the file system of {path:?} has no locks by which virtual machines are seen")
            }
            Self::Promised => f.write_str("the storage is the caller's own: nobody has looked at it"),
            Self::SharedTransport { by } => {
                write!(f, "other hosts may reach the disk by {by}, and cannot be seen from here")
            }
        }
    }
}

impl Serialize for SightLimit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How much of the host could be looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Sight {
    /// Whether nothing was hidden.
    pub full: bool,
    /// What was hidden, each as a sentence.
    pub limits: Vec<SightLimit>,
}

impl Sight {
    /// What follows from these limits.
    pub(crate) fn of(limits: Vec<SightLimit>) -> Self {
        Self { full: limits.is_empty(), limits }
    }
}

/// What the kernel's own tables hide from this process.
pub(super) fn limits(topology: &Topology) -> Vec<SightLimit> {
    let kernel = &topology.kernel;
    let mut limits = Vec::new();
    for (folder, there) in
        [("/proc", kernel.proc.join("self/mountinfo")), ("/sys", kernel.sys.join("class/block"))]
    {
        if fs::metadata(there).is_err() {
            limits.push(SightLimit::NoKernelTables { folder });
        }
    }
    if is_confined(kernel) {
        limits.push(SightLimit::ProcessNamespace);
    }
    let hides = |mount: &super::mounts::Mount| {
        mount.kind == "proc"
            && mount.options.split(',').any(|option| {
                option.strip_prefix("hidepid=").is_some_and(|value| !matches!(value, "0" | "off"))
            })
    };
    let sees_others = fs::metadata(kernel.proc.join("1")).is_ok() && rustix::process::geteuid().is_root();
    if !sees_others && topology.mounts.at(&["/proc"]).any(hides) {
        limits.push(SightLimit::HiddenProcesses);
    }
    let unknown = topology.devices.values().filter(|device| match &device.made_of {
        MadeOf::Loop(backing) => backing.storage.is_none(),
        _ => false,
    });
    limits.extend(unknown.map(|device| SightLimit::LoopDevice { name: device.name.clone() }));
    limits
}

/// The first process namespace has a fixed number (`PROC_PID_INIT_INO` of linux/proc_ns.h).
fn is_confined(kernel: &Kernel) -> bool {
    const FIRST: &str = "pid:[4026531836]";
    !fs::read_link(kernel.proc.join("self/ns/pid")).is_ok_and(|name| name.as_os_str() == FIRST)
}

/// How other hosts may reach a device of that number, as far as its place in sysfs tells.
pub(super) fn shared_transport(kernel: &Kernel, number: super::kernel::Number) -> Option<&'static str> {
    let folder = kernel.folder(number)?;
    let text = folder.to_string_lossy().into_owned();
    let name = folder.file_name()?.to_string_lossy().into_owned();
    let transport = super::kernel::line(&folder.join("device/transport"));
    // Under native multipath the disk hangs below a subsystem, which has its controllers beside it.
    let paths = names(&folder.join("device")).into_iter().filter(|name| name.starts_with("nvme"));
    let paths =
        paths.filter_map(|name| super::kernel::line(&folder.join("device").join(name).join("transport")));
    let mut transports = transport.into_iter().chain(paths);
    let is_remote = |transport: String| matches!(transport.as_str(), "tcp" | "rdma" | "fc");
    match () {
        () if text.contains("/session") && text.contains("/target") => Some("iSCSI"),
        () if text.contains("/rport-") => Some("Fibre Channel"),
        () if transports.any(is_remote) => Some("NVMe over Fabrics"),
        () if name.starts_with("rbd") => Some("Ceph RBD"),
        () if name.starts_with("drbd") => Some("DRBD"),
        () if name.starts_with("nbd") => Some("NBD"),
        () => None,
    }
}
