//! `Manifest`: what the disk of an image holds, chunk by chunk, and what the image's file is.
//!
//! `json` writes and reads it, `file` knows where it lies.

mod file;
mod json;
#[cfg(test)]
mod schema;
#[cfg(test)]
mod tests;

use std::io;

use serde::{Deserialize, Serialize};

pub(crate) use file::{OldManifest, StagedManifest, beside, check_place, read, write_new};
pub(crate) use json::MOST_BYTES;

use super::runs::TableFault;
use super::{CHUNK, Digest, DigestTable};
use crate::range::ByteRange;
use crate::sys::aligned::PageBuffer;

/// What the disk of an image holds, chunk by chunk, and what the image's file is: `IMAGE.manifest.json`.
///
/// Its form is published as `schemas/manifest-1.json`.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let image = folder.path().join("debian.raw");
/// # std::fs::write(&image, vec![7; 1 << 20])?;
/// let options = reimage::Options::default();
/// let manifest = reimage::manifest(&image, &options, &(), &reimage::CancelToken::new())?;
/// let again = reimage::Manifest::from_json(manifest.to_json().as_bytes())?;
/// assert_eq!((again.virtual_size(), again.root()), (1 << 20, manifest.root()));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    digests: DigestTable,
    root: Digest,
    whole: Option<Digest>,
    file: ImageFileDigests,
    made: Made,
    head: Vec<Former>,
}

/// An image file as it lies.
///
/// ```
/// let file = reimage::ImageFileDigests { bytes: 0, sha256: [0; 32], blake3: reimage::Digest::of(b"") };
/// assert!(serde_json::to_string(&file).unwrap().contains(r#""bytes":0,"sha256":"0000"#));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFileDigests {
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, as `sha256sum` gives it.
    #[serde(with = "json::hex")]
    pub sha256: [u8; 32],
    /// Its BLAKE3, as `b3sum` gives it.
    pub blake3: Digest,
}

impl ImageFileDigests {
    /// Digests a file of `bytes` bytes in one pass; `read` fills its buffer with each piece, in order.
    ///
    /// # Errors
    ///
    /// Those of `read`.
    pub(crate) fn of<E>(
        bytes: u64,
        mut read: impl FnMut(ByteRange, &mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        use sha2::Digest as _;
        let (mut sha256, mut blake3) = (sha2::Sha256::new(), blake3::Hasher::new());
        let mut buffer = PageBuffer::default();
        for piece in ByteRange::new(0, bytes).cut(CHUNK) {
            let buffer = buffer.resized(usize::try_from(piece.len()).expect("a chunk fits in memory"));
            read(piece, buffer)?;
            sha256.update(&*buffer);
            blake3.update(buffer);
        }
        let blake3 = Digest::from_bytes(*blake3.finalize().as_bytes());
        Ok(Self { bytes, sha256: sha256.finalize().into(), blake3 })
    }
}

/// How a manifest came to be.
///
/// ```
/// # let json = r#"{"tool":"reimage 0.1.0","time_s":0,"source":"image","image_format":"raw"}"#;
/// let made: reimage::Made = serde_json::from_str(json).unwrap();
/// assert_eq!(made.source, reimage::SourceKind::Image);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Made {
    /// The program and its version.
    pub tool: String,
    /// When, in seconds since 1970.
    pub time_s: u64,
    /// What the disk's bytes were read from.
    pub source: SourceKind,
    /// The format of the image file: `raw` or `qcow2`.
    pub image_format: String,
    /// Bytes of the disk that could not be read, and are zero in the image instead; in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "json::ranges")]
    pub filled: Vec<ByteRange>,
}

/// What the bytes that a manifest tells of were read from.
///
/// ```
/// assert_eq!(serde_json::to_string(&reimage::SourceKind::Image).unwrap(), r#""image""#);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SourceKind {
    /// An image that was there.
    Image,
    /// A block device that was captured.
    Device,
    /// A disk in a file that was captured.
    File,
}

/// Bytes that the image has where a disk that it was restored to may have others: a backup GPT was moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Former {
    pub(crate) range: ByteRange,
    pub(crate) bytes: Vec<u8>,
}

impl Former {
    /// Those of the bytes that lie in `range`.
    pub(crate) fn part(self, range: ByteRange) -> Option<Self> {
        let range = self.range.intersection(range)?;
        let place = |at: u64| usize::try_from(at - self.range.start()).expect("it is in memory");
        Some(Self { range, bytes: self.bytes[place(range.start())..place(range.end())].to_vec() })
    }
}

impl Made {
    /// Made by this program, now.
    pub(crate) fn now(source: SourceKind, image_format: &str, filled: Vec<ByteRange>) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self {
            tool: concat!("reimage ", env!("CARGO_PKG_VERSION")).to_owned(),
            time_s: now.as_secs(),
            source,
            image_format: image_format.to_owned(),
            filled,
        }
    }
}

impl Manifest {
    /// The manifest of an image whose chunks have these digests; `whole` is the BLAKE3 of the whole disk.
    pub(crate) fn new(
        digests: DigestTable,
        whole: Option<Digest>,
        file: ImageFileDigests,
        made: Made,
    ) -> Self {
        Self { root: digests.root(), digests, whole, file, made, head: Vec::new() }
    }

    /// The same, and what the image has where a moved backup GPT changes the head of the disk: then a larger disk
    /// can be compared with the manifest alone.
    #[must_use]
    pub(crate) fn with_head(mut self, head: Vec<Former>) -> Self {
        self.head = head;
        self
    }

    /// The size of the image's disk in bytes.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.digests.virtual_size()
    }

    /// The one digest that stands for all chunks; the same for the same disk in every image format.
    #[must_use]
    pub fn root(&self) -> Digest {
        self.root
    }

    /// The BLAKE3 that `b3sum` gives for the raw disk, where it was wanted.
    #[must_use]
    pub fn whole_digest(&self) -> Option<Digest> {
        self.whole
    }

    /// What the image's file is.
    #[must_use]
    pub fn image_file(&self) -> &ImageFileDigests {
        &self.file
    }

    /// How the manifest came to be.
    #[must_use]
    pub fn made(&self) -> &Made {
        &self.made
    }

    /// How many chunks of 1 MiB hold data; all others are zero.
    #[must_use]
    pub fn data_chunks(&self) -> usize {
        self.digests.len()
    }

    pub(crate) fn head(&self) -> &[Former] {
        &self.head
    }

    pub(crate) fn digests(&self) -> &DigestTable {
        &self.digests
    }
}

/// Why a manifest is none, or cannot be kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The operating system says no.
    #[error("{doing} failed")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// There is a file of that name.
    #[error("there is a file of that name already")]
    Exists,
    /// It is no regular file.
    #[error("it is no regular file")]
    WrongKind,
    /// There is a file of that name which is no manifest.
    #[error("there is a file of that name which is no manifest, and only a manifest is replaced")]
    OtherThere,
    /// It is longer than any that is written here.
    #[error("it has {bytes} bytes, and no manifest has more than {most}")]
    TooLong {
        /// Its length.
        bytes: u64,
        /// The longest that is read.
        most: u64,
    },
    /// There are more chunks than a manifest holds.
    #[error("the disk has {chunks} chunks with data, and a manifest holds {most}")]
    TooManyChunks {
        /// How many there are.
        chunks: usize,
        /// How many there may be.
        most: usize,
    },
    /// It is no JSON of that form.
    #[error("it is no manifest")]
    Json(#[source] serde_json::Error),
    /// It is JSON of something else.
    #[error("it says that it is a {format:?} and no manifest")]
    Format {
        /// What it says.
        format: String,
    },
    /// A later program made it.
    #[error("it is of version {found}, and this program reads version {known}")]
    Version {
        /// Its version.
        found: u64,
        /// The one that is read.
        known: u64,
    },
    /// The digests are of chunks of another size.
    #[error("its chunks have {found} bytes, and this program's {known}")]
    ChunkSize {
        /// Their size.
        found: u64,
        /// The one that is read.
        known: u64,
    },
    /// The chunks are none of such a disk.
    #[error("its table of chunks is not as it should be: {0}")]
    Chunks(String),
    /// A field is not as it should be.
    #[error("its field {name} {why}")]
    Field {
        /// Which one.
        name: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The root is not that of the chunks.
    #[error("it says that its root is {said}, and its chunks give {computed}: something in it was changed")]
    Root {
        /// What it says.
        said: Digest,
        /// What follows from the chunks.
        computed: Digest,
    },
}

impl From<TableFault> for ManifestError {
    fn from(fault: TableFault) -> Self {
        Self::Chunks(fault.to_string())
    }
}
