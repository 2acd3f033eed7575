//! Goal: the order of a rebuild holds on any target, and what a disk does wrong is found.
//! Method: a target in memory, brought along by the caller, that counts and spoils what is asked of it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use reimage::{
    ByteRange, CancelToken, Credential, DataDisk, Digest, Disk, EarlierRun, Error, ErrorKind, Event, Mode,
    Options, Pattern, Promise, Report, Request, RunMode, Sandbox, Target, TargetError, TargetState, Verdict,
    VerifiedChunk, VerifyPolicy,
};

/// What the disk does wrong, and what it did.
#[derive(Default)]
struct Memory {
    bytes: Vec<u8>,
    /// Offsets at which a stored byte is flipped: how many writes of it go well before, and how many are spoilt.
    flips: HashMap<u64, (u32, u32)>,
    /// A byte that is not zero after the first sync of the copy, whatever was written there.
    spoils_zeroes_at: Option<usize>,
    syncs: usize,
    /// The operation (of all writes, zeroes, syncs and reads) that fails.
    fails_at: Option<usize>,
    operations: usize,
    /// A file that every operation tries to open, for reading and for writing.
    pries_at: Option<PathBuf>,
    /// Operation, name of its thread, and how each attempt ended.
    pried: Vec<(&'static str, String, [Option<io::ErrorKind>; 2])>,
    log: Vec<(&'static str, ByteRange)>,
}

#[derive(Clone)]
struct Spoilt(Arc<Mutex<Memory>>);

impl Spoilt {
    fn dirty(size: usize) -> Self {
        Self(Arc::new(Mutex::new(Memory { bytes: vec![0xaa; size], ..Memory::default() })))
    }

    fn operate<T>(
        &self,
        what: &'static str,
        range: ByteRange,
        act: impl FnOnce(&mut Memory) -> T,
    ) -> Result<T, TargetError> {
        let mut memory = self.0.lock().unwrap();
        memory.operations += 1;
        memory.log.push((what, range));
        if let Some(path) = memory.pries_at.clone() {
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            let ends = [File::open(&path), File::options().write(true).open(&path)];
            memory.pried.push((what, name, ends.map(|end| end.err().map(|error| error.kind()))));
        }
        if memory.fails_at == Some(memory.operations) {
            return Err(TargetError::new(what, Some(range), io::Error::from_raw_os_error(5)));
        }
        Ok(act(&mut memory))
    }
}

fn place(range: ByteRange) -> std::ops::Range<usize> {
    usize::try_from(range.start()).unwrap()..usize::try_from(range.end()).unwrap()
}

impl Disk for Spoilt {
    fn size(&self) -> u64 {
        self.0.lock().unwrap().bytes.len() as u64
    }

    fn sector_size(&self) -> u32 {
        512
    }

    fn read(&self, range: ByteRange, buffer: &mut [u8]) -> Result<(), TargetError> {
        self.operate("read", range, |memory| {
            let bytes = &memory.bytes[place(range)];
            buffer[..bytes.len()].copy_from_slice(bytes);
        })
    }

    fn next_data(&self, offset: u64) -> Result<Option<ByteRange>, TargetError> {
        Ok(Some(ByteRange::between(offset, self.size())).filter(|rest| !rest.is_empty()))
    }
}

impl Target for Spoilt {
    fn identity(&self) -> Option<String> {
        Some("the one disk of this test".to_owned())
    }

    fn is_new(&self) -> bool {
        false
    }

    fn write(&self, chunk: &VerifiedChunk) -> Result<(), TargetError> {
        self.operate("write", chunk.range(), |memory| {
            memory.bytes[place(chunk.range())].copy_from_slice(chunk.bytes());
            let padded = chunk.range().end().next_multiple_of(512).min(memory.bytes.len() as u64);
            memory.bytes[place(ByteRange::between(chunk.range().end(), padded))].fill(0);
            let Memory { bytes, flips, .. } = memory;
            for (offset, (good, times)) in flips {
                if !chunk.range().contains(*offset) || *times == 0 {
                } else if *good > 0 {
                    *good -= 1;
                } else {
                    *times -= 1;
                    bytes[usize::try_from(*offset).unwrap()] ^= 0x10;
                }
            }
        })
    }

    fn write_zeroes(&self, range: ByteRange) -> Result<(), TargetError> {
        assert!(
            range.start().is_multiple_of(512) && range.end().is_multiple_of(512),
            "whole sectors: {range}"
        );
        self.operate("zero", range, |memory| memory.bytes[place(range)].fill(0))
    }

    fn sync(&self) -> Result<(), TargetError> {
        self.operate("sync", ByteRange::new(0, 0), |memory| {
            memory.syncs += 1;
            // Three syncs invalidate the disk, the fourth ends the copy.
            if let Some(offset) = memory.spoils_zeroes_at.filter(|_| memory.syncs == 4) {
                memory.bytes[offset] = 1;
            }
        })
    }
}

const CHUNK: usize = 1 << 20;
const MARKER: &[u8] = b"reimage: unfinished rebuild\n";

/// A disk of noise with a stretch of zeroes in the middle and a length that is no multiple of anything.
fn disk_of(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0] | 1
    };
    (0..len).map(|at| if (3 * CHUNK..5 * CHUNK).contains(&at) { 0 } else { noise() }).collect()
}

struct Lab {
    folder: tempfile::TempDir,
    disk: Vec<u8>,
}

impl Lab {
    fn new(len: usize) -> Self {
        let lab = Self { folder: tempfile::tempdir().unwrap(), disk: disk_of(len) };
        std::fs::write(lab.folder.path().join("image.raw"), &lab.disk).unwrap();
        lab
    }

    fn request(&self) -> Request {
        let mut request = Request::new(self.folder.path().join("image.raw"), "");
        request.options = Options::default();
        request.options.state_dir = self.folder.path().join("state");
        request
    }

    fn rebuild(&self, request: &Request, target: &Spoilt) -> Result<Report, Error> {
        let own: (Box<dyn Target>, _) = (Box::new(target.clone()), Promise::NobodyElseUsesIt);
        let plan = reimage::plan_onto(request, &Credential::keep_image(), own, &())?;
        reimage::rebuild(plan, &(), &CancelToken::new())
    }

    /// Whether the target holds the image and zeroes behind it.
    #[track_caller]
    fn check(&self, target: &Spoilt) {
        let memory = target.0.lock().unwrap();
        let (disk, rest) = memory.bytes.split_at(self.disk.len());
        let first = disk.iter().zip(&self.disk).position(|(found, right)| found != right);
        assert_eq!(first, None, "the first differing byte");
        assert!(rest.iter().all(|byte| *byte == 0), "zeroes behind the image");
    }
}

#[test]
fn a_dirty_target_holds_the_image_and_zeroes_behind_it() {
    let sizes =
        [(0, 4096), (1, 4096), (1000, 512), (CHUNK, 0), (CHUNK + 1, CHUNK), (8 * CHUNK + 700, 3 * CHUNK)];
    for (len, more) in sizes {
        let lab = Lab::new(len);
        let target = Spoilt::dirty((len + more).next_multiple_of(512));
        let report = lab.rebuild(&lab.request(), &target).unwrap();
        lab.check(&target);
        assert_eq!(report.target_state, TargetState::Verified);
        assert_eq!(report.bytes_read_back, target.size(), "{len} + {more}");
    }
}

#[test]
fn a_thread_that_touches_the_images_bytes_cannot_open_the_data_disk_beside_them() {
    let lab = Lab::new(6 * CHUNK);
    let data = lab.folder.path().join("data.raw");
    std::fs::write(&data, b"must survive").unwrap();
    let mut request = lab.request();
    let mut disk = DataDisk::default();
    disk.path.clone_from(&data);
    request.instance.data_disks.push(disk);
    let target = Spoilt::dirty(9 * CHUNK);
    target.0.lock().unwrap().pries_at = Some(data.clone());
    let report = lab.rebuild(&request, &target).unwrap();
    assert_eq!(report.data_disks[0].verdict, Verdict::Unchanged);
    let memory = target.0.lock().unwrap();
    let (workers, control): (Vec<_>, Vec<_>) =
        memory.pried.iter().partition(|(_, thread, _)| thread.starts_with("reimage-"));
    for operation in ["write", "zero", "read"] {
        assert!(workers.iter().any(|(what, ..)| *what == operation), "no worker had to {operation}");
    }
    let denied = Some(io::ErrorKind::PermissionDenied);
    match report.sandbox {
        Sandbox::Landlock => assert!(workers.iter().all(|(.., ends)| *ends == [denied, denied])),
        // A kernel without Landlock: the report says so, and that is all.
        _ => assert_eq!(report.sandbox, Sandbox::None),
    }
    assert!(control.iter().all(|(.., ends)| *ends == [None, None]), "the thread of the caller is free");
}

#[test]
fn holes_that_end_within_a_sector_become_whole_sectors_of_zeroes() {
    for len in [5 * CHUNK + 1, 5 * CHUNK + 700, 6 * CHUNK - 1] {
        let mut lab = Lab::new(2 * CHUNK);
        lab.disk.resize(len, 0);
        let image = std::fs::File::options().write(true).open(lab.folder.path().join("image.raw")).unwrap();
        image.set_len(len as u64).unwrap();
        let target = Spoilt::dirty(9 * CHUNK);
        lab.rebuild(&lab.request(), &target).unwrap();
        lab.check(&target);
    }
}

#[test]
fn zeroes_that_read_back_wrong_behind_an_odd_end_are_mended() {
    for offset in [2 * CHUNK + 701, 2 * CHUNK + 1023, 4 * CHUNK + 5] {
        let lab = Lab::new(2 * CHUNK + 700);
        let target = Spoilt::dirty(9 * CHUNK);
        target.0.lock().unwrap().spoils_zeroes_at = Some(offset);
        let report = lab.rebuild(&lab.request(), &target).unwrap();
        lab.check(&target);
        assert_eq!(report.repairs[0].first_differing, Some(offset as u64));
    }
}

#[test]
fn the_head_is_poisoned_first_and_its_first_block_is_written_last() {
    let lab = Lab::new(8 * CHUNK);
    let target = Spoilt::dirty(10 * CHUNK);
    lab.rebuild(&lab.request(), &target).unwrap();
    let memory = target.0.lock().unwrap();
    let changes: Vec<_> = memory.log.iter().filter(|(what, _)| *what != "read").collect();
    let (chunk, disk) = (CHUNK as u64, 10 * CHUNK as u64);
    let (first_sector, behind_it) = (ByteRange::new(0, 512), ByteRange::between(512, 4096));
    assert_eq!((*changes[0], changes[1].0), (("write", first_sector), "sync"));
    assert_eq!(*changes[2], ("write", behind_it));
    assert_eq!(changes[3].0, "sync", "the marker is durable before anything else changes");
    let tail = ByteRange::between(disk - chunk, disk);
    assert_eq!(*changes[4], ("zero", ByteRange::between(4096, chunk)));
    assert_eq!(*changes[5], ("zero", tail));
    assert_eq!(changes[6].0, "sync");
    let (middle, end) = changes[7..].split_at(changes.len() - 14);
    assert_eq!(*end[0], ("write", tail));
    assert_eq!(*end[1], ("write", ByteRange::between(4096, chunk)));
    assert_eq!((end[2].0, *end[3], end[4].0), ("sync", ("write", behind_it), "sync"));
    assert_eq!((*end[5], end[6].0), (("write", first_sector), "sync"));
    assert!(middle.iter().all(|(_, range)| range.is_empty() || range.start() >= chunk));
}

#[test]
fn a_flipped_byte_is_rewritten_and_reported_with_its_offset() {
    let lab = Lab::new(8 * CHUNK + 700);
    // In the marker, the head's first block, its rest, the middle, and the tail; once and twice.
    let (middle, tail) = (CHUNK as u64 + 77, 8 * CHUNK as u64 + 699);
    for (offset, good) in [(5, 0), (700, 0), (5, 1), (700, 1), (5000, 0), (middle, 0), (tail, 0)] {
        for times in [1, 2] {
            let target = Spoilt::dirty(9 * CHUNK);
            target.0.lock().unwrap().flips.insert(offset, (good, times));
            let report = lab.rebuild(&lab.request(), &target).unwrap();
            lab.check(&target);
            assert_eq!(report.repairs.len(), 1, "{offset}");
            assert!(report.repairs[0].range.contains(offset));
            assert_eq!(report.repairs[0].first_differing, Some(offset));
            assert_eq!(report.repairs[0].pattern, Some(Pattern::SingleBit { bit: 4 }));
            assert_eq!(report.repairs[0].rewrites, times);
        }
    }
}

#[test]
fn a_byte_that_stays_wrong_is_a_mismatch_and_the_head_never_looks_complete() {
    let lab = Lab::new(8 * CHUNK);
    for offset in [CHUNK as u64 + 77, 8 * CHUNK as u64 - 1] {
        let target = Spoilt::dirty(9 * CHUNK);
        target.0.lock().unwrap().flips.insert(offset, (0, u32::MAX));
        let error = lab.rebuild(&lab.request(), &target).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Mismatch);
        assert_eq!(error.kind().exit_code(), 31);
        assert!(error.range().is_some_and(|range| range.contains(offset)), "{error}");
        let told = std::error::Error::source(&error.also()[0]).unwrap().to_string();
        assert!(told.starts_with(&format!("byte {offset} is the first that is wrong: bit 4")), "{told}");
        assert!(error.target_state() >= TargetState::Written);
        assert!(target.0.lock().unwrap().bytes.starts_with(MARKER));
    }
}

#[test]
fn whatever_operation_fails_the_disk_is_old_or_says_that_it_is_unfinished() {
    let lab = Lab::new(4 * CHUNK + 700);
    let target = Spoilt::dirty(5 * CHUNK);
    let mut request = lab.request();
    request.options.threads = std::num::NonZeroUsize::new(1);
    (request.options.mode, request.options.earlier_run) = (Mode::Full, EarlierRun::StartOver);
    lab.rebuild(&request, &target).unwrap();
    let count = target.0.lock().unwrap().operations;
    assert!(count > 15, "{count} operations are worth failing");
    for fails_at in 1..=count {
        let target = Spoilt::dirty(5 * CHUNK);
        target.0.lock().unwrap().fails_at = Some(fails_at);
        let error = match lab.rebuild(&request, &target) {
            Err(error) => error,
            // What was written before a sync that fails once is written again.
            Ok(_) => {
                assert_eq!(target.0.lock().unwrap().log[fails_at - 1].0, "sync", "operation {fails_at}");
                lab.check(&target);
                continue;
            }
        };
        assert_eq!(error.kind(), ErrorKind::TargetIo, "operation {fails_at}");
        assert!(error.target_state() != TargetState::Untouched, "operation {fails_at}");
        let memory = target.0.lock().unwrap();
        let old = memory.bytes.iter().all(|byte| *byte == 0xaa);
        assert!(old || memory.bytes.starts_with(MARKER), "operation {fails_at} leaves something else");
    }
}

#[test]
fn without_read_back_nothing_is_read_and_the_state_says_so() {
    let lab = Lab::new(4 * CHUNK);
    let target = Spoilt::dirty(5 * CHUNK);
    let mut request = lab.request();
    (request.options.verify, request.options.mode) = (VerifyPolicy::Off, Mode::Full);
    let report = lab.rebuild(&request, &target).unwrap();
    assert_eq!(report.target_state, TargetState::Written);
    assert!(target.0.lock().unwrap().log.iter().all(|(what, _)| *what != "read"));
    request.options.verify = VerifyPolicy::Written;
    let report = lab.rebuild(&request, &target).unwrap();
    assert!(report.bytes_read_back < target.size());
    lab.check(&target);
}

#[test]
fn the_whole_digest_is_that_of_the_raw_disk() {
    let lab = Lab::new(7 * CHUNK + 700);
    let mut request = lab.request();
    request.options.whole_digest = reimage::WholeDigest::Compute;
    let report = lab.rebuild(&request, &Spoilt::dirty(8 * CHUNK)).unwrap();
    assert_eq!(report.whole_digest, Some(Digest::of(&lab.disk)));
}

#[test]
fn a_cancelled_run_leaves_a_disk_that_says_so() {
    let lab = Lab::new(8 * CHUNK);
    let target = Spoilt::dirty(9 * CHUNK);
    let own: (Box<dyn Target>, _) = (Box::new(target.clone()), Promise::NobodyElseUsesIt);
    let plan = reimage::plan_onto(&lab.request(), &Credential::keep_image(), own, &()).unwrap();
    let cancel = CancelToken::new();
    let stop = |event: &Event| {
        if matches!(event, Event::Progress { .. }) {
            cancel.cancel();
        }
    };
    let error = reimage::rebuild(plan, &stop, &cancel).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(error.target_state() > TargetState::Invalidated);
    assert!(target.0.lock().unwrap().bytes.starts_with(MARKER));
}

/// A run that is cancelled by its first chunk after some were noted.
fn cut_off(lab: &Lab, request: &Request, target: &Spoilt) {
    let own: (Box<dyn Target>, _) = (Box::new(target.clone()), Promise::NobodyElseUsesIt);
    let mut request = request.clone();
    request.options.checkpoint = std::time::Duration::ZERO;
    request.options.threads = std::num::NonZeroUsize::new(1);
    let plan = reimage::plan_onto(&request, &Credential::keep_image(), own, &()).unwrap();
    let cancel = CancelToken::new();
    let most = lab.disk.len() as u64 * 3 / 4;
    let stop = |event: &Event| {
        if matches!(event, Event::Progress { bytes_done, .. } if *bytes_done > most) {
            cancel.cancel();
        }
    };
    assert_eq!(reimage::rebuild(plan, &stop, &cancel).unwrap_err().kind(), ErrorKind::Cancelled);
}

fn changes(target: &Spoilt) -> Vec<(&'static str, ByteRange)> {
    let memory = target.0.lock().unwrap();
    memory.log.iter().filter(|(what, range)| *what != "read" && !range.is_empty()).copied().collect()
}

#[test]
fn a_run_goes_on_where_the_one_before_it_was_cut_off() {
    let lab = Lab::new(12 * CHUNK + 700);
    let target = Spoilt::dirty(14 * CHUNK);
    cut_off(&lab, &lab.request(), &target);
    let chunks = |range: ByteRange| (CHUNK as u64..13 * CHUNK as u64).contains(&range.start());
    let before: Vec<_> = changes(&target).into_iter().filter(|(_, range)| chunks(*range)).collect();
    target.0.lock().unwrap().log.clear();
    let report = lab.rebuild(&lab.request(), &target).unwrap();
    lab.check(&target);
    assert_eq!(report.mode, RunMode::Resumed);
    assert!(report.bytes_kept >= 3 * CHUNK as u64, "{} bytes kept", report.bytes_kept);
    let again = changes(&target).into_iter().filter(|write| before.contains(write)).count();
    assert!(again + 3 <= before.len(), "{again} of {} pieces were written again", before.len());
    assert_eq!(report.bytes_read_back, target.size());
}

#[test]
fn what_an_earlier_run_noted_is_compared_and_not_trusted() {
    let lab = Lab::new(12 * CHUNK);
    let target = Spoilt::dirty(14 * CHUNK);
    cut_off(&lab, &lab.request(), &target);
    target.0.lock().unwrap().bytes[CHUNK + 77] ^= 1;
    target.0.lock().unwrap().bytes[4 * CHUNK + 77] ^= 1;
    let report = lab.rebuild(&lab.request(), &target).unwrap();
    lab.check(&target);
    assert_eq!(report.mode, RunMode::Resumed);
}

#[test]
fn another_image_and_a_wish_to_start_over_keep_nothing() {
    let mut lab = Lab::new(12 * CHUNK);
    let target = Spoilt::dirty(14 * CHUNK);
    cut_off(&lab, &lab.request(), &target);
    let mut request = lab.request();
    request.options.earlier_run = EarlierRun::StartOver;
    let report = lab.rebuild(&request, &target).unwrap();
    assert_eq!((report.mode, report.bytes_kept), (RunMode::Full, 0));
    cut_off(&lab, &request, &target);
    lab.disk.iter_mut().for_each(|byte| *byte ^= 0x55);
    std::fs::write(lab.folder.path().join("image.raw"), &lab.disk).unwrap();
    let report = lab.rebuild(&lab.request(), &target).unwrap();
    lab.check(&target);
    assert_eq!((report.mode, report.bytes_kept), (RunMode::Full, 0));
    assert!(!report.plan.unfinished.unwrap().goes_on);
}

#[test]
fn in_delta_mode_the_disk_is_touched_only_where_it_differs() {
    let lab = Lab::new(12 * CHUNK + 512);
    let target = Spoilt::dirty(14 * CHUNK);
    let mut request = lab.request();
    request.options.mode = Mode::Delta;
    lab.rebuild(&request, &target).unwrap();
    lab.check(&target);
    target.0.lock().unwrap().log.clear();
    let report = lab.rebuild(&lab.request(), &target).unwrap();
    assert_eq!(report.mode, RunMode::Delta, "the state folder knows what the disk holds");
    assert!(changes(&target).is_empty(), "nothing differs");
    assert_eq!((report.target_state, report.bytes_written), (TargetState::Verified, 0));
    assert_eq!((report.bytes_kept, report.bytes_read_back), (target.size(), target.size()));
    // In the head, the middle, the hole, the last chunk and behind the image.
    for offset in [5, 7 * CHUNK + 9, 4 * CHUNK + 1, 12 * CHUNK + 100, 12 * CHUNK + 513, 13 * CHUNK + 5] {
        check_delta(&lab, &lab.request(), &target, offset);
    }
}

#[test]
fn in_delta_mode_the_rest_of_the_images_last_sector_becomes_zero() {
    let lab = Lab::new(12 * CHUNK + 700);
    let target = Spoilt::dirty(14 * CHUNK);
    let mut request = lab.request();
    lab.rebuild(&request, &target).unwrap();
    for verify in [VerifyPolicy::Full, VerifyPolicy::Written, VerifyPolicy::Off] {
        request.options.verify = verify;
        for offset in [12 * CHUNK + 699, 12 * CHUNK + 700, 12 * CHUNK + 1023, 12 * CHUNK + 1024] {
            check_delta(&lab, &request, &target, offset);
        }
    }
}

/// A byte differs: the disk says first that it is unfinished, then the piece and both ends are written.
#[track_caller]
fn check_delta(lab: &Lab, request: &Request, target: &Spoilt, offset: usize) {
    target.0.lock().unwrap().bytes[offset] ^= 1;
    target.0.lock().unwrap().log.clear();
    let report = lab.rebuild(request, target).unwrap();
    lab.check(target);
    assert_eq!((report.mode, report.repairs.len()), (RunMode::Delta, 0), "{offset}");
    let changes = changes(target);
    assert_eq!(changes[0], ("write", ByteRange::new(0, 512)), "{offset}");
    let of_middle = |range: ByteRange| (CHUNK as u64..13 * CHUNK as u64).contains(&range.start());
    let middle = changes.iter().filter(|(_, range)| of_middle(*range)).count();
    assert!(middle <= 2, "{offset}: {changes:?}");
}
