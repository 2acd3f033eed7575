//! A new qcow2 file gets its tables, and is read as whoever uses it will read it, before it takes the disk's place.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::ends;
use super::report::ms;
use super::run::{Run, mismatch, mismatches};
use crate::copy::{self, Exceptions, Scope};
use crate::error::{Error, ErrorKind};
use crate::image::{self, Image, ImageError, OpenOptions};
use crate::observe::Phase;
use crate::plan::{ImageDisk, image_error, open_options};
use crate::range::RangeSet;
use crate::request::VerifyPolicy;
use crate::target::NewQcow2;

/// A qcow2 file that has no tables yet.
pub(super) struct Sealable {
    pub(super) qcow2: Arc<NewQcow2>,
    /// Where it lies until it takes the disk's place.
    pub(super) path: PathBuf,
}

/// The new file is not what it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum ContainerFault {
    #[error("the new file describes a disk of {found} bytes instead of {expected}")]
    Size { found: u64, expected: u64 },
    #[error("the new file does not lead to the image")]
    OtherImage,
    #[error("the new file is not the image where nothing was written")]
    Differs,
}

impl Run<'_> {
    /// Makes the new file a qcow2 file, and compares what the reader finds in it; a raw disk needs nothing.
    ///
    /// It is nobody's disk yet, and gets its ends here: a failure leaves the old disk and the old seed.
    pub(super) fn seal(&mut self) -> Result<(), Error> {
        let started = Instant::now();
        if self.sealable.is_some() && self.linked.is_none() {
            self.finish_ends()?;
        }
        let Some(Sealable { qcow2, path }) = self.sealable.take() else { return Ok(()) };
        let sealed = self.watched(|| qcow2.seal());
        let checked = sealed.and_then(|()| match self.linked {
            None => self.check_sealed(&qcow2, &path),
            Some(_) => self.check_overlay(&qcow2, &path),
        });
        self.sealable = Some(Sealable { qcow2, path });
        self.durations.finish_ms = ms(started);
        checked
    }

    /// Opens the finished file by its own tables, all of which are checked.
    pub(super) fn open_sealed(
        &self,
        qcow2: &NewQcow2,
        (path, options): (&Path, &OpenOptions<'_>),
    ) -> Result<Box<dyn Image>, Error> {
        let unreadable = |fault: ImageError| {
            image_error(ErrorKind::Mismatch, fault)
                .hint_that("the new file does not read back as written: check the disk that it lies on")
        };
        let file = qcow2.reopen().map_err(|fault| self.error(fault.into()))?;
        let image = image::open_held(file, path, options).map_err(unreadable)?;
        crate::plan::check_tables(image.as_ref()).map_err(unreadable)?;
        let (found, expected) = (image.virtual_size(), self.fit.size);
        if found != expected {
            return Err(self.differs(ContainerFault::Size { found, expected }));
        }
        Ok(image)
    }

    pub(super) fn differs(&self, fault: ContainerFault) -> Error {
        Error::new(ErrorKind::Mismatch, fault)
            .at_path(&self.summary.target)
            .hint_that("the old disk is as it was: run the rebuild again, and report this if it comes back")
    }

    fn check_sealed(&mut self, qcow2: &NewQcow2, path: &Path) -> Result<(), Error> {
        let options = OpenOptions { backing_folders: &[], ..open_options(&self.options.image) };
        let disk = ImageDisk(self.open_sealed(qcow2, (path, &options))?);
        let scope = match self.options.verify {
            VerifyPolicy::Full => Scope::Everything,
            VerifyPolicy::Written => Scope::Data,
            VerifyPolicy::Off => return Ok(()),
        };
        let bounds = self.fit.ends();
        let noting = self.noting();
        let watch = self.watch(&noting, Phase::ReadBack, bounds.middle().len());
        let exceptions = Exceptions { kept: &RangeSet::default(), doubtful: &[] };
        let part = (self.digests(), bounds.middle());
        let read = copy::check(&self.pool, &disk, part, (scope, exceptions), &watch);
        let wrong: Vec<_> =
            read.map_err(|fault| self.error(fault))?.mismatches.iter().map(|piece| piece.range).collect();
        if !wrong.is_empty() {
            return Err(mismatches(&wrong, &self.repairs, &self.summary.target));
        }
        let (head, tail) = self.assembled_ends();
        match ends::are_complete(&disk, bounds, (&head, &tail)).map_err(|fault| self.error(fault))? {
            true => Ok(()),
            false => Err(mismatch((bounds.head, 1), &self.summary.target)),
        }
    }
}
