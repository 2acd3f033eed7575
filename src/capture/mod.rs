//! The order of a capture: ask, open, guard, pack beside the image's place, read back, publish, report.
//!
//! The disk is read and never written; until the last step the image has no name. What is packed is read back through
//! the image reader and compared with what was read from the disk.

mod bad;
mod carried;
mod fault;
mod pack;
mod padded;
mod place;
mod prepare;
mod report;
mod request;

pub use report::{CaptureDurations, CaptureReport};
pub use request::{BadSectors, CaptureRequest, ManifestPlace};

use std::time::Instant;

use crate::error::Error;
use crate::observe::{CancelToken, Observer};
use crate::rebuild::ms;
use pack::Capture;

/// Makes a private image of a stopped instance's system disk, and its manifest; the disk is only read.
///
/// ```no_run
/// # fn main() -> Result<(), reimage::Error> {
/// let request = reimage::CaptureRequest::new("/dev/vg0/i-0a1b", "/images/i-0a1b.qcow2");
/// let report = reimage::capture(&request, &(), &reimage::CancelToken::new())?;
/// assert!(report.filled.is_empty(), "every sector of the disk could be read");
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// The disk is always untouched. No image is left, or the old one where one was to be replaced, unless the error says
/// that the image is complete: where only its manifest could not be written, or a data disk changed.
pub fn capture(
    request: &CaptureRequest,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<CaptureReport, Error> {
    let started = Instant::now();
    let prepared = prepare::prepare(request, observer)?;
    let mut capture = Capture::begin((request, prepared), (observer, cancel))?;
    capture.durations.prepare_ms = ms(started);
    let packed = capture.pack()?;
    let read = capture.read_back(&packed)?;
    capture.refuse_changed_disk(&packed)?;
    let mut report = capture.publish(packed, read)?;
    report.durations.total_ms = ms(started);
    Ok(report)
}
