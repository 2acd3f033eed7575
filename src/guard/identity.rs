//! What a disk is, apart from its names: numbers that two names of one storage share, and what must be so.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use serde::Serialize;

use super::kernel::{Kernel, Number};
use super::refusal::Refusal;
use super::topology::Storage;
use crate::layout::{self, ReadBytes, marker};
use crate::range::ByteRange;
use crate::request::Expect;

/// The numbers that tell one storage from another, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum StorageIdentity {
    /// A block device.
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A regular file.
    File {
        /// The device number of its file system.
        device: u64,
        /// Its inode number there.
        inode: u64,
    },
}

impl From<Number> for StorageIdentity {
    fn from((major, minor): Number) -> Self {
        Self::Device { major, minor }
    }
}

/// The storage that `metadata` is about; `None` for what is neither a block device nor a regular file.
pub(super) fn identify(metadata: &Metadata) -> Option<StorageIdentity> {
    let kind = metadata.file_type();
    if kind.is_block_device() {
        return Some(numbers(metadata.rdev()).into());
    }
    kind.is_file().then(|| StorageIdentity::File { device: metadata.dev(), inode: metadata.ino() })
}

/// Major and minor number of a device number.
pub(super) fn numbers(device: u64) -> Number {
    (rustix::fs::major(device), rustix::fs::minor(device))
}

/// The identity of a block device of that number.
pub(crate) fn device_identity(device: u64) -> StorageIdentity {
    numbers(device).into()
}

/// What a disk is known by; sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DiskFacts {
    /// Its numbers.
    pub identity: StorageIdentity,
    /// The file or device in which its bytes really lie: below a loop device, or the disk of a partition.
    pub base: StorageIdentity,
    /// Where in `base` they begin.
    pub base_offset: u64,
    /// Its size.
    pub size: u64,
    /// A device's logical sector.
    pub sector_size: Option<u32>,
    /// A device's serial number, where its driver tells it.
    pub serial: Option<String>,
    /// A device's World Wide Name, where its driver tells it.
    pub wwn: Option<String>,
    /// What tells it from another storage that gets its numbers later, where anything does: of `base`, the id of a
    /// device-mapper or md device, a WWN or a serial number, or when a file was made.
    pub lasting_id: Option<String>,
    /// The id of its partition table: a GPT's GUID, or an MBR's eight hex digits.
    pub ptuuid: Option<String>,
    /// The BLAKE3 of its first 64 KiB, or of all of it when it is shorter.
    pub head_digest: Option<String>,
    /// The journal of the unfinished rebuild that its head tells of.
    pub unfinished: Option<String>,
}

impl DiskFacts {
    /// What `storage` is, and what its bytes tell.
    pub(super) fn of(
        kernel: &Kernel,
        storage: &Storage,
        (size, sector_size): (u64, Option<u32>),
        bytes: Option<&dyn ReadBytes>,
    ) -> Self {
        let tell = |ask: fn(&Kernel, Number) -> Option<String>| match storage.identity {
            StorageIdentity::Device { major, minor } => ask(kernel, (major, minor)),
            StorageIdentity::File { .. } => None,
        };
        let head = bytes.and_then(|bytes| head(bytes).ok());
        Self {
            identity: storage.identity,
            base: storage.bytes.base,
            base_offset: storage.bytes.range.start(),
            size,
            sector_size,
            serial: tell(Kernel::serial),
            wwn: tell(Kernel::wwn),
            lasting_id: None,
            ptuuid: bytes.and_then(|bytes| layout::ptuuid(bytes).ok().flatten()),
            head_digest: head.as_ref().map(|head| blake3::hash(head).to_string()),
            unfinished: head
                .and_then(|head| marker::read(&head).or_else(|| marker::torn(&head)))
                .map(|marker| marker.journal),
        }
    }

    /// What is not as expected; `earlier` knows the partition table that the disk of an unfinished run had.
    pub(super) fn against(&self, expect: &Expect, earlier: &dyn Fn(&str) -> Option<String>) -> Vec<Refusal> {
        let earlier = || self.unfinished.as_deref().and_then(earlier);
        let size = Some(self.size.to_string());
        let table = self.ptuuid.clone().or_else(earlier);
        differences(expect, [self.serial.clone(), self.wwn.clone(), size, table])
    }

    /// What can be told to be unlike what is expected before the disk is opened: all but its partition table.
    pub(super) fn unlike(
        kernel: &Kernel,
        storage: &Storage,
        size: Option<u64>,
        expect: &Expect,
    ) -> Vec<Refusal> {
        let tell = |ask: fn(&Kernel, Number) -> Option<String>| match storage.identity {
            StorageIdentity::Device { major, minor } => ask(kernel, (major, minor)),
            StorageIdentity::File { .. } => None,
        };
        // A size that nobody tells is asked again when the disk is open.
        let expect = Expect { ptuuid: None, size: expect.size.filter(|_| size.is_some()), ..expect.clone() };
        let size = size.map(|size| size.to_string());
        differences(&expect, [tell(Kernel::serial), tell(Kernel::wwn), size, None])
    }

    /// The same for a disk that is not there.
    pub(super) fn nothing_against(expect: &Expect) -> Vec<Refusal> {
        differences(expect, [None, None, None, None])
    }
}

fn differences(expect: &Expect, found: [Option<String>; 4]) -> Vec<Refusal> {
    let lower = |id: &String| id.to_ascii_lowercase();
    let [serial, wwn, size, table] = found;
    let pairs = [
        ("serial number", expect.serial.clone(), serial),
        ("WWN", expect.wwn.clone(), wwn),
        ("size", expect.size.map(|size| size.to_string()), size),
        ("partition table", expect.ptuuid.as_ref().map(lower), table.as_ref().map(lower)),
    ];
    let differs = |(what, expected, found): (&'static str, Option<String>, Option<String>)| {
        let expected = expected.filter(|expected| Some(expected) != found.as_ref())?;
        Some(Refusal::Expected { what, found: found.unwrap_or_else(|| "unknown".to_owned()), expected })
    };
    pairs.into_iter().filter_map(differs).collect()
}

fn head(bytes: &dyn ReadBytes) -> io::Result<Vec<u8>> {
    const LEN: u64 = 64 << 10;
    let range = ByteRange::new(0, LEN.min(bytes.size()));
    let mut head = vec![0; usize::try_from(range.len()).expect("a head is short")];
    bytes.read_at(range, &mut head)?;
    Ok(head)
}

/// Opens `path` without touching what it leads to: no driver's open, no blocking FIFO, no access time.
pub(super) fn open_path_only(path: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?.into())
}
