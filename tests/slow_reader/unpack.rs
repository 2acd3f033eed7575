//! Compressed clusters, by other decoders than the engine's: flate2 in place of libdeflate, ruzstd in place of zstd.
//!
//! Whether a damaged zstd frame can be read at all is for zstd itself to say, as it is in qemu.

use std::io::Read;

use flate2::{Decompress, FlushDecompress, Status};
use ruzstd::decoding::StreamingDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};

use super::Oddities;
use super::header::Header;

/// One whole cluster: what gives less is refused, and a deflate stream that gives more as well.
pub(super) fn cluster(header: &Header, packed: &[u8], oddities: &mut Oddities) -> Result<Vec<u8>, String> {
    let len = super::index(header.cluster());
    if header.zstd { frames(packed, len, oddities) } else { inflate(packed, len, oddities) }
}

fn inflate(packed: &[u8], len: usize, oddities: &mut Oddities) -> Result<Vec<u8>, String> {
    let mut stream = Decompress::new(false);
    // One byte more than a cluster, to see whether the stream has more.
    let mut cluster = vec![0; len + 1];
    loop {
        let (read, written) = (place(stream.total_in()), place(stream.total_out()));
        let status = stream.decompress(&packed[read..], &mut cluster[written..], FlushDecompress::None);
        let (now_read, now_written) = (place(stream.total_in()), place(stream.total_out()));
        let stuck = (read, written) == (now_read, now_written);
        match status {
            _ if now_written > len => return Err("a stream of more than a cluster".to_owned()),
            Ok(Status::StreamEnd) if now_written == len => break,
            Ok(Status::StreamEnd) => return Err(format!("a stream of {now_written} bytes")),
            // The specification stops at a whole cluster, and others want to see the stream's end.
            Err(_) if now_written == len => {
                oddities.insert("a deflate stream without its end");
                break;
            }
            Ok(_) if stuck && now_written == len => {
                oddities.insert("a deflate stream without its end");
                break;
            }
            Ok(_) if !stuck => {}
            Ok(_) => return Err(format!("a stream that is cut off after {now_written} bytes")),
            Err(error) => return Err(format!("no deflate stream: {error}")),
        }
    }
    cluster.truncate(len);
    Ok(cluster)
}

fn frames(packed: &[u8], len: usize, oddities: &mut Oddities) -> Result<Vec<u8>, String> {
    let (mut rest, mut cluster) = (packed, Vec::new());
    while cluster.len() < len {
        if rest.is_empty() {
            return Err(format!("frames of {} bytes", cluster.len()));
        }
        let room = len - cluster.len();
        // Of damaged frames each decoder takes some that the other refuses: whether a frame is one is for zstd's own
        // to say, and what it holds for the other.
        let by_zstd = reference(rest, room).map_err(|code| format!("no zstd frame: {code}"))?;
        let (bytes, behind) = frame(rest, room).unwrap_or_else(|_| {
            oddities.insert("a zstd frame that not every decoder reads");
            by_zstd
        });
        cluster.extend(bytes);
        rest = behind;
    }
    Ok(cluster)
}

/// What one frame holds, which is at most `room` bytes, and what lies behind it.
fn frame(packed: &[u8], room: usize) -> Result<(Vec<u8>, &[u8]), String> {
    let (mut rest, mut bytes) = (packed, Vec::new());
    let mut decoder = match StreamingDecoder::new(&mut rest) {
        Ok(decoder) => decoder,
        Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
            let behind = usize::try_from(length).ok().and_then(|len| rest.get(len..));
            return behind
                .map(|behind| (bytes, behind))
                .ok_or_else(|| "a frame to skip that is cut off".to_owned());
        }
        Err(error) => return Err(format!("no zstd frame: {error}")),
    };
    let read = decoder.by_ref().take(room as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| format!("no zstd frame: {error}"))?;
    if bytes.len() > room {
        return Err("frames of more than a cluster".to_owned());
    }
    let decoder = decoder.into_frame_decoder();
    let written = decoder.get_checksum_from_data();
    if written.is_some() && written != decoder.get_calculated_checksum() {
        return Err("a frame whose checksum is wrong".to_owned());
    }
    Ok((bytes, rest))
}

/// The same by zstd itself.
fn reference(packed: &[u8], room: usize) -> Result<(Vec<u8>, &[u8]), &'static str> {
    let len = zstd_safe::find_frame_compressed_size(packed).map_err(zstd_safe::get_error_name)?;
    let mut bytes = vec![0; room];
    let written = zstd_safe::decompress(&mut bytes[..], &packed[..len]).map_err(zstd_safe::get_error_name)?;
    bytes.truncate(written);
    Ok((bytes, &packed[len..]))
}

fn place(len: u64) -> usize {
    usize::try_from(len).unwrap()
}
