//! Names, devices and what they rest on, on hosts that are made up.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use super::super::fake::FakeHost;
use super::*;

const SDA: Number = (8, 0);
const SDA1: Number = (8, 1);
const SDA2: Number = (8, 2);
const SDB: Number = (8, 16);

/// A disk with two partitions and another disk.
fn host() -> FakeHost {
    let host = FakeHost::new();
    host.disk("pci0/block/sda", SDA);
    host.partition("pci0/block/sda/sda1", SDA1, (2048, 4096));
    host.partition("pci0/block/sda/sda2", SDA2, (6144, 8192));
    host.disk("pci0/block/sdb", SDB);
    host
}

#[track_caller]
fn check(host: &FakeHost, left: Number, right: Number, overlap: bool) {
    let (left, right) = (host.storage(left), host.storage(right));
    assert_eq!((left.overlaps(&right), right.overlaps(&left)), (overlap, overlap), "{left:?} {right:?}");
}

#[test]
fn a_partition_is_part_of_its_disk_and_its_neighbours_are_not() {
    let host = host();
    check(&host, SDA, SDA, true);
    check(&host, SDA, SDA1, true);
    check(&host, SDA1, SDA2, false);
    check(&host, SDA, SDB, false);
}

#[test]
fn two_paths_to_one_unit_are_one_disk_and_a_name_alone_is_not_enough() {
    let host = host();
    for disk in ["sda", "sdb"] {
        host.write(&format!("sys/devices/pci0/block/{disk}/device/wwid"), "naa.5000c500a1b2c3d4\n");
    }
    check(&host, SDA, SDB, true);
    check(&host, SDA1, SDB, true);
    assert!(host.storage(SDB).chain.contains(&SDA.into()), "who has one has the other");
    host.write("sys/devices/pci0/block/sdb/size", "4194304\n");
    check(&host, SDA, SDB, false);
}

#[test]
fn a_partition_whose_place_cannot_be_told_counts_as_its_whole_disk() {
    let host = host();
    std::fs::remove_file(host.path("sys/devices/pci0/block/sda/sda1/size")).unwrap();
    check(&host, SDA1, SDA2, true);
    assert_eq!(host.topology().untold(&host.storage(SDA1)), None);
    assert_eq!(host.topology().untold(&host.storage((8, 99))).as_deref(), Some("8:99"));
    host.loop_over("loop0", (7, 0), Path::new("/no/such/file"), (0, 0));
    assert_eq!(host.topology().untold(&host.storage((7, 0))).as_deref(), Some("loop0"));
}

#[test]
fn a_volume_rests_on_its_disks_and_volumes_of_one_group_do_not_overlap() {
    let host = host();
    let (root, home, mirror, crypt) = ((254, 0), (254, 1), (9, 0), (254, 2));
    host.stacked("dm-0", root, &["sda2"]);
    host.stacked("dm-1", home, &["sda2", "sdb"]);
    host.stacked("dm-2", crypt, &["dm-0"]);
    check(&host, root, home, false);
    for (below, overlap) in [(SDA, true), (SDA2, true), (SDA1, false), (SDB, false), (crypt, true)] {
        check(&host, root, below, overlap);
    }
    check(&host, home, SDB, true);
    check(&host, crypt, SDA2, true);
    check(&host, crypt, home, false);
    host.stacked("md0", mirror, &["sdb", "sda1"]);
    host.partition("virtual/block/md0/md0p1", (259, 0), (2048, 2048));
    check(&host, (259, 0), SDA1, true);
    check(&host, (259, 0), SDA2, false);
    let above: Vec<_> = host.topology().above(&host.storage(SDB)).into_keys().collect();
    assert_eq!(above, [SDB, mirror, home, (259, 0)]);
}

#[test]
fn a_loop_device_is_the_part_of_its_file_that_it_shows() {
    let host = host();
    let file = host.write("disk.raw", "");
    let (whole, first, second) = ((7, 0), (7, 1), (7, 2));
    host.loop_over("loop0", whole, &file, (0, 0));
    host.loop_over("loop1", first, &file, (0, 1 << 20));
    host.loop_over("loop2", second, &file, (1 << 20, 1 << 20));
    host.partition("virtual/block/loop0/loop0p1", (259, 1), (2048, 2048));
    let of_file = host.topology().storage_at(&file).unwrap();
    for loop_device in [whole, first, second, (259, 1)] {
        assert!(host.storage(loop_device).overlaps(&of_file), "{loop_device:?}");
        check(&host, whole, loop_device, true);
    }
    check(&host, first, second, false);
    check(&host, (259, 1), first, false);
    check(&host, (259, 1), second, true);
    let chain = host.storage((259, 1)).chain;
    assert_eq!(chain, [(259, 1).into(), whole.into(), of_file.identity]);
}

#[test]
fn a_loop_device_is_followed_to_a_file_whose_name_is_no_text() {
    let host = host();
    for (number, name) in [b"\xff.raw".as_slice(), b"blank ", b"end\n"].into_iter().enumerate() {
        let name = OsString::from_vec(name.to_vec());
        let file = host.write("files/x", "").with_file_name(name);
        fs::write(&file, "").unwrap();
        let over = (7, u32::try_from(number).unwrap());
        host.loop_over(&format!("loop{number}"), over, &file, (0, 0));
        let of_file = host.topology().storage_at(&file).unwrap();
        assert!(host.storage(over).overlaps(&of_file), "{file:?}");
    }
}

#[test]
fn a_file_lies_on_the_disk_of_its_file_system() {
    let host = host();
    let file = host.write("images/disk.raw", "");
    let metadata = fs::metadata(&file).unwrap();
    let numbers = super::super::identity::numbers(metadata.dev());
    host.loop_over("loop0", (7, 0), &file, (0, 0));
    let place = host.path("images");
    let topology = || {
        let mut topology = host.topology();
        topology.pools = vec![Pool { name: "id".to_owned(), devices: vec![SDB, SDA2] }];
        topology
    };
    // As btrfs has it: the files' device number is no device's.
    host.mounts(&[("0:30", "/", "btrfs", "/no/such/device")]);
    assert!(topology().below_path(&place, DEEPEST).is_empty());
    host.mounts(&[("8:1", "/", "ext4", "none"), ("8:2", place.to_str().unwrap(), "btrfs", "none")]);
    assert_eq!(topology().below_path(Path::new("/other"), DEEPEST), [SDA1]);
    assert_eq!(topology().below_path(&place, DEEPEST), [SDB, SDA2], "a btrfs lies on all of its devices");
    if numbers.0 != 0 {
        assert_eq!(topology().storage_at(&file).unwrap().chain.len(), 1);
    }
}

#[test]
fn a_file_of_an_overlay_is_the_file_in_its_layer_and_lies_on_the_layers_disks() {
    let host = host();
    let (upper, lower) = (host.path("upper"), host.path("lower"));
    let (file, base) = (host.write("upper/dir/disk.raw", ""), host.write("lower/dir/base.raw", ""));
    let merged = host.path("merged");
    let options = format!(
        "/ {} rw - overlay overlay rw,lowerdir={},upperdir={}",
        merged.display(),
        lower.display(),
        upper.display()
    );
    let line = |number, rest: &str| format!("9 1 {number} {rest}\n");
    let table = [
        line("0:40", &options),
        line("8:1", &format!("/ {} rw - ext4 none rw", upper.display())),
        line("8:16", &format!("/ {} rw - ext4 none rw", lower.display())),
    ];
    host.write("proc/self/mountinfo", &table.concat());
    let topology = host.topology();
    let seen = StorageIdentity::File { device: 0x1_0000_0000, inode: 1 };
    for (name, real) in [("dir/disk.raw", &file), ("dir/base.raw", &base)] {
        let real = topology.storage_at(real).unwrap();
        let through = topology.storage(seen, Some(&merged.join(name)));
        assert_eq!(through.chain, [seen, real.identity], "{name}");
        assert!(through.overlaps(&real));
    }
    assert_eq!(topology.below_path(&merged.join("new"), DEEPEST), [SDA1, SDB]);
}
