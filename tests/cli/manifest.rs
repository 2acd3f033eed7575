//! Manifests: made, found beside the image, and believed only as far as image and disk bear them out.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{Ran, Room, Seen, sha256, text};

pub(crate) const CHUNK: usize = 1 << 20;

/// A raw disk: chunks of data (`d`) and of zeroes (`0`), and 700 bytes more.
fn disk(shape: &str) -> Vec<u8> {
    let chunk = |(number, kind): (usize, char)| match kind {
        '0' => vec![0; CHUNK],
        _ => (0..CHUNK).map(|at| (at * 7 % 251 + number).to_le_bytes()[0]).collect(),
    };
    let mut bytes: Vec<u8> = shape.chars().enumerate().flat_map(chunk).collect();
    bytes.extend([9; 700]);
    bytes
}

/// Writes a file in which chunks of zeroes are holes.
fn with_holes(path: &Path, bytes: &[u8]) {
    let file = fs::File::create(path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (chunk, bytes) in
        bytes.chunks(CHUNK).enumerate().filter(|(_, bytes)| bytes.iter().any(|byte| *byte > 0))
    {
        file.write_all_at(bytes, (chunk * CHUNK) as u64).unwrap();
    }
}

/// An image and the manifest beside it.
struct Lab {
    room: Room,
    image: PathBuf,
    manifest: PathBuf,
}

impl Lab {
    fn new(shape: &str) -> Self {
        let room = Room::new();
        let image = room.path("image.raw");
        with_holes(&image, &disk(shape));
        let manifest = room.path("image.raw.manifest.json");
        room.plain(&["manifest", "--json", text(&image), "--output", text(&manifest)]).document();
        Self { room, image, manifest }
    }

    fn value(&self) -> Value {
        serde_json::from_slice(&fs::read(&self.manifest).unwrap()).unwrap()
    }

    /// Writes the manifest anew, its root right again.
    fn forge(&self, mut value: Value) {
        let mut table = Vec::new();
        table.extend(value["virtual_size"].as_u64().unwrap().to_le_bytes());
        table.extend((CHUNK as u64).to_le_bytes());
        for run in value["chunks"].as_array().unwrap() {
            for (at, digest) in run["digests"].as_array().unwrap().iter().enumerate() {
                table.extend((run["first"].as_u64().unwrap() + at as u64).to_le_bytes());
                let hex =
                    |at: usize| u8::from_str_radix(&digest.as_str().unwrap()[2 * at..][..2], 16).unwrap();
                table.extend((0..32).map(hex));
            }
        }
        value["root"] = json!(blake3::hash(&table).to_hex().as_str());
        fs::write(&self.manifest, value.to_string()).unwrap();
    }

    fn in_place(&self, target: &Path, words: &[&str]) -> Ran {
        self.room.rebuild(&[&[text(&self.image), text(target), "--in-place"], words].concat())
    }

    fn replaced(&self, target: &Path, words: &[&str]) -> Ran {
        self.room.rebuild(&[&[text(&self.image), text(target)], words].concat())
    }

    /// The old disk stays, whether it would be written into or replaced.
    #[track_caller]
    fn check_refused(&self, words: &[&str], expected: &str) {
        let target = self.room.old_disk("disk.raw", 8 * CHUNK);
        let before = Seen::of(&target);
        for ran in [self.in_place(&target, words), self.replaced(&target, words)] {
            let error = ran.error(21);
            let message = error["message"].as_str().unwrap();
            assert!(message.contains(expected), "{message}");
            assert_eq!(error["target_state"], "untouched");
            assert!(error["hint"].as_str().is_some_and(|hint| !hint.is_empty()));
            before.check(&target);
        }
        fs::remove_file(&target).unwrap();
    }
}

#[test]
fn a_manifest_says_of_disk_and_file_what_other_programs_say() {
    for name in ["zlib-64k", "v3-512", "extl2-64k", "size0"] {
        let room = Room::new();
        let image = room.image(name);
        let ran = room.plain(&["manifest", text(&image), "--whole-digest"]);
        let manifest: Value = serde_json::from_str(&ran.stdout).unwrap();
        let file = fs::read(&image).unwrap();
        assert_eq!(manifest["image"]["bytes"], file.len());
        assert_eq!(manifest["image"]["sha256"], sha256(&file));
        assert_eq!(manifest["image"]["blake3"], blake3::hash(&file).to_hex().as_str());
        let target = room.path("disk.raw");
        let report = room.rebuild(&[text(&image), text(&target)]).document();
        let disk = fs::read(&target).unwrap();
        assert_eq!(manifest["virtual_size"], disk.len());
        assert_eq!(manifest["whole_digest"], blake3::hash(&disk).to_hex().as_str());
        assert_eq!(manifest["root"], report["root"]);
        assert_eq!(
            (&manifest["made"]["source"], &manifest["made"]["image_format"]),
            (&json!("image"), &json!("qcow2"))
        );
    }
}

#[test]
fn a_manifest_replaces_no_file_unasked_and_leaves_nothing_beside_it() {
    let lab = Lab::new("d0d");
    let before = Seen::of(&lab.manifest);
    let words = ["manifest", "--json", text(&lab.image), "--output", text(&lab.manifest)];
    let error = lab.room.plain(&words).error(2);
    assert!(error["message"].as_str().unwrap().contains("already"), "{error}");
    before.check(&lab.manifest);
    let shown = lab.room.plain(&[&words[..], &["--replace"]].concat()).document();
    assert_eq!(shown["root"], lab.value()["root"]);
    assert_eq!(lab.room.names(), ["image.raw", "image.raw.manifest.json"]);
    let nowhere = lab.room.path("none/m.json");
    lab.room.plain(&["manifest", "--json", text(&lab.image), "--output", text(&nowhere)]).error(30);
}

#[test]
fn a_manifest_takes_the_place_of_no_other_file_than_a_manifest() {
    let lab = Lab::new("d0d");
    // A guest may have put a manifest into its disk's head.
    let disk = [&fs::read(&lab.manifest).unwrap()[..], &[0; 4096]].concat();
    let disk = lab.room.file("disk.raw", disk);
    let link = lab.room.path("link.json");
    std::os::unix::fs::symlink(&lab.manifest, &link).unwrap();
    let words = ["manifest", "--json", text(&lab.image), "--replace", "--output"];
    for place in [&lab.image, &disk, &lab.manifest] {
        let before = Seen::of(place);
        let name = if place == &lab.manifest { &link } else { place };
        let error = lab.room.plain(&[&words[..], &[text(name)]].concat()).error(2);
        assert!(error["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{error}");
        before.check(place);
    }
    assert!(link.is_symlink());
    for place in ["/dev/null", "/dev/reimage-new", "/proc/reimage-new"] {
        lab.room.plain(&[&words[..], &[place]].concat()).error(14);
    }
}

#[test]
fn a_manifest_beside_the_image_is_used_and_told_of() {
    let lab = Lab::new("d0dd0");
    let root = lab.value()["root"].clone();
    let target = lab.room.old_disk("disk.raw", 8 * CHUNK);
    let plan = lab.room.run("plan", &[text(&lab.image), text(&target)]).document();
    assert_eq!((&plan["manifest"]["root"], &plan["manifest"]["image_file"]), (&root, &Value::Null));
    let report = lab.replaced(&target, &[]).document();
    assert_eq!(report["plan"]["manifest"]["root"], root);
    let report = lab.in_place(&target, &[]).document();
    let file = blake3::hash(&fs::read(&lab.image).unwrap()).to_hex();
    assert_eq!(report["plan"]["manifest"]["image_file"], file.as_str(), "the file was compared before");
    assert_eq!(report["root"], root);
    let verified = lab.room.plain(&["verify", "--json", text(&lab.image), text(&target)]).document();
    assert_eq!(verified["manifest"]["root"], root);
    let report = lab.in_place(&target, &["--manifest", "none"]).document();
    assert_eq!(report["plan"]["manifest"], Value::Null);
    let moved = lab.room.path("elsewhere");
    fs::rename(&lab.manifest, &moved).unwrap();
    let report = lab.in_place(&target, &["--manifest", text(&moved)]).document();
    assert_eq!(report["plan"]["manifest"]["path"], text(&moved));
    assert_eq!(lab.in_place(&target, &[]).document()["plan"]["manifest"], Value::Null, "there is none");
    let before = Seen::of(&target);
    lab.in_place(&target, &["--manifest", "gone.json"]).error(21);
    before.check(&target);
}

#[test]
fn an_image_that_changed_by_one_byte_or_is_another_one_is_refused() {
    let lab = Lab::new("d0d");
    let good = fs::read(&lab.image).unwrap();
    for at in [0, CHUNK - 1, CHUNK + 5, 2 * CHUNK, good.len() - 1] {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        fs::write(&lab.image, bytes).unwrap();
        lab.check_refused(&[], "manifest");
        lab.check_refused(&["--preflight", "deep"], "manifest");
    }
    for len in [good.len() - 1, good.len() + 1, CHUNK] {
        let mut bytes = good.clone();
        bytes.resize(len, 9);
        fs::write(&lab.image, bytes).unwrap();
        lab.check_refused(&[], "its disk has");
    }
    fs::write(&lab.image, &good).unwrap();
    let other = Lab::new("dd0");
    fs::copy(&other.manifest, &lab.manifest).unwrap();
    lab.check_refused(&[], "manifest");
}

#[test]
fn a_backing_file_that_changed_by_one_byte_is_refused_before_a_disk_is_touched() {
    let room = Room::new();
    let (base, image) = (room.stored("chain-base.raw"), room.image("chain-v2"));
    let folder = text(room.path("").as_path()).to_owned();
    let manifest = room.path("chain-v2.qcow2.manifest.json");
    let words = ["manifest", "--json", text(&image), "--allow-backing", &folder, "-o", text(&manifest)];
    room.plain(&words).document();
    let target = room.old_disk("disk.raw", 4 * CHUNK);
    let words = [text(&image), text(&target), "--allow-backing", &folder, "--in-place"];
    room.rebuild(&words).document();
    let before = Seen::of(&target);
    let mut bytes = fs::read(&base).unwrap();
    // Not in the cluster that the overlay has itself.
    bytes[300 << 10] ^= 1;
    fs::write(&base, bytes).unwrap();
    for preflight in ["auto", "digest", "deep"] {
        let words = [&words[..], &["--preflight", preflight]].concat();
        for ran in [room.run("plan", &words), room.rebuild(&words)] {
            assert_eq!(ran.error(21)["target_state"], "untouched");
            before.check(&target);
        }
    }
}

#[test]
fn a_manifest_that_is_broken_is_never_passed_over() {
    let lab = Lab::new("d0d");
    let good = fs::read(&lab.manifest).unwrap();
    let mut value = lab.value();
    value["chunks"][0]["digests"][0] = value["chunks"][1]["digests"][0].clone();
    for (bytes, expected) in [
        (&b""[..], "it is no manifest"),
        (&good[..good.len() / 2], "it is no manifest"),
        (b"{\"format\":\"reimage-manifest\",\"version\":2}", "version 2"),
        (value.to_string().as_bytes(), "its chunks give"),
    ] {
        fs::write(&lab.manifest, bytes).unwrap();
        lab.check_refused(&[], expected);
        lab.check_refused(&["--preflight", "tables"], expected);
    }
    lab.room.plain(&["inspect", "--json", text(&lab.image)]).error(21);
    lab.room.plain(&["inspect", "--json", "--manifest", "none", text(&lab.image)]).document();
    fs::remove_file(&lab.manifest).unwrap();
    fs::create_dir(&lab.manifest).unwrap();
    lab.check_refused(&[], "no regular file");
}

/// Manifests of which only the chunks are wrong, in the head, between the ends, and of zeroes in both directions.
fn with_a_wrong_chunk(lab: &Lab) -> Vec<(usize, Value)> {
    let (good, other) = (lab.value(), blake3::hash(b"other").to_hex().to_string());
    let changed = |run: usize, at: usize| {
        let mut value = good.clone();
        value["chunks"][run]["digests"][at] = json!(other);
        value
    };
    let mut zeroes = good.clone();
    zeroes["chunks"][1]["digests"].as_array_mut().unwrap().pop();
    let mut data = good.clone();
    data["chunks"].as_array_mut().unwrap().insert(1, json!({"first": 1, "digests": [other]}));
    vec![(0, changed(0, 0)), (2, changed(1, 0)), (3, zeroes), (1, data)]
}

#[test]
fn a_chunk_that_is_not_the_manifests_is_never_written_and_too_late_only_where_it_must_be() {
    let lab = Lab::new("d0dd00");
    for (chunk, value) in with_a_wrong_chunk(&lab) {
        lab.forge(value);
        let target = lab.room.old_disk("disk.raw", 8 * CHUNK);
        let before = Seen::of(&target);
        let errors = [
            lab.replaced(&target, &[]).error(21),
            lab.replaced(&target, &["--preflight", "digest"]).error(21),
            lab.in_place(&target, &["--preflight", "deep"]).error(21),
        ];
        for error in errors {
            assert_eq!(
                (&error["offset"], &error["length"]),
                (&json!(chunk * CHUNK), &json!(CHUNK)),
                "{error}"
            );
            assert_eq!(error["target_state"], "untouched");
            assert_eq!(error["path"], text(&lab.image));
            before.check(&target);
        }
        for words in [&[][..], &["--preflight", "tables"]] {
            let error = lab.in_place(&target, words).error(32);
            assert_eq!(error["offset"], chunk * CHUNK, "{error}");
            assert_eq!(error["target_state"], "partial");
            let written = fs::read(&target).unwrap();
            let image = fs::read(&lab.image).unwrap();
            let range = chunk * CHUNK..(chunk + 1) * CHUNK;
            assert!(chunk == 1 || written[range.clone()] != image[range], "chunk {chunk} was written");
        }
        // Delta compares before it writes: the disk that holds the image stays as it is.
        let target = lab.room.path("equal.raw");
        lab.replaced(&target, &["--manifest", "none"]).document();
        let before = Seen::of(&target);
        let error = lab.in_place(&target, &["--mode", "delta", "--preflight", "tables"]).error(21);
        assert_eq!(error["target_state"], "untouched");
        before.check(&target);
    }
}

#[test]
fn delta_over_a_disk_that_holds_what_the_manifest_says_asks_an_image_for_nothing_that_is_proved() {
    let lab = Lab::new("d0dd0d");
    let target = lab.room.path("disk.raw");
    lab.replaced(&target, &["--size", "8MiB"]).document();
    let before = Seen::of(&target);
    let words = ["--mode", "delta"];
    let report = lab.in_place(&target, &words).document();
    // Holes are no chunks to decode; the head is one, for its bytes are needed.
    assert_eq!(report["bytes_by_manifest"], 3 * CHUNK + 700);
    assert_eq!((&report["bytes_written"], &report["mode"]), (&json!(0), &json!("delta")));
    before.check(&target);
    let report = lab.in_place(&target, &["--mode", "delta", "--preflight", "tables"]).document();
    assert_eq!(report["bytes_by_manifest"], 0, "nothing proves that the image is the manifest's");
    let mut bytes = fs::read(&target).unwrap();
    bytes[3 * CHUNK + 5] ^= 1;
    fs::write(&target, &bytes).unwrap();
    let report = lab.in_place(&target, &words).document();
    assert_eq!(report["bytes_by_manifest"], 2 * CHUNK + 700);
    assert_eq!(fs::read(&target).unwrap()[..6 * CHUNK + 700], fs::read(&lab.image).unwrap());
}
