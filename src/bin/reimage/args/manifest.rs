//! The arguments of `manifest`, and the flags that name a manifest or a receipt.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;

use super::ImageArgs;

/// Make the manifest of an image.
#[derive(Args)]
pub(crate) struct ManifestArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub(crate) path: PathBuf,
    /// Write it into this file, which must not exist [default: standard output]
    #[arg(long, short = 'o', value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Let it take the place of a manifest of that name; no other file is replaced
    #[arg(long, requires = "output")]
    pub(crate) replace: bool,
    /// Also compute the BLAKE3 that b3sum gives for the raw disk (takes time on sparse disks)
    #[arg(long)]
    pub(crate) whole_digest: bool,
    /// Threads that decode, at most 12 [default: twice the processors]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
    #[command(flatten)]
    pub(crate) image: ImageArgs,
}

/// Which manifest belongs to an image.
#[derive(Args)]
#[command(next_help_heading = "Image")]
pub(crate) struct ManifestFlag {
    /// The image's manifest, with which its file and each of its chunks are compared; none does without
    /// [default: IMAGE.manifest.json, if it is there]
    #[arg(long, value_name = "FILE|none")]
    pub(crate) manifest: Option<PathBuf>,
}

/// What a comparison with a receipt would not heed.
const OF_AN_IMAGE: [&str; 12] = [
    "instance",
    "image_flag",
    "manifest",
    "image_format",
    "allow_nested_format",
    "expect_digest",
    "trust_key",
    "sha256sums",
    "keyring",
    "policy",
    "target_format",
    "gpt",
];

/// Which receipt a disk is compared with.
#[derive(Args)]
pub(crate) struct ReceiptFlag {
    /// Compare the disk with the receipt of its last rebuild, without an image, and list what changed since: a
    /// receipt's file (a name that ends in .json), an instance file (.toml), the disk, or the id of the instance;
    /// TARGET may follow, where the disk is elsewhere now
    #[arg(long, value_name = "FILE|INSTANCE|TARGET", conflicts_with_all = OF_AN_IMAGE)]
    pub(crate) receipt: Option<PathBuf>,
}
