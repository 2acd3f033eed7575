//! Manifests, and what was compared with them, as a person reads it.

use std::path::Path;

use reimage::{ManifestUse, VerifyReport};

use super::{Lines, clean_name, clean_path, exact, gpt, read_back};
use crate::commands::ManifestDocument;

/// What was compared.
pub(crate) fn verified(report: &VerifyReport, target: &Path) -> String {
    let mut lines = Lines::default();
    lines.block("The disk holds what it should\n");
    lines.add("target", clean_path(target));
    lines.add("", exact(report.target_bytes));
    lines.add("root digest", report.root.to_string());
    report.manifest.iter().for_each(|used| lines.block(&manifest_used(used)));
    lines.add("compared", read_back(report.bytes_read, report.bytes_proved_holes));
    lines.add("GPT", gpt(&report.gpt));
    lines.into_text()
}

/// What went into a manifest's file.
pub(crate) fn manifest(manifest: &ManifestDocument) -> String {
    let mut lines = Lines::default();
    lines.add("manifest", clean_name(&manifest.path));
    lines.add("root digest", manifest.root.to_string());
    if let Some(whole) = &manifest.whole_digest {
        lines.add("BLAKE3", format!("{whole} (of the whole disk)"));
    }
    lines.add("disk", exact(manifest.virtual_size));
    lines.into_text()
}

/// Which manifest was used, and for what.
pub(crate) fn manifest_used(used: &ManifestUse) -> String {
    let mut lines = Lines::default();
    lines.add("manifest", clean_path(&used.path));
    lines.add("", format!("root {}", used.root));
    lines.add(
        "",
        match used.image_file {
            Some(_) => "the image's file was compared with it before anything else",
            None => "every chunk is compared with it",
        },
    );
    lines.into_text()
}
