//! A guard rule's "no", with its evidence.

use std::path::PathBuf;

use super::processes::OpenFor;
use super::sight::SightLimit;
use crate::error::{Error, ErrorKind};

/// A guard rule's "no", with its evidence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The path is not one of a block device or a regular file.
    #[error("it is a {found}, and a system disk is a block device or a file")]
    WrongKind {
        /// What lies there.
        found: &'static str,
    },
    /// A new file would lie where the kernel keeps its own.
    #[error("no such device, and a new file is not made under {folder}")]
    SystemFolder {
        /// `/dev`, `/proc` or `/sys`.
        folder: &'static str,
    },
    /// A file that the run writes would lie where the kernel keeps its own.
    #[error("a new file is not made under {folder}")]
    FileInSystemFolder {
        /// `/dev`, `/proc` or `/sys`.
        folder: &'static str,
    },
    /// The folder of a new file is not there.
    #[error("its folder cannot be used")]
    Folder {
        /// What the system said.
        source: std::io::Error,
    },
    /// The operating system does not open it.
    #[error("it cannot be opened")]
    CannotOpen {
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not there, or the operating system does not let it be read.
    #[error("it cannot be read")]
    CannotRead {
        /// What the system said.
        source: std::io::Error,
    },
    /// The device or the file is read-only.
    #[error("it is read-only")]
    ReadOnly,
    /// The file is immutable or append-only (`chattr +i`, `+a`).
    #[error("the file is immutable or append-only")]
    Immutable,
    /// The file has other names, which would keep the old disk.
    #[error("the file has {links} names, and replacing it would leave the others with the old disk")]
    HardLinked {
        /// How many.
        links: u64,
    },
    /// The path is a mount point of its own, which cannot be exchanged.
    #[error("the file is a bind mount")]
    BindMounted,
    /// Name and content do not agree on raw or qcow2, or it is qcow2 where it cannot be.
    #[error("{why}")]
    Format {
        /// Which of the two says what.
        why: &'static str,
    },
    /// A qcow2 file was to be written into.
    #[error("a qcow2 disk is replaced whole, and never written in place")]
    Qcow2InPlace,
    /// The qcow2 file does not say what its disk is.
    #[error("its qcow2 header cannot be used")]
    Qcow2 {
        /// What is wrong with it.
        source: std::io::Error,
    },
    /// Another disk reads from it what it does not hold itself.
    #[error("{overlay:?} is built on it: that disk would change, too")]
    BackingOf {
        /// The disk that names it as its backing file.
        overlay: PathBuf,
    },
    /// It is mounted.
    #[error("{device} is mounted on {mount_point:?}{}", in_whose_namespace(by.as_ref()))]
    Mounted {
        /// The device's name.
        device: String,
        /// Where.
        mount_point: PathBuf,
        /// A process that sees the mount, when this one does not.
        by: Option<Process>,
    },
    /// A process has it open.
    #[error("{process} has {path:?} open for {access}")]
    OpenedBy {
        /// Who.
        process: Process,
        /// Whether it may write.
        access: OpenFor,
        /// The name under which it was opened.
        path: PathBuf,
    },
    /// A loop device makes its bytes a device of another name.
    #[error("the loop device {device} lies over it")]
    LoopOver {
        /// The loop device's name.
        device: String,
    },
    /// Another device, or a pool, is built on it.
    #[error("{what} is built on it")]
    BuiltUpon {
        /// What is built.
        what: String,
    },
    /// The kernel serves it to other machines.
    #[error("this host's {by} exports {path:?}")]
    Exported {
        /// Which server.
        by: &'static str,
        /// What it exports.
        path: PathBuf,
    },
    /// Not everything could be looked at, and that was demanded.
    #[error("not everything could be looked at: {limit}")]
    Unseen {
        /// What could not.
        limit: SightLimit,
    },
    /// It is a swap device or file.
    #[error("{path:?} is in use as swap")]
    Swap {
        /// As `/proc/swaps` names it.
        path: PathBuf,
    },
    /// The kernel does not give it exclusively.
    #[error("the kernel gives it to nobody else: it is in use{}", what_lies_there(*carries))]
    Busy {
        /// What its head or its end says that it is, such as `zfs_member`.
        carries: Option<&'static str>,
    },
    /// Another program has locked it.
    #[error("another program holds a lock on it: {who}")]
    Locked {
        /// Which kind of program, as far as the lock tells.
        who: &'static str,
    },
    /// Another run of this program has it.
    #[error("another run on this disk is under way (lock {path:?})")]
    AnotherRun {
        /// The lock file in the state folder.
        path: PathBuf,
    },
    /// The state folder's lock cannot be taken.
    #[error("the lock of this disk cannot be taken in the state folder")]
    StateFolder {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is one of the disks that must survive, or shares bytes with one.
    #[error("it {relation} the data disk {path:?}")]
    DataDisk {
        /// How the two belong together.
        relation: Relation,
        /// The data disk as it was named.
        path: PathBuf,
    },
    /// What lies below it is not what was examined.
    #[error("while it was examined, another disk took its place")]
    Moved,
    /// It cannot be told what it really is, so that it could be a disk that must survive.
    #[error("it cannot be told what {device} really is")]
    Untold {
        /// The device at which its trace ends.
        device: String,
    },
    /// It keeps this host running.
    #[error("it holds this host's {place:?}")]
    HostDisk {
        /// Where its file system is mounted.
        place: PathBuf,
    },
    /// Something that the run itself needs lies on it.
    #[error("{what} {path:?} lies on it")]
    Holds {
        /// What it is.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
    },
    /// Something that the run writes would be written to a data disk.
    #[error("{what} lies on the data disk {data_disk:?}")]
    OnDataDisk {
        /// What it is.
        what: &'static str,
        /// The data disk as it was named.
        data_disk: PathBuf,
    },
    /// A data disk cannot be looked at, so that nothing can be proved about it.
    #[error("the data disk {path:?} cannot be examined")]
    DataDiskUnknown {
        /// The data disk as it was named.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A data disk is not what it was before the run.
    #[error("the data disk is not what it was when the run began: {what}")]
    DataDiskChanged {
        /// The data disk as it was named.
        path: PathBuf,
        /// What differs.
        what: String,
    },
    /// It is the image or one of its backing files.
    #[error("it {relation} {path:?}, which the image is read from")]
    Image {
        /// How the two belong together.
        relation: Relation,
        /// The image's or backing file's path.
        path: PathBuf,
    },
    /// Somebody may be writing the image.
    #[error("{process} has {path:?} open for writing")]
    ImageWritten {
        /// Who.
        process: Process,
        /// The name under which it was opened.
        path: PathBuf,
    },
    /// The image's own file system is mounted so that it can be written.
    #[error("the image's disk is mounted on {mount_point:?}, and can be written there")]
    ImageMounted {
        /// Where.
        mount_point: PathBuf,
    },
    /// A file that the run writes would change the disk that it is made from, or lie on it.
    #[error("{what} {path:?} would be written to the disk that it is made from")]
    OnItsSource {
        /// What it is.
        what: &'static str,
        /// Where it would be.
        path: PathBuf,
    },
    /// What lies at the place of a new file is no plain file.
    #[error("a {found} lies there, and a new file takes the place of a plain file only")]
    NoPlainFile {
        /// What lies there.
        found: &'static str,
    },
    /// It is the file that the seed would replace, or the other way round.
    #[error("it is the seed {path:?}")]
    Seed {
        /// The seed's path.
        path: PathBuf,
    },
    /// The seed would replace a file that must survive.
    #[error("the seed would replace {what}")]
    SeedReplaces {
        /// The image, one of its backing files, or a data disk.
        what: &'static str,
    },
    /// It is another disk than was expected.
    #[error("its {what} is {found}, and {expected} was expected")]
    Expected {
        /// Which property.
        what: &'static str,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
}

fn in_whose_namespace(by: Option<&Process>) -> String {
    by.map(|by| format!(", in the mount namespace of {by}")).unwrap_or_default()
}

fn what_lies_there(carries: Option<&str>) -> String {
    carries.map(|kind| format!(" ({kind} lies on it)")).unwrap_or_default()
}

/// A process, as evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its name as the kernel knows it: 15 bytes at most, and whatever it likes.
    pub command: String,
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pid {} ({:?})", self.pid, self.command)
    }
}

/// How two names belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Relation {
    /// Both are one storage.
    Same,
    /// One lies on the other, or holds a part of it.
    Shares,
}

impl std::fmt::Display for Relation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Same => "is",
            Self::Shares => "shares bytes with",
        })
    }
}

impl Refusal {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Mounted { .. }
            | Self::OpenedBy { .. }
            | Self::LoopOver { .. }
            | Self::BuiltUpon { .. }
            | Self::Exported { .. }
            | Self::Unseen { .. }
            | Self::Swap { .. }
            | Self::Busy { .. }
            | Self::Locked { .. }
            | Self::AnotherRun { .. } => ErrorKind::InUse,
            Self::DataDiskChanged { .. } => ErrorKind::DataDiskChanged,
            Self::ImageWritten { .. } | Self::ImageMounted { .. } => ErrorKind::Image,
            Self::StateFolder { .. } => ErrorKind::Usage,
            Self::DataDisk { .. }
            | Self::DataDiskUnknown { .. }
            | Self::OnDataDisk { .. }
            | Self::OnItsSource { .. }
            | Self::Moved
            | Self::Untold { .. }
            | Self::HostDisk { .. }
            | Self::Holds { .. }
            | Self::Image { .. }
            | Self::BackingOf { .. }
            | Self::Seed { .. }
            | Self::SeedReplaces { .. }
            | Self::Expected { .. } => ErrorKind::Identity,
            _ => ErrorKind::TargetUnusable,
        }
    }

    fn hint(&self) -> &'static str {
        match self {
            Self::WrongKind { .. } | Self::SystemFolder { .. } => {
                "name the block device or the file that the machine uses as its system disk"
            }
            Self::FileInSystemFolder { .. } => "name a file in another folder",
            Self::Folder { .. } => "make the folder first, or correct the path",
            Self::CannotRead { source } if source.kind() == std::io::ErrorKind::NotFound => {
                "name the block device or the file that the machine uses as its system disk"
            }
            Self::CannotRead { .. } => "run as a user that may read the disk",
            Self::CannotOpen { source } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                "run as a user that may write the disk and its folder"
            }
            Self::CannotOpen { .. } => "look into the kernel's log, and at the limits of this process",
            Self::ReadOnly => {
                "make it writable (blockdev --setrw, chmod, or mount its file system rw) if it really is the system \
                 disk"
            }
            Self::Immutable => "chattr -i -a the file first",
            Self::HardLinked { .. } | Self::BindMounted => {
                "--in-place writes into the file, under all its names"
            }
            Self::Format { .. } => {
                "say --target-format raw or qcow2, as the machine uses it; a qcow2 disk is a file and replaced whole"
            }
            Self::Qcow2InPlace => "leave --in-place out",
            Self::Qcow2 { .. } => {
                "remove the file if the machine can do without it, and make a new one: --target-format qcow2 --size \
                 SIZE"
            }
            Self::BackingOf { .. } => {
                "name the machine's own disk; if nothing needs that overlay any more, remove it first"
            }
            Self::Untold { .. } => "run as root on the host itself, with its /sys and /dev",
            Self::Mounted { by: None, .. } => {
                "make sure that this is the disk you meant; then stop the instance, or umount it"
            }
            Self::Mounted { .. } => {
                "make sure that this is the disk you meant; nsenter -m -t PID umount … reaches that namespace"
            }
            Self::Swap { .. } => "swapoff it first, if it really is the system disk",
            Self::OpenedBy { access: OpenFor::Writing, .. } => "stop the instance, or wait for that program",
            Self::OpenedBy { access: OpenFor::Reading, .. } => {
                "stop the instance, or wait for that program; a reader that is known to do no harm is excused by \
                 --allow-open-reader PID"
            }
            Self::LoopOver { .. } => {
                "make sure that this is the disk you meant; then name the loop device, or losetup --detach it"
            }
            Self::BuiltUpon { .. } => {
                "make sure that this is the disk you meant; then name the upper device, or deactivate it"
            }
            Self::Exported { .. } => "take it out of that server's configuration first",
            Self::Unseen { limit: SightLimit::SharedTransport { .. } | SightLimit::Promised } => {
                "nobody here can look there: make sure of it otherwise, and leave --require-full-sight out"
            }
            Self::Unseen { .. } => "run as root on the host itself, or leave --require-full-sight out",
            Self::Busy { .. } => {
                "stop the instance; lsblk and /proc/mounts on this host show who built on it"
            }
            Self::AnotherRun { .. } => "wait for the other run to end",
            Self::Moved => "find out who attached another file or disk, then start again",
            Self::StateFolder { .. } => "name a folder that can be written with --state-dir",
            Self::HostDisk { .. } => "this disk keeps the host running: correct the system disk's path",
            Self::Holds { .. } => "put it somewhere else: the disk's content will be lost",
            Self::ImageWritten { .. } | Self::ImageMounted { .. } => {
                "wait until nobody writes the image, or make a copy of it"
            }
            Self::Locked { .. } => "stop the instance, or wait for the other program",
            Self::DataDisk { .. } => "data disks are never written; correct the system disk's path",
            Self::OnItsSource { .. } => "name a file on another disk",
            Self::NoPlainFile { .. } => "name a file of its own",
            Self::OnDataDisk { .. } => "data disks are never written: put it somewhere else",
            Self::DataDiskUnknown { .. } => {
                "correct the data disk's path, so that it can be told apart from the system disk"
            }
            Self::DataDiskChanged { .. } => "find out what wrote to it",
            Self::Image { .. } => "name another target: the image must survive",
            Self::Seed { .. } | Self::SeedReplaces { .. } => "give the seed a file of its own",
            Self::Expected { found, .. } if found == "unknown" => {
                "the disk does not tell it: expect something else of it, if it is the right one"
            }
            Self::Expected { .. } => {
                "this is not the disk that was meant: find out which device name it has now"
            }
        }
    }

    /// The refusal as an error about `path`.
    pub(crate) fn about(self, path: &std::path::Path) -> Error {
        let (kind, hint) = (self.kind(), self.hint());
        let path = match &self {
            Self::StateFolder { folder, .. } => folder.clone(),
            _ => path.to_owned(),
        };
        Error::new(kind, self).at_path(path).hint_that(hint)
    }
}
