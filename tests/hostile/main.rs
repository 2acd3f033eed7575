//! Goal: no image hurts the host. What must be refused is refused before a byte of the disk changes, at once and in
//! little memory, with what is wrong, where, and what to do; and its legal neighbours are read, byte for byte.
//!
//! Method: two tables. Each row makes one image by a maker that shares nothing with the engine, and the real program
//! is run on it: `rebuild` onto a file that is replaced whole and onto one that is written in place, and `inspect`.

mod accept;
mod bounds;
mod build;
mod kept;
mod refuse;
mod run;
#[path = "../shared/seen.rs"]
#[allow(dead_code, reason = "not all of it is used here")]
mod seen;
