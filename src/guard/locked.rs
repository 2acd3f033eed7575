//! Locks that keep others off a disk while it is claimed, and that show who is on it already.

use std::fs::File;
use std::os::fd::AsFd;

use rustix::fs::FlockOperation;

use super::refusal::Refusal;
use crate::sys::locks;

/// Takes every lock that keeps udev, other runs and hypervisors off.
pub(super) fn lock(file: &File) -> Result<(), Refusal> {
    flock(file, FlockOperation::NonBlockingLockExclusive)?;
    lock_out_hypervisors(file)
}

/// Asks whether the locks could be taken, and takes none.
pub(super) fn ask(file: &File) -> Result<(), Refusal> {
    flock(file, FlockOperation::NonBlockingLockShared)?;
    // When the file closes it would go as well.
    let _ = rustix::fs::flock(file, FlockOperation::NonBlockingUnlock);
    Ok(())
}

/// systemd's convention (systemd.io/BLOCK_DEVICE_LOCKING): udev leaves a disk alone that is locked.
///
/// udev itself holds the lock while it probes: whoever asks tries again, but with the disk closed in between,
/// so that it is not taken for a user of the disk itself.
fn flock(file: &File, operation: FlockOperation) -> Result<(), Refusal> {
    let locked = match rustix::fs::flock(file, operation) {
        // NFS makes a lock of bytes of it (flock(2)), and gives the exclusive one only to who may write.
        Err(rustix::io::Errno::BADF) => rustix::fs::flock(file, FlockOperation::NonBlockingLockShared),
        result => result,
    };
    match locked {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Refusal::Locked { who: FLOCK }),
        Err(error) => Err(Refusal::CannotOpen { source: error.into() }),
    }
}

/// What a lock by flock(2) says of its holder.
pub(super) const FLOCK: &str = "it holds flock(2) on it";

/// What a lock of somebody else says that it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// It writes.
    Writing,
    /// It does something else, and counts on nobody else's writing as a rule.
    Other,
}

impl Use {
    pub(super) fn who(self) -> &'static str {
        match self {
            Self::Writing => "a virtual machine or another program writes it",
            Self::Other => "a virtual machine or another program uses it",
        }
    }
}

/// Whether the file system can tell of locks at all.
pub(super) fn are_known(file: &File) -> bool {
    locks::is_locked_by_others(file.as_fd(), locks::USES_WRITE).is_ok()
}

/// Whether somebody else holds one of the locks that qemu and Cloud Hypervisor take.
pub(super) fn others(file: &File) -> Option<Use> {
    let held = |byte| locks::is_locked_by_others(file.as_fd(), byte).unwrap_or(false);
    if held(locks::USES_WRITE) {
        return Some(Use::Writing);
    }
    locks::USES.chain(locks::FORBIDS).any(held).then_some(Use::Other)
}

/// Takes the same locks, so that no hypervisor starts on the disk.
///
/// Where a file system has no such locks, none of its users is kept out by them either.
fn lock_out_hypervisors(file: &File) -> Result<(), Refusal> {
    for byte in [locks::USES_WRITE, locks::FORBIDS_READ, locks::FORBIDS_WRITE] {
        match locks::lock_shared(file.as_fd(), byte) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                return Err(Refusal::Locked { who: "another program has locked it" });
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_virtual_machines_lock_is_seen_and_ours_keeps_it_out() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let machine = open();
        locks::lock_shared(machine.as_fd(), locks::USES_WRITE).unwrap();
        let ours = open();
        assert_eq!(others(&ours), Some(Use::Writing));
        drop(machine);
        let reader = open();
        locks::lock_shared(reader.as_fd(), locks::USES_READ).unwrap();
        assert_eq!(others(&ours), Some(Use::Other));
        drop((reader, ours));
        let ours = open();
        lock(&ours).unwrap();
        assert_eq!(others(&ours), None, "our own do not count");
        assert!(locks::is_locked_by_others(open().as_fd(), locks::FORBIDS_WRITE).unwrap());
        assert!(ask(&open()).is_err());
    }
}
