//! Content that is another disk-image format than its name or the caller says.

use std::io::Write;
use std::path::Path;

use super::{Row, check};
use crate::build::{Cluster, Spec, deflate, index, pattern, repeated, text, zstd};

/// A format that others would read something into.
struct Foreign {
    name: &'static str,
    /// What the message calls it.
    format: &'static str,
    /// Where its signature is.
    at: u64,
    /// A file of it.
    bytes: Vec<u8>,
}

fn foreign() -> Vec<Foreign> {
    let disk = || text(1, 64 << 10);
    let begins = |magic: &[u8]| [magic, &disk()[magic.len()..]].concat();
    let ends = |magic: &[u8]| [&disk()[..], magic, &[0; 512][magic.len()..]].concat();
    let inside = |at: usize, magic: &[u8]| {
        let mut disk = disk();
        disk[at..at + magic.len()].copy_from_slice(magic);
        disk
    };
    let flat = b"# Disk DescriptorFile\nversion=1\nCID=fffffffe\nRW 8 FLAT \"/etc/shadow\" 0\n";
    let hidden = b"\n# nothing to see\r\n\r\n  VERSION=1\nRW 8 FLAT \"/etc/shadow\" 0\n";
    let of = |name, format, at, bytes| Foreign { name, format, at, bytes };
    let cloop = b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n";
    vec![
        of("vmdk (sparse)", "vmdk", 0, begins(b"KDMV\x01\0\0\0")),
        of("vmdk (COWD)", "vmdk", 0, begins(b"COWD\x01\0\0\0")),
        of("vmdk (descriptor)", "vmdk", 0, begins(flat)),
        of("vmdk (hidden descriptor)", "vmdk", 23, begins(hidden)),
        of("vhd (dynamic)", "vhd", 0, begins(b"conectix")),
        of("vhd (fixed)", "vhd", 64 << 10, ends(b"conectix")),
        of("vhdx", "vhdx", 0, begins(b"vhdxfile")),
        of("vdi", "vdi", 0x40, inside(0x40, &0xbeda_107f_u32.to_le_bytes())),
        of("qed", "qed", 0, begins(b"QED\0")),
        of("LUKS 1", "LUKS", 0, begins(b"LUKS\xba\xbe\0\x01")),
        of("LUKS 2", "LUKS", 0, begins(b"LUKS\xba\xbe\0\x02")),
        of("LUKS 2, the second header", "LUKS", 0, begins(b"SKUL\xba\xbe\0\x02")),
        of("parallels", "parallels", 0, begins(b"WithoutFreeSpace")),
        of("parallels (extended)", "parallels", 0, begins(b"WithouFreSpacExt")),
        of("bochs", "bochs", 0, begins(b"Bochs Virtual HD Image")),
        of("dmg", "dmg", 64 << 10, ends(b"koly\0\0\0\x04")),
        of("cloop", "cloop", 0, begins(cloop)),
        of("bzip2", "bzip2", 0, begins(b"BZh91AY")),
        of("zip", "zip", 0, begins(b"PK\x03\x04")),
        of("7z", "7z", 0, begins(b"7z\xbc\xaf\x27\x1c")),
        of("lz4", "lz4", 0, begins(b"\x04\x22\x4d\x18")),
    ]
}

fn foreign_rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for Foreign { name, format, at, bytes } in foreign() {
        let mut row = |what: &str, file, flags, words: String| {
            // Every word of every row is known when the tests are built, but for the formats' names here.
            let words: &'static str = words.leak();
            rows.push(Row::named(format!("{name} {what}"), file, bytes.clone(), words).flags(flags).at(at));
        };
        row("as disk.raw", "disk.raw", &[], format!("is itself a disk image ({format})"));
        let raw = &["--image-format", "raw"];
        row("said to be raw", "disk", raw, format!("is itself a disk image ({format})"));
        let disagrees = format!("the name says qcow2 and the content is {format}");
        row("as image.qcow2", "image.qcow2", &[], disagrees);
        let qcow2 = &["--image-format", "qcow2"];
        row("said to be qcow2", "disk", qcow2, format!("no qcow2 image but {format}"));
    }
    rows
}

fn qcow2_and_raw() -> Vec<Row> {
    let qcow2 = Spec::default().lay().bytes;
    let qcow1 = [&b"QFI\xfb\0\0\0\x01"[..], &pattern(1, 4088)].concat();
    let mut gpt = vec![0; 64 << 10];
    gpt[510..520].copy_from_slice(b"\x55\xaaEFI PART");
    let mut iso = vec![0; 64 << 10];
    iso[0x8000..0x8006].copy_from_slice(b"\x01CD001");
    let nested = "is itself a disk image (qcow2)";
    let (as_raw, as_qcow2) = (&["--image-format", "raw"], &["--image-format", "qcow2"]);
    let mut sparse = vec![0; 1 << 20];
    sparse.extend(vec![1; 512]);
    let disagrees = "the name says qcow2 and the content is raw";
    let rows = vec![
        Row::named(
            "qcow2 as disk.raw",
            "disk.raw",
            qcow2.clone(),
            "the name says raw and the content is qcow2",
        ),
        Row::named(
            "qcow2 as DISK.RAW",
            "DISK.RAW",
            qcow2.clone(),
            "the name says raw and the content is qcow2",
        ),
        Row::named("qcow2 said to be raw", "disk", qcow2.clone(), nested).flags(as_raw),
        Row::named("qcow2 as disk.gz", "disk.gz", qcow2, "the name says gzip and the content is qcow2"),
        Row::named(
            "qcow as disk.raw",
            "disk.raw",
            qcow1.clone(),
            "the name says raw and the content is qcow version 1",
        ),
        Row::named("qcow said to be raw", "disk", qcow1.clone(), "is itself a disk image (qcow version 1)")
            .flags(as_raw),
        Row::new("noise as image.qcow2", pattern(3, 70_000), disagrees),
        Row::new("a GPT disk as image.qcow2", gpt, disagrees),
        Row::new("an ISO 9660 as image.qcow2", iso, disagrees),
        Row::new("zeroes with something behind them as image.qcow2", sparse, disagrees),
        Row::new("nothing as image.qcow2", Vec::new(), "no qcow2 header, for the file is empty"),
        Row::new("a zero as image.qcow2", vec![0], "no qcow2 header, for the file is all zeroes"),
        Row::new("zeroes as image.qcow2", vec![0; 1 << 20], "no qcow2 header, for the file is all zeroes"),
        Row::new("many zeroes as image.qcow2", vec![0; 30 << 20], "zeroes for as far as it was looked at"),
        Row::new("three bytes of the magic", b"QFI".to_vec(), disagrees),
        Row::named("noise said to be qcow2", "disk", pattern(3, 70_000), "no qcow2 image but raw")
            .flags(as_qcow2),
        Row::named("nothing said to be qcow2", "disk", Vec::new(), "no qcow2 header, for the file is empty")
            .flags(as_qcow2),
        Row::named(
            "zeroes said to be qcow2",
            "disk",
            vec![0; 70_000],
            "no qcow2 header, for the file is all",
        )
        .flags(as_qcow2),
    ];
    let mut rows: Vec<_> = rows.into_iter().map(|row| row.at(0)).collect();
    rows.push(Row::named("qcow as disk.qcow", "disk.qcow", qcow1, "qcow version 1").at(4));
    rows
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn packed() -> Vec<Row> {
    let qcow2 = Spec::default().lay().bytes;
    // 12 GiB of a few hundred KiB.
    let bomb = repeated(12 << 30, 0);
    let vmdk = [&b"KDMV"[..], &text(1, 9000)].concat();
    let only = "only raw images are unpacked on the way";
    vec![
        Row::named("a bomb", "disk.raw.zst", bomb, "holds more than 2097152 bytes").by_the_disk(),
        Row::named("qcow2 in gzip", "disk.qcow2.gz", gzip(&qcow2), only),
        Row::named("qcow2 in zstd", "disk.raw.zst", zstd(&qcow2), only),
        Row::named("vmdk in gzip", "disk.raw.gz", gzip(&vmdk), only),
        Row::named("gzip in zstd", "disk.raw.zst", zstd(&gzip(&text(1, 9000))), only),
        Row::named("gzip as disk.raw", "disk.raw", gzip(&text(1, 9000)), "the content is gzip").at(0),
        Row::new("gzip as image.qcow2", gzip(&text(1, 9000)), "the name says qcow2 and the content is gzip")
            .at(0),
    ]
}

/// The disk of a qcow2 image that begins or ends like another format, stored and compressed.
fn nested() -> Vec<Row> {
    const WORDS: &str = "the disk in this image is itself a disk image";
    let mut rows = Vec::new();
    for Foreign { name, at, bytes, .. } in foreign() {
        let disk =
            |cluster: Vec<u8>| Cluster::Stream { stream: deflate(&cluster), sectors: None, content: cluster };
        let clusters = bytes.chunks(4096).map(|cluster| {
            let mut cluster = cluster.to_vec();
            cluster.resize(4096, 0);
            disk(cluster)
        });
        let mut spec = Spec { clusters: clusters.collect(), ..Spec::packed(false) };
        spec.size = bytes.len() as u64;
        let laid = spec.lay();
        let place = laid.places[index(at / 4096)];
        rows.push(Row::new(format!("{name} in a qcow2 image"), laid.bytes, WORDS).at(place));
    }
    let inner = Spec::default().lay().bytes;
    let cluster = |at: usize| inner[at..at + 4096].to_vec();
    let stream = |content: Vec<u8>| Cluster::Stream { stream: deflate(&content), sectors: None, content };
    let spec =
        Spec { clusters: vec![stream(cluster(0)), stream(cluster(4096))], ..Spec::packed(false) }.sized();
    let laid = spec.clone().lay();
    let place = laid.places[0];
    rows.push(Row::new("qcow2 in a qcow2 image", laid.bytes, WORDS).at(place));
    let stored = Spec::default().lay().with(|laid| laid.put(laid.places[0], b"KDMV"));
    let stored_at = stored.places[0];
    rows.push(Row::new("vmdk in a qcow2 image, not compressed", stored.bytes, WORDS).at(stored_at));
    let over = move |folder: &Path| {
        std::fs::write(folder.join("base.qcow2"), spec.clone().lay().bytes).unwrap();
        let path = folder.join("top.qcow2");
        std::fs::write(&path, Spec::over(b"base.qcow2", "qcow2").lay().bytes).unwrap();
        path
    };
    rows.push(
        Row::made("qcow2 in the base of a qcow2 image", Box::new(over), WORDS)
            .flags(&["--allow-backing", "images"])
            .in_file("base.qcow2")
            .at(place),
    );
    rows
}

pub(super) fn rows() -> Vec<Row> {
    [foreign_rows(), qcow2_and_raw(), packed(), nested()].into_iter().flatten().collect()
}

#[test]
fn content_that_is_another_format_than_is_said_is_refused() {
    check(rows());
}
