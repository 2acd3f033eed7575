//! Goal: no header that lies is believed, and none that is merely unusual is refused.
//!
//! Method: tables of changed bytes, one fault a row.

use super::*;

type Patch = (u64, &'static [u8]);

const NONE: &[u8] = &[0; 8];
const FAR: &[u8] = &(1u64 << 40).to_be_bytes();

#[track_caller]
fn check(case: &str, image: &str, patches: &[Patch], variant: &str, words: &str) {
    let folder = Folder::with(&[image]);
    for (offset, bytes) in patches {
        patch(&folder.path(image), *offset, bytes);
    }
    check_refused(case, everything(&folder.path(image)), variant, words);
}

#[track_caller]
fn check_read(case: &str, image: &str, patches: &[Patch]) {
    let folder = Folder::with(&[image]);
    let before = content(&*open_alone(&folder.path(image)).unwrap(), 1 << 20).unwrap();
    for (offset, bytes) in patches {
        patch(&folder.path(image), *offset, bytes);
    }
    let image = open_alone(&folder.path(image)).unwrap_or_else(|error| panic!("{case}: {error}"));
    image.check_tables().unwrap_or_else(|error| panic!("{case}: {error}"));
    assert!(content(&*image, 1 << 20).unwrap() == before, "{case}: the content is another");
}

#[test]
fn a_field_out_of_bounds_is_refused() {
    let rows: &[(&str, Patch, &str, &str)] = &[
        ("version 1", (4, &[0, 0, 0, 1]), "Unsupported", "qcow version 1"),
        ("version 4", (4, &[0, 0, 0, 4]), "Unsupported", "qcow version 4"),
        ("cluster_bits 8", (20, &[0, 0, 0, 8]), "BadHeader", "not between 9 and 21"),
        ("cluster_bits 22", (20, &[0, 0, 0, 22]), "BadHeader", "not between 9 and 21"),
        ("cluster_bits 63", (20, &[0, 0, 0, 63]), "BadHeader", "not between 9 and 21"),
        ("cluster_bits 64", (20, &[0, 0, 0, 64]), "BadHeader", "not between 9 and 21"),
        ("cluster_bits 85", (20, &[0, 0, 0, 85]), "BadHeader", "not between 9 and 21"),
        ("cluster_bits 2^32-1", (20, &[255; 4]), "BadHeader", "not between 9 and 21"),
        ("size 2^63", (24, &[128, 0, 0, 0, 0, 0, 0, 0]), "BadHeader", "2^63"),
        ("size 2^64-512", (24, &[255, 255, 255, 255, 255, 255, 254, 0]), "BadHeader", "2^63"),
        ("size 2^63-1", (24, &[127, 255, 255, 255, 255, 255, 255, 255]), "BadHeader", "too small"),
        ("one byte more than L1 maps", (24, &[0, 0, 0, 0, 0x20, 0, 0, 1]), "BadHeader", "too small"),
        ("AES", (32, &[0, 0, 0, 1]), "Unsupported", "encryption"),
        ("LUKS", (32, &[0, 0, 0, 2]), "Unsupported", "encryption"),
        ("l1_size 0", (36, &[0; 4]), "BadHeader", "too small"),
        ("l1_size 2^32-1", (36, &[255; 4]), "BadHeader", "more than 32 MiB"),
        ("l1_size across the end", (36, &[0, 0x40, 0, 0]), "BeyondEnd", "the L1 table"),
        ("L1 unaligned", (40, &[0, 0, 0, 0, 0, 3, 2, 0]), "BadHeader", "middle of a cluster"),
        ("L1 at 0", (40, NONE), "BadHeader", "points to the header"),
        ("L1 beyond the end", (40, FAR), "BeyondEnd", "the L1 table"),
        ("L1 that wraps", (40, &[255, 255, 255, 255, 255, 255, 0, 0]), "BeyondEnd", "the L1 table"),
        ("refcount table unaligned", (48, &[0, 0, 0, 0, 0, 1, 2, 0]), "BadHeader", "middle of a cluster"),
        ("refcount table at 0", (48, NONE), "BadHeader", "points to the header"),
        ("refcount table beyond the end", (48, FAR), "BeyondEnd", "the refcount table"),
        ("refcount table that wraps", (48, &[255, 255, 255, 255, 255, 255, 0, 0]), "BadHeader", "64 bits"),
        ("no refcount table", (56, &[0; 4]), "BadHeader", "is 0"),
        ("refcount table of 129 clusters", (56, &[0, 0, 0, 129]), "BadHeader", "more than 8 MiB"),
        ("refcount table of 2^32-1 clusters", (56, &[255; 4]), "BadHeader", "more than 8 MiB"),
        ("65537 snapshots", (60, &[0, 1, 0, 1]), "BadHeader", "65536"),
        ("snapshots at 0", (60, &[0, 0, 0, 1]), "BadHeader", "points to the header"),
        ("snapshots unaligned", (64, &[0, 0, 0, 0, 0, 1, 2, 0]), "BadHeader", "middle of a cluster"),
        ("corrupt", (79, &[2]), "MarkedCorrupt", ""),
        ("external data file", (79, &[4]), "Unsupported", "external data file"),
        ("compression bit, type 0", (79, &[8]), "BadHeader", "no compression type"),
        ("type without the bit", (104, &[1]), "BadHeader", "without its incompatible"),
        ("incompatible bit 5", (79, &[1 << 5]), "Unsupported", "0x20"),
        ("incompatible bit 40", (74, &[1]), "Unsupported", "0x10000000000"),
        ("refcount_order 7", (96, &[0, 0, 0, 7]), "BadHeader", "more than 6"),
        ("refcount_order 200", (96, &[0, 0, 0, 200]), "BadHeader", "more than 6"),
        ("header_length 72", (100, &[0, 0, 0, 72]), "BadHeader", "less than 104"),
        ("header_length 109", (100, &[0, 0, 0, 109]), "BadHeader", "no multiple of 8"),
        ("header_length 65544", (100, &[0, 1, 0, 8]), "BadHeader", "more than a cluster"),
        ("header_length 2^32-8", (100, &[255, 255, 255, 248]), "BadHeader", "more than a cluster"),
        ("extension of 2^31", (116, &[128, 0, 0, 0]), "BadHeader", "leaves the space"),
        ("extension of 2^32-1", (116, &[255; 4]), "BadHeader", "leaves the space"),
        ("extension of a cluster", (116, &[0, 1, 0, 0]), "BadHeader", "leaves the space"),
    ];
    for (case, changed, variant, words) in rows {
        check(case, "v3-64k.qcow2", &[*changed], variant, words);
    }
}

#[test]
fn fields_that_contradict_each_other_are_refused() {
    let rows: &[(&str, &str, &[Patch], &str, &str)] = &[
        ("compression type 2", "zstd-64k.qcow2", &[(104, &[2])], "BadHeader", "no compression that is known"),
        (
            "compression bit without the field",
            "v3-64k.qcow2",
            &[(79, &[8]), (100, &[0, 0, 0, 104])],
            "BadHeader",
            "no compression type",
        ),
        ("extended L2 in small clusters", "v3-4k.qcow2", &[(79, &[16])], "BadHeader", "less than 14"),
        (
            "snapshots beyond the end",
            "v3-64k.qcow2",
            &[(60, &[0, 0, 0, 1]), (64, FAR)],
            "BeyondEnd",
            "the snapshot table",
        ),
        (
            "snapshots across the end",
            "snapshots.qcow2",
            &[(60, &[0, 1, 0, 0])],
            "BeyondEnd",
            "the snapshot table",
        ),
        ("external data file extension", "v3-64k.qcow2", &[(112, b"DATA")], "Unsupported", "external data"),
        (
            "L1 on the refcount table",
            "v3-64k.qcow2",
            &[(40, &[0, 0, 0, 0, 0, 1, 0, 0])],
            "Overlap",
            "the L1 table lies on the refcount table",
        ),
    ];
    for (case, image, changed, variant, words) in rows {
        check(case, image, changed, variant, words);
    }
}

#[test]
fn a_backing_name_out_of_place_is_refused() {
    let rows: &[(&str, &[Patch], &str, &str)] = &[
        ("of 1024 bytes", &[(16, &[0, 0, 4, 0])], "BadHeader", "more than 1023"),
        ("of 2^32-1 bytes", &[(16, &[255; 4])], "BadHeader", "more than 1023"),
        ("on the header", &[(8, &[0, 0, 0, 0, 0, 0, 0, 104])], "BadHeader", "header's fields"),
        ("in the next cluster", &[(8, &[0, 0, 0, 0, 0, 1, 0, 0])], "BadHeader", "leaves the header cluster"),
        ("across the cluster", &[(8, &[0, 0, 0, 0, 0, 0, 255, 255])], "BadHeader", "leaves the header"),
        ("at 2^64-1", &[(8, &[255; 8])], "BadHeader", "leaves the header cluster"),
        (
            "under an extension",
            &[(112, &[1, 2, 3, 4, 0, 0, 255, 0])],
            "BadHeader",
            "leaves the space for extensions",
        ),
    ];
    for (case, changed, variant, words) in rows {
        check(case, "chain-top.qcow2", changed, variant, words);
    }
}

#[test]
fn unusual_headers_are_read() {
    let rows: &[(&str, &str, &[Patch])] = &[
        ("dirty", "v3-64k.qcow2", &[(79, &[1])]),
        ("unknown compatible bits", "v3-64k.qcow2", &[(80, &[255; 8])]),
        ("unknown autoclear bits", "v3-64k.qcow2", &[(88, &[255; 8])]),
        ("header_length 104", "v3-64k.qcow2", &[(100, &[0, 0, 0, 104]), (104, NONE)]),
        ("header_length 120", "v3-64k.qcow2", &[(100, &[0, 0, 0, 120]), (104, &[0; 24])]),
        ("header_length 128", "v3-64k.qcow2", &[(100, &[0, 0, 0, 128]), (104, &[0; 32])]),
        ("no feature names", "v3-64k.qcow2", &[(116, &[0; 12])]),
        ("one byte of feature names", "v3-64k.qcow2", &[(116, &[0, 0, 0, 1]), (120, &[0; 16])]),
        ("an unknown extension", "v3-64k.qcow2", &[(112, &[1, 2, 3, 4])]),
        ("an unknown extension in version 2", "v2-64k.qcow2", &[(72, &[1, 2, 3, 4, 0, 0, 0, 5])]),
        ("a larger L1 table", "v3-64k.qcow2", &[(36, &[0, 0, 0, 9])]),
        ("stale reference counts", "v3-64k.qcow2", &[(79, &[1]), (65536, &[0; 65536])]),
        ("a backing name of no bytes", "v3-64k.qcow2", &[(8, FAR)]),
    ];
    for (case, image, changed) in rows {
        check_read(case, image, changed);
    }
}

#[test]
fn a_header_that_is_cut_off_is_refused() {
    for len in [4, 5, 71, 72, 103, 104, 111, 65536, 131_072] {
        let folder = Folder::with(&["v3-64k.qcow2"]);
        let path = folder.path("v3-64k.qcow2");
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(len).unwrap();
        check_refused(&format!("{len} bytes"), everything(&path), "BeyondEnd", "");
    }
}

#[test]
fn tables_above_the_memory_bound_are_refused() {
    // 64 layers' L1 tables of 32 MiB would be 2 GiB: here one of 4 Mi entries, all of them used.
    let folder = Folder::with(&["v3-512.qcow2"]);
    let path = folder.path("v3-512.qcow2");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let (l1_at, entries) = (1u64 << 30, 4u64 << 20);
    file.set_len((4 << 30) + entries * 512).unwrap();
    let table: Vec<u8> =
        (0..entries).flat_map(|index| (((4 << 30) + index * 512) | (1 << 63)).to_be_bytes()).collect();
    file.write_all_at(&table, l1_at).unwrap();
    patch(&path, 24, &(entries * 64 * 512).to_be_bytes());
    patch(&path, 36, &(4u32 << 20).to_be_bytes());
    patch(&path, 40, &l1_at.to_be_bytes());
    check_refused("4 Mi tables", open_alone(&path).map(drop), "TooMuchMetadata", "more bytes of memory");
}
