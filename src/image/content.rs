//! What a file's content looks like, whatever its name says.

use super::error::ImageError;
use super::file::{SourceFile, Stretch};
use super::stream::Codec;
use crate::range::ByteRange;

/// How many bytes of a file's beginning tell its format.
pub(crate) const HEAD_LEN: usize = 4096;

/// The magic of qcow and qcow2: "QFI\xfb".
pub(super) const QCOW_MAGIC: [u8; 4] = *b"QFI\xfb";

/// Formats that are known by bytes at a fixed offset from the beginning.
const HEAD_MAGICS: &[(usize, &[u8], &str)] = &[
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"conectix", "vhd"),
    (0, b"vhdxfile", "vhdx"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"QED\0", "qed"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (0, b"SKUL\xba\xbe", "LUKS"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0, b"Bochs Virtual HD Image", "bochs"),
    (0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", "cloop"),
];

/// Ways to pack files that are not unpacked here.
const OTHER_PACKERS: &[(&[u8], &str)] = &[
    (b"BZh", "bzip2"),
    (b"LZIP", "lzip"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"PK\x03\x04", "zip"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
];

/// Where the bytes lie by which the formats below are known: so far before the end.
pub(crate) const TAIL_LEN: u64 = 512;

/// So many stored bytes of a file are looked at for something else than zeroes.
const MOST_LOOKED_AT: u64 = 16 << 20;

/// Formats that are known by their last 512 bytes.
const TAIL_MAGICS: &[(&[u8], &str)] = &[(b"conectix", "vhd"), (b"koly", "dmg")];

/// What a file's content looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// No disk-image format that is known here.
    Plain,
    /// qcow2, or a version of it that nobody reads.
    Qcow2,
    /// What came before qcow2, and begins alike.
    Qcow1,
    /// Another disk-image format, or a packed file that is not unpacked here.
    Foreign(&'static str),
    /// A packed file.
    Packed(Codec),
}

impl Content {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "raw",
            Self::Qcow2 => "qcow2",
            Self::Qcow1 => "qcow version 1",
            Self::Foreign(name) => name,
            Self::Packed(codec) => codec.name(),
        }
    }
}

/// What a file's or a disk's content looks like, and by which of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) content: Content,
    /// Where the signature is; of content that has none, where that of qcow2 would be.
    pub(super) range: ByteRange,
}

impl Seen {
    fn at(offset: usize, len: usize, content: Content) -> Self {
        Self { content, range: ByteRange::new(offset as u64, len as u64) }
    }
}

/// Looks at the beginning and the end of a file.
pub(super) fn look(file: &SourceFile) -> Result<Seen, ImageError> {
    let len = usize::try_from(file.len()).unwrap_or(usize::MAX).min(HEAD_LEN);
    let mut head = [0; HEAD_LEN];
    let head = &mut head[..len];
    file.read_exact_at(head, 0)?;
    if let Some(seen) = of_head(head) {
        return Ok(seen);
    }
    if let Some(offset) = file.len().checked_sub(TAIL_LEN) {
        let mut tail = [0; 8];
        file.read_exact_at(&mut tail, offset)?;
        if let Some(seen) = of_tail(tail, offset) {
            return Ok(seen);
        }
    }
    Ok(Seen::at(0, QCOW_MAGIC.len(), Content::Plain))
}

/// What a file without any signature holds, where that is nothing at all: so looks what was not transferred whole.
pub(super) fn nothing_in(file: &SourceFile) -> Result<Option<&'static str>, ImageError> {
    if file.len() == 0 {
        return Ok(Some("empty"));
    }
    let (mut part, mut at, mut left) = (vec![0; 64 << 10], 0, MOST_LOOKED_AT);
    while at < file.len() {
        let rest = ByteRange::between(at, file.len());
        let (stretch, range) = file.stretch_at(rest);
        if stretch == Stretch::Hole {
            at = range.end();
            continue;
        }
        if left == 0 {
            return Ok(Some("zeroes for as far as it was looked at"));
        }
        let len = range.len().min(part.len() as u64).min(left);
        let bytes = &mut part[..usize::try_from(len).expect("at most 64 KiB")];
        file.read_exact_at(bytes, at)?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Ok(None);
        }
        (at, left) = (at + len, left - len);
    }
    Ok(Some("all zeroes"))
}

/// What the disk in an image begins or ends like, by its first `HEAD_LEN` bytes and those at `TAIL_LEN` before its end.
pub(super) fn of_disk(head: &[u8], tail: Option<(u64, [u8; 8])>) -> Option<Seen> {
    of_head(head).or_else(|| tail.and_then(|(offset, tail)| of_tail(tail, offset)))
}

/// What a disk's first bytes (`HEAD_LEN`, or all of it) are known for.
pub(super) fn of_head(head: &[u8]) -> Option<Seen> {
    if head.starts_with(&QCOW_MAGIC) {
        let content = if head.get(4..8) == Some(&[0, 0, 0, 1]) { Content::Qcow1 } else { Content::Qcow2 };
        return Some(Seen::at(0, QCOW_MAGIC.len(), content));
    }
    if let Some(codec) = Codec::of(head) {
        return Some(Seen::at(0, codec.magic_len(), Content::Packed(codec)));
    }
    let known = HEAD_MAGICS
        .iter()
        .find(|(offset, magic, _)| head.get(*offset..).is_some_and(|bytes| bytes.starts_with(magic)));
    if let Some((offset, magic, name)) = known {
        return Some(Seen::at(*offset, magic.len(), Content::Foreign(name)));
    }
    let packed = OTHER_PACKERS.iter().find(|(magic, _)| head.starts_with(magic));
    if let Some((magic, name)) = packed {
        return Some(Seen::at(0, magic.len(), Content::Foreign(name)));
    }
    vmdk_descriptor(head).map(|range| Seen { content: Content::Foreign("vmdk"), range })
}

/// What the first bytes of a disk's last sector are known for; `offset` is where they are.
pub(super) fn of_tail(tail: [u8; 8], offset: u64) -> Option<Seen> {
    let (magic, name) = TAIL_MAGICS.iter().find(|(magic, _)| tail.starts_with(magic))?;
    Some(Seen { content: Content::Foreign(name), range: ByteRange::new(offset, magic.len() as u64) })
}

/// Where a text says that it names other files as extents: comments and empty lines, then `version=`.
fn vmdk_descriptor(head: &[u8]) -> Option<ByteRange> {
    const TITLE: &[u8] = b"# Disk DescriptorFile";
    const VERSION: &[u8] = b"version=";
    if head.get(..TITLE.len()).is_some_and(|start| start.eq_ignore_ascii_case(TITLE)) {
        return Some(ByteRange::new(0, TITLE.len() as u64));
    }
    let mut at = 0;
    for line in head.split(|byte| *byte == b'\n') {
        let text = line.trim_ascii();
        if !text.is_empty() && !text.starts_with(b"#") {
            let start = at + (line.len() - line.trim_ascii_start().len());
            let says = text.get(..VERSION.len()).is_some_and(|start| start.eq_ignore_ascii_case(VERSION));
            return says.then(|| ByteRange::new(start as u64, VERSION.len() as u64));
        }
        at += line.len() + 1;
    }
    None
}
