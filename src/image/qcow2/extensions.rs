//! The header extensions and the backing file's name. Section "Header extensions".

use super::header::{Backing, Fields, keep};
use crate::image::error::ImageError;
use crate::range::ByteRange;

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTERNAL_DATA_FILE: u32 = 0x4441_5441;
const BITMAPS: u32 = 0x2385_2875;

/// The longest name of a backing file.
pub(super) const NAME_MAX: u64 = 1023;

/// The extension that says a backing file's format, and the end of all extensions.
pub(super) fn backing_format(format: &str) -> Vec<u8> {
    let mut bytes = BACKING_FORMAT.to_be_bytes().to_vec();
    bytes.extend(u32::try_from(format.len()).expect("a format's name is short").to_be_bytes());
    bytes.extend(format.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(8) + 8, 0);
    bytes
}

/// What stands behind the header's fields.
#[derive(Default)]
pub(super) struct Extensions {
    pub(super) backing: Option<Backing>,
    /// Whether dirty bitmaps are kept.
    pub(super) bitmaps: bool,
}

/// Reads them; `header_len` is where they begin.
pub(super) fn read(fields: &Fields<'_>, header_len: u64, faults: &mut Vec<ImageError>) -> Extensions {
    let name_range = backing_name_range(fields, header_len, faults);
    // Where neither is known, nor is where the extensions end.
    let end = name_range.map(ByteRange::start).or(fields.cluster_size());
    let area = end.filter(|end| *end >= header_len).map(|end| ByteRange::between(header_len, end));
    let Walked { format, bitmaps } = area.map(|area| walk(fields, area, faults)).unwrap_or_default();
    let name = name_range.and_then(|range| keep(fields.bytes(range, "the backing file's name"), faults));
    let backing = name.zip(name_range).map(|(name, range)| Backing { name: name.to_vec(), range, format });
    Extensions { backing, bitmaps }
}

#[derive(Default)]
struct Walked {
    /// The format of the backing file, if one says it.
    format: Option<Vec<u8>>,
    bitmaps: bool,
}

fn backing_name_range(
    fields: &Fields<'_>,
    header_len: u64,
    faults: &mut Vec<ImageError>,
) -> Option<ByteRange> {
    const OFFSET: super::header::Field = super::header::BACKING_FILE_OFFSET;
    const SIZE: super::header::Field = super::header::BACKING_FILE_SIZE;
    let (offset, len) = (fields.get(OFFSET), fields.get(SIZE));
    if offset == 0 || len == 0 {
        return None;
    }
    let before = faults.len();
    if len > NAME_MAX {
        faults.push(fields.fault(SIZE, "is more than 1023"));
    }
    if offset < header_len {
        faults.push(fields.fault(OFFSET, "lies on the header's fields"));
    }
    // Of a name that is too long, the beginning must be there.
    let end = offset.checked_add(if len > NAME_MAX { 1 } else { len });
    let leaves = match (end, fields.cluster_size()) {
        (Some(end), Some(cluster)) => end > cluster,
        (end, None) => end.is_none(),
        (None, _) => true,
    };
    if leaves {
        faults.push(fields.fault(OFFSET, "leaves the header cluster"));
    }
    (faults.len() == before && fields.cluster_size().is_some()).then(|| ByteRange::new(offset, len))
}

/// Goes through the extensions within `area`, up to one that leaves it.
fn walk(fields: &Fields<'_>, area: ByteRange, faults: &mut Vec<ImageError>) -> Walked {
    let mut walked = Walked::default();
    let mut at = area.start();
    while area.end() - at >= 8 {
        // Where the file ends inside the header cluster, there is no further extension.
        let Ok(start) = fields.bytes(ByteRange::new(at, 8), "a header extension") else { break };
        let (kind, len) = start.split_at(4);
        let kind = u32::from_be_bytes(kind.try_into().expect("4 bytes"));
        let len = u64::from(u32::from_be_bytes(len.try_into().expect("4 bytes")));
        if kind == END {
            break;
        }
        let content = ByteRange::new(at + 8, len);
        let padded_end = content.start() + len.next_multiple_of(8);
        if content.end() > area.end() {
            faults.push(fields.fault_at(
                ByteRange::new(at + 4, 4),
                "extension length",
                len,
                "leaves the space for extensions",
            ));
            break;
        }
        let Some(bytes) = keep(fields.bytes(content, "a header extension"), faults) else { break };
        match kind {
            BACKING_FORMAT => walked.format = Some(bytes.to_vec()),
            BITMAPS => walked.bitmaps = true,
            EXTERNAL_DATA_FILE => {
                let range = ByteRange::between(at, content.end());
                faults.push(fields.unsupported(range, "an external data file"));
            }
            // Everything else may be skipped: what must not be ignored has an incompatible feature bit.
            _ => {}
        }
        at = padded_end.min(area.end());
    }
    walked
}
