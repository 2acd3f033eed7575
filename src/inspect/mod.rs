//! Looks at images and disks for a person or another program; writes nothing.

mod check;

use std::path::Path;

pub use check::{CheckReport, Finding, check};
use serde::Serialize;

use crate::copy::{self, CopyError, Exceptions, Pool, Scope, Sink, Transfer, Watch};
use crate::error::{Error, ErrorKind, TargetState};
use crate::image::{ExtentKind, Image, ImageInfo, TableReport};
use crate::layout::{self, DiskLayout, ReadBytes, marker};
use crate::observe::{CancelToken, Observer, Phase};
use crate::plan::{
    self, ANY_SIZE, Check, CheckedImage, DiskBytes, Ends, GptPlan, ImageBytes, ImageDisk, KnownManifest,
    Later, ManifestUse, image_error, other_than_manifest,
};
use crate::range::{ByteRange, RangeSet};
use crate::rebuild::copy_error;
use crate::request::{GptPolicy, ImageOptions, Preflight, Request, SystemDisk, TargetFormat};
use crate::target::{Disk, HostDisk};
use crate::verify::Digest;

/// How many cells a picture of a disk has.
const CELLS: u64 = 64;

/// What an image is and holds.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The image and its chain.
    pub image: ImageInfo,
    /// What its disk consists of.
    pub content: TableReport,
    /// Its manifest, where one is known.
    pub manifest: Option<ManifestUse>,
    /// The partitions and file systems on it.
    pub layout: DiskLayout,
    /// The disk in 64 parts of equal length, in order (fewer for a disk of fewer bytes).
    pub picture: Vec<Cell>,
}

/// A part of a disk: how many of its bytes are of which kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Cell {
    /// The part.
    pub range: ByteRange,
    /// Bytes that are stored as they are.
    pub data_bytes: u64,
    /// Bytes that are stored compressed.
    pub compressed_bytes: u64,
}

/// Opens an image, checks of it what is wanted (always all metadata), and says what it is.
///
/// # Errors
///
/// As a rebuild would refuse the image.
pub fn inspect(
    path: &Path,
    options: &ImageOptions,
    preflight: Preflight,
    observer: &dyn Observer,
) -> Result<Inspection, Error> {
    let check =
        Check { preflight, threads: None, later: Later::LooksAround, policies: &[], most_bytes: ANY_SIZE };
    let CheckedImage { image, tables: content, manifest, .. } =
        plan::open_checked(path, options, check, observer)?;
    let refused = |fault| image_error(ErrorKind::Image, fault);
    let bytes = ImageBytes(image.as_ref());
    let layout = layout::describe(&bytes).map_err(|error| plan::unreadable(error, path))?;
    let picture = picture(image.as_ref()).map_err(refused)?;
    let manifest = manifest.map(|manifest| manifest.used);
    Ok(Inspection { image: image.info(), content, manifest, layout, picture })
}

fn picture(image: &dyn Image) -> Result<Vec<Cell>, crate::image::ImageError> {
    let size = image.virtual_size();
    let cell_len = size.div_ceil(CELLS).max(1);
    let cells = ByteRange::between(0, size).cut(cell_len);
    let mut cells: Vec<_> = cells.map(|range| Cell { range, data_bytes: 0, compressed_bytes: 0 }).collect();
    let mut at = 0;
    while at < size {
        for extent in image.map(ByteRange::between(at, size))? {
            at = extent.range.end();
            if extent.kind == ExtentKind::Zero {
                continue;
            }
            for part in extent.range.cut(cell_len) {
                let place = usize::try_from(part.start() / cell_len).expect("there are few cells");
                match extent.kind {
                    ExtentKind::Compressed { .. } => cells[place].compressed_bytes += part.len(),
                    _ => cells[place].data_bytes += part.len(),
                }
            }
        }
    }
    Ok(cells)
}

/// What was compared, when a disk holds what it should.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct VerifyReport {
    /// The root of the image's chunk digests.
    pub root: Digest,
    /// The manifest with which the image was compared, where one is known.
    pub manifest: Option<ManifestUse>,
    /// The disk's size.
    pub target_bytes: u64,
    /// Bytes that were read and compared.
    pub bytes_read: u64,
    /// Bytes that the file system proves to be holes.
    pub bytes_proved_holes: u64,
    /// The bytes that rightly differ from the image, because the backup GPT moved.
    pub gpt: GptPlan,
}

/// A disk does not hold what the image holds.
#[derive(Debug, thiserror::Error)]
enum Difference {
    #[error("it differs in {}, {bytes} bytes with all that is compared at once", places(*count))]
    Pieces { count: usize, bytes: u64 },
    #[error("it differs here, too")]
    Here,
    #[error("the disk has {size} bytes and the image's disk {virtual_size}")]
    TooSmall { size: u64, virtual_size: u64 },
    #[error("the disk's head says that a rebuild is unfinished (journal {journal})")]
    Unfinished { journal: String },
}

/// How many places, in words.
pub(crate) fn places(count: usize) -> String {
    if count == 1 { "1 place".to_owned() } else { format!("{count} places") }
}

/// Compares the request's system disk with its image; writes nothing.
///
/// Behind the image's end the disk must be zero; a backup GPT that moved is what it should be.
///
/// # Errors
///
/// With kind `Mismatch` where the disk differs, and as a rebuild would refuse the image.
pub fn verify(
    request: &Request,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<VerifyReport, Error> {
    let opened = plan::open_image(request, Later::LosesNothing, observer)?;
    let CheckedImage { image, manifest, .. } = opened;
    let path = &request.instance.system_disk.path;
    let virtual_size = image.virtual_size();
    let disk = open_complete((&request.instance.system_disk, &request.options.image), virtual_size)?;
    let size = disk.size();
    let relocation = match request.options.gpt {
        GptPolicy::Keep => None,
        GptPolicy::Relocate => {
            plan::relocation(image.as_ref(), size, disk.sector_size()).map_err(|fault| {
                Error::new(fault.kind(), fault).at_path(path).hint_that("compare with --gpt keep")
            })?
        }
    };
    let patches = relocation.as_ref().map_or(&[][..], |relocation| &relocation.patches);
    let image_path = request.instance.image.as_deref().unwrap_or(Path::new(""));
    let failed = |fault: CopyError| match fault {
        CopyError::OtherThanManifest { .. } => other_than_manifest(fault, image_path),
        fault => copy_error(fault, path),
    };
    let used = manifest.as_ref().map(|manifest| manifest.used.clone());
    let manifest = manifest.as_ref().map(KnownManifest::chunks);
    let pool = Pool::start(request.options.threads).map_err(|error| failed(CopyError::Memory(error)))?;
    let stall_timeout = request.options.stall_timeout;
    let watch = Watch { observer, cancel, phase: Phase::Preflight, bytes_total: virtual_size, stall_timeout };
    let whole = Transfer { image: image.as_ref(), sink: Sink::Digests, manifest, whole: None };
    let digests = copy::transfer(&pool, whole, (&watch, &mut ())).map_err(failed)?.digests;
    let ends = Ends::of(size);
    let watch = Watch { observer, cancel, phase: Phase::ReadBack, bytes_total: size, stall_timeout };
    let middle = (&digests, ends.middle());
    let exceptions = Exceptions { kept: &RangeSet::default(), doubtful: &[] };
    let read =
        copy::check(&pool, disk.as_ref(), middle, (Scope::Everything, exceptions), &watch).map_err(failed)?;
    let mut wrong: Vec<_> = read.mismatches.iter().map(|mismatch| mismatch.range).collect();
    for end in [ends.head, ends.tail] {
        wrong.extend(compare_end(image.as_ref(), disk.as_ref(), (end, patches), path)?);
    }
    if !wrong.is_empty() {
        return Err(differs(wrong, path));
    }
    Ok(VerifyReport {
        root: digests.root(),
        manifest: used,
        target_bytes: size,
        bytes_read: read.bytes_read + ends.head.len() + ends.tail.len(),
        bytes_proved_holes: read.bytes_proved,
        gpt: GptPlan::of(relocation.as_ref()),
    })
}

/// The part of one end from the first differing byte on, if there is one.
fn compare_end(
    image: &dyn Image,
    disk: &dyn Disk,
    (range, patches): (ByteRange, &[layout::Patch]),
    path: &Path,
) -> Result<Option<ByteRange>, Error> {
    let len = usize::try_from(range.len()).expect("an end fits in memory");
    let mut right = vec![0; len];
    let of_image = range.intersection(ByteRange::new(0, image.virtual_size()));
    if let Some(of_image) = of_image {
        let read = ImageBytes(image).read_at(of_image, &mut right);
        read.map_err(|error| Error::new(ErrorKind::ImageFault, error))?;
    }
    layout::apply(patches, range, &mut right);
    let mut found = vec![0; len];
    DiskBytes(disk)
        .read_at(range, &mut found)
        .map_err(|error| Error::new(ErrorKind::TargetUnusable, error).at_path(path))?;
    let first = right.iter().zip(&found).position(|(right, found)| right != found);
    Ok(first.map(|at| ByteRange::between(range.start() + at as u64, range.end())))
}

/// Opens a disk that is to hold `virtual_size` bytes of an image, and no unfinished rebuild.
pub(crate) fn open_complete(
    (disk, options): (&SystemDisk, &ImageOptions),
    virtual_size: u64,
) -> Result<Box<dyn Disk>, Error> {
    let path = disk.path.as_path();
    let disk = open_as(disk, options)?;
    let differs = |fault| Error::new(ErrorKind::Mismatch, fault).at_path(path);
    if let Some(marker) = read_marker(disk.as_ref(), path)? {
        return Err(
            differs(Difference::Unfinished { journal: marker.journal }).hint_that("run the rebuild again")
        );
    }
    let size = disk.size();
    if size < virtual_size {
        return Err(differs(Difference::TooSmall { size, virtual_size })
            .hint_that("this disk cannot hold the image: name another disk or image"));
    }
    Ok(disk)
}

/// A disk that differs from what it should hold, and where: neighbours are told as one, the first of many each.
pub(crate) fn differs(wrong: Vec<ByteRange>, path: &Path) -> Error {
    /// More places are counted and not told.
    const MOST_TOLD: usize = 64;
    let mut all = RangeSet::default();
    wrong.into_iter().for_each(|range| all.insert(range));
    all.merge();
    let (count, bytes) = (all.ranges().len(), all.ranges().iter().map(|range| range.len()).sum());
    let at = |fault, range: ByteRange| Error::new(ErrorKind::Mismatch, fault).at_path(path).at_range(range);
    let first = *all.ranges().first().expect("something differs");
    let others = all.ranges().iter().skip(1).take(MOST_TOLD).map(|range| at(Difference::Here, *range));
    at(Difference::Pieces { count, bytes }, first)
        .hint_that("rebuild the disk, or find out what wrote to it")
        .and(others)
}

/// Opens a disk to be read, whatever uses it.
pub(crate) fn open_disk(path: &Path) -> Result<HostDisk, Error> {
    HostDisk::open(path).map_err(|error| {
        Error::new(ErrorKind::TargetUnusable, error)
            .at_path(path)
            .hint_that("name a block device or a file that this user may read")
            .leaving(TargetState::Untouched)
    })
}

/// Opens what a machine sees of its disk: a qcow2 disk through its tables.
///
/// It is one where that is said, or where name and content both say so; where only one of them does, it must be said.
pub(crate) fn open_as(disk: &SystemDisk, options: &ImageOptions) -> Result<Box<dyn Disk>, Error> {
    let path = disk.path.as_path();
    let host = open_disk(path)?;
    if disk.format == TargetFormat::Raw {
        return Ok(Box::new(host));
    }
    let unusable = |error| Error::new(ErrorKind::TargetUnusable, error).at_path(path);
    let mut magic = [0; QCOW2_MAGIC.len()];
    let holds_qcow2 = host.size() >= magic.len() as u64 && {
        let head = ByteRange::new(0, magic.len() as u64);
        DiskBytes(&host).read_at(head, &mut magic).map_err(unusable)?;
        magic == QCOW2_MAGIC
    };
    let says_qcow2 = match disk.format {
        TargetFormat::Auto => path.extension().is_some_and(|name| name.eq_ignore_ascii_case("qcow2")),
        _ => true,
    };
    match (says_qcow2, holds_qcow2) {
        (false, false) => Ok(Box::new(host)),
        (true, true) => {
            let opened = plan::open_disk_file(&host.file, path, options);
            let image = opened.map_err(|fault| image_error(ErrorKind::TargetUnusable, fault))?;
            Ok(Box::new(ImageDisk(image)))
        }
        _ => Err(Error::new(ErrorKind::TargetUnusable, Unclear)
            .at_path(path)
            .hint_that("say --target-format raw or qcow2, as the machine uses it")),
    }
}

const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// It is not certain what the disk is.
#[derive(Debug, thiserror::Error)]
#[error("only one of its name and its content says that it is qcow2")]
struct Unclear;

/// What the disk's head says, if a rebuild of it is unfinished.
pub(crate) fn read_marker(disk: &dyn Disk, path: &Path) -> Result<Option<marker::Marker>, Error> {
    Ok(read_head(disk, path)?.and_then(|head| marker::read(&head).or_else(|| marker::torn(&head))))
}

/// As much of the disk's head as a marker fills; `None` where the disk is shorter.
pub(crate) fn read_head(disk: &dyn Disk, path: &Path) -> Result<Option<[u8; marker::LEN]>, Error> {
    let len = marker::LEN as u64;
    if disk.size() < len {
        return Ok(None);
    }
    let mut head = [0; marker::LEN];
    let read = DiskBytes(disk).read_at(ByteRange::new(0, len), &mut head);
    read.map_err(|error| Error::new(ErrorKind::TargetUnusable, error).at_path(path))?;
    Ok(Some(head))
}
