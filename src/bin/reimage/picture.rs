//! Pictures for a terminal: where an image has its data, and where the partitions of a disk lie.

use std::fmt::Write as _;

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
    let mut text = String::from("\n");
    let Some(table) = layout.table else {
        let found = layout.file_system.as_ref().map_or_else(|| "nothing known".to_owned(), content);
        return format!("\nno partition table; on the disk itself: {found}\n");
    };
    let table = match table {
        TableKind::Gpt => "GPT",
        TableKind::Dos => "MBR",
        _ => "partition table",
    };
    let id = layout.id.as_deref().map(|id| format!(" {id}")).unwrap_or_default();
    let sectors = layout.sector_size.map(|size| format!(", sectors of {size} bytes")).unwrap_or_default();
    // Writing to a string does not fail.
    let _ = writeln!(text, "{table}{id}{sectors}");
    let rows: Vec<_> = layout.partitions.iter().map(row).collect();
    let header = ["#", "start", "size", "type", "content"].map(str::to_owned);
    let widths: [usize; 5] = std::array::from_fn(|column| {
        rows.iter().chain([&header]).map(|row| row[column].chars().count()).max().unwrap_or(0)
    });
    let len = len.or_else(|| layout.partitions.iter().map(|partition| partition.range.end()).max());
    let used = widths.iter().map(|width| width + 2).sum::<usize>() + 2;
    let room = output::columns().saturating_sub(used).min(40);
    let bars = layout.partitions.iter().map(|partition| bar(partition, len.unwrap_or(0), room));
    for (row, bar) in [&header].into_iter().chain(&rows).zip([String::new()].into_iter().chain(bars)) {
        let [number, start, size, kind, content] = row;
        let [w0, w1, w2, w3, w4] = widths;
        let line = format!("{number:>w0$}  {start:>w1$}  {size:>w2$}  {kind:<w3$}  {content:<w4$}  {bar}");
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

fn row(partition: &Partition) -> [String; 5] {
    let range = partition.range;
    let kind = partition.type_name.map_or_else(|| clean_name(&partition.type_id), str::to_owned);
    let content = partition.file_system.as_ref().map_or_else(|| "-".to_owned(), content);
    [partition.number.to_string(), bytes(range.start()), bytes(range.len()), kind, content]
}

fn content(found: &Signature) -> String {
    match &found.label {
        Some(label) => format!("{} \"{}\"", found.kind, clean_name(label)),
        None => found.kind.to_owned(),
    }
}

/// Where a partition lies on its disk; empty where there is no room to see it.
fn bar(partition: &Partition, len: u64, room: usize) -> String {
    if room < 12 || len == 0 {
        return String::new();
    }
    let (brush, cells) = (brush(), room - 2);
    let scaled = |offset: u64| u128::from(offset.min(len)) * cells as u128;
    let place = |cell: u128| usize::try_from(cell).expect("a place is within the bar");
    // Rounded outwards: however small it is, it is somewhere.
    let start = place(scaled(partition.range.start()) / u128::from(len)).min(cells - 1);
    let end = place(scaled(partition.range.end()).div_ceil(u128::from(len)));
    let drawn: String =
        (0..cells).map(|at| if (start..end).contains(&at) { brush.partition } else { brush.zero }).collect();
    format!("{}{drawn}{}", brush.left, brush.right)
}

fn brush() -> Brush {
    if output::speaks_utf8() { UNICODE } else { ASCII }
}
