//! What lies on disks and in packed images: partition tables, labels of file systems, gzip, xz and zstd streams.

use std::io::Read;
use std::path::Path;

use reimage::{ImageOptions, Inspection, Preflight};

use super::{check, check_some, contents, files, gpt, testdata};
use crate::engine::Asked;
use crate::random::Random;
use crate::stored;

/// Looks at an image of that name with that content.
fn look(name: &str, content: &[u8]) -> Option<Inspection> {
    let folder = stored::scratch();
    let image = folder.path().join(name);
    stored::write_sparse(&image, content);
    reimage::inspect(&image, &ImageOptions::default(), Preflight::Deep, &()).ok()
}

fn inspect(name: &str, content: &[u8]) -> bool {
    look(name, content).is_some()
}

/// Whether a partition table is found; and a rebuild onto a larger disk, where its backup moves, ends in either case.
fn has_table(content: &[u8]) -> bool {
    let folder = stored::scratch();
    let image = folder.path().join("disk.raw");
    stored::write_sparse(&image, content);
    let disk_size = content.len().next_multiple_of(4096) + (1 << 20);
    let asked = Asked { image, folder: folder.path().to_owned(), disk_size, deep: false };
    let answers = asked.answers();
    const END: usize = 40 << 10;
    if answers.rebuild.is_ok() && content.len() > 2 * END {
        // What is in the middle of the disk is no table's.
        let middle = END..content.len() - END;
        assert!(answers.disk[middle.clone()] == content[middle], "the middle of the disk is another");
        gpt::check_moved(content, &answers.disk);
    }
    let layout = look("disk.raw", content).map(|found| found.layout);
    gpt::check_believed(content, layout.as_ref().and_then(|layout| layout.table));
    layout.is_some_and(|layout| layout.table.is_some() && layout.partitions.len() < 4096)
}

/// How many bytes at a disk's beginning a GPT takes.
const HEAD: usize = 34 * 512;

/// A disk of 8 MiB, as the tables were made for, that begins and ends with what there is.
pub(super) fn disk(ends: &[u8]) -> Vec<u8> {
    let (head, tail) = ends.split_at(ends.len().min(HEAD));
    let mut disk = head.to_vec();
    disk.resize((8_usize << 20).saturating_sub(tail.len()).max(head.len()), 0);
    disk.extend(tail);
    disk
}

/// Partition tables whose checksums are right again after the damage, so that more of it is looked at.
pub(super) fn with_checksums(input: &[u8]) -> Vec<u8> {
    let mut disk = input.to_vec();
    let len = disk.len();
    for at in [512, 4096, len.saturating_sub(512)] {
        let Some(header) = disk.get(at..at + 92).filter(|header| header.starts_with(b"EFI PART")) else {
            continue;
        };
        let number = |from: usize, len: usize| {
            header[from..from + len].iter().rev().fold(0_usize, |value, byte| value << 8 | usize::from(*byte))
        };
        let start = number(72, 8).saturating_mul(512);
        let end = start.saturating_add(number(80, 4).saturating_mul(number(84, 4)));
        if let Some(entries) = disk.get(start..end) {
            let sum = crc32(entries);
            disk[at + 88..at + 92].copy_from_slice(&sum.to_le_bytes());
        }
        disk[at + 16..at + 20].fill(0);
        let sum = crc32(&disk[at..at + 92]);
        disk[at + 16..at + 20].copy_from_slice(&sum.to_le_bytes());
    }
    disk
}

pub(super) fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[test]
fn damaged_partition_tables_are_read_or_left_alone() {
    let part = |name: &str| std::fs::read(testdata("layout").join(name)).unwrap();
    // MBR with an extended partition, whose first record leads to itself: it counts from the partition's beginning.
    let mut mbr = vec![0; 8192];
    for (at, next) in [(0, 8), (4096, 0)] {
        mbr[at + 446..at + 462].copy_from_slice(&[0x80, 0, 2, 0, 0x83, 0, 3, 0, 8, 0, 0, 0, 8, 0, 0, 0]);
        mbr[at + 462..at + 478].copy_from_slice(&[0, 0, 2, 0, 5, 0, 3, 0, next, 0, 0, 0, 255, 7, 0, 0]);
        mbr[at + 510..at + 512].copy_from_slice(&[0x55, 0xaa]);
    }
    let corpus = [
        [part("gpt-1-14-15.head"), part("gpt-1-14-15.tail")].concat(),
        [part("gpt-1-14-15-moved.head"), part("gpt-1-14-15-moved.tail")].concat(),
        mbr,
        vec![0; 512],
    ];
    check_some(("partition-table", 40), &corpus, |input| {
        let disk = disk(input);
        let as_it_is = has_table(&disk);
        has_table(&with_checksums(&disk)) || as_it_is
    });
}

/// Where each label is known by, and what stands there.
const LABELS: [(usize, &[u8]); 24] = [
    (0x438, b"\x53\xef"),
    (0, b"XFSB"),
    (0x10040, b"_BHRfS_M"),
    (4086, b"SWAPSPACE2"),
    (512, b"LABELONE\0\0\0\0\0\0\0\0\0\0\0\0\x20\0\0\0LVM2 001"),
    (4096, b"\xfc\x4e\x2b\xa9\x01\0\0\0"),
    (3, b"NTFS    "),
    (3, b"EXFAT   "),
    (82, b"FAT32   "),
    (54, b"FAT16   "),
    (0x8001, b"CD001\x01"),
    (0x8801, b"CD001\xff"),
    (0x8001, b"BEA01"),
    (0, b"hsqs"),
    (0, b"LUKS\xba\xbe\0\x02"),
    (0x400, b"\x10\x20\xf5\xf2"),
    (0x10034, b"ReIsEr2Fs"),
    (0x400, b"H+\0\x04"),
    (128 << 10, b"\x0c\xb1\xba\0\0\0\0\0"),
    (24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
    (0x8000, b"JFS1"),
    (0x400, b"\xe2\xe1\xf5\xe0"),
    (510, b"\x55\xaa"),
    (0x1000, b"bcachefs"),
];

#[test]
fn labels_with_wild_numbers_are_read_or_left_alone() {
    let corpus: Vec<_> = LABELS
        .iter()
        .zip(1..)
        .map(|((at, magic), rng_seed)| {
            // Numbers at random behind every magic: sizes, offsets, counts.
            let mut random = Random::new(rng_seed);
            let mut disk = vec![0; 192 << 10];
            let near = at & !511;
            let noise = random.bytes(1024);
            disk[near..near + 1024].copy_from_slice(&noise);
            disk[*at..at + magic.len()].copy_from_slice(magic);
            disk
        })
        .collect();
    // An image that begins like another format is refused, and so is a text that names others.
    let formats =
        [&b"KDMV"[..], b"# Disk DescriptorFile\n", b"# nothing\n\n  version=1\n", b"#", b"QFI\xfb\0\0\0\x01"];
    let corpus = [corpus, formats.map(<[u8]>::to_vec).to_vec()].concat();
    check("label", &corpus, |input| inspect("disk.raw", input));
}

fn check_streams(ending: &str, parse: fn(&[u8]) -> bool) {
    let of_kind = |path: &&Path| path.extension().is_some_and(|extension| extension == ending);
    let all = files("fuzz/stream");
    let all: Vec<_> = all.iter().map(|path| path.as_path()).filter(of_kind).collect();
    assert!(all.len() > 1, "there are streams of that kind");
    let corpus: Vec<_> = all.iter().map(|path| std::fs::read(path).unwrap()).collect();
    check(ending, &corpus, parse);
}

#[test]
fn a_damaged_gzip_stream_is_taken_only_if_another_decoder_takes_it() {
    check_streams("gz", |input| {
        let taken = inspect("disk.raw.gz", input);
        // What is taken is a stream to others as well.
        let mut content = Vec::new();
        let other = flate2::read::MultiGzDecoder::new(input).take(64 << 20).read_to_end(&mut content);
        assert!(!taken || other.is_ok(), "a stream that is none to another decoder");
        taken
    });
}

#[test]
fn damaged_xz_streams_are_taken_or_refused() {
    check_streams("xz", |input| inspect("disk.raw.xz", input));
}

#[test]
fn damaged_zstd_streams_are_taken_or_refused() {
    check_streams("zst", |input| inspect("disk.raw.zst", input));
}

#[test]
fn streams_under_wrong_names_are_taken_or_refused() {
    let corpus =
        [contents(&["fuzz/stream"]), vec![b"\x1f\x8b".to_vec(), b"BZh91AY&SY".to_vec(), vec![0; 512]]]
            .concat();
    check("packed", &corpus, |input| {
        ["disk.raw.gz", "disk.xz", "disk.img.zst", "disk.raw"]
            .iter()
            .filter(|name| inspect(name, input))
            .count()
            > 0
    });
}
