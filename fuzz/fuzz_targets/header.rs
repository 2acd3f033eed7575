//! The header and its extensions: the input is the first cluster of an image with clusters of 4 KiB. A short one is also
//! all of the file.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use reimage_fuzz::{Scene, plant, stored, testdata};

const LEN: usize = 4096;

/// What is longer holds all fields, and an extension.
const SHORT: usize = 160;

static IMAGE: LazyLock<Vec<u8>> = LazyLock::new(|| stored("v3-4k.qcow2"));
static SCENE: LazyLock<Scene> = LazyLock::new(|| Scene::new("image.qcow2", &IMAGE));

/// The beginnings of all stored images, and one with clusters of every size that can be said in a byte's lower bits.
fn seeds() -> impl Iterator<Item = Vec<u8>> {
    let of_clusters = |bits: u8| {
        let mut header = IMAGE[..SHORT].to_vec();
        header[23] = bits;
        header
    };
    stored_headers().chain((0..=32).map(of_clusters))
}

fn stored_headers() -> impl Iterator<Item = Vec<u8>> {
    let listed = std::fs::read_to_string(testdata("images/expected.txt")).expect("the images are listed");
    let names: Vec<_> = listed.lines().filter_map(|line| Some(line.split_once(' ')?.0.to_owned())).collect();
    names.into_iter().map(|name| {
        let image = stored(&format!("{name}.qcow2"));
        let used = image[..image.len().min(LEN)].iter().rposition(|byte| *byte != 0);
        image[..used.map_or(0, |last| last + 1)].to_vec()
    })
}

fuzz_target!(init: plant(seeds()), |input: &[u8]| {
    let mut header = [0; LEN];
    let len = input.len().min(LEN);
    header[..len].copy_from_slice(&input[..len]);
    SCENE.lay(0, &header);
    SCENE.look();
    if len < SHORT {
        SCENE.cut(len as u64);
        SCENE.look();
        SCENE.replace(&IMAGE);
    }
});
