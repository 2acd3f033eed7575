//! Goal: a stream whose length nothing tells is measured while it is read once, and is read right meanwhile.
//!
//! Method: each shape that tells no length, read piece by piece up to the most that the disk may have, by one thread and
//! by many.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::streams::{MIB, disk, put, shapes};
use super::*;

/// The disk of a file that tells no length, of which nothing has been looked at; `None` of one that does.
fn unmeasured(path: &Path, most: u64) -> Option<Box<dyn Image>> {
    let Opened::Packed(packed) = open_any(path, &OpenOptions::default()).unwrap() else {
        panic!("it is packed")
    };
    let tells_nothing = packed.told_size().is_none();
    tells_nothing.then(|| packed.glance(Told::AtMost(most)).end())
}

/// A chunk of a disk, and what is read there.
fn read_chunk(image: &dyn Image, number: usize) -> Result<Option<Vec<u8>>, ImageError> {
    let all = ByteRange::new(0, image.most_bytes());
    let chunk = ByteRange::new((number * MIB) as u64, MIB as u64).intersection(all);
    let Some(range) = chunk else { return Ok(None) };
    let mut buffer = vec![9; usize::try_from(range.len()).unwrap()];
    image.read(&image.map(range)?, &mut buffer, &mut Decoder::default())?;
    Ok(Some(buffer))
}

/// All that can be read, in order.
fn read_on(image: &dyn Image) -> Result<Vec<u8>, ImageError> {
    let mut content = Vec::new();
    for number in 0.. {
        match read_chunk(image, number)? {
            Some(chunk) => content.extend(chunk),
            None => break,
        }
    }
    Ok(content)
}

#[test]
fn a_disk_ends_where_its_stream_does_however_long_it_may_be() {
    let folder = Folder::new();
    for len in [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB, 4 * MIB + 2333] {
        let disk = disk(len);
        for (shape, ending, packed) in shapes(&disk) {
            let path = put(&folder, ending, &packed);
            for more in [0, 1, MIB - 1, MIB, 5 * MIB + 7] {
                let Some(image) = unmeasured(&path, (len + more) as u64) else { continue };
                let what = format!("{shape}, {len} bytes and {more}");
                let content = read_on(image.as_ref()).unwrap();
                let (found, behind) = content.split_at(len.min(content.len()));
                assert!(found == disk, "{what}");
                assert!(behind.iter().all(|byte| *byte == 0), "{what}: it is zero behind its end");
                if image.most_bytes() > 0 || len + more > 0 {
                    assert!(image.is_measured(), "{what}");
                    let sizes = (image.virtual_size(), image.most_bytes(), image.info().virtual_size);
                    assert_eq!(sizes, (len as u64, len as u64, len as u64), "{what}");
                }
                assert!(super::content(image.as_ref(), MIB as u64).unwrap() == disk, "{what}: once more");
            }
        }
    }
}

#[test]
fn threads_that_ask_behind_the_end_get_zeroes_and_nothing_is_decoded_twice() {
    let folder = Folder::new();
    let disk = disk(20 * MIB + 77);
    for (shape, ending, packed) in shapes(&disk) {
        let Some(image) = unmeasured(&put(&folder, ending, &packed), 32 * MIB as u64) else { continue };
        let next = AtomicUsize::new(0);
        let read_all = || {
            loop {
                let number = next.fetch_add(1, Ordering::SeqCst);
                // The end may have been found since the chunk was asked for, and is then not asked for.
                let Some(chunk) = read_chunk(image.as_ref(), number).unwrap() else { break };
                let (of_disk, behind) =
                    chunk.split_at(disk.len().saturating_sub(number * MIB).min(chunk.len()));
                assert!(disk[disk.len().min(number * MIB)..].starts_with(of_disk), "{shape} at {number}");
                assert!(behind.iter().all(|byte| *byte == 0), "{shape} behind {number}");
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(read_all);
            }
        });
        assert_eq!((image.is_measured(), image.virtual_size()), (true, disk.len() as u64), "{shape}");
    }
}

#[test]
fn a_stream_that_is_longer_than_its_disk_may_be_is_refused_and_so_is_one_that_was_limited_later() {
    let folder = Folder::new();
    let disk = disk(3 * MIB + 100);
    for (shape, ending, packed) in shapes(&disk) {
        let path = put(&folder, ending, &packed);
        for most in [0, 1, MIB, 3 * MIB, 3 * MIB + 99] {
            let Some(image) = unmeasured(&path, most as u64) else { continue };
            let Some(mut limited) = unmeasured(&path, u64::MAX) else { continue };
            limited.limit(most as u64);
            for image in [image, limited] {
                // Of a disk of no byte none is asked for.
                let read = read_on(image.as_ref()).and_then(|_| image.see_end());
                let error = read.expect_err("it is longer");
                assert!(matches!(error, ImageError::StreamTooLong { .. }), "{shape}, {most}: {error:?}");
                assert!(!image.is_measured(), "{shape}, {most}");
            }
        }
    }
}

#[test]
fn a_stream_that_is_cut_is_never_taken_for_a_shorter_disk() {
    let folder = Folder::new();
    let disk = disk(2 * MIB + 9);
    for (shape, ending, packed) in shapes(&disk) {
        // Where a part that was packed by itself ends, so may the file.
        if !["one member", "no length"].contains(&shape) {
            continue;
        }
        for part in 1..16 {
            let path = put(&folder, ending, &packed[..packed.len() * part / 16]);
            let Ok(Opened::Packed(_)) = open_any(&path, &OpenOptions::default()) else { continue };
            let Some(image) = unmeasured(&path, u64::MAX) else { continue };
            let read = read_on(image.as_ref());
            assert!(matches!(read, Err(ImageError::BadStream { .. })), "{shape} at {part}/16");
            assert!(!image.is_measured(), "{shape} at {part}/16");
        }
    }
}
