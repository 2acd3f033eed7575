//! Digests, and the gate through which every written byte goes: `VerifiedChunk`.

mod chunk;
mod digest;
mod pattern;
mod read_back;
mod table;

pub use chunk::VerifiedChunk;
pub(crate) use chunk::{Run, is_zero};
pub use digest::Digest;
pub use pattern::Pattern;
pub(crate) use pattern::classify;
pub(crate) use read_back::{Expected, holds};
pub(crate) use table::{CHUNK, CHUNK_LEN, DigestTable, WholeDigester};
