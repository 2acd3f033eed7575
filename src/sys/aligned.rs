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
