//! Everything that is wrong with an image, not only the first of it.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Inspection, inspect};
use crate::copy::{self, BadCluster, CopyError, Pool, Tables, Watch};
use crate::error::{Error, ErrorKind};
use crate::image::{self, Examined, Fault, FaultyImage, Image, ImageError, Scope, Weight};
use crate::observe::{CancelToken, Observer, Phase};
use crate::plan::{open_options, refuse_nested_disk};
use crate::range::ByteRange;
use crate::request::{ImageOptions, NestedFormat, Preflight};

/// How many faults are told; further ones are counted.
const MOST_TOLD: usize = 1000;
/// So many of these may be faults for which no image is refused, which must not hide one for which it is.
const MOST_HARMLESS: usize = 900;

/// One thing that is wrong with an image.
///
/// ```
/// let path = std::env::temp_dir().join("reimage-doc-finding.qcow2");
/// std::fs::write(&path, b"QFI\xfb\0\0\0\x04")?;
/// let report = reimage::check(&path, &reimage::ImageOptions::default(), &())?;
/// assert_eq!(report.findings[0].path, path);
/// assert!(report.findings[0].refused);
/// # std::fs::remove_file(&path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// What it is, as a word that programs know it by.
    pub kind: &'static str,
    /// The file of the chain that it is in.
    #[serde(serialize_with = "crate::error::path_text")]
    pub path: PathBuf,
    /// Where in that file, where it is about bytes of it.
    pub offset: Option<u64>,
    /// How many bytes.
    pub length: Option<u64>,
    /// Where in that file the table entry begins that says so, where one does.
    pub entry_offset: Option<u64>,
    /// Which bytes of that file's disk are concerned, where some are.
    pub guest_offset: Option<u64>,
    /// How many bytes.
    pub guest_length: Option<u64>,
    /// What is wrong, and which rule it breaks.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Whether a rebuild refuses the image for it; else reading does not need what is wrong.
    pub refused: bool,
}

/// What a check of an image found.
///
/// ```
/// let path = std::env::temp_dir().join("reimage-doc-check.raw");
/// std::fs::write(&path, [0; 4096])?;
/// let report = reimage::check(&path, &reimage::ImageOptions::default(), &())?;
/// assert!(!report.is_refused());
/// assert_eq!(report.inspection.unwrap().image.virtual_size, 4096);
/// # std::fs::remove_file(&path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct CheckReport {
    /// What the image is and holds; nothing where it is refused.
    #[serde(flatten)]
    pub inspection: Option<Inspection>,
    /// The first 1,000 faults; of those for which a rebuild refuses nothing, those among the first 900.
    pub findings: Vec<Finding>,
    /// How many there are.
    pub findings_total: u64,
    /// For how many of them a rebuild refuses the image.
    pub refused_total: u64,
    /// From which byte of the disk on no cluster was decoded, if that ended early.
    ///
    /// Where entries are faulty, no more is decoded than files of twice the length can hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undecoded_from: Option<u64>,
}

impl CheckReport {
    /// Whether a rebuild would refuse the image.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.refused_total > 0
    }

    fn add(&mut self, fault: &Fault) {
        let Fault { error, guest, weight, further } = fault;
        let refused = *weight == Weight::Refused;
        self.findings_total += 1 + further;
        if refused {
            self.refused_total += 1 + further;
        }
        if self.findings.len() < if refused { MOST_TOLD } else { MOST_HARMLESS } {
            self.findings.push(finding(error, *guest, refused));
        }
    }

    /// The same of what an error has told already.
    fn add_refused(&mut self, fault: &ImageError) {
        self.findings_total += 1;
        self.refused_total += 1;
        if self.findings.len() < MOST_TOLD {
            self.findings.push(finding(fault, fault.guest(), true));
        }
    }

    /// Of what forbids the image by itself.
    fn add_error(&mut self, error: ImageError, guest: Option<ByteRange>) {
        self.add(&Fault { error, guest, weight: Weight::Refused, further: 0 });
    }
}

fn finding(error: &ImageError, guest: Option<ByteRange>, refused: bool) -> Finding {
    let cause = std::error::Error::source(error);
    Finding {
        kind: error.code(),
        path: error.path().map(ToOwned::to_owned).unwrap_or_default(),
        offset: error.range().map(ByteRange::start),
        length: error.range().map(ByteRange::len),
        entry_offset: error.entry().map(ByteRange::start),
        guest_offset: guest.map(ByteRange::start),
        guest_length: guest.map(ByteRange::len),
        message: cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}")),
        hint: error.hint(),
        refused,
    }
}

/// Checks all metadata of an image and of the files below it, decodes every cluster, and tells all that is wrong.
///
/// Tables are walked and clusters decoded on threads that can open nothing. Where the tables are sound, this is also
/// what `inspect` does with `Preflight::Deep`; else what can be reached through sound entries is decoded all the same,
/// as far as `CheckReport::undecoded_from` says.
///
/// # Errors
///
/// As `inspect`, but for faults of the image, which are findings.
pub fn check(path: &Path, options: &ImageOptions, observer: &dyn Observer) -> Result<CheckReport, Error> {
    let mut report = CheckReport::default();
    let examined = image::examine(path, &open_options(options), &mut |fault| {
        report.add(&fault);
        Ok(())
    });
    let disk = match examined {
        Ok(Examined::Disk(disk)) => Some(disk),
        Ok(Examined::Packed) => None,
        Err(fault) => {
            report.add_error(fault, None);
            return Ok(report);
        }
    };
    if let Some(disk) = &disk {
        walk(disk, &mut report)?;
    }
    let refusal = match report.is_refused() {
        true => None,
        false => match inspect(path, options, Preflight::Deep, observer) {
            Ok(inspection) => {
                report.inspection = Some(inspection);
                return Ok(report);
            }
            Err(refusal) if refusal.kind() == ErrorKind::Image => Some(refusal),
            Err(error) => return Err(error),
        },
    };
    if let Some(disk) = &disk {
        decode(disk, &mut report, observer)?;
        if options.nested == NestedFormat::Refuse {
            look_for_nested(disk, &mut report);
        }
    }
    if let Some(refusal) = refusal.filter(|_| !report.is_refused()) {
        let Some(fault) = image_fault(&refusal) else { return Err(refusal) };
        report.add_refused(fault);
    }
    Ok(report)
}

/// What an error says of the image.
fn image_fault(error: &Error) -> Option<&ImageError> {
    std::error::Error::source(error)?.downcast_ref()
}

fn walk(disk: &FaultyImage, report: &mut CheckReport) -> Result<(), Error> {
    let walked = copy::apart(|| {
        disk.walk(Scope::Everything, &mut |fault| {
            report.add(&fault);
            Ok(())
        })
    });
    match walked {
        Ok(()) => Ok(()),
        Err(CopyError::Image(fault)) => {
            report.add_error(fault, None);
            Ok(())
        }
        Err(fault) => Err(Error::new(ErrorKind::Internal, fault)),
    }
}

/// Decodes every cluster that shows in the image's disk, and tells of all that give no cluster.
fn decode(image: &dyn Image, report: &mut CheckReport, observer: &dyn Observer) -> Result<(), Error> {
    let failed = |fault| Error::new(ErrorKind::Internal, fault);
    let pool = Pool::start(None).map_err(|error| failed(CopyError::Memory(error)))?;
    let cancel = CancelToken::new();
    let bytes_total = image.virtual_size();
    let phase = Phase::Preflight;
    let watch = Watch { observer, cancel: &cancel, phase, bytes_total, stall_timeout: None };
    let first = report.findings.len();
    let tables = if report.is_refused() { Tables::Faulty } else { Tables::Sound };
    let found = |BadCluster { guest, error }| report.add_error(error, Some(guest));
    match copy::bad_clusters(&pool, (image, tables), found, &watch) {
        Ok(undecoded_from) => report.undecoded_from = undecoded_from,
        Err(CopyError::Image(fault)) => report.add_error(fault, None),
        Err(fault) => return Err(failed(fault)),
    }
    report.findings[first..].sort_by_key(|finding| finding.guest_offset);
    Ok(())
}

/// Whether what can be reached of the disk begins or ends like another disk image.
fn look_for_nested(image: &dyn Image, report: &mut CheckReport) {
    // What cannot be read there has been told.
    let Err(refusal) = refuse_nested_disk(image) else { return };
    if let Some(fault @ ImageError::NestedDisk { .. }) = image_fault(&refusal) {
        report.add_refused(fault);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_that_refuse_nothing_do_not_hide_one_that_does() {
        let fault = |weight| Fault {
            error: ImageError::TooScattered { path: "image".into() },
            guest: None,
            weight,
            further: 0,
        };
        let mut report = CheckReport::default();
        (0..3000).for_each(|_| report.add(&fault(Weight::Told)));
        assert!(!report.is_refused());
        (0..200).for_each(|_| report.add(&fault(Weight::Refused)));
        assert_eq!((report.findings_total, report.refused_total), (3200, 200));
        let refused = report.findings.iter().filter(|finding| finding.refused).count();
        assert_eq!((report.findings.len(), refused), (MOST_TOLD, 100));
    }
}
