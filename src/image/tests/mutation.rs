//! Goal: no damage to an image makes the reader panic or run on.
//!
//! Method: bytes of the header, the L1 and the L2 tables are changed at random; everything that a caller does
//! must end, with whatever result.

use super::*;

const ROUNDS: u64 = 300;

/// A small generator (splitmix64), so that a failure can be made again from its number.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ value >> 31
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

fn one_round(rng_seed: u64, original: &[u8], path: &Path) {
    let mut random = Random(rng_seed);
    write_sparse(path, original);
    let l1 = field(path, 40);
    let l2 = field(path, l1) & 0x00ff_ffff_ffff_fe00;
    for _ in 0..=random.below(3) {
        let place = match random.below(4) {
            0 | 1 => random.below(120),
            2 => l1 + random.below(16),
            _ => l2 + random.below(160),
        };
        let byte = match random.below(3) {
            0 => 1 << random.below(8),
            1 => 255,
            _ => random.below(256),
        };
        patch(path, place, &[u8::try_from(byte).unwrap()]);
    }
    let _ = everything(path);
}

#[test]
fn no_mutation_makes_the_reader_panic_or_run_on() {
    let images =
        ["v3-64k", "v3-512", "v2-64k", "zlib-4k", "zstd-64k", "extl2-sparse", "extl2-zlib", "chain-top"];
    let folder = Folder::new();
    for (name, first_seed) in images.iter().zip((0..).step_by(1_000_000)) {
        let original = unpacked(&format!("{name}.qcow2"));
        let path = folder.path(name);
        for rng_seed in first_seed..first_seed + ROUNDS / 8 + 1 {
            let result = std::panic::catch_unwind(|| one_round(rng_seed, &original, &path));
            assert!(result.is_ok(), "{name} panics with rng_seed {rng_seed}");
        }
    }
}
