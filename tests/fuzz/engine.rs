//! What the library makes of an image: three questions to it, each with an answer that can be judged.

use std::fmt;
use std::path::{Path, PathBuf};

use reimage::{
    CancelToken, Credential, Error, ErrorKind, Finding, ImageOptions, Preflight, Promise, Request, Target,
    TargetState,
};

use crate::memory_disk::MemoryDisk;
use crate::watched::watched;

/// What was on the disk before.
pub(crate) const OLD: u8 = 0xaa;

/// What went wrong, as a caller sees it.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) kind: ErrorKind,
    pub(crate) state: TargetState,
    pub(crate) text: String,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        Self { kind: error.kind(), state: error.target_state(), text }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {}: {}", self.kind, self.state, self.text)
    }
}

/// All that the library says of an image.
pub(crate) struct Answers {
    /// From headers and tables.
    pub(crate) tables: Result<(), Fault>,
    /// With every cluster decoded; not asked of a disk that is too large to be copied here.
    pub(crate) deep: Option<Result<(), Fault>>,
    /// Whether the rebuild is done.
    pub(crate) rebuild: Result<(), Fault>,
    /// What the disk holds then.
    pub(crate) disk: Vec<u8>,
    /// Bytes of memory at most, those of the disk included.
    pub(crate) memory: usize,
}

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = |answer: &Result<(), Fault>| {
            answer.as_ref().map_or_else(Fault::to_string, |()| "good".to_owned())
        };
        let deep = self.deep.as_ref().map_or("not asked".to_owned(), said);
        write!(
            f,
            "its tables: {}; its clusters: {deep}; the rebuild: {}",
            said(&self.tables),
            said(&self.rebuild)
        )
    }
}

/// An image, and a folder in which it may name others.
#[derive(Clone)]
pub(crate) struct Asked {
    pub(crate) image: PathBuf,
    pub(crate) folder: PathBuf,
    /// The size of the disk that it is to be written to.
    pub(crate) disk_size: usize,
    /// Whether every cluster is to be decoded first.
    pub(crate) deep: bool,
}

impl Asked {
    fn options(&self) -> ImageOptions {
        let mut options = ImageOptions::default();
        options.allow_backing = vec![self.folder.clone()];
        options
    }

    pub(crate) fn inspect(&self, preflight: Preflight) -> Result<(), Fault> {
        reimage::inspect(&self.image, &self.options(), preflight, &()).map(drop).map_err(Fault::from)
    }

    /// All that is wrong with the image.
    pub(crate) fn check(&self) -> Result<Vec<Finding>, Fault> {
        reimage::check(&self.image, &self.options(), &()).map(|report| report.findings).map_err(Fault::from)
    }

    fn rebuild(&self, disk: &MemoryDisk) -> Result<(), Fault> {
        let mut request = Request::new(&self.image, "");
        request.options.state_dir = self.folder.join("state");
        request.options.image = self.options();
        let own: (Box<dyn Target>, _) = (Box::new(disk.clone()), Promise::NobodyElseUsesIt);
        let plan = reimage::plan_onto(&request, &Credential::keep_image(), own, &())?;
        reimage::rebuild(plan, &(), &CancelToken::new())?;
        Ok(())
    }

    /// All three answers, in this thread.
    pub(crate) fn answers(&self) -> Answers {
        let disk = MemoryDisk::of(vec![OLD; self.disk_size]);
        let tables = self.inspect(Preflight::Tables);
        let deep = self.deep.then(|| self.inspect(Preflight::Deep));
        let rebuild = self.rebuild(&disk);
        let disk = std::mem::take(&mut *disk.bytes());
        Answers { tables, deep, rebuild, disk, memory: 0 }
    }
}

/// Asks the library, which neither panics nor takes long.
pub(crate) fn ask(asked: &Asked) -> Result<Answers, String> {
    let asked = asked.clone();
    watched(move || asked.answers()).map(|(answers, memory)| Answers { memory, ..answers })
}

/// The same through the guard, onto a file that is replaced whole: what the file holds, and what else is there.
pub(crate) fn replace(asked: &Asked, file: &Path) -> Result<(), Fault> {
    let mut request = Request::new(&asked.image, file);
    request.options.state_dir = asked.folder.join("state");
    request.options.image = asked.options();
    let plan = reimage::plan(&request, &Credential::keep_image(), &())?;
    reimage::rebuild(plan, &(), &CancelToken::new())?;
    Ok(())
}
