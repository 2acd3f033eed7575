//! Rebuild a virtual machine's system disk from a raw or qcow2 image, verified, with its seed.
#![deny(unsafe_code)]

mod copy;
mod error;
mod guard;
mod image;
mod inspect;
mod journal;
mod layout;
mod observe;
mod plan;
mod range;
mod rebuild;
mod request;
mod seed;
mod sys;
mod target;
mod verify;

pub use error::{Error, ErrorKind, TargetState};
pub use guard::{DataDiskEvidence, Promise, Refusal, StorageIdentity};
pub use image::{
    BackingFault, Decoder, DigestAlgorithm, EntryFault, Extent, ExtentKind, FileIdentity, Image, ImageError,
    ImageInfo, LayerInfo, TableReport,
};
pub use inspect::{Cell, DiskState, DiskStatus, Inspection, VerifyReport, inspect, status, verify};
pub use layout::{DiskLayout, Partition, Signature, TableKind, Usage};
pub use observe::{CancelToken, Event, Observer, Phase};
pub use plan::{GptPlan, Plan, PlanSummary, TargetKind, plan, plan_onto, preview};
pub use range::ByteRange;
pub use rebuild::{DataDiskReport, Durations, RepairReport, Report, rebuild};
pub use request::{
    DataDisk, Expect, ExpectedDigest, GptPolicy, ImageFormat, ImageOptions, InstanceSpec, NestedFormat,
    Options, Os, Placement, PowerState, Preflight, Request, SeedFormat, SeedSpec, SystemDisk, TargetFormat,
    VerifyPolicy, WholeDigest,
};
pub use seed::{
    Credential, CredentialKind, Password, PasswordHash, Replace, SeedError, SeedReport, SshKey, write_seed,
};
pub use target::{Disk, Target, TargetError};
pub use verify::{Digest, VerifiedChunk};
