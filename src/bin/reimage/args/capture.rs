//! What was typed of a capture.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{GuardArgs, TargetFormatArg, values};

#[derive(Args)]
pub(crate) struct CaptureArgs {
    /// The system disk, a block device or a file; with --instance it is left out
    #[arg(value_name = "SYSTEM_DISK", required_unless_present = "instance")]
    pub(crate) first: Option<PathBuf>,
    /// The file that the image will be
    #[arg(value_name = "IMAGE", required_unless_present = "instance")]
    pub(crate) second: Option<PathBuf>,
    /// The instance file (TOML), which names the system disk and the data disks
    #[arg(long, value_name = "FILE")]
    pub(crate) instance: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) image: NewImageArgs,
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    #[command(flatten)]
    pub(crate) guard: GuardArgs,
    #[command(flatten)]
    pub(crate) run: CaptureRunArgs,
}

#[derive(Args)]
#[command(next_help_heading = "Image")]
pub(crate) struct NewImageArgs {
    /// How the image is compressed: every reader of qcow2 knows zlib, qemu 5.1 and later zstd
    #[arg(long, value_name = "HOW", default_value = "zstd")]
    pub(crate) compress: CompressArg,
    /// The size of the image's clusters: a power of two from 4K to 2M
    #[arg(long, value_name = "SIZE", default_value = "64K", value_parser = values::size)]
    pub(crate) cluster_size: u64,
    /// Where the image's manifest goes, or none for none [default: IMAGE.manifest.json]
    #[arg(long, value_name = "FILE|none")]
    pub(crate) manifest: Option<PathBuf>,
    /// Put the image and its manifest into the place of files that are there
    #[arg(long)]
    pub(crate) replace: bool,
}

#[derive(Args)]
#[command(next_help_heading = "Disks")]
pub(crate) struct SourceArgs {
    /// What the machine uses its system disk as; auto is raw, and qcow2 only where name and content both say so
    #[arg(long, value_name = "FORMAT", default_value = "auto")]
    pub(crate) disk_format: TargetFormatArg,
    /// A folder in which a qcow2 system disk may name backing files (repeatable; default: none)
    #[arg(long, value_name = "DIR")]
    pub(crate) allow_backing: Vec<PathBuf>,
    /// Put zeroes into the image for what cannot be read of the disk, and list it
    #[arg(long)]
    pub(crate) skip_bad_sectors: bool,
}

#[derive(Args)]
#[command(next_help_heading = "Run")]
pub(crate) struct CaptureRunArgs {
    /// Also compute the BLAKE3 that b3sum gives for the raw disk (takes time on sparse disks)
    #[arg(long)]
    pub(crate) whole_digest: bool,
    /// Threads that read, compress and compare, at most 12 [default: twice the processors]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// End the run when the disks have done nothing for so long [default: wait for them]
    #[arg(long, value_name = "SECONDS", value_parser = values::stall_timeout)]
    pub(crate) stall_timeout: Option<Duration>,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum CompressArg {
    Zstd,
    Zlib,
    None,
}
