//! The packed bytes of a file, from one place on, read ahead.

use super::super::error::ImageError;
use super::super::file::SourceFile;

/// How many packed bytes are read at once.
const AHEAD: u64 = 256 << 10;

/// Where the reading of packed bytes stands.
pub(super) struct Input {
    buffer: Vec<u8>,
    /// How much of the buffer has been consumed.
    used: usize,
    /// The offset in the file of the first byte that is not in the buffer.
    next: u64,
    /// Nothing is read from here on.
    end: u64,
}

impl Input {
    /// From `offset` to the file's end.
    pub(super) fn at(offset: u64, file: &SourceFile) -> Self {
        Self { buffer: Vec::new(), used: 0, next: offset, end: file.len() }
    }

    /// Up to `end`, which lies within the file, and then on from `start`.
    pub(super) fn jump(&mut self, start: u64, end: u64) {
        self.buffer.clear();
        (self.used, self.next, self.end) = (0, start, end);
    }

    /// Lets it read up to `end` as well, where that comes right behind.
    pub(super) fn extend(&mut self, end: u64) {
        self.end = end;
    }

    /// The offset in the file of the next byte.
    pub(super) fn offset(&self) -> u64 {
        self.next - (self.buffer.len() - self.used) as u64
    }

    /// The next bytes: none only at the end.
    pub(super) fn bytes(&mut self, file: &SourceFile) -> Result<&[u8], ImageError> {
        self.peek(file, 1)
    }

    /// The next bytes, at least `least` of them (a few) unless the end comes before.
    pub(super) fn peek(&mut self, file: &SourceFile, least: usize) -> Result<&[u8], ImageError> {
        if self.buffer.len() - self.used < least && self.next < self.end {
            self.buffer.drain(..self.used);
            self.used = 0;
            let have = self.buffer.len();
            let more = (self.end - self.next).min(AHEAD);
            self.buffer.resize(have + usize::try_from(more).expect("a read is short"), 0);
            let read = file.read_exact_at(&mut self.buffer[have..], self.next);
            if read.is_err() {
                self.buffer.truncate(have);
            }
            read?;
            self.next += more;
        }
        Ok(&self.buffer[self.used..])
    }

    /// Goes on behind the next `count` bytes, which `bytes` has shown.
    pub(super) fn consume(&mut self, count: usize) {
        assert!(count <= self.buffer.len() - self.used, "only what was shown is consumed");
        self.used += count;
    }
}
