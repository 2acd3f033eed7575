//! Sections "Header", "Additional fields" and "Header extensions" of the specification.

use super::{Bytes, Oddities, Refused, refused};

/// What of a header is needed to read the disk.
pub(super) struct Header {
    pub(super) version: u64,
    pub(super) cluster_bits: u64,
    pub(super) size: u64,
    pub(super) zstd: bool,
    pub(super) extended: bool,
    /// Offset and count of the entries.
    pub(super) l1: (u64, u64),
    /// Offset and length in bytes.
    pub(super) refcounts: (u64, u64),
    /// Offset and count.
    pub(super) snapshots: (u64, u64),
    pub(super) backing: Option<Backing>,
}

/// The name of the file below, and the format that is written beside it.
pub(super) type Backing = (Vec<u8>, Option<Vec<u8>>);

/// A number of the header.
fn number(head: &[u8], at: usize, len: usize) -> u64 {
    head[at..at + len].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

impl Header {
    pub(super) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// How many bytes an L2 entry has.
    pub(super) fn entry_len(&self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// How many bytes of the disk an L2 table describes.
    pub(super) fn table_span(&self) -> u64 {
        self.cluster() / self.entry_len() * self.cluster()
    }

    pub(super) fn read(bytes: &Bytes, oddities: &mut Oddities) -> Result<Self, Refused> {
        if !bytes.has(0, 72) {
            return refused("a file that is shorter than a header");
        }
        let head = bytes.at(0, bytes.len.min(2 << 20));
        if !head.starts_with(b"QFI\xfb") {
            return refused("no qcow2 magic");
        }
        let version = number(&head, 4, 4);
        let header_len = match version {
            2 => 72,
            3 if head.len() < 104 => return refused("a file that is shorter than its header"),
            3 => number(&head, 100, 4),
            _ => return refused("an unknown version"),
        };
        let cluster_bits = number(&head, 20, 4);
        if !(9..=21).contains(&cluster_bits) {
            return refused("cluster_bits");
        }
        let cluster = 1 << cluster_bits;
        if version == 3 && (header_len < 104 || !header_len.is_multiple_of(8) || header_len > cluster) {
            return refused("header_length");
        }
        if !bytes.has(0, header_len) {
            return refused("a file that is shorter than its header");
        }
        let head = &head[..head.len().min(1 << cluster_bits)];
        let features = features(head, (version, header_len, cluster_bits), oddities)?;
        let size = number(head, 24, 8);
        if size >= 1 << 63 {
            return refused("a size of 2^63 or more");
        }
        let place = |at: usize, len: u64, most: u64, what: &str| {
            let offset = number(head, at, 8);
            if len > most
                || !offset.is_multiple_of(cluster)
                || len > 0 && (offset == 0 || !bytes.has(offset, len))
            {
                return refused(format!("the place or the size of {what}"));
            }
            Ok(offset)
        };
        let l1_count = number(head, 36, 4);
        let l1 = (place(40, l1_count * 8, 32 << 20, "the L1 table")?, l1_count);
        let refcounts_len = number(head, 56, 4) * cluster;
        if refcounts_len == 0 {
            return refused("no refcount table");
        }
        let refcounts = (place(48, refcounts_len, 8 << 20, "the refcount table")?, refcounts_len);
        let snapshots = number(head, 60, 4);
        let snapshots = (place(64, snapshots * 40, 65536 * 40, "the snapshot table")?, snapshots);
        let backing = extensions(head, (header_len, cluster), features.bitmaps, oddities)?;
        let (zstd, extended) = (features.zstd, features.extended);
        let header = Self { version, cluster_bits, size, zstd, extended, l1, refcounts, snapshots, backing };
        if size.div_ceil(header.table_span()) > l1_count {
            return refused("an L1 table that is too small for the disk");
        }
        Ok(header)
    }
}

struct Features {
    zstd: bool,
    extended: bool,
    /// Whether the autoclear bit of bitmaps is set.
    bitmaps: bool,
}

fn features(
    head: &[u8],
    (version, header_len, cluster_bits): (u64, u64, u64),
    oddities: &mut Oddities,
) -> Result<Features, Refused> {
    if number(head, 32, 4) != 0 {
        return refused("encryption");
    }
    if version == 2 {
        return Ok(Features { zstd: false, extended: false, bitmaps: false });
    }
    let bits = number(head, 72, 8);
    if bits >> 5 != 0 {
        return refused("unknown incompatible features");
    }
    if bits & 2 != 0 {
        return refused("marked as corrupt");
    }
    if bits & 4 != 0 {
        return refused("an external data file");
    }
    if number(head, 96, 4) > 6 {
        return refused("refcount_order");
    }
    let extended = bits & 16 != 0;
    if extended && cluster_bits < 14 {
        return refused("extended L2 entries with small clusters");
    }
    let compression = if header_len > 104 { number(head, 104, 1) } else { 0 };
    let zstd = bits & 8 != 0;
    if compression != u64::from(zstd) {
        return refused("compression type and its feature bit");
    }
    if header_len > 104 && number(head, 105, 7) != 0 {
        oddities.insert("header padding that is not zero");
    }
    let autoclear = number(head, 88, 8);
    if autoclear & 2 != 0 {
        oddities.insert("raw external data, and no data file");
    }
    Ok(Features { zstd, extended, bitmaps: autoclear & 1 != 0 })
}

/// The backing file's name and format; the other extensions change nothing of what is read.
fn extensions(
    head: &[u8],
    (header_len, cluster): (u64, u64),
    bitmaps_bit: bool,
    oddities: &mut Oddities,
) -> Result<Option<Backing>, Refused> {
    let (name_at, name_len) = (number(head, 8, 8), number(head, 16, 4));
    if name_at != 0 && name_len == 0 {
        oddities.insert("a backing name of no bytes");
    }
    let mut name = None;
    let mut end = cluster;
    if name_at != 0 && name_len != 0 {
        let name_end = name_at.checked_add(name_len);
        let inside = name_end.is_some_and(|end| end <= head.len() as u64);
        if name_len > 1023 || name_at < header_len || !inside {
            return refused("the place or the length of the backing name");
        }
        name = Some(head[place(name_at)..place(name_at + name_len)].to_vec());
        end = name_at;
    }
    let (mut at, mut format, mut bitmaps) = (header_len, None, false);
    let mut seen = std::collections::BTreeSet::new();
    while at + 8 <= end && at + 8 <= head.len() as u64 {
        let (kind, len) = (number(head, place(at), 4), number(head, place(at) + 4, 4));
        if kind == 0 {
            break;
        }
        let content = at + 8;
        if content + len > end || content + len > head.len() as u64 {
            return refused("a header extension that leaves its place");
        }
        if !seen.insert(kind) {
            oddities.insert("a header extension that appears twice");
        }
        match kind {
            0xe279_2aca => format = Some(head[place(content)..place(content + len)].to_vec()),
            0x2385_2875 => bitmaps = true,
            0x4441_5441 => return refused("an external data file"),
            0x0537_be77 => {
                oddities.insert("an encryption header without encryption");
            }
            _ => {}
        }
        at = content + len.next_multiple_of(8);
    }
    if bitmaps {
        // What the extension says concerns who writes; qemu refuses some of it all the same.
        oddities.insert("bitmaps");
    }
    if bitmaps_bit && !bitmaps {
        oddities.insert("the bit of bitmaps without bitmaps");
    }
    Ok(name.map(|name| (name, format)))
}

fn place(at: u64) -> usize {
    usize::try_from(at).expect("a place within the header cluster")
}
