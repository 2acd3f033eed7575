//! xz (the .xz file format, 1.2.1): streams of blocks, with an index of the blocks behind each stream's last.
//!
//! The index is read first, so that the size is known and each block is a place to begin at. liblzma decodes the
//! blocks and compares their checks; the index, the headers and the footers are read here.

mod index;

use std::sync::Arc;

use liblzma::stream::{Action, Error, Status, Stream, TELL_UNSUPPORTED_CHECK};

use super::super::error::ImageError;
use super::super::file::SourceFile;
use super::input::Input;
use super::{Codec, MOST_WINDOW, Point};
use index::Block;
pub(super) use index::Index;

/// What liblzma needs besides the dictionary (about 100 KiB), generously; the next larger dictionary has 96 MiB.
const DECODER: u64 = 2 << 20;

/// The blocks of an xz file, from one of them on.
pub(super) struct Xz {
    index: Arc<Index>,
    /// The number of the block that comes next, or that is being decoded.
    number: usize,
    /// What is left of that block to come out, once it has begun.
    left: Option<u64>,
    input: Input,
    /// The decoder, and the number of the stream whose header it was given.
    decoder: Option<(Stream, usize)>,
}

impl Xz {
    /// From the block that begins at `point`.
    pub(super) fn from(point: Point, index: &Arc<Index>, file: &SourceFile) -> Self {
        let number = index.blocks().partition_point(|block| block.host < point.host);
        let input = Input::at(point.host, file);
        Self { index: Arc::clone(index), number, left: None, input, decoder: None }
    }

    pub(super) fn host_offset(&self) -> u64 {
        self.input.offset()
    }

    /// Fills the buffer; less than all of it only behind the last block.
    pub(super) fn fill(&mut self, file: &SourceFile, buffer: &mut [u8]) -> Result<usize, ImageError> {
        let mut filled = 0;
        while filled < buffer.len() {
            let Some(block) = self.index.block(self.number) else { break };
            if self.left.is_none() {
                self.begin(file, block)?;
            }
            let left = self.left.unwrap_or_default();
            let room = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len() - filled);
            let wrote = self.decode(file, &mut buffer[filled..filled + room])?;
            filled += wrote;
            let left = left - wrote as u64;
            self.left = Some(left);
            if left == 0 {
                self.end(file)?;
            }
        }
        Ok(filled)
    }

    /// The decoder before a block: one that has the header of the block's stream, and nothing of a later block.
    fn begin(&mut self, file: &SourceFile, block: Block) -> Result<(), ImageError> {
        match &self.decoder {
            Some((_, stream)) if *stream == block.stream => self.input.extend(block.host_end),
            _ => {
                self.decoder = None;
                let flags = TELL_UNSUPPORTED_CHECK;
                let stream = Stream::new_stream_decoder(MOST_WINDOW + DECODER, flags);
                let stream = stream.map_err(|error| self.fault(file, error))?;
                self.decoder = Some((stream, block.stream));
                let header = self.index.header(block.stream);
                self.input.jump(header.start(), header.end());
                while self.input.offset() < header.end() {
                    self.decode(file, &mut [])?;
                }
                self.input.jump(block.host, block.host_end);
            }
        }
        self.left = Some(block.len);
        Ok(())
    }

    /// Lets the rest of a block pass: what marks its end, its padding and its check.
    fn end(&mut self, file: &SourceFile) -> Result<(), ImageError> {
        while !self.input.bytes(file)?.is_empty() {
            self.decode(file, &mut [])?;
        }
        (self.left, self.number) = (None, self.number + 1);
        Ok(())
    }

    /// One step of the decoder, within one block; how many bytes came out.
    fn decode(&mut self, file: &SourceFile, buffer: &mut [u8]) -> Result<usize, ImageError> {
        let here = self.input.offset();
        let bytes = self.input.bytes(file)?;
        let (decoder, _) = self.decoder.as_mut().expect("a block has begun");
        let (read, wrote) = (decoder.total_in(), decoder.total_out());
        let status = decoder.process(bytes, buffer, Action::Run);
        let read = usize::try_from(decoder.total_in() - read).expect("a part of the buffer");
        let wrote = usize::try_from(decoder.total_out() - wrote).expect("a part of the buffer");
        self.input.consume(read);
        match status {
            Err(error) => Err(self.fault(file, error)),
            Ok(Status::Ok) if read > 0 || wrote > 0 => Ok(wrote),
            Ok(Status::Ok | Status::MemNeeded | Status::StreamEnd | Status::GetCheck) => {
                Err(Codec::Xz.bad(file, here, "has a block of another length than its index says"))
            }
        }
    }

    fn fault(&self, file: &SourceFile, error: Error) -> ImageError {
        let here = self.input.offset();
        match error {
            Error::MemLimit => Codec::Xz.too_much(file, here, "a dictionary of more than 64 MiB".into()),
            Error::UnsupportedCheck => Codec::Xz.too_much(file, here, "an unknown kind of check".into()),
            Error::Options => Codec::Xz.too_much(file, here, "filters that are not known here".into()),
            Error::Mem => Codec::Xz.too_much(file, here, "more memory than there is".into()),
            Error::Format => Codec::Xz.bad(file, here, "has no header where one should be"),
            Error::Data | Error::Program | Error::NoCheck => Codec::Xz.bad(file, here, "is damaged"),
        }
    }
}
