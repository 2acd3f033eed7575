//! What is rebuilt: kinds of disks, images, what lay there before.

use std::fmt;
use std::sync::Arc;

use reimage::{Mode, SimDisk};

use super::disks::{self, MIB, Old};

/// What kind of disk is rebuilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Device,
    LargerDevice,
    /// With sectors of 4096 bytes, and larger than the image.
    Device4k,
    FileInPlace,
    /// Written in place, and larger afterwards.
    FileGrown,
    FileReplaced,
}

/// Which image, and how it is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    Raw,
    Compressed,
    /// Raw, and no partition table on it: its labels are those of a whole disk.
    Bare,
    /// The same, and it ends within a sector.
    BareOdd,
    /// Raw, and four times as long.
    Long,
}

/// One rebuild.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    pub(crate) kind: Kind,
    pub(crate) packing: Packing,
    pub(crate) mode: Mode,
    pub(crate) old: Old,
    pub(crate) threads: usize,
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, packing, mode, old, threads } = self;
        write!(f, "{kind:?} {packing:?} {mode:?} {old:?} {threads}")
    }
}

impl Scenario {
    pub(crate) fn new(kind: Kind, packing: Packing, (mode, old): (Mode, Old)) -> Self {
        Self { kind, packing, mode, old, threads: 1 }
    }

    /// The bytes of the disk that the image describes.
    pub(crate) fn image(self) -> &'static [u8] {
        match (self.packing, self.kind) {
            (Packing::Bare, _) => disks::bare_image(),
            (Packing::BareOdd, _) => &disks::bare_image()[..disks::bare_image().len() - 137],
            (Packing::Long, _) => disks::long_image(),
            (Packing::Raw | Packing::Compressed, Kind::Device4k) => disks::image_4k(),
            (Packing::Raw | Packing::Compressed, _) => disks::image(),
        }
    }

    /// The bytes of the image's file.
    pub(crate) fn image_file(self) -> &'static [u8] {
        match (self.packing, self.kind) {
            (Packing::Compressed, Kind::Device4k) => disks::compressed_image_4k(),
            (Packing::Compressed, _) => disks::compressed_image(),
            _ => self.image(),
        }
    }

    /// The disk's sectors; a file counts as if it had the smallest.
    pub(crate) fn sector(self) -> usize {
        if self.kind == Kind::Device4k { 4096 } else { 512 }
    }

    /// The size that the disk has when all is done.
    pub(crate) fn size(self) -> usize {
        let len = self.image().len();
        match self.kind {
            Kind::FileInPlace | Kind::FileGrown => len,
            Kind::FileReplaced => len + MIB,
            Kind::Device => len.next_multiple_of(self.sector()),
            Kind::LargerDevice | Kind::Device4k => len.next_multiple_of(self.sector()) + MIB,
        }
    }

    /// The size that the disk has before.
    pub(crate) fn old_size(self) -> usize {
        if self.kind == Kind::FileGrown { self.size() - MIB } else { self.size() }
    }

    /// A disk of this kind that holds `contents`.
    pub(crate) fn disk(self, contents: Arc<Vec<u8>>, size: usize) -> SimDisk {
        let disk = match self.kind {
            Kind::Device | Kind::LargerDevice => SimDisk::device(contents, 512),
            Kind::Device4k => SimDisk::device(contents, 4096),
            Kind::FileInPlace => SimDisk::file_in_place(contents),
            Kind::FileGrown => SimDisk::file_in_place(contents).grown_to(size as u64),
            Kind::FileReplaced => SimDisk::file_replaced(contents, size as u64),
        };
        disk.named("disk-1")
    }
}

/// Whether everything is to be tried, and not only a sample.
pub(crate) fn tries_all() -> bool {
    std::env::var_os("REIMAGE_CRASH_POINTS").is_some_and(|points| points == "all")
}

/// The scenarios of faults, lies and cancels: every kind and mode; a sample has them with one packing each.
pub(crate) fn few_scenarios() -> Vec<Scenario> {
    let olds = [(Mode::Full, Old::Gpt), (Mode::Full, Old::Zeroes), (Mode::Delta, Old::Nearly)];
    let all = scenarios(&olds);
    let step = if tries_all() { 1 } else { 4 };
    all.into_iter().step_by(step).collect()
}

/// The scenarios of crashes: also every label on the old disk, and a disk that needs but little.
pub(crate) fn all_scenarios() -> Vec<Scenario> {
    use Old::{
        Btrfs, Ext4, Gpt, Luks, Lvm, Mbr, Md10, Md12, Md090, Nearly, NearlyEnds, NearlyFirst, Same, Swap,
        Zeroes, Zfs,
    };
    let full = [Gpt, Zeroes, Mbr, Md090, Md10, Md12, Zfs, Btrfs, Lvm, Ext4, Luks, Swap, Nearly];
    let delta = [Gpt, Zeroes, Md090, Zfs, Btrfs, Ext4, Nearly, NearlyEnds, NearlyFirst, Same];
    let full = full.map(|old| (Mode::Full, old));
    let delta = delta.map(|old| (Mode::Delta, old));
    let mut all = scenarios(&[&full[..], &delta[..]].concat());
    for kind in KINDS.into_iter().filter(|kind| *kind != Kind::FileGrown) {
        for packing in [Packing::Bare, Packing::BareOdd] {
            all.push(Scenario::new(kind, packing, (Mode::Full, Gpt)));
            if kind != Kind::FileReplaced {
                all.push(Scenario::new(kind, packing, (Mode::Delta, Nearly)));
                all.push(Scenario::new(kind, packing, (Mode::Delta, NearlyEnds)));
            }
        }
    }
    all.extend(scenarios_with_threads());
    all
}

/// Rebuilds by several threads at once: their operations have other numbers in every run.
fn scenarios_with_threads() -> Vec<Scenario> {
    let several = |scenario| Scenario { threads: 3, ..scenario };
    let long = |kind, how| several(Scenario::new(kind, Packing::Long, how));
    vec![
        long(Kind::Device, (Mode::Full, Old::Gpt)),
        long(Kind::FileInPlace, (Mode::Delta, Old::Nearly)),
        several(Scenario::new(Kind::LargerDevice, Packing::Compressed, (Mode::Full, Old::Zfs))),
        several(Scenario::new(Kind::Device4k, Packing::Compressed, (Mode::Delta, Old::Gpt))),
        several(Scenario::new(Kind::FileReplaced, Packing::Raw, (Mode::Full, Old::Gpt))),
    ]
}

const KINDS: [Kind; 6] = [
    Kind::Device,
    Kind::LargerDevice,
    Kind::Device4k,
    Kind::FileInPlace,
    Kind::FileGrown,
    Kind::FileReplaced,
];

/// Every kind of disk with each of `olds`, raw and compressed alternately nearest to each other.
fn scenarios(olds: &[(Mode, Old)]) -> Vec<Scenario> {
    let mut all = Vec::new();
    for kind in KINDS {
        for (at, (mode, old)) in olds.iter().enumerate() {
            let packings = match at % 2 {
                0 => [Packing::Raw, Packing::Compressed],
                _ => [Packing::Compressed, Packing::Raw],
            };
            // A file that is replaced whole holds nothing that could be compared: that request is refused.
            if (kind, *mode) == (Kind::FileReplaced, Mode::Delta) {
                continue;
            }
            all.extend(packings.map(|packing| Scenario::new(kind, packing, (*mode, *old))));
        }
    }
    all
}
