//! Goal: no L1 or L2 entry that points somewhere wrong is followed.
//!
//! Method: one entry changed a row; the places of the tables come from the image itself.

use super::*;

const COPIED: u64 = 1 << 63;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Where the L1 table, the first L2 table and the first entry's cluster are.
struct Places {
    l1: u64,
    l2: u64,
    data: u64,
}

fn places(path: &Path) -> Places {
    let l1 = field(path, 40);
    let l2 = field(path, l1) & OFFSET;
    Places { l1, l2, data: field(path, l2) & OFFSET }
}

/// `change` gives the offset and the value of an entry.
#[track_caller]
fn check(image: &str, change: impl Fn(&Places, u64) -> (u64, u64), variant: &str, words: &str) {
    let folder = Folder::with(&[image]);
    let path = folder.path(image);
    let file_size = path.metadata().unwrap().len();
    let (offset, value) = change(&places(&path), file_size);
    patch(&path, offset, &value.to_be_bytes());
    let case = format!("{image} with {value:#x} at {offset:#x}");
    check_refused(&case, everything(&path), variant, words);
}

#[test]
fn a_wrong_l1_entry_is_refused() {
    for bit in (0..9).chain(56..63) {
        let expected = "reserved bits";
        check("v3-64k.qcow2", |p, _| (p.l1, p.l2 | 1 << bit), "BadEntry { path", expected);
    }
    let image = "v3-64k.qcow2";
    check(image, |p, _| (p.l1, p.l2 + 512), "BadEntry", "middle of a cluster");
    check(image, |p, end| (p.l1, COPIED | end.next_multiple_of(65536)), "BeyondEnd", "an L2 table");
    check(image, |p, _| (p.l1, OFFSET & !0xffff), "BeyondEnd", "an L2 table");
    check(image, |p, _| (p.l1, COPIED | p.l1), "Overlap", "an L2 table lies on the L1 table");
    check(image, |p, _| (p.l1, COPIED | 65536), "Overlap", "an L2 table lies on the refcount table");
    let image = "v3-512.qcow2";
    check(image, |p, _| (p.l1 + 8, COPIED | p.l2), "BadEntry", "another entry points to");
}

#[test]
fn an_l2_table_across_the_end_is_refused() {
    let folder = Folder::with(&["empty.qcow2"]);
    let path = folder.path("empty.qcow2");
    let end = path.metadata().unwrap().len().next_multiple_of(65536);
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(end + 65535).unwrap();
    patch(&path, field(&path, 40), &(COPIED | end).to_be_bytes());
    check_refused("cut off", everything(&path), "BeyondEnd", "an L2 table");
    append(&path, &[0]);
    everything(&path).unwrap();
}

#[test]
fn a_wrong_l2_entry_is_refused() {
    let image = "v3-64k.qcow2";
    for bit in (1..9).chain(56..62) {
        check(image, |p, _| (p.l2, p.data | 1 << bit), "BadEntry", "reserved bits");
    }
    check("v2-64k.qcow2", |p, _| (p.l2, p.data | 1), "BadEntry", "reserved bits");
    check(image, |p, _| (p.l2, p.data + 512), "BadEntry", "middle of a cluster");
    check(image, |p, _| (p.l2, (p.data + 512) | 1), "BadEntry", "middle of a cluster");
    check(image, |p, end| (p.l2, COPIED | end.next_multiple_of(65536)), "BeyondEnd", "a data cluster");
    check(image, |p, _| (p.l2, OFFSET & !0xffff), "BeyondEnd", "a data cluster");
    check(image, |p, _| (p.l2, COPIED | p.l1), "Overlap", "a data cluster lies on the L1 table");
    check(image, |p, _| (p.l2, COPIED | p.l2), "Overlap", "a data cluster lies on an L2 table");
    check(image, |p, _| (p.l2, COPIED | 65536), "Overlap", "a data cluster lies on the refcount table");
    // Offset 0 is the header's, and says "unallocated": nothing can point there.
    let mixed = |p: &Places, _| (p.l2 + 8, p.data | 1 << 63 | 1 << 3);
    check(image, mixed, "BadEntry", "reserved bits");
}

#[test]
fn a_run_of_clusters_into_a_table_is_refused() {
    // Two neighbours, the second of which is the L2 table: only the whole run shows it.
    let folder = Folder::with(&["v3-64k.qcow2"]);
    let path = folder.path("v3-64k.qcow2");
    let p = places(&path);
    patch(&path, p.l2, &(COPIED | (p.l1 - 65536)).to_be_bytes());
    patch(&path, p.l2 + 8, &(COPIED | p.l1).to_be_bytes());
    check_refused("a run", everything(&path), "Overlap", "a data cluster lies on");
}

#[test]
fn a_truncated_image_is_refused() {
    for image in ["v3-64k.qcow2", "v3-4k.qcow2", "zlib-64k.qcow2", "zstd-4k.qcow2", "extl2-64k.qcow2"] {
        let folder = Folder::with(&[image]);
        let path = folder.path(image);
        let last = last_byte_of_data(&path);
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(last).unwrap();
        let expected = if image.starts_with('z') { "BadCompression" } else { "BeyondEnd" };
        check_refused(image, everything(&path), expected, "");
    }
}

/// The offset of the last byte that a disk's extents need, whatever comes after.
fn last_byte_of_data(path: &Path) -> u64 {
    let image = open_alone(path).unwrap();
    let extents = image.map(ByteRange::new(0, image.virtual_size())).unwrap();
    let end = |extent: &Extent| match extent.kind {
        ExtentKind::Data { host_offset, .. } => host_offset + extent.range.len(),
        ExtentKind::Compressed { host_offset, .. } => host_offset + 8,
        ExtentKind::Zero | ExtentKind::Streamed => 0,
    };
    extents.iter().map(end).max().unwrap() - 1
}

#[test]
fn a_wrong_extended_entry_is_refused() {
    let image = "extl2-64k.qcow2";
    check(image, |p, _| (p.l2, p.data | 1), "BadEntry", "reserved bits");
    check(image, |p, _| (p.l2 + 8, 1 << 32 | 1), "BadEntry", "data and zero");
    check(image, |p, _| (p.l2, 0), "BadEntry", "gives no cluster");
    check("extl2-zlib.qcow2", |p, _| (p.l2 + 8, 1), "BadEntry", "reserved bits");
}

#[test]
fn a_wrong_compressed_entry_is_refused() {
    let compressed = 1u64 << 62;
    let image = "zlib-64k.qcow2";
    check(image, |p, end| (p.l2, compressed | end), "BeyondEnd", "a compressed cluster");
    check(image, |p, _| (p.l2, compressed | p.l1), "Overlap", "lies on the L1 table");
    check(image, |p, _| (p.l2, compressed | 5), "Overlap", "lies on the header");
    check("zstd-64k.qcow2", |p, _| (p.l2, compressed | p.l2), "Overlap", "lies on an L2 table");
}

/// Where the first compressed cluster lies.
fn first_stream(path: &Path) -> (u64, u32) {
    let image = open_alone(path).unwrap();
    let extents = image.map(ByteRange::new(0, image.virtual_size())).unwrap();
    match extents[0].kind {
        ExtentKind::Compressed { host_offset, host_len, .. } => (host_offset, host_len),
        _ => panic!("the first cluster is compressed"),
    }
}

#[track_caller]
fn check_stream(image: &str, stream: &[u8], words: &str) {
    let folder = Folder::with(&[image]);
    let path = folder.path(image);
    patch(&path, first_stream(&path).0, stream);
    check_refused(image, everything(&path), "BadCompression", words);
}

/// A deflate stream of one stored block, or of several.
fn stored_deflate(len: usize) -> Vec<u8> {
    let mut stream = Vec::new();
    let blocks: Vec<Vec<u8>> = vec![7; len].chunks(30000).map(<[u8]>::to_vec).collect();
    for (index, block) in blocks.iter().enumerate() {
        let len = u16::try_from(block.len()).unwrap();
        stream.push(u8::from(index + 1 == blocks.len()));
        stream.extend(len.to_le_bytes());
        stream.extend((!len).to_le_bytes());
        stream.extend(block);
    }
    stream
}

#[test]
fn a_stream_that_is_not_exactly_one_cluster_is_refused() {
    check_stream("zlib-64k.qcow2", &[0xff; 64], "is no deflate stream");
    check_stream("zlib-4k.qcow2", &stored_deflate(17), "gives less than a cluster");
    check_stream("zstd-64k.qcow2", &[0xff; 64], "is no complete zstd frame");
    let mut short = [0; 200];
    let len = zstd_safe::compress(&mut short, &[1; 17], 3).unwrap();
    short[len..].fill(0);
    check_stream("zstd-64k.qcow2", &short, "is no complete zstd frame");
    let mut long = vec![0; 1000];
    let len = zstd_safe::compress(&mut long[..], &vec![1; 65537], 3).unwrap();
    check_stream("zstd-64k.qcow2", &long[..len], "of at most a cluster");
    // One cluster of bytes and one more, deflated to little.
    let mut compressor = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
    let mut long = vec![0; 1000];
    let len = compressor.deflate_compress(&vec![1; 65537], &mut long).unwrap();
    check_stream("zlib-64k.qcow2", &long[..len], "gives more than a cluster");
}

/// Puts one compressed cluster of 4 KiB behind the end of an image and points its first entry there.
fn with_stream(image: &str, stream: &[u8], sectors: u64) -> Result<Vec<u8>, ImageError> {
    let folder = Folder::with(&[image]);
    let path = folder.path(image);
    let at = path.metadata().unwrap().len();
    append(&path, stream);
    let offset_bits = 62 - (12 - 8);
    patch(&path, places(&path).l2, &(1u64 << 62 | (sectors - 1) << offset_bits | at).to_be_bytes());
    let image = open_alone(&path)?;
    image.check_tables()?;
    let mut content = content(&*image, 1 << 20)?;
    content.truncate(4096);
    Ok(content)
}

#[test]
fn unusual_streams_are_read() {
    // Stored blocks are longer than the cluster; more sectors are named than there are, beyond the file's end.
    let stored = stored_deflate(4096);
    assert!(stored.len() > 4096);
    for sectors in [9, 16] {
        assert!(with_stream("zlib-4k.qcow2", &stored, sectors).unwrap() == [7; 4096]);
    }
    // A frame that does not say how long its content is, and two frames one behind the other.
    let mut context = zstd_safe::CCtx::create();
    context.set_parameter(zstd_safe::CParameter::ContentSizeFlag(false)).unwrap();
    let mut packed = vec![0; 8192];
    let len = context.compress2(&mut packed[..], &[7; 4096][..]).unwrap();
    assert_eq!(zstd_safe::get_frame_content_size(&packed[..len]).ok().flatten(), None);
    assert!(with_stream("zstd-4k.qcow2", &packed[..len], 1).unwrap() == [7; 4096]);
    let first = zstd_safe::compress(&mut packed[..], &[7; 1000], 3).unwrap();
    let second = zstd_safe::compress(&mut packed[first..], &[7; 3096], 3).unwrap();
    assert!(with_stream("zstd-4k.qcow2", &packed[..first + second], 1).unwrap() == [7; 4096]);
    // The end of the file cuts the stream.
    let error = with_stream("zlib-4k.qcow2", &stored[..4000], 9).unwrap_err();
    assert!(matches!(error, ImageError::BadCompression { .. }), "{error}");
}

#[test]
fn unusual_entries_are_read() {
    let folder = Folder::with(&["v3-64k.qcow2"]);
    let path = folder.path("v3-64k.qcow2");
    let p = places(&path);
    let before = content(&*open_alone(&path).unwrap(), 1 << 20).unwrap();
    // The copied flags are hints about reference counts; what lies behind the disk's end is nobody's.
    patch(&path, p.l1, &p.l2.to_be_bytes());
    patch(&path, p.l2, &p.data.to_be_bytes());
    patch(&path, p.l2 + 17 * 8, &(COPIED | 1 << 50).to_be_bytes());
    append(&path, b"garbage");
    let image = open_alone(&path).unwrap();
    image.check_tables().unwrap();
    assert!(content(&*image, 1 << 20).unwrap() == before);
}
