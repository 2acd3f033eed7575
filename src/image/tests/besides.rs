//! Goal: a cluster of the disk that lies on anything of a snapshot, a bitmap or a place behind the disk's end is told,
//! with the entry that points there, and forbids nobody to read the image.
//!
//! Method: images made by qemu-img in which one number is changed; what `qemu-img check` says of the same file.

use std::collections::BTreeSet;

use super::findings::{faults, l2, overused};
use super::*;

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const CLUSTER: u64 = 65536;

/// Where things are in an image with two snapshots or one bitmap; where there is none, 0.
#[derive(Default)]
pub(super) struct Places {
    pub(super) l1: u64,
    pub(super) l2: u64,
    snapshots: u64,
    /// The second snapshot's tables.
    snapshot_l1: u64,
    snapshot_l2: u64,
    pub(super) directory: u64,
    pub(super) bitmap_table: u64,
    pub(super) bitmap: u64,
    pub(super) refcount_block: u64,
    /// A cluster that is counted, and nobody's.
    pub(super) spare: u64,
}

fn with_snapshots(folder: &Folder) -> (PathBuf, Places) {
    let path = folder.unpack("snapshots.qcow2", "made.qcow2");
    let snapshots = field(&path, 64);
    let snapshot_l1 = field(&path, snapshots + 72);
    let places = Places {
        l1: field(&path, 40),
        l2: l2(&path),
        snapshots,
        snapshot_l1,
        snapshot_l2: field(&path, snapshot_l1) & OFFSET,
        refcount_block: field(&path, field(&path, 48)),
        ..Places::default()
    };
    (path, places)
}

/// An image with a bitmap of one cluster, and all that belongs to it counted.
pub(super) fn with_bitmap(folder: &Folder) -> (PathBuf, Places) {
    let path = folder.unpack("v3-64k.qcow2", "made.qcow2");
    let directory = path.metadata().unwrap().len().next_multiple_of(CLUSTER);
    let (bitmap_table, bitmap) = (directory + CLUSTER, directory + 2 * CLUSTER);
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(bitmap + 2 * CLUSTER).unwrap();
    let refcount_block = field(&path, field(&path, 48));
    patch(&path, refcount_block + directory / CLUSTER * 2, &[0, 1, 0, 1, 0, 1, 0, 1]);
    // Table, its one entry, no flags, a dirty-tracking bitmap of 64 KiB a bit, with a name of one byte.
    let entry = [&bitmap_table.to_be_bytes()[..], &[0, 0, 0, 1, 0, 0, 0, 0, 1, 16, 0, 1, 0, 0, 0, 0, b'b']];
    patch(&path, directory, &entry.concat());
    patch(&path, bitmap_table, &bitmap.to_be_bytes());
    let extension = [&0x2385_2875_u32.to_be_bytes()[..], &[0, 0, 0, 24, 0, 0, 0, 1, 0, 0, 0, 0]].concat();
    patch(&path, 112, &[&extension[..], &32_u64.to_be_bytes(), &directory.to_be_bytes(), &[0; 8]].concat());
    patch(&path, 88, &1u64.to_be_bytes());
    let places = Places {
        l1: field(&path, 40),
        l2: l2(&path),
        directory,
        bitmap_table,
        bitmap,
        refcount_block,
        spare: bitmap + CLUSTER,
        ..Places::default()
    };
    (path, places)
}

/// What is told of one image: the kind, the place, the disk's byte, the entry.
type Told = (&'static str, u64, Option<u64>, Option<u64>);

/// One number that is changed, and what is told then.
struct Case {
    name: &'static str,
    make: fn(&Folder) -> (PathBuf, Places),
    change: fn(&Places) -> Vec<(u64, u64)>,
    told: fn(&Places) -> Vec<Told>,
    words: &'static str,
}

impl Case {
    fn made(&self, folder: &Folder) -> (PathBuf, Places) {
        let (path, places) = (self.make)(folder);
        for (at, value) in (self.change)(&places) {
            patch(&path, at, &value.to_be_bytes());
        }
        (path, places)
    }
}

/// The disk's first cluster lies where it should not.
macro_rules! first_cluster {
    ($name:literal, $make:ident, $place:ident, $words:literal) => {
        Case {
            name: $name,
            make: $make,
            change: |p| vec![(p.l2, COPIED | p.$place)],
            told: |p| vec![("overlap", p.$place, Some(0), Some(p.l2))],
            words: $words,
        }
    };
}

/// A compressed cluster of the disk begins so far behind a place where it should not.
macro_rules! stream {
    ($name:literal, $make:ident, $place:ident + $more:literal, $words:literal) => {
        Case {
            name: $name,
            make: $make,
            change: |p| vec![(p.l2 + 6 * 8, COMPRESSED | (p.$place + $more))],
            told: |p| vec![("overlap", p.$place + $more, Some(6 * CLUSTER), Some(p.l2 + 6 * 8))],
            words: $words,
        }
    };
}

fn cases() -> Vec<Case> {
    vec![
        first_cluster!("data on L1", with_snapshots, snapshot_l1, "a cluster lies on a snapshot's L1 table"),
        first_cluster!("data on L2", with_snapshots, snapshot_l2, "a cluster lies on a snapshot's L2 table"),
        first_cluster!("data on the table", with_snapshots, snapshots, "lies on the snapshot table"),
        first_cluster!("data on the directory", with_bitmap, directory, "lies on the bitmap directory"),
        first_cluster!("data on a bitmap's table", with_bitmap, bitmap_table, "lies on a bitmap's table"),
        first_cluster!("data on a bitmap", with_bitmap, bitmap, "a cluster lies on a bitmap"),
        stream!("stream on L1", with_snapshots, snapshot_l1 + 0, "a compressed cluster lies on a snapshot's"),
        stream!("stream behind L1", with_snapshots, snapshot_l1 + 5000, "lies on a snapshot's L1 table"),
        stream!("stream on L2", with_snapshots, snapshot_l2 + 65535, "lies on a snapshot's L2 table"),
        stream!("stream behind the table", with_snapshots, snapshots + 9000, "lies on the snapshot table"),
        stream!("stream behind the active L1", with_snapshots, l1 + 600, "in which the L1 table ends"),
        stream!("stream on the directory", with_bitmap, directory + 40000, "lies on the bitmap directory"),
        stream!("stream on a bitmap's table", with_bitmap, bitmap_table + 8, "lies on a bitmap's table"),
        stream!("stream on a bitmap", with_bitmap, bitmap + 3, "a compressed cluster lies on a bitmap"),
        Case {
            name: "data on a refcount block of a dirty image",
            make: with_snapshots,
            change: |p| vec![(72, 1), (p.l2, COPIED | p.refcount_block)],
            told: |p| vec![("overlap", p.refcount_block, Some(0), Some(p.l2))],
            words: "a cluster lies on a refcount block",
        },
        Case {
            name: "a cluster that is kept behind the disk's end, too",
            make: with_bitmap,
            change: |p| vec![(p.l2 + 20 * 8, COPIED | (p.directory - CLUSTER))],
            told: |p| vec![("overlap", p.directory - CLUSTER, Some(10 * CLUSTER), Some(p.l2 + 10 * 8))],
            words: "a cluster lies on a cluster for what is behind the disk's end",
        },
        Case {
            name: "a cluster that is a table for what is behind the disk's end, too",
            make: with_bitmap,
            change: |p| vec![(32, 2), (p.l1 + 8, COPIED | p.spare), (p.l2, COPIED | p.spare)],
            told: |p| vec![("overlap", p.spare, Some(0), Some(p.l2))],
            words: "a cluster lies on an L2 table for what is behind the disk's end",
        },
        Case {
            name: "the active L2 table on a snapshot's L1 table",
            make: with_snapshots,
            change: |p| vec![(p.l1, COPIED | p.snapshot_l1), (p.snapshot_l1, 0)],
            told: |p| vec![("overlap", p.snapshot_l1, None, Some(p.snapshots + 72))],
            words: "a snapshot's L1 table lies on an L2 table",
        },
        Case {
            name: "two snapshots with one L1 table",
            make: with_snapshots,
            change: |p| vec![(p.snapshots, p.snapshot_l1)],
            told: |p| vec![("overlap", p.snapshot_l1, None, Some(p.snapshots + 72))],
            words: "a snapshot's L1 table lies on a snapshot's L1 table",
        },
    ]
}

#[track_caller]
fn check(name: &str, path: &Path, folder: &Folder, expected: &[Told], words: &str) {
    let faults = faults(path, folder);
    let start = |range: Option<ByteRange>| range.map(ByteRange::start);
    let told: Vec<Told> = faults
        .iter()
        .map(|fault| {
            let error = &fault.error;
            (error.code(), start(error.range()).unwrap(), start(fault.guest), start(error.entry()))
        })
        .collect();
    assert_eq!(told, expected, "{name}: {faults:?}");
    for fault in faults {
        assert!(fault.weight == Weight::Told, "{name}: {fault:?}");
        let text = fault.error.to_string();
        assert!(text.contains(words), "{name}: {text}");
        let entry = fault.error.entry().filter(|_| fault.error.code() == "overlap");
        let said = entry.is_none_or(|entry| text.contains(&format!("the entry at {} points", entry.start())));
        assert!(said, "{name}: {text}");
        assert!(fault.error.hint().is_some_and(|hint| hint.contains("docs/interop/qcow2")), "{name}: {text}");
    }
    open_alone(path).unwrap().check_tables().unwrap();
}

#[test]
fn a_cluster_on_what_the_disk_does_not_need_is_told_and_forbids_nothing() {
    for case in cases() {
        let folder = Folder::new();
        let (path, places) = case.made(&folder);
        check(case.name, &path, &folder, &(case.told)(&places), case.words);
    }
}

#[test]
fn nothing_is_told_of_snapshots_and_bitmaps_that_are_sound() {
    for make in [with_snapshots, with_bitmap] {
        let folder = Folder::new();
        let (path, places) = make(&folder);
        check("sound", &path, &folder, &[], "");
        // Wild entries behind the disk's end are nobody's.
        patch(&path, places.l2 + 20 * 8, &(COPIED | 1 << 50).to_be_bytes());
        patch(&path, places.l2 + 21 * 8, &(COPIED | 1 << 50 | 512).to_be_bytes());
        patch(&path, places.l2 + 22 * 8, &2u64.to_be_bytes());
        check("wild", &path, &folder, &[], "");
    }
    // A snapshot and the disk may have one L2 table.
    let folder = Folder::new();
    let (path, places) = with_snapshots(&folder);
    let shared = [places.snapshot_l2, field(&path, places.snapshot_l2 + 8) & OFFSET];
    patch(&path, places.l1, &places.snapshot_l2.to_be_bytes());
    for cluster in shared {
        patch(&path, places.refcount_block + cluster / CLUSTER * 2, &2u16.to_be_bytes());
    }
    check("one L2 table", &path, &folder, &[], "");
    // Bitmaps of an image that was changed by a program which knows nothing of them do not count.
    let (path, places) = with_bitmap(&folder);
    patch(&path, 88, &0u64.to_be_bytes());
    patch(&path, places.l2, &(COPIED | places.bitmap).to_be_bytes());
    check("inconsistent", &path, &folder, &[], "");
}

#[test]
fn wild_places_of_snapshots_and_bitmaps_are_told() {
    type Make = fn(&Folder) -> (PathBuf, Places);
    type Change = fn(&Places) -> (u64, u64);
    type Wild = (&'static str, Make, Change, &'static str, bool, &'static str);
    let cases: &[Wild] = &[
        (
            "L1 unaligned",
            with_snapshots,
            |p| (p.snapshots, p.snapshot_l1 + 512),
            "misaligned",
            false,
            "snapshot table entry",
        ),
        (
            "L1 far away",
            with_snapshots,
            |p| (p.snapshots, 1 << 60),
            "beyond_end",
            true,
            "a snapshot's L1 table reaches",
        ),
        (
            "L1 at the end of all",
            with_snapshots,
            |p| (p.snapshots, u64::MAX - 65535),
            "beyond_end",
            true,
            "a snapshot's L1 table",
        ),
        ("L1 on the header", with_snapshots, |p| (p.snapshots, 0), "overlap", true, "lies on the header"),
        (
            "L1 on the L1 table",
            with_snapshots,
            |p| (p.snapshots, p.l1),
            "overlap",
            true,
            "lies on the L1 table",
        ),
        (
            "L2 unaligned",
            with_snapshots,
            |p| (p.snapshot_l1, p.snapshot_l2 + 512),
            "misaligned",
            false,
            "snapshot's L1 entry",
        ),
        (
            "L2 reserved",
            with_snapshots,
            |p| (p.snapshot_l1, p.snapshot_l2 + 2),
            "reserved_bits",
            false,
            "snapshot's L1 entry",
        ),
        (
            "L2 far away",
            with_snapshots,
            |p| (p.snapshot_l1, 1 << 50),
            "beyond_end",
            true,
            "a snapshot's L2 table reaches",
        ),
        (
            "L2 on the L1 table",
            with_snapshots,
            |p| (p.snapshot_l1, p.l1),
            "overlap",
            true,
            "a snapshot's L2 table lies on the L1",
        ),
        (
            "L2 on its L1 table",
            with_snapshots,
            |p| (p.snapshot_l1, p.snapshot_l1),
            "overlap",
            true,
            "lies on a snapshot's L1 table",
        ),
        (
            "directory unaligned",
            with_bitmap,
            |p| (136, p.directory + 512),
            "misaligned",
            false,
            "bitmaps extension entry",
        ),
        (
            "directory far away",
            with_bitmap,
            |_| (136, 1 << 60),
            "beyond_end",
            true,
            "the bitmap directory reaches",
        ),
        (
            "table far away",
            with_bitmap,
            |p| (p.directory, 1 << 60),
            "beyond_end",
            true,
            "a bitmap's table reaches",
        ),
        (
            "table on the L1 table",
            with_bitmap,
            |p| (p.directory, p.l1),
            "overlap",
            true,
            "a bitmap's table lies on the L1",
        ),
        (
            "bitmap reserved",
            with_bitmap,
            |p| (p.bitmap_table, p.bitmap + 1),
            "reserved_bits",
            false,
            "bitmap table entry",
        ),
        (
            "bitmap unaligned",
            with_bitmap,
            |p| (p.bitmap_table, p.bitmap + 512),
            "misaligned",
            false,
            "bitmap table entry",
        ),
        (
            "bitmap far away",
            with_bitmap,
            |p| (p.bitmap_table, 1 << 50),
            "beyond_end",
            true,
            "a bitmap reaches",
        ),
        (
            "bitmap on an L2 table",
            with_bitmap,
            |p| (p.bitmap_table, p.l2),
            "overlap",
            true,
            "a bitmap lies on an L2 table",
        ),
    ];
    for (name, make, change, code, is_of_place, words) in cases {
        let folder = Folder::new();
        let (path, places) = make(&folder);
        let (entry, value) = change(&places);
        patch(&path, entry, &value.to_be_bytes());
        let place = if *is_of_place { value } else { entry };
        check(name, &path, &folder, &[(code, place, None, Some(entry))], words);
    }
    // What follows the fixed part of an entry is not in the file: from there on nothing can be known.
    let folder = Folder::new();
    let (path, places) = with_snapshots(&folder);
    patch(&path, places.snapshots + 36, &u32::MAX.to_be_bytes());
    let entry = (places.snapshots + 40 + u64::from(u32::MAX) + 6).next_multiple_of(8);
    check(
        "extra data",
        &path,
        &folder,
        &[("beyond_end", places.snapshots, None, Some(entry))],
        "the snapshot table",
    );
}

#[test]
fn more_than_is_listed_at_once_is_looked_for_in_parts() {
    const COUNT: u64 = (2 << 20) + 1000;
    let folder = Folder::new();
    let path = folder.unpack("v3-512.qcow2", "made.qcow2");
    let first = (1 << 30) + 512;
    let (snapshots, l1) = (64 << 20, 128 << 20);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(first + COUNT * 512).unwrap();
    let entries: Vec<u8> = (0..COUNT).flat_map(|number| (first + number * 512).to_be_bytes()).collect();
    file.write_all_at(&entries, l1).unwrap();
    patch(&path, snapshots, &l1.to_be_bytes());
    patch(&path, snapshots + 8, &u32::try_from(COUNT).unwrap().to_be_bytes());
    patch(&path, 60, &1u32.to_be_bytes());
    patch(&path, 64, &snapshots.to_be_bytes());
    // Nothing of that is counted.
    patch(&path, 72, &1u64.to_be_bytes());
    let l2 = l2(&path);
    let data = field(&path, l2);
    for number in [0, COUNT / 2, COUNT - 1] {
        let place = first + number * 512;
        patch(&path, l2, &(COPIED | place).to_be_bytes());
        let expected = ("overlap", place, Some(0), Some(l2));
        check("in parts", &path, &folder, &[expected], "lies on a snapshot's L2 table");
    }
    patch(&path, l2, &data.to_be_bytes());
    check("sound", &path, &folder, &[], "");
}

/// An image of clusters of 4 KiB whose first two streams are neighbours: the second begins where `gap` says, so far
/// from the end of the first, which is a stored block in which any bytes are content.
fn with_neighbours(folder: &Folder, gap: i64) -> (PathBuf, [u64; 2]) {
    let path = folder.unpack("zlib-4k.qcow2", "made.qcow2");
    let at = path.metadata().unwrap().len().next_multiple_of(4096);
    let first = [&[1, 0, 16, 255, 239][..], &[7; 4096]].concat();
    let second = [&[1, 0, 16, 255, 239][..], &[9; 4096]].concat();
    let next = (at + first.len() as u64).checked_add_signed(gap).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(at + 16384).unwrap();
    patch(&path, at, &first);
    patch(&path, next, &second);
    let l2 = l2(&path);
    for (number, start, end) in [(0, at, at + 4101), (1, next, next + 4101)] {
        let more_sectors = (end - 1) / 512 - start / 512;
        patch(&path, l2 + 8 * number, &(COMPRESSED | more_sectors << 58 | start).to_be_bytes());
    }
    // None of them is counted.
    patch(&path, 72, &1u64.to_be_bytes());
    // Others would be neighbours, too.
    for number in 2..512 {
        patch(&path, l2 + 8 * number, &0u64.to_be_bytes());
    }
    (path, [next, l2 + 8])
}

#[test]
fn a_stream_that_goes_on_in_its_last_sector_where_the_next_has_begun_is_told() {
    for gap in [-1, -4] {
        let folder = Folder::new();
        let (path, [next, entry]) = with_neighbours(&folder, gap);
        let expected = ("shared_cluster", next, Some(4096), Some(entry));
        check("an overlap", &path, &folder, &[expected], "both lie here");
    }
    for gap in [0, 1, 300] {
        let folder = Folder::new();
        let (path, _) = with_neighbours(&folder, gap);
        check("neighbours", &path, &folder, &[], "");
    }
}

#[test]
#[ignore = "needs qemu-img"]
fn what_qemu_img_check_reports_of_snapshots_and_bitmaps_is_told_too() {
    for case in cases() {
        let folder = Folder::new();
        assert_eq!(overused(&(case.make)(&folder).0), BTreeSet::new(), "{} is sound before", case.name);
        let (path, _) = case.made(&folder);
        let faults = faults(&path, &folder);
        let ours: BTreeSet<u64> = faults
            .iter()
            .filter(|fault| fault.error.code() == "overlap")
            .map(|fault| fault.error.range().unwrap().start() / CLUSTER)
            .collect();
        let theirs = overused(&path);
        // Where a snapshot's table serves twice, all that it has is used twice.
        let is_of_disk = faults.iter().all(|fault| fault.guest.is_some());
        let both = if is_of_disk { ours.is_superset(&theirs) } else { !ours.is_disjoint(&theirs) };
        assert!(!theirs.is_empty() && both, "{}: {ours:?} and not {theirs:?}", case.name);
    }
}
