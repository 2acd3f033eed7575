//! Goal: everything that is wrong with an image is told once, with its place, and of a sound image nothing is.
//!
//! Method: several faults at once in images made by qemu-img; what `qemu-img check` says of shared clusters beside what
//! is said here.

use std::collections::BTreeSet;

use super::*;

const COPIED: u64 = 1 << 63;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// All faults of an image and of the files below it.
pub(super) fn faults(path: &Path, folder: &Folder) -> Vec<Fault> {
    let mut faults = Vec::new();
    let folders = [folder.all_of()];
    let options = OpenOptions { backing_folders: &folders, ..OpenOptions::default() };
    let mut sink = |fault| {
        faults.push(fault);
        Ok(())
    };
    match examine(path, &options, &mut sink) {
        Ok(Examined::Disk(disk)) => disk.walk(Scope::Everything, &mut sink).unwrap(),
        Ok(Examined::Packed) => panic!("{}: packed", path.display()),
        Err(error) => faults.push(fault::Fault::refused(error, None)),
    }
    faults
}

/// What a fault is, where in the file, and of which byte of the disk.
fn told(faults: &[Fault]) -> Vec<(&'static str, Option<u64>, Option<u64>)> {
    let told = |fault: &Fault| {
        (fault.error.code(), fault.error.range().map(ByteRange::start), fault.guest.map(ByteRange::start))
    };
    faults.iter().map(told).collect()
}

/// Where the first L2 table is.
pub(super) fn l2(path: &Path) -> u64 {
    field(path, field(path, 40)) & OFFSET
}

#[test]
fn nothing_is_told_of_a_sound_image() {
    for (name, ..) in expected() {
        let folder = Folder::with(below(&name));
        for further in ["chain-base.raw", "chain-mid.qcow2"] {
            folder.unpack(further, further);
        }
        let path = folder.unpack(&format!("{name}.qcow2"), &format!("{name}.qcow2"));
        let faults = faults(&path, &folder);
        assert!(faults.is_empty(), "{name}: {faults:?}");
    }
}

#[test]
fn every_faulty_entry_is_told() {
    const CLUSTER: u64 = 65536;
    let folder = Folder::with(&["v3-64k.qcow2"]);
    let path = folder.path("v3-64k.qcow2");
    let (l1, l2) = (field(&path, 40), l2(&path));
    let entries = [0, 1, 2, 3, 4].map(|index| field(&path, l2 + 8 * index));
    let end = path.metadata().unwrap().len().next_multiple_of(CLUSTER);
    for (index, value) in
        [entries[0] | 2, entries[1] + 512, COPIED | end, COPIED | l1, entries[4]].into_iter().enumerate()
    {
        patch(&path, l2 + 8 * u64::try_from(index).unwrap(), &value.to_be_bytes());
    }
    patch(&path, l2 + 8 * 7, &entries[4].to_be_bytes());
    let faults = faults(&path, &folder);
    let expected = [
        ("reserved_bits", Some(l2), Some(0)),
        ("misaligned", Some(l2 + 8), Some(CLUSTER)),
        ("beyond_end", Some(end), Some(2 * CLUSTER)),
        ("overlap", Some(l1), Some(3 * CLUSTER)),
        ("shared_cluster", Some(entries[4] & OFFSET), Some(7 * CLUSTER)),
    ];
    assert_eq!(told(&faults), expected);
    assert!(faults.iter().all(|fault| fault.weight == Weight::Refused && fault.further == 0));
}

#[test]
fn every_faulty_l1_entry_is_told_and_the_rest_is_walked() {
    // Clusters of 512 bytes: a table describes 32 KiB.
    let folder = Folder::with(&["v3-512.qcow2"]);
    let path = folder.path("v3-512.qcow2");
    let l1 = field(&path, 40);
    let first = field(&path, l1) & OFFSET;
    patch(&path, l1 + 8, &(COPIED | first).to_be_bytes());
    patch(&path, l1 + 16, &(COPIED | first | 1).to_be_bytes());
    patch(&path, first + 16, &2u64.to_be_bytes());
    let expected = [
        ("reserved_bits", Some(l1 + 16), Some(65536)),
        ("shared_table", Some(l1 + 8), Some(32768)),
        ("reserved_bits", Some(first + 16), Some(1024)),
    ];
    assert_eq!(told(&faults(&path, &folder)), expected);
}

#[test]
fn header_fields_that_are_wrong_are_told_together() {
    let folder = Folder::with(&["v3-64k.qcow2"]);
    let path = folder.path("v3-64k.qcow2");
    patch(&path, 24, &(1u64 << 63).to_be_bytes());
    patch(&path, 40, &512u64.to_be_bytes());
    patch(&path, 60, &70_000u32.to_be_bytes());
    patch(&path, 96, &7u32.to_be_bytes());
    let all = faults(&path, &folder);
    let places: BTreeSet<_> = told(&all).into_iter().map(|(code, offset, _)| (code, offset)).collect();
    let expected = [24, 40, 60, 96].map(|offset| ("bad_header", Some(offset)));
    assert_eq!(places, BTreeSet::from(expected));
    assert_eq!(all.len(), 4);
    // Without the cluster size these mean the same: none has clusters of less than 512 bytes.
    patch(&path, 20, &40u32.to_be_bytes());
    patch(&path, 40, &513u64.to_be_bytes());
    let places = places_of(&faults(&path, &folder));
    assert_eq!(places, [20, 24, 40, 60, 96].map(|offset| ("bad_header", Some(offset))));
}

fn places_of(faults: &[Fault]) -> Vec<(&'static str, Option<u64>)> {
    let mut places: Vec<_> = told(faults).into_iter().map(|(code, offset, _)| (code, offset)).collect();
    places.sort_unstable();
    places
}

#[test]
fn every_feature_bit_that_forbids_to_read_is_told() {
    let folder = Folder::with(&["v3-64k.qcow2"]);
    let path = folder.path("v3-64k.qcow2");
    // Dirty, corrupt, a data file, bits 5, 41 and 63; encryption; clusters of 4 KiB, too small for subclusters.
    patch(&path, 72, &(1u64 << 63 | 1 << 41 | 1 << 5 | 0b10111).to_be_bytes());
    patch(&path, 32, &2u32.to_be_bytes());
    patch(&path, 20, &12u32.to_be_bytes());
    let faults = faults(&path, &folder);
    let expected = [
        ("bad_header", Some(20)),
        ("marked_corrupt", Some(72)),
        ("unsupported", Some(32)),
        ("unsupported", Some(72)),
        ("unsupported", Some(72)),
    ];
    let places = places_of(&faults);
    assert!(expected.iter().all(|fault| places.contains(fault)), "{places:?}");
    let texts: Vec<_> = faults.iter().map(|fault| fault.error.to_string()).collect();
    for words in ["(by number: 5, 41, 63)", "an external data file", "encryption"] {
        assert!(texts.iter().any(|text| text.contains(words)), "{words}: {texts:?}");
    }
}

#[test]
fn faults_of_extensions_and_names_are_told_beside_the_others() {
    let folder = Folder::with(&["v3-64k.qcow2"]);
    let path = folder.path("v3-64k.qcow2");
    // A name of 2000 bytes on the header's fields, a data file's extension, and one that leaves the cluster.
    patch(&path, 8, &64u64.to_be_bytes());
    patch(&path, 16, &2000u32.to_be_bytes());
    patch(&path, 112, b"DATA\0\0\0\x03abc\0\0\0\0\0\x12\x34\x56\x78\xff\xff\xff\xff");
    patch(&path, 60, &70_000u32.to_be_bytes());
    // Entries of its tables are looked at, for nothing of that changes what they mean.
    let table = l2(&path);
    patch(&path, table, &2u64.to_be_bytes());
    let expected = [
        ("bad_header", Some(8)),
        ("bad_header", Some(16)),
        ("bad_header", Some(60)),
        ("bad_header", Some(132)),
        ("reserved_bits", Some(table)),
        ("unsupported", Some(112)),
    ];
    assert_eq!(places_of(&faults(&path, &folder)), expected);
}

#[test]
fn length_and_place_of_a_table_are_told_both() {
    let folder = Folder::with(&["v3-64k.qcow2"]);
    let path = folder.path("v3-64k.qcow2");
    patch(&path, 36, &u32::MAX.to_be_bytes());
    patch(&path, 40, &((1u64 << 40) + 512).to_be_bytes());
    patch(&path, 48, &512u64.to_be_bytes());
    patch(&path, 56, &0u32.to_be_bytes());
    let expected = [
        ("bad_header", Some(36)),
        ("bad_header", Some(40)),
        ("bad_header", Some(48)),
        ("bad_header", Some(56)),
        ("beyond_end", Some((1 << 40) + 512)),
    ];
    assert_eq!(places_of(&faults(&path, &folder)), expected);
}

#[test]
fn the_tables_of_an_image_that_is_marked_as_corrupt_are_looked_at() {
    let folder = Folder::with(&["v3-64k.qcow2"]);
    let path = folder.path("v3-64k.qcow2");
    let table = l2(&path);
    patch(&path, 79, &[2]);
    patch(&path, table + 8, &2u64.to_be_bytes());
    let expected = [("marked_corrupt", Some(72), None), ("reserved_bits", Some(table + 8), Some(65536))];
    assert_eq!(told(&faults(&path, &folder)), expected);
    assert!(open_alone(&path).is_err());
}

#[test]
fn what_is_wrong_below_is_told_once_also_where_it_is_covered() {
    let folder = Folder::with(&["chain-over-zlib.qcow2", "zlib-64k.qcow2"]);
    let (top, base) = (folder.path("chain-over-zlib.qcow2"), folder.path("zlib-64k.qcow2"));
    let l2_base = l2(&base);
    for index in 0..17 {
        let value = field(&base, l2_base + 8 * index);
        if value != 0 {
            patch(&base, l2_base + 8 * index, &(value | 1 << 62 | OFFSET >> 10).to_be_bytes());
        }
    }
    let faults = faults(&top, &folder);
    let entries: Vec<_> = faults.iter().map(|fault| fault.guest.unwrap().start() / 65536).collect();
    assert_eq!(entries, [0, 1, 2, 3, 4, 9, 10], "{faults:?}");
    assert!(faults.iter().all(|fault| fault.error.path() == Some(&base)), "{faults:?}");
    // A file below that is not there, and what is wrong above it.
    std::fs::remove_file(&base).unwrap();
    let at = l2(&top);
    patch(&top, at + 8, &2u64.to_be_bytes());
    let told = told(&super::findings::faults(&top, &folder));
    assert_eq!(told.iter().map(|(code, ..)| *code).collect::<Vec<_>>(), ["backing_refused", "reserved_bits"]);
}

#[test]
fn faults_that_do_not_matter_to_a_reader_are_told_and_forbid_nothing() {
    let folder = Folder::new();
    let fresh = || folder.unpack("v3-64k.qcow2", "v3-64k.qcow2");
    let path = fresh();
    let (table, l2, l1) = (field(&path, 48), l2(&path), field(&path, 40));
    let block = field(&path, table);
    let data = field(&path, l2) & OFFSET;
    #[track_caller]
    fn check(path: &Path, folder: &Folder, expected: &[(&'static str, u64, Option<u64>)]) {
        let faults = faults(path, folder);
        let expected: Vec<_> =
            expected.iter().map(|(code, offset, guest)| (*code, Some(*offset), *guest)).collect();
        assert_eq!(told(&faults), expected);
        assert!(faults.iter().all(|fault| fault.weight == Weight::Told), "{faults:?}");
        open_alone(path).unwrap().check_tables().unwrap();
    }
    patch(&path, table, &(block | 8).to_be_bytes());
    check(&path, &folder, &[("reserved_bits", table, None)]);
    patch(&path, table, &l1.to_be_bytes());
    check(&path, &folder, &[("overlap", l1, None)]);
    patch(&path, table, &(1u64 << 40).to_be_bytes());
    check(&path, &folder, &[("beyond_end", 1 << 40, None)]);
    patch(&path, table, &data.to_be_bytes());
    check(&path, &folder, &[("overlap", data, Some(0))]);
    // Not closed properly: what the counts say means nothing, but they lie where they lie.
    patch(&path, 72, &1u64.to_be_bytes());
    check(&path, &folder, &[("overlap", data, Some(0))]);
    // The place of a cluster that reads as zeroes.
    let path = fresh();
    patch(&path, l2 + 8 * 7, &(COPIED | l1 | 1).to_be_bytes());
    check(&path, &folder, &[("overlap", l1, Some(7 * 65536))]);
    patch(&path, l2 + 8 * 7, &(COPIED | 1 << 40 | 1).to_be_bytes());
    check(&path, &folder, &[("beyond_end", 1 << 40, Some(7 * 65536))]);
    // A snapshot's L1 table: the longest there may be, and a longer one.
    let path = folder.unpack("snapshots.qcow2", "snapshots.qcow2");
    let snapshots = field(&path, 64);
    patch(&path, snapshots + 8, &(4_u32 << 20).to_be_bytes());
    check(&path, &folder, &[("beyond_end", field(&path, snapshots), None)]);
    patch(&path, snapshots + 8, &((4_u32 << 20) + 1).to_be_bytes());
    check(&path, &folder, &[("too_long", snapshots + 8, None)]);
    // The snapshot table.
    let path = folder.unpack("snapshots.qcow2", "snapshots.qcow2");
    patch(&path, 64, &field(&path, 40).to_be_bytes());
    let l1 = field(&path, 40);
    check(&path, &folder, &[("overlap", l1, None)]);
}

/// The clusters of which `qemu-img check` says that they have more users than is counted.
pub(super) fn overused(path: &Path) -> BTreeSet<u64> {
    let output = std::process::Command::new("qemu-img").arg("check").arg(path).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let number = |word: &str| word.rsplit('=').next().unwrap().parse::<u64>().unwrap();
    said.lines()
        .filter_map(|line| line.strip_prefix("ERROR cluster "))
        .map(|line| line.split(' ').map(number).collect::<Vec<_>>())
        .filter(|numbers| numbers[2] > numbers[1])
        .map(|numbers| numbers[0])
        .collect()
}

#[test]
#[ignore = "needs qemu-img"]
fn the_shared_clusters_that_qemu_img_check_reports_are_reported_too() {
    // The image, its cluster and entry sizes, and the two entries that become one.
    let cases = [
        ("v3-64k.qcow2", 65536, 8, 0, 10),
        ("v2-64k.qcow2", 65536, 8, 1, 9),
        ("v3-4k.qcow2", 4096, 8, 3, 60),
        ("v3-prealloc.qcow2", 65536, 8, 2, 12),
        ("zero-alloc.qcow2", 65536, 8, 0, 1),
        ("zlib-64k.qcow2", 65536, 8, 0, 10),
        ("extl2-64k.qcow2", 65536, 16, 0, 10),
    ];
    for (name, cluster, entry_len, one, other) in cases {
        let folder = Folder::with(&[name]);
        let path = folder.path(name);
        assert_eq!(overused(&path), BTreeSet::new(), "{name} is sound");
        let l2 = l2(&path);
        patch(&path, l2 + entry_len * other, &field(&path, l2 + entry_len * one).to_be_bytes());
        let ours: BTreeSet<u64> = faults(&path, &folder)
            .iter()
            .filter(|fault| fault.error.code() == "shared_cluster")
            .flat_map(|fault| {
                let range = fault.error.range().unwrap();
                range.start() / cluster..range.end().div_ceil(cluster)
            })
            .collect();
        let theirs = overused(&path);
        assert!(!theirs.is_empty() && ours.is_superset(&theirs), "{name}: {ours:?} and not {theirs:?}");
        if !name.starts_with('z') {
            assert_eq!(ours, theirs, "{name}");
        }
    }
}
