//! `Length`: how long the disk of a stream is, or may be.

use std::sync::OnceLock;

use super::MOST_BYTES;

/// The length of a disk; where nothing tells it, it is supposed until the stream's end has been seen.
pub(super) struct Length {
    known: OnceLock<u64>,
    supposed: u64,
    most: u64,
}

impl Length {
    /// One that something tells, or that was counted.
    pub(super) fn known(size: u64) -> Self {
        Self { known: OnceLock::from(size), supposed: size, most: size }
    }

    /// One that is not known, and not longer than `most`.
    pub(super) fn unknown(most: u64) -> Self {
        let most = most.min(MOST_BYTES);
        Self { known: OnceLock::new(), supposed: most, most }
    }

    /// What is to be said of it until it is known.
    pub(super) fn suppose(&mut self, size: u64) {
        self.supposed = size.min(self.most);
    }

    /// Lets it be no longer than that, if it is not known.
    pub(super) fn limit(&mut self, most: u64) {
        self.most = self.most.min(most);
        self.supposed = self.supposed.min(self.most);
    }

    /// The stream ends there; what is known already stays.
    pub(super) fn found(&self, size: u64) {
        self.known.get_or_init(|| size);
    }

    pub(super) fn if_known(&self) -> Option<u64> {
        self.known.get().copied()
    }

    /// What is known, or supposed.
    pub(super) fn size(&self) -> u64 {
        self.if_known().unwrap_or(self.supposed)
    }

    /// What it was not longer than before it was known: what may be asked for, whoever finds the end meanwhile.
    pub(super) fn bound(&self) -> u64 {
        self.most
    }

    /// What is known, or what it is not longer than.
    pub(super) fn most(&self) -> u64 {
        self.if_known().unwrap_or(self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_supposed_within_its_bound_until_it_is_found() {
        let mut length = Length::unknown(900);
        length.suppose(1000);
        assert_eq!((length.if_known(), length.size(), length.most()), (None, 900, 900));
        length.suppose(700);
        length.limit(800);
        assert_eq!((length.size(), length.most()), (700, 800));
        length.limit(600);
        assert_eq!((length.size(), length.most()), (600, 600));
        length.found(512);
        length.found(513);
        assert_eq!((length.if_known(), length.size(), length.most()), (Some(512), 512, 512));
        assert_eq!(length.bound(), 600);
    }
}
