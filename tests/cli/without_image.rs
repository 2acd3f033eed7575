//! A disk is compared with a manifest alone, also where its backup GPT was moved.

use std::fs;
use std::io::Cursor;

use gptman::{GPT, GPTPartitionEntry};

use crate::manifest::CHUNK;
use crate::support::{Room, Seen, text};

/// A disk with a GPT, some data, and a hole.
pub(crate) fn gpt_disk(sector: u64, len: usize) -> Vec<u8> {
    let mut disk = Cursor::new(vec![0; len]);
    let mut gpt = GPT::new_from(&mut disk, sector, [0xd1; 16]).unwrap();
    gpt[1] = GPTPartitionEntry {
        partition_type_guid: [0x77; 16],
        unique_partition_guid: [1; 16],
        starting_lba: 64,
        ending_lba: len as u64 / sector - 64,
        attribute_bits: 4,
        partition_name: "root".into(),
    };
    gpt.write_into(&mut disk).unwrap();
    GPT::write_protective_mbr_into(&mut disk, sector).unwrap();
    let mut disk = disk.into_inner();
    disk[..440].fill(0x90);
    for (at, byte) in disk.iter_mut().enumerate().skip(CHUNK / 2).take(CHUNK) {
        *byte = (at % 251).to_le_bytes()[0];
    }
    disk
}

/// Where a byte must not change unseen: sectors and ends of chunks at both ends of image and disk.
fn places(image: usize, disk: usize) -> Vec<usize> {
    let mut places =
        vec![0, 440, 447, 458, 511, 512, 528, 560, 600, 1024, 1152, 4096, CHUNK - 1, CHUNK, disk / 2];
    for end in [image, disk] {
        places.extend([1, 12, 512, 513, 4096, 16 * 1024, 33 * 512, 40 * 1024].map(|before| end - before));
    }
    places.extend([image, image + 700].iter().filter(|place| **place < disk));
    places.sort_unstable();
    places.dedup();
    places
}

#[test]
fn a_grown_disk_verifies_without_its_image_and_every_changed_byte_is_found_with_its_offset() {
    let len = 3 * CHUNK;
    for (sector, growths) in [
        (512, &[0, 512, 5 * 512, 33 * 512, 34 * 512, CHUNK, 3 * CHUNK + 512][..]),
        (4096, &[4096, 5 * 4096, CHUNK]),
    ] {
        for growth in growths {
            let room = Room::new();
            let image = room.file("image.raw", gpt_disk(sector, len));
            let manifest = room.path("m.json");
            room.plain(&["manifest", "--json", text(&image), "--output", text(&manifest)]).document();
            let target = room.path("disk.raw");
            let size = (len + growth).to_string();
            room.rebuild(&[text(&image), text(&target), "--size", &size]).document();
            fs::remove_file(&image).unwrap();
            let words = ["verify", "--json", text(&manifest), text(&target)];
            let before = Seen::of(&target);
            let verified = room.plain(&words).document();
            assert_eq!(verified["gpt"]["action"], if *growth == 0 { "kept" } else { "moved" }, "{growth}");
            assert_eq!(verified["target_bytes"], len + growth);
            before.check(&target);
            let good = fs::read(&target).unwrap();
            if ![512, 34 * 512, 5 * 4096, CHUNK].contains(growth) {
                continue;
            }
            for at in places(len, len + growth) {
                let mut bytes = good.clone();
                bytes[at] ^= 4;
                fs::write(&target, bytes).unwrap();
                let error = room.plain(&words).error(31);
                let number = |field: &str| usize::try_from(error[field].as_u64().unwrap()).unwrap();
                let found = number("offset")..number("offset") + number("length");
                // A table whose checksum is wrong is none: then the head is told.
                assert!(found.contains(&at) || found.start == 0, "{growth}: byte {at} is not in {found:?}");
            }
        }
    }
}

#[test]
fn a_disk_whose_table_was_kept_verifies_as_such_and_not_as_a_moved_one() {
    let room = Room::new();
    let image = room.file("image.raw", gpt_disk(512, 2 * CHUNK));
    let manifest = room.path("m.json");
    room.plain(&["manifest", "--json", text(&image), "--output", text(&manifest)]).document();
    let target = room.path("disk.raw");
    room.rebuild(&[text(&image), text(&target), "--size", "5MiB", "--gpt", "keep"]).document();
    room.plain(&["verify", "--json", text(&manifest), text(&target)]).error(31);
    room.plain(&["verify", "--json", text(&manifest), text(&target), "--gpt", "keep"]).document();
    let short = room.file("short.raw", vec![0; 2 * CHUNK - 1]);
    let error = room.plain(&["verify", "--json", text(&manifest), text(&short)]).error(31);
    assert!(error["message"].as_str().unwrap().contains("2097151 bytes"), "{error}");
    let broken = room.file("broken.json", "{}");
    room.plain(&["verify", "--json", text(&broken), text(&target)]).error(21);
}

#[test]
fn a_disk_that_begins_with_a_manifest_is_an_image_unless_its_name_says_otherwise() {
    let room = Room::new();
    let image = room.file("image.raw", vec![7; 2 * CHUNK]);
    let made = room.path("m.json");
    room.plain(&["manifest", "--json", text(&image), "--output", text(&made)]).document();
    let disk = room.file("disk.raw", fs::read(&image).unwrap());
    // Only the name tells one from the other.
    for (name, flags, code) in [
        ("m.json", &[][..], 0),
        ("m.raw", &[], 31),
        ("m", &[], 31),
        ("m.json", &["--image-format", "raw"], 31),
    ] {
        let first = room.file(name, fs::read(&made).unwrap());
        let ran = room.plain(&[&["verify", "--json", text(&first), text(&disk)], flags].concat());
        assert_eq!(ran.code, Some(code), "{name} {flags:?}: {ran:?}");
    }
}

#[test]
fn places_that_differ_are_told_apart_and_neighbours_as_one() {
    let room = Room::new();
    let bytes = vec![7; 12 * CHUNK];
    let image = room.file("image.raw", &bytes);
    let manifest = room.path("m.json");
    room.plain(&["manifest", "--json", text(&image), "--output", text(&manifest)]).document();
    let mut other = bytes;
    for chunk in [2, 3, 6, 9] {
        other[chunk * CHUNK + 1] = 0;
    }
    let disk = room.file("disk.raw", &other);
    let error = room.plain(&["verify", "--json", text(&manifest), text(&disk)]).error(31);
    let chunk = CHUNK as u64;
    let place =
        |error: &serde_json::Value| (error["offset"].as_u64().unwrap(), error["length"].as_u64().unwrap());
    let others = error["also"].as_array().unwrap().iter().map(place);
    let places: Vec<_> = std::iter::once(place(&error)).chain(others).collect();
    assert_eq!(places, [(2 * chunk, 2 * chunk), (6 * chunk, chunk), (9 * chunk, chunk)]);
}
