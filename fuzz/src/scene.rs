//! An image in a folder of its own, written again and again.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use reimage::{Error, ImageOptions, ManifestSource, Preflight};
use tempfile::TempDir;

/// A longer disk is not decoded: that this takes time is no fault.
const MOST_DECODED: u64 = 4 << 20;

/// The file that the library looks at.
pub struct Scene {
    folder: TempDir,
    path: PathBuf,
    file: File,
}

impl Scene {
    /// A file of this name and content, beside which lies one that it may name as its backing file.
    ///
    /// # Panics
    ///
    /// When the library does not take it: then nothing behind the first check would be reached.
    #[must_use]
    pub fn new(name: &str, whole: &[u8]) -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        std::fs::write(folder.path().join("chain-base.raw"), stored("chain-base.raw")).expect("it has room");
        let path = folder.path().join(name);
        let file = File::create(&path).expect("a file can be made");
        let scene = Self { folder, path, file };
        scene.replace(whole);
        scene.must_look();
        scene
    }

    /// Writes over a part of the file.
    pub fn lay(&self, at: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, at).expect("it has room");
    }

    /// Ends the file here.
    pub fn cut(&self, len: u64) {
        self.file.set_len(len).expect("it has room");
    }

    /// Makes these bytes the file's.
    pub fn replace(&self, whole: &[u8]) {
        self.lay(0, whole);
        self.cut(whole.len() as u64);
    }

    /// Asks for the tables, and of a disk that is small for every cluster; any answer will do.
    pub fn look(&self) {
        let _ = self.try_look();
    }

    /// The same of an image that is good as it is.
    ///
    /// # Panics
    ///
    /// When the library does not take it.
    pub fn must_look(&self) {
        self.try_look().unwrap_or_else(|error| panic!("the image is good as it is: {error:?}"));
    }

    fn try_look(&self) -> Result<(), Error> {
        let mut options = ImageOptions::default();
        options.manifest = ManifestSource::None;
        options.allow_backing = vec![self.folder.path().to_owned()];
        let found = reimage::inspect(&self.path, &options, Preflight::Tables, &())?;
        if found.image.virtual_size <= MOST_DECODED {
            reimage::inspect(&self.path, &options, Preflight::Deep, &())?;
        }
        Ok(())
    }
}

/// Where a file of the project's test data lies.
#[must_use]
pub fn testdata(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(path)
}

/// The bytes of an image of `testdata/images`.
///
/// # Panics
///
/// When there is none of that name.
#[must_use]
pub fn stored(name: &str) -> Vec<u8> {
    let packed = std::fs::read(testdata("images").join(format!("{name}.zst"))).expect("the image is there");
    let len = zstd_safe::get_frame_content_size(&packed).ok().flatten().expect("zstd says the length");
    let mut content = vec![0; usize::try_from(len).expect("it is small")];
    zstd_safe::decompress(&mut content[..], &packed).expect("it is whole");
    content
}

/// Writes inputs to begin with into the folder that `REIMAGE_FUZZ_SEEDS` names, if it does.
///
/// # Panics
///
/// When that folder cannot be written.
pub fn plant(seeds: impl IntoIterator<Item = Vec<u8>>) {
    let Some(folder) = std::env::var_os("REIMAGE_FUZZ_SEEDS") else { return };
    for (seed, index) in seeds.into_iter().zip(0..) {
        std::fs::write(Path::new(&folder).join(format!("seed-{index}")), seed).expect("seeds can be written");
    }
}
