//! `reimage undo`: what is kept of a disk comes back, or goes; and what is said of it elsewhere.

use std::path::Path;

use reimage::{
    CancelToken, InstanceSpec, KeepPlan, KeptForm, KeptStatus, Options, Subject, UndoReport, UndoSummary,
};
use serde::Serialize;

use crate::args::{CommonArgs, UndoArgs};
use crate::consent::Terminal;
use crate::exit::Failure;
use crate::output::{self, Output};
use crate::progress::Progress;
use crate::request::{self, Asked};
use crate::show::{self, Lines, bytes, clean, clean_name, clean_path, exact, utc};
use crate::watchdog::watched;
use crate::{picture, signals};

/// Carries out what was typed.
pub(crate) fn run(
    (args, common): (&UndoArgs, &CommonArgs),
    output: Output,
    progress: &Progress,
) -> Result<(), Failure> {
    progress.start("undo");
    let options = options(args, common.state_dir.as_deref())?;
    // Before anything long: without a terminal nobody can say yes.
    let terminal = if common.yes { None } else { Some(Terminal::find()?) };
    let asked = Resolved::of(args, &options)?;
    if args.discard_old {
        return discard(asked.subject(), (&options, terminal), output);
    }
    let cancel = CancelToken::new();
    signals::listen(&cancel, output);
    let shown = match terminal {
        None => None,
        Some(terminal) => {
            let shown = reimage::preview_undo(asked.subject(), &options, &())?;
            output::message(&plan(&shown));
            terminal.ask_about(&shown.target, &loss(&shown))?;
            Some(shown)
        }
    };
    let plan = reimage::plan_undo(asked.subject(), &options, progress)?;
    if let Some(shown) = &shown {
        plan.check_shown(shown)?;
    }
    progress.undo_plan(plan.summary());
    let (target, kind) = (plan.summary().target.clone(), plan.summary().target_kind);
    signals::run_begins();
    let report = watched((&target, Some(kind)), (output, progress), |observer| {
        reimage::undo(plan, observer, &cancel)
    })?;
    progress.undone(&report);
    output.show(&report, undone);
    Ok(())
}

/// What `--discard-old` prints.
#[derive(Serialize)]
struct Discarded {
    discarded: Vec<KeptStatus>,
}

fn discard(
    subject: Subject<'_>,
    (options, terminal): (&Options, Option<Terminal>),
    output: Output,
) -> Result<(), Failure> {
    if let Some(terminal) = terminal {
        let kept = reimage::what_is_kept(subject, &options.state_dir)?;
        let mut lines = Lines::default();
        kept.iter().for_each(|kept| kept_lines(&mut lines, kept));
        output::message(&lines.into_text());
        if let Some(first) = kept.first() {
            terminal.ask_about(&first.target, "could not be brought back to what it was any more")?;
        }
    }
    let discarded = reimage::discard_old(subject, &options.state_dir)?;
    output.show(&Discarded { discarded }, |Discarded { discarded }| {
        let mut lines = Lines::default();
        for kept in discarded {
            lines.add("given up", format!("{} of {}", clean_path(&kept.path), clean_path(&kept.target)));
        }
        lines.into_text()
    });
    Ok(())
}

/// Whose disk it is, once it is known what the word that was typed means.
enum Resolved {
    Instance(Box<InstanceSpec>),
    Disk(std::path::PathBuf),
    Id(String),
}

impl Resolved {
    fn of(args: &UndoArgs, options: &Options) -> Result<Self, Failure> {
        let asked = request::asked(args.subject.as_deref(), args.instance.as_deref())?;
        let mut instance = match asked {
            Some(Asked::Instance(instance)) => *instance,
            Some(Asked::Word(word)) if !is_id(&word, options)? => of_disk(Path::new(&word)),
            Some(Asked::Word(word)) if is_plain(args) => return Ok(Self::Id(word)),
            Some(Asked::Word(word)) => of_id(&word, options)?,
            Some(Asked::Disk(path)) if is_plain(args) => return Ok(Self::Disk(path)),
            Some(Asked::Disk(path)) => of_disk(&path),
            None => return Err(Failure::usage("no disk is named").hinting("reimage undo INSTANCE|TARGET")),
        };
        request::apply_guarded(&mut instance, &args.guard);
        Ok(Self::Instance(Box::new(instance)))
    }

    fn subject(&self) -> Subject<'_> {
        match self {
            Self::Instance(instance) => Subject::Instance(instance),
            Self::Disk(path) => Subject::Disk(path),
            Self::Id(id) => Subject::Id(id),
        }
    }
}

/// Whether nothing was typed that only an instance can carry.
fn is_plain(args: &UndoArgs) -> bool {
    args.guard.data_disk.is_empty() && args.guard.expect.is_none()
}

fn is_id(word: &str, options: &Options) -> Result<bool, Failure> {
    Ok(!reimage::what_is_kept(Subject::Id(word), &options.state_dir)?.is_empty())
}

fn of_disk(path: &Path) -> InstanceSpec {
    let mut instance = InstanceSpec::default();
    path.clone_into(&mut instance.system_disk.path);
    instance
}

fn of_id(id: &str, options: &Options) -> Result<InstanceSpec, Failure> {
    let kept = reimage::what_is_kept(Subject::Id(id), &options.state_dir)?;
    let mut instance = of_disk(kept.first().map_or(Path::new(""), |kept| &kept.target));
    instance.id = Some(id.to_owned());
    Ok(instance)
}

fn options(args: &UndoArgs, state_dir: Option<&Path>) -> Result<Options, Failure> {
    let mut options = Options::default();
    options.state_dir = request::state_dir(state_dir)?;
    options.threads = args.run.threads;
    options.checkpoint = args.run.checkpoint;
    options.stall_timeout = args.run.stall_timeout;
    request::apply_guard(&mut options, &args.guard);
    Ok(options)
}

fn loss(plan: &UndoSummary) -> String {
    match plan.is_old_still {
        true => "is the old disk still: what the rebuild left is removed".to_owned(),
        false => format!("will lose everything that came on it since {}", utc(plan.kept_s)),
    }
}

/// What is going to happen.
pub(crate) fn plan(plan: &UndoSummary) -> String {
    let mut lines = Lines::default();
    let of_what = plan.instance.as_deref().map(|id| format!(" of {}", clean_name(id))).unwrap_or_default();
    lines.block(&format!("Plan of an undo{of_what}\n"));
    lines.add("target", clean_path(&plan.target));
    lines.add("", loss(plan));
    if plan.target_bytes != plan.size_after {
        lines.add(
            "",
            format!("its size goes from {} to {}", exact(plan.target_bytes), exact(plan.size_after)),
        );
    }
    lines.add("undoes", format!("the rebuild {}", plan.journal));
    lines.add(
        "kept",
        format!("{} of {} in {}", form(plan.form), exact(plan.size_after), clean_path(&plan.kept_in)),
    );
    if let Some(mode) = plan.mode {
        lines.add("mode", show::how(mode));
    }
    if let Some(after) = &plan.after {
        let after = (after, plan.size_after);
        lines.block(&picture::before_and_after(plan.before.as_ref(), after, plan.target_bytes));
    }
    lines.add("seed", seed(plan.seed.as_deref()));
    for disk in &plan.data_disks {
        lines.add("data disk", picture::untouched(&disk.path, disk.facts.size));
    }
    show::sight(&mut lines, &plan.sight);
    for warning in &plan.warnings {
        lines.add("warning", clean(warning));
    }
    lines.into_text()
}

/// What an undo did.
fn undone(report: &UndoReport) -> String {
    let mut lines = Lines::default();
    lines.block(match report.plan.is_old_still {
        true => "The disk is the old one still; what the rebuild had left is removed\n",
        false => "The old disk is back\n",
    });
    lines.add("target", clean_path(&report.target));
    lines.add("", format!("{}, as it was {}", exact(report.target_bytes), utc(report.plan.kept_s)));
    lines.add("undone", format!("the rebuild {}", report.journal));
    if let Some(written) = &report.written {
        lines.add("root digest", written.root.to_string());
        lines.add("mode", show::how(written.mode));
        lines.add("written", exact(written.bytes_written));
        lines.add("read back", show::read_back(written.bytes_read_back, written.bytes_proved_holes));
    }
    lines.add("seed", seed(report.seed.as_deref()));
    for disk in &report.data_disks {
        lines.add("data disk", format!("{}: {}", clean_path(&disk.path), show::evidence(disk)));
    }
    show::sight(&mut lines, &report.plan.sight);
    lines.add("state", "the instance stays Stopped");
    lines.into_text()
}

fn seed(path: Option<&str>) -> String {
    match path {
        Some(path) => format!("{}, as it was", clean_name(path)),
        None => "as it is: the rebuild wrote none".to_owned(),
    }
}

fn form(form: KeptForm) -> &'static str {
    match form {
        KeptForm::File => "the file itself,",
        _ => "a compressed copy",
    }
}

/// What is kept of a disk.
pub(crate) fn kept_lines(lines: &mut Lines, kept: &KeptStatus) {
    let is_there = if kept.is_there { "" } else { " (not what an undo could bring back)" };
    lines.add(
        "undo",
        format!("back to what it was {}, before the rebuild {}", utc(kept.kept_s), kept.journal),
    );
    let how = form(kept.form);
    lines.add("", format!("{how} of {}, which takes {}{is_there}", exact(kept.size), bytes(kept.bytes)));
    lines.add("", clean_path(&kept.path));
}

/// How a rebuild keeps the disk as it was.
pub(crate) fn keep_lines(lines: &mut Lines, keep: Option<&KeepPlan>) {
    let Some(keep) = keep else { return };
    lines.add(
        "old disk",
        match (&keep.already, keep.form) {
            (Some(journal), _) => format!("kept already by the rebuild {}", clean_name(journal)),
            (None, KeptForm::File) => {
                "kept under another name beside the new one, for reimage undo".to_owned()
            }
            (None, _) => format!(
                "kept as a compressed copy of at most {}, for reimage undo",
                bytes(keep.bytes_at_most)
            ),
        },
    );
}
