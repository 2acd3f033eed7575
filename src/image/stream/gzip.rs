//! gzip (RFC 1952): members one behind the other, each with its own checksum and length.

use flate2::{Decompress, FlushDecompress, Status};

use super::super::error::ImageError;
use super::super::file::SourceFile;
use super::input::Input;
use super::{Codec, Point, only_zeroes_follow};

const MAGIC: &[u8] = b"\x1f\x8b";
/// Deflate's window is 32 KiB at most (RFC 1951).
const WINDOW_BITS: u8 = 15;

/// The members of a gzip file, from one of them on.
pub(super) struct Gzip {
    input: Input,
    inflate: Decompress,
    is_inside: bool,
    /// Where the last member begins.
    member: Point,
    /// How much of the disk has come out.
    at: u64,
}

impl Gzip {
    pub(super) fn from(point: Point, file: &SourceFile) -> Self {
        Self {
            input: Input::at(point.host, file),
            inflate: Decompress::new_gzip(WINDOW_BITS),
            is_inside: false,
            member: point,
            at: point.disk,
        }
    }

    /// Where the member begins that was begun last.
    pub(super) fn point(&self) -> Point {
        self.member
    }

    pub(super) fn host_offset(&self) -> u64 {
        self.input.offset()
    }

    /// Fills the buffer; less than all of it only behind the last member.
    pub(super) fn fill(&mut self, file: &SourceFile, buffer: &mut [u8]) -> Result<usize, ImageError> {
        let mut filled = 0;
        while filled < buffer.len() {
            if !self.is_inside && !self.begin_member(file)? {
                break;
            }
            let here = self.input.offset();
            let bad = |why: &str| Codec::Gzip.bad(file, here, why);
            let bytes = self.input.bytes(file)?;
            let (read, wrote) = (self.inflate.total_in(), self.inflate.total_out());
            let status = self.inflate.decompress(bytes, &mut buffer[filled..], FlushDecompress::None);
            let status = status.map_err(|error| bad(error.message().unwrap_or("is damaged")))?;
            let is_at_end = bytes.is_empty();
            let read = usize::try_from(self.inflate.total_in() - read).expect("a part of the buffer");
            let wrote = self.inflate.total_out() - wrote;
            self.input.consume(read);
            self.at += wrote;
            filled += usize::try_from(wrote).expect("a part of the buffer");
            match status {
                Status::StreamEnd => self.is_inside = false,
                _ if read > 0 || wrote > 0 => {}
                _ if is_at_end => return Err(bad("ends within a member: the file is truncated")),
                _ => return Err(bad("is damaged")),
            }
        }
        Ok(filled)
    }

    /// Goes into the next member, if there is one; behind the last there may be zeroes, as on a tape.
    fn begin_member(&mut self, file: &SourceFile) -> Result<bool, ImageError> {
        let here = self.input.offset();
        let next = self.input.peek(file, MAGIC.len())?;
        if next.starts_with(MAGIC) {
            self.inflate.reset(true);
            self.member = Point { disk: self.at, host: here };
            self.is_inside = true;
            return Ok(true);
        }
        if only_zeroes_follow(&mut self.input, file)? {
            return Ok(false);
        }
        Err(Codec::Gzip.bad(file, here, "is followed by bytes that are no member of it"))
    }
}
