//! What the last seed of a machine said, kept in the state folder: no secret, only what tells one seed from the next.
//!
//! It is kept under the instance's name and under the seed's place: either may be all that is known next time.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::SeedReport;
use super::error::SeedError;
use super::place::{Place, Replace};
use crate::error::{Error, ErrorKind};
use crate::request::{InstanceSpec, SeedFormat};
use crate::sys::durable;

/// Longer than any that is written here.
const MOST_BYTES: usize = 64 << 10;

/// What the last seed of a machine said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LastSeed {
    pub(super) instance_id: String,
    pub(super) hostname: Option<String>,
    pub(super) format: SeedFormat,
}

/// The last seeds of this instance and at this place, as far as they are known; mostly they are one.
pub(super) fn find(state_dir: &Path, instance: &InstanceSpec, seed: &Path) -> Result<Vec<LastSeed>, Error> {
    let mut found = Vec::new();
    for file in files(state_dir, instance.id.as_deref(), seed) {
        let last = read(&file).map_err(|source| {
            let fault = SeedError::Unusable { doing: "reading what the last seed said", source };
            fault.at(&file).hint_that("remove the file if it is damaged; it holds the last instance id only")
        })?;
        found.extend(last.filter(|last| !found.contains(last)));
    }
    Ok(found)
}

/// Notes what was written, once a machine may boot with it.
///
/// # Errors
///
/// If the state folder cannot be written: the next seed will not be compared with this one.
pub(crate) fn remember(state_dir: &Path, instance: Option<&str>, report: &SeedReport) -> Result<(), Error> {
    let last = LastSeed {
        instance_id: report.instance_id.clone(),
        hostname: report.hostname.clone(),
        format: report.format,
    };
    let text = serde_json::to_vec(&last).expect("it is plain data");
    let folder = folder(state_dir);
    durable::make_folder(&folder).map_err(|source| {
        SeedError::Io { doing: "making a folder for what the last seed said", source }.at(&folder)
    })?;
    for file in files(state_dir, instance, &report.path) {
        Place::examine(&file)
            .and_then(|place| place.write_beside(&text)?.rename(Replace::Existing))
            .map_err(|fault| Error::new(ErrorKind::Seed, fault).at_path(&file))?;
    }
    Ok(())
}

/// What is noted under each of the two names, as `restore` takes it; what cannot be read counts as nothing.
pub(super) fn snapshot(state_dir: &Path, instance: Option<&str>, seed: &Path) -> serde_json::Value {
    let noted: Vec<_> =
        files(state_dir, instance, seed).iter().map(|file| read(file).ok().flatten()).collect();
    serde_json::to_value(noted).expect("it is plain data")
}

/// Notes under each of the two names what a snapshot says.
pub(super) fn restore(
    state_dir: &Path,
    (instance, seed): (Option<&str>, &Path),
    snapshot: &serde_json::Value,
) -> io::Result<()> {
    let noted: Vec<Option<LastSeed>> = serde_json::from_value(snapshot.clone())?;
    for (file, last) in files(state_dir, instance, seed).iter().zip(noted) {
        match last {
            Some(last) => {
                durable::make_folder(&folder(state_dir))?;
                durable::write_whole(file, &serde_json::to_vec(&last)?)?;
            }
            None => match fs::remove_file(file) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed?,
            },
        }
    }
    Ok(())
}

fn folder(state_dir: &Path) -> PathBuf {
    std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.to_owned()).join("seeds")
}

fn files(state_dir: &Path, instance: Option<&str>, seed: &Path) -> Vec<PathBuf> {
    let named = |kind: &str, bytes: &[u8]| {
        let mut hasher = blake3::Hasher::new_derive_key("reimage: key of what the last seed said");
        hasher.update(kind.as_bytes()).update(&[0]).update(bytes);
        folder(state_dir).join(format!("{}.json", &hasher.finalize().to_hex()[..32]))
    };
    let by_instance = instance.map(|id| named("instance", id.as_bytes()));
    by_instance.into_iter().chain([named("place", place_of(seed).as_os_str().as_encoded_bytes())]).collect()
}

/// The seed's path without links and dots, as far as its folder is there.
fn place_of(seed: &Path) -> PathBuf {
    let absolute = std::path::absolute(seed).unwrap_or_else(|_| seed.to_owned());
    let real = absolute.parent().and_then(|folder| folder.canonicalize().ok());
    match (real, absolute.file_name()) {
        (Some(folder), Some(name)) => folder.join(name),
        _ => absolute,
    }
}

fn read(file: &Path) -> io::Result<Option<LastSeed>> {
    let bytes = match fs::read(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes?,
    };
    if bytes.len() > MOST_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(Some(serde_json::from_slice(&bytes)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(id: Option<&str>) -> InstanceSpec {
        InstanceSpec { id: id.map(String::from), ..InstanceSpec::default() }
    }

    fn report(path: PathBuf, instance_id: &str) -> SeedReport {
        SeedReport { instance_id: instance_id.into(), path, ..super::super::tests::empty_report() }
    }

    #[test]
    fn a_seed_is_remembered_by_instance_and_by_place() {
        let room = tempfile::tempdir().unwrap();
        let (state, seed) = (room.path().join("a/state"), room.path().join("seed.iso"));
        let ids = |id: Option<&str>, path: &Path| {
            let found = find(&state, &instance(id), path).unwrap();
            found.into_iter().map(|last| last.instance_id).collect::<Vec<_>>()
        };
        assert!(ids(Some("i-1"), &seed).is_empty());
        remember(&state, Some("i-1"), &report(seed.clone(), "ri-1")).unwrap();
        assert_eq!(ids(Some("i-1"), &seed), ["ri-1"]);
        assert_eq!(ids(None, &room.path().join("a/../seed.iso")), ["ri-1"]);
        assert_eq!(ids(Some("i-1"), Path::new("/nowhere/else.iso")), ["ri-1"]);
        assert!(ids(Some("i-2"), Path::new("/nowhere/else.iso")).is_empty());
        remember(&state, None, &report(seed.clone(), "ri-2")).unwrap();
        assert_eq!(ids(Some("i-1"), &seed), ["ri-1", "ri-2"]);
        remember(&state, Some("i-1"), &report(seed.clone(), "ri-3")).unwrap();
        assert_eq!(ids(Some("i-1"), &seed), ["ri-3"]);
    }

    #[test]
    fn what_was_remembered_is_remembered_again() {
        let room = tempfile::tempdir().unwrap();
        let (state, seed) = (room.path().join("state"), room.path().join("seed.iso"));
        let ids = || {
            let found = find(&state, &instance(Some("i-1")), &seed).unwrap();
            found.into_iter().map(|last| last.instance_id).collect::<Vec<_>>()
        };
        let nothing = snapshot(&state, Some("i-1"), &seed);
        remember(&state, Some("i-1"), &report(seed.clone(), "ri-1")).unwrap();
        let first = snapshot(&state, Some("i-1"), &seed);
        remember(&state, Some("i-1"), &report(seed.clone(), "ri-2")).unwrap();
        restore(&state, (Some("i-1"), &seed), &first).unwrap();
        assert_eq!(ids(), ["ri-1"]);
        restore(&state, (Some("i-1"), &seed), &nothing).unwrap();
        assert!(ids().is_empty());
        restore(&state, (Some("i-1"), &seed), &serde_json::json!("nonsense")).unwrap_err();
    }

    #[test]
    fn what_is_damaged_is_told_and_not_overlooked() {
        let room = tempfile::tempdir().unwrap();
        let seed = room.path().join("seed.iso");
        remember(room.path(), None, &report(seed.clone(), "ri-1")).unwrap();
        let file = files(room.path(), None, &seed).remove(0);
        fs::write(&file, "{").unwrap();
        let error = find(room.path(), &instance(None), &seed).unwrap_err();
        assert_eq!((error.kind(), error.path()), (ErrorKind::Credentials, Some(file.as_path())));
    }
}
