//! An image that is looked at for all of its faults, and may have some: nothing is copied from it.

use std::path::Path;

use super::error::ImageError;
use super::fault::{Scope, Sink};
use super::layer::Layer;
use super::layered::LayeredImage;
use super::run::{Run, RunKind};
use super::{
    Decoder, DigestAlgorithm, Extent, FileIdentity, Image, ImageInfo, OpenOptions, TableReport, chain, file,
    layer,
};
use crate::range::ByteRange;

/// What was found under the image's name.
pub(crate) enum Examined {
    /// A disk whose tables can be walked.
    Disk(FaultyImage),
    /// One that is packed, and has no tables.
    Packed,
}

/// An image that was opened although it may have faults.
pub(crate) struct FaultyImage(LayeredImage);

/// Opens an image and every file below it, as far as what is wrong with them allows; the sink is told of that.
///
/// # Errors
///
/// Where nothing of the image can be looked at, and as the sink gives them.
pub(crate) fn examine(
    path: &Path,
    options: &OpenOptions<'_>,
    sink: &mut Sink<'_>,
) -> Result<Examined, ImageError> {
    let file = file::SourceFile::open(path)?;
    if layer::packed_with(&file, options.format)?.is_some() {
        return Ok(Examined::Packed);
    }
    Ok(Examined::Disk(FaultyImage(LayeredImage::new(chain::open(file, options, sink)?))))
}

impl FaultyImage {
    /// Walks all tables of all layers, and tells the sink what is wrong with them.
    ///
    /// # Errors
    ///
    /// As the sink gives them.
    pub(crate) fn walk(&self, scope: Scope, sink: &mut Sink<'_>) -> Result<(), ImageError> {
        self.0.walk(scope, sink)
    }
}

/// Its disk as far as it can be reached through entries that are sound; instead of the rest it has zeroes.
impl Image for FaultyImage {
    fn virtual_size(&self) -> u64 {
        self.0.virtual_size()
    }

    fn map(&self, range: ByteRange) -> Result<Vec<Extent>, ImageError> {
        let mut careful = Careful { step: u64::MAX };
        self.0.extents_by(range, |layer, range| Ok(careful.run_at(layer, range)))
    }

    fn read(&self, extents: &[Extent], buffer: &mut [u8], decoder: &mut Decoder) -> Result<(), ImageError> {
        self.0.read(extents, buffer, decoder)
    }

    fn check_tables(&self) -> Result<TableReport, ImageError> {
        self.0.check_tables()
    }

    fn check_unchanged(&self) -> Result<(), ImageError> {
        self.0.check_unchanged()
    }

    fn info(&self) -> ImageInfo {
        self.0.info()
    }

    fn identities(&self) -> Vec<FileIdentity> {
        self.0.identities()
    }

    fn read_file(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ImageError> {
        self.0.read_file(offset, buffer)
    }

    fn file_digest(&self, algorithm: DigestAlgorithm) -> Result<[u8; 32], ImageError> {
        self.0.file_digest(algorithm)
    }
}

/// Looks at layers in which entries may be faulty.
struct Careful {
    /// How many bytes of the disk are asked for at once: less behind a fault, so that a run that ends at one is not
    /// lost with it, nor looked at again and again.
    step: u64,
}

impl Careful {
    /// The first run of a range; what a faulty entry or a table that cannot be read should tell of is zero.
    fn run_at(&mut self, layer: &Layer, range: ByteRange) -> Run {
        let (entry, table) = layer.told_together(range.start());
        loop {
            let len = range.len().min(self.step.max(entry.len()));
            match layer.run_at(ByteRange::new(range.start(), len)) {
                Ok(run) => {
                    self.step = self.step.saturating_mul(2);
                    return run;
                }
                // A disk that cannot read a sector takes its time to say so.
                Err(ImageError::Io { .. }) => {
                    return Run { range: table, kind: RunKind::Zero }.head(range.len());
                }
                Err(_) if len <= entry.len() => {
                    return Run { range: entry, kind: RunKind::Zero }.head(range.len());
                }
                Err(_) => self.step = len / 2,
            }
        }
    }
}
