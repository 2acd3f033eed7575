//! What comes out of compressed clusters: one cluster each, never less and never more.

use super::{Row, check};
use crate::build::{
    Cluster, Laid, Spec, deflate, deflated_zeroes, noise, repeated, seed, stored, text, zstd, zstd_with,
};

const CLUSTERS: usize = 300;
const BAD: usize = 150;

/// A disk with text at both ends, so that nothing but the copy reads its middle; one stream there is of the row's.
fn with_stream(is_zstd: bool, stream: Vec<u8>, sectors: Option<u64>) -> Laid {
    let mut clusters = vec![Cluster::Hole; CLUSTERS];
    for number in [0, 1, BAD + 1, CLUSTERS - 1] {
        clusters[number] = Cluster::Packed(seed(number));
    }
    clusters[BAD] = Cluster::Stream { stream, sectors, content: Vec::new() };
    Spec { clusters, ..Spec::packed(is_zstd) }.sized().lay()
}

fn row(name: &str, is_zstd: bool, (stream, sectors): (Vec<u8>, Option<u64>), words: &'static str) -> Row {
    let laid = with_stream(is_zstd, stream, sectors);
    let at = laid.places[BAD];
    let kind = if is_zstd { "zstd" } else { "zlib" };
    Row::new(format!("a {kind} stream {name}"), laid.bytes, words).at(at).when_decoded()
}

fn zlib() -> Vec<Row> {
    let zlib = |name, stream, words| row(name, false, (stream, None), words);
    let mut rows = vec![
        zlib("of garbage", vec![0xff; 300], "is no deflate stream"),
        zlib("of 17 bytes", deflate(&[7; 17]), "gives less than a cluster"),
        zlib("of one byte less", deflate(&text(1, 4095)), "gives less than a cluster"),
        zlib("of nothing", deflate(&[]), "gives less than a cluster"),
        zlib("of one byte more", deflate(&text(1, 4097)), "gives more than a cluster"),
        zlib("that is a bomb", deflated_zeroes(64), "gives more than a cluster"),
        zlib(
            "with zlib's head",
            [&b"\x78\x9c"[..], &deflate(&text(1, 4096))].concat(),
            "a compressed cluster",
        ),
        row("longer than it says", false, (stored(&noise(1, 4096)), Some(2)), "a compressed cluster"),
    ];
    // What the last sector holds behind the stream belongs to others, so that the stream is the file's last.
    let laid = Spec { clusters: last(false, text(9, 4096)), ..Spec::packed(false) }.sized().lay();
    let cut = laid.bytes[..laid.bytes.len() - 5].to_vec();
    rows.push(
        Row::new("a zlib stream cut off by the end", cut, "compressed cluster")
            .at(laid.places[BAD])
            .when_decoded(),
    );
    rows
}

/// Clusters of which one ends the file, with a stream of that content.
fn last(is_zstd: bool, content: Vec<u8>) -> Vec<Cluster> {
    let mut clusters = vec![Cluster::Hole; CLUSTERS];
    clusters[0] = Cluster::Packed(1);
    let stream = if is_zstd { zstd(&content) } else { deflate(&content) };
    clusters[BAD] = Cluster::Stream { stream, sectors: None, content };
    clusters
}

fn zstandard() -> Vec<Row> {
    use zstd_safe::CParameter::ChecksumFlag;
    let frame = |name, stream, words| row(name, true, (stream, None), words);
    let mut spoiled = zstd_with(&text(1, 4096), &[ChecksumFlag(true)]);
    *spoiled.last_mut().unwrap() ^= 1;
    let mut cut = zstd(&text(1, 4096));
    cut.truncate(cut.len() - 3);
    let whole = zstd(&text(1, 4096));
    // RFC 8878: the frame header's descriptor says that a dictionary of one byte's number is needed.
    let mut dictionary = vec![0x28, 0xb5, 0x2f, 0xfd, 0x21, 0x07];
    dictionary.extend(&whole[5..]);
    // The same: a window of 2^41 bytes.
    let mut window = repeated(4097, b'x');
    window[5] = 31 << 3;
    let skippable = [&0x184d_2a50_u32.to_le_bytes()[..], &16_u32.to_le_bytes(), &[0; 16]].concat();
    let mut rows = vec![
        frame("of garbage", vec![0xff; 300], "is no complete zstd frame"),
        frame("of 17 bytes", [zstd(&[7; 17]), vec![0; 495]].concat(), "is no complete zstd frame"),
        frame("of one byte less", [zstd(&text(1, 4095)), vec![0; 512]].concat(), "is no complete zstd frame"),
        frame("of one byte more", zstd(&text(1, 4097)), "of at most a cluster"),
        frame("that is a bomb", repeated(64 << 20, 0), "of at most a cluster"),
        frame("that claims 2^60 bytes", claims(1 << 60), "of at most a cluster"),
        frame("with a wrong checksum", spoiled, "zstd frame"),
        frame("that is cut off", [cut, vec![0xff; 600]].concat(), "zstd frame"),
        frame("that needs a dictionary", dictionary, "zstd frame"),
        frame("with a window of 2 TiB and too much in it", window, "zstd frame"),
        frame("of skippable frames", [skippable, vec![0; 512]].concat(), "zstd frame"),
        row("longer than it says", true, (zstd(&noise(1, 4096)), Some(1)), "zstd frame"),
    ];
    let laid = Spec { clusters: last(true, text(9, 4096)), ..Spec::packed(true) }.sized().lay();
    let cut = laid.bytes[..laid.bytes.len() - 5].to_vec();
    rows.push(
        Row::new("a zstd stream cut off by the end", cut, "zstd frame").at(laid.places[BAD]).when_decoded(),
    );
    rows
}

/// A frame that says that it holds so many bytes, and holds one block of 100.
fn claims(len: u64) -> Vec<u8> {
    // RFC 8878: a content size of 8 bytes behind the window.
    let frame = repeated(100, b'x');
    [&frame[..4], &[0xc0], &frame[5..6], &len.to_le_bytes(), &frame[6..]].concat()
}

fn elsewhere() -> Vec<Row> {
    let short = Spec { clusters: last(true, vec![7; 17]), ..Spec::packed(true) }.sized().lay();
    let short_at = short.places[BAD];
    let mut extended = Spec::extended(vec![Cluster::Hole; 100]);
    extended.clusters[50] = Cluster::Stream { stream: deflate(&[1; 99]), sectors: None, content: Vec::new() };
    extended.clusters[99] = Cluster::Packed(1);
    let extended = extended.sized().lay();
    let at = extended.places[50];
    let name = "a zlib stream that is short, with extended L2";
    let base = with_stream(false, vec![0xff; 99], None);
    let base_at = base.places[BAD];
    let make = move |folder: &std::path::Path| {
        std::fs::write(folder.join("base.qcow2"), &base.bytes).unwrap();
        let top = folder.join("top.qcow2");
        let spec = Spec { size: (CLUSTERS as u64) << 12, ..Spec::over(b"base.qcow2", "qcow2") };
        std::fs::write(&top, spec.lay().bytes).unwrap();
        top
    };
    vec![
        Row::new("a zstd stream of 17 bytes that ends the file", short.bytes, "gives less than a cluster")
            .at(short_at)
            .when_decoded(),
        Row::new(name, extended.bytes, "gives less than a cluster").at(at).when_decoded(),
        Row::made("a zlib stream of garbage in the base", Box::new(make), "is no deflate stream")
            .flags(&["--allow-backing", "images"])
            .in_file("base.qcow2")
            .at(base_at)
            .when_decoded(),
    ]
}

pub(super) fn rows() -> Vec<Row> {
    let all = [zlib(), zstandard(), elsewhere()].into_iter().flatten();
    all.map(|row| row.section("Compressed Clusters Descriptor")).collect()
}

#[test]
fn a_stream_that_is_not_exactly_one_cluster_is_refused_or_found() {
    check(rows());
}
