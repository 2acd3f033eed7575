//! What the program alone reads: instance files and policies.

use std::path::Path;
use std::process::{Command, Stdio};

use super::{contents, damaged, inputs};
use crate::random::Random;
use crate::stored;

/// Exit codes of a plan that is made, and of one that is refused.
const CODES: [i32; 9] = [0, 2, 10, 11, 12, 13, 14, 20, 21];

/// Runs `reimage plan` with a file of that content; its exit code.
fn plan(folder: &Path, flag: &str, words: &[&str], input: &[u8]) -> Option<i32> {
    let file = folder.join("input.toml");
    std::fs::write(&file, input).unwrap();
    // In so many KiB of address space, most of which the threads' stacks take.
    let limited = format!("ulimit -v {}; exec \"$0\" \"$@\"", 512 << 10);
    let output = Command::new("sh")
        .args(["-c", &limited, env!("CARGO_BIN_EXE_reimage"), "plan"])
        .args(words)
        .args([Path::new(flag), &file])
        .args(["--keep-image-credentials", "--json", "--progress", "none", "--state-dir"])
        .arg(folder.join("state"))
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let document: Result<serde_json::Value, _> = serde_json::from_slice(&output.stdout);
    document.ok().and(output.status.code())
}

fn check_program(corpus: &str, flag: &str, words: &[&str]) {
    let folder = stored::scratch();
    for (name, size) in [("image.raw", 1 << 20), ("system.raw", 1 << 20), ("data.raw", 4096)] {
        std::fs::write(folder.path().join(name), vec![1; size]).unwrap();
    }
    let corpus = contents(&[corpus]);
    let whole = corpus.iter().cloned().map(|input| (0, input));
    let harmed = inputs(60).map(|rng_seed| (rng_seed, damaged(&corpus, &mut Random::new(rng_seed))));
    let mut refused_as_usage = 0;
    for (rng_seed, input) in whole.chain(harmed) {
        let code = plan(folder.path(), flag, words, &input);
        let known = code.is_some_and(|code| CODES.contains(&code));
        assert!(known, "{flag}, rng_seed {rng_seed}: {code:?} for {}", input.escape_ascii());
        refused_as_usage += u64::from(code == Some(2));
    }
    assert!(refused_as_usage > 0, "no file was told to be none");
}

#[test]
fn damaged_instance_files_are_taken_or_refused() {
    check_program("fuzz/instance", "--instance", &[]);
}

#[test]
fn damaged_policies_are_taken_or_refused() {
    check_program("fuzz/policy", "--policy", &["image.raw", "system.raw"]);
}
