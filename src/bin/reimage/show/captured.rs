//! What a capture did, as a person reads it.

use reimage::{CaptureReport, Packing};

use super::{Lines, bytes, clean, clean_path, evidence, exact, image, sandbox, seconds, sight, span};
use crate::picture;

/// More ranges are counted and not listed; the JSON has them all.
const MOST_RANGES: usize = 16;

/// What a capture did.
pub(crate) fn captured(report: &CaptureReport) -> String {
    let mut lines = Lines::default();
    lines.block("Captured, and read back equal\n");
    lines.add("disk", image(&report.source));
    lines.add("", format!("{}, only read", exact(report.virtual_size)));
    lines.add("image", format!("{} (qcow2, {})", clean_path(&report.image), packing(report)));
    lines.add("", format!("a file of {}", exact(report.image_file.bytes)));
    match &report.manifest {
        Some(path) => lines.add("manifest", clean_path(path)),
        None => lines.add("manifest", "none: rebuilds from the image cannot be proved by it"),
    }
    lines.add("root digest", report.root.to_string());
    if let Some(whole) = &report.whole_digest {
        lines.add("BLAKE3", format!("{whole} (of the whole disk)"));
    }
    lines.add("file BLAKE3", report.image_file.blake3.to_string());
    if !report.filled.is_empty() {
        let lost: u64 = report.filled.iter().map(|range| range.len()).sum();
        lines.add("NOT READ", format!("{} of the disk, which are zero in the image", bytes(lost)));
        report
            .filled
            .iter()
            .take(MOST_RANGES)
            .for_each(|range| lines.add("", format!("bytes {}", span(*range))));
        match report.filled.len().saturating_sub(MOST_RANGES) {
            0 => {}
            more => lines.add("", format!("and {more} ranges more")),
        }
    }
    for disk in &report.data_disks {
        lines.add("data disk", format!("{}: {}", clean_path(&disk.path), evidence(disk)));
    }
    lines.add("sandbox", sandbox(report.sandbox));
    sight(&mut lines, &report.sight);
    for warning in &report.warnings {
        lines.add("warning", clean(warning));
    }
    let took = &report.durations;
    let parts = [("prepare", took.prepare_ms), ("pack", took.pack_ms), ("read back", took.read_back_ms)];
    let parts: Vec<_> = parts.iter().map(|(name, ms)| format!("{name} {}", seconds(*ms))).collect();
    lines.add("time", format!("{} ({})", seconds(took.total_ms), parts.join(", ")));
    lines.add("state", "the instance stays Stopped");
    if let Some(layout) = &report.layout {
        lines.block(&picture::partitions(layout, Some(report.virtual_size)));
    }
    lines.into_text()
}

fn packing(report: &CaptureReport) -> String {
    let how = match report.packing {
        Packing::Zstd => "zstd",
        Packing::Zlib => "zlib",
        _ => "not compressed",
    };
    format!("{how}, clusters of {}", bytes(report.cluster_size.into()))
}
