//! The files that an image names, and the chain of them.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use super::{Row, check};
use crate::build::{COPIED, CORRUPT, Cluster, DATA_FILE, Spec, pattern};

const ALLOWED: &[&str] = &["--allow-backing", "images"];
/// Where `Spec::over` puts the name of the file below, behind the extension that says its format.
const NAME_AT: u64 = 136;

/// An image over a file of that name and format, in a folder where `prepare` puts what it names.
fn over(
    name: impl Into<String>,
    (file, format): (&[u8], &'static str),
    prepare: fn(&Path),
    words: &'static str,
) -> Row {
    let bytes = Spec::over(file, format).lay().bytes;
    let make = move |folder: &Path| {
        fs::write(folder.join("base.raw"), pattern(50, 9000)).unwrap();
        prepare(folder);
        let path = folder.join("top.qcow2");
        fs::write(&path, &bytes).unwrap();
        path
    };
    Row::made(name, Box::new(make), words).flags(ALLOWED).in_file("top.qcow2")
}

fn nothing(_: &Path) {}

fn secret(folder: &Path) {
    fs::write(folder.join("../secret.raw"), b"secret").unwrap();
}

fn outside() -> Vec<Row> {
    const WORDS: &str = "is in no folder that is allowed";
    fn link_out(folder: &Path) {
        secret(folder);
        symlink("../secret.raw", folder.join("link.raw")).unwrap();
    }
    fn folder_link_out(folder: &Path) {
        secret(folder);
        symlink("..", folder.join("out")).unwrap();
    }
    fn long_link_out(folder: &Path) {
        link_out(folder);
        symlink("link.raw", folder.join("second.raw")).unwrap();
    }
    fn alike(folder: &Path) {
        let alike = folder.parent().unwrap().join("images-private");
        fs::create_dir(&alike).unwrap();
        fs::write(alike.join("base.raw"), b"secret").unwrap();
    }
    type Case = (&'static str, &'static [u8], fn(&Path));
    fn link_nowhere(folder: &Path) {
        symlink("../missing.raw", folder.join("nowhere.raw")).unwrap();
    }
    fn working(folder: &Path) {
        symlink("/proc/self/cwd/images/base.raw", folder.join("link.raw")).unwrap();
    }
    let names: [Case; 23] = [
        ("/etc/passwd", b"/etc/passwd", nothing),
        ("a name with ..", b"../secret.raw", secret),
        ("a name with .. and more", b"./.././images/../secret.raw", secret),
        ("a link that leads out", b"link.raw", link_out),
        ("a link to a link that leads out", b"second.raw", long_link_out),
        ("a folder's link that leads out", b"out/secret.raw", folder_link_out),
        ("/proc/self/fd/0", b"/proc/self/fd/0", nothing),
        ("/proc/self/root", b"/proc/self/root/etc/passwd", nothing),
        // The program holds the image itself open.
        ("/proc/self/fd/3", b"/proc/self/fd/3", nothing),
        ("/proc/self/fd/4", b"/proc/self/fd/4", nothing),
        ("/proc/self/fd/5", b"/proc/self/fd/5", nothing),
        ("what is beside an open file", b"/proc/self/fd/3/../base.raw", nothing),
        ("/proc/self/cwd", b"/proc/self/cwd/images/base.raw", nothing),
        ("a link to /proc/self/cwd", b"link.raw", working),
        ("/dev/stdin", b"/dev/stdin", nothing),
        ("/dev/zero", b"/dev/zero", nothing),
        ("a folder that begins alike", b"../images-private/base.raw", alike),
        // What is not there gets the same answer: whether it is there is not for the image's maker to know.
        ("what is not there outside", b"/etc/no-such-file", nothing),
        ("what is not there above", b"../missing.raw", nothing),
        ("a folder that is not there outside", b"/no-such-folder/x/y.raw", nothing),
        ("a link to what is not there outside", b"nowhere.raw", link_nowhere),
        ("what comes back from a folder outside", b"../disks/../images/base.raw", nothing),
        ("what comes back from a folder that is not there", b"../missing/../images/base.raw", nothing),
    ];
    let row =
        |(name, file, prepare): Case| over(format!("over {name}"), (file, "raw"), prepare, WORDS).at(NAME_AT);
    let mut rows: Vec<_> = names.into_iter().map(row).collect();
    let base = |name: &str, flags| over(name, (b"base.raw", "raw"), nothing, WORDS).at(NAME_AT).flags(flags);
    rows.push(base("over a file, and no folder is allowed", &[]));
    rows.push(base("over a file, and another folder is allowed", &["--allow-backing", "disks"]));
    rows
}

fn no_paths() -> Vec<Row> {
    let protocols: [&[u8]; 8] = [
        br#"json:{"driver":"file","filename":"base.raw"}"#,
        b"nbd:localhost:10809",
        b"nbd://localhost/x",
        b"file:base.raw",
        b"host_device:/dev/sda",
        b"http://169.254.169.254/latest",
        b"fat:rw:.",
        b"base:raw",
    ];
    let row = |name: &'static [u8]| {
        let words = "is the name of a protocol";
        over(format!("over {}", name.escape_ascii()), (name, "raw"), nothing, words).at(NAME_AT)
    };
    let mut rows: Vec<_> = protocols.into_iter().map(row).collect();
    rows.push(over("over a name with NUL", (b"base.raw\0", "raw"), nothing, "has a NUL").at(NAME_AT));
    rows.push(over("over a name with NUL inside", (b"base.raw\0x", "raw"), nothing, "has a NUL").at(NAME_AT));
    rows.push(over("over what is not there", (b"missing.raw", "raw"), nothing, "does not exist").at(NAME_AT));
    let escape = (&b"\x1b[31m\nmissing\xff.raw"[..], "raw");
    rows.push(over("over a name with escapes", escape, nothing, r"\u{1b}[31m\nmissing").at(NAME_AT));
    rows
}

fn kinds() -> Vec<Row> {
    const WORDS: &str = "is no regular file";
    let fifo = |folder: &Path| {
        rustix::fs::mkfifoat(rustix::fs::CWD, folder.join("fifo"), rustix::fs::Mode::RUSR).unwrap();
        symlink("fifo", folder.join("to-fifo")).unwrap();
    };
    let socket = |folder: &Path| drop(UnixListener::bind(folder.join("socket")).unwrap());
    let folder = |folder: &Path| fs::create_dir(folder.join("folder")).unwrap();
    let dangling = |folder: &Path| symlink("nowhere.raw", folder.join("dangling.raw")).unwrap();
    let looping = |folder: &Path| {
        symlink("b", folder.join("a")).unwrap();
        symlink("a", folder.join("b")).unwrap();
    };
    let row = |name: &str, file: &'static [u8], prepare: fn(&Path)| {
        over(format!("over {name}"), (file, "raw"), prepare, WORDS).at(NAME_AT)
    };
    let device = |file: &'static [u8]| {
        over(format!("over the device {}", file.escape_ascii()), (file, "raw"), nothing, WORDS).at(NAME_AT)
    };
    let behind = |what: &str, file: &'static [u8]| {
        over(format!("over a file with {what} behind it"), (file, "raw"), nothing, "does not exist")
            .at(NAME_AT)
    };
    let devices = &["--allow-backing", "/dev"];
    vec![
        row("a FIFO", b"fifo", fifo),
        row("a link to a FIFO", b"to-fifo", fifo),
        row("a socket", b"socket", socket),
        row("a folder", b"folder", folder),
        row("its own folder", b".", nothing),
        device(b"/dev/zero").flags(devices),
        device(b"/dev/random").flags(devices),
        device(b"/dev/tty").flags(devices),
        over("over a dangling link", (b"dangling.raw", "raw"), dangling, "does not exist").at(NAME_AT),
        over("over links in a circle", (b"a", "raw"), looping, "through links in a circle").at(NAME_AT),
        over("over a file as if it were a folder", (b"base.raw/x", "raw"), nothing, "does not exist")
            .at(NAME_AT),
        behind("a slash", b"base.raw/"),
        behind("a slash and a dot", b"base.raw/."),
        behind("..", b"base.raw/../base.raw"),
        over("over a name that is too long", (&[b'a'; 300], "raw"), nothing, "longer than a file's name")
            .at(NAME_AT),
    ]
}

fn formats() -> Vec<Row> {
    let mut rows: Vec<_> = ["vmdk", "qcow", "luks", "file", "host_device", "RAW", "raw\0"]
        .map(|format| {
            let name = format!("over a base said to be {format:?}");
            over(name, (b"base.raw", format), nothing, "neither raw nor qcow2").at(NAME_AT + later(format))
        })
        .into();
    rows.push(over("over a base of no format", (b"base.raw", ""), nothing, "has no format").at(120));
    let said = |name: &str, format, prepare: fn(&Path), words| {
        over(format!("over {name}"), (b"base.raw", format), prepare, words).in_file("base.raw")
    };
    let qcow2 = |folder: &Path| fs::write(folder.join("base.raw"), Spec::default().lay().bytes).unwrap();
    let qcow1 = |folder: &Path| fs::write(folder.join("base.raw"), b"QFI\xfb\0\0\0\x01").unwrap();
    let vmdk =
        |folder: &Path| fs::write(folder.join("base.raw"), b"# Disk DescriptorFile\nversion=1\n").unwrap();
    let empty = |folder: &Path| fs::write(folder.join("base.raw"), b"").unwrap();
    let said = [
        said("qcow2, said to be raw", "raw", qcow2, "itself a disk image (qcow2)"),
        said("qcow, said to be raw", "raw", qcow1, "itself a disk image (qcow version 1)"),
        said("a vmdk descriptor, said to be raw", "raw", vmdk, "itself a disk image (vmdk)"),
        said("raw, said to be qcow2", "qcow2", nothing, "no qcow2 image but raw"),
        said("an empty file, said to be qcow2", "qcow2", empty, "no qcow2 header, for the file is empty"),
    ];
    rows.extend(said.map(|row| row.at(0)));
    rows
}

/// How much later a name lies behind a longer format.
fn later(format: &str) -> u64 {
    (format.len() as u64).next_multiple_of(8).saturating_sub(8)
}

/// A chain of so many images, each over the one before; the first is over `last`.
fn deep(count: usize, last: &'static [u8], words: &'static str) -> Row {
    let make = move |folder: &Path| {
        for number in 0..count {
            let below =
                if number == 0 { last.to_vec() } else { format!("{}.qcow2", number - 1).into_bytes() };
            fs::write(folder.join(format!("{number}.qcow2")), Spec::over(&below, "qcow2").lay().bytes)
                .unwrap();
        }
        fs::write(folder.join("last.qcow2"), Spec::default().lay().bytes).unwrap();
        folder.join(format!("{}.qcow2", count - 1))
    };
    let name = format!("{count} images over {}", last.escape_ascii());
    Row::made(name, Box::new(make), words).flags(ALLOWED).at(NAME_AT)
}

fn chains() -> Vec<Row> {
    const WORDS: &str = "comes back to itself";
    let own = |name: &str, file: &'static [u8], prepare: fn(&Path)| {
        over(name, (file, "qcow2"), prepare, WORDS).at(NAME_AT)
    };
    let link = |folder: &Path| symlink("top.qcow2", folder.join("link.qcow2")).unwrap();
    let hard = |folder: &Path| {
        fs::write(folder.join("top.qcow2"), b"").unwrap();
        fs::hard_link(folder.join("top.qcow2"), folder.join("hard.qcow2")).unwrap();
    };
    vec![
        own("over itself", b"top.qcow2", nothing),
        own("over ./ itself", b"./top.qcow2", nothing),
        own("over itself by its folder", b"../images/top.qcow2", nothing),
        own("over a link to itself", b"link.qcow2", link),
        own("over itself by a hard link", b"hard.qcow2", hard),
        deep(1, b"0.qcow2", WORDS),
        deep(2, b"1.qcow2", WORDS),
        deep(3, b"2.qcow2", WORDS),
        deep(3, b"0.qcow2", WORDS),
        deep(40, b"39.qcow2", WORDS),
        deep(64, b"last.qcow2", "longer than 64"),
        deep(300, b"last.qcow2", "longer than 64"),
    ]
}

/// The same faults in the second and the third image.
fn below() -> Vec<Row> {
    let base = Spec::default().lay();
    let (l1, l2, data, end) = (base.l1, base.l2[0], base.places[0], base.end());
    let faults: Vec<(&str, Vec<u8>, &'static str, u64)> = vec![
        ("corrupt", base.clone().with(|laid| laid.put64(72, CORRUPT)).bytes, "marked as corrupt", 72),
        (
            "with a data file",
            base.clone().with(|laid| laid.put64(72, DATA_FILE)).bytes,
            "external data file",
            72,
        ),
        ("encrypted", base.clone().with(|laid| laid.put32(32, 2)).bytes, "encryption", 32),
        ("of version 1", base.clone().with(|laid| laid.put32(4, 1)).bytes, "qcow version 1", 4),
        ("of 2^63 bytes", base.clone().with(|laid| laid.put64(24, 1 << 63)).bytes, "2^63", 24),
        ("without an L1 table", base.clone().with(|laid| laid.put32(36, 0)).bytes, "too small", 36),
        (
            "with a wild L2 table",
            base.clone().with(|laid| laid.put64(l1, 1 << 50)).bytes,
            "reaches beyond",
            1 << 50,
        ),
        ("with reserved bits", base.clone().with(|laid| laid.put64(l2, data | 2)).bytes, "reserved bits", l2),
        (
            "with a wild cluster",
            base.clone().with(|laid| laid.put64(l2, end | COPIED)).bytes,
            "reaches beyond",
            end,
        ),
        (
            "that is cut off",
            base.bytes[..base.bytes.len() - 2049].to_vec(),
            "reaches beyond",
            base.bytes.len() as u64 - 4096,
        ),
    ];
    let mut rows = Vec::new();
    for (what, bytes, words, at) in faults {
        for between in [0, 1] {
            let bytes = bytes.clone();
            let make = move |folder: &Path| {
                fs::write(folder.join("base.qcow2"), &bytes).unwrap();
                // The image above covers all of the base: it is looked at all the same.
                let covering = Spec {
                    clusters: (1..=17).map(Cluster::Data).collect(),
                    ..Spec::over(b"base.qcow2", "qcow2")
                };
                fs::write(folder.join("0.qcow2"), covering.sized().lay().bytes).unwrap();
                fs::write(folder.join("1.qcow2"), Spec::over(b"0.qcow2", "qcow2").lay().bytes).unwrap();
                folder.join(format!("{between}.qcow2"))
            };
            let name = format!("{} images over one {what}", between + 1);
            rows.push(Row::made(name, Box::new(make), words).flags(ALLOWED).in_file("base.qcow2").at(at));
        }
    }
    rows
}

pub(super) fn rows() -> Vec<Row> {
    [outside(), no_paths(), kinds(), formats(), chains(), below()].into_iter().flatten().collect()
}

#[test]
fn a_name_that_leads_elsewhere_and_a_chain_that_is_wrong_are_refused() {
    check(rows());
}
