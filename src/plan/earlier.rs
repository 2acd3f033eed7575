//! What earlier runs left for this one, and what the disk is called in the state folder.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use super::Fit;
use super::summary::GptPlan;
use crate::error::{Error, ErrorKind};
use crate::guard::{self, Claim, Held, StorageIdentity};
use crate::image::{FileIdentity, Image, TableReport};
use crate::journal::{self, Bound, Earlier, GoOn};
use crate::request::{EarlierRun, Linking, Mode, Options, Placement};
use crate::sys::{beside, durable};
use crate::target::Target;
use crate::verify::CHUNK;

/// How a run goes about a disk.
///
/// ```
/// assert_eq!(serde_json::to_string(&reimage::RunMode::Resumed).unwrap(), r#""resumed""#);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RunMode {
    /// Every chunk is written.
    Full,
    /// Every chunk is read and compared, and written where it differs.
    Delta,
    /// What an earlier run wrote is read and compared, the rest is written.
    Resumed,
    /// Nothing is copied: the disk becomes an overlay on the image.
    Linked,
}

/// A run that left the disk unfinished, or a new file beside it.
///
/// ```no_run
/// # fn main() -> Result<(), reimage::Error> {
/// # let request = reimage::Request::new("debian-13.qcow2", "/dev/vg0/i-0a1b");
/// let plan = reimage::preview(&request, &reimage::Credential::keep_image(), &())?;
/// let goes_on = plan.unfinished.filter(|run| run.goes_on);
/// let need_not_be_written_again = goes_on.map_or(0, |run| run.bytes_noted);
/// # let _ = need_not_be_written_again;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct UnfinishedRun {
    /// Its journal's name.
    pub journal: String,
    /// Whether this run goes on where that one stopped.
    pub goes_on: bool,
    /// Bytes of the chunks that it noted as durable.
    pub bytes_noted: u64,
    /// Why this run starts over, where it does.
    pub reason: Option<&'static str>,
}

/// What the state folder knows of the disk.
pub(crate) struct Known {
    /// Its name there: never its path, which another disk may get.
    pub(crate) key: Value,
    pub(crate) bound: Bound,
    /// Whether what is noted of a run is of use to a later one.
    pub(crate) can_go_on: bool,
    pub(super) mode: RunMode,
    pub(super) unfinished: Option<UnfinishedRun>,
    pub(super) warnings: Vec<String>,
}

impl Known {
    /// Asks the state folder; nothing in it is changed.
    pub(super) fn find(
        options: &Options,
        (image, tables): (&dyn Image, TableReport),
        (claim, brought): (&Claim, Option<&dyn Target>),
        fit: &Fit,
    ) -> Result<Self, Error> {
        refuse_delta_of_new_file(options, (claim, brought))?;
        let key = key_of(claim, brought);
        let bound = bound(options, (image, tables), &key, fit);
        let state_dir = options.state_dir.as_path();
        let mut warnings = volatile(state_dir);
        let earlier = journal::look(state_dir, &key, (bound, go_on(options, fit))).map_err(|error| {
            Error::new(ErrorKind::Usage, error).at_path(state_dir).hint_that(
                "the disk's journal cannot be read: see to it, or name another folder with --state-dir",
            )
        })?;
        let path = std::path::absolute(claim.path()).unwrap_or_else(|_| claim.path().to_owned());
        let has_name = !claim.path().as_os_str().is_empty();
        let namesakes = journal::of_namesakes(state_dir, &key, &path).ok().filter(|_| has_name);
        let unfinished = match earlier {
            Earlier::Nothing => {
                claim.facts().and_then(|facts| facts.unfinished.clone()).map(|journal| UnfinishedRun {
                    journal,
                    goes_on: false,
                    bytes_noted: 0,
                    reason: Some("because its journal is not in this state folder, or is not of this disk"),
                })
            }
            Earlier::GoesOn { journal, staged: Some(staged), .. }
                if !beside::is_left(&staged.temporary, (staged.device, staged.inode)) =>
            {
                let reason = Some("because the new file that it was writing is gone, or is another one now");
                Some(UnfinishedRun { journal, goes_on: false, bytes_noted: 0, reason })
            }
            Earlier::GoesOn { journal, chunks, .. } => {
                let bytes_noted = (chunks.len() as u64).saturating_mul(CHUNK).min(fit.most_bytes());
                Some(UnfinishedRun { journal, goes_on: true, bytes_noted, reason: None })
            }
            Earlier::StartsOver { journal, reason, .. } => {
                let reason = Some(reason.in_words());
                Some(UnfinishedRun { journal, goes_on: false, bytes_noted: 0, reason })
            }
        };
        warnings.extend(unfinished.as_ref().map(in_words));
        let told = |journal: &String| unfinished.as_ref().is_some_and(|run| run.journal == *journal);
        warnings.extend(namesakes.into_iter().flatten().filter(|journal| !told(journal)).map(|journal| {
            format!(
                "the unfinished rebuild {journal} was of another disk that bore this name: its journal is left alone"
            )
        }));
        let goes_on = unfinished.as_ref().is_some_and(|run| run.goes_on);
        let is_replaced = claim_is_replaced(options, claim) || brought.is_some_and(Target::is_new);
        let mode = match options.mode {
            _ if options.linking == Linking::Linked => RunMode::Linked,
            Mode::Delta => RunMode::Delta,
            Mode::Auto | Mode::Full if goes_on => RunMode::Resumed,
            Mode::Auto
                if unfinished.is_none()
                    && !is_replaced
                    && options.earlier_run == EarlierRun::GoOn
                    && journal::holds(state_dir, &key, bound.binding) =>
            {
                RunMode::Delta
            }
            Mode::Auto | Mode::Full => RunMode::Full,
        };
        let can_go_on = fit.container.is_none();
        Ok(Self { key, bound, can_go_on, mode, unfinished, warnings })
    }
}

/// What the options mean for an earlier run's journal.
pub(crate) fn go_on(options: &Options, fit: &Fit) -> GoOn {
    match options.earlier_run {
        EarlierRun::GoOn if fit.container.is_some() => GoOn::HasNoTables,
        EarlierRun::GoOn => GoOn::IfItCan,
        EarlierRun::StartOver => GoOn::Never,
    }
}

fn in_words(run: &UnfinishedRun) -> String {
    let UnfinishedRun { journal, bytes_noted, .. } = run;
    match run.reason {
        None => format!(
            "the rebuild {journal} was cut off: this run goes on with the {} MiB that it noted",
            bytes_noted >> 20
        ),
        Some(reason) => {
            format!("the rebuild {journal} of this disk is unfinished, and this run starts over {reason}")
        }
    }
}

fn volatile(state_dir: &Path) -> Vec<String> {
    let there = state_dir.ancestors().find(|folder| folder.is_dir());
    let kind = there.and_then(|folder| durable::volatile(folder).ok().flatten());
    let in_words = |kind| {
        format!(
            "the state folder {state_dir:?} lies on {kind}, which may be gone after the host's next start: a run that \
             a power cut ends would start over (--state-dir names another)"
        )
    };
    kind.map(in_words).into_iter().collect()
}

/// A file that is replaced whole holds nothing yet that could be compared.
#[derive(Debug, thiserror::Error)]
#[error("only what the disk holds can be compared, and a new file is to take its place")]
struct NothingToCompare;

fn refuse_delta_of_new_file(
    options: &Options,
    (claim, brought): (&Claim, Option<&dyn Target>),
) -> Result<(), Error> {
    let is_new = claim_is_replaced(options, claim) || brought.is_some_and(Target::is_new);
    if options.mode != Mode::Delta || !is_new {
        return Ok(());
    }
    let hint = match claim.held() {
        // Such a file is never written into.
        Held::File { inside: Some(_), .. } | Held::NewFile { .. } => "leave --mode delta out",
        _ => "--in-place compares with the old file and writes into it",
    };
    Err(Error::new(ErrorKind::Usage, NothingToCompare).at_path(claim.path()).hint_that(hint))
}

fn claim_is_replaced(options: &Options, claim: &Claim) -> bool {
    match claim.held() {
        Held::File { .. } | Held::NewFile { .. } => options.placement == Placement::Replace,
        Held::Device { .. } | Held::ReadOnly { .. } | Held::Promised(_) => false,
    }
}

/// What names a disk in the state folder: where its bytes lie, so that a file and the loop device over it have one
/// journal, and what another disk that gets the same numbers has not.
pub(super) fn key_of(claim: &Claim, brought: Option<&dyn Target>) -> Value {
    match (claim.held(), brought) {
        (Held::NewFile { folder, name }, _) => {
            let folder = rustix::fs::fstat(folder).map(|stat| (stat.st_dev, stat.st_ino)).ok();
            json!({ "folder": folder, "name": name.to_string_lossy() })
        }
        (_, Some(target)) => key_of_own(target),
        _ => {
            let facts = claim.facts();
            let place = facts.map(|facts| (facts.base, facts.base_offset));
            let nameless = |base: StorageIdentity| matches!(base, StorageIdentity::Device { .. });
            let size = facts.filter(|facts| facts.lasting_id.is_none() && nameless(facts.base));
            json!({
                "bytes": place,
                "id": facts.and_then(|facts| facts.lasting_id.as_deref()),
                "size": size.map(|facts| facts.size),
            })
        }
    }
}

/// What names a caller's own target; one that has no name is never found again.
pub(crate) fn key_of_own(target: &dyn Target) -> Value {
    let name = target.identity().unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    json!({ "own": name })
}

/// What names a file in the state folder that is about to become a disk: the same that `key_of` finds when it is one.
pub(crate) fn key_of_file(of: &std::fs::Metadata) -> Value {
    let place = (StorageIdentity::File { device: of.dev(), inode: of.ino() }, 0_u64);
    json!({ "bytes": Some(place), "id": guard::made(of), "size": None::<u64> })
}

/// Everything that must be the same for a run to go on where another stopped; never the seed, never a path.
fn bound(options: &Options, (image, tables): (&dyn Image, TableReport), key: &Value, fit: &Fit) -> Bound {
    let files: Vec<_> = image.identities().into_iter().map(without_path).collect();
    let gpt = GptPlan::of(fit.relocation.as_ref());
    let to = json!({
        "files": files,
        "content": tables,
        "virtual_size": image.virtual_size(),
        "target": key,
        "placement": options.placement,
        "target_bytes": fit.size,
        "chunk_bytes": CHUNK,
        "gpt": gpt,
    });
    Bound::of(&to, fit.most_bytes().div_ceil(CHUNK))
}

/// A file of the image as it is known again under whatever name.
pub(super) fn without_path(file: FileIdentity) -> Value {
    let mut file = serde_json::to_value(file).expect("an identity is plain data");
    file.as_object_mut().and_then(|fields| fields.remove("path"));
    file
}
