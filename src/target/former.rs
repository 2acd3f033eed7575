//! The file that bore a disk's name before: kept beside the one that took its place, and put back by an exchange.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, RenameFlags};

use super::{Exchange, TargetError};
use crate::guard::{Claim, Held};
use crate::sys::{beside, locks};

/// Which file it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Former<'a> {
    /// The run that kept it.
    pub(crate) journal: &'a str,
    /// The name that it had, and the one under which it was kept.
    pub(crate) place: &'a Path,
    pub(crate) kept_as: &'a Path,
    pub(crate) numbers: (u64, u64),
    /// Its length in bytes and the time of its last change when it was kept.
    pub(crate) len: u64,
    pub(crate) modified_ns: i64,
}

/// Why it cannot be put back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FormerFault {
    #[error("the file that was kept is not there any more, or another file has its name")]
    Gone,
    /// The disk is named by another name than the one beside which the file lies.
    #[error("the old disk was kept beside {place:?}, and not beside this name of the disk")]
    Elsewhere { place: PathBuf },
    #[error("the file that was kept has been written since")]
    Written,
    #[error("the file that was kept is in use")]
    InUse(#[source] io::Error),
    #[error("the file that was kept cannot be opened")]
    Unusable(#[source] io::Error),
}

/// The old file, which waits to be put back.
struct Returning {
    folder: OwnedFd,
    name: OsString,
    kept_as: OsString,
    /// Held until the run ends.
    old: File,
    present: File,
    place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Waiting,
    Back,
}

/// Makes of the right to write a file the exchange that puts the one back that was kept of it; nothing is changed yet.
pub(crate) fn give_back(claim: Claim, former: Former<'_>) -> Result<Box<dyn Exchange>, FormerFault> {
    let Held::File { file: present, folder, name, .. } = claim.into_held() else {
        return Err(not_beside(former));
    };
    let kept_as = beside::old_name(&name, former.journal);
    let opened = beside::reopen_old(&folder, &kept_as, former.numbers);
    let old = opened.map_err(|error| match error.kind() {
        io::ErrorKind::ResourceBusy => FormerFault::InUse(error),
        _ => FormerFault::Unusable(error),
    })?;
    let old = old.ok_or_else(|| not_beside(former))?;
    let of = old.metadata().map_err(FormerFault::Unusable)?;
    if (of.len(), modified_ns(&of)) != (former.len, former.modified_ns) {
        return Err(FormerFault::Written);
    }
    // From the exchange on it is the disk: until this run ends, no hypervisor shall start on it.
    for byte in [locks::USES_WRITE, locks::FORBIDS_READ, locks::FORBIDS_WRITE] {
        // A file system without such locks has no hypervisor that obeys them.
        let _ = locks::lock_shared(old.as_fd(), byte);
    }
    Ok(Box::new(Returning { folder, name, kept_as, old, present, place: Place::Waiting }))
}

/// Why nothing lies beside the disk: what was kept may still be where it was put.
fn not_beside(former: Former<'_>) -> FormerFault {
    let is_there =
        rustix::fs::lstat(former.kept_as).is_ok_and(|found| (found.st_dev, found.st_ino) == former.numbers);
    match is_there {
        true => FormerFault::Elsewhere { place: former.place.to_owned() },
        false => FormerFault::Gone,
    }
}

/// When a file's content changed last, in nanoseconds since 1970.
pub(crate) fn modified_ns(of: &std::fs::Metadata) -> i64 {
    of.mtime().saturating_mul(1_000_000_000).saturating_add(of.mtime_nsec())
}

/// When anything of a file changed last, its names as well.
pub(crate) fn changed_ns(of: &std::fs::Metadata) -> i64 {
    of.ctime().saturating_mul(1_000_000_000).saturating_add(of.ctime_nsec())
}

impl Exchange for Returning {
    fn publish(&mut self) -> Result<(), TargetError> {
        let failed = || TargetError::during("putting the old file back");
        self.old.sync_all().map_err(failed())?;
        self.exchange().map_err(failed())
    }

    fn has_its_place(&self) -> bool {
        self.place == Place::Back
    }

    fn settle(&mut self) -> Result<(), TargetError> {
        let sync = || rustix::fs::fsync(&self.folder).map_err(io::Error::from);
        // First the exchange: until it is durable, the present disk must not go.
        sync().map_err(TargetError::during("making the exchange durable"))?;
        let removed = beside::remove(&self.folder, &self.kept_as).and_then(|()| sync());
        removed.map_err(TargetError::during("removing the file that had its place"))
    }
}

impl Returning {
    /// Exchanges the two names; what came out must be the file that was claimed, else it goes back.
    fn exchange(&mut self) -> io::Result<()> {
        let claimed = self.present.metadata()?;
        self.rename()?;
        // From here on the kept name is that of the present disk, which only `settle` removes.
        self.place = Place::Back;
        let came_out = rustix::fs::statat(&self.folder, &self.kept_as, AtFlags::SYMLINK_NOFOLLOW)?;
        if (came_out.st_dev, came_out.st_ino) == (claimed.dev(), claimed.ino()) {
            return Ok(());
        }
        self.rename()?;
        self.place = Place::Waiting;
        Err(io::Error::other("another file has been put into the system disk's place during the run"))
    }

    fn rename(&self) -> io::Result<()> {
        let (folder, flags) = (&self.folder, RenameFlags::EXCHANGE);
        Ok(rustix::fs::renameat_with(folder, &self.kept_as, folder, &self.name, flags)?)
    }
}
