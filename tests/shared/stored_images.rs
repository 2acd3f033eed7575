//! The images of `testdata/images`, made by qemu-img, and what it says that they hold.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A stored qcow2 image: its name, and the size and SHA-256 of its disk as `qemu-img convert` gave them.
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) sha256: String,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/images")
}

pub(crate) fn all() -> Vec<Stored> {
    let text = std::fs::read_to_string(folder().join("expected.txt")).unwrap();
    let stored = |line: &str| {
        let words: Vec<_> = line.split(' ').collect();
        Stored { name: words[0].to_owned(), size: words[1].parse().unwrap(), sha256: words[2].to_owned() }
    };
    let all: Vec<_> = text.lines().map(stored).collect();
    assert!(all.len() > 30, "the stored images are listed");
    all
}

/// The files below a stored image, the next one first.
pub(crate) fn below(name: &str) -> &'static [&'static str] {
    match name {
        "chain-top" => &["chain-mid.qcow2", "chain-base.raw"],
        "chain-mid" | "chain-v2" => &["chain-base.raw"],
        "chain-over-zlib" => &["zlib-64k.qcow2"],
        "chain-subclusters" => &["zstd-64k.qcow2"],
        "chain-mid-longer" => &["zstd-4k.qcow2"],
        _ => &[],
    }
}

/// The bytes of a stored file.
pub(crate) fn unpacked(file: &str) -> Vec<u8> {
    let packed = std::fs::read(folder().join(format!("{file}.zst"))).unwrap();
    let len = zstd_safe::get_frame_content_size(&packed).ok().flatten().expect("zstd says the length");
    let mut content = vec![0; usize::try_from(len).unwrap()];
    zstd_safe::decompress(&mut content[..], &packed).unwrap();
    content
}

/// Writes a file in which blocks of zeroes are holes.
pub(crate) fn write_sparse(path: &Path, content: &[u8]) {
    let file = std::fs::File::create(path).unwrap();
    for (block, offset) in content.chunks(4096).zip((0..).step_by(4096)) {
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, offset).unwrap();
        }
    }
    file.set_len(content.len() as u64).unwrap();
}
