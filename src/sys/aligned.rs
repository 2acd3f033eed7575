//! Page-aligned buffers, as O_DIRECT wants them.

use std::io;
use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// A zeroed, page-aligned buffer of fixed length outside the heap.
pub(crate) struct AlignedBuffer(MmapMut);

impl AlignedBuffer {
    /// A buffer of `len` zero bytes; `len` must not be 0.
    pub(crate) fn zeroed(len: usize) -> io::Result<Self> {
        MmapMut::map_anon(len).map(Self)
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// Page-aligned memory of the heap that grows with what is asked of it.
#[derive(Default)]
pub(crate) struct PageBuffer {
    /// A page longer than the longest that was asked for.
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl PageBuffer {
    const PAGE: usize = 4096;

    /// The buffer with `len` bytes; content is whatever the last use left.
    pub(crate) fn resized(&mut self, len: usize) -> &mut [u8] {
        if self.memory.len() < len + Self::PAGE {
            self.memory = vec![0; len + Self::PAGE];
            self.start = self.memory.as_ptr().align_offset(Self::PAGE);
        }
        self.len = len;
        self
    }
}

impl Deref for PageBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for PageBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}
