//! Credentials: where a secret comes from. It never stands in the arguments or the environment.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use reimage::{Credential, Error, ErrorKind, Password, PasswordHash, SshKey};
use zeroize::Zeroizing;

use crate::args::CredentialArgs;
use crate::exit::Failure;
use crate::inherited;

/// More than any password, hash or file of keys has.
const MOST_BYTES: usize = 1 << 20;

/// Whether the run writes a seed, for which a person may be asked for a password.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum SeedWanted {
    Yes,
    No,
}

/// What sets the password.
enum Secret {
    Password(Password),
    Hash(PasswordHash),
}

/// The credentials that the machine gets.
pub(crate) fn gather(args: &CredentialArgs, seed: SeedWanted) -> Result<Credential, Failure> {
    if args.keep_image_credentials {
        return Ok(Credential::keep_image());
    }
    if seed == SeedWanted::No {
        return Err(Failure::of(
            ErrorKind::Credentials,
            "no seed is named, so that the machine would come up without new credentials",
        )
        .hinting("name the seed's file with --seed FILE, or say --keep-image-credentials"));
    }
    let mut keys = Vec::new();
    for path in &args.ssh_key {
        keys.extend(SshKey::from_file_bytes(&read(path)?).map_err(about(path))?);
    }
    let mut secret = typed(args)?;
    if secret.is_none() && keys.is_empty() {
        secret = match from_systemd()? {
            Some(secret) => Some(secret),
            None => prompt()?,
        };
    }
    if secret.is_none() && keys.is_empty() {
        return Err(Failure::of(ErrorKind::Credentials, "no credentials are given").hinting(
            "give --password-file, --password-hash-file or --ssh-key, or say --keep-image-credentials",
        ));
    }
    Ok(match secret {
        None => Credential::ssh_keys(keys)?,
        Some(secret) => {
            let credential = match secret {
                Secret::Password(password) => Credential::password(password),
                Secret::Hash(hash) => Credential::password_hash(hash),
            };
            if keys.is_empty() { credential } else { credential.with_ssh_keys(keys)? }
        }
    })
}

fn typed(args: &CredentialArgs) -> Result<Option<Secret>, Failure> {
    match (&args.password_file, args.password_fd, &args.password_hash_file) {
        (Some(path), ..) => password(path).map(Some),
        (None, Some(number), _) => from_descriptor(number).map(Some),
        (None, None, Some(path)) => hash(path).map(Some),
        (None, None, None) => Ok(None),
    }
}

/// What `LoadCredential=` of the service's unit put there.
fn from_systemd() -> Result<Option<Secret>, Failure> {
    let Some(folder) = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from) else {
        return Ok(None);
    };
    let (clear, hashed) = (folder.join("password"), folder.join("password-hash"));
    let is_there = |path: &Path| path.try_exists().map_err(|error| unreadable(path, &error));
    match (is_there(&clear)?, is_there(&hashed)?) {
        (true, true) => Err(Failure::of(
            ErrorKind::Credentials,
            format!("{folder:?} holds both a password and a password-hash, and only one can be set"),
        )
        .hinting("leave one of them out of the service's credentials, or name one with its flag")),
        (true, false) => password(&clear).map(Some),
        (false, true) => hash(&hashed).map(Some),
        (false, false) => Ok(None),
    }
}

fn password(path: &Path) -> Result<Secret, Failure> {
    Password::from_file_bytes(read(path)?).map(Secret::Password).map_err(about(path))
}

/// What another program left open for this one.
fn from_descriptor(number: i32) -> Result<Secret, Failure> {
    let unusable = |error: io::Error| {
        Failure::of(ErrorKind::Credentials, format!("file descriptor {number} cannot be read: {error}"))
            .hinting("open it for reading in the program that starts this one, such as 3< FILE in a shell")
    };
    let bytes = inherited::open(number).and_then(read_all).map_err(unusable)?;
    Ok(Secret::Password(Password::from_file_bytes(bytes)?))
}

fn hash(path: &Path) -> Result<Secret, Failure> {
    PasswordHash::from_file_bytes(read(path)?).map(Secret::Hash).map_err(about(path))
}

fn about(path: &Path) -> impl FnOnce(Error) -> Failure {
    move |error| Failure::From { path: path.to_owned(), error }
}

/// Asks a person at the terminal twice; `None` where there is no terminal.
fn prompt() -> Result<Option<Secret>, Failure> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(None);
    }
    let ask = |question| {
        let answer = rpassword::prompt_password(question).map(|answer| Zeroizing::new(answer.into_bytes()));
        answer.map_err(|error| {
            Failure::of(ErrorKind::Credentials, format!("no password was typed: {error}"))
                .hinting("give --password-file, --password-hash-file or --ssh-key")
        })
    };
    let first = ask("New password for the machine: ")?;
    if first != ask("The same again: ")? {
        return Err(Failure::of(ErrorKind::Credentials, "the two passwords differ"));
    }
    Ok(Some(Secret::Password(Password::from_file_bytes(first)?)))
}

/// A small file, or standard input for `-`; wiped when dropped.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let unreadable = |error: io::Error| unreadable(path, &error);
    if path == Path::new("-") {
        return read_all(io::stdin().lock()).map_err(unreadable);
    }
    read_all(File::open(path).map_err(unreadable)?).map_err(unreadable)
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::of(ErrorKind::Credentials, format!("{path:?} cannot be read: {error}"))
        .hinting("correct its path, or its rights")
        .at(path)
}

fn read_all(mut from: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    // Read in place: a vector that grows would leave copies of the secret behind.
    let mut bytes = Zeroizing::new(vec![0; MOST_BYTES]);
    let mut len = 0;
    loop {
        match from.read(&mut bytes[len..]) {
            Ok(0) if len == MOST_BYTES => return Err(io::Error::other("it is larger than 1 MiB")),
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}
