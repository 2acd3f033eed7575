//! The unfinished images of captures that are dead.

use std::io;
use std::path::Path;

use super::{HELD, PruneReport};
use crate::journal::captures::{self, Found, Says};
use crate::sys::beside::{self, Leftover};

/// Removes the files that dead captures were writing, and the notes that name them.
pub(super) fn prune(state_dir: &Path, report: &mut PruneReport) -> io::Result<()> {
    for found in captures::list(state_dir)? {
        if let Err(error) = prune_one(&found, report) {
            report.kept(&found.path, format!("it cannot be removed: {error}"));
        }
    }
    Ok(())
}

fn prune_one(found: &Found, report: &mut PruneReport) -> io::Result<()> {
    let reason = match &found.says {
        Says::Held => {
            report.kept(&found.path, HELD);
            return Ok(());
        }
        Says::Nothing => "its capture ended before it had said anything",
        Says::Left(files) => {
            let mut stays = None;
            for left in files {
                match beside::remove_leftover(&left.path, (left.device, left.inode))? {
                    Leftover::Gone => {}
                    Leftover::Removed => {
                        report.removed(&left.path, "the capture that was writing it has ended")
                    }
                    Leftover::Stays(reason) => {
                        report.kept(&left.path, reason);
                        stays = Some(&left.path);
                    }
                }
            }
            if let Some(path) = stays {
                report.kept(&found.path, format!("it names {path:?}, which stays"));
                return Ok(());
            }
            "its capture has ended"
        }
    };
    match found.remove()? {
        true => report.removed(&found.path, reason),
        false => report.kept(&found.path, "a capture has taken it just now"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::journal::captures::{CaptureNote, Unfinished};

    #[test]
    fn the_file_of_a_dead_capture_goes_with_its_note_and_no_other_file_does() {
        for (name, made_by_it, goes) in [
            (".image.reimage-unfinished", true, true),
            (".image.reimage-unfinished", false, false),
            ("precious", true, false),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let (state, path) = (folder.path().join("state"), folder.path().join(name));
            fs::write(&path, "half").unwrap();
            let of = path.metadata().unwrap();
            let inode = if made_by_it { of.ino() } else { of.ino() + 1 };
            let unfinished = Unfinished { path: path.clone(), device: of.dev(), inode };
            let note = CaptureNote::begin(&state, &[unfinished]).unwrap();
            let mut report = PruneReport::default();
            prune(&state, &mut report).unwrap();
            assert!(report.removed.is_empty() && report.kept[0].reason == HELD, "{report:?}");
            // What a process leaves that is killed: the note without its lock.
            let found = captures::list(&state).unwrap().remove(0).path;
            let text = fs::read(&found).unwrap();
            drop(note);
            fs::write(&found, text).unwrap();
            let mut report = PruneReport::default();
            prune(&state, &mut report).unwrap();
            assert_eq!((path.exists(), found.exists()), (!goes, !goes), "{name}: {report:?}");
            assert_eq!(report.removed.len(), if goes { 2 } else { 0 }, "{report:?}");
        }
    }
}
