//! The header extensions and the backing file's name. Section "Header extensions".

use super::header::{Backing, Fields};
use crate::image::error::ImageError;
use crate::range::ByteRange;

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTERNAL_DATA_FILE: u32 = 0x4441_5441;

/// The longest name of a backing file.
const NAME_MAX: u64 = 1023;

/// The backing file, if there is one; `head` is the header cluster, `header_len` where extensions begin.
pub(super) fn read_backing(fields: &Fields<'_>, header_len: u64) -> Result<Option<Backing>, ImageError> {
    let name_range = backing_name_range(fields, header_len)?;
    let end = name_range.map_or(fields.cluster_size(), ByteRange::start);
    let format = walk(fields, ByteRange::between(header_len, end))?;
    let Some(range) = name_range else { return Ok(None) };
    let name = fields.bytes(range, "the backing file's name")?.to_vec();
    Ok(Some(Backing { name, format }))
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

/// Goes through the extensions within `area`; the format of the backing file, if one says it.
fn walk(fields: &Fields<'_>, area: ByteRange) -> Result<Option<Vec<u8>>, ImageError> {
    let mut format = None;
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
            BACKING_FORMAT => format = Some(bytes.to_vec()),
            EXTERNAL_DATA_FILE => return Err(fields.unsupported("an external data file")),
            // Everything else may be skipped: what must not be ignored has an incompatible feature bit.
            _ => {}
        }
        at = padded_end.min(area.end());
    }
    Ok(format)
}
