//! Whether file systems were unmounted, as their own superblocks say it; what keeps no such note is passed over.

use std::io;

use super::bytes::{self, ReadBytes, Window, le16, le32, le64};
use super::describe::DiskLayout;
use super::shared::partition_place;

/// How much of a file system's head is read: btrfs has its superblock at 64 KiB.
const HEAD: u64 = 66 * 1024;

/// Where the disk carries a file system that was in use when it was last written, and which.
pub(crate) fn unclean(disk: &dyn ReadBytes, layout: &DiskLayout) -> io::Result<Vec<(String, &'static str)>> {
    let mut found = Vec::new();
    let inside = layout.partitions.iter().filter_map(|partition| {
        let window = Window::new(disk, partition.range);
        Some((partition_place(partition.number), window, partition.file_system.as_ref()?.kind))
    });
    for (place, window, kind) in inside {
        if is_unclean(&window, kind)? {
            found.push((place, kind));
        }
    }
    if let Some(content) = &layout.file_system
        && is_unclean(disk, content.kind)?
    {
        found.push(("whole disk".to_owned(), content.kind));
    }
    Ok(found)
}

fn is_unclean(disk: &dyn ReadBytes, kind: &str) -> io::Result<bool> {
    let len = disk.size().min(HEAD);
    let head = bytes::read(disk, 0, len)?.unwrap_or_default();
    let is_set = |value: Option<u64>, bit: u64| value.is_some_and(|value| value & bit != 0);
    let short = |at| le16(&head, at).map(u64::from);
    Ok(match kind {
        // Linux, fs/ext4/ext4.h: s_state at 0x3a, whose first bit says "unmounted"; s_feature_incompat at 0x60, whose
        // third says that the journal must be replayed.
        "ext2" | "ext3" | "ext4" => {
            let is_unmounted = is_set(short(1024 + 0x3a), 1);
            !is_unmounted || is_set(le32(&head, 1024 + 0x60).map(u64::from), 4)
        }
        // Linux, include/uapi/linux/msdos_fs.h: the state in the boot sector, whose first bit says "dirty".
        "vfat" if bytes::has(&head, 82, b"FAT32   ") => is_set(short(0x41), 1),
        "vfat" => is_set(short(0x25), 1),
        // exFAT specification 1.00, 3.1.13: VolumeFlags, whose second bit says "dirty".
        "exfat" => is_set(short(106), 2),
        // Linux, fs/btrfs/accessors.h: log_root, the tree that is replayed by the next mount.
        "btrfs" => le64(&head, (64 << 10) + 0x60).is_some_and(|log_root| log_root != 0),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout;

    /// What is said of a whole disk that carries this, unmounted and not.
    #[track_caller]
    fn check(kind: &'static str, fields: &[(usize, &[u8])], (flag, clean, dirty): (usize, u8, u8)) {
        for (value, expected) in [(clean, vec![]), (dirty, vec![("whole disk".to_owned(), kind)])] {
            let mut disk = vec![0; 256 << 10];
            for (at, bytes) in fields {
                disk[*at..*at + bytes.len()].copy_from_slice(bytes);
            }
            disk[flag] = value;
            let layout = layout::describe(&disk).unwrap();
            assert_eq!(layout.file_system.as_ref().map(|found| found.kind), Some(kind));
            assert_eq!(unclean(&disk, &layout).unwrap(), expected, "{kind}");
        }
    }

    #[test]
    fn a_file_system_that_was_in_use_is_told_and_one_that_was_unmounted_is_not() {
        let ext4: [(usize, &[u8]); 4] =
            [(1024 + 0x38, &[0x53, 0xef]), (1024 + 0x3a, &[1]), (1024 + 0x5c, &[4]), (1024 + 0x60, &[0x40])];
        check("ext4", &ext4, (1024 + 0x60, 0x40, 0x44));
        check("ext4", &ext4, (1024 + 0x3a, 1, 0));
        check("ext2", &ext4[..2], (1024 + 0x3a, 1, 2));
        let boot: (usize, &[u8]) = (510, &[0x55, 0xaa]);
        check("vfat", &[boot, (11, &[0, 2, 1, 1, 0, 1]), (54, b"FAT16   ")], (0x25, 0, 1));
        check("vfat", &[boot, (11, &[0, 2, 1, 1, 0, 1]), (82, b"FAT32   ")], (0x41, 0, 1));
        check("exfat", &[boot, (3, b"EXFAT   ")], (106, 0, 2));
        check("btrfs", &[((64 << 10) + 0x40, b"_BHRfS_M")], ((64 << 10) + 0x60, 0, 1));
    }
}
