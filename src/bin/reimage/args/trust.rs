//! Whose images are taken.

use std::path::PathBuf;

use clap::Args;

#[derive(Args)]
#[command(next_help_heading = "Image")]
pub(crate) struct TrustArgs {
    /// A minisign public key: the image's manifest must be signed by it, or by another that is given (repeatable)
    #[arg(long, value_name = "FILE")]
    pub(crate) trust_key: Vec<PathBuf>,
    /// A list of SHA-256 digests that must have the image's: clear-signed, or with its OpenPGP signature beside it
    /// (.gpg, .asc, .sig, .sign); gpgv looks at the signature
    #[arg(long, value_name = "FILE")]
    pub(crate) sha256sums: Option<PathBuf>,
    /// The OpenPGP keys of which one must have signed the list
    #[arg(long, value_name = "FILE")]
    pub(crate) keyring: Option<PathBuf>,
    /// A policy to be met besides the host's
    #[arg(long, value_name = "FILE", hide = true)]
    pub(crate) policy: Vec<PathBuf>,
}
