//! Compressed clusters: read in groups, decompressed straight into the buffer where a whole one is wanted.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::error::ImageError;
use super::file::{SourceFile, Stamp};
use super::layered::take;
use super::qcow2::Compression;
use super::{Extent, ExtentKind};
use crate::range::ByteRange;
use crate::sys::aligned::PageBuffer;

/// How many compressed bytes are read at once, unless one cluster alone has more.
const GROUP_LEN_MAX: u64 = 1 << 20;

/// What a long job shows to whoever waits for it, and is told by them.
#[derive(Clone, Default)]
pub(crate) struct Pulse {
    /// Counts what gets done.
    pub(crate) beats: Arc<AtomicU64>,
    /// Whether nobody wants the result any more.
    pub(crate) stopped: Arc<AtomicBool>,
}

impl Pulse {
    /// Shows that a job goes on; fails when it need not.
    pub(super) fn check(&self, file: &SourceFile) -> Result<(), ImageError> {
        self.beats.fetch_add(1, Ordering::Relaxed);
        if !self.stopped.load(Ordering::Relaxed) {
            return Ok(());
        }
        let source = io::ErrorKind::Interrupted.into();
        Err(ImageError::Io { doing: "decoding the image", path: file.path().into(), range: None, source })
    }
}

/// One thread's decompression contexts and scratch space.
#[derive(Default)]
pub struct Decoder {
    pulse: Pulse,
    deflate: Option<libdeflater::Decompressor>,
    zstd: Option<zstd_safe::DCtx<'static>>,
    input: PageBuffer,
    /// The cluster that was decompressed last when only a part of it was wanted, and which one it is.
    cluster: Vec<u8>,
    cluster_is: Option<(Stamp, u64)>,
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Decoder")
    }
}

/// The layer that compressed clusters come from.
pub(super) struct Source<'a> {
    pub(super) file: &'a SourceFile,
    /// How its clusters are compressed and how long each is; a raw layer has none.
    pub(super) codec: Option<(Compression, u64)>,
}

/// The compressed form of one cluster.
#[derive(Clone, Copy)]
struct Packed {
    layer: u8,
    /// Clipped to the file's end.
    host: ByteRange,
    skip: u32,
}

impl Decoder {
    /// One whose long jobs are seen to go on, and can be stopped.
    pub(crate) fn with_pulse(pulse: Pulse) -> Self {
        Self { pulse, ..Self::default() }
    }

    pub(super) fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// Reads the first extents, which are compressed, with one read of the file; how many they were.
    pub(super) fn read_compressed(
        &mut self,
        source: &Source<'_>,
        extents: &[Extent],
        buffer: &mut &mut [u8],
    ) -> Result<usize, ImageError> {
        let (compression, cluster_size) =
            source.codec.expect("only layers that compress have compressed extents");
        let first = packed(&extents[0], source.file).expect("the first extent is compressed");
        let first_key = (source.file.stamp(), first.host.start());
        if self.cluster_is == Some(first_key) {
            self.copy_part(first.skip, take(buffer, extents[0].range));
            return Ok(1);
        }
        let (group, count) = group(&extents[1..], first, source.file);
        let group = whole_pages(group).intersection(ByteRange::new(0, source.file.len())).unwrap_or(group);
        source.file.read_exact_at(self.input.resized(index(group.len())), group.start())?;
        for extent in &extents[..count] {
            let packed = packed(extent, source.file).expect("a group has only compressed extents");
            let start = index(packed.host.start() - group.start());
            let span = start..start + index(packed.host.len());
            let target = take(buffer, extent.range);
            let bad =
                |why| ImageError::BadCompression { path: source.file.path().into(), range: packed.host, why };
            if extent.range.len() == cluster_size {
                self.decompress(compression, span, target).map_err(bad)?;
                continue;
            }
            self.cluster_is = None;
            let mut cluster = std::mem::take(&mut self.cluster);
            cluster.resize(index(cluster_size), 0);
            let result = self.decompress(compression, span, &mut cluster);
            self.cluster = cluster;
            result.map_err(bad)?;
            self.cluster_is = Some((source.file.stamp(), packed.host.start()));
            self.copy_part(packed.skip, target);
        }
        Ok(count)
    }

    /// Whether these bytes of the file begin with a stream that gives a whole cluster.
    pub(super) fn is_cluster(&mut self, source: &Source<'_>, bytes: ByteRange) -> Result<bool, ImageError> {
        let (compression, cluster_size) = source.codec.expect("only layers that compress have streams");
        source.file.read_exact_at(self.input.resized(index(bytes.len())), bytes.start())?;
        self.cluster_is = None;
        let mut cluster = std::mem::take(&mut self.cluster);
        cluster.resize(index(cluster_size), 0);
        let result = self.decompress(compression, 0..self.input.len(), &mut cluster);
        self.cluster = cluster;
        Ok(result.is_ok())
    }

    fn copy_part(&self, skip: u32, target: &mut [u8]) {
        let start = usize::try_from(skip).expect("a cluster is at most 2 MiB");
        target.copy_from_slice(&self.cluster[start..start + target.len()]);
    }

    /// Exactly one cluster of output: less is a fault, more is one too.
    fn decompress(
        &mut self,
        compression: Compression,
        span: std::ops::Range<usize>,
        target: &mut [u8],
    ) -> Result<(), &'static str> {
        let input = &self.input[span];
        match compression {
            Compression::Zlib => {
                let deflate = self.deflate.get_or_insert_with(libdeflater::Decompressor::new);
                match deflate.deflate_decompress(input, target) {
                    Ok(len) if len == target.len() => Ok(()),
                    Ok(_) => Err("gives less than a cluster"),
                    Err(libdeflater::DecompressionError::InsufficientSpace) => {
                        Err("gives more than a cluster")
                    }
                    Err(libdeflater::DecompressionError::BadData) => Err("is no deflate stream"),
                }
            }
            Compression::Zstd => {
                let zstd = self.zstd.get_or_insert_with(zstd_safe::DCtx::create);
                unpack_frames(zstd, input, target)
            }
        }
    }
}

/// Frame after frame until the cluster is full; what is left of the last sector belongs to others.
///
/// Each frame is decompressed in one call, so that no window is allocated, whatever size it asks for.
fn unpack_frames(
    zstd: &mut zstd_safe::DCtx<'static>,
    mut input: &[u8],
    mut target: &mut [u8],
) -> Result<(), &'static str> {
    while !target.is_empty() {
        if input.is_empty() {
            return Err("gives less than a cluster");
        }
        let len = zstd_safe::find_frame_compressed_size(input).map_err(|_| "is no complete zstd frame")?;
        let (frame, rest) = input.split_at_checked(len).ok_or("is no complete zstd frame")?;
        let written = zstd.decompress(target, frame).map_err(|_| "is no zstd frame of at most a cluster")?;
        input = rest;
        target = &mut target[written..];
    }
    Ok(())
}

fn packed(extent: &Extent, file: &SourceFile) -> Option<Packed> {
    let ExtentKind::Compressed { layer, host_offset, host_len, skip } = extent.kind else { return None };
    let end = host_offset.saturating_add(host_len.into()).min(file.len());
    Some(Packed { layer, host: ByteRange::between(host_offset.min(end), end), skip })
}

/// How far one read can go: neighbours in the disk that are neighbours in the file too.
fn group(others: &[Extent], first: Packed, file: &SourceFile) -> (ByteRange, usize) {
    let mut range = first.host;
    let mut count = 1;
    for extent in others {
        let Some(next) = packed(extent, file).filter(|next| next.layer == first.layer) else { break };
        let (start, end) = (next.host.start(), range.end().max(next.host.end()));
        // Streams lie byte behind byte, so a stream's last sector holds the beginning of the next.
        let follows = range.start() <= start && start <= range.end();
        if !follows || end - range.start() > GROUP_LEN_MAX {
            break;
        }
        range = ByteRange::between(range.start(), end);
        count += 1;
    }
    (range, count)
}

/// The pages that hold those bytes: such reads can go past the page cache.
fn whole_pages(range: ByteRange) -> ByteRange {
    const PAGE: u64 = 4096;
    ByteRange::between(range.start() - range.start() % PAGE, range.end().next_multiple_of(PAGE))
}

fn index(len: u64) -> usize {
    usize::try_from(len).expect("a few MiB")
}
