//! What else is wrong with an image that is refused: the first of it, and how much there is.

use std::path::Path;

use super::open::{image_error, open_options};
use crate::copy;
use crate::error::{Error, ErrorKind};
use crate::image::{self, Examined, ImageError, Scope};
use crate::request::ImageOptions;

/// How many faults a refusal shows.
const SHOWN: usize = 5;

/// The first faults for which an image is refused.
#[derive(Default)]
struct Faults {
    first: Vec<ImageError>,
    count: u64,
}

impl Faults {
    fn add(&mut self, error: ImageError, further: u64) {
        self.count += 1 + further;
        if self.first.len() < SHOWN {
            self.first.push(error);
        }
    }
}

/// The refusal of an image for that fault, with the next ones behind it where it has several.
///
/// They are looked for as `--check` does, but for what only decoding shows.
pub(super) fn refusal(fault: ImageError, path: &Path, options: &ImageOptions) -> Error {
    let Faults { first, count } = faults_of(path, options);
    let place = |fault: &ImageError| {
        (fault.code(), fault.path().map(Path::to_owned), fault.range(), fault.to_string())
    };
    let known = place(&fault);
    let error = image_error(ErrorKind::Image, fault);
    if count < 2 {
        return error;
    }
    let advice = error.hint().map(|hint| format!("{hint}; ")).unwrap_or_default();
    let others = first.into_iter().filter(|other| place(other) != known).take(SHOWN - 1);
    let others: Vec<_> = others.map(|other| image_error(ErrorKind::Image, other)).collect();
    let command = tells_all(path, options);
    error
        .hint_that(format!("{advice}{count} faults were found, and {command} tells all"))
        .counting(count)
        .and(others)
}

/// The same of a cluster that cannot be decoded: whether others can is not known.
pub(super) fn bad_cluster(refusal: Error, path: &Path, options: &ImageOptions) -> Error {
    if refusal.kind() != ErrorKind::Image {
        return refusal;
    }
    let advice = refusal.hint().map(|hint| format!("{hint}; ")).unwrap_or_default();
    let command = tells_all(path, options);
    refusal.hint_that(format!("{advice}{command} tells every cluster that cannot be decoded"))
}

/// The command that tells all that is wrong with an image.
fn tells_all(path: &Path, options: &ImageOptions) -> String {
    let mut command = "reimage inspect --check".to_owned();
    for folder in &options.allow_backing {
        command = format!("{command} --allow-backing {}", image::in_shell(folder));
    }
    format!("`{command} {}`", image::in_shell(path))
}

fn faults_of(path: &Path, options: &ImageOptions) -> Faults {
    let mut faults = Faults::default();
    let examined = image::examine(path, &open_options(options), &mut |fault| {
        faults.add(fault.error, fault.further);
        Ok(())
    });
    let walked = match examined {
        Ok(Examined::Disk(disk)) => copy::apart(|| {
            disk.walk(Scope::Refusals, &mut |fault| {
                faults.add(fault.error, fault.further);
                Ok(())
            })
        }),
        Ok(Examined::Packed) => Ok(()),
        Err(fault) => {
            faults.add(fault, 0);
            Ok(())
        }
    };
    if let Err(copy::CopyError::Image(fault)) = walked {
        faults.add(fault, 0);
    }
    faults
}
