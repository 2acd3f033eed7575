//! A file descriptor that the program was started with, by its number.

use std::fs::{self, File};
use std::io;

use rustix::process::{PidfdFlags, PidfdGetfdFlags};

/// Standard input, output and error have their own ways.
const FIRST: i32 = 3;
/// O_CLOEXEC of asm-generic/fcntl.h, as fdinfo shows it in octal digits.
const CLOEXEC: u32 = 0o2_000_000;

/// Opens an inherited descriptor for reading.
///
/// A number alone is no promise that something is open there, so nothing is taken over: the kernel is asked for a
/// second descriptor. Everything that this program opens itself is closed on exec; what was inherited is not.
pub(crate) fn open(number: i32) -> io::Result<File> {
    let refused = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    if number < FIRST {
        return refused("the number must be 3 or more");
    }
    let Ok(info) = fs::read_to_string(format!("/proc/self/fdinfo/{number}")) else {
        return refused("nothing is open under this number");
    };
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    match flags.and_then(|digits| u32::from_str_radix(digits.trim(), 8).ok()) {
        Some(flags) if flags & CLOEXEC == 0 => {}
        _ => return refused("nothing was left open under this number"),
    }
    duplicate(number).or_else(|_| File::open(format!("/proc/self/fd/{number}")))
}

/// The same open file, whatever it is; some containers forbid the call.
fn duplicate(number: i32) -> rustix::io::Result<File> {
    let this = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    rustix::process::pidfd_getfd(this, number, PidfdGetfdFlags::empty()).map(File::from)
}
