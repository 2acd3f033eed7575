//! Decodes all of an image and tells of every cluster that cannot be decoded, not only of the first.

use super::farm::{Pool, Worker};
use super::units::{Unit, Units};
use super::{CopyError, Watch};
use crate::image::{Extent, Image, ImageError};
use crate::range::ByteRange;

/// A part of the disk that cannot be read.
pub(crate) struct BadCluster {
    pub(crate) guest: ByteRange,
    pub(crate) error: ImageError,
}

/// Reads every chunk that holds data; `found` gets, in no order, what could not be read.
pub(crate) fn bad_clusters(
    pool: &Pool,
    image: &dyn Image,
    mut found: impl FnMut(BadCluster),
    watch: &Watch<'_>,
) -> Result<(), CopyError> {
    watch.started();
    let (mut units, mut bytes_done) = (Units::with_long_zeroes(image), 0);
    let next = || loop {
        if watch.cancel.is_cancelled() {
            return Err(CopyError::Cancelled);
        }
        match units.next()? {
            None => return Ok(None),
            Some(Unit::Zeroes(_)) => {}
            Some(Unit::Chunks(chunks)) => return Ok(Some(chunks)),
        }
    };
    let work = |worker: &mut Worker, chunks: Vec<(ByteRange, Vec<Extent>)>| {
        let mut bad: Vec<BadCluster> = Vec::new();
        let mut last = 0;
        for (range, extents) in chunks {
            last = range.end();
            for cluster in bad_in(worker, image, (range, &extents))? {
                // Two chunks that share a cluster come together.
                let is_known = bad.last().is_some_and(|last| last.error.range() == cluster.error.range());
                if !is_known {
                    bad.push(cluster);
                }
            }
        }
        Ok((last, bad))
    };
    let done = |(end, bad): (u64, Vec<BadCluster>)| {
        bytes_done = end.max(bytes_done);
        watch.progress(bytes_done.min(watch.bytes_total));
        bad.into_iter().for_each(&mut found);
        Ok(())
    };
    pool.run(next, work, done, watch)
}

fn bad_in(
    worker: &mut Worker,
    image: &dyn Image,
    (range, extents): (ByteRange, &[Extent]),
) -> Result<Vec<BadCluster>, CopyError> {
    let mut buffer = worker.take_buffer()?;
    let mut bad = Vec::new();
    let part = |range: ByteRange| usize::try_from(range.len()).expect("a chunk is short");
    if image.read(extents, &mut buffer[..part(range)], &mut worker.decoder).is_err() {
        // One by one, so that each says what is wrong with it.
        for extent in extents {
            let buffer = &mut buffer[..part(extent.range)];
            if let Err(error) = image.read(std::slice::from_ref(extent), buffer, &mut worker.decoder) {
                bad.push(BadCluster { guest: extent.range, error });
            }
        }
    }
    worker.give_back(buffer);
    Ok(bad)
}
