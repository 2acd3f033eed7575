//! The disk as an overlay on the image: nothing is copied but the clusters in which the moved GPT lies.

use std::path::Path;

use super::container::ContainerFault;
use super::run::Run;
use crate::copy::{CopyError, Transferred};
use crate::error::{Error, ErrorKind, TargetState};
use crate::image::{Extent, ExtentKind, FileIdentity, Image};
use crate::layout::{self, ReadBytes};
use crate::plan::{ImageBytes, ImageDisk, image_error, open_options};
use crate::range::ByteRange;
use crate::target::{Disk, NewQcow2};
use crate::verify::VerifiedChunk;

impl Run<'_> {
    /// Writes what differs from the image, in whole clusters.
    pub(super) fn link(&mut self) -> Result<(), Error> {
        self.stop_if_cancelled()?;
        self.state = TargetState::Partial;
        let root = self.linked.as_ref().expect("the disk becomes an overlay").whole.root;
        self.seen_image.check_unchanged(self.image.as_ref(), root)?;
        let mut copied = Transferred::nothing(self.image.virtual_size());
        for range in self.own_clusters() {
            let bytes = self.overlaid(range)?;
            let chunk = VerifiedChunk::copy_of(range, &bytes).map_err(CopyError::Memory);
            let chunk = chunk.map_err(|fault| self.error(fault))?;
            self.target.write(&chunk).map_err(|fault| self.error(fault.into()))?;
            copied.bytes_written += range.len();
        }
        self.target.sync().map_err(|fault| self.error(fault.into()))?;
        self.copied = Some(copied);
        self.state = TargetState::Written;
        Ok(())
    }

    /// The clusters that the overlay holds itself, in order.
    fn own_clusters(&self) -> Vec<ByteRange> {
        let container = self.fit.container.as_ref().expect("an overlay is a qcow2 file");
        let cluster = container.shape.cluster();
        let mut clusters: Vec<_> = self
            .fit
            .patches()
            .iter()
            .flat_map(|patch| {
                let start = patch.range.start() / cluster * cluster;
                ByteRange::between(start, patch.range.end()).cut(cluster)
            })
            .map(|part| ByteRange::between(part.start(), (part.start() + cluster).min(self.fit.size)))
            .collect();
        clusters.sort_unstable();
        clusters.dedup();
        clusters
    }

    /// What the disk is to hold there: the image, zeroes behind it, and the moved GPT.
    fn overlaid(&self, range: ByteRange) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; usize::try_from(range.len()).expect("a cluster fits in memory")];
        let of_image = range.intersection(ByteRange::new(0, self.image.virtual_size()));
        if let Some(of_image) = of_image {
            let read = ImageBytes(self.image.as_ref()).read_at(of_image, &mut bytes);
            read.map_err(|error| Error::new(ErrorKind::ImageFault, error))?;
        }
        layout::apply(self.fit.patches(), range, &mut bytes);
        Ok(bytes)
    }

    /// Reads the finished overlay: below it is the very image, which shows through all but our own clusters.
    pub(super) fn check_overlay(&mut self, qcow2: &NewQcow2, path: &Path) -> Result<(), Error> {
        let container = self.fit.container.as_ref().expect("an overlay is a qcow2 file");
        let image_path = container.shape.backing.as_ref().map(|backing| backing.path.as_path());
        let folder = image_path.and_then(Path::parent).unwrap_or(Path::new("/")).to_owned();
        let mut folders = self.options.image.allow_backing.clone();
        folders.push(folder);
        let mut options = open_options(&self.options.image);
        options.backing_folders = &folders;
        let overlay = self.open_sealed(qcow2, (path, &options))?;
        let numbers =
            |file: FileIdentity| (file.device, file.inode, file.size, file.modified_ns, file.changed_ns);
        let below = overlay.identities().into_iter().skip(1).map(numbers);
        if !below.eq(self.image.identities().into_iter().map(numbers)) {
            return Err(self.differs(ContainerFault::OtherImage));
        }
        let own = self.own_clusters();
        if !self.shows_through(overlay.as_ref(), &own)? {
            return Err(self.differs(ContainerFault::Differs));
        }
        let disk = ImageDisk(overlay);
        for range in own {
            let right = self.overlaid(range)?;
            let mut found = vec![0; right.len()];
            disk.read(range, &mut found).map_err(|fault| self.error(fault.into()))?;
            if found != right {
                return Err(self.differs(ContainerFault::Differs).at_range(range));
            }
        }
        Ok(())
    }

    /// Whether every byte outside of `own` comes from where the image has it, and is zero behind the image.
    fn shows_through(&self, overlay: &dyn Image, own: &[ByteRange]) -> Result<bool, Error> {
        let virtual_size = self.image.virtual_size();
        let mut between = Vec::new();
        let mut at = 0;
        for range in own {
            between.push(ByteRange::between(at, range.start().max(at)));
            at = range.end();
        }
        between.push(ByteRange::between(at, self.fit.size.max(at)));
        for part in between {
            let inside = ByteRange::between(part.start().min(virtual_size), part.end().min(virtual_size));
            if !same_extents(overlay, self.image.as_ref(), inside).map_err(unreadable)? {
                return Ok(false);
            }
            let mut at = part.start().max(virtual_size);
            while at < part.end() {
                let extents = overlay.map(ByteRange::between(at, part.end())).map_err(unreadable)?;
                if extents.iter().any(|extent| extent.kind != ExtentKind::Zero) {
                    return Ok(false);
                }
                at = extents.last().map_or(part.end(), |extent| extent.range.end());
            }
        }
        Ok(true)
    }
}

fn unreadable(fault: crate::image::ImageError) -> Error {
    image_error(ErrorKind::ImageFault, fault)
}

/// Whether the overlay takes `range` from the layers below exactly as the image does.
fn same_extents(
    overlay: &dyn Image,
    image: &dyn Image,
    range: ByteRange,
) -> Result<bool, crate::image::ImageError> {
    let mut at = range.start();
    let (mut above, mut below) = (Vec::new().into_iter(), Vec::new().into_iter());
    let (mut upper, mut lower): (Option<Extent>, Option<Extent>) = (None, None);
    while at < range.end() {
        let rest = ByteRange::between(at, range.end());
        let upper_now = next(&mut upper, &mut above, rest, overlay)?;
        let lower_now = next(&mut lower, &mut below, rest, image)?;
        let end = upper_now.range.end().min(lower_now.range.end());
        let both = ByteRange::between(at, end);
        if upper_now.part(both).kind != one_layer_down(lower_now.part(both).kind) {
            return Ok(false);
        }
        at = end;
    }
    Ok(true)
}

/// The extent that holds the first byte of `rest`.
fn next(
    current: &mut Option<Extent>,
    mapped: &mut std::vec::IntoIter<Extent>,
    rest: ByteRange,
    image: &dyn Image,
) -> Result<Extent, crate::image::ImageError> {
    while current.is_none_or(|extent| !extent.range.contains(rest.start())) {
        let following = mapped.next();
        if following.is_none() {
            *mapped = image.map(rest)?.into_iter();
        }
        *current = following;
    }
    Ok(current.expect("the loop ends with one"))
}

fn one_layer_down(kind: ExtentKind) -> ExtentKind {
    match kind {
        ExtentKind::Data { layer, host_offset } => ExtentKind::Data { layer: layer + 1, host_offset },
        ExtentKind::Compressed { layer, host_offset, host_len, skip } => {
            ExtentKind::Compressed { layer: layer + 1, host_offset, host_len, skip }
        }
        kind => kind,
    }
}
