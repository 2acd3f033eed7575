//! What lies where in the new file: neighbours are gathered, so that few writes are made.

use crate::sys::aligned::PageBuffer;

/// A part has so many bytes, and fewer only where what lies behind it is put elsewhere.
const PART_LEN: usize = 1 << 20;
/// How many buffers of parts that are written wait for further ones.
const SPARE_MAX: usize = 2;

/// Bytes of the new file and where they lie; no two parts share a byte, so they may be written in any order.
///
/// Where clusters are whole pages no two parts share a page either, and each begins at a page, in memory too.
#[derive(Debug)]
pub(crate) struct FilePart {
    pub(crate) offset: u64,
    pub(crate) bytes: PageBuffer,
}

/// The parts that are complete, and the one that grows.
#[derive(Default)]
pub(super) struct Parts {
    complete: Vec<FilePart>,
    growing: Option<Growing>,
    spare: Vec<PageBuffer>,
}

struct Growing {
    offset: u64,
    buffer: PageBuffer,
    len: usize,
}

impl Growing {
    fn close(mut self) -> FilePart {
        self.buffer.resized(self.len);
        FilePart { offset: self.offset, bytes: self.buffer }
    }
}

impl Parts {
    /// Puts bytes at an offset where none were put before.
    pub(super) fn put(&mut self, mut offset: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let continues = |part: &mut Growing| part.offset + part.len as u64 == offset;
            let mut part = match self.growing.take_if(continues) {
                Some(part) => part,
                None => {
                    self.close();
                    let mut buffer = self.spare.pop().unwrap_or_default();
                    buffer.resized(PART_LEN);
                    Growing { offset, buffer, len: 0 }
                }
            };
            let now = bytes.split_off(..bytes.len().min(PART_LEN - part.len)).expect("so many are there");
            part.buffer[part.len..part.len + now.len()].copy_from_slice(now);
            part.len += now.len();
            offset += now.len() as u64;
            let is_complete = part.len == PART_LEN;
            self.growing = Some(part);
            if is_complete {
                self.close();
            }
        }
    }

    fn close(&mut self) {
        self.complete.extend(self.growing.take().map(Growing::close));
    }

    /// Gives the complete ones out.
    pub(super) fn take_complete(&mut self) -> Vec<FilePart> {
        std::mem::take(&mut self.complete)
    }

    /// Takes parts that were written, whose memory serves again.
    pub(super) fn take_back(&mut self, parts: Vec<FilePart>) {
        self.spare.extend(parts.into_iter().map(|part| part.bytes));
        self.spare.truncate(SPARE_MAX);
    }

    /// Gives all out.
    pub(super) fn finish(mut self) -> Vec<FilePart> {
        self.close();
        self.complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 4096;

    #[test]
    fn parts_are_what_was_put_and_begin_at_pages_whatever_their_memory_held() {
        let mut parts = Parts::default();
        let (mut expected, mut found, mut at) = (Vec::new(), Vec::new(), 3 * PAGE as u64);
        // Neighbours up to a gap, in pieces that are longer and shorter than a part.
        for (number, pages) in [1, 300, 7, 256, 1, 200, 600, 3].into_iter().enumerate() {
            let byte = u8::try_from(number + 1).unwrap();
            let bytes = vec![byte; pages * PAGE];
            parts.put(at, &bytes);
            expected.extend((at..).zip(bytes));
            at += (pages * PAGE) as u64 + if number == 4 { PAGE as u64 } else { 0 };
            let complete = parts.take_complete();
            found.extend(complete.iter().map(|part| (part.offset, part.bytes.to_vec())));
            for part in &complete {
                assert_eq!(part.offset % PAGE as u64, 0);
                assert_eq!(part.bytes.as_ptr().align_offset(PAGE), 0);
                assert!(part.bytes.len() <= PART_LEN);
            }
            parts.take_back(complete);
        }
        found.extend(parts.finish().into_iter().map(|part| (part.offset, part.bytes.to_vec())));
        let found: Vec<_> = found.into_iter().flat_map(|(offset, bytes)| (offset..).zip(bytes)).collect();
        assert!(found == expected, "each byte once, where it was put");
    }
}
