//! An image that is looked at for all of its faults, and may have some: nothing is copied from it.

use std::path::Path;

use super::error::ImageError;
use super::fault::{Scope, Sink};
use super::layer::{Layer, Reach};
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
        self.run_by(range, layer.reach_at(range.start()), |range| layer.run_at(range))
    }

    /// The same, where `look` says what there is at the start of a range.
    fn run_by(
        &mut self,
        range: ByteRange,
        reach: Reach,
        mut look: impl FnMut(ByteRange) -> Result<Run, ImageError>,
    ) -> Run {
        // A look beyond what one can see costs as much, and each half of it again.
        self.step = self.step.min(reach.most);
        loop {
            let len = range.len().min(self.step.max(reach.entry.len()));
            match look(ByteRange::new(range.start(), len)) {
                Ok(run) => {
                    self.step = self.step.saturating_mul(2);
                    return run;
                }
                // A disk that cannot read a sector takes its time to say so.
                Err(ImageError::Io { .. }) => {
                    return Run { range: reach.table, kind: RunKind::Zero }.head(range.len());
                }
                Err(_) if len <= reach.entry.len() => {
                    return Run { range: reach.entry, kind: RunKind::Zero }.head(range.len());
                }
                Err(_) => self.step = len / 2,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_costs_few_looks_at_the_entries_before_it() {
        const ENTRY: u64 = 1 << 21;
        const MOST: u64 = 65536;
        const SEGMENT: u64 = 50_000;
        // Of each segment the last entry is faulty, and the first ones are short runs; the disk goes on and on.
        let (segments, size) = (40, 1 << 60);
        let told = |entry: u64| match entry % SEGMENT {
            place if place + 1 == SEGMENT => None,
            place if place < 64 && place % 2 == 1 => Some(RunKind::Zero),
            _ => Some(RunKind::Unallocated),
        };
        let reach = |at: u64| {
            let rest = |len: u64| ByteRange::between(at, (at - at % len + len).min(size));
            Reach { entry: rest(ENTRY), table: rest(ENTRY << 18), most: MOST * ENTRY }
        };
        let mut looked_at = 0;
        let mut look = |range: ByteRange| {
            let first = range.start() / ENTRY;
            let kind = told(first);
            for entry in first..range.end().div_ceil(ENTRY).min(first + MOST) {
                looked_at += 1;
                match told(entry) {
                    None => return Err(ImageError::TooScattered { path: "image".into() }),
                    next if next == kind => {}
                    _ => return Ok((entry, kind)),
                }
            }
            Ok((range.end().div_ceil(ENTRY).min(first + MOST), kind))
        };
        let (mut careful, mut at, mut faults) = (Careful { step: u64::MAX }, 0, 0);
        while at < segments * SEGMENT * ENTRY {
            let run = careful.run_by(ByteRange::between(at, size), reach(at), |range| {
                let (end, kind) = look(range)?;
                let kind = kind.expect("a faulty entry is no run");
                Ok(Run { range: ByteRange::between(range.start(), range.end().min(end * ENTRY)), kind })
            });
            let is_faulty = told(at / ENTRY).is_none();
            assert!(is_faulty || told(at / ENTRY) == Some(run.kind));
            assert!(!is_faulty || (run.kind, run.range.len()) == (RunKind::Zero, ENTRY));
            faults += u64::from(is_faulty);
            at = run.range.end();
        }
        assert_eq!(faults, segments, "each faulty entry is zero, and nothing else");
        assert!(looked_at < 5 * segments * SEGMENT, "{looked_at} of {}", segments * SEGMENT);
    }
}
