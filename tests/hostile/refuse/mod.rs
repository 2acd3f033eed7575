//! The table of what is refused: how each of its rows is checked.

mod chain;
mod content;
mod header;
mod kinds;
mod payload;
mod shared;
mod tables;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use serde_json::Value;

use crate::build::zstd;
use crate::run::{Ran, Room, reimage};

/// What no refusal may take.
pub(crate) const MOST_TIME: Duration = Duration::from_secs(1);
pub(crate) const MOST_MEMORY: u64 = 128 << 20;

/// Makes an image, and what belongs to it, in a folder; returns its path.
type Maker = Box<dyn Fn(&Path) -> PathBuf + Send + Sync>;

/// When a fault can be found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    /// When the image's metadata is checked.
    AtOnce,
    /// When the cluster is decoded: before anything is written with `--preflight deep` only.
    WhenDecoded,
    /// When the disk turns out to be too small for it; without a disk there is nothing to refuse.
    ByTheDisk,
}

/// One image that must be refused.
pub(crate) struct Row {
    name: String,
    make: Maker,
    flags: &'static [&'static str],
    /// A piece of the message that says what is wrong.
    words: &'static str,
    /// Where in the file.
    offset: Option<u64>,
    /// Further places that the message tells.
    names: Vec<u64>,
    /// The file that is at fault, where it is not the image.
    file: Option<&'static str>,
    /// The section of the specification whose rule it breaks.
    section: Option<&'static str>,
    found: Found,
}

impl Row {
    fn made(name: impl Into<String>, make: Maker, words: &'static str) -> Self {
        let (flags, found) = (&[][..], Found::AtOnce);
        Self {
            name: name.into(),
            make,
            flags,
            words,
            offset: None,
            names: Vec::new(),
            file: None,
            section: None,
            found,
        }
    }

    /// A file of these bytes.
    fn named(name: impl Into<String>, file: &'static str, bytes: Vec<u8>, words: &'static str) -> Self {
        // What a process has at its beginning counts as its memory, and that is what this one has: so it has little.
        let packed = zstd(&bytes);
        let make = move |folder: &Path| {
            let path = folder.join(file);
            std::fs::write(&path, unpacked(&packed)).unwrap();
            path
        };
        Self::made(name, Box::new(make), words)
    }

    /// The same under the name of a qcow2 file.
    fn new(name: impl Into<String>, bytes: Vec<u8>, words: &'static str) -> Self {
        Self::named(name, "image.qcow2", bytes, words)
    }

    fn at(self, offset: u64) -> Self {
        Self { offset: Some(offset), ..self }
    }

    fn names(self, places: impl Into<Vec<u64>>) -> Self {
        Self { names: places.into(), ..self }
    }

    fn flags(self, flags: &'static [&'static str]) -> Self {
        Self { flags, ..self }
    }

    fn in_file(self, file: &'static str) -> Self {
        Self { file: Some(file), ..self }
    }

    fn section(self, section: &'static str) -> Self {
        Self { section: Some(section), ..self }
    }

    fn when_decoded(self) -> Self {
        Self { found: Found::WhenDecoded, ..self }
    }

    fn by_the_disk(self) -> Self {
        Self { found: Found::ByTheDisk, ..self }
    }

    /// Everything that is wrong with how the program answers.
    fn check(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut note = |about: &str, faults: Vec<String>| {
            wrong.extend(faults.into_iter().map(|fault| format!("{}, {about}: {fault}", self.name)));
        };
        let deep: &[&str] = if self.found == Found::WhenDecoded { &["--preflight", "deep"] } else { &[] };
        let room = Room::new();
        let image = (self.make)(&room.images());
        let image = image.to_str().unwrap();
        for place in [&[][..], &["--in-place"]] {
            let flags = [self.flags, deep, place].concat();
            let ran = in_time(|| room.rebuild(image, &flags));
            note(&flags.join(" "), self.faults(&ran, 20));
            note(&flags.join(" "), room.changes().map(String::from).into_iter().collect());
        }
        if self.found != Found::ByTheDisk {
            let words = [&["inspect", "--json", image], self.flags, deep].concat();
            note("inspect", self.faults(&in_time(|| reimage(room.path(), &words)), 20));
        }
        if self.found != Found::ByTheDisk {
            let words = [&["inspect", "--check", "--json", image], self.flags].concat();
            note("inspect --check", self.faults_of_check(&in_time(|| reimage(room.path(), &words))));
        }
        if self.found == Found::WhenDecoded {
            let ran = room.rebuild(image, self.flags);
            note("replaced", self.faults(&ran, 32));
            note("replaced", room.changes().map(String::from).into_iter().collect());
            note("in place", self.unfinished(&room, image));
        }
        wrong
    }

    fn unfinished(&self, room: &Room, image: &str) -> Vec<String> {
        let flags = [self.flags, &["--in-place"]].concat();
        let ran = room.rebuild(image, &flags);
        let mut wrong = self.faults_of(&ran, 32, &["invalidated", "partial"]);
        if !room.disk().starts_with(b"reimage: unfinished rebuild") {
            wrong.push("the disk does not say that it is unfinished".into());
        }
        wrong
    }

    /// The same of a check, among whose findings is what the row is about.
    fn faults_of_check(&self, ran: &Ran) -> Vec<String> {
        let findings = ran.document["findings"].as_array().cloned().unwrap_or_default();
        let is_it = |finding: &Value| {
            let message = finding["message"].as_str().unwrap_or_default();
            message.contains(self.words)
                && finding["offset"].as_u64() == self.offset
                && finding["refused"] == true
        };
        let mut wrong = Vec::new();
        if ran.code != Some(20) || !findings.iter().any(is_it) {
            wrong.push(format!("does not find {:?} at {:?}: {ran:?}", self.words, self.offset));
        }
        if ran.stderr.contains("panicked") || ran.memory > MOST_MEMORY || ran.wall > MOST_TIME {
            wrong.push(format!("{:?}, {} MiB: {}", ran.wall, ran.memory >> 20, ran.stderr));
        }
        wrong
    }

    fn faults(&self, ran: &Ran, code: i32) -> Vec<String> {
        self.faults_of(ran, code, &["untouched"])
    }

    fn faults_of(&self, ran: &Ran, code: i32, states: &[&str]) -> Vec<String> {
        let mut wrong = Vec::new();
        let error = &ran.document["error"];
        if ran.code != Some(code) || error["code"] != code {
            return vec![format!("not {code}: {ran:?}")];
        }
        let message = error["message"].as_str().unwrap_or_default();
        if !message.contains(self.words) {
            wrong.push(format!("does not say {:?}: {message}", self.words));
        }
        if error["offset"].as_u64() != self.offset {
            wrong.push(format!("is at {}, and not at {:?}: {message}", error["offset"], self.offset));
        }
        let says = |place: &u64| {
            message.split(|letter: char| !letter.is_ascii_digit()).any(|word| word == place.to_string())
        };
        if let Some(place) = self.names.iter().find(|place| !says(place)) {
            wrong.push(format!("does not name {place}: {message}"));
        }
        let file = self.file.map_or_else(Default::default, |file| format!("/{file}"));
        if !error["path"].as_str().is_some_and(|path| path.ends_with(&file)) {
            wrong.push(format!("is of {}, and not of {file}: {message}", error["path"]));
        }
        let hint = error["hint"].as_str().unwrap_or_default();
        let rule = self.section.map(|section| format!("docs/interop/qcow2, {section:?}")).unwrap_or_default();
        if hint.is_empty() || !hint.contains(&rule) {
            wrong.push(format!("the hint has no {rule}: {hint}"));
        }
        if !states.iter().any(|state| error["target_state"] == *state) {
            wrong.push(format!("says that the disk is {}", error["target_state"]));
        }
        if ran.stderr.contains("panicked") {
            wrong.push(format!("panicked: {}", ran.stderr));
        }
        if ran.memory > MOST_MEMORY {
            wrong.push(format!("took {} MiB of memory", ran.memory >> 20));
        }
        // What is refused is refused at once; a copy that fails takes its time.
        if code == 20 && ran.wall > MOST_TIME {
            wrong.push(format!("took {:?}", ran.wall));
        }
        wrong
    }
}

/// A run in its time. One that was slow is repeated alone: on a busy machine everything may be.
pub(crate) fn in_time(run: impl Fn() -> Ran) -> Ran {
    static ALONE: Mutex<()> = Mutex::new(());
    let mut ran = run();
    for _ in 0..2 {
        if ran.wall <= MOST_TIME {
            break;
        }
        let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let nothing = reimage(Room::new().path(), &["inspect", "--json", "nothing"]);
        ran = run();
        // As many times longer as the least that there is to do took longer than it should.
        let slowness = nothing.wall.as_secs_f64() / 0.05;
        ran.wall = ran.wall.div_f64(slowness.max(1.0));
    }
    ran
}

fn unpacked(packed: &[u8]) -> Vec<u8> {
    let len = zstd_safe::get_frame_content_size(packed).unwrap().unwrap();
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    zstd_safe::decompress(&mut bytes[..], packed).unwrap();
    bytes
}

/// Checks rows on several threads, and fails with everything that is wrong.
#[track_caller]
fn check(rows: Vec<Row>) {
    let only = std::env::var("HOSTILE_ROW").unwrap_or_default();
    let rows: Vec<_> = rows.into_iter().filter(|row| row.name.contains(&only)).collect();
    let wrong = crate::run::on_threads(&rows, Row::check);
    assert!(wrong.is_empty(), "{} faults:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn no_two_rows_have_one_name_and_there_are_more_than_a_hundred() {
    let all = [
        header::rows(),
        tables::rows(),
        shared::rows(),
        payload::rows(),
        chain::rows(),
        content::rows(),
        kinds::rows(),
    ];
    let names: Vec<_> = all.into_iter().flatten().map(|row| row.name).collect();
    assert!(names.len() > 100, "{} rows", names.len());
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
}
