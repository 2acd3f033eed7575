//! Whether the image fits the disk: size, room, sector size, and where the backup GPT goes.

use std::path::Path;

use super::packed::is_all_at_hand;
use super::{Container, Glimpse, unreadable};
use crate::error::{Error, ErrorKind};
use crate::guard::{Claim, Held};
use crate::image::{Image, TableReport};
use crate::layout::{self, LayoutError, Patch, ReadBytes, Relocation};
use crate::range::ByteRange;
use crate::request::{GptPolicy, Linking, Placement, Request};
use crate::target::Target;
use crate::verify::CHUNK;

/// The least that counts as the disk's last chunk: a backup GPT and every known label at the end lie in it.
const LEAST_TAIL: u64 = 1 << 20;

/// How the image will lie on the disk.
pub(crate) struct Fit {
    /// The disk's size in bytes when the run has ended; supposed as long as `at_most` has another.
    pub(crate) size: u64,
    /// The most that it can become, of a new file for an image whose length nothing tells.
    pub(crate) at_most: Option<u64>,
    pub(crate) relocation: Option<Relocation>,
    /// The qcow2 file that the disk will be; `None` of a raw one.
    pub(crate) container: Option<Container>,
}

/// What does not fit.
#[derive(Debug, thiserror::Error)]
enum Misfit {
    #[error("the image's disk has {virtual_size} bytes and the target {size}")]
    TooSmall { virtual_size: u64, size: u64 },
    #[error("a device has the size it has ({size} bytes), and {asked} were asked for")]
    DeviceSize { size: u64, asked: u64 },
    #[error("the file has {size} bytes, and writing in place does not shrink it to {asked}")]
    Shrinks { size: u64, asked: u64 },
    #[error("{path:?} is to be written in place and does not exist")]
    NothingInPlace { path: std::path::PathBuf },
    #[error("the file system has {free} bytes free, and the image holds {needed}")]
    NoRoom { free: u64, needed: u64 },
    #[error("the disk had {kept} bytes when it was kept, and has {size} now")]
    OtherSize { kept: u64, size: u64 },
    #[error("the file system cannot be asked for its free room")]
    Unknown(#[source] std::io::Error),
}

impl Fit {
    /// Compares image and disk; the disk is looked at through its claim.
    pub(crate) fn find(
        request: &Request,
        (image, tables): (&dyn Image, TableReport),
        claim: &Claim,
        brought: Option<&dyn Target>,
    ) -> Result<Self, Error> {
        let container = Container::find(request, image, claim)?;
        let follows_image = matches!(claim.held(), Held::NewFile { .. }) && request.options.size.is_none();
        let at_most = (follows_image && !image.is_measured()).then(|| {
            container
                .as_ref()
                .map_or(image.most_bytes(), |container| container.most_bytes(image.most_bytes()))
        });
        let size = size_of(request, image, claim)?.min(at_most.unwrap_or(u64::MAX));
        let size = size_in(container.as_ref(), size, claim.path())?;
        let sector = match (claim.held(), brought) {
            (Held::Device { sector_size, .. }, _) => *sector_size,
            (_, Some(target)) => target.sector_size(),
            _ => 1,
        };
        let about = |fault| layout_error(fault, image, claim.path());
        layout::fits_sector(&Glimpse(image), sector).map_err(about)?;
        // What an image holds that is not decoded yet is not known.
        if is_all_at_hand(image) && request.options.linking == Linking::Copy {
            check_room(request, tables, claim)?;
        }
        let relocation = match request.options.gpt {
            GptPolicy::Keep => None,
            // What is wrong with it is told when the length is known that it depends on.
            GptPolicy::Relocate if !image.is_measured() => relocation(image, size, sector).ok().flatten(),
            GptPolicy::Relocate => relocation(image, size, sector).map_err(about)?,
        };
        Ok(Self { size, at_most, relocation, container })
    }

    /// A disk that gets the content back that it had: a device must have the size that it had.
    pub(crate) fn back(kept: u64, claim: &Claim) -> Result<Self, Error> {
        let is_fixed = matches!(claim.held(), Held::Device { .. } | Held::Promised(_));
        if is_fixed && claim.size() != kept {
            let fault = Misfit::OtherSize { kept, size: claim.size() };
            return Err(Error::new(ErrorKind::DoesNotFit, fault)
                .at_path(claim.path())
                .hint_that("give the volume the size back that it had"));
        }
        Ok(Self { size: kept, at_most: None, relocation: None, container: None })
    }

    /// Decides what was supposed of the disk's size: the image's disk has that many bytes.
    pub(crate) fn settle(&mut self, virtual_size: u64, target: &Path) -> Result<(), Error> {
        if self.at_most.take().is_some() {
            self.size = size_in(self.container.as_ref(), virtual_size, target)?;
        }
        Ok(())
    }

    /// The most bytes that the disk can have when the run has ended.
    pub(crate) fn most_bytes(&self) -> u64 {
        self.at_most.unwrap_or(self.size)
    }

    /// What differs from the image because the backup GPT moves.
    pub(crate) fn patches(&self) -> &[Patch] {
        self.relocation.as_ref().map_or(&[], |relocation| &relocation.patches)
    }

    /// Both ends of the disk, which are written last.
    pub(crate) fn ends(&self) -> Ends {
        match self.at_most {
            // Where its tail lies is not known yet.
            Some(most) => Ends::open(most),
            None => Ends::of(self.size),
        }
    }
}

/// The two ends of a disk, which are invalidated first and written last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) head: ByteRange,
    pub(crate) tail: ByteRange,
}

impl Ends {
    /// Those of a disk of `size` bytes: whole chunks, but for the disk's end.
    pub(crate) fn of(size: u64) -> Self {
        let head = ByteRange::between(0, size.min(CHUNK));
        let tail_start = size.saturating_sub(LEAST_TAIL) / CHUNK * CHUNK;
        Self { head, tail: ByteRange::between(tail_start.max(head.end()), size) }
    }

    /// Those of a disk whose end is not known: all behind the head is the middle.
    fn open(most: u64) -> Self {
        Self { head: ByteRange::between(0, most.min(CHUNK)), tail: ByteRange::between(most, most) }
    }

    /// What lies between them.
    pub(crate) fn middle(self) -> ByteRange {
        ByteRange::between(self.head.end(), self.tail.start())
    }
}

/// What the backup GPT's move changes on a disk of that size and sector size (1 for a file); `None` where
/// there is nothing to move.
pub(crate) fn relocation(
    image: &dyn Image,
    size: u64,
    disk_sector: u32,
) -> Result<Option<Relocation>, LayoutError> {
    relocation_of(&Glimpse(image), (GptPolicy::Relocate, size), disk_sector)
}

/// The same of the image's disk as bytes, if it is to be moved; an image for other sectors is refused in any case.
pub(super) fn relocation_of(
    disk: &dyn ReadBytes,
    (policy, size): (GptPolicy, u64),
    disk_sector: u32,
) -> Result<Option<Relocation>, LayoutError> {
    match (layout::fits_sector(disk, disk_sector)?, policy) {
        (Some(sector), GptPolicy::Relocate) => layout::relocate(disk, size, sector).map(Some),
        _ => Ok(None),
    }
}

/// The size that a disk of `size` bytes gets in its file.
fn size_in(container: Option<&Container>, size: u64, path: &Path) -> Result<u64, Error> {
    container.map_or(Ok(size), |container| container.size_of(size, path))
}

fn size_of(request: &Request, image: &dyn Image, claim: &Claim) -> Result<u64, Error> {
    let (path, virtual_size) = (claim.path().to_owned(), image.virtual_size());
    let refuse =
        |kind, fault: Misfit, hint: &str| Err(Error::new(kind, fault).at_path(&path).hint_that(hint));
    let asked = request.options.size;
    let size = match (claim.held(), asked) {
        (Held::Device { .. } | Held::Promised(_), Some(asked)) if asked != claim.size() => {
            let fault = Misfit::DeviceSize { size: claim.size(), asked };
            return refuse(ErrorKind::Usage, fault, "leave --size out, or resize the volume first");
        }
        (Held::File { .. }, Some(asked))
            if request.options.placement == Placement::InPlace && asked < claim.size() =>
        {
            let fault = Misfit::Shrinks { size: claim.size(), asked };
            return refuse(ErrorKind::DoesNotFit, fault, "leave --in-place out to get a smaller file");
        }
        (Held::NewFile { .. }, _) if request.options.placement == Placement::InPlace => {
            let fault = Misfit::NothingInPlace { path: path.clone() };
            return refuse(ErrorKind::TargetUnusable, fault, "leave --in-place out to make a new file");
        }
        (_, Some(asked)) => asked,
        (Held::NewFile { .. }, None) => virtual_size,
        (_, None) => claim.size(),
    };
    // One whose length is supposed may be shorter, and is refused while it is copied if it is longer than the disk.
    if size < virtual_size && image.is_measured() {
        let fault = Misfit::TooSmall { virtual_size, size };
        return refuse(
            ErrorKind::DoesNotFit,
            fault,
            "choose a smaller image, or grow the disk (--size for a file)",
        );
    }
    Ok(size)
}

/// A new file takes what the image holds; a disk that is there has its room already, as far as can be told.
fn check_room(request: &Request, tables: TableReport, claim: &Claim) -> Result<(), Error> {
    let folder = match claim.held() {
        Held::NewFile { folder, .. } => folder,
        Held::File { folder, .. } if request.options.placement == Placement::Replace => folder,
        _ => return Ok(()),
    };
    let about = |fault| Error::new(ErrorKind::DoesNotFit, fault).at_path(claim.path());
    let file_system = rustix::fs::fstatvfs(folder).map_err(|error| about(Misfit::Unknown(error.into())))?;
    let free = file_system.f_bavail.saturating_mul(file_system.f_frsize);
    let needed = tables.data_bytes + tables.compressed_bytes;
    if needed <= free {
        return Ok(());
    }
    let hint = "free that much, or --in-place to write into the old disk";
    Err(about(Misfit::NoRoom { free, needed }).hint_that(hint))
}

pub(super) fn layout_error(fault: LayoutError, image: &dyn Image, target: &Path) -> Error {
    let top = || image.info().chain.first().map(|layer| layer.path.clone()).unwrap_or_default();
    let fault = match fault {
        LayoutError::Read(unread) => return unreadable(unread, &top()),
        fault => fault,
    };
    let hint = match &fault {
        LayoutError::SectorSize { .. } => "use an image that was made for this sector size",
        LayoutError::NotRelocatable(_) => "--gpt keep leaves the partition table as the image has it",
        LayoutError::PartialSector { .. } => "give the disk a size in whole sectors, or --gpt keep",
        LayoutError::TooSmall { .. } => "grow the disk, or --gpt keep",
        LayoutError::Read(_) => "check the image",
    };
    let path = if fault.kind() == ErrorKind::Image { top() } else { target.to_owned() };
    Error::new(fault.kind(), fault).at_path(path).hint_that(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_and_the_middle_make_up_the_disk_and_the_tail_is_long_enough() {
        for size in [0, 1, 511, 4096, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 512, 10 * CHUNK + 7]
        {
            let ends = Ends::of(size);
            assert_eq!((ends.head.start(), ends.tail.end()), (0, size), "{size}");
            assert_eq!(ends.head.len() + ends.middle().len() + ends.tail.len(), size, "{size}");
            assert!(ends.tail.start().is_multiple_of(CHUNK) || ends.tail.start() == size, "{size}");
            assert!(ends.tail.len() >= LEAST_TAIL || ends.middle().is_empty(), "{size}");
            assert!(ends.tail.len() <= CHUNK + LEAST_TAIL, "{size}");
        }
    }
}
