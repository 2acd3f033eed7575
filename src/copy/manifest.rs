//! An image's bytes against its manifest, and the digest of its file.

use super::farm::{Pool, Worker};
use super::{CopyError, Watch};
use crate::image::Image;
use crate::range::ByteRange;
use crate::verify::{CHUNK, Digest, DigestTable, WholeDigester};

/// What the chunks of an image should be, as its manifest says.
#[derive(Clone, Copy)]
pub(crate) struct ByManifest<'a> {
    pub(crate) digests: &'a DigestTable,
    pub(crate) standing: Standing,
}

/// What a manifest's word of a chunk is worth before the chunk is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is to be compared with what the image gives.
    Claimed,
    /// The image was found to be the file that the manifest was made with: a disk that holds what the manifest says
    /// holds what the image does.
    Proved,
}

impl ByManifest<'_> {
    /// Whether the chunk at `range` has the digest that it should have; `None` is that of zeroes.
    pub(super) fn check(&self, range: ByteRange, found: Option<Digest>) -> Result<(), CopyError> {
        let said = self.digests.get(range.start());
        if found == said { Ok(()) } else { Err(CopyError::OtherThanManifest { range, said, found }) }
    }

    /// Whether all chunks of `range` should be zero.
    pub(super) fn check_zeroes(&self, range: ByteRange) -> Result<(), CopyError> {
        match self.digests.first_in(range) {
            None => Ok(()),
            Some(chunk) => self.check(chunk, None),
        }
    }
}

/// The BLAKE3 of the image's own file, of `watch.bytes_total` bytes, as it lies: read once, by all threads.
pub(crate) fn digest_file(pool: &Pool, image: &dyn Image, watch: &Watch<'_>) -> Result<Digest, CopyError> {
    let size = watch.bytes_total;
    let (mut whole, mut bytes_done) = (WholeDigester::new(size), 0);
    let mut pieces = ByteRange::new(0, size).cut(CHUNK);
    watch.started();
    let next = || match watch.cancel.is_cancelled() {
        true => Err(CopyError::Cancelled),
        false => Ok(pieces.next()),
    };
    let work = |worker: &mut Worker, piece: ByteRange| {
        let mut buffer = worker.take_buffer()?;
        let bytes = &mut buffer[..usize::try_from(piece.len()).expect("a chunk fits in memory")];
        image.read_file(piece.start(), bytes)?;
        let value = WholeDigester::chaining_value(size, piece, bytes);
        worker.give_back(buffer);
        Ok((piece, value))
    };
    let done = |(piece, value): (ByteRange, _)| {
        whole.insert(piece, value);
        bytes_done += piece.len();
        watch.progress(bytes_done);
        Ok(())
    };
    pool.run(next, work, done, watch)?;
    Ok(whole.finish())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;
    use crate::copy::{Compare, Onto, Sink, Transfer, Transferred};
    use crate::image::{
        Decoder, DigestAlgorithm, Extent, ExtentKind, FileIdentity, ImageError, ImageInfo, TableReport,
    };
    use crate::observe::{CancelToken, Phase};
    use crate::target::{Disk, Target, TargetError};
    use crate::verify::VerifiedChunk;

    const SIZE: u64 = 6 * CHUNK + 300;

    /// Chunk 1 is a hole; chunk 3 cannot be decoded.
    struct Damaged;

    fn content(range: ByteRange) -> Vec<u8> {
        let byte = |at: u64| if at / CHUNK == 1 { 0 } else { u8::try_from(at % 251).unwrap() };
        (range.start()..range.end()).map(byte).collect()
    }

    impl Image for Damaged {
        fn virtual_size(&self) -> u64 {
            SIZE
        }

        fn map(&self, range: ByteRange) -> Result<Vec<Extent>, ImageError> {
            let extent = |range: ByteRange| match range.start() / CHUNK {
                1 => Extent { range, kind: ExtentKind::Zero },
                _ => Extent { range, kind: ExtentKind::Data { layer: 0, host_offset: range.start() } },
            };
            Ok(range.cut(CHUNK).map(extent).collect())
        }

        fn read(&self, extents: &[Extent], buffer: &mut [u8], _: &mut Decoder) -> Result<(), ImageError> {
            let range = ByteRange::between(extents[0].range.start(), extents.last().unwrap().range.end());
            if range.start() / CHUNK == 3 {
                return Err(ImageError::BadCompression { path: "image".into(), range, why: "is damaged" });
            }
            buffer.copy_from_slice(&content(range));
            Ok(())
        }

        fn check_tables(&self) -> Result<TableReport, ImageError> {
            unreachable!("a transfer does not ask")
        }

        fn info(&self) -> ImageInfo {
            unreachable!("a transfer does not ask")
        }

        fn check_unchanged(&self) -> Result<(), ImageError> {
            Ok(())
        }

        fn identities(&self) -> Vec<FileIdentity> {
            Vec::new()
        }

        fn read_file(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ImageError> {
            buffer.copy_from_slice(&content(ByteRange::new(offset, buffer.len() as u64)));
            Ok(())
        }

        fn file_digest(&self, _: DigestAlgorithm) -> Result<[u8; 32], ImageError> {
            unreachable!("a transfer does not ask")
        }
    }

    fn table() -> DigestTable {
        let mut table = DigestTable::new(SIZE);
        for index in [0, 2, 3, 4, 5, 6] {
            table.insert(table.range(index), Digest::of(&content(table.range(index))));
        }
        table.sort();
        table
    }

    fn watched<T>(run: impl FnOnce(&Pool, &Watch<'_>) -> T) -> T {
        let (cancel, pool) = (CancelToken::new(), Pool::start(None).unwrap());
        let phase = Phase::Copy;
        let watch = Watch { observer: &(), cancel: &cancel, phase, bytes_total: SIZE, stall_timeout: None };
        run(&pool, &watch)
    }

    struct Memory(Mutex<Vec<u8>>);

    fn place(range: ByteRange) -> std::ops::Range<usize> {
        usize::try_from(range.start()).unwrap()..usize::try_from(range.end()).unwrap()
    }

    impl Disk for Memory {
        fn size(&self) -> u64 {
            self.0.lock().unwrap().len() as u64
        }

        fn sector_size(&self) -> u32 {
            512
        }

        fn read(&self, range: ByteRange, buffer: &mut [u8]) -> Result<(), TargetError> {
            let bytes = &self.0.lock().unwrap()[place(range)];
            buffer[..bytes.len()].copy_from_slice(bytes);
            Ok(())
        }

        fn next_data(&self, offset: u64) -> Result<Option<ByteRange>, TargetError> {
            Ok(Some(ByteRange::between(offset, self.size())).filter(|rest| !rest.is_empty()))
        }
    }

    impl Target for Memory {
        fn is_new(&self) -> bool {
            false
        }

        fn write(&self, chunk: &VerifiedChunk) -> Result<(), TargetError> {
            self.0.lock().unwrap()[place(chunk.range())].copy_from_slice(chunk.bytes());
            Ok(())
        }

        fn write_zeroes(&self, range: ByteRange) -> Result<(), TargetError> {
            self.0.lock().unwrap()[place(range)].fill(0);
            Ok(())
        }

        fn sync(&self) -> Result<(), TargetError> {
            Ok(())
        }
    }

    /// A disk of 8 chunks that holds the image, but for what is changed of it.
    fn disk(changed: &[u64]) -> Memory {
        let disk = Memory(Mutex::new(vec![0; 8 << 20]));
        for range in ByteRange::new(0, SIZE).cut(CHUNK) {
            let mut bytes = content(range);
            changed.iter().filter(|at| range.contains(**at)).for_each(|at| {
                bytes[usize::try_from(at - range.start()).unwrap()] ^= 1;
            });
            disk.write(&VerifiedChunk::copy_of(range, &bytes).unwrap()).unwrap();
        }
        disk
    }

    fn delta(disk: &Memory, standing: Standing) -> Result<Transferred, CopyError> {
        let digests = table();
        let middle = ByteRange::between(CHUNK, 7 * CHUNK);
        let onto = Onto {
            target: disk,
            middle,
            compare: Compare::Everything,
            may_write: false,
            checkpoint: Duration::from_secs(3),
        };
        let manifest = Some(ByManifest { digests: &digests, standing });
        let transfer = Transfer { image: &Damaged, sink: Sink::Target(onto), manifest, whole: None };
        watched(|pool, watch| super::super::transfer(pool, transfer, (watch, &mut ())))
    }

    #[test]
    fn a_disk_that_holds_what_a_proved_manifest_says_needs_no_cluster_that_can_be_decoded() {
        let disk = disk(&[]);
        let copied = delta(&disk, Standing::Proved).unwrap();
        // The head is not the copy's to judge.
        assert_eq!(copied.bytes_by_manifest, SIZE - 2 * CHUNK);
        assert_eq!((copied.bytes_written, copied.bytes_zeroed), (0, 0));
        assert_eq!(copied.digests.root(), table().root());
        assert_eq!(copied.withheld.len(), 1);
    }

    #[test]
    fn what_a_manifest_only_claims_is_compared_with_the_image() {
        let error = delta(&disk(&[]), Standing::Claimed).err().expect("chunk 3 is damaged");
        assert!(matches!(error, CopyError::Image(ImageError::BadCompression { .. })), "{error}");
    }

    #[test]
    fn a_chunk_that_differs_is_taken_from_the_image_and_so_is_the_last_ones_padding() {
        for at in [2 * CHUNK, 5 * CHUNK - 1, SIZE - 1] {
            let disk = disk(&[at]);
            let copied = delta(&disk, Standing::Proved).unwrap();
            let chunk = table().range(at / CHUNK);
            assert_eq!(copied.bytes_written, chunk.len());
            assert_eq!(copied.bytes_by_manifest, SIZE - 2 * CHUNK - chunk.len());
            let mut buffer = crate::sys::aligned::AlignedBuffer::zeroed(2 << 20).unwrap();
            disk.read(chunk, &mut buffer).unwrap();
            assert_eq!(buffer[..usize::try_from(chunk.len()).unwrap()], content(chunk));
        }
        let error = delta(&disk(&[3 * CHUNK + 7]), Standing::Proved).err().expect("chunk 3 is wanted");
        assert!(matches!(error, CopyError::Image(ImageError::BadCompression { .. })), "{error}");
    }

    #[test]
    fn the_files_digest_is_that_of_b3sum() {
        let found = watched(|pool, watch| digest_file(pool, &Damaged, watch)).unwrap();
        assert_eq!(found, Digest::of(&content(ByteRange::new(0, SIZE))));
    }
}
