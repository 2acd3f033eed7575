//! What a plan could only suppose of a packed image, decided when all of its disk is there.

use super::fit::{layout_error, relocation_of};
use super::open::image_error;
use super::summary::{Future, about_backup};
use super::{Fit, GptPlan, PlanSummary};
use crate::error::{Error, ErrorKind};
use crate::image::Image;
use crate::layout::{self, ReadBytes};
use crate::request::Options;

/// Decides anew what depends on the image's length and on its end: where the backup GPT goes, and what the disk holds
/// afterwards. `disk` is the image's disk, and `sector_size` that of the target.
///
/// # Errors
///
/// What the plan would have refused, had it seen the whole disk.
pub(crate) fn settle(
    (summary, fit): (&mut PlanSummary, &mut Fit),
    (image, options): (&dyn Image, &Options),
    (disk, sector_size): (&dyn ReadBytes, u32),
) -> Result<Vec<String>, Error> {
    let about = |fault| layout_error(fault, image, &summary.target);
    fit.relocation = relocation_of(disk, (options.gpt, fit.size), sector_size).map_err(about)?;
    let unreadable = |error| Error::new(ErrorKind::Image, error);
    summary.after = layout::describe(&Future { image: disk, fit }).map_err(unreadable)?;
    summary.image = image.info();
    summary.content = image.check_tables().map_err(|fault| image_error(ErrorKind::Image, fault))?;
    summary.size_after = fit.size;
    summary.gpt = GptPlan::of(fit.relocation.as_ref());
    let warnings: Vec<_> = fit.relocation.as_ref().and_then(about_backup).into_iter().collect();
    let news: Vec<_> = warnings.into_iter().filter(|warning| !summary.warnings.contains(warning)).collect();
    summary.warnings.extend(news.iter().cloned());
    summary.seal();
    Ok(news)
}
