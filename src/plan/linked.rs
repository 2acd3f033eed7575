//! The image of an overlay is decoded from end to end once; afterwards it is known by what its files are.

use std::path::Path;

use serde_json::Value;

use super::manifest::KnownManifest;
use super::open::{Check, CheckedImage, Later, decode_everything, open_checked};
use super::packed;
use crate::error::{Error, ErrorKind};
use crate::image::{Image, LayerInfo};
use crate::journal::{self, WholeImage};
use crate::observe::{Event, Observer};
use crate::request::{ExpectedDigest, ImageOptions, Linking, Preflight, Request};
use crate::verify::{DigestTable, Runs};

/// qemu takes the size that a qcow2 file says for so many whole sectors, and reads zeroes behind them.
const SECTOR: u64 = 512;

/// The image is another one when qemu reads it.
#[derive(Debug, thiserror::Error)]
#[error(
    "its disk has {size} bytes, which are no whole sectors: below an overlay qemu reads zeroes for the last {lost}"
)]
struct PartSector {
    size: u64,
    lost: u64,
}

/// What an overlay's image was found to be.
#[derive(Clone)]
pub(crate) struct LinkedImage {
    /// What the image is known by.
    pub(crate) files: Value,
    pub(crate) whole: WholeImage,
    /// The digests of its chunks.
    pub(crate) chunks: DigestTable,
    /// Whether that is news.
    pub(crate) is_news: bool,
}

/// Opens the image below an overlay; its file is not digested again where that was done and it has not changed.
pub(super) fn open(
    path: &Path,
    request: &Request,
    later: Later,
    observer: &dyn Observer,
) -> Result<CheckedImage, Error> {
    let options = &request.options;
    let mut image = options.image.clone();
    let mut check = Check {
        preflight: options.preflight,
        threads: options.threads,
        later,
        policies: &options.policies,
        most_bytes: packed::most_bytes(request),
    };
    if let Some(expected) = image.expect_digest
        && options.linking == Linking::Linked
        && check.preflight == Preflight::Auto
    {
        let unchecked = ImageOptions { expect_digest: None, ..image.clone() };
        let opened = open_checked(path, &unchecked, Check { preflight: Preflight::Tables, ..check }, &())?;
        let disk = opened.image.as_ref();
        let known = known(&options.state_dir, &files_of(disk), disk.virtual_size());
        if known.is_some_and(|(known, _)| known.file_digest == Some(in_words(expected))) {
            (image, check.preflight) = (unchecked, Preflight::Tables);
        }
    }
    open_checked(path, &image, check, observer)
}

/// What is known of the image where the disk becomes an overlay on it: from before, or because it is decoded now.
pub(super) fn examine(
    request: &Request,
    (image, decoded, manifest): (&dyn Image, Option<DigestTable>, Option<&KnownManifest>),
    observer: &dyn Observer,
) -> Result<Option<LinkedImage>, Error> {
    let options = &request.options;
    if options.linking != Linking::Linked {
        return Ok(None);
    }
    refuse_part_sectors(image)?;
    let files = files_of(image);
    let checked = options.image.expect_digest.filter(|_| options.preflight != Preflight::Tables);
    let file_digest = checked.map(in_words);
    // The manifest of a file that is the very one was made by decoding it.
    let proved = manifest.filter(|manifest| manifest.is_proved());
    let chunks = decoded.or_else(|| proved.map(|manifest| manifest.manifest.digests().clone()));
    let said = [chunks.as_ref().map(DigestTable::root), manifest.map(|manifest| manifest.used.root)];
    let agrees = |whole: &WholeImage| said.into_iter().flatten().all(|root| root == whole.root);
    let known = known(&options.state_dir, &files, image.virtual_size());
    if let Some((whole, chunks)) = known.filter(|(whole, _)| agrees(whole)) {
        let detail = "the image was decoded from end to end before, and has not changed".into();
        observer.event(&Event::Checked { name: "content", detail });
        let is_news = file_digest.is_some() && whole.file_digest != file_digest;
        let file_digest = file_digest.or(whole.file_digest);
        return Ok(Some(LinkedImage { files, whole: WholeImage { file_digest, ..whole }, chunks, is_news }));
    }
    let chunks = match chunks {
        Some(chunks) => chunks,
        None => {
            let path = request.instance.image.as_deref().unwrap_or(Path::new(""));
            decode_everything((image, path), options.threads, manifest, observer)?
        }
    };
    let whole = WholeImage { root: chunks.root(), file_digest };
    Ok(Some(LinkedImage { files, whole, chunks, is_news: true }))
}

/// What was noted of an image; without its chunks' digests it is decoded again, as the receipt needs them.
fn known(state_dir: &Path, files: &Value, virtual_size: u64) -> Option<(WholeImage, DigestTable)> {
    let whole = journal::known_image(state_dir, files)?;
    let chunks: Runs = journal::known_chunks(state_dir, files)?;
    let chunks = chunks.into_table(virtual_size).ok().filter(|chunks| chunks.root() == whole.root)?;
    Some((whole, chunks))
}

/// Fails if qemu would not read all of the image, or of a file below it; of a raw file it reads every byte.
fn refuse_part_sectors(image: &dyn Image) -> Result<(), Error> {
    let in_part = |layer: &LayerInfo| layer.format == "qcow2" && !layer.virtual_size.is_multiple_of(SECTOR);
    let Some(layer) = image.info().chain.into_iter().find(in_part) else { return Ok(()) };
    let fault = PartSector { size: layer.virtual_size, lost: layer.virtual_size % SECTOR };
    Err(Error::new(ErrorKind::Image, fault)
        .at_path(layer.path)
        .hint_that("leave --linked out: the disk then gets every byte of the image"))
}

/// What tells the image from every other one, and shows that it changed; never its path.
fn files_of(image: &dyn Image) -> Value {
    image.identities().into_iter().map(super::earlier::without_path).collect()
}

fn in_words(expected: ExpectedDigest) -> String {
    super::summary::digest_in_words(expected)
}
