//! What an operator can do about an image that is refused, and which rule it breaks.

use std::path::Path;

use super::error::{BackingFault, EntryFault, ImageError};

impl ImageError {
    /// What an operator can do about it, and where the rule is that is broken.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let advice = self.advice();
        Some(match self.section() {
            Some(section) => format!("{advice} (the rule is in qemu's docs/interop/qcow2, \"{section}\")"),
            None => advice,
        })
    }

    /// The section of the qcow2 specification whose rule is broken, where it is one of those.
    #[must_use]
    pub fn section(&self) -> Option<&'static str> {
        Some(match self {
            Self::BadHeader { field: "extension length", .. } => "Header extensions",
            Self::BadHeader { .. } | Self::Unsupported { .. } | Self::MarkedCorrupt { .. } => "Header",
            Self::BadEntry { why: EntryFault::DataAndZero | EntryFault::DataWithoutCluster, .. } => {
                "Extended L2 Entries"
            }
            Self::BadEntry { table: "L1" | "snapshot's L1", .. } => "L1 table entry",
            Self::BadEntry { table: "L2", .. } | Self::SharedCluster { .. } => "L2 table entry",
            Self::BadEntry { table: "refcount table", .. }
            | Self::RefcountTooLow { .. }
            | Self::SaidAlone { .. } => "Host cluster management",
            Self::BadEntry { table: "snapshot table", .. } => "Snapshots",
            Self::BadEntry { table: "bitmaps extension", .. } => "Bitmaps extension",
            Self::BadEntry { table: "bitmap directory", .. } => "Bitmap directory",
            Self::BadEntry { table: "bitmap table", .. } => "Bitmap table",
            Self::BadCompression { .. } => "Compressed Clusters Descriptor",
            Self::BeyondEnd { what, .. } | Self::Overlap { what, .. } => match *what {
                "the refcount table" | "a refcount block" => "Host cluster management",
                "the snapshot table" | "a snapshot's L1 table" => "Snapshots",
                "an L2 table" | "a snapshot's L2 table" => "L1 table entry",
                "the bitmap directory" => "Bitmaps extension",
                "a bitmap's table" => "Bitmap directory",
                "a bitmap" => "Bitmap table",
                "a data cluster" | "a cluster" | "the place of a cluster that reads as zeroes" => {
                    "Standard Cluster Descriptor"
                }
                "a compressed cluster" => "Compressed Clusters Descriptor",
                _ => "Header",
            },
            _ => return None,
        })
    }

    fn advice(&self) -> String {
        match self {
            Self::Missing { .. } => "correct the image's path, or name another image".into(),
            Self::BeingWritten { .. } => "stop what uses the image, or wait for it to end".into(),
            Self::NameDisagrees { .. } => "say the format with --image-format, or rename the file".into(),
            Self::NestedFormat { .. } | Self::NestedDisk { .. } => {
                "if the disk is really meant to hold these bytes as they are, say --allow-nested-format"
                    .into()
            }
            Self::BackingRefused { why: BackingFault::NotAllowed, .. } => {
                "if the image is trusted, allow the folder with --allow-backing DIR, \
                 or make it one file with `qemu-img convert`"
                    .into()
            }
            Self::BackingRefused { why: BackingFault::NoFormat, .. } => {
                "write the format into the image with `qemu-img rebase -u -F FORMAT -b FILE IMAGE`".into()
            }
            Self::BeyondEnd { .. } => "fetch the image again and compare its digest".into(),
            Self::MarkedCorrupt { .. } => "repair a copy of it with `qemu-img check -r all`".into(),
            Self::Changed { .. } => "start again when nobody changes the image".into(),
            Self::WrongKind { .. } => "name the image's file, or a block device".into(),
            Self::NoHeader { .. } => {
                "it was probably not transferred whole: fetch the image again and compare its digest".into()
            }
            Self::NotQcow2 { .. } => "leave --image-format out, or say --image-format raw".into(),
            Self::Unsupported { .. } => {
                "if the image is trusted, convert it where it was made: `qemu-img convert -O qcow2`".into()
            }
            Self::BadHeader { .. }
            | Self::BadEntry { .. }
            | Self::Overlap { .. }
            | Self::SharedCluster { .. } => {
                "the image is damaged, or made to do harm: fetch it again and compare its digest".into()
            }
            Self::RefcountTooLow { .. } | Self::SaidAlone { .. } => {
                "reading is not concerned, but whoever writes to the image may overwrite what others use: repair a \
                 copy of it with `qemu-img check -r all`"
                    .into()
            }
            Self::CheckIncomplete { .. } => "no rebuild needs that; `qemu-img check` may look at the rest".into(),
            Self::PackedUnsaid { ending, .. } => format!(
                "let the file's name end in .{ending} and leave --image-format out; if the disk is really meant to \
                 hold these bytes as they are, say --image-format raw --allow-nested-format"
            ),
            Self::PackedFormat { path, codec, content, .. } => unpacking(path, codec, content),
            Self::StreamOnDevice { .. } => "copy the stream into a file, and name that".into(),
            Self::StreamNeeds { .. } => {
                "unpack the image, or pack it again: xz -9 and zstd --ultra -22 --long=26 ask for 64 MiB, and no more \
                 is given"
                    .into()
            }
            Self::StreamTooLong { .. } => "choose a smaller image, or grow the disk (--size for a file)".into(),
            Self::BadCompression { .. } | Self::BadStream { .. } => {
                "the image is damaged: fetch it again and compare its digest".into()
            }
            Self::TooMuchMetadata { .. } | Self::TooScattered { .. } => {
                "convert the image to larger clusters: `qemu-img convert -O qcow2 -o cluster_size=64k`".into()
            }
            Self::BackingRefused { .. } | Self::ChainLoops { .. } | Self::ChainTooDeep { .. } => {
                "correct the chain with `qemu-img rebase`, or make it one file with `qemu-img convert`".into()
            }
            Self::Io { .. } => "check the file's rights and its storage".into(),
        }
    }
}

/// How to come to what is packed.
fn unpacking(path: &Path, codec: &str, content: &str) -> String {
    let then = if content == "qcow2" { "use" } else { "convert with `qemu-img convert -O qcow2`" };
    unpack_and(path, codec, then)
}

/// The command that unpacks the file and leaves it, and what is to be done with what comes out.
pub(crate) fn unpack_and(path: &Path, codec: &str, then: &str) -> String {
    let command = match codec {
        "gzip" => "gzip -d --keep",
        "xz" => "xz -d --keep",
        _ => "zstd -d",
    };
    let unpacked = path.with_extension("");
    format!("unpack it with `{command} {}`, then {then} {:?}", in_shell(path), unpacked.display().to_string())
}

/// A path as a word for a shell.
pub(crate) fn in_shell(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+=:@%".contains(letter);
    if text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}
