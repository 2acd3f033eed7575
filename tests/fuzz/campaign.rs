//! Images at random, and the verdict on what the library makes of each.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use reimage::{ErrorKind, TargetState};
use tempfile::TempDir;

use crate::draft::Draft;
use crate::engine::{self, Answers, Asked, Fault, OLD};
use crate::mutate::Kind;
use crate::random::Random;
use crate::slow_reader::{self, Format, MOST_BYTES, Refused, Stage};
use crate::stored;

/// What the engine may use for an image; the test's disk of up to 16 MiB counts too.
pub(crate) const MEMORY_MAX: usize = 128 << 20;

const MARKER: &[u8] = b"reimage: unfinished rebuild\n";

/// How many images there are, and the first one's `rng_seed`.
pub(crate) struct Campaign {
    pub(crate) images: u64,
    pub(crate) rng_seed: u64,
}

impl Campaign {
    /// As the environment says it: `REIMAGE_FUZZ_IMAGES`, `REIMAGE_FUZZ_SEED`.
    pub(crate) fn of(images: u64) -> Self {
        let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
        let images = number("REIMAGE_FUZZ_IMAGES").unwrap_or(images);
        Self { images, rng_seed: number("REIMAGE_FUZZ_SEED").unwrap_or(1) }
    }
}

/// The stored images, unpacked.
pub(crate) struct Library {
    drafts: Vec<(String, Draft)>,
    files: BTreeMap<&'static str, Vec<u8>>,
}

impl Library {
    pub(crate) fn new() -> Self {
        let all = stored::all();
        let files = all
            .iter()
            .flat_map(|image| stored::below(&image.name))
            .map(|file| (*file, stored::unpacked(file)));
        let files = files.collect();
        let draft = |image: stored::Stored| {
            let bytes = stored::unpacked(&format!("{}.qcow2", image.name));
            (image.name, Draft::new(bytes))
        };
        Self { drafts: all.into_iter().map(draft).collect(), files }
    }
}

/// One damaged image in a folder of its own.
pub(crate) struct Case {
    pub(crate) rng_seed: u64,
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) folder: TempDir,
    /// What it held before.
    pub(crate) whole: Draft,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rng_seed, kind, name, .. } = self;
        write!(f, "{name} damaged by {kind:?} with REIMAGE_FUZZ_SEED={rng_seed} REIMAGE_FUZZ_IMAGES=1")
    }
}

impl Case {
    pub(crate) fn new(library: &Library, rng_seed: u64) -> Self {
        // Neighbours would begin with numbers that are near each other.
        let mut random = Random::new(Random::new(rng_seed).next());
        let kind = Kind::any(&mut random);
        let (name, whole) = &library.drafts[random.place(library.drafts.len())];
        let (_, other) = &library.drafts[random.place(library.drafts.len())];
        let mut draft = whole.clone();
        kind.apply(&mut draft, other, &mut random);
        let folder = stored::scratch();
        for file in stored::below(name).iter().chain(&["chain-base.raw"]) {
            stored::write_sparse(&folder.path().join(file), &library.files[file]);
        }
        stored::write_sparse(&folder.path().join("image.qcow2"), &draft.bytes);
        Self { rng_seed, kind, name: name.clone(), folder, whole: whole.clone() }
    }

    pub(crate) fn image(&self) -> std::path::PathBuf {
        self.folder.path().join("image.qcow2")
    }

    /// What the slow reader says.
    pub(crate) fn verdict(&self) -> Result<slow_reader::Disk, Refused> {
        slow_reader::read(&self.image(), Format::Qcow2, &[self.folder.path()])
    }

    pub(crate) fn asked(&self, verdict: &Result<slow_reader::Disk, Refused>) -> Asked {
        let size = verdict.as_ref().map_or(2 << 20, |disk| disk.size.min(MOST_BYTES));
        let disk_size = usize::try_from(size).unwrap().next_multiple_of(512) + 8192;
        let deep = verdict.as_ref().is_ok_and(|disk| disk.bytes.is_some()) || payload_is_bad(verdict);
        let (image, folder) = (self.image(), self.folder.path().to_owned());
        Asked { image, folder, disk_size, deep }
    }

    /// What the undamaged image holds.
    fn disk_before(&self) -> Vec<u8> {
        let path = self.folder.path().join("whole.qcow2");
        stored::write_sparse(&path, &self.whole.bytes);
        let disk = slow_reader::read(&path, Format::Qcow2, &[self.folder.path()]);
        disk.expect("the image was whole").bytes.expect("the stored images are small")
    }
}

fn payload_is_bad(verdict: &Result<slow_reader::Disk, Refused>) -> bool {
    matches!(verdict, Err(Refused { stage: Stage::Payload, .. }))
}

/// How an image ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    /// Done, and the disk is right.
    Equal,
    /// Refused before the disk was touched, as the slow reader does.
    Refused,
    /// A compressed cluster is bad, and the disk says that it is unfinished.
    BadPayload,
    /// The slow reader leaves it open, and the library reads it: rightly.
    OddEqual,
    /// The slow reader leaves it open, and the library refuses it.
    OddRefused,
    /// Its disk is larger than what is copied here; both read its tables alike.
    Large,
}

/// Compares what the library says with what the slow reader says.
pub(crate) fn judge(
    case: &Case,
    verdict: Result<slow_reader::Disk, Refused>,
    answers: &Answers,
) -> Result<End, String> {
    if answers.memory > MEMORY_MAX {
        return Err(format!("{} bytes of memory", answers.memory));
    }
    let Answers { tables, deep, rebuild, disk, .. } = answers;
    for fault in
        [tables.as_ref().err(), deep.as_ref().and_then(|deep| deep.as_ref().err())].into_iter().flatten()
    {
        if fault.kind != ErrorKind::Image {
            return Err(format!("another error than one of the image: {fault}"));
        }
    }
    if let Err(fault) = rebuild {
        check_fault(fault, disk)?;
    }
    if (tables.is_err() || deep.as_ref().is_some_and(Result::is_err)) && rebuild.is_ok() {
        return Err("the rebuild takes what inspect refuses".to_owned());
    }
    if case.kind.is_benign() {
        return match (&verdict, rebuild) {
            (Ok(_), Ok(())) => holds(disk, &case.disk_before()).map(|()| End::Equal),
            _ => Err("harmless damage is refused".to_owned()),
        };
    }
    match verdict {
        Err(Refused { stage: Stage::Tables, .. }) => match tables {
            Err(_) if untouched(rebuild) => Ok(End::Refused),
            _ => Err("accepted, and to be refused".to_owned()),
        },
        // `inspect` looks at the partition table, which may lie in a bad cluster; the rebuild may begin.
        Err(Refused { stage: Stage::Payload, .. }) => match (deep, rebuild) {
            (Some(Err(_)), Err(_)) if untouched(rebuild) => Ok(End::Refused),
            (Some(Err(_)), Err(fault)) if fault.kind == ErrorKind::ImageFault => Ok(End::BadPayload),
            _ => Err("a bad compressed cluster is accepted".to_owned()),
        },
        Ok(judged) => {
            let odd = !judged.oddities.is_empty();
            match (&judged.bytes, tables, rebuild) {
                (Some(bytes), Ok(()), Ok(())) => {
                    let end = if odd { End::OddEqual } else { End::Equal };
                    holds(disk, bytes).map(|()| end)
                }
                (None, Ok(()), Err(fault)) if fault.kind == ErrorKind::DoesNotFit => Ok(End::Large),
                // `inspect` decodes what lies at both ends of the disk; of a large one the slow reader decodes nothing.
                (None, Err(fault), Err(_)) if fault.text.contains("a compressed cluster") => Ok(End::Large),
                (_, _, Err(_)) if odd => Ok(End::OddRefused),
                _ => Err("a lawful image is refused".to_owned()),
            }
        }
    }
}

fn said(verdict: &Result<slow_reader::Disk, Refused>) -> String {
    match verdict {
        Ok(disk) => disk.to_string(),
        Err(refused) => refused.to_string(),
    }
}

fn untouched(rebuild: &Result<(), Fault>) -> bool {
    matches!(rebuild, Err(fault) if fault.state == TargetState::Untouched)
}

/// The error of a rebuild is about the image, and says what is true of the disk.
fn check_fault(fault: &Fault, disk: &[u8]) -> Result<(), String> {
    let right = match (fault.kind, fault.state) {
        (ErrorKind::Image | ErrorKind::DoesNotFit, TargetState::Untouched) => {
            disk.iter().all(|byte| *byte == OLD)
        }
        (ErrorKind::ImageFault, state) => state != TargetState::Untouched && disk.starts_with(MARKER),
        _ => false,
    };
    if right {
        Ok(())
    } else {
        Err("an error that is not about the image, or not true of the disk".to_owned())
    }
}

fn holds(disk: &[u8], expected: &[u8]) -> Result<(), String> {
    let (head, rest) = disk.split_at(expected.len());
    match head.iter().zip(expected).position(|(found, right)| found != right) {
        Some(at) => Err(format!("byte {at} is {:#x} and should be {:#x}", head[at], expected[at])),
        None if rest.iter().any(|byte| *byte != 0) => Err("no zeroes behind the end".to_owned()),
        None => Ok(()),
    }
}

/// Figures by kind of damage and by end.
#[derive(Default)]
pub(crate) struct Figures {
    ends: BTreeMap<Kind, BTreeMap<End, u64>>,
    most_memory: usize,
}

impl Figures {
    pub(crate) fn add(&mut self, kind: Kind, end: End, memory: usize) {
        *self.ends.entry(kind).or_default().entry(end).or_default() += 1;
        self.most_memory = self.most_memory.max(memory);
    }

    pub(crate) fn total(&self, end: End) -> u64 {
        self.ends.values().filter_map(|ends| ends.get(&end)).sum()
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ENDS: [End; 6] =
            [End::Equal, End::Refused, End::BadPayload, End::OddEqual, End::OddRefused, End::Large];
        writeln!(f, "{:12}{}", "", ENDS.map(|end| format!("{:>12}", format!("{end:?}"))).concat())?;
        for (kind, ends) in &self.ends {
            let cells = ENDS.map(|end| format!("{:>12}", ends.get(&end).copied().unwrap_or_default()));
            writeln!(f, "{:12}{}", format!("{kind:?}"), cells.concat())?;
        }
        let cells = ENDS.map(|end| format!("{:>12}", self.total(end)));
        writeln!(f, "{:12}{}", "all", cells.concat())?;
        write!(f, "memory: at most {} KiB", self.most_memory >> 10)
    }
}

/// Keeps the image of a case that failed, and fails.
#[track_caller]
pub(crate) fn fail(case: Case, why: &str) -> ! {
    let text = case.to_string();
    let kept = case.folder.keep();
    panic!("{text}: {why}; it is kept in {}", kept.display());
}

#[test]
fn no_mutation_panics_hangs_passes_its_bound_or_comes_out_wrong() {
    let Campaign { images, rng_seed } = Campaign::of(500);
    let library = Library::new();
    let mut figures = Figures::default();
    for rng_seed in rng_seed..rng_seed + images {
        let case = Case::new(&library, rng_seed);
        let verdict = case.verdict();
        let asked = case.asked(&verdict);
        let told = said(&verdict);
        let answers = engine::ask(&asked).unwrap_or_else(|why| fail_of(&library, rng_seed, &why));
        match judge(&case, verdict, &answers) {
            Ok(end) => figures.add(case.kind, end, answers.memory),
            Err(why) => fail(case, &format!("{why}\nslow reader: {told}\nlibrary: {answers}\n")),
        }
    }
    println!("{figures}");
    assert!(images < 100 || figures.total(End::Equal) > images / 5, "too few are read\n{figures}");
    assert!(images < 100 || figures.total(End::Refused) > images / 10, "too few are refused\n{figures}");
}

fn fail_of<T>(library: &Library, rng_seed: u64, why: &str) -> T {
    fail(Case::new(library, rng_seed), why)
}

/// A file that is replaced whole is the new disk or the old one, and nothing is left beside it.
#[test]
fn a_file_is_replaced_by_a_good_image_only() {
    let Campaign { images, rng_seed } = Campaign::of(500);
    let library = Library::new();
    let old = vec![OLD; 1 << 20];
    let mut replaced = 0;
    for rng_seed in (rng_seed..rng_seed + images).step_by(10) {
        let case = Case::new(&library, rng_seed);
        let verdict = case.verdict();
        let asked = Asked { folder: case.folder.path().to_owned(), ..case.asked(&verdict) };
        let home = stored::scratch();
        let file = home.path().join("system.raw");
        std::fs::write(&file, &old).unwrap();
        let found = |path: &Path| std::fs::read(path).unwrap();
        let why = match (engine::replace(&asked, &file), verdict) {
            (Ok(()), Ok(disk)) => {
                replaced += 1;
                let bytes = disk.bytes.unwrap_or_default();
                holds(&found(&file), &bytes).err()
            }
            (Ok(()), Err(refused)) => Some(format!("replaced by what is {refused}")),
            (Err(fault), _) if found(&file) != old => Some(format!("changed by what fails: {fault}")),
            (Err(_), _) => None,
        };
        let why = why.or_else(|| {
            let beside = std::fs::read_dir(home.path()).unwrap().count();
            (beside != 1).then(|| format!("{beside} files are there"))
        });
        if let Some(why) = why {
            fail(case, &why);
        }
    }
    assert!(images < 100 || replaced > images / 100, "{replaced} were replaced");
}
