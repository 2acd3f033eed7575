//! Images that are packed whole: the input is the file, named as its first byte says.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use reimage_fuzz::{Scene, plant, testdata};

fn stream(name: &str) -> Vec<u8> {
    std::fs::read(testdata("fuzz/stream").join(name)).expect("the file is there")
}

static GZIP: LazyLock<Scene> = LazyLock::new(|| Scene::new("image.gz", &stream("one-member.raw.gz")));
static XZ: LazyLock<Scene> = LazyLock::new(|| Scene::new("image.xz", &stream("three-blocks.raw.xz")));
static ZSTD: LazyLock<Scene> = LazyLock::new(|| Scene::new("image.zst", &stream("two-frames.raw.zst")));

fn seeds() -> impl Iterator<Item = Vec<u8>> {
    let files = std::fs::read_dir(testdata("fuzz/stream")).expect("the folder is there");
    files.map(|file| std::fs::read(file.expect("it is there").path()).expect("it can be read"))
}

fuzz_target!(init: plant(seeds()), |input: &[u8]| {
    let scene = match input.first() {
        Some(0x1f) => &GZIP,
        Some(0xfd) => &XZ,
        _ => &ZSTD,
    };
    scene.replace(input);
    scene.look();
});
