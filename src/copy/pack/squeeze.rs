//! What one thread does: read a stretch of the disk, digest its chunks, compress its clusters; or write parts.

use std::fs::File;

use super::OnBad;
use super::stretches::Chunk;
use crate::copy::CopyError;
use crate::copy::farm::Worker;
use crate::copy::pieces::hash_zeroes;
use crate::image::{Compressor, FilePart, Image, NewImage, Stored};
use crate::observe::CancelToken;
use crate::range::ByteRange;
use crate::sys::aligned::AlignedBuffer;
use crate::sys::store::UncachedWrites;
use crate::target::TargetError;
use crate::verify::{CHUNK, Digest, VerifiedChunk, WholeDigester, is_zero};

pub(super) enum Job {
    /// The stretch of that number, and memory for its bytes.
    Squeeze(u64, Vec<Chunk>, Vec<u8>),
    HashZeroes(ByteRange),
    Write(Vec<FilePart>),
}

pub(super) enum Outcome {
    Squeezed(Squeezed),
    Hashed(ByteRange, [u8; 32]),
    Written(Vec<FilePart>),
}

/// A stretch, digested and compressed.
pub(super) struct Squeezed {
    pub(super) number: u64,
    pub(super) chunks: Vec<Digested>,
    clusters: Vec<Cluster>,
    pub(super) bytes: Vec<u8>,
    pub(super) bad: Vec<ByteRange>,
}

pub(super) struct Digested {
    pub(super) range: ByteRange,
    pub(super) digest: Option<Digest>,
    pub(super) whole: Option<[u8; 32]>,
}

/// A cluster that is not all zero.
struct Cluster {
    number: u64,
    form: Form,
    len: usize,
}

#[derive(Clone, Copy)]
enum Form {
    Plain,
    Packed,
}

impl Squeezed {
    /// The clusters that are not all zero, in order, as they are stored.
    pub(super) fn clusters(&self) -> impl Iterator<Item = (u64, Stored<'_>)> {
        let mut rest = &self.bytes[..];
        self.clusters.iter().map(move |cluster| {
            let bytes = rest.split_off(..cluster.len).expect("the bytes of every cluster are there");
            let stored = match cluster.form {
                Form::Plain => Stored::Plain(bytes),
                Form::Packed => Stored::Packed(bytes),
            };
            (cluster.number, stored)
        })
    }
}

/// What the threads share.
pub(super) struct Shared<'a> {
    pub(super) image: &'a dyn Image,
    pub(super) format: &'a NewImage,
    pub(super) file: &'a File,
    pub(super) writes: UncachedWrites,
    pub(super) hashes_all: bool,
    pub(super) on_bad: OnBad,
    pub(super) cancel: &'a CancelToken,
}

impl Shared<'_> {
    pub(super) fn work(&self, worker: &mut Worker, job: Job) -> Result<Outcome, CopyError> {
        match job {
            Job::Squeeze(number, chunks, bytes) => {
                self.squeeze(worker, (number, chunks), bytes).map(Outcome::Squeezed)
            }
            Job::HashZeroes(range) => hash_zeroes(worker, self.image.virtual_size(), range)
                .map(|value| Outcome::Hashed(range, value)),
            Job::Write(parts) => self.write(worker, &parts).map(|()| Outcome::Written(parts)),
        }
    }

    fn squeeze(
        &self,
        worker: &mut Worker,
        (number, chunks): (u64, Vec<Chunk>),
        mut bytes: Vec<u8>,
    ) -> Result<Squeezed, CopyError> {
        let mut press = worker.press.take().unwrap_or_else(|| Press::new(self.format));
        bytes.clear();
        let (clusters, bad) = (Vec::new(), Vec::new());
        let mut squeezed =
            Squeezed { number, chunks: Vec::with_capacity(chunks.len()), clusters, bytes, bad };
        for (range, extents) in chunks {
            let mut buffer = self.take_buffer(worker)?;
            squeezed.bad.extend(self.read(worker, &extents, &mut buffer[..to_index(range.len())])?);
            let chunk = VerifiedChunk::digest(range, buffer);
            let size = self.image.virtual_size();
            let whole = self.hashes_all.then(|| WholeDigester::chaining_value(size, range, chunk.bytes()));
            let digest = chunk.chunk_digest();
            squeezed.chunks.push(Digested { range, digest, whole });
            if digest.is_some() {
                press.take_in(range, chunk.bytes(), &mut squeezed);
            }
            worker.give_back(chunk.into_buffer());
        }
        press.close(&mut squeezed);
        worker.press = Some(press);
        Ok(squeezed)
    }

    /// Memory for a chunk; beside clusters of 2 MiB there is no room for huge pages (ARCHITECTURE.md, "Memory").
    fn take_buffer(&self, worker: &mut Worker) -> Result<AlignedBuffer, CopyError> {
        match u64::from(self.format.cluster_size) > CHUNK {
            true => worker.take_buffer(),
            false => worker.take_huge_buffer(),
        }
    }

    fn write(&self, worker: &Worker, parts: &[FilePart]) -> Result<(), CopyError> {
        for part in parts {
            let range = ByteRange::new(part.offset, part.bytes.len() as u64);
            let written = self.writes.write_all_at(self.file, &part.bytes, part.offset);
            written.map_err(TargetError::when("writing the image", range))?;
            worker.beat();
        }
        Ok(())
    }
}

/// Makes clusters of a stretch's bytes and compresses them; one thread's own.
pub(in crate::copy) struct Press {
    cluster_size: u64,
    compressor: Compressor,
    /// A cluster that comes in several pieces, or ends behind the disk's end; zero where nothing was put.
    assembled: Vec<u8>,
    /// Which one it is, where there is one.
    number: Option<u64>,
}

impl Press {
    fn new(format: &NewImage) -> Self {
        Self {
            cluster_size: u64::from(format.cluster_size),
            compressor: Compressor::new(format),
            assembled: Vec::new(),
            number: None,
        }
    }

    /// Takes bytes of the disk that lie behind those it has taken before.
    fn take_in(&mut self, range: ByteRange, bytes: &[u8], squeezed: &mut Squeezed) {
        let mut rest = bytes;
        for part in range.cut(self.cluster_size) {
            let bytes = rest.split_off(..to_index(part.len())).expect("the bytes are as long as their range");
            let number = part.start() / self.cluster_size;
            if part.len() == self.cluster_size {
                self.close(squeezed);
                self.store(number, bytes, squeezed);
                continue;
            }
            if self.number != Some(number) {
                self.close(squeezed);
                self.assembled.clear();
                self.assembled.resize(to_index(self.cluster_size), 0);
                self.number = Some(number);
            }
            let start = to_index(part.start() % self.cluster_size);
            self.assembled[start..start + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// Stores the cluster that was assembled, if there is one.
    fn close(&mut self, squeezed: &mut Squeezed) {
        if let Some(number) = self.number.take() {
            let assembled = std::mem::take(&mut self.assembled);
            self.store(number, &assembled, squeezed);
            self.assembled = assembled;
        }
    }

    fn store(&mut self, number: u64, cluster: &[u8], squeezed: &mut Squeezed) {
        if is_zero(cluster) {
            return;
        }
        let (form, bytes) = match self.compressor.pack(cluster) {
            Some(packed) => (Form::Packed, packed),
            None => (Form::Plain, cluster),
        };
        squeezed.bytes.extend_from_slice(bytes);
        squeezed.clusters.push(Cluster { number, form, len: bytes.len() });
    }
}

fn to_index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a stretch fits in memory")
}
