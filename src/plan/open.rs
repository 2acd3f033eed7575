//! Opens an image and checks of it what `--preflight` wants checked before anything is written.

use std::io;
use std::num::NonZeroUsize;
use std::path::Path;

use super::manifest::{CheckFault, FETCH_BOTH, KnownManifest};
use super::{ImageBytes, unreadable};
use super::{further, packed};
use crate::copy::{self, CopyError, Pool, Sink, Transfer, Watch};
use crate::error::{Error, ErrorKind};
use crate::guard;
use crate::image::{self, DigestAlgorithm, FileIdentity, Image, ImageError, TableReport};
use crate::layout::ReadBytes;
use crate::observe::{CancelToken, Event, Observer, Phase};
use crate::range::ByteRange;
use crate::request::{ExpectedDigest, ImageFormat, ImageOptions, NestedFormat, Policy, Preflight};
use crate::trust::{self, ImageSignature, Listed, Opened};
use crate::verify::{Digest, DigestTable};

/// The image file is not the expected one, or nothing was expected.
#[derive(Debug, thiserror::Error)]
enum DigestFault {
    #[error("its {algorithm} is {found}, and {expected} was expected")]
    Differs { algorithm: &'static str, found: String, expected: String },
    #[error("a digest is to be checked and none is given")]
    NoneGiven,
}

/// An image that was checked.
pub(crate) struct CheckedImage {
    pub(crate) image: Box<dyn Image>,
    pub(crate) tables: TableReport,
    /// Its chunks' digests, where every cluster was decoded.
    pub(crate) decoded: Option<DigestTable>,
    pub(crate) manifest: Option<KnownManifest>,
    /// Who has signed for it.
    pub(crate) signatures: Vec<ImageSignature>,
}

/// What is checked of an image when it is opened.
#[derive(Clone, Copy)]
pub(crate) struct Check<'a> {
    pub(crate) preflight: Preflight,
    pub(crate) threads: Option<NonZeroUsize>,
    pub(crate) later: Later,
    pub(crate) policies: &'a [Policy],
    /// The image's disk may not be longer; of a packed image that may be known only when it is decoded.
    pub(crate) most_bytes: u64,
}

/// What comes after the checks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Later {
    /// A disk is overwritten: whatever is wrong with the image must be found before.
    Overwrites,
    /// Nothing is lost where a chunk turns out to be another than it should be.
    LosesNothing,
    /// The same, for a file is replaced whole: what was supposed of the image may be settled when it has been copied.
    ReplacesWhole,
    /// The same, and all that lies on the image's disk is looked at.
    LooksAround,
}

/// What an image looked like when it was checked, by more than its files' times.
pub(crate) struct SeenImage {
    root: Option<Digest>,
    /// The sectors that the kernel had counted as written to each block device among its files.
    writes: Vec<(u64, Option<u64>)>,
}

/// The image gave other bytes than when it was checked.
#[derive(Debug, thiserror::Error)]
enum Changed {
    #[error("the image's content is not what it was when every cluster of it was decoded")]
    Content,
    #[error("the kernel has counted writes to the image's device since it was checked")]
    Written,
}

impl SeenImage {
    pub(crate) fn of(image: &dyn Image, root: Option<Digest>) -> Self {
        let files = image.identities();
        let devices = files.iter().filter_map(|file| file.block_device);
        Self { root, writes: devices.map(|device| (device, guard::sectors_written_to(device))).collect() }
    }

    /// Fails if the image, which has been copied, was another by then than the one that was checked.
    pub(crate) fn check_unchanged(&self, image: &dyn Image, copied: Digest) -> Result<(), Error> {
        image.check_unchanged().map_err(|fault| image_error(ErrorKind::ImageFault, fault))?;
        let fault = match () {
            () if self.root.is_some_and(|root| root != copied) => Changed::Content,
            () if self
                .writes
                .iter()
                .any(|(device, writes)| guard::sectors_written_to(*device) != *writes) =>
            {
                Changed::Written
            }
            () => return Ok(()),
        };
        let path = image.info().chain.first().map(|layer| layer.path.clone()).unwrap_or_default();
        Err(Error::new(ErrorKind::ImageFault, fault)
            .at_path(path)
            .hint_that("start again when nobody changes the image"))
    }
}

/// Opens an image and checks it: always all metadata, and the file's digest or every cluster where wanted.
pub(crate) fn open_checked(
    path: &Path,
    options: &ImageOptions,
    check: Check<'_>,
    observer: &dyn Observer,
) -> Result<CheckedImage, Error> {
    let checked = |name, detail: String| observer.event(&Event::Checked { name, detail });
    if let Some(refusal) = Error::first_if_any(trust::check_request(path, options, check.policies)) {
        return Err(refusal);
    }
    let (mut image, packed) = match open(path, options)? {
        image::Opened::Disk(image) => (image, None),
        image::Opened::Packed(packed) => (packed.as_file(), Some(packed)),
    };
    check_places(image.as_ref(), check.policies)?;
    let mut manifest = KnownManifest::find(path, options, check.policies)?;
    let listed = listed(image.as_ref(), path, options)?;
    let is_known = options.expect_digest.is_some() || listed.is_some() || manifest.is_some();
    if check.preflight == Preflight::Digest && !is_known {
        return Err(Error::new(ErrorKind::Usage, DigestFault::NoneGiven)
            .hint_that("give --expect-digest sha256:HEX or blake3:HEX, or make a manifest of the image"));
    }
    if let Some(manifest) = manifest.as_ref().filter(|_| packed.is_none()) {
        manifest.check_size(image.as_ref(), path)?;
    }
    let mut tables = match check_tables(image.as_ref()) {
        Ok(tables) => tables,
        Err(fault) => {
            drop(image);
            return Err(further::refusal(fault, path, options));
        }
    };
    if packed.is_none() {
        checked("image", format!("all metadata of {path:?}"));
    }
    let expected = options.expect_digest.filter(|_| check.preflight != Preflight::Tables);
    check_digests(image.as_ref(), path, (expected, listed.as_ref()), observer)?;
    let signer = manifest.as_ref().and_then(|manifest| manifest.signer.clone());
    let compares_file = match check.preflight {
        // Who wants a signature wants to know of what before anything else happens.
        _ if signer.is_some() => true,
        Preflight::Tables => false,
        Preflight::Digest | Preflight::Deep => true,
        Preflight::Auto => check.later == Later::Overwrites,
    };
    let pass = Pass { image: image.as_ref(), path, threads: check.threads, observer };
    if let Some(manifest) = manifest.as_mut().filter(|_| compares_file) {
        pass.compare_file(manifest)?;
        checked("manifest", "the image file is that of its manifest".into());
    }
    if let Some(key) = &signer {
        checked("signature", format!("the manifest is signed by the key {}", key.id()));
    }
    if let Some(packed) = packed {
        let is_compared = manifest.as_ref().is_some_and(|manifest| manifest.used.image_file.is_some());
        let vouched_for = match expected.is_some() || listed.is_some() || is_compared {
            true => packed::Vouched::ByDigest,
            false => packed::Vouched::ByNobody,
        };
        image = packed::unpack(packed, (manifest.as_ref(), path), vouched_for, (check, observer))?;
        tables = check_tables(image.as_ref()).map_err(|fault| image_error(ErrorKind::Image, fault))?;
    }
    if options.nested == NestedFormat::Refuse {
        refuse_nested_disk(image.as_ref())?;
    }
    let pass = Pass { image: image.as_ref(), path, threads: check.threads, observer };
    let decoded = match check.preflight {
        Preflight::Tables => None,
        Preflight::Auto | Preflight::Digest if !(compares_file && is_said_in_part(manifest.as_ref())) => None,
        _ => Some(
            pass.decode_everything(manifest.as_ref())
                .map_err(|refusal| further::bad_cluster(refusal, path, options))?,
        ),
    };
    if decoded.is_some() {
        checked("content", "every cluster of the image decodes".into());
    }
    let signatures =
        signer.iter().map(ImageSignature::from).chain(listed.map(ImageSignature::from)).collect();
    Ok(CheckedImage { image, tables, decoded, manifest, signatures })
}

/// Walks all tables of an image on a thread that can open nothing.
pub(crate) fn check_tables(image: &dyn Image) -> Result<TableReport, ImageError> {
    copy::apart(|| image.check_tables()).map_err(|fault| match fault {
        CopyError::Image(fault) => fault,
        fault => ImageError::Io {
            doing: "starting a thread for the image's tables",
            path: image.info().chain.first().map(|layer| layer.path.clone()).unwrap_or_default(),
            range: None,
            source: io::Error::other(fault),
        },
    })
}

/// Looks at both ends of the disk that a qcow2 image describes; of others the file has been looked at.
pub(crate) fn refuse_nested_disk(image: &dyn Image) -> Result<(), Error> {
    let info = image.info();
    let Some(layer) = info.chain.first().filter(|layer| layer.format == "qcow2") else { return Ok(()) };
    let read = |range, bytes: &mut [u8]| {
        ImageBytes(image).read_at(range, bytes).map_err(|fault| unreadable(fault, &layer.path))
    };
    let (size, mut head, mut tail) = (image.virtual_size(), [0; image::HEAD_LEN], [0; 8]);
    let len = usize::try_from(size).unwrap_or(usize::MAX).min(image::HEAD_LEN);
    read(ByteRange::new(0, len as u64), &mut head[..len])?;
    let tail_at = size.checked_sub(image::TAIL_LEN);
    if let Some(offset) = tail_at {
        read(ByteRange::new(offset, 8), &mut tail)?;
    }
    image::refuse_nested_disk(image, &head[..len], tail_at.map(|offset| (offset, tail)))
        .map_err(|fault| image_error(ErrorKind::Image, fault))
}

/// Whether only its chunks tell whether an image is its manifest's: the digest of its file says nothing of the files
/// behind it.
fn is_said_in_part(manifest: Option<&KnownManifest>) -> bool {
    manifest.is_some_and(|manifest| !manifest.is_proved())
}

/// Compares the image file, as it lies, with the digest that was given and with that of a signed list.
fn check_digests(
    image: &dyn Image,
    path: &Path,
    (expected, listed): (Option<ExpectedDigest>, Option<&Listed>),
    observer: &dyn Observer,
) -> Result<(), Error> {
    let checked = |name, detail: String| observer.event(&Event::Checked { name, detail });
    if let Some(expected) = expected {
        check_digest(image, (path, expected), "fetch the image again, or correct --expect-digest")?;
        checked("digest", "the image file is the expected one".into());
    }
    if let Some(Listed { sha256, signer }) = listed {
        let expected = (path, ExpectedDigest::Sha256(*sha256));
        check_digest(image, expected, "fetch the image again, or the list that belongs to it")?;
        checked("digest", format!("the image file is that of the list which {signer} has signed"));
    }
    Ok(())
}

fn open(path: &Path, options: &ImageOptions) -> Result<image::Opened, Error> {
    image::open_any(path, &open_options(options)).map_err(|fault| further::refusal(fault, path, options))
}

/// How an image is opened, in the reader's words.
pub(crate) fn open_options(options: &ImageOptions) -> image::OpenOptions<'_> {
    image::OpenOptions {
        format: match options.format {
            ImageFormat::Auto => image::Format::Auto,
            ImageFormat::Raw => image::Format::Raw,
            ImageFormat::Qcow2 => image::Format::Qcow2,
        },
        nested: match options.nested {
            NestedFormat::Refuse => image::Nested::Refuse,
            NestedFormat::Allow => image::Nested::Allow,
        },
        backing_folders: &options.allow_backing,
    }
}

fn check_places(image: &dyn Image, policies: &[Policy]) -> Result<(), Error> {
    let files = image.identities();
    let opened =
        |file: &FileIdentity| Opened { path: file.path.clone(), device: file.device, inode: file.inode };
    trust::check_places(policies, &files.iter().map(opened).collect::<Vec<_>>())
}

/// What a signed list says of the image, where one is given.
fn listed(image: &dyn Image, path: &Path, options: &ImageOptions) -> Result<Option<Listed>, Error> {
    let layers = image.identities().len();
    options.sums.as_ref().map(|sums| trust::listed(sums, path, layers)).transpose()
}

/// An image's fault as an error of the kind that the moment gives it.
pub(crate) fn image_error(kind: ErrorKind, fault: ImageError) -> Error {
    let (path, range, hint) = (fault.path().map(ToOwned::to_owned), fault.range(), fault.hint());
    let mut error = Error::new(kind, fault);
    if let Some(path) = path {
        error = error.at_path(path);
    }
    if let Some(range) = range {
        error = error.at_range(range);
    }
    match hint {
        Some(hint) => error.hint_that(hint),
        None => error,
    }
}

/// Compares the image file, as it lies, with the digest that was given.
fn check_digest(
    image: &dyn Image,
    (path, expected): (&Path, ExpectedDigest),
    hint: &str,
) -> Result<(), Error> {
    let (algorithm, by, expected) = match expected {
        ExpectedDigest::Sha256(bytes) => ("SHA-256", DigestAlgorithm::Sha256, bytes),
        ExpectedDigest::Blake3(bytes) => ("BLAKE3", DigestAlgorithm::Blake3, bytes),
    };
    let found = image.file_digest(by).map_err(|fault| image_error(ErrorKind::Image, fault))?;
    if found == expected {
        return Ok(());
    }
    let hex = |bytes: [u8; 32]| bytes.map(|byte| format!("{byte:02x}")).concat();
    let fault = DigestFault::Differs { algorithm, found: hex(found), expected: hex(expected) };
    Err(Error::new(ErrorKind::ImageDigest, fault).at_path(path).hint_that(hint))
}

/// Decodes every cluster of the image, and keeps of the bytes their chunks' digests.
pub(super) fn decode_everything(
    (image, path): (&dyn Image, &Path),
    threads: Option<NonZeroUsize>,
    manifest: Option<&KnownManifest>,
    observer: &dyn Observer,
) -> Result<DigestTable, Error> {
    Pass { image, path, threads, observer }.decode_everything(manifest)
}

/// A pass over all of an image before anything is written.
struct Pass<'a> {
    image: &'a dyn Image,
    path: &'a Path,
    threads: Option<NonZeroUsize>,
    observer: &'a dyn Observer,
}

impl Pass<'_> {
    /// Compares the image's file with the one that its manifest was made with.
    fn compare_file(&self, manifest: &mut KnownManifest) -> Result<(), Error> {
        let cancel = CancelToken::new();
        let (pool, watch) = (self.pool()?, self.watch(&cancel, self.image.info().file_size));
        let compared = manifest.check_file((self.image, self.path), (&pool, &watch));
        compared.map_err(|fault| match fault {
            CheckFault::Refused(error) => error,
            CheckFault::Copy(fault) => self.failed(fault),
        })
    }

    /// Decodes every cluster of the image, and keeps of the bytes their chunks' digests.
    fn decode_everything(&self, manifest: Option<&KnownManifest>) -> Result<DigestTable, Error> {
        let cancel = CancelToken::new();
        let (pool, watch) = (self.pool()?, self.watch(&cancel, self.image.virtual_size()));
        let manifest = manifest.map(KnownManifest::chunks);
        let transfer = Transfer { image: self.image, sink: Sink::Digests, manifest, whole: None };
        let decoded = copy::transfer(&pool, transfer, (&watch, &mut ()));
        decoded.map(|decoded| decoded.digests).map_err(|fault| self.failed(fault))
    }

    fn pool(&self) -> Result<Pool, Error> {
        Pool::start(self.threads).map_err(|error| self.failed(CopyError::Memory(error)))
    }

    fn watch<'w>(&'w self, cancel: &'w CancelToken, bytes_total: u64) -> Watch<'w> {
        let observer = self.observer;
        Watch { observer, cancel, phase: Phase::Preflight, bytes_total, stall_timeout: None }
    }

    fn failed(&self, fault: CopyError) -> Error {
        match fault {
            CopyError::Image(fault) => image_error(ErrorKind::Image, fault),
            CopyError::OtherThanManifest { .. } => other_than_manifest(fault, self.path),
            fault => Error::new(ErrorKind::Internal, fault),
        }
    }
}

/// A chunk that is not what the manifest says, found before anything was changed.
pub(crate) fn other_than_manifest(fault: CopyError, image: &Path) -> Error {
    let range = match &fault {
        CopyError::OtherThanManifest { range, .. } => Some(*range),
        _ => None,
    };
    let error = Error::new(ErrorKind::ImageDigest, fault).at_path(image).hint_that(FETCH_BOTH);
    match range {
        Some(range) => error.at_range(range),
        None => error,
    }
}
