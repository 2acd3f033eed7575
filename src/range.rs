//! `ByteRange`: where bytes lie, as one value.

use std::fmt;

use serde::Serialize;

/// A half-open run of bytes: `offset` inclusive, `offset + len` exclusive.
///
/// ```
/// use reimage::ByteRange;
/// let range = ByteRange::new(4096, 512);
/// assert_eq!(range.end(), 4608);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ByteRange {
    offset: u64,
    len: u64,
}

impl ByteRange {
    /// No byte.
    pub(crate) const EMPTY: Self = Self { offset: 0, len: 0 };

    /// The range of `len` bytes at `offset`.
    ///
    /// # Panics
    ///
    /// If `offset + len` does not fit in 64 bits: callers check what comes from an image first.
    #[must_use]
    pub fn new(offset: u64, len: u64) -> Self {
        assert!(offset.checked_add(len).is_some(), "a byte range ends within 64 bits");
        Self { offset, len }
    }

    /// The range from `start` up to, not including, `end`.
    ///
    /// # Panics
    ///
    /// If `end` lies before `start`.
    #[must_use]
    pub fn between(start: u64, end: u64) -> Self {
        assert!(start <= end, "a byte range does not end before it starts");
        Self { offset: start, len: end - start }
    }

    /// The first byte's offset.
    #[must_use]
    pub fn start(self) -> u64 {
        self.offset
    }

    /// The offset behind the last byte.
    #[must_use]
    pub fn end(self) -> u64 {
        self.offset + self.len
    }

    /// The number of bytes.
    #[must_use]
    pub fn len(self) -> u64 {
        self.len
    }

    /// Whether there is no byte in it.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// What both ranges share, if they share at least one byte.
    #[must_use]
    pub fn intersection(self, other: Self) -> Option<Self> {
        let start = self.start().max(other.start());
        let end = self.end().min(other.end());
        (start < end).then(|| Self::between(start, end))
    }

    /// Whether `offset` is the offset of one of its bytes.
    #[must_use]
    pub fn contains(self, offset: u64) -> bool {
        self.start() <= offset && offset < self.end()
    }

    /// The parts of at most `step` bytes, cut at multiples of `step`, in order.
    ///
    /// # Panics
    ///
    /// If `step` is 0.
    pub fn cut(self, step: u64) -> impl Iterator<Item = Self> {
        assert!(step > 0, "a range is cut into parts of at least one byte");
        let mut at = self.start();
        std::iter::from_fn(move || {
            if at >= self.end() {
                return None;
            }
            let end = (at / step + 1).saturating_mul(step).min(self.end());
            let part = Self::between(at, end);
            at = end;
            Some(part)
        })
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes {}..{}", self.start(), self.end())
    }
}

/// Bytes in any number of ranges, put in in any order.
#[derive(Clone, Debug, Default)]
pub(crate) struct RangeSet {
    ranges: Vec<ByteRange>,
    /// How many of them are in order and apart.
    merged: usize,
}

impl RangeSet {
    /// Puts a range in; it may overlap others.
    pub(crate) fn insert(&mut self, range: ByteRange) {
        if let Some(last) = self.ranges.last_mut()
            && last.end() == range.start()
        {
            *last = ByteRange::between(last.start(), range.end());
            return;
        }
        self.ranges.push(range);
        // Neighbours that come one by one must not pile up.
        if self.ranges.len() > self.merged * 2 + 1024 {
            self.merge();
        }
    }

    /// Puts the ranges in order; asked before `holds`.
    pub(crate) fn merge(&mut self) {
        self.ranges.sort_unstable();
        let mut merged: Vec<ByteRange> = Vec::new();
        for range in self.ranges.drain(..).filter(|range| !range.is_empty()) {
            match merged.last_mut() {
                Some(last) if last.end() >= range.start() => {
                    *last = ByteRange::between(last.start(), last.end().max(range.end()));
                }
                _ => merged.push(range),
            }
        }
        self.merged = merged.len();
        self.ranges = merged;
    }

    /// The ranges, in order and apart.
    pub(crate) fn into_ranges(mut self) -> Vec<ByteRange> {
        self.merge();
        self.ranges
    }

    /// The ranges, in order and apart; the set was merged before.
    pub(crate) fn ranges(&self) -> &[ByteRange] {
        assert_eq!(self.merged, self.ranges.len(), "a set is merged before it is asked");
        &self.ranges
    }

    /// Whether every byte of `range` is in it.
    pub(crate) fn holds(&self, range: ByteRange) -> bool {
        assert_eq!(self.merged, self.ranges.len(), "a set is merged before it is asked");
        let next = self.ranges.partition_point(|other| other.start() <= range.start());
        next > 0 && self.ranges[next - 1].end() >= range.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_is_gapless_and_aligned() {
        let parts: Vec<_> = ByteRange::between(1000, 9000).cut(4096).collect();
        assert_eq!(
            parts,
            [ByteRange::between(1000, 4096), ByteRange::between(4096, 8192), ByteRange::between(8192, 9000)]
        );
        assert_eq!(ByteRange::new(5, 0).cut(4096).count(), 0);
        assert_eq!(ByteRange::between(u64::MAX - 10, u64::MAX).cut(4096).count(), 1);
    }

    #[test]
    fn a_set_holds_what_was_put_in_in_whatever_order() {
        let mut set = RangeSet::default();
        for place in (0..5_000_u64).rev() {
            set.insert(ByteRange::new(place * 20, 10));
        }
        for start in [90_010, 90_030] {
            set.insert(ByteRange::new(start, 10));
        }
        set.merge();
        assert!(set.ranges.len() < 5_000);
        assert!(set.holds(ByteRange::new(20, 10)) && set.holds(ByteRange::new(25, 5)));
        assert!(set.holds(ByteRange::between(90_000, 90_050)));
        assert!(!set.holds(ByteRange::new(20, 11)) && !set.holds(ByteRange::new(10, 1)));
        assert!(!RangeSet::default().holds(ByteRange::new(0, 1)));
    }

    #[test]
    fn ranges_that_touch_do_not_intersect() {
        let left = ByteRange::between(0, 10);
        assert_eq!(left.intersection(ByteRange::between(10, 20)), None);
        assert_eq!(left.intersection(ByteRange::between(9, 20)), Some(ByteRange::between(9, 10)));
    }
}
