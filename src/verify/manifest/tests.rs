//! Goal: a manifest says after reading what it said before writing, and nothing else is taken for one.
//! Method: one manifest with every field, and the same JSON with one thing changed at a time.

use std::fs;

use serde_json::{Value, json};

use super::json::MOST_BYTES;
use super::schema;
use super::*;
use crate::verify::runs::MOST_CHUNKS;

const SIZE: u64 = 9 * CHUNK + 77;

fn table(chunks: impl IntoIterator<Item = u64>, size: u64) -> DigestTable {
    let mut table = DigestTable::new(size);
    for index in chunks {
        table.insert(table.range(index), Digest::of(&index.to_le_bytes()));
    }
    table.sort();
    table
}

fn file() -> ImageFileDigests {
    ImageFileDigests { bytes: 12345, sha256: [0xab; 32], blake3: Digest::of(b"file") }
}

fn full() -> Manifest {
    let filled = vec![ByteRange::new(512, 512), ByteRange::new(4096, 512)];
    let made = Made::now(SourceKind::Device, "qcow2", filled);
    let head =
        |at, bytes: &[u8]| Former { range: ByteRange::new(at, bytes.len() as u64), bytes: bytes.to_vec() };
    Manifest::new(table([0, 1, 5, 9], SIZE), Some(Digest::of(b"whole")), file(), made)
        .with_head(vec![head(458, &[1, 2, 3, 4]), head(512, &[7; 512])])
}

fn bare(chunks: impl IntoIterator<Item = u64>, size: u64) -> Manifest {
    Manifest::new(table(chunks, size), None, file(), Made::now(SourceKind::Image, "raw", Vec::new()))
}

fn value() -> Value {
    serde_json::from_str(&full().to_json()).unwrap()
}

fn parsed(value: &Value) -> Result<Manifest, ManifestError> {
    Manifest::from_json(value.to_string().as_bytes())
}

/// The chain of causes of the refusal.
fn refused(value: &Value) -> String {
    in_full(&parsed(value).expect_err("it is refused"))
}

fn in_full(error: &dyn std::error::Error) -> String {
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}

#[test]
fn what_was_written_is_read_again_for_disks_of_every_shape() {
    let last = |size: u64| size.div_ceil(CHUNK) - 1;
    let huge = i64::MAX as u64;
    let table = [
        full(),
        bare([], 0),
        bare([], 1),
        bare([0], 1),
        bare([0], CHUNK - 1),
        bare([0], CHUNK),
        bare([1], CHUNK + 1),
        bare([0, last(huge)], huge),
        bare((0..2000).filter(|index| index % 3 > 0), 2000 * CHUNK),
    ];
    for manifest in table {
        let text = manifest.to_json();
        assert_eq!(Manifest::from_json(text.as_bytes()).unwrap(), manifest, "{text}");
        assert_eq!(schema::faults(&serde_json::from_str(&text).unwrap()), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn zeroes_are_folded_and_every_digest_has_a_line() {
    let text = full().to_json();
    let runs = value()["chunks"].as_array().unwrap().clone();
    let shape = |run: &Value| (run["first"].as_u64().unwrap(), run["digests"].as_array().unwrap().len());
    assert_eq!(runs.iter().map(shape).collect::<Vec<_>>(), [(0, 2), (5, 1), (9, 1)]);
    let line = format!("    \"{}\",\n", Digest::of(&0_u64.to_le_bytes()));
    assert!(text.contains(&line), "{text}");
    assert_eq!(line.len(), 72);
}

#[test]
fn a_field_that_is_not_known_is_passed_over_and_the_order_of_fields_is_free() {
    let mut value = value();
    // `serde_json` sorts by name, so that `digests` comes before `first`.
    value["later"] = json!({"a": [1, {"b": null}]});
    value["chunks"][0]["later"] = json!([[]]);
    value["image"]["later"] = json!(-1.5);
    assert!(value.to_string().find("\"digests\"") < value.to_string().find("\"first\""));
    assert_eq!(parsed(&value).unwrap(), full());
}

#[test]
fn a_manifest_with_one_thing_changed_is_refused_with_the_reason() {
    let other = Digest::of(b"other").to_string();
    let zeroes = Digest::of(&vec![0; 1 << 20]).to_string();
    let short = Digest::of(&[0; 77]).to_string();
    let table: &[(&str, Value, &str)] = &[
        ("/format", json!("reimage-receipt"), "says that it is a \"reimage-receipt\""),
        ("/format", json!(7), "invalid type"),
        ("/version", json!(2), "version 2, and this program reads version 1"),
        ("/version", json!(0), "version 0"),
        ("/version", json!(-1), "invalid value"),
        ("/version", json!(1.0), "invalid type"),
        ("/virtual_size", json!(SIZE - 77), "chunk 9 lies behind the end"),
        ("/virtual_size", json!(SIZE - 1), "its chunks give"),
        ("/virtual_size", json!(u64::MAX), "larger than any"),
        ("/virtual_size", json!(1_u64 << 63), "larger than any"),
        ("/virtual_size", json!("9437261"), "invalid type"),
        ("/virtual_size", json!(1e300), "invalid type"),
        ("/chunk_size", json!(1 << 21), "its chunks have 2097152 bytes"),
        ("/chunk_size", json!(0), "its chunks have 0 bytes"),
        ("/root", json!(other), "its root is"),
        ("/root", json!(other.to_uppercase()), "64 lower-case hexadecimal digits"),
        ("/root", json!(format!("{other}0")), "64 lower-case hexadecimal digits"),
        ("/root", json!(""), "64 lower-case hexadecimal digits"),
        ("/root", json!(null), "invalid type"),
        ("/whole_digest", json!("x"), "64 lower-case hexadecimal digits"),
        ("/image/bytes", json!(-1), "invalid value"),
        ("/image/sha256", json!("é".repeat(32)), "64 lower-case hexadecimal digits"),
        ("/image/blake3", json!(&other[1..]), "64 lower-case hexadecimal digits"),
        ("/made/tool", json!("x".repeat(129)), "made.tool"),
        ("/made/image_format", json!("x".repeat(129)), "made.image_format"),
        ("/made/source", json!("moon"), "unknown variant"),
        ("/made/time_s", json!(-5), "invalid value"),
        ("/made/filled/0/len", json!(0), "made.filled"),
        ("/made/filled/0/len", json!(u64::MAX), "ends behind 64 bits"),
        ("/made/filled/0/offset", json!(8192), "made.filled"),
        ("/made/filled/1/len", json!(SIZE), "made.filled"),
        ("/gpt_head/0/bytes", json!("0102030"), "no hexadecimal digits"),
        ("/gpt_head/0/bytes", json!(""), "has no bytes"),
        ("/gpt_head/0/bytes", json!("00".repeat(16 << 10)), "more than a moved GPT changes"),
        ("/gpt_head/0/offset", json!(510), "out of order"),
        ("/gpt_head/1/offset", json!(CHUNK - 511), "not in the disk's head"),
        ("/gpt_head/1/offset", json!(u64::MAX), "not in the disk's head"),
        ("/chunks", json!([]), "its chunks give"),
        ("/chunks", json!({}), "a list of runs"),
        ("/chunks/0/first", json!(1), "its chunks give"),
        ("/chunks/0/first", json!(4), "chunk 5 comes behind"),
        ("/chunks/0/first", json!(10), "chunk 10 lies behind the end"),
        ("/chunks/0/first", json!(u64::MAX), "number is too large"),
        ("/chunks/2/first", json!(5), "chunk 5 comes behind"),
        ("/chunks/0/digests", json!([]), "one digest at the least"),
        ("/chunks/0/digests/1", json!(other), "its chunks give"),
        ("/chunks/0/digests/1", json!(zeroes), "chunk 1 has the digest of zeroes"),
        ("/chunks/2/digests/0", json!(short), "chunk 9 has the digest of zeroes"),
        ("/chunks/2/digests/0", json!(zeroes), "its chunks give"),
    ];
    for (place, changed, expected) in table {
        let mut value = value();
        *value.pointer_mut(place).unwrap_or_else(|| panic!("there is {place}")) = changed.clone();
        let found = refused(&value);
        assert!(found.contains(expected), "{place} {changed}: {found:?} does not say {expected:?}");
    }
}

#[test]
fn every_field_must_be_there_but_those_that_may_be_absent() {
    let places = [
        ("", &["format", "version", "virtual_size", "chunk_size", "root", "image", "made", "chunks"][..]),
        ("/image", &["bytes", "sha256", "blake3"]),
        ("/made", &["tool", "time_s", "source", "image_format"]),
        ("/made/filled/0", &["offset", "len"]),
        ("/gpt_head/0", &["offset", "bytes"]),
        ("/chunks/0", &["first", "digests"]),
    ];
    for (place, names) in places {
        for name in names {
            let mut value = value();
            value.pointer_mut(place).unwrap().as_object_mut().unwrap().remove(*name).unwrap();
            assert!(refused(&value).contains(&format!("missing field `{name}`")), "{place}/{name}");
            assert!(!schema::faults(&value).is_empty(), "the schema says so too: {place}/{name}");
        }
    }
    let mut value = value();
    value.as_object_mut().unwrap().retain(|name, _| name != "whole_digest" && name != "gpt_head");
    value["made"].as_object_mut().unwrap().remove("filled").unwrap();
    assert_eq!(parsed(&value).unwrap().root(), full().root());
    assert!(schema::faults(&value).is_empty());
}

#[test]
fn a_field_that_stands_twice_is_refused() {
    let text = value().to_string();
    for name in ["format", "root", "chunks", "first", "digests", "blake3", "time_s"] {
        let place = text.find(&format!("\"{name}\":")).unwrap();
        let (before, from) = text.split_at(place);
        let mut field =
            serde_json::Deserializer::from_str(from.split_once(':').unwrap().1).into_iter::<Value>();
        let twice = format!("{before}\"{name}\":{},{from}", field.next().unwrap().unwrap());
        let error = Manifest::from_json(twice.as_bytes()).expect_err(name);
        assert!(in_full(&error).contains("duplicate field"), "{name}: {}", in_full(&error));
    }
}

#[test]
fn no_part_and_no_flip_of_a_manifest_is_another_one() {
    let manifest = full();
    let text = manifest.to_json().into_bytes();
    for len in 0..text.len() - 2 {
        Manifest::from_json(&text[..len]).expect_err("it is cut off");
    }
    for at in 0..text.len() {
        for bit in 0..8 {
            let mut bytes = text.clone();
            bytes[at] ^= 1 << bit;
            let Ok(found) = Manifest::from_json(&bytes) else { continue };
            // What the root covers, and what is compared, is never another without a refusal.
            assert_eq!(found.digests, manifest.digests, "byte {at} bit {bit}");
            assert_eq!(found.root, manifest.root);
        }
    }
}

#[test]
fn what_is_too_long_or_too_deep_is_refused_before_it_costs_anything() {
    let deep = format!("{{\"format\":\"reimage-manifest\",\"version\":1,\"x\":{}", "[".repeat(100_000));
    assert!(in_full(&Manifest::from_json(deep.as_bytes()).unwrap_err()).contains("EOF"));
    let closed = format!("{deep}{}}}", "]".repeat(100_000));
    assert!(in_full(&Manifest::from_json(closed.as_bytes()).unwrap_err()).contains("missing field"));
    let room = tempfile::tempdir().unwrap();
    let path = room.path().join("long");
    fs::File::create(&path).unwrap().set_len(MOST_BYTES + 1).unwrap();
    assert!(matches!(read(&path), Err(ManifestError::TooLong { .. })));
    fs::File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    assert!(read(&path).unwrap().is_empty());
    assert!(matches!(read(room.path()), Err(ManifestError::WrongKind)));
    assert!(matches!(read(&room.path().join("none")), Err(ManifestError::Io { .. })));
}

#[test]
#[ignore = "needs 1 GiB of memory"]
fn the_largest_table_is_written_and_read_and_one_chunk_more_is_not() {
    let most = MOST_CHUNKS as u64;
    // Each chunk in a run of its own makes the longest text.
    let largest = bare((0..most).map(|index| 2 * index), 2 * most * CHUNK);
    let text = largest.to_json();
    assert!(text.len() as u64 <= MOST_BYTES, "{} of {MOST_BYTES}", text.len());
    assert_eq!(Manifest::from_json(text.as_bytes()).unwrap(), largest);
    let larger = bare(0..most + 1, (most + 1) * CHUNK);
    let error = Manifest::from_json(larger.to_json().as_bytes()).unwrap_err();
    assert!(in_full(&error).contains("more than 2097152 chunks"), "{}", in_full(&error));
    let room = tempfile::tempdir().unwrap();
    let written = write_new(&room.path().join("m"), &larger, OldManifest::Refuse);
    assert!(matches!(written, Err(ManifestError::TooManyChunks { .. })));
}

#[test]
fn a_manifest_is_written_whole_beside_its_image_and_replaces_nothing_unasked() {
    let room = tempfile::tempdir().unwrap();
    let path = beside(&room.path().join("debian.qcow2"));
    assert!(path.ends_with("debian.qcow2.manifest.json"));
    write_new(&path, &full(), OldManifest::Refuse).unwrap();
    assert_eq!(Manifest::from_json(&read(&path).unwrap()).unwrap(), full());
    let other = bare([3], SIZE);
    assert!(matches!(write_new(&path, &other, OldManifest::Refuse), Err(ManifestError::Exists)));
    assert_eq!(Manifest::from_json(&read(&path).unwrap()).unwrap(), full(), "the old one stays");
    write_new(&path, &other, OldManifest::Replace).unwrap();
    assert_eq!(Manifest::from_json(&read(&path).unwrap()).unwrap(), other);
    std::os::unix::fs::symlink("nowhere", room.path().join("link")).unwrap();
    let link = write_new(&room.path().join("link"), &other, OldManifest::Refuse);
    assert!(matches!(link, Err(ManifestError::Exists)), "a link that leads nowhere is a name, too");
    assert_eq!(fs::read_dir(room.path()).unwrap().count(), 2, "nothing is left beside it");
}
