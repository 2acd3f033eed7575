//! Rebuild a virtual machine's system disk from a raw or qcow2 image, verified, with its seed.
//!
//! # From the top
//!
//! [`plan`] asks everything and writes to no disk: it opens and checks the image, examines the disk and holds it, and
//! refuses what must not be done ([`preview`] asks the same and holds nothing). [`rebuild`] carries a [`Plan`] out and
//! returns a [`Report`]. An [`Observer`] is told what goes on, a [`CancelToken`] stops it; an [`Error`] says what kind
//! it is and what the disk holds now.
//!
//! ```
//! use reimage::{CancelToken, Credential, Password, Request, SeedSpec};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let here = |name: &str| folder.path().join(name);
//! # std::fs::write(here("debian.raw"), vec![7; 1 << 20])?;
//! let mut request = Request::new(here("debian.raw"), here("system.raw"));
//! request.options.state_dir = here("state");
//! request.instance.seed = Some(SeedSpec::at(here("seed.iso")));
//! let credential = Credential::password(Password::new("correct horse battery staple".to_owned())?);
//!
//! let plan = reimage::plan(&request, &credential, &())?;
//! let report = reimage::rebuild(plan, &(), &CancelToken::new())?;
//! assert_eq!(report.target_state, reimage::TargetState::Verified);
//! # Ok(())
//! # }
//! ```
//!
//! Nothing is ever started: the instance is stopped before, and stopped after. The library prints nothing, reads no
//! environment, installs no signal handler and keeps no global state; its threads belong to one run and can open
//! nothing. Sizes are bytes, times milliseconds.
#![deny(unsafe_code)]

mod capture;
mod copy;
mod error;
mod guard;
mod image;
mod inspect;
mod journal;
mod layout;
mod manifest;
mod observe;
mod plan;
mod prune;
mod range;
mod rebuild;
mod receipt;
mod request;
mod reseed;
mod seed;
mod status;
mod sys;
mod target;
mod trust;
mod undo;
mod verify;

pub use capture::{BadSectors, CaptureDurations, CaptureReport, CaptureRequest, ManifestPlace, capture};
pub use copy::Sandbox;
pub use error::{Error, ErrorKind, TargetState};
pub use guard::{
    DataDiskEvidence, DiskFacts, FileTimes, OpenFor, Process, Promise, Refusal, Relation, Sight, SightLimit,
    StorageIdentity,
};
pub use image::{
    BackingFault, Decoder, DigestAlgorithm, EntryFault, Extent, ExtentKind, FileIdentity, Image, ImageError,
    ImageInfo, LayerInfo, Packing, TableReport,
};
pub use inspect::{Cell, CheckReport, Finding, Inspection, VerifyReport, check, inspect, verify};
pub use layout::{DiskLayout, Partition, SeedLabel, SharedId, SharedKind, Signature, TableKind, Usage};
pub use manifest::{check_manifest_place, manifest, verify_manifest, write_manifest};
pub use observe::{CancelToken, Event, Observer, Phase};
pub use plan::{
    Duplicate, GptPlan, KeepPlan, KeptForm, ManifestUse, OtherSeed, Plan, PlanSummary, Qcow2Plan, RunMode,
    TargetKind, UnfinishedRun, is_manifest, plan, plan_onto, preview,
};
pub use prune::{PruneEntry, PruneReport, prune};
pub use range::ByteRange;
pub use rebuild::{DataDiskReport, Durations, RepairReport, Report, Verdict, rebuild};
pub use receipt::{Drift, DriftCause, DriftReport, ReceiptNote, ReceiptOf, verify_receipt};
pub use request::{
    BackingPolicy, BoundPlan, DataDisk, DataDiskDigest, DuplicatePolicy, EarlierRun, Expect, ExpectedDigest,
    GptPolicy, ImageFormat, ImageOptions, InstanceSpec, Linking, ManifestSource, Mode, NestedFormat,
    NetworkPolicy, OldCredentials, OldDisk, OldSnapshots, OnError, Options, Os, Placement, Policy,
    PowerState, Preflight, Request, SeedFormat, SeedSpec, SightPolicy, SignedManifests, SignedSums,
    SystemDisk, TargetFormat, TrustKey, UserDataDisks, VerifyPolicy, WholeDigest,
};
pub use reseed::{scrub_seed, write_seed};
pub use seed::{Credential, CredentialKind, Password, PasswordHash, Replace, SeedError, SeedReport, SshKey};
pub use status::{
    DiskContent, FailureStatus, InstanceState, InstanceStatus, KeptStatus, RunStatus, Subject, status,
};
pub use target::{Disk, Exchange, Target, TargetError};
#[cfg(feature = "sim")]
pub use target::{SimAction, SimDisk, SimFault, SimHistory, SimLie, SimMoment, SimOperation, SimWhen};
pub use trust::ImageSignature;
pub use undo::{
    UndoPlan, UndoReport, UndoSummary, discard_old, plan_undo, plan_undo_onto, preview_undo, undo,
    what_is_kept,
};
pub use verify::{
    Digest, ImageFileDigests, Made, Manifest, ManifestError, Pattern, SourceKind, VerifiedChunk,
};
