//! What the image's partitions say of the guest: whether it is the one that the seed is for.

use crate::layout::{self, DiskLayout, SeedLabel};
use crate::request::Os;

/// Microsoft reserved, and basic data: types of a GPT that an installation of Windows makes.
const WINDOWS_TYPES: [&str; 2] =
    ["e3c9e316-0b5c-4db8-817d-f92df00215ae", "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7"];
/// The same in an MBR: NTFS and exFAT.
const WINDOWS_MBR_TYPE: &str = "07";

/// Where the guest seems to be another than the seed is for, or would read another seed.
pub(super) fn warnings(os: Os, disk: &DiskLayout) -> Vec<String> {
    let mut warnings = Vec::new();
    match os {
        Os::Linux if is_windows(disk) => warnings.push(
            "the image looks like Windows (NTFS in a Microsoft partition), and the machine's system is said to be \
             Linux: if that is wrong, say --os windows, or its password will be a random one"
                .into(),
        ),
        Os::Windows if !holds_ntfs(disk) => warnings.push(
            "the machine's system is said to be Windows, and the image holds no NTFS: if it is Linux, say --os \
             linux, or its password stays what the image has"
                .into(),
        ),
        _ => {}
    }
    for SeedLabel { label, place, .. } in layout::seed_labels(disk) {
        warnings.push(format!(
            "the image itself carries a file system labelled {label} ({place}): the guest may take it for the \
             seed, and keep its old credentials"
        ));
    }
    warnings
}

fn is_windows(disk: &DiskLayout) -> bool {
    let is_microsofts = |type_id: &str| WINDOWS_TYPES.contains(&type_id) || type_id == WINDOWS_MBR_TYPE;
    disk.partitions.iter().any(|partition| is_microsofts(&partition.type_id)) && holds_ntfs(disk)
}

fn holds_ntfs(disk: &DiskLayout) -> bool {
    let inside = disk.partitions.iter().filter_map(|partition| partition.file_system.as_ref());
    inside.chain(&disk.file_system).any(|found| found.kind == "ntfs" || found.kind == "BitLocker")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with an MBR whose one partition, of this type, begins with `content` at sector 8.
    fn disk(kind: u8, content: &[(usize, &[u8])]) -> DiskLayout {
        let mut disk = vec![0; 256 << 10];
        disk[446..462].copy_from_slice(&[0, 0, 0, 0, kind, 0, 0, 0, 8, 0, 0, 0, 0xf8, 1, 0, 0]);
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        for (at, bytes) in content {
            disk[4096 + at..4096 + at + bytes.len()].copy_from_slice(bytes);
        }
        layout::describe(&disk).unwrap()
    }

    #[track_caller]
    fn check(os: Os, disk: &DiskLayout, expected: &[&str]) {
        assert_eq!(warnings(os, disk), expected);
    }

    #[test]
    fn an_image_of_another_system_than_the_seed_is_for_is_told() {
        let windows = disk(7, &[(3, b"NTFS    ")]);
        let looks_like_windows = "the image looks like Windows (NTFS in a Microsoft partition), and the machine's \
                                  system is said to be Linux: if that is wrong, say --os windows, or its password \
                                  will be a random one";
        check(Os::Windows, &windows, &[]);
        check(Os::Linux, &windows, &[looks_like_windows]);
        let linux = disk(0x83, &[(1080, &[0x53, 0xef])]);
        let holds_no_ntfs = "the machine's system is said to be Windows, and the image holds no NTFS: if it is \
                             Linux, say --os linux, or its password stays what the image has";
        check(Os::Linux, &linux, &[]);
        check(Os::Windows, &linux, &[holds_no_ntfs]);
        check(Os::Linux, &disk(7, &[(3, b"EXFAT   ")]), &[]);
        check(Os::Windows, &disk(7, &[(3, b"-FVE-FS-")]), &[]);
    }

    #[test]
    fn an_image_that_carries_a_seed_is_told() {
        let carries = "the image itself carries a file system labelled CIDATA (partition 1): the guest may take it \
                       for the seed, and keep its old credentials";
        let swap = disk(0x82, &[(4086, b"SWAPSPACE2"), (1036, &[1; 16]), (1052, b"CIDATA")]);
        check(Os::Linux, &swap, &[carries]);
    }
}
