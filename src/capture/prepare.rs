//! Asks everything and writes nothing: the disk is examined, held and opened; the new files' places are looked at.

use std::os::unix::fs::FileTypeExt as _;
use std::path::PathBuf;

use super::carried;
use super::fault::CaptureFault;
use super::padded::Padded;
use super::place::Place;
use super::request::{CaptureRequest, ManifestPlace};
use crate::error::{Error, ErrorKind};
use crate::guard::{self, DataDisk, ImageFile, MustSurvive, ReadClaim, Refusal, Sight, Subject, Topology};
use crate::image::{self, Image, NewImage, Packing, TableReport};
use crate::layout::{self, DiskLayout, ReadBytes as _, marker};
use crate::observe::{Event, Observer};
use crate::plan::{self, ImageBytes, SeenImage, image_error};
use crate::range::ByteRange;
use crate::request::{Placement, TargetFormat};
use crate::seed::Replace;
use crate::sys::store;
use crate::verify;

/// A capture that may begin: the disk is held, and nothing has been written.
pub(super) struct Prepared {
    pub(super) claim: ReadClaim,
    /// The disk in whole sectors.
    pub(super) disk: Box<dyn Image>,
    pub(super) content: TableReport,
    pub(super) seen: SeenImage,
    pub(super) layout: Option<DiskLayout>,
    pub(super) data_disks: Vec<DataDisk>,
    pub(super) sight: Sight,
    pub(super) warnings: Vec<String>,
    /// What the image is to be.
    pub(super) format: NewImage,
    /// Where it goes; taken when the new file is made.
    pub(super) place: Option<Place>,
    /// Where the manifest will lie, if one is made.
    pub(super) manifest: Option<PathBuf>,
}

/// Asks everything; every refusal that can be found is collected.
pub(super) fn prepare(request: &CaptureRequest, observer: &dyn Observer) -> Result<Prepared, Error> {
    request.check()?;
    let options = &request.options;
    let mut refusals = Vec::new();
    refusals.extend(plan::check_state_dir(&options.state_dir).err());
    let seen = plan::survey(&request.of_the_machine(), None, &mut refusals);
    let place = noted(places(request), &mut refusals);
    let claim = match hold(request, &seen) {
        Ok(claim) => claim,
        Err(errors) => {
            refusals.extend(errors);
            return Err(Error::first_of(refusals));
        }
    };
    let disk = noted(open(request, &claim), &mut refusals);
    let backing = disk.as_ref().map(|disk| disk.identities()).unwrap_or_default().into_iter().skip(1);
    let manifest = manifest_path(request);
    let near = [request.disk().to_owned(), request.image.clone()].into_iter().chain(manifest.clone());
    let topology = Topology::of_this_host(near.collect());
    let backing = guard::image_files(&topology, backing.map(plan::storage_of));
    refusals.extend(check_new_files((request, manifest.as_ref()), &topology, (&claim, &backing), &seen));
    let (Some(disk), Some(place), true) = (disk, place, refusals.is_empty()) else {
        return Err(Error::first_of(refusals));
    };
    request.check_name()?;
    let checked = |name, detail: String| observer.event(&Event::Checked { name, detail });
    checked("disk", format!("nobody else uses {:?}", request.disk()));
    let content = plan::check_tables(disk.as_ref()).map_err(|fault| image_error(ErrorKind::Image, fault))?;
    checked("content", format!("all metadata of {:?}", request.disk()));
    refuse_unfinished(request, disk.as_ref())?;
    let mut warnings = seen.warnings;
    let layout = look_at(disk.as_ref(), &mut warnings);
    let (disk, rounded) = Padded::of(disk);
    warnings.extend(rounded);
    let format = new_image(request, disk.as_ref())?;
    warnings.extend(check_room(request, content, &place)?);
    for message in &warnings {
        observer.event(&Event::Warning { code: "capture", message: message.clone() });
    }
    let sight = Sight::of(claim.sight_limits().iter().chain(&seen.limits).cloned().collect());
    let (seen, data_disks) = (SeenImage::of(disk.as_ref(), None), seen.data_disks);
    let place = Some(place);
    Ok(Prepared { claim, disk, content, seen, layout, data_disks, sight, warnings, format, place, manifest })
}

/// What came out, or `None` and one refusal more.
fn noted<T>(result: Result<T, Error>, refusals: &mut Vec<Error>) -> Option<T> {
    result.map_err(|error| refusals.push(error)).ok()
}

fn hold(request: &CaptureRequest, seen: &plan::Seen) -> Result<ReadClaim, Vec<Error>> {
    let (disk, options) = (&request.instance.system_disk, &request.options);
    let subject = Subject {
        path: &disk.path,
        // What it is read as is decided when it is opened.
        format: TargetFormat::Raw,
        look_inside: &|_, _| Err(std::io::ErrorKind::Unsupported.into()),
        placement: Placement::InPlace,
        expect: &disk.expect,
        earlier_ptuuid: &|_| None,
        image_files: &[],
        data_disks: &seen.data_disks,
        seed: None,
        needed: &[],
        state_dir: &options.state_dir,
        open_readers: &options.open_readers,
        sight: options.sight,
    };
    let about = |refusal: Refusal| refusal.about(&disk.path);
    guard::hold_host_disk(&seen.topology, &subject)
        .map_err(|refusals| refusals.into_iter().map(about).collect())
}

/// Opens the disk that is held as what the machine uses it as.
fn open(request: &CaptureRequest, claim: &ReadClaim) -> Result<Box<dyn Image>, Error> {
    let path = request.disk();
    let unreadable = |source| Refusal::CannotRead { source }.about(path);
    let file = claim.reader().map_err(unreadable)?;
    let format = match request.instance.system_disk.format {
        TargetFormat::Raw => image::Format::Raw,
        TargetFormat::Qcow2 => image::Format::Qcow2,
        TargetFormat::Auto => told_format(request, &file).map_err(unreadable)??,
    };
    let backing_folders = &request.options.image.allow_backing;
    // A raw disk may begin with whatever its guest wrote there.
    let nested = match format {
        image::Format::Raw => image::Nested::Allow,
        _ => image::Nested::Refuse,
    };
    let options = image::OpenOptions { format, nested, backing_folders };
    image::open_file(file, path, &options).map_err(|fault| image_error(ErrorKind::Image, fault))
}

/// A guest can write a qcow2 header into its raw disk: only name and content together make a file one.
fn told_format(
    request: &CaptureRequest,
    file: &std::fs::File,
) -> std::io::Result<Result<image::Format, Error>> {
    if file.metadata()?.file_type().is_block_device() {
        return Ok(Ok(image::Format::Raw));
    }
    let path = request.disk();
    let says_qcow2 = path.extension().is_some_and(|name| name.eq_ignore_ascii_case("qcow2"));
    let mut magic = [0; 4];
    // A head that cannot be read says nothing.
    let read = store::read_up_to(file, &mut magic, 0);
    let holds_qcow2 = read.is_ok_and(|count| count == magic.len()) && magic == *b"QFI\xfb";
    let why = match (says_qcow2, holds_qcow2) {
        (false, false) => return Ok(Ok(image::Format::Raw)),
        (true, true) => return Ok(Ok(image::Format::Qcow2)),
        (true, false) => "its name says qcow2 and its content does not",
        (false, true) => "its content begins like qcow2 and its name does not say so",
    };
    Ok(Err(Error::new(ErrorKind::TargetUnusable, CaptureFault::Format { why }).at_path(path).hint_that(
        "say what the machine uses it as: --disk-format raw, or --disk-format qcow2 (a guest can write a qcow2 \
         header into its raw disk)",
    )))
}

fn manifest_path(request: &CaptureRequest) -> Option<PathBuf> {
    match &request.manifest {
        ManifestPlace::Beside => Some(verify::beside(&request.image)),
        ManifestPlace::At(path) => Some(path.clone()),
        ManifestPlace::Nowhere => None,
    }
}

/// The place of the image; a manifest that is not the new image's must not lie beside it, or be found in its own place.
fn places(request: &CaptureRequest) -> Result<Place, Error> {
    let place = Place::examine(&request.image, request.replace)?;
    let beside = verify::beside(&request.image);
    for path in manifest_path(request).into_iter().chain([beside]) {
        if request.replace == Replace::Refuse && path.symlink_metadata().is_ok() {
            return Err(Error::new(ErrorKind::Usage, CaptureFault::ManifestExists)
                .at_path(path)
                .hint_that("remove it, or say --replace"));
        }
    }
    if let Some(path) = manifest_path(request) {
        Place::examine(&path, Replace::Existing)?;
    }
    Ok(place)
}

fn check_new_files(
    (request, manifest): (&CaptureRequest, Option<&PathBuf>),
    topology: &Topology,
    (claim, backing): (&ReadClaim, &[ImageFile]),
    seen: &plan::Seen,
) -> Vec<Error> {
    let survive = MustSurvive { source: claim.hold(), backing, data_disks: &seen.data_disks };
    let mut errors = Vec::new();
    let mut places = vec![("the image", request.image.clone())];
    places.extend(manifest.map(|path| ("the manifest", path.clone())));
    if request.replace == Replace::Existing {
        // Whatever is found there goes with the old image.
        places.push(("the manifest", verify::beside(&request.image)));
        places.dedup_by(|left, right| left.1 == right.1);
    }
    for (what, path) in places {
        let found = guard::check_new_file(topology, (what, &path), &survive);
        errors.extend(found.into_iter().map(|refusal| refusal.about(&path)));
    }
    let writers = guard::image_writers(topology, backing);
    errors.extend(writers.into_iter().map(|(path, refusal)| refusal.about(&path)));
    errors
}

/// Half a disk is no image.
fn refuse_unfinished(request: &CaptureRequest, disk: &dyn Image) -> Result<(), Error> {
    let mut head = [0; marker::LEN];
    let range = ByteRange::new(0, marker::LEN as u64);
    // A head that cannot be read is found again when the disk is.
    if disk.virtual_size() < range.end() || ImageBytes(disk).read_at(range, &mut head).is_err() {
        return Ok(());
    }
    let Some(marker) = marker::read(&head).or_else(|| marker::torn(&head)) else { return Ok(()) };
    Err(Error::new(ErrorKind::TargetUnusable, CaptureFault::Unfinished { journal: marker.journal })
        .at_path(request.disk())
        .hint_that("run the rebuild again; when it has ended, capture the disk"))
}

/// What lies on the disk, and what of it a person should know; a disk whose tables cannot be read is captured as well.
fn look_at(disk: &dyn Image, warnings: &mut Vec<String>) -> Option<DiskLayout> {
    let bytes = ImageBytes(disk);
    let looked = layout::describe(&bytes).and_then(|layout| {
        warnings.extend(carried::warnings(&bytes, &layout)?);
        Ok(layout)
    });
    let unreadable = |error: &std::io::Error| {
        warnings.push(format!("what lies on the disk cannot be told: {error}"));
    };
    looked.inspect_err(unreadable).ok()
}

/// What the image is to be, if there can be such an image.
fn new_image(request: &CaptureRequest, disk: &dyn Image) -> Result<NewImage, Error> {
    let format = NewImage {
        virtual_size: disk.virtual_size(),
        cluster_size: request.cluster_size,
        packing: request.packing,
    };
    format.check().map_err(|fault| {
        Error::new(ErrorKind::DoesNotFit, fault)
            .at_path(&request.image)
            .hint_that("give a larger --cluster-size; 2M is the largest")
    })?;
    Ok(format)
}

/// What can be told of the room beforehand: how much is stored, where it is not compressed.
fn check_room(
    request: &CaptureRequest,
    content: TableReport,
    place: &Place,
) -> Result<Option<String>, Error> {
    let Some(free) = place.free_bytes() else { return Ok(None) };
    let stored = content.data_bytes + content.compressed_bytes;
    if stored <= free {
        return Ok(None);
    }
    // Of a device nobody tells which bytes are zero, and what compresses takes less.
    let is_device =
        std::fs::metadata(request.disk()).is_ok_and(|metadata| metadata.file_type().is_block_device());
    if request.packing == Packing::None && !is_device {
        return Err(Error::new(ErrorKind::DoesNotFit, CaptureFault::NoRoom { free, needed: stored })
            .at_path(&request.image)
            .hint_that("free that much, write to another disk, or let it be compressed"));
    }
    Ok(Some(format!(
        "the disk may hold {stored} bytes, and the image's file system has {free} free: that may not suffice"
    )))
}
