//! Which processes have a storage open, as `/proc/*/fd` shows it.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags};

use super::identity::StorageIdentity;
use super::kernel::{Kernel, Number, line, names};
use super::refusal::Process;
use crate::sys::threads;

/// What an open file may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OpenFor {
    /// It is only read: by a backup, or by a running machine that has it read-only.
    Reading,
    /// It may be written.
    Writing,
}

impl std::fmt::Display for OpenFor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Reading => "reading",
            Self::Writing => "writing",
        })
    }
}

/// A process that has a storage open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Opener {
    pub(super) process: Process,
    pub(super) access: OpenFor,
    /// The name under which the process opened it.
    pub(super) path: PathBuf,
}

/// The storages to look for.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) devices: HashSet<Number>,
    /// Device and inode number.
    pub(super) files: HashSet<(Number, u64)>,
}

impl Wanted {
    pub(super) fn add(&mut self, identity: StorageIdentity) {
        match identity {
            StorageIdentity::Device { major, minor } => _ = self.devices.insert((major, minor)),
            StorageIdentity::File { device, inode } => {
                _ = self.files.insert((super::identity::numbers(device), inode));
            }
        }
    }
}

/// What a look at all processes came to.
#[derive(Debug, Default)]
pub(super) struct Openers {
    /// One entry for each process, the one that may write before the one that reads.
    pub(super) found: Vec<Opener>,
    /// How many processes did not show their open files.
    pub(super) hidden: usize,
}

/// Looks through the open files of every process but this one.
pub(super) fn openers(kernel: &Kernel, wanted: &Wanted) -> Openers {
    let mut result = Openers::default();
    // In another process namespace than that of `/proc` this one has another number there.
    let this = fs::read_link(kernel.proc.join("self")).ok().and_then(|link| link.to_str()?.parse().ok());
    let this = this.unwrap_or_else(std::process::id);
    let processes = fs::read_dir(&kernel.proc);
    result.hidden += usize::from(processes.is_err());
    let processes = processes.into_iter().flatten().flatten();
    for pid in processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        if pid == this {
            continue;
        }
        let folder = kernel.proc.join(pid.to_string());
        match opened_by_any_thread(&folder, pid, wanted) {
            Ok(Some((access, path))) => {
                result.found.push(Opener { process: process(kernel, pid), access, path });
            }
            Ok(None) => {}
            // It has ended meanwhile.
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::SRCH) => {}
            Err(_) => result.hidden += 1,
        }
    }
    result.found.sort_by_key(|opener| opener.process.pid);
    result
}

/// Who a process is.
pub(super) fn process(kernel: &Kernel, pid: u32) -> Process {
    let command = line(&kernel.proc.join(format!("{pid}/comm")));
    Process { pid, command: command.unwrap_or_else(|| "?".to_owned()) }
}

/// The threads of a process share its table of open files as a rule; those that do not are looked at too.
fn opened_by_any_thread(
    process: &Path,
    pid: u32,
    wanted: &Wanted,
) -> rustix::io::Result<Option<(OpenFor, PathBuf)>> {
    let mut found = opened_by(process, wanted)?;
    let tasks = process.join("task");
    let threads = names(&tasks).into_iter().filter_map(|name| name.parse().ok());
    for thread in threads.filter(|thread| *thread != pid && !threads::share_open_files(pid, *thread)) {
        match opened_by(&tasks.join(thread.to_string()), wanted) {
            Ok(Some((OpenFor::Writing, path))) => return Ok(Some((OpenFor::Writing, path))),
            Ok(reader) => found = found.or(reader),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn opened_by(process: &Path, wanted: &Wanted) -> rustix::io::Result<Option<(OpenFor, PathBuf)>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(process.join("fd"), flags, Mode::empty())?;
    let mut reader = None;
    for entry in rustix::fs::Dir::read_from(&folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_bytes().starts_with(b".") {
            continue;
        }
        // What the kernel knows at once: a server that does not answer must not hold us up.
        let now = AtFlags::STATX_DONT_SYNC;
        let Ok(stat) = rustix::fs::statx(&folder, name, now, StatxFlags::TYPE | StatxFlags::INO) else {
            continue;
        };
        let is_wanted = match FileType::from_raw_mode(stat.stx_mode.into()) {
            FileType::BlockDevice => wanted.devices.contains(&(stat.stx_rdev_major, stat.stx_rdev_minor)),
            FileType::RegularFile => {
                wanted.files.contains(&((stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino))
            }
            _ => false,
        };
        if !is_wanted {
            continue;
        }
        let name = name.to_string_lossy();
        let path = fs::read_link(process.join("fd").join(&*name)).unwrap_or_default();
        match access_of(&process.join("fdinfo").join(&*name)) {
            Some(OpenFor::Writing) => return Ok(Some((OpenFor::Writing, path))),
            Some(OpenFor::Reading) => reader = Some((OpenFor::Reading, path)),
            None => {}
        }
    }
    Ok(reader)
}

/// `flags` of `proc_pid_fdinfo(5)` is octal; its last two bits are the access mode. Unknown counts as writing,
/// and `None` is a mere name that neither reads nor writes (`O_PATH`).
fn access_of(info: &Path) -> Option<OpenFor> {
    const PATH_ONLY: u32 = 0o10_000_000;
    let text = fs::read_to_string(info).unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    match flags {
        Some(flags) if flags & PATH_ONLY != 0 => None,
        Some(flags) if flags & 3 == 0 => Some(OpenFor::Reading),
        _ => Some(OpenFor::Writing),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::process::{Command, Stdio};

    use super::*;

    /// A process that has the file open for reading and, with `more`, in another way too.
    #[track_caller]
    fn check(redirect: &str, expected: OpenFor) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut wanted = Wanted::default();
        wanted.add(super::super::identity::identify(&file.as_file().metadata().unwrap()).unwrap());
        let script = format!("{redirect} \"$0\"; echo ready; read end");
        let mut shell = Command::new("sh");
        let shell = shell.args(["-c", &script]).arg(file.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = shell.spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
        let found = openers(&Kernel::of_this_host(Vec::new()), &wanted).found;
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        let pid = child.id();
        child.wait().unwrap();
        let path = file.path().canonicalize().unwrap();
        let process = Process { pid, command: "sh".into() };
        let expected = Opener { process, access: expected, path };
        assert_eq!(found, [expected], "ours does not count, and nobody else has it");
        assert!(
            openers(&Kernel::of_this_host(Vec::new()), &wanted).found.is_empty(),
            "the process has ended"
        );
    }

    #[test]
    fn a_process_is_found_by_the_file_that_it_has_open_and_by_what_it_may_do_with_it() {
        check("exec 5<", OpenFor::Reading);
        check("exec 5>>", OpenFor::Writing);
        check("exec 5<>", OpenFor::Writing);
    }
}
