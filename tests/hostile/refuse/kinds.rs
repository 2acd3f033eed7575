//! What is no file that could be an image: an answer comes all the same, and at once.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::{Row, check};

fn rows_of(name: &str, make: fn(&Path) -> PathBuf, words: &'static str) -> Vec<Row> {
    let formats: [(&str, &'static [&'static str]); 3] = [
        ("", &[]),
        (", said to be raw", &["--image-format", "raw"]),
        (", said to be qcow2", &["--image-format", "qcow2"]),
    ];
    let row = |(said, flags)| Row::made(format!("{name}{said}"), Box::new(make), words).flags(flags);
    formats.map(row).into()
}

fn fifo(folder: &Path) -> PathBuf {
    let path = folder.join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
    path
}

fn link_to(folder: &Path, to: PathBuf) -> PathBuf {
    let path = folder.join("link");
    symlink(to, &path).unwrap();
    path
}

fn socket(folder: &Path) -> PathBuf {
    let path = folder.join("socket");
    drop(UnixListener::bind(&path).unwrap());
    path
}

pub(super) fn rows() -> Vec<Row> {
    let under_qcow2 = |folder: &Path| {
        let fifo = fifo(folder);
        fs::rename(fifo, folder.join("fifo.qcow2")).unwrap();
        folder.join("fifo.qcow2")
    };
    let all = [
        rows_of("a FIFO", fifo, "this is a FIFO"),
        rows_of("a FIFO under the name of a qcow2", under_qcow2, "this is a FIFO"),
        rows_of("a link to a FIFO", |folder| link_to(folder, fifo(folder)), "this is a FIFO"),
        rows_of("/dev/zero", |_| "/dev/zero".into(), "this is a character device"),
        rows_of("/dev/random", |_| "/dev/random".into(), "this is a character device"),
        rows_of(
            "a link to /dev/zero",
            |folder| link_to(folder, "/dev/zero".into()),
            "this is a character device",
        ),
        rows_of("/dev/stdin, which is /dev/null", |_| "/dev/stdin".into(), "this is a character device"),
        rows_of("a socket", socket, "this is a socket"),
        rows_of("a folder", Path::to_path_buf, "this is a folder"),
        rows_of(
            "a dangling link",
            |folder| link_to(folder, folder.join("nothing")),
            "there is no such image",
        ),
        rows_of("nothing", |folder| folder.join("nothing"), "there is no such image"),
        rows_of(
            "a link to itself",
            |folder| link_to(folder, "link".into()),
            "Too many levels of symbolic links",
        ),
    ];
    all.into_iter().flatten().collect()
}

#[test]
fn what_is_no_file_is_refused_without_waiting() {
    check(rows());
}
