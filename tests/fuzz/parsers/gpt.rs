//! What is believed of a partition table, and what becomes of it on a larger disk.

use reimage::{ImageOptions, Preflight, TableKind};

use super::disks::{crc32, disk, with_checksums};
use super::testdata;
use crate::stored;
use crate::watched::watched;

/// What no look at a disk of 8 MiB may take.
const MEMORY_MAX: usize = 64 << 20;

/// A copy of a GPT whose checksums are right: where it and the other say that they lie, and its entries.
#[derive(Debug, PartialEq, Eq)]
struct Copy {
    own: u64,
    other: u64,
    entries: Vec<u8>,
}

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// The copy at a sector, if its checksums are right. UEFI 5.3.2.
fn copy_at(disk: &[u8], sector: usize, lba: usize) -> Option<Copy> {
    let header = disk.get(lba.checked_mul(sector)?..)?.get(..92)?;
    let mut bare = header.to_vec();
    bare[16..20].fill(0);
    if !header.starts_with(b"EFI PART") || u64::from(crc32(&bare)) != number(header, 16, 4) {
        return None;
    }
    let start = usize::try_from(number(header, 72, 8)).ok()?.checked_mul(sector)?;
    let len = usize::try_from(number(header, 80, 4).checked_mul(number(header, 84, 4))?).ok()?;
    let entries = disk.get(start..start.checked_add(len)?)?;
    let is_right = u64::from(crc32(entries)) == number(header, 88, 4);
    is_right.then(|| Copy {
        own: number(header, 24, 8),
        other: number(header, 32, 8),
        entries: entries.to_vec(),
    })
}

/// Fails if a GPT is believed of which no copy has the right checksums.
pub(super) fn check_believed(disk: &[u8], table: Option<TableKind>) {
    let places = |sector: usize| [(sector, 1), (sector, (disk.len() / sector).saturating_sub(1))];
    let is_there = [512, 4096]
        .into_iter()
        .flat_map(places)
        .any(|(sector, lba)| copy_at(disk, sector, lba).is_some_and(|copy| copy.own == lba as u64));
    assert!(table != Some(TableKind::Gpt) || is_there, "a GPT is believed, and no checksum is right");
}

/// Fails if the table of an image is not whole on the larger disk onto which it was put.
pub(super) fn check_moved(image: &[u8], disk: &[u8]) {
    let Some(before) = copy_at(image, 512, 1) else { return };
    let last = disk.len() / 512 - 1;
    let [first, backup] = [1, last].map(|lba| copy_at(disk, 512, lba));
    let copy = |own: usize, other: usize| {
        Some(Copy { own: own as u64, other: other as u64, entries: before.entries.clone() })
    };
    assert_eq!(first, copy(1, last), "the first GPT is another than it should be");
    assert_eq!(backup, copy(last, 1), "the backup GPT is another than it should be");
}

/// The fields of a header: place and length.
const FIELDS: [(usize, usize); 11] =
    [(8, 4), (12, 4), (20, 4), (24, 8), (32, 8), (40, 8), (48, 8), (72, 8), (80, 4), (84, 4), (88, 4)];

const VALUES: [u64; 26] = [
    0,
    1,
    2,
    3,
    33,
    34,
    35,
    92,
    127,
    128,
    129,
    1024,
    1025,
    16383,
    16384,
    1 << 20,
    1 << 24,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    (1 << 55) - 1,
    1 << 55,
    1 << 62,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];

#[test]
fn every_field_of_a_gpt_at_every_bound_is_looked_at_and_survived() {
    let part = |name: &str| std::fs::read(testdata("layout").join(name)).unwrap();
    let whole = disk(&[part("gpt-1-14-15.head"), part("gpt-1-14-15.tail")].concat());
    let folder = stored::scratch();
    let image = folder.path().join("disk.raw");
    let (mut believed, mut not_believed) = (0, 0);
    for (at, len) in FIELDS {
        for value in VALUES {
            let mut changed = whole.clone();
            // In both copies, so that neither helps out.
            for header in [512, whole.len() - 512] {
                changed[header + at..header + at + len].copy_from_slice(&value.to_le_bytes()[..len]);
            }
            let changed = with_checksums(&changed);
            stored::write_sparse(&image, &changed);
            let path = image.clone();
            let look = move || reimage::inspect(&path, &ImageOptions::default(), Preflight::Tables, &());
            let what = format!("{value:#x} at {at}");
            let (found, memory) = watched(look).unwrap_or_else(|why| panic!("{what}: {why}"));
            assert!(memory <= MEMORY_MAX, "{what}: {memory} bytes of memory");
            let table = found.unwrap_or_else(|error| panic!("{what}: {error:?}")).layout.table;
            check_believed(&changed, table);
            *if table == Some(TableKind::Gpt) { &mut believed } else { &mut not_believed } += 1;
        }
    }
    assert!(believed > 20 && not_believed > 100, "{believed} were believed, {not_believed} not");
}
