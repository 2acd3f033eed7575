//! What was typed means this: flags over the instance file, as a `Request`.

mod capture;

use std::fs;
use std::path::{Path, PathBuf};

use reimage::{
    BoundPlan, DataDisk, DataDiskDigest, DuplicatePolicy, EarlierRun, Expect, GptPolicy, ImageFormat,
    ImageOptions, InstanceSpec, Linking, ManifestSource, Mode, NestedFormat, NetworkPolicy, OldCredentials,
    OldDisk, OldSnapshots, OnError, Options, Os, Placement, Preflight, Request, SeedFormat, SeedSpec,
    SightPolicy, TargetFormat, UserDataDisks, VerifyPolicy, WholeDigest,
};

pub(crate) use capture::of_capture;

use crate::args::{
    CheckArgs, CutOffArgs, DataDiskDigestArg, GptArg, GuardArgs, ImageArgs, ImageFormatArg, JobArgs,
    MachineArgs, ManifestArgs, ManifestFlag, ModeArg, NetworkArg, OsArg, PreflightArg, Qcow2Args, RunArgs,
    SeedFormatArg, StatusArgs, SubjectArgs, TargetFormatArg, VerifyArg, VerifyArgs,
};
use crate::exit::Failure;
use crate::show::clean;
use crate::trust;

/// The request of `plan` and `rebuild`.
pub(crate) fn of_job(args: &JobArgs, state_dir: Option<&Path>) -> Result<Request, Failure> {
    let mut instance = of_subject(&args.subject)?;
    apply_disk(&mut instance, args.disk.qcow2.format.target_format, &args.disk.guard);
    apply_machine(&mut instance, &args.machine)?;
    let mut request = Request::default();
    request.instance = instance;
    request.options = options(args, state_dir)?;
    Ok(request)
}

/// The request of `verify`.
pub(crate) fn of_verify(args: &VerifyArgs) -> Result<Request, Failure> {
    let mut request = Request::default();
    request.instance = of_subject(&args.subject)?;
    apply_format(&mut request.instance, args.format.target_format);
    request.options.image = image_options(&args.image);
    request.options.image.manifest = manifest_of(&args.manifest);
    trust::apply(&mut request.options, &args.trust)?;
    apply_check(&mut request.options, &args.check);
    request.options.stall_timeout = args.stall_timeout;
    Ok(request)
}

/// The machine of `seed`: it needs an instance file only for what the flags do not say.
pub(crate) fn of_machine(file: Option<&Path>, args: &MachineArgs) -> Result<InstanceSpec, Failure> {
    let mut instance = file.map(read_instance).transpose()?.unwrap_or_default();
    apply_machine(&mut instance, args)?;
    Ok(instance)
}

/// Whose status is asked for.
pub(crate) enum Asked {
    /// The instance of a file.
    Instance(Box<InstanceSpec>),
    /// A disk.
    Disk(PathBuf),
    /// A word under which nothing lies here: an instance's id, or a disk that is not there yet.
    Word(String),
}

/// What `status` is asked about: a file that ends in .toml, a disk, or an id, in this order.
///
/// With `--prune` it may be asked about nothing.
pub(crate) fn of_status(args: &StatusArgs) -> Result<Option<Asked>, Failure> {
    asked(args.subject.as_deref(), args.instance.as_deref())
}

/// The same of a word and a named instance file.
pub(crate) fn asked(subject: Option<&Path>, instance: Option<&Path>) -> Result<Option<Asked>, Failure> {
    let is_file_name = |path: &&Path| path.extension().is_some_and(|extension| extension == "toml");
    if let Some(file) = instance.or(subject.filter(is_file_name)) {
        return Ok(Some(Asked::Instance(Box::new(read_instance(file)?))));
    }
    let asked = |path: &Path| match path.to_str() {
        Some(word) if !word.contains('/') && path.symlink_metadata().is_err() => Asked::Word(word.to_owned()),
        _ => Asked::Disk(path.to_owned()),
    };
    Ok(subject.map(asked))
}

/// The folder of journals.
pub(crate) fn state_dir(typed: Option<&Path>) -> Result<PathBuf, Failure> {
    typed.map_or_else(default_state_dir, |folder| Ok(folder.to_owned()))
}

/// Where an image's manifest is.
pub(crate) fn manifest_of(args: &ManifestFlag) -> ManifestSource {
    match &args.manifest {
        None => ManifestSource::Beside,
        Some(word) if word.as_os_str() == "none" => ManifestSource::None,
        Some(file) => ManifestSource::File(file.clone()),
    }
}

/// How a manifest is made.
pub(crate) fn of_manifest(args: &ManifestArgs) -> Options {
    let mut options = Options::default();
    options.image = image_options(&args.image);
    options.whole_digest = if args.whole_digest { WholeDigest::Compute } else { WholeDigest::Skip };
    options.threads = args.threads;
    options
}

/// How an image is opened.
pub(crate) fn image_options(args: &ImageArgs) -> ImageOptions {
    let mut options = ImageOptions::default();
    options.format = match args.image_format {
        ImageFormatArg::Auto => ImageFormat::Auto,
        ImageFormatArg::Raw => ImageFormat::Raw,
        ImageFormatArg::Qcow2 => ImageFormat::Qcow2,
    };
    options.nested = if args.allow_nested_format { NestedFormat::Allow } else { NestedFormat::Refuse };
    options.allow_backing.clone_from(&args.allow_backing);
    options.expect_digest = args.expect_digest;
    options
}

fn of_subject(args: &SubjectArgs) -> Result<InstanceSpec, Failure> {
    let mut instance = args.instance.as_deref().map(read_instance).transpose()?.unwrap_or_default();
    let (image, target) = match (&args.image_path, &args.target, &args.image_flag) {
        (Some(_), Some(_), Some(_)) => {
            return Err(Failure::usage("the image is named twice").hinting("leave --image or IMAGE out"));
        }
        (Some(_), None, Some(_)) if args.instance.is_some() => {
            return Err(Failure::usage(
                "the image is named twice: one word more than --instance is the image",
            )
            .hinting("leave --image or IMAGE out"));
        }
        // Without an instance file the one word is what --image leaves open.
        (Some(target), None, Some(image)) => (Some(image), Some(target)),
        (image, target, flag) => (flag.as_ref().or(image.as_ref()), target.as_ref()),
    };
    if let Some(image) = image {
        instance.image = Some(image.clone());
    }
    if let Some(target) = target {
        instance.system_disk.path.clone_from(target);
    }
    if instance.image.is_none() {
        return Err(Failure::usage("no image is named").hinting("give IMAGE TARGET, or --instance FILE"));
    }
    if instance.system_disk.path.as_os_str().is_empty() {
        return Err(Failure::usage("no target is named").hinting("give IMAGE TARGET, or --instance FILE"));
    }
    Ok(instance)
}

/// Reads an instance file; its paths are relative to its folder.
fn read_instance(path: &Path) -> Result<InstanceSpec, Failure> {
    let text = fs::read_to_string(path).map_err(|error| {
        Failure::usage(format!("the instance file {path:?} cannot be read: {error}"))
            .hinting("correct its path, or its rights")
            .at(path)
    })?;
    let mut instance: InstanceSpec =
        toml::from_str(&text).map_err(|error| not_toml("the instance file", path, (&text, &error)))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let resolve = |path: &mut PathBuf| {
        if !path.as_os_str().is_empty() {
            *path = folder.join(&*path);
        }
    };
    instance.image.as_mut().map(resolve);
    resolve(&mut instance.system_disk.path);
    instance.data_disks.iter_mut().for_each(|disk| resolve(&mut disk.path));
    if let Some(seed) = &mut instance.seed {
        resolve(&mut seed.path);
        seed.network_config.as_mut().map(resolve);
        seed.user_data.as_mut().map(resolve);
    }
    Ok(instance)
}

/// What is wrong with a file of ours, and in which line.
pub(crate) fn not_toml(what: &str, path: &Path, (text, error): (&str, &toml::de::Error)) -> Failure {
    let place = match error.span() {
        Some(span) => {
            format!("{path:?} line {}", 1 + text[..span.start.min(text.len())].matches('\n').count())
        }
        None => format!("{path:?}"),
    };
    let fault = clean(error.message().lines().next().unwrap_or("not as it should be"));
    Failure::usage(format!("{what} {place}: {fault}"))
        .hinting("correct the file: unknown keys are errors, so that a misspelt one is not overlooked")
        .at(path)
}

fn apply_format(instance: &mut InstanceSpec, format: TargetFormatArg) {
    instance.system_disk.format = match format {
        TargetFormatArg::Auto => instance.system_disk.format,
        TargetFormatArg::Raw => TargetFormat::Raw,
        TargetFormatArg::Qcow2 => TargetFormat::Qcow2,
    };
}

fn apply_disk(instance: &mut InstanceSpec, format: TargetFormatArg, args: &GuardArgs) {
    apply_format(instance, format);
    apply_guarded(instance, args);
}

/// What the disk must be, and what must survive.
pub(crate) fn apply_guarded(instance: &mut InstanceSpec, args: &GuardArgs) {
    apply_expect(instance, args.expect.as_ref());
    apply_data_disks(instance, &args.data_disk);
}

fn apply_expect(instance: &mut InstanceSpec, typed: Option<&Expect>) {
    if let Some(typed) = typed {
        let filed = std::mem::take(&mut instance.system_disk.expect);
        let mut both = Expect::default();
        both.serial = typed.serial.clone().or(filed.serial);
        both.wwn = typed.wwn.clone().or(filed.wwn);
        both.size = typed.size.or(filed.size);
        both.ptuuid = typed.ptuuid.clone().or(filed.ptuuid);
        instance.system_disk.expect = both;
    }
}

/// Never instead of the file's: what must survive only ever grows.
fn apply_data_disks(instance: &mut InstanceSpec, typed: &[PathBuf]) {
    let place = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    for path in typed {
        if instance.data_disks.iter().any(|disk| place(&disk.path) == place(path)) {
            continue;
        }
        let mut disk = DataDisk::default();
        disk.path.clone_from(path);
        instance.data_disks.push(disk);
    }
}

fn apply_machine(instance: &mut InstanceSpec, args: &MachineArgs) -> Result<(), Failure> {
    if let Some(os) = args.os {
        instance.os = match os {
            OsArg::Linux => Os::Linux,
            OsArg::Windows => Os::Windows,
        };
    }
    if let Some(hostname) = &args.hostname {
        instance.hostname = Some(hostname.clone());
    }
    if let Some(path) = &args.seed {
        instance.seed.get_or_insert_with(SeedSpec::default).path.clone_from(path);
    }
    let of_a_seed = [
        ("--seed-format", args.seed_format.is_some()),
        ("--instance-id", args.instance_id.is_some()),
        ("--user", args.user.is_some()),
        ("--user-data", args.user_data.is_some()),
        ("--allow-user-data-disk-setup", args.allow_user_data_disk_setup),
        ("--network-config", args.network_config.is_some()),
        ("--network", args.network.is_some()),
        ("--revoke-image-credentials", args.revoke_image_credentials),
    ];
    let Some(seed) = &mut instance.seed else {
        return match of_a_seed.iter().find(|(_, typed)| *typed) {
            Some((flag, _)) => Err(Failure::usage(format!("{flag} is about a seed, and none is named"))
                .hinting("name the seed's file with --seed FILE")),
            None => Ok(()),
        };
    };
    apply_seed(seed, args)
}

fn apply_seed(seed: &mut SeedSpec, args: &MachineArgs) -> Result<(), Failure> {
    seed.format = args.seed_format.map(seed_format_of).or(seed.format);
    seed.instance_id = args.instance_id.clone().or(seed.instance_id.take());
    seed.user = args.user.clone().or(seed.user.take());
    seed.user_data = args.user_data.clone().or(seed.user_data.take());
    // A flag wins over both of the file's words on the network, which contradict each other.
    match (&args.network_config, args.network) {
        (Some(path), _) => {
            (seed.network_config, seed.network) = (Some(path.clone()), NetworkPolicy::Fresh);
        }
        (None, Some(NetworkArg::Keep)) => {
            (seed.network_config, seed.network) = (None, NetworkPolicy::Keep);
        }
        (None, Some(NetworkArg::Fresh)) => {
            (seed.network_config, seed.network) = (None, NetworkPolicy::Fresh);
        }
        (None, None) => {}
    }
    if args.revoke_image_credentials {
        seed.old_credentials = OldCredentials::Revoke;
    }
    if args.allow_user_data_disk_setup {
        if seed.user_data.is_none() {
            return Err(Failure::usage("--allow-user-data-disk-setup is about user-data, and none is given")
                .hinting("give it with --user-data FILE, or leave the flag out"));
        }
        seed.user_data_disks = UserDataDisks::Allow;
    }
    Ok(())
}

fn seed_format_of(format: SeedFormatArg) -> SeedFormat {
    match format {
        SeedFormatArg::Nocloud => SeedFormat::Nocloud,
        SeedFormatArg::ConfigDrive => SeedFormat::ConfigDrive,
        SeedFormatArg::NocloudVfat => SeedFormat::NocloudVfat,
    }
}

fn options(args: &JobArgs, state_dir: Option<&Path>) -> Result<Options, Failure> {
    let RunArgs { preflight, check, verify, whole_digest, cut_off, keep } = &args.run;
    let mut options = Options::default();
    options.image = image_options(&args.image);
    options.image.manifest = manifest_of(&args.manifest);
    trust::apply(&mut options, &args.trust)?;
    options.preflight = preflight_of(*preflight);
    options.size = args.disk.size;
    options.placement = if args.disk.in_place { Placement::InPlace } else { Placement::Replace };
    options.verify = match verify {
        VerifyArg::Full => VerifyPolicy::Full,
        VerifyArg::Written => VerifyPolicy::Written,
        VerifyArg::Off => VerifyPolicy::Off,
    };
    options.whole_digest = if *whole_digest { WholeDigest::Compute } else { WholeDigest::Skip };
    options.old_disk = if keep.keep_old { OldDisk::Keep } else { OldDisk::Discard };
    options.state_dir = self::state_dir(state_dir)?;
    apply_check(&mut options, check);
    apply_cut_off(&mut options, cut_off);
    apply_guard(&mut options, &args.disk.guard);
    options.duplicates =
        if args.disk.deny_duplicates { DuplicatePolicy::Deny } else { DuplicatePolicy::Warn };
    let Qcow2Args { allow_losing_snapshots, linked, .. } = &args.disk.qcow2;
    options.old_snapshots = if *allow_losing_snapshots { OldSnapshots::Lose } else { OldSnapshots::Refuse };
    options.linking = if *linked { Linking::Linked } else { Linking::Copy };
    options.plan = args.disk.plan.as_deref().map(read_plan).transpose()?;
    Ok(options)
}

fn apply_check(options: &mut Options, args: &CheckArgs) {
    options.gpt = match args.gpt {
        GptArg::Relocate => GptPolicy::Relocate,
        GptArg::Keep => GptPolicy::Keep,
    };
    options.threads = args.threads;
}

fn apply_cut_off(options: &mut Options, args: &CutOffArgs) {
    options.mode = match args.mode {
        ModeArg::Auto => Mode::Auto,
        ModeArg::Full => Mode::Full,
        ModeArg::Delta => Mode::Delta,
    };
    options.earlier_run = if args.restart { EarlierRun::StartOver } else { EarlierRun::GoOn };
    options.on_error = if args.preserve_on_error { OnError::Preserve } else { OnError::Discard };
    options.checkpoint = args.checkpoint;
    options.stall_timeout = args.stall_timeout;
}

/// The plan that a run is bound to.
fn read_plan(path: &Path) -> Result<BoundPlan, Failure> {
    let text = fs::read_to_string(path).map_err(|error| {
        Failure::usage(format!("the plan {path:?} cannot be read: {error}"))
            .hinting("correct its path, or its rights")
            .at(path)
    })?;
    let plan = BoundPlan::from_json(&text).map(|plan| plan.from_file(path));
    plan.map_err(|error| Failure::From { path: path.to_owned(), error })
}

/// How the guard looks.
pub(crate) fn apply_guard(options: &mut Options, args: &GuardArgs) {
    options.data_disk_digest = data_disk_digest_of(args.data_disk_digest);
    options.sight = if args.require_full_sight { SightPolicy::RequireFull } else { SightPolicy::Report };
    options.open_readers.clone_from(&args.allow_open_reader);
}

/// How data disks are compared, in the library's words.
fn data_disk_digest_of(typed: DataDiskDigestArg) -> DataDiskDigest {
    match typed {
        DataDiskDigestArg::Sampled => DataDiskDigest::Sampled,
        DataDiskDigestArg::Full => DataDiskDigest::Full,
        DataDiskDigestArg::Off => DataDiskDigest::Off,
    }
}

/// The folder of journals by the XDG base directory rules; root's is the system's.
fn default_state_dir() -> Result<PathBuf, Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/reimage"));
    }
    // The rules say that relative paths in these variables are to be ignored.
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    state.map(|folder| folder.join("reimage")).ok_or_else(|| {
        Failure::usage("neither XDG_STATE_HOME nor HOME says where journals go")
            .hinting("name a folder with --state-dir")
    })
}

/// What is checked of the image, in the library's words.
pub(crate) fn preflight_of(preflight: PreflightArg) -> Preflight {
    match preflight {
        PreflightArg::Auto => Preflight::Auto,
        PreflightArg::Tables => Preflight::Tables,
        PreflightArg::Digest => Preflight::Digest,
        PreflightArg::Deep => Preflight::Deep,
    }
}
