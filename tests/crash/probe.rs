//! What firmware, kernel and udev would find on a disk, and whether it says that it is unfinished.
//!
//! Written from the formats' own descriptions, and deliberately without a line of the engine.

/// What every disk writes wholly or not at all.
pub(crate) const SECTOR: usize = 512;
/// The part of the head in which the marker lies.
pub(crate) const FIRST_BLOCK: usize = 4096;

/// The partition tables that are visible.
pub(crate) fn tables(disk: &[u8]) -> Vec<&'static str> {
    let mut found = Vec::new();
    let entries = || disk[446..510].chunks(16);
    if disk[510..512] == [0x55, 0xaa] && entries().any(|entry| entry[4] != 0) {
        found.push("mbr");
        let protects = entries().any(|entry| entry[4] == 0xee);
        for sector in [512, 4096] {
            if protects && disk[sector..].starts_with(b"EFI PART") {
                found.push("primary gpt");
            }
            if protects && disk[disk.len() - sector..].starts_with(b"EFI PART") {
                found.push("backup gpt");
            }
        }
    }
    found
}

/// The labels of file systems and volumes on the whole disk, and where their magic lies.
pub(crate) fn labels(disk: &[u8]) -> Vec<(&'static str, usize)> {
    let end = disk.len();
    let md = 0xa92b_4efc_u32.to_le_bytes();
    let mut places: Vec<(&'static str, usize, &[u8])> = vec![
        ("ext", 1080, &[0x53, 0xef]),
        ("xfs", 0, b"XFSB"),
        ("iso9660", 32_769, b"CD001"),
        ("btrfs", 65_536 + 64, b"_BHRfS_M"),
        ("swap", 4086, b"SWAPSPACE2"),
        ("swap", 4086, b"SWAP-SPACE"),
        ("luks", 0, b"LUKS\xba\xbe"),
        ("md 1.1", 0, &md),
        ("md 1.2", 4096, &md),
        ("md 1.0", (end / 512 - 16) / 8 * 8 * 512, &md),
        ("md 0.90", end / 65_536 * 65_536 - 65_536, &md),
    ];
    places.extend((0..4).map(|sector| ("lvm", sector * 512, &b"LABELONE"[..])));
    places.extend((14..=22).map(|bits| ("luks 2", 1 << bits, &b"SKUL\xba\xbe"[..])));
    let uberblock = 0x00ba_b10c_u64.to_le_bytes();
    let last = end / 262_144 * 262_144;
    for label in [0, 262_144, last - 524_288, last - 262_144] {
        places.extend((0..128).map(|at| ("zfs", label + 131_072 + at * 1024, &uberblock[..])));
    }
    let found =
        |(_, at, magic): &(&str, usize, &[u8])| disk.get(*at..).is_some_and(|rest| rest.starts_with(magic));
    places.into_iter().filter(found).map(|(name, at, _)| (name, at)).collect()
}

/// How the marker of an unfinished rebuild begins.
pub(crate) const MARK: &[u8] = b"reimage: unfinished rebuild\n";

/// Whether the head holds the whole marker of an unfinished rebuild.
pub(crate) fn marker(disk: &[u8]) -> bool {
    let (content, line) = disk[..FIRST_BLOCK].split_at(FIRST_BLOCK - 73);
    content.starts_with(MARK) && line == format!("blake3: {}\n", blake3::hash(content).to_hex()).as_bytes()
}

/// Whether a journal says that a rebuild has begun to change the disk, and does not say that it ended.
pub(crate) fn is_unfinished(journal: &[u8]) -> bool {
    let text = String::from_utf8_lossy(journal);
    let last = |name: &str| {
        let record = format!("\"record\":\"{name}\"");
        text.lines().enumerate().filter(|(_, line)| line.contains(&record)).map(|(at, _)| at).last()
    };
    match (last("invalidated"), last("finished")) {
        (Some(begun), Some(ended)) => begun > ended,
        (begun, None) => begun.is_some(),
        (None, Some(_)) => false,
    }
}

mod tests {
    use super::super::disks::{Old, image};
    use super::*;

    #[test]
    fn every_table_and_label_of_the_old_disks_is_found() {
        let size = image().len();
        let check = |old: Old, table: bool, label: Option<&str>| {
            let disk = old.disk((size, 512), image());
            assert_eq!(!tables(&disk).is_empty(), table, "{old:?}");
            let found = labels(&disk);
            assert_eq!(found.first().map(|(name, _)| *name), label, "{old:?}: {found:?}");
            assert!(!marker(&disk));
        };
        check(Old::Zeroes, false, None);
        check(Old::Gpt, true, None);
        check(Old::Mbr, true, None);
        check(Old::Md090, true, Some("md 0.90"));
        check(Old::Md10, false, Some("md 1.0"));
        check(Old::Md12, false, Some("md 1.2"));
        check(Old::Zfs, true, Some("zfs"));
        check(Old::Btrfs, true, Some("btrfs"));
        check(Old::Lvm, false, Some("lvm"));
        check(Old::Ext4, false, Some("ext"));
        check(Old::Luks, false, Some("luks"));
        check(Old::Swap, false, Some("swap"));
        check(Old::Same, true, None);
        assert_eq!(tables(&Old::Gpt.disk((size, 512), &[])), ["mbr", "primary gpt", "backup gpt"]);
    }

    #[test]
    fn a_journal_is_unfinished_from_its_invalidation_to_its_end() {
        let begun = "0 {\"record\":\"begun\"}\n";
        let invalidated = "0 {\"record\":\"invalidated\"}\n";
        let finished = "0 {\"record\":\"finished\"}\n";
        for (text, expected) in [
            (begun.to_owned(), false),
            (format!("{begun}{invalidated}"), true),
            (format!("{begun}{invalidated}{begun}"), true),
            (format!("{begun}{invalidated}{finished}"), false),
            (format!("{begun}{invalidated}{finished}{begun}{invalidated}"), true),
        ] {
            assert_eq!(is_unfinished(text.as_bytes()), expected, "{text}");
        }
    }
}
