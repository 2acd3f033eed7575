//! Receipts: what a finished rebuild left is compared with the disk later, without the image.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::manifest::CHUNK;
use crate::support::{PASSWORD, Ran, Room, Seen, text};
use crate::without_image::gpt_disk;

const SIZE: usize = 6 * CHUNK + 512;

/// A machine that was rebuilt, its image gone.
struct Lab {
    room: Room,
    target: PathBuf,
    root: Value,
}

impl Lab {
    fn new(image: &[u8]) -> Self {
        let room = Room::new();
        let image = room.file("image.raw", image);
        let target = room.path("disk.raw");
        let instance = room.file("vm.toml", "id = \"i-7\"\n[system_disk]\npath = \"disk.raw\"\n");
        let words = [text(&image), "--instance", text(&instance), "--size", &SIZE.to_string()];
        let report = room.rebuild(&words).document();
        fs::remove_file(image).unwrap();
        Self { root: report["root"].clone(), target, room }
    }

    fn verify(&self, word: &str, words: &[&str]) -> Ran {
        self.room.plain(&[&["verify", "--json", "--state-dir", "state", "--receipt", word], words].concat())
    }

    fn receipt(&self) -> PathBuf {
        let status =
            self.room.plain(&["status", "--json", "--state-dir", "state", text(&self.target)]).document();
        status["receipt"]["path"].as_str().unwrap().into()
    }

    fn change(&self, places: &[usize]) {
        let mut bytes = fs::read(&self.target).unwrap();
        places.iter().for_each(|place| bytes[*place] ^= 1);
        fs::write(&self.target, bytes).unwrap();
    }
}

#[test]
fn a_disk_is_found_as_it_was_left_by_receipt_instance_and_path() {
    let lab = Lab::new(&gpt_disk(512, 3 * CHUNK));
    let (receipt, before) = (lab.receipt(), Seen::of(&lab.target));
    lab.room.file("nameless.toml", "[system_disk]\npath = \"disk.raw\"\n");
    for word in [text(&receipt), "i-7", text(&lab.target), "./disk.raw", "vm.toml", "nameless.toml"] {
        let report = lab.verify(word, &[]).document();
        assert_eq!((&report["root"], report["places"].as_u64()), (&lab.root, Some(0)), "{word}");
        assert_eq!(report["instance"], "i-7");
        let compared =
            report["bytes_read"].as_u64().unwrap() + report["bytes_proved_holes"].as_u64().unwrap();
        assert_eq!(compared, SIZE as u64, "every byte");
    }
    before.check(&lab.target);
    let moved = lab.room.path("moved.raw");
    fs::rename(&lab.target, &moved).unwrap();
    lab.verify("i-7", &[text(&moved)]).document();
    lab.verify("i-7", &[]).error(14);
    for (word, path) in [("i-8", Value::Null), ("/nowhere", "/nowhere".into())] {
        assert_eq!(lab.verify(word, &[]).error(2)["path"], path);
    }
    let error = lab.verify("i-8", &[]).error(2);
    assert!(
        error["message"].as_str().unwrap().ends_with(": no receipt of the instance \"i-8\" is kept"),
        "{error}"
    );
    lab.verify("missing.toml", &[]).error(2);
}

#[test]
fn what_a_comparison_with_a_receipt_would_not_heed_is_refused() {
    let lab = Lab::new(&gpt_disk(512, 3 * CHUNK));
    lab.verify("i-7", &["--threads", "1", "--stall-timeout", "30"]).document();
    for words in [
        ["--trust-key", "missing"],
        ["--sha256sums", "missing"],
        ["--keyring", "missing"],
        ["--manifest", "missing"],
        ["--expect-digest", "sha256:0000000000000000000000000000000000000000000000000000000000000000"],
        ["--image-format", "qcow2"],
        ["--target-format", "raw"],
        ["--gpt", "keep"],
        ["--stall-timeout", "soon"],
    ] {
        let error = lab.verify("i-7", &words).error(2);
        assert!(error["message"].as_str().unwrap().contains(words[0]), "{error}");
    }
}

#[test]
fn every_changed_byte_is_drift_with_its_place_and_its_partition() {
    let lab = Lab::new(&gpt_disk(512, 3 * CHUNK));
    let good = fs::read(&lab.target).unwrap();
    for at in [20_000, CHUNK, CHUNK + 5, 3 * CHUNK, 4 * CHUNK + 9, SIZE - 40 * 512] {
        lab.change(&[at]);
        let error = lab.verify("i-7", &[]).error(31);
        let number = |field: &str| usize::try_from(error[field].as_u64().unwrap()).unwrap();
        assert!((number("offset")..number("offset") + number("length")).contains(&at), "{at}: {error}");
        let inside = at < 3 * CHUNK - 64 * 512;
        let message = error["message"].as_str().unwrap();
        assert_eq!(message.contains("partition 1 (root)"), inside, "{message}");
        assert!(message.contains("1 place changed"), "{message}");
        fs::write(&lab.target, &good).unwrap();
    }
    lab.change(&[CHUNK, 2 * CHUNK, 4 * CHUNK]);
    let error = lab.verify("i-7", &[]).error(31);
    assert!(error["message"].as_str().unwrap().contains("2 places"), "neighbours are one: {error}");
    assert_eq!(error["also"].as_array().unwrap().len(), 1);
    fs::File::options().write(true).open(&lab.target).unwrap().set_len(SIZE as u64 + 512).unwrap();
    assert!(lab.verify("i-7", &[]).error(31)["message"].as_str().unwrap().contains("and had"));
}

/// Sets the end of partition 1 in both copies of the table, or removes it.
fn repartition(target: &Path, last: Option<u64>) {
    let mut file = fs::File::options().read(true).write(true).open(target).unwrap();
    let mut gpt = gptman::GPT::read_from(&mut file, 512).unwrap();
    match last {
        Some(last) => gpt[1].ending_lba = last,
        None => gpt[1].partition_type_guid = [0; 16],
    }
    gpt.write_into(&mut file).unwrap();
}

#[test]
fn a_partition_that_grew_is_expected_and_one_that_shrank_or_went_is_not() {
    let lab = Lab::new(&gpt_disk(512, 3 * CHUNK));
    let good = fs::read(&lab.target).unwrap();
    let before = 3 * CHUNK as u64 / 512 - 64;
    repartition(&lab.target, Some(before + 1000));
    let report = lab.verify("i-7", &[]).document();
    let causes: Vec<_> = report["drift"].as_array().unwrap().iter().map(|drift| &drift["cause"]).collect();
    assert_eq!(causes, ["partition_table", "partition_table"], "{report}");
    for last in [Some(before - 1), None] {
        repartition(&lab.target, last);
        lab.verify("i-7", &[]).error(31);
    }
    fs::write(&lab.target, &good).unwrap();
    // Neither copy is a table any more.
    lab.change(&[520, SIZE - 500]);
    lab.verify("i-7", &[]).error(31);
}

#[test]
fn the_latest_rebuild_of_a_disk_counts_and_no_secret_is_kept() {
    let lab = Lab::new(&gpt_disk(512, 3 * CHUNK));
    let first = lab.receipt();
    let other = lab.room.file("other.raw", vec![3; 2 * CHUNK + 700]);
    let seed = lab.room.path("seed.iso");
    let password = lab.room.file("password", PASSWORD);
    let words = ["rebuild", "--json", "--yes", "--state-dir", "state", text(&other), text(&lab.target)];
    let seeded = ["--seed", text(&seed), "--password-file", text(&password), "--in-place"];
    let report = lab.room.plain(&[&words[..], &seeded].concat()).document();
    let receipt = lab.receipt();
    assert_eq!(receipt, first, "one receipt for the disk");
    let verified = lab.verify(text(&lab.target), &[]).document();
    assert_eq!(verified["root"], report["root"]);
    lab.verify("i-7", &[]).error(2);
    let kept = fs::read_to_string(&receipt).unwrap();
    let value: Value = serde_json::from_str(&kept).unwrap();
    assert_eq!(value["report"]["seed"]["blake3"], report["seed"]["blake3"]);
    assert!(!kept.contains(PASSWORD) && !kept.contains("$6$"), "a secret is in the receipt");
}

#[test]
fn a_receipt_that_was_changed_is_none() {
    let lab = Lab::new(&gpt_disk(512, 3 * CHUNK));
    let receipt = lab.receipt();
    let good: Value = serde_json::from_slice(&fs::read(&receipt).unwrap()).unwrap();
    let changes = [
        ("/format", Value::from("reimage-manifest")),
        ("/version", Value::from(2)),
        ("/virtual_size", Value::from(u64::MAX)),
        ("/target_bytes", Value::from(u64::MAX)),
        ("/ends/0/len", Value::from(u64::MAX)),
        ("/ends/0/offset", Value::from(u64::MAX)),
        ("/ends", Value::from(Vec::<u8>::new())),
        ("/root", Value::from("00".repeat(32))),
        ("/chunks", Value::from(Vec::<u8>::new())),
    ];
    for (place, changed) in changes {
        let mut value = good.clone();
        *value.pointer_mut(place).unwrap() = changed;
        fs::write(&receipt, value.to_string()).unwrap();
        lab.verify("i-7", &[]).error(2);
    }
    fs::write(&receipt, "{").unwrap();
    lab.verify(text(&receipt), &[]).error(2);
}

#[test]
fn a_receipt_that_cannot_be_kept_is_a_warning_and_no_failure() {
    let room = Room::new();
    let image = room.file("image.raw", vec![5; CHUNK]);
    fs::create_dir_all(room.path("state")).unwrap();
    room.file("state/receipts", "no folder");
    let target = room.path("disk.raw");
    let ran = room.rebuild(&[text(&image), text(&target)]);
    ran.document();
    assert!(ran.stderr.contains("the receipt of this rebuild could not be kept"), "{}", ran.stderr);
}
