//! An image that is looked at for all of its faults, and may have some: nothing is copied from it.

use std::path::Path;

use super::error::ImageError;
use super::fault::{Scope, Sink};
use super::layered::LayeredImage;
use super::{Image, OpenOptions, chain, file, layer};

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
    /// Walks all tables of all layers, and tells the sink everything that is wrong with them.
    ///
    /// # Errors
    ///
    /// As the sink gives them.
    pub(crate) fn walk(&self, sink: &mut Sink<'_>) -> Result<(), ImageError> {
        self.0.walk(Scope::Everything, sink)
    }

    /// Its disk, whose clusters may be anything.
    pub(crate) fn as_image(&self) -> &dyn Image {
        &self.0
    }
}
