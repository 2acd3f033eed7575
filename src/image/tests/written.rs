//! Goal: what is written is an image: read back it is the disk, and every cluster of the file is counted right.
//!
//! Method: a plain writer of one thread around `ImageWriter`, and a counter that walks the file's tables by itself.
//! The packing in parallel is tested in `copy`, with both.

use std::fs::File;

use super::*;

/// Packs a disk with one thread, and writes the file in the order in which it is laid out.
pub(crate) fn write(path: &Path, disk: &[u8], (cluster_size, packing): (u32, Packing)) {
    let format = NewImage { virtual_size: u64::try_from(disk.len()).unwrap(), cluster_size, packing };
    let mut compressor = Compressor::new(&format);
    let size = usize::try_from(cluster_size).unwrap();
    let mut clusters = Vec::new();
    for (number, bytes) in (0..).zip(disk.chunks(size)) {
        let mut cluster = bytes.to_vec();
        cluster.resize(size, 0);
        if cluster.iter().any(|byte| *byte != 0) {
            let packed = compressor.pack(&cluster).map(<[u8]>::to_vec);
            clusters.push((number, packed.unwrap_or(cluster)));
        }
    }
    let stored = clusters.iter().map(|(number, bytes)| match bytes.len() == size {
        true => (*number, Stored::Plain(bytes)),
        false => (*number, Stored::Packed(bytes)),
    });
    write_clusters(path, format, stored);
}

/// Writes clusters as they are given, and the rest of the image around them.
fn write_clusters<'a>(path: &Path, format: NewImage, clusters: impl Iterator<Item = (u64, Stored<'a>)>) {
    let mut writer = ImageWriter::new(format).unwrap();
    let file = File::create_new(path).unwrap();
    let write = |parts: Vec<FilePart>| {
        for part in parts {
            file.write_all_at(&part.bytes, part.offset).unwrap();
        }
    };
    for (number, stored) in clusters {
        writer.append(number, stored);
        write(writer.take_parts());
    }
    let finished = writer.finish();
    write(finished.parts);
    assert!(!open_alone(path).is_ok_and(|image| image.info().format == "qcow2"), "the header comes last");
    file.write_all_at(&finished.header, 0).unwrap();
    assert_eq!(file.metadata().unwrap().len(), finished.file_bytes);
}

/// Counts the users of every cluster of the file by walking its tables, and compares with what its refcounts say.
///
/// Written from the specification, with none of the reader's code; for what is written here only.
pub(crate) fn check_refcounts(path: &Path) {
    let file = std::fs::read(path).unwrap();
    let number = |at: u64, len: usize| {
        let start = usize::try_from(at).unwrap();
        file[start..start + len].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
    };
    let bits = number(20, 4);
    let size = 1 << bits;
    let clusters = u64::try_from(file.len()).unwrap() / size;
    assert_eq!(clusters * size, u64::try_from(file.len()).unwrap(), "the file consists of whole clusters");
    let mut users = vec![0; usize::try_from(clusters).unwrap()];
    let mut once = Vec::new();
    let mut count = |start: u64, len: u64| {
        for cluster in start / size..(start + len).div_ceil(size) {
            users[usize::try_from(cluster).unwrap()] += 1;
        }
    };
    count(0, size);
    let (l1, l1_entries) = (number(40, 8), number(36, 4));
    count(l1, l1_entries * 8);
    let (table, table_len) = (number(48, 8), number(56, 4) * size);
    count(table, table_len);
    let blocks: Vec<_> = (0..table_len / 8).map(|index| number(table + index * 8, 8)).collect();
    blocks.iter().filter(|block| **block != 0).for_each(|block| count(*block, size));
    const OFFSET: u64 = (1 << 56) - 512;
    for l1_entry in (0..l1_entries).map(|index| number(l1 + index * 8, 8)).filter(|entry| *entry != 0) {
        count(l1_entry & OFFSET, size);
        once.push(l1_entry);
        for entry in (0..size / 8).map(|index| number((l1_entry & OFFSET) + index * 8, 8)) {
            if entry & 1 << 62 != 0 {
                assert_eq!(entry >> 63, 0, "a compressed cluster is not marked as used once");
                let offset_bits = 70 - bits;
                let offset = entry & ((1 << offset_bits) - 1);
                let sectors = ((entry & !(1 << 62)) >> offset_bits) + 1;
                count(offset / 512 * 512, sectors * 512);
            } else if entry != 0 {
                count(entry & OFFSET, size);
                once.push(entry);
            }
        }
    }
    for entry in once {
        assert_eq!(entry & !OFFSET, 1 << 63, "used once, and marked so");
        assert_eq!(users[usize::try_from((entry & OFFSET) / size).unwrap()], 1, "{entry:#x}");
    }
    let per_block = size / 2;
    for cluster in 0..clusters {
        let block = blocks.get(usize::try_from(cluster / per_block).unwrap());
        assert!(block.is_some_and(|block| *block != 0), "cluster {cluster} of {clusters} is in no block");
    }
    for (start, block) in
        (0..).step_by(usize::try_from(per_block).unwrap()).zip(&blocks).filter(|(_, block)| **block != 0)
    {
        for cluster in start..start + per_block {
            let used = users.get(usize::try_from(cluster).unwrap()).copied();
            assert_ne!(used, Some(0), "cluster {cluster} of {clusters} is used by nobody");
            let said = number(block + (cluster - start) * 2, 2);
            assert_eq!(said, used.unwrap_or(0), "cluster {cluster} of {clusters}");
        }
    }
}

#[track_caller]
fn check_possible(virtual_size: u64, cluster_size: u32, expected: Result<(), NewImageError>) {
    let format = NewImage { virtual_size, cluster_size, packing: Packing::None };
    assert_eq!(format.check(), expected);
}

#[test]
fn clusters_that_are_too_small_for_the_disk_are_refused_with_the_size_that_will_do() {
    let too_small = |cluster_size, virtual_size, least| {
        Err(NewImageError::ClustersTooSmall { cluster_size, virtual_size, least })
    };
    for cluster_size in [0, 1, 256, 513, 3 << 10, 4 << 20] {
        check_possible(0, cluster_size, Err(NewImageError::ClusterSize { cluster_size }));
    }
    check_possible(64 << 30, 512, Ok(()));
    check_possible((64 << 30) + 1, 512, too_small(512, (64 << 30) + 1, 1024));
    check_possible(4 << 40, 4096, Ok(()));
    check_possible((4 << 40) + 1, 4096, too_small(4096, (4 << 40) + 1, 8192));
    check_possible(1 << 48, 64 << 10, Ok(()));
    check_possible(1 << 48, 2 << 20, Ok(()));
    check_possible((1 << 48) + 1, 2 << 20, Err(NewImageError::TooLarge { virtual_size: (1 << 48) + 1 }));
}

#[test]
fn the_largest_disk_of_a_cluster_size_is_read_by_our_own_reader() {
    let folder = Folder::new();
    // An L1 table of 16 MiB, which takes the refcounts through 128 blocks at once.
    for (size, cluster_size) in [(64 << 30, 512), (4 << 40, 4096), (1 << 48, 2 << 20)] {
        let path = folder.path(&format!("{cluster_size}.qcow2"));
        let format = NewImage { virtual_size: size, cluster_size, packing: Packing::None };
        let cluster = vec![7; usize::try_from(cluster_size).unwrap()];
        let last = size / u64::from(cluster_size) - 1;
        write_clusters(&path, format, [0, last].into_iter().map(|number| (number, Stored::Plain(&cluster))));
        check_refcounts(&path);
        let image = open_alone(&path).unwrap();
        assert_eq!(image.check_tables().unwrap().data_bytes, 2 * u64::from(cluster_size));
        let mut read = vec![0; 512];
        let end = ByteRange::new(size - 512, 512);
        image.read(&image.map(end).unwrap(), &mut read, &mut Decoder::default()).unwrap();
        assert_eq!(read, [7; 512]);
    }
}

#[test]
fn compressed_clusters_fill_what_plain_ones_leave_between_them() {
    let folder = Folder::new();
    let path = folder.path("mixed.qcow2");
    let format = NewImage { virtual_size: 64 << 16, cluster_size: 1 << 16, packing: Packing::Zlib };
    let cluster = vec![7; 1 << 16];
    let mut compressor = Compressor::new(&format);
    let packed = compressor.pack(&cluster).unwrap().to_vec();
    assert!(packed.len() < 1024);
    let mixed = (0..64).map(|number| match number % 2 {
        0 => (number, Stored::Packed(&packed)),
        _ => (number, Stored::Plain(&cluster)),
    });
    write_clusters(&path, format, mixed);
    check_refcounts(&path);
    // The header, one cluster of compressed ones, 32 plain ones, L2, L1, refcount block and table.
    assert_eq!(std::fs::metadata(&path).unwrap().len(), (1 + 1 + 32 + 4) << 16);
    assert!(content(&*open_alone(&path).unwrap(), 1 << 20).unwrap().iter().all(|byte| *byte == 7));
}

#[test]
fn what_does_not_shrink_stays_as_it_is_and_spoils_nothing_for_the_next() {
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        state.to_be_bytes()[0]
    })
    .take(65536)
    .collect();
    let text: Vec<u8> = b"the same again ".iter().copied().cycle().take(65536).collect();
    let format = |packing| NewImage { virtual_size: 1 << 20, cluster_size: 1 << 16, packing };
    for packing in [Packing::Zlib, Packing::Zstd] {
        let alone = Compressor::new(&format(packing)).pack(&text).unwrap().to_vec();
        let mut compressor = Compressor::new(&format(packing));
        for _ in 0..3 {
            for size in [512, 4096, 65536] {
                assert_eq!(compressor.pack(&noise[..size]), None, "{packing:?}");
            }
            assert_eq!(
                compressor.pack(&text).unwrap(),
                alone,
                "{packing:?}: it follows from the cluster alone"
            );
        }
    }
    assert_eq!(Compressor::new(&format(Packing::None)).pack(&text), None);
}
