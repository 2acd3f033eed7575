//! An image and a disk as other rooms see them: as bytes, and a disk as an image.

use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::image_error;
use crate::copy::{self, CopyError};
use crate::error::{Error, ErrorKind};
use crate::image::{
    Decoder, DigestAlgorithm, Extent, ExtentKind, FileIdentity, Image, ImageError, ImageInfo, TableReport,
};
use crate::layout::ReadBytes;
use crate::range::ByteRange;
use crate::sys::aligned::AlignedBuffer;
use crate::target::{Disk, TargetError};

/// The virtual disk of an image.
pub(crate) struct ImageBytes<'a>(pub(crate) &'a dyn Image);

impl ReadBytes for ImageBytes<'_> {
    fn size(&self) -> u64 {
        self.0.virtual_size()
    }

    /// What must be decoded is decoded on a thread that can open nothing.
    fn read_at(&self, range: ByteRange, buffer: &mut [u8]) -> io::Result<()> {
        if !is_compressed(self.0, range).map_err(io::Error::other)? {
            return read(self.0, range, buffer).map_err(io::Error::other);
        }
        copy::apart(|| read(self.0, range, buffer)).map_err(|fault| match fault {
            CopyError::Image(fault) => io::Error::other(fault),
            fault => io::Error::other(fault),
        })
    }
}

/// Why an image's disk could not be read: with the place in the file where a cluster is at fault.
pub(crate) fn unreadable(error: io::Error, image: &Path) -> Error {
    match error.downcast::<ImageError>() {
        Ok(fault) => image_error(ErrorKind::Image, fault),
        Err(error) => {
            Error::new(ErrorKind::Image, error).at_path(image).hint_that("check the image's storage")
        }
    }
}

/// Whether any of the bytes are stored compressed.
fn is_compressed(image: &dyn Image, range: ByteRange) -> Result<bool, ImageError> {
    let mut at = range.start();
    while at < range.end() {
        let extents = image.map(ByteRange::between(at, range.end()))?;
        if extents.iter().any(|extent| matches!(extent.kind, ExtentKind::Compressed { .. })) {
            return Ok(true);
        }
        at = end_of(&extents);
    }
    Ok(false)
}

fn read(image: &dyn Image, range: ByteRange, buffer: &mut [u8]) -> Result<(), ImageError> {
    let mut decoder = Decoder::default();
    let mut at = range.start();
    while at < range.end() {
        let extents = image.map(ByteRange::between(at, range.end()))?;
        let end = end_of(&extents);
        let place = |offset: u64| usize::try_from(offset - range.start()).expect("it is in memory");
        image.read(&extents, &mut buffer[place(at)..place(end)], &mut decoder)?;
        at = end;
    }
    Ok(())
}

fn end_of(extents: &[Extent]) -> u64 {
    extents.last().expect("a map of bytes holds an extent").range.end()
}

/// The virtual disk of an image, as a disk that is compared.
pub(crate) struct ImageDisk(pub(crate) Box<dyn Image>);

impl Disk for ImageDisk {
    fn size(&self) -> u64 {
        self.0.virtual_size()
    }

    fn sector_size(&self) -> u32 {
        1
    }

    fn read(&self, range: ByteRange, buffer: &mut [u8]) -> Result<(), TargetError> {
        let len = usize::try_from(range.len()).expect("it is in memory");
        // Comparing comes here from threads of a pool, chunk by chunk.
        let read = read(self.0.as_ref(), range, &mut buffer[..len]);
        read.map_err(io::Error::other).map_err(TargetError::when("reading", range))
    }

    fn next_data(&self, offset: u64) -> Result<Option<ByteRange>, TargetError> {
        let (mut at, end) = (offset, self.size());
        let failed = |fault| TargetError::new("looking for what is stored", None, io::Error::other(fault));
        while at < end {
            let extents = self.0.map(ByteRange::between(at, end)).map_err(failed)?;
            if let Some(extent) = extents.iter().find(|extent| extent.kind != ExtentKind::Zero) {
                return Ok(Some(extent.range));
            }
            at = extents.last().map_or(end, |extent| extent.range.end());
        }
        Ok(None)
    }
}

/// The virtual disk of an image, as far as it is at hand; what is not reads as zeroes.
pub(crate) struct Glimpse<'a>(pub(crate) &'a dyn Image);

impl ReadBytes for Glimpse<'_> {
    fn size(&self) -> u64 {
        self.0.virtual_size()
    }

    fn read_at(&self, range: ByteRange, buffer: &mut [u8]) -> io::Result<()> {
        if self.0.is_at_hand(range) {
            return ImageBytes(self.0).read_at(range, buffer);
        }
        buffer.fill(0);
        Ok(())
    }
}

/// A disk that can be read.
pub(crate) struct DiskBytes<'a>(pub(crate) &'a dyn Disk);

impl ReadBytes for DiskBytes<'_> {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, range: ByteRange, buffer: &mut [u8]) -> io::Result<()> {
        let len = usize::try_from(range.len()).map_err(io::Error::other)?;
        // Room for the whole sectors at both ends.
        let mut aligned = AlignedBuffer::zeroed(len + 2 * 4096)?;
        self.0.read(range, &mut aligned).map_err(io::Error::other)?;
        buffer[..len].copy_from_slice(&aligned[..len]);
        Ok(())
    }
}

/// A disk as an image: what it holds now, to be packed. Nobody else may write it meanwhile.
pub(crate) struct DiskImage<'a> {
    disk: &'a dyn Disk,
    size: u64,
    path: &'a Path,
    /// Buffers as the disk wants them, one for each thread that reads.
    spare: Mutex<Vec<AlignedBuffer>>,
}

/// So many extents are told at once.
const SLICE: usize = 64;

impl<'a> DiskImage<'a> {
    /// The first `size` bytes of the disk, which is called `path`.
    pub(crate) fn new(disk: &'a dyn Disk, size: u64, path: &'a Path) -> Self {
        Self { disk, size, path, spare: Mutex::default() }
    }

    fn failed(&self, doing: &'static str, range: ByteRange) -> impl Fn(TargetError) -> ImageError {
        let path = self.path.to_owned();
        move |fault| ImageError::Io {
            doing,
            path: path.clone(),
            range: Some(range),
            source: io::Error::other(fault),
        }
    }

    fn buffer(&self, len: usize, range: ByteRange) -> Result<AlignedBuffer, ImageError> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match spare.filter(|buffer| buffer.len() >= len) {
            Some(buffer) => Ok(buffer),
            None => AlignedBuffer::zeroed(len).map_err(|source| ImageError::Io {
                doing: "taking memory",
                path: self.path.to_owned(),
                range: Some(range),
                source,
            }),
        }
    }
}

impl DiskImage<'_> {
    fn is_no_file(&self) -> ImageError {
        let source = io::ErrorKind::Unsupported.into();
        ImageError::Io {
            doing: "reading the disk as a file",
            path: self.path.to_owned(),
            range: None,
            source,
        }
    }
}

impl Image for DiskImage<'_> {
    fn virtual_size(&self) -> u64 {
        self.size
    }

    fn map(&self, range: ByteRange) -> Result<Vec<Extent>, ImageError> {
        assert!(range.end() <= self.size, "the range lies within the disk");
        let (mut extents, mut at) = (Vec::new(), range.start());
        while at < range.end() && extents.len() < SLICE {
            let next = self.disk.next_data(at).map_err(self.failed("looking for holes", range))?;
            let data = next.map_or(range.end(), |data| data.start().clamp(at, range.end()));
            if data > at {
                extents.push(Extent { range: ByteRange::between(at, data), kind: ExtentKind::Zero });
            }
            let end = next.map_or(data, |next| next.end().clamp(data, range.end()));
            if end > data {
                let kind = ExtentKind::Data { layer: 0, host_offset: data };
                extents.push(Extent { range: ByteRange::between(data, end), kind });
            }
            at = end;
        }
        Ok(extents)
    }

    fn read(&self, extents: &[Extent], buffer: &mut [u8], _: &mut Decoder) -> Result<(), ImageError> {
        let (Some(first), Some(last)) = (extents.first(), extents.last()) else { return Ok(()) };
        let range = ByteRange::between(first.range.start(), last.range.end());
        // Room for the whole sectors at both ends.
        let mut aligned = self.buffer(buffer.len() + 2 * 4096, range)?;
        let read = self.disk.read(range, &mut aligned).map_err(self.failed("reading the disk", range));
        if read.is_ok() {
            buffer.copy_from_slice(&aligned[..buffer.len()]);
        }
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(aligned);
        read
    }

    fn check_tables(&self) -> Result<TableReport, ImageError> {
        Ok(TableReport { data_bytes: self.size, ..TableReport::default() })
    }

    fn info(&self) -> ImageInfo {
        let virtual_size = self.size;
        ImageInfo { format: "raw", virtual_size, file_size: virtual_size, chain: Vec::new() }
    }

    fn check_unchanged(&self) -> Result<(), ImageError> {
        Ok(())
    }

    fn identities(&self) -> Vec<FileIdentity> {
        Vec::new()
    }

    fn file_digest(&self, _: DigestAlgorithm) -> Result<[u8; 32], ImageError> {
        Err(self.is_no_file())
    }

    fn read_file(&self, _: u64, _: &mut [u8]) -> Result<(), ImageError> {
        Err(self.is_no_file())
    }
}
