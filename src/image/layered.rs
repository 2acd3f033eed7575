//! `LayeredImage`: a chain of layers as one disk. Each byte comes from the topmost layer that says something.

use sha2::Digest as _;

use super::decoder::{Decoder, Source};
use super::error::ImageError;
use super::fault::{Scope, Sink, refuse};
use super::file::{FileIdentity, SourceFile, Stretch};
use super::layer::{Layer, LayerFormat};
use super::run::{Run, RunKind};
use super::{DigestAlgorithm, Extent, ExtentKind, Image, ImageInfo, TableReport};
use crate::range::ByteRange;

/// How many extents one call of `map` returns at most, and how many runs it looks at.
const EXTENTS_MAX: usize = 4096;

/// How much of a file is digested at once.
const DIGEST_STEP: u64 = 1 << 20;

/// An image and the files below it.
pub(super) struct LayeredImage {
    layers: Vec<Layer>,
}

impl LayeredImage {
    /// The layers from the image itself down; at least one.
    pub(super) fn new(layers: Vec<Layer>) -> Self {
        assert!(!layers.is_empty() && layers.len() <= usize::from(u8::MAX), "a chain has 1 to 255 layers");
        Self { layers }
    }

    /// Checks all tables of all layers, each once.
    pub(super) fn walk(&self, scope: Scope, sink: &mut Sink<'_>) -> Result<(), ImageError> {
        self.layers.iter().try_for_each(|layer| layer.walk(scope, sink))
    }

    fn top(&self) -> &Layer {
        &self.layers[0]
    }

    /// The first extent of a range; `runs` keeps what each layer said last when it was asked by `look`.
    fn extent_at(
        &self,
        range: ByteRange,
        runs: &mut [Option<Run>],
        look: &mut impl FnMut(&Layer, ByteRange) -> Result<Run, ImageError>,
    ) -> Result<Extent, ImageError> {
        let zero = |range| Ok(Extent { range, kind: ExtentKind::Zero });
        let mut range = range;
        for (index, (layer, known)) in self.layers.iter().zip(runs).enumerate() {
            let end = range.end().min(layer.virtual_size());
            if range.start() >= end {
                return zero(range);
            }
            let visible = ByteRange::between(range.start(), end);
            let run = match known.and_then(|run| run.tail(visible.start())) {
                Some(run) => run,
                None => *known.insert(look(layer, visible)?),
            };
            range = run.range.intersection(visible).expect("a run begins where it was asked for");
            let layer_number = u8::try_from(index).expect("a chain has at most 255 layers");
            let kind = match run.kind {
                RunKind::Unallocated => continue,
                RunKind::Zero => ExtentKind::Zero,
                RunKind::Data { host_offset } => {
                    return Ok(stored(layer, layer_number, range, host_offset));
                }
                RunKind::Compressed { host_offset, host_len, skip } => {
                    ExtentKind::Compressed { layer: layer_number, host_offset, host_len, skip }
                }
            };
            return Ok(Extent { range, kind });
        }
        zero(range)
    }

    /// The extents of a range, as many as one call may give.
    fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, ImageError> {
        self.extents_by(range, Layer::run_at)
    }

    /// The same, where `look` says what a layer has at the start of a range.
    pub(super) fn extents_by(
        &self,
        range: ByteRange,
        mut look: impl FnMut(&Layer, ByteRange) -> Result<Run, ImageError>,
    ) -> Result<Vec<Extent>, ImageError> {
        let mut extents: Vec<Extent> = Vec::new();
        // Where one layer is cut short by another, what it said is kept for the next step: otherwise many small
        // runs below one large one would cost its length each.
        let mut runs = vec![None; self.layers.len()];
        let mut at = range.start();
        for _ in 0..EXTENTS_MAX {
            if at >= range.end() {
                break;
            }
            let extent = self.extent_at(ByteRange::between(at, range.end()), &mut runs, &mut look)?;
            at = extent.range.end();
            match extents.last_mut() {
                Some(last) if continues(last, &extent) => {
                    last.range = ByteRange::between(last.range.start(), at);
                }
                _ => extents.push(extent),
            }
        }
        Ok(extents)
    }

    /// Where the bytes of an extent are to be taken from.
    fn source(&self, layer: u8) -> Source<'_> {
        let layer = &self.layers[usize::from(layer)];
        let codec = match &layer.format {
            LayerFormat::Raw => None,
            LayerFormat::Qcow2(qcow2) => Some((qcow2.header.compression, qcow2.header.cluster_size())),
        };
        Source { file: &layer.file, codec }
    }
}

/// Bytes in a file; where the file has a hole they are zeroes that nobody needs to read.
fn stored(layer: &Layer, number: u8, range: ByteRange, host_offset: u64) -> Extent {
    let (stretch, part) = layer.file.stretch_at(ByteRange::new(host_offset, range.len()));
    let kind = match stretch {
        Stretch::Hole => ExtentKind::Zero,
        Stretch::Stored => ExtentKind::Data { layer: number, host_offset },
    };
    Extent { range: ByteRange::new(range.start(), part.len()), kind }
}

fn continues(last: &Extent, next: &Extent) -> bool {
    match (last.kind, next.kind) {
        (ExtentKind::Zero, ExtentKind::Zero) => true,
        (
            ExtentKind::Data { layer, host_offset },
            ExtentKind::Data { layer: next_layer, host_offset: next_offset },
        ) => layer == next_layer && host_offset + last.range.len() == next_offset,
        _ => false,
    }
}

impl Image for LayeredImage {
    fn virtual_size(&self) -> u64 {
        self.top().virtual_size()
    }

    fn map(&self, range: ByteRange) -> Result<Vec<Extent>, ImageError> {
        assert!(range.end() <= self.virtual_size(), "a range to map is within the virtual disk");
        self.extents(range)
    }

    fn read(&self, extents: &[Extent], buffer: &mut [u8], decoder: &mut Decoder) -> Result<(), ImageError> {
        let mut rest = buffer;
        let mut extents = extents;
        while let Some(first) = extents.first() {
            let count = match first.kind {
                ExtentKind::Compressed { layer, .. } => {
                    decoder.read_compressed(&self.source(layer), extents, &mut rest)?
                }
                ExtentKind::Zero => {
                    take(&mut rest, first.range).fill(0);
                    1
                }
                ExtentKind::Data { layer, host_offset } => {
                    self.layers[usize::from(layer)]
                        .file
                        .read_exact_at(take(&mut rest, first.range), host_offset)?;
                    1
                }
                ExtentKind::Streamed => unreachable!("a layer is no stream"),
            };
            extents = &extents[count..];
        }
        assert!(rest.is_empty(), "the buffer is as long as the extents");
        Ok(())
    }

    fn says_nothing_of(&self, range: ByteRange) -> Result<bool, ImageError> {
        let mut rest = range;
        while !rest.is_empty() {
            let run = self.top().run_at(rest)?;
            if run.kind != RunKind::Unallocated {
                return Ok(false);
            }
            rest = ByteRange::between(run.range.end(), rest.end());
        }
        Ok(true)
    }

    fn check_tables(&self) -> Result<TableReport, ImageError> {
        self.walk(Scope::Refusals, &mut refuse)?;
        let mut report = TableReport::default();
        let mut rest = ByteRange::new(0, self.virtual_size());
        while !rest.is_empty() {
            for extent in self.extents(rest)? {
                let count = match extent.kind {
                    ExtentKind::Zero => &mut report.zero_bytes,
                    ExtentKind::Data { .. } => &mut report.data_bytes,
                    ExtentKind::Compressed { .. } | ExtentKind::Streamed => &mut report.compressed_bytes,
                };
                *count += extent.range.len();
                rest = ByteRange::between(extent.range.end(), rest.end());
            }
        }
        Ok(report)
    }

    fn info(&self) -> ImageInfo {
        let chain: Vec<_> = self.layers.iter().map(Layer::info).collect();
        let top = chain[0].clone();
        ImageInfo { format: top.format, virtual_size: top.virtual_size, file_size: top.file_size, chain }
    }

    fn identities(&self) -> Vec<FileIdentity> {
        self.layers.iter().map(|layer| layer.file.identity().clone()).collect()
    }

    fn check_unchanged(&self) -> Result<(), ImageError> {
        self.layers.iter().try_for_each(|layer| layer.file.check_unchanged())
    }

    fn read_file(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ImageError> {
        self.top().file.read_exact_at(buffer, offset)
    }

    fn file_digest(&self, algorithm: DigestAlgorithm) -> Result<[u8; 32], ImageError> {
        file_digest(&self.top().file, algorithm)
    }
}

/// The digest of a file as it lies.
pub(super) fn file_digest(file: &SourceFile, algorithm: DigestAlgorithm) -> Result<[u8; 32], ImageError> {
    match algorithm {
        DigestAlgorithm::Sha256 => {
            let mut hasher = sha2::Sha256::new();
            each_part(file, |part| hasher.update(part))?;
            Ok(hasher.finalize().into())
        }
        DigestAlgorithm::Blake3 => {
            let mut hasher = blake3::Hasher::new();
            each_part(file, |part| {
                hasher.update(part);
            })?;
            Ok(hasher.finalize().into())
        }
    }
}

fn each_part(file: &SourceFile, mut take_in: impl FnMut(&[u8])) -> Result<(), ImageError> {
    let mut buffer = vec![0; 1 << 20];
    for part in ByteRange::new(0, file.len()).cut(DIGEST_STEP) {
        let buffer = &mut buffer[..usize::try_from(part.len()).expect("at most a step")];
        file.read_exact_at(buffer, part.start())?;
        take_in(buffer);
    }
    Ok(())
}

/// Takes as many bytes as the range has from the front of the buffer.
pub(super) fn take<'a>(buffer: &mut &'a mut [u8], range: ByteRange) -> &'a mut [u8] {
    let len = usize::try_from(range.len()).expect("an extent to read fits in memory");
    buffer.split_off_mut(..len).expect("the buffer is as long as the extents")
}
