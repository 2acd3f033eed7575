//! Rebuild a virtual machine's system disk from a raw or qcow2 image, verified, with its seed.
#![deny(unsafe_code)]

mod error;
mod image;
mod observe;
mod range;
mod request;
mod seed;
mod sys;
mod target;
mod verify;

pub use error::{Error, ErrorKind, TargetState};
pub use image::{Decoder, Extent, ExtentKind, Image, ImageError, ImageInfo};
pub use observe::{CancelToken, Event, Observer, Phase};
pub use range::ByteRange;
pub use request::{
    DataDisk, Expect, ExpectedDigest, GptPolicy, ImageFormat, ImageOptions, InstanceSpec, NestedFormat,
    Options, Os, Placement, PowerState, Preflight, Request, SeedFormat, SeedSpec, SystemDisk, TargetFormat,
    VerifyPolicy, WholeDigest,
};
pub use seed::{
    Credential, CredentialKind, Password, PasswordHash, Replace, SeedError, SeedReport, SshKey, write_seed,
};
pub use target::{Target, TargetError};
pub use verify::{Digest, VerifiedChunk};
