//! File systems and containers that are known by a magic number in a disk's first 72 KiB.
//!
//! Offsets are those of the formats' own headers, as libblkid's `superblocks/` has them too.

use std::io;

use super::bytes::{self, ReadBytes, array, has, le16, le32, le64, text, uuid};
use super::probe::{Signature, Usage};

/// A format: it looks at a head and tells what it recognises there.
type Known = fn(&[u8]) -> Option<Signature>;

/// Each looks at the head of a disk and tells whether it is its own.
pub(super) const ALL: &[Known] =
    &[ext, xfs, btrfs, fat, exfat, ntfs, bitlocker, iso9660, swap, luks, squashfs, f2fs, erofs];

fn ext(head: &[u8]) -> Option<Signature> {
    const AT: usize = 1024;
    // What ext2 and ext3 may have; anything else is ext4 (lib/ext2fs, ext4.h).
    const JOURNAL: u32 = 0x4;
    const JOURNAL_DEVICE: u32 = 0x8;
    const EXT3_INCOMPATIBLE: u32 = 0x2 | 0x4 | 0x10;
    const EXT3_READ_ONLY: u32 = 0x1 | 0x2 | 0x4;
    if !has(head, AT + 0x38, &[0x53, 0xef]) {
        return None;
    }
    let compatible = le32(head, AT + 0x5c)?;
    let incompatible = le32(head, AT + 0x60)?;
    let read_only = le32(head, AT + 0x64)?;
    let kind = if incompatible & JOURNAL_DEVICE != 0 {
        "jbd"
    } else if incompatible & !EXT3_INCOMPATIBLE != 0 || read_only & !EXT3_READ_ONLY != 0 {
        "ext4"
    } else if compatible & JOURNAL != 0 {
        "ext3"
    } else {
        "ext2"
    };
    let found = Signature::new(kind, 1024 + 0x38, Usage::FileSystem);
    Some(found.named(text(head, AT + 0x78, 16), uuid(head, AT + 0x68)))
}

fn xfs(head: &[u8]) -> Option<Signature> {
    has(head, 0, b"XFSB")
        .then(|| Signature::new("xfs", 0, Usage::FileSystem).named(text(head, 108, 12), uuid(head, 32)))
}

fn btrfs(head: &[u8]) -> Option<Signature> {
    const AT: usize = 64 * 1024;
    has(head, AT + 0x40, b"_BHRfS_M").then(|| {
        let found = Signature::new("btrfs", 64 * 1024 + 0x40, Usage::FileSystem);
        found.named(text(head, AT + 0x12b, 256), uuid(head, AT + 0x20))
    })
}

fn fat(head: &[u8]) -> Option<Signature> {
    let sector = le16(head, 11)?;
    let cluster = *head.get(13)?;
    let copies = *head.get(16)?;
    let possible = [512, 1024, 2048, 4096].contains(&sector) && cluster.is_power_of_two() && copies > 0;
    if !possible || le16(head, 14)? == 0 || !has(head, 510, &[0x55, 0xaa]) {
        return None;
    }
    // The extended boot record begins behind the fields that FAT32 has more of.
    let (magic_at, record) = if has(head, 82, b"FAT32   ") {
        (82, 67)
    } else if has(head, 54, b"FAT") {
        (54, 39)
    } else {
        return None;
    };
    let serial = le32(head, record).filter(|serial| *serial != 0);
    let uuid = serial.map(|serial| format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff));
    let label = text(head, record + 4, 11).filter(|label| label != "NO NAME");
    Some(Signature::new("vfat", magic_at, Usage::FileSystem).named(label, uuid))
}

fn exfat(head: &[u8]) -> Option<Signature> {
    let serial = le32(head, 100)?;
    let uuid = Some(format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff));
    has(head, 3, b"EXFAT   ").then(|| Signature::new("exfat", 3, Usage::FileSystem).named(None, uuid))
}

fn ntfs(head: &[u8]) -> Option<Signature> {
    let serial = format!("{:016X}", le64(head, 72)?);
    has(head, 3, b"NTFS    ").then(|| Signature::new("ntfs", 3, Usage::FileSystem).named(None, Some(serial)))
}

fn bitlocker(head: &[u8]) -> Option<Signature> {
    has(head, 3, b"-FVE-FS-").then(|| Signature::new("BitLocker", 3, Usage::Crypto))
}

fn iso9660(head: &[u8]) -> Option<Signature> {
    const AT: usize = 32 * 1024;
    if !has(head, AT + 1, b"CD001") {
        return None;
    }
    let found = Signature::new("iso9660", 32 * 1024 + 1, Usage::FileSystem);
    // ECMA-119 8.4: the volume's label, and when it was changed or, failing that, made.
    let date = date(head, AT + 830).or_else(|| date(head, AT + 813));
    Some(found.named(text(head, AT + 40, 32), date))
}

/// A date of 16 digits (ECMA-119 8.4.26.1) as blkid makes an id of it.
fn date(head: &[u8], at: usize) -> Option<String> {
    let digits = array::<16>(head, at)?;
    if !digits.iter().all(u8::is_ascii_digit) || digits == [b'0'; 16] {
        return None;
    }
    let part = |from: usize, to: usize| digits[from..to].iter().map(|digit| char::from(*digit)).collect();
    let parts: [String; 7] =
        [(0, 4), (4, 6), (6, 8), (8, 10), (10, 12), (12, 14), (14, 16)].map(|(from, to)| part(from, to));
    Some(parts.join("-"))
}

fn swap(head: &[u8]) -> Option<Signature> {
    // The magic ends the first page, and pages differ between architectures.
    for page in [4096, 8192, 16384, 32768, 65536_u64] {
        let at = usize::try_from(page).expect("a page is small") - 10;
        let known: [(&[u8], &str); 4] = [
            (b"SWAPSPACE2", "swap"),
            (b"SWAP-SPACE", "swap"),
            (b"S1SUSPEND", "swsuspend"),
            (b"S2SUSPEND", "swsuspend"),
        ];
        for (magic, kind) in known {
            if has(head, at, magic) {
                let found = Signature::new(kind, page - 10, Usage::FileSystem);
                return Some(found.named(text(head, 1052, 16), uuid(head, 1036)));
            }
        }
    }
    None
}

fn luks(head: &[u8]) -> Option<Signature> {
    if !has(head, 0, b"LUKS\xba\xbe") {
        return None;
    }
    let label = if has(head, 6, &[0, 2]) { text(head, 24, 48) } else { None };
    Some(Signature::new("crypto_LUKS", 0, Usage::Crypto).named(label, text(head, 168, 40)))
}

/// The second header of LUKS2, which outlives an overwritten head.
pub(super) fn luks_backup(disk: &dyn ReadBytes) -> io::Result<Option<Signature>> {
    // LUKS2 on-disk format, chapter 2.2: the places where the second header may begin.
    for kib in [16, 32, 64, 128, 256, 512, 1024, 2048, 4096_u64] {
        let offset = kib * 1024;
        let Some(header) = bytes::read(disk, offset, 512)? else { break };
        if has(&header, 0, b"SKUL\xba\xbe") {
            let found = Signature::new("crypto_LUKS", offset, Usage::Crypto);
            return Ok(Some(found.named(text(&header, 24, 48), text(&header, 168, 40))));
        }
    }
    Ok(None)
}

fn squashfs(head: &[u8]) -> Option<Signature> {
    has(head, 0, b"hsqs").then(|| Signature::new("squashfs", 0, Usage::FileSystem))
}

fn f2fs(head: &[u8]) -> Option<Signature> {
    (le32(head, 1024)? == 0xf2f5_2010)
        .then(|| Signature::new("f2fs", 1024, Usage::FileSystem).named(None, uuid(head, 1024 + 0x6c)))
}

fn erofs(head: &[u8]) -> Option<Signature> {
    (le32(head, 1024)? == 0xe0f5_e1e2).then(|| {
        let found = Signature::new("erofs", 1024, Usage::FileSystem);
        found.named(text(head, 1024 + 0x40, 16), uuid(head, 1024 + 0x30))
    })
}
