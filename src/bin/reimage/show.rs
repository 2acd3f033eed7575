//! Results as a person reads them.

mod captured;
mod findings;
mod manifest;

use std::fmt::Write as _;

use reimage::{
    ByteRange, CredentialKind, DataDiskReport, GptPlan, ImageInfo, InstanceState, InstanceStatus,
    OldCredentials, Os, Pattern, Phase, PlanSummary, PruneReport, RepairReport, Report, RunMode, RunStatus,
    Sandbox, SeedReport, Sight, StorageIdentity, TargetKind, TargetState, Verdict,
};

pub(crate) use captured::captured;
pub(crate) use findings::{checked, counted};

pub(crate) use crate::steering::{clean, clean_name, clean_path};
use crate::{picture, undo};
pub(crate) use manifest::{drift, manifest, manifest_used, signers, verified};

/// Lines of a name and a value.
#[derive(Default)]
pub(crate) struct Lines(String);

impl Lines {
    pub(crate) fn add(&mut self, name: &str, value: impl AsRef<str>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "{name:<12}{}", value.as_ref());
    }

    pub(crate) fn block(&mut self, text: &str) {
        self.0.push_str(text);
    }

    pub(crate) fn into_text(self) -> String {
        self.0
    }
}

/// What is going to happen.
pub(crate) fn plan(plan: &PlanSummary) -> String {
    let mut lines = Lines::default();
    let of_what = plan.instance.as_deref().map(|id| format!(" of {}", clean_name(id))).unwrap_or_default();
    lines.block(&format!("Plan of a rebuild{of_what}\n"));
    lines.add("image", image(&plan.image));
    lines.add("", content(plan));
    signers(&mut lines, &plan.signatures);
    plan.manifest.iter().for_each(|used| lines.block(&manifest_used(used)));
    lines.add("target", format!("{} ({})", clean_path(&plan.target), kind(plan)));
    lines.add("", sizes(plan));
    lines.add("mode", mode(plan));
    let after = (&plan.after, plan.size_after);
    lines.block(&picture::before_and_after(plan.before.as_ref(), after, plan.target_bytes));
    lines.add("GPT", gpt(&plan.gpt));
    undo::keep_lines(&mut lines, plan.keep.as_ref());
    match &plan.seed {
        Some(seed) => {
            lines.add("seed", format!("{} ({})", clean_path(&seed.path), seed_words(seed)));
            lines.add("", old_credentials(seed));
        }
        None => lines.add("seed", "none: the image's own credentials stay"),
    }
    for disk in &plan.data_disks {
        let shared = if disk.shareable { " (shareable)" } else { "" };
        lines.add("data disk", format!("{}{shared}", picture::untouched(&disk.path, disk.facts.size)));
    }
    sight(&mut lines, &plan.sight);
    for warning in &plan.warnings {
        lines.add("warning", clean(warning));
    }
    lines.into_text()
}

/// What a rebuild did.
pub(crate) fn report(report: &Report) -> String {
    let mut lines = Lines::default();
    lines.block(match report.target_state {
        TargetState::Verified => "Rebuilt and verified\n",
        _ => "Rebuilt, not read back\n",
    });
    lines.add("image", image(&report.plan.image));
    signers(&mut lines, &report.plan.signatures);
    let target = format!("{} ({})", clean_path(&report.target), kind(&report.plan));
    lines.add("target", target);
    lines.add("", format!("{}, {}", exact(report.target_bytes), report.target_state));
    lines.add("root digest", report.root.to_string());
    report.plan.manifest.iter().for_each(|used| lines.block(&manifest_used(used)));
    if let Some(whole) = &report.whole_digest {
        lines.add("BLAKE3", format!("{whole} (of the image's whole disk)"));
    }
    lines.add("mode", how(report.mode));
    lines.add("written", exact(report.bytes_written));
    lines.add("zeroed", exact(report.bytes_zeroed));
    if report.bytes_kept > 0 {
        lines.add("kept", format!("{}, found right and not written", exact(report.bytes_kept)));
        if report.bytes_by_manifest > 0 {
            lines.add("", format!("{} of them by the manifest alone", exact(report.bytes_by_manifest)));
        }
    }
    lines.add("read back", read_back(report.bytes_read_back, report.bytes_proved_holes));
    lines.add("repairs", if report.repairs.is_empty() { "none" } else { "" });
    report.repairs.iter().for_each(|repaired| lines.add("", repair(repaired)));
    lines.add("GPT", gpt(&report.gpt));
    undo::keep_lines(&mut lines, report.plan.keep.as_ref());
    match &report.seed {
        Some(seed) => {
            lines.add("seed", format!("{} ({})", clean_path(&seed.path), seed_words(seed)));
            lines.add("instance id", clean_name(&seed.instance_id));
        }
        None => lines.add("seed", "none: the image's own credentials stay"),
    }
    for disk in &report.data_disks {
        lines.add("data disk", format!("{}: {}", clean_path(&disk.path), evidence(disk)));
    }
    lines.add("sandbox", sandbox(report.sandbox));
    sight(&mut lines, &report.plan.sight);
    let took = &report.durations;
    let parts = [
        ("prepare", took.prepare_ms),
        ("copy", took.copy_ms),
        ("read back", took.read_back_ms),
        ("finish", took.finish_ms),
    ];
    let parts: Vec<_> = parts.iter().map(|(name, ms)| format!("{name} {}", seconds(*ms))).collect();
    lines.add("time", format!("{} ({})", seconds(took.total_ms), parts.join(", ")));
    lines.add("state", "the instance stays Stopped");
    lines.into_text()
}

/// What dead runs had left.
pub(crate) fn pruned(report: &PruneReport) -> String {
    let mut lines = Lines::default();
    for (what, entries) in [("removed", &report.removed), ("kept", &report.kept)] {
        for entry in entries {
            lines.add(what, format!("{}: {}", clean_path(&entry.path), clean_name(&entry.reason)));
        }
    }
    if report.removed.is_empty() {
        lines.add("removed", "nothing");
    }
    lines.into_text()
}

/// What became of the rebuilds of an instance.
pub(crate) fn status(status: &InstanceStatus) -> String {
    let mut lines = Lines::default();
    if let Some(instance) = &status.instance {
        lines.add("instance", clean_name(instance));
    }
    if let Some(target) = &status.target {
        lines.add("target", clean_path(target));
    }
    lines.add(
        "state",
        match status.state {
            InstanceState::Stopped => "stopped",
            InstanceState::Rebuilding => "rebuilding",
            InstanceState::Failed => "failed: a rebuild is unfinished",
            _ => "unknown",
        },
    );
    if let Some(run) = &status.run {
        lines.add("run", format!("process {}, begun {}", run.pid, utc(run.started_s)));
        lines.add("came to", came_to(run));
        if run.bytes_noted > 0 {
            let noted = bytes(run.bytes_noted);
            lines.add("noted", format!("{noted} are written for good, and need not be written again"));
        }
    }
    if let Some(failure) = &status.failure {
        lines.add("failure", clean_name(&failure.message));
        lines.add("disk", failure.target_state.to_string());
    }
    if let Some(journal) = &status.journal {
        lines.add("journal", clean_name(journal));
    }
    if let Some(receipt) = &status.receipt {
        lines.add("receipt", format!("{}, of {}", clean_path(&receipt.path), utc(receipt.time_s)));
    }
    for notice in &status.notices {
        lines.add("notice", clean_name(notice));
    }
    status.kept.iter().for_each(|kept| undo::kept_lines(&mut lines, kept));
    lines.add("to do", status.advice);
    if let Some(disk) = &status.disk {
        lines.block(&picture::partitions(&disk.layout, None));
    }
    lines.into_text()
}

fn came_to(run: &RunStatus) -> String {
    let phase = match run.phase {
        Some(Phase::Preflight) => "checking the image",
        Some(Phase::Keep) => "keeping the old disk",
        Some(Phase::Copy) => "copy",
        Some(Phase::ReadBack) => "read back",
        Some(Phase::Finish) => "the ends of the disk",
        _ => return "preparing".to_owned(),
    };
    format!("{phase}, {} % ({} of {})", run.percent, bytes(run.bytes_done), bytes(run.bytes_total))
}

/// A time in seconds since 1970, as text by the Gregorian calendar.
pub(crate) fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86400, seconds % 86400);
    // Years begin in March here, so that the odd day comes last; 719468 days lie between 0000-03-01 and 1970.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = 400 * era + year + next;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// What a seed says.
pub(crate) fn seed(seed: &SeedReport) -> String {
    let mut lines = Lines::default();
    lines.block("Seed written\n");
    lines.add("seed", format!("{} ({})", clean_path(&seed.path), seed_words(seed)));
    lines.add("instance id", clean_name(&seed.instance_id));
    seed.blake3.iter().for_each(|digest| lines.add("BLAKE3", digest));
    seed.ssh_key_fingerprints.iter().for_each(|fingerprint| lines.add("SSH key", fingerprint));
    for warning in &seed.warnings {
        lines.add("warning", clean(warning));
    }
    lines.into_text()
}

/// An image in a line.
pub(crate) fn image(image: &ImageInfo) -> String {
    let first = image.chain.first();
    let path = first.map(|layer| clean_path(&layer.path)).unwrap_or_default();
    // What a raw image has compressed is all of it.
    let packed = first.filter(|layer| layer.format == "raw").and_then(|layer| layer.compression);
    let packed = packed.map(|codec| format!(" packed with {codec}")).unwrap_or_default();
    format!("{path} ({}{packed}, a file of {})", image.format, bytes(image.file_size))
}

fn sandbox(sandbox: Sandbox) -> &'static str {
    match sandbox {
        Sandbox::Landlock => "Landlock kept the working threads from opening any file",
        _ => "this kernel has no Landlock: only their code kept the working threads from opening files",
    }
}

pub(crate) fn sight(lines: &mut Lines, sight: &Sight) {
    for limit in &sight.limits {
        lines.add("not seen", clean(&limit.to_string()));
    }
}

/// What speaks for a data disk's being as it was.
pub(crate) fn evidence(disk: &DataDiskReport) -> String {
    let verdict = match disk.verdict {
        Verdict::Unchanged => "unchanged",
        Verdict::NotCompared => "still there; nothing of it could be compared",
        Verdict::ChangedElsewhere => "CHANGED by another machine, as it may",
        _ => "CHANGED by somebody else",
    };
    let mut by = Vec::new();
    match disk.writes {
        Some(writes) => by.push(format!("{writes} writes counted")),
        None if disk.before.files.is_empty() => by.push("the kernel counts no writes".to_owned()),
        None => by.push("times of the file".to_owned()),
    }
    by.push(match disk.before.digest {
        Some(_) => "digest compared".to_owned(),
        None => "content not looked at".to_owned(),
    });
    if !disk.differences.is_empty() {
        by.push(format!("differs: {}", disk.differences.join(", ")));
    }
    format!("{verdict} ({})", by.join("; "))
}

fn content(plan: &PlanSummary) -> String {
    let content = &plan.content;
    let parts = [
        (content.data_bytes, "data"),
        (content.compressed_bytes, "compressed"),
        (content.zero_bytes, "zero"),
    ];
    let parts = parts.iter().filter(|(len, _)| *len > 0).map(|(len, kind)| format!("{} {kind}", bytes(*len)));
    let parts: Vec<_> = parts.collect();
    format!("a disk of {}: {}", exact(plan.image.virtual_size), parts.join(", "))
}

fn kind(plan: &PlanSummary) -> String {
    let device = match plan.target_disk.as_ref().map(|disk| disk.identity) {
        Some(StorageIdentity::Device { major, minor }) => format!("device {major}:{minor}"),
        _ => "device".to_owned(),
    };
    match plan.target_kind {
        TargetKind::Device => device,
        TargetKind::ReplacedFile => format!("{}file, replaced whole", qcow2(plan)),
        TargetKind::InPlaceFile => "file, written in place".to_owned(),
        TargetKind::NewFile => format!("new {}file", qcow2(plan)),
        _ => "the caller's own".to_owned(),
    }
}

fn qcow2(plan: &PlanSummary) -> &'static str {
    if plan.qcow2.is_some() { "qcow2 " } else { "" }
}

fn sizes(plan: &PlanSummary) -> String {
    let (now, then) = (plan.target_bytes, plan.size_after);
    match plan.target_kind {
        TargetKind::NewFile => format!("its size will be {}", exact(then)),
        _ if now == then => format!("everything on it will be lost; its size stays {}", exact(then)),
        _ => format!("everything on it will be lost; its size goes from {} to {}", exact(now), exact(then)),
    }
}

/// How a run will go about the disk; why it does not go on with an earlier one, a warning says.
fn mode(plan: &PlanSummary) -> String {
    match plan.unfinished.as_ref().filter(|run| run.goes_on) {
        Some(run) => {
            format!(
                "resumed: {} that an earlier run wrote are compared, the rest is written",
                bytes(run.bytes_noted)
            )
        }
        None => how(plan.mode).to_owned(),
    }
}

pub(crate) fn how(mode: RunMode) -> &'static str {
    match mode {
        RunMode::Full => "full: all of the disk is written",
        RunMode::Delta => "delta: all of the disk is compared, and written where it differs",
        RunMode::Linked => "linked: the disk becomes an overlay on the image, which must stay as it is",
        RunMode::Resumed => "resumed: what an earlier run wrote is compared, the rest is written",
        _ => "unknown",
    }
}

fn gpt(gpt: &GptPlan) -> String {
    match gpt {
        GptPlan::Moved { changed, .. } => {
            let ranges: Vec<_> = changed.iter().map(|range| span(*range)).collect();
            format!("backup at the end of the disk; differs from the image in bytes {}", ranges.join(", "))
        }
        _ => "as the image has it".to_owned(),
    }
}

fn seed_words(seed: &SeedReport) -> String {
    let kind = |kind: &CredentialKind| match kind {
        CredentialKind::Password => "password",
        CredentialKind::PasswordHash => "password hash",
        CredentialKind::SshKey => "SSH keys",
        _ => "credentials",
    };
    let kinds: Vec<_> = seed.credentials.iter().map(kind).collect();
    if kinds.is_empty() {
        return format!("{}, no credentials", seed.label);
    }
    let user = seed.user.as_deref().map_or_else(|| "the image's default user".to_owned(), clean_name);
    format!("{}, {} for {user}", seed.label, kinds.join(" and "))
}

/// cloud-init adds keys to those that are there, and sets one password; cloudbase-init writes the keys anew.
fn old_credentials(seed: &SeedReport) -> &'static str {
    match (seed.os, seed.old_credentials) {
        (Os::Windows, _) => "other accounts' passwords that the image has stay",
        (_, OldCredentials::Revoke) => {
            "all other passwords that the image has are locked, all other SSH keys removed"
        }
        _ => "other passwords and SSH keys that the image has stay (--revoke-image-credentials ends them)",
    }
}

pub(crate) fn read_back(read: u64, holes: u64) -> String {
    match holes {
        0 => exact(read),
        _ => format!("{}, and {} that the file system proves to be holes", exact(read), bytes(holes)),
    }
}

fn repair(repair: &RepairReport) -> String {
    let first = repair.first_differing.map(|at| format!(", first wrong byte {at}")).unwrap_or_default();
    let looked = repair.pattern.and_then(pattern).map(|looked| format!(" ({looked})")).unwrap_or_default();
    format!("bytes {}: written again {} times{first}{looked}", span(repair.range), repair.rewrites)
}

fn pattern(pattern: Pattern) -> Option<String> {
    Some(match pattern {
        Pattern::OldContents => "the disk still had its old contents".to_owned(),
        Pattern::SingleBit { bit } => format!("bit {bit} was flipped"),
        Pattern::Zeroes => "it read as zero".to_owned(),
        Pattern::Shifted { by } => format!("the right bytes, shifted by {by}"),
        Pattern::WholeSectors => "whole sectors held something else".to_owned(),
        _ => return None,
    })
}

fn span(range: ByteRange) -> String {
    format!("{}..{}", range.start(), range.end())
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03} s", ms / 1000, ms % 1000)
}

/// A size for a person, and exactly.
pub(crate) fn exact(len: u64) -> String {
    let short = bytes(len);
    if short.ends_with(" B") { format!("{len} bytes") } else { format!("{short} ({len} bytes)") }
}

/// A size for a person: `3.2 GiB`.
pub(crate) fn bytes(len: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let Some(power) = (1..=6).rev().find(|power| len >> (10 * power) > 0) else {
        return format!("{len} B");
    };
    let (unit, shift) = (UNITS[power - 1], 10 * power);
    let (whole, rest) = (len >> shift, len & ((1 << shift) - 1));
    let tenth = (u128::from(rest) * 10) >> shift;
    if tenth == 0 { format!("{whole} {unit}") } else { format!("{whole}.{tenth} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_said_in_the_largest_unit_that_is_not_below_one() {
        for (len, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (1024 * 1024 - 1, "1023.9 KiB"),
            (40 << 30, "40 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(bytes(len), text);
        }
    }

    #[test]
    fn seconds_since_1970_are_shown_as_date_and_time() {
        // date -u -d @N
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (951_868_800, "2000-03-01 00:00:00 UTC"),
            (1_767_225_599, "2025-12-31 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
            (253_402_300_799, "9999-12-31 23:59:59 UTC"),
        ] {
            assert_eq!(utc(seconds), text);
        }
        utc(u64::MAX);
    }
}
