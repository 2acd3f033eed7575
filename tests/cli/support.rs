//! A temporary folder with images and disks, and the command run in it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use sha2::{Digest, Sha256};

pub(crate) use crate::seen::Seen;
use crate::stored_images;

pub(crate) const PASSWORD: &str = "correct horse battery staple";

/// A temporary folder that a test has to itself.
pub(crate) struct Room(tempfile::TempDir);

impl Room {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A file with these bytes.
    pub(crate) fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// A file of bytes that no image holds.
    pub(crate) fn old_disk(&self, name: &str, len: usize) -> PathBuf {
        let bytes: Vec<u8> = (1..=251).cycle().step_by(7).take(len).collect();
        self.file(name, bytes)
    }

    /// One of the images in `testdata/images`, unpacked.
    pub(crate) fn image(&self, name: &str) -> PathBuf {
        self.stored(&format!("{name}.qcow2"))
    }

    /// One of the files in `testdata/images`, unpacked.
    pub(crate) fn stored(&self, name: &str) -> PathBuf {
        self.file(name, stored_images::unpacked(name))
    }

    /// The command with its words, and a state folder and a home of its own.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_reimage"));
        command.args(words).env_clear().env("HOME", self.0.path()).env("XDG_STATE_HOME", self.path("state"));
        command.current_dir(self.0.path()).stdin(Stdio::null());
        command
    }

    /// Runs a command that takes a state folder; the image's credentials are kept.
    pub(crate) fn run(&self, verb: &str, words: &[&str]) -> Ran {
        let mut command = self.command([verb, "--json", "--keep-image-credentials"]);
        Ran::of(command.args(["--state-dir", "state"]).args(words).output().unwrap())
    }

    pub(crate) fn rebuild(&self, words: &[&str]) -> Ran {
        self.run("rebuild", &[words, &["--yes"]].concat())
    }

    /// Runs the command with these words and nothing else.
    pub(crate) fn plain(&self, words: &[&str]) -> Ran {
        Ran::of(self.command(words).output().unwrap())
    }

    /// The names of the files in the folder that no state folder is.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name != "state");
        names.sort();
        names
    }
}

/// What a run printed, and its exit code.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The one JSON document on standard output of a run that went well.
    #[track_caller]
    pub(crate) fn document(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.json()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The error document of a run that ended with this exit code.
    #[track_caller]
    pub(crate) fn error(&self, code: i32) -> Value {
        assert_eq!(self.code, Some(code), "{self:?}");
        let error = self.json()["error"].take();
        assert_eq!(error["code"], code, "{self:?}");
        error
    }
}

/// Size and SHA-256 of an image's disk by qemu-img.
#[track_caller]
pub(crate) fn expected(name: &str) -> (u64, String) {
    let stored = stored_images::all().into_iter().find(|stored| stored.name == name).unwrap();
    (stored.size, stored.sha256)
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
