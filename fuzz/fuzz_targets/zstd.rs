//! Compressed clusters of a qcow2 image: the input is one in zstd.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use reimage_fuzz::{Payload, plant};

static PAYLOAD: LazyLock<Payload> = LazyLock::new(|| Payload::of("zstd-64k.qcow2"));

/// A cluster of one byte, whose size the frame says in 8 bytes, which no compressor does.
///
/// RFC 8878: magic, descriptor (a size of 8 bytes, one segment), size; one block that is the last and repeats a byte.
fn repeated() -> Vec<u8> {
    let size = 64_u64 << 10;
    let block = size << 3 | 1 << 1 | 1;
    [&[0x28, 0xb5, 0x2f, 0xfd, 0xe0], &size.to_le_bytes()[..], &block.to_le_bytes()[..3], b"x"].concat()
}

fuzz_target!(
    init: plant(PAYLOAD.clusters().iter().cloned().chain([repeated()])),
    |input: &[u8]| PAYLOAD.look_with(input)
);
