//! Goal: only files and block devices that nobody writes are images, and their names do not lie.

use std::os::fd::AsFd;
use std::os::unix::fs::symlink;

use super::*;
use crate::sys::locks;

fn with_format(path: &Path, format: Format, nested: Nested) -> Result<(), ImageError> {
    open_as(path, &OpenOptions { format, nested, ..OpenOptions::default() }).map(drop)
}

#[test]
fn what_is_no_file_is_refused_without_waiting() {
    let folder = Folder::new();
    let fifo = folder.path("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
    let socket = folder.path("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let dangling = folder.path("dangling");
    symlink(folder.path("nothing"), &dangling).unwrap();
    for format in [Format::Auto, Format::Raw, Format::Qcow2] {
        let check = |path: &Path, variant, words| {
            let case = path.display().to_string();
            check_refused(&case, with_format(path, format, Nested::Refuse), variant, words);
        };
        check(&fifo, "WrongKind", "a FIFO");
        check(&socket, "WrongKind", "a socket");
        check(&folder.all_of(), "WrongKind", "a folder");
        check(Path::new("/dev/zero"), "WrongKind", "a character device");
        check(Path::new("/dev/random"), "WrongKind", "a character device");
        check(&folder.path("nothing"), "Missing", "");
        check(&dangling, "Missing", "");
    }
}

#[test]
fn an_image_that_is_being_written_is_refused() {
    let folder = Folder::with(&["v3-64k.qcow2"]);
    let path = folder.path("v3-64k.qcow2");
    let writer = std::fs::File::open(&path).unwrap();
    // qemu's byte for "I use permission write".
    locks::lock_shared(writer.as_fd(), 101).unwrap();
    check_refused("written", open_alone(&path).map(drop), "BeingWritten", "");
    drop(writer);
    let image = open_alone(&path).unwrap();
    // ... and a writer that comes later sees that we forbid it; a reader does not mind.
    let later = std::fs::File::open(&path).unwrap();
    assert!(locks::is_locked_by_others(later.as_fd(), 201).unwrap());
    assert!(!locks::is_locked_by_others(later.as_fd(), 200).unwrap());
    open_alone(&path).unwrap();
    drop(image);
    assert!(!locks::is_locked_by_others(later.as_fd(), 201).unwrap());
}

#[test]
fn a_file_that_changed_is_noticed() {
    let folder = Folder::with(&["chain-top.qcow2", "chain-mid.qcow2", "chain-base.raw"]);
    for name in ["chain-top.qcow2", "chain-mid.qcow2", "chain-base.raw"] {
        let image = open_chain(&folder.path("chain-top.qcow2"), &folder.all_of()).unwrap();
        image.check_unchanged().unwrap();
        append(&folder.path(name), &[0]);
        check_refused(name, image.check_unchanged(), "Changed", "");
    }
}

#[test]
fn every_layer_says_which_file_it_is() {
    use std::os::unix::fs::MetadataExt;
    let folder = Folder::with(&["chain-top.qcow2", "chain-mid.qcow2", "chain-base.raw"]);
    let image = open_chain(&folder.path("chain-top.qcow2"), &folder.all_of()).unwrap();
    let inode = |name: &str| folder.path(name).metadata().unwrap().ino();
    let found: Vec<u64> = image.identities().iter().map(|identity| identity.inode).collect();
    assert_eq!(found, [inode("chain-top.qcow2"), inode("chain-mid.qcow2"), inode("chain-base.raw")]);
    assert!(image.identities().iter().all(|identity| identity.block_device.is_none()));
}

#[test]
fn name_and_content_must_agree() {
    let folder = Folder::with(&["v3-64k.qcow2"]);
    let plain = folder.path("plain");
    std::fs::write(&plain, [1; 4096]).unwrap();
    let named = |from: &Path, name: &str| {
        let path = folder.path(name);
        std::fs::copy(from, &path).unwrap();
        path
    };
    let qcow2 = folder.path("v3-64k.qcow2");
    for good in [named(&qcow2, "a.img"), named(&qcow2, "a"), named(&plain, "b.img"), named(&plain, "b.raw")] {
        with_format(&good, Format::Auto, Nested::Refuse).unwrap();
    }
    let auto = |path: &Path| with_format(path, Format::Auto, Nested::Refuse);
    check_refused("raw name", auto(&named(&qcow2, "c.raw")), "NameDisagrees", "the content is qcow2");
    check_refused("raw name", auto(&named(&qcow2, "c.img.RAW")), "NameDisagrees", "the content is qcow2");
    check_refused("qcow2 name", auto(&named(&plain, "d.qcow2")), "NameDisagrees", "the content is raw");
    let raw = |nested| with_format(&qcow2, Format::Raw, nested);
    check_refused("declared raw", raw(Nested::Refuse), "NestedFormat", "(qcow2)");
    raw(Nested::Allow).unwrap();
    let declared = with_format(&plain, Format::Qcow2, Nested::Refuse);
    check_refused("declared qcow2", declared, "NotQcow2", "but raw");
}

#[test]
fn raw_content_that_is_another_format_is_refused() {
    let folder = Folder::new();
    let path = folder.path("disk.img");
    let rows: &[(&str, usize, &[u8])] = &[
        ("vmdk", 0, b"KDMV"),
        ("vmdk", 0, b"COWD"),
        ("vmdk", 0, b"# Disk DescriptorFile\nversion=1\n"),
        ("vmdk", 0, b"\n# a comment\r\n  version=1\nRW 1 FLAT \"/etc/shadow\" 0\n"),
        ("vhd", 0, b"conectix"),
        ("vhd", 8192 - 512, b"conectix"),
        ("vhdx", 0, b"vhdxfile"),
        ("vdi", 0x40, &[0x7f, 0x10, 0xda, 0xbe]),
        ("qed", 0, b"QED\0"),
        ("LUKS", 0, b"LUKS\xba\xbe\0\x02"),
        ("parallels", 0, b"WithoutFreeSpace"),
    ];
    for (format, offset, magic) in rows {
        let mut content = vec![0; 8192];
        content[*offset..*offset + magic.len()].copy_from_slice(magic);
        std::fs::write(&path, &content).unwrap();
        for declared in [Format::Auto, Format::Raw] {
            let words = format!("({format})");
            let result = with_format(&path, declared, Nested::Refuse);
            check_refused(format, result, "NestedFormat", &words);
            with_format(&path, declared, Nested::Allow).unwrap();
        }
    }
    // qcow version 1 is recognised and not read.
    std::fs::write(&path, b"QFI\xfb\0\0\0\x01").unwrap();
    assert!(with_format(&path, Format::Auto, Nested::Refuse).is_err());
    assert!(with_format(&path, Format::Raw, Nested::Refuse).is_err());
}

#[test]
fn refusals_say_what_to_do() {
    let folder = Folder::with(&["v3-64k.qcow2", "chain-top.qcow2"]);
    let error = with_format(&folder.path("v3-64k.qcow2"), Format::Raw, Nested::Refuse).unwrap_err();
    assert!(error.hint().unwrap().contains("--allow-nested-format"));
    let error = open_alone(&folder.path("chain-top.qcow2")).err().unwrap();
    assert!(error.hint().unwrap().contains("--allow-backing DIR"));
    assert_eq!(error.path().unwrap(), folder.path("chain-top.qcow2"));
}
