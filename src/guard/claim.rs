//! `Claim`: the right to write one disk, held from the examination to the end of the run.

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};

use super::identity::{self, StorageIdentity, identify, open_path_only};
use super::locked::{lock_out_hypervisors, lock_out_udev, refuse_other_locks};
use super::refusal::Refusal;
use super::{Promise, in_use};
use crate::layout;
use crate::range::ByteRange;
use crate::request::{Expect, Placement, TargetFormat};
use crate::sys::aligned::AlignedBuffer;
use crate::sys::{beside, block, store};

/// Whether the disk will be written, or only looked at for a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everything is opened read-only.
    Look,
    /// The disk is opened for writing and locked.
    Write,
}

/// What is asked of the guard: may this disk be written?
pub(crate) struct Subject<'a> {
    pub(crate) path: &'a Path,
    pub(crate) format: TargetFormat,
    pub(crate) placement: Placement,
    pub(crate) expect: &'a Expect,
    /// The image and its backing files.
    pub(crate) image_files: &'a [(PathBuf, StorageIdentity)],
    pub(crate) data_disks: &'a [identity::DataDiskEvidence],
    pub(crate) seed: Option<&'a Path>,
}

/// The right to write one disk; only this room makes one, and only a `Claim` becomes a target.
pub(crate) struct Claim {
    path: PathBuf,
    identity: Option<StorageIdentity>,
    size: u64,
    held: Held,
}

/// What a claim holds.
pub(crate) enum Held {
    /// A block device, opened exclusively.
    Device { file: File, sector_size: u32 },
    /// A regular file that exists, and the folder in which its name stands.
    File { file: File, folder: OwnedFd, name: OsString },
    /// A name under which nothing lies yet.
    NewFile { folder: OwnedFd, name: OsString },
    /// A caller's own storage, which nobody here can examine.
    Promised(Promise),
}

impl Claim {
    /// A claim on storage that only the caller knows, with the promise that stands for the examination.
    pub(crate) fn promised(promise: Promise, size: u64) -> Self {
        Self { path: PathBuf::new(), identity: None, size, held: Held::Promised(promise) }
    }

    /// The path as it was named.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The storage's numbers; none for a new file.
    pub(crate) fn identity(&self) -> Option<StorageIdentity> {
        self.identity
    }

    /// The disk's size in bytes as it is now; 0 for a new file.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// What is held, to look at.
    pub(crate) fn held(&self) -> &Held {
        &self.held
    }

    /// Gives up the claim's form; whoever gets the parts keeps them open to the end of the run.
    pub(crate) fn into_parts(self) -> (PathBuf, Held) {
        (self.path, self.held)
    }

    /// Looks once more for anybody who took hold of the disk since the claim was made.
    pub(crate) fn new_holder(identity: Option<StorageIdentity>) -> Option<Refusal> {
        let storage = identity?;
        in_use::mounts(storage).into_iter().next().or_else(|| in_use::swap(storage))
    }
}

/// Examines the disk behind `subject.path` and takes hold of it; every refusal that applies is returned.
pub(crate) fn claim_host_disk(subject: &Subject<'_>, access: Access) -> Result<Claim, Vec<Refusal>> {
    let looked_at = match open_path_only(subject.path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let claim = new_file(subject).map_err(|refusal| vec![refusal])?;
            // A disk that is expected to be a certain one is not a file that does not exist.
            let unexpected = expectations(subject.expect, &claim);
            return if unexpected.is_empty() { Ok(claim) } else { Err(unexpected) };
        }
        Err(source) => return Err(vec![Refusal::CannotOpen { source }]),
    };
    let metadata = looked_at.metadata().map_err(|source| vec![Refusal::CannotOpen { source }])?;
    let Some(identity) = identify(&metadata) else {
        return Err(vec![Refusal::WrongKind { found: kind_name(&metadata) }]);
    };
    let mut refusals = aliases(subject, identity);
    refusals.extend(in_use::mounts(identity));
    refusals.extend(in_use::swap(identity));
    if !refusals.is_empty() {
        return Err(refusals);
    }
    let claim = match identity {
        StorageIdentity::Device { .. } => device(subject, &looked_at, access),
        StorageIdentity::File { .. } => file(subject, &looked_at, &metadata, access),
    };
    let claim = claim.map_err(|refusal| vec![refusal])?;
    // Whoever came between the first look and the lock is seen now, and is kept out from here on.
    let unexpected = expectations(subject.expect, &claim);
    let holder = Claim::new_holder(claim.identity);
    let refusals: Vec<_> = unexpected.into_iter().chain(holder).collect();
    if refusals.is_empty() { Ok(claim) } else { Err(refusals) }
}

/// Whether the seed's path is that of a file which must survive.
pub(crate) fn check_seed_path(
    seed: &Path,
    image_files: &[(PathBuf, StorageIdentity)],
    data_disks: &[identity::DataDiskEvidence],
) -> Result<(), Refusal> {
    let Some(seed) = std::fs::metadata(seed).ok().and_then(|metadata| identify(&metadata)) else {
        return Ok(());
    };
    if image_files.iter().any(|(_, image)| image.overlaps(seed)) {
        return Err(Refusal::SeedReplaces { what: "the image or one of its backing files" });
    }
    if data_disks.iter().any(|disk| disk.identity.overlaps(seed)) {
        return Err(Refusal::SeedReplaces { what: "a data disk" });
    }
    Ok(())
}

/// Whether a new file can be made in the folder, and its temporary name is that of nothing that must survive.
fn check_folder(subject: &Subject<'_>, folder: &OwnedFd, name: &std::ffi::OsStr) -> Result<(), Refusal> {
    let writable = rustix::fs::accessat(folder, ".", rustix::fs::Access::WRITE_OK, AtFlags::empty());
    writable.map_err(|error| match error {
        rustix::io::Errno::ROFS => Refusal::ReadOnly,
        error => Refusal::Folder { source: error.into() },
    })?;
    let inside = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    let of_seed = |seed: &Path| Some(seed.with_file_name(beside::name_beside(seed.file_name()?)));
    let temporary = [Some(inside.join(beside::name_beside(name))), subject.seed.and_then(of_seed)];
    temporary.into_iter().flatten().find_map(|path| must_survive(subject, &path)).map_or(Ok(()), Err)
}

/// Whether a path leads to a file of the image, or to a data disk.
fn must_survive(subject: &Subject<'_>, path: &Path) -> Option<Refusal> {
    let found = std::fs::symlink_metadata(path).ok().and_then(|metadata| identify(&metadata))?;
    let image = subject.image_files.iter().find(|(_, image)| image.overlaps(found));
    let data_disk = subject.data_disks.iter().find(|disk| disk.identity.overlaps(found));
    let data_disk = data_disk.map(|disk| Refusal::DataDisk { path: disk.path.clone() });
    image.map(|(path, _)| Refusal::Image { path: path.clone() }).or(data_disk)
}

fn aliases(subject: &Subject<'_>, target: StorageIdentity) -> Vec<Refusal> {
    let images = subject.image_files.iter().filter(|(_, image)| image.overlaps(target));
    let images = images.map(|(path, _)| Refusal::Image { path: path.clone() });
    let data_disks = subject.data_disks.iter().filter(|disk| disk.identity.overlaps(target));
    let data_disks = data_disks.map(|disk| Refusal::DataDisk { path: disk.path.clone() });
    let seed = subject.seed.filter(|path| {
        let seed = std::fs::metadata(path).ok().and_then(|metadata| identify(&metadata));
        seed.is_some_and(|seed| seed.overlaps(target))
    });
    images.chain(data_disks).chain(seed.map(|path| Refusal::Seed { path: path.to_owned() })).collect()
}

fn device(subject: &Subject<'_>, looked_at: &File, access: Access) -> Result<Claim, Refusal> {
    let mode = match access {
        Access::Look => OFlags::RDONLY,
        Access::Write => OFlags::RDWR,
    };
    // Without O_CREAT, O_EXCL on a block device is the kernel's exclusive claim (open(2)).
    let flags = mode | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match reopen(looked_at, flags | OFlags::DIRECT) {
        Err(rustix::io::Errno::INVAL) => reopen(looked_at, flags),
        result => result,
    };
    let file = file.map_err(|error| match error {
        rustix::io::Errno::BUSY => Refusal::Busy,
        rustix::io::Errno::ROFS => Refusal::ReadOnly,
        error => Refusal::CannotOpen { source: error.into() },
    })?;
    let cannot_open = |source| Refusal::CannotOpen { source };
    if block::is_read_only(&file).map_err(cannot_open)? {
        return Err(Refusal::ReadOnly);
    }
    refuse_other_locks(&file)?;
    if access == Access::Write {
        lock_out_udev(&file)?;
        lock_out_hypervisors(&file)?;
    }
    let size = block::size(&file).map_err(cannot_open)?;
    let sector_size = block::sector_size(&file).map_err(cannot_open)?;
    check_format(subject, &file)?;
    let identity = identify(&file.metadata().map_err(cannot_open)?);
    let held = Held::Device { file, sector_size };
    Ok(Claim { path: subject.path.to_owned(), identity, size, held })
}

fn file(
    subject: &Subject<'_>,
    looked_at: &File,
    metadata: &Metadata,
    access: Access,
) -> Result<Claim, Refusal> {
    let flags = match access {
        Access::Look => OFlags::RDONLY,
        Access::Write => OFlags::RDWR,
    };
    refuse_attributes(subject, looked_at, metadata)?;
    // Asked for a plan as well, which opens nothing for writing.
    let path = format!("/proc/self/fd/{}", looked_at.as_raw_fd());
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).map_err(cannot_write)?;
    let file = reopen(looked_at, flags | OFlags::CLOEXEC | OFlags::NONBLOCK).map_err(cannot_write)?;
    check_format(subject, &file)?;
    refuse_other_locks(&file)?;
    let other = |_| Refusal::Locked { who: "it holds flock(2) on the file" };
    match access {
        Access::Look => {
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).map_err(other)?;
            // Given back at once; when the file closes it would go as well.
            let _ = rustix::fs::flock(&file, FlockOperation::NonBlockingUnlock);
        }
        Access::Write => {
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(other)?;
            lock_out_hypervisors(&file)?;
        }
    }
    // A link is followed once, here; from now on the name is one in the folder that really holds it.
    let (folder, name) = folder_and_name(&real_path(looked_at)?)?;
    if subject.placement == Placement::Replace {
        check_folder(subject, &folder, &name)?;
    }
    let held = Held::File { file, folder, name };
    let (identity, size) = (identify(metadata), metadata.len());
    Ok(Claim { path: subject.path.to_owned(), identity, size, held })
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

/// A target's name and content decide together, because a guest may have written the content.
fn check_format(subject: &Subject<'_>, file: &File) -> Result<(), Refusal> {
    let says_qcow2 = match subject.format {
        TargetFormat::Raw => return Ok(()),
        TargetFormat::Qcow2 => return Err(Refusal::Format { why: "qcow2 system disks are not written yet" }),
        TargetFormat::Auto => subject.path.extension().is_some_and(|name| name.eq_ignore_ascii_case("qcow2")),
    };
    let mut head =
        crate::sys::aligned::AlignedBuffer::zeroed(4096).map_err(|source| Refusal::CannotOpen { source })?;
    let count = store::read_up_to(file, &mut head, 0).map_err(|source| Refusal::CannotOpen { source })?;
    let holds_qcow2 = head[..count].starts_with(b"QFI\xfb");
    match (says_qcow2, holds_qcow2) {
        (false, false) => Ok(()),
        (true, true) => Err(Refusal::Format { why: "it is a qcow2 disk, and these are not written yet" }),
        (true, false) => Err(Refusal::Format { why: "its name says qcow2 and its content does not" }),
        (false, true) => {
            Err(Refusal::Format { why: "its content begins like qcow2 and its name does not say so" })
        }
    }
}

fn new_file(subject: &Subject<'_>) -> Result<Claim, Refusal> {
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
    check_folder(subject, &folder, &name)?;
    Ok(Claim { path: path.to_owned(), identity: None, size: 0, held: Held::NewFile { folder, name } })
}

fn folder_and_name(path: &Path) -> Result<(OwnedFd, OsString), Refusal> {
    let no_name = || Refusal::WrongKind { found: "folder" };
    let name = path.file_name().ok_or_else(no_name)?.to_owned();
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(parent, flags, Mode::empty());
    Ok((folder.map_err(|error| Refusal::Folder { source: error.into() })?, name))
}

fn expectations(expect: &Expect, claim: &Claim) -> Vec<Refusal> {
    let table = match &claim.held {
        Held::Device { file, .. } | Held::File { file, .. } if expect.ptuuid.is_some() => {
            layout::ptuuid(&HeldBytes { file, size: claim.size }).ok().flatten()
        }
        _ => None,
    };
    let wanted_table = expect.ptuuid.as_ref().map(|text| text.to_ascii_lowercase());
    let mut refusals = Vec::new();
    let mut compare = |what, expected: Option<&String>, found: Option<String>| {
        if let Some(expected) = expected.filter(|expected| Some(*expected) != found.as_ref()) {
            let found = found.unwrap_or_else(|| "unknown".to_owned());
            refusals.push(Refusal::Expected { what, found, expected: expected.clone() });
        }
    };
    let of_device = |tell: fn(u32, u32) -> Option<String>| match claim.identity {
        Some(StorageIdentity::Device { major, minor }) => tell(major, minor),
        _ => None,
    };
    compare("serial number", expect.serial.as_ref(), of_device(identity::serial));
    compare("WWN", expect.wwn.as_ref(), of_device(identity::wwn));
    compare("size", expect.size.map(|size| size.to_string()).as_ref(), Some(claim.size.to_string()));
    compare("partition table", wanted_table.as_ref(), table);
    refusals
}

/// A held disk's bytes, as the layout room reads them; the descriptor may be one of O_DIRECT.
struct HeldBytes<'a> {
    file: &'a File,
    size: u64,
}

impl layout::ReadBytes for HeldBytes<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, range: ByteRange, buffer: &mut [u8]) -> io::Result<()> {
        const BLOCK: u64 = 4096;
        let start = range.start() - range.start() % BLOCK;
        let index = |bytes: u64| usize::try_from(bytes).map_err(io::Error::other);
        let (from, to) = (index(range.start() - start)?, index(range.end() - start)?);
        let mut blocks = AlignedBuffer::zeroed(to.next_multiple_of(index(BLOCK)?).max(1))?;
        if store::read_up_to(self.file, &mut blocks, start)? < to {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer[..to - from].copy_from_slice(&blocks[from..to]);
        Ok(())
    }
}

/// Opens what `file` already is, with other rights: the inode that was looked at, whatever its name is now.
fn reopen(file: &File, flags: OFlags) -> rustix::io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::open(path, flags, Mode::empty()).map(File::from)
}

fn real_path(file: &File) -> Result<PathBuf, Refusal> {
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .map_err(|source| Refusal::CannotOpen { source })
}

fn kind_name(metadata: &Metadata) -> &'static str {
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
