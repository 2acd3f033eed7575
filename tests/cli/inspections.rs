//! `inspect --check`: everything that is wrong with an image, for a person and for a program.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::Value;

use crate::support::{Room, Seen, text};

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

fn field(path: &Path, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    fs::File::open(path).unwrap().read_exact_at(&mut bytes, offset).unwrap();
    u64::from_be_bytes(bytes)
}

fn patch(path: &Path, offset: u64, bytes: &[u8]) {
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

/// Where the L2 table of an entry of the L1 table is.
fn l2(path: &Path, index: u64) -> u64 {
    field(path, field(path, 40) + 8 * index) & OFFSET
}

fn kinds(document: &Value) -> Vec<&str> {
    document["findings"].as_array().unwrap().iter().map(|found| found["kind"].as_str().unwrap()).collect()
}

#[test]
fn a_sound_image_has_no_findings() {
    let room = Room::new();
    let image = room.image("zlib-64k");
    let document = room.plain(&["inspect", "--check", "--json", text(&image)]).document();
    assert_eq!(
        (&document["findings"], &document["findings_total"]),
        (&Value::Array(vec![]), &Value::from(0))
    );
    assert_eq!(document["image"]["virtual_size"], (1 << 20) + 1536);
    let ran = room.plain(&["inspect", "--check", text(&image)]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains("no fault was found"), "{ran:?}");
    let packed = room.stored("chain-base.raw");
    let ran = room.plain(&["inspect", "--check", text(&packed)]);
    assert!(ran.code == Some(0) && ran.stdout.contains("no fault was found"), "{ran:?}");
}

#[test]
fn all_faults_of_an_image_are_told_with_their_places() {
    let room = Room::new();
    let image = room.image("v3-64k");
    let table = l2(&image, 0);
    let (first, second) = (field(&image, table), field(&image, table + 8));
    patch(&image, table, &(first | 2).to_be_bytes());
    patch(&image, table + 8 * 3, &second.to_be_bytes());
    let ran = room.plain(&["inspect", "--check", "--json", text(&image)]);
    let error = ran.error(20);
    assert_eq!((error["offset"].as_u64(), error["length"].as_u64()), (Some(table), Some(8)), "{error}");
    let document = ran.json();
    assert_eq!(kinds(&document), ["reserved_bits", "shared_cluster"]);
    assert_eq!((&document["findings_total"], &document["refused_total"]), (&Value::from(2), &Value::from(2)));
    let shared = &document["findings"][1];
    assert_eq!(shared["path"], text(&image));
    assert_eq!((shared["offset"].as_u64(), shared["length"].as_u64()), (Some(second & OFFSET), Some(65536)));
    assert_eq!(
        (shared["guest_offset"].as_u64(), shared["guest_length"].as_u64()),
        (Some(3 << 16), Some(65536))
    );
    assert_eq!(shared["entry_offset"].as_u64(), Some(table + 24));
    assert_eq!(shared["refused"], true);
    let message = shared["message"].as_str().unwrap();
    for word in [table + 8, table + 24, 1 << 16, 3 << 16].map(|number| number.to_string()) {
        assert!(message.contains(&word), "{word}: {message}");
    }
    let ran = room.plain(&["inspect", "--check", text(&image)]);
    assert_eq!(ran.code, Some(20));
    assert!(ran.stdout.contains("(reserved_bits)") && ran.stdout.contains("(shared_cluster)"), "{ran:?}");
    assert!(ran.stderr.contains("2 faults"), "{ran:?}");
    // A rebuild refuses it for the same, and changes nothing.
    let disk = room.old_disk("disk.raw", 2 << 20);
    let before = Seen::of(&disk);
    room.rebuild(&[text(&image), text(&disk)]).error(20);
    assert!(before == Seen::of(&disk));
}

#[test]
fn every_cluster_that_cannot_be_decoded_is_told() {
    let room = Room::new();
    for name in ["zlib-64k", "zstd-64k", "zlib-2m"] {
        let image = room.image(name);
        let table = l2(&image, 0);
        let cluster_bits = field(&image, 16) & 0xff;
        let stream = |index: u64| field(&image, table + 8 * index) & ((1 << (70 - cluster_bits)) - 1);
        let (first, last) = (stream(0), stream(1));
        for place in [first, last] {
            patch(&image, place, &[0xff; 16]);
        }
        let ran = room.plain(&["inspect", "--check", "--json", text(&image)]);
        ran.error(20);
        let document = ran.json();
        assert_eq!(kinds(&document), ["bad_compression", "bad_compression"], "{name}: {document}");
        let places = [0, 1].map(|index| document["findings"][index]["offset"].as_u64().unwrap());
        assert_eq!(places, [first, last], "{name}");
        let guests = [0, 1].map(|index| document["findings"][index]["guest_offset"].as_u64().unwrap());
        assert_eq!(guests, [0, 1 << cluster_bits], "{name}");
        assert_eq!(document["findings_total"], 2, "{name}");
    }
}

#[test]
fn clusters_that_cannot_be_decoded_are_told_beside_faulty_entries() {
    let room = Room::new();
    let image = room.image("zlib-64k");
    let table = l2(&image, 0);
    let stream = |index: u64| field(&image, table + 8 * index) & ((1 << 54) - 1);
    let places = [stream(0), stream(4)];
    // Between them two entries in a row, and one more behind: of what they say nothing is decoded.
    for index in [1, 2, 9] {
        patch(&image, table + 8 * index, &2u64.to_be_bytes());
    }
    for place in places {
        patch(&image, place, &[0xff; 16]);
    }
    let ran = room.plain(&["inspect", "--check", "--json", text(&image)]);
    ran.error(20);
    let document = ran.json();
    let expected = ["reserved_bits", "reserved_bits", "reserved_bits", "bad_compression", "bad_compression"];
    assert_eq!(kinds(&document), expected, "{document}");
    let guests = [3, 4].map(|index| document["findings"][index]["guest_offset"].as_u64().unwrap());
    assert_eq!(guests, [0, 4 << 16]);
    let offsets = [3, 4].map(|index| document["findings"][index]["offset"].as_u64().unwrap());
    assert_eq!(offsets, places);
    assert_eq!((&document["findings_total"], &document["refused_total"]), (&5.into(), &5.into()));
}

#[test]
fn clusters_of_tables_that_are_sound_are_decoded_where_another_table_is_gone() {
    let room = Room::new();
    // An L2 table of 512 entries describes 2 MiB; the disk has one. A second layer has the fault.
    let (image, base) = (room.image("chain-over-zlib"), room.image("zlib-64k"));
    let table = l2(&base, 0);
    patch(&base, field(&base, table) & ((1 << 54) - 1), &[0xff; 16]);
    let l1 = field(&image, 40);
    patch(&image, l1, &(1u64 << 50).to_be_bytes());
    let folder = room.path("");
    let words = ["inspect", "--check", "--json", text(&image), "--allow-backing", text(&folder)];
    let ran = room.plain(&words);
    ran.error(20);
    let document = ran.json();
    assert_eq!(kinds(&document), ["beyond_end", "bad_compression"], "{document}");
    assert_eq!(document["findings"][1]["path"], text(&base));
}

#[test]
fn how_far_clusters_were_decoded_is_told_where_entries_share_them_without_end() {
    let room = Room::new();
    let image = room.image("zlib-64k");
    let (table, size) = (l2(&image, 0), 8192 << 16);
    let check = || {
        let ran = room.plain(&["inspect", "--check", "--json", text(&image)]);
        ran.error(20);
        ran.json()
    };
    patch(&image, table + 8 * 7, &field(&image, table).to_be_bytes());
    let document = check();
    assert!(kinds(&document) == ["shared_cluster"] && document.get("undecoded_from").is_none(), "{document}");
    // All entries that the table has.
    patch(&image, 24, &u64::to_be_bytes(size));
    patch(&image, table, &field(&image, table).to_be_bytes().repeat(8192));
    let document = check();
    let end = document["undecoded_from"].as_u64().unwrap();
    let file_size = fs::metadata(&image).unwrap().len();
    assert!(end > 0 && end < size && end <= 2 * 1032 * file_size, "{end} of {size}, {file_size}");
    let ran = room.plain(&["inspect", "--check", text(&image)]);
    assert!(
        ran.stdout.contains(&format!("clusters from byte {end} of the disk on were not decoded")),
        "{ran:?}"
    );
}

#[test]
fn a_disk_that_begins_like_another_format_is_told_beside_bad_clusters() {
    let room = Room::new();
    let image = room.image("v3-64k");
    let table = l2(&image, 0);
    let data = field(&image, table) & OFFSET;
    patch(&image, data, b"KDMV");
    patch(&image, table + 8, &2u64.to_be_bytes());
    let ran = room.plain(&["inspect", "--check", "--json", text(&image)]);
    ran.error(20);
    let document = ran.json();
    assert_eq!(kinds(&document), ["reserved_bits", "nested_disk"], "{document}");
    let nested = &document["findings"][1];
    assert_eq!((&nested["offset"], &nested["length"]), (&data.into(), &4.into()));
    assert_eq!((&nested["guest_offset"], &nested["guest_length"]), (&0.into(), &4.into()));
}

#[test]
fn faults_beyond_the_first_thousand_are_counted() {
    let room = Room::new();
    let image = room.image("v3-512");
    // A table of 64 entries for each 32 KiB of the disk; those that are not there come behind all else.
    let (tables, clusters, l1) = (33, 2051, field(&image, 40));
    let mut total = 0;
    for index in 0..tables {
        let mut table = l2(&image, index);
        if table == 0 {
            table = fs::metadata(&image).unwrap().len().next_multiple_of(512);
            patch(&image, table + 511, &[0]);
            patch(&image, l1 + 8 * index, &(1 << 63 | table).to_be_bytes());
        }
        for entry in (0..64).filter(|entry| index * 64 + entry < clusters) {
            patch(&image, table + 8 * entry, &2u64.to_be_bytes());
            total += 1;
        }
    }
    assert_eq!(total, clusters);
    // Those tables are counted nowhere.
    patch(&image, 72, &1u64.to_be_bytes());
    let ran = room.plain(&["inspect", "--check", "--json", text(&image)]);
    ran.error(20);
    let document = ran.json();
    assert_eq!(document["findings"].as_array().unwrap().len(), 1000);
    assert_eq!(document["findings_total"], total);
    let ran = room.plain(&["inspect", "--check", text(&image)]);
    assert!(ran.stdout.contains(&format!("and {} more", total - 1000)), "{ran:?}");
}

#[test]
fn what_reading_does_not_need_is_told_and_forbids_nothing() {
    let room = Room::new();
    let image = room.image("v3-64k");
    let counts = field(&image, 48);
    patch(&image, counts, &(field(&image, counts) | 8).to_be_bytes());
    let document = room.plain(&["inspect", "--check", "--json", text(&image)]).document();
    assert_eq!(kinds(&document), ["reserved_bits"]);
    assert_eq!((&document["findings"][0]["refused"], &document["refused_total"]), (&false.into(), &0.into()));
    let disk = room.old_disk("disk.raw", 2 << 20);
    assert_eq!(room.rebuild(&[text(&image), text(&disk)]).code, Some(0));
}

#[test]
fn an_image_that_cannot_be_opened_has_a_finding() {
    let room = Room::new();
    let image = room.image("v3-64k");
    patch(&image, 20, &40u32.to_be_bytes());
    let ran = room.plain(&["inspect", "--check", "--json", text(&image)]);
    assert_eq!(ran.error(20)["offset"], 20);
    assert_eq!(kinds(&ran.json()), ["bad_header"]);
    patch(&image, 72, &(1u64 << 7 | 1 << 2).to_be_bytes());
    patch(&image, 24, &u64::MAX.to_be_bytes());
    let ran = room.plain(&["inspect", "--check", "--json", text(&image)]);
    assert_eq!(ran.error(20)["offset"], 20);
    assert_eq!(kinds(&ran.json()), ["bad_header", "unsupported", "unsupported", "bad_header"]);
    let ran = room.plain(&["inspect", "--check", "--json", "missing.qcow2"]);
    ran.error(20);
    assert_eq!(kinds(&ran.json()), ["missing"]);
}

#[test]
fn a_rebuild_that_is_refused_shows_the_first_faults_and_how_many_there_are() {
    let room = Room::new();
    let image = room.image("v3-64k");
    let table = l2(&image, 0);
    let bad = |index: u64| patch(&image, table + 8 * index, &2u64.to_be_bytes());
    let disk = room.old_disk("disk.raw", 2 << 20);
    let before = Seen::of(&disk);
    bad(3);
    let error = room.rebuild(&[text(&image), text(&disk)]).error(20);
    assert!(error.get("faults_total").is_none() && error["also"] == Value::Array(vec![]), "{error}");
    (4..10).for_each(bad);
    let ran = room.rebuild(&[text(&image), text(&disk)]);
    let error = ran.error(20);
    assert!(before == Seen::of(&disk));
    let also = error["also"].as_array().unwrap();
    let offsets: Vec<_> = std::iter::once(&error).chain(also).map(|fault| fault["offset"].as_u64()).collect();
    assert_eq!(offsets, [3, 4, 5, 6, 7].map(|index| Some(table + 8 * index)));
    assert_eq!((&error["faults_total"], &error["kind"]), (&7.into(), &"image".into()));
    assert!(also.iter().all(|fault| fault["code"] == 20 && fault["target_state"] == "untouched"), "{error}");
    let command = format!("7 faults were found, and `reimage inspect --check {}` tells all", text(&image));
    assert!(error["hint"].as_str().unwrap().ends_with(&command), "{error}");
    for place in [3, 7].map(|index| format!("at bytes {}..", table + 8 * index)) {
        assert!(ran.stderr.contains(&place), "{ran:?}");
    }
    assert_eq!(ran.stderr.matches("hint:").count(), 2, "{ran:?}");
}

#[test]
fn a_refusal_counts_faults_only_so_far_and_its_command_opens_the_image_as_it_was_opened() {
    let room = Room::new();
    let image = room.image("v3-64k");
    let wrong = 2u64.to_be_bytes().repeat(1001);
    patch(&image, l2(&image, 0), &wrong[8..]);
    let named = room.path("disk.raw");
    std::fs::rename(&image, &named).unwrap();
    // The disk has 32 clusters, and all of its entries but those are for what is behind its end.
    patch(&named, 24, &(64u64 << 20).to_be_bytes());
    let words = ["inspect", "--json", "--image-format", "qcow2", "--allow-nested-format", text(&named)];
    let error = room.plain(&words).error(20);
    let hint = error["hint"].as_str().unwrap();
    let opened = "inspect --check --image-format qcow2 --allow-nested-format ";
    assert!(hint.contains("1000 faults were found") && hint.contains(opened), "{hint}");
    assert_eq!(error["faults_total"], 1000);
    patch(&named, l2(&named, 0), &wrong);
    let error = room.plain(&words).error(20);
    assert!(error["hint"].as_str().unwrap().contains("more than 1000 faults were found"), "{error}");
    assert_eq!((error.get("faults_total"), error["also"].as_array().unwrap().len()), (None, 4), "{error}");
}

#[test]
fn faults_of_a_header_and_of_tables_below_are_shown_together() {
    let room = Room::new();
    let (image, base) = (room.image("chain-over-zlib"), room.image("zlib-64k"));
    patch(&image, 96, &9u32.to_be_bytes());
    patch(&base, l2(&base, 0), &2u64.to_be_bytes());
    let folder = room.path("");
    let disk = room.old_disk("disk.raw", 2 << 20);
    let error = room.rebuild(&[text(&image), text(&disk), "--allow-backing", text(&folder)]).error(20);
    assert_eq!((&error["offset"], &error["faults_total"]), (&96.into(), &2.into()), "{error}");
    assert_eq!(error["also"][0]["path"], text(&base), "{error}");
    let hint = error["hint"].as_str().unwrap();
    assert!(hint.contains("inspect --check --allow-backing "), "{hint}");
}

#[test]
fn a_deep_preflight_that_fails_names_the_command_that_tells_every_bad_cluster() {
    let room = Room::new();
    let image = room.image("zlib-64k");
    let stream = field(&image, l2(&image, 0) + 8 * 4) & ((1 << 54) - 1);
    patch(&image, stream, &[0xff; 16]);
    let disk = room.old_disk("disk.raw", 2 << 20);
    let error = room.rebuild(&[text(&image), text(&disk), "--preflight", "deep"]).error(20);
    let hint = error["hint"].as_str().unwrap();
    assert!(hint.contains(&format!("`reimage inspect --check {}`", text(&image))), "{hint}");
}

#[test]
fn what_should_be_qcow2_and_holds_nothing_was_not_transferred_whole() {
    let room = Room::new();
    for (name, bytes) in [("empty.qcow2", vec![]), ("zero.qcow2", vec![0; 1 << 20])] {
        let image = room.file(name, bytes);
        for words in [&["inspect", "--json"][..], &["inspect", "--json", "--check"]] {
            let error = room.plain(&[words, &[text(&image)]].concat()).error(20);
            let hint = error["hint"].as_str().unwrap();
            assert!(hint.contains("not transferred whole") && !hint.contains("rename"), "{error}");
            assert!(error["message"].as_str().unwrap().contains("there is no qcow2 header"), "{error}");
        }
        // As a raw disk it is what it is.
        room.plain(&["inspect", "--json", "--image-format", "raw", text(&image)]).document();
    }
}
