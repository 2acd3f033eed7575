//! Goal: every size is exact, whatever it is no multiple of.

use super::*;

const SIZES: &[u64] = &[0, 1, 511, 512, 513, 4095, 4096, 4097, 65535, 65536, 65537, 70001, 1_050_112];

#[test]
fn a_raw_image_of_any_size_is_read() {
    let disk = unpacked("chain-base.raw");
    let folder = Folder::new();
    for size in SIZES {
        let path = folder.path(&format!("{size}.img"));
        let expected = &disk[..usize::try_from(*size).unwrap()];
        write_sparse(&path, expected);
        let image = open_alone(&path).unwrap();
        assert_eq!((image.virtual_size(), image.info().format), (*size, "raw"));
        assert!(content(&*image, 4096).unwrap() == expected, "{size}");
        assert_eq!(image.map(ByteRange::new(*size, 0)).unwrap(), []);
    }
}

#[test]
fn a_qcow2_image_of_any_size_is_read() {
    let disk = unpacked("chain-base.raw");
    for name in ["v3-64k.qcow2", "v3-512.qcow2", "zlib-4k.qcow2", "zstd-64k.qcow2", "extl2-16k.qcow2"] {
        for size in SIZES {
            let folder = Folder::with(&[name]);
            let path = folder.path(name);
            patch(&path, 24, &size.to_be_bytes());
            let image = open_alone(&path).unwrap();
            assert_eq!(image.virtual_size(), *size);
            image.check_tables().unwrap();
            assert!(content(&*image, 10_000).unwrap() == disk[..usize::try_from(*size).unwrap()], "{size}");
        }
    }
}

#[test]
fn a_hole_of_a_raw_file_is_a_zero_extent() {
    let folder = Folder::new();
    let path = folder.path("disk.img");
    write_sparse(&path, &[0; 4 << 20]);
    patch(&path, 1 << 20, &[1; 65536]);
    let image = open_alone(&path).unwrap();
    let kinds: Vec<_> = image
        .map(ByteRange::new(0, 4 << 20))
        .unwrap()
        .iter()
        .map(|extent| (extent.range.start(), extent.kind == ExtentKind::Zero))
        .collect();
    assert_eq!(kinds, [(0, true), (1 << 20, false), ((1 << 20) + 65536, true)]);
}

#[test]
fn a_slice_of_the_map_is_bounded_and_goes_on_where_it_stopped() {
    let folder = Folder::new();
    let path = folder.path("disk.img");
    write_sparse(&path, &[0; 80 << 20]);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    for index in 0..5000 {
        file.write_all_at(&[1; 4096], index * 16384).unwrap();
    }
    let image = open_alone(&path).unwrap();
    let whole = ByteRange::new(0, 80 << 20);
    let mut counts = Vec::new();
    let mut rest = whole;
    while !rest.is_empty() {
        let extents = image.map(rest).unwrap();
        rest = ByteRange::between(check_gapless(rest, &extents), rest.end());
        counts.push(extents.len());
    }
    assert_eq!(counts, [4096, 4096, 2 * 5000 - 2 * 4096]);
}
