//! From a request to the bytes of a seed; every refusal of a request is collected here.

use std::path::Path;

use zeroize::Zeroizing;

use super::config_drive::{self, Admin};
use super::credential::{Credential, PasswordHash, Secret};
use super::error::SeedError;
use super::findings::{self, Judged};
use super::folder::Folder;
use super::forms::OurParts;
use super::input::{Inputs, UserData};
use super::last::{self, LastSeed};
use super::lint::{Against, NewPassword};
use super::place::Place;
use super::ssh_key::SshKey;
use super::user_data::{self, CustomerData};
use super::{ComposedSeed, CredentialKind, SeedReport, hash, iso9660, names, nocloud, vfat, windows};
use crate::error::Error;
use crate::request::{InstanceSpec, Os, SeedFormat, SeedSpec};

const NOCLOUD_LABEL: &str = "cidata";
const CONFIG_DRIVE_LABEL: &str = "config-2";
/// User-data that asks for nothing; cloud-init wants the file to be there.
const NOTHING: &[u8] = b"#cloud-config\n{}\n";

/// Everything that a seed is made of.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// The machine: what runs in it, its names, its data disks.
    pub(crate) instance: &'a InstanceSpec,
    /// The seed of that machine.
    pub(crate) spec: &'a SeedSpec,
    /// What it gets; a scrubbed seed takes nothing of it.
    pub(crate) credential: &'a Credential,
    /// Where it is known what the last seed said.
    pub(crate) state_dir: &'a Path,
}

/// Checks everything that a seed says and makes its bytes; all refusals are collected.
///
/// A credential that keeps the image's is refused: nothing may be written then.
pub(crate) fn compose(asked: &Asked<'_>) -> Result<ComposedSeed, Error> {
    let Asked { instance, spec, credential, state_dir } = *asked;
    let last = last::find(state_dir, instance, &spec.path)?;
    let (os, hostname) = (instance.os, instance.hostname.as_deref());
    let format = spec.format.unwrap_or_else(|| format_for(os));
    let instance_id = match &spec.instance_id {
        Some(given) => given.clone(),
        None => format!("ri-{}", uuid::Uuid::new_v4()),
    };

    let mut refusals = Vec::new();
    let mut noted = |checked: Result<(), SeedError>| refusals.extend(checked.err().map(Error::from));
    noted(check_format(os, format));
    noted(spec.user.as_deref().map_or(Ok(()), |user| check_user(os, user)));
    noted(hostname.map_or(Ok(()), |hostname| check_hostname(os, hostname)));
    noted(names::check_instance_id(&instance_id));
    noted(check_is_new(&instance_id, &last));
    noted(if credential.keeps_image() { Err(SeedError::NothingToSeed) } else { Ok(()) });
    if os == Os::Windows {
        noted(windows::check_credential(credential, spec.user.as_deref()));
        noted(windows::check_old_credentials(spec.old_credentials));
    }
    let inputs = Inputs::read(spec, (os, format), &mut refusals);
    let judged = judge(&inputs, spec, credential);
    refusals.extend(judged.refusals.into_iter().map(|refusal| match &spec.user_data {
        Some(path) => refusal.at(path),
        None => refusal.into(),
    }));
    if !refusals.is_empty() {
        return Err(Error::first_of(refusals));
    }

    let made = match &credential.secret {
        Secret::Password(password) if os == Os::Linux => Some(hash::sha512_crypt(password)?),
        _ => None,
    };
    let keys: Vec<&str> = credential.keys.iter().map(SshKey::as_line).collect();
    let user_data = match inputs.user_data {
        UserData::Windows(bytes) => Some(bytes),
        UserData::None if os == Os::Windows => None,
        UserData::None => Some(linux_user_data(asked, None, made.as_ref(), &keys)),
        UserData::Linux(customer) => Some(linux_user_data(asked, Some(&customer), made.as_ref(), &keys)),
    };
    let parts = Parts {
        format,
        instance_id: &instance_id,
        hostname,
        keys: &keys,
        admin: admin_of(os, spec, credential),
        user_data,
        network_config: inputs.network_config,
    };
    let report = SeedReport {
        hostname: hostname.map(String::from),
        user: spec.user.clone(),
        credentials: kinds_of(credential),
        ssh_key_fingerprints: credential.keys.iter().map(SshKey::fingerprint).collect(),
        old_credentials: spec.old_credentials,
        ..SeedReport::of(spec, (os, format), instance_id.clone())
    };
    let warnings = warnings(spec, format).into_iter().chain(judged.warnings).collect();
    parts.volume(report, warnings)
}

/// The seed that takes the place of another once the machine has booted: the same identity and no secret.
pub(crate) fn scrub(
    instance: &InstanceSpec,
    spec: &SeedSpec,
    state_dir: &Path,
) -> Result<ComposedSeed, Error> {
    let last = last::find(state_dir, instance, &spec.path)?;
    let known = last.first();
    let format = spec.format.or(known.map(|last| last.format)).unwrap_or_else(|| format_for(instance.os));
    let hostname = instance.hostname.clone().or(known.and_then(|last| last.hostname.clone()));
    let Some(instance_id) = spec.instance_id.clone().or(known.map(|last| last.instance_id.clone())) else {
        return Err(SeedError::NothingToScrub.into());
    };

    let mut refusals = Vec::new();
    let mut noted = |checked: Result<(), SeedError>| refusals.extend(checked.err().map(Error::from));
    noted(check_format(instance.os, format));
    noted(hostname.as_deref().map_or(Ok(()), |hostname| check_hostname(instance.os, hostname)));
    noted(names::check_instance_id(&instance_id));
    if let Some(last) = known.filter(|_| last.iter().all(|last| last.instance_id != instance_id)) {
        let last = last.instance_id.clone();
        noted(Err(SeedError::OtherThanLast { given: instance_id.clone(), last }));
    }
    noted(check_is_the_one(spec, &last, &instance_id));
    let inputs = Inputs::read(spec, (instance.os, format), &mut refusals);
    let judged = judge(&inputs, spec, &Credential::keep_image());
    refusals.extend(judged.refusals.into_iter().map(Error::from));
    if !refusals.is_empty() {
        return Err(Error::first_of(refusals));
    }
    let mut warnings = judged.warnings;
    if spec.user_data.is_some() {
        warnings
            .push("the user-data stands in the seed as it was given, with whatever secrets it holds".into());
    }

    let parts = Parts {
        format,
        instance_id: &instance_id,
        hostname: hostname.as_deref(),
        keys: &[],
        admin: Admin::default(),
        user_data: inputs.user_data.into_given(),
        network_config: inputs.network_config,
    };
    let report = SeedReport {
        hostname: hostname.clone(),
        ..SeedReport::of(spec, (instance.os, format), instance_id.clone())
    };
    parts.volume(report, warnings)
}

/// Under any other id than that of the seed that it booted with, the machine would begin anew without credentials.
fn check_is_the_one(spec: &SeedSpec, last: &[LastSeed], instance_id: &str) -> Result<(), SeedError> {
    let mut ids: Vec<_> = last.iter().map(|last| last.instance_id.clone()).collect();
    ids.dedup();
    if ids.len() > 1 && spec.instance_id.is_none() {
        return Err(SeedError::ManyIds { ids });
    }
    // What else may be wrong with the place is told when it is examined.
    let present = Place::examine(&spec.path).and_then(|place| place.present()).ok().flatten();
    let present = present.filter(|bytes| !bytes.is_empty());
    let holds = |bytes: &[u8]| bytes.windows(instance_id.len()).any(|part| part == instance_id.as_bytes());
    match present {
        Some(bytes) if !holds(&bytes) => Err(SeedError::Place { why: "holds a seed of another instance id" }),
        _ => Ok(()),
    }
}

/// What the files of a seed say, whatever the format.
struct Parts<'a> {
    format: SeedFormat,
    instance_id: &'a str,
    hostname: Option<&'a str>,
    keys: &'a [&'a str],
    admin: Admin<'a>,
    user_data: Option<Zeroizing<Vec<u8>>>,
    network_config: Option<Zeroizing<Vec<u8>>>,
}

impl Parts<'_> {
    fn volume(self, report: SeedReport, warnings: Vec<String>) -> Result<ComposedSeed, Error> {
        let (format, label) = (self.format, label_of(self.format));
        let clear_text = self.admin.password.is_some();
        let folder = self.into_folder();
        let bytes = match format {
            SeedFormat::Nocloud | SeedFormat::ConfigDrive => iso9660::write(&folder, label)?,
            SeedFormat::NocloudVfat => vfat::write(&folder, label)?,
        };
        // A fast digest of a clear-text password and little else could be tried against every word there is.
        let blake3 = (!clear_text).then(|| blake3::hash(&bytes).to_hex().to_string());
        let report = SeedReport { label, size: bytes.len(), blake3, ..report };
        Ok(ComposedSeed { bytes, report, warnings })
    }

    fn into_folder(self) -> Folder {
        let Self { instance_id, hostname, keys, admin, user_data, network_config, .. } = self;
        match self.format {
            SeedFormat::Nocloud | SeedFormat::NocloudVfat => {
                let user_data = user_data.unwrap_or_else(|| Zeroizing::new(NOTHING.to_vec()));
                nocloud::Content { instance_id, hostname, keys, user_data, network_config }.into_folder()
            }
            SeedFormat::ConfigDrive => {
                config_drive::Content { instance_id, hostname, keys, admin, user_data }.into_folder()
            }
        }
    }
}

fn format_for(os: Os) -> SeedFormat {
    match os {
        Os::Linux => SeedFormat::Nocloud,
        Os::Windows => SeedFormat::ConfigDrive,
    }
}

fn label_of(format: SeedFormat) -> &'static str {
    match format {
        SeedFormat::Nocloud | SeedFormat::NocloudVfat => NOCLOUD_LABEL,
        SeedFormat::ConfigDrive => CONFIG_DRIVE_LABEL,
    }
}

fn check_format(os: Os, format: SeedFormat) -> Result<(), SeedError> {
    let format = match (os, format) {
        (Os::Linux, _) | (Os::Windows, SeedFormat::ConfigDrive) => return Ok(()),
        (Os::Windows, SeedFormat::Nocloud) => "nocloud",
        (Os::Windows, SeedFormat::NocloudVfat) => "nocloud-vfat",
    };
    let why = "cloudbase-init finds no password there and sets a random one";
    Err(SeedError::Format { guest: "Windows", format, why })
}

fn check_user(os: Os, user: &str) -> Result<(), SeedError> {
    match os {
        Os::Linux => names::check_user(user),
        Os::Windows => windows::check_user(user),
    }
}

fn check_hostname(os: Os, hostname: &str) -> Result<(), SeedError> {
    names::check_hostname(hostname)?;
    if os == Os::Windows { windows::check_hostname(hostname) } else { Ok(()) }
}

/// Under the id that it has, neither cloud-init nor cloudbase-init would run again.
fn check_is_new(instance_id: &str, last: &[LastSeed]) -> Result<(), SeedError> {
    match last.iter().any(|last| last.instance_id == instance_id) {
        true => Err(SeedError::InstanceId {
            instance_id: instance_id.into(),
            why: "is that of the machine's last seed, so that nothing would be set",
        }),
        false => Ok(()),
    }
}

/// What of the customer's own would hurt; cloudbase-init has no such words.
fn judge(inputs: &Inputs, spec: &SeedSpec, credential: &Credential) -> Judged {
    let UserData::Linux(customer) = &inputs.user_data else { return Judged::default() };
    let password = match &credential.secret {
        Secret::Password(_) | Secret::Hash(_) => NewPassword::Set,
        Secret::KeysOnly | Secret::KeepImage => NewPassword::None,
    };
    // What the guest calls its system disk is not known here: a wrong guess would cost a data disk.
    let against = Against { user: spec.user.as_deref(), password, system_disks: &[] };
    findings::judge(customer, &against, spec.user_data_disks)
}

fn linux_user_data(
    asked: &Asked<'_>,
    customer: Option<&CustomerData>,
    made: Option<&PasswordHash>,
    keys: &[&str],
) -> Zeroizing<Vec<u8>> {
    let hash = match &asked.credential.secret {
        Secret::Hash(hash) => Some(hash.expose()),
        _ => made.map(PasswordHash::expose),
    };
    let image_credentials = asked.spec.old_credentials;
    let ours = OurParts { user: asked.spec.user.as_deref(), hash, keys, image_credentials };
    user_data::combine(customer, &ours)
}

fn admin_of<'a>(os: Os, spec: &'a SeedSpec, credential: &'a Credential) -> Admin<'a> {
    match (os, &credential.secret) {
        (Os::Windows, Secret::Password(password)) => {
            Admin { user: spec.user.as_deref(), password: Some(password.expose()) }
        }
        _ => Admin::default(),
    }
}

fn kinds_of(credential: &Credential) -> Vec<CredentialKind> {
    let secret = match &credential.secret {
        Secret::Password(_) => Some(CredentialKind::Password),
        Secret::Hash(_) => Some(CredentialKind::PasswordHash),
        Secret::KeysOnly | Secret::KeepImage => None,
    };
    secret.into_iter().chain((!credential.keys.is_empty()).then_some(CredentialKind::SshKey)).collect()
}

fn warnings(spec: &SeedSpec, format: SeedFormat) -> Vec<String> {
    let mut warnings = Vec::new();
    let is_uuid = spec.instance_id.as_deref().is_some_and(|id| uuid::Uuid::try_parse(id).is_ok());
    if is_uuid && format == SeedFormat::ConfigDrive {
        warnings.push(
            "the instance id is a UUID: if it is the machine's SMBIOS UUID, an image that was made under it does \
             not read the new seed"
                .into(),
        );
    }
    warnings
}
