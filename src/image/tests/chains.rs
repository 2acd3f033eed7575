//! Goal: an image leads to no file that the caller did not allow, and a chain ends.
//!
//! Method: names in headers are rewritten; the format extension stays where it is.

use std::os::unix::fs::symlink;

use super::*;

/// Writes another backing name, behind everything else in the header cluster.
fn rename(path: &Path, name: &[u8]) {
    patch(path, 8, &2048u64.to_be_bytes());
    patch(path, 16, &u32::try_from(name.len()).unwrap().to_be_bytes());
    patch(path, 2048, name);
}

/// An image of 2 MiB over a raw base, with another name for the base.
fn over_raw(folder: &Folder, name: &[u8]) -> PathBuf {
    let path = folder.unpack("chain-v2.qcow2", "over-raw.qcow2");
    rename(&path, name);
    path
}

fn bytes_of(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}

#[track_caller]
fn check(case: &str, image: &Path, allowed: &Path, variant: &str, words: &str) {
    check_refused(case, open_chain(image, allowed).map(drop), variant, words);
}

#[test]
fn a_chain_is_read_through_absolute_names_too() {
    let folder = Folder::with(&["chain-base.raw", "chain-v2.qcow2"]);
    let by_relative =
        content(&*open_chain(&folder.path("chain-v2.qcow2"), &folder.all_of()).unwrap(), 1 << 20);
    let image = over_raw(&folder, bytes_of(&folder.path("chain-base.raw")));
    let by_absolute = content(&*open_chain(&image, &folder.all_of()).unwrap(), 1 << 20);
    assert!(by_relative.unwrap() == by_absolute.unwrap());
}

#[test]
fn an_image_says_nothing_where_the_files_below_it_show_through() {
    let folder = Folder::with(&["chain-base.raw", "chain-v2.qcow2"]);
    let image = open_chain(&folder.path("chain-v2.qcow2"), &folder.all_of()).unwrap();
    let all = ByteRange::new(0, image.virtual_size());
    let base = open_alone(&folder.path("chain-base.raw")).unwrap();
    assert!(!base.says_nothing_of(ByteRange::new(0, 1)).unwrap(), "a raw file is all the disk");
    assert!(!image.says_nothing_of(all).unwrap(), "it has clusters of its own");
    let mut below = 0;
    for part in all.cut(64 << 10) {
        let own = |extent: &Extent| matches!(extent.kind, ExtentKind::Data { layer: 0, .. });
        let has_own = image.map(part).unwrap().iter().any(own);
        let silent = image.says_nothing_of(part).unwrap();
        assert!(!(silent && has_own), "{part}");
        below += u64::from(silent);
    }
    assert!(below > 0, "a part of it is the base's");
}

#[test]
fn a_backing_file_outside_the_allowed_folders_is_refused() {
    let folder = Folder::with(&["chain-base.raw"]);
    let outside = Folder::with(&["chain-base.raw"]);
    let allowed = folder.all_of();
    let not_allowed = "no folder that is allowed";
    let image = over_raw(&folder, b"chain-base.raw");
    check_refused("no folder", open_alone(&image).map(drop), "BackingRefused", not_allowed);
    check("another folder", &image, &outside.all_of(), "BackingRefused", not_allowed);
    open_chain(&image, &allowed).unwrap();

    symlink(outside.path("chain-base.raw"), folder.path("link.raw")).unwrap();
    symlink(outside.all_of(), folder.path("linked")).unwrap();
    std::fs::create_dir(folder.path("in")).unwrap();
    let up = format!("in/../../{}/chain-base.raw", outside.all_of().file_name().unwrap().to_str().unwrap());
    for name in
        [bytes_of(&outside.path("chain-base.raw")), b"link.raw", b"linked/chain-base.raw", up.as_bytes()]
    {
        let image = over_raw(&folder, name);
        check(&name.escape_ascii().to_string(), &image, &allowed, "BackingRefused", not_allowed);
    }
    check("passwd", &over_raw(&folder, b"/etc/passwd"), &allowed, "BackingRefused", not_allowed);
    check("stdin", &over_raw(&folder, b"/dev/null"), &allowed, "BackingRefused", not_allowed);
    // A link that stays inside is a name like any other.
    symlink("chain-base.raw", folder.path("inside.raw")).unwrap();
    open_chain(&over_raw(&folder, b"inside.raw"), &allowed).unwrap();
}

#[test]
fn a_name_that_is_no_path_is_refused() {
    let folder = Folder::with(&["chain-base.raw"]);
    for (name, words) in [
        (&b"json:{\"driver\":\"file\",\"filename\":\"chain-base.raw\"}"[..], "protocol"),
        (b"nbd:localhost:10809", "protocol"),
        (b"file:chain-base.raw", "protocol"),
        (b"host_device:/dev/sda", "protocol"),
        (b"chain-base.raw\0", "NUL"),
        (b"missing.raw", "does not exist"),
    ] {
        let image = over_raw(&folder, name);
        check(&name.escape_ascii().to_string(), &image, &folder.all_of(), "BackingRefused", words);
    }
    std::fs::copy(folder.path("chain-base.raw"), folder.path("a:b")).unwrap();
    open_chain(&over_raw(&folder, b"./a:b"), &folder.all_of()).unwrap();
}

#[test]
fn a_backing_file_that_is_no_file_is_refused() {
    let folder = Folder::new();
    rustix::fs::mkfifoat(rustix::fs::CWD, folder.path("fifo"), rustix::fs::Mode::RUSR).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(folder.path("socket")).unwrap();
    for name in [&b"fifo"[..], b"socket", b"."] {
        check("kind", &over_raw(&folder, name), &folder.all_of(), "BackingRefused", "no regular file");
    }
    check("device", &over_raw(&folder, b"/dev/zero"), Path::new("/dev"), "BackingRefused", "no regular file");
}

#[test]
fn the_format_must_be_said_and_be_right() {
    let folder = Folder::with(&["chain-base.raw", "chain-mid.qcow2", "chain-v2.qcow2"]);
    let image = folder.unpack("chain-top.qcow2", "top.qcow2");
    let allowed = folder.all_of();
    // chain-top's extension begins at 112 and says qcow2.
    assert_eq!(field(&image, 112) >> 32, 0xe279_2aca);
    patch(&image, 120, b"vmdk\0");
    patch(&image, 116, &4u32.to_be_bytes());
    check("vmdk", &image, &allowed, "BackingRefused", "neither raw nor qcow2");
    patch(&image, 120, b"raw\0\0");
    patch(&image, 116, &3u32.to_be_bytes());
    check("raw that is qcow2", &image, &allowed, "NestedFormat", "qcow2");
    patch(&image, 112, &[1, 2, 3, 4]);
    check("none", &image, &allowed, "BackingRefused", "no format");
    let image = folder.unpack("chain-top.qcow2", "top.qcow2");
    rename(&image, b"chain-base.raw");
    check("qcow2 that is raw", &image, &allowed, "NotQcow2", "but raw");
}

#[test]
fn a_loop_is_refused() {
    let folder = Folder::with(&["chain-top.qcow2", "chain-mid.qcow2", "chain-base.raw"]);
    let allowed = folder.all_of();
    let top = folder.path("chain-top.qcow2");
    symlink("chain-top.qcow2", folder.path("link.qcow2")).unwrap();
    std::fs::hard_link(&top, folder.path("hard.qcow2")).unwrap();
    for name in [&b"chain-top.qcow2"[..], b"./chain-top.qcow2", b"link.qcow2", b"hard.qcow2"] {
        rename(&top, name);
        check(&name.escape_ascii().to_string(), &top, &allowed, "ChainLoops", "");
    }
    let other = folder.unpack("chain-top.qcow2", "other.qcow2");
    rename(&top, b"other.qcow2");
    rename(&other, b"chain-top.qcow2");
    check("two images", &top, &allowed, "ChainLoops", "");
}

#[test]
fn a_chain_of_64_is_read_and_one_of_65_is_refused() {
    let folder = Folder::new();
    folder.unpack("empty.qcow2", "0.qcow2");
    for index in 1..=64 {
        let path = folder.unpack("chain-top.qcow2", &format!("{index}.qcow2"));
        rename(&path, format!("{}.qcow2", index - 1).as_bytes());
    }
    let image = open_chain(&folder.path("63.qcow2"), &folder.all_of()).unwrap();
    image.check_tables().unwrap();
    assert_eq!(image.info().chain.len(), 64);
    check("65", &folder.path("64.qcow2"), &folder.all_of(), "ChainTooDeep", "64");
}

#[test]
fn a_fault_in_any_layer_is_found() {
    for faulty in ["chain-top.qcow2", "chain-mid.qcow2"] {
        let folder = Folder::with(&["chain-top.qcow2", "chain-mid.qcow2", "chain-base.raw"]);
        let path = folder.path(faulty);
        // An entry of the first L2 table that the layer above may cover.
        let l2 = field(&path, field(&path, 40)) & 0x00ff_ffff_ffff_fe00;
        patch(&path, l2 + 17 * 8, &(1u64 << 63 | 1 << 50).to_be_bytes());
        let image = open_chain(&folder.path("chain-top.qcow2"), &folder.all_of()).unwrap();
        check_refused(faulty, image.check_tables().map(drop), "BeyondEnd", "a data cluster");
    }
}
