//! What lies where in the new file: neighbours are gathered, so that few writes are made.

/// As many bytes make one part.
const PART_LEN: usize = 1 << 20;

/// Bytes of the new file and where they lie; no two parts share a byte, so they may be written in any order.
#[derive(Debug)]
pub(crate) struct FilePart {
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
}

/// The parts that are complete, and the one that grows.
#[derive(Default)]
pub(super) struct Parts {
    complete: Vec<FilePart>,
    growing: Option<FilePart>,
}

impl Parts {
    /// Puts bytes at an offset where none were put before.
    pub(super) fn put(&mut self, offset: u64, bytes: &[u8]) {
        if let Some(part) = &mut self.growing
            && part.offset + part.bytes.len() as u64 == offset
        {
            part.bytes.extend_from_slice(bytes);
        } else {
            self.complete.extend(self.growing.take());
            let mut part = Vec::with_capacity(PART_LEN.max(bytes.len()));
            part.extend_from_slice(bytes);
            self.growing = Some(FilePart { offset, bytes: part });
        }
        if self.growing.as_ref().is_some_and(|part| part.bytes.len() >= PART_LEN) {
            self.complete.extend(self.growing.take());
        }
    }

    /// Gives the complete ones out.
    pub(super) fn take_complete(&mut self) -> Vec<FilePart> {
        std::mem::take(&mut self.complete)
    }

    /// Gives all out.
    pub(super) fn finish(mut self) -> Vec<FilePart> {
        self.complete.extend(self.growing);
        self.complete
    }
}
