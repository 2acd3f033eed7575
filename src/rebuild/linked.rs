//! The disk as an overlay on the image: nothing is copied but the clusters in which the moved GPT lies.

use std::path::Path;

use super::container::ContainerFault;
use super::run::Run;
use crate::copy::{CopyError, Transferred};
use crate::error::{Error, ErrorKind, TargetState};
use crate::image::{FileIdentity, Image};
use crate::layout::{self, ReadBytes};
use crate::plan::{Ends, ImageBytes, ImageDisk, image_error, open_options};
use crate::range::ByteRange;
use crate::target::{Disk, NewQcow2};
use crate::verify::VerifiedChunk;

impl Run<'_> {
    /// Writes what differs from the image, in whole clusters.
    pub(super) fn link(&mut self) -> Result<(), Error> {
        self.stop_if_cancelled()?;
        self.state = TargetState::Partial;
        let linked = self.linked.as_ref().expect("the disk becomes an overlay");
        self.seen_image.check_unchanged(self.image.as_ref(), linked.whole.root)?;
        let Ends { head, tail } = self.fit.ends();
        let ends = [head, tail].into_iter().filter(|end| !end.is_empty());
        let ends = ends.map(|end| self.overlaid_chunk(end)).collect::<Result<_, _>>()?;
        let mut copied = Transferred::nothing(linked.chunks.clone(), ends);
        for range in self.own_clusters() {
            let chunk = self.overlaid_chunk(range)?;
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

    fn overlaid_chunk(&self, range: ByteRange) -> Result<VerifiedChunk, Error> {
        let chunk = VerifiedChunk::copy_of(range, &self.overlaid(range)?).map_err(CopyError::Memory);
        chunk.map_err(|fault| self.error(fault))
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
        if !layers_of(overlay.as_ref()).skip(1).eq(layers_of(self.image.as_ref())) {
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

    /// Whether the overlay says nothing outside of `own`: there it is what the files below are, and zero behind them.
    ///
    /// Where those files have holes does not matter, and is not asked: by what the page cache holds, a file system says
    /// now the one and now the other of a stretch that was allocated and never written.
    fn shows_through(&self, overlay: &dyn Image, own: &[ByteRange]) -> Result<bool, Error> {
        let starts = own.iter().map(|range| range.start()).chain([self.fit.size]);
        let ends = [0].into_iter().chain(own.iter().map(|range| range.end()));
        for (start, end) in ends.zip(starts) {
            if !overlay.says_nothing_of(ByteRange::between(start, end.max(start))).map_err(unreadable)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn unreadable(fault: crate::image::ImageError) -> Error {
    image_error(ErrorKind::ImageFault, fault)
}

/// The files of an image, and what each is read as.
fn layers_of(image: &dyn Image) -> impl Iterator<Item = ([u64; 3], [i64; 2], &'static str)> {
    let formats = image.info().chain.into_iter().map(|layer| layer.format);
    let numbers =
        |file: FileIdentity| ([file.device, file.inode, file.size], [file.modified_ns, file.changed_ns]);
    image
        .identities()
        .into_iter()
        .map(numbers)
        .zip(formats)
        .map(|((file, times), format)| (file, times, format))
}
