//! Not at random: compressed clusters at every border of what they are made of, one at a time, in images of each kind.
//! Damage at random comes to none of it, and to a stream that is right but for one thing hardly ever.
//!
//! Each stream says itself what is right to make of it, which is what qemu-img makes of it or is marked where not; of
//! streams that are cut off and of entries that say too little or too much the slow reader tells it.

mod bench;
mod deflate;
mod stream;
mod zstandard;

use bench::{Behind, Bench, Place, Sectors, Start};
use stream::Stream;

fn streams(bench: &Bench) -> Box<dyn Iterator<Item = Stream>> {
    let len = bench.cluster();
    if bench.is_zstd() { Box::new(zstandard::streams(len)) } else { Box::new(deflate::streams(len)) }
}

/// Streams of these names.
fn named(bench: &Bench, names: &[&str]) -> Vec<Stream> {
    let found: Vec<_> = streams(bench).filter(|stream| names.contains(&stream.what.as_str())).collect();
    assert_eq!(found.len(), names.len(), "every one of them is there");
    found
}

/// Streams of each structure, to be cut and to be said to be longer and shorter.
fn samples(bench: &Bench) -> Vec<Stream> {
    named(bench, sample_names(bench))
}

fn sample_names(bench: &Bench) -> &'static [&'static str] {
    const DEFLATE: [&str; 6] = [
        "text at level 6",
        "stored",
        "stored and an empty block",
        "fixed",
        "fixed in a block of its own each",
        "dynamic, plain",
    ];
    const ZSTANDARD: [&str; 9] = [
        "text at level 3",
        "text of a size that is not said",
        "a checksum",
        "a checksum of each half",
        "32 frames",
        "raw",
        "a letter",
        "an empty raw block last",
        "a frame to skip, and text",
    ];
    if bench.is_zstd() { &ZSTANDARD } else { &DEFLATE }
}

#[test]
fn every_stream_is_read_or_refused_rightly() {
    for name in
        ["zlib-512", "zlib-4k", "zlib-64k", "zlib-v2", "extl2-zlib", "zstd-4k", "zstd-64k", "extl2-zstd"]
    {
        let mut bench = Bench::of(name);
        for place in [Place::APART, Place::ALONE] {
            for stream in streams(&bench) {
                bench.add(stream, place);
            }
        }
        bench.ask();
        bench.has_seen(50, 60);
    }
}

/// Of clusters of 2 MiB every chunk is a part.
#[test]
fn a_stream_of_which_only_a_part_is_wanted_is_read_or_refused_rightly() {
    const BAD: [&str; 4] = ["0 bytes", "1 bytes", "2097151 bytes", "1048576 bytes"];
    const DEFLATE: [&str; 4] =
        ["two halves", "2097153 bytes", "the reserved kind behind a letter", "dynamic, too few codes"];
    const ZSTANDARD: [&str; 5] = [
        "2097153 bytes, which is not said",
        "a half and a byte less",
        "a half and a byte more",
        "a wrong checksum of a half",
        "no last block",
    ];
    for name in ["zlib-2m", "zstd-2m"] {
        let mut bench = Bench::of(name);
        let bad: &[&str] = if bench.is_zstd() { &ZSTANDARD } else { &DEFLATE };
        let streams = named(&bench, &[sample_names(&bench), &BAD, bad].concat());
        for place in [Place::APART, Place::ALONE] {
            streams.iter().for_each(|stream| bench.add(stream.clone(), place));
        }
        bench.ask();
        bench.has_seen(12, 16);
    }
}

#[test]
fn a_stream_that_is_cut_off_is_refused_or_read_rightly() {
    for name in ["zlib-512", "zlib-4k", "zlib-64k", "zstd-4k", "zstd-64k"] {
        let mut bench = Bench::of(name);
        for stream in samples(&bench) {
            for cut in stream.cuts() {
                for behind in [Behind::Other, Behind::Byte(0), Behind::Byte(0xff)] {
                    bench.add_cut(&stream, cut, Place { behind, ..Place::APART });
                }
            }
        }
        bench.ask();
        bench.has_seen(0, 100);
    }
}

#[test]
fn a_stream_that_the_end_of_the_file_cuts_off_is_refused_or_read_rightly() {
    for name in ["zlib-4k", "zstd-4k"] {
        let mut bench = Bench::of(name);
        for stream in samples(&bench) {
            for cut in stream.cuts() {
                bench.add_cut(&stream, cut, Place { behind: Behind::Next, ..Place::APART });
                bench.ask();
            }
        }
        bench.has_seen(0, 100);
    }
}

#[test]
fn an_entry_of_every_length_is_minded() {
    for name in ["zlib-512", "zlib-4k", "zlib-64k", "zlib-2m", "zstd-4k", "zstd-64k", "extl2-zstd"] {
        let mut bench = Bench::of(name);
        for stream in samples(&bench) {
            for start in [0, 1, 255, 511].map(Start::Behind) {
                for sectors in [Sectors::Less, Sectors::Exact, Sectors::More, Sectors::Most] {
                    bench.add_cut(
                        &stream,
                        stream.bytes.len(),
                        Place { start, sectors, behind: Behind::Next },
                    );
                }
            }
        }
        bench.ask();
        bench.has_seen(30, 5);
    }
}

#[test]
fn an_entry_that_goes_to_the_end_of_the_file_or_past_it_is_minded() {
    for name in ["zlib-4k", "zstd-4k"] {
        let mut bench = Bench::of(name);
        for stream in samples(&bench) {
            for (sectors, behind) in [
                (Sectors::ToEnd, Behind::Far),
                (Sectors::PastEnd, Behind::Far),
                (Sectors::More, Behind::Next),
                (Sectors::Most, Behind::Next),
            ] {
                let place = Place { start: Start::Behind(300), sectors, behind };
                bench.add_cut(&stream, stream.bytes.len(), place);
                bench.ask();
            }
        }
        bench.has_seen(20, 0);
    }
}

/// The judge of what the streams say of themselves.
#[test]
#[ignore = "needs qemu-img"]
fn qemu_img_reads_and_refuses_the_streams_as_they_say() {
    let mut wrong = Vec::new();
    for name in ["zlib-512", "zlib-4k", "zlib-64k", "zstd-4k", "zstd-64k"] {
        let mut bench = Bench::of(name);
        for stream in streams(&bench) {
            wrong.extend(bench.ask_qemu_img(stream));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
