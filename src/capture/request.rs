//! What is asked of a capture: values, and what contradicts itself in them.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::fault::{CaptureFault, Files};
use crate::error::{Error, ErrorKind};
use crate::image::Packing;
use crate::request::{InstanceSpec, Options, PowerState, Request};
use crate::seed::Replace;

/// The sizes that a new image's clusters may have.
const CLUSTER_SIZES: std::ops::RangeInclusive<u32> = 4 << 10..=2 << 20;
/// The cluster size of a new image where none is asked for: qemu's own.
const CLUSTER_SIZE: u32 = 64 << 10;

/// Everything that is asked of one capture.
///
/// ```
/// let request = reimage::CaptureRequest::new("/dev/vg0/i-0a1b", "/images/i-0a1b.qcow2");
/// assert_eq!((request.packing, request.cluster_size), (reimage::Packing::Zstd, 64 << 10));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CaptureRequest {
    /// The machine and its disks; its image and seed do not matter.
    pub instance: InstanceSpec,
    /// The file that the image will be.
    pub image: PathBuf,
    /// How the clusters are compressed.
    pub packing: Packing,
    /// Their size in bytes: a power of two from 4 KiB to 2 MiB.
    pub cluster_size: u32,
    /// Where the manifest goes.
    pub manifest: ManifestPlace,
    /// Whether an image and a manifest that are there already are replaced.
    pub replace: Replace,
    /// What becomes of sectors that cannot be read.
    pub bad_sectors: BadSectors,
    /// Of these a capture heeds what is about the disks, the run, and the disk's backing files (`image.allow_backing`).
    pub options: Options,
}

impl CaptureRequest {
    /// A capture of the system disk `disk` into the new file `image`, everything else as by default.
    ///
    /// Who is not root also names a folder for locks in `options.state_dir`.
    pub fn new(disk: impl Into<PathBuf>, image: impl Into<PathBuf>) -> Self {
        let mut instance = InstanceSpec::default();
        instance.system_disk.path = disk.into();
        Self::of_instance(instance, image)
    }

    /// A capture of an instance's system disk into the new file `image`, everything else as by default.
    pub fn of_instance(instance: InstanceSpec, image: impl Into<PathBuf>) -> Self {
        Self {
            instance,
            image: image.into(),
            packing: Packing::Zstd,
            cluster_size: CLUSTER_SIZE,
            manifest: ManifestPlace::Beside,
            replace: Replace::Refuse,
            bad_sectors: BadSectors::Fail,
            options: Options::default(),
        }
    }

    pub(super) fn disk(&self) -> &Path {
        &self.instance.system_disk.path
    }

    pub(super) fn files(&self) -> Files<'_> {
        Files { disk: self.disk(), image: &self.image }
    }

    /// The part of it that a rebuild of the same machine would ask as well.
    pub(super) fn of_the_machine(&self) -> Request {
        let instance = InstanceSpec { image: None, seed: None, ..self.instance.clone() };
        Request { instance, options: self.options.clone() }
    }

    /// What contradicts itself, or a machine that is said to run.
    pub(super) fn check(&self) -> Result<(), Error> {
        let usage = |fault, hint: &str| Err(Error::new(ErrorKind::Usage, fault).hint_that(hint));
        if self.disk().as_os_str().is_empty() {
            return usage(CaptureFault::NoDisk, "name it: reimage capture SYSTEM_DISK IMAGE");
        }
        let is_file_name = |path: &Path| {
            use std::os::unix::ffi::OsStrExt as _;
            path.file_name().is_some() && !path.as_os_str().as_bytes().ends_with(b"/")
        };
        if !is_file_name(&self.image) {
            return usage(CaptureFault::NoImage, "name it: reimage capture SYSTEM_DISK IMAGE");
        }
        if !(self.cluster_size.is_power_of_two() && CLUSTER_SIZES.contains(&self.cluster_size)) {
            let fault = CaptureFault::ClusterSize { bytes: self.cluster_size };
            return usage(fault, "give a power of two from 4K to 2M; 64K is what qemu uses");
        }
        match &self.manifest {
            ManifestPlace::At(path) if !is_file_name(path) || is_same_place(path, &self.image) => {
                return usage(CaptureFault::ManifestPlace, "give the manifest a file of its own");
            }
            _ => {}
        }
        if self.instance.power_state != PowerState::Stopped {
            let fault = CaptureFault::NotStopped { state: self.instance.power_state };
            return Err(Error::new(ErrorKind::NotStopped, fault).hint_that("stop the instance first"));
        }
        Ok(())
    }

    /// Refuses a name that says another format. Asked last: a disk that is named as the image is to hear that it is one.
    pub(super) fn check_name(&self) -> Result<(), Error> {
        let Some(named) = says_otherwise(&self.image) else { return Ok(()) };
        let fault = Error::new(ErrorKind::Usage, CaptureFault::NotNamedQcow2 { named });
        Err(fault.at_path(&self.image).hint_that("let it end in .qcow2"))
    }
}

/// The format that a file's name says, where that is another than qcow2; readers heed such a name.
fn says_otherwise(image: &Path) -> Option<&'static str> {
    const OTHERS: [(&str, &str); 4] = [("raw", "raw"), ("gz", "gzip"), ("xz", "xz"), ("zst", "zstd")];
    let ending = image.extension()?;
    let (_, named) = OTHERS.into_iter().find(|(name, _)| ending.eq_ignore_ascii_case(name))?;
    Some(named)
}

/// Whether two paths stand for one name in one folder.
fn is_same_place(left: &Path, right: &Path) -> bool {
    let place = |path: &Path| {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        Some((folder.unwrap_or(Path::new(".")).canonicalize().ok()?, path.file_name()?.to_owned()))
    };
    left == right || place(left).is_some_and(|left| place(right) == Some(left))
}

/// Where the manifest of a new image goes.
///
/// ```
/// assert_eq!(reimage::ManifestPlace::default(), reimage::ManifestPlace::Beside);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ManifestPlace {
    /// Beside the image, where `rebuild` finds it by itself: `IMAGE.manifest.json`.
    #[default]
    Beside,
    /// Into this file.
    At(PathBuf),
    /// Nowhere: none is made.
    Nowhere,
}

/// What becomes of sectors of the disk that cannot be read.
///
/// ```
/// assert_eq!(reimage::BadSectors::default(), reimage::BadSectors::Fail);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum BadSectors {
    /// The first ends the capture.
    #[default]
    Fail,
    /// The image has zeroes for them; report and manifest say where.
    FillZeroes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(change: impl FnOnce(&mut CaptureRequest), expected: Option<ErrorKind>) {
        let mut request = CaptureRequest::new("disk.raw", "image.qcow2");
        change(&mut request);
        assert_eq!(request.check().err().map(|error| error.kind()), expected, "{request:?}");
    }

    #[test]
    fn a_request_that_contradicts_itself_is_refused_before_anything_is_opened() {
        check(|_| {}, None);
        check(|request| request.instance.system_disk.path = PathBuf::new(), Some(ErrorKind::Usage));
        for path in ["", "folder/", "/", ".."] {
            check(|request| request.image = path.into(), Some(ErrorKind::Usage));
            check(|request| request.manifest = ManifestPlace::At(path.into()), Some(ErrorKind::Usage));
        }
        for bytes in [0, 1, 512, 2048, 4097, 3 << 12, 4 << 20, u32::MAX] {
            check(|request| request.cluster_size = bytes, Some(ErrorKind::Usage));
        }
        for bytes in [4 << 10, 64 << 10, 2 << 20] {
            check(|request| request.cluster_size = bytes, None);
        }
        for path in ["image.qcow2", "./image.qcow2", "../image.qcow2"] {
            let is_same = path != "../image.qcow2";
            let expected = is_same.then_some(ErrorKind::Usage);
            check(|request| request.manifest = ManifestPlace::At(path.into()), expected);
        }
        let running = |request: &mut CaptureRequest| request.instance.power_state = PowerState::Running;
        check(running, Some(ErrorKind::NotStopped));
    }

    #[test]
    fn a_name_that_says_another_format_is_refused() {
        let is_taken = |name: &str| CaptureRequest::new("disk.raw", name).check_name().is_ok();
        for name in ["image.raw", "image.RAW", "image.raw.gz", "image.qcow2.xz", "image.zst"] {
            assert!(!is_taken(name), "{name}");
        }
        for name in ["image", "image.img", "image.QCOW2", "image.raw.qcow2", "image-1.2"] {
            assert!(is_taken(name), "{name}");
        }
    }
}
