//! A plan as a person or another program reads it.

use std::io;
use std::path::PathBuf;

use serde::Serialize;

use super::duplicates::{self, Duplicate};
use super::earlier::{Known, RunMode, UnfinishedRun};
use super::keep::KeepPlan;
use super::manifest::ManifestUse;
use super::survey::Seen;
use super::{Container, Fit, Glimpse, Qcow2Plan, Task, guest, packed};
use crate::error::{Error, ErrorKind};
use crate::guard::{Claim, DataDiskEvidence, DiskFacts, Held, Sight};
use crate::image::{FileIdentity, Image, ImageInfo, TableReport};
use crate::layout::{self, DiskLayout, ImageBackup, Outcome, ReadBytes, Relocation};
use crate::range::ByteRange;
use crate::request::{ExpectedDigest, GptPolicy, Placement, Preflight, Request};
use crate::seed::{ComposedSeed, SeedReport};
use crate::trust::ImageSignature;

/// What a rebuild will do; sizes in bytes.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PlanSummary {
    /// The instance's name, where one is known.
    pub instance: Option<String>,
    /// The image.
    pub image: ImageInfo,
    /// What the image's disk consists of.
    pub content: TableReport,
    /// The system disk.
    #[serde(serialize_with = "crate::error::path_text")]
    pub target: PathBuf,
    /// What kind of system disk it is.
    pub target_kind: TargetKind,
    /// What the system disk is known by; `None` for a new file.
    pub target_disk: Option<DiskFacts>,
    /// The files that the image is read from, the image's own first.
    pub image_files: Vec<FileIdentity>,
    /// The digest that the image file was found to have, where one was expected and compared.
    pub image_digest: Option<String>,
    /// The image's manifest, where one is known: each chunk is compared with it.
    pub manifest: Option<ManifestUse>,
    /// Who has signed for the image, where the request or a policy wanted it signed.
    pub signatures: Vec<ImageSignature>,
    /// Its size now.
    pub target_bytes: u64,
    /// Its size when the run has ended.
    pub size_after: u64,
    /// How the run goes about the disk.
    pub mode: RunMode,
    /// The run that left the disk unfinished, where one did.
    pub unfinished: Option<UnfinishedRun>,
    /// The qcow2 file that it will be; `None` of a raw disk.
    pub qcow2: Option<Qcow2Plan>,
    /// What becomes of the backup GPT.
    pub gpt: GptPlan,
    /// How the disk as it was is kept; `None` where it is lost.
    pub keep: Option<KeepPlan>,
    /// The seed that will be written.
    pub seed: Option<SeedReport>,
    /// The disks that will not be opened for writing.
    pub data_disks: Vec<DataDiskEvidence>,
    /// How much of the host could be looked at.
    pub sight: Sight,
    /// What the system disk holds now; `None` for a new file.
    pub before: Option<DiskLayout>,
    /// What it will hold.
    pub after: DiskLayout,
    /// Ids and labels that the image and data disks share.
    pub duplicates: Vec<Duplicate>,
    /// What a person should know before saying yes.
    pub warnings: Vec<String>,
    /// The BLAKE3 of all of the above, by which a plan in a file is known to be as it was written.
    pub digest: String,
}

/// What kind of system disk is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TargetKind {
    /// A block device.
    Device,
    /// A file that is replaced by a new one.
    ReplacedFile,
    /// A file that is written into.
    InPlaceFile,
    /// A file that does not exist yet.
    NewFile,
    /// What the caller brought along.
    CallersOwn,
}

/// What becomes of the backup GPT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "action", rename_all = "snake_case")]
#[non_exhaustive]
pub enum GptPlan {
    /// It is left as the image has it, or the image has none.
    Kept,
    /// It moves to the end of the disk.
    Moved {
        /// Where its header lies in the image, or should.
        from: u64,
        /// Where its entries and its header lie on the target.
        to: ByteRange,
        /// The bytes of the target that differ from the image because of it.
        changed: Vec<ByteRange>,
    },
}

impl GptPlan {
    pub(crate) fn of(relocation: Option<&Relocation>) -> Self {
        match relocation {
            Some(Relocation { patches, outcome: Outcome::Moved { from, to, .. } }) => {
                let changed = patches.iter().map(|patch| patch.range).collect();
                Self::Moved { from: *from, to: *to, changed }
            }
            _ => Self::Kept,
        }
    }
}

/// What a plan is made of.
pub(super) struct Found<'a> {
    pub(super) task: Task<'a>,
    pub(super) image: &'a dyn Image,
    pub(super) content: TableReport,
    /// Where the image comes from.
    pub(super) manifest: Option<ManifestUse>,
    pub(super) signatures: Vec<ImageSignature>,
    pub(super) claim: &'a Claim,
    pub(super) fit: &'a Fit,
    pub(super) seen: &'a Seen,
    pub(super) known: &'a Known,
    pub(super) keep: Option<KeepPlan>,
    /// What a person should know of what is kept.
    pub(super) about_old_disks: Vec<String>,
    pub(super) seed: Option<&'a ComposedSeed>,
}

pub(super) fn summarise(request: &Request, found: Found<'_>) -> Result<PlanSummary, Error> {
    let Found { image, claim, fit, seen, known, seed, .. } = found;
    let future = Future { image: &Glimpse(image), fit };
    let unreadable = |error| Error::new(ErrorKind::Image, error);
    let after = layout::describe(&future).map_err(unreadable)?;
    // What a guest left on the disk may be anything, and stops nothing.
    let before = claim.look_at(|bytes| layout::describe(bytes).ok()).flatten();
    let others = seen.layouts();
    let mut warnings = known.warnings.clone();
    warnings.extend(found.about_old_disks);
    if let Task::Rebuild = found.task {
        warnings.extend(warnings_of(request, (image, fit), seed));
        warnings.extend(packed::warnings(image));
        warnings.extend(guest::warnings(request.instance.os, &after));
    }
    warnings.extend(seen.warnings.iter().cloned());
    let duplicates = duplicates::compare(&after, &others);
    warnings.extend(duplicates::sentences(&duplicates, &duplicates::other_seeds(&others)));
    warnings.extend(seed.into_iter().flat_map(ComposedSeed::warnings).cloned());
    let limits = [claim.sight_limits(), &seen.limits].concat();
    let mut summary = PlanSummary {
        instance: request.instance.id.clone(),
        image: image.info(),
        content: found.content,
        target: claim.path().to_owned(),
        target_kind: kind_of(request, claim),
        target_disk: claim.facts().cloned(),
        image_files: image.identities(),
        image_digest: image_digest(request),
        manifest: found.manifest,
        signatures: found.signatures,
        target_bytes: claim.size(),
        size_after: fit.size,
        mode: known.mode,
        unfinished: known.unfinished.clone(),
        qcow2: fit.container.as_ref().map(Container::summary),
        gpt: GptPlan::of(fit.relocation.as_ref()),
        keep: found.keep,
        seed: seed.map(ComposedSeed::summary),
        data_disks: seen.data_disks.iter().map(|disk| disk.before().clone()).collect(),
        sight: Sight::of(limits),
        before,
        after,
        duplicates,
        warnings,
        digest: String::new(),
    };
    summary.seal();
    Ok(summary)
}

impl PlanSummary {
    /// Gives it the digest of all the rest.
    pub(super) fn seal(&mut self) {
        let document = serde_json::to_value(&*self).expect("a plan is plain data");
        self.digest = super::bound::digest_of(&document);
    }
}

/// The system disk as it will be.
pub(super) struct Future<'a> {
    pub(super) image: &'a dyn ReadBytes,
    pub(super) fit: &'a Fit,
}

impl ReadBytes for Future<'_> {
    fn size(&self) -> u64 {
        self.fit.size
    }

    fn read_at(&self, range: ByteRange, buffer: &mut [u8]) -> io::Result<()> {
        let len = usize::try_from(range.len()).map_err(io::Error::other)?;
        let buffer = &mut buffer[..len];
        buffer.fill(0);
        if let Some(of_image) = range.intersection(ByteRange::new(0, self.image.size())) {
            let len = usize::try_from(of_image.len()).map_err(io::Error::other)?;
            self.image.read_at(of_image, &mut buffer[..len])?;
        }
        layout::apply(self.fit.patches(), range, buffer);
        Ok(())
    }
}

fn image_digest(request: &Request) -> Option<String> {
    let options = &request.options;
    let expected = options.image.expect_digest.filter(|_| options.preflight != Preflight::Tables)?;
    Some(digest_in_words(expected))
}

/// As it is typed.
pub(super) fn digest_in_words(expected: ExpectedDigest) -> String {
    let hex = |bytes: [u8; 32]| bytes.map(|byte| format!("{byte:02x}")).concat();
    match expected {
        ExpectedDigest::Sha256(bytes) => format!("sha256:{}", hex(bytes)),
        ExpectedDigest::Blake3(bytes) => format!("blake3:{}", hex(bytes)),
    }
}

pub(super) fn kind_of(request: &Request, claim: &Claim) -> TargetKind {
    match claim.held() {
        Held::Device { .. } => TargetKind::Device,
        Held::File { .. } if request.options.placement == Placement::InPlace => TargetKind::InPlaceFile,
        Held::File { .. } => TargetKind::ReplacedFile,
        Held::NewFile { .. } => TargetKind::NewFile,
        Held::ReadOnly { .. } | Held::Promised(_) => TargetKind::CallersOwn,
    }
}

/// What a person should know of the image's backup GPT, which was looked at.
pub(super) fn about_backup(relocation: &Relocation) -> Option<String> {
    let Outcome::Moved { image_backup, .. } = &relocation.outcome else { return None };
    match image_backup {
        ImageBackup::Same => None,
        ImageBackup::Differs => {
            Some("the image's backup GPT is another table than its first GPT; the first one counts".into())
        }
        ImageBackup::Unusable(fault) => Some(format!(
            "the image's own backup GPT is unusable ({fault}); a new one is written from its first GPT"
        )),
    }
}

fn warnings_of(
    request: &Request,
    (image, fit): (&dyn Image, &Fit),
    seed: Option<&ComposedSeed>,
) -> Vec<String> {
    let mut warnings = Vec::new();
    let stays = request.instance.seed.as_ref().filter(|spec| seed.is_none() && spec.path.exists());
    if let Some(spec) = stays {
        warnings.push(format!(
            "the old seed {:?} stays, and a guest that reads it gets its credentials: detach it",
            spec.path
        ));
    }
    let end = ByteRange::between(image.virtual_size().saturating_sub(64 << 10), image.virtual_size());
    let has_end = image.is_measured() && image.is_at_hand(end);
    warnings.extend(fit.relocation.as_ref().filter(|_| has_end).and_then(about_backup));
    warnings.extend(fit.container.iter().flat_map(Container::warnings));
    if request.options.gpt == GptPolicy::Keep {
        warnings.push("the backup GPT stays where the image has it, even on a larger disk".into());
    }
    warnings
}
