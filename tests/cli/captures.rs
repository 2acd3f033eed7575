//! Goal: `capture` makes an image of what is there, and refuses what it must, with the disk as it was.

use std::fs::{self, File};

use crate::support::{Ran, Room, Seen, sha256, text};

fn capture(room: &Room, words: &[&str]) -> Ran {
    room.plain(&[&["capture", "--json", "--state-dir", "state"], words].concat())
}

/// A refusal with this exit code: the disk is as it was, and nothing is left.
#[track_caller]
fn check(room: &Room, words: &[&str], code: i32) -> serde_json::Value {
    let (disk, names) = (room.path("disk.raw"), room.names());
    let before = Seen::of(&disk);
    let error = capture(room, words).error(code);
    assert_eq!(error["target_state"], "untouched", "{error}");
    assert!(error["hint"].is_string(), "{error}");
    before.check(&disk);
    assert_eq!(room.names(), names, "{words:?}");
    error
}

fn room() -> Room {
    let room = Room::new();
    room.old_disk("disk.raw", (3 << 20) + 512);
    room
}

#[test]
fn an_image_is_made_with_its_manifest_and_a_rebuild_from_it_gives_the_disk_again() {
    let room = room();
    let before = Seen::of(&room.path("disk.raw"));
    for packing in ["zstd", "zlib", "none"] {
        let image = format!("{packing}.qcow2");
        let report = capture(&room, &["disk.raw", &image, "--compress", packing]).document();
        before.check(&room.path("disk.raw"));
        assert_eq!(
            (&report["virtual_size"], &report["packing"]),
            (&((3 << 20) + 512).into(), &packing.into())
        );
        let bytes = fs::read(room.path(&image)).unwrap();
        assert_eq!(report["image_file"]["bytes"], bytes.len());
        assert_eq!(report["image_file"]["sha256"], sha256(&bytes));
        let manifest = fs::read(room.path(&format!("{image}.manifest.json"))).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!((&manifest["root"], &manifest["image"]), (&report["root"], &report["image_file"]));
        let target = format!("{packing}.raw");
        let rebuilt = room.rebuild(&[&image, &target]).document();
        assert_eq!(rebuilt["root"], report["root"], "the same disk in every format");
        assert_eq!(fs::read(room.path(&target)).unwrap(), fs::read(room.path("disk.raw")).unwrap());
    }
}

#[test]
fn the_text_says_what_was_made_and_what_a_person_should_know() {
    let room = room();
    let mut disk = fs::read(room.path("disk.raw")).unwrap();
    disk[..8192].fill(0);
    disk[4086..4096].copy_from_slice(b"SWAPSPACE2");
    room.file("disk.raw", disk);
    let ran = room.plain(&["capture", "disk.raw", "image", "--state-dir", "state", "--cluster-size", "2M"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    for wanted in
        ["read back equal", "zstd, clusters of 2 MiB", "image.manifest.json", "swap space", "stays Stopped"]
    {
        assert!(ran.stdout.contains(wanted), "{wanted}: {ran:?}");
    }
    let bare = room.plain(&["capture", "disk.raw", "bare", "--state-dir", "state", "--manifest", "none"]);
    assert!(bare.stdout.contains("manifest    none"), "{bare:?}");
    assert!(!room.path("bare.manifest.json").exists());
}

#[test]
fn an_instance_file_names_the_disks_and_the_one_word_is_the_image() {
    let room = room();
    let data = room.old_disk("data.raw", 8192);
    let toml = "id = \"i-1\"\n[system_disk]\npath = \"disk.raw\"\n[[data_disk]]\npath = \"data.raw\"\n";
    room.file("i-1.toml", toml);
    let report = capture(&room, &["--instance", "i-1.toml", "image"]).document();
    assert_eq!(
        (&report["instance"], &report["data_disks"][0]["verdict"]),
        (&"i-1".into(), &"unchanged".into())
    );
    room.file("i-2.toml", format!("power_state = \"running\"\n{toml}"));
    check(&room, &["--instance", "i-2.toml", "image2"], 10);
    check(&room, &["--instance", "i-1.toml"], 2);
    check(&room, &["disk.raw"], 2);
    for name in ["image.raw", "image.raw.gz"] {
        let error = check(&room, &["disk.raw", name], 2);
        assert!(error["hint"].as_str().unwrap().contains(".qcow2"), "{error}");
    }
    check(&room, &["--instance", "i-1.toml", text(&data), "image2"], 11);
}

#[test]
fn what_lies_at_the_places_of_image_and_manifest_stays_unless_it_may_be_replaced() {
    let room = room();
    let image = room.file("image", "precious");
    check(&room, &["disk.raw", "image"], 2);
    check(&room, &["disk.raw", "image", "--manifest", "none"], 2);
    fs::remove_file(&image).unwrap();
    room.file("image.manifest.json", "another's");
    for more in [&[][..], &["--manifest", "none"], &["--manifest", "elsewhere"]] {
        check(&room, &[&["disk.raw", "image"], more].concat(), 2);
    }
    check(&room, &["disk.raw", "image", "--manifest", "image"], 2);
    capture(&room, &["disk.raw", "image", "--replace", "--manifest", "elsewhere"]).document();
    assert_eq!(room.names(), ["disk.raw", "elsewhere", "image"], "no manifest lies beside another's image");
    capture(&room, &["disk.raw", "image", "--replace"]).document();
    assert_eq!(room.names(), ["disk.raw", "elsewhere", "image", "image.manifest.json"]);
    room.rebuild(&["image", "again.raw", "--image-format", "qcow2"]).document();
}

#[test]
fn what_is_no_disk_of_a_stopped_machine_is_refused() {
    let room = room();
    let open = File::open(room.path("disk.raw")).unwrap();
    let error = check(&room, &["disk.raw", "image"], 10);
    assert!(error["message"].as_str().unwrap().contains(&format!("pid {}", std::process::id())), "{error}");
    capture(&room, &["disk.raw", "excused", "--allow-open-reader", &std::process::id().to_string()])
        .document();
    drop(open);
    fs::hard_link(room.path("disk.raw"), room.path("link.raw")).unwrap();
    check(&room, &["disk.raw", "image", "--data-disk", "link.raw"], 11);
    check(&room, &["disk.raw", "link.raw", "--replace"], 11);
    check(&room, &["disk.raw", "disk.raw", "--replace"], 11);
    check(&room, &["disk.raw", "image", "--manifest", "link.raw", "--replace"], 11);
    check(&room, &["disk.raw", "image", "--expect", "size=5M"], 11);
    check(&room, &["nowhere", "image"], 14);
    check(&room, &["state", "image"], 14);
    for folder in ["/dev/shm", "/proc", "/sys"] {
        check(&room, &["disk.raw", &format!("{folder}/image")], 14);
    }
    check(&room, &["disk.raw", "no/image"], 14);
    check(&room, &["disk.raw", "image", "--cluster-size", "3K"], 2);
}

#[test]
fn a_qcow2_header_in_a_raw_disk_is_believed_only_where_the_name_says_it_too_or_somebody_does() {
    let room = room();
    capture(&room, &["disk.raw", "image.qcow2"]).document();
    let (size, disk) = ((3 << 20) + 512, fs::read(room.path("image.qcow2")).unwrap());
    room.file("disguised.raw", &disk);
    room.file("plain.qcow2", fs::read(room.path("disk.raw")).unwrap());
    check(&room, &["disguised.raw", "out"], 14);
    check(&room, &["plain.qcow2", "out"], 14);
    check(&room, &["plain.qcow2", "out", "--disk-format", "qcow2"], 20);
    let size_of = |words: &[&str]| capture(&room, words).document()["virtual_size"].as_u64().unwrap();
    assert_eq!(size_of(&["disguised.raw", "out-1", "--disk-format", "raw"]), disk.len() as u64);
    assert_eq!(size_of(&["disguised.raw", "out-2", "--disk-format", "qcow2"]), size);
    assert_eq!(size_of(&["plain.qcow2", "out-3", "--disk-format", "raw"]), size);
    assert_eq!(size_of(&["image.qcow2", "out-4"]), size);
}

#[test]
fn a_disk_that_needs_larger_clusters_is_told_so() {
    let room = room();
    let large = File::create(room.path("large.raw")).unwrap();
    large.set_len(15 << 40).unwrap();
    drop(large);
    let error = check(&room, &["large.raw", "image", "--cluster-size", "4K"], 12);
    assert!(error["hint"].as_str().unwrap().contains("--cluster-size"), "{error}");
}

#[test]
fn a_data_disk_that_is_named_twice_is_one() {
    let room = room();
    room.old_disk("data.raw", 8192);
    room.file("i-1.toml", "[system_disk]\npath = \"disk.raw\"\n[[data_disk]]\npath = \"data.raw\"\n");
    let twice = ["--data-disk", "./data.raw", "--data-disk", "data.raw"];
    let report = capture(&room, &[&["--instance", "i-1.toml", "image"], &twice[..]].concat()).document();
    assert_eq!(report["data_disks"].as_array().unwrap().len(), 1, "{report}");
}

#[test]
fn where_the_kernel_keeps_its_own_no_image_is_made_and_the_hint_is_about_the_image() {
    let error = check(&room(), &["disk.raw", "/dev/image"], 14);
    assert_eq!(error["hint"], "name a file in another folder", "{error}");
}

#[test]
fn a_disk_that_ends_within_a_sector_becomes_an_image_of_whole_sectors_as_qemu_counts_them() {
    let room = Room::new();
    for size in [1_usize, 511, 513, (3 << 20) + 1] {
        let mut disk = fs::read(room.old_disk("disk.raw", size)).unwrap();
        let report = capture(&room, &["disk.raw", "image", "--replace", "--whole-digest"]).document();
        disk.resize(size.next_multiple_of(512), 0);
        assert_eq!(report["source"]["virtual_size"], size);
        assert_eq!(report["virtual_size"], disk.len());
        assert_eq!(report["whole_digest"], blake3::hash(&disk).to_hex().as_str());
        let said = |warning: &serde_json::Value| warning.as_str().unwrap().contains("no whole sectors");
        assert!(report["warnings"].as_array().unwrap().iter().any(said), "{report}");
        let manifest = fs::read(room.path("image.manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!((&manifest["virtual_size"], &manifest["root"]), (&disk.len().into(), &report["root"]));
        let rebuilt = room.rebuild(&["image", &format!("{size}.raw")]).document();
        assert_eq!(rebuilt["root"], report["root"]);
        assert!(fs::read(room.path(&format!("{size}.raw"))).unwrap() == disk, "{size}");
        let header = fs::read(room.path("image")).unwrap();
        assert_eq!(header[24..32], (disk.len() as u64).to_be_bytes());
    }
}
