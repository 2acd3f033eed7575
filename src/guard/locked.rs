//! Locks that keep others off a disk while it is claimed, and that show who is on it already.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::fs::FlockOperation;

use super::refusal::Refusal;
use crate::sys::locks;

/// systemd's convention (systemd.io/BLOCK_DEVICE_LOCKING): udev leaves a disk alone that is locked.
///
/// udev itself holds the lock while it probes, so a wait of up to two seconds is normal.
pub(super) fn lock_out_udev(file: &File) -> Result<(), Refusal> {
    for _ in 0..20 {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(100)),
            Err(error) => return Err(Refusal::CannotOpen { source: error.into() }),
        }
    }
    Err(Refusal::Locked { who: "it holds flock(2) on the device" })
}

/// Refuses a disk on which somebody holds one of the locks that qemu and Cloud Hypervisor take.
pub(super) fn refuse_other_locks(file: &File) -> Result<(), Refusal> {
    let held = |byte| locks::is_locked_by_others(file.as_fd(), byte).unwrap_or(false);
    if held(locks::USES_WRITE) {
        return Err(Refusal::Locked { who: "a virtual machine or another program writes it" });
    }
    if locks::USES.chain(locks::FORBIDS).any(held) {
        return Err(Refusal::Locked { who: "a virtual machine or another program uses it" });
    }
    Ok(())
}

/// Takes the same locks, so that no hypervisor starts on the disk; then whoever was faster is seen.
///
/// Where a file system has no such locks, none of its users is kept out by them either.
pub(super) fn lock_out_hypervisors(file: &File) -> Result<(), Refusal> {
    for byte in [locks::USES_WRITE, locks::FORBIDS_READ, locks::FORBIDS_WRITE] {
        match locks::lock_shared(file.as_fd(), byte) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                return Err(Refusal::Locked { who: "another program has locked it" });
            }
            _ => {}
        }
    }
    refuse_other_locks(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_virtual_machines_lock_is_refused_and_ours_keeps_it_out() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let machine = open();
        locks::lock_shared(machine.as_fd(), locks::USES_WRITE).unwrap();
        let ours = open();
        assert!(matches!(refuse_other_locks(&ours), Err(Refusal::Locked { .. })));
        assert!(matches!(lock_out_hypervisors(&ours), Err(Refusal::Locked { .. })));
        drop((machine, ours));
        let ours = open();
        lock_out_hypervisors(&ours).unwrap();
        assert!(locks::is_locked_by_others(open().as_fd(), locks::FORBIDS_WRITE).unwrap());
    }
}
