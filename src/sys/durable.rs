//! Folders that are still there after a power cut.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Makes a folder and its parents, each of them durable; only their owner may enter.
pub(crate) fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().ok_or(io::ErrorKind::NotFound)?;
    if !parent.as_os_str().is_empty() {
        make_folder(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }?;
    sync_folder(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Makes a folder and everything above it durable, up to the root of its file system.
pub(crate) fn sync_with_parents(folder: &Path) -> io::Result<()> {
    let folder = folder.canonicalize()?;
    let device = folder.metadata()?.dev();
    for folder in folder.ancestors() {
        if folder.metadata()?.dev() != device {
            break;
        }
        // A folder that may be passed and not read has been there before.
        match sync_folder(folder) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
            // Not every file system syncs folders; those that do not have their own way to keep names.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {}
            result => result?,
        }
    }
    Ok(())
}

/// Puts a whole file into its place: the old one or the new one is there, whenever the power goes.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_whole_with(path, |file| file.write_all(bytes))
}

/// The same for bytes that need not be in memory all at once.
pub(crate) fn write_whole_with(
    path: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let beside = path.with_extension("new");
    // Whatever a killed run, or somebody else, left there is not written into.
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(&beside)?;
    write(&mut file)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    path.parent().map_or(Ok(()), sync_folder)
}

/// What of a file system's content does not outlive the host's next start: its name, if it is such a one.
pub(crate) fn volatile(folder: &Path) -> io::Result<Option<&'static str>> {
    let kind = rustix::fs::statfs(folder)?.f_type;
    // linux/magic.h; the type's width differs between architectures.
    Ok(match u32::try_from(kind & 0xffff_ffff) {
        Ok(0x0102_1994) => Some("tmpfs"),
        Ok(0x8584_58f6) => Some("ramfs"),
        Ok(0x794c_7630) => Some("overlay"),
        _ => None,
    })
}
