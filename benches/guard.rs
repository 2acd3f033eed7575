//! What do the guard's checks cost on a busy host? Milliseconds of a plan, with and without its load.
//!
//! `cargo bench --bench guard`, as root: it attaches 50 loop devices and starts processes that hold 2,000 files.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use reimage::{Credential, Request};

const LOOPS: usize = 50;
const HOLDERS: usize = 20;
const FILES_EACH: usize = 100;
const RUNS: usize = 15;
const SIZE: u64 = 4 << 20;

fn main() {
    let folder = tempfile::Builder::new().prefix("reimage-guard-").tempdir_in("/var/tmp").expect("a folder");
    let image = sparse(&folder.path().join("image.raw"));
    let file = sparse(&folder.path().join("target.raw"));
    let device = Loop::over(&sparse(&folder.path().join("device.raw")));
    let targets = [("a file", file.as_path()), ("a loop device", device.0.as_path())];
    let state = folder.path().join("state");
    let alone = targets.map(|(_, target)| median(&image, target, &state));
    let load = start_load(folder.path());
    for ((name, target), alone) in targets.into_iter().zip(alone) {
        let busy = median(&image, target, &state);
        println!(
            "{name}: {busy:.1} ms with {} open files and {LOOPS} loop devices, {alone:.1} ms without (median of {RUNS})",
            HOLDERS * FILES_EACH
        );
    }
    drop(load);
}

/// The median of some plans, in milliseconds.
fn median(image: &Path, target: &Path, state: &Path) -> f64 {
    let mut request = Request::new(image, target);
    request.options.state_dir = state.to_owned();
    let plan = || {
        let started = Instant::now();
        reimage::preview(&request, &Credential::keep_image(), &()).expect("nothing stands in the way");
        started.elapsed().as_secs_f64() * 1e3
    };
    let mut times: Vec<_> = std::iter::repeat_with(plan).take(RUNS).collect();
    times.sort_by(f64::total_cmp);
    times[RUNS / 2]
}

fn sparse(path: &Path) -> PathBuf {
    File::create(path).and_then(|file| file.set_len(SIZE)).expect("a sparse file is made");
    path.to_owned()
}

/// What a host has open besides; dropping it removes all of it.
fn start_load(folder: &Path) -> (Vec<Loop>, Vec<Holder>) {
    let over = |number| Loop::over(&sparse(&folder.join(format!("loop-{number}.raw"))));
    let held = |number| Holder::of(&folder.join(format!("held-{number}")));
    ((0..LOOPS).map(over).collect(), (0..HOLDERS).map(held).collect())
}

/// An attached loop device.
struct Loop(PathBuf);

impl Loop {
    fn over(file: &Path) -> Self {
        // Somebody else may take the free one first.
        for _ in 0..10 {
            let found = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
            let found = found.expect("losetup is installed");
            if found.status.success() {
                return Self(String::from_utf8_lossy(&found.stdout).trim().into());
            }
        }
        panic!("no loop device for {}: are you root?", file.display());
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // Dropped while panicking as well: what cannot be detached is only told.
        let done = Command::new("losetup").arg("--detach").arg(&self.0).status();
        if !done.is_ok_and(|status| status.success()) {
            eprintln!("{} stays attached", self.0.display());
        }
    }
}

/// A process with files open, until it is dropped.
struct Holder(Child);

impl Holder {
    fn of(folder: &Path) -> Self {
        fs::create_dir(folder).expect("a folder for what is held");
        let script = "import sys\n\
            held = [open(f'{sys.argv[1]}/{n}', 'w') for n in range(int(sys.argv[2]))]\n\
            print('open', flush=True)\n\
            sys.stdin.read()";
        let process = Command::new("python3")
            .args(["-S", "-c", script])
            .arg(folder)
            .arg(FILES_EACH.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut holder = Self(process.expect("python3 is installed"));
        let mut said = String::new();
        let output = holder.0.stdout.take().expect("its output is a pipe");
        BufReader::new(output).read_line(&mut said).expect("its output is read");
        assert_eq!(said, "open\n", "the process holds its files");
        holder
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
