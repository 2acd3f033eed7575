//! A host that a test makes up: `/proc`, `/sys` and `/dev` as trees in a temporary folder.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::kernel::{Kernel, Number};
use super::topology::{Storage, Topology};

/// A made-up host.
pub(super) struct FakeHost {
    folder: tempfile::TempDir,
}

impl FakeHost {
    pub(super) fn new() -> Self {
        let host = Self { folder: tempfile::tempdir().unwrap() };
        for name in ["proc/self/ns", "sys/class/block", "sys/dev/block", "sys/devices", "dev"] {
            fs::create_dir_all(host.path(name)).unwrap();
        }
        host.write("proc/self/mountinfo", "");
        symlink("pid:[4026531836]", host.path("proc/self/ns/pid")).unwrap();
        symlink("mnt:[self]", host.path("proc/self/ns/mnt")).unwrap();
        host
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    pub(super) fn kernel(&self) -> Kernel {
        Kernel { proc: self.path("proc"), sys: self.path("sys"), dev: self.path("dev"), near: Vec::new() }
    }

    pub(super) fn topology(&self) -> Topology {
        Topology::read(&self.kernel())
    }

    /// A whole disk; `place` is where it hangs below `/sys/devices`.
    pub(super) fn disk(&self, place: &str, number: Number) -> PathBuf {
        let folder = self.path("sys/devices").join(place);
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("dev"), format!("{}:{}\n", number.0, number.1)).unwrap();
        fs::write(folder.join("size"), "2097152\n").unwrap();
        symlink(&folder, self.path("sys/class/block").join(name)).unwrap();
        symlink(&folder, self.path("sys/dev/block").join(format!("{}:{}", number.0, number.1))).unwrap();
        folder
    }

    /// A partition of `sectors` sectors of a disk that is there.
    pub(super) fn partition(&self, place: &str, number: Number, (start, sectors): (u64, u64)) {
        let folder = self.disk(place, number);
        fs::write(folder.join("partition"), "1\n").unwrap();
        fs::write(folder.join("start"), format!("{start}\n")).unwrap();
        fs::write(folder.join("size"), format!("{sectors}\n")).unwrap();
    }

    /// A device that is made of others, by their names.
    pub(super) fn stacked(&self, name: &str, number: Number, others: &[&str]) -> PathBuf {
        let folder = self.disk(&format!("virtual/block/{name}"), number);
        fs::create_dir(folder.join("slaves")).unwrap();
        for other in others {
            let other_folder = fs::canonicalize(self.path("sys/class/block").join(other)).unwrap();
            symlink(&other_folder, folder.join("slaves").join(other)).unwrap();
        }
        folder
    }

    /// A loop device over a file that really is there.
    pub(super) fn loop_over(&self, name: &str, number: Number, file: &Path, (offset, limit): (u64, u64)) {
        let folder = self.disk(&format!("virtual/block/{name}"), number);
        fs::create_dir(folder.join("loop")).unwrap();
        let path = [file.as_os_str().as_encoded_bytes(), b"\n"].concat();
        fs::write(folder.join("loop/backing_file"), path).unwrap();
        fs::write(folder.join("loop/offset"), format!("{offset}\n")).unwrap();
        fs::write(folder.join("loop/sizelimit"), format!("{limit}\n")).unwrap();
    }

    /// Lines of the mount table of this process: number, place, kind, source.
    pub(super) fn mounts(&self, lines: &[(&str, &str, &str, &str)]) {
        self.mounts_of("self", lines);
    }

    /// The same of a process of its own namespace.
    pub(super) fn mounts_of(&self, process: &str, lines: &[(&str, &str, &str, &str)]) {
        let line = |(number, place, kind, source): &(&str, &str, &str, &str)| {
            format!("21 1 {number} / {place} rw,relatime shared:1 - {kind} {source} rw\n")
        };
        let text: String = lines.iter().map(line).collect();
        self.write(&format!("proc/{process}/mountinfo"), &text);
        if process != "self" {
            self.write(&format!("proc/{process}/comm"), "somebody\n");
            fs::create_dir_all(self.path(&format!("proc/{process}/ns"))).unwrap();
            let namespace = self.path(&format!("proc/{process}/ns/mnt"));
            symlink(format!("mnt:[{process}]"), namespace).unwrap();
        }
    }

    pub(super) fn storage(&self, number: Number) -> Storage {
        self.topology().storage(number.into(), None)
    }
}
