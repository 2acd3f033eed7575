//! What a file's content looks like, whatever its name says.

use super::error::ImageError;
use super::file::SourceFile;

/// How many bytes of a file's beginning tell its format.
const HEAD_LEN: usize = 4096;

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
];

/// Formats that are known by their last 512 bytes.
const TAIL_MAGICS: &[(&[u8], &str)] = &[(b"conectix", "vhd"), (b"koly", "dmg")];

/// What a file's content looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// No disk-image format that is known here.
    Plain,
    /// qcow2, or a version of it that nobody reads.
    Qcow2,
    /// Another disk-image format.
    Foreign(&'static str),
}

impl Content {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "raw",
            Self::Qcow2 => "qcow2",
            Self::Foreign(name) => name,
        }
    }
}

/// Looks at the beginning and the end of a file.
pub(super) fn look(file: &SourceFile) -> Result<Content, ImageError> {
    let len = usize::try_from(file.len()).unwrap_or(usize::MAX).min(HEAD_LEN);
    let mut head = [0; HEAD_LEN];
    let head = &mut head[..len];
    file.read_exact_at(head, 0)?;
    if head.starts_with(&QCOW_MAGIC) {
        return Ok(Content::Qcow2);
    }
    for (offset, magic, name) in HEAD_MAGICS {
        if head.get(*offset..).is_some_and(|bytes| bytes.starts_with(magic)) {
            return Ok(Content::Foreign(name));
        }
    }
    if is_vmdk_descriptor(head) {
        return Ok(Content::Foreign("vmdk"));
    }
    if let Some(offset) = file.len().checked_sub(512) {
        let mut tail = [0; 8];
        file.read_exact_at(&mut tail, offset)?;
        for (magic, name) in TAIL_MAGICS {
            if tail.starts_with(magic) {
                return Ok(Content::Foreign(name));
            }
        }
    }
    Ok(Content::Plain)
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
