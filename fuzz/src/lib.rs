//! Goal: nothing that a stranger writes into an image makes the library panic, hang or take much memory.
//!
//! Method: a fuzzer that sees which code it reaches rewrites one part of a small valid image, a file in a temporary
//! folder, and the library looks at the whole. Whether the answer is right is asked by `tests/fuzz`, not here.

mod payload;
mod scene;
mod tables;

pub use payload::Payload;
pub use scene::{Scene, plant, stored, testdata};
pub use tables::{Tables, l2_tables, number};
