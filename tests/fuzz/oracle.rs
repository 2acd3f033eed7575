//! The slow reader is right: qemu-img reads the same, of whole images and of damaged ones.

use std::path::Path;
use std::process::{Command, Stdio};

use sha2::Digest as _;

use crate::campaign::{Campaign, Case, Library, fail};
use crate::slow_reader::{self, Format};
use crate::stored;

#[test]
fn the_slow_reader_reads_of_every_stored_image_what_qemu_img_reads() {
    for image in stored::all() {
        let folder = stored::with_chain(&image.name);
        let path = folder.path().join(format!("{}.qcow2", image.name));
        let disk = slow_reader::read(&path, Format::Qcow2, &[folder.path()])
            .unwrap_or_else(|refused| panic!("{}: {refused}", image.name));
        assert!(disk.oddities.is_empty(), "{}: {disk}", image.name);
        let bytes = disk.bytes.expect("the stored images are small");
        let sha256: String = sha2::Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((bytes.len() as u64, sha256), (image.size, image.sha256), "{}", image.name);
    }
}

/// What `qemu-img convert` makes of an image, if it takes it.
pub(crate) fn qemu_img(image: &Path, output: &Path) -> Option<Vec<u8>> {
    let status = Command::new("timeout")
        .args(["20", "qemu-img", "convert", "-f", "qcow2", "-O", "raw"])
        .args([image, output])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_ne!(status.code(), Some(127), "qemu-img is not installed");
    status.success().then(|| std::fs::read(output).unwrap())
}

/// Where both read an image, they read the same. qemu-img may refuse what the slow reader takes (bitmaps that are
/// wrong, a deflate window of more than 4 KiB); and it takes much that the slow reader refuses (what lies behind the
/// file's end reads as zeroes, reserved bits are ignored), of which nothing is compared. It gives whole sectors only.
#[test]
#[ignore = "needs qemu-img"]
fn of_a_damaged_image_the_slow_reader_reads_what_qemu_img_reads() {
    let Campaign { images, rng_seed } = Campaign::of(150);
    let library = Library::new();
    let (mut same, mut stricter, mut laxer, mut neither) = (0, 0, 0, 0);
    for rng_seed in rng_seed..rng_seed + images {
        let case = Case::new(&library, rng_seed);
        let verdict = case.verdict();
        if verdict.as_ref().is_ok_and(|disk| disk.bytes.is_none()) {
            continue;
        }
        match (
            verdict.ok().and_then(|disk| disk.bytes),
            qemu_img(&case.image(), &case.folder.path().join("qemu.raw")),
        ) {
            (Some(bytes), Some(found)) => {
                let len = bytes.len().min(found.len());
                if bytes[..len] != found[..len] || bytes.len().abs_diff(found.len()) >= 512 {
                    fail(case, "the slow reader and qemu-img read different bytes");
                }
                same += 1;
            }
            (Some(_), None) => stricter += 1,
            (None, Some(_)) => laxer += 1,
            (None, None) => neither += 1,
        }
    }
    println!(
        "both read the same {same}, only qemu-img refuses {stricter}, only it reads {laxer}, nobody {neither}"
    );
    assert!(images < 100 || same > images / 3, "only {same} images were compared");
}
