//! A packed image: decoded once before a disk is overwritten, or only while it is copied where nothing is lost by it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use super::Glimpse;
use super::manifest::KnownManifest;
use super::open::{Check, Later, image_error};
use crate::copy::{self, CopyError, Pool, Watch};
use crate::error::{Error, ErrorKind};
use crate::image::{Glance, Image, ImageError, Packed, PartlyKnown, Step, Told};
use crate::layout::{self, ReadBytes};
use crate::observe::{CancelToken, Event, Observer, Phase};
use crate::range::ByteRange;
use crate::request::{PowerState, Preflight, Request, TargetFormat};
use crate::target::{Disk as _, HostDisk};

/// No disk is larger.
pub(crate) const ANY_SIZE: u64 = i64::MAX as u64;
/// Nothing that is kept of a disk is longer.
const LONGEST_LOOK: u64 = 4 << 20;
/// The parts of a disk in which its tables lie.
const HEAD: u64 = 1 << 20;
const TAIL: u64 = 64 << 10;

/// Whether a packed file is known to be what it should be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Vouched {
    ByDigest,
    ByNobody,
}

/// The disk of a packed image, as far as it is wanted decoded before anything else happens.
///
/// One pass over it comes first, in which every byte is decoded, where a disk is to be overwritten and no digest of the
/// file vouches for it, and where all of the disk is to be looked at. Else it is decoded once, while it is copied; but
/// unless a file is replaced whole, its length and a partition table must be seen before.
pub(super) fn unpack(
    packed: Packed,
    (manifest, path): (Option<&KnownManifest>, &Path),
    vouched: Vouched,
    (check, observer): (Check<'_>, &dyn Observer),
) -> Result<Box<dyn Image>, Error> {
    let is_decoded_later = match (check.preflight, check.later) {
        (Preflight::Deep, _) | (_, Later::LooksAround) => false,
        (Preflight::Tables, _) | (_, Later::LosesNothing | Later::ReplacesWhole) => true,
        (Preflight::Auto | Preflight::Digest, Later::Overwrites) => vouched == Vouched::ByDigest,
    };
    let told = match packed.told_size().or(manifest.map(|known| known.manifest.virtual_size())) {
        // One that is told to be too long is refused for that.
        Some(size) if is_decoded_later || size > check.most_bytes => Some(Told::Size(size)),
        None if is_decoded_later && check.later == Later::ReplacesWhole => {
            Some(Told::AtMost(check.most_bytes))
        }
        _ => None,
    };
    let glanced = match told {
        Some(told) => glance(packed.clone(), told, (check, observer))?,
        None => None,
    };
    let (image, detail) = match glanced {
        Some(image) => (image, "the outline"),
        None => (decode(packed, check, observer)?, "every checksum"),
    };
    observer.event(&Event::Checked { name: "image", detail: format!("{detail} of {path:?}") });
    if let Some(manifest) = manifest {
        manifest.check_size(image.as_ref(), path)?;
    }
    Ok(image)
}

/// Decodes all of a packed image, on threads that can open nothing; what a plan looks at is kept.
fn decode(packed: Packed, check: Check<'_>, observer: &dyn Observer) -> Result<Box<dyn Image>, Error> {
    let bytes_total = packed.packed_bytes();
    let mut pass = packed.pass(check.most_bytes);
    let step = |decoder: &mut _| {
        let step = pass.step(decoder)?;
        if step == Step::Kept {
            let wanted = looked_at(&pass);
            pass.keep(&wanted);
        }
        Ok((step != Step::Over).then(|| pass.packed_bytes_done()))
    };
    in_series(step, bytes_total, (check, observer))?;
    pass.end().map_err(|fault| image_error(ErrorKind::Image, fault))
}

/// Looks at the tables and labels of a packed image, as far as that costs little.
///
/// `None` where no table was seen that could lie where nobody has looked, and it must not be found later.
fn glance(
    packed: Packed,
    told: Told,
    (check, observer): (Check<'_>, &dyn Observer),
) -> Result<Option<Box<dyn Image>>, Error> {
    let packed_bytes = packed.packed_bytes();
    let mut glance = packed.glance(told);
    let ends = match told {
        Told::Size(size) => {
            vec![ByteRange::new(0, size.min(HEAD)), ByteRange::between(size.saturating_sub(TAIL), size)]
        }
        // One byte more, so that the end of a disk as long as the head is seen.
        Told::AtMost(_) => vec![ByteRange::new(0, HEAD), ByteRange::new(HEAD, 1)],
    };
    // In the order of the disk, so that one decoder comes by them.
    let mut to_see = BTreeSet::from_iter(ends);
    let mut seen = BTreeSet::new();
    let step = |decoder: &mut _| {
        let Some(range) = to_see.pop_first() else { return Ok(None) };
        if seen.insert(range) && glance.look(range, decoder)? {
            if let Told::AtMost(most) = told {
                let least = range.end();
                glance.suppose(supposed_size(&glance, (least, most), packed_bytes));
            }
            to_see.extend(looked_at(&glance).into_iter().filter(|range| !seen.contains(range)));
        }
        Ok(Some(0))
    };
    in_series(step, 0, (check, observer))?;
    let image = glance.end();
    if check.later == Later::ReplacesWhole {
        return Ok(Some(image));
    }
    let unreadable = |error| Error::new(ErrorKind::Image, error);
    let has_table = layout::describe(&Glimpse(image.as_ref())).map_err(unreadable)?.table.is_some();
    Ok((has_table || is_all_at_hand(image.as_ref())).then_some(image))
}

/// How long a disk may well be of which nothing tells it: what its GPT says, or the last member of a gzip file, or as
/// long as it may be, or as its file at least. It is said in the plan, and no more.
fn supposed_size(glance: &Glance, (least, most): (u64, u64), packed_bytes: u64) -> u64 {
    let by_table = layout::told_size(&AtLeast { known: glance, size: least }).ok().flatten();
    let by_member = || glance.last_word().filter(|size| (least..=most).contains(size));
    let by_disk = || (most < ANY_SIZE).then_some(most);
    by_table.or_else(by_member).or_else(by_disk).unwrap_or(packed_bytes).max(least)
}

/// The beginning of a disk whose length is not known.
struct AtLeast<'a> {
    known: &'a dyn PartlyKnown,
    size: u64,
}

impl ReadBytes for AtLeast<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, range: ByteRange, buffer: &mut [u8]) -> io::Result<()> {
        self.known.known(range, buffer);
        Ok(())
    }
}

/// Whether all of an image can be looked at, and its length is known.
pub(crate) fn is_all_at_hand(image: &dyn Image) -> bool {
    image.is_measured() && image.is_at_hand(ByteRange::new(0, image.virtual_size()))
}

fn in_series(
    step: impl FnMut(&mut crate::image::Decoder) -> Result<Option<u64>, ImageError> + Send,
    bytes_total: u64,
    (check, observer): (Check<'_>, &dyn Observer),
) -> Result<(), Error> {
    let internal = |fault: CopyError| Error::new(ErrorKind::Internal, fault);
    let pool = Pool::start(check.threads).map_err(|error| internal(CopyError::Memory(error)))?;
    let cancel = CancelToken::new();
    let watch =
        Watch { observer, cancel: &cancel, phase: Phase::Preflight, bytes_total, stall_timeout: None };
    copy::in_series(&pool, step, &watch).map_err(|fault| match fault {
        CopyError::Image(fault) => image_error(ErrorKind::Image, fault),
        fault => internal(fault),
    })
}

/// What a look at the disk's tables and labels would read, as far as it can be told from what has come.
fn looked_at(known: &dyn PartlyKnown) -> Vec<ByteRange> {
    let coming = Coming { known, asked: RefCell::default() };
    // What it finds in the zeroes that stand for the rest means nothing.
    let _ = layout::describe(&coming);
    coming.asked.into_inner()
}

/// The disk as far as it is known, which notes what is asked of it.
struct Coming<'a> {
    known: &'a dyn PartlyKnown,
    asked: RefCell<Vec<ByteRange>>,
}

impl ReadBytes for Coming<'_> {
    fn size(&self) -> u64 {
        self.known.size().unwrap_or(ANY_SIZE)
    }

    fn read_at(&self, range: ByteRange, buffer: &mut [u8]) -> io::Result<()> {
        if range.len() <= LONGEST_LOOK {
            self.asked.borrow_mut().push(range);
        }
        self.known.known(range, buffer);
        Ok(())
    }
}

/// How long the image's disk may be: longer than the system disk it is of no use.
pub(super) fn most_bytes(request: &Request) -> u64 {
    let path = &request.instance.system_disk.path;
    if let Some(size) = request.options.size {
        return size;
    }
    // What is qcow2 holds another disk than its file is long; and a machine that runs has its disks.
    let is_qcow2 = request.instance.system_disk.format == TargetFormat::Qcow2
        || path.extension().is_some_and(|name| name.eq_ignore_ascii_case("qcow2"));
    if is_qcow2 || request.instance.power_state != PowerState::Stopped {
        return ANY_SIZE;
    }
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() => found.len(),
        Ok(found) if found.file_type().is_block_device() => {
            HostDisk::open(path).map_or(ANY_SIZE, |disk| disk.size())
        }
        Ok(_) | Err(_) => ANY_SIZE,
    }
}

/// What a person should know of a packed image.
pub(super) fn warnings(image: &dyn Image) -> Vec<String> {
    let info = image.info();
    let Some((layer, codec)) = info.chain.first().and_then(|layer| Some((layer, layer.compression?))) else {
        return Vec::new();
    };
    let mut warnings = Vec::new();
    if layer.checksums == Some(false) {
        warnings.push(format!(
            "the {codec} stream of {:?} carries no checksums, so that damage may pass for data: give the file's \
             digest (--expect-digest)",
            layer.path
        ));
    }
    if !image.is_measured() {
        warnings.push(format!(
            "nothing tells how long the disk in {:?} is: {} bytes are supposed, and what is decoded decides",
            layer.path, info.virtual_size
        ));
    }
    if !is_all_at_hand(image) {
        warnings.push(format!(
            "{:?} is decoded once, while it is copied: not all of what its partitions hold was looked at \
             (--preflight deep decodes it before)",
            layer.path
        ));
    }
    warnings
}
