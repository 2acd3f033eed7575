//! The way into a new image: read, digest, compress in parallel; laid out in order of the disk; written in any order.
//!
//! The threads compress stretches of the disk and write parts of the file. In between the calling thread gives the
//! clusters their places, in order of the disk, so that the file does not depend on which thread was faster.

mod bad;
mod pass;
mod squeeze;
mod stretches;

pub(crate) use bad::OnBad;
pub(super) use squeeze::Press;

use std::cell::RefCell;
use std::fs::File;

use super::farm::Pool;
use super::patience::{MayOpen, patiently};
use super::{CopyError, Watch};
use crate::image::{Image, NewImage};
use crate::range::ByteRange;
use crate::sys::store::{self, UncachedWrites};
use crate::target::TargetError;
use crate::verify::{Digest, DigestTable, WholeDigester};
use pass::Pass;
use squeeze::Shared;

/// A disk that becomes a new image.
pub(crate) struct Pack<'a> {
    pub(crate) image: &'a dyn Image,
    /// What the file is to be; of the same virtual size as the disk.
    pub(crate) format: &'a NewImage,
    /// Empty, and open for reading and writing.
    pub(crate) file: &'a File,
    /// Present when the digest of the whole disk is wanted too.
    pub(crate) whole: Option<WholeDigester>,
    pub(crate) on_bad: OnBad,
}

/// What was packed; the file is complete and durable.
pub(crate) struct Packed {
    /// Of what the image holds, where sectors were bad as well.
    pub(crate) digests: DigestTable,
    pub(crate) whole: Option<Digest>,
    /// How long the file is.
    pub(crate) file_bytes: u64,
    /// What of the disk could not be read and became zero, in order and apart.
    pub(crate) bad: Vec<ByteRange>,
}

/// Makes the image; after an error the file holds no header that any reader would take for one.
///
/// # Errors
///
/// When there can be no such image, the disk cannot be read, or the file cannot be written or synced: a sync that
/// failed is not tried again.
///
/// # Panics
///
/// If the image to be made has another virtual size than the disk.
pub(crate) fn pack(pool: &Pool, pack: Pack<'_>, watch: &Watch<'_>) -> Result<Packed, CopyError> {
    let Pack { image, format, file, whole, on_bad } = pack;
    assert_eq!(
        image.virtual_size(),
        format.virtual_size,
        "the new image holds the whole disk and nothing else"
    );
    let shared = Shared {
        image,
        format,
        file,
        writes: UncachedWrites::past_the_cache(file),
        hashes_all: whole.is_some(),
        on_bad,
        cancel: watch.cancel,
    };
    let pass = RefCell::new(Pass::new(image, *format, (whole, pool.thread_count()))?);
    watch.started();
    let next = || match watch.cancel.is_cancelled() {
        true => Err(CopyError::Cancelled),
        false => pass.borrow_mut().next(),
    };
    let done = |outcome| {
        let mut pass = pass.borrow_mut();
        pass.absorb(outcome);
        watch.progress(pass.bytes_done().min(watch.bytes_total));
        Ok(())
    };
    pool.run_paced(next, |worker, job| shared.work(worker, job), done, watch)?;
    let (packed, header) = pass.into_inner().finish();
    complete(&shared, &header, packed.file_bytes, watch)?;
    watch.progress(watch.bytes_total);
    Ok(packed)
}

/// Writes the header behind everything else.
fn complete(shared: &Shared<'_>, header: &[u8], file_bytes: u64, watch: &Watch<'_>) -> Result<(), CopyError> {
    let file = shared.file;
    let sync = || file.sync_all().map_err(TargetError::during("syncing the image"));
    unhurried(sync, watch)?;
    if watch.cancel.is_cancelled() {
        return Err(CopyError::Cancelled);
    }
    let write_header = || {
        let range = ByteRange::new(0, header.len() as u64);
        let written = shared.writes.write_all_at(file, header, 0);
        written.map_err(TargetError::when("writing the image's header", range))?;
        sync()?;
        // What is read back is to come from the disk.
        store::drop_pages(file, ByteRange::new(0, file_bytes))
            .map_err(TargetError::during("dropping the page cache"))
    };
    unhurried(write_header, watch)
}

/// Does what a disk may take its time for.
fn unhurried(
    act: impl FnOnce() -> Result<(), TargetError> + Send,
    watch: &Watch<'_>,
) -> Result<(), CopyError> {
    let (done, stalled) = patiently(MayOpen::Nothing, act, watch)?;
    done?;
    stalled.map_or(Ok(()), Err)
}

/// Goal: a packed image holds what the disk held, whatever disk, clusters, packing and threads are.
///
/// Method: small disks from one `rng_seed`, read back through our own reader, which checks the tables; a counter of its
/// own for the refcounts; a plain writer of one thread that must make the same file; and `qemu-img`.
#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::num::NonZeroUsize;
    use std::path::Path;
    use std::process::Command;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;
    use crate::image::tests::{Folder, below, content, expected, open_alone, open_chain, sha256, written};
    use crate::image::{
        Decoder, DigestAlgorithm, Extent, ExtentKind, FileIdentity, ImageError, ImageInfo, Packing,
        TableReport,
    };
    use crate::observe::{CancelToken, Phase};
    use crate::verify::{CHUNK, CHUNK_LEN};

    /// A disk in memory of which some sectors are bad.
    pub(super) struct Fake {
        pub(super) disk: Vec<u8>,
        pub(super) bad_sectors: BTreeSet<u64>,
        pub(super) errno: i32,
        /// What happens before a read of the bytes from that offset on.
        pub(super) before: Box<dyn Fn(u64) + Send + Sync>,
    }

    impl Fake {
        pub(super) fn of(disk: Vec<u8>) -> Self {
            Self { disk, bad_sectors: BTreeSet::new(), errno: libc::EIO, before: Box::new(|_| ()) }
        }
    }

    impl Image for Fake {
        fn virtual_size(&self) -> u64 {
            self.disk.len() as u64
        }

        fn map(&self, range: ByteRange) -> Result<Vec<Extent>, ImageError> {
            let kind = ExtentKind::Data { layer: 0, host_offset: range.start() };
            Ok(vec![Extent { range, kind }])
        }

        fn read(&self, extents: &[Extent], mut buffer: &mut [u8], _: &mut Decoder) -> Result<(), ImageError> {
            for extent in extents {
                (self.before)(extent.range.start());
                let sectors = extent.range.start() / 512..extent.range.end().div_ceil(512);
                if self.bad_sectors.range(sectors).next().is_some() {
                    let source = std::io::Error::from_raw_os_error(self.errno);
                    let (doing, range) = ("reading the image", Some(extent.range));
                    return Err(ImageError::Io { doing, path: "/dev/fake".into(), range, source });
                }
                let place = |offset| usize::try_from(offset).unwrap();
                let bytes = &self.disk[place(extent.range.start())..place(extent.range.end())];
                buffer.split_off_mut(..bytes.len()).unwrap().copy_from_slice(bytes);
            }
            Ok(())
        }

        fn read_file(&self, _: u64, _: &mut [u8]) -> Result<(), ImageError> {
            unreachable!("a disk in memory has no file")
        }

        fn check_tables(&self) -> Result<TableReport, ImageError> {
            unreachable!("a disk in memory has no tables")
        }

        fn info(&self) -> ImageInfo {
            unreachable!("nobody asks a disk in memory")
        }

        fn check_unchanged(&self) -> Result<(), ImageError> {
            Ok(())
        }

        fn identities(&self) -> Vec<FileIdentity> {
            Vec::new()
        }

        fn file_digest(&self, _: DigestAlgorithm) -> Result<[u8; 32], ImageError> {
            unreachable!("nobody asks a disk in memory")
        }
    }

    /// Random numbers, all from one seed.
    pub(super) struct Random(u64);

    impl Random {
        pub(super) fn new(rng_seed: u64) -> Self {
            Self(rng_seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
        }

        /// A number below `end`.
        pub(super) fn below(&mut self, end: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % end
        }

        /// A disk of runs: zeroes, noise, text that shrinks, and one byte over and over.
        pub(super) fn disk(&mut self, len: u64) -> Vec<u8> {
            let len = usize::try_from(len).unwrap();
            let mut disk = Vec::with_capacity(len);
            let longest = 1 + self.below(300_000);
            while disk.len() < len {
                let run = usize::try_from(1 + self.below(longest)).unwrap().min(len - disk.len());
                match self.below(5) {
                    0 | 1 => disk.resize(disk.len() + run, 0),
                    2 => disk.extend((0..run).map(|_| self.below(1 << 60).to_le_bytes()[3])),
                    3 => disk
                        .extend((0..run).map(|at| b"lorem ipsum"[at % 11] ^ self.below(2).to_le_bytes()[0])),
                    _ => disk.resize(disk.len() + run, self.below(256).to_le_bytes()[0]),
                }
            }
            disk
        }
    }

    const PACKINGS: [Packing; 3] = [Packing::Zstd, Packing::Zlib, Packing::None];

    pub(super) fn pool(threads: usize) -> Pool {
        Pool::start(NonZeroUsize::new(threads)).unwrap()
    }

    /// A sync costs nothing in memory.
    pub(super) fn folder() -> TempDir {
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
    }

    pub(super) fn new_file(path: &Path) -> File {
        File::options().read(true).write(true).create_new(true).open(path).unwrap()
    }

    /// Packs an image into a file, with nobody watching.
    pub(super) fn pack_into(
        (pool, cancel): (&Pool, &CancelToken),
        image: &dyn Image,
        (cluster_size, packing): (u32, Packing),
        (file, on_bad): (&File, OnBad),
    ) -> Result<Packed, CopyError> {
        let format = NewImage { virtual_size: image.virtual_size(), cluster_size, packing };
        let whole = Some(WholeDigester::new(format.virtual_size));
        let watch = Watch { observer: &(), cancel, phase: Phase::Copy, bytes_total: 0, stall_timeout: None };
        pack(pool, Pack { image, format: &format, file, whole, on_bad }, &watch)
    }

    fn packed(pool: &Pool, image: &dyn Image, format: (u32, Packing), path: &Path) -> Packed {
        let file = new_file(path);
        let packed = pack_into((pool, &CancelToken::new()), image, format, (&file, OnBad::Fail)).unwrap();
        assert_eq!(file.metadata().unwrap().len(), packed.file_bytes);
        assert_eq!(packed.bad, []);
        packed
    }

    /// What the digests of a disk are, by a slow plain way.
    fn root_of(disk: &[u8]) -> Digest {
        let mut table = DigestTable::new(disk.len() as u64);
        for (index, chunk) in (0..).zip(disk.chunks(CHUNK_LEN)) {
            if chunk.iter().any(|byte| *byte != 0) {
                table.insert(table.range(index), Digest::of(chunk));
            }
        }
        table.sort();
        table.root()
    }

    #[test]
    fn any_small_disk_comes_back_from_any_kind_of_image() {
        const DISKS: u64 = 1_100;
        let (folder, pool, rng_seed) = (folder(), pool(3), 0x7e11_a5ed);
        let mut random = Random::new(rng_seed);
        let (path, other) = (folder.path().join("image.qcow2"), folder.path().join("other.qcow2"));
        for number in 0..DISKS {
            let longest = 1 << random.below(21);
            let (size, bits) = (random.below(longest + 1), 9 + random.below(13));
            // Disks of several chunks and clusters of 2 MiB cost time, so there are fewer.
            let size = if number % 50 == 0 { size + random.below(4 << 20) } else { size };
            let (disk, packing) = (random.disk(size), PACKINGS[usize::try_from(random.below(3)).unwrap()]);
            let case =
                format!("rng_seed {rng_seed:#x}, disk {number}: {size} bytes, {packing:?}, {bits} bits");
            let fake = Fake::of(disk);
            let packed = packed(&pool, &fake, (1 << bits, packing), &path);
            let image = open_alone(&path).unwrap();
            image.check_tables().unwrap_or_else(|error| panic!("{case}: {error}"));
            assert!(content(&*image, CHUNK).unwrap() == fake.disk, "{case}");
            assert_eq!(packed.whole, Some(Digest::of(&fake.disk)), "{case}");
            assert_eq!(packed.digests.root(), root_of(&fake.disk), "{case}");
            written::check_refcounts(&path);
            written::write(&other, &fake.disk, (1 << bits, packing));
            assert!(std::fs::read(&path).unwrap() == std::fs::read(&other).unwrap(), "{case}: another file");
            for path in [&path, &other] {
                std::fs::remove_file(path).unwrap();
            }
        }
    }

    #[test]
    fn one_two_and_eight_threads_make_the_same_file() {
        let folder = folder();
        let fake = Fake::of(Random::new(8).disk(24 << 20));
        for (packing, cluster_size) in PACKINGS.into_iter().zip([4096, 64 << 10, 2 << 20]) {
            let files = [1, 2, 8].map(|threads| {
                let path = folder.path().join(format!("{packing:?}-{threads}.qcow2"));
                packed(&pool(threads), &fake, (cluster_size, packing), &path);
                std::fs::read(&path).unwrap()
            });
            assert!(files[0] == files[1] && files[0] == files[2], "{packing:?}");
        }
    }

    #[test]
    fn a_cluster_of_two_chunks_holds_nothing_of_the_one_before() {
        let folder = folder();
        // One thread, so that it has put other bytes together before; 0 stands for a chunk of zeroes.
        for (number, chunks) in [[1, 1, 1, 0, 0, 1, 0, 0, 1], [0, 1, 1, 0, 1, 1, 1, 0, 1]].iter().enumerate()
        {
            let mut random = Random::new(12);
            let mut disk: Vec<u8> = chunks.iter().flat_map(|filled| vec![*filled; CHUNK_LEN]).collect();
            disk.iter_mut()
                .filter(|byte| **byte != 0)
                .for_each(|byte| *byte = random.below(200).to_le_bytes()[0]);
            disk.truncate(disk.len() - 70_001);
            let (path, other) =
                (folder.path().join(format!("{number}")), folder.path().join(format!("{number}-plain")));
            let fake = Fake::of(disk);
            packed(&pool(1), &fake, (2 << 20, Packing::Zstd), &path);
            written::write(&other, &fake.disk, (2 << 20, Packing::Zstd));
            assert!(std::fs::read(&path).unwrap() == std::fs::read(&other).unwrap(), "{chunks:?}");
            assert!(content(&*open_alone(&path).unwrap(), CHUNK).unwrap() == fake.disk, "{chunks:?}");
        }
    }

    #[test]
    fn an_image_of_any_format_with_all_its_layers_becomes_one_file() {
        let (target, pool) = (folder(), pool(2));
        let mut packings = PACKINGS.into_iter().cycle();
        for (name, size, digest) in expected() {
            let source = Folder::with(&[&format!("{name}.qcow2")]);
            for lower in below(&name) {
                source.unpack(lower, lower);
            }
            let image = open_chain(&source.path(&format!("{name}.qcow2")), &source.all_of());
            let Ok(image) = image else { continue };
            let path = target.path().join(format!("{name}.qcow2"));
            packed(&pool, &*image, (64 << 10, packings.next().unwrap()), &path);
            let found = open_alone(&path).unwrap();
            assert_eq!(
                (found.virtual_size(), sha256(&content(&*found, CHUNK).unwrap())),
                (size, digest),
                "{name}"
            );
            written::check_refcounts(&path);
        }
    }

    #[test]
    fn what_is_read_ahead_of_a_slow_chunk_is_bounded() {
        const THREADS: usize = 2;
        let begun: &'static AtomicUsize = Box::leak(Box::default());
        let mut fake = Fake::of(Random::new(4).disk(64 << 20));
        fake.disk.fill(1);
        fake.before = Box::new(move |offset| {
            begun.fetch_add(1, Ordering::SeqCst);
            let mut seen = 0;
            // The first one takes until no other is begun any more.
            while offset == 0 && std::mem::replace(&mut seen, begun.load(Ordering::SeqCst)) != seen {
                std::thread::sleep(Duration::from_millis(300));
            }
            if offset == 0 {
                let most = usize::try_from(pass::MOST_A_THREAD).unwrap() * THREADS;
                assert!(begun.load(Ordering::SeqCst) <= most, "{begun:?} chunks are in memory");
            }
        });
        let folder = folder();
        packed(&pool(THREADS), &fake, (64 << 10, Packing::None), &folder.path().join("image.qcow2"));
        assert_eq!(begun.load(Ordering::SeqCst), 64);
    }

    #[test]
    fn a_pass_that_ends_early_leaves_no_image() {
        let (folder, pool) = (folder(), pool(2));
        let path = folder.path().join("image.qcow2");
        let cancel = CancelToken::new();
        let mut fake = Fake::of(Random::new(5).disk(8 << 20));
        let later = cancel.clone();
        fake.before = Box::new(move |offset| {
            if offset >= 6 << 20 {
                later.cancel()
            }
        });
        let file = new_file(&path);
        let format = (64 << 10, Packing::None);
        let ended = pack_into((&pool, &cancel), &fake, format, (&file, OnBad::Fail));
        assert!(matches!(ended, Err(CopyError::Cancelled)));
        // A host that is busy may have ended it before anything was written.
        let head = std::fs::read(&path).unwrap();
        assert!(head.iter().take(4).all(|byte| *byte == 0), "there is no header");
        // Every write fails where the file is open for reading only.
        let file = File::open(&path).unwrap();
        let ended = pack_into((&pool, &CancelToken::new()), &fake, format, (&file, OnBad::Fail));
        assert!(matches!(ended, Err(CopyError::Target(_))));
    }

    /// Clean of errors and leaks, and of the same content; what a disk has behind its last whole sector, qemu drops.
    #[track_caller]
    fn check_with_qemu(image: &Path, raw: &Path, case: &str) {
        let qemu_img = |words: &[&str]| {
            let found = Command::new("qemu-img").args(words).output().expect("qemu-img is installed");
            assert!(found.status.success(), "{case}: {words:?}: {found:?}");
        };
        let (image, raw) = (image.to_str().unwrap(), raw.to_str().unwrap());
        qemu_img(&["check", "-f", "qcow2", image]);
        qemu_img(&["compare", "-f", "qcow2", "-F", "raw", image, raw]);
    }

    #[test]
    #[ignore = "needs qemu-img"]
    fn qemu_finds_every_image_clean_and_the_same() {
        let (folder, pool) = (folder(), pool(2));
        let (raw, path) = (folder.path().join("disk.raw"), folder.path().join("image.qcow2"));
        for size in [0, 512, 70_001, 3_000_017, 9 << 20] {
            let fake = Fake::of(Random::new(size).disk(size));
            std::fs::write(&raw, &fake.disk[..fake.disk.len() / 512 * 512]).unwrap();
            for packing in PACKINGS {
                for bits in 9..=21 {
                    packed(&pool, &fake, (1 << bits, packing), &path);
                    check_with_qemu(&path, &raw, &format!("{size} bytes, {packing:?}, {bits} bits"));
                    std::fs::remove_file(&path).unwrap();
                }
            }
        }
    }

    #[test]
    #[ignore = "needs qemu-img"]
    fn a_sparse_disk_of_2_tib_takes_no_time_and_qemu_finds_it_clean_and_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (raw, path) = (folder.path().join("disk.raw"), folder.path().join("image.qcow2"));
        let disk = new_file(&raw);
        disk.set_len(2 << 40).unwrap();
        for offset in [0, 3 << 20, 1 << 40, (2 << 40) - 5000] {
            std::os::unix::fs::FileExt::write_all_at(&disk, &[0x5a; 5000], offset).unwrap();
        }
        let image = open_alone(&raw).unwrap();
        for (packing, bits) in
            PACKINGS.into_iter().flat_map(|packing| [12, 16, 21].map(|bits| (packing, bits)))
        {
            let (file, cancel) = (new_file(&path), CancelToken::new());
            let format = NewImage { virtual_size: 2 << 40, cluster_size: 1 << bits, packing };
            let watch = Watch {
                observer: &(),
                cancel: &cancel,
                phase: Phase::Copy,
                bytes_total: 0,
                stall_timeout: None,
            };
            // Without the digest of the whole, for which all zeroes are hashed.
            let job = Pack { image: &*image, format: &format, file: &file, whole: None, on_bad: OnBad::Fail };
            let packed = pack(&pool(2), job, &watch).unwrap();
            assert!(packed.file_bytes < 32 << 20, "{} bytes", packed.file_bytes);
            check_with_qemu(&path, &raw, &format!("2 TiB, {packing:?}, {bits} bits"));
            written::check_refcounts(&path);
            std::fs::remove_file(&path).unwrap();
        }
    }
}
