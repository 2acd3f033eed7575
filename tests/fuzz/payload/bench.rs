//! An image into which streams are put, each as a cluster of the disk, and what everybody makes of them.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use reimage::Finding;
use tempfile::TempDir;

use super::stream::{Right, Stream};
use super::{deflate, zstandard};
use crate::campaign;
use crate::draft::{COMPRESSED, Draft};
use crate::engine::{self, Asked};
use crate::memory::most_mapped;
use crate::oracle::qemu_img;
use crate::slow_reader::{self, Disk, Format, Refused, Stage};
use crate::stored;
use crate::watched::watched;

const SECTOR: u64 = 512;
const SECTOR_LEN: usize = 512;

/// What is asked of one image at once: so much of a disk, and so many faults, of which not more are told.
const DISK_MOST: u64 = 16 << 20;
const STREAMS_MOST: u64 = 900;

/// How many more addresses may be in use than before: threads have much room that they do not use, and other tests
/// have threads. The largest window that zstd allocates is of 2 GiB.
const MAPPED_MAX: u64 = 3 << 29;

/// How many sectors an entry says, by what its stream touches.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sectors {
    Less,
    Exact,
    More,
    ToEnd,
    PastEnd,
    Most,
}

/// What the file holds behind a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    /// At once the next stream, or the file's end.
    Next,
    /// That byte up to the end of what the entry says.
    Byte(u8),
    /// What another stream begins with, up to there.
    Other,
    /// Ones, for some sectors more.
    Far,
}

/// Where a stream begins.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start {
    /// Where the one before ends.
    Next,
    /// So many bytes behind a sector's border.
    Behind(usize),
    /// Where its end is a sector's end, so that nothing is behind it.
    Before,
}

/// Where a stream is put.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) start: Start,
    pub(super) sectors: Sectors,
    pub(super) behind: Behind,
}

impl Place {
    /// What is behind it cannot be taken for more of it.
    pub(super) const APART: Self =
        Self { start: Start::Next, sectors: Sectors::Exact, behind: Behind::Byte(0xff) };
    /// There is nothing behind it.
    pub(super) const ALONE: Self =
        Self { start: Start::Before, sectors: Sectors::Exact, behind: Behind::Next };
}

/// A stream in the image.
struct Slot {
    what: String,
    /// Where it begins behind what was stored, and how many bytes its entry is to say.
    at: usize,
    len: usize,
    sectors: Sectors,
    stream: Option<Stream>,
}

/// How many streams were read and refused.
#[derive(Default)]
pub(super) struct Figures {
    read: usize,
    refused: usize,
    memory: usize,
}

/// What one test keeps in memory is not to be counted as another's.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

pub(super) struct Bench {
    _turn: MutexGuard<'static, ()>,
    name: &'static str,
    folder: TempDir,
    file: File,
    /// Where what was stored ends.
    start: u64,
    /// The first entry, and from there to the next.
    entries: (u64, u64),
    cluster: u64,
    is_zstd: bool,
    /// The stream of a cluster that is in no image.
    other: Vec<u8>,
    /// What is behind what was stored.
    tail: Vec<u8>,
    slots: Vec<Slot>,
    figures: Figures,
}

impl Bench {
    pub(super) fn of(name: &'static str) -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = stored::scratch();
        let draft = Draft::new(stored::unpacked(&format!("{name}.qcow2")));
        let map = &draft.map;
        let path = folder.path().join("image.qcow2");
        stored::write_sparse(&path, &draft.bytes);
        let is_zstd = map.version == 3 && draft.get(72, 8) & 8 != 0;
        let content = vec![b'o'; index(map.cluster)];
        let other = if is_zstd { zstandard::compressed(&content) } else { deflate::deflated(&content) };
        Self {
            _turn: turn,
            name,
            file: File::options().write(true).open(&path).unwrap(),
            folder,
            start: draft.len().next_multiple_of(map.cluster),
            entries: (map.tables[0], map.entry_len()),
            cluster: map.cluster,
            is_zstd,
            other,
            tail: Vec::new(),
            slots: Vec::new(),
            figures: Figures::default(),
        }
    }

    pub(super) fn is_zstd(&self) -> bool {
        self.is_zstd
    }

    pub(super) fn cluster(&self) -> usize {
        index(self.cluster)
    }

    /// Puts a stream into the image that says itself what it is.
    #[track_caller]
    pub(super) fn add(&mut self, stream: Stream, place: Place) {
        let (what, bytes) = (stream.what.clone(), stream.bytes.clone());
        self.put(what, &bytes, (bytes.len(), place), Some(stream));
    }

    /// Puts the first bytes of a stream, with an entry for all of it.
    #[track_caller]
    pub(super) fn add_cut(&mut self, stream: &Stream, cut: usize, place: Place) {
        let len = stream.bytes.len();
        self.put(format!("{}, {cut} of {len} bytes", stream.what), &stream.bytes[..cut], (len, place), None);
    }

    #[track_caller]
    fn put(&mut self, what: String, bytes: &[u8], (len, place): (usize, Place), stream: Option<Stream>) {
        if self.slots.is_empty() {
            // No disk may begin with whatever comes out of a stream that is cut off.
            self.tail.extend(&self.other);
            let (len, sectors) = (self.other.len(), Sectors::Exact);
            self.slots.push(Slot { what: "the first".to_owned(), at: 0, len, sectors, stream: None });
        }
        let border = self.tail.len().next_multiple_of(SECTOR_LEN);
        let at = match place.start {
            Start::Next => self.tail.len(),
            Start::Behind(count) => border + count,
            Start::Before => border + len.next_multiple_of(SECTOR_LEN) - len,
        };
        if (at % SECTOR_LEN + len) as u64 > self.most_sectors() * SECTOR {
            return;
        }
        self.tail.resize(at, 0xee);
        self.tail.extend(bytes);
        // Two streams that begin in one place are a fault of the tables.
        self.tail.resize(self.tail.len().max(at + 1), 0xee);
        let end = (at + len).max(self.tail.len()).next_multiple_of(SECTOR_LEN);
        match place.behind {
            Behind::Next => {}
            Behind::Byte(byte) => self.tail.resize(end, byte),
            Behind::Far => self.tail.resize(end + 5 * SECTOR_LEN, 0xff),
            Behind::Other => {
                let count = end - self.tail.len();
                self.tail.extend(self.other.iter().cycle().take(count));
            }
        }
        let what = format!("{what}, {place:?}");
        self.slots.push(Slot { what, at, len, sectors: place.sectors, stream });
        let room = [DISK_MOST / self.cluster, self.cluster / self.entries.1, STREAMS_MOST];
        if self.slots.len() as u64 >= room.into_iter().min().unwrap() {
            self.ask();
        }
    }

    fn offset_bits(&self) -> u32 {
        62 - (self.cluster.ilog2() - 8)
    }

    /// How many sectors an entry can say at most.
    fn most_sectors(&self) -> u64 {
        1 << (62 - self.offset_bits())
    }

    fn entry(&self, slot: &Slot) -> u64 {
        let at = self.start + slot.at as u64;
        let count = |len: usize| (at % SECTOR + len as u64).div_ceil(SECTOR).max(1);
        let exact = count(slot.len);
        let sectors = match slot.sectors {
            Sectors::Less => (exact - 1).max(1),
            Sectors::Exact => exact,
            Sectors::More => exact + 1,
            Sectors::ToEnd => count(self.tail.len() - slot.at),
            Sectors::PastEnd => count(self.tail.len() - slot.at) + 1,
            Sectors::Most => u64::MAX,
        };
        COMPRESSED | (sectors.min(self.most_sectors()) - 1) << self.offset_bits() | at
    }

    /// How many bytes of memory the engine may use to decode the image.
    ///
    /// Each thread has several clusters, which are little where they are small.
    fn most_memory(&self) -> usize {
        if self.cluster > 1 << 16 { campaign::MEMORY_MAX } else { 48 << 20 }
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image.qcow2")
    }

    fn asked(&self, disk_size: usize) -> Asked {
        Asked { image: self.image(), folder: self.folder.path().to_owned(), disk_size, deep: true }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, at).unwrap();
    }

    fn write_tail(&self) {
        self.write(self.start, &self.tail);
        self.file.set_len(self.start + self.tail.len() as u64).unwrap();
    }

    /// Makes the image hold these streams in that order, and nothing else.
    fn lay<'a>(&self, slots: impl IntoIterator<Item = &'a Slot>, size: u64) {
        let mut table = vec![0; self.cluster()];
        for (slot, entry) in slots.into_iter().zip(table.chunks_mut(index(self.entries.1))) {
            entry[..8].copy_from_slice(&self.entry(slot).to_be_bytes());
        }
        self.write(24, &size.to_be_bytes());
        self.write(self.entries.0, &table);
    }

    /// Of a disk of so many clusters, the last of which is not all seen.
    fn size(&self, clusters: usize) -> u64 {
        clusters as u64 * self.cluster - self.cluster / 2 + 1
    }

    /// Asks the slow reader of every stream, and the engine of all at once.
    #[track_caller]
    pub(super) fn ask(&mut self) {
        let slots = std::mem::take(&mut self.slots);
        if slots.is_empty() {
            return;
        }
        self.write_tail();
        let verdicts: Vec<_> = slots.iter().map(|slot| self.verdict(slot)).collect();
        let bad = self.bad_clusters(&slots);
        let (mut good, mut disk) = (Vec::new(), Vec::new());
        for ((slot, verdict), at) in slots.iter().zip(&verdicts).zip((0..).step_by(self.cluster())) {
            let is_read = !bad.contains(&at);
            if !slot.is_right(is_read, verdict) {
                let answer = if is_read { "reads" } else { "refuses" };
                let Self { name, .. } = self;
                panic!("{name}: {slot}: the engine {answer} it; the slow reader: {}", said(verdict));
            }
            if is_read {
                good.push(slot);
                disk.extend(slot.content(verdict));
            }
        }
        self.figures.read += good.len() - 1;
        self.figures.refused += slots.len() - good.len();
        // The first is there in any case.
        if good.len() > 1 {
            self.check_bytes(&good, &disk);
        }
        self.tail.clear();
    }

    /// What the slow reader makes of a stream.
    fn verdict(&self, slot: &Slot) -> Result<Disk, Refused> {
        self.lay([slot], self.cluster);
        slow_reader::read(&self.image(), Format::Qcow2, &[])
    }

    /// Where the clusters of the disk begin of which the engine says that they cannot be decoded.
    #[track_caller]
    fn bad_clusters(&mut self, slots: &[Slot]) -> BTreeSet<u64> {
        self.lay(slots, self.size(slots.len()));
        let asked = self.asked(0);
        let mapped_before = most_mapped();
        let answer = watched(move || asked.check());
        let mapped = most_mapped() - mapped_before;
        if mapped > MAPPED_MAX {
            self.blame(slots, &format!("{mapped} bytes of addresses more than ever"));
        }
        let findings = match answer {
            Ok((Ok(findings), memory)) if memory <= self.most_memory() => {
                self.figures.memory = self.figures.memory.max(memory);
                findings
            }
            Ok((Ok(_), memory)) => self.blame(slots, &format!("{memory} bytes of memory")),
            Ok((Err(fault), _)) => self.blame(slots, &fault.to_string()),
            Err(why) => self.blame(slots, &why),
        };
        let refused = findings.iter().filter(|finding| finding.refused);
        let place = |finding: &Finding| match finding.guest_offset {
            Some(at) if finding.message.contains("a compressed cluster") => at,
            _ => self.blame(slots, &format!("{finding:?}")),
        };
        refused.map(place).collect()
    }

    /// Fails, and says at which stream if one does it alone.
    #[track_caller]
    fn blame(&self, slots: &[Slot], why: &str) -> ! {
        let does_it = |slot: &&Slot| {
            self.lay([*slot], self.cluster);
            let asked = self.asked(0);
            !matches!(watched(move || asked.check()), Ok((Ok(_), memory)) if memory <= self.most_memory())
        };
        match slots.iter().find(does_it) {
            Some(slot) => panic!("{}: {slot}: {why}", self.name),
            None => panic!("{}: {} streams together: {why}", self.name, slots.len()),
        }
    }

    /// Whether the engine reads these streams as those bytes, and puts them onto a disk.
    #[track_caller]
    fn check_bytes(&self, slots: &[&Slot], disk: &[u8]) {
        let size = self.size(slots.len());
        self.lay(slots.iter().copied(), size);
        let disk_size = index(size).next_multiple_of(512) + 8192;
        let answers =
            engine::ask(&self.asked(disk_size)).unwrap_or_else(|why| panic!("{}: {why}", self.name));
        assert!(answers.rebuild.is_ok() && matches!(answers.deep, Some(Ok(()))), "{}: {answers}", self.name);
        assert!(answers.memory <= campaign::MEMORY_MAX, "{}: {} bytes of memory", self.name, answers.memory);
        let other = disk[..index(size)].iter().zip(&answers.disk).position(|(right, found)| right != found);
        if let Some(at) = other {
            panic!(
                "{}: {}: its byte {} is another",
                self.name,
                slots[at / self.cluster()],
                at % self.cluster()
            );
        }
    }

    /// Fails where so few streams were read or refused that the sweep says little.
    #[track_caller]
    pub(super) fn has_seen(&self, read: usize, refused: usize) {
        let Figures { read: was_read, refused: was_refused, memory } = self.figures;
        println!("{}: {was_read} read, {was_refused} refused, {} KiB of memory", self.name, memory >> 10);
        assert!(
            was_read >= read && was_refused >= refused,
            "{}: {was_read} read, {was_refused} refused",
            self.name
        );
    }

    /// What is wrong in what a stream says of qemu, if something is.
    pub(super) fn ask_qemu_img(&mut self, stream: Stream) -> Option<String> {
        self.add(stream, Place::APART);
        let slot = std::mem::take(&mut self.slots).pop()?;
        self.write_tail();
        self.lay([&slot], self.cluster);
        self.tail.clear();
        let Slot { stream: Some(Stream { content, right, .. }), .. } = &slot else { return None };
        let found = qemu_img(&self.image(), &self.folder.path().join("qemu.raw"));
        let is_right = match &found {
            Some(found) => right.is_read_by_qemu() && content[..] == found[..],
            None => !right.is_read_by_qemu(),
        };
        let answer = if found.is_some() { "reads" } else { "refuses" };
        (!is_right).then(|| format!("{}: {slot}: qemu-img {answer} it", self.name))
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        self.stream.iter().try_for_each(|stream| write!(f, " ({:?})", stream.right))
    }
}

impl Slot {
    /// Whether it is rightly read or refused, and the slow reader says the same.
    fn is_right(&self, is_read: bool, verdict: &Result<Disk, Refused>) -> bool {
        if self.stream.as_ref().is_some_and(|stream| stream.right.is_read() != is_read) {
            return false;
        }
        match (verdict, &self.stream) {
            (Ok(found), Some(stream)) if is_read => found.bytes.as_deref() == Some(&stream.content),
            (Ok(found), _) => is_read || !found.oddities.is_empty(),
            (Err(refused), Some(Stream { right: Right::RefusedByQemu, .. })) => {
                refused.stage == Stage::Payload
            }
            (Err(refused), _) => !is_read && refused.stage == Stage::Payload,
        }
    }

    /// What it holds.
    fn content<'a>(&'a self, verdict: &'a Result<Disk, Refused>) -> &'a [u8] {
        match (&self.stream, verdict) {
            (Some(stream), _) => &stream.content,
            (None, Ok(disk)) => disk.bytes.as_deref().expect("one cluster is little"),
            (None, Err(_)) => unreachable!("it was found to be right"),
        }
    }
}

fn said(verdict: &Result<Disk, Refused>) -> String {
    verdict.as_ref().map_or_else(Refused::to_string, Disk::to_string)
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap()
}
