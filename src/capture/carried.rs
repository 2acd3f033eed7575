//! What an image would carry along of the machine that it is made from, as far as that is seen without mounting it.

use std::io;

use crate::layout::{self, DiskLayout, ReadBytes, SeedLabel, Usage};

/// What a person should know of the disk before an image of it goes anywhere.
pub(super) fn warnings(disk: &dyn ReadBytes, layout: &DiskLayout) -> io::Result<Vec<String>> {
    let mut warnings = Vec::new();
    for SeedLabel { label, place, .. } in layout::seed_labels(layout) {
        warnings.push(format!(
            "the disk carries a file system labelled {label} ({place}): this machine's seed goes into the image with \
             its credentials, and a machine that is rebuilt from it may take it for its own"
        ));
    }
    for (place, content) in layout::contents(layout) {
        match (content.kind, content.usage) {
            ("swap", _) => warnings.push(format!(
                "the disk carries swap space ({place}): what was in the machine's memory may go into the image"
            )),
            ("swsuspend", _) => warnings.push(format!(
                "the machine is hibernated ({place}): a machine that is rebuilt from the image would go on from its \
                 memory, and damage disks that have changed since; start it and shut it down instead"
            )),
            (kind, Usage::Crypto) => warnings.push(format!(
                "the disk is encrypted ({kind}, {place}): the same keys will open the image, and it hardly compresses"
            )),
            _ => {}
        }
    }
    for (place, kind) in layout::unclean(disk, layout)? {
        warnings.push(format!(
            "the {kind} file system ({place}) was not unmounted: the image will hold what a power cut leaves; if the \
             machine was not shut down, do that and capture again"
        ));
    }
    Ok(warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with an MBR whose one partition begins with `content` at sector 8.
    #[track_caller]
    fn check(content: &[(usize, &[u8])], expected: &[&str]) {
        let mut disk = vec![0; 256 << 10];
        disk[446..462].copy_from_slice(&[0, 0, 0, 0, 0x83, 0, 0, 0, 8, 0, 0, 0, 0xf8, 1, 0, 0]);
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        for (at, bytes) in content {
            disk[4096 + at..4096 + at + bytes.len()].copy_from_slice(bytes);
        }
        let layout = layout::describe(&disk).unwrap();
        let warnings = warnings(&disk, &layout).unwrap();
        assert_eq!(warnings.len(), expected.len(), "{warnings:?}");
        for (warning, expected) in warnings.iter().zip(expected) {
            assert!(
                warning.contains(expected) && warning.contains("(partition 1)") || warning.contains("LUKS")
            );
            assert!(warning.contains(expected), "{warning}");
        }
    }

    #[test]
    fn what_would_go_along_is_told_with_its_place() {
        check(&[(3, b"NTFS    ")], &[]);
        check(&[(4086, b"SWAPSPACE2")], &["swap space"]);
        check(&[(4086, b"S1SUSPEND\0")], &["hibernated"]);
        check(&[(0, b"LUKS\xba\xbe")], &["encrypted (crypto_LUKS, partition 1)"]);
        let fat: [(usize, &[u8]); 4] =
            [(510, &[0x55, 0xaa]), (11, &[0, 2, 1, 1, 0, 1]), (54, b"FAT16   "), (43, b"cidata     ")];
        check(&fat, &["labelled cidata"]);
        check(&[&fat[..], &[(0x25, &[1])]].concat(), &["labelled cidata", "vfat file system"]);
    }
}
