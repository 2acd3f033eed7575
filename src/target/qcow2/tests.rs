//! Goal: what is written into a qcow2 file is what it gives back, in whatever order and pieces it came.
//! Method: random writes and zeroes beside the same on plain bytes, for the smallest, a usual and the largest cluster.

use std::sync::Arc;

use super::*;
use crate::sys::aligned::AlignedBuffer;

struct Bench {
    disk: Arc<NewQcow2>,
    model: Vec<u8>,
    rng: u64,
}

impl Bench {
    fn new(cluster_bits: u32, size: usize, rng_seed: u64) -> Self {
        let shape = Qcow2Shape { cluster_bits, ..Qcow2Shape::default() };
        let disk = Arc::new(NewQcow2::new(tempfile::tempfile().unwrap(), shape, size as u64));
        Self { disk, model: vec![0; size], rng: rng_seed }
    }

    fn below(&mut self, most: usize) -> usize {
        // xorshift64
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        usize::try_from(self.rng % most as u64).unwrap()
    }

    fn range(&mut self, most: usize) -> ByteRange {
        let start = self.below(self.model.len());
        let len = 1 + self.below(most);
        ByteRange::between(start as u64, (start + len).min(self.model.len()) as u64)
    }

    fn write(&mut self, range: ByteRange) {
        let value = u8::try_from(self.below(256)).unwrap();
        let mut bytes: Vec<u8> = (0..range.len()).map(|at| value.wrapping_add(at.to_le_bytes()[0])).collect();
        let hole = self.below(bytes.len());
        let end = hole + self.below(bytes.len() - hole + 1);
        bytes[hole..end].fill(0);
        self.disk.write(&VerifiedChunk::copy_of(range, &bytes).unwrap()).unwrap();
        self.model[to_index(range.start())..to_index(range.end())].copy_from_slice(&bytes);
    }

    fn zero(&mut self, range: ByteRange) {
        self.disk.write_zeroes(range).unwrap();
        self.model[to_index(range.start())..to_index(range.end())].fill(0);
    }

    #[track_caller]
    fn check(&self, range: ByteRange, what: &str) {
        let mut buffer = AlignedBuffer::zeroed(to_index(range.len()) + 8192).unwrap();
        self.disk.read(range, &mut buffer).unwrap();
        let right = &self.model[to_index(range.start())..to_index(range.end())];
        let wrong = right.iter().zip(&buffer[..]).position(|(right, found)| right != found);
        assert_eq!(wrong, None, "{what}: the first wrong byte of {range}");
    }

    /// Whatever is told to be stored nowhere is zero.
    #[track_caller]
    fn check_holes(&self, what: &str) {
        let mut at = 0;
        while let Some(run) = self.disk.next_data(at).unwrap() {
            assert!(run.start() >= at && !run.is_empty(), "{what}");
            assert!(is_zero(&self.model[to_index(at)..to_index(run.start())]), "{what}");
            at = run.end();
        }
        assert!(is_zero(&self.model[to_index(at)..]), "{what}");
    }
}

#[test]
fn a_qcow2_file_gives_back_what_was_written_in_any_order() {
    for (cluster_bits, size) in [(9, 3 << 20), (12, (2 << 20) + 512), (16, 5 << 20), (21, (6 << 20) + 1024)] {
        for rng_seed in 1..=4 {
            let what = format!("{cluster_bits} bits, rng_seed {rng_seed}");
            let mut bench = Bench::new(cluster_bits, size, rng_seed);
            for step in 0..60 {
                let range = bench.range(2 << 20);
                match bench.below(4) {
                    0 => bench.zero(range),
                    _ => bench.write(range),
                }
                if step % 10 == 9 {
                    bench.disk.sync().unwrap();
                }
                let looked_at = bench.range(1 << 20);
                bench.check(looked_at, &what);
            }
            bench.check(ByteRange::new(0, size as u64), &what);
            bench.check_holes(&what);
        }
    }
}

#[test]
fn zeroes_take_no_cluster_and_every_cluster_is_taken_once() {
    let mut bench = Bench::new(16, 64 << 20, 7);
    let zeroes = VerifiedChunk::copy_of(ByteRange::new(0, 1 << 20), &vec![0; 1 << 20]).unwrap();
    bench.disk.write(&zeroes).unwrap();
    bench.zero(ByteRange::new(0, 64 << 20));
    assert_eq!(bench.disk.next_data(0).unwrap(), None);
    let before = bench.disk.tables().next;
    let range = ByteRange::new(10 << 20, 1 << 20);
    let full = VerifiedChunk::copy_of(range, &vec![1; 1 << 20]).unwrap();
    bench.disk.write(&full).unwrap();
    bench.disk.write(&full).unwrap();
    // One L2 table and sixteen clusters.
    assert_eq!(bench.disk.tables().next - before, 17 << 16);
    assert_eq!(bench.disk.next_data(0).unwrap(), Some(range));
}

#[test]
fn two_threads_that_write_one_cluster_get_one() {
    let shape = Qcow2Shape { cluster_bits: 21, ..Qcow2Shape::default() };
    let disk = Arc::new(NewQcow2::new(tempfile::tempfile().unwrap(), shape, 64 << 20));
    std::thread::scope(|scope| {
        for half in 0..2_u8 {
            let disk = &disk;
            scope.spawn(move || {
                for cluster in 0..32 {
                    let range = ByteRange::new((cluster << 21) + (u64::from(half) << 20), 1 << 20);
                    let bytes = vec![half + 1; 1 << 20];
                    disk.write(&VerifiedChunk::copy_of(range, &bytes).unwrap()).unwrap();
                }
            });
        }
    });
    let mut buffer = AlignedBuffer::zeroed(64 << 20).unwrap();
    disk.read(ByteRange::new(0, 64 << 20), &mut buffer).unwrap();
    assert!(
        buffer
            .chunks(1 << 20)
            .zip((1..=2).cycle())
            .all(|(part, value)| part.iter().all(|byte| *byte == value))
    );
    assert_eq!(disk.tables().next, (2 + 1 + 32) << 21, "header, L1, one L2 table, the clusters");
}

/// A file whose tables were made for 64 MiB, and of which the disk takes as much as `size`.
fn ended_late(cluster_bits: u32, size: u64) -> (Arc<NewQcow2>, Vec<u8>) {
    let mut bench = Bench::new(cluster_bits, 64 << 20, 11);
    bench.model.truncate(to_index(size));
    for _ in 0..20 {
        let range = bench.range(100_000);
        bench.write(range);
    }
    bench.disk.end_at(size).unwrap();
    bench.disk.seal().unwrap();
    (bench.disk, bench.model)
}

#[test]
fn a_disk_whose_end_is_decided_when_it_has_been_written_ends_there() {
    // L1 tables of 32 clusters and of one.
    for (cluster_bits, size) in [(9, 512), (9, 300_032), (9, 64 << 20), (16, 300_032), (16, 64 << 20)] {
        let (disk, model) = ended_late(cluster_bits, size);
        let what = format!("{cluster_bits} bits, {size} bytes");
        let options = crate::image::OpenOptions::default();
        let path = std::path::Path::new("new.qcow2");
        let image = crate::image::open_held(disk.reopen().unwrap(), path, &options).unwrap();
        image.check_tables().unwrap();
        assert_eq!((image.virtual_size(), Disk::size(&disk)), (size, size), "{what}");
        assert!(crate::image::tests::content(image.as_ref(), 1 << 20).unwrap() == model, "{what}");
        let needed = disk.shape.l1_entries(size);
        let entries = disk.tables().l1.len() as u64;
        assert!(cluster_bits == 9 || entries == needed, "{what}: {entries} entries");
    }
}

#[test]
#[ignore = "needs qemu-img"]
fn qemu_finds_no_cluster_of_such_a_disk_that_nothing_uses() {
    for (cluster_bits, size) in [(9, 512), (9, 300_032), (16, 300_032)] {
        let (disk, _) = ended_late(cluster_bits, size);
        let path = format!("/proc/{}/fd/{}", std::process::id(), disk.store.file().as_raw_fd());
        let checked = std::process::Command::new("qemu-img").args(["check", "-f", "qcow2", &path]).output();
        let checked = checked.unwrap();
        let text = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(
            checked.status.success() && text.contains("No errors were found"),
            "{cluster_bits}: {checked:?}"
        );
    }
}
