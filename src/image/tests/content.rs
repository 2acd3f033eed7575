//! Goal: every image holds what qemu-img says it holds, however the reads are cut.

use super::*;

#[test]
fn every_stored_image_holds_what_qemu_img_says() {
    for (name, size, digest) in expected() {
        let folder = Folder::with(below(&name));
        let path = folder.unpack(&format!("{name}.qcow2"), &format!("{name}.qcow2"));
        let image = open_chain(&path, &folder.all_of()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(image.virtual_size(), size, "{name}");
        let report = image.check_tables().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(report.data_bytes + report.compressed_bytes + report.zero_bytes, size, "{name}");
        let whole = content(&*image, 1 << 30).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(sha256(&whole), digest, "{name}");
        // At cluster boundaries, and inside clusters and subclusters.
        for step in [1 << 20, 65536, 24000, 4096 + 512] {
            let pieces = content(&*image, step).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(pieces == whole, "{name} in steps of {step}");
        }
        image.check_unchanged().unwrap();
    }
}

#[test]
fn one_decoder_serves_several_images() {
    let mut decoder = Decoder::default();
    let folder = Folder::with(&["zlib-64k.qcow2", "zstd-64k.qcow2", "zlib-2m.qcow2"]);
    let open = |name: &str| open_alone(&folder.path(name)).unwrap();
    let images = [open("zlib-64k.qcow2"), open("zstd-64k.qcow2"), open("zlib-2m.qcow2")];
    let range = ByteRange::new(1000, 2000);
    let mut parts = images.iter().map(|image| {
        let mut buffer = [0; 2000];
        image.read(&image.map(range).unwrap(), &mut buffer, &mut decoder).unwrap();
        buffer
    });
    let first = parts.next().unwrap();
    assert!(parts.all(|part| part == first), "all three begin with the same text");
}

#[test]
fn what_the_header_says_is_reported() {
    let folder = Folder::with(&["v2-64k.qcow2", "extl2-zstd.qcow2", "snapshots.qcow2", "dirty.qcow2"]);
    let info = |name: &str| open_alone(&folder.path(name)).unwrap().info();
    let v2 = info("v2-64k.qcow2");
    assert_eq!((v2.format, v2.virtual_size, v2.chain.len()), ("qcow2", 1_050_112, 1));
    assert_eq!((v2.chain[0].version, v2.chain[0].cluster_size), (Some(2), Some(65536)));
    assert_eq!((v2.chain[0].compression, v2.chain[0].refcount_bits), (Some("zlib"), Some(16)));
    let zstd = info("extl2-zstd.qcow2");
    assert_eq!((zstd.chain[0].compression, zstd.chain[0].extended_l2), (Some("zstd"), Some(true)));
    assert_eq!(info("snapshots.qcow2").chain[0].snapshots, Some(2));
    let dirty = info("dirty.qcow2");
    assert_eq!((dirty.chain[0].dirty, dirty.chain[0].lazy_refcounts), (Some(true), Some(true)));
    assert!(serde_json::to_string(&dirty).unwrap().contains(r#""lazy_refcounts":true"#));
}

#[test]
fn allocated_clusters_in_holes_of_the_file_are_zero_extents() {
    let folder = Folder::with(&["v3-prealloc.qcow2"]);
    let image = open_alone(&folder.path("v3-prealloc.qcow2")).unwrap();
    let report = image.check_tables().unwrap();
    assert!(report.data_bytes < 450_000, "{report:?}");
}

#[test]
fn a_file_is_digested_as_it_lies() {
    let folder = Folder::with(&["zlib-64k.qcow2"]);
    let path = folder.path("zlib-64k.qcow2");
    let bytes = std::fs::read(&path).unwrap();
    let image = open_alone(&path).unwrap();
    assert_eq!(image.file_digest(DigestAlgorithm::Blake3).unwrap(), *blake3::hash(&bytes).as_bytes());
    let digest: String =
        image.file_digest(DigestAlgorithm::Sha256).unwrap().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(digest, sha256(&bytes));
}

#[test]
fn a_decoder_can_be_moved_to_another_thread() {
    fn check<T: Send>(_: T) {}
    check(Decoder::default());
}
