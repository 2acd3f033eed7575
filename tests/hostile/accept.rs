//! The table of what must be read: the legal neighbours of what is refused. What each disk holds is computed by the
//! maker of the image.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::build::{
    COMPRESSION_BIT, COPIED, Cluster, DIRTY, EXT_BITMAPS, EXT_FEATURE_NAMES, EXTENDED_L2, Laid, Spec,
    deflate, index, noise, pattern, repeated, seed, stored, text, zstd, zstd_with,
};
use crate::run::{DISK, Room, on_threads, reimage};

const ALLOWED: &[&str] = &["--allow-backing", "images"];

/// Makes an image in a folder: its path, and the bytes of its disk.
type Maker = Box<dyn Fn(&Path) -> (PathBuf, Vec<u8>) + Send + Sync>;

/// One image that must be read.
struct Row {
    name: String,
    make: Maker,
    flags: &'static [&'static str],
    /// How many faults are told that do no harm.
    findings: u64,
}

impl Row {
    fn made(name: impl Into<String>, make: Maker) -> Self {
        Self { name: name.into(), make, flags: &[], findings: 0 }
    }

    fn named(name: impl Into<String>, file: &'static str, bytes: Vec<u8>, disk: Vec<u8>) -> Self {
        let make = move |folder: &Path| {
            let path = folder.join(file);
            fs::write(&path, &bytes).unwrap();
            (path, disk.clone())
        };
        Self::made(name, Box::new(make))
    }

    fn new(name: impl Into<String>, laid: Laid) -> Self {
        let disk = laid.spec.disk(&[]);
        Self::named(name, "image.qcow2", laid.bytes, disk)
    }

    fn spec(name: impl Into<String>, spec: Spec) -> Self {
        let make = move |folder: &Path| {
            let path = folder.join("image.qcow2");
            fs::write(&path, spec.clone().lay().bytes).unwrap();
            (path, spec.disk(&[]))
        };
        Self::made(name, Box::new(make))
    }

    fn flags(self, flags: &'static [&'static str]) -> Self {
        Self { flags, ..self }
    }

    fn findings(self, findings: u64) -> Self {
        Self { findings, ..self }
    }

    fn check(&self) -> Vec<String> {
        let room = Room::new();
        let (image, expected) = (self.make)(&room.images());
        let image = image.to_str().unwrap();
        let mut wrong = Vec::new();
        let ran = room.rebuild(image, self.flags);
        if ran.code != Some(0) || ran.document["target_state"] != "verified" {
            return vec![format!("{}: {ran:?}", self.name)];
        }
        let disk = room.disk();
        let differs = disk.iter().zip(expected.iter().chain(std::iter::repeat(&0))).position(|(a, b)| a != b);
        if let Some(at) = differs {
            wrong.push(format!("{}: the disk differs at {at}", self.name));
        }
        if disk.len() as u64 != DISK {
            wrong.push(format!("{}: the disk has {} bytes", self.name, disk.len()));
        }
        let ran = reimage(room.path(), &[&["inspect", "--json", image], self.flags].concat());
        if ran.code != Some(0) || ran.document["image"]["virtual_size"] != expected.len() {
            wrong.push(format!("{}: {ran:?}", self.name));
        }
        let ran = reimage(room.path(), &[&["inspect", "--check", "--json", image], self.flags].concat());
        if ran.code != Some(0) || ran.document["findings_total"] != self.findings {
            wrong.push(format!("{}: {ran:?}", self.name));
        }
        wrong
    }
}

fn headers() -> Vec<Row> {
    let default = Spec::default;
    let names = |len: usize| vec![(EXT_FEATURE_NAMES, vec![b'n'; len])];
    let mut rows = vec![
        Row::spec("version 3", default()),
        Row::spec("version 2", Spec::version_2()),
        Row::spec(
            "version 2 with extensions",
            Spec { extensions: vec![(7, vec![1; 5])], ..Spec::version_2() },
        ),
        Row::spec("unknown compatible bits", default().with(|spec| spec.compatible = u64::MAX)),
        Row::spec("unknown autoclear bits", default().with(|spec| spec.autoclear = u64::MAX)),
        Row::spec("an unknown extension", default().with(|spec| spec.extensions = vec![(7, vec![1; 13])])),
        Row::spec(
            "extensions to the cluster's end",
            default().with(|spec| spec.extensions = vec![(7, vec![1; 3976])]),
        ),
        Row::spec(
            "an empty bitmaps extension",
            default().with(|spec| spec.extensions = vec![(EXT_BITMAPS, vec![0; 24])]),
        ),
        Row::spec("snapshots", Spec { snapshots: 3, ..default() }),
        Row::spec("a larger L1 table", Spec { spare_l1: 900, ..default() }),
        Row::spec("lazy reference counts", Spec { compatible: 1, incompatible: DIRTY, ..default() }),
        Row::new(
            "dirty, and all reference counts zero",
            default().lay().with(|laid| {
                laid.put64(72, DIRTY);
                laid.bytes[4096..index(laid.l1)].fill(0);
            }),
        ),
        Row::new("a backing name of no bytes", default().lay().with(|laid| laid.put64(8, 1 << 40))),
        Row::new("a backing name of some bytes at 0", default().lay().with(|laid| laid.put32(16, 9))),
        Row::new("garbage behind the end", default().lay().with(|laid| laid.bytes.extend(pattern(9, 777)))),
        Row::new(
            "the refcount table in use up to the end of its cluster",
            default().lay().with(|laid| {
                laid.bytes[4096 + 4088..8192].fill(0xff);
            }),
        )
        .findings(1),
    ];
    for len in [0, 1, 47, 48, 480] {
        rows.push(Row::spec(
            format!("{len} bytes of feature names"),
            default().with(|spec| spec.extensions = names(len)),
        ));
    }
    for len in [104, 112, 120, 128, 4096] {
        rows.push(Row::spec(format!("header_length {len}"), Spec { header_len: len, ..default() }));
    }
    for order in 0..=6 {
        rows.push(Row::spec(
            format!("reference counts of {} bits", 1 << order),
            Spec { refcount_order: order, ..default() },
        ));
    }
    rows
}

fn sizes() -> Vec<Row> {
    let mut rows = Vec::new();
    for size in [1, 511, 512, 513, 4095, 4096, 4097, 65535, 69_631] {
        rows.push(Row::spec(format!("a disk of {size} bytes"), Spec { size, ..Spec::default() }));
    }
    rows.push(Row::spec("a disk of no bytes", Spec { size: 0, clusters: Vec::new(), ..Spec::default() }));
    for bits in 9..=21 {
        let clusters = index((DISK >> bits).min(70));
        let mixed = |number: usize, plain: Cluster, packed: Cluster| match number % 5 {
            1 => Cluster::Hole,
            2 => Cluster::Zero,
            3 => plain,
            _ => packed,
        };
        let clusters_of = |is_packed: bool| {
            let each = |number: usize| {
                let seed = seed(number);
                mixed(
                    number,
                    Cluster::Data(seed),
                    if is_packed { Cluster::Packed(seed) } else { Cluster::Data(seed) },
                )
            };
            (0..clusters).map(each).collect::<Vec<_>>()
        };
        let len = 1_u64 << bits;
        rows.push(Row::spec(format!("clusters of {len} bytes"), Spec::of_clusters(bits, clusters_of(false))));
        rows.push(Row::spec(
            format!("clusters of {len} bytes, zlib"),
            Spec::of_clusters(bits, clusters_of(true)),
        ));
        let zstd =
            Spec { zstd: true, incompatible: COMPRESSION_BIT, ..Spec::of_clusters(bits, clusters_of(true)) };
        rows.push(Row::spec(format!("clusters of {len} bytes, zstd"), zstd));
        let sub = Cluster::Sub { seed: 9, data: 0x8000_00f1, zero: 0x4000_ff00 };
        if bits >= 14 {
            let clusters = clusters_of(false).into_iter().map(|cluster| match cluster {
                Cluster::Data(_) => sub.clone(),
                cluster => cluster,
            });
            let extended = Spec { incompatible: EXTENDED_L2, ..Spec::of_clusters(bits, clusters.collect()) };
            rows.push(Row::spec(format!("subclusters of {} bytes", len / 32), extended));
        }
    }
    rows
}

fn entries() -> Vec<Row> {
    let plain = |change: &dyn Fn(&mut Laid)| Spec::default().lay().with(change);
    let l2 = Spec::default().lay().l2[0];
    let mut small = Spec::of_clusters(9, (0..100).map(Cluster::Data).collect());
    // What qemu puts behind the disk's end is the state of a machine.
    small.size = 60 * 512 + 100;
    small.spare_l1 = 1;
    small.clusters.truncate(64);
    let mut state = small.lay();
    let table = state.grow(512);
    let cluster = state.grow(512);
    state.count(table);
    state.count(cluster);
    state.put64(state.l1 + 8, table | COPIED);
    state.put64(table, cluster | COPIED);
    let short = Spec::extended(vec![Cluster::Data(1), Cluster::Sub { seed: 2, data: 0x7, zero: 0 }]).lay();
    let len = short.places[1] + 3 * 512;
    let short_zero = Spec::extended(vec![Cluster::Sub { seed: 2, data: 0x7, zero: 0xffff_fff8 }]).lay();
    let len_zero = short_zero.places[0] + 3 * 512;
    vec![
        Row::new(
            "copied flags clear",
            plain(&|laid| {
                for at in [laid.l1].into_iter().chain((0..17).map(|number| l2 + number * 8)) {
                    laid.put64(at, laid.get64(at) & !COPIED);
                }
            }),
        ),
        Row::new(
            "a wild entry behind the disk's end",
            plain(&|laid| laid.put64(l2 + 17 * 8, COPIED | 1 << 50)),
        ),
        Row::new("the state of a machine behind the disk", state),
        Row::new("half a cluster at the end", plain(&|laid| laid.bytes.truncate(laid.bytes.len() - 2048))),
        Row::new(
            "the file ends behind the last subcluster",
            short.with(|laid| laid.bytes.truncate(index(len))),
        ),
        Row::new("the same, and zeroes follow", short_zero.with(|laid| laid.bytes.truncate(index(len_zero)))),
        Row::spec("no L2 table at all", Spec { clusters: Vec::new(), ..Spec::default() }),
        Row::spec("extended L2 with zlib", {
            let spec =
                Spec::extended(vec![Cluster::Packed(1), Cluster::Hole, Cluster::Packed(2), Cluster::Data(3)]);
            Spec { incompatible: EXTENDED_L2, ..spec }
        }),
        Row::spec("extended L2 with zstd", {
            let spec = Spec::extended(vec![Cluster::Packed(1), Cluster::Zero, Cluster::Packed(2)]);
            Spec { zstd: true, incompatible: EXTENDED_L2 | COMPRESSION_BIT, ..spec }
        }),
        Row::spec(
            "zstd, and nothing is compressed",
            Spec { zstd: true, incompatible: COMPRESSION_BIT, ..Spec::default() },
        ),
    ]
}

fn streams() -> Vec<Row> {
    use zstd_safe::CParameter::{ChecksumFlag, ContentSizeFlag};
    let content = text(7, 4096);
    let one = |name: &str, is_zstd: bool, (stream, sectors): (Vec<u8>, Option<u64>), content: &[u8]| {
        let mut spec = Spec::packed(is_zstd);
        spec.clusters.push(Cluster::Stream { stream, sectors, content: content.to_vec() });
        Row::spec(name, spec.sized())
    };
    let own = noise(3, 4096);
    let skippable = [&0x184d_2a50_u32.to_le_bytes()[..], &16_u32.to_le_bytes(), &[0; 16]].concat();
    let repeated = repeated(4096, b'x');
    let far = [noise(4, 20_000), text(5, 5536), noise(4, 20_000), vec![0; 20_000]].concat();
    let mut wide = Spec::of_clusters(16, vec![Cluster::Hole]);
    wide.clusters.push(Cluster::Stream { stream: deflate(&far), sectors: None, content: far });
    vec![
        one("a zlib stream, not padded", false, (deflate(&content), None), &content),
        one("a zlib stream that says more sectors", false, (deflate(&content), Some(9)), &content),
        one("a zlib stream that says the most sectors", false, (deflate(&content), Some(16)), &content),
        one("a stored zlib stream, longer than its cluster", false, (stored(&own), None), &own),
        one(
            "a zlib stream with garbage behind it",
            false,
            ([deflate(&content), own.clone()].concat(), None),
            &content,
        ),
        Row::spec("a zlib stream that looks back 20000 bytes", wide.sized()),
        one("a zstd stream, not padded", true, (zstd(&content), None), &content),
        one("a zstd stream that says more sectors", true, (zstd(&content), Some(9)), &content),
        one(
            "a zstd frame of unknown size",
            true,
            (zstd_with(&content, &[ContentSizeFlag(false)]), None),
            &content,
        ),
        one(
            "a zstd frame with a checksum",
            true,
            (zstd_with(&content, &[ChecksumFlag(true)]), None),
            &content,
        ),
        one(
            "two zstd frames",
            true,
            ([zstd(&content[..1000]), zstd(&content[1000..])].concat(), None),
            &content,
        ),
        one("a skippable zstd frame before", true, ([skippable, zstd(&content)].concat(), None), &content),
        one(
            "a zstd frame with garbage behind it",
            true,
            ([zstd(&content), own.clone()].concat(), None),
            &content,
        ),
        one("a zstd frame of noise", true, (zstd(&own), None), &own),
        one("a zstd frame of one byte, repeated", true, (repeated, None), &[b'x'; 4096]),
    ]
}

/// An overlay with the files that `prepare` puts below it; the base's disk is that.
fn over(
    name: impl Into<String>,
    (top, base): (Spec, Vec<u8>),
    prepare: impl Fn(&Path, &[u8]) + Send + Sync + 'static,
) -> Row {
    let disk = top.disk(&base);
    let bytes = top.lay().bytes;
    let make = move |folder: &Path| {
        prepare(folder, &base);
        let path = folder.join("top.qcow2");
        fs::write(&path, &bytes).unwrap();
        (path, disk.clone())
    };
    Row::made(name, Box::new(make)).flags(ALLOWED)
}

fn chains() -> Vec<Row> {
    let raw =
        |file: &'static str| move |folder: &Path, base: &[u8]| fs::write(folder.join(file), base).unwrap();
    let named = |name: &[u8]| Spec::over(name, "raw");
    let inside = |folder: &Path, base: &[u8]| {
        fs::create_dir(folder.join("below")).unwrap();
        fs::write(folder.join("below/base.raw"), base).unwrap();
        symlink("below/base.raw", folder.join("link.raw")).unwrap();
        symlink("below", folder.join("other")).unwrap();
    };
    let by_links = |folder: &Path, base: &[u8]| {
        let room = folder.parent().unwrap();
        fs::write(folder.join("base.raw"), base).unwrap();
        fs::create_dir_all(room.join("var/lib")).unwrap();
        symlink(room, room.join("var/lib/room")).unwrap();
        symlink(folder, room.join("var/lib/images")).unwrap();
    };
    let long = [b"./".repeat(507), b"base.raw".to_vec(), b"".to_vec()].concat();
    assert!(long.len() > 1000);
    let base = || pattern(60, 28_672);
    let mut rows = vec![
        over("over raw", (named(b"base.raw"), base()), raw("base.raw")),
        over("over a shorter raw of odd length", (named(b"base.raw"), pattern(60, 9001)), raw("base.raw")),
        over("over a longer raw", (named(b"base.raw"), pattern(60, 90_000)), raw("base.raw")),
        over("over a raw of no bytes", (named(b"base.raw"), Vec::new()), raw("base.raw")),
        over("over ./a:b", (named(b"./a:b"), base()), raw("a:b")),
        over("over a name of 1022 bytes", (named(&long), base()), raw("base.raw")),
        over("over a link that stays inside", (named(b"link.raw"), base()), inside),
        over("over a folder's link that stays inside", (named(b"other/base.raw"), base()), inside),
        over("over a name with .. that stays inside", (named(b"below/../below/base.raw"), base()), inside),
        over("over a link to its folder", (named(b"../var/lib/images/base.raw"), base()), by_links),
        over("over a link to above", (named(b"../var/lib/room/images/base.raw"), base()), by_links),
        over("as it is written", (named(b"../var/lib/../lib/room/images/base.raw"), base()), by_links)
            .flags(&["--allow-backing", "var/lib/room/images"]),
        over(
            "version 2 over raw",
            (
                Spec { version: 2, header_len: 72, ..named(b"base.raw") }.with(|spec| {
                    spec.clusters[3] = Cluster::Hole;
                }),
                base(),
            ),
            raw("base.raw"),
        ),
        over(
            "extended L2 over raw",
            (
                Spec {
                    backing: named(b"base.raw").backing,
                    ..Spec::extended(vec![
                        Cluster::Sub { seed: 5, data: 0xf0f0, zero: 0x0f00_0000 },
                        Cluster::Hole,
                        Cluster::Zero,
                    ])
                },
                pattern(60, 50_000),
            ),
            raw("base.raw"),
        ),
    ];
    for (name, spec) in [
        ("qcow2", Spec::default()),
        ("zlib", Spec::packed(false)),
        ("zstd", Spec::packed(true)),
        ("clusters of 64 KiB", Spec::of_clusters(16, vec![Cluster::Hole, Cluster::Data(3)])),
    ] {
        let disk = spec.disk(&[]);
        let bytes = spec.lay().bytes;
        let top = Spec { size: 70_000, ..Spec::over(b"base.qcow2", "qcow2") };
        let prepare = move |folder: &Path, _: &[u8]| fs::write(folder.join("base.qcow2"), &bytes).unwrap();
        rows.push(over(format!("over {name}"), (top, disk), prepare));
    }
    for count in [2, 16, 64] {
        rows.push(
            Row::made(
                format!("{count} images, one over another"),
                Box::new(move |folder| deep(folder, count)),
            )
            .flags(ALLOWED),
        );
    }
    rows
}

fn deep(folder: &Path, count: usize) -> (PathBuf, Vec<u8>) {
    let bottom = Spec::default();
    let mut disk = bottom.disk(&[]);
    fs::write(folder.join("0.qcow2"), bottom.lay().bytes).unwrap();
    for number in 1..count {
        let mut spec = Spec::over(format!("{}.qcow2", number - 1).as_bytes(), "qcow2");
        // Each says something of its own, in another place.
        spec.clusters = vec![Cluster::Hole; 17];
        spec.clusters[number % 17] = Cluster::Data(seed(number));
        let spec = spec.sized();
        disk = spec.disk(&disk);
        fs::write(folder.join(format!("{number}.qcow2")), spec.lay().bytes).unwrap();
    }
    (folder.join(format!("{}.qcow2", count - 1)), disk)
}

fn contents() -> Vec<Row> {
    const NESTED: &[&str] = &["--allow-nested-format"];
    const SAID: &[&str] = &["--image-format", "raw", "--allow-nested-format"];
    let qcow2 = || Spec::default().lay().bytes;
    let mut rows: Vec<_> = [0_u64, 1, 511, 513, 70_001]
        .map(|len| Row::named(format!("raw of {len} bytes"), "disk.raw", pattern(5, len), pattern(5, len)))
        .into();
    let vmdk = [&b"KDMV\x01\0\0\0"[..], &pattern(6, 9000)].concat();
    let vhd = [&pattern(6, 9216)[..], b"conectix", &[0; 504]].concat();
    let begin = qcow2()[..4096].to_vec();
    let begin = Cluster::Stream { stream: deflate(&begin), sectors: None, content: begin };
    let nested = Spec { clusters: vec![begin, Cluster::Data(1)], ..Spec::default() }.sized().lay();
    let mut iso = vec![0; 64 << 10];
    iso[0x8000..0x8006].copy_from_slice(b"\x01CD001");
    rows.extend([
        Row::named("qcow2 as disk.img", "disk.img", qcow2(), Spec::default().disk(&[])),
        Row::named("qcow2 as disk", "disk", qcow2(), Spec::default().disk(&[])),
        Row::named("qcow2 as disk.raw, said to be", "disk.raw", qcow2(), Spec::default().disk(&[]))
            .flags(&["--image-format", "qcow2"]),
        Row::named("a raw disk that holds qcow2", "disk", qcow2(), qcow2()).flags(SAID),
        Row::named("a raw disk that holds qcow2, by its name", "disk.raw", qcow2(), qcow2()).flags(NESTED),
        Row::named("a raw disk that holds vmdk", "disk.raw", vmdk.clone(), vmdk).flags(NESTED),
        Row::named("a raw disk that holds vhd", "disk.raw", vhd.clone(), vhd).flags(NESTED),
        Row::named(
            "a qcow2 image of a disk that holds qcow2",
            "image.qcow2",
            nested.bytes,
            nested.spec.disk(&[]),
        )
        .flags(NESTED),
        Row::named("an ISO 9660 as disk.raw", "disk.raw", iso.clone(), iso),
        Row::named("text as disk.raw", "disk.raw", text(3, 5000), text(3, 5000)),
    ]);
    rows
}

fn rows() -> Vec<Row> {
    [headers(), sizes(), entries(), streams(), chains(), contents()].into_iter().flatten().collect()
}

#[test]
fn what_is_legal_is_read_byte_for_byte() {
    let only = std::env::var("HOSTILE_ROW").unwrap_or_default();
    let rows = rows();
    assert!(rows.len() > 40, "{} rows", rows.len());
    let rows: Vec<_> = rows.into_iter().filter(|row| row.name.contains(&only)).collect();
    let wrong = on_threads(&rows, Row::check);
    assert!(wrong.is_empty(), "{} faults:\n{}", wrong.len(), wrong.join("\n"));
}
