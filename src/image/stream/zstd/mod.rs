//! zstd (RFC 8878): frames one behind the other, some of which are to be skipped.

mod frames;

use zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, ResetDirective};

use super::super::error::ImageError;
use super::super::file::SourceFile;
use super::input::Input;
use super::{Codec, MOST_WINDOW, Point};
pub(super) use frames::Frames;
use frames::Magic;

/// The frames of a zstd file, from one of them on.
pub(super) struct Zstd {
    input: Input,
    context: DCtx<'static>,
    is_inside: bool,
    /// Where the last frame begins.
    frame: Point,
    /// How much of the disk has come out.
    at: u64,
}

impl Zstd {
    pub(super) fn from(point: Point, file: &SourceFile) -> Result<Self, ImageError> {
        let no_memory = || Codec::Zstd.too_much(file, point.host, "more memory than there is".into());
        let mut context = DCtx::try_create().ok_or_else(no_memory)?;
        let most = DParameter::WindowLogMax(MOST_WINDOW.ilog2());
        context.set_parameter(most).map_err(|_| no_memory())?;
        let input = Input::at(point.host, file);
        Ok(Self { input, context, is_inside: false, frame: point, at: point.disk })
    }

    /// Where the frame begins that was begun last.
    pub(super) fn point(&self) -> Point {
        self.frame
    }

    pub(super) fn host_offset(&self) -> u64 {
        self.input.offset()
    }

    /// Fills the buffer; less than all of it only behind the last frame.
    pub(super) fn fill(&mut self, file: &SourceFile, buffer: &mut [u8]) -> Result<usize, ImageError> {
        let mut filled = 0;
        while filled < buffer.len() {
            if !self.is_inside && !self.begin_frame(file)? {
                break;
            }
            let here = self.input.offset();
            let bytes = self.input.bytes(file)?;
            let is_at_end = bytes.is_empty();
            let mut from = InBuffer::around(bytes);
            let mut to = OutBuffer::around_pos(buffer, filled);
            let more = self.context.decompress_stream(&mut to, &mut from);
            let (read, wrote) = (from.pos(), to.pos() - filled);
            self.input.consume(read);
            filled += wrote;
            self.at += wrote as u64;
            let bad = |why: &str| Codec::Zstd.bad(file, here, why);
            match more {
                Err(code) => return Err(bad(&zstd_safe::get_error_name(code).to_lowercase())),
                Ok(0) => self.is_inside = false,
                Ok(_) if read > 0 || wrote > 0 => {}
                Ok(_) if is_at_end => return Err(bad("ends within a frame: the file is truncated")),
                Ok(_) => return Err(bad("is damaged")),
            }
        }
        Ok(filled)
    }

    /// Goes into the next frame, if there is one.
    fn begin_frame(&mut self, file: &SourceFile) -> Result<bool, ImageError> {
        let here = self.input.offset();
        let next = self.input.peek(file, 4)?;
        if next.is_empty() {
            return Ok(false);
        }
        match Magic::of(next) {
            Magic::Frame => self.frame = Point { disk: self.at, host: here },
            Magic::Skippable => {}
            Magic::None => {
                return Err(Codec::Zstd.bad(file, here, "is followed by bytes that are no frame of it"));
            }
        }
        let reset = self.context.reset(ResetDirective::SessionOnly);
        reset.map_err(|_| Codec::Zstd.bad(file, here, "cannot be decoded"))?;
        self.is_inside = true;
        Ok(true)
    }
}
