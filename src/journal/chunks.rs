//! The digests of the chunks that are known to be on the disk, in a file beside the journal.
//!
//! They are noted in batches, each behind a sync of the disk, and each with a checksum over all before it: a torn
//! batch at the end is cut, a damaged one before others makes the whole file worthless. The head says to what the
//! notes are bound; notes of another image or another disk are none.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::sys::store;
use crate::verify::Digest;

const MAGIC: &[u8; 16] = b"reimage chunks 1";
/// Magic, binding, checksum of both.
const HEAD_LEN: usize = 16 + 32 + 32;
const BATCH: &[u8; 8] = b"a batch\n";
/// The word that begins a batch, how many entries follow and the same with all bits flipped; behind them comes a
/// checksum.
const BATCH_HEAD_LEN: usize = 16;
const SUM_LEN: usize = 32;
/// A chunk's index in 8 bytes, least significant first, and its digest.
const ENTRY_LEN: usize = 8 + 32;
/// Longer batches are written as several, so that what is read at once is bounded.
const MOST_IN_BATCH: usize = 4096;
/// The chunks of a disk of 8 EiB, which is more than there is.
const MOST_CHUNKS: u64 = 1 << 43;
/// How often a chunk may be noted on average: a rewritten one is noted again.
const MOST_NOTES_OF_ONE: u64 = 4;

/// What the notes hold that were found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// There are none.
    Nothing,
    /// They are about another image, or another layout of the disk.
    OfAnother,
    /// They are not as they were written.
    Damaged,
    /// The digests, in the order in which they were noted: of several of one chunk the last one counts.
    Chunks(Vec<(u64, Digest)>),
}

/// The notes of a run, open to be continued.
#[derive(Debug)]
pub(super) struct ChunkNotes {
    file: File,
    /// Where the next batch goes.
    end: u64,
    /// The checksum of everything up to there.
    sum: Digest,
}

impl ChunkNotes {
    /// Begins anew: what is there is of no use.
    pub(super) fn create(path: &Path, binding: Digest) -> io::Result<Self> {
        remove(path)?;
        let file = open(path, File::options().read(true).write(true).create_new(true))?;
        let head = head(binding);
        file.write_all_at(&head, 0)?;
        file.sync_all()?;
        Ok(Self { file, end: HEAD_LEN as u64, sum: Digest::of(&head) })
    }

    /// Opens notes that are there, to go on with them; a torn batch at their end is cut off.
    pub(super) fn go_on(path: &Path, (binding, chunks): (Digest, u64)) -> io::Result<(Option<Self>, Found)> {
        let file = match open(path, File::options().read(true).write(true)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((None, Found::Nothing)),
            Err(error) if is_no_file(&error) => return Ok((None, Found::Damaged)),
            file => file?,
        };
        let (found, end, sum) = read(&file, (binding, chunks))?;
        if !matches!(found, Found::Chunks(_)) {
            return Ok((None, found));
        }
        file.set_len(end)?;
        file.sync_all()?;
        Ok((Some(Self { file, end, sum }), found))
    }

    /// Notes chunks that a sync has made durable; durable itself when this returns.
    pub(super) fn append(&mut self, chunks: &[(u64, Digest)]) -> io::Result<()> {
        let (mut bytes, mut sum) = (Vec::new(), self.sum);
        for part in chunks.chunks(MOST_IN_BATCH) {
            let batch = batch(sum, part);
            sum = sum_of(&batch);
            bytes.extend_from_slice(&batch);
        }
        let written = self.file.write_all_at(&bytes, self.end).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // What is left of it if this fails too is a torn tail.
            let _ = self.file.set_len(self.end);
            return Err(error);
        }
        (self.end, self.sum) = (self.end + bytes.len() as u64, sum);
        Ok(())
    }
}

/// Removes notes, if there are any.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// What notes hold that nobody is going to continue now.
pub(super) fn look(path: &Path, bound: (Digest, u64)) -> io::Result<Found> {
    match open(path, File::options().read(true)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Nothing),
        Err(error) if is_no_file(&error) => Ok(Found::Damaged),
        file => Ok(read(&file?, bound)?.0),
    }
}

/// How many chunks notes tell of, whatever they are bound to.
pub(super) fn count(path: &Path) -> io::Result<u64> {
    let file = match open(path, File::options().read(true)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        file => file?,
    };
    let mut head = [0; HEAD_LEN];
    store::read_up_to(&file, &mut head, 0)?;
    let binding = Digest::from_bytes(head[16..48].try_into().expect("32 bytes"));
    let Found::Chunks(mut notes) = read(&file, (binding, MOST_CHUNKS))?.0 else { return Ok(0) };
    notes.sort_unstable_by_key(|(index, _)| *index);
    notes.dedup_by_key(|(index, _)| *index);
    Ok(notes.len() as u64)
}

fn open(path: &Path, options: &mut fs::OpenOptions) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
    let file = options.mode(0o600).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// Whether something else than a file lies there: a link, a folder, a FIFO.
fn is_no_file(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput
        || matches!(error.raw_os_error(), Some(libc::ELOOP | libc::EISDIR | libc::ENXIO))
}

fn head(binding: Digest) -> Vec<u8> {
    let mut head = [&MAGIC[..], binding.as_bytes()].concat();
    head.extend_from_slice(Digest::of(&head).as_bytes());
    head
}

fn batch(before: Digest, chunks: &[(u64, Digest)]) -> Vec<u8> {
    let count = u32::try_from(chunks.len()).expect("a batch is short");
    let mut bytes = [&BATCH[..], &count.to_le_bytes(), &(!count).to_le_bytes()].concat();
    for (index, digest) in chunks {
        bytes.extend_from_slice(&index.to_le_bytes());
        bytes.extend_from_slice(digest.as_bytes());
    }
    let sum = chained(before, &bytes);
    bytes.extend_from_slice(sum.as_bytes());
    bytes
}

/// The checksum that a batch ends with.
fn sum_of(batch: &[u8]) -> Digest {
    let sum: [u8; SUM_LEN] = batch[batch.len() - SUM_LEN..].try_into().expect("a batch ends with its sum");
    Digest::from_bytes(sum)
}

fn chained(before: Digest, bytes: &[u8]) -> Digest {
    Digest::of(&[&before.as_bytes()[..], bytes].concat())
}

/// The notes, where they end, and the checksum up to there.
fn read(file: &File, (binding, chunks): (Digest, u64)) -> io::Result<(Found, u64, Digest)> {
    let len = file.metadata()?.len();
    let (mut at, mut sum) = (HEAD_LEN as u64, Digest::of(&head(binding)));
    let mut found_head = vec![0; HEAD_LEN];
    let count = store::read_up_to(file, &mut found_head, 0)?;
    if count < HEAD_LEN {
        // A run was cut off while it began them: nothing of the disk had changed.
        return Ok((Found::Nothing, at, sum));
    }
    if found_head != head(binding) {
        let sealed = found_head[48..] == Digest::of(&found_head[..48]).as_bytes()[..];
        let found = if sealed { Found::OfAnother } else { Found::Damaged };
        return Ok((found, at, sum));
    }
    let most = chunks.saturating_mul(MOST_NOTES_OF_ONE);
    let mut notes = Vec::new();
    while at < len {
        match read_batch(file, at, (sum, chunks))? {
            Read::Batch { bytes, entries } => {
                (at, sum) = (at + bytes.len() as u64, sum_of(&bytes));
                notes.extend(entries);
                if notes.len() as u64 > most {
                    return Ok((Found::Damaged, at, sum));
                }
            }
            Read::Torn { reaches } if reaches >= len => break,
            Read::Torn { .. } => return Ok((Found::Damaged, at, sum)),
        }
    }
    Ok((Found::Chunks(notes), at, sum))
}

enum Read {
    Batch {
        bytes: Vec<u8>,
        entries: Vec<(u64, Digest)>,
    },
    /// Not one that was written whole; it would have reached up to there.
    Torn {
        reaches: u64,
    },
}

fn read_batch(file: &File, at: u64, (before, chunks): (Digest, u64)) -> io::Result<Read> {
    let mut head = [0; BATCH_HEAD_LEN];
    let got = store::read_up_to(file, &mut head, at)?;
    let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
    let count = usize::try_from(number(8)).unwrap_or(usize::MAX);
    let is_head = head[..8] == BATCH[..] && number(8) == !number(12) && (1..=MOST_IN_BATCH).contains(&count);
    if got < BATCH_HEAD_LEN || !is_head {
        let is_torn = got < BATCH_HEAD_LEN || stored_from(file, at)? < BATCH_HEAD_LEN;
        return Ok(Read::Torn { reaches: if is_torn { u64::MAX } else { 0 } });
    }
    let len = BATCH_HEAD_LEN + count * ENTRY_LEN + SUM_LEN;
    let mut bytes = vec![0; len];
    let got = store::read_up_to(file, &mut bytes, at)?;
    let (content, sum) = bytes.split_at(len - SUM_LEN);
    if got < len || sum != chained(before, content).as_bytes() {
        return Ok(Read::Torn { reaches: at + len as u64 });
    }
    let entry = |entry: &[u8]| {
        let (index, digest) = entry.split_at(8);
        let index = u64::from_le_bytes(index.try_into().expect("eight bytes"));
        (index, Digest::from_bytes(digest.try_into().expect("thirty-two bytes")))
    };
    let entries: Vec<_> = content[BATCH_HEAD_LEN..].chunks_exact(ENTRY_LEN).map(entry).collect();
    if entries.iter().any(|(index, _)| *index >= chunks) {
        return Ok(Read::Torn { reaches: 0 });
    }
    Ok(Read::Batch { bytes, entries })
}

/// How many bytes lie there but for zeroes at the end: blocks that never reached the disk read as such.
fn stored_from(file: &File, at: u64) -> io::Result<usize> {
    let mut bytes = vec![0; 64 << 10];
    let count = store::read_up_to(file, &mut bytes, at)?;
    Ok(bytes[..count].iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNKS: u64 = 100;

    fn binding() -> Digest {
        Digest::of(b"image and disk")
    }

    fn entries(range: std::ops::Range<u64>) -> Vec<(u64, Digest)> {
        range.map(|index| (index, Digest::of(&index.to_le_bytes()))).collect()
    }

    /// Notes of three batches, and where each ends.
    fn written(path: &Path) -> Vec<u64> {
        let mut notes = ChunkNotes::create(path, binding()).unwrap();
        let mut ends = vec![notes.end];
        for range in [0..3, 3..4, 4..9] {
            notes.append(&entries(range)).unwrap();
            ends.push(notes.end);
        }
        ends
    }

    #[test]
    fn what_was_noted_is_found_and_continued() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.chunks");
        assert_eq!(look(&path, (binding(), CHUNKS)).unwrap(), Found::Nothing);
        written(&path);
        let (notes, found) = ChunkNotes::go_on(&path, (binding(), CHUNKS)).unwrap();
        assert_eq!(found, Found::Chunks(entries(0..9)));
        notes.unwrap().append(&entries(9..10)).unwrap();
        assert_eq!(look(&path, (binding(), CHUNKS)).unwrap(), Found::Chunks(entries(0..10)));
        assert_eq!(look(&path, (Digest::of(b"else"), CHUNKS)).unwrap(), Found::OfAnother);
        assert_eq!(look(&path, (binding(), 9)).unwrap(), Found::Damaged, "there is no such chunk");
        assert_eq!(count(&path).unwrap(), 10);
        remove(&path).unwrap();
        remove(&path).expect("nothing to remove is no error");
    }

    #[test]
    fn a_torn_tail_is_cut_at_the_last_whole_batch() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.chunks");
        let ends = written(&path);
        let whole = fs::read(&path).unwrap();
        for len in 0..=whole.len() {
            let mut torn = whole[..len].to_vec();
            for zeroes in [0, 3, 700] {
                torn.resize(len + zeroes, 0);
                fs::write(&path, &torn).unwrap();
                let batches = ends.iter().filter(|end| **end <= len as u64).count();
                // A file may be longer than what reached it, and end with zeroes.
                let expected = match batches {
                    0 if zeroes > 0 => continue,
                    0 => Found::Nothing,
                    1 => Found::Chunks(Vec::new()),
                    2 => Found::Chunks(entries(0..3)),
                    3 => Found::Chunks(entries(0..4)),
                    _ => Found::Chunks(entries(0..9)),
                };
                let found = look(&path, (binding(), CHUNKS)).unwrap();
                let reached = ends.get(batches).copied().unwrap_or(0);
                if (len + zeroes) as u64 > reached && !ends.contains(&(len as u64)) {
                    // Zeroes behind a torn batch that is shorter: told apart from it by nothing.
                    assert!(found == expected || found == Found::Damaged, "{len} bytes and {zeroes} zeroes");
                } else {
                    assert_eq!(found, expected, "{len} bytes and {zeroes} zeroes");
                }
            }
        }
    }

    #[test]
    fn a_flipped_byte_before_the_last_batch_makes_the_notes_worthless() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.chunks");
        let ends = written(&path);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            let found = look(&path, (binding(), CHUNKS)).unwrap();
            let in_last = at as u64 >= ends[2];
            match found {
                Found::Damaged => {}
                // The last batch may have been torn when it was written.
                Found::Chunks(chunks) if in_last => assert_eq!(chunks, entries(0..4), "byte {at}"),
                found => panic!("byte {at}: {found:?}"),
            }
        }
    }

    #[test]
    fn what_is_no_file_is_damaged_and_a_new_one_takes_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.chunks");
        let make_fifo = || {
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).unwrap();
        };
        let make_link = || std::os::unix::fs::symlink(folder.path().join("else"), &path).unwrap();
        for make in [&make_fifo as &dyn Fn(), &make_link] {
            make();
            assert_eq!(look(&path, (binding(), CHUNKS)).unwrap(), Found::Damaged);
            assert_eq!(ChunkNotes::go_on(&path, (binding(), CHUNKS)).unwrap().1, Found::Damaged);
            ChunkNotes::create(&path, binding()).unwrap();
            assert!(path.symlink_metadata().unwrap().is_file() && !folder.path().join("else").exists());
            remove(&path).unwrap();
        }
    }

    #[test]
    fn notes_of_a_huge_length_and_without_end_are_not_read_to_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.chunks");
        let mut notes = ChunkNotes::create(&path, binding()).unwrap();
        for _ in 0..20 {
            notes.append(&entries(0..CHUNKS)).unwrap();
        }
        assert_eq!(look(&path, (binding(), CHUNKS)).unwrap(), Found::Damaged);
        File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(look(&path, (binding(), CHUNKS)).unwrap(), Found::Damaged);
    }
}
