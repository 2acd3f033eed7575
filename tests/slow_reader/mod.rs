//! A plain, slow reader of qcow2, written from the specification (qemu's `docs/interop/qcow2`) and from nothing else:
//! it judges what the engine does with an image, so it shares no code with it, and decodes with other decoders.
//!
//! It knows three answers. An image that breaks the specification where that can hurt is `Refused`. Any other is a
//! `Disk`: what it holds, and its `oddities`, which are what a careful reader may refuse and a lenient one may read.
//! An image without oddities must be read by everybody.
//!
//! Where the specification leaves it open, these rules hold: an image that is cut short is refused and not read as
//! zeroes; names are followed only into folders that are allowed, and only with a format beside them; one L2 table in
//! two L1 entries is refused, because a small file could describe endless work.

mod header;
mod tables;
mod unpack;

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use header::{Backing, Header};
use tables::{Piece, Tables};

/// Disks of more bytes are judged by their tables alone.
pub(crate) const MOST_BYTES: u64 = 16 << 20;

/// How many layers everybody must read.
const LAYERS: usize = 16;

/// How many layers anybody may read.
const MOST_LAYERS: usize = 64;

/// What a file is said to be; it is never guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Raw,
    Qcow2,
}

/// When a fault can be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// From headers and tables.
    Tables,
    /// Only when a compressed cluster is decoded.
    Payload,
}

/// An image that nobody may read.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) stage: Stage,
    pub(crate) why: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused ({:?}): {}", self.stage, self.why)
    }
}

/// A reason to refuse that headers and tables give.
fn refused<T>(why: impl Into<String>) -> Result<T, Refused> {
    Err(Refused { stage: Stage::Tables, why: why.into() })
}

/// What an image holds.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) size: u64,
    /// All of it; `None` for a disk of more than `MOST_BYTES`.
    pub(crate) bytes: Option<Vec<u8>>,
    /// What may be refused, but need not.
    pub(crate) oddities: Oddities,
}

pub(crate) type Oddities = BTreeSet<&'static str>;

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.bytes.as_ref().map_or("not read", |_| "read");
        write!(f, "a disk of {} bytes, {known}, odd: {:?}", self.size, self.oddities)
    }
}

/// Reads an image and all files below it, which must lie in `folders`.
pub(crate) fn read(path: &Path, format: Format, folders: &[&Path]) -> Result<Disk, Refused> {
    let mut oddities = Oddities::new();
    let layers = chain(path, format, folders, &mut oddities)?;
    let size = layers[0].size();
    let bytes = match size {
        ..=MOST_BYTES => {
            let mut bytes = vec![0; index(size)];
            fill(&layers, 0, &mut bytes, &mut oddities)?;
            Some(bytes)
        }
        _ => None,
    };
    Ok(Disk { size, bytes, oddities })
}

/// A file that can be asked for any bytes it has.
struct Bytes {
    file: File,
    len: u64,
}

impl Bytes {
    fn open(path: &Path) -> Result<Self, Refused> {
        let is_file = |metadata: std::fs::Metadata| metadata.is_file();
        if !std::fs::metadata(path).is_ok_and(is_file) {
            return refused(format!("{} is no file", path.display()));
        }
        let file = File::open(path).expect("a file of the test can be opened");
        let len = file.metadata().unwrap().len();
        Ok(Self { file, len })
    }

    /// Bytes that were found to lie within the file.
    fn at(&self, offset: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; index(len)];
        self.file.read_exact_at(&mut bytes, offset).expect("bytes within a file of the test can be read");
        bytes
    }

    fn has(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.len)
    }
}

/// One file of a chain.
struct Layer {
    bytes: Bytes,
    qcow2: Option<(Header, Tables)>,
}

impl Layer {
    fn open(path: &Path, format: Format, oddities: &mut Oddities) -> Result<Self, Refused> {
        let bytes = Bytes::open(path)?;
        let qcow2 = match format {
            Format::Raw => {
                check_raw(&bytes, oddities)?;
                None
            }
            Format::Qcow2 => {
                let header = Header::read(&bytes, oddities)?;
                let tables = Tables::read(&bytes, &header, oddities)?;
                Some((header, tables))
            }
        };
        Ok(Self { bytes, qcow2 })
    }

    fn size(&self) -> u64 {
        self.qcow2.as_ref().map_or(self.bytes.len, |(header, _)| header.size)
    }
}

/// What is said to be raw must not be another image, for somebody else may take it for one.
fn check_raw(bytes: &Bytes, oddities: &mut Oddities) -> Result<(), Refused> {
    let head = bytes.at(0, bytes.len.min(512));
    if head.starts_with(b"QFI\xfb") {
        return refused("a raw file that begins like qcow2");
    }
    // Text and noise that the tests write begin like nothing that is known.
    let plain = head.is_empty() || head[0] == 0 || head.starts_with(b"1\n2\n3\n");
    if !plain {
        oddities.insert("a raw file that may look like something else");
    }
    Ok(())
}

/// The image's own file, and those below it.
fn chain(
    path: &Path,
    format: Format,
    folders: &[&Path],
    oddities: &mut Oddities,
) -> Result<Vec<Layer>, Refused> {
    let (mut layers, mut seen) = (Vec::new(), BTreeSet::new());
    let Ok(path) = path.canonicalize() else { return refused("there is no such file") };
    let mut next = Some((path, format));
    while let Some((path, format)) = next {
        let layer = Layer::open(&path, format, oddities)?;
        let metadata = layer.bytes.file.metadata().unwrap();
        if !seen.insert((metadata.dev(), metadata.ino())) {
            return refused("a chain that comes back to itself");
        }
        next = match layer.qcow2.as_ref().and_then(|(header, _)| header.backing.as_ref()) {
            Some(backing) => Some(below(&path, backing, folders)?),
            None => None,
        };
        layers.push(layer);
        if layers.len() > MOST_LAYERS {
            return refused("a chain without an end");
        }
        if layers.len() > LAYERS {
            oddities.insert("a long chain");
        }
    }
    Ok(layers)
}

/// The file below an image.
fn below(path: &Path, (name, format): &Backing, folders: &[&Path]) -> Result<(PathBuf, Format), Refused> {
    let format = match format.as_deref() {
        Some(b"raw") => Format::Raw,
        Some(b"qcow2") => Format::Qcow2,
        other => return refused(format!("a backing file of the format {other:?}")),
    };
    let slash = name.iter().position(|byte| *byte == b'/').unwrap_or(name.len());
    if name.contains(&0) || name[..slash].contains(&b':') {
        return refused("a backing name that is no path");
    }
    let folder = path.parent().expect("an image lies in a folder");
    let Ok(path) = folder.join(std::ffi::OsStr::from_bytes(name)).canonicalize() else {
        return refused("a backing name that leads nowhere");
    };
    let allowed =
        |folder: &&Path| path.starts_with(folder.canonicalize().expect("an allowed folder is there"));
    if !folders.iter().any(allowed) {
        return refused("a backing name that leads out of what is allowed");
    }
    Ok((path, format))
}

/// Fills `buffer` with what the layers say from `start` on, the topmost first; beyond their end there are zeroes.
fn fill(layers: &[Layer], start: u64, buffer: &mut [u8], oddities: &mut Oddities) -> Result<(), Refused> {
    let Some((layer, lower)) = layers.split_first() else { return Ok(()) };
    let len = layer.size().saturating_sub(start).min(buffer.len() as u64);
    let buffer = &mut buffer[..index(len)];
    let Some((header, tables)) = &layer.qcow2 else {
        layer.bytes.file.read_exact_at(buffer, start).expect("a raw layer can be read");
        return Ok(());
    };
    let mut at = start;
    while at < start + len {
        let (piece, end) = tables.at(at);
        let end = end.min(start + len);
        let part = &mut buffer[index(at - start)..index(end - start)];
        match piece {
            Piece::Nothing => fill(lower, at, part, oddities)?,
            Piece::Zero => part.fill(0),
            Piece::Data { host } => {
                layer.bytes.file.read_exact_at(part, host).expect("the tables were checked");
            }
            Piece::Packed { host, len, skip } => {
                let packed = layer.bytes.at(host, len);
                let cluster = unpack::cluster(header, &packed, oddities)
                    .map_err(|why| Refused { stage: Stage::Payload, why: format!("at {host}: {why}") })?;
                part.copy_from_slice(&cluster[index(skip)..][..part.len()]);
            }
        }
        at = end;
    }
    Ok(())
}

fn index(len: u64) -> usize {
    usize::try_from(len).expect("what is read here fits in memory")
}
