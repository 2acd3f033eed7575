//! Goal: a cluster that more use than its reference count says is told with the entries that use it, whoever they are,
//! and forbids nobody to read the image; what is counted rightly is not told.
//!
//! Method: images made by qemu-img in which one number is changed; what `qemu-img check` says of the same file.

use std::collections::BTreeSet;

use super::besides::{Places, with_bitmap};
use super::findings::{faults, l2, overused};
use super::*;

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const CLUSTER: u64 = 65536;

/// An image with two snapshots, and where things are in it.
struct Made {
    folder: Folder,
    path: PathBuf,
    l1: u64,
    l2: u64,
    snapshot_l1: u64,
    snapshot_l2: u64,
    /// What the second snapshot has at its disk's second cluster, and nobody else.
    data: u64,
    /// What the active disk has at its second, and nobody else.
    active: u64,
}

impl Made {
    fn new() -> Self {
        let folder = Folder::new();
        let path = folder.unpack("snapshots.qcow2", "made.qcow2");
        let snapshot_l1 = field(&path, field(&path, 64) + 72);
        let snapshot_l2 = field(&path, snapshot_l1) & OFFSET;
        let (l1, l2) = (field(&path, 40), l2(&path));
        let (data, active) = (field(&path, snapshot_l2 + 8) & OFFSET, field(&path, l2 + 8) & OFFSET);
        Self { folder, path, l1, l2, snapshot_l1, snapshot_l2, data, active }
    }

    fn put(&self, at: u64, value: u64) -> &Self {
        patch(&self.path, at, &value.to_be_bytes());
        self
    }

    fn count(&self, offset: u64, count: u16) -> &Self {
        let block = field(&self.path, field(&self.path, 48));
        patch(&self.path, block + offset / CLUSTER * 2, &count.to_be_bytes());
        self
    }

    /// Fails unless that is told, with the place and the disk's byte and in these words; and an image that
    /// `qemu-img check` finds in order is one in which nothing is told.
    #[track_caller]
    fn check(&self, expected: &[(&'static str, u64, Option<u64>)], words: &[String]) {
        let faults = faults(&self.path, &self.folder);
        let start = |range: Option<ByteRange>| range.map(ByteRange::start);
        let told: Vec<_> = faults
            .iter()
            .map(|fault| (fault.error.code(), start(fault.error.range()).unwrap(), start(fault.guest)))
            .collect();
        assert_eq!(told, expected, "{faults:?}");
        for (fault, words) in faults.iter().zip(words) {
            assert_eq!(fault.weight, Weight::Told);
            let text = fault.error.to_string();
            assert!(text.contains(words), "{text}, and not {words}");
            let hint = fault.error.hint().unwrap();
            assert!(hint.contains("qemu-img check -r all") && hint.contains("docs/interop/qcow2"), "{hint}");
        }
        open_alone(&self.path).unwrap().check_tables().unwrap();
    }
}

#[test]
fn a_cluster_of_the_disk_that_a_snapshot_has_elsewhere_is_told_unless_it_is_counted() {
    let made = Made::new();
    let (data, entry, other) = (made.data, made.l2 + 7 * 8, made.snapshot_l2 + 8);
    let words =
        [format!("2 times, and its reference count is 1 (the entries at {entry} and {other} point there)")];
    made.put(entry, COPIED | data).check(&[("refcount_too_low", data, Some(7 * CLUSTER))], &words);
    // Counted, and said to be the disk's alone.
    let words = [format!(
        "the entry at {entry} says that it alone uses this cluster, and the image uses it 2 times (the entry at {other} points there)"
    )];
    made.count(data, 2).check(&[("said_alone", data, Some(7 * CLUSTER))], &words);
    made.put(entry, data).check(&[], &[]);
    // More are counted than there are: that is only lost.
    made.count(data, 9).check(&[], &[]);
    made.count(data, 0).check(
        &[("refcount_too_low", data, Some(7 * CLUSTER))],
        &["2 times, and its reference count is 0".into()],
    );
    // One that says so behind the disk's end.
    let entry = made.l2 + 1000 * 8;
    let words =
        [format!("the entry at {entry} says that it alone uses this cluster, and the image uses it 2 times")];
    made.put(made.l2 + 7 * 8, 0)
        .put(entry, COPIED | data)
        .count(data, 2)
        .check(&[("said_alone", data, None)], &words);
}

#[test]
fn what_snapshots_share_with_each_other_and_with_the_disk_must_be_counted() {
    // Two entries of one snapshot.
    let made = Made::new();
    let (data, entries) = (made.data, [made.snapshot_l2 + 8, made.snapshot_l2 + 9 * 8]);
    let words = [format!("(the entries at {} and {} point there)", entries[0], entries[1])];
    made.put(entries[1], data).check(&[("refcount_too_low", data, None)], &words);
    // Who may write to a cluster is said by the disk's entries alone.
    made.put(entries[0], COPIED | data).put(entries[1], COPIED | data).count(data, 2).check(&[], &[]);
    // A snapshot's entry on data of the disk.
    let made = Made::new();
    let (active, entry) = (made.active, made.snapshot_l2 + 9 * 8);
    made.put(entry, active).check(
        &[("refcount_too_low", active, Some(CLUSTER))],
        &[format!("(the entries at {} and {entry} point there)", made.l2 + 8)],
    );
    // The disk has a snapshot's L2 table, and so all that it has.
    let made = Made::new();
    let shared = [made.snapshot_l2, made.data];
    made.put(made.l1, COPIED | made.snapshot_l2);
    made.check(
        &[("refcount_too_low", shared[0], None), ("refcount_too_low", shared[1], Some(CLUSTER))],
        &[
            format!("(the entries at {} and {} point there)", made.l1, made.snapshot_l1),
            format!(
                "2 times, and its reference count is 1 (the entry at {} points there)",
                made.snapshot_l2 + 8
            ),
        ],
    );
    made.count(shared[0], 2).count(shared[1], 2);
    made.check(
        &[("said_alone", shared[0], None)],
        &[format!("the entry at {} says that it alone uses this cluster", made.l1)],
    );
    made.put(made.l1, made.snapshot_l2).check(&[], &[]);
    made.put(made.snapshot_l2 + 8, COPIED | made.data).check(
        &[("said_alone", made.data, Some(CLUSTER))],
        &["says that it alone uses this cluster, and the image uses it 2 times".into()],
    );
}

#[test]
fn an_entry_that_is_wrong_uses_what_it_points_to_all_the_same() {
    // In a snapshot's table it is told; behind the disk's end anything may stand.
    for (of_snapshot, index) in [(true, 9), (false, 1000)] {
        let made = Made::new();
        let entry = if of_snapshot { made.snapshot_l2 } else { made.l2 } + index * 8;
        for (bits, why) in [(2, "reserved_bits"), (512, "misaligned"), (1 << 61, "reserved_bits")] {
            made.put(entry, made.data | bits);
            let told = faults(&made.path, &made.folder);
            let told: Vec<_> =
                told.iter().map(|fault| (fault.error.code(), fault.error.range().unwrap().start())).collect();
            let mut expected = vec![];
            if of_snapshot {
                expected.push((why, entry));
            }
            expected.push(("refcount_too_low", made.data));
            if bits == 512 {
                expected.push(("refcount_too_low", made.data + CLUSTER));
            }
            assert_eq!(told, expected, "{bits:#x}");
        }
    }
    // A stream is none with a bitmap of subclusters.
    let folder = Folder::new();
    let path = folder.unpack("extl2-64k.qcow2", "made.qcow2");
    let table = l2(&path);
    let data = field(&path, table) & OFFSET;
    patch(&path, table + 4000 * 16, &(COMPRESSED | data).to_be_bytes());
    assert_eq!(faults(&path, &folder).len(), 1);
    patch(&path, table + 4000 * 16 + 8, &1u64.to_be_bytes());
    assert_eq!(faults(&path, &folder).len(), 0);
    // An L1 entry behind the disk's end.
    let folder = Folder::new();
    let (path, places) = with_bitmap(&folder);
    patch(&path, 32, &2u64.to_be_bytes());
    patch(&path, places.l1 + 8, &(COPIED | places.spare | 2).to_be_bytes());
    let told = faults(&path, &folder);
    let told: Vec<_> =
        told.iter().map(|fault| (fault.error.code(), fault.error.range().unwrap().start())).collect();
    assert_eq!(told, [("reserved_bits", places.l1 + 8)]);
}

#[test]
fn the_entry_that_says_so_is_named_wherever_it_is() {
    let made = Made::new();
    // The disk's table lies behind the snapshot's, and its entry behind the disk's end.
    let table = made.path.metadata().unwrap().len().next_multiple_of(CLUSTER);
    let mut bytes = vec![0; 65536];
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&made.path).unwrap();
    file.read_exact_at(&mut bytes, made.l2).unwrap();
    file.write_all_at(&bytes, table).unwrap();
    made.put(made.l1, COPIED | table).count(table, 1).check(&[], &[]);
    let entry = table + 1000 * 8;
    let words = format!(
        "the entry at {entry} says that it alone uses this cluster, and the image uses it 2 times (the entry at {} points there)",
        made.snapshot_l2 + 8
    );
    made.put(entry, COPIED | made.data)
        .count(made.data, 2)
        .check(&[("said_alone", made.data, None)], &[words]);
}

#[test]
fn counts_behind_a_hole_of_their_block_are_read() {
    let made = Made::new();
    let (low, high) = (2100 * CLUSTER, 4101 * CLUSTER);
    std::fs::OpenOptions::new().write(true).open(&made.path).unwrap().set_len(high + CLUSTER).unwrap();
    made.put(made.l2 + 1000 * 8, low).put(made.l2 + 1001 * 8, high).count(high, 1);
    made.check(&[("refcount_too_low", low, None)], &[]);
}

#[test]
fn a_long_table_of_counts_is_read_wherever_it_lies() {
    const MIB: usize = 1 << 20;
    let folder = Folder::new();
    let path = folder.path("made.qcow2");
    // It has 256 KiB and ends with the file, which has no holes; counts of 64 bits from 1 MiB on.
    let (table, blocks, clusters) = (3 * MIB - 512, MIB, (3 * MIB - 512 + MIB / 4) / 512);
    let mut bytes = unpacked("v3-512.qcow2");
    bytes.resize(table + MIB / 4, 0);
    for index in 0..clusters.div_ceil(64) {
        bytes[table + index * 8..][..8].copy_from_slice(&((blocks + index * 512) as u64).to_be_bytes());
    }
    for index in 0..clusters {
        bytes[blocks + index * 8 + 7] = 1;
    }
    bytes[48..60].copy_from_slice(&[&(table as u64).to_be_bytes()[..], &512_u32.to_be_bytes()].concat());
    bytes[96..100].copy_from_slice(&6_u32.to_be_bytes());
    std::fs::write(&path, bytes).unwrap();
    let told = faults(&path, &folder);
    assert!(told.is_empty(), "{told:?}");
}

#[test]
fn what_is_used_by_more_than_are_counted_at_first_is_counted_again() {
    let folder = Folder::new();
    let path = folder.unpack("v3-512.qcow2", "made.qcow2");
    // A snapshot whose L1 table has one L2 table 40,000 times, of which one entry has a cluster.
    let (l1, l2, data): (u64, u64, u64) = (1 << 20, 2 << 20, 3 << 20);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(4 << 20).unwrap();
    let used: u64 = 40_000;
    file.write_all_at(&(0..used).flat_map(|_| l2.to_be_bytes()).collect::<Vec<u8>>(), l1).unwrap();
    patch(&path, l2, &data.to_be_bytes());
    let snapshots: u64 = 512 << 10;
    patch(&path, snapshots, &[&l1.to_be_bytes()[..], &40_000_u32.to_be_bytes()].concat());
    patch(&path, 60, &[&1_u32.to_be_bytes()[..], &snapshots.to_be_bytes()].concat());
    // Counts of 32 bits, for 8192 clusters in 64 blocks.
    patch(&path, 96, &5u32.to_be_bytes());
    let (table, blocks): (u64, u64) = (600 << 10, 640 << 10);
    patch(&path, 48, &[&table.to_be_bytes()[..], &1_u32.to_be_bytes()].concat());
    let ones: Vec<u8> = (0..8192).flat_map(|_| 1_u32.to_be_bytes()).collect();
    file.write_all_at(&ones, blocks).unwrap();
    let places: Vec<u8> = (0..64).flat_map(|number| (blocks + number * 512).to_be_bytes()).collect();
    file.write_all_at(&places, table).unwrap();
    let count = |offset: u64, count: u64| {
        let count = u32::try_from(count).unwrap();
        patch(&path, blocks + offset / 512 * 4, &count.to_be_bytes());
    };
    let told = || -> Vec<_> { faults(&path, &folder).iter().map(|fault| fault.error.to_string()).collect() };
    let all = |counts: [u64; 2]| {
        count(l2, counts[0]);
        count(data, counts[1]);
        told()
    };
    assert_eq!(all([used, used]), [] as [&str; 0]);
    assert_eq!(all([used + 7, used + 7]), [] as [&str; 0]);
    for (counts, least) in
        [([used - 1, used], used - 1), ([used, used - 1], used - 1), ([used, 32_767], 32_767), ([5, used], 5)]
    {
        let told = all(counts);
        assert_eq!(told.len(), 1, "{told:?}");
        let words = format!("the image uses this cluster 40000 times, and its reference count is {least} (");
        assert!(told[0].starts_with(&words), "{told:?}");
    }
    // A block that serves twice is told as that, and what it counts is not known.
    all([used, used]);
    count(20 * 128 * 512, 0);
    patch(&path, table + 63 * 8, &(blocks + 20 * 512).to_be_bytes());
    let told = told();
    assert!(told.len() == 1 && told[0].contains("another entry points to"), "{told:?}");
}

#[test]
fn a_stream_that_reaches_into_what_a_snapshot_has_is_told() {
    let made = Made::new();
    let entry = made.l2 + 7 * 8;
    let more_sectors: u64 = 3;
    made.put(entry, COMPRESSED | more_sectors << 54 | (made.data - 600));
    let faults = faults(&made.path, &made.folder);
    let places: Vec<_> = faults.iter().map(|fault| fault.error.range().unwrap().start() / CLUSTER).collect();
    assert!(places.contains(&(made.data / CLUSTER)), "{faults:?}");
    let fault = faults.iter().find(|fault| fault.error.range().unwrap().start() == made.data).unwrap();
    assert_eq!(
        (fault.error.code(), fault.error.entry()),
        ("refcount_too_low", Some(ByteRange::new(entry, 8)))
    );
    assert_eq!(fault.guest, Some(ByteRange::new(7 * CLUSTER, CLUSTER)));
}

#[test]
fn a_cluster_that_is_used_and_free_by_its_count_is_told_whatever_it_is() {
    let made = Made::new();
    let header = |at| field(&made.path, at);
    let block = header(header(48));
    for (offset, entry, guest) in [
        // The header.
        (0, None, None),
        // L1.
        (made.l1, None, None),
        // L2.
        (made.l2, Some(made.l1), None),
        // The disk's data.
        (made.active, Some(made.l2 + 8), Some(CLUSTER)),
        // The refcount table.
        (header(48), None, None),
        // A refcount block.
        (block, None, None),
        // The snapshot table.
        (header(64), None, None),
        // A snapshot's L1.
        (made.snapshot_l1, None, None),
        // A snapshot's L2.
        (made.snapshot_l2, Some(made.snapshot_l1), None),
        // A snapshot's data.
        (made.data, Some(made.snapshot_l2 + 8), None),
    ] {
        let points = entry.map(|entry| format!(" (the entry at {entry} points there)")).unwrap_or_default();
        let words = format!("the image uses this cluster once, and its reference count is 0{points}");
        made.count(offset, 0).check(&[("refcount_too_low", offset, guest)], &[words]);
        made.count(offset, 1).check(&[], &[]);
    }
}

#[test]
fn bitmaps_and_what_is_kept_behind_the_disks_end_are_counted() {
    let folder = Folder::new();
    let (path, places) = with_bitmap(&folder);
    let Places { l1, directory, bitmap_table, bitmap, refcount_block, spare, .. } = places;
    let count = |offset: u64, count: u16| {
        patch(&path, refcount_block + offset / CLUSTER * 2, &count.to_be_bytes());
    };
    #[track_caller]
    fn check(path: &Path, folder: &Folder, expected: &[(u64, Option<u64>)]) {
        let faults = faults(path, folder);
        let start = |range: Option<ByteRange>| range.map(ByteRange::start);
        let told: Vec<_> = faults
            .iter()
            .map(|fault| (start(fault.error.range()).unwrap(), start(fault.error.entry())))
            .collect();
        assert_eq!(told, expected, "{faults:?}");
        assert!(faults.iter().all(|fault| fault.error.code() == "refcount_too_low"), "{faults:?}");
    }
    for offset in [directory, bitmap_table, bitmap] {
        count(offset, 0);
        check(&path, &folder, &[(offset, None)]);
        count(offset, 1);
    }
    // An L2 table for what is behind the disk's end, and its one cluster.
    let cluster = spare + CLUSTER;
    patch(&path, cluster + CLUSTER - 1, &[0]);
    patch(&path, 32, &2u64.to_be_bytes());
    patch(&path, l1 + 8, &(COPIED | spare).to_be_bytes());
    patch(&path, spare + 24, &(COPIED | cluster).to_be_bytes());
    count(cluster, 1);
    check(&path, &folder, &[]);
    count(spare, 0);
    count(cluster, 0);
    check(&path, &folder, &[(spare, Some(l1 + 8)), (cluster, Some(spare + 24))]);
}

#[test]
fn counts_that_mean_nothing_or_are_not_there_are_not_compared() {
    let made = Made::new();
    made.put(made.l2 + 7 * 8, COPIED | made.data);
    made.check(&[("refcount_too_low", made.data, Some(7 * CLUSTER))], &[]);
    // Not closed properly: wrong entries of snapshots are told all the same.
    made.put(72, 1).check(&[], &[]);
    let (entry, value) = (made.snapshot_l2 + 9 * 8, COPIED | 1 << 57);
    patch(&made.path, entry, &value.to_be_bytes());
    let told = faults(&made.path, &made.folder);
    assert_eq!((told.len(), told[0].error.code()), (1, "reserved_bits"), "{told:?}");
    assert_eq!(told[0].error.range(), Some(ByteRange::new(entry, 8)));
    made.put(entry, 0).put(72, 0);
    // The header says nothing of how wide they are.
    patch(&made.path, 96, &7u32.to_be_bytes());
    let told = faults(&made.path, &made.folder);
    assert_eq!((told.len(), told[0].error.code()), (1, "bad_header"), "{told:?}");
    patch(&made.path, 96, &4u32.to_be_bytes());
    // The block that should say it lies somewhere wrong, which is told.
    let table = field(&made.path, 48);
    let block = field(&made.path, table);
    made.put(table, made.l1).check(&[("overlap", made.l1, None)], &[]);
    // There is none, so that nothing is counted; what is said of some clusters is said of each.
    made.put(table, 0);
    let faults = faults(&made.path, &made.folder);
    assert!(faults.iter().all(|fault| fault.error.code() == "refcount_too_low"), "{faults:?}");
    let used = 0..made.path.metadata().unwrap().len().div_ceil(CLUSTER);
    let places: Vec<_> = faults.iter().map(|fault| fault.error.range().unwrap().start() / CLUSTER).collect();
    assert_eq!(places, used.filter(|cluster| *cluster != block / CLUSTER).collect::<Vec<_>>());
}

#[test]
fn counts_of_every_width_are_understood() {
    for bits in [1_u32, 2, 4, 8, 16, 32, 64] {
        let folder = Folder::new();
        let path = folder.unpack("v3-64k.qcow2", "made.qcow2");
        let block = field(&path, field(&path, 48));
        let clusters = path.metadata().unwrap().len().div_ceil(CLUSTER);
        patch(&path, 96, &bits.ilog2().to_be_bytes());
        let put = |cluster: u64, is_used: bool| {
            let bit = cluster * u64::from(bits);
            let at = block + bit / 8;
            match u64::from(bits / 8) {
                0 => {
                    let byte = field(&path, at).to_be_bytes()[0];
                    let mask = u8::MAX >> (8 - bits);
                    let value = u8::from(is_used) << (bit % 8);
                    patch(&path, at, &[byte & !(mask << (bit % 8)) | value]);
                }
                len => {
                    let value = u64::from(is_used).to_be_bytes();
                    patch(&path, at, &value[8 - usize::try_from(len).unwrap()..]);
                }
            }
        };
        patch(&path, block, &[0; 4096]);
        (0..clusters).for_each(|cluster| put(cluster, true));
        assert_eq!(faults(&path, &folder).len(), 0, "{bits} bits");
        for cluster in 0..clusters {
            put(cluster, false);
            let faults = faults(&path, &folder);
            let places: Vec<_> = faults.iter().map(|fault| fault.error.range().unwrap().start()).collect();
            assert_eq!(places, [cluster * CLUSTER], "{bits} bits: {faults:?}");
            put(cluster, true);
        }
    }
}

#[test]
fn what_is_beyond_the_first_thousand_is_counted() {
    let folder = Folder::new();
    let path = folder.unpack("v3-512.qcow2", "made.qcow2");
    let (l1, end) = (field(&path, 40), path.metadata().unwrap().len().next_multiple_of(512));
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    // Tables and clusters that nobody counts.
    for table in 0..30_u64 {
        let at = end + table * 65 * 512;
        let entries: Vec<u8> =
            (1..=64).flat_map(|number| (COPIED | (at + number * 512)).to_be_bytes()).collect();
        file.write_all_at(&entries, at).unwrap();
        patch(&path, l1 + table * 8, &(COPIED | at).to_be_bytes());
    }
    file.set_len(end + 30 * 65 * 512).unwrap();
    let faults = faults(&path, &folder);
    let counted: u64 = faults.iter().map(|fault| 1 + fault.further).sum();
    assert_eq!((faults.len(), counted), (1000, 30 * 65));
}

#[test]
#[ignore = "needs qemu-img"]
fn what_qemu_img_check_reports_of_clusters_with_too_low_counts_is_told_and_nothing_else() {
    type Change = fn(&Made);
    let changes: &[(&str, Change)] = &[
        ("the disk has a snapshot's data elsewhere", |made| _ = made.put(made.l2 + 7 * 8, made.data)),
        ("the same place", |made| _ = made.put(made.l2 + 8, made.data)),
        ("a snapshot twice", |made| _ = made.put(made.snapshot_l2 + 7 * 8, made.data)),
        ("a snapshot has the disk's", |made| _ = made.put(made.snapshot_l2 + 7 * 8, made.active)),
        ("the disk has a snapshot's table", |made| _ = made.put(made.l1, made.snapshot_l2)),
        ("a snapshot has the disk's table", |made| _ = made.put(made.snapshot_l1, made.l2)),
        ("nothing is counted", |made| _ = made.put(field(&made.path, 48), 0)),
        ("data are not counted", |made| _ = made.count(made.data, 0)),
        ("a table is not counted", |made| _ = made.count(made.snapshot_l2, 0)),
        ("a stream into a snapshot's data", |made| {
            made.put(made.l2 + 7 * 8, COMPRESSED | 3 << 54 | (made.data - 600));
        }),
        ("counted too often", |made| _ = made.count(made.data, 7)),
    ];
    for (name, change) in changes {
        let made = Made::new();
        assert_eq!(overused(&made.path), BTreeSet::new(), "{name} is sound before");
        change(&made);
        let faults = faults(&made.path, &made.folder);
        let place = |fault: &Fault| fault.error.range().unwrap().start() / CLUSTER;
        let ours: BTreeSet<u64> = faults.iter().map(place).collect();
        assert_eq!(ours, overused(&made.path), "{name}: {faults:?}");
        assert_eq!(ours.is_empty(), *name == "counted too often", "{name}");
    }
}
