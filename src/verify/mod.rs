//! Digests, and the gate through which every written byte goes: `VerifiedChunk`.

mod chunk;
mod digest;
mod manifest;
mod pattern;
mod read_back;
mod runs;
mod table;

pub use chunk::VerifiedChunk;
pub(crate) use chunk::{Run, is_zero};
pub use digest::Digest;
pub(crate) use manifest::{
    Former, MOST_BYTES as MOST_MANIFEST_BYTES, OldManifest, StagedManifest, beside,
    check_place as check_manifest_place, read as read_manifest, write_new as write_manifest,
};
pub use manifest::{ImageFileDigests, Made, Manifest, ManifestError, SourceKind};
pub use pattern::Pattern;
pub(crate) use pattern::classify;
pub(crate) use read_back::{Expected, holds};
pub(crate) use runs::Runs;
pub(crate) use table::{CHUNK, CHUNK_LEN, DigestTable, WholeDigester};
