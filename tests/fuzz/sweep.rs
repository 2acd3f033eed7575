//! Not at random: every field of the header, the first extension and the first entries of the tables, at every value
//! that a bound could stop at, one at a time. Damage at random comes to few of these.

use std::path::Path;

use reimage::Preflight;
use tempfile::TempDir;

use crate::campaign::MEMORY_MAX;
use crate::draft::{COMPRESSED, COPIED, Draft};
use crate::engine::{self, Asked};
use crate::mutate::{EXTENSIONS, FIELDS};
use crate::slow_reader::{self, Format, Refused, Stage};
use crate::stored;
use crate::watched::watched;

/// Where bounds lie: of cluster sizes, header lengths, names, counts, tables and of numbers themselves.
fn extremes(len: usize) -> Vec<u64> {
    let near = [9, 14, 16, 21, 28, 32, 63, 64, 72, 104, 112, 1023, 4096, 65536, 1 << 20, 1 << 22, 1 << 31];
    let far = [1 << 32, 1 << 40, 1 << 56, 1 << 62, 1 << 63];
    let ends = [0, 1, 2, 3, u64::MAX, u64::MAX - 7, u64::MAX - 511, u64::MAX - 4095, u64::MAX - 65535];
    let around = near.iter().chain(&far).flat_map(|value: &u64| [value - 1, *value, value + 1]);
    let mask = u64::MAX >> (64 - 8 * len);
    let mut all: Vec<_> = around.chain(ends).map(|value| value & mask).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// An image that is damaged again and again, in a folder with what it may name.
struct Bench {
    folder: TempDir,
    name: &'static str,
    whole: Draft,
    /// How many were read, and how many refused.
    read: u64,
    refused: u64,
}

impl Bench {
    fn of(name: &'static str) -> Self {
        let folder = stored::scratch();
        for file in stored::below(name) {
            stored::write_sparse(&folder.path().join(file), &stored::unpacked(file));
        }
        let whole = Draft::new(stored::unpacked(&format!("{name}.qcow2")));
        Self { folder, name, whole, read: 0, refused: 0 }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Fails where so few images were read or refused that the sweep says little.
    #[track_caller]
    fn has_seen_more_than(&self, read: u64, refused: u64) {
        let Self { name, read: was_read, refused: was_refused, .. } = self;
        assert!(*was_read > read && *was_refused > refused, "{name}: {was_read} read, {was_refused} refused");
    }

    /// Asks for the tables of the image with that change, and compares the answer with that of the slow reader.
    #[track_caller]
    fn check(&mut self, what: &str, change: impl FnOnce(&mut Draft)) {
        let mut draft = self.whole.clone();
        change(&mut draft);
        let image = self.path().join("image.qcow2");
        stored::write_sparse(&image, &draft.bytes);
        let verdict = slow_reader::read(&image, Format::Qcow2, &[self.path()]);
        let asked = Asked { image, folder: self.path().to_owned(), disk_size: 0, deep: false };
        let answer = watched(move || asked.inspect(Preflight::Tables));
        let wrong = match (&answer, &verdict) {
            (Err(why), _) => Some(why.clone()),
            (Ok((_, memory)), _) if *memory > MEMORY_MAX => Some(format!("{memory} bytes of memory")),
            (Ok((Ok(()), _)), Err(Refused { stage: Stage::Tables, why })) => {
                Some(format!("taken, and {why}"))
            }
            (Ok((Err(fault), _)), Ok(disk)) if disk.oddities.is_empty() => Some(format!("refused: {fault}")),
            _ => None,
        };
        if let Some(wrong) = wrong {
            panic!("{} with {what}: {wrong}", self.name);
        }
        *if matches!(answer, Ok((Ok(()), _))) { &mut self.read } else { &mut self.refused } += 1;
    }
}

impl Bench {
    /// Rebuilds from the image with that change, which is lawful, and compares the disk with the slow reader's bytes.
    #[track_caller]
    fn check_bytes(&mut self, what: &str, change: impl FnOnce(&mut Draft)) {
        let mut draft = self.whole.clone();
        change(&mut draft);
        let image = self.path().join("image.qcow2");
        stored::write_sparse(&image, &draft.bytes);
        let disk = slow_reader::read(&image, Format::Qcow2, &[self.path()]);
        let bytes = disk.unwrap_or_else(|refused| panic!("{what}: {refused}")).bytes.unwrap();
        let disk_size = bytes.len().next_multiple_of(512) + 8192;
        let asked = Asked { image, folder: self.path().to_owned(), disk_size, deep: false };
        let answers = engine::ask(&asked).unwrap_or_else(|why| panic!("{what}: {why}"));
        assert!(answers.rebuild.is_ok(), "{} with {what}: {answers}", self.name);
        let wrong = answers.disk.iter().zip(&bytes).position(|(found, right)| found != right);
        assert_eq!(wrong, None, "{} with {what}: that byte is another", self.name);
    }
}

#[test]
fn every_header_field_at_every_bound_is_taken_or_refused_rightly() {
    for name in ["v3-4k", "snapshots", "v2-64k", "extl2-16k"] {
        let mut bench = Bench::of(name);
        let version = bench.whole.map.version;
        // In a header of version 2 there is something else behind byte 72.
        for (at, len, _) in FIELDS.into_iter().filter(|(at, ..)| version == 3 || *at < 72) {
            for value in extremes(len) {
                bench.check(&format!("{value:#x} at {at}"), |draft| draft.put_number(at, len, value));
            }
        }
        for bit in (0..64).filter(|_| version == 3) {
            bench.check(&format!("feature bit {bit}"), |draft| draft.flip(72, 8, 1 << bit));
        }
        for kind in (0..=255).filter(|_| version == 3) {
            bench.check(&format!("compression type {kind}"), |draft| draft.put_number(104, 1, kind));
        }
        bench.has_seen_more_than(50, 200);
    }
}

#[test]
fn an_extension_of_every_length_is_taken_or_refused_rightly() {
    for name in ["v3-4k", "zlib-64k"] {
        let mut bench = Bench::of(name);
        let at = bench.whole.map.header_len;
        let room = bench.whole.map.cluster - at - 8;
        let lens = extremes(4).into_iter().chain([room - 1, room, room + 1]);
        for (kind, len) in lens.flat_map(|len| EXTENSIONS.map(|kind| (kind, len))) {
            bench.check(&format!("an extension {kind:#x} of {len:#x} bytes"), |draft| {
                draft.put_number(at, 4, kind);
                draft.put_number(at + 4, 4, len);
            });
        }
        bench.has_seen_more_than(20, 50);
    }
}

#[test]
fn every_bit_of_an_entry_is_minded() {
    for name in ["v3-4k", "v3-512", "zlib-64k", "zstd-4k", "extl2-16k", "v2-64k", "zero-alloc", "chain-mid"] {
        let mut bench = Bench::of(name);
        let draft = &bench.whole;
        let is_packed = |at: &u64| draft.get(*at, 8) & COMPRESSED != 0;
        let used = &draft.map.used;
        let plain = used.iter().find(|at| !is_packed(at));
        let packed = used.iter().find(|at| is_packed(at));
        let last = used.last().filter(|at| !is_packed(at));
        let mut entries: Vec<_> = [plain, packed, last].into_iter().flatten().copied().collect();
        entries.push(draft.map.l1);
        if draft.map.extended {
            entries.extend(used.iter().take(2).map(|at| at + 8));
        }
        let (end, cluster) = (draft.len().next_multiple_of(draft.map.cluster), draft.map.cluster);
        for at in entries {
            for bit in 0..64 {
                bench.check(&format!("bit {bit} of the entry at {at}"), |draft| draft.flip(at, 8, 1 << bit));
            }
            for place in
                [end, end - cluster, end - cluster + 512, end + cluster, 1 << 55, (1 << 56) - cluster]
            {
                bench.check(&format!("{place:#x} in the entry at {at}"), |draft| {
                    draft.put_number(at, 8, place)
                });
            }
        }
        // A table in the last cluster, of which not all is there; and an empty one that serves twice.
        let l1 = bench.whole.map.l1;
        for less in [0, 1, 512] {
            bench.check(&format!("a table in the last cluster, {less} bytes less"), |draft| {
                draft.bytes.resize(usize::try_from(end + cluster).unwrap(), 0);
                draft.put_number(l1, 8, end | COPIED);
                draft.bytes.truncate(usize::try_from(end + cluster - less).unwrap());
            });
        }
        for entry in (1..bench.whole.map.l1_count).take(2) {
            bench.check("an empty table that serves twice", |draft| {
                draft.bytes.resize(usize::try_from(end + cluster).unwrap(), 0);
                draft.put_number(l1, 8, end | COPIED);
                draft.put_number(l1 + 8 * entry, 8, end | COPIED);
            });
        }
        // The last cluster of the file, cut shorter and shorter.
        for less in [1, 511, 512, 513, cluster - 512, cluster - 1, cluster, cluster + 1] {
            bench.check(&format!("{less} bytes less"), |draft| {
                let len = draft.len().saturating_sub(less);
                draft.bytes.truncate(usize::try_from(len).unwrap());
            });
        }
        bench.has_seen_more_than(2, 50);
    }
}

#[test]
fn every_run_of_subclusters_is_read_as_its_bitmap_says() {
    let mut bench = Bench::of("extl2-16k");
    let entry = *bench.whole.map.used.iter().find(|at| bench.whole.get(**at, 8) & COMPRESSED == 0).unwrap();
    for len in 1..=32 {
        let first = (7 * len) % (33 - len);
        let data = ((1_u64 << len) - 1) << first;
        let zero = !data & 0x5555_5555;
        bench.check_bytes(&format!("the bitmap {zero:#010x}{data:08x}"), |draft| {
            draft.put_number(entry + 8, 8, zero << 32 | data);
        });
    }
}

#[test]
fn entries_far_behind_in_a_large_table_are_minded() {
    // A table of 2 MiB is looked at in parts; the disk of the image ends in the first.
    let mut bench = Bench::of("zlib-2m");
    let (map, entry) = (bench.whole.map.clone(), bench.whole.map.used[0]);
    let value = bench.whole.get(entry, 8);
    for index in [16_383, 16_384, 20_000, 32_767, 32_768, 65_535, 262_143] {
        for (what, value) in [("nothing", 0), ("reserved bits", 2), ("the file's end", COPIED | 1 << 40)] {
            bench.check(&format!("{what} in entry {index}"), |draft| {
                draft.put_number(24, 8, (index + 1) * map.cluster);
                draft.put_number(map.tables[0] + 8 * index, 8, value);
            });
        }
        bench.check(&format!("the first cluster again in entry {index}"), |draft| {
            draft.put_number(24, 8, (index + 1) * map.cluster);
            draft.put_number(entry, 8, 0);
            draft.put_number(map.tables[0] + 8 * index, 8, value);
        });
    }
    assert_eq!((bench.read, bench.refused), (14, 14));
}
