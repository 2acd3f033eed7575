//! Standard output and standard error. A reader that has gone away stops nothing.

use std::io::{self, IsTerminal, Write};

use reimage::ErrorKind;
use rustix::termios::tcgetwinsize;
use serde::Serialize;

use crate::exit::Failure;
use crate::steering;

/// In which form results are printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// For a person.
    Text,
    /// One JSON document.
    Json,
}

impl Output {
    /// Prints what came of something that is done: `value` as JSON, or what `text` makes of it.
    pub(crate) fn show<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) {
        self.result(&self.form(value, text));
    }

    /// Prints what the command was run for: where that fails, so does the command.
    pub(crate) fn product<T: Serialize>(
        self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        product(&self.form(value, text))
    }

    /// Prints the text of a result on standard output; what was done stays done if that fails.
    pub(crate) fn result(self, text: &str) {
        if let Err(error) = print(text) {
            message(&format!("warning: the result could not be printed: {error}"));
        }
    }

    fn form<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> String {
        match self {
            Self::Text => text(value),
            Self::Json => steering::json(value),
        }
    }
}

/// Prints a text for which the command was run.
pub(crate) fn product(text: &str) -> Result<(), Failure> {
    print(text).map_err(|error| {
        Failure::of(ErrorKind::TargetIo, format!("the result could not be printed: {error}"))
            .hinting("make room where standard output goes, and run the command again")
    })
}

fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let printed = stdout.write_all(with_newline(text).as_bytes()).and_then(|()| stdout.flush());
    match printed {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed,
    }
}

/// Tells a person something on standard error.
pub(crate) fn message(text: &str) {
    // A closed standard error must not stop a rebuild.
    let _ = io::stderr().lock().write_all(with_newline(text).as_bytes());
}

fn with_newline(text: &str) -> String {
    if text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") }
}

/// How many columns a result may have.
pub(crate) fn columns() -> usize {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return 80;
    }
    tcgetwinsize(&stdout)
        .map(|size| usize::from(size.ws_col))
        .ok()
        .filter(|columns| *columns > 0)
        .unwrap_or(80)
}

/// Whether the locale's characters are UTF-8, by the rule of `setlocale(3)`.
pub(crate) fn speaks_utf8() -> bool {
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default();
    let locale = locale.to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}
