//! What does the journal cost? Seconds of a rebuild with and without it, in alternating runs.
//!
//! `cargo bench --bench journal`; needs 7 GiB of room under TMPDIR (or /var/tmp). Without means: its folder lies in
//! memory, and nothing is synced or noted in between.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reimage::{CancelToken, Credential, Placement, Request};

const SIZE: u64 = 3 << 30;
const RUNS: usize = 7;

fn main() {
    let place = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let folder = tempfile::Builder::new().prefix("reimage-journal-").tempdir_in(place).expect("a folder");
    let memory = tempfile::Builder::new().prefix("reimage-journal-").tempdir_in("/dev/shm").expect("memory");
    let image = noise(&folder.path().join("image.raw"));
    let target = folder.path().join("system.raw");
    let disk = folder.path().join("state");
    for placement in [Placement::Replace, Placement::InPlace] {
        for interval in [Duration::from_secs(3), Duration::from_secs(1)] {
            let run = |state: &Path, checkpoint| {
                let mut request = Request::new(&image, &target);
                request.options.state_dir = state.to_owned();
                request.options.placement = placement;
                request.options.mode = reimage::Mode::Full;
                request.options.checkpoint = checkpoint;
                timed(&request)
            };
            if !target.exists() {
                File::create(&target).and_then(|file| file.set_len(SIZE)).expect("a target is made");
            }
            run(&disk, interval);
            let mut ratios = Vec::new();
            let (mut with, mut without) = (Vec::new(), Vec::new());
            for _ in 0..RUNS {
                without.push(run(memory.path(), Duration::from_secs(3600)));
                with.push(run(&disk, interval));
                ratios.push(with.last().expect("one run") / without.last().expect("one run"));
            }
            println!(
                "{placement:?}, noted every {interval:?}: {:.2} s, without {:.2} s, ratio {:.3} (medians of {RUNS})",
                median(&mut with),
                median(&mut without),
                median(&mut ratios)
            );
        }
    }
}

fn timed(request: &Request) -> f64 {
    let started = Instant::now();
    let plan = reimage::plan(request, &Credential::keep_image(), &()).expect("nothing stands in the way");
    reimage::rebuild(plan, &(), &CancelToken::new()).expect("the disk is written");
    started.elapsed().as_secs_f64()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A file without a zero byte that compresses badly.
fn noise(path: &Path) -> PathBuf {
    let mut file = File::create(path).expect("an image is made");
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut part = vec![0; 1 << 20];
    for _ in 0..SIZE >> 20 {
        for word in part.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&part).expect("there is room for the image");
    }
    file.sync_all().expect("the image is on the disk");
    path.to_owned()
}
