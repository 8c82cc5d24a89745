//! What an author writes: [`Module`], [`Connector`] or [`RecordModule`].
//!
//! None of them knows topics, offsets, retries or engines; the runtime does.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pipedoc_model::names::{ClusterName, StepId};
use pipedoc_model::step::StepType;
use pipedoc_proto::PipeDoc;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::connector::{Emitter, State};
use crate::error::Result;
use crate::output::Output;
use crate::record::{RecordBatch, RecordContext};

/// The step that a module works for, as far as a module may know it.
#[derive(Debug, Clone)]
pub struct Step(Arc<StepInner>);

#[derive(Debug)]
struct StepInner {
    cluster: ClusterName,
    id: StepId,
    step_type: StepType,
    data: PathBuf,
    stopping: CancellationToken,
}

impl Step {
    /// A step. `data` is a folder that belongs to the step in this instance.
    #[must_use]
    pub fn new(
        cluster: ClusterName,
        id: StepId,
        step_type: StepType,
        data: PathBuf,
        stopping: CancellationToken,
    ) -> Self {
        Self(Arc::new(StepInner { cluster, id, step_type, data, stopping }))
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.0.cluster
    }

    /// The step's name and its pipeline's.
    #[must_use]
    pub fn id(&self) -> &StepId {
        &self.0.id
    }

    /// The step's type.
    #[must_use]
    pub fn step_type(&self) -> StepType {
        self.0.step_type
    }

    /// A folder of this step's own in this instance. It may not exist yet.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.0.data
    }

    /// Resolves when the step is to stop. A connector's `run` should return soon
    /// after; everything else is finished by the runtime.
    pub async fn stopping(&self) {
        self.0.stopping.cancelled().await;
    }

    /// Whether the step is to stop.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.0.stopping.is_cancelled()
    }
}

/// A document that was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletion {
    /// Its id.
    pub id: String,
    /// Version of the deletion; 0 when unknown.
    pub version: i64,
}

/// A program that takes documents and gives documents, or that stores them.
pub trait Module: Send + Sync + Sized + 'static {
    /// The step's configuration. Doc comments of its fields are the manual.
    type Config: DeserializeOwned + JsonSchema + Send + 'static;

    /// Name of the module, as steps refer to it.
    const NAME: &'static str;
    /// Version of the module, semver; usually `env!("CARGO_PKG_VERSION")`.
    const VERSION: &'static str = "0.0.0";
    /// What it does, one sentence.
    const DESCRIPTION: &'static str = "";
    /// Types of steps that it can be.
    const STEP_TYPES: &'static [StepType] = &[StepType::Pipeline];

    /// Called once per step and configuration: makes clients, models, tables. A
    /// retryable error is tried again, a permanent one shows the step as FAILED.
    fn open(config: Self::Config, step: &Step) -> impl Future<Output = Result<Self>> + Send;

    /// Processes one document. May run many times at once. A future that is
    /// dropped (timeout, lost partition) counts as a failed attempt.
    fn process(&self, doc: PipeDoc, step: &Step) -> impl Future<Output = Result<Output>> + Send;

    /// Processes several documents at once, for steps with `batch`; one result
    /// for each, in order. Default: [`process`](Self::process), side by side.
    fn process_batch(&self, docs: Vec<PipeDoc>, step: &Step) -> impl Future<Output = Vec<Result<Output>>> + Send {
        async move { futures::future::join_all(docs.into_iter().map(|doc| self.process(doc, step))).await }
    }

    /// Told of a deleted document. Default: passes the deletion on to all outputs.
    /// A sink must remove what it stored.
    fn deleted(&self, deletion: Deletion, _step: &Step) -> impl Future<Output = Result<Output>> + Send {
        async move { Ok(Output::delete(deletion.id)) }
    }

    /// Called once when the step stops, after everything in flight has ended.
    fn close(self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// A program that brings documents in from outside.
pub trait Connector: Send + Sync + Sized + 'static {
    /// The step's configuration. Doc comments of its fields are the manual.
    type Config: DeserializeOwned + JsonSchema + Send + 'static;

    /// Name of the module, as steps refer to it.
    const NAME: &'static str;
    /// Version of the module, semver.
    const VERSION: &'static str = "0.0.0";
    /// What it does, one sentence.
    const DESCRIPTION: &'static str = "";

    /// Called once per step and configuration.
    fn open(config: Self::Config, step: &Step) -> impl Future<Output = Result<Self>> + Send;

    /// Brings documents in until there are no more, or until the step is to stop.
    /// Runs in exactly one instance at a time. `state` is what the state changes
    /// of acknowledged documents have made so far.
    fn run(&self, step: &Step, out: &Emitter, state: &State) -> impl Future<Output = Result<()>> + Send;

    /// Called once when the step stops.
    fn close(self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// A program that works on records without decoding them.
pub trait RecordModule: Send + Sync + Sized + 'static {
    /// The step's configuration.
    type Config: DeserializeOwned + JsonSchema + Send + 'static;

    /// Name of the module, as steps refer to it.
    const NAME: &'static str;
    /// Version of the module, semver.
    const VERSION: &'static str = "0.0.0";
    /// What it does, one sentence.
    const DESCRIPTION: &'static str = "";
    /// Types of steps that it can be.
    const STEP_TYPES: &'static [StepType] = &[StepType::Pipeline];

    /// Called once per step and configuration.
    fn open(config: Self::Config, step: &Step) -> impl Future<Output = Result<Self>> + Send;

    /// Processes a batch of one partition. When it returns, all records of the
    /// batch are done; the commit waits for everything piped meanwhile.
    fn process(&self, batch: &RecordBatch, context: &RecordContext) -> impl Future<Output = Result<()>> + Send;

    /// Called once when the step stops.
    fn close(self) -> impl Future<Output = ()> + Send {
        async {}
    }
}
