//! The L1 table, the L2 tables and where clusters lie. Section "Cluster mapping".

use super::{Row, check};
use crate::build::{COMPRESSED, COPIED, Cluster, Laid, Spec};

/// The highest offset that an entry can say, for clusters of 4 KiB.
const WILD: u64 = 0x00ff_ffff_ffff_f000;

/// The entry at `at` says `value`.
fn entry(name: impl Into<String>, laid: &Laid, (at, value): (u64, u64), words: &'static str) -> Row {
    Row::new(name, laid.clone().with(|laid| laid.put64(at, value)).bytes, words).at(at)
}

/// The same where what the entry points to is the place that is told.
fn place(name: impl Into<String>, laid: &Laid, (at, value): (u64, u64), words: &'static str) -> Row {
    entry(name, laid, (at, value), words).at(value & WILD).names([at])
}

fn l1() -> Vec<Row> {
    let laid = Spec::default().lay();
    let (l1, l2, end) = (laid.l1, laid.l2[0], laid.end());
    let mut rows: Vec<_> = [0, 1, 4, 8, 56, 59, 62]
        .map(|bit| entry(format!("L1 entry, reserved bit {bit}"), &laid, (l1, l2 | 1 << bit), "L1 entry 0x"))
        .into();
    rows.extend([
        entry("L2 table unaligned", &laid, (l1, (l2 + 512) | COPIED), "middle of a cluster"),
        place(
            "L2 table behind the end",
            &laid,
            (l1, end | COPIED),
            "an L2 table reaches beyond the file's end",
        ),
        place("L2 table far away", &laid, (l1, WILD), "an L2 table reaches beyond the file's end"),
        place("L2 table on the L1 table", &laid, (l1, l1 | COPIED), "an L2 table lies on the L1 table"),
        place(
            "L2 table on the refcount table",
            &laid,
            (l1, laid.refcounts | COPIED),
            "lies on the refcount table",
        ),
    ]);
    let cut = laid.clone().with(|laid| {
        laid.bytes.resize(laid.bytes.len() + 4095, 0);
        laid.put64(l1, end | COPIED);
    });
    rows.push(Row::new("L2 table across the end", cut.bytes, "an L2 table reaches beyond").at(end));
    let small = Spec::of_clusters(9, (1..=130).map(Cluster::Data).collect()).lay();
    let last = (small.l1 + 16, small.l2[0] | COPIED);
    rows.push(entry("one L2 table for two entries", &small, last, "another entry points to"));
    let last = (small.l1 + 16, small.l2[2] | 1 << 57 | COPIED);
    rows.push(entry("the last L1 entry, a reserved bit", &small, last, "L1 entry 0x"));
    rows
}

fn l2() -> Vec<Row> {
    let laid = Spec::default().lay();
    let (l2, data, end) = (laid.l2[0], laid.places[0], laid.end());
    let mut rows: Vec<_> = [1, 2, 5, 8, 56, 60, 61]
        .map(|bit| {
            entry(format!("L2 entry, reserved bit {bit}"), &laid, (l2, data | 1 << bit), "L2 entry 0x")
        })
        .into();
    let old = Spec::version_2().lay();
    let wrong = (old.l2[0], old.places[0] | COPIED | 1);
    rows.push(entry("L2 entry, bit 0 in version 2", &old, wrong, "has reserved bits set"));
    let last = laid.entry_at(16);
    rows.push(entry(
        "the last L2 entry, a reserved bit",
        &laid,
        (last, data | 1 << 58),
        "has reserved bits set",
    ));
    rows.extend([
        entry("cluster unaligned", &laid, (l2, (data + 512) | COPIED), "middle of a cluster"),
        entry("zero cluster unaligned", &laid, (l2, (data + 512) | COPIED | 1), "middle of a cluster"),
        place(
            "cluster behind the end",
            &laid,
            (l2, end | COPIED),
            "a data cluster reaches beyond the file's end",
        ),
        place("cluster far away", &laid, (l2, WILD | COPIED), "a data cluster reaches beyond the file's end"),
        place("cluster on the L1 table", &laid, (l2, laid.l1 | COPIED), "lies on the L1 table"),
        place("cluster on its L2 table", &laid, (l2, l2 | COPIED), "lies on an L2 table"),
        place(
            "cluster on the refcount table",
            &laid,
            (l2, laid.refcounts | COPIED),
            "lies on the refcount table",
        ),
    ]);
    // Neighbours in the disk that are neighbours in the file: only the second lies wrong.
    let run = laid.clone().with(|laid| {
        laid.put64(l2 + 8 * 14, (laid.l1 - 4096) | COPIED);
        laid.put64(l2 + 8 * 15, laid.l1 | COPIED);
    });
    rows.push(Row::new("a run into the L1 table", run.bytes, "lies on the L1 table").at(laid.l1));
    let cut = |len: u64| {
        let mut bytes = laid.bytes.clone();
        bytes.truncate(bytes.len() - usize::try_from(len).unwrap());
        bytes
    };
    let last = laid.places[16];
    let words = "a data cluster reaches beyond the file's end";
    rows.push(Row::new("cut off in the last cluster", cut(2049), words).at(last));
    rows.push(Row::new("cut off before the last cluster", cut(4096), words).at(last));
    assert_eq!((last, end), (laid.places[15] + 4096, last + 4096));
    rows
}

fn cut_off_in_tables() -> Vec<Row> {
    let laid = Spec::default().lay();
    let cut =
        |name, end: u64, words| Row::new(name, laid.bytes[..usize::try_from(end).unwrap()].to_vec(), words);
    vec![
        cut("cut off in an L2 table", laid.l2[0] + 4095, "an L2 table reaches beyond").at(laid.l2[0]),
        cut("cut off before an L2 table", laid.l2[0], "an L2 table reaches beyond").at(laid.l2[0]),
        cut("cut off in the L1 table", laid.l1 + 7, "the L1 table reaches beyond").at(laid.l1),
        cut("cut off in the refcount table", laid.refcounts + 4095, "the refcount table reaches")
            .at(laid.refcounts),
    ]
}

fn extended() -> Vec<Row> {
    use Cluster::{Data, Sub, Zero};
    let sub = Sub { seed: 2, data: 0xff00, zero: 0xff };
    let laid = Spec::extended(vec![Data(1), sub, Zero, Data(3)]).lay();
    let (l2, data) = (laid.l2[0], laid.places[0]);
    let bitmap = |name, number: u64, value: u64, words| {
        let change = |laid: &mut Laid| laid.put64(l2 + number * 16 + 8, value);
        Row::new(name, laid.clone().with(change).bytes, words).at(l2 + number * 16)
    };
    let packed = Spec { clusters: vec![Cluster::Packed(1)], ..Spec::extended(Vec::new()) }.sized().lay();
    let packed_at = packed.l2[0];
    let packed = packed.with(|laid| laid.put64(packed_at + 8, 1));
    let short = Spec::extended(vec![Sub { seed: 2, data: 0x8000_0001, zero: 0 }]).lay();
    let short_at = short.places[0];
    let short = short.bytes[..short.bytes.len() - 1].to_vec();
    vec![
        entry("extended L2 entry, bit 0", &laid, (l2, data | COPIED | 1), "has reserved bits set"),
        bitmap("a subcluster that is data and zero", 1, 1 << 32 | 1, "data and zero"),
        bitmap("all subclusters data and zero", 0, u64::MAX, "data and zero"),
        bitmap("a subcluster without a cluster", 2, 1, "gives no cluster"),
        entry("all subclusters without a cluster", &laid, (l2, 0), "gives no cluster"),
        entry("extended L2 entry unaligned", &laid, (l2, (data + 4096) | COPIED), "middle of a cluster"),
        Row::new("a compressed cluster with subclusters", packed.bytes, "has reserved bits set")
            .at(packed_at),
        Row::new("cut off in a subcluster", short, "a data cluster reaches beyond").at(short_at),
    ]
}

fn compressed() -> Vec<Row> {
    let mut rows = Vec::new();
    for (kind, zstd) in [("zlib", false), ("zstd", true)] {
        let laid = Spec::packed(zstd).lay();
        let l2 = laid.l2[0];
        let place = |name: &str, at: u64, words| {
            let says = (l2, laid.packed_entry(at, 0));
            entry(format!("a {kind} cluster {name}"), &laid, says, words).at(at).names([l2])
        };
        let end = laid.bytes.len() as u64;
        rows.extend([
            place("at the end", end, "a compressed cluster reaches beyond the file's end"),
            place("far away", 1 << 50, "a compressed cluster reaches beyond the file's end"),
            place("on the header", 5, "a compressed cluster lies on the header"),
            place("on the L1 table", laid.l1 + 1, "a compressed cluster lies on the L1 table"),
            place("on its L2 table", l2 + 100, "a compressed cluster lies on an L2 table"),
            place("on the refcount table", laid.refcounts + 1, "lies on the refcount table"),
        ]);
    }
    let laid = Spec::default().lay();
    // No compression is known that such a bit could mean: what it says is an offset.
    let wrong = (laid.l2[0], COMPRESSED | ((1 << 58) - 1));
    rows.push(
        entry("all bits of a compressed entry", &laid, wrong, "a compressed cluster reaches beyond")
            .at((1 << 58) - 1),
    );
    rows
}

pub(super) fn rows() -> Vec<Row> {
    let of = |rows: Vec<Row>, entry: &'static str, cluster: &'static str| {
        rows.into_iter().map(move |row| match row.words {
            words if words.contains("reaches beyond") || words.contains("lies on") => row.section(cluster),
            "data and zero" | "gives no cluster" => row.section("Extended L2 Entries"),
            _ => row.section(entry),
        })
    };
    let rows = of(l1(), "L1 table entry", "L1 table entry");
    let rows = rows.chain(of(l2(), "L2 table entry", "Standard Cluster Descriptor"));
    let rows = rows.chain(of(extended(), "L2 table entry", "Standard Cluster Descriptor"));
    let rows = rows.chain(of(compressed(), "L2 table entry", "Compressed Clusters Descriptor"));
    rows.chain(cut_off_in_tables()).collect()
}

#[test]
fn a_table_that_points_somewhere_wrong_is_refused() {
    check(rows());
}
