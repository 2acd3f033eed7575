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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::super::tests::{Fake, Random, folder, new_file, pack_into, pool};
    use super::*;
    use crate::image::Packing;
    use crate::image::tests::{content, open_alone};
    use crate::observe::CancelToken;

    const BAD: [u64; 6] = [0, 9, 10, 11, 5000, 6143];

    fn with_bad_sectors() -> Fake {
        let mut fake = Fake::of(Random::new(9).disk(3 << 20));
        // What is bad held something.
        fake.disk.iter_mut().for_each(|byte| *byte |= 1);
        fake.bad_sectors = BAD.into();
        fake
    }

    #[test]
    fn bad_sectors_become_zero_and_are_listed_and_all_others_are_read() {
        let folder = folder();
        for (cluster_size, errno) in [(512, libc::EIO), (64 << 10, libc::ENODATA), (2 << 20, libc::EILSEQ)] {
            let mut fake = with_bad_sectors();
            fake.errno = errno;
            let path = folder.path().join(cluster_size.to_string());
            let (file, cancel) = (new_file(&path), CancelToken::new());
            let fill = (&file, OnBad::FillZeroes);
            let packed = pack_into((&pool(2), &cancel), &fake, (cluster_size, Packing::Zstd), fill).unwrap();
            let merged = [(0, 1), (9, 3), (5000, 1), (6143, 1)];
            assert_eq!(packed.bad, merged.map(|(sector, count)| ByteRange::new(sector * 512, count * 512)));
            for sector in BAD.map(|sector| usize::try_from(sector * 512).unwrap()) {
                fake.disk[sector..sector + 512].fill(0);
            }
            assert!(content(&*open_alone(&path).unwrap(), 1 << 20).unwrap() == fake.disk);
            assert_eq!(packed.whole, Some(crate::verify::Digest::of(&fake.disk)), "of what the image holds");
        }
    }

    #[test]
    fn the_first_bad_sector_is_told_where_none_may_be() {
        let (folder, fake) = (folder(), with_bad_sectors());
        let file = new_file(&folder.path().join("image.qcow2"));
        let only = Fake { bad_sectors: [5000].into(), ..fake };
        let fail = (&file, OnBad::Fail);
        let ended = pack_into((&pool(2), &CancelToken::new()), &only, (65536, Packing::None), fail);
        match ended.map(|_| ()) {
            Err(CopyError::Image(fault)) => assert_eq!(fault.range(), Some(ByteRange::new(5000 * 512, 512))),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_disk_that_is_gone_is_not_taken_for_bad_sectors() {
        let folder = folder();
        for errno in [libc::ENODEV, libc::ENXIO, libc::ENOMEM] {
            let fake = Fake { errno, ..with_bad_sectors() };
            let file = new_file(&folder.path().join(errno.to_string()));
            let fill = (&file, OnBad::FillZeroes);
            let ended = pack_into((&pool(2), &CancelToken::new()), &fake, (65536, Packing::None), fill);
            assert!(matches!(ended, Err(CopyError::Image(_))), "{errno}");
        }
    }

    #[test]
    fn a_cancel_need_not_wait_until_every_sector_was_tried() {
        let (folder, cancel) = (folder(), CancelToken::new());
        let reads = Arc::new(AtomicU64::new(0));
        let (counted, later) = (Arc::clone(&reads), cancel.clone());
        let mut fake = Fake::of(vec![1; 1 << 20]);
        fake.bad_sectors = (0..2048).collect();
        fake.before = Box::new(move |_| {
            if counted.fetch_add(1, Ordering::SeqCst) == 20 {
                later.cancel();
            }
        });
        let file = new_file(&folder.path().join("image.qcow2"));
        let fill = (&file, OnBad::FillZeroes);
        let ended = pack_into((&pool(1), &cancel), &fake, (65536, Packing::None), fill);
        assert!(matches!(ended, Err(CopyError::Cancelled)));
        assert!(reads.load(Ordering::SeqCst) < 40);
    }
}
