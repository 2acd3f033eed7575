//! What lies around the system disk: the image's files, the data disks, the place of the seed.

use std::path::{Path, PathBuf};

use super::ImageBytes;
use crate::error::Error;
use crate::guard::{self, DataDisk, ImageFile, Refusal, SightLimit, StorageIdentity, Topology};
use crate::image::{self, FileIdentity, Image, ImageError};
use crate::layout::{self, DiskLayout, ReadBytes as _};
use crate::range::ByteRange;
use crate::request::{Request, SightPolicy};

/// What was seen around the system disk.
pub(crate) struct Seen {
    pub(crate) topology: Topology,
    pub(crate) image_files: Vec<ImageFile>,
    pub(crate) data_disks: Vec<DataDisk>,
    pub(crate) limits: Vec<SightLimit>,
    /// What a person should know of the data disks.
    pub(crate) warnings: Vec<String>,
}

impl Seen {
    /// What the data disks carry, as far as they can be read.
    pub(super) fn layouts(&self) -> Vec<(PathBuf, DiskLayout)> {
        let named = |disk: &DataDisk| Some((disk.before().path.clone(), layout_of(disk)?));
        self.data_disks.iter().filter_map(named).collect()
    }
}

impl Seen {
    /// The data disks of which it is not known what they carry.
    pub(super) fn not_looked_into(&self) -> Vec<PathBuf> {
        let unknown = self.data_disks.iter().filter(|disk| layout_of(disk).is_none());
        unknown.map(|disk| disk.before().path.clone()).collect()
    }
}

/// A guest can write a qcow2 header into its raw disk: only name and content together make a disk one.
fn layout_of(disk: &DataDisk) -> Option<DiskLayout> {
    let (bytes, path) = (disk.bytes()?, &disk.before().path);
    let mut magic = [0; 4];
    let says_qcow2 = path.extension().is_some_and(|name| name.eq_ignore_ascii_case("qcow2"));
    if says_qcow2 && bytes.read_at(ByteRange::new(0, 4), &mut magic).is_ok() && magic == *b"QFI\xfb" {
        let options = image::OpenOptions {
            format: image::Format::Qcow2,
            nested: image::Nested::Allow,
            backing_folders: &[],
        };
        let image = image::open(path, &options).ok()?;
        super::open::check_tables(image.as_ref()).ok()?;
        return layout::describe(&ImageBytes(image.as_ref())).ok();
    }
    layout::describe(&bytes).ok()
}

/// Looks at everything that must survive, and notes what may not be.
pub(crate) fn survey(request: &Request, image: Option<&dyn Image>, refusals: &mut Vec<Error>) -> Seen {
    let identities = image.map(Image::identities).unwrap_or_default();
    let topology = Topology::of_this_host(near(request, &identities));
    let image_files = guard::image_files(&topology, identities.into_iter().map(storage_of));
    let writers = guard::image_writers(&topology, &image_files);
    refusals.extend(writers.into_iter().map(|(path, refusal)| refusal.about(&path)));
    let mut limits = Vec::new();
    let mut data_disks = Vec::new();
    for spec in &request.instance.data_disks {
        match DataDisk::look(&topology, spec, request.options.data_disk_digest, &mut limits) {
            Ok(disk) => data_disks.push(disk),
            Err(source) => {
                let refusal = Refusal::DataDiskUnknown { path: spec.path.clone(), source };
                refusals.push(refusal.about(&spec.path));
            }
        }
    }
    refusals.extend(
        data_disks.iter().filter_map(|disk| Some(disk.untold(&topology)?.about(&disk.before().path))),
    );
    if request.options.sight == SightPolicy::RequireFull {
        let about = |limit: &SightLimit| {
            Refusal::Unseen { limit: limit.clone() }.about(&request.instance.system_disk.path)
        };
        refusals.extend(limits.iter().map(about));
    }
    let warnings = data_disks.iter().flat_map(|disk| in_words(disk, &topology)).collect();
    let seen = Seen { topology, image_files, data_disks, limits, warnings };
    refusals.extend(check_seed_path(request, &seen).err());
    let state_dir = &request.options.state_dir;
    let below = ["locks", "journals", "seeds", "disks", "captures", "receipts", "images", "kept"]
        .map(|name| state_dir.join(name));
    for folder in std::iter::once(state_dir.clone()).chain(below) {
        let written = guard::check_written(&seen.topology, ("the state folder", &folder), &seen.data_disks);
        refusals.extend(written.err().map(|refusal| refusal.about(&folder)));
    }
    seen
}

/// Who uses a data disk now may change it meanwhile, and that is found afterwards.
fn in_words(disk: &DataDisk, topology: &Topology) -> Vec<String> {
    let path = &disk.before().path;
    disk.users(topology).iter().map(|user| format!("the data disk {path:?} is in use: {user}")).collect()
}

/// Every path that the run touches.
fn near(request: &Request, image: &[FileIdentity]) -> Vec<PathBuf> {
    let instance = &request.instance;
    let mut near = vec![instance.system_disk.path.clone(), request.options.state_dir.clone()];
    near.extend(image.iter().map(|file| file.path.clone()));
    near.extend(instance.data_disks.iter().map(|disk| disk.path.clone()));
    near.extend(instance.seed.iter().map(|seed| seed.path.clone()));
    near
}

/// Who writes the image that could not be opened because somebody does; the lock says only that.
pub(super) fn who_writes(fault: &Error) -> Vec<Error> {
    use std::error::Error as _;
    let fault = fault.source().and_then(|source| source.downcast_ref::<ImageError>());
    let Some(ImageError::BeingWritten { path }) = fault else { return Vec::new() };
    guard::writers_at(path).into_iter().map(|refusal| refusal.about(path)).collect()
}

/// A file of an image as the guard knows it.
pub(crate) fn storage_of(file: FileIdentity) -> (PathBuf, StorageIdentity) {
    let identity = match file.block_device {
        Some(device) => guard::device_identity(device),
        None => StorageIdentity::File { device: file.device, inode: file.inode },
    };
    (file.path, identity)
}

fn check_seed_path(request: &Request, seen: &Seen) -> Result<(), Error> {
    let Some(seed) = &request.instance.seed else { return Ok(()) };
    let checked = match same_new_file(&seed.path, &request.instance.system_disk.path) {
        true => Err(Refusal::Seed { path: seed.path.clone() }),
        false => guard::check_seed_path(&seen.topology, &seed.path, &seen.image_files, &seen.data_disks),
    };
    checked.map_err(|refusal| refusal.about(&seed.path))
}

/// Whether two paths name one file that does not exist yet; files that exist are compared by their numbers.
fn same_new_file(left: &Path, right: &Path) -> bool {
    let place = |path: &Path| {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new(".")).canonicalize().ok()?;
        Some((folder, path.file_name()?.to_owned()))
    };
    place(left).is_some_and(|left| place(right) == Some(left))
}
