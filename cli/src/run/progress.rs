//! Shows how far a run is: a line for each step that is redrawn on a terminal, and
//! a plain line every few seconds elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use pipedoc_model::step::StepPlan;
use pipedoc_sdk::instance::{StepState, StepStatus};

use super::ledger::Counts;
use crate::show::tell;

/// How often a plain line is written.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// The progress of a run, on standard error.
pub enum Progress {
    /// Redrawn in place.
    Terminal {
        /// Keeps the lines together.
        _lines: MultiProgress,
        /// One line a step, in the file's order.
        steps: Vec<(String, ProgressBar)>,
    },
    /// A line now and then.
    Plain {
        /// When the last line was written.
        last: Instant,
        /// What it said.
        said: String,
    },
}

impl Progress {
    /// Begins to show.
    pub fn start(steps: &[StepPlan]) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Plain { last: Instant::now(), said: String::new() };
        }
        let lines = MultiProgress::new();
        let width = steps.iter().map(|step| step.id.step.as_str().len()).max().unwrap_or(0);
        let style = ProgressStyle::with_template("{spinner} {prefix} {wide_msg}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bars = steps.iter().map(|step| {
            let bar = lines.add(ProgressBar::new_spinner().with_style(style.clone()));
            bar.set_prefix(format!("{:width$}", step.id.step.as_str()));
            (step.id.to_string(), bar)
        });
        let steps = bars.collect();
        Self::Terminal { _lines: lines, steps }
    }

    /// Shows how things are.
    pub fn update(&mut self, statuses: &[StepStatus], counts: Counts) {
        match self {
            Self::Terminal { steps, .. } => {
                for status in statuses {
                    let name = status.id.to_string();
                    let Some((_, bar)) = steps.iter().find(|(step, _)| *step == name) else { continue };
                    bar.set_message(describe(status));
                    bar.tick();
                }
            }
            Self::Plain { last, said } => {
                if last.elapsed() < PLAIN_EVERY {
                    return;
                }
                *last = Instant::now();
                let steps: Vec<_> =
                    statuses.iter().map(|status| format!("{} {}", status.id.step, status.done)).collect();
                let line =
                    format!("found {}, dead letters {}; done: {}", counts.found, counts.dead_letters, steps.join(", "));
                if line != *said {
                    tell!("{line}");
                    *said = line;
                }
            }
        }
    }

    /// Clears what is redrawn.
    pub fn finish(self) {
        if let Self::Terminal { steps, .. } = self {
            for (_, bar) in steps {
                bar.finish_and_clear();
            }
        }
    }
}

fn describe(status: &StepStatus) -> String {
    let mut text = format!("{:<9} done {}", state(status.state), status.done);
    if status.in_flight > 0 {
        text.push_str(&format!(", {} at work", status.in_flight));
    }
    if status.lag > 0 {
        text.push_str(&format!(", {} waiting", status.lag));
    }
    if status.failed > 0 {
        text.push_str(&format!(", {} given up", status.failed));
    }
    text
}

/// The state as one lower-case word.
fn state(state: StepState) -> &'static str {
    match state {
        StepState::Starting => "starting",
        StepState::Running => "running",
        StepState::Paused => "paused",
        StepState::Stopping => "stopping",
        StepState::Stopped => "stopped",
        StepState::Failed => "failed",
        StepState::Completed => "completed",
    }
}
