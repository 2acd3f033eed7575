//! Decodes all of an image and tells of every cluster that cannot be decoded, not only of the first.

use super::farm::{Pool, Worker};
use super::units::{Unit, Units};
use super::{CopyError, Watch};
use crate::image::{Extent, ExtentKind, Image, ImageError};
use crate::range::ByteRange;

/// How often as much is taken from an image with faulty tables as its files have.
const TIMES: u64 = 2;

/// No more than so many bytes come out of one of a deflate stream.
const RATIO_MAX: u64 = 1032;

/// A part of the disk that cannot be read.
pub(crate) struct BadCluster {
    pub(crate) guest: ByteRange,
    pub(crate) error: ImageError,
}

/// What is known of the tables of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tables {
    /// No two entries have the same bytes of a file.
    Sound,
    /// Any number of entries may have the same bytes.
    Faulty,
}

/// Reads every chunk that holds data; `found` gets, in no order, what could not be read.
///
/// With faulty tables no more is read than files of twice the length can hold. Gives the offset on the disk from
/// which on nothing was read for that.
pub(crate) fn bad_clusters(
    pool: &Pool,
    (image, tables): (&dyn Image, Tables),
    mut found: impl FnMut(BadCluster),
    watch: &Watch<'_>,
) -> Result<Option<u64>, CopyError> {
    watch.started();
    let (mut units, mut bytes_done) = (Units::with_long_zeroes(image), 0);
    let (mut purse, mut unread_from) = (Purse::of(image, tables), None);
    let next = || loop {
        if watch.cancel.is_cancelled() {
            return Err(CopyError::Cancelled);
        }
        match units.next()? {
            None => return Ok(None),
            Some(Unit::Zeroes(_)) => {}
            Some(Unit::Chunks(chunks)) if purse.pays(chunks.iter().flat_map(|(_, extents)| extents)) => {
                return Ok(Some(chunks));
            }
            Some(Unit::Chunks(chunks)) => {
                unread_from = Some(chunks[0].0.start());
                return Ok(None);
            }
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
    pool.run(next, work, done, watch)?;
    Ok(unread_from)
}

/// How much may still be taken from an image's files.
///
/// What an extent costs is no more than the bytes that it has of its file, so that entries of which no two have the
/// same bytes cost no more than the files have; but a cluster that is compressed to less than a `RATIO_MAX`th, as zstd
/// can, costs that.
struct Purse {
    left: u64,
    /// The cluster size of each layer.
    cluster_sizes: Vec<u64>,
    /// The last compressed extent.
    last: Option<ExtentKind>,
}

impl Purse {
    fn of(image: &dyn Image, tables: Tables) -> Self {
        let chain = image.info().chain;
        let bytes = chain.iter().fold(0, |sum: u64, layer| sum.saturating_add(layer.file_size));
        let left = match tables {
            Tables::Sound => u64::MAX,
            Tables::Faulty => bytes.saturating_mul(TIMES),
        };
        let cluster_sizes = chain.iter().map(|layer| layer.cluster_size.unwrap_or(0)).collect();
        Self { left, cluster_sizes, last: None }
    }

    /// Whether there is enough for all of these, which are then paid for.
    fn pays<'a>(&mut self, extents: impl Iterator<Item = &'a Extent>) -> bool {
        let price = extents.fold(0, |sum: u64, extent| sum.saturating_add(self.price(extent)));
        let left = self.left.checked_sub(price);
        self.left = left.unwrap_or(0);
        left.is_some()
    }

    fn price(&mut self, extent: &Extent) -> u64 {
        let ExtentKind::Compressed { layer, host_len, .. } = extent.kind else {
            return if extent.kind == ExtentKind::Zero { 0 } else { extent.range.len() };
        };
        let last = self.last.replace(extent.kind);
        if last.is_some_and(|last| goes_on(last, extent.kind)) {
            return 0;
        }
        // It ends somewhere in its last sector.
        let least = u64::from(host_len).saturating_sub(511);
        least.max(self.cluster_sizes[usize::from(layer)] / RATIO_MAX).max(1)
    }
}

/// Whether two extents are parts of one cluster, the second behind the first, so that it is decoded once.
fn goes_on(last: ExtentKind, next: ExtentKind) -> bool {
    let part = |kind| match kind {
        ExtentKind::Compressed { layer, host_offset, skip, .. } => Some((layer, host_offset, skip)),
        _ => None,
    };
    match (part(last), part(next)) {
        (Some((layer, host_offset, last)), Some((next_layer, next_offset, next))) => {
            (layer, host_offset) == (next_layer, next_offset) && last < next
        }
        _ => false,
    }
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::image::{Decoder, DigestAlgorithm, FileIdentity, ImageInfo, LayerInfo, TableReport};
    use crate::observe::{CancelToken, Phase};

    const CLUSTER: u64 = 1 << 21;
    const STREAM: u32 = 600 << 10;

    /// An image whose every cluster is a stream, that of its number or the same; each is counted when it is read.
    struct Streams {
        clusters: u64,
        file_size: u64,
        distance: u64,
        read: AtomicU64,
    }

    impl Image for Streams {
        fn virtual_size(&self) -> u64 {
            self.clusters * CLUSTER
        }

        fn map(&self, range: ByteRange) -> Result<Vec<Extent>, ImageError> {
            let cluster = range.start() / CLUSTER;
            let extent = Extent {
                range: ByteRange::new(cluster * CLUSTER, CLUSTER),
                kind: ExtentKind::Compressed {
                    layer: 0,
                    host_offset: cluster * self.distance,
                    host_len: STREAM + 511,
                    skip: 0,
                },
            };
            Ok(vec![extent.part(range)])
        }

        fn read(&self, extents: &[Extent], _: &mut [u8], _: &mut Decoder) -> Result<(), ImageError> {
            let bytes = extents.iter().map(|extent| extent.range.len()).sum();
            self.read.fetch_add(bytes, Ordering::SeqCst);
            Ok(())
        }

        fn info(&self) -> ImageInfo {
            let layer = LayerInfo {
                path: "image".into(),
                format: "qcow2",
                virtual_size: self.virtual_size(),
                file_size: self.file_size,
                version: None,
                cluster_size: Some(CLUSTER),
                compression: None,
                checksums: None,
                extended_l2: None,
                refcount_bits: None,
                snapshots: None,
                dirty: None,
                lazy_refcounts: None,
            };
            let (format, virtual_size, file_size) = ("qcow2", layer.virtual_size, layer.file_size);
            ImageInfo { format, virtual_size, file_size, chain: vec![layer] }
        }

        fn check_tables(&self) -> Result<TableReport, ImageError> {
            unreachable!("only its clusters are asked")
        }

        fn check_unchanged(&self) -> Result<(), ImageError> {
            Ok(())
        }

        fn identities(&self) -> Vec<FileIdentity> {
            Vec::new()
        }

        fn read_file(&self, _: u64, _: &mut [u8]) -> Result<(), ImageError> {
            unreachable!("only its clusters are asked")
        }

        fn file_digest(&self, _: DigestAlgorithm) -> Result<[u8; 32], ImageError> {
            unreachable!("only its clusters are asked")
        }
    }

    /// How many clusters are read of an image of streams that begin so far apart, and from where on none is.
    #[track_caller]
    fn check(tables: Tables, (clusters, distance): (u64, u64), expected: (u64, Option<u64>)) {
        let file_size = 10 * u64::from(STREAM);
        let image = Streams { clusters, file_size, distance, read: AtomicU64::new(0) };
        let (pool, cancel) = (Pool::start(None).unwrap(), CancelToken::new());
        let (phase, bytes_total) = (Phase::Preflight, image.virtual_size());
        let watch = Watch { observer: &(), cancel: &cancel, phase, bytes_total, stall_timeout: None };
        let end = bad_clusters(&pool, (&image, tables), |_| panic!("all can be read"), &watch).unwrap();
        assert_eq!((image.read.into_inner() / CLUSTER, end.map(|end| end / CLUSTER)), expected);
    }

    #[test]
    fn clusters_that_share_a_stream_are_read_no_more_than_their_file_is_long() {
        check(Tables::Faulty, (1000, 0), (20, Some(20)));
        check(Tables::Sound, (1000, 0), (1000, None));
        // None shares anything.
        check(Tables::Faulty, (10, u64::from(STREAM)), (10, None));
    }
}
