//! Goal: large and mostly empty images cost next to nothing to check and to map.
//!
//! Method: CPU time of this thread, with bounds far above what a debug build takes, so that only a change of
//! order fails.

use std::time::Duration;

use super::*;

fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap(), u32::try_from(time.tv_nsec).unwrap())
}

#[track_caller]
fn check(what: &str, bound: Duration, work: impl FnOnce()) {
    let before = cpu_time();
    work();
    let took = cpu_time().checked_sub(before).unwrap();
    assert!(took < bound, "{what} took {took:?}");
}

fn map_all(image: &dyn Image) -> u64 {
    let mut rest = ByteRange::new(0, image.virtual_size());
    let mut count = 0;
    while !rest.is_empty() {
        let extents = image.map(rest).unwrap();
        count += u64::try_from(extents.len()).unwrap();
        rest = ByteRange::between(extents.last().unwrap().range.end(), rest.end());
    }
    count
}

/// Where a made image has its tables: L1 at 4 MiB, L2 tables from 8 MiB on, data from 4 GiB on.
const L1_AT: u64 = 4 << 20;
const L2_AT: u64 = 8 << 20;
const DATA_AT: u64 = 4 << 30;

/// An image of 64 KiB clusters; `cluster` gives the number of the data cluster that each one lies in.
fn made(folder: &Folder, clusters: u64, cluster: impl Fn(u64) -> u64) -> PathBuf {
    let path = folder.unpack("empty.qcow2", "made.qcow2");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(DATA_AT + clusters * 65536).unwrap();
    let tables = clusters.div_ceil(8192);
    let l1: Vec<u8> =
        (0..tables).flat_map(|index| ((L2_AT + index * 65536) | 1 << 63).to_be_bytes()).collect();
    let entry = |index| (DATA_AT + cluster(index) * 65536) | 1 << 63;
    let l2: Vec<u8> = (0..clusters).flat_map(|index| entry(index).to_be_bytes()).collect();
    file.write_all_at(&l1, L1_AT).unwrap();
    file.write_all_at(&l2, L2_AT).unwrap();
    patch(&path, 24, &(clusters * 65536).to_be_bytes());
    patch(&path, 36, &u32::try_from(tables).unwrap().to_be_bytes());
    patch(&path, 40, &L1_AT.to_be_bytes());
    path
}

#[test]
fn tables_of_a_fully_allocated_image_of_256_gib_are_checked_in_no_time() {
    let folder = Folder::new();
    let path = made(&folder, 4 << 20, |index| index);
    let image = open_alone(&path).unwrap();
    check("check_tables of 256 GiB, clusters in order", Duration::from_secs(5), || {
        let report = image.check_tables().unwrap();
        assert_eq!(report.data_bytes, 0, "no cluster is stored: all lie in holes of the file");
        assert_eq!(report.zero_bytes, 256 << 30);
    });
}

#[test]
fn scattered_clusters_cost_little_more() {
    let folder = Folder::new();
    let path = made(&folder, 1 << 20, |index| index ^ 1);
    let image = open_alone(&path).unwrap();
    check("check_tables of 64 GiB, no two neighbours", Duration::from_secs(20), || {
        image.check_tables().unwrap();
    });
}

#[test]
fn an_empty_image_of_8_tib_is_mapped_in_no_time() {
    let folder = Folder::new();
    let path = folder.unpack("empty.qcow2", "empty.qcow2");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(64 << 20).unwrap();
    patch(&path, 24, &(8u64 << 40).to_be_bytes());
    patch(&path, 36, &16384u32.to_be_bytes());
    patch(&path, 40, &L1_AT.to_be_bytes());
    let image = open_alone(&path).unwrap();
    check("map of an empty 8 TiB", Duration::from_millis(100), || assert_eq!(map_all(&*image), 1));
    check("check_tables of an empty 8 TiB", Duration::from_millis(100), || {
        assert_eq!(image.check_tables().unwrap().zero_bytes, 8 << 40);
    });
}

#[test]
fn an_empty_image_of_2_eib_is_checked_at_once() {
    let folder = Folder::new();
    let path = folder.unpack("empty.qcow2", "empty.qcow2");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(64 << 20).unwrap();
    patch(&path, 20, &21u32.to_be_bytes());
    patch(&path, 24, &(2u64 << 60).to_be_bytes());
    patch(&path, 36, &(4u32 << 20).to_be_bytes());
    patch(&path, 40, &L1_AT.to_be_bytes());
    patch(&path, 48, &(2u64 << 20).to_be_bytes());
    check("open and check_tables of an empty 2 EiB", Duration::from_secs(2), || {
        assert_eq!(open_alone(&path).unwrap().check_tables().unwrap().zero_bytes, 2 << 60);
    });
}

#[test]
fn tables_that_are_holes_but_for_their_last_page_are_not_read() {
    let folder = Folder::new();
    let path = folder.unpack("empty.qcow2", "empty.qcow2");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let (cluster, tables) = (2 << 20, 500);
    file.set_len(DATA_AT + tables * cluster).unwrap();
    for table in 0..tables {
        let at = L2_AT + table * cluster;
        file.write_all_at(&(at | 1 << 63).to_be_bytes(), L1_AT + table * 8).unwrap();
        let entry = (DATA_AT + table * cluster) | 1 << 63;
        file.write_all_at(&entry.to_be_bytes(), at + cluster - 8).unwrap();
    }
    patch(&path, 20, &21u32.to_be_bytes());
    patch(&path, 24, &(tables << 39).to_be_bytes());
    patch(&path, 36, &u32::try_from(tables).unwrap().to_be_bytes());
    patch(&path, 40, &L1_AT.to_be_bytes());
    patch(&path, 48, &(2u64 << 20).to_be_bytes());
    let image = open_alone(&path).unwrap();
    check("check_tables and map of 1 GiB of holes", Duration::from_millis(500), || {
        image.check_tables().unwrap();
        assert_eq!(map_all(&*image), 1);
    });
}

#[test]
fn the_tables_of_65535_snapshots_are_looked_at_once_where_they_lie_on_each_other() {
    const COUNT: u64 = 65535;
    let folder = Folder::new();
    let path = folder.unpack("v3-64k.qcow2", "made.qcow2");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(16 << 30).unwrap();
    // Each has 32 MiB, of which 64 KiB are not the next one's.
    let entry = |number: u64| {
        let place = DATA_AT + (number << 16);
        [&place.to_be_bytes()[..], &(4u32 << 20).to_be_bytes(), &[0; 28]].concat()
    };
    file.write_all_at(&(0..COUNT).flat_map(entry).collect::<Vec<u8>>(), L2_AT).unwrap();
    patch(&path, 60, &u32::try_from(COUNT).unwrap().to_be_bytes());
    patch(&path, 64, &L2_AT.to_be_bytes());
    check("a walk with 2 TiB of snapshots' tables", Duration::from_secs(2), || {
        let faults = super::findings::faults(&path, &folder);
        let overlaps = faults.iter().filter(|fault| fault.error.code() == "overlap").count();
        assert_eq!(overlaps as u64, COUNT - 1, "each but the first lies on another");
    });
}
