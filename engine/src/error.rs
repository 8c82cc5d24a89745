//! What callers of an engine are told when something cannot be done.

use pipedoc_model::names::PipelineName;
use pipedoc_model::problem::chain;

use crate::store;

/// Why a request is not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No pipeline has the name.
    #[error("no pipeline is named {found:?}; {}", known_names("pipeline", .known))]
    UnknownPipeline {
        /// The name.
        found: String,
        /// The pipelines there are.
        known: Vec<String>,
    },
    /// The pipeline was there and was deleted.
    #[error("pipeline {pipeline} was deleted; `pipedoc rollback {pipeline}` brings revision {last} back")]
    Deleted {
        /// The pipeline.
        pipeline: PipelineName,
        /// Its last revision.
        last: u64,
    },
    /// The store has lost its data, or the pipeline at least.
    #[error("{}", lost(.found, .store, *.runs))]
    Lost {
        /// The pipeline.
        found: String,
        /// The store.
        store: String,
        /// Whether it still runs.
        runs: bool,
    },
    /// The pipeline has no such revision, or no longer.
    #[error("pipeline {pipeline} has no revision {found}; {}", those(.kept))]
    UnknownRevision {
        /// The pipeline.
        pipeline: PipelineName,
        /// The revision.
        found: u64,
        /// Those that are kept, newest first.
        kept: Vec<u64>,
    },
    /// There is nothing before the current revision.
    #[error("pipeline {pipeline} has no revision before {current} to go back to")]
    NothingBefore {
        /// The pipeline.
        pipeline: PipelineName,
        /// Its current revision.
        current: u64,
    },
    /// No step of the pipeline has the name, or it takes no documents.
    #[error("pipeline {pipeline} has no step named {found:?} that takes documents; {}", known_names("step", .known))]
    UnknownStep {
        /// The pipeline.
        pipeline: PipelineName,
        /// The name.
        found: String,
        /// Its steps that take documents.
        known: Vec<String>,
    },
    /// No step of the pipeline has the name.
    #[error("pipeline {pipeline} has no step named {found:?}; {}", known_names("step", .known))]
    NoSuchStep {
        /// The pipeline.
        pipeline: PipelineName,
        /// The name.
        found: String,
        /// Its steps.
        known: Vec<String>,
    },
    /// The request names no step, and there is no single one to take.
    #[error("pipeline {pipeline} has {} where documents could go in; name one of its steps: {}", count(.entrances), .known.join(", "))]
    AmbiguousStep {
        /// The pipeline.
        pipeline: PipelineName,
        /// Steps without predecessors that take documents.
        entrances: Vec<String>,
        /// All steps that take documents.
        known: Vec<String>,
    },
    /// The request cannot be right; every reason.
    #[error("{}", .0.join("\n"))]
    Invalid(Vec<String>),
    /// The field's behaviour does not exist yet.
    #[error("{field} is not supported yet; leave it out")]
    NotSupported {
        /// The field.
        field: &'static str,
    },
    /// The engine has just started, and knows nothing of pipelines.
    #[error("the engine has not read its configuration yet; try again in a moment")]
    NotReady,
    /// The store cannot be used.
    #[error("the configuration store cannot be used: {}", chain(.0))]
    Store(#[from] store::Error),
    /// The log cannot be used.
    #[error("the log cannot be used: {}", chain(.0))]
    Log(#[from] pipedoc_transport::error::Error),
}

fn known_names(what: &str, known: &[String]) -> String {
    if known.is_empty() { format!("there is no such {what} yet") } else { format!("there are: {}", known.join(", ")) }
}

fn lost(found: &str, store: &str, runs: bool) -> String {
    if runs {
        format!(
            "pipeline {found} still runs, but {store} no longer has it: restore its data from a copy, or apply the pipeline again"
        )
    } else {
        format!(
            "no pipeline is named {found:?}, and {store} has lost its data: restore them from a copy, or apply the pipelines again"
        )
    }
}

fn those(kept: &[u64]) -> String {
    match kept {
        [] => "none is kept".to_owned(),
        [only] => format!("{only} is its only one"),
        [newest, .., oldest] => format!("{oldest} to {newest} are kept; `pipedoc history` lists them"),
    }
}

fn count(entrances: &[String]) -> String {
    match entrances {
        [] => "no step without predecessors".to_owned(),
        many => format!("{} steps ({})", many.len(), many.join(", ")),
    }
}
