//! What is typed about the seed and its credentials.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

#[derive(Args)]
pub(crate) struct SeedArgs {
    /// The instance file (TOML) that says what the seed is for
    #[arg(long, value_name = "FILE")]
    pub(crate) instance: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    #[command(flatten)]
    pub(crate) credentials: CredentialArgs,
    /// Replace a seed that is there
    #[arg(long)]
    pub(crate) replace: bool,
    /// Write the seed that the machine keeps once it has booted: the last one's instance id, and no secret
    #[arg(long, conflicts_with_all = ["user", "revoke_image_credentials",
        "password_file", "password_fd", "password_hash_file", "ssh_key", "keep_image_credentials"])]
    pub(crate) scrub: bool,
}

#[derive(Args)]
#[command(next_help_heading = "Seed")]
pub(crate) struct MachineArgs {
    /// Where the seed goes: the file that the machine gets as a CD-ROM
    #[arg(long, value_name = "FILE")]
    pub(crate) seed: Option<PathBuf>,
    /// The seed's format: NoCloud on ISO 9660, ConfigDrive on ISO 9660, or NoCloud on FAT [default:
    /// nocloud for Linux, config-drive for Windows]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) seed_format: Option<SeedFormatArg>,
    /// What runs in the machine [default: linux]
    #[arg(long, value_name = "OS")]
    pub(crate) os: Option<OsArg>,
    /// The identity under which cloud-init runs again [default: a fresh one]
    #[arg(long, value_name = "ID")]
    pub(crate) instance_id: Option<String>,
    /// The host name that the machine gets
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// The account that gets the credentials [default: the image's default user]
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// The customer's own user-data, as it was given: the machine gets it beside ours, which wins
    #[arg(long, value_name = "FILE")]
    pub(crate) user_data: Option<PathBuf>,
    /// Take user-data that partitions or formats disks, which a rebuild makes it do again, or that cannot be judged
    #[arg(long)]
    pub(crate) allow_user_data_disk_setup: bool,
    /// A cloud-init network configuration (version 1 or 2), passed on as it is
    #[arg(long, value_name = "FILE", conflicts_with = "network")]
    pub(crate) network_config: Option<PathBuf>,
    /// The network without --network-config: fresh is DHCP on the first interface, keep is the image's
    /// [default: fresh]
    #[arg(long, value_name = "POLICY")]
    pub(crate) network: Option<NetworkArg>,
    /// Lock all other passwords that the image has, and remove all other SSH keys
    #[arg(long)]
    pub(crate) revoke_image_credentials: bool,
}

#[derive(Args)]
#[command(next_help_heading = "Credentials")]
pub(crate) struct CredentialArgs {
    /// A file with the new password in one line; - is standard input (a service's
    /// $CREDENTIALS_DIRECTORY/password or password-hash is read when nothing else is given)
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// A file descriptor that was left open for this program, with the new password in one line
    #[arg(long, value_name = "N", conflicts_with = "password_file")]
    pub(crate) password_fd: Option<i32>,
    /// A file with the new password's hash, as mkpasswd -m sha-512 makes it; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["password_file", "password_fd"])]
    pub(crate) password_hash_file: Option<PathBuf>,
    /// A file with public SSH keys, one a line (repeatable)
    #[arg(long, value_name = "FILE")]
    pub(crate) ssh_key: Vec<PathBuf>,
    /// Leave the image's own credentials as they are, and write no seed
    #[arg(long, conflicts_with_all = ["password_file", "password_fd", "password_hash_file", "ssh_key", "seed",
        "revoke_image_credentials"])]
    pub(crate) keep_image_credentials: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum SeedFormatArg {
    Nocloud,
    ConfigDrive,
    NocloudVfat,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum OsArg {
    Linux,
    Windows,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum NetworkArg {
    Fresh,
    Keep,
}
