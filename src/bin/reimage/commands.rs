//! The commands: each makes a request of what was typed, asks the library, and shows what came of it.

use std::path::Path;

use clap::CommandFactory;
use reimage::{
    BoundPlan, CancelToken, Credential, Digest, ErrorKind, ImageFormat, ImageOptions, InstanceStatus,
    Manifest, Options, PlanSummary, Preflight, PruneReport, ReceiptOf, Replace, Request, Subject,
};
use serde::Serialize;

use crate::args::{
    Arguments, CaptureArgs, Command, CommonArgs, InspectArgs, JobArgs, ManifestArgs, SeedArgs, StatusArgs,
    VerifyArgs,
};
use crate::consent::Terminal;
use crate::credentials::{self, SeedWanted};
use crate::exit::Failure;
use crate::output::{self, Output};
use crate::progress::Progress;
use crate::request::Asked;
use crate::watchdog::watched;
use crate::{picture, request, show, signals, undo};

/// Carries out what was typed.
pub(crate) fn run(args: Arguments) -> Result<(), Failure> {
    let output = args.output();
    let progress = Progress::new(args.progress);
    let done = match args.command {
        Command::Plan(job) => plan((&job, &args.common), output, &progress),
        Command::Rebuild(job) => rebuild((&job, &args.common), output, &progress),
        Command::Verify(of) => match &of.receipt.receipt {
            Some(word) => verify_receipt((word, &of), args.common.state_dir.as_deref(), output, &progress),
            None => verify(&of, output, &progress),
        },
        Command::Manifest(args) => manifest(&args, output, &progress),
        Command::Inspect(args) => inspect(&args, output, &progress),
        Command::Seed(of) => seed(&of, args.common.state_dir.as_deref(), output),
        Command::Capture(of) => capture((&of, args.common.state_dir.as_deref()), output, &progress),
        Command::Undo(of) => undo::run((&of, &args.common), output, &progress),
        Command::Status(of) => status(&of, args.common.state_dir.as_deref(), output),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "reimage", &mut script);
            return output::product(&String::from_utf8_lossy(&script));
        }
        Command::Man { folder } => return man(&folder),
    };
    done.inspect_err(|failure| progress.failed(failure))
}

fn plan((args, common): (&JobArgs, &CommonArgs), output: Output, progress: &Progress) -> Result<(), Failure> {
    progress.start("plan");
    let request = request::of_job(args, common.state_dir.as_deref())?;
    let credential = gather(args, &request)?;
    let plan = reimage::preview(&request, &credential, progress)?;
    progress.plan(&plan);
    output.product(&plan, show::plan)
}

fn rebuild(
    (args, common): (&JobArgs, &CommonArgs),
    output: Output,
    progress: &Progress,
) -> Result<(), Failure> {
    progress.start("rebuild");
    let request = request::of_job(args, common.state_dir.as_deref())?;
    // Before anything long: without a terminal nobody can say yes.
    let terminal = if common.yes { None } else { Some(Terminal::find()?) };
    let credential = gather(args, &request)?;
    let cancel = CancelToken::new();
    signals::listen(&cancel, output);
    let shown = match terminal {
        None => None,
        Some(terminal) => {
            let shown = reimage::preview(&request, &credential, &())?;
            output::message(&show::plan(&shown));
            terminal.ask(&shown)?;
            Some(shown)
        }
    };
    let request = bind(request, shown.as_ref());
    let plan = reimage::plan(&request, &credential, progress)?;
    progress.plan(plan.summary());
    let (target, kind) = (plan.summary().target.clone(), plan.summary().target_kind);
    signals::run_begins();
    let report = watched((&target, Some(kind)), (output, progress), |observer| {
        reimage::rebuild(plan, observer, &cancel)
    })?;
    progress.summary(&report);
    output.show(&report, show::report);
    Ok(())
}

/// The credentials; where they are refused, everything else is looked at too, so that all is told at once.
fn gather(args: &JobArgs, request: &Request) -> Result<Credential, Failure> {
    credentials::gather(&args.credentials, seed_wanted(request)).map_err(|ours| {
        let kept = Credential::keep_image();
        match reimage::preview(request, &kept, &()) {
            Ok(_) => ours,
            // What cannot be understood at all comes before what is refused.
            Err(library) if library.kind() == ErrorKind::Usage => library.into(),
            Err(library) => Failure::Both { ours: Box::new(ours), library },
        }
    })
}

/// The yes was said to what was shown, and to nothing else.
fn bind(mut request: Request, shown: Option<&PlanSummary>) -> Request {
    if let Some(shown) = shown {
        request.options.plan = Some(BoundPlan::of(shown));
    }
    request
}

fn verify(args: &VerifyArgs, output: Output, progress: &Progress) -> Result<(), Failure> {
    progress.start("verify");
    let request = request::of_verify(args)?;
    let cancel = CancelToken::new();
    signals::listen(&cancel, output);
    let image = request.instance.image.as_deref();
    let disk = &request.instance.system_disk;
    // Who says which format the image has says that it is one.
    let may_be_manifest = request.options.image.format == ImageFormat::Auto;
    let report = watched((&disk.path, None), (output, progress), |observer| {
        match image.filter(|path| may_be_manifest && reimage::is_manifest(path)) {
            Some(manifest) => reimage::verify_manifest(manifest, disk, &request.options, (observer, &cancel)),
            None => reimage::verify(&request, observer, &cancel),
        }
    })?;
    progress.end_phase();
    output.product(&report, |report| show::verified(report, &disk.path))
}

fn verify_receipt(
    (word, args): (&Path, &VerifyArgs),
    state_dir: Option<&Path>,
    output: Output,
    progress: &Progress,
) -> Result<(), Failure> {
    progress.start("verify");
    if args.subject.target.is_some() {
        return Err(Failure::usage("--receipt needs no image")
            .hinting("give --receipt FILE|INSTANCE|TARGET [TARGET]"));
    }
    let is_file_name = word.extension().is_some_and(|ending| ending == "json");
    let asked = if is_file_name { None } else { request::asked(Some(word), None)? };
    let of = match &asked {
        None => ReceiptOf::File(word),
        Some(Asked::Disk(path)) => ReceiptOf::Disk(path),
        Some(Asked::Word(id)) => ReceiptOf::Instance(id),
        Some(Asked::Instance(instance)) => match &instance.id {
            Some(id) => ReceiptOf::Instance(id),
            None => ReceiptOf::Disk(&instance.system_disk.path),
        },
    };
    let mut options = Options::default();
    options.state_dir = request::state_dir(state_dir)?;
    options.threads = args.check.threads;
    options.stall_timeout = args.stall_timeout;
    options.image.allow_backing.clone_from(&args.image.allow_backing);
    let cancel = CancelToken::new();
    signals::listen(&cancel, output);
    let disk = args.subject.image_path.as_deref();
    let report = watched((disk.unwrap_or(word), None), (output, progress), |observer| {
        reimage::verify_receipt(of, disk, &options, (observer, &cancel))
    })?;
    progress.end_phase();
    output.product(&report, show::drift)
}

fn manifest(args: &ManifestArgs, output: Output, progress: &Progress) -> Result<(), Failure> {
    progress.start("manifest");
    let cancel = CancelToken::new();
    signals::listen(&cancel, output);
    let replace = if args.replace { Replace::Existing } else { Replace::Refuse };
    if let Some(file) = &args.output {
        reimage::check_manifest_place(file, replace)?;
    }
    let manifest = reimage::manifest(&args.path, &request::of_manifest(args), progress, &cancel)?;
    progress.end_phase();
    let Some(file) = &args.output else {
        // It is JSON, whatever form results have.
        return output::product(&manifest.to_json());
    };
    reimage::write_manifest(file, &manifest, replace)?;
    output.show(&ManifestDocument::of(file, &manifest), show::manifest);
    Ok(())
}

fn inspect(args: &InspectArgs, output: Output, progress: &Progress) -> Result<(), Failure> {
    let preflight = args.preflight.map_or(Preflight::Auto, request::preflight_of);
    let mut options = request::image_options(&args.image);
    options.manifest = request::manifest_of(&args.manifest);
    if args.check {
        return check((&args.path, &options), output, progress);
    }
    let inspection = reimage::inspect(&args.path, &options, preflight, progress)?;
    output.product(&inspection, picture::inspection)
}

/// Tells everything that is wrong with an image.
fn check(
    (path, options): (&Path, &ImageOptions),
    output: Output,
    progress: &Progress,
) -> Result<(), Failure> {
    let report = reimage::check(path, options, progress)?;
    if !report.is_refused() {
        return output.product(&report, show::checked);
    }
    if output == Output::Text {
        output.product(&report, show::checked)?;
    }
    Err(Failure::Faulty(Box::new(report)))
}

fn seed(args: &SeedArgs, state_dir: Option<&Path>, output: Output) -> Result<(), Failure> {
    let instance = request::of_machine(args.instance.as_deref(), &args.machine)?;
    if instance.seed.is_none() {
        return Err(Failure::usage("no seed is named").hinting("name the seed's file with --seed FILE"));
    }
    let state_dir = request::state_dir(state_dir)?;
    let replace = if args.replace { Replace::Existing } else { Replace::Refuse };
    let report = if args.scrub {
        reimage::scrub_seed(&instance, &state_dir, replace)?
    } else {
        let credential = credentials::gather(&args.credentials, SeedWanted::Yes)?;
        reimage::write_seed(&instance, &credential, &state_dir, replace)?
    };
    output.show(&report, show::seed);
    Ok(())
}

fn capture(
    (args, state_dir): (&CaptureArgs, Option<&Path>),
    output: Output,
    progress: &Progress,
) -> Result<(), Failure> {
    progress.start("capture");
    let request = request::of_capture(args, state_dir)?;
    let cancel = CancelToken::new();
    signals::listen(&cancel, output);
    signals::run_begins();
    let report = watched((&request.image, None), (output, progress), |observer| {
        reimage::capture(&request, observer, &cancel)
    })?;
    progress.captured(&report);
    output.show(&report, show::captured);
    Ok(())
}

fn status(args: &StatusArgs, state_dir: Option<&Path>, output: Output) -> Result<(), Failure> {
    let asked = request::of_status(args)?;
    let state_dir = request::state_dir(state_dir)?;
    let prune = if args.prune { Some(reimage::prune(&state_dir)?) } else { None };
    let status = asked.map(|asked| status_of(&asked, &state_dir)).transpose()?;
    output.product(&StatusDocument { prune, status }, |StatusDocument { prune, status }| {
        let pruned = prune.as_ref().map(show::pruned).unwrap_or_default();
        let status = status.as_ref().map(show::status).unwrap_or_default();
        pruned + &status
    })
}

/// What `manifest` prints where the manifest itself goes into a file.
#[derive(Serialize)]
pub(crate) struct ManifestDocument {
    pub(crate) path: String,
    pub(crate) root: Digest,
    pub(crate) virtual_size: u64,
    pub(crate) data_chunks: usize,
    pub(crate) whole_digest: Option<Digest>,
}

impl ManifestDocument {
    fn of(path: &Path, manifest: &Manifest) -> Self {
        Self {
            path: path.display().to_string(),
            root: manifest.root(),
            virtual_size: manifest.virtual_size(),
            data_chunks: manifest.data_chunks(),
            whole_digest: manifest.whole_digest(),
        }
    }
}

/// What `status` prints: what was pruned, if anything was to be, and what became of the rebuilds.
#[derive(Serialize)]
struct StatusDocument {
    #[serde(skip_serializing_if = "Option::is_none")]
    prune: Option<PruneReport>,
    #[serde(flatten)]
    status: Option<InstanceStatus>,
}

fn status_of(asked: &Asked, state_dir: &Path) -> Result<InstanceStatus, Failure> {
    Ok(match asked {
        Asked::Instance(instance) => reimage::status(Subject::Instance(instance), state_dir)?,
        Asked::Disk(disk) => reimage::status(Subject::Disk(disk), state_dir)?,
        Asked::Word(word) => {
            let of_instance = reimage::status(Subject::Id(word), state_dir)?;
            // A file that is being made for the first time is not there yet, and has a journal.
            let of_disk = reimage::status(Subject::Disk(Path::new(word)), state_dir);
            if of_instance.journal.is_some() { of_instance } else { of_disk.unwrap_or(of_instance) }
        }
    })
}

fn man(folder: &Path) -> Result<(), Failure> {
    clap_mangen::generate_to(Arguments::command(), folder).map_err(|error| {
        Failure::usage(format!("the man pages cannot be written into {folder:?}: {error}"))
            .hinting("name a folder that exists")
            .at(folder)
    })
}

fn seed_wanted(request: &Request) -> SeedWanted {
    if request.instance.seed.is_some() { SeedWanted::Yes } else { SeedWanted::No }
}
