//! `Fault`: one thing that is wrong with an image, told to whoever looks for them.

use super::error::ImageError;
use crate::range::ByteRange;

/// One thing that is wrong with an image.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) error: ImageError,
    #[expect(dead_code, reason = "for whoever lists all faults")]
    /// Which bytes of its layer's disk it is about, where it is about some.
    pub(crate) guest: Option<ByteRange>,
    pub(crate) weight: Weight,
}

/// What a fault means for whoever wants to read the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weight {
    /// The image is not to be read.
    Refused,
    #[expect(dead_code, reason = "for whoever lists all faults")]
    /// What is wrong is nothing that reading needs.
    Told,
}

/// What is done with each fault; an error ends the search.
pub(crate) type Sink<'a> = dyn FnMut(Fault) -> Result<(), ImageError> + 'a;

impl Fault {
    /// One for which the image is refused.
    pub(super) fn refused(error: ImageError, guest: Option<ByteRange>) -> Self {
        Self { error, guest, weight: Weight::Refused }
    }

    #[expect(dead_code, reason = "for whoever lists all faults")]
    /// One that does no harm to who reads.
    pub(super) fn told(error: ImageError, guest: Option<ByteRange>) -> Self {
        Self { error, guest, weight: Weight::Told }
    }
}

/// The sink of whoever wants to read the image: the first fault that forbids it is the answer.
pub(super) fn refuse(fault: Fault) -> Result<(), ImageError> {
    match fault.weight {
        Weight::Refused => Err(fault.error),
        Weight::Told => Ok(()),
    }
}
