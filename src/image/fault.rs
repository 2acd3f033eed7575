//! `Fault`: one thing that is wrong with an image, told to whoever looks for them.

use super::error::ImageError;
use crate::range::ByteRange;

/// One thing that is wrong with an image.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) error: ImageError,
    /// Which bytes of its layer's disk it is about, where it is about some.
    pub(crate) guest: Option<ByteRange>,
    pub(crate) weight: Weight,
    /// How many more like it there are that nobody remembers.
    pub(crate) further: u64,
}

/// What a fault means for whoever wants to read the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weight {
    /// The image is not to be read.
    Refused,
    /// What is wrong is nothing that reading needs.
    Told,
}

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// What forbids to read the image.
    Refusals,
    /// Everything that is wrong with it.
    Everything,
}

/// What is done with each fault; an error ends the search.
pub(crate) type Sink<'a> = dyn FnMut(Fault) -> Result<(), ImageError> + 'a;

impl Fault {
    /// One for which the image is refused.
    pub(crate) fn refused(error: ImageError, guest: Option<ByteRange>) -> Self {
        Self { error, guest, weight: Weight::Refused, further: 0 }
    }

    /// One that does no harm to who reads.
    pub(super) fn told(error: ImageError, guest: Option<ByteRange>) -> Self {
        Self { error, guest, weight: Weight::Told, further: 0 }
    }
}

/// Tells all faults but the last, which is for the caller to return; `None` where there are none.
pub(super) fn all_but_last(
    mut faults: Vec<ImageError>,
    sink: &mut Sink<'_>,
) -> Result<Option<ImageError>, ImageError> {
    let last = faults.pop();
    faults.into_iter().try_for_each(|error| sink(Fault::refused(error, None)))?;
    Ok(last)
}

/// The sink of whoever wants to read the image: the first fault that forbids it is the answer.
pub(super) fn refuse(fault: Fault) -> Result<(), ImageError> {
    match fault.weight {
        Weight::Refused => Err(fault.error),
        Weight::Told => Ok(()),
    }
}
