//! Two entries with the same bytes of the file. Sections "L2 table entry" and "Compressed Clusters Descriptor".

use super::{Row, check};
use crate::build::{COPIED, Cluster, Laid, Spec, noise, stored};

/// The entry of one cluster says what `value` gives, and so shares the bytes at `at` with that of another cluster.
fn shared(
    name: impl Into<String>,
    laid: &Laid,
    (changed, value): (usize, u64),
    (other, at): (usize, u64),
) -> Row {
    let changed_at = laid.entry_at(changed);
    let bytes = laid.clone().with(|laid| laid.put64(changed_at, value)).bytes;
    Row::new(name, bytes, "both lie here").at(at).names([changed_at, laid.entry_at(other)])
}

/// Two entries of plain clusters.
fn plain() -> Vec<Row> {
    let laid = Spec::default().lay();
    let (data, zero) = (laid.places[3], laid.places[14]);
    let old = Spec::version_2().lay();
    let mut rows = vec![
        shared("data twice", &laid, (7, data | COPIED), (3, data)),
        shared("data twice, not copied", &laid, (7, data), (3, data)),
        shared("data twice, version 2", &old, (7, old.places[3] | COPIED), (3, old.places[3])),
        shared("the last cluster, which is a half", &laid, (16, data | COPIED), (3, data)),
        shared("data where a zero cluster has its place", &laid, (7, zero | COPIED), (14, zero)),
        shared("a zero cluster that has the place of data", &laid, (12, data | COPIED | 1), (3, data)),
        shared("two zero clusters in one place", &laid, (12, zero | COPIED | 1), (14, zero)),
    ];
    for bits in [9, 16, 21] {
        let laid = Spec::of_clusters(bits, vec![Cluster::Data(1), Cluster::Hole, Cluster::Data(2)]).lay();
        let data = laid.places[0];
        rows.push(shared(format!("clusters of {} bytes, twice", 1 << bits), &laid, (2, data), (0, data)));
    }
    let small = Spec::of_clusters(9, (1..=130).map(Cluster::Data).collect()).lay();
    let data = small.places[3];
    rows.push(shared("data twice, by two tables", &small, (100, data | COPIED), (3, data)));
    let sub = |data: u32| Cluster::Sub { seed: 2, data, zero: 0 };
    let extended = Spec::extended(vec![sub(0xffff), sub(0xffff_0000), Cluster::Data(1)]).lay();
    let data = extended.places[0];
    rows.push(shared("two halves of one cluster", &extended, (1, data | COPIED), (0, data)));
    rows.push(shared("data where subclusters are", &extended, (2, data | COPIED), (0, data)));
    rows
}

/// A stream and something else.
fn streams() -> Vec<Row> {
    let laid = Spec::packed(false).lay();
    let (first, data) = (laid.places[0], laid.places[2]);
    let entry = |at, more_sectors| laid.packed_entry(at, more_sectors);
    let mut rows = vec![
        shared("a stream at a cluster's beginning", &laid, (0, entry(data, 0)), (2, data)),
        shared("a stream within a cluster", &laid, (0, entry(data + 100, 0)), (2, data + 100)),
        shared("a stream at a cluster's end", &laid, (5, entry(data + 4095, 0)), (2, data + 4095)),
        shared("a cluster around streams", &laid, (2, (first / 4096 * 4096) | COPIED), (0, first)),
        shared("one stream twice", &laid, (4, entry(first, 0)), (0, first)),
        shared("one stream twice, of other lengths", &laid, (4, entry(first, 3)), (0, first)),
    ];
    let zstd = Spec::packed(true).lay();
    let first = zstd.places[0];
    rows.push(shared("one zstd stream twice", &zstd, (4, zstd.packed_entry(first, 0)), (0, first)));
    rows.push(shared(
        "a zstd stream within a cluster",
        &zstd,
        (0, zstd.packed_entry(zstd.places[2] + 9, 0)),
        (2, zstd.places[2] + 9),
    ));
    // One that needs every byte that it says, and is longer than a cluster: it reaches into the next.
    let content = noise(3, 4096);
    let mut spec = Spec::packed(false);
    spec.clusters.push(Cluster::Stream { stream: stored(&content), sectors: None, content });
    let long = spec.sized().lay().with(|laid| _ = laid.grow(4096));
    let stream = long.places[6];
    let next = stream.next_multiple_of(4096);
    rows.extend([
        shared(
            "a stream within another",
            &long,
            (0, long.packed_entry(stream + 2048, 0)),
            (6, stream + 2048),
        ),
        shared("a stream that reaches into a cluster", &long, (2, next | COPIED), (6, next)),
    ]);
    rows
}

/// Tables.
fn tables() -> Vec<Row> {
    let small = Spec::of_clusters(9, (1..=130).map(Cluster::Data).collect()).lay();
    let (entry, table) = (small.entry_at(3), small.l2[2]);
    let data = small.clone().with(|laid| laid.put64(entry, table | COPIED));
    let stream = small.clone().with(|laid| laid.put64(entry, laid.packed_entry(table + 7, 0)));
    let twice = small.clone().with(|laid| laid.put64(laid.l1 + 16, laid.l2[0] | COPIED));
    // The bytes of a stored block, of which the most are those of the table that follows.
    let before = Spec::packed(false).lay().with(|laid| {
        let at = laid.grow(8192) + 4096;
        let entries = laid.bytes[usize::try_from(laid.l2[0]).unwrap()..][..4096].to_vec();
        laid.put(at, &entries);
        laid.put(at - 512, &stored(&noise(3, 4096))[..512]);
        laid.put64(at, laid.packed_entry(at - 512, 8));
        laid.put64(laid.l1, at | COPIED);
        laid.l2[0] = at;
    });
    let table_behind = before.l2[0];
    vec![
        Row::new("data on another L2 table", data.bytes, "a data cluster lies on an L2 table")
            .at(table)
            .names([entry])
            .section("Standard Cluster Descriptor"),
        Row::new("a stream on another L2 table", stream.bytes, "a compressed cluster lies on an L2 table")
            .at(table + 7)
            .names([entry])
            .section("Compressed Clusters Descriptor"),
        Row::new(
            "a stream that reaches into a table",
            before.bytes,
            "a compressed cluster lies on an L2 table",
        )
        .at(table_behind)
        .names([table_behind])
        .section("Compressed Clusters Descriptor"),
        Row::new("one L2 table, and who has it first", twice.bytes, "another entry points to, that at")
            .at(small.l1 + 16)
            .names([small.l1])
            .section("L1 table entry"),
    ]
}

pub(super) fn rows() -> Vec<Row> {
    let shared = plain().into_iter().chain(streams()).map(|row| row.section("L2 table entry"));
    shared.chain(tables()).collect()
}

#[test]
fn what_two_entries_have_is_refused() {
    check(rows());
}
