//! Digests, and the gate through which every written byte goes: `VerifiedChunk`.

mod chunk;
mod digest;

pub use chunk::VerifiedChunk;
pub use digest::Digest;
