//! The slow reader is right about images that nobody damaged: qemu-img reads the same of them.

use sha2::Digest as _;

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
