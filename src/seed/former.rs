//! The seed that was at its place before a rebuild wrote another: read to be kept, and put back.

use std::io;
use std::path::Path;

use zeroize::Zeroizing;

use super::error::SeedError;
use super::last;
use super::place::{Beside, Place, Replace};
use crate::error::Error;

/// The bytes that lie at a seed's place; `None` where nothing does.
///
/// # Errors
///
/// If the place is none for a seed, or something else than one lies there.
pub(crate) fn present(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
    Place::examine(path).and_then(|place| place.present()).map_err(|fault| fault.at(path))
}

/// What the state folder remembers of the seed of an instance at a place, to be given to `restore`.
pub(crate) fn remembered(state_dir: &Path, instance: Option<&str>, path: &Path) -> serde_json::Value {
    last::snapshot(state_dir, instance, path)
}

/// Lets the state folder remember what it did.
///
/// # Errors
///
/// If it cannot be written.
pub(crate) fn restore(
    state_dir: &Path,
    (instance, path): (Option<&str>, &Path),
    remembered: &serde_json::Value,
) -> io::Result<()> {
    last::restore(state_dir, (instance, path), remembered)
}

/// The seed of before on its way back; dropped, it stays away.
pub(crate) struct ReturningSeed(Way);

enum Way {
    /// It is written beside its place.
    Written(Beside),
    /// There was none, so that the one that is there goes.
    Removed(Place),
}

impl ReturningSeed {
    /// Writes the bytes beside their place, durably: what can fail has then failed.
    ///
    /// # Errors
    ///
    /// If the place is none for a seed, something else than one lies there, or it cannot be written.
    pub(crate) fn stage(path: &Path, bytes: Option<&[u8]>) -> Result<Self, Error> {
        let place = Place::examine(path).and_then(|place| place.present().map(|_| place));
        let way = place.and_then(|place| match bytes {
            Some(bytes) => place.write_beside(bytes).map(Way::Written),
            None => Ok(Way::Removed(place)),
        });
        way.map(Self).map_err(|fault| fault.at(path))
    }

    /// Puts it into its place, durably.
    ///
    /// # Errors
    ///
    /// If it cannot be renamed, or the folder not be synced.
    pub(crate) fn publish(self, path: &Path) -> Result<(), Error> {
        let done: Result<(), SeedError> = match self.0 {
            Way::Written(beside) => beside.rename(Replace::Existing),
            Way::Removed(place) => place.remove(),
        };
        done.map_err(|fault| fault.at(path))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// As much of a seed as tells it from other files.
    fn seed(text: &str) -> Vec<u8> {
        let mut bytes = vec![0; 40_000];
        bytes[32_769..32_774].copy_from_slice(b"CD001");
        bytes[32_808..32_840].fill(b' ');
        bytes[32_808..32_814].copy_from_slice(b"cidata");
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        bytes
    }

    #[test]
    fn a_seed_comes_back_as_it_was_and_where_there_was_none_there_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seed.iso");
        assert!(present(&path).unwrap().is_none());
        fs::write(&path, seed("old")).unwrap();
        let old = present(&path).unwrap().unwrap();
        fs::write(&path, seed("new")).unwrap();
        let staged = ReturningSeed::stage(&path, Some(&old)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), seed("new"), "not before it is published");
        staged.publish(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), seed("old"));
        ReturningSeed::stage(&path, None).unwrap().publish(&path).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        ReturningSeed::stage(&path, None).unwrap().publish(&path).expect("nothing to remove");
        fs::write(&path, "something else").unwrap();
        for bytes in [Some(&old[..]), None] {
            assert!(ReturningSeed::stage(&path, bytes).is_err(), "a file that is no seed stays");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "something else");
    }
}
