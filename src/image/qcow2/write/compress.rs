//! One thread's compression contexts: a cluster becomes shorter, or stays as it is.

use zlib_rs::{Deflate, DeflateConfig, DeflateFlush, Status};
use zstd_safe::{CCtx, CParameter};

use super::Packing;

/// Deflate's level: the best that takes less than half of the time of qemu's (ARCHITECTURE.md, "Measured").
const ZLIB_LEVEL: i32 = 6;
/// Raw deflate with a window of 4 KiB: qemu's reader has no larger one.
const ZLIB_WINDOW_BITS: i32 = -12;
/// Zstandard's level; qemu takes the same.
const ZSTD_LEVEL: i32 = 3;

/// Compresses clusters, each for itself.
pub(crate) struct Compressor {
    codec: Codec,
    output: Vec<u8>,
}

enum Codec {
    Zstd(CCtx<'static>),
    Zlib(Deflate),
    None,
}

impl Compressor {
    pub(crate) fn new(packing: Packing) -> Self {
        let codec = match packing {
            Packing::None => Codec::None,
            Packing::Zlib => Codec::Zlib(new_deflate()),
            Packing::Zstd => {
                let mut context = CCtx::create();
                let set = context.set_parameter(CParameter::CompressionLevel(ZSTD_LEVEL));
                set.expect("every version of Zstandard has that level");
                Codec::Zstd(context)
            }
        };
        Self { codec, output: Vec::new() }
    }

    /// The cluster's compressed form, where that is shorter; it follows from the cluster's bytes alone.
    pub(crate) fn pack(&mut self, cluster: &[u8]) -> Option<&[u8]> {
        let len = match &mut self.codec {
            Codec::None => return None,
            Codec::Zlib(deflate) => {
                // A stream that ran out of room leaves something behind in zlib-rs 0.6 that no reset clears, and the
                // next one panics: so there is room for the worst case, and whatever goes wrong costs the context.
                self.output.resize(zlib_rs::compress_bound(cluster.len()), 0);
                deflate.reset();
                if deflate.compress(cluster, &mut self.output, DeflateFlush::Finish) != Ok(Status::StreamEnd)
                {
                    *deflate = new_deflate();
                    return None;
                }
                usize::try_from(deflate.total_out()).expect("it fits in the buffer")
            }
            Codec::Zstd(context) => {
                self.output.resize(zstd_safe::compress_bound(cluster.len()), 0);
                let done = context.compress2(&mut self.output[..], cluster);
                done.expect("a buffer of that size is large enough")
            }
        };
        self.output.get(..len).filter(|packed| packed.len() < cluster.len())
    }
}

fn new_deflate() -> Deflate {
    Deflate::new_with_config(DeflateConfig {
        window_bits: ZLIB_WINDOW_BITS,
        ..DeflateConfig::new(ZLIB_LEVEL)
    })
}
