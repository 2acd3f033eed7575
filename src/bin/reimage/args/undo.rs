//! What is typed about the disk as it was: that a rebuild is to keep it, and that it is to come back, or to go.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{GuardArgs, values};

/// What becomes of the disk as it was.
#[derive(Args)]
#[command(next_help_heading = "Run")]
pub(crate) struct KeepArgs {
    /// Keep the disk as it was, so that `reimage undo` can bring it back: a file that is replaced under another
    /// name beside it, anything else as a compressed copy in the state folder, which takes its time and its room
    #[arg(long)]
    pub(crate) keep_old: bool,
}

#[derive(Args)]
pub(crate) struct UndoArgs {
    /// An instance file (a name that ends in .toml), the system disk, or the id of an instance that was rebuilt
    #[arg(value_name = "INSTANCE|TARGET", required_unless_present = "instance")]
    pub(crate) subject: Option<PathBuf>,
    /// The instance file (TOML)
    #[arg(long, value_name = "FILE", conflicts_with = "subject")]
    pub(crate) instance: Option<PathBuf>,
    /// Give up what is kept, instead of bringing it back
    #[arg(long)]
    pub(crate) discard_old: bool,
    #[command(flatten)]
    pub(crate) guard: GuardArgs,
    #[command(flatten)]
    pub(crate) run: UndoRunArgs,
}

#[derive(Args)]
#[command(next_help_heading = "Run")]
pub(crate) struct UndoRunArgs {
    /// Threads that decode, write and compare, at most 12 [default: twice the processors]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// How often what was written is made durable and noted
    #[arg(long, value_name = "SECONDS", default_value = "3", value_parser = values::checkpoint)]
    pub(crate) checkpoint: Duration,
    /// End the run when the disk has done nothing for so long [default: wait for it]
    #[arg(long, value_name = "SECONDS", value_parser = values::stall_timeout)]
    pub(crate) stall_timeout: Option<Duration>,
}
