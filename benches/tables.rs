//! How fast is all metadata of an image checked and mapped? Bytes of the virtual disk a second.
//!
//! `cargo bench --bench tables -- IMAGE…`; by default the demo's image.

mod common;

use reimage::{ImageOptions, Preflight};

fn main() {
    for path in common::images() {
        let bytes = std::cell::Cell::new(0);
        common::measure(&path, || {
            let found = reimage::inspect(&path, &ImageOptions::default(), Preflight::Tables, &());
            bytes.set(found.expect("the image is read").image.virtual_size);
            bytes.get()
        });
    }
}
