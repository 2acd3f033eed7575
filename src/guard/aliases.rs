//! Whether a disk is, under whatever name, something that must survive: data disk, image, host, the run's own files.

use std::path::{Path, PathBuf};

use super::claim::Subject;
use super::data_disks::DataDisk;
use super::identity::StorageIdentity;
use super::in_use;
use super::refusal::{Refusal, Relation};
use super::topology::{Storage, Topology};

/// An open file of the image, and what it leads to.
pub(crate) struct ImageFile {
    pub(super) path: PathBuf,
    pub(super) storage: Storage,
}

/// What an image's files lead to.
pub(crate) fn image_files(
    topology: &Topology,
    files: impl IntoIterator<Item = (PathBuf, StorageIdentity)>,
) -> Vec<ImageFile> {
    let follow = |(path, identity): (PathBuf, StorageIdentity)| {
        let real = path.canonicalize().ok();
        ImageFile { storage: topology.storage(identity, real.as_deref()), path }
    };
    files.into_iter().map(follow).collect()
}

/// Who may be writing the image, each with the file that it is about.
pub(crate) fn image_writers(topology: &Topology, files: &[ImageFile]) -> Vec<(PathBuf, Refusal)> {
    let of_file = |file: &ImageFile| {
        let writers = in_use::writers(topology, &file.storage, in_use::Wait::ForPassersBy);
        writers.into_iter().map(|refusal| (file.path.clone(), refusal)).collect::<Vec<_>>()
    };
    files.iter().flat_map(of_file).collect()
}

/// Everything that must survive and shares bytes with the target.
pub(super) fn of_target(topology: &Topology, subject: &Subject<'_>, target: &Storage) -> Vec<Refusal> {
    let mut refusals = shared(topology, subject.image_files, subject.data_disks, target);
    if let StorageIdentity::Device { .. } = target.identity {
        refusals.extend(in_use::host_file_systems(topology, target));
    }
    for (what, path) in subject.needed {
        let lies_there = topology.storage_at(path).is_some_and(|storage| storage.is_on(target));
        if lies_there {
            refusals.push(Refusal::Holds { what, path: path.clone() });
        }
    }
    let seed = subject.seed.filter(|path| topology.storage_at(path).is_some_and(|seed| seed.is_on(target)));
    refusals.extend(seed.map(|path| Refusal::Seed { path: path.to_owned() }));
    refusals
}

/// Whether the file that is put at `path` would change something that must survive.
pub(crate) fn check_seed_path(
    topology: &Topology,
    path: &Path,
    image_files: &[ImageFile],
    data_disks: &[DataDisk],
) -> Result<(), Refusal> {
    let Some(seed) = topology.storage_at(path) else { return Ok(()) };
    if image_files.iter().any(|file| file.storage.overlaps(&seed)) {
        return Err(Refusal::SeedReplaces { what: "the image or one of its backing files" });
    }
    if data_disks.iter().any(|disk| disk.storage.overlaps(&seed)) {
        return Err(Refusal::SeedReplaces { what: "a data disk, or lie on one" });
    }
    Ok(())
}

/// Whether files that are written at `path` would lie on a data disk.
pub(crate) fn check_written(
    topology: &Topology,
    (what, path): (&'static str, &Path),
    data_disks: &[DataDisk],
) -> Result<(), Refusal> {
    let Some(place) = topology.storage_at(path) else { return Ok(()) };
    match data_disks.iter().find(|disk| place.is_on(&disk.storage)) {
        Some(disk) => Err(Refusal::OnDataDisk { what, data_disk: disk.path.clone() }),
        None => Ok(()),
    }
}

/// The processes that have the file or device at `path` open for writing.
pub(crate) fn writers_at(path: &Path) -> Vec<Refusal> {
    let topology = Topology::of_this_host(vec![path.to_owned()]);
    let storage = topology.storage_at(path).filter(|_| path.exists());
    storage.map(|storage| in_use::writers(&topology, &storage, in_use::Wait::No)).unwrap_or_default()
}

/// Whether a path that is about to be made anew is that of something that must survive.
pub(super) fn must_survive(topology: &Topology, subject: &Subject<'_>, path: &Path) -> Option<Refusal> {
    path.symlink_metadata().ok()?;
    let found = topology.storage_at(path)?;
    shared(topology, subject.image_files, subject.data_disks, &found).into_iter().next()
}

/// What shares bytes with the target; everything is followed anew, through what the topology shows.
fn shared(
    topology: &Topology,
    image_files: &[ImageFile],
    data_disks: &[DataDisk],
    target: &Storage,
) -> Vec<Refusal> {
    let relation = |other: &Storage| {
        let other = topology.again(other);
        let relation = if other.bytes == target.bytes { Relation::Same } else { Relation::Shares };
        other.overlaps(target).then_some(relation)
    };
    let images = image_files.iter().filter_map(|file| {
        Some(Refusal::Image { relation: relation(&file.storage)?, path: file.path.clone() })
    });
    let data_disks = data_disks.iter().filter_map(|disk| {
        Some(Refusal::DataDisk { relation: relation(&disk.storage)?, path: disk.path.clone() })
    });
    images.chain(data_disks).collect()
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeHost;
    use super::super::kernel::Number;
    use super::*;
    use crate::error::ErrorKind;

    /// What is said of a target that shares bytes with a data disk, and with the image; nothing if it does not.
    #[track_caller]
    fn check(host: &FakeHost, target: Number, other: Number, expected: Option<Relation>) {
        let topology = host.topology();
        let follow = |number: Number| topology.storage(number.into(), None);
        let image = [ImageFile { path: "image".into(), storage: follow(other) }];
        let data = [DataDisk::made_up(&topology, follow(other))];
        let told: Vec<_> = shared(&topology, &image, &data, &follow(target))
            .into_iter()
            .map(|refusal| {
                let relation = match refusal {
                    Refusal::Image { relation, .. } | Refusal::DataDisk { relation, .. } => relation,
                    ref other => panic!("{other}"),
                };
                (relation, refusal.about(Path::new("target")).kind())
            })
            .collect();
        let expected: Vec<_> = expected.into_iter().map(|relation| (relation, ErrorKind::Identity)).collect();
        assert_eq!(told, expected.repeat(2), "{target:?} {other:?}");
    }

    #[test]
    fn a_disk_its_volumes_and_arrays_are_told_apart_from_their_neighbours() {
        let host = FakeHost::new();
        let (sda, sdb, root, home) = ((8, 0), (8, 16), (254, 0), (254, 1));
        host.disk("pci0/block/sda", sda);
        host.disk("pci0/block/sdb", sdb);
        host.stacked("dm-0", root, &["sda"]);
        host.stacked("dm-1", home, &["sda"]);
        check(&host, root, root, Some(Relation::Same));
        check(&host, root, sda, Some(Relation::Shares));
        check(&host, sda, home, Some(Relation::Shares));
        check(&host, root, home, None);
        check(&host, sda, sdb, None);
    }
}
