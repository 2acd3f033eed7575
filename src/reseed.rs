//! A seed alone, without a rebuild: checked, kept off the instance's disks, written, remembered.

use std::path::Path;

use crate::error::Error;
use crate::guard::{self, DataDisk, Refusal, Topology};
use crate::request::{DataDisk as Spec, DataDiskDigest, InstanceSpec, SeedSpec};
use crate::seed::{self, Asked, ComposedSeed, Credential, Replace, SeedReport};

/// Writes a seed on its own, without a rebuild; `state_dir` remembers what tells it from the next.
///
/// # Errors
///
/// [`Credentials`](crate::ErrorKind::Credentials) if the request is refused,
/// [`Identity`](crate::ErrorKind::Identity) if the file would take the place of a disk or the image, and
/// [`Seed`](crate::ErrorKind::Seed) if the file could not be written. The file that was there is
/// there still, unless only the last step failed: syncing the folder after the rename.
///
/// ```no_run
/// # fn main() -> Result<(), reimage::Error> {
/// use reimage::{Credential, InstanceSpec, Password, Replace, SeedSpec};
/// let mut instance = InstanceSpec::default();
/// instance.seed = Some(SeedSpec::at("/var/lib/vm/i-0a1b/seed.iso"));
/// let credential = Credential::password(Password::new(String::from("correct horse"))?);
/// reimage::write_seed(&instance, &credential, "/var/lib/reimage".as_ref(), Replace::Refuse)?;
/// # Ok(())
/// # }
/// ```
pub fn write_seed(
    instance: &InstanceSpec,
    credential: &Credential,
    state_dir: &Path,
    replace: Replace,
) -> Result<SeedReport, Error> {
    let spec = seed::spec_of(instance)?;
    let composed = seed::compose(&Asked { instance, spec, credential, state_dir })?;
    write(composed, (instance, spec), state_dir, replace)
}

/// Writes the seed that a machine keeps once it has booted: the same identity, and no secret.
///
/// Without `instance_id` in the seed's request it is the one that `state_dir` remembers. The guest sees nothing new
/// and keeps its credentials; without any seed, cloud-init and cloudbase-init would look elsewhere for one.
///
/// # Errors
///
/// As for [`write_seed`], and if the identity is not known, or is another than the last seed's.
///
/// ```no_run
/// # fn main() -> Result<(), reimage::Error> {
/// let mut instance = reimage::InstanceSpec::default();
/// instance.seed = Some(reimage::SeedSpec::at("/var/lib/vm/i-0a1b/seed.iso"));
/// let report =
///     reimage::scrub_seed(&instance, "/var/lib/reimage".as_ref(), reimage::Replace::Existing)?;
/// assert!(report.credentials.is_empty());
/// # Ok(())
/// # }
/// ```
pub fn scrub_seed(instance: &InstanceSpec, state_dir: &Path, replace: Replace) -> Result<SeedReport, Error> {
    let spec = seed::spec_of(instance)?;
    let composed = seed::scrub(instance, spec, state_dir)?;
    write(composed, (instance, spec), state_dir, replace)
}

fn write(
    composed: ComposedSeed,
    (instance, spec): (&InstanceSpec, &SeedSpec),
    state_dir: &Path,
    replace: Replace,
) -> Result<SeedReport, Error> {
    // What the file is by its name in the request says more than that it is no seed.
    let refusals = refusals(instance, &spec.path, state_dir).into_iter();
    let mut refusals: Vec<_> = refusals.map(|refusal| refusal.about(&spec.path)).collect();
    refusals.extend(composed.check_place().err());
    if !refusals.is_empty() {
        return Err(Error::first_of(refusals));
    }
    let mut warnings = composed.warnings().to_vec();
    let report = composed.stage()?.publish(replace)?;
    let remembered = seed::remember(state_dir, instance.id.as_deref(), &report);
    warnings.extend(remembered.err().map(|error| seed::not_remembered(&error)));
    Ok(SeedReport { warnings, ..report })
}

/// Whether the seed or the state folder would change what must survive: `--replace` is about seeds only.
fn refusals(instance: &InstanceSpec, seed: &Path, state_dir: &Path) -> Vec<Refusal> {
    let disks = instance.data_disks.iter().map(|disk| disk.path.clone());
    let others = [seed.to_owned(), state_dir.to_owned(), instance.system_disk.path.clone()];
    let topology = Topology::of_this_host(disks.chain(others).chain(instance.image.clone()).collect());
    // By its numbers alone: nothing is opened.
    let look = |path: &Path| {
        let spec = Spec { path: path.to_owned(), ..Spec::default() };
        DataDisk::look(&topology, &spec, DataDiskDigest::Off, &mut Vec::new())
    };
    let mut refusals = Vec::new();
    let mut data_disks = Vec::new();
    for Spec { path, .. } in &instance.data_disks {
        match look(path) {
            Ok(disk) => data_disks.push(disk),
            Err(source) => refusals.push(Refusal::DataDiskUnknown { path: path.clone(), source }),
        }
    }
    refusals.extend(guard::check_seed_path(&topology, seed, &[], &data_disks).err());
    for folder in [state_dir.to_owned(), state_dir.join("seeds")] {
        refusals.extend(guard::check_written(&topology, ("the state folder", &folder), &data_disks).err());
    }
    let others = [
        (Some(&instance.system_disk.path), "the system disk, or lie on it"),
        (instance.image.as_ref(), "the image"),
    ];
    for (path, what) in others {
        let disk = match path.map(|path| look(path)) {
            Some(Ok(disk)) => disk,
            // What is not there cannot be replaced.
            None => continue,
            Some(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Some(Err(source)) => {
                refusals.extend(path.map(|path| Refusal::DataDiskUnknown { path: path.clone(), source }));
                continue;
            }
        };
        let clash = guard::check_seed_path(&topology, seed, &[], &[disk]).is_err();
        refusals.extend(clash.then_some(Refusal::SeedReplaces { what }));
    }
    refusals
}
