//! Why an image is refused or cannot be read.

use std::io;
use std::path::PathBuf;

use crate::range::ByteRange;

/// Why an image is refused or cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The operating system says no.
    #[error("{doing} failed")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// Which bytes of it, when it was about bytes.
        range: Option<ByteRange>,
        /// What the system said.
        source: io::Error,
    },
    /// There is no such file.
    #[error("there is no such image")]
    Missing {
        /// The name that leads nowhere.
        path: PathBuf,
    },
    /// It is no regular file and no block device.
    #[error("an image is a regular file or a block device, and this is {kind}")]
    WrongKind {
        /// What is no image.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// Somebody holds it open for writing.
    #[error("somebody is writing this image")]
    BeingWritten {
        /// The file that is held.
        path: PathBuf,
    },
    /// A file is not as it was when it was opened.
    #[error("the image changed while it was open")]
    Changed {
        /// The file that changed.
        path: PathBuf,
    },
    /// The name promises another format than the content has.
    #[error("the name says {named} and the content is {content}")]
    NameDisagrees {
        /// The file.
        path: PathBuf,
        /// The format that the name's ending stands for.
        named: &'static str,
        /// What the content looks like.
        content: &'static str,
        /// By which bytes, or where the bytes are missing that would make it what the name says.
        range: ByteRange,
    },
    /// Content of a raw image begins like another disk-image format.
    #[error("the content of this raw image is itself a disk image ({content})")]
    NestedFormat {
        /// The file.
        path: PathBuf,
        /// The format that the content has.
        content: &'static str,
        /// By which bytes it is known.
        range: ByteRange,
    },
    /// The disk that a qcow2 image describes begins or ends like another disk-image format.
    #[error("the disk in this image is itself a disk image ({content}), as its {guest} say")]
    NestedDisk {
        /// The file in which these bytes lie.
        path: PathBuf,
        /// The format that the disk's content has.
        content: &'static str,
        /// By which bytes of the disk it is known.
        guest: ByteRange,
        /// Where they lie in the file, compressed or not.
        range: ByteRange,
    },
    /// Declared qcow2, but the content is something else.
    #[error("this is no qcow2 image but {content}")]
    NotQcow2 {
        /// The file.
        path: PathBuf,
        /// What the content looks like.
        content: &'static str,
        /// By which bytes, or where the bytes are missing that would make it qcow2.
        range: ByteRange,
    },
    /// It should be qcow2 by its name or by what is said, and holds nothing.
    #[error("there is no qcow2 header, for the file is {holds}")]
    NoHeader {
        /// The file.
        path: PathBuf,
        /// That it is empty, or holds zeroes.
        holds: &'static str,
        /// Where the header should begin.
        range: ByteRange,
    },
    /// The image needs something that this reader does not do, for safety or at all.
    #[error("{feature} is not supported")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it would need.
        feature: String,
        /// Where the image says so.
        range: ByteRange,
    },
    /// Its writer marked the image as damaged.
    #[error("the image is marked as corrupt")]
    MarkedCorrupt {
        /// The file.
        path: PathBuf,
        /// Where the mark is.
        range: ByteRange,
    },
    /// A header field is not as the format demands.
    #[error("header field {field} ({value:#x}) {why}")]
    BadHeader {
        /// The file.
        path: PathBuf,
        /// The field's name in the qcow2 specification.
        field: &'static str,
        /// Where the field is.
        range: ByteRange,
        /// What it says.
        value: u64,
        /// What is wrong with that.
        why: &'static str,
    },
    /// Bytes that the image refers to are not in the file.
    #[error(
        "{what} reaches beyond the file's end at {file_size}: the image is truncated or damaged{}",
        pointed_to(*entry)
    )]
    BeyondEnd {
        /// The file.
        path: PathBuf,
        /// What lies there.
        what: &'static str,
        /// Where it should lie.
        range: ByteRange,
        /// Where the file ends.
        file_size: u64,
        /// Where the entry is that points there, if one does.
        entry: Option<ByteRange>,
    },
    /// An entry of an L1 or L2 table is not as the format demands.
    #[error("{table} entry {value:#018x} {why}")]
    BadEntry {
        /// The file.
        path: PathBuf,
        /// `L1`, `L2` or `refcount table`.
        table: &'static str,
        /// Where the entry is.
        range: ByteRange,
        /// What it says.
        value: u64,
        /// What is wrong with that.
        why: EntryFault,
    },
    /// Two things lie on the same bytes.
    #[error("{what} lies on {other}{}", pointed_to(*entry))]
    Overlap {
        /// The file.
        path: PathBuf,
        /// What is in the wrong place.
        what: &'static str,
        /// Where it is.
        range: ByteRange,
        /// What has been there.
        other: &'static str,
        /// Where the entry is that points there, if one does.
        entry: Option<ByteRange>,
    },
    /// Two places of the disk lie on the same bytes of the file.
    #[error(
        "the disk's {guest} and its {other_guest} both lie here, as the L2 entries at {} and {} say",
        entry.start(), other_entry.start()
    )]
    SharedCluster {
        /// The file.
        path: PathBuf,
        /// Which bytes of it belong to both.
        range: ByteRange,
        /// Where the later of the two entries is.
        entry: ByteRange,
        /// Which bytes of the disk that one is about.
        guest: ByteRange,
        /// Where the other entry is.
        other_entry: ByteRange,
        /// Which bytes of the disk that one is about.
        other_guest: ByteRange,
    },
    /// More use a cluster than its reference count says.
    #[error(
        "the image uses this cluster {}, and its reference count is {count}{}",
        times(*uses), both_pointed_to(*entry, *other_entry)
    )]
    RefcountTooLow {
        /// The file.
        path: PathBuf,
        /// Where the cluster is.
        range: ByteRange,
        /// How often it is used.
        uses: u64,
        /// What is counted.
        count: u64,
        /// Where one of the entries is that point there, if any does: one that says that it is
        /// alone first, then one of the disk's.
        entry: Option<ByteRange>,
        /// Where another one is.
        other_entry: Option<ByteRange>,
    },
    /// An entry of the disk says that it alone uses a cluster, and others use it, too.
    #[error(
        "the entry at {} says that it alone uses this cluster, and the image uses it {uses} times{}",
        entry.start(), pointed_to(*other_entry)
    )]
    SaidAlone {
        /// The file.
        path: PathBuf,
        /// Where the cluster is.
        range: ByteRange,
        /// How often it is used.
        uses: u64,
        /// Where the entry is that says so.
        entry: ByteRange,
        /// Where another one is that points there, if one does.
        other_entry: Option<ByteRange>,
    },
    /// Not all was looked at that no rebuild needs.
    #[error(
        "what snapshots and bitmaps have, and reference counts, were not looked at to the end: that is more work than \
         the bytes that the file stores allow"
    )]
    CheckIncomplete {
        /// The file.
        path: PathBuf,
    },
    /// What belongs to the disk lies too far apart in a file that is too long.
    #[error("the file is too long, and what belongs to the disk lies too far apart in it")]
    TooScattered {
        /// The file.
        path: PathBuf,
    },
    /// The tables would take more memory than all images together may.
    #[error("the tables need {needed} more bytes of memory and {left} are left")]
    TooMuchMetadata {
        /// The file.
        path: PathBuf,
        /// What they need.
        needed: u64,
        /// What of the bound is left.
        left: u64,
    },
    /// The image names another file that may not be opened.
    #[error("the backing file {name:?} {why}")]
    BackingRefused {
        /// The image that names it.
        path: PathBuf,
        /// The name as it stands in the image, bytes that are no UTF-8 replaced.
        name: String,
        /// Where the name is.
        range: ByteRange,
        /// Why not.
        why: BackingFault,
    },
    /// A chain of backing files comes back to itself.
    #[error("the backing file {name:?} is an image of this chain, which so comes back to itself")]
    ChainLoops {
        /// The image that names it.
        path: PathBuf,
        /// The name as it stands in the image, bytes that are no UTF-8 replaced.
        name: String,
        /// Where the name is.
        range: ByteRange,
    },
    /// A chain of backing files is too long.
    #[error("the chain of backing files is longer than {limit}")]
    ChainTooDeep {
        /// The last file that was reached.
        path: PathBuf,
        /// Where it names the next one.
        range: ByteRange,
        /// How many layers there may be.
        limit: usize,
    },
    /// A compressed cluster cannot be decompressed.
    #[error("a compressed cluster {why}")]
    BadCompression {
        /// The file.
        path: PathBuf,
        /// Where the compressed bytes are.
        range: ByteRange,
        /// What is wrong with them.
        why: &'static str,
    },
    /// The content is packed, and name or format do not say so.
    #[error(
        "the content is {codec}, and the name does not end in .{ending}, or the format is said to be another"
    )]
    PackedUnsaid {
        /// The file.
        path: PathBuf,
        /// What it is packed with.
        codec: &'static str,
        /// The ending that says so.
        ending: &'static str,
        /// By which bytes it is known.
        range: ByteRange,
    },
    /// Something else than a raw image is packed.
    #[error(
        "what is packed with {codec} is {content}, as its {guest} say, and only raw images are unpacked on the way"
    )]
    PackedFormat {
        /// The file.
        path: PathBuf,
        /// What it is packed with.
        codec: &'static str,
        /// What it holds.
        content: &'static str,
        /// By which of the bytes that come out it is known.
        guest: ByteRange,
    },
    /// A packed image lies on a device, whose end is not the stream's.
    #[error("a {codec} stream is read from a regular file, and this is a block device")]
    StreamOnDevice {
        /// The device.
        path: PathBuf,
        /// What it is packed with.
        codec: &'static str,
    },
    /// A packed image is not as its format demands.
    #[error("the {codec} stream {why}")]
    BadStream {
        /// The file.
        path: PathBuf,
        /// What it is packed with.
        codec: &'static str,
        /// From where it was found to the file's end.
        range: ByteRange,
        /// What is wrong with it.
        why: String,
    },
    /// Decoding a packed image would take more than it may.
    #[error("the {codec} stream needs {what}")]
    StreamNeeds {
        /// The file.
        path: PathBuf,
        /// What it is packed with.
        codec: &'static str,
        /// From where it was found to the file's end.
        range: ByteRange,
        /// What it needs.
        what: String,
    },
    /// A packed image holds more than there can be room for.
    #[error("the {codec} stream holds more than {most} bytes, and no more have room")]
    StreamTooLong {
        /// The file.
        path: PathBuf,
        /// What it is packed with.
        codec: &'static str,
        /// How long the disk may be.
        most: u64,
    },
}

/// How often something is.
fn times(count: u64) -> String {
    if count == 1 { "once".into() } else { format!("{count} times") }
}

/// Who says so, behind what is wrong with a place.
fn pointed_to(entry: Option<ByteRange>) -> String {
    entry.map(|entry| format!(" (the entry at {} points there)", entry.start())).unwrap_or_default()
}

/// The same of two.
fn both_pointed_to(entry: Option<ByteRange>, other: Option<ByteRange>) -> String {
    match (entry, other) {
        (Some(entry), Some(other)) => {
            format!(" (the entries at {} and {} point there)", entry.start(), other.start())
        }
        (entry, _) => pointed_to(entry),
    }
}

/// What is wrong with a table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryFault {
    /// Bits are set that the format reserves.
    #[error("has reserved bits set")]
    ReservedBits,
    /// It points into the middle of a cluster.
    #[error("points into the middle of a cluster")]
    Misaligned,
    /// Another entry of the same table points to the same place.
    #[error("points to a table that another entry points to, that at {other}")]
    SharedTable {
        /// Where in the file the other entry begins.
        other: u64,
    },
    /// It gives a table that is longer than any may be.
    #[error("gives a table of more than 32 MiB")]
    TooLong,
    /// A subcluster is said to be both data and zero.
    #[error("says of a subcluster that it is data and zero")]
    DataAndZero,
    /// Subclusters are said to be data, but there is no cluster.
    #[error("says that subclusters are data and gives no cluster")]
    DataWithoutCluster,
}

/// Why a backing file is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackingFault {
    /// No folder was allowed that holds it.
    #[error("is in no folder that is allowed")]
    NotAllowed,
    /// The name holds a NUL.
    #[error("has a NUL in its name")]
    NulInName,
    /// The name asks for a protocol.
    #[error("is the name of a protocol")]
    Protocol,
    /// The image does not say which format it has.
    #[error("has no format in the image's header, and formats are not guessed")]
    NoFormat,
    /// The image names a format that is not read here.
    #[error("has a format that is neither raw nor qcow2")]
    UnknownFormat,
    /// It does not exist.
    #[error("does not exist")]
    Missing,
    /// It is no regular file.
    #[error("is no regular file")]
    WrongKind,
    /// The links on the way to it lead in a circle, or one was put there while it was opened.
    #[error("leads through links in a circle, or through one that has just been put there")]
    LinksInCircle,
    /// It is longer than names may be.
    #[error("is longer than a file's name may be")]
    TooLong,
}

impl ImageError {
    /// Whether it tells of a packed image something that only decoding it shows.
    pub(crate) fn is_of_stream(&self) -> bool {
        matches!(
            self,
            Self::BadStream { .. }
                | Self::StreamNeeds { .. }
                | Self::StreamTooLong { .. }
                | Self::PackedFormat { .. }
        )
    }

    /// Whether the disk could not read these bytes, as of a sector that has gone bad: others may be read all the same.
    pub(crate) fn is_unreadable(&self) -> bool {
        // What the block layer says of a medium (`blk_errors` of block/blk-core.c), and file systems of a checksum.
        const OF_THE_MEDIUM: [i32; 5] =
            [libc::EIO, libc::ENODATA, libc::EILSEQ, libc::EREMOTEIO, libc::EBADMSG];
        let Self::Io { range: Some(_), source, .. } = self else { return false };
        source.raw_os_error().is_some_and(|errno| OF_THE_MEDIUM.contains(&errno))
    }
}
