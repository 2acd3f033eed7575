//! Consent: the question before a disk is overwritten. It is asked on the terminal itself.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::path::Path;

use reimage::{PlanSummary, TargetKind};

use crate::exit::Failure;
use crate::show::clean_path;

/// A terminal that a question can be asked on.
pub(crate) struct Terminal(File);

impl Terminal {
    /// The controlling terminal; it need not be standard input, which may carry a password.
    pub(crate) fn find() -> Result<Self, Failure> {
        let nobody = || Failure::usage("nobody can be asked: there is no terminal").hinting("say --yes");
        // With standard error elsewhere the plan would not be seen.
        if !io::stderr().is_terminal() {
            return Err(nobody());
        }
        let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty");
        terminal.map(Self).map_err(|_| nobody())
    }

    /// Asks whether the plan may be carried out; only the target's path or `yes` is a yes.
    pub(crate) fn ask(self, plan: &PlanSummary) -> Result<(), Failure> {
        let loss = match plan.target_kind {
            TargetKind::NewFile => "will be made",
            _ => "will lose everything on it",
        };
        self.ask_about(&plan.target, loss)
    }

    /// Asks the same of what becomes of a disk.
    pub(crate) fn ask_about(mut self, target: &Path, loss: &str) -> Result<(), Failure> {
        let shown = clean_path(target);
        let question = format!("{shown} {loss}. Type its path, or yes, to go on: ");
        let unanswered = |error: io::Error| Failure::usage(format!("the question was not answered: {error}"));
        self.0.write_all(question.as_bytes()).map_err(unanswered)?;
        let mut answer = String::new();
        BufReader::new(&self.0).read_line(&mut answer).map_err(unanswered)?;
        let answer = answer.trim_end_matches(['\n', '\r']);
        if answer == "yes" || Path::new(answer) == target {
            return Ok(());
        }
        Err(Failure::usage("the question was not answered with yes: nothing was written")
            .hinting("type yes or the target's path, or say --yes"))
    }
}
