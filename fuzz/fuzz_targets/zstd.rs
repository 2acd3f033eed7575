//! Compressed clusters of a qcow2 image: the input is one in zstd.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use reimage_fuzz::{Payload, plant};

static PAYLOAD: LazyLock<Payload> = LazyLock::new(|| Payload::of("zstd-64k.qcow2"));

fuzz_target!(init: plant(PAYLOAD.clusters().to_vec()), |input: &[u8]| PAYLOAD.look_with(input));
