//! Sectors of the disk that cannot be read.

use super::squeeze::Shared;
use crate::copy::CopyError;
use crate::copy::farm::Worker;
use crate::image::{Extent, ExtentKind, ImageError};
use crate::range::ByteRange;

/// What happens when a sector of the disk cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnBad {
    /// The pass ends with the error of the first one.
    Fail,
    /// It becomes zero and is listed.
    FillZeroes,
}

/// What is tried piece by piece: a page, which is what the kernel reads at least as a rule, and a disk's sector.
const PAGE: u64 = 4096;
const SECTOR: u64 = 512;

impl Shared<'_> {
    /// Fills the buffer with the bytes of `extents`; returns what of them could not be read and is zero.
    pub(super) fn read(
        &self,
        worker: &mut Worker,
        extents: &[Extent],
        buffer: &mut [u8],
    ) -> Result<Vec<ByteRange>, CopyError> {
        match self.image.read(extents, buffer, &mut worker.decoder) {
            Ok(()) => return Ok(Vec::new()),
            Err(fault) if !fault.is_unreadable() => return Err(fault.into()),
            Err(_) => {}
        }
        let (mut bad, mut rest) = (Vec::new(), buffer);
        for extent in extents {
            // Of a compressed cluster nothing is left where a sector is missing.
            let step = if matches!(extent.kind, ExtentKind::Compressed { .. }) { u64::MAX } else { PAGE };
            for page in extent.range.cut(step) {
                if self.cancel.is_cancelled() {
                    return Err(CopyError::Cancelled);
                }
                let bytes =
                    rest.split_off_mut(..to_index(page.len())).expect("a chunk is as long as its extents");
                self.read_page(worker, extent.part(page), bytes, &mut bad)?;
                worker.beat();
            }
        }
        Ok(bad)
    }

    fn read_page(
        &self,
        worker: &mut Worker,
        page: Extent,
        bytes: &mut [u8],
        bad: &mut Vec<ByteRange>,
    ) -> Result<(), CopyError> {
        if self.fault_of(worker, page, bytes)?.is_none() {
            return Ok(());
        }
        let step = if matches!(page.kind, ExtentKind::Compressed { .. }) { u64::MAX } else { SECTOR };
        let mut rest = bytes;
        for sector in page.range.cut(step) {
            let bytes =
                rest.split_off_mut(..to_index(sector.len())).expect("a page is as long as its sectors");
            let Some(fault) = self.fault_of(worker, page.part(sector), bytes)? else { continue };
            if self.on_bad == OnBad::Fail {
                return Err(fault.into());
            }
            bytes.fill(0);
            bad.push(sector);
        }
        Ok(())
    }

    /// Reads it; what the disk says if it cannot.
    fn fault_of(
        &self,
        worker: &mut Worker,
        extent: Extent,
        bytes: &mut [u8],
    ) -> Result<Option<ImageError>, CopyError> {
        match self.image.read(&[extent], bytes, &mut worker.decoder) {
            Ok(()) => Ok(None),
            Err(fault) if fault.is_unreadable() => Ok(Some(fault)),
            Err(fault) => Err(fault.into()),
        }
    }
}

fn to_index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a chunk fits in memory")
}
