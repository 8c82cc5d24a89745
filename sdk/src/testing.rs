//! What tests of modules and connectors need in place of a runtime: a step, and
//! the other end of a connector's way out.
//!
//! Knows no log and no engine. What a connector sends is acknowledged as soon as
//! the test takes it.

use std::path::Path;

use pipedoc_model::names::{ClusterName, PipelineName, StepId, StepName};
use pipedoc_model::step::StepType;
use pipedoc_proto::PipeDoc;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::connector::{Emission, EmissionContent, Emitter, State};
use crate::error::{Error, Result};
use crate::module::Step;

/// A step `test/step` of the cluster `test`, and the switch that stops it. `data`
/// is its own folder.
#[must_use]
#[allow(clippy::expect_used, reason = "the names are literals")]
pub fn step(step_type: StepType, data: &Path) -> (Step, Stop) {
    let cluster = ClusterName::new("test").expect("a name");
    let id = StepId::new(PipelineName::new("test").expect("a name"), StepName::new("step").expect("a name"));
    let stopping = CancellationToken::new();
    (Step::new(cluster, id, step_type, data.to_owned(), stopping.clone()), Stop(stopping))
}

/// Stops a step. A step whose switch is dropped goes on.
#[derive(Debug, Clone)]
pub struct Stop(CancellationToken);

impl Stop {
    /// Stops the step.
    pub fn stop(&self) {
        self.0.cancel();
    }
}

/// An empty state, kept in a file.
///
/// # Errors
/// When the file cannot be written.
pub fn state(file: &Path) -> Result<State> {
    State::create(file)
}

/// What a connector has sent.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "documents are the rule")]
pub enum Sent {
    /// A document.
    Document(PipeDoc),
    /// The deletion of a document.
    Deletion {
        /// Its id.
        id: String,
        /// Version of the deletion.
        version: i64,
    },
    /// A document that cannot be read.
    Unreadable {
        /// Its id.
        id: String,
        /// Version of the attempt.
        version: i64,
        /// Why it cannot be read.
        error: Error,
    },
    /// A document found as it was last time.
    Unchanged {
        /// Its id.
        id: String,
    },
}

impl Sent {
    /// Id of the document.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Document(doc) => &doc.id,
            Self::Deletion { id, .. } | Self::Unreadable { id, .. } | Self::Unchanged { id } => id,
        }
    }
}

/// The runtime's end of a connector's way out.
#[derive(Debug)]
pub struct Outbox {
    queue: mpsc::Receiver<Emission>,
    state: State,
}

impl Outbox {
    /// A way out for a connector, and its other end, which writes the state changes
    /// of what is taken to `state`.
    #[must_use]
    pub fn new(state: &State) -> (Emitter, Self) {
        let (sender, queue) = mpsc::channel(16);
        (Emitter::new(sender), Self { queue, state: state.clone() })
    }

    /// Takes what was sent next and acknowledges it. None when all emitters are
    /// gone.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub async fn next(&mut self) -> Result<Option<Sent>> {
        let Some(Emission { content, changes, settled }) = self.queue.recv().await else { return Ok(None) };
        self.state.apply(changes.iter().map(|(key, value)| (key.as_str(), value.as_deref())))?;
        // Nobody need wait for the receipt.
        let _ = settled.send(Ok(()));
        Ok(Some(match content {
            EmissionContent::Document(doc) => Sent::Document(doc),
            EmissionContent::Deletion { id, version } => Sent::Deletion { id, version },
            EmissionContent::Unreadable { id, version, error } => Sent::Unreadable { id, version, error },
            EmissionContent::Unchanged { id } => Sent::Unchanged { id },
        }))
    }

    /// Takes all that is sent until all emitters are gone.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub async fn all(mut self) -> Result<Vec<Sent>> {
        let mut sent = Vec::new();
        while let Some(one) = self.next().await? {
            sent.push(one);
        }
        Ok(sent)
    }
}
