//! Whether a new file may be put somewhere: never onto a disk of the instance, nor in the place of what is in use.

use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::aliases::ImageFile;
use super::data_disks::DataDisk;
use super::hold::{self, Hold};
use super::identity::open_path_only;
use super::in_use::{self, Excused, Wait};
use super::locked;
use super::open::{kind_name, real_path};
use super::refusal::{Refusal, Relation};
use super::topology::{Storage, Topology};

/// What must survive the new file: the disk that it is made from, what that is read from, the data disks.
pub(crate) struct MustSurvive<'a> {
    /// The disk, held.
    pub(crate) source: &'a Hold,
    /// The backing files of the disk.
    pub(crate) backing: &'a [ImageFile],
    /// The data disks.
    pub(crate) data_disks: &'a [DataDisk],
}

/// Everything that speaks against a new file at `path`, which may take the place of a plain file that is there.
///
/// What a file of that name would change is asked of its storage, so that no other name of a disk leads past it.
pub(crate) fn check_new_file(
    topology: &Topology,
    (what, path): (&'static str, &Path),
    survive: &MustSurvive<'_>,
) -> Vec<Refusal> {
    let mut refusals = Vec::from_iter(check_folder(path));
    let Some(place) = topology.storage_at(path) else { return refusals };
    let changes = |storage: &Storage| place.overlaps(&topology.again(storage));
    if changes(&survive.source.storage) {
        refusals.push(Refusal::OnItsSource { what, path: path.to_owned() });
    }
    for disk in survive.data_disks.iter().filter(|disk| changes(&disk.storage)) {
        refusals.push(Refusal::OnDataDisk { what, data_disk: disk.path.clone() });
    }
    let Ok(metadata) = path.symlink_metadata() else { return refusals };
    if !metadata.is_file() {
        let kind = metadata.file_type();
        let found = match () {
            () if kind.is_symlink() => "symbolic link",
            () if kind.is_block_device() => "block device",
            () => kind_name(&metadata),
        };
        refusals.push(Refusal::NoPlainFile { found });
        return refusals;
    }
    for file in survive.backing.iter().filter(|file| changes(&file.storage)) {
        refusals.push(Refusal::Image { relation: Relation::Same, path: file.path.clone() });
    }
    refusals.extend(users(topology, path));
    refusals
}

/// No file is made where the kernel keeps its own.
pub(crate) fn check_folder(path: &Path) -> Option<Refusal> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let real_folder = parent.canonicalize().ok();
    let of_system = |folder: &&str| real_folder.as_ref().is_some_and(|real| real.starts_with(folder));
    let folder = ["/dev", "/proc", "/sys"].into_iter().find(of_system)?;
    Some(Refusal::FileInSystemFolder { folder })
}

/// Who uses the file at `path`, and what keeps it from being replaced.
fn users(topology: &Topology, path: &Path) -> Vec<Refusal> {
    let looked_at = match open_path_only(path) {
        Ok(file) => file,
        Err(source) => return vec![Refusal::CannotRead { source }],
    };
    let mut refusals = Vec::new();
    refusals.extend(cannot_be_replaced(topology, &looked_at));
    let Some(storage) = topology.storage_at(path) else { return refusals };
    refusals.extend(in_use::standing(topology, &storage));
    let wait = if refusals.is_empty() { Wait::ForPassersBy } else { Wait::No };
    refusals.extend(hold::openers(topology, &storage, Excused::Readers(&[]), wait).0);
    let locked = File::open(path).ok().and_then(|file| locked::others(&file));
    refusals.extend(locked.filter(|_| refusals.is_empty()).map(|by| Refusal::Locked { who: by.who() }));
    refusals
}

/// A file that no other can take the place of.
fn cannot_be_replaced(topology: &Topology, looked_at: &File) -> Option<Refusal> {
    use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};
    let attributes = rustix::fs::statx(looked_at, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
        .map_or(StatxAttributes::empty(), |statx| statx.stx_attributes);
    if attributes.intersects(StatxAttributes::IMMUTABLE | StatxAttributes::APPEND) {
        return Some(Refusal::Immutable);
    }
    let is_mounted = || real_path(looked_at).is_ok_and(|real| topology.mounts.of_file(&real).is_some());
    (attributes.contains(StatxAttributes::MOUNT_ROOT) || is_mounted())
        .then_some(Refusal::NoPlainFile { found: "bind mount" })
}
