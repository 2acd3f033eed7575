//! Goal: what the command promises to the one who types it holds: results, refusals, exit codes, signals.
//! Method: the built binary is run on real images in a temporary folder; every check of a refusal also compares
//! the disk that was there with what is there afterwards. Nothing of the library is called.

mod captures;
mod during;
mod faults;
mod inspections;
mod kept;
mod manifest;
mod progress;
mod qcow2;
mod receipts;
mod refusals;
mod results;
mod seeds;
mod status;
mod steering;
mod streams;
mod trust;
mod undo;
mod without_image;

#[path = "../shared/seen.rs"]
mod seen;
#[path = "../shared/stored_images.rs"]
#[allow(dead_code, reason = "not all of it is used here")]
mod stored_images;
mod support;
