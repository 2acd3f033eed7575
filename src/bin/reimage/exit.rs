//! How a command fails: the chain of causes and a hint for a person, a document for a program, an exit code.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};

use reimage::{CheckReport, Error, ErrorKind, TargetState};
use serde::Serialize;

use crate::output::{self, Output};
use crate::show::{self, clean};
use crate::{signals, steering};

/// Why a command could not be carried out.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The library said so.
    Library(Error),
    /// The library said so about something that was read from this file.
    From { path: PathBuf, error: Error },
    /// What was typed, or a file that was named, is not as it should be, or the library does not return.
    Own {
        kind: ErrorKind,
        message: String,
        hint: Option<String>,
        path: Option<PathBuf>,
        target_state: TargetState,
    },
    /// The image has faults for which a rebuild refuses it.
    Faulty(Box<CheckReport>),
    /// A failure of ours, and what the library refuses besides.
    Both { ours: Box<Failure>, library: Error },
}

impl Failure {
    pub(crate) fn of(kind: ErrorKind, message: impl Into<String>) -> Self {
        let target_state = TargetState::Untouched;
        Self::Own { kind, message: message.into(), hint: None, path: None, target_state }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::of(ErrorKind::Usage, message)
    }

    /// The same with what to do about it.
    pub(crate) fn hinting(mut self, text: impl Into<String>) -> Self {
        if let Self::Own { hint, .. } = &mut self {
            *hint = Some(text.into());
        }
        self
    }

    /// The same with the file that it is about.
    pub(crate) fn at(mut self, file: &Path) -> Self {
        if let Self::Own { path, .. } = &mut self {
            *path = Some(file.to_owned());
        }
        self
    }

    /// The same with what it leaves of the target.
    pub(crate) fn leaving(mut self, state: TargetState) -> Self {
        if let Self::Own { target_state, .. } = &mut self {
            *target_state = state;
        }
        self
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Library(error)
    }
}

/// A failure as another program reads it; offsets and lengths in bytes.
#[derive(Serialize)]
pub(crate) struct ErrorDocument {
    code: u8,
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    target_state: TargetState,
    /// As text, with a replacement for what is none.
    path: Option<String>,
    offset: Option<u64>,
    length: Option<u64>,
    /// Further refusals that were found in the same run.
    also: Vec<ErrorDocument>,
    /// How many faults the image has, where it is refused for several.
    #[serde(skip_serializing_if = "Option::is_none")]
    faults_total: Option<u64>,
}

#[derive(Serialize)]
struct Document<'a> {
    error: &'a ErrorDocument,
    /// All that is wrong with an image, where that was asked for.
    #[serde(flatten)]
    report: Option<&'a CheckReport>,
}

impl ErrorDocument {
    pub(crate) fn of(failure: &Failure) -> Self {
        match failure {
            Failure::Library(error) => Self::of_error(error),
            Failure::From { path, error } => {
                let mut document = Self::of_error(error);
                document.message = format!("{}: {path:?}", document.message);
                document.path.get_or_insert_with(|| path.display().to_string());
                document
            }
            Failure::Both { ours, library } => {
                let mut document = Self::of(ours);
                let mut besides = Self::of_error(library);
                document.also.extend(std::mem::take(&mut besides.also));
                document.also.insert(0, besides);
                document
            }
            Failure::Faulty(report) => Self::of_report(report),
            Failure::Own { kind, message, hint, path, target_state } => Self {
                code: code_of(*kind),
                kind: *kind,
                message: message.clone(),
                hint: hint.clone(),
                target_state: *target_state,
                path: path.as_ref().map(|path| path.display().to_string()),
                offset: None,
                length: None,
                also: Vec::new(),
                faults_total: None,
            },
        }
    }

    /// The first fault for which the image is refused, and how many there are.
    fn of_report(report: &CheckReport) -> Self {
        let first = report.findings.iter().find(|finding| finding.refused);
        let clause = first.map_or_else(String::new, |finding| format!("; the first: {}", finding.message));
        Self {
            code: code_of(ErrorKind::Image),
            kind: ErrorKind::Image,
            message: format!("the image cannot be used: {}{clause}", show::counted(report)),
            hint: first.and_then(|finding| finding.hint.clone()),
            target_state: TargetState::Untouched,
            path: first.map(|finding| finding.path.display().to_string()),
            offset: first.and_then(|finding| finding.offset),
            length: first.and_then(|finding| finding.length),
            also: Vec::new(),
            faults_total: None,
        }
    }

    fn of_error(error: &Error) -> Self {
        Self {
            code: code_of(error.kind()),
            kind: error.kind(),
            message: chain(error),
            hint: error.hint().map(ToOwned::to_owned),
            target_state: error.target_state(),
            path: error.path().map(|path| path.display().to_string()),
            offset: error.range().map(|range| range.start()),
            length: error.range().map(|range| range.len()),
            also: error.also().iter().map(Self::of_error).collect(),
            faults_total: error.faults_total(),
        }
    }

    /// The document as standard output gets it.
    fn json(&self, report: Option<&CheckReport>) -> String {
        steering::json(&Document { error: self, report })
    }

    fn text(&self) -> String {
        let mut text = String::new();
        self.add_text("error", &mut text, &mut BTreeSet::new());
        match self.target_state {
            TargetState::Untouched if self.kind == ErrorKind::Usage => {}
            TargetState::Untouched => text.push_str("the target is untouched\n"),
            state => text.push_str(&format!("the target is {state}\n")),
        }
        text
    }

    /// What went wrong, then what did so besides; a hint is given once.
    fn add_text<'a>(&'a self, word: &str, text: &mut String, hints: &mut BTreeSet<&'a str>) {
        text.push_str(&format!("{word}: {}\n", clean(&self.message)));
        if let Some(hint) = self.hint.as_deref().filter(|hint| hints.insert(hint)) {
            text.push_str(&format!("  hint: {}\n", clean(hint)));
        }
        for other in &self.also {
            other.add_text("also", text, hints);
        }
    }

    /// The message and the exit code, for an event.
    pub(crate) fn parts(&self) -> (u8, &str, TargetState) {
        (self.code, &self.message, self.target_state)
    }
}

fn code_of(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Cancelled => signals::exit_code(),
        kind => kind.exit_code(),
    }
}

/// An error and its causes, each clause said once.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let clause = error.to_string();
        if !text.ends_with(&clause) {
            text = format!("{text}: {clause}");
        }
        cause = error.source();
    }
    text
}

/// Says what failed, and ends the process although something in it goes on.
pub(crate) fn end(failure: &Failure, output: Output) -> ! {
    failed(failure, output);
    process::exit(ErrorDocument::of(failure).code.into())
}

/// Says what failed, and with which exit code the process ends.
pub(crate) fn failed(failure: &Failure, output: Output) -> ExitCode {
    let document = ErrorDocument::of(failure);
    output::message(&document.text());
    if output == Output::Json {
        let report = match failure {
            Failure::Faulty(report) => Some(&**report),
            _ => None,
        };
        output.result(&document.json(report));
    }
    ExitCode::from(document.code)
}
