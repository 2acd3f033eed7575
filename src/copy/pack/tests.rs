//! Goal: a packed image holds what the disk held, whatever the disk, the clusters, the packing and the threads are.
//!
//! Method: small disks from one `rng_seed` that a failure prints, packed and read back through our own reader, which
//! checks every table; and `qemu-img` as the judge of what only it counts, the refcounts.

use std::num::NonZeroUsize;
use std::path::Path;

use super::*;
use crate::image::{Decoder, OpenOptions, Packing};
use crate::observe::{CancelToken, Phase};
use crate::verify::CHUNK;

fn pool(threads: usize) -> Pool {
    Pool::start(NonZeroUsize::new(threads)).unwrap()
}

fn watch<'a>(cancel: &'a CancelToken) -> Watch<'a> {
    Watch { observer: &(), cancel, phase: Phase::Copy, bytes_total: 0, stall_timeout: None }
}

/// Packs the image that lies at a path, and returns what came of it with the new file's path.
fn packed(pool: &Pool, source: &dyn Image, (cluster_size, packing): (u32, Packing), path: &Path) -> Packed {
    let format = NewImage { virtual_size: source.virtual_size(), cluster_size, packing };
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    let whole = Some(WholeDigester::new(source.virtual_size()));
    let job = Pack { image: source, format: &format, file: &file, whole, on_bad: OnBad::Fail };
    let packed = pack(pool, job, &watch(&CancelToken::new())).unwrap();
    assert_eq!(file.metadata().unwrap().len(), packed.file_bytes);
    packed
}

fn open(path: &Path) -> Box<dyn Image> {
    crate::image::open(path, &OpenOptions::default()).unwrap()
}

fn content(image: &dyn Image) -> Vec<u8> {
    let mut content = vec![0xee; usize::try_from(image.virtual_size()).unwrap()];
    let (mut rest, mut decoder, mut at) = (&mut content[..], Decoder::default(), 0);
    while at < image.virtual_size() {
        let chunk = ByteRange::between(at, ((at / CHUNK + 1) * CHUNK).min(image.virtual_size()));
        let extents = image.map(chunk).unwrap();
        let end = extents.last().unwrap().range.end();
        let bytes = rest.split_off_mut(..usize::try_from(end - at).unwrap()).unwrap();
        image.read(&extents, bytes, &mut decoder).unwrap();
        at = end;
    }
    content
}

/// A disk of runs: zeroes, noise, text that shrinks, and one byte over and over.
fn disk(rng_seed: u64, len: usize) -> Vec<u8> {
    let mut state = rng_seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut disk = Vec::with_capacity(len);
    while disk.len() < len {
        let run = usize::try_from(random() % (1 + random() % 300_000)).unwrap().min(len - disk.len());
        match random() % 5 {
            0 | 1 => disk.resize(disk.len() + run, 0),
            2 => disk.extend((0..run).map(|_| random().to_le_bytes()[0])),
            3 => disk
                .extend((0..run).map(|at| b"lorem ipsum dolor"[at % 17] ^ (random() % 2).to_le_bytes()[0])),
            _ => disk.resize(disk.len() + run, random().to_le_bytes()[0]),
        }
    }
    disk
}

const PACKINGS: [Packing; 3] = [Packing::Zstd, Packing::Zlib, Packing::None];

#[test]
fn a_disk_comes_back_from_every_kind_of_image() {
    let folder = tempfile::tempdir().unwrap();
    let disk = disk(1, 3_000_017);
    let raw = folder.path().join("disk.raw");
    std::fs::write(&raw, &disk).unwrap();
    let (source, pool) = (open(&raw), pool(2));
    for packing in PACKINGS {
        for bits in 9..=21 {
            let path = folder.path().join(format!("{packing:?}-{bits}.qcow2"));
            let packed = packed(&pool, &*source, (1 << bits, packing), &path);
            let image = open(&path);
            image.check_tables().unwrap();
            assert!(content(&*image) == disk, "{packing:?}, {bits} bits");
            assert_eq!(packed.whole, Some(Digest::of(&disk)));
        }
    }
}

fn qemu_img(words: &[&str], path: &Path) -> std::process::Output {
    std::process::Command::new("qemu-img").args(words).arg(path).output().expect("qemu-img is installed")
}

/// Clean of errors and leaks, and of the same content.
#[track_caller]
fn check_with_qemu(image: &Path, raw: &Path, case: &str) {
    let checked = qemu_img(&["check", "-f", "qcow2"], image);
    assert!(checked.status.success(), "{case}: {checked:?}");
    let compared = qemu_img(&["compare", "-f", "qcow2", "-F", "raw", image.to_str().unwrap()], raw);
    assert!(compared.status.success(), "{case}: {compared:?}");
}

#[test]
#[ignore = "needs qemu-img"]
fn qemu_finds_every_image_clean_and_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, path) = (folder.path().join("disk.raw"), folder.path().join("image.qcow2"));
    let pool = pool(2);
    for size in [0, 512, 70_001, 3_000_017, 9 << 20] {
        let disk = disk(size, usize::try_from(size).unwrap());
        std::fs::write(&raw, &disk).unwrap();
        let source = open(&raw);
        for packing in PACKINGS {
            for bits in 9..=21 {
                packed(&pool, &*source, (1 << bits, packing), &path);
                // qemu drops what a disk has behind its last whole sector.
                let whole = folder.path().join("whole.raw");
                std::fs::write(&whole, &disk[..disk.len() / 512 * 512]).unwrap();
                check_with_qemu(&path, &whole, &format!("{size} bytes, {packing:?}, {bits} bits"));
                std::fs::remove_file(&path).unwrap();
            }
        }
    }
}
