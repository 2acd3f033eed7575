//! What changed on a disk since a rebuild, by its receipt.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::store::find;
use super::{FORMAT, ReceiptOf, VERSION, WrittenPiece};
use crate::copy::{self, CopyError, Exceptions, Pool, Scope, Watch};
use crate::error::{Error, ErrorKind};
use crate::inspect::{open_complete, places};
use crate::layout::{self, DiskLayout, Partition};
use crate::observe::{CancelToken, Observer, Phase};
use crate::plan::{DiskBytes, Ends};
use crate::range::{ByteRange, RangeSet};
use crate::rebuild::copy_error;
use crate::request::{Options, SystemDisk, TargetFormat};
use crate::target::Disk;
use crate::verify::{Digest, DigestTable, MOST_MANIFEST_BYTES, Runs};

/// A receipt is a table of chunks and a report; longer is none.
const MOST_BYTES: u64 = MOST_MANIFEST_BYTES + (16 << 20);
/// More pieces than this has no end of a disk.
const MOST_PIECES: usize = 64;
/// More places are counted and not told.
const MOST_TOLD: usize = 64;

/// What changed on a disk since its rebuild, where all of it was to be expected.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct DriftReport {
    /// The receipt.
    #[serde(serialize_with = "crate::error::path_text")]
    pub receipt: PathBuf,
    /// The instance, where one was named.
    pub instance: Option<String>,
    /// When the rebuild ended, in seconds since 1970.
    pub time_s: u64,
    /// The disk.
    #[serde(serialize_with = "crate::error::path_text")]
    pub target: PathBuf,
    /// Its size.
    pub target_bytes: u64,
    /// The root of the image's chunk digests.
    pub root: Digest,
    /// Bytes that were read and compared.
    pub bytes_read: u64,
    /// Bytes that the file system proves to be holes.
    pub bytes_proved_holes: u64,
    /// What changed; neighbours are one, and 64 at most are listed.
    pub drift: Vec<Drift>,
    /// In how many places something changed.
    pub places: usize,
}

/// A place that changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Drift {
    /// Where something changed, in units of what is compared at once.
    pub range: ByteRange,
    /// What it is.
    pub cause: DriftCause,
    /// The partitions that lie there, by number and name.
    pub partitions: Vec<String>,
}

/// What a change is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DriftCause {
    /// The partition table, which still has every partition where it began: expected, as `growpart` does it.
    PartitionTable,
    /// Anything else.
    Content,
}

impl DriftCause {
    /// Whether it is what a machine does by itself when it starts.
    #[must_use]
    pub fn is_expected(self) -> bool {
        self == Self::PartitionTable
    }
}

/// Why a receipt is none, or the disk is not as it was.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("no receipt of {of} is kept")]
    None { of: String },
    #[error("it could not be read")]
    Read(#[source] io::Error),
    #[error("it is no receipt of this version")]
    NoReceipt(#[source] Option<serde_json::Error>),
    #[error("the disk has {size} bytes, and had {said}")]
    Size { size: u64, said: u64 },
    #[error("{} changed since the rebuild; here {what}", places(*count))]
    Changed { count: usize, what: String },
    #[error("here {what}")]
    Here { what: String },
}

/// A receipt as it is read.
#[derive(Deserialize)]
struct Receipt {
    format: String,
    version: u64,
    time_s: u64,
    instance: Option<String>,
    target: PathBuf,
    target_bytes: u64,
    virtual_size: u64,
    root: Digest,
    report: ReportThen,
    ends: Vec<WrittenPiece>,
    chunks: Runs,
}

#[derive(Deserialize)]
struct ReportThen {
    plan: PlanThen,
}

#[derive(Deserialize)]
struct PlanThen {
    after: LayoutThen,
    /// The qcow2 file that the disk was made; what it says does not matter.
    #[serde(default)]
    qcow2: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct LayoutThen {
    id: Option<String>,
    partitions: Vec<PartitionThen>,
}

#[derive(Deserialize)]
struct PartitionThen {
    number: u32,
    range: RangeThen,
    id: Option<String>,
}

#[derive(Deserialize)]
struct RangeThen {
    offset: u64,
    len: u64,
}

/// Compares a disk with the receipt of its rebuild; needs no image and writes nothing. `disk` is where the disk is now,
/// if it is not where it was.
///
/// # Errors
///
/// With kind `Mismatch` where something changed that no machine changes by itself, `Usage` where there is no such
/// receipt, `TargetUnusable` where the disk cannot be read.
pub fn verify_receipt(
    of: ReceiptOf<'_>,
    disk: Option<&Path>,
    options: &Options,
    (observer, cancel): (&dyn Observer, &CancelToken),
) -> Result<DriftReport, Error> {
    let place = place_of(of, &options.state_dir)?;
    let mut receipt = read(&place)?;
    let (path, table) = (disk.unwrap_or(&receipt.target).to_owned(), receipt.table(&place)?);
    let format = match receipt.report.plan.qcow2 {
        Some(_) => TargetFormat::Qcow2,
        None => TargetFormat::Raw,
    };
    let disk = SystemDisk { path: path.clone(), format, ..SystemDisk::default() };
    let disk = open_complete((&disk, &options.image), receipt.virtual_size)?;
    let (size, said) = (disk.size(), receipt.target_bytes);
    if size != said {
        let error = Error::new(ErrorKind::Mismatch, Fault::Size { size, said }).at_path(&path);
        return Err(error.hint_that("a disk of another size is another one, or was resized: look at it"));
    }
    let failed = |fault: CopyError| copy_error(fault, &path);
    let unreadable = |error| Error::new(ErrorKind::TargetUnusable, error).at_path(&path);
    let pool = Pool::start(options.threads).map_err(|error| failed(CopyError::Memory(error)))?;
    let stall_timeout = options.stall_timeout;
    let watch = Watch { observer, cancel, phase: Phase::ReadBack, bytes_total: size, stall_timeout };
    let exceptions = Exceptions { kept: &RangeSet::default(), doubtful: &[] };
    let middle = (&table, Ends::of(size).middle());
    let read =
        copy::check(&pool, disk.as_ref(), middle, (Scope::Everything, exceptions), &watch).map_err(failed)?;
    let mut content: Vec<_> = read.mismatches.iter().map(|mismatch| mismatch.range).collect();
    let (mut in_table, mut bytes_read) = (Vec::new(), read.bytes_read);
    for piece in &receipt.ends {
        bytes_read += piece.len;
        if !piece.is_as_it_was(disk.as_ref()).map_err(unreadable)? {
            let changed = if piece.table { &mut in_table } else { &mut content };
            changed.push(ByteRange::new(piece.offset, piece.len));
        }
    }
    let now = layout::describe(&DiskBytes(disk.as_ref())).map_err(unreadable)?;
    let cause = if receipt.report.plan.after.only_grew(&now) {
        DriftCause::PartitionTable
    } else {
        DriftCause::Content
    };
    let mut drift = merged(content, DriftCause::Content, &now.partitions);
    drift.extend(merged(in_table, cause, &now.partitions));
    drift.sort_by_key(|drift| (drift.cause.is_expected(), drift.range));
    let places = drift.len();
    drift.truncate(MOST_TOLD);
    if drift.first().is_some_and(|first| !first.cause.is_expected()) {
        return Err(changed(&drift, places, &path));
    }
    Ok(DriftReport {
        receipt: place,
        instance: receipt.instance,
        time_s: receipt.time_s,
        target: path,
        target_bytes: size,
        root: receipt.root,
        bytes_read,
        bytes_proved_holes: read.bytes_proved,
        drift,
        places,
    })
}

fn place_of(of: ReceiptOf<'_>, state_dir: &Path) -> Result<PathBuf, Error> {
    if let ReceiptOf::File(path) = of {
        return Ok(path.to_owned());
    }
    find(state_dir, of).map(|note| note.path).ok_or_else(|| {
        let of_what = match of {
            ReceiptOf::Instance(id) => format!("the instance {id:?}"),
            ReceiptOf::Disk(_) | ReceiptOf::File(_) => "this disk".to_owned(),
        };
        let error = Error::new(ErrorKind::Usage, Fault::None { of: of_what });
        let error = match of {
            ReceiptOf::Disk(path) | ReceiptOf::File(path) => error.at_path(path),
            ReceiptOf::Instance(_) => error,
        };
        error.hint_that(
            "name the receipt's file, the disk or the instance as it was rebuilt, and its --state-dir",
        )
    })
}

fn read(place: &Path) -> Result<Receipt, Error> {
    let refused = |fault| {
        let error = Error::new(ErrorKind::Usage, fault).at_path(place);
        error.hint_that("name a receipt that a rebuild left in the folder `receipts` of its state folder")
    };
    let mut text = Vec::new();
    let file = File::open(place).map_err(|error| refused(Fault::Read(error)))?;
    let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() <= MOST_BYTES);
    if !is_file {
        return Err(refused(Fault::NoReceipt(None)));
    }
    file.take(MOST_BYTES).read_to_end(&mut text).map_err(|error| refused(Fault::Read(error)))?;
    let receipt: Receipt =
        serde_json::from_slice(&text).map_err(|error| refused(Fault::NoReceipt(Some(error))))?;
    let is_known = receipt.format == FORMAT && receipt.version == VERSION;
    let ends = Ends::of(receipt.target_bytes);
    let lies_there = |piece: &WrittenPiece| {
        let end = piece.offset.checked_add(piece.len);
        let inside =
            |bounds: ByteRange| piece.offset >= bounds.start() && end.is_some_and(|end| end <= bounds.end());
        inside(ends.head) || inside(ends.tail)
    };
    let covered: u64 = receipt.ends.iter().fold(0, |sum, piece| sum.saturating_add(piece.len));
    let is_whole = receipt.ends.iter().all(lies_there) && covered == ends.head.len() + ends.tail.len();
    let is_whole =
        is_whole && receipt.ends.len() <= MOST_PIECES && receipt.virtual_size <= receipt.target_bytes;
    if is_known && is_whole { Ok(receipt) } else { Err(refused(Fault::NoReceipt(None))) }
}

impl Receipt {
    fn table(&mut self, place: &Path) -> Result<DigestTable, Error> {
        let table = std::mem::take(&mut self.chunks).into_table(self.virtual_size);
        let table = table.ok().filter(|table| table.root() == self.root);
        let refused = || {
            let error = Error::new(ErrorKind::Usage, Fault::NoReceipt(None)).at_path(place);
            error.hint_that("it was changed since it was written")
        };
        table.ok_or_else(refused)
    }
}

impl WrittenPiece {
    fn is_as_it_was(&self, disk: &dyn Disk) -> io::Result<bool> {
        let mut bytes = vec![0; usize::try_from(self.len).map_err(io::Error::other)?];
        layout::ReadBytes::read_at(&DiskBytes(disk), ByteRange::new(self.offset, self.len), &mut bytes)?;
        Ok(Digest::of(&bytes) == self.digest)
    }
}

impl LayoutThen {
    /// Whether the table is the same, but for partitions that end later and such as are new.
    fn only_grew(&self, now: &DiskLayout) -> bool {
        let is_there = |then: &PartitionThen| {
            now.partitions.iter().any(|now| {
                let is_it = now.number == then.number && now.id == then.id;
                is_it && now.range.start() == then.range.offset && now.range.len() >= then.range.len
            })
        };
        self.id == now.id && self.partitions.iter().all(is_there)
    }
}

fn merged(ranges: Vec<ByteRange>, cause: DriftCause, partitions: &[Partition]) -> Vec<Drift> {
    let mut all = RangeSet::default();
    ranges.into_iter().for_each(|range| all.insert(range));
    all.merge();
    let named = |partition: &Partition| match &partition.name {
        Some(name) => format!("{} ({name})", partition.number),
        None => partition.number.to_string(),
    };
    let drift = |range: &ByteRange| {
        let there = partitions.iter().filter(|partition| partition.range.intersection(*range).is_some());
        Drift { range: *range, cause, partitions: there.map(named).collect() }
    };
    all.ranges().iter().map(drift).collect()
}

fn changed(drift: &[Drift], count: usize, path: &Path) -> Error {
    let what = |drift: &Drift| match (drift.cause, drift.partitions.as_slice()) {
        (DriftCause::PartitionTable, _) => "the partition table, as it is to be expected".to_owned(),
        (DriftCause::Content, []) => "what no partition has".to_owned(),
        (DriftCause::Content, names) => format!("the content of partition {}", names.join(", ")),
    };
    let at =
        |fault, drift: &Drift| Error::new(ErrorKind::Mismatch, fault).at_path(path).at_range(drift.range);
    let (first, others) = drift.split_first().expect("something changed");
    let others = others.iter().map(|other| at(Fault::Here { what: what(other) }, other));
    at(Fault::Changed { count, what: what(first) }, first)
        .hint_that(
            "a machine that has run has written to its disk; one that has not was changed by somebody else",
        )
        .and(others)
}
