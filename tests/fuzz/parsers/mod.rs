//! Everything else that a stranger may have written: texts, tables, streams and what lies in the state folder. None of
//! it makes the library panic, hang or take much memory.
//!
//! Method: the files of `testdata/fuzz`, and some of its neighbours, as they are and damaged; a file there that once
//! made something fall over stays for ever.

mod damage;
mod disks;
mod gpt;
mod json;
mod program;
mod state;
mod texts;

use std::path::{Path, PathBuf};

use crate::random::Random;
use crate::watched::watched;
use damage::damaged;

/// What a few KiB of text may cost.
const MEMORY_MAX: usize = 64 << 20;

fn testdata(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(path)
}

/// A file, or all files of a folder, by name.
fn files(path: &str) -> Vec<PathBuf> {
    let path = testdata(path);
    if path.is_file() {
        return vec![path];
    }
    let entries = std::fs::read_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn contents(paths: &[&str]) -> Vec<Vec<u8>> {
    let all: Vec<_> = paths.iter().flat_map(|path| files(path)).collect();
    assert!(!all.is_empty());
    all.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// How many inputs there are for each parser, and the first one's `rng_seed`.
fn inputs(usual: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let first = number("REIMAGE_FUZZ_SEED").unwrap_or(1);
    first..first + number("REIMAGE_FUZZ_INPUTS").unwrap_or(usual)
}

/// Gives a parser its corpus as it is, and damaged. Some of it must be taken and some refused, or nothing is tested.
#[track_caller]
fn check(name: &str, corpus: &[Vec<u8>], parse: fn(&[u8]) -> bool) {
    check_some((name, 300), corpus, parse);
}

/// The same with so many inputs, unless the environment says how many.
#[track_caller]
fn check_some((name, usual): (&str, u64), corpus: &[Vec<u8>], parse: fn(&[u8]) -> bool) {
    let whole = corpus.iter().cloned().map(|input| (0, input));
    let harmed = inputs(usual).map(|rng_seed| (rng_seed, damaged(corpus, &mut Random::new(rng_seed))));
    check_inputs(name, whole.chain(harmed), parse);
}

/// The same with these inputs, each with its `rng_seed`.
#[track_caller]
fn check_inputs(name: &str, inputs: impl Iterator<Item = (u64, Vec<u8>)>, parse: fn(&[u8]) -> bool) {
    let (mut taken, mut refused) = (0, 0);
    for (rng_seed, input) in inputs {
        let given = input.clone();
        let why = match watched(move || parse(&given)) {
            Ok((_, memory)) if memory > MEMORY_MAX => format!("{memory} bytes of memory"),
            Ok((true, _)) => {
                taken += 1;
                continue;
            }
            Ok((false, _)) => {
                refused += 1;
                continue;
            }
            Err(why) => why,
        };
        let kept = std::env::temp_dir().join(format!("reimage-fuzz-{name}-{rng_seed}"));
        std::fs::write(&kept, &input).unwrap();
        panic!("{name}, rng_seed {rng_seed}: {why}; the input is {}", kept.display());
    }
    assert!(taken > 0 && refused > 0, "{name}: {taken} taken, {refused} refused");
}
