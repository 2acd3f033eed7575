//! What was typed of a capture, as the library wants it.

use std::path::Path;

use reimage::{BadSectors, CaptureRequest, ManifestPlace, Packing, Replace, WholeDigest};

use super::{apply_disk, apply_guard, read_instance, state_dir};
use crate::args::{CaptureArgs, CompressArg};
use crate::exit::Failure;

/// The request of `capture`.
pub(crate) fn of_capture(args: &CaptureArgs, folder: Option<&Path>) -> Result<CaptureRequest, Failure> {
    let mut instance = args.instance.as_deref().map(read_instance).transpose()?.unwrap_or_default();
    let image = match (&args.first, &args.second) {
        (Some(disk), Some(image)) => {
            instance.system_disk.path.clone_from(disk);
            image
        }
        // The instance file has named the disk.
        (Some(image), None) => image,
        (None, _) => {
            return Err(Failure::usage("no file is named that the image will be")
                .hinting("give SYSTEM_DISK IMAGE, or IMAGE with --instance FILE"));
        }
    };
    apply_disk(&mut instance, args.source.disk_format, &args.guard);
    let mut request = CaptureRequest::of_instance(instance, image);
    let new = &args.image;
    request.packing = match new.compress {
        CompressArg::Zstd => Packing::Zstd,
        CompressArg::Zlib => Packing::Zlib,
        CompressArg::None => Packing::None,
    };
    // What is too large for the type is too large for a cluster.
    request.cluster_size = u32::try_from(new.cluster_size).unwrap_or(u32::MAX);
    request.manifest = match &new.manifest {
        None => ManifestPlace::Beside,
        Some(word) if word == Path::new("none") => ManifestPlace::Nowhere,
        Some(path) => ManifestPlace::At(path.clone()),
    };
    request.replace = if new.replace { Replace::Existing } else { Replace::Refuse };
    let skips = args.source.skip_bad_sectors;
    request.bad_sectors = if skips { BadSectors::FillZeroes } else { BadSectors::Fail };
    let options = &mut request.options;
    apply_guard(options, &args.guard);
    options.image.allow_backing.clone_from(&args.source.allow_backing);
    options.whole_digest = if args.run.whole_digest { WholeDigest::Compute } else { WholeDigest::Skip };
    options.threads = args.run.threads;
    options.stall_timeout = args.run.stall_timeout;
    options.state_dir = state_dir(folder)?;
    Ok(request)
}
