//! Exit codes, and how an error is shown.

use std::process::ExitCode;

use pipedoc_model::problem::chain;

use crate::args::OutputFormat;
use crate::show::{say, tell};

/// Something failed while it ran: the log, the network, a step.
pub const FAILED: u8 = 1;
/// What was given is wrong: arguments, a pipeline, a configuration. Nothing was done.
pub const REFUSED: u8 = 2;
/// Ended by SIGINT or SIGTERM; the same command goes on where it was.
pub const INTERRUPTED: u8 = 130;

/// An error that says that what was given is wrong.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// Shows an error with all its causes and gives the exit code for it.
pub fn report(error: &anyhow::Error, output: OutputFormat) -> ExitCode {
    let refused = error.chain().any(|cause| {
        cause.is::<Refused>()
            || cause.is::<pipedoc_model::problem::Problems>()
            || cause.is::<pipedoc_model::names::Error>()
    });
    let code = if refused { REFUSED } else { FAILED };
    let problems = error.chain().find_map(|cause| cause.downcast_ref::<pipedoc_model::problem::Problems>());
    match (output, problems) {
        (OutputFormat::Json, problems) => {
            let value = match problems {
                Some(problems) => serde_json::json!({"error": "refused", "problems": problems.0}),
                None => {
                    serde_json::json!({"error": error.to_string(), "causes": causes(error)})
                }
            };
            say!("{value}");
        }
        (OutputFormat::Text, Some(problems)) => {
            for problem in &problems.0 {
                tell!("error: {problem}");
            }
            let n = problems.0.len();
            tell!("{n} problem{} found; nothing was done", if n == 1 { "" } else { "s" });
        }
        (OutputFormat::Text, None) => tell!("error: {}", chain(error.as_ref())),
    }
    ExitCode::from(code)
}

/// What led to an error, without those that another says already.
fn causes(error: &anyhow::Error) -> Vec<String> {
    let mut causes = vec![error.to_string()];
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !causes.last().is_some_and(|before| before.ends_with(&cause)) {
            causes.push(cause);
        }
    }
    causes.split_off(1)
}
