//! An image of one compressed cluster.

use crate::{Scene, l2_tables, number, stored};

const COMPRESSED: u64 = 1 << 62;
const SECTOR: usize = 512;
/// Of an image with clusters of 64 KiB: the lower bits of its entries are an offset, those above count sectors.
const OFFSET_BITS: u32 = 54;
const CLUSTER: usize = 64 << 10;
/// No entry can say more.
const MOST_BYTES: usize = 256 * SECTOR;

/// A valid image that holds one cluster, and the compressed forms of clusters like it.
pub struct Payload {
    scene: Scene,
    /// The offset of the entry.
    entry: usize,
    /// Where its metadata ends.
    end: usize,
    clusters: Vec<Vec<u8>>,
}

impl Payload {
    /// From an image of `testdata/images` with compressed clusters of 64 KiB.
    ///
    /// # Panics
    ///
    /// When it is another one.
    #[must_use]
    pub fn of(name: &str) -> Self {
        let mut image = stored(name);
        assert_eq!(1 << number(&image, 20, 4), CLUSTER, "its clusters are as the entries here say");
        let entry = l2_tables(&image)[0];
        let entries = image[entry..entry + CLUSTER].chunks(8).map(|entry| number(entry, 0, 8));
        let compressed: Vec<_> = entries.filter(|entry| entry & COMPRESSED != 0).collect();
        let clusters: Vec<_> = compressed.into_iter().map(|entry| payload(&image, entry)).collect();
        let end = entry + CLUSTER;
        image[24..32].copy_from_slice(&(CLUSTER as u64).to_be_bytes());
        image[entry..end].fill(0);
        image.truncate(end);
        let made = Self { scene: Scene::new("image.qcow2", &image), entry, end, clusters };
        made.lay(&made.clusters[0]);
        made.scene.must_look();
        made
    }

    /// Compressed clusters of the image.
    #[must_use]
    pub fn clusters(&self) -> &[Vec<u8>] {
        &self.clusters
    }

    fn lay(&self, payload: &[u8]) {
        let payload = &payload[..payload.len().min(MOST_BYTES)];
        let sectors = payload.len().div_ceil(SECTOR).max(1);
        let entry = COMPRESSED | (sectors as u64 - 1) << OFFSET_BITS | self.end as u64;
        self.scene.lay(self.entry as u64, &entry.to_be_bytes());
        // What an earlier input left behind this one's end goes away first.
        self.scene.cut(self.end as u64);
        self.scene.lay(self.end as u64, payload);
        self.scene.cut((self.end + sectors * SECTOR) as u64);
    }

    /// Makes the input the cluster's compressed form, and looks.
    pub fn look_with(&self, input: &[u8]) {
        self.lay(input);
        self.scene.look();
    }
}

/// What an entry of the image points at.
fn payload(image: &[u8], entry: u64) -> Vec<u8> {
    let bits = |value: u64, count: u32| usize::try_from(value & ((1 << count) - 1)).expect("it is small");
    let at = bits(entry, OFFSET_BITS);
    let end = (at / SECTOR + bits(entry >> OFFSET_BITS, 8) + 1) * SECTOR;
    image[at..end.min(image.len())].to_vec()
}
