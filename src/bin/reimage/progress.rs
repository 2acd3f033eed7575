//! How a run goes on, on standard error: bars, lines, or a JSON object a line.

use std::cell::RefCell;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use reimage::{
    ByteRange, CaptureReport, Event, Observer, Phase, PlanSummary, Report, TargetState, UndoReport,
    UndoSummary,
};
use serde::Serialize;

use crate::args::ProgressKind;
use crate::exit::{ErrorDocument, Failure};
use crate::output;
use crate::show::{bytes, clean};
use crate::steering;

/// Between the progress events of a phase, so that with the first ones of up to six phases, which are always told, there
/// are at most ten in a second.
const EVENT_INTERVAL: Duration = Duration::from_millis(250);
const LINE_INTERVAL: Duration = Duration::from_secs(3);

/// Tells how a run goes on.
pub(crate) struct Progress {
    form: Form,
    began: Instant,
    state: RefCell<State>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Bar,
    Plain,
    Json,
    None,
}

#[derive(Default)]
struct State {
    phase: Option<PhaseState>,
    /// When progress was told last, in whichever phase.
    told: Option<Instant>,
    bar: Option<ProgressBar>,
}

struct PhaseState {
    phase: Phase,
    began: Instant,
    bytes_done: u64,
    bytes_total: u64,
}

/// One line of `--progress json`; sizes in bytes, times in milliseconds.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line<'a> {
    Start { version: &'static str, command: &'a str },
    Plan { plan: &'a PlanSummary },
    Check { name: &'a str, detail: &'a str },
    Progress { phase: Phase, bytes_done: u64, bytes_total: u64, bytes_per_second: u64, elapsed_ms: u64 },
    NoProgress { phase: Phase, seconds: u64 },
    Warning { code: &'a str, message: &'a str, offset: Option<u64>, length: Option<u64> },
    Error { code: u8, message: &'a str, target_state: TargetState },
    Summary { report: Done<'a> },
    UndoPlan { plan: &'a UndoSummary },
    Undone { report: &'a UndoReport },
}

/// What a run did.
#[derive(Serialize)]
#[serde(untagged)]
enum Done<'a> {
    Rebuild(&'a Report),
    Capture(&'a CaptureReport),
}

impl Progress {
    pub(crate) fn new(kind: ProgressKind) -> Self {
        let form = match kind {
            ProgressKind::Auto if io::stderr().is_terminal() => Form::Bar,
            ProgressKind::Bar => Form::Bar,
            ProgressKind::Auto | ProgressKind::Plain => Form::Plain,
            ProgressKind::Json => Form::Json,
            ProgressKind::None => Form::None,
        };
        Self { form, began: Instant::now(), state: RefCell::default() }
    }

    /// A command begins.
    pub(crate) fn start(&self, command: &str) {
        self.event_line(&Line::Start { version: env!("CARGO_PKG_VERSION"), command });
    }

    /// What is going to happen.
    pub(crate) fn plan(&self, plan: &PlanSummary) {
        self.event_line(&Line::Plan { plan });
    }

    /// The run is over and went well.
    pub(crate) fn summary(&self, report: &Report) {
        self.end_phase();
        self.event_line(&Line::Summary { report: Done::Rebuild(report) });
    }

    /// A capture is over and went well.
    pub(crate) fn captured(&self, report: &CaptureReport) {
        self.end_phase();
        self.event_line(&Line::Summary { report: Done::Capture(report) });
    }

    /// What an undo is going to do.
    pub(crate) fn undo_plan(&self, plan: &UndoSummary) {
        self.event_line(&Line::UndoPlan { plan });
    }

    /// An undo is over and went well.
    pub(crate) fn undone(&self, report: &UndoReport) {
        self.end_phase();
        self.event_line(&Line::Undone { report });
    }

    /// The run is over and did not go well; bars are cleared for the message.
    pub(crate) fn failed(&self, failure: &Failure) {
        self.end_phase();
        last_event(self.form, failure);
    }

    /// What `failed` does, for a thread that may have to end the process while the run waits for ever.
    pub(crate) fn parting(&self) -> impl Fn(&Failure) + Clone + Send + use<> {
        let form = self.form;
        move |failure| {
            if form == Form::Bar {
                // The bar stays; what follows begins on a line of its own.
                output::message("");
            }
            last_event(form, failure);
        }
    }

    /// A command that has no summary is over.
    pub(crate) fn end_phase(&self) {
        let mut state = self.state.borrow_mut();
        if let Some(bar) = state.bar.take() {
            bar.finish_and_clear();
        }
        if let (Form::Plain, Some(phase)) = (self.form, state.phase.take()) {
            let took = phase.began.elapsed();
            let (name, done) = (name(phase.phase), phase.bytes_done);
            output::message(&format!("{name}: {} in {:.1} s", bytes(done), took.as_secs_f64()));
        }
    }

    fn started(&self, phase: Phase, bytes_total: u64) {
        self.end_phase();
        let mut state = self.state.borrow_mut();
        state.phase = Some(PhaseState { phase, began: Instant::now(), bytes_done: 0, bytes_total });
        match self.form {
            Form::Bar => state.bar = Some(new_bar(phase, bytes_total)),
            // Whoever reads the events is told of each phase, however short it and the one before are.
            Form::Json => state.told = None,
            Form::Plain | Form::None => {}
        }
        drop(state);
        self.progressed(phase, 0, bytes_total);
    }

    fn progressed(&self, phase: Phase, bytes_done: u64, bytes_total: u64) {
        let mut state = self.state.borrow_mut();
        let State { phase: current, told, bar } = &mut *state;
        let unknown = PhaseState { phase, began: Instant::now(), bytes_done, bytes_total };
        let current = current.get_or_insert(unknown);
        current.bytes_done = bytes_done;
        if let Some(bar) = bar {
            bar.set_length(bytes_total);
            bar.set_position(bytes_done);
            bar.set_message("");
        }
        let interval = if self.form == Form::Plain { LINE_INTERVAL } else { EVENT_INTERVAL };
        if told.is_some_and(|told| told.elapsed() < interval) {
            return;
        }
        match self.form {
            // The first line comes only when there is something to wait for.
            Form::Plain if told.is_none() => {}
            Form::Plain => output::message(&plain(current)),
            Form::Json => self.event_line(&Line::Progress {
                phase,
                bytes_done,
                bytes_total,
                bytes_per_second: rate(current),
                elapsed_ms: ms(self.began.elapsed()),
            }),
            Form::Bar | Form::None => return,
        }
        *told = Some(Instant::now());
    }

    /// The disk has done nothing for some seconds; comes once a second.
    fn stands_still(&self, phase: Phase, seconds: u64) {
        let State { told, bar, .. } = &mut *self.state.borrow_mut();
        match self.form {
            Form::Json => self.event_line(&Line::NoProgress { phase, seconds }),
            Form::Bar => bar.iter().for_each(|bar| bar.set_message(format!(", no progress for {seconds} s"))),
            Form::Plain if told.is_none_or(|told| told.elapsed() >= LINE_INTERVAL) => {
                output::message(&format!("{}: no progress for {seconds} s", name(phase)));
                *told = Some(Instant::now());
            }
            Form::Plain | Form::None => {}
        }
    }

    fn warn(&self, code: &str, message: &str, range: Option<ByteRange>) {
        let (offset, length) = (range.map(ByteRange::start), range.map(ByteRange::len));
        match self.form {
            Form::Json => self.event_line(&Line::Warning { code, message, offset, length }),
            _ => self.above_the_bar(&format!("warning: {}", clean(message))),
        }
    }

    fn checked(&self, name: &str, detail: &str) {
        match self.form {
            Form::Json => self.event_line(&Line::Check { name, detail }),
            Form::None => {}
            Form::Bar | Form::Plain => self.above_the_bar(&format!("checked {name}: {}", clean(detail))),
        }
    }

    fn above_the_bar(&self, text: &str) {
        match &self.state.borrow().bar {
            Some(bar) => bar.suspend(|| output::message(text)),
            None => output::message(text),
        }
    }

    /// Writes one event; a reader that has gone away stops nothing.
    fn event_line(&self, line: &Line<'_>) {
        event_line(self.form, line);
    }
}

fn event_line(form: Form, line: &Line<'_>) {
    if form == Form::Json {
        let text = steering::json_line(line) + "\n";
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }
}

fn last_event(form: Form, failure: &Failure) {
    let document = ErrorDocument::of(failure);
    let (code, message, target_state) = document.parts();
    event_line(form, &Line::Error { code, message, target_state });
}

impl Observer for Progress {
    fn event(&self, event: &Event) {
        match event {
            Event::Started { phase, bytes_total } => self.started(*phase, *bytes_total),
            Event::Progress { phase, bytes_done, bytes_total } => {
                self.progressed(*phase, *bytes_done, *bytes_total);
            }
            Event::Checked { name, detail } => self.checked(name, detail),
            Event::Warning { code, message } => self.warn(code, message, None),
            Event::NoProgress { phase, seconds } => self.stands_still(*phase, *seconds),
            Event::Stalled { phase, seconds } => {
                let phase = name(*phase);
                let message =
                    format!("{phase}: the disk has done nothing for {seconds} s, and the run gives it up");
                self.warn("stalled", &message, None);
            }
            Event::Rewriting { range } => {
                let message = format!("{range} did not read back as written, and are written again");
                self.warn("rewriting", &message, Some(*range));
            }
            _ => {}
        }
    }
}

fn new_bar(phase: Phase, bytes_total: u64) -> ProgressBar {
    // Does nothing unless standard error is a terminal.
    let bar = ProgressBar::with_draw_target(Some(bytes_total), ProgressDrawTarget::stderr());
    let template = "{prefix:>10} {wide_bar} {binary_bytes:>10} of {binary_total_bytes} {binary_bytes_per_sec:>12} \
                    {eta:>4}{msg}";
    let style = ProgressStyle::with_template(template).expect("the template is a constant");
    bar.with_style(style).with_prefix(name(phase))
}

fn plain(phase: &PhaseState) -> String {
    let PhaseState { bytes_done, bytes_total, .. } = *phase;
    let percent = u128::from(bytes_done) * 100 / u128::from(bytes_total.max(1));
    let rate = rate(phase);
    let left = bytes_total.saturating_sub(bytes_done).checked_div(rate);
    let left = left.map(|seconds| format!(", {seconds} s left")).unwrap_or_default();
    let (name, done, total) = (name(phase.phase), bytes(bytes_done), bytes(bytes_total));
    format!("{name}: {percent} % ({done} of {total}, {}/s{left})", bytes(rate))
}

/// Bytes a second since the phase began.
fn rate(phase: &PhaseState) -> u64 {
    let elapsed = phase.began.elapsed().as_millis().max(1);
    u64::try_from(u128::from(phase.bytes_done) * 1000 / elapsed).unwrap_or(u64::MAX)
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Preflight => "preflight",
        Phase::Keep => "keep",
        Phase::Copy => "copy",
        Phase::ReadBack => "read back",
        Phase::Finish => "finish",
        _ => "work",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_stands_still_is_told_as_often_as_the_form_allows() {
        let line = Line::NoProgress { phase: Phase::ReadBack, seconds: 7 };
        let json = serde_json::to_string(&line).unwrap();
        assert_eq!(json, r#"{"type":"no_progress","phase":"read_back","seconds":7}"#);
        let progress = Progress::new(ProgressKind::Plain);
        let told = || progress.state.borrow().told;
        progress.event(&Event::NoProgress { phase: Phase::Copy, seconds: 5 });
        let first = told();
        progress.event(&Event::NoProgress { phase: Phase::Copy, seconds: 6 });
        assert!(first.is_some() && told() == first, "one line in three seconds");
    }
}
