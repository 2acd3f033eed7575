//! Where else a disk cannot be read, once it has failed at one place.

use std::time::{Duration, Instant};

use super::fault::CaptureFault;
use crate::error::{Error, ErrorKind};
use crate::layout::ReadBytes;
use crate::observe::CancelToken;
use crate::range::ByteRange;

/// How far around the place that was found first it is looked for more; threads do not read in order.
const REACH: u64 = 64 << 20;
/// A disk that is failing takes its time for each of them.
const PATIENCE: Duration = Duration::from_secs(10);
/// More ranges than these are not told.
const MOST_TOLD: usize = 32;
const STEP: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// The ranges around `first` that cannot be read either, as far as it is sensible to look.
pub(super) fn further(disk: &dyn ReadBytes, first: ByteRange, cancel: &CancelToken) -> Vec<ByteRange> {
    let began = Instant::now();
    let mut buffer = vec![0; usize::try_from(STEP).expect("a step fits in memory")];
    let mut bad: Vec<ByteRange> = Vec::new();
    let end = disk.size().min(first.end().saturating_add(REACH));
    let start = first.start().saturating_sub(REACH).min(end);
    for step in ByteRange::between(start - start % STEP, end).cut(STEP) {
        if disk.read_at(step, &mut buffer).is_ok() {
            continue;
        }
        for page in step.cut(PAGE) {
            if bad.len() >= MOST_TOLD || began.elapsed() >= PATIENCE || cancel.is_cancelled() {
                return bad;
            }
            if page.intersection(first).is_some() || disk.read_at(page, &mut buffer).is_ok() {
                continue;
            }
            match bad.last_mut() {
                Some(last) if last.end() == page.start() => {
                    *last = ByteRange::between(last.start(), page.end());
                }
                _ => bad.push(page),
            }
        }
    }
    bad
}

/// The same as errors, to stand behind the first.
pub(super) fn errors(disk: &std::path::Path, ranges: Vec<ByteRange>) -> impl Iterator<Item = Error> {
    ranges.into_iter().map(move |range| {
        Error::new(ErrorKind::ImageFault, CaptureFault::AlsoBad).at_path(disk).at_range(range)
    })
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// A disk that cannot be read where one of these bytes is.
    struct Bad(u64, &'static [u64]);

    impl ReadBytes for Bad {
        fn size(&self) -> u64 {
            self.0
        }

        fn read_at(&self, range: ByteRange, _: &mut [u8]) -> io::Result<()> {
            assert!(range.end() <= self.0, "nothing is read behind the end");
            let is_bad = self.1.iter().any(|at| (range.start()..range.end()).contains(at));
            if is_bad { Err(io::ErrorKind::InvalidData.into()) } else { Ok(()) }
        }
    }

    #[test]
    fn every_page_around_the_first_that_cannot_be_read_is_found_within_reach() {
        let first = ByteRange::new(5 * PAGE, PAGE);
        let none = CancelToken::new();
        let pages = |from: u64, to: u64| ByteRange::between(from * PAGE, to * PAGE);
        let at = &[17, 5 * PAGE, 6 * PAGE, 7 * PAGE + 1, 9 * PAGE - 1, 300 * PAGE, REACH + 9 * PAGE];
        let found = further(&Bad(1 << 40, at), first, &none);
        assert_eq!(found, [pages(0, 1), pages(6, 9), pages(300, 301)]);
        assert_eq!(further(&Bad(6 * PAGE, at), first, &none), [pages(0, 1)]);
        let found = further(&Bad(6 * PAGE + 1, at), first, &none);
        assert_eq!(found, [pages(0, 1), ByteRange::new(6 * PAGE, 1)]);
        let far = ByteRange::new(1 << 30, PAGE);
        assert_eq!(further(&Bad(1 << 40, at), far, &none), [], "out of reach");
        let cancelled = CancelToken::new();
        cancelled.cancel();
        assert_eq!(further(&Bad(1 << 40, at), first, &cancelled), []);
    }
}
