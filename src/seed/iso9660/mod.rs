//! A writer of small ISO 9660 volumes: the same tree gives the same bytes, always.
//!
//! ECMA-119 level 1 with Rock Ridge (RRIP 1.09), which Linux reads, and a second tree in Joliet,
//! which Windows reads. The volume lies as follows, in sectors of 2048 bytes: 16 empty; the primary
//! and the Joliet descriptor and their end; for each of both trees a little-endian and a big-endian
//! path table; the folders of both trees; the files, which both trees share.

mod descriptor;
mod tree;

use zeroize::Zeroizing;

use super::error::SeedError;
use super::folder::Folder;
use tree::{Extent, Naming, Tree};

const SECTOR: usize = 2048;
const SYSTEM_SECTORS: u32 = 16;
const DESCRIPTORS: u32 = 3;

/// The volume that holds `root` under `label`, which must be ASCII of at most 16 characters.
pub(super) fn write(root: &Folder, label: &str) -> Result<Zeroizing<Vec<u8>>, SeedError> {
    let files = root.files()?;
    let mut trees = [Naming::RockRidge, Naming::Joliet].map(|naming| Tree::of(root, naming));
    let mut next = SYSTEM_SECTORS + DESCRIPTORS;
    for tree in &mut trees {
        next = tree.place_path_tables(next);
    }
    for tree in &mut trees {
        next = tree.place_folders(next);
    }
    let mut extents = Vec::with_capacity(files.len());
    for bytes in &files {
        extents.push(Extent { sector: next, bytes: in_u32(bytes.len()) });
        next += sectors(bytes.len());
    }

    let mut volume = Volume::of_sectors(next);
    for (sector, tree) in (SYSTEM_SECTORS..).zip(&trees) {
        volume.put(sector, &descriptor::volume(tree, label, next));
    }
    volume.put(SYSTEM_SECTORS + 2, &descriptor::end());
    for tree in &trees {
        tree.write(&extents, &mut volume);
    }
    for (extent, bytes) in extents.iter().zip(files) {
        volume.put(extent.sector, bytes);
    }
    Ok(volume.0)
}

/// The bytes of the volume, all there from the start, so that no copy of a hash is left behind.
struct Volume(Zeroizing<Vec<u8>>);

impl Volume {
    fn of_sectors(count: u32) -> Self {
        Self(Zeroizing::new(vec![0; at_sector(count)]))
    }

    fn put(&mut self, sector: u32, bytes: &[u8]) {
        let start = at_sector(sector);
        self.0[start..start + bytes.len()].copy_from_slice(bytes);
    }
}

fn at_sector(sector: u32) -> usize {
    usize::try_from(sector).expect("a volume is far smaller than the address space") * SECTOR
}

fn sectors(bytes: usize) -> u32 {
    in_u32(bytes.div_ceil(SECTOR))
}

fn in_u32(value: usize) -> u32 {
    u32::try_from(value).expect("a volume holds little more than its 1 MiB of content")
}

/// A number in both byte orders, as ECMA-119 7.3.3 has it.
fn both_u32(value: u32) -> [u8; 8] {
    let mut both = [0; 8];
    both[..4].copy_from_slice(&value.to_le_bytes());
    both[4..].copy_from_slice(&value.to_be_bytes());
    both
}

/// A number in both byte orders, as ECMA-119 7.2.3 has it.
fn both_u16(value: u16) -> [u8; 4] {
    let [low, high] = value.to_le_bytes();
    [low, high, high, low]
}

#[cfg(test)]
mod tests;
