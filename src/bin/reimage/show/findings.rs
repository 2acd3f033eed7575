//! What is wrong with an image, as a person reads it.

use std::fmt::Write as _;

use reimage::{CheckReport, Finding};

use super::{clean, clean_path};
use crate::picture;

/// Why not all of an image was decoded.
const TOO_MUCH: &str = "those before it took twice as much of the files as these hold";

/// All that a check found, and what the image is where that can be said.
pub(crate) fn checked(report: &CheckReport) -> String {
    let mut text = report.inspection.as_ref().map(picture::inspection).unwrap_or_default();
    if !text.is_empty() {
        text.push('\n');
    }
    if report.findings_total == 0 {
        text.push_str("checked     all tables, and every cluster: no fault was found\n");
        return text;
    }
    let _ = writeln!(text, "{}", counted(report));
    for finding in &report.findings {
        text.push_str(&lines_of(finding));
    }
    let untold = report.findings_total - report.findings.len() as u64;
    if untold > 0 {
        let _ = writeln!(text, "and {untold} more");
    }
    if let Some(offset) = report.undecoded_from {
        let _ = writeln!(text, "clusters from byte {offset} of the disk on were not decoded: {TOO_MUCH}");
    }
    text
}

/// How many faults there are, and how many of them matter to a rebuild.
pub(crate) fn counted(report: &CheckReport) -> String {
    let faults = |count: u64| if count == 1 { "1 fault".to_owned() } else { format!("{count} faults") };
    let found = faults(report.findings_total);
    match report.refused_total {
        0 => format!("{found} in what reading does not need: a rebuild takes the image"),
        all if all == report.findings_total => format!("{found}: a rebuild refuses the image"),
        some => format!("{found}, {some} of which make a rebuild refuse the image"),
    }
}

fn lines_of(finding: &Finding) -> String {
    let mut line = format!("  {}", clean_path(&finding.path));
    let range = |offset: u64, length: Option<u64>| match length {
        Some(length) if length > 0 => format!("{offset}..{}", offset.saturating_add(length)),
        _ => format!("{offset}.."),
    };
    if let Some(offset) = finding.offset {
        let _ = write!(line, ", bytes {}", range(offset, finding.length));
    }
    if let Some(offset) = finding.guest_offset {
        let _ = write!(line, ", of the disk {}", range(offset, finding.guest_length));
    }
    format!("{line}\n      {} ({})\n", clean(&finding.message), finding.kind)
}
