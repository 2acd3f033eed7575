//! How fast does an image reach a new file, verified? Bytes of the virtual disk a second.
//!
//! `cargo bench --bench rebuild -- IMAGE…`; by default the demo's image. Beside the peers: `benches/compare`.

mod common;

use reimage::{CancelToken, Credential, Request};

fn main() {
    for path in common::images() {
        let folder = tempfile::tempdir().expect("a folder for the target");
        let mut request = Request::new(&path, folder.path().join("system.raw"));
        request.options.state_dir = folder.path().join("state");
        common::measure(&path, || {
            let plan = reimage::plan(&request, &Credential::keep_image(), &()).expect("the image is read");
            let report = reimage::rebuild(plan, &(), &CancelToken::new()).expect("the disk is written");
            report.target_bytes
        });
    }
}
