//! What was typed about the disks of the machine.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use reimage::Expect;

use super::values;

#[derive(Args)]
#[command(next_help_heading = "Disks")]
pub(crate) struct GuardArgs {
    /// A disk that must survive, besides those of the instance file (repeatable)
    #[arg(long, value_name = "PATH")]
    pub(crate) data_disk: Vec<PathBuf>,
    /// How the contents of data disks are compared before and after: head, tail and some pieces between,
    /// every byte, or not at all (then they are not opened)
    #[arg(long, value_name = "HOW", default_value = "sampled")]
    pub(crate) data_disk_digest: DataDiskDigestArg,
    /// Refuse where something cannot be looked at: other users' processes, a container's outside, other
    /// hosts that reach the disk, a data disk's content
    #[arg(long)]
    pub(crate) require_full_sight: bool,
    /// A process that may have the system disk open for reading, such as a backup (repeatable); one that
    /// may write is never excused
    #[arg(long, value_name = "PID")]
    pub(crate) allow_open_reader: Vec<u32>,
    /// What the system disk must be, else it is refused: serial=…,wwn=…,size=…,ptuuid=… (serial and wwn are
    /// the device's own; a ptuuid is lost with the partition table, but for an unfinished rebuild's)
    #[arg(long, value_name = "KEY=VALUE,…", value_parser = values::expect)]
    pub(crate) expect: Option<Expect>,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum DataDiskDigestArg {
    Sampled,
    Full,
    Off,
}
