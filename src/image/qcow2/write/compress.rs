//! One thread's compression contexts: a cluster becomes shorter, or stays as it is.

use zlib_rs::{Deflate, DeflateConfig, DeflateFlush, Status};
use zstd_safe::{CCtx, CParameter};

use super::{NewImage, Packing};

/// Deflate's level: the best that takes less than half of the time of qemu's (ARCHITECTURE.md, "Measured").
const ZLIB_LEVEL: i32 = 6;
/// Raw deflate with a window of 4 KiB: qemu's reader has no larger one.
const ZLIB_WINDOW_BITS: i32 = -12;
/// Zstandard's level; qemu takes the same.
const ZSTD_LEVEL: i32 = 3;
/// In clusters of at least so many bits its two tables have an entry for each 8 bytes, and at most 2^16: smaller than
/// the level's own, so that they stay in a core's nearest cache (ARCHITECTURE.md, "Measured").
const ZSTD_TABLES_FROM_BITS: u32 = 16;
const ZSTD_TABLE_LOG_MAX: u32 = 16;

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
    /// For the clusters of that image.
    pub(crate) fn new(format: &NewImage) -> Self {
        let codec = match format.packing {
            Packing::None => Codec::None,
            Packing::Zlib => Codec::Zlib(new_deflate()),
            Packing::Zstd => Codec::Zstd(new_zstd(format.cluster_bits())),
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

fn new_zstd(cluster_bits: u32) -> CCtx<'static> {
    let mut context = CCtx::create();
    let mut set = |parameter| {
        context.set_parameter(parameter).expect("every version of Zstandard has that level and such tables");
    };
    set(CParameter::CompressionLevel(ZSTD_LEVEL));
    if cluster_bits >= ZSTD_TABLES_FROM_BITS {
        let log = (cluster_bits - 3).min(ZSTD_TABLE_LOG_MAX);
        set(CParameter::HashLog(log));
        set(CParameter::ChainLog(log));
    }
    context
}

fn new_deflate() -> Deflate {
    Deflate::new_with_config(DeflateConfig {
        window_bits: ZLIB_WINDOW_BITS,
        ..DeflateConfig::new(ZLIB_LEVEL)
    })
}
