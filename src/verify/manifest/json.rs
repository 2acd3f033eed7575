//! The manifest as JSON (`schemas/manifest-1.json`), and back: bounded, with every field checked.
//!
//! What is not known is passed over: a change that a reader must know of comes with another version.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use super::super::digest::bytes_of_hex;
use super::super::runs::{MOST_CHUNKS, Runs};
use super::super::{CHUNK, Digest, DigestTable};
use super::{Former, ImageFileDigests, Made, Manifest, ManifestError};
use crate::range::ByteRange;

/// What a manifest says that it is.
pub(super) const FORMAT: &str = "reimage-manifest";
const VERSION: u64 = 1;
/// A line for each digest, and the lines around it where it is a run of its own.
const DIGEST_LINE: u64 = 72;
const RUN_LINES: u64 = 56;
/// Longer is no manifest: as many digests as there may be, each of them a run of its own, and all else.
pub(crate) const MOST_BYTES: u64 = MOST_CHUNKS as u64 * (DIGEST_LINE + RUN_LINES) + (1 << 20);
/// More bytes than these of a disk's head does no moved GPT change: two sectors, and the size in the protective MBR.
const MOST_OF_HEAD: usize = 16 << 10;
/// Longer than the name and version of any program, or the name of a format.
const LONGEST_NAME: usize = 128;

/// A manifest as it is written.
#[derive(Serialize)]
struct Written<'a> {
    format: &'static str,
    version: u64,
    virtual_size: u64,
    chunk_size: u64,
    root: Digest,
    #[serde(skip_serializing_if = "Option::is_none")]
    whole_digest: Option<Digest>,
    image: ImageFileDigests,
    made: &'a Made,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    gpt_head: Vec<WrittenHead>,
    chunks: &'a DigestTable,
}

/// The same as it is read; nothing of it is checked.
#[derive(Deserialize)]
struct Read {
    virtual_size: u64,
    chunk_size: u64,
    root: Digest,
    #[serde(default)]
    whole_digest: Option<Digest>,
    image: ImageFileDigests,
    made: Made,
    #[serde(default)]
    gpt_head: Vec<WrittenHead>,
    chunks: Runs,
}

/// What is looked at first.
#[derive(Deserialize)]
struct Kind {
    format: String,
    version: u64,
}

#[derive(Serialize, Deserialize)]
struct WrittenHead {
    offset: u64,
    bytes: String,
}

/// Whether a file's bytes, all of them, are JSON that says it is a manifest, of whatever version.
pub(super) fn says_manifest(text: &[u8]) -> bool {
    serde_json::from_slice(text).is_ok_and(|Kind { format, .. }| format == FORMAT)
}

impl Manifest {
    /// The manifest as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut text = Vec::new();
        self.write_json(&mut text).expect("memory takes what is written");
        String::from_utf8(text).expect("JSON is UTF-8")
    }

    /// Writes the JSON, a digest a line.
    pub(super) fn write_json(&self, out: impl Write) -> io::Result<()> {
        let hex = |former: &Former| former.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let head = |former: &Former| WrittenHead { offset: former.range.start(), bytes: hex(former) };
        let written = Written {
            format: FORMAT,
            version: VERSION,
            virtual_size: self.virtual_size(),
            chunk_size: CHUNK,
            root: self.root,
            whole_digest: self.whole,
            image: self.file,
            made: &self.made,
            gpt_head: self.head.iter().map(head).collect(),
            chunks: &self.digests,
        };
        let mut out = io::BufWriter::new(out);
        let form = serde_json::ser::PrettyFormatter::with_indent(b" ");
        written.serialize(&mut serde_json::Serializer::with_formatter(&mut out, form))?;
        out.write_all(b"\n")?;
        out.flush()
    }

    /// Reads a manifest; what it takes in memory is bounded by the text's length, and that by a constant.
    ///
    /// # Errors
    ///
    /// When the text is too long or no manifest of this version, or a field contradicts another: sizes, order and
    /// number of the chunks, the root.
    pub fn from_json(text: &[u8]) -> Result<Self, ManifestError> {
        let bytes = text.len() as u64;
        if bytes > MOST_BYTES {
            return Err(ManifestError::TooLong { bytes, most: MOST_BYTES });
        }
        let Kind { format, version } = serde_json::from_slice(text).map_err(ManifestError::Json)?;
        if format != FORMAT {
            return Err(ManifestError::Format { format: format.chars().take(LONGEST_NAME).collect() });
        }
        if version != VERSION {
            return Err(ManifestError::Version { found: version, known: VERSION });
        }
        let read: Read = serde_json::from_slice(text).map_err(ManifestError::Json)?;
        if read.chunk_size != CHUNK {
            return Err(ManifestError::ChunkSize { found: read.chunk_size, known: CHUNK });
        }
        check_made(&read.made, read.virtual_size)?;
        let head = check_head(read.gpt_head, read.virtual_size)?;
        let digests = read.chunks.into_table(read.virtual_size)?;
        let root = digests.root();
        if read.root != root {
            return Err(ManifestError::Root { said: read.root, computed: root });
        }
        Ok(Self { digests, root, whole: read.whole_digest, file: read.image, made: read.made, head })
    }
}

fn check_made(made: &Made, virtual_size: u64) -> Result<(), ManifestError> {
    let wrong = |name, why| Err(ManifestError::Field { name, why });
    if made.tool.len() > LONGEST_NAME {
        return wrong("made.tool", "is longer than any program's name");
    }
    if made.image_format.len() > LONGEST_NAME {
        return wrong("made.image_format", "is longer than any format's name");
    }
    let mut least = 0;
    for range in &made.filled {
        if range.is_empty() || range.start() < least || range.end() > virtual_size {
            return wrong("made.filled", "has a range that is empty, out of order, or not on the disk");
        }
        least = range.end();
    }
    Ok(())
}

fn check_head(head: Vec<WrittenHead>, virtual_size: u64) -> Result<Vec<Former>, ManifestError> {
    let wrong = |why| ManifestError::Field { name: "gpt_head", why };
    let (mut formers, mut least, mut sum) = (Vec::new(), 0, 0);
    for WrittenHead { offset, bytes } in head {
        let bytes = bytes_of_hex(&bytes).ok_or_else(|| wrong("has bytes that are no hexadecimal digits"))?;
        sum += bytes.len();
        if bytes.is_empty() || sum > MOST_OF_HEAD {
            return Err(wrong("has no bytes, or more than a moved GPT changes"));
        }
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= virtual_size.min(CHUNK));
        let Some(end) = end.filter(|_| offset >= least) else {
            return Err(wrong("has bytes that are out of order, or not in the disk's head"));
        };
        least = end;
        formers.push(Former { range: ByteRange::between(offset, end), bytes });
    }
    Ok(formers)
}

/// 32 bytes as hexadecimal digits.
pub(super) mod hex {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use crate::verify::Digest;

    pub(in super::super) fn serialize<S: Serializer>(
        bytes: &[u8; 32],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        Digest::from_bytes(*bytes).serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<[u8; 32], D::Error> {
        Ok(*Digest::deserialize(deserializer)?.as_bytes())
    }
}

/// Ranges whose end fits in 64 bits.
pub(super) mod ranges {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serialize as _, Serializer};

    use crate::range::ByteRange;

    pub(in super::super) fn serialize<S: Serializer>(
        ranges: &[ByteRange],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        ranges.serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<ByteRange>, D::Error> {
        #[derive(Deserialize)]
        struct Range {
            offset: u64,
            len: u64,
        }
        let ranges = Vec::<Range>::deserialize(deserializer)?;
        let range = |Range { offset, len }| match offset.checked_add(len) {
            Some(end) => Ok(ByteRange::between(offset, end)),
            None => Err(D::Error::custom("a range ends behind 64 bits")),
        };
        ranges.into_iter().map(range).collect()
    }
}
