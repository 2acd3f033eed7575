//! `Marker`: the first 4 KiB of a disk whose rebuild has begun and not ended.
//!
//! It is text, so that whoever looks at the disk reads what happened. It holds no boot signature and
//! nothing that firmware, kernel or blkid know; its last line is a checksum over everything before.

use super::bytes::has;

/// How much of the target's head it fills.
pub(crate) const LEN: usize = 4096;
/// How it begins.
pub(super) const FIRST_LINE: &[u8] = b"reimage: unfinished rebuild\n";
const ADVICE: &str = "\nThis disk is in the middle of a rebuild and cannot boot.\n\
                      Run the same `reimage rebuild` again: it goes on where it stopped, or starts over.\n";
const CHECKSUM: &str = "blake3: ";
/// The checksum's line: its name, 64 digits, the line's end.
const CHECKSUM_AT: usize = LEN - CHECKSUM.len() - 64 - 1;
/// The values of the longest marker end within it.
const FIRST_SECTOR: usize = 512;
/// Text ends well before the place of a boot signature.
const MAX_VALUE: usize = 100;

/// What the head of a disk says whose rebuild is unfinished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Marker {
    /// The journal of the rebuild.
    pub(crate) journal: String,
    /// The digest or fingerprint of the image, where one is known.
    pub(crate) image: Option<String>,
}

/// The bytes that say that a rebuild is unfinished.
///
/// # Panics
///
/// If a value is not 1 to 100 letters, digits and `-_.:`: they come from us.
pub(crate) fn write(marker: &Marker) -> [u8; LEN] {
    let mut head = FIRST_LINE.to_vec();
    let image = marker.image.as_ref().map(|image| ("image", image));
    for (name, value) in [("journal", &marker.journal)].into_iter().chain(image) {
        assert!(is_plain(value), "a marker's values are short and plain");
        head.extend_from_slice(format!("{name}: {value}\n").as_bytes());
    }
    head.extend_from_slice(ADVICE.as_bytes());
    head.resize(CHECKSUM_AT, 0);
    let checksum = checksum(&head);
    head.extend_from_slice(checksum.as_bytes());
    head.try_into().expect("text, padding and checksum fill the marker")
}

/// The marker in a disk's head; `None` when there is none, or not all of it.
pub(crate) fn read(head: &[u8]) -> Option<Marker> {
    let head = head.get(..LEN)?;
    let (content, line) = head.split_at(CHECKSUM_AT);
    if line == checksum(content).as_bytes() { values(content) } else { None }
}

/// The marker of which only the first sector is there: a run was cut off while it wrote the first block.
///
/// A disk whose first sector is ours has no partition table and no boot code, whatever follows.
pub(crate) fn torn(head: &[u8]) -> Option<Marker> {
    values(head.get(..FIRST_SECTOR)?)
}

/// What the text at the head says.
fn values(content: &[u8]) -> Option<Marker> {
    if !has(content, 0, FIRST_LINE) {
        return None;
    }
    let text = &content[FIRST_LINE.len()..];
    let end = text.windows(2).position(|pair| pair == b"\n\n")?;
    let values = std::str::from_utf8(&text[..end]).ok()?;
    let value = |name: &str| {
        let mut lines = values.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(found, _)| *found == name).map(|(_, value)| value.to_owned())
    };
    let marker = Marker { journal: value("journal")?, image: value("image") };
    let plain = is_plain(&marker.journal) && marker.image.as_deref().is_none_or(is_plain);
    plain.then_some(marker)
}

/// Whether a disk's head holds any part of a marker, but not all of it.
pub(crate) fn is_torn(head: &[u8]) -> bool {
    let line = head.get(CHECKSUM_AT..LEN).unwrap_or_default();
    let ends = line.starts_with(CHECKSUM.as_bytes()) && line.ends_with(b"\n");
    read(head).is_none() && (has(head, 0, FIRST_LINE) || ends)
}

fn is_plain(value: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    (1..=MAX_VALUE).contains(&value.len()) && value.bytes().all(plain)
}

fn checksum(content: &[u8]) -> String {
    format!("{CHECKSUM}{}\n", blake3::hash(content).to_hex())
}

#[cfg(test)]
mod tests {
    use super::super::probe;
    use super::super::sector::sector_size;
    use super::*;

    fn longest() -> Marker {
        Marker { journal: "j".repeat(MAX_VALUE), image: Some("f".repeat(MAX_VALUE)) }
    }

    #[test]
    fn what_was_written_is_read_again() {
        let short = Marker { journal: "i-0a1b.7".into(), image: None };
        for marker in [short, longest()] {
            assert_eq!(read(&write(&marker)), Some(marker));
        }
    }

    #[test]
    fn a_change_of_any_byte_is_no_marker() {
        let good = write(&longest());
        for at in 0..LEN {
            let mut bad = good;
            bad[at] ^= 1;
            assert_eq!(read(&bad), None, "byte {at}");
        }
        for (from, to) in [(0, 512), (512, LEN), (0, LEN - 512), (LEN - 512, LEN)] {
            let mut torn = [7; LEN];
            torn[from..to].copy_from_slice(&good[from..to]);
            assert!(is_torn(&torn), "only bytes {from}..{to}");
        }
        assert!(!is_torn(&good) && !is_torn(&[7; LEN]) && !is_torn(&[]));
        assert_eq!(read(&good[..LEN - 1]), None);
        assert_eq!(read(&[0; LEN]), None);
    }

    #[test]
    fn the_first_sector_alone_says_whose_it_is() {
        let mut head = write(&longest());
        head[512..].fill(0xaa);
        assert_eq!((read(&head), torn(&head)), (None, Some(longest())));
        for at in 0..FIRST_LINE.len() {
            head[at] ^= 1;
            assert_eq!(torn(&head), None, "byte {at}");
            head[at] ^= 1;
        }
        head[FIRST_LINE.len()..].fill(b'x');
        assert_eq!((torn(&head), torn(&head[..511])), (None, None));
    }

    #[test]
    fn a_correct_checksum_over_foreign_text_is_no_marker() {
        for text in ["journal: \n\n", "journal: a/b\n\n", "image: x\n\n", "journal: x"] {
            let mut head = FIRST_LINE.to_vec();
            head.extend_from_slice(text.as_bytes());
            head.resize(CHECKSUM_AT, 0);
            let line = checksum(&head);
            head.extend_from_slice(line.as_bytes());
            assert_eq!(read(&head), None, "{text:?}");
        }
    }

    #[test]
    fn nothing_else_recognises_a_marker() {
        let marker = write(&longest());
        assert_eq!(marker[510..512], [0, 0]);
        let mut disk = marker.to_vec();
        disk.resize(1024 * 1024, 0);
        let kinds: Vec<_> = probe(&disk).unwrap().into_iter().map(|found| found.kind).collect();
        assert_eq!(kinds, ["reimage-unfinished"]);
        assert_eq!(sector_size(&disk).unwrap(), None);
    }
}
