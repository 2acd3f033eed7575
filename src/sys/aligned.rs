//! Page-aligned buffers, as O_DIRECT wants them.

use std::io;
use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// What a huge page is on x86-64, and on others with pages of 4 KiB.
const HUGE_PAGE: usize = 2 << 20;

/// A zeroed, page-aligned buffer of fixed length outside the heap.
pub(crate) struct AlignedBuffer {
    memory: MmapMut,
    len: usize,
}

impl AlignedBuffer {
    /// A buffer of `len` zero bytes; `len` must not be 0.
    pub(crate) fn zeroed(len: usize) -> io::Result<Self> {
        Ok(Self { memory: MmapMut::map_anon(len)?, len })
    }

    /// The same in one huge page, where the kernel has one: requests that go past the page cache cost it time for each
    /// page of the buffer.
    pub(crate) fn in_a_huge_page(len: usize) -> io::Result<Self> {
        let memory = MmapMut::map_anon(len.max(HUGE_PAGE))?;
        // A kernel without them says so, and the buffer is as good without.
        let _ = memory.advise(memmap2::Advice::HugePage);
        Ok(Self { memory, len })
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[..self.len]
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.len]
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

impl std::fmt::Debug for PageBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PageBuffer({} bytes)", self.len)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_in_a_huge_page_is_as_long_as_asked_and_zero_and_begins_at_a_page() {
        for len in [1, 4096, 1 << 20, HUGE_PAGE, HUGE_PAGE + 1] {
            let buffer = AlignedBuffer::in_a_huge_page(len).unwrap();
            assert_eq!((buffer.len(), buffer.as_ptr().align_offset(4096)), (len, 0));
            assert!(buffer.iter().all(|byte| *byte == 0));
        }
    }
}
