//! What else is wrong with an image that is refused: the first of it, and how much there is.

use std::path::Path;

use super::open::{image_error, open_options};
use crate::copy;
use crate::error::{Error, ErrorKind};
use crate::image::{self, Examined, Fault, ImageError, Scope};
use crate::request::{ImageFormat, ImageOptions, NestedFormat};

/// How many faults a refusal shows.
const SHOWN: usize = 5;

/// How many are counted. A wrong image may have one for each of its entries, and whoever is refused waits for the answer.
const COUNTED_MAX: u64 = 1000;

/// The first faults for which an image is refused.
#[derive(Default)]
struct Faults {
    first: Vec<ImageError>,
    count: u64,
}

impl Faults {
    /// Takes a fault in; one that ends the search is given back.
    fn take_in(&mut self, fault: Fault) -> Result<(), ImageError> {
        // Whatever else cannot be read takes as long to say so.
        if self.count >= COUNTED_MAX || matches!(fault.error, ImageError::Io { .. }) {
            return Err(fault.error);
        }
        self.count = self.count.saturating_add(1).saturating_add(fault.further);
        if self.first.len() < SHOWN {
            self.first.push(fault.error);
        }
        Ok(())
    }
}

/// The refusal of an image for that fault, with the next ones behind it where it has several.
///
/// They are looked for as `--check` does, but for what only decoding shows, and only up to `COUNTED_MAX`. The image must
/// be closed by then: its tables are read once more, and memory holds them once.
pub(super) fn refusal(fault: ImageError, path: &Path, options: &ImageOptions) -> Error {
    // The disk's own fault, and behind it are more of the kind: each takes its time.
    let is_unread = matches!(fault, ImageError::Io { .. });
    let place = |fault: &ImageError| {
        (fault.code(), fault.path().map(Path::to_owned), fault.range(), fault.to_string())
    };
    let known = place(&fault);
    let error = image_error(ErrorKind::Image, fault);
    if is_unread {
        return error;
    }
    let (Faults { first, count }, end) = faults_of(path, options);
    if count < 2 {
        return error;
    }
    let advice = error.hint().map(|hint| format!("{hint}; ")).unwrap_or_default();
    let others = first.into_iter().filter(|other| place(other) != known).take(SHOWN - 1);
    let others: Vec<_> = others.map(|other| image_error(ErrorKind::Image, other)).collect();
    let command = tells_all(path, options);
    let error = error.and(others);
    match end {
        End::Reached => error
            .hint_that(format!("{advice}{count} faults were found, and {command} tells all"))
            .counting(count),
        End::LeftOut => {
            error.hint_that(format!("{advice}more than {count} faults were found, and {command} tells all"))
        }
    }
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

/// The command that tells all that is wrong with an image which was opened so.
fn tells_all(path: &Path, options: &ImageOptions) -> String {
    let mut command = "reimage inspect --check".to_owned();
    match options.format {
        ImageFormat::Auto => {}
        ImageFormat::Raw => command.push_str(" --image-format raw"),
        ImageFormat::Qcow2 => command.push_str(" --image-format qcow2"),
    }
    if options.nested == NestedFormat::Allow {
        command.push_str(" --allow-nested-format");
    }
    for folder in &options.allow_backing {
        command = format!("{command} --allow-backing {}", image::in_shell(folder));
    }
    let looks_like_flag = path.as_os_str().as_encoded_bytes().starts_with(b"-");
    if looks_like_flag {
        command.push_str(" --");
    }
    format!("`{command} {}`", image::in_shell(path))
}

/// Whether the search came to its end.
enum End {
    Reached,
    LeftOut,
}

fn faults_of(path: &Path, options: &ImageOptions) -> (Faults, End) {
    let mut faults = Faults::default();
    let examined = image::examine(path, &open_options(options), &mut |fault| faults.take_in(fault));
    let walked = match examined {
        Ok(Examined::Disk(disk)) => {
            copy::apart(|| disk.walk(Scope::Refusals, &mut |fault| faults.take_in(fault)))
        }
        Ok(Examined::Packed) => Ok(()),
        Err(fault) => Err(copy::CopyError::Image(fault)),
    };
    let end = match walked {
        Ok(()) => End::Reached,
        // Nothing behind it could be looked at, or it ended the search.
        Err(copy::CopyError::Image(fault)) => match faults.take_in(Fault::refused(fault, None)) {
            Ok(()) => End::Reached,
            Err(_) => End::LeftOut,
        },
        Err(_) => End::LeftOut,
    };
    (faults, end)
}
