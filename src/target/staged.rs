//! A new file beside the old one, which takes its place when it is complete.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, RenameFlags};

use super::file::FileTarget;
use super::{Beside, Exchange, NewQcow2, Opened, Target, TargetError, Wanted, WantedSize};
use crate::sys::{beside, locks};

/// A new file that waits to take its place; dropped before, it is removed.
struct Staged {
    folder: OwnedFd,
    temporary: OsString,
    name: OsString,
    file: File,
    /// The file whose place it takes.
    old: Option<File>,
    /// The name under which the old file stays; `None` where it goes.
    lasting: Option<OsString>,
    place: Place,
}

/// Whether the new file has its place yet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Waiting,
    /// There was no old file.
    Taken,
    /// The old file bears the temporary name now.
    Exchanged,
    /// It has a name of its own, under which it stays.
    Preserved,
}

/// Makes the new file: beside the old one, readable by nobody else, with what can be copied beforehand.
///
/// One of the numbers `earlier` that lies there already is taken up instead, but for a qcow2 file: without its tables
/// nothing tells what is where in it.
pub(super) fn stage(
    (folder, name): (OwnedFd, OsString),
    old: Option<File>,
    wanted: Wanted,
    earlier: Option<(u64, u64)>,
) -> Result<Opened, TargetError> {
    let making = || TargetError::during("making the new file");
    let earlier = earlier.filter(|_| wanted.qcow2.is_none());
    let left = earlier.map(|numbers| beside::reopen(&folder, &name, numbers)).transpose().map_err(making())?;
    let (temporary, file, is_new) = match left.flatten() {
        Some(file) => (beside::name_beside(&name), file, false),
        None => {
            let (temporary, file) = beside::make(&folder, &name).map_err(making())?;
            (temporary, file, true)
        }
    };
    let numbers = file.metadata().map_err(making())?;
    let folder_path = path_of(&folder).map_err(making())?;
    let (path, place) = (folder_path.join(&temporary), folder_path.join(&name));
    let (device, inode) = (numbers.dev(), numbers.ino());
    let [kept, told] = [file.try_clone().map_err(making())?, file.try_clone().map_err(making())?];
    let replaced = old.as_ref().map(File::try_clone).transpose().map_err(making())?;
    let staged = Staged { folder, temporary, name, file: kept, old, lasting: None, place: Place::Waiting };
    // From the exchange on it is the disk: until this run ends, no hypervisor shall start on it.
    for byte in [locks::USES_WRITE, locks::FORBIDS_READ, locks::FORBIDS_WRITE] {
        // A file system without such locks has no hypervisor that obeys them.
        let _ = locks::lock_shared(file.as_fd(), byte);
    }
    if let Some(old) = &staged.old {
        take_over(old, &file).map_err(TargetError::during("taking over owner and attributes"))?;
    }
    let size = wanted.size;
    let (target, qcow2): (Box<dyn Target>, _) = match wanted.qcow2 {
        Some(shape) => {
            let qcow2 = Arc::new(NewQcow2::new(file, shape, size.most()));
            (Box::new(Arc::clone(&qcow2)), Some(qcow2))
        }
        None => {
            let target = match (size, is_new) {
                (WantedSize::Known(size), true) => FileTarget::new(file, size)?,
                (WantedSize::Known(size), false) => FileTarget::resumed(file, size)?,
                (WantedSize::AtMost(_), true) => FileTarget::growing(file),
                (WantedSize::AtMost(_), false) => FileTarget::growing_on(file),
            };
            (Box::new(target), None)
        }
    };
    let beside = Some(Beside { path, device, inode, place, old: replaced, file: told });
    Ok(Opened { target, exchange: Some(Box::new(staged)), beside, qcow2 })
}

impl Exchange for Staged {
    fn wait(&mut self) -> Result<(), TargetError> {
        let named = beside::give_name(&self.folder, &self.temporary, &self.file);
        named.map_err(TargetError::during("naming the new file"))
    }

    fn publish(&mut self) -> Result<(), TargetError> {
        let failed = || TargetError::during("putting the new file into its place");
        let Some(old) = &self.old else {
            self.file.sync_all().and_then(|()| self.rename(RenameFlags::NOREPLACE)).map_err(failed())?;
            self.place = Place::Taken;
            return Ok(());
        };
        let was = old.metadata().map_err(failed())?;
        own_as(&was, &self.file).map_err(failed())?;
        let mode = was.mode() & 0o7777;
        copy_attribute(old, &self.file, OsStr::new(ACCESS_LIST)).map_err(failed())?;
        rustix::fs::fchmod(&self.file, Mode::from_raw_mode(mode))
            .map_err(io::Error::from)
            .map_err(failed())?;
        let claimed = old.metadata().map_err(failed())?;
        self.file.sync_all().map_err(failed())?;
        if let Some(lasting) = self.lasting.clone() {
            // The new file first, so that the exchange itself gives the old one its lasting name.
            self.rename_waiting(lasting).map_err(failed())?;
        }
        self.exchange((claimed.dev(), claimed.ino())).map_err(failed())
    }

    fn keep_old(&mut self, journal: &str) -> Result<(), TargetError> {
        self.lasting = self.old.is_some().then(|| beside::old_name(&self.name, journal));
        Ok(())
    }

    fn has_its_place(&self) -> bool {
        matches!(self.place, Place::Taken | Place::Exchanged)
    }

    fn settle(&mut self) -> Result<(), TargetError> {
        let sync = || rustix::fs::fsync(&self.folder).map_err(io::Error::from);
        // First the exchange: until it is durable, the old disk must not go.
        sync().map_err(TargetError::during("making the exchange durable"))?;
        if self.place == Place::Exchanged && self.lasting.is_none() {
            let removed = self.remove().and_then(|()| sync());
            removed.map_err(TargetError::during("removing the old file"))?;
        }
        Ok(())
    }

    fn preserve(&mut self, journal: &str) -> Result<Option<PathBuf>, TargetError> {
        let failed = || TargetError::during("keeping the new file");
        // Another than the temporary name, which the next run takes over.
        let name = beside::preserved_name(&self.name, journal);
        let (from, folder) = (&self.temporary, &self.folder);
        rustix::fs::renameat_with(folder, from, folder, &name, RenameFlags::NOREPLACE)
            .and_then(|()| rustix::fs::fsync(folder))
            .map_err(io::Error::from)
            .map_err(failed())?;
        self.place = Place::Preserved;
        Ok(Some(path_of(&self.folder).map_err(failed())?.join(name)))
    }
}

impl Staged {
    /// Exchanges the two names; what came out must be the file that was claimed, else it goes back.
    fn exchange(&mut self, claimed: (u64, u64)) -> io::Result<()> {
        self.rename(RenameFlags::EXCHANGE)?;
        // From here on the temporary name is that of a disk, which only `settle` removes.
        self.place = Place::Exchanged;
        let came_out = rustix::fs::statat(&self.folder, &self.temporary, AtFlags::SYMLINK_NOFOLLOW)?;
        if (came_out.st_dev, came_out.st_ino) == claimed {
            return Ok(());
        }
        self.rename(RenameFlags::EXCHANGE)?;
        self.place = Place::Waiting;
        Err(io::Error::other("another file has been put into the system disk's place during the run"))
    }

    /// Gives the new file, which waits, another name; durable when this returns.
    fn rename_waiting(&mut self, name: OsString) -> io::Result<()> {
        rustix::fs::renameat_with(
            &self.folder,
            &self.temporary,
            &self.folder,
            &name,
            RenameFlags::NOREPLACE,
        )?;
        self.temporary = name;
        Ok(rustix::fs::fsync(&self.folder)?)
    }

    fn rename(&self, flags: RenameFlags) -> io::Result<()> {
        let (from, to) = (&self.temporary, &self.name);
        Ok(rustix::fs::renameat_with(&self.folder, from, &self.folder, to, flags)?)
    }

    fn remove(&self) -> io::Result<()> {
        beside::remove(&self.folder, &self.temporary)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.place == Place::Waiting {
            beside::forget(&self.folder, &self.temporary, &self.file);
        }
    }
}

/// Where an open folder lies now.
fn path_of(folder: &OwnedFd) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", folder.as_raw_fd()))
}

/// The access control list, which also holds the mode's bits and is therefore set at the end.
const ACCESS_LIST: &str = "system.posix_acl_access";

/// What the new file has from the old one: flags first (some only an empty file takes), then the rest.
fn take_over(old: &File, new: &File) -> io::Result<()> {
    use rustix::fs::IFlags;
    // Neither is ever set on a file that the guard let through, and both would stop us.
    let forbidding = IFlags::IMMUTABLE | IFlags::APPEND;
    // Those that chattr(1) sets; the others describe how the file system stores the file.
    let inherited = IFlags::NOCOW
        | IFlags::NODUMP
        | IFlags::NOATIME
        | IFlags::SYNC
        | IFlags::SECURE_REMOVAL
        | IFlags::UNRM
        | IFlags::COMPRESSED;
    if let Ok(flags) = rustix::fs::ioctl_getflags(old) {
        let wanted = (flags & inherited) - forbidding;
        let now = rustix::fs::ioctl_getflags(new)?;
        if now & inherited != wanted {
            rustix::fs::ioctl_setflags(new, (now - inherited) | wanted)?;
        }
    }
    // Until it takes the old one's place it belongs to this user, so that nobody else can open it. Who may not give it
    // away is told so at once.
    if !rustix::process::geteuid().is_root() {
        let (was, is) = (old.metadata()?, new.metadata()?);
        own_as(&was, new)?;
        own_as(&is, new)?;
    }
    for name in attribute_names(old)? {
        if name != ACCESS_LIST {
            copy_attribute(old, new, &name)?;
        }
    }
    Ok(())
}

fn own_as(other: &Metadata, file: &File) -> io::Result<()> {
    let is = file.metadata()?;
    if (other.uid(), other.gid()) != (is.uid(), is.gid()) {
        std::os::unix::fs::fchown(file, Some(other.uid()), Some(other.gid()))?;
    }
    Ok(())
}

fn attribute_names(file: &File) -> io::Result<Vec<OsString>> {
    use std::os::unix::ffi::OsStrExt;
    let mut names = vec![0; 64 << 10];
    let count = match rustix::fs::flistxattr(file, &mut names[..]) {
        Ok(count) => count,
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let names = names[..count].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.map(|name| OsStr::from_bytes(name).to_owned()).collect())
}

fn copy_attribute(old: &File, new: &File, name: &OsStr) -> io::Result<()> {
    let mut value = vec![0; 64 << 10];
    let count = match rustix::fs::fgetxattr(old, name, &mut value[..]) {
        Ok(count) => count,
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    Ok(rustix::fs::fsetxattr(new, name, &value[..count], rustix::fs::XattrFlags::empty())?)
}
