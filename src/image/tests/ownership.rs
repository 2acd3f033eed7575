//! Goal: no byte of an image's file belongs to two places of its disk, and what only looks so is read.
//!
//! Method: images made here entry by entry, with tables in places of their own; what must be refused beside its legal
//! neighbour.

use super::*;

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const REFCOUNTS_AT: u64 = 2 << 20;
const L1_AT: u64 = 4 << 20;
const L2_AT: u64 = 8 << 20;
/// Where clusters and streams lie: behind all tables.
const DATA_AT: u64 = 64 << 20;

/// An image of zlib-compressed and plain clusters, with these entries (two numbers each with subclusters).
struct Made {
    folder: Folder,
    cluster_bits: u32,
    len: u64,
    /// Whether an entry has subclusters.
    extended: bool,
}

impl Made {
    fn of(cluster_bits: u32) -> Self {
        Self { folder: Folder::new(), cluster_bits, len: DATA_AT + (16 << 20), extended: false }
    }

    fn path(&self) -> PathBuf {
        self.folder.path("made.qcow2")
    }

    fn write(&self, entries: &[u64]) -> &Self {
        let path = self.folder.unpack("empty.qcow2", "made.qcow2");
        let cluster = 1u64 << self.cluster_bits;
        let bytes_an_entry = if self.extended { 16 } else { 8 };
        let clusters = u64::try_from(entries.len()).unwrap() * 8 / bytes_an_entry;
        let tables = clusters.div_ceil(cluster / bytes_an_entry);
        let l1: Vec<u8> =
            (0..tables).flat_map(|index| ((L2_AT + index * cluster) | COPIED).to_be_bytes()).collect();
        let l2: Vec<u8> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(self.len).unwrap();
        patch(&path, L1_AT, &l1);
        patch(&path, L2_AT, &l2);
        patch(&path, 20, &self.cluster_bits.to_be_bytes());
        patch(&path, 24, &(clusters * cluster).to_be_bytes());
        patch(&path, 36, &u32::try_from(tables).unwrap().to_be_bytes());
        patch(&path, 40, &L1_AT.to_be_bytes());
        patch(&path, 48, &REFCOUNTS_AT.to_be_bytes());
        // No extension: a short cluster has no room for those of the stored image.
        patch(&path, 112, &[0; 8]);
        if self.extended {
            patch(&path, 72, &(1u64 << 4).to_be_bytes());
        }
        self
    }

    fn with_bytes(&self, offset: u64, bytes: &[u8]) -> &Self {
        patch(&self.path(), offset, bytes);
        self
    }

    fn check(&self) -> Result<(), ImageError> {
        open_alone(&self.path())?.check_tables().map(drop)
    }

    /// A plain cluster, by its number among those behind the tables.
    fn plain(&self, number: u64) -> u64 {
        COPIED | (DATA_AT + (number << self.cluster_bits))
    }

    /// A stream that begins so far behind the tables and says so many sectors.
    fn stream(&self, offset: u64, sectors: u64) -> u64 {
        COMPRESSED | (sectors - 1) << (62 - (self.cluster_bits - 8)) | (DATA_AT + offset)
    }

    /// Fails unless the image is refused because the two entries have the same bytes.
    #[track_caller]
    fn check_shared(&self, case: &str, first: u64, second: u64, at: u64) {
        let error = self.check().err().unwrap_or_else(|| panic!("{case}: read without an error"));
        let ImageError::SharedCluster { range, entry, guest, other_entry, other_guest, .. } = error else {
            panic!("{case}: {error:?}")
        };
        let entry_len = if self.extended { 16 } else { 8 };
        let place = |number: u64| (L2_AT + number * entry_len, number << self.cluster_bits);
        assert_eq!((other_entry.start(), other_guest.start()), place(first), "{case}");
        assert_eq!((entry.start(), guest.start()), place(second), "{case}");
        assert_eq!(range.start(), at, "{case}");
    }
}

/// A cluster of zeroes, deflated to a few bytes.
fn small_stream(cluster_len: usize) -> Vec<u8> {
    let mut compressor = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
    let mut stream = vec![0; 4096];
    let len = compressor.deflate_compress(&vec![0; cluster_len], &mut stream).unwrap();
    stream.truncate(len);
    stream
}

/// A stream of one stored block: its content lies in it as it is, from the fifth byte on.
fn stored_stream(content: &[u8]) -> Vec<u8> {
    let len = u16::try_from(content.len()).unwrap();
    [&[1][..], &len.to_le_bytes(), &(!len).to_le_bytes(), content].concat()
}

#[test]
fn a_cluster_with_two_owners_is_refused() {
    for cluster_bits in [9, 12, 16, 21] {
        let made = Made::of(cluster_bits);
        made.write(&[made.plain(0), made.plain(1), made.plain(0), made.plain(2)]);
        made.check_shared(&format!("{cluster_bits} bits"), 0, 2, DATA_AT);
        made.write(&[made.plain(3), made.plain(1), made.plain(0), made.plain(2)]).check().unwrap();
    }
}

#[test]
fn a_cluster_that_reads_as_zeroes_owns_its_place() {
    let made = Made::of(16);
    made.write(&[made.plain(0), made.plain(0) | 1]).check_shared("data and zero", 0, 1, DATA_AT);
    made.write(&[made.plain(0) | 1, made.plain(0) | 1]).check_shared("zero twice", 0, 1, DATA_AT);
    made.write(&[1, 1, made.plain(0) | 1, made.plain(1) | 1, made.plain(2)]).check().unwrap();
}

#[test]
fn a_cluster_with_subclusters_is_owned_whole() {
    let made = Made { extended: true, ..Made::of(16) };
    // qemu counts the cluster once for each entry, whichever subclusters are in use.
    made.write(&[made.plain(0), 1, made.plain(0), 1 << 31]).check_shared("two halves", 0, 1, DATA_AT);
    made.write(&[made.plain(0), 0, made.plain(0), 1]).check_shared("none in use", 0, 1, DATA_AT);
    made.write(&[made.plain(0), 1, made.plain(1), 1 << 31, 0, 1 << 32]).check().unwrap();
}

#[test]
fn a_stream_in_a_plain_cluster_is_refused() {
    let made = Made::of(16);
    made.write(&[made.stream(70_000, 1), made.plain(1)]).check_shared("stream first", 0, 1, DATA_AT + 70_000);
    made.write(&[made.plain(1), made.stream(70_000, 1)]).check_shared("data first", 0, 1, DATA_AT + 70_000);
    made.write(&[made.plain(1), made.stream(65536, 1)]).check_shared("same start", 0, 1, DATA_AT + 65536);
    made.write(&[made.plain(1), made.stream(65535, 1), made.stream(131_072, 1)]).check().unwrap();
}

#[test]
fn two_streams_with_one_beginning_are_refused() {
    let made = Made::of(16);
    made.write(&[made.stream(700, 2), made.stream(100, 1), made.stream(700, 2)]).check_shared(
        "twice",
        0,
        2,
        DATA_AT + 700,
    );
    // Byte behind byte, in one sector and over its end, as qemu lays them.
    made.write(&[made.stream(100, 1), made.stream(101, 1), made.stream(500, 2), made.stream(513, 1)])
        .check()
        .unwrap();
}

#[test]
fn a_stream_that_needs_the_bytes_of_another_is_refused() {
    let made = Made::of(12);
    let small = small_stream(4096);
    let mut content = vec![7; 4096];
    content[2048 - 5..][..small.len()].copy_from_slice(&small);
    let entries = [made.stream(0, 9), made.stream(2048, 1)];
    made.write(&entries).with_bytes(DATA_AT, &stored_stream(&content));
    assert!(super::content(&*open_alone(&made.path()).unwrap(), 4096).is_ok(), "each can be decoded");
    made.check_shared("a stream within another", 0, 1, DATA_AT + 2048);
    // The same entries, but the first stream ends long before it says.
    made.write(&entries).with_bytes(DATA_AT, &small).with_bytes(DATA_AT + 2048, &small).check().unwrap();
    // What is no stream is not said to reach anywhere: decoding it tells.
    made.write(&entries).with_bytes(DATA_AT, &[0xff; 64]).check().unwrap();
}

#[test]
fn a_stream_that_needs_the_bytes_of_a_plain_cluster_or_table_is_refused() {
    let made = Made::of(12);
    let (small, large) = (small_stream(4096), stored_stream(&[7; 4096]));
    let entries = [made.plain(1), made.stream(4096 - 512, 9)];
    made.write(&entries).with_bytes(DATA_AT + 4096 - 512, &large);
    made.check_shared("reaches into data", 0, 1, DATA_AT + 4096);
    made.write(&entries).with_bytes(DATA_AT + 4096 - 512, &small).check().unwrap();

    // Any bytes are the content of a stored block, also those of the L1 table.
    let before_l1 = [COMPRESSED | 8 << 58 | (L1_AT - 512)];
    made.write(&before_l1).with_bytes(L1_AT - 512, &large[..5]);
    check_refused("a stream", made.check(), "Overlap", "a compressed cluster lies on the L1 table");
    made.write(&before_l1).with_bytes(L1_AT - 512, &small).check().unwrap();
}

#[test]
fn a_file_too_long_for_one_walk_is_walked_in_parts() {
    // One walk looks after 2^27 clusters, which is 64 GiB of the file.
    const PART: u64 = 64 << 30;
    let made = Made { len: 1 << 40, ..Made::of(9) };
    let far = |number: u64| COPIED | (number * PART - 512);
    let everywhere: Vec<u64> = (1..=16).map(far).chain((1..16).map(|part| COPIED | (part * PART))).collect();
    made.write(&everywhere).check().unwrap();
    for twice in [0, 7, 15, 16, 30] {
        let entries = [&everywhere[..], &[everywhere[twice]]].concat();
        let place = everywhere[twice] & !COPIED;
        made.write(&entries).check_shared(&format!("at {place}"), twice as u64, 31, place);
    }
    // A stream that begins in one part and needs a cluster of the next.
    let made = Made { len: 2 * PART, ..Made::of(9) };
    let stream = COMPRESSED | 1 << 61 | (PART - 512);
    let other = COPIED | PART;
    made.write(&[other, stream]).with_bytes(PART - 512, &stored_stream(&[7; 512]));
    made.check_shared("across", 0, 1, PART);
    made.write(&[other, stream]).with_bytes(PART - 512, &small_stream(512)).check().unwrap();
}

#[test]
fn a_file_in_which_everything_lies_far_apart_is_read() {
    let made = Made { len: 5 << 40, ..Made::of(9) };
    let mut entries: Vec<u64> = (1..=70).map(|part| COPIED | (part << 36)).collect();
    made.write(&entries).check().unwrap();
    entries.push(entries[69]);
    made.write(&entries).check_shared("the last", 69, 70, 70 << 36);
}

#[test]
fn more_streams_than_one_walk_holds_are_walked_in_parts() {
    const COUNT: u64 = (4 << 20) + 1000;
    let made = Made { len: DATA_AT + COUNT * 16, ..Made::of(9) };
    let entries: Vec<u64> = (0..COUNT).map(|index| made.stream(index * 16, 1)).collect();
    made.write(&entries).check().unwrap();
    let mut twice = entries;
    let last = twice.len() - 1;
    twice[0] = twice[last];
    made.write(&twice).check_shared("the last", 0, last as u64, DATA_AT + (COUNT - 1) * 16);
    // All in one place: they are too many for the list, and only one of them counts.
    let one = vec![made.stream(5, 1); twice.len()];
    made.write(&one).check_shared("all", 0, 1, DATA_AT + 5);
}
