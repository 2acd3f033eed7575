//! The disks and images of these tests, made by hand or by `gptman`: none of it by the engine.

use std::io::Cursor;
use std::sync::OnceLock;

use gptman::{GPT, GPTPartitionEntry};

pub(crate) const MIB: usize = 1 << 20;

/// Bytes that repeat nowhere and of which none is zero.
pub(crate) fn noise(rng_seed: u64, len: usize) -> Vec<u8> {
    let mut state = rng_seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&(state | 0x0101_0101_0101_0101).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// The image's disk, made once.
pub(crate) fn image() -> &'static Vec<u8> {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| make_image((4 * MIB + 256 * 1024, 512)))
}

/// The same for a disk with sectors of 4096 bytes.
pub(crate) fn image_4k() -> &'static Vec<u8> {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| make_image((4 * MIB + 256 * 1024, 4096)))
}

/// The same, but for its length: there is much to go on with.
pub(crate) fn long_image() -> &'static Vec<u8> {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| make_image((16 * MIB + 256 * 1024, 512)))
}

/// An image without a table: a file system whose labels lie in the first block, in the head's rest and in the tail.
pub(crate) fn bare_image() -> &'static Vec<u8> {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let mut disk = noise(4, image().len());
        disk[2 * MIB..3 * MIB].fill(0);
        disk[1080..1082].copy_from_slice(&[0x53, 0xef]);
        disk[65_536 + 64..65_536 + 72].copy_from_slice(b"_BHRfS_M");
        let last = disk.len() - 262_144 + 131_072;
        disk[last..last + 8].copy_from_slice(&0x00ba_b10c_u64.to_le_bytes());
        disk
    })
}

/// The image as a compressed qcow2, made once.
pub(crate) fn compressed_image() -> &'static Vec<u8> {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| compressed_qcow2(image()))
}

/// The same packed as a compressed qcow2.
pub(crate) fn compressed_image_4k() -> &'static Vec<u8> {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| compressed_qcow2(image_4k()))
}

/// A GPT, data in the first chunk, the second and the fourth, zeroes in the third, data to the end.
fn make_image((size, sector): (usize, usize)) -> Vec<u8> {
    let mut disk = vec![0; size];
    // Every byte eight times, so that it is quickly compressed and decoded.
    let mut text = vec![0; disk.len()];
    for (run, byte) in text.chunks_exact_mut(8).zip(noise(1, disk.len() / 8)) {
        run.fill(byte);
    }
    for part in [64 << 10..2 * MIB, 3 * MIB..4 * MIB - 12_345, 4 * MIB..disk.len() - 65_536] {
        disk[part.clone()].copy_from_slice(&text[part]);
    }
    // The file system of the first partition; nobody looks for it there.
    disk[MIB + 1080..MIB + 1082].copy_from_slice(&[0x53, 0xef]);
    add_gpt(&mut disk, 0xd1, sector);
    disk
}

/// A protective MBR, the first table and the second.
fn add_gpt(disk: &mut Vec<u8>, id: u8, sector: usize) {
    let last = (disk.len() / sector - 16_384 / sector) as u64 - 2;
    let mut cursor = Cursor::new(std::mem::take(disk));
    let mut gpt = GPT::new_from(&mut cursor, sector as u64, [id; 16]).unwrap();
    gpt[1] = GPTPartitionEntry {
        partition_type_guid: [0x77; 16],
        unique_partition_guid: [id ^ 0xff; 16],
        starting_lba: (MIB / sector) as u64,
        ending_lba: last,
        attribute_bits: 0,
        partition_name: "root".into(),
    };
    gpt.write_into(&mut cursor).unwrap();
    GPT::write_protective_mbr_into(&mut cursor, sector as u64).unwrap();
    *disk = cursor.into_inner();
}

/// What the disk holds before the rebuild.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Old {
    /// Zeroes.
    Zeroes,
    /// Noise under a GPT.
    Gpt,
    /// Noise under the table of a PC.
    Mbr,
    /// A GPT, and the superblock of an md array (0.90) in the last 64 KiB.
    Md090,
    /// An md array's superblock (1.0) before the end.
    Md10,
    /// An md array's superblock (1.2) at 4 KiB.
    Md12,
    /// A GPT, and the four labels of a ZFS pool.
    Zfs,
    /// A GPT, and the superblock of a btrfs at 64 KiB.
    Btrfs,
    /// A physical volume.
    Lvm,
    /// A file system on the whole disk.
    Ext4,
    /// A LUKS volume, both headers.
    Luks,
    /// Swap space.
    Swap,
    /// What the rebuild will make, but for two chunks in the middle.
    Nearly,
    /// What the rebuild will make, but for a byte at the head behind the first block and one in the tail.
    NearlyEnds,
    /// What the rebuild will make, but for a byte of the first sector.
    NearlyFirst,
    /// Exactly what the rebuild will make.
    Same,
}

impl Old {
    /// The disk; `finished` is what the rebuild will make of it.
    pub(crate) fn disk(self, (size, sector): (usize, usize), finished: &[u8]) -> Vec<u8> {
        let mut disk = match self {
            Self::Zeroes => return vec![0; size],
            Self::Nearly | Self::NearlyEnds | Self::NearlyFirst | Self::Same => finished[..size].to_vec(),
            _ => old_noise()[..size].to_vec(),
        };
        let end = disk.len();
        let mut put = |at: usize, bytes: &[u8]| disk[at..at + bytes.len()].copy_from_slice(bytes);
        match self {
            Self::Zeroes | Self::Same | Self::Gpt => {}
            Self::Mbr => {
                put(446, &[0x80, 0, 2, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 16, 0, 0]);
                put(462, &[0; 48]);
                put(510, &[0x55, 0xaa]);
            }
            Self::Md090 => put(end / 65_536 * 65_536 - 65_536, &0xa92b_4efc_u32.to_le_bytes()),
            Self::Md10 => put((end / 512 - 16) / 8 * 8 * 512, &0xa92b_4efc_u32.to_le_bytes()),
            Self::Md12 => put(4096, &0xa92b_4efc_u32.to_le_bytes()),
            Self::Zfs => {
                let last = end / 262_144 * 262_144;
                for label in [0, 262_144, last - 524_288, last - 262_144] {
                    for uberblock in 0..8 {
                        put(label + 131_072 + uberblock * 1024, &0x00ba_b10c_u64.to_le_bytes());
                    }
                }
            }
            Self::Btrfs => put(65_536 + 64, b"_BHRfS_M"),
            Self::Lvm => {
                put(512, b"LABELONE");
                put(536, b"LVM2 001");
            }
            Self::Ext4 => put(1080, &[0x53, 0xef]),
            Self::Luks => {
                put(0, b"LUKS\xba\xbe\0\x02");
                put(16_384, b"SKUL\xba\xbe\0\x02");
            }
            Self::Swap => put(4086, b"SWAPSPACE2"),
            Self::Nearly => {
                put(MIB + 7, b"\0other\0");
                put(2 * MIB, &noise(3, 4096));
            }
            Self::NearlyEnds => {
                put(70_000, b"\0other\0");
                put(end - 40_000, b"\0other\0");
            }
            Self::NearlyFirst => put(100, b"other"),
        }
        if matches!(self, Self::Gpt | Self::Md090 | Self::Zfs | Self::Btrfs) {
            add_gpt(&mut disk, 0x01, sector);
        }
        disk
    }
}

/// The bytes of every old disk that is not zero, made once: more than any of them needs.
fn old_noise() -> &'static [u8] {
    static NOISE: OnceLock<Vec<u8>> = OnceLock::new();
    NOISE.get_or_init(|| noise(2, 20 * MIB))
}

/// A qcow2 image (version 3, clusters of 64 KiB) of `disk`, every cluster compressed with zlib or left out.
///
/// Header, reference counts, L1 and L2 take a cluster each, as section "Header" and what follows of QEMU's
/// `docs/interop/qcow2.rst` have it.
fn compressed_qcow2(disk: &[u8]) -> Vec<u8> {
    const CLUSTER: usize = 65_536;
    let mut file = vec![0; 5 * CLUSTER];
    let mut compressor = libdeflater::Compressor::new(libdeflater::CompressionLvl::new(6).unwrap());
    let mut entries = Vec::new();
    for cluster in disk.chunks(CLUSTER) {
        let mut padded = cluster.to_vec();
        padded.resize(CLUSTER, 0);
        if padded == vec![0; CLUSTER] {
            entries.push(0_u64);
            continue;
        }
        let mut packed = vec![0; compressor.deflate_compress_bound(CLUSTER)];
        let len = compressor.deflate_compress(&padded, &mut packed).unwrap();
        if len >= CLUSTER {
            file.resize(file.len().next_multiple_of(CLUSTER), 0);
            entries.push(file.len() as u64 | (1 << 63));
            file.extend_from_slice(&padded);
            continue;
        }
        let start = file.len() as u64;
        let sectors = (start + len as u64 - 1) / 512 - start / 512;
        entries.push((1 << 62) | (sectors << 54) | start);
        file.extend_from_slice(&packed[..len]);
    }
    file.resize(file.len().next_multiple_of(CLUSTER), 0);
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    let be = |value: usize| (value as u64).to_be_bytes();
    put(0, b"QFI\xfb\0\0\0\x03");
    put(20, &16_u32.to_be_bytes());
    put(24, &be(disk.len()));
    put(36, &1_u32.to_be_bytes());
    put(40, &be(3 * CLUSTER));
    put(48, &be(CLUSTER));
    put(56, &1_u32.to_be_bytes());
    put(96, &4_u32.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    put(CLUSTER, &be(2 * CLUSTER));
    put(3 * CLUSTER, &((4 * CLUSTER as u64) | (1 << 63)).to_be_bytes());
    for (at, entry) in entries.iter().enumerate() {
        put(4 * CLUSTER + 8 * at, &entry.to_be_bytes());
    }
    for cluster in 0..file.len() / CLUSTER {
        // Nobody reads them; what counts is that they are not zero.
        file[2 * CLUSTER + 2 * cluster + 1] = 1;
    }
    file
}
