//! Runs the real program, and says what it printed, how long it took and how much memory it had.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::seen::Seen;

/// Whoever has not answered by then hangs.
const HANGS: Duration = Duration::from_secs(30);

/// What a run printed, and what it took.
#[derive(Debug)]
pub(crate) struct Ran {
    /// `None` where it had to be killed, or a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) document: Value,
    pub(crate) stderr: String,
    pub(crate) wall: Duration,
    /// The most memory that it ever had, in bytes; what this process had when it began included.
    pub(crate) memory: u64,
}

/// Runs `reimage` in a folder. Its output goes to files there, so that it cannot wait for us.
#[expect(clippy::zombie_processes, reason = "`wait4` waits for it, and says what `Child::wait` does not")]
pub(crate) fn reimage(folder: &Path, words: &[&str]) -> Ran {
    let (out, err) = (folder.join("stdout"), folder.join("stderr"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_reimage"));
    command.args(words).env_clear().env("HOME", folder).env("XDG_STATE_HOME", folder.join("state"));
    command.current_dir(folder).stdin(Stdio::null());
    command.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
    let begun = Instant::now();
    let child = command.spawn().unwrap();
    let (code, memory) = wait(i32::try_from(child.id()).unwrap(), begun);
    let wall = begun.elapsed();
    let stdout = fs::read_to_string(&out).unwrap();
    let document = serde_json::from_str(&stdout).unwrap_or(Value::String(stdout));
    Ran { code, document, stderr: fs::read_to_string(&err).unwrap(), wall, memory }
}

/// The most memory that this process has had.
fn own_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("proc(5) has it");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Waits for a child of ours: its exit code and its most memory, 0 where that is not more than this process has had.
///
/// Not by `Child`, for only `wait4` says the resources of one child.
fn wait(child: i32, begun: Instant) -> (Option<i32>, u64) {
    let mut is_killed = false;
    loop {
        let mut status = 0;
        // SAFETY: a `rusage` is plain numbers, for which zeroes are a value.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are to values that live on, and the child is ours and not yet waited for.
        let ended = unsafe { libc::wait4(child, &raw mut status, libc::WNOHANG, &raw mut usage) };
        assert!(ended >= 0, "the child can be waited for");
        if ended == child {
            let code = (libc::WIFEXITED(status) && !is_killed).then(|| libc::WEXITSTATUS(status));
            // getrusage(2): in kilobytes, and never less than this process had when the child was made of it.
            let memory = u64::try_from(usage.ru_maxrss).unwrap() * 1024;
            return (code, if memory > own_memory() { memory } else { 0 });
        }
        if begun.elapsed() > HANGS && !is_killed {
            is_killed = true;
            // SAFETY: the child has not been waited for, so that the number is its.
            unsafe { libc::kill(child, libc::SIGKILL) };
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A folder with a disk that is to survive, beside which nothing else may appear.
pub(crate) struct Room {
    folder: tempfile::TempDir,
    before: Seen,
}

/// How long the disk is that an image is put on.
pub(crate) const DISK: u64 = 2 << 20;

impl Room {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("disks")).unwrap();
        fs::create_dir_all(folder.path().join("images")).unwrap();
        let disk = folder.path().join("disks/disk.raw");
        fs::write(&disk, crate::build::pattern(200, DISK)).unwrap();
        let before = Seen::of(&disk);
        Self { folder, before }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Where images are made.
    pub(crate) fn images(&self) -> PathBuf {
        self.folder.path().join("images")
    }

    pub(crate) fn disk(&self) -> Vec<u8> {
        fs::read(self.folder.path().join("disks/disk.raw")).unwrap()
    }

    pub(crate) fn rebuild(&self, image: &str, flags: &[&str]) -> Ran {
        let words = ["rebuild", image, "disks/disk.raw", "--keep-image-credentials", "--yes", "--json"];
        reimage(self.path(), &[&words[..], &["--state-dir", "state"], flags].concat())
    }

    /// What is wrong with the disk, or beside it, if it should be as it was.
    pub(crate) fn changes(&self) -> Option<&'static str> {
        let names = fs::read_dir(self.folder.path().join("disks")).unwrap().count();
        match Seen::of(&self.folder.path().join("disks/disk.raw")) == self.before {
            false => Some("the disk is not what it was"),
            true if names != 1 => Some("something was left beside the disk"),
            true => None,
        }
    }
}

/// Runs a check of every row on as many threads as there are processors: everything that is wrong, in order.
pub(crate) fn on_threads<Row: Sync>(rows: &[Row], check: impl Fn(&Row) -> Vec<String> + Sync) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(8);
    let worker = || {
        let mut wrong = Vec::new();
        while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
            wrong.extend(check(row));
        }
        wrong
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}
