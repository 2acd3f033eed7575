//! Goal: a packed image is read as what was packed, whatever order it is asked for in, or it is refused.
//!
//! Method: small disks are packed here by the codecs' own encoders, in every shape that their files have; then they are
//! cut, flipped and lengthened.

use std::io::Write as _;

use flate2::write::GzEncoder;
use liblzma::stream::{Action, Check, Status, Stream};
use zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer};

use super::*;

pub(super) const MIB: usize = 1 << 20;

/// A disk with text, noise, zeroes and an end that is no multiple of anything.
pub(super) fn disk(len: usize) -> Vec<u8> {
    let mut state = 7_u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let run = if len < 65536 { 10 } else { 16 };
    let byte = |at: usize| match at >> run & 3 {
        0 => (at >> 3).to_le_bytes()[0],
        1 => noise(),
        2 => 0,
        _ => b"the quick brown fox "[at % 20],
    };
    (0..len).map(byte).collect()
}

fn gzip(disk: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(disk).unwrap();
    encoder.finish().unwrap()
}

/// One stream, with a new block after each `block` bytes.
fn xz(disk: &[u8], block: usize, check: Check) -> Vec<u8> {
    let mut encoder = Stream::new_easy_encoder(0, check).unwrap();
    let mut packed = Vec::with_capacity(disk.len() + disk.len() / 8 + 4096);
    for part in disk.chunks(block) {
        let before = encoder.total_in();
        while encoder.total_in() - before < part.len() as u64 {
            let done = usize::try_from(encoder.total_in() - before).unwrap();
            encoder.process_vec(&part[done..], &mut packed, Action::Run).unwrap();
        }
        while encoder.process_vec(&[], &mut packed, Action::FullFlush).unwrap() != Status::StreamEnd {}
    }
    while encoder.process_vec(&[], &mut packed, Action::Finish).unwrap() != Status::StreamEnd {}
    packed
}

/// One frame that says its length, or does not.
fn zstd(disk: &[u8], says: Says, parameters: &[CParameter]) -> Vec<u8> {
    let mut encoder = CCtx::create();
    encoder.set_parameter(CParameter::ChecksumFlag(true)).unwrap();
    for parameter in parameters {
        encoder.set_parameter(*parameter).unwrap();
    }
    if says == Says::Length {
        encoder.set_pledged_src_size(Some(disk.len() as u64)).unwrap();
    }
    let mut packed = vec![0; zstd_safe::compress_bound(disk.len()) + 64];
    let mut to = OutBuffer::around(&mut packed[..]);
    let mut from = InBuffer::around(disk);
    while from.pos() < disk.len() {
        encoder.compress_stream(&mut to, &mut from).unwrap();
    }
    while encoder.end_stream(&mut to).unwrap() > 0 {}
    let len = to.pos();
    packed.truncate(len);
    packed
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Says {
    Length,
    Nothing,
}

fn skippable(content: &[u8]) -> Vec<u8> {
    let len = u32::try_from(content.len()).unwrap();
    [&0x184d_2a5e_u32.to_le_bytes()[..], &len.to_le_bytes(), content].concat()
}

/// Frames that do not say their lengths, and a table at the end that does.
fn seekable(disk: &[u8], frame: usize) -> Vec<u8> {
    let parts = if disk.is_empty() { vec![disk] } else { disk.chunks(frame).collect() };
    let frames: Vec<_> = parts.into_iter().map(|part| (part, zstd(part, Says::Nothing, &[]))).collect();
    let entry = |(part, packed): &(&[u8], Vec<u8>)| {
        [packed.len(), part.len()].map(|len| u32::try_from(len).unwrap().to_le_bytes()).concat()
    };
    let mut table: Vec<u8> = frames.iter().flat_map(entry).collect();
    table.extend(u32::try_from(frames.len()).unwrap().to_le_bytes());
    table.push(0);
    table.extend(0x8f92_eab1_u32.to_le_bytes());
    let mut packed: Vec<u8> = frames.into_iter().flat_map(|(_, packed)| packed).collect();
    packed.extend(skippable(&table));
    packed
}

/// Every shape of every format, with the ending of its name.
pub(super) fn shapes(disk: &[u8]) -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let parts = |step: usize, pack: &dyn Fn(&[u8]) -> Vec<u8>| {
        let parts = disk.chunks(step.max(1)).flat_map(pack).collect::<Vec<_>>();
        if disk.is_empty() { pack(disk) } else { parts }
    };
    let third = disk.len() / 3 + 1;
    vec![
        ("one member", "gz", gzip(disk)),
        ("members", "gz", parts(third, &gzip)),
        ("empty members between", "gz", [gzip(&[]), gzip(disk), gzip(&[])].concat()),
        ("zeroes behind", "gz", [gzip(disk), vec![0; 700]].concat()),
        ("one block", "xz", xz(disk, usize::MAX, Check::Crc64)),
        ("blocks", "xz", xz(disk, third, Check::Crc32)),
        ("sha256", "xz", xz(disk, third, Check::Sha256)),
        ("streams", "xz", parts(third, &|part| xz(part, third / 2 + 1, Check::Crc64))),
        (
            "padding",
            "xz",
            [xz(disk, third, Check::Crc64), vec![0; 8], xz(&[], 1, Check::Crc32), vec![0; 4]].concat(),
        ),
        ("a length", "zst", zstd(disk, Says::Length, &[])),
        ("no length", "zst", zstd(disk, Says::Nothing, &[])),
        ("frames", "zst", parts(third, &|part| zstd(part, Says::Length, &[]))),
        ("frames without", "zst", parts(third, &|part| zstd(part, Says::Nothing, &[]))),
        ("skipped", "zst", [skippable(b"x"), zstd(disk, Says::Length, &[]), skippable(&[])].concat()),
        ("seekable", "zst", seekable(disk, third)),
    ]
}

pub(super) fn put(folder: &Folder, ending: &str, packed: &[u8]) -> PathBuf {
    let path = folder.path(&format!("disk.{ending}"));
    std::fs::write(&path, packed).unwrap();
    path
}

/// The whole disk of a packed image, read after its pass.
fn unpacked_disk(path: &Path) -> Result<Vec<u8>, ImageError> {
    content(open_alone(path)?.as_ref(), 1 << 20)
}

#[test]
fn every_shape_of_every_format_holds_what_was_packed() {
    let folder = Folder::new();
    for len in [0, 1, 511, 512, 4096, 70_000, MIB - 1, MIB, MIB + 1, 3 * MIB + 4097] {
        let disk = disk(len);
        for (shape, ending, packed) in shapes(&disk) {
            let path = put(&folder, ending, &packed);
            let image = open_alone(&path).unwrap_or_else(|error| panic!("{shape} {len}: {error}"));
            assert_eq!(image.virtual_size(), len as u64, "{shape} {len}");
            for step in [1 << 20, 300_000] {
                assert!(content(image.as_ref(), step).unwrap() == disk, "{shape} {len} in steps of {step}");
            }
            let report = image.check_tables().unwrap();
            assert_eq!(report.zero_bytes + report.compressed_bytes, len as u64);
            image.check_unchanged().unwrap();
        }
    }
}

#[test]
fn the_size_is_told_before_decoding_where_the_format_tells_it() {
    let folder = Folder::new();
    let disk = disk(2 * MIB + 5);
    for (shape, ending, packed) in shapes(&disk) {
        let Opened::Packed(opened) =
            open_any(&put(&folder, ending, &packed), &OpenOptions::default()).unwrap()
        else {
            panic!("{shape} is packed")
        };
        let is_told = ending == "xz" || ["a length", "frames", "skipped", "seekable"].contains(&shape);
        assert_eq!(opened.told_size(), is_told.then_some(disk.len() as u64), "{shape} {ending}");
    }
}

#[test]
fn pieces_come_right_in_any_order() {
    let folder = Folder::new();
    let disk = disk(15 * MIB + 2333);
    // Backwards, then by a step that meets every piece.
    let order: Vec<u64> = (0..16).rev().chain((0..16).map(|number| number * 5 % 16)).collect();
    for (shape, ending, packed) in shapes(&disk) {
        let image = open_alone(&put(&folder, ending, &packed)).unwrap();
        for number in &order {
            let start = number * 1_048_576 + number % 3 * 1000;
            let range = ByteRange::between(start, (start + 70_000).min(image.virtual_size()));
            let mut buffer = vec![9; usize::try_from(range.len()).unwrap()];
            image.read(&image.map(range).unwrap(), &mut buffer, &mut Decoder::default()).unwrap();
            let place = usize::try_from(start).unwrap();
            assert!(buffer == disk[place..place + buffer.len()], "{shape} {ending} at {start}");
        }
    }
}

#[test]
fn threads_that_ask_in_turn_get_what_is_theirs() {
    let folder = Folder::new();
    let disk = disk(20 * MIB + 77);
    for (shape, ending, packed) in shapes(&disk) {
        let image = open_alone(&put(&folder, ending, &packed)).unwrap();
        let next = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    loop {
                        let start = next.fetch_add(1, std::sync::atomic::Ordering::SeqCst) * MIB;
                        let Some(right) = disk.get(start..disk.len().min(start + MIB)) else { break };
                        let range = ByteRange::new(start as u64, right.len() as u64);
                        let mut buffer = vec![9; right.len()];
                        let extents = image.map(range).unwrap();
                        image.read(&extents, &mut buffer, &mut Decoder::default()).unwrap();
                        assert!(buffer == right, "{shape} {ending} at {start}");
                    }
                });
            }
        });
    }
}

#[test]
fn a_stream_that_is_cut_anywhere_is_refused() {
    let folder = Folder::new();
    let disk = disk(6000);
    let third = disk.len() / 3 + 1;
    for (shape, ending, packed) in shapes(&disk) {
        // Behind a whole member, frame or stream, and within padding, what is left is whole.
        let whole: Vec<usize> = match shape {
            "members" => ends_of(&disk, third, &gzip),
            "empty members between" => vec![gzip(&[]).len(), packed.len() - gzip(&[]).len()],
            "streams" => ends_of(&disk, third, &|part| xz(part, third / 2 + 1, Check::Crc64)),
            "frames" => ends_of(&disk, third, &|part| zstd(part, Says::Length, &[])),
            "frames without" | "seekable" => ends_of(&disk, third, &|part| zstd(part, Says::Nothing, &[])),
            "skipped" => vec![packed.len() - 8],
            "zeroes behind" => (gzip(&disk).len()..packed.len()).collect(),
            "padding" => {
                let first = xz(&disk, third, Check::Crc64).len();
                vec![first, first + 4, first + 8, packed.len() - 4]
            }
            _ => Vec::new(),
        };
        for len in 0..packed.len() {
            let result = unpacked_disk(&put(&folder, ending, &packed[..len]));
            if whole.contains(&len) {
                let found = result.unwrap_or_else(|error| panic!("{shape} {ending} cut at {len}: {error}"));
                assert!(disk.starts_with(&found), "{shape} {ending} cut at {len}");
            } else {
                assert!(result.is_err(), "{shape} {ending} cut at {len} of {}", packed.len());
            }
        }
    }
}

/// Where each of several packed parts but the last ends.
fn ends_of(disk: &[u8], step: usize, pack: &dyn Fn(&[u8]) -> Vec<u8>) -> Vec<usize> {
    let mut end = 0;
    let add = |part: &[u8]| {
        end += pack(part).len();
        end
    };
    disk.chunks(step).map(add).collect()
}

#[test]
fn a_flipped_byte_is_refused_or_changes_nothing() {
    let folder = Folder::new();
    let disk = disk(6000);
    for (shape, ending, packed) in shapes(&disk) {
        // Every byte of the plain shapes; of the others those that are no payload, and some.
        let is_plain = ["one member", "one block", "a length"].contains(&shape);
        let step = if is_plain { 1 } else { 11 };
        for at in (0..packed.len()).filter(|at| at % step == 0 || *at + 60 > packed.len() || *at < 30) {
            let flip = [0x01, 0x80, 0xff, 0x10][at % 4];
            let mut packed = packed.clone();
            packed[at] ^= flip;
            if let Ok(found) = unpacked_disk(&put(&folder, ending, &packed)) {
                assert!(found == disk, "{shape} {ending} with {flip:#x} at {at}");
            }
        }
    }
}

#[test]
fn what_follows_a_stream_is_refused() {
    let folder = Folder::new();
    let disk = disk(70_000);
    for (shape, ending, packed) in shapes(&disk) {
        for more in [&b"\n"[..], b"garbage that is longer than a header", &[0, 0, 0, 0, 1]] {
            let result = unpacked_disk(&put(&folder, ending, &[&packed, more].concat()));
            check_refused(shape, result.map(drop), "BadStream", "");
        }
    }
    // Zeroes are what tapes are filled up with; not a megabyte of them, and not behind zstd.
    for (ending, packed) in [("gz", gzip(&disk)), ("xz", xz(&disk, 9999, Check::Crc32))] {
        assert!(unpacked_disk(&put(&folder, ending, &[&packed[..], &[0; 4096]].concat())).unwrap() == disk);
        let result = unpacked_disk(&put(&folder, ending, &[packed, vec![0; MIB + 8]].concat()));
        check_refused(ending, result.map(drop), "BadStream", "");
    }
    let packed = [zstd(&disk, Says::Length, &[]), vec![0; 4]].concat();
    check_refused("zstd", unpacked_disk(&put(&folder, "zst", &packed)).map(drop), "BadStream", "no frame");
}

#[test]
fn windows_of_64_mib_are_given_and_larger_ones_are_not() {
    let folder = Folder::new();
    let disk = disk(2 * MIB);
    for (log, words) in [(26, None), (27, Some("a window of 134217728 bytes"))] {
        let parameters = [CParameter::WindowLog(log), CParameter::EnableLongDistanceMatching(true)];
        let path = put(&folder, "zst", &zstd(&disk, Says::Nothing, &parameters));
        match words {
            None => assert!(unpacked_disk(&path).unwrap() == disk),
            Some(words) => check_refused("zstd", unpacked_disk(&path).map(drop), "StreamNeeds", words),
        }
    }
    for (size, is_given) in [(64 << 20, true), (96 << 20, false)] {
        let mut options = liblzma::stream::LzmaOptions::new_preset(0).unwrap();
        options.dict_size(size);
        let mut filters = liblzma::stream::Filters::new();
        filters.lzma2(&options);
        let mut encoder = Stream::new_stream_encoder(&filters, Check::Crc32).unwrap();
        let mut packed = Vec::with_capacity(4 * MIB);
        encoder.process_vec(&disk, &mut packed, Action::Run).unwrap();
        while encoder.process_vec(&[], &mut packed, Action::Finish).unwrap() != Status::StreamEnd {}
        let path = put(&folder, "xz", &packed);
        match is_given {
            true => assert!(unpacked_disk(&path).unwrap() == disk),
            false => check_refused("xz", unpacked_disk(&path).map(drop), "StreamNeeds", "dictionary"),
        }
    }
}

#[test]
fn a_stream_ends_where_it_becomes_longer_than_there_is_room() {
    let folder = Folder::new();
    let disk = vec![0; 9 * MIB];
    for (shape, ending, packed) in shapes(&disk) {
        let path = put(&folder, ending, &packed);
        for (most, is_enough) in [(9 * MIB, true), (9 * MIB - 1, false), (5 * MIB, false), (0, false)] {
            let Opened::Packed(packed) = open_any(&path, &OpenOptions::default()).unwrap() else {
                panic!("{shape}")
            };
            let mut pass = packed.pass(most as u64);
            let mut steps = 0;
            let ended = loop {
                match pass.step(&Decoder::default()) {
                    Ok(Step::Over) => break Ok(()),
                    Ok(_) => steps += 1,
                    Err(error) => break Err(error),
                }
            };
            assert!(steps <= most / MIB, "{shape}: nothing is decoded behind the end");
            match is_enough {
                true => ended.unwrap(),
                false => check_refused(shape, ended, "StreamTooLong", "no more have room"),
            }
        }
    }
}

#[test]
fn name_and_content_say_together_what_is_packed() {
    let folder = Folder::new();
    let disk = disk(9000);
    let packed = gzip(&disk);
    let refused = |name: &str, bytes: &[u8], options: &OpenOptions<'_>, variant, words| {
        let path = folder.path(name);
        std::fs::write(&path, bytes).unwrap();
        check_refused(name, open_as(&path, options).map(drop), variant, words);
    };
    let auto = OpenOptions::default();
    refused("disk.raw", &packed, &auto, "PackedUnsaid", "the content is gzip");
    refused("disk.img", &packed, &auto, "PackedUnsaid", "does not end in .gz");
    refused("disk.xz", &packed, &auto, "NameDisagrees", "the name says xz and the content is gzip");
    refused("disk.gz", &disk, &auto, "NameDisagrees", "the name says gzip and the content is raw");
    refused("disk.qcow2", &packed, &auto, "NameDisagrees", "the name says qcow2 and the content is gzip");
    refused("as-raw.gz", &packed, &OpenOptions { format: Format::Raw, ..auto }, "PackedUnsaid", "gzip");
    refused("as-qcow2.gz", &packed, &OpenOptions { format: Format::Qcow2, ..auto }, "NotQcow2", "gzip");
    let nested = OpenOptions { format: Format::Raw, nested: Nested::Allow, ..auto };
    let image = open_as(&folder.path("as-raw.gz"), &nested).unwrap();
    assert!(content(image.as_ref(), 1 << 20).unwrap() == packed, "the file itself is the disk");
    assert!(unpacked_disk(&put(&folder, "raw.GZ", &packed)).unwrap() == disk);
}

#[test]
fn another_format_in_a_stream_is_refused_with_the_command_that_unpacks_it() {
    let folder = Folder::new();
    let mut vhd = disk(2 * MIB + 512);
    let at = vhd.len() - 512;
    vhd[at..at + 8].copy_from_slice(b"conectix");
    for (content_name, inner) in
        [("qcow2", unpacked("zlib-64k.qcow2")), ("vhd", vhd), ("gzip", gzip(&disk(100)))]
    {
        for (shape, ending, packed) in shapes(&inner) {
            let path = put(&folder, ending, &packed);
            let error = open_alone(&path).map(drop).unwrap_err();
            let hint = error.hint().unwrap();
            check_refused(shape, Err(error), "PackedFormat", content_name);
            let command = match ending {
                "gz" => "gzip -d --keep ",
                "xz" => "xz -d --keep ",
                _ => "zstd -d ",
            };
            assert!(hint.contains(command) && hint.contains(&path.display().to_string()), "{hint}");
            let nested = OpenOptions { nested: Nested::Allow, ..OpenOptions::default() };
            let image = open_as(&path, &nested).unwrap();
            assert!(content(image.as_ref(), 1 << 20).unwrap() == inner, "{shape}");
        }
    }
}

#[test]
fn a_length_that_is_told_wrongly_is_refused() {
    let folder = Folder::new();
    let disk = disk(300_000);
    let mut table = seekable(&disk, 100_000);
    let last_len = table.len() - 9 - 4;
    table[last_len..last_len + 4].copy_from_slice(&99_999_u32.to_le_bytes());
    check_refused(
        "seekable",
        unpacked_disk(&put(&folder, "zst", &table)).map(drop),
        "BadStream",
        "says that",
    );
    let mut frame = zstd(&disk, Says::Length, &[]);
    // Magic, descriptor, window, then four bytes of length.
    frame[6] ^= 1;
    check_refused("zstd", unpacked_disk(&put(&folder, "zst", &frame)).map(drop), "BadStream", "");
}

#[test]
fn whether_checksums_cover_all_is_told() {
    let folder = Folder::new();
    let disk = disk(9000);
    let bare = zstd(&disk, Says::Length, &[CParameter::ChecksumFlag(false)]);
    let none = xz(&disk, 5000, Check::None);
    for (ending, packed, expected) in [
        ("zst", bare, false),
        ("xz", [none, xz(&disk, 5000, Check::Crc32)].concat(), false),
        ("xz", xz(&disk, 5000, Check::Crc32), true),
        ("zst", zstd(&disk, Says::Length, &[]), true),
        ("gz", gzip(&disk), true),
    ] {
        let info = open_alone(&put(&folder, ending, &packed)).unwrap().info();
        assert_eq!((info.format, info.chain[0].checksums), ("raw", Some(expected)), "{ending}");
    }
}

#[test]
fn whole_pieces_of_zeroes_are_told_after_the_pass() {
    let folder = Folder::new();
    let mut disk = vec![0; 10 * MIB + 100];
    disk[4 * MIB + 5] = 1;
    for (shape, ending, packed) in shapes(&disk) {
        let image = open_alone(&put(&folder, ending, &packed)).unwrap();
        let extents = image.map(ByteRange::new(0, disk.len() as u64)).unwrap();
        let found: Vec<_> = extents.iter().map(|extent| (extent.range.end(), extent.kind)).collect();
        let at = |mib: u64| mib << 20;
        let expected =
            [(at(4), ExtentKind::Zero), (at(5), ExtentKind::Streamed), (disk.len() as u64, ExtentKind::Zero)];
        assert_eq!(found, expected, "{shape}");
    }
}
