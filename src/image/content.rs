//! What a file's content looks like, whatever its name says.

use super::error::ImageError;
use super::file::SourceFile;
use super::stream::Codec;

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

/// Formats that are known by their last 512 bytes.
const TAIL_MAGICS: &[(&[u8], &str)] = &[(b"conectix", "vhd"), (b"koly", "dmg")];

/// What a file's content looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// No disk-image format that is known here.
    Plain,
    /// qcow2, or a version of it that nobody reads.
    Qcow2,
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
            Self::Foreign(name) => name,
            Self::Packed(codec) => codec.name(),
        }
    }
}

/// Looks at the beginning and the end of a file.
pub(super) fn look(file: &SourceFile) -> Result<Content, ImageError> {
    let len = usize::try_from(file.len()).unwrap_or(usize::MAX).min(HEAD_LEN);
    let mut head = [0; HEAD_LEN];
    let head = &mut head[..len];
    file.read_exact_at(head, 0)?;
    if let Some(content) = of_head(head) {
        return Ok(content);
    }
    if let Some(offset) = file.len().checked_sub(TAIL_LEN) {
        let mut tail = [0; 8];
        file.read_exact_at(&mut tail, offset)?;
        return Ok(of_tail(tail).unwrap_or(Content::Plain));
    }
    Ok(Content::Plain)
}

/// What the disk in an image begins or ends like, by its first `HEAD_LEN` bytes and those at `TAIL_LEN` before its end.
pub(super) fn of_disk(head: &[u8], tail: Option<[u8; 8]>) -> Option<Content> {
    of_head(head).or_else(|| tail.and_then(of_tail))
}

/// What a disk's first bytes (`HEAD_LEN`, or all of it) are known for.
pub(super) fn of_head(head: &[u8]) -> Option<Content> {
    if head.starts_with(&QCOW_MAGIC) {
        return Some(Content::Qcow2);
    }
    if let Some(codec) = Codec::of(head) {
        return Some(Content::Packed(codec));
    }
    let known = |(offset, magic, name): &(usize, &[u8], &'static str)| {
        head.get(*offset..).is_some_and(|bytes| bytes.starts_with(magic)).then_some(*name)
    };
    let packed = |(magic, name): &(&[u8], &'static str)| head.starts_with(magic).then_some(*name);
    let found = HEAD_MAGICS.iter().find_map(known).or_else(|| OTHER_PACKERS.iter().find_map(packed));
    found.or_else(|| is_vmdk_descriptor(head).then_some("vmdk")).map(Content::Foreign)
}

/// What the first bytes of a disk's last sector are known for.
pub(super) fn of_tail(tail: [u8; 8]) -> Option<Content> {
    let known = TAIL_MAGICS.iter().find(|(magic, _)| tail.starts_with(magic));
    known.map(|(_, name)| Content::Foreign(name))
}

/// A text that names other files as extents: comments and empty lines, then `version=`.
fn is_vmdk_descriptor(head: &[u8]) -> bool {
    if head.get(..21).is_some_and(|start| start.eq_ignore_ascii_case(b"# Disk DescriptorFile")) {
        return true;
    }
    head.split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .find(|line| !line.is_empty() && !line.starts_with(b"#"))
        .is_some_and(|line| line.get(..8).is_some_and(|start| start.eq_ignore_ascii_case(b"version=")))
}
