//! Goal: an image that `capture` makes holds the disk, whole or not at all, whatever the disk and whoever stops it.
//! Method: the public API on files; random disks from one seed, restored and compared byte by byte.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use reimage::{
    CancelToken, CaptureRequest, Credential, Error, ErrorKind, Event, Packing, Phase, Replace, Request,
    TargetState,
};

const PACKINGS: [Packing; 3] = [Packing::Zstd, Packing::Zlib, Packing::None];

struct Room(tempfile::TempDir);

impl Room {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn request(&self) -> CaptureRequest {
        let mut request = CaptureRequest::new(self.path("disk.raw"), self.path("image"));
        request.options.state_dir = self.path("state");
        request
    }

    fn restored(&self) -> Vec<u8> {
        let path = self.path("restored.raw");
        let mut request = Request::new(self.path("image"), &path);
        request.options.state_dir = self.path("state");
        let plan = reimage::plan(&request, &Credential::keep_image(), &()).unwrap();
        reimage::rebuild(plan, &(), &CancelToken::new()).unwrap();
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(path).unwrap();
        bytes
    }

    /// What lies in the folder besides the state folder.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name != "state");
        names.sort();
        names
    }
}

fn capture(request: &CaptureRequest) -> Result<reimage::CaptureReport, Error> {
    reimage::capture(request, &(), &CancelToken::new())
}

/// Numbers that look random and are the same each time (Marsaglia's xorshift).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, most: usize) -> usize {
        usize::try_from(self.next() % most.max(1) as u64).unwrap()
    }
}

/// A disk with runs of noise, text and zeroes that begin and end anywhere.
fn random_disk(numbers: &mut Numbers) -> Vec<u8> {
    let ends = [0, 1, 511, 512, 4096, 65535, 65536, 1 << 20, (1 << 20) + 1];
    let size = match numbers.below(3) {
        0 => ends[numbers.below(ends.len())],
        _ => numbers.below(3 << 20),
    };
    let mut disk = vec![0; size];
    for _ in 0..numbers.below(12) {
        let (start, len) = (numbers.below(size), numbers.below(300_000));
        let end = size.min(start + len);
        let kind = numbers.below(3);
        for byte in &mut disk[start..end] {
            *byte = match kind {
                0 => numbers.next().to_le_bytes()[3],
                1 => b"text that compresses "[numbers.below(3)],
                _ => 0,
            };
        }
    }
    disk
}

/// Captures random disks in random ways, and restores them.
fn check_random_disks(count: u64) {
    for rng_seed in 1..=count {
        let mut numbers = Numbers(rng_seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (room, disk) = (Room::new(), random_disk(&mut numbers));
        fs::write(room.path("disk.raw"), &disk).unwrap();
        let mut request = room.request();
        request.packing = PACKINGS[numbers.below(3)];
        request.cluster_size = 4096 << numbers.below(10);
        request.options.threads = NonZeroUsize::new(1 + numbers.below(4));
        let (packing, cluster_size) = (request.packing, request.cluster_size);
        let told = format!("seed {rng_seed}: {} bytes, {packing:?}, {cluster_size}", disk.len());
        let report = capture(&request).unwrap_or_else(|error| panic!("{told}: {error:?}"));
        let mut sectors = disk;
        sectors.resize(sectors.len().next_multiple_of(512), 0);
        assert_eq!(report.virtual_size, sectors.len() as u64, "{told}");
        assert!(room.restored() == sectors, "{told}");
    }
}

/// `REIMAGE_RANDOM_DISKS` says how many are tried.
#[test]
fn a_random_disk_comes_back_byte_for_byte() {
    let asked = std::env::var("REIMAGE_RANDOM_DISKS").ok();
    check_random_disks(asked.map_or(40, |count| count.parse().expect("it is a number")));
}

#[test]
fn the_image_does_not_depend_on_the_number_of_threads() {
    let room = Room::new();
    let mut numbers = Numbers(7);
    let disk: Vec<u8> = (0..5_u32 << 20)
        .map(|at| if at % 3000 < 1700 { numbers.next().to_le_bytes()[0] } else { 0 })
        .collect();
    fs::write(room.path("disk.raw"), disk).unwrap();
    for packing in PACKINGS {
        let mut images = Vec::new();
        for threads in [1, 2, 8] {
            let mut request = room.request();
            (request.packing, request.replace) = (packing, Replace::Existing);
            request.options.threads = NonZeroUsize::new(threads);
            capture(&request).unwrap();
            images.push(fs::read(room.path("image")).unwrap());
        }
        assert!(images.windows(2).all(|pair| pair[0] == pair[1]), "{packing:?}");
    }
}

#[test]
fn a_capture_that_is_cancelled_in_any_phase_leaves_nothing_and_an_old_image_as_it_was() {
    let room = Room::new();
    fs::write(room.path("disk.raw"), vec![7; 9 << 20]).unwrap();
    for (old, replace) in [(None, Replace::Refuse), (Some("old"), Replace::Existing)] {
        for at in [Phase::Copy, Phase::ReadBack] {
            for (name, text) in ["image", "image.manifest.json"].into_iter().zip(old.into_iter().cycle()) {
                fs::write(room.path(name), text).unwrap();
            }
            let before = room.names();
            let cancel = CancelToken::new();
            let observer = |event: &Event| {
                if matches!(event, Event::Started { phase, .. } if *phase == at) {
                    cancel.cancel();
                }
            };
            let mut request = room.request();
            request.replace = replace;
            let error = reimage::capture(&request, &observer, &cancel).unwrap_err();
            assert_eq!((error.kind(), error.target_state()), (ErrorKind::Cancelled, TargetState::Untouched));
            assert_eq!(room.names(), before);
            assert_eq!(fs::read_to_string(room.path("image")).ok().as_deref(), old);
            assert_eq!(fs::read_dir(room.path("state/captures")).unwrap().count(), 0);
        }
    }
}

#[test]
fn a_disk_that_changes_during_the_capture_gives_no_image() {
    let room = Room::new();
    fs::write(room.path("disk.raw"), vec![7; 9 << 20]).unwrap();
    let observer = |event: &Event| {
        if matches!(event, Event::Started { phase: Phase::ReadBack, .. }) {
            fs::write(room.path("disk.raw"), vec![8; 9 << 20]).unwrap();
        }
    };
    let error = reimage::capture(&room.request(), &observer, &CancelToken::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ImageFault, "{error:?}");
    assert_eq!(room.names(), ["disk.raw"]);
}

#[test]
fn an_image_that_is_not_replaced_after_all_is_told_to_have_lost_its_manifest() {
    let room = Room::new();
    fs::write(room.path("disk.raw"), vec![7; 3 << 20]).unwrap();
    for (manifest, is_told) in [(Some("old"), true), (None, false)] {
        fs::write(room.path("image"), "old").unwrap();
        fs::write(room.path("other"), "somebody else's").unwrap();
        manifest.iter().for_each(|text| fs::write(room.path("image.manifest.json"), text).unwrap());
        let observer = |event: &Event| {
            if matches!(event, Event::Started { phase: Phase::ReadBack, .. }) {
                // The phase begins a second time for the file.
                let _ = fs::rename(room.path("other"), room.path("image"));
            }
        };
        let mut request = room.request();
        request.replace = Replace::Existing;
        let error = reimage::capture(&request, &observer, &CancelToken::new()).unwrap_err();
        assert_eq!(room.names(), ["disk.raw", "image"]);
        assert_eq!(error.hint().unwrap().contains("reimage manifest makes it again"), is_told, "{error:?}");
    }
}

#[test]
fn a_new_image_that_does_not_read_back_gets_no_name() {
    let room = Room::new();
    let mut numbers = Numbers(3);
    let noise: Vec<u8> = (0..3 << 20).map(|_| numbers.next().to_le_bytes()[2]).collect();
    fs::write(room.path("disk.raw"), noise).unwrap();
    for (packing, at) in [(Packing::None, 1 << 20), (Packing::Zstd, 1 << 20), (Packing::Zlib, 0)] {
        // The last progress of the copy comes when the file is complete.
        let spoil = |path: &Path| {
            let mut bytes = fs::read(path).unwrap();
            if let Some(place) = bytes.get_mut(at..at + 8) {
                place.fill(0xee);
                fs::write(path, bytes).unwrap();
            }
        };
        let observer = |event: &Event| {
            let Event::Progress { phase: Phase::Copy, bytes_done, bytes_total } = event else { return };
            if bytes_done == bytes_total {
                spoil(&room.path(".image.reimage-unfinished"));
            }
        };
        let mut request = room.request();
        request.packing = packing;
        let error = reimage::capture(&request, &observer, &CancelToken::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Mismatch, "{packing:?}: {error:?}");
        assert_eq!(error.path(), Some(&*room.path("image")));
        assert_eq!(room.names(), ["disk.raw"]);
    }
}
