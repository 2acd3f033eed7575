//! The header and its extensions. Sections "Header" and "Header extensions".

use super::{Row, check};
use crate::build::{
    COMPRESSION_BIT, CORRUPT, Cluster, DATA_FILE, EXT_DATA_FILE, EXT_FEATURE_NAMES, EXT_LUKS, EXTENDED_L2,
    Laid, Spec,
};

const FAR: u64 = 1 << 40;

fn changed(name: impl Into<String>, change: impl FnOnce(&mut Laid), words: &'static str) -> Row {
    Row::new(name, Spec::default().lay().with(change).bytes, words)
}

fn field32(name: &str, at: u64, value: u32, words: &'static str) -> Row {
    changed(format!("{name} {value:#x}"), |laid| laid.put32(at, value), words).at(at)
}

fn field64(name: &str, at: u64, value: u64, words: &'static str) -> Row {
    changed(format!("{name} {value:#x}"), |laid| laid.put64(at, value), words).at(at)
}

fn fields() -> Vec<Row> {
    let mut rows = Vec::new();
    for version in [0, 1, 4, u32::MAX] {
        rows.push(field32("version", 4, version, "qcow version"));
    }
    for bits in [0, 8, 22, 31, 32, 63, 64, 85, u32::MAX] {
        rows.push(field32("cluster_bits", 20, bits, "cluster_bits"));
    }
    for size in [1 << 63, u64::MAX - 511, u64::MAX] {
        rows.push(field64("size", 24, size, "size (0x"));
    }
    for method in [1, 2, 3, u32::MAX] {
        rows.push(field32("crypt_method", 32, method, "encryption"));
    }
    for order in [7, 64, 200, 300, u32::MAX] {
        rows.push(field32("refcount_order", 96, order, "refcount_order"));
    }
    for len in [0, 72, 96, 103, 105, 109, 4104, u32::MAX - 7] {
        rows.push(field32("header_length", 100, len, "header_length"));
    }
    for bit in [5, 6, 31, 40, 63] {
        rows.push(field64("incompatible_features", 72, 1 << bit, "incompatible feature bits"));
    }
    rows.push(field64("incompatible_features", 72, CORRUPT, "marked as corrupt"));
    rows.push(field64("incompatible_features", 72, CORRUPT | 1, "marked as corrupt"));
    rows.push(field64("incompatible_features", 72, DATA_FILE, "an external data file"));
    rows
}

fn tables() -> Vec<Row> {
    let laid = Spec::default().lay();
    let (l1, refcounts, end) = (laid.l1, laid.refcounts, laid.end());
    let beyond = |name: &str, at, value: u64, words| {
        changed(format!("{name} {value:#x}"), |laid| laid.put64(at, value), words).at(value)
    };
    let mut rows = vec![
        field32("l1_size", 36, 0, "too small for the virtual size"),
        field32("l1_size", 36, (4 << 20) + 1, "more than 32 MiB"),
        field32("l1_size", 36, u32::MAX, "more than 32 MiB"),
        changed("l1_size across the end", |laid| laid.put32(36, 1 << 20), "the L1 table reaches beyond")
            .at(l1),
        changed("size one byte too large", |laid| laid.put64(24, (2 << 20) + 1), "too small for the virtual")
            .at(36),
        changed("size 2^63-1", |laid| laid.put64(24, (1 << 63) - 1), "too small for the virtual size").at(36),
        changed("size 2^62", |laid| laid.put64(24, 1 << 62), "too small for the virtual size").at(36),
        field64("l1_table_offset", 40, l1 + 512, "middle of a cluster"),
        field64("l1_table_offset", 40, l1 + 1, "middle of a cluster"),
        field64("l1_table_offset", 40, 0, "points to the header"),
        beyond("l1_table_offset", 40, FAR, "the L1 table reaches beyond the file's end"),
        beyond("l1_table_offset", 40, end, "the L1 table reaches beyond the file's end"),
        beyond("l1_table_offset", 40, u64::MAX - 4095, "the L1 table reaches beyond the file's end"),
        beyond("l1_table_offset", 40, refcounts, "the L1 table lies on the refcount table"),
        field64("refcount_table_offset", 48, refcounts + 512, "middle of a cluster"),
        field64("refcount_table_offset", 48, 0, "points to the header"),
        beyond("refcount_table_offset", 48, FAR, "the refcount table reaches beyond the file's end"),
        field64("refcount_table_offset", 48, u64::MAX - 4095, "does not leave room"),
        field32("refcount_table_clusters", 56, 0, "is 0"),
        field32("refcount_table_clusters", 56, 2049, "more than 8 MiB"),
        field32("refcount_table_clusters", 56, u32::MAX, "more than 8 MiB"),
        changed(
            "refcount table across the end",
            |laid| laid.put32(56, 2048),
            "the refcount table reaches beyond",
        )
        .at(refcounts),
        changed("refcount table over the L1 table", |laid| laid.put32(56, 8), "lies on the refcount table")
            .at(l1),
        field32("nb_snapshots", 60, 65537, "more than 65536"),
        field32("nb_snapshots", 60, u32::MAX, "more than 65536"),
        changed("snapshots at 0", |laid| laid.put32(60, 1), "points to the header").at(64),
    ];
    let snapshots = Spec { snapshots: 2, ..Spec::default() }.lay();
    let at = snapshots.snapshots;
    let mut snapshot = |name: &str, change: &dyn Fn(&mut Laid), words, at| {
        rows.push(Row::new(name, snapshots.clone().with(change).bytes, words).at(at));
    };
    snapshot("snapshots unaligned", &|laid| laid.put64(64, at + 8), "middle of a cluster", 64);
    snapshot(
        "snapshots beyond the end",
        &|laid| laid.put64(64, FAR),
        "the snapshot table reaches beyond",
        FAR,
    );
    snapshot(
        "snapshots across the end",
        &|laid| laid.put32(60, 65536),
        "the snapshot table reaches beyond",
        at,
    );
    snapshot(
        "snapshots that wrap",
        &|laid| laid.put64(64, u64::MAX - 4095),
        "the snapshot table reaches beyond",
        u64::MAX - 4095,
    );
    rows
}

fn cut_off() -> Vec<Row> {
    let laid = Spec::default().lay();
    let short = |len: usize| {
        Row::new(
            format!("cut off after {len} bytes"),
            laid.bytes[..len].to_vec(),
            "the header reaches beyond",
        )
        .at(0)
    };
    [4, 5, 8, 71, 72, 103, 104, 111].map(short).into()
}

fn features() -> Vec<Row> {
    let packed = |bits: u64, kind: u8, len: u32| {
        let change = |laid: &mut Laid| {
            laid.put64(72, bits);
            laid.put32(100, len);
            laid.put(104, &[kind]);
        };
        Spec::default().lay().with(change).bytes
    };
    let extended =
        |bits| Spec::of_clusters(bits, vec![Cluster::Data(1)]).with(|spec| spec.incompatible = EXTENDED_L2);
    vec![
        Row::new("compression bit, type 0", packed(COMPRESSION_BIT, 0, 112), "no compression type").at(72),
        Row::new("compression bit, no field", packed(COMPRESSION_BIT, 0, 104), "no compression type").at(72),
        Row::new("compression type 1, no bit", packed(0, 1, 112), "without its incompatible").at(104),
        Row::new("compression type 2, no bit", packed(0, 2, 112), "without its incompatible").at(104),
        Row::new("compression type 2", packed(COMPRESSION_BIT, 2, 112), "no compression that is known")
            .at(104),
        Row::new("compression type 255", packed(COMPRESSION_BIT, 255, 112), "no compression that is known")
            .at(104),
        Row::new("extended L2, clusters of 4 KiB", extended(12).lay().bytes, "less than 14").at(20),
        Row::new("extended L2, clusters of 8 KiB", extended(13).lay().bytes, "less than 14").at(20),
    ]
}

fn extensions() -> Vec<Row> {
    let with = |kind: u32, len: u32| {
        Spec { extensions: vec![(kind, vec![0; 16])], ..Spec::default() }
            .lay()
            .with(|laid| laid.put32(116, len))
    };
    let mut rows = Vec::new();
    for len in [1 << 31, u32::MAX, u32::MAX - 7, 4096, 4096 - 119] {
        for (name, kind) in [("unknown", 0x1234_5678), ("feature names", EXT_FEATURE_NAMES)] {
            let name = format!("an extension ({name}) of {len:#x} bytes");
            rows.push(Row::new(name, with(kind, len).bytes, "extension length").at(116));
        }
    }
    let version_2 = Spec { extensions: vec![(0x1234_5678, vec![0; 16])], ..Spec::version_2() };
    let version_2 = version_2.lay().with(|laid| laid.put32(76, 4096));
    rows.push(Row::new("an extension of version 2 that leaves", version_2.bytes, "extension length").at(76));
    let data = |bits| {
        let extensions = vec![(EXT_DATA_FILE, b"data.raw".to_vec())];
        Spec { extensions, incompatible: bits, ..Spec::default() }.lay().bytes
    };
    rows.push(Row::new("a data file's name and bit", data(DATA_FILE), "an external data file").at(72));
    rows.push(Row::new("a data file's name alone", data(0), "an external data file").at(112));
    let allowed =
        Row::new("a data file in an allowed folder", data(DATA_FILE), "an external data file").at(72);
    rows.push(allowed.flags(&["--allow-backing", "images"]));
    let luks = Spec { extensions: vec![(EXT_LUKS, vec![0; 16])], ..Spec::default() }.lay();
    rows.push(
        Row::new("LUKS with its header", luks.with(|laid| laid.put32(32, 2)).bytes, "encryption").at(32),
    );
    rows
}

fn backing_names() -> Vec<Row> {
    // The extension with the format takes 16 bytes behind the header's 112, and 8 more end them.
    let over = || Spec::over(b"base.raw", "raw").lay();
    let field = |name: &str, change: &dyn Fn(&mut Laid), words, at| {
        Row::new(format!("a backing name {name}"), over().with(change).bytes, words).at(at)
    };
    vec![
        field("of 1024 bytes", &|laid| laid.put32(16, 1024), "more than 1023", 16),
        field("of 2^32-1 bytes", &|laid| laid.put32(16, u32::MAX), "more than 1023", 16),
        field("at 64, on the header", &|laid| laid.put64(8, 64), "on the header's fields", 8),
        field("at 111, on the header", &|laid| laid.put64(8, 111), "on the header's fields", 8),
        field("at 4096", &|laid| laid.put64(8, 4096), "leaves the header cluster", 8),
        field("across the cluster", &|laid| laid.put64(8, 4089), "leaves the header cluster", 8),
        field("at 2^64-1", &|laid| laid.put64(8, u64::MAX), "leaves the header cluster", 8),
        field("under an extension", &|laid| laid.put32(116, 25), "extension length", 116),
        field("on the format", &|laid| laid.put64(8, 121), "extension length", 116),
    ]
}

pub(super) fn rows() -> Vec<Row> {
    let fields = [fields(), features(), backing_names(), cut_off()].into_iter().flatten();
    let fields = fields.map(|row| match row.words {
        "extension length" => row.section("Header extensions"),
        _ => row.section("Header"),
    });
    let tables = tables().into_iter().map(|row| match row.words {
        words if words.contains("the refcount table reaches") => row.section("Host cluster management"),
        words if words.contains("the snapshot table reaches") => row.section("Snapshots"),
        _ => row.section("Header"),
    });
    fields.chain(tables).chain(extensions()).collect()
}

#[test]
fn a_header_that_lies_is_refused() {
    check(rows());
}
