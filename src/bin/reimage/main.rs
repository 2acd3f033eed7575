//! The `reimage` command: words in, a request to the library, and what came of it.
//!
//! From the top: `args` is what was typed, `request` and `credentials` what it means, `commands` asks the
//! library, `progress` tells how it goes on, `show` and `picture` what came of it, `exit` how it failed.

mod args;
mod commands;
mod consent;
mod credentials;
mod exit;
mod inherited;
mod output;
mod picture;
mod progress;
mod request;
mod show;
mod signals;
mod steering;
mod trust;
mod undo;
mod watchdog;

use std::process::ExitCode;

use args::Typed;
use output::Output;

fn main() -> ExitCode {
    let args = match args::parse() {
        Typed::Command(args) => args,
        Typed::Answer(text) => {
            Output::Text.result(&text);
            return ExitCode::SUCCESS;
        }
        Typed::Wrong { failure, output } => return exit::failed(&failure, output),
    };
    let output = args.output();
    match commands::run(*args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => exit::failed(&failure, output),
    }
}
