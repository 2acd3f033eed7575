//! `ReadBytes`, `Window` and the fields of a structure: how this room sees a disk.

use std::io;

use crate::range::ByteRange;

/// The most that is read at once, whatever a disk's structures ask for.
pub(super) const MAX_READ: u64 = 1024 * 1024;

/// Something that can be read like a disk: an image, a target, or bytes in memory.
pub(crate) trait ReadBytes {
    /// Its size in bytes.
    fn size(&self) -> u64;

    /// Reads `range`, which lies within `size`, into the first `range.len()` bytes of `buffer`.
    fn read_at(&self, range: ByteRange, buffer: &mut [u8]) -> io::Result<()>;
}

impl ReadBytes for Vec<u8> {
    fn size(&self) -> u64 {
        u64::try_from(self.len()).unwrap_or(u64::MAX)
    }

    fn read_at(&self, range: ByteRange, buffer: &mut [u8]) -> io::Result<()> {
        let bytes = usize::try_from(range.start())
            .ok()
            .zip(usize::try_from(range.end()).ok())
            .and_then(|(start, end)| self.get(start..end))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.get_mut(..bytes.len()).ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(bytes);
        Ok(())
    }
}

/// A part of a disk, such as a partition, seen as a disk of its own.
pub(crate) struct Window<'disk> {
    disk: &'disk dyn ReadBytes,
    range: ByteRange,
}

impl<'disk> Window<'disk> {
    /// The part of `disk` in `range`; what `range` has behind the disk's end is left out.
    pub(crate) fn new(disk: &'disk dyn ReadBytes, range: ByteRange) -> Self {
        let end = range.end().min(disk.size());
        Self { disk, range: ByteRange::between(range.start().min(end), end) }
    }
}

impl ReadBytes for Window<'_> {
    fn size(&self) -> u64 {
        self.range.len()
    }

    fn read_at(&self, range: ByteRange, buffer: &mut [u8]) -> io::Result<()> {
        if range.end() > self.size() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.disk.read_at(ByteRange::new(self.range.start() + range.start(), range.len()), buffer)
    }
}

/// The `len` bytes at `offset`; `None` when the disk does not have them all.
pub(super) fn read(disk: &dyn ReadBytes, offset: u64, len: u64) -> io::Result<Option<Vec<u8>>> {
    assert!(len <= MAX_READ, "a structure's size was checked before it is read");
    if offset.checked_add(len).is_none_or(|end| end > disk.size()) {
        return Ok(None);
    }
    let mut buffer = vec![0; usize::try_from(len).expect("a megabyte can be addressed")];
    disk.read_at(ByteRange::new(offset, len), &mut buffer)?;
    Ok(Some(buffer))
}

/// The `N` bytes at `at`, if they are there.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// Whether `magic` lies at `at`.
pub(super) fn has(bytes: &[u8], at: usize, magic: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(magic))
}

pub(super) fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

pub(super) fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

pub(super) fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

/// The text in the `len` bytes at `at`, up to the first NUL, without blanks behind it; `None` when empty.
///
/// It may hold anything, terminal escapes included: whoever prints it escapes it.
pub(super) fn text(bytes: &[u8], at: usize, len: usize) -> Option<String> {
    let field = bytes.get(at..at.checked_add(len)?)?;
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(len);
    let text = String::from_utf8_lossy(&field[..end]).trim_end().to_owned();
    (!text.is_empty()).then_some(text)
}

/// The UUID in the 16 bytes at `at`, as text; `None` when it is all zero.
pub(super) fn uuid(bytes: &[u8], at: usize) -> Option<String> {
    let raw: [u8; 16] = array(bytes, at)?;
    (raw != [0; 16]).then(|| uuid_text(raw))
}

/// A UUID as text, lower case, its bytes in the order in which they lie.
pub(super) fn uuid_text(raw: [u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in raw.iter().enumerate() {
        if [4, 6, 8, 10].contains(&index) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// A GUID as text, lower case: its first three fields lie in little-endian order (UEFI appendix A).
pub(super) fn guid_text(mut raw: [u8; 16]) -> String {
    raw[0..4].reverse();
    raw[4..6].reverse();
    raw[6..8].reverse();
    uuid_text(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_ends_where_the_disk_ends() {
        let disk: Vec<u8> = (0..100).collect();
        for (range, size) in [((10, 20), 10), ((90, 200), 10), ((150, 200), 0)] {
            assert_eq!(Window::new(&disk, ByteRange::between(range.0, range.1)).size(), size, "{range:?}");
        }
        let window = Window::new(&disk, ByteRange::between(90, 200));
        assert_eq!(read(&window, 2, 3).unwrap().unwrap(), [92, 93, 94]);
        assert!(read(&window, 8, 3).unwrap().is_none());
        assert!(window.read_at(ByteRange::new(8, 3), &mut [0; 3]).is_err());
    }

    #[test]
    fn fields_behind_the_end_are_none() {
        assert_eq!(le32(&[1, 0, 0], 0), None);
        assert_eq!(le32(&[1, 0, 0, 0], usize::MAX), None);
        assert_eq!(le64(&[1, 0, 0, 0, 0, 0, 0, 0], 0), Some(1));
        assert_eq!(text(b"ab", 1, 2), None);
        assert!(!has(b"abc", 2, b"cd"));
    }

    #[test]
    fn a_guid_is_written_as_the_specification_does() {
        let efi_system =
            [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
        assert_eq!(guid_text(efi_system), "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
    }
}
