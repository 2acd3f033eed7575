//! Another program, run on bytes in memory: no shell, no terminal, no file that has a name.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use rustix::fs::MemfdFlags;
use rustix::io::{Errno, FdFlags};
use rustix::process::{Resource, Rlimit};

/// What a program may use before the kernel ends it.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// Processor time in seconds.
    pub(crate) cpu_seconds: u64,
    /// The length of each file that it writes.
    pub(crate) file_bytes: u64,
}

/// An unnamed file in memory that holds `bytes`.
pub(crate) fn memory_file(bytes: &[u8]) -> io::Result<File> {
    let make = |flags| rustix::fs::memfd_create("reimage", MemfdFlags::CLOEXEC | flags);
    // Some hosts refuse memory that could be executed (vm.memfd_noexec); kernels before 6.3 do not know the flag.
    let file = match make(MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => make(MemfdFlags::empty())?,
        made => made?,
    };
    let mut file = File::from(file);
    file.write_all(bytes)?;
    Ok(file)
}

/// The name under which a program that inherits this file can open it.
pub(crate) fn inherited_name(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Runs a program that gets `files`, and no input, output or environment.
pub(crate) fn run(
    program: &Path,
    words: &[OsString],
    files: &[&File],
    limits: Limits,
) -> io::Result<ExitStatus> {
    let mut command = Command::new(program);
    command.args(words).env_clear().env("LC_ALL", "C").current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let inherited: Vec<RawFd> = files.iter().map(|file| file.as_raw_fd()).collect();
    let prepare = move || {
        let limit = |resource, most: u64| {
            // A limit that is lower already stays: it could not be raised.
            let now = rustix::process::getrlimit(resource).maximum;
            let most = Some(now.map_or(most, |now| most.min(now)));
            rustix::process::setrlimit(resource, Rlimit { current: most, maximum: most })
        };
        limit(Resource::Cpu, limits.cpu_seconds)?;
        limit(Resource::Fsize, limits.file_bytes)?;
        limit(Resource::Core, 0)?;
        for file in &inherited {
            // SAFETY: `files` keeps the descriptor open until the program has ended.
            let file = unsafe { BorrowedFd::borrow_raw(*file) };
            rustix::io::fcntl_setfd(file, FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes plain system calls, and allocates and locks nothing.
    unsafe { command.pre_exec(prepare) };
    command.status()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Seek as _};

    const LIMITS: Limits = Limits { cpu_seconds: 10, file_bytes: 1 << 20 };

    fn shell(script: String, files: &[&File], limits: Limits) -> ExitStatus {
        run(Path::new("/bin/sh"), &["-c".into(), script.into()], files, limits).unwrap()
    }

    fn content(mut file: File) -> String {
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_program_reads_and_writes_the_files_that_it_inherits() {
        let (input, output) = (memory_file(b"all of it").unwrap(), memory_file(b"").unwrap());
        let (from, to) = (inherited_name(&input), inherited_name(&output));
        let script = format!("cat {} > {}; exit 7", from.display(), to.display());
        assert_eq!(shell(script, &[&input, &output], LIMITS).code(), Some(7));
        assert_eq!(content(output), "all of it");
    }

    #[test]
    fn a_program_inherits_no_environment_and_no_other_file() {
        let (other, output) = (memory_file(b"secret").unwrap(), memory_file(b"").unwrap());
        let to = inherited_name(&output);
        let script = format!(
            "(cat {}; echo \"$HOME$USER$CARGO$LC_ALL\") > {} 2>&-",
            inherited_name(&other).display(),
            to.display()
        );
        shell(script, &[&output], LIMITS);
        assert_eq!(content(output), "C\n");
    }

    #[test]
    fn a_program_that_writes_or_computes_without_end_is_ended() {
        let output = memory_file(b"").unwrap();
        let to = inherited_name(&output);
        let limits = Limits { cpu_seconds: 1, file_bytes: 4096 };
        let status = shell(format!("exec yes > {}", to.display()), &[&output], limits);
        assert!(!status.success() && content(output).len() <= 4096);
        assert_eq!(shell("while :; do :; done".into(), &[], limits).code(), None);
    }
}
