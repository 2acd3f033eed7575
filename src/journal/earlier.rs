//! Whether a run goes on where an earlier one stopped.
//!
//! It does where that one left the disk unfinished (or a new file beside it), and was bound to the same image, the same
//! disk and the same layout. What it noted is compared with the disk, never trusted.

use std::io;
use std::path::Path;

use serde::Serialize;

use super::chunks::{self, ChunkNotes, Found};
use super::read::{self, Left, Staged};
use super::{SUFFIX, chunks_beside, folder, list, name_of};
use crate::verify::Digest;

/// What a run is bound to: the notes of one serve another only where this is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bound {
    /// The digest of everything that may not differ.
    pub(crate) binding: Digest,
    /// How many chunks the disk has.
    pub(crate) chunks: u64,
}

impl Bound {
    /// Bound to all that `to` says.
    pub(crate) fn of(to: &impl Serialize, chunks: u64) -> Self {
        let text = serde_json::to_vec(to).expect("what a run is bound to is plain data");
        Self { binding: Digest::of(&text), chunks }
    }
}

/// Whether a run goes on where another stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GoOn {
    IfItCan,
    Never,
    /// What is half written cannot be gone on with: a qcow2 file without its tables.
    HasNoTables,
}

/// What an earlier run left.
#[derive(Debug)]
pub(crate) enum Earlier {
    /// Nothing that is unfinished.
    Nothing,
    /// This run goes on with it.
    GoesOn {
        /// Its journal's name.
        journal: String,
        /// The chunks that were on the disk; of several of one index the last one counts.
        chunks: Vec<(u64, Digest)>,
        /// The new file beside the disk's.
        staged: Option<Staged>,
    },
    /// Something that this run has no use for.
    StartsOver { journal: String, reason: Reason, staged: Option<Staged> },
}

/// Why a run starts over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Asked,
    Differs,
    Damaged,
    NothingNoted,
    NoTables,
}

impl Reason {
    /// The reason as the end of a sentence.
    pub(crate) fn in_words(self) -> &'static str {
        match self {
            Self::Asked => "because that was asked for",
            Self::Differs => "because the image is another one or has changed, or the disk's layout has",
            Self::Damaged => "because the journal is damaged",
            Self::NoTables => "because a qcow2 file is of no use until its tables are written",
            Self::NothingNoted => "because nothing is noted of what that run wrote",
        }
    }
}

/// Opens the notes beside a journal: those of the earlier run, or new ones.
pub(super) fn open(
    journal: &Path,
    left: &Left,
    bound: Bound,
    go_on: GoOn,
) -> io::Result<(ChunkNotes, Earlier)> {
    let path = chunks_beside(journal);
    let Some(name) = unfinished(left) else {
        return Ok((ChunkNotes::create(&path, bound.binding)?, Earlier::Nothing));
    };
    if let Some(reason) = hindrance(left, go_on) {
        let staged = left.summary.staged.clone();
        let earlier = Earlier::StartsOver { journal: name, reason, staged };
        return Ok((ChunkNotes::create(&path, bound.binding)?, earlier));
    }
    match ChunkNotes::go_on(&path, (bound.binding, bound.chunks))? {
        (Some(notes), found) => Ok((notes, judge(left, name, found))),
        (None, found) => Ok((ChunkNotes::create(&path, bound.binding)?, judge(left, name, found))),
    }
}

/// What a run that began now would find, and what else a person should know of the disk's name; writes nothing.
pub(crate) fn look(
    state_dir: &Path,
    key: &serde_json::Value,
    (bound, go_on): (Bound, GoOn),
) -> io::Result<Earlier> {
    let path = folder(state_dir).join(format!("{}{SUFFIX}", name_of(key)));
    let Some(left) = read::left_at(&path)? else { return Ok(Earlier::Nothing) };
    let Some(name) = unfinished(&left) else { return Ok(Earlier::Nothing) };
    if let Some(reason) = hindrance(&left, go_on) {
        let staged = left.summary.staged.clone();
        return Ok(Earlier::StartsOver { journal: name, reason, staged });
    }
    let found = chunks::look(&chunks_beside(&path), (bound.binding, bound.chunks))?;
    Ok(judge(&left, name, found))
}

/// Unfinished runs on other disks that bore the name `path`: their journals are left alone.
pub(crate) fn of_namesakes(
    state_dir: &Path,
    key: &serde_json::Value,
    path: &Path,
) -> io::Result<Vec<String>> {
    let ours = name_of(key);
    let others = list(state_dir)?.journals.into_iter().filter(|other| other.stem != ours);
    let others = others.filter(|other| other.is_unfinished() && Path::new(&other.last().path) == path);
    Ok(others.map(|other| other.last().journal.clone()).collect())
}

/// The name of the run that left something to go on with.
fn unfinished(left: &Left) -> Option<String> {
    let summary = &left.summary;
    let something = summary.is_unfinished() || (summary.staged.is_some() && !summary.finished);
    (something && summary.has_runs()).then(|| summary.last().journal.clone())
}

fn hindrance(left: &Left, go_on: GoOn) -> Option<Reason> {
    match go_on {
        GoOn::Never => Some(Reason::Asked),
        GoOn::HasNoTables => Some(Reason::NoTables),
        GoOn::IfItCan => left.is_damaged.then_some(Reason::Damaged),
    }
}

fn judge(left: &Left, journal: String, found: Found) -> Earlier {
    let staged = left.summary.staged.clone();
    let reason = match found {
        Found::Chunks(chunks) if !chunks.is_empty() => return Earlier::GoesOn { journal, chunks, staged },
        Found::Chunks(_) | Found::Nothing => Reason::NothingNoted,
        Found::OfAnother => Reason::Differs,
        Found::Damaged => Reason::Damaged,
    };
    Earlier::StartsOver { journal, reason, staged }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Value, json};

    use super::super::{Journal, Record};
    use super::*;

    fn begin(state: &Path, to: &str, go_on: GoOn) -> (Journal, Earlier) {
        let (journal, earlier) = Journal::begin(state, &json!("disk"), Bound::of(&to, 9), go_on).unwrap();
        let begun = Record::Begun {
            journal: journal.id(),
            instance: None,
            path: "/disk",
            pid: 1,
            started_s: 1,
            ptuuid: None,
            image: &Value::Null,
            target: &Value::Null,
            chunk_bytes: 1,
            target_bytes: 9,
            gpt: &Value::Null,
            undoes: None,
        };
        journal.record(&begun).unwrap();
        (journal, earlier)
    }

    fn interrupted(state: &Path, chunks: &[u64]) -> String {
        let (journal, _) = begin(state, "image", GoOn::IfItCan);
        journal.record(&Record::Invalidated).unwrap();
        let digest = |index: &u64| (*index, Digest::of(&index.to_le_bytes()));
        journal.note(&chunks.iter().map(digest).collect::<Vec<_>>()).unwrap();
        journal.id().to_owned()
    }

    fn seen(state: &Path, to: &str, go_on: GoOn) -> Earlier {
        look(state, &json!("disk"), (Bound::of(&to, 9), go_on)).unwrap()
    }

    #[track_caller]
    fn check_starts_over(earlier: Earlier, expected: Reason) {
        match earlier {
            Earlier::StartsOver { reason, .. } => assert_eq!(reason, expected),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_same_request_goes_on_and_another_image_starts_over() {
        let state = tempfile::tempdir().unwrap();
        assert!(matches!(seen(state.path(), "image", GoOn::IfItCan), Earlier::Nothing));
        let first = interrupted(state.path(), &[1, 2]);
        check_starts_over(seen(state.path(), "other", GoOn::IfItCan), Reason::Differs);
        check_starts_over(seen(state.path(), "image", GoOn::Never), Reason::Asked);
        for earlier in
            [seen(state.path(), "image", GoOn::IfItCan), begin(state.path(), "image", GoOn::IfItCan).1]
        {
            let Earlier::GoesOn { journal, chunks, staged: None } = earlier else { panic!("{earlier:?}") };
            assert_eq!((journal, chunks.len()), (first.clone(), 2));
        }
    }

    #[test]
    fn who_starts_over_leaves_no_notes_of_the_other_image() {
        let state = tempfile::tempdir().unwrap();
        interrupted(state.path(), &[1, 2]);
        let (journal, earlier) = begin(state.path(), "other", GoOn::IfItCan);
        check_starts_over(earlier, Reason::Differs);
        drop(journal);
        check_starts_over(seen(state.path(), "other", GoOn::IfItCan), Reason::NothingNoted);
        check_starts_over(seen(state.path(), "image", GoOn::IfItCan), Reason::Differs);
    }

    #[test]
    fn a_damaged_journal_starts_over_and_a_torn_one_does_not() {
        let state = tempfile::tempdir().unwrap();
        interrupted(state.path(), &[1, 2]);
        let path = folder(state.path()).join(format!("{}.journal", name_of(&json!("disk"))));
        let good = fs::read(&path).unwrap();
        fs::write(&path, [&good[..], b"0123456789abcdef {\"rec"].concat()).unwrap();
        assert!(matches!(seen(state.path(), "image", GoOn::IfItCan), Earlier::GoesOn { .. }));
        fs::write(&path, [&good[..], b"spoilt\n", &good[..]].concat()).unwrap();
        check_starts_over(seen(state.path(), "image", GoOn::IfItCan), Reason::Damaged);
    }

    #[test]
    fn an_unfinished_run_of_another_disk_of_that_name_is_left_alone_and_told() {
        let state = tempfile::tempdir().unwrap();
        let first = interrupted(state.path(), &[1]);
        let namesakes =
            |key: &str, path: &str| of_namesakes(state.path(), &json!(key), Path::new(path)).unwrap();
        assert_eq!(namesakes("another disk", "/disk"), [first]);
        assert!(namesakes("another disk", "/elsewhere").is_empty());
        assert!(namesakes("disk", "/disk").is_empty());
    }

    #[test]
    fn nothing_is_left_of_a_run_that_ended_well() {
        let state = tempfile::tempdir().unwrap();
        interrupted(state.path(), &[1, 2]);
        let (journal, _) = begin(state.path(), "image", GoOn::IfItCan);
        journal.finish().unwrap();
        assert_eq!(fs::read_dir(folder(state.path())).unwrap().count(), 0);
    }
}
