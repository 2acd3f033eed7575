//! Goal: no image, however it was damaged, makes the engine panic, hang, pass its memory bound or copy wrong bytes.
//!
//! Method: real images by qemu-img are mutated by whoever knows how they are built, thousands of times from one
//! `rng_seed`; each goes through the library, and what comes of it is compared with the verdict and the bytes of a
//! slow reader that shares no code with the library.

#[path = "../shared/memory_disk.rs"]
mod memory_disk;
#[path = "../slow_reader/mod.rs"]
mod slow_reader;
#[path = "../shared/stored_images.rs"]
mod stored_images;

mod campaign;
mod draft;
mod engine;
mod memory;
mod mutate;
mod oracle;
mod parsers;
mod payload;
mod random;
mod stored;
mod sweep;
mod watched;

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;
