//! Goal: the walls between the rooms stand, and what ARCHITECTURE.md names is there.
//! Method: read every source file's paths, and compare them with the table of ARCHITECTURE.md.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const MOST_LINES: usize = 500;

/// Which rooms a room may know; `range` and `error` are free to all, and a room knows itself.
fn walls() -> BTreeMap<&'static str, &'static [&'static str]> {
    // It may know what was asked, and runs gpgv.
    let trust: &[&str] = &["request", "sys"];
    let policy: &[&str] = &[
        "copy", "guard", "image", "journal", "layout", "manifest", "observe", "plan", "prune", "rebuild",
        "receipt", "request", "seed", "sys", "target", "trust", "verify",
    ];
    // They compare a disk as `verify` does, with something else than its image.
    let compares: &[&str] = &[
        "copy", "image", "inspect", "layout", "observe", "plan", "range", "rebuild", "request", "seed",
        "sys", "target", "verify",
    ];
    // It looks at the disks that dead runs left, and removes only what lies in the state folder or beside a disk.
    let prune: &[&str] = &["guard", "inspect", "journal", "layout", "sys"];
    let status: &[&str] = &[
        "guard", "inspect", "journal", "layout", "observe", "plan", "receipt", "request", "target", "verify",
    ];
    // It joins the rooms as `rebuild` does, which it calls to write a copy back.
    let undo: &[&str] = &[
        "guard", "journal", "layout", "observe", "plan", "prune", "rebuild", "receipt", "request", "seed",
        "status", "target",
    ];
    BTreeMap::from([
        ("range", &[][..]),
        ("error", &[][..]),
        ("sys", &[]),
        ("observe", &[]),
        ("request", &[]),
        ("verify", &["sys", "target"]),
        ("image", &["sys", "verify"]),
        ("layout", &[]),
        ("guard", &["request", "sys", "layout"]),
        // Only how a qcow2 file is put together: it reads none, so that what it wrote is checked by another.
        ("target", &["guard", "image", "request", "sys", "verify"]),
        ("journal", &["sys", "verify"]),
        ("copy", &["image", "target", "verify", "observe", "sys"]),
        ("seed", &["request", "sys"]),
        ("plan", policy),
        ("rebuild", policy),
        ("capture", policy),
        ("inspect", policy),
        ("manifest", compares),
        ("receipt", compares),
        ("reseed", &["guard", "request", "seed"]),
        ("status", status),
        ("prune", prune),
        ("trust", trust),
        ("undo", undo),
        (
            "lib",
            &[
                "capture", "inspect", "copy", "guard", "image", "journal", "layout", "manifest", "observe",
                "plan", "prune", "rebuild", "receipt", "request", "reseed", "seed", "status", "sys",
                "target", "trust", "undo", "verify",
            ],
        ),
    ])
}

/// Arrows to one item of a room only: the rest of that room stays unknown.
const NARROW: [(&str, &str, &[&str]); 7] = [
    ("verify", "target", &["Disk", "TargetError"]),
    ("image", "verify", &["Digest"]),
    ("journal", "verify", &["Digest"]),
    ("target", "guard", &["Claim", "Held", "Promise"]),
    (
        "target",
        "image",
        &[
            "Compression",
            "NewHeader",
            "OFFSET_MASK",
            "Version",
            "encode_header",
            "plain_entry",
            "room_for_name",
        ],
    ),
    ("target", "request", &["Placement"]),
    ("copy", "image", &TO_COPY),
];

/// What `copy` knows of an image, and of a new one: how it is read and made, not what lies in the file.
const TO_COPY: [&str; 13] = [
    "Compressor",
    "Decoder",
    "Extent",
    "ExtentKind",
    "FilePart",
    "Finished",
    "Image",
    "ImageError",
    "ImageWriter",
    "NewImage",
    "NewImageError",
    "Pulse",
    "Stored",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.extension().is_some_and(|name| name == "rs") => found.push(path),
                false => {}
            }
        }
    }
    found.sort();
    assert!(found.len() > 10, "the sources are found");
    found
}

/// The room a file belongs to: its first folder below `src`, or its own name.
fn room_of(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("src")).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// Without comments, and without what only tests see.
fn code_of(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let kept = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    kept.collect::<Vec<_>>().join("\n")
}

/// The rooms and items behind every `crate::` path, `use` groups of one level included.
fn arrows(code: &str, crate_name: &str) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    // Groups of groups would hide an arrow from this reader, and from others.
    assert!(!code.contains(&format!("{crate_name}{{")), "`{crate_name}{{` hides which rooms are known");
    for (at, _) in code.match_indices(crate_name) {
        let path = &code[at + crate_name.len()..];
        let is_name = |letter: char| letter.is_alphanumeric() || letter == '_';
        let names = |text: &str| text.split(is_name_end).map(str::to_owned).collect::<Vec<_>>();
        let (room, rest) = path.split_at(path.find(|letter| !is_name(letter)).unwrap_or(path.len()));
        let Some(rest) = rest.strip_prefix("::") else {
            found.insert((room.to_owned(), String::new()));
            continue;
        };
        let group = match rest.strip_prefix('{') {
            Some(group) => {
                let group = group.split('}').next().unwrap();
                assert!(!group.contains("::{"), "a group in a group hides what is known: {group}");
                names(group)
            }
            None => vec![rest.split(|letter| !is_name(letter)).next().unwrap().to_owned()],
        };
        for item in group.into_iter().filter(|item| !item.is_empty() && item != "self") {
            found.insert((room.to_owned(), item));
        }
    }
    found
}

fn is_name_end(letter: char) -> bool {
    !(letter.is_alphanumeric() || letter == '_')
}

fn broken_walls(path: &Path, code: &str) -> Vec<String> {
    let room = room_of(path);
    let walls = walls();
    let Some(allowed) = walls.get(room.as_str()) else {
        return vec![format!("{}: the room {room} has no walls", path.display())];
    };
    let mut broken = Vec::new();
    for (other, item) in arrows(code, "crate::") {
        if other == room || other == "range" || other == "error" || !walls.contains_key(other.as_str()) {
            continue;
        }
        let narrow = NARROW.iter().find(|(from, to, _)| *from == room && *to == other);
        let known = allowed.contains(&other.as_str())
            && narrow.is_none_or(|(_, _, items)| item.is_empty() || items.contains(&item.as_str()));
        if !known {
            broken.push(format!("{}: {room} must not know {other}::{item}", path.display()));
        }
    }
    broken
}

#[test]
fn no_room_knows_what_it_may_not_know() {
    let library = sources(&root().join("src")).into_iter().filter(|path| room_of(path) != "bin");
    // What only tests see may make images to look at.
    let library = library.filter(|path| !path.ends_with("tests.rs"));
    let broken: Vec<_> = library.flat_map(|path| broken_walls(&path, &code_of(&path))).collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn a_broken_wall_is_seen() {
    let seed = root().join("src/seed/mod.rs");
    assert_eq!(broken_walls(&seed, "use crate::target::Target;").len(), 1);
    assert_eq!(broken_walls(&seed, "fn f() { crate::image::open() }").len(), 1);
    assert_eq!(broken_walls(&seed, "use crate::request::SeedSpec;"), Vec::<String>::new());
    let hidden =
        std::panic::catch_unwind(|| broken_walls(&seed, "use crate::{image::open, target::Target};"));
    assert!(hidden.is_err(), "a group behind `crate::` is not read");
    let copy = root().join("src/copy/units.rs");
    assert_eq!(broken_walls(&copy, "use crate::image::{Extent, OpenOptions};").len(), 1);
}

#[test]
fn no_file_is_longer_than_can_be_read_at_once() {
    for path in sources(&root().join("src")) {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= MOST_LINES, "{}: {lines} lines", path.display());
    }
}

#[test]
fn unsafe_code_lives_in_sys_alone() {
    for path in sources(&root().join("src")) {
        let code = code_of(&path).replace("deny(unsafe_code)", "");
        assert!(!code.contains("unsafe") || room_of(&path) == "sys", "{}", path.display());
    }
}

#[test]
fn the_library_is_silent() {
    for path in sources(&root().join("src")).iter().filter(|path| room_of(path) != "bin") {
        let code = code_of(path);
        for word in ["println!", "eprint", "print!", "dbg!", "log::", "process::exit", "env::var", "todo!"] {
            assert!(!code.contains(word), "{word} in {}", path.display());
        }
    }
}

#[test]
fn every_name_in_the_map_exists() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let sources = sources(&root().join("src"));
    let code: String = sources.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let quoted =
        map.split('`').skip(1).step_by(2).filter(|name| !name.contains([' ', '\n', '-', '$', '|', '=', '<']));
    let mut checked = 0;
    for name in quoted {
        let last = name.trim_end_matches("()").rsplit("::").next().unwrap();
        let there = match name.contains('/')
            || name.ends_with(".rs")
            || name.ends_with(".toml")
            || name.ends_with(".md")
        {
            true => ["", "src"].iter().any(|folder| root().join(folder).join(name).exists()),
            false => is_defined(&code, last) || root().join(name).exists(),
        };
        assert!(there, "ARCHITECTURE.md names `{name}`, which is not there");
        checked += 1;
    }
    assert!(checked > 20, "{checked} names were checked");
}

/// Whether the code defines or names something by that word, or Cargo.toml depends on it.
fn is_defined(code: &str, name: &str) -> bool {
    let kinds = ["fn", "struct", "enum", "trait", "mod", "const", "type"];
    let defined = |kind: &&str| {
        code.match_indices(&format!("{kind} {name}")).any(|(at, found)| {
            let next = code[at + found.len()..].chars().next();
            next.is_none_or(|next| !next.is_alphanumeric() && next != '_')
        })
    };
    let variant = |code: &str| {
        code.contains(&format!("    {name},"))
            || code.contains(&format!("    {name}("))
            || code.contains(&format!("    {name} {{"))
    };
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    kinds.iter().any(defined) || variant(code) || manifest.contains(name) || KNOWN_ELSEWHERE.contains(&name)
}

/// Names of the kernel's and of other programs that the map speaks of.
const KNOWN_ELSEWHERE: [&str; 6] = ["BLKZEROOUT", "Debug", "unsafe", "b3sum", "log", "cli"];
