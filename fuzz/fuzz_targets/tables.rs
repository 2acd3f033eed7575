//! L1 and L2 tables: the input's first byte says of which image, the rest is laid over them.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use reimage_fuzz::{Tables, plant};

/// Many small tables, two kinds of compressed clusters, subclusters.
const IMAGES: [&str; 4] = ["v3-512.qcow2", "zlib-4k.qcow2", "zstd-4k.qcow2", "extl2-16k.qcow2"];

static TABLES: LazyLock<Vec<Tables>> = LazyLock::new(|| IMAGES.map(Tables::of).into());

fn seeds() -> impl Iterator<Item = Vec<u8>> {
    TABLES.iter().zip(0..).map(|(tables, index)| [vec![index], tables.whole()].concat())
}

fuzz_target!(init: plant(seeds()), |input: &[u8]| {
    let Some((which, input)) = input.split_first() else { return };
    TABLES[usize::from(*which) % IMAGES.len()].look_with(input);
});
