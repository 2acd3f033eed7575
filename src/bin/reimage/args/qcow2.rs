//! What is typed about disks that are qcow2 files.

use clap::{Args, ValueEnum};

#[derive(Args)]
#[command(next_help_heading = "Disks")]
pub(crate) struct Qcow2Args {
    #[command(flatten)]
    pub(crate) format: TargetFormatArgs,
    /// Replace a qcow2 disk although it holds internal snapshots or bitmaps, which are lost with it
    #[arg(long)]
    pub(crate) allow_losing_snapshots: bool,
    /// Make the disk a fresh qcow2 overlay on the image instead of copying it; the image must stay where and as it is
    #[arg(long)]
    pub(crate) linked: bool,
}

#[derive(Args)]
#[command(next_help_heading = "Disks")]
pub(crate) struct TargetFormatArgs {
    /// What the target is; auto is qcow2 where name and content both say so, and raw where neither does; a new
    /// file is raw unless qcow2 is said
    #[arg(long, value_name = "FORMAT", default_value = "auto")]
    pub(crate) target_format: TargetFormatArg,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum TargetFormatArg {
    Auto,
    Raw,
    Qcow2,
}
