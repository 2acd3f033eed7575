//! Manifests, and what was compared with them, as a person reads it.

use std::path::Path;

use reimage::{DriftReport, ImageSignature, ManifestUse, VerifyReport};

use super::{Lines, clean_name, clean_path, exact, gpt, read_back, span, utc};
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

/// Who has signed for an image.
pub(crate) fn signers(lines: &mut Lines, signatures: &[ImageSignature]) {
    for signature in signatures {
        let signer = match signature {
            ImageSignature::Minisign { key } => format!("the minisign key {}", clean_name(key)),
            ImageSignature::OpenPgp { fingerprint } => format!("the OpenPGP key {}", clean_name(fingerprint)),
            _ => "a key of another kind".to_owned(),
        };
        lines.add("signed by", signer);
    }
}

/// What changed since a rebuild, and was to be expected.
pub(crate) fn drift(report: &DriftReport) -> String {
    let mut lines = Lines::default();
    lines.block("The disk holds what its rebuild left there\n");
    lines.add("receipt", format!("{}, of {}", clean_path(&report.receipt), utc(report.time_s)));
    if let Some(instance) = &report.instance {
        lines.add("instance", clean_name(instance));
    }
    lines.add("target", clean_path(&report.target));
    lines.add("", exact(report.target_bytes));
    lines.add("root digest", report.root.to_string());
    lines.add("compared", read_back(report.bytes_read, report.bytes_proved_holes));
    for drift in &report.drift {
        lines.add(
            "changed",
            format!("bytes {}: the partition table, as it is to be expected", span(drift.range)),
        );
    }
    if report.drift.is_empty() {
        lines.add("changed", "nothing");
    }
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
