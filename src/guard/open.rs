//! Opens a disk so that nobody else is in it: the inode that was looked at, whatever its name is now.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};

use super::aliases;
use super::claim::{Access, Held, Subject};
use super::refusal::Refusal;
use super::topology::Topology;
use crate::range::ByteRange;
use crate::request::{Placement, TargetFormat};
use crate::sys::aligned::AlignedBuffer;
use crate::sys::{beside, block, store};

/// Opens a block device exclusively; its size in bytes comes with it.
pub(super) fn device(
    subject: &Subject<'_>,
    looked_at: &File,
    access: Access,
) -> Result<(Held, u64), Refusal> {
    let mode = match access {
        Access::Look | Access::Hold => OFlags::RDONLY,
        Access::Write => OFlags::RDWR,
    };
    let file = exclusive(looked_at, mode | OFlags::DIRECT)?;
    let cannot_open = |source| Refusal::CannotOpen { source };
    if block::is_read_only(&file).map_err(cannot_open)? {
        return Err(Refusal::ReadOnly);
    }
    let size = block::size(&file).map_err(cannot_open)?;
    let sector_size = block::sector_size(&file).map_err(cannot_open)?;
    if format_of(subject, &file)? == FileFormat::Qcow2 {
        return Err(Refusal::Format { why: "a qcow2 disk is written into a file, and this is a device" });
    }
    Ok((Held::Device { file, sector_size }, size))
}

/// Without O_CREAT, O_EXCL on a block device is the kernel's exclusive claim (open(2)).
fn exclusive(looked_at: &File, mode: OFlags) -> Result<File, Refusal> {
    let flags = mode | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let open = || match reopen(looked_at, flags) {
        Err(rustix::io::Errno::INVAL) => reopen(looked_at, flags - OFlags::DIRECT),
        result => result,
    };
    open().map_err(|error| match error {
        rustix::io::Errno::BUSY => Refusal::Busy { carries: carries(looked_at) },
        rustix::io::Errno::ROFS => Refusal::ReadOnly,
        error => Refusal::CannotOpen { source: error.into() },
    })
}

/// What keeps an exclusive device to itself is known by its label as a rule.
fn carries(looked_at: &File) -> Option<&'static str> {
    let file = reopen(looked_at, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK).ok()?;
    let size = block::size(&file).ok()?;
    let found = crate::layout::probe(&super::bytes::OpenBytes { file: &file, size }).ok()?;
    found.first().map(|found| found.kind)
}

/// Opens a regular file, and the folder in which its name really stands; its size comes with it.
pub(super) fn file(
    (topology, subject): (&Topology, &Subject<'_>),
    (looked_at, metadata): (&File, &Metadata),
    access: Access,
) -> Result<(Held, u64), Refusal> {
    let flags = match access {
        Access::Look | Access::Hold => OFlags::RDONLY,
        Access::Write => OFlags::RDWR,
    };
    refuse_attributes(subject, looked_at, metadata)?;
    // Asked for a plan as well, which opens nothing for writing.
    let path = format!("/proc/self/fd/{}", looked_at.as_raw_fd());
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).map_err(cannot_write)?;
    let file = reopen(looked_at, flags | OFlags::CLOEXEC | OFlags::NONBLOCK).map_err(cannot_write)?;
    let format = format_of(subject, &file)?;
    if format == FileFormat::Qcow2 && subject.placement == Placement::InPlace {
        return Err(Refusal::Qcow2InPlace);
    }
    // A link is followed once, here; from now on the name is one in the folder that really holds it.
    let (folder, name) = folder_and_name(&real_path(looked_at)?)?;
    if subject.placement == Placement::Replace {
        if topology.mounts.of_file(&real_path(looked_at)?).is_some() {
            return Err(Refusal::BindMounted);
        }
        check_folder((topology, subject), &folder, &name)?;
    }
    let inside = match format {
        FileFormat::Raw => None,
        FileFormat::Qcow2 => {
            let inside = (subject.look_inside)(&file, subject.path);
            Some(inside.map_err(|source| Refusal::Qcow2 { source })?)
        }
    };
    let size = inside.as_ref().map_or(metadata.len(), |inside| inside.size);
    Ok((Held::File { file, folder, name, inside }, size))
}

/// Opens a disk to be read, a device exclusively; whether it could be written does not matter.
pub(super) fn to_read(looked_at: &File, metadata: &Metadata) -> Result<(Held, u64), Refusal> {
    let cannot_read = |source| Refusal::CannotRead { source };
    if metadata.is_file() {
        let file = reopen(looked_at, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK);
        let file = file.map_err(|error| cannot_read(error.into()))?;
        return Ok((Held::ReadOnly { file, sector_size: None }, metadata.len()));
    }
    // Not past the page cache, for images are read in pieces of any length; the aligned ones go past it all the same.
    // What the cache holds from before may be older than what lies there, if another host or a partition's own node
    // has written it.
    let file = exclusive(looked_at, OFlags::RDONLY)?;
    store::drop_pages(&file, ByteRange::new(0, 0)).map_err(cannot_read)?;
    let size = block::size(&file).map_err(cannot_read)?;
    let sector_size = Some(block::sector_size(&file).map_err(cannot_read)?);
    Ok((Held::ReadOnly { file, sector_size }, size))
}

fn cannot_write(error: rustix::io::Errno) -> Refusal {
    match error {
        rustix::io::Errno::ROFS => Refusal::ReadOnly,
        error => Refusal::CannotOpen { source: error.into() },
    }
}

fn refuse_attributes(subject: &Subject<'_>, looked_at: &File, metadata: &Metadata) -> Result<(), Refusal> {
    use rustix::fs::{StatxAttributes, StatxFlags};
    let empty_path = AtFlags::EMPTY_PATH;
    let attributes = rustix::fs::statx(looked_at, c"", empty_path, StatxFlags::BASIC_STATS)
        .map_or(StatxAttributes::empty(), |statx| statx.stx_attributes);
    if attributes.intersects(StatxAttributes::IMMUTABLE | StatxAttributes::APPEND) {
        return Err(Refusal::Immutable);
    }
    if subject.placement == Placement::InPlace {
        return Ok(());
    }
    if metadata.nlink() > 1 {
        return Err(Refusal::HardLinked { links: metadata.nlink() });
    }
    if attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(Refusal::BindMounted);
    }
    Ok(())
}

/// What a target's file is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FileFormat {
    /// The disk itself.
    Raw,
    /// A file that describes the disk.
    Qcow2,
}

/// Whether the disk could turn out to be a qcow2 file.
pub(super) fn may_be_qcow2(subject: &Subject<'_>) -> bool {
    match subject.format {
        TargetFormat::Raw => false,
        TargetFormat::Qcow2 => true,
        TargetFormat::Auto => named_qcow2(subject.path),
    }
}

fn named_qcow2(path: &Path) -> bool {
    path.extension().is_some_and(|name| name.eq_ignore_ascii_case("qcow2"))
}

/// A target's name and content decide together, because a guest may have written the content.
fn format_of(subject: &Subject<'_>, file: &File) -> Result<FileFormat, Refusal> {
    if subject.format == TargetFormat::Raw {
        return Ok(FileFormat::Raw);
    }
    let mut head = AlignedBuffer::zeroed(4096).map_err(|source| Refusal::CannotOpen { source })?;
    let count = store::read_up_to(file, &mut head, 0).map_err(|source| Refusal::CannotOpen { source })?;
    let holds_qcow2 = head[..count].starts_with(b"QFI\xfb");
    match (subject.format, named_qcow2(subject.path), holds_qcow2) {
        (TargetFormat::Auto, false, false) => Ok(FileFormat::Raw),
        (TargetFormat::Qcow2, _, true) | (_, true, true) => Ok(FileFormat::Qcow2),
        (TargetFormat::Qcow2, _, false) => {
            Err(Refusal::Format { why: "it is said to be qcow2 and its content does not begin so" })
        }
        (_, true, false) => Err(Refusal::Format { why: "its name says qcow2 and its content does not" }),
        (_, false, true) => {
            Err(Refusal::Format { why: "its content begins like qcow2 and its name does not say so" })
        }
        (TargetFormat::Raw, ..) => unreachable!("it is not looked at"),
    }
}

/// A name under which nothing lies, in a folder where a file can be made.
pub(super) fn new_file(topology: &Topology, subject: &Subject<'_>) -> Result<Held, Refusal> {
    let path = subject.path;
    // A dangling link would make a file somewhere else than its name says.
    if path.symlink_metadata().is_ok() {
        return Err(Refusal::WrongKind { found: "symbolic link that leads nowhere" });
    }
    let (folder, name) = folder_and_name(path)?;
    let real = real_path(&File::from(folder.try_clone().map_err(|source| Refusal::Folder { source })?))?;
    for system in ["/dev", "/proc", "/sys"] {
        if real.starts_with(system) {
            return Err(Refusal::SystemFolder { folder: system });
        }
    }
    check_folder((topology, subject), &folder, &name)?;
    // A new file changes the disk on which its folder lies.
    if let Some(refusal) = aliases::must_survive(topology, subject, &real) {
        return Err(refusal);
    }
    Ok(Held::NewFile { folder, name })
}

/// Whether a new file can be made in the folder, and its temporary name is that of nothing that must survive.
fn check_folder(
    (topology, subject): (&Topology, &Subject<'_>),
    folder: &OwnedFd,
    name: &OsStr,
) -> Result<(), Refusal> {
    let writable = rustix::fs::accessat(folder, ".", rustix::fs::Access::WRITE_OK, AtFlags::empty());
    writable.map_err(|error| match error {
        rustix::io::Errno::ROFS => Refusal::ReadOnly,
        error => Refusal::Folder { source: error.into() },
    })?;
    let inside = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    let of_seed = |seed: &Path| Some(seed.with_file_name(beside::name_beside(seed.file_name()?)));
    let temporary = [Some(inside.join(beside::name_beside(name))), subject.seed.and_then(of_seed)];
    temporary
        .into_iter()
        .flatten()
        .find_map(|path| aliases::must_survive(topology, subject, &path))
        .map_or(Ok(()), Err)
}

fn folder_and_name(path: &Path) -> Result<(OwnedFd, OsString), Refusal> {
    let no_name = || Refusal::WrongKind { found: "folder" };
    let name = path.file_name().ok_or_else(no_name)?.to_owned();
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(parent, flags, Mode::empty());
    Ok((folder.map_err(|error| Refusal::Folder { source: error.into() })?, name))
}

/// Opens what `file` already is, with other rights: the inode that was looked at, whatever its name is now.
fn reopen(file: &File, flags: OFlags) -> rustix::io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::open(path, flags, Mode::empty()).map(File::from)
}

/// Where an open file really lies.
pub(super) fn real_path(file: &File) -> Result<PathBuf, Refusal> {
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .map_err(|source| Refusal::CannotOpen { source })
}

/// What lies there, when it is no disk.
pub(super) fn kind_name(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    if kind.is_dir() {
        "folder"
    } else if kind.is_char_device() {
        "character device"
    } else if kind.is_fifo() {
        "FIFO"
    } else {
        "socket"
    }
}
