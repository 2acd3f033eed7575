//! What was typed. What it means is decided in `request` and `credentials`.

mod capture;
mod guard;
mod manifest;
mod qcow2;
mod seed;
mod trust;
mod undo;
mod values;

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind as ClapError;
use clap::{Args, Parser, Subcommand, ValueEnum};
use reimage::ExpectedDigest;

pub(crate) use capture::{CaptureArgs, CompressArg};
pub(crate) use guard::{DataDiskDigestArg, GuardArgs};
pub(crate) use manifest::{ManifestArgs, ManifestFlag, ReceiptFlag};
pub(crate) use qcow2::{Qcow2Args, TargetFormatArg, TargetFormatArgs};
pub(crate) use seed::{CredentialArgs, MachineArgs, NetworkArg, OsArg, SeedArgs, SeedFormatArg};
pub(crate) use trust::TrustArgs;
pub(crate) use undo::{KeepArgs, UndoArgs};

use crate::exit::Failure;
use crate::output::Output;

/// Rebuild a virtual machine's system disk from a raw or qcow2 image, verified, with its seed.
///
/// Data disks are never written. Nothing is ever started: the instance stays Stopped.
#[derive(Parser)]
#[command(name = "reimage", version, max_term_width = 100, after_long_help = EXIT_CODES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Print one JSON document instead of text, errors included
    #[arg(long, global = true, help_heading = "Output")]
    pub(crate) json: bool,
    /// How progress is told on standard error
    #[arg(long, global = true, value_name = "KIND", default_value = "auto", help_heading = "Output")]
    pub(crate) progress: ProgressKind,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// What every command takes; only a run keeps journals and asks.
#[derive(Args)]
pub(crate) struct CommonArgs {
    /// Where journals are kept [default: /var/lib/reimage for root, else $XDG_STATE_HOME/reimage or
    /// ~/.local/state/reimage]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Run")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Do not ask before a disk is overwritten, or what is kept of it is given up
    #[arg(long, short = 'y', global = true, help_heading = "Run")]
    pub(crate) yes: bool,
}

impl Arguments {
    /// In which form results are wanted.
    pub(crate) fn output(&self) -> Output {
        if self.json { Output::Json } else { Output::Text }
    }
}

const EXIT_CODES: &str = "\
Exit codes:
  0              done
  1              internal error
  2              usage
  10             refused: the instance is not stopped, or the target is in use
  11             refused: the target is another disk, a data disk, or the image
  12             refused: size, room or sector size does not fit
  13             refused: credentials or seed request
  14             refused: the target cannot be opened, or is of the wrong kind
  20, 21         the image cannot be used, or has another digest or signature
  30             the target could not be written (run it again)
  31             the target does not hold what it should
  32             the image could not be read during the copy (run it again)
  33             a data disk was changed by somebody else; the system disk is complete
  40             the seed could not be put in place (run it again)
  129, 130, 143  cancelled by SIGHUP, SIGINT, SIGTERM (run it again)
With 2 to 29 not one byte of the target has changed.
The first signal stops a run at its next chunk; a second one does nothing more.";

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Check everything that a rebuild would check, and write nothing
    Plan(JobArgs),
    /// Rebuild the system disk from the image, and write the seed
    Rebuild(JobArgs),
    /// Compare a disk with an image, a manifest (its name ends in .json) or a receipt, and write nothing; a
    /// difference is exit code 31
    Verify(VerifyArgs),
    /// Make the manifest of an image: the digest of each chunk of its disk, and what its file is
    Manifest(ManifestArgs),
    /// Show what an image is and holds
    Inspect(InspectArgs),
    /// Write the seed alone
    Seed(SeedArgs),
    /// Make a private image of a stopped instance's system disk, which is only read
    Capture(CaptureArgs),
    /// Say whether an instance is stopped, being rebuilt or failed, and what to do
    Status(StatusArgs),
    /// Bring the disk back that a rebuild with --keep-old kept, byte for byte
    Undo(UndoArgs),
    /// Print the completions for a shell
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Write the man pages into a folder
    #[command(hide = true)]
    Man {
        /// The folder, which must exist
        folder: PathBuf,
    },
}

#[derive(Args)]
pub(crate) struct JobArgs {
    #[command(flatten)]
    pub(crate) subject: SubjectArgs,
    #[command(flatten)]
    pub(crate) manifest: ManifestFlag,
    #[command(flatten)]
    pub(crate) image: ImageArgs,
    #[command(flatten)]
    pub(crate) trust: TrustArgs,
    #[command(flatten)]
    pub(crate) disk: DiskArgs,
    #[command(flatten)]
    pub(crate) run: RunArgs,
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    #[command(flatten)]
    pub(crate) credentials: CredentialArgs,
}

#[derive(Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub(crate) subject: SubjectArgs,
    #[command(flatten)]
    pub(crate) manifest: ManifestFlag,
    #[command(flatten)]
    pub(crate) receipt: ReceiptFlag,
    #[command(flatten)]
    pub(crate) image: ImageArgs,
    #[command(flatten)]
    pub(crate) trust: TrustArgs,
    #[command(flatten)]
    pub(crate) format: TargetFormatArgs,
    #[command(flatten)]
    pub(crate) check: CheckArgs,
    /// End the comparison when the disk has done nothing for so long [default: wait for it]
    #[arg(long, value_name = "SECONDS", value_parser = values::stall_timeout, help_heading = "Run")]
    pub(crate) stall_timeout: Option<Duration>,
}

#[derive(Args)]
pub(crate) struct InspectArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub(crate) path: PathBuf,
    /// Decode every cluster, too, and tell what is wrong, not only the first of it
    #[arg(long)]
    pub(crate) check: bool,
    /// What is checked of the image
    #[arg(long, value_name = "WHAT", conflicts_with = "check")]
    pub(crate) preflight: Option<PreflightArg>,
    #[command(flatten)]
    pub(crate) manifest: ManifestFlag,
    #[command(flatten)]
    pub(crate) image: ImageArgs,
}

#[derive(Args)]
pub(crate) struct StatusArgs {
    /// An instance file (a name that ends in .toml), the system disk, or the id of an instance that was rebuilt
    #[arg(value_name = "INSTANCE|TARGET", required_unless_present_any = ["instance", "prune"])]
    pub(crate) subject: Option<PathBuf>,
    /// The instance file (TOML)
    #[arg(long, value_name = "FILE", conflicts_with = "subject")]
    pub(crate) instance: Option<PathBuf>,
    /// Remove what runs that are dead left in the state folder and beside the disks: lock files, journals,
    /// unfinished new files; what the next rebuild of an unfinished disk needs stays
    #[arg(long)]
    pub(crate) prune: bool,
}

#[derive(Args)]
pub(crate) struct SubjectArgs {
    /// The image; with --instance it may be left out
    #[arg(value_name = "IMAGE")]
    pub(crate) image_path: Option<PathBuf>,
    /// The system disk, a block device or a file; with --instance it may be left out
    #[arg(value_name = "TARGET")]
    pub(crate) target: Option<PathBuf>,
    /// The instance file (TOML); flags say the same things and win
    #[arg(long, value_name = "FILE")]
    pub(crate) instance: Option<PathBuf>,
    /// The image, where it is not the first word
    #[arg(long = "image", value_name = "FILE")]
    pub(crate) image_flag: Option<PathBuf>,
}

#[derive(Args)]
#[command(next_help_heading = "Image")]
pub(crate) struct ImageArgs {
    /// The image's format; auto lets the content decide, which must agree with the name
    #[arg(long, value_name = "FORMAT", default_value = "auto")]
    pub(crate) image_format: ImageFormatArg,
    /// Take a raw image although it begins like another image format
    #[arg(long)]
    pub(crate) allow_nested_format: bool,
    /// A folder in which the image may name backing files (repeatable; default: none)
    #[arg(long, value_name = "DIR")]
    pub(crate) allow_backing: Vec<PathBuf>,
    /// The digest of the image file as it lies: sha256:HEX or blake3:HEX
    #[arg(long, value_name = "DIGEST", value_parser = values::digest)]
    pub(crate) expect_digest: Option<ExpectedDigest>,
}

#[derive(Args)]
#[command(next_help_heading = "Disks")]
pub(crate) struct DiskArgs {
    #[command(flatten)]
    pub(crate) qcow2: Qcow2Args,
    /// The size of a target file in bytes, or with K, M, G, T (powers of 1024; default: as large as
    /// the old disk or the image, the larger of the two)
    #[arg(long, value_parser = values::size)]
    pub(crate) size: Option<u64>,
    /// Write into a target file instead of replacing it by a verified new one
    #[arg(long)]
    pub(crate) in_place: bool,
    /// A plan that `reimage plan --json` wrote: whatever was looked at then must still be the same
    #[arg(long, value_name = "FILE")]
    pub(crate) plan: Option<PathBuf>,
    /// Refuse where the image and a data disk carry the same ids or labels, instead of warning
    #[arg(long)]
    pub(crate) deny_duplicates: bool,
    #[command(flatten)]
    pub(crate) guard: GuardArgs,
}

#[derive(Args)]
#[command(next_help_heading = "Run")]
pub(crate) struct RunArgs {
    /// What is checked of the image before the target changes: tables is all metadata, digest also the
    /// file's digest, deep also decodes every cluster; auto is digest where one is expected or a manifest is
    /// known, else tables (for a file that is replaced whole, the manifest is compared chunk by chunk)
    #[arg(long, value_name = "KIND", default_value = "auto")]
    pub(crate) preflight: PreflightArg,
    #[command(flatten)]
    pub(crate) check: CheckArgs,
    /// How much is read back: every byte, what was written and both ends, or nothing
    #[arg(long, value_name = "SCOPE", default_value = "full")]
    pub(crate) verify: VerifyArg,
    /// Also compute the BLAKE3 that b3sum gives for the raw disk (takes time on sparse disks)
    #[arg(long)]
    pub(crate) whole_digest: bool,
    #[command(flatten)]
    pub(crate) cut_off: CutOffArgs,
    #[command(flatten)]
    pub(crate) keep: KeepArgs,
}

/// What is written, and what a run that was cut off leaves to the next one.
#[derive(Args)]
#[command(next_help_heading = "Run")]
pub(crate) struct CutOffArgs {
    /// Write every chunk, or compare each and write those that differ (delta: only a device, or --in-place);
    /// auto is delta where the state folder knows that the disk held this image, else full
    #[arg(long, value_name = "MODE", default_value = "auto")]
    pub(crate) mode: ModeArg,
    /// Write everything anew instead of going on where an earlier run was cut off
    #[arg(long)]
    pub(crate) restart: bool,
    /// Keep the bytes of a new file that could not be completed, beside it and unbootable, to be looked at
    #[arg(long)]
    pub(crate) preserve_on_error: bool,
    /// How often what was written is made durable and noted: from there the next run goes on when this one is
    /// cut off
    #[arg(long, value_name = "SECONDS", default_value = "3", value_parser = values::checkpoint)]
    pub(crate) checkpoint: Duration,
    /// End the run when the disk has done nothing for so long [default: wait for it]
    #[arg(long, value_name = "SECONDS", value_parser = values::stall_timeout)]
    pub(crate) stall_timeout: Option<Duration>,
}

#[derive(Args)]
#[command(next_help_heading = "Run")]
pub(crate) struct CheckArgs {
    /// What happens to the backup GPT on a larger disk: moved to its end, or left
    #[arg(long, value_name = "POLICY", default_value = "relocate")]
    pub(crate) gpt: GptArg,
    /// Threads that decode, write and compare, at most 12 [default: twice the processors]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressKind {
    /// Bars on a terminal, else lines
    Auto,
    /// Bars
    Bar,
    /// A line now and then
    Plain,
    /// A JSON object a line, its type first
    Json,
    /// Nothing but warnings
    None,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum ImageFormatArg {
    Auto,
    Raw,
    Qcow2,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum PreflightArg {
    Auto,
    Tables,
    Digest,
    Deep,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum GptArg {
    Relocate,
    Keep,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum ModeArg {
    Auto,
    Full,
    Delta,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum VerifyArg {
    Full,
    Written,
    Off,
}

/// What the words on the command line came to.
pub(crate) enum Typed {
    /// A command.
    Command(Box<Arguments>),
    /// A question that is answered at once: `--help`, `--version`.
    Answer(String),
    /// Nothing that is understood.
    Wrong { failure: Failure, output: Output },
}

/// Reads the command line.
pub(crate) fn parse() -> Typed {
    let words: Vec<OsString> = std::env::args_os().collect();
    let mut flags = words.iter().skip(1).take_while(|word| *word != "--");
    let output = if flags.any(|word| word == "--json") { Output::Json } else { Output::Text };
    match Arguments::try_parse_from(words) {
        Ok(args) => Typed::Command(Box::new(args)),
        Err(error) => match error.kind() {
            ClapError::DisplayHelp | ClapError::DisplayVersion => Typed::Answer(error.to_string()),
            ClapError::DisplayHelpOnMissingArgumentOrSubcommand => {
                let failure = Failure::usage("no command is named");
                Typed::Wrong { failure: failure.hinting("reimage --help shows the commands"), output }
            }
            _ => Typed::Wrong { failure: usage(&error), output },
        },
    }
}

fn usage(error: &clap::Error) -> Failure {
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    // clap's last paragraph points to --help, which is our hint.
    let text = text.trim_end().trim_end_matches("For more information, try '--help'.").trim_end();
    Failure::usage(text.to_owned())
        .hinting("reimage --help shows the commands, reimage COMMAND --help its flags")
}
