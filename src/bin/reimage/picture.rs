//! Pictures for a terminal: where an image has its data, and where the partitions of a disk lie.

use std::fmt::Write as _;
use std::path::Path;

use reimage::{Cell, DiskLayout, Inspection, Partition, Signature, TableKind};

use crate::output;
use crate::show::{self, Lines, bytes, clean_name, exact};

/// The characters that a picture is drawn with.
#[derive(Clone, Copy)]
struct Brush {
    data: char,
    compressed: char,
    partly: char,
    zero: char,
    partition: char,
    left: char,
    right: char,
}

const UNICODE: Brush =
    Brush {
        data: '▓', compressed: '▒', partly: '░', zero: '·', partition: '█', left: '▕', right: '▏'
    };
const ASCII: Brush =
    Brush { data: '#', compressed: '+', partly: '-', zero: '.', partition: '#', left: '[', right: ']' };

/// Everything that `inspect` shows.
pub(crate) fn inspection(inspection: &Inspection) -> String {
    let mut lines = Lines::default();
    for (depth, layer) in inspection.image.chain.iter().enumerate() {
        let name = if depth == 0 { "image" } else { "backed by" };
        let path = show::clean_path(&layer.path);
        let mut words = vec![layer.format.to_owned()];
        words.extend(layer.version.map(|version| format!("version {version}")));
        words.extend(layer.cluster_size.map(|size| format!("clusters of {}", bytes(size))));
        words.extend(layer.compression.map(str::to_owned));
        words.extend(layer.extended_l2.filter(|extended| *extended).map(|_| "subclusters".to_owned()));
        lines.add(name, format!("{path} ({})", words.join(", ")));
        lines.add(
            "",
            format!("a file of {}, a disk of {}", exact(layer.file_size), exact(layer.virtual_size)),
        );
    }
    inspection.manifest.iter().for_each(|used| lines.block(&show::manifest_used(used)));
    let brush = brush();
    lines.block("\n");
    lines.block(&map(&inspection.picture, brush, output::columns()));
    let content = &inspection.content;
    let kinds = [
        (brush.data, "data", content.data_bytes),
        (brush.compressed, "compressed", content.compressed_bytes),
        (brush.zero, "zero", content.zero_bytes),
    ];
    let kinds: Vec<_> =
        kinds.iter().map(|(mark, name, len)| format!("{mark} {name} {}", bytes(*len))).collect();
    let partly = format!("{} partly zero", brush.partly);
    let cell = inspection.picture.first().map_or(0, |cell| cell.range.len());
    lines.block(&format!("{}   {partly}   a cell is {}\n", kinds.join("   "), bytes(cell)));
    let len = inspection.image.virtual_size;
    lines.block(&partitions(&inspection.layout, Some(len)));
    lines.into_text()
}

/// One line: which part of the disk is of which kind.
fn map(cells: &[Cell], brush: Brush, columns: usize) -> String {
    // As many neighbours share a column as it takes to fit.
    let share = cells.len().div_ceil(columns.saturating_sub(2).max(1)).max(1);
    let drawn: String = cells.chunks(share).map(|cells| mark(cells, brush)).collect();
    format!("{}{drawn}{}\n", brush.left, brush.right)
}

fn mark(cells: &[Cell], brush: Brush) -> char {
    let sum = |of: fn(&Cell) -> u64| cells.iter().map(of).sum::<u64>();
    let (data, compressed) = (sum(|cell| cell.data_bytes), sum(|cell| cell.compressed_bytes));
    match data + compressed {
        0 => brush.zero,
        stored if stored < sum(|cell| cell.range.len()) => brush.partly,
        _ if compressed > data => brush.compressed,
        _ => brush.data,
    }
}

/// The partition table, each partition with its place on the disk; `len` is the disk's where it is known.
pub(crate) fn partitions(layout: &DiskLayout, len: Option<u64>) -> String {
    let Some(table) = table(layout) else {
        return format!("\nno partition table; on the disk itself: {}\n", bare_content(layout));
    };
    let sectors = layout.sector_size.map(|size| format!(", sectors of {size} bytes")).unwrap_or_default();
    let rows: Vec<_> = layout.partitions.iter().map(row).collect();
    let header = ["#", "start", "size", "type", "content"].map(str::to_owned);
    let columns = Columns::of([&header].into_iter().chain(&rows), brush(), output::columns());
    let len = len.or_else(|| layout.partitions.iter().map(|partition| partition.range.end()).max());
    let bars = layout.partitions.iter().map(|partition| columns.bar(partition, len.unwrap_or(0)));
    let lines = [&header].into_iter().chain(&rows).zip([String::new()].into_iter().chain(bars));
    let lines: String = lines.map(|(row, bar)| columns.line(row, &bar)).collect();
    format!("\n{table}{sectors}\n{lines}")
}

/// How many partitions of a disk a small picture shows.
const MOST_SHOWN: usize = 7;

/// Two small pictures of the system disk: what is on it now, and what will be; `None` where there is no disk yet.
pub(crate) fn before_and_after(
    before: Option<&DiskLayout>,
    (after, size): (&DiskLayout, u64),
    size_before: u64,
) -> String {
    drawn(before.map(|before| (before, size_before)), (after, size), brush(), output::columns())
}

fn drawn(
    before: Option<(&DiskLayout, u64)>,
    after: (&DiskLayout, u64),
    brush: Brush,
    columns: usize,
) -> String {
    let disks = [("now", before), ("then", Some(after))];
    let rows_of = |(layout, _): &(&DiskLayout, u64)| -> Vec<[String; 4]> {
        layout.partitions.iter().take(MOST_SHOWN).map(small_row).collect()
    };
    let rows = disks.map(|(_, disk)| disk.as_ref().map(rows_of).unwrap_or_default());
    // The same columns for both, so that one can be read against the other.
    let columns = Columns::of(rows.iter().flatten(), brush, columns);
    let mut lines = Lines::default();
    for ((name, disk), rows) in disks.into_iter().zip(&rows) {
        let Some((layout, size)) = disk else {
            lines.add(name, "no disk yet");
            continue;
        };
        let holds = table(layout).unwrap_or_else(|| bare_content(layout));
        lines.add(name, format!("{}: {holds}", bytes(size)));
        for (row, partition) in rows.iter().zip(&layout.partitions) {
            lines.block(&columns.line(row, &columns.bar(partition, size)));
        }
        match layout.partitions.len().saturating_sub(MOST_SHOWN) {
            0 => {}
            more => lines.block(&format!("  and {more} more\n")),
        }
    }
    lines.into_text()
}

/// What is said of a data disk in a plan.
pub(crate) fn untouched(path: &Path, size: u64) -> String {
    format!("{} ({}): not touched, read at most", show::clean_path(path), bytes(size))
}

/// The widths of a table's columns, of which the last two are text and the others numbers, and a bar.
struct Columns<const N: usize> {
    widths: [usize; N],
    bar: usize,
    brush: Brush,
}

impl<const N: usize> Columns<N> {
    fn of<'a>(rows: impl Iterator<Item = &'a [String; N]>, brush: Brush, columns: usize) -> Self {
        let mut widths = [0; N];
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        let used = widths.iter().map(|width| width + 2).sum::<usize>() + 2;
        Self { widths, bar: columns.saturating_sub(used).min(40), brush }
    }

    fn line(&self, row: &[String; N], bar: &str) -> String {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(self.widths).enumerate() {
            // Writing to a string does not fail.
            let _ = match column + 2 < N {
                true => write!(line, "{cell:>width$}  "),
                false => write!(line, "{cell:<width$}  "),
            };
        }
        line.push_str(bar);
        format!("{}\n", line.trim_end())
    }

    /// Where a partition lies on its disk; empty where there is no room to see it.
    fn bar(&self, partition: &Partition, len: u64) -> String {
        if self.bar < 12 || len == 0 {
            return String::new();
        }
        let (brush, cells) = (self.brush, self.bar - 2);
        let scaled = |offset: u64| u128::from(offset.min(len)) * cells as u128;
        let place = |cell: u128| usize::try_from(cell).expect("a place is within the bar");
        // Rounded outwards: however small it is, it is somewhere.
        let start = place(scaled(partition.range.start()) / u128::from(len)).min(cells - 1);
        let end = place(scaled(partition.range.end()).div_ceil(u128::from(len)));
        let mark = |at: usize| if (start..end).contains(&at) { brush.partition } else { brush.zero };
        let drawn: String = (0..cells).map(mark).collect();
        format!("{}{drawn}{}", brush.left, brush.right)
    }
}

/// A partition table and its id.
fn table(layout: &DiskLayout) -> Option<String> {
    let table = match layout.table? {
        TableKind::Gpt => "GPT",
        TableKind::Dos => "MBR",
        _ => "partition table",
    };
    let id = layout.id.as_deref().map(|id| format!(" {id}")).unwrap_or_default();
    Some(format!("{table}{id}"))
}

fn bare_content(layout: &DiskLayout) -> String {
    layout.file_system.as_ref().map_or_else(|| "nothing known".to_owned(), content)
}

fn row(partition: &Partition) -> [String; 5] {
    let range = partition.range;
    let content = partition.file_system.as_ref().map_or_else(|| "-".to_owned(), content);
    [partition.number.to_string(), bytes(range.start()), bytes(range.len()), kind(partition), content]
}

/// The same without its place, and cut so that a bar fits behind it in 80 columns.
fn small_row(partition: &Partition) -> [String; 4] {
    let [number, _, size, kind, content] = row(partition);
    // Indented below the name of the picture.
    [format!("  {number}"), size, cut(&kind, 20), cut(&content, 25)]
}

fn kind(partition: &Partition) -> String {
    partition.type_name.map_or_else(|| clean_name(&partition.type_id), str::to_owned)
}

/// At most `most` letters of a text, the last three of them dots where it is longer.
fn cut(text: &str, most: usize) -> String {
    match text.chars().count() > most {
        true => text.chars().take(most - 3).chain("...".chars()).collect(),
        false => text.to_owned(),
    }
}

fn content(found: &Signature) -> String {
    match &found.label {
        Some(label) => format!("{} \"{}\"", found.kind, clean_name(label)),
        None => found.kind.to_owned(),
    }
}

fn brush() -> Brush {
    if output::speaks_utf8() { UNICODE } else { ASCII }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use reimage::{ImageOptions, Preflight};

    use super::*;

    const MIB: u64 = 1024 * 1024;

    /// What the library says of a disk that holds these bytes at these offsets.
    fn layout(len: u64, fields: &[(u64, &[u8])]) -> DiskLayout {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        let file = File::create(&path).unwrap();
        file.set_len(len).unwrap();
        fields.iter().for_each(|(at, bytes)| file.write_all_at(bytes, *at).unwrap());
        reimage::inspect(&path, &ImageOptions::default(), Preflight::Tables, &()).unwrap().layout
    }

    /// An MBR with the id 00c0ffee and primary partitions of (type, start, length), these in mebibytes.
    fn mbr(records: &[(u8, u32, u32)]) -> Vec<u8> {
        let mut sector = vec![0; 512];
        sector[440..444].copy_from_slice(&[0xee, 0xff, 0xc0, 0]);
        for (record, (type_byte, start, len)) in sector[446..].chunks_exact_mut(16).zip(records) {
            record[4] = *type_byte;
            record[8..12].copy_from_slice(&(start * 2048).to_le_bytes());
            record[12..16].copy_from_slice(&(len * 2048).to_le_bytes());
        }
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        sector
    }

    #[track_caller]
    fn check(before: Option<(&DiskLayout, u64)>, after: (&DiskLayout, u64), expected: &str) {
        let text = drawn(before, after, ASCII, 80);
        assert_eq!(text, expected, "\n{text}");
        assert!(text.lines().all(|line| line.len() <= 80));
    }

    #[test]
    fn both_pictures_have_the_same_columns_and_each_its_own_scale() {
        let label = |name: &[u8]| [&[0x53, 0xef][..], &[0; 62], name].concat();
        let (old, new) = (label(b"old"), label(b"cloudimg-rootfs"));
        let old = [(0, &mbr(&[(0x83, 1, 1023), (0x82, 1024, 1024)])[..]), (MIB + 1080, &old)];
        let old = layout(2048 * MIB, &old);
        let new = [(0, &mbr(&[(0xef, 1, 100), (0x83, 101, 411)])[..]), (101 * MIB + 1080, &new)];
        let new = layout(512 * MIB, &new);
        let expected = "\
now         2 GiB: MBR 00c0ffee
  1  1023 MiB  Linux       ext2 \"old\"              [#############............]
  2     1 GiB  Linux swap  -                       [............#############]
then        4 GiB: MBR 00c0ffee
  1   100 MiB  EFI system  -                       [#........................]
  2   411 MiB  Linux       ext2 \"cloudimg-rootfs\"  [####.....................]
";
        check(Some((&old, 2048 * MIB)), (&new, 4096 * MIB), expected);
    }

    #[test]
    fn a_disk_that_is_not_there_yet_and_one_without_a_table_are_said_to_be_so() {
        let swap = layout(MIB, &[(4086, b"SWAPSPACE2"), (1052, b"a\x1b[2Jb")]);
        check(None, (&swap, MIB), "now         no disk yet\nthen        1 MiB: swap \"a\\u{1b}[2Jb\"\n");
        let empty = layout(MIB, &[]);
        let expected = "now         1 MiB: nothing known\nthen        1.5 MiB: nothing known\n";
        check(Some((&empty, MIB)), (&empty, MIB + MIB / 2), expected);
    }

    #[test]
    fn many_partitions_and_long_labels_are_cut() {
        // A chain of logical partitions, one in each mebibyte, and a label that btrfs allows.
        let mut sectors: Vec<(u64, Vec<u8>)> = vec![(0, mbr(&[(5, 1, 60)]))];
        for index in 1..20_u64 {
            let mut link = mbr(&[(0x83, 0, 0), (5, u32::try_from(index).unwrap(), 1)]);
            (link[446 + 8], link[446 + 13]) = (1, 4);
            sectors.push((index * MIB, link));
        }
        sectors.push((MIB + 512 + 65600, b"_BHRfS_M".to_vec()));
        sectors.push((MIB + 512 + 65536 + 0x12b, vec![b'x'; 200]));
        let fields: Vec<_> = sectors.iter().map(|(at, bytes)| (*at, &bytes[..])).collect();
        let disk = layout(64 * MIB, &fields);
        let text = drawn(None, (&disk, 64 * MIB), ASCII, 80);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2 + MOST_SHOWN + 1, "{text}");
        assert!(lines[3].contains("btrfs \"xxxxxxxxxxxxxxx...  ["), "{text}");
        assert_eq!(lines[9], "  and 13 more");
        assert!(lines.iter().all(|line| line.len() <= 80), "{text}");
    }

    #[test]
    fn a_data_disk_is_said_to_be_untouched() {
        let text = untouched(Path::new("/dev/v\u{1b}db"), 100 << 30);
        assert_eq!(text, "/dev/v\\u{1b}db (100 GiB): not touched, read at most");
    }
}
