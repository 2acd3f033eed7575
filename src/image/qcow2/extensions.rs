//! The header extensions and the backing file's name. Section "Header extensions".

use super::header::{Backing, Fields};
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
pub(super) struct Extensions {
    pub(super) backing: Option<Backing>,
    /// Whether dirty bitmaps are kept.
    pub(super) bitmaps: bool,
}

/// Reads them; `header_len` is where they begin.
pub(super) fn read(fields: &Fields<'_>, header_len: u64) -> Result<Extensions, ImageError> {
    let name_range = backing_name_range(fields, header_len)?;
    let end = name_range.map_or(fields.cluster_size(), ByteRange::start);
    let Walked { format, bitmaps } = walk(fields, ByteRange::between(header_len, end))?;
    let Some(range) = name_range else { return Ok(Extensions { backing: None, bitmaps }) };
    let name = fields.bytes(range, "the backing file's name")?.to_vec();
    Ok(Extensions { backing: Some(Backing { name, range, format }), bitmaps })
}

#[derive(Default)]
struct Walked {
    /// The format of the backing file, if one says it.
    format: Option<Vec<u8>>,
    bitmaps: bool,
}

fn backing_name_range(fields: &Fields<'_>, header_len: u64) -> Result<Option<ByteRange>, ImageError> {
    const OFFSET: super::header::Field = super::header::BACKING_FILE_OFFSET;
    const SIZE: super::header::Field = super::header::BACKING_FILE_SIZE;
    let (offset, len) = (fields.get(OFFSET), fields.get(SIZE));
    if offset == 0 || len == 0 {
        return Ok(None);
    }
    if len > NAME_MAX {
        return Err(fields.fault(SIZE, "is more than 1023"));
    }
    if offset < header_len {
        return Err(fields.fault(OFFSET, "lies on the header's fields"));
    }
    match offset.checked_add(len) {
        Some(end) if end <= fields.cluster_size() => Ok(Some(ByteRange::new(offset, len))),
        _ => Err(fields.fault(OFFSET, "leaves the header cluster")),
    }
}

/// Goes through the extensions within `area`.
fn walk(fields: &Fields<'_>, area: ByteRange) -> Result<Walked, ImageError> {
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
            return Err(fields.fault_at(
                ByteRange::new(at + 4, 4),
                "extension length",
                len,
                "leaves the space for extensions",
            ));
        }
        let bytes = fields.bytes(content, "a header extension")?;
        match kind {
            BACKING_FORMAT => walked.format = Some(bytes.to_vec()),
            BITMAPS => walked.bitmaps = true,
            EXTERNAL_DATA_FILE => {
                return Err(
                    fields.unsupported(ByteRange::between(at, content.end()), "an external data file")
                );
            }
            // Everything else may be skipped: what must not be ignored has an incompatible feature bit.
            _ => {}
        }
        at = padded_end.min(area.end());
    }
    Ok(walked)
}
