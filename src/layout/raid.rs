//! Members of something larger, at the head or the end of a disk: md, LVM, ZFS, firmware RAID.

use std::io;

use super::bytes::{self, ReadBytes, array, has, le32, le64, text, uuid, uuid_text};
use super::probe::{Signature, Usage};

const MD_MAGIC: u32 = 0xa92b_4efc;
const KIB: u64 = 1024;

/// All signatures of membership, the head's first.
pub(super) fn members(disk: &dyn ReadBytes, head: &[u8]) -> io::Result<Vec<Signature>> {
    let mut found = Vec::from_iter(lvm(head));
    found.extend(md_1(disk)?);
    found.extend(md_0(disk)?);
    found.extend(zfs(disk)?);
    found.extend(firmware(disk)?);
    Ok(found)
}

/// LVM's label lies in one of the first four sectors (lib/label/label.h).
fn lvm(head: &[u8]) -> Option<Signature> {
    for sector in 0..4_u64 {
        let at = usize::try_from(sector * 512).expect("four sectors are small");
        if !has(head, at, b"LABELONE") || !has(head, at + 24, b"LVM2 001") {
            continue;
        }
        let header = usize::try_from(le32(head, at + 20)?).ok()?;
        let uuid = at.checked_add(header).and_then(|at| lvm_uuid(array(head, at)?));
        let found = Signature::new("LVM2_member", sector * 512 + 24, Usage::Member);
        return Some(found.named(None, uuid));
    }
    None
}

/// LVM's ids are 32 letters and digits, printed in groups of 6-4-4-4-4-4-6.
fn lvm_uuid(raw: [u8; 32]) -> Option<String> {
    let mut text = String::with_capacity(38);
    for (index, byte) in raw.into_iter().enumerate() {
        if !byte.is_ascii_alphanumeric() {
            return None;
        }
        if [6, 10, 14, 18, 22, 26].contains(&index) {
            text.push('-');
        }
        text.push(char::from(byte));
    }
    Some(text)
}

/// md superblocks of version 1: at the head (1.1), at 4 KiB (1.2), and before the end (1.0).
fn md_1(disk: &dyn ReadBytes) -> io::Result<Vec<Signature>> {
    let mut found = Vec::new();
    // drivers/md/md.c, super_1_load: 8 KiB before the end, rounded down to 4 KiB.
    let before_end = (disk.size() / 512).checked_sub(16).map(|sector| (sector & !7) * 512);
    for offset in [0, 4 * KIB].into_iter().chain(before_end.filter(|offset| *offset > 4 * KIB)) {
        let Some(block) = bytes::read(disk, offset, 256)? else { continue };
        let says = le64(&block, 144);
        let is_here = says.and_then(|sector| sector.checked_mul(512)) == Some(offset);
        if le32(&block, 0) == Some(MD_MAGIC) && le32(&block, 4) == Some(1) && is_here {
            let member = Signature::new("linux_raid_member", offset, Usage::Member);
            found.push(member.named(text(&block, 32, 32), uuid(&block, 16)));
        }
    }
    Ok(found)
}

/// The md superblock of version 0.90: in the last whole 64 KiB but one, in its maker's byte order.
fn md_0(disk: &dyn ReadBytes) -> io::Result<Option<Signature>> {
    let Some(offset) = (disk.size() & !(64 * KIB - 1)).checked_sub(64 * KIB) else { return Ok(None) };
    let Some(block) = bytes::read(disk, offset, 256)? else { return Ok(None) };
    let magic = array(&block, 0).expect("256 bytes were read");
    let word: fn([u8; 4]) -> u32 = match magic {
        magic if u32::from_le_bytes(magic) == MD_MAGIC => u32::from_le_bytes,
        magic if u32::from_be_bytes(magic) == MD_MAGIC => u32::from_be_bytes,
        _ => return Ok(None),
    };
    let mut raw = [0; 16];
    for (part, at) in raw.chunks_exact_mut(4).zip([20, 52, 56, 60]) {
        let value = word(array(&block, at).expect("256 bytes were read"));
        part.copy_from_slice(&value.to_be_bytes());
    }
    if word(array(&block, 4).expect("256 bytes were read")) != 0 {
        return Ok(None);
    }
    let found = Signature::new("linux_raid_member", offset, Usage::Member);
    Ok(Some(found.named(None, Some(uuid_text(raw)))))
}

/// ZFS keeps four labels of 256 KiB, two at either end, each with uberblocks in its second half.
fn zfs(disk: &dyn ReadBytes) -> io::Result<Vec<Signature>> {
    const LABEL: u64 = 256 * KIB;
    // include/sys/uberblock_impl.h
    const UBERBLOCK: u64 = 0x00ba_b10c;
    let mut found = Vec::new();
    let end = disk.size() & !(LABEL - 1);
    let tail = [end.checked_sub(2 * LABEL), end.checked_sub(LABEL)].into_iter().flatten();
    let labels = [0, LABEL].into_iter().chain(tail.filter(|label| *label >= 2 * LABEL));
    for label in labels {
        let Some(blocks) = bytes::read(disk, label + LABEL / 2, LABEL / 2)? else { continue };
        for (offset, block) in (label + LABEL / 2..).step_by(1024).zip(blocks.chunks_exact(1024)) {
            let magic = array(block, 0).expect("an uberblock has a kilobyte");
            if u64::from_le_bytes(magic) == UBERBLOCK || u64::from_be_bytes(magic) == UBERBLOCK {
                found.push(Signature::new("zfs_member", offset, Usage::Member));
                break;
            }
        }
    }
    Ok(found)
}

/// RAID of firmware, in the last sectors: Intel's and the common one (DDF).
fn firmware(disk: &dyn ReadBytes) -> io::Result<Vec<Signature>> {
    let sectors = disk.size() / 512;
    let known: [(&str, u64, &[u8]); 3] = [
        ("isw_raid_member", 2, b"Intel Raid ISM Cfg Sig. "),
        ("ddf_raid_member", 1, &[0xde, 0x11, 0xde, 0x11]),
        ("ddf_raid_member", 1, &[0x11, 0xde, 0x11, 0xde]),
    ];
    let mut found = Vec::new();
    for (kind, from_end, magic) in known {
        let Some(offset) = sectors.checked_sub(from_end).map(|sector| sector * 512) else { continue };
        if bytes::read(disk, offset, 512)?.is_some_and(|sector| has(&sector, 0, magic)) {
            found.push(Signature::new(kind, offset, Usage::Member));
        }
    }
    Ok(found)
}
