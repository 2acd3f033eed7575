//! Content that is another disk-image format than its name or the caller says.

use std::io::Write;
use std::path::Path;

use super::{Row, check};
use crate::build::{Cluster, Spec, deflate, pattern, repeated, text, zstd};

/// Formats that others would read something into: the name that the message has for each, and a file's bytes.
fn foreign() -> Vec<(&'static str, &'static str, Vec<u8>)> {
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
    vec![
        ("vmdk (sparse)", "vmdk", begins(b"KDMV\x01\0\0\0")),
        ("vmdk (COWD)", "vmdk", begins(b"COWD\x01\0\0\0")),
        ("vmdk (descriptor)", "vmdk", begins(flat)),
        ("vmdk (hidden descriptor)", "vmdk", begins(hidden)),
        ("vhd (dynamic)", "vhd", begins(b"conectix")),
        ("vhd (fixed)", "vhd", ends(b"conectix")),
        ("vhdx", "vhdx", begins(b"vhdxfile")),
        ("vdi", "vdi", inside(0x40, &0xbeda_107f_u32.to_le_bytes())),
        ("qed", "qed", begins(b"QED\0")),
        ("LUKS 1", "LUKS", begins(b"LUKS\xba\xbe\0\x01")),
        ("LUKS 2", "LUKS", begins(b"LUKS\xba\xbe\0\x02")),
        ("LUKS 2, the second header", "LUKS", begins(b"SKUL\xba\xbe\0\x02")),
        ("parallels", "parallels", begins(b"WithoutFreeSpace")),
        ("parallels (extended)", "parallels", begins(b"WithouFreSpacExt")),
        ("bochs", "bochs", begins(b"Bochs Virtual HD Image")),
        ("dmg", "dmg", ends(b"koly\0\0\0\x04")),
        (
            "cloop",
            "cloop",
            begins(b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"),
        ),
        ("bzip2", "bzip2", begins(b"BZh91AY")),
        ("zip", "zip", begins(b"PK\x03\x04")),
        ("7z", "7z", begins(b"7z\xbc\xaf\x27\x1c")),
        ("lz4", "lz4", begins(b"\x04\x22\x4d\x18")),
    ]
}

fn foreign_rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, _, bytes) in foreign() {
        let raw =
            Row::named(format!("{name} as disk.raw"), "disk.raw", bytes.clone(), "is itself a disk image");
        rows.push(raw);
        let said =
            Row::named(format!("{name} said to be raw"), "disk", bytes.clone(), "is itself a disk image");
        rows.push(said.flags(&["--image-format", "raw"]));
        rows.push(Row::new(
            format!("{name} as image.qcow2"),
            bytes.clone(),
            "the name says qcow2 and the content is",
        ));
        let said = Row::named(format!("{name} said to be qcow2"), "disk", bytes, "no qcow2 image but");
        rows.push(said.flags(&["--image-format", "qcow2"]));
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
    let disagrees = "the name says qcow2 and the content is raw";
    vec![
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
        Row::named("qcow2 said to be raw", "disk", qcow2.clone(), nested).flags(&["--image-format", "raw"]),
        Row::named("qcow2 as disk.gz", "disk.gz", qcow2, "the name says gzip and the content is qcow2"),
        Row::named(
            "qcow as disk.raw",
            "disk.raw",
            qcow1.clone(),
            "the name says raw and the content is qcow2",
        ),
        Row::named("qcow as disk.qcow", "disk.qcow", qcow1.clone(), "qcow version 1").at(4),
        Row::named("qcow said to be raw", "disk", qcow1, nested).flags(&["--image-format", "raw"]),
        Row::new("noise as image.qcow2", pattern(3, 70_000), disagrees),
        Row::new("a GPT disk as image.qcow2", gpt, disagrees),
        Row::new("an ISO 9660 as image.qcow2", iso, disagrees),
        Row::new("nothing as image.qcow2", Vec::new(), disagrees),
        Row::new("three bytes of the magic", b"QFI".to_vec(), disagrees),
        Row::named("noise said to be qcow2", "disk", pattern(3, 70_000), "no qcow2 image but raw")
            .flags(&["--image-format", "qcow2"]),
        Row::named("nothing said to be qcow2", "disk", Vec::new(), "no qcow2 image but raw")
            .flags(&["--image-format", "qcow2"]),
    ]
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
        Row::named("gzip as disk.raw", "disk.raw", gzip(&text(1, 9000)), "the content is gzip"),
        Row::new("gzip as image.qcow2", gzip(&text(1, 9000)), "the name says qcow2 and the content is gzip"),
    ]
}

/// The disk of a qcow2 image that begins or ends like another format, stored and compressed.
fn nested() -> Vec<Row> {
    const WORDS: &str = "the disk in this image is itself a disk image";
    let mut rows = Vec::new();
    for (name, format, bytes) in foreign() {
        let disk =
            |cluster: Vec<u8>| Cluster::Stream { stream: deflate(&cluster), sectors: None, content: cluster };
        let clusters = bytes.chunks(4096).map(|cluster| {
            let mut cluster = cluster.to_vec();
            cluster.resize(4096, 0);
            disk(cluster)
        });
        let mut spec = Spec { clusters: clusters.collect(), ..Spec::packed(false) };
        spec.size = bytes.len() as u64;
        rows.push(Row::new(format!("{name} in a qcow2 image"), spec.lay().bytes, WORDS));
        assert!(!format.is_empty());
    }
    let inner = Spec::default().lay().bytes;
    let cluster = |at: usize| inner[at..at + 4096].to_vec();
    let stream = |content: Vec<u8>| Cluster::Stream { stream: deflate(&content), sectors: None, content };
    let spec =
        Spec { clusters: vec![stream(cluster(0)), stream(cluster(4096))], ..Spec::packed(false) }.sized();
    rows.push(Row::new("qcow2 in a qcow2 image", spec.clone().lay().bytes, WORDS));
    let over = move |folder: &Path| {
        std::fs::write(folder.join("base.qcow2"), spec.clone().lay().bytes).unwrap();
        let path = folder.join("top.qcow2");
        std::fs::write(&path, Spec::over(b"base.qcow2", "qcow2").lay().bytes).unwrap();
        path
    };
    rows.push(
        Row::made("qcow2 in the base of a qcow2 image", Box::new(over), WORDS)
            .flags(&["--allow-backing", "images"]),
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
