//! What is legal and large: an answer comes at once, and takes no more memory than anything else.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::build::{Cluster, Spec};
use crate::refuse::{MOST_MEMORY, MOST_TIME, in_time};
use crate::run::{Room, reimage};

/// Makes an image whose tables are as large as they may be; returns its path.
///
/// The L1 table, all of it a hole of the file, describes `1 << (2 * bits - 3 + 22)` bytes.
fn with_the_largest_l1_table(folder: &Path, bits: u32) -> PathBuf {
    let mut laid = Spec::of_clusters(bits, vec![Cluster::Hole]).lay();
    let at = laid.end();
    laid.put64(24, 1 << (2 * bits - 3 + 22));
    laid.put32(36, 4 << 20);
    laid.put64(40, at);
    let path = folder.join("image.qcow2");
    fs::write(&path, &laid.bytes).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(at + (32 << 20)).unwrap();
    path
}

#[test]
fn a_disk_of_two_exbibytes_is_looked_at_and_has_no_room() {
    for bits in [9, 16, 21] {
        let room = Room::new();
        let image = with_the_largest_l1_table(&room.images(), bits);
        let image = image.to_str().unwrap();
        let looked = in_time(|| reimage(room.path(), &["inspect", "--json", image]));
        assert_eq!(looked.code, Some(0), "{looked:?}");
        assert_eq!(looked.document["image"]["virtual_size"], 1_u64 << (2 * bits - 3 + 22));
        let refused = in_time(|| room.rebuild(image, &[]));
        assert_eq!(refused.code, Some(12), "{refused:?}");
        assert_eq!(refused.document["error"]["target_state"], "untouched");
        assert_eq!(room.changes(), None);
        for ran in [looked, refused] {
            assert!(ran.wall <= MOST_TIME && ran.memory <= MOST_MEMORY, "{bits} bits: {ran:?}");
        }
    }
}
