//! What an author writes: [`Module`], [`Connector`] or [`RecordModule`].
//!
//! None of them knows topics, offsets, retries or engines; the runtime does.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pipedoc_model::names::{ClusterName, StepId, Topic};
use pipedoc_model::step::{StepPlan, StepType};
use pipedoc_proto::PipeDoc;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::connector::{Emitter, State};
use crate::error::{Error, Result};
use crate::event::{Events, Subscription};
use crate::output::Output;
use crate::record::{Message, Record, RecordBatch, RecordContext, TopicPartition};
use crate::runtime::claims::{Lent, needs_hydration};

/// The step that a module works for, as far as a module may know it.
#[derive(Debug, Clone)]
pub struct Step {
    inner: Arc<StepInner>,
    /// See [`Step::lanes`].
    lanes: Option<Arc<[u64]>>,
    /// See [`Step::hydrate`].
    claims: Option<Lent>,
}

#[derive(Debug, Clone)]
struct StepInner {
    cluster: ClusterName,
    id: StepId,
    step_type: StepType,
    data: PathBuf,
    stopping: CancellationToken,
    /// None where no runtime calls.
    outputs: Option<Outputs>,
    /// None where no runtime calls.
    events: Option<Events>,
}

#[derive(Debug, Clone)]
struct Outputs {
    /// In the file's order.
    names: Vec<String>,
    /// What may be named beside them: their topics and the allowed ones.
    topics: Vec<Topic>,
}

impl Step {
    /// A step whose outputs are not known. `data` is a folder that belongs to the
    /// step in this instance.
    #[must_use]
    pub fn new(
        cluster: ClusterName,
        id: StepId,
        step_type: StepType,
        data: PathBuf,
        stopping: CancellationToken,
    ) -> Self {
        let inner = StepInner { cluster, id, step_type, data, stopping, outputs: None, events: None };
        Self { inner: Arc::new(inner), lanes: None, claims: None }
    }

    /// A step as it was planned.
    #[must_use]
    pub fn planned(plan: &StepPlan, data: PathBuf, stopping: CancellationToken) -> Self {
        let names = plan.outputs.iter().map(|output| output.name.clone()).collect();
        let topics = plan.outputs.iter().map(|output| &output.topic).chain(&plan.allowed_topics).cloned().collect();
        let step = Self::new(plan.cluster.clone(), plan.id.clone(), plan.step_type, data, stopping);
        step.with(|inner| inner.outputs = Some(Outputs { names, topics }))
    }

    /// The same step with outputs of these names, for tests of modules.
    #[must_use]
    pub fn with_outputs(self, names: &[&str]) -> Self {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        self.with(|inner| inner.outputs = Some(Outputs { names, topics: Vec::new() }))
    }

    /// The same step, whose events can be heard there.
    pub(crate) fn hearing(self, events: Events) -> Self {
        self.with(|inner| inner.events = Some(events))
    }

    fn with(self, change: impl FnOnce(&mut StepInner)) -> Self {
        let mut inner = Arc::unwrap_or_clone(self.inner);
        change(&mut inner);
        Self { inner: Arc::new(inner), ..self }
    }

    /// The same step, for a batch whose documents stand in these lanes.
    pub(crate) fn for_batch(&self, lanes: Vec<u64>) -> Self {
        Self { lanes: Some(lanes.into()), ..self.clone() }
    }

    /// The same step, for work that may read claims back.
    pub(crate) fn with_claims(&self, claims: Lent) -> Self {
        Self { claims: Some(claims), ..self.clone() }
    }

    /// Reads back what a document refers to in the object store, in steps with
    /// `hydration: LAZY`; a document that is whole comes back as it is. What was read
    /// back counts as the step's memory until its documents are done.
    ///
    /// # Errors
    /// Permanent: the claim is wrong, more than `hydrate_max`, or the step does not read
    /// back (`hydration: NEVER`). Retryable: the store is away.
    pub async fn hydrate(&self, doc: PipeDoc) -> Result<PipeDoc> {
        if !needs_hydration(&doc) {
            return Ok(doc);
        }
        match &self.claims {
            Some(claims) => claims.hydrate(doc).await,
            None => {
                let refused = format!("{} lies in the object store; give the step `hydration: LAZY` or EAGER", doc.id);
                Err(Error::permanent(refused).with_kind("not-hydrated"))
            }
        }
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.inner.cluster
    }

    /// The step's name and its pipeline's.
    #[must_use]
    pub fn id(&self) -> &StepId {
        &self.inner.id
    }

    /// The step's type.
    #[must_use]
    pub fn step_type(&self) -> StepType {
        self.inner.step_type
    }

    /// Names of the step's outputs, in the file's order. None where no runtime calls.
    #[must_use]
    pub fn outputs(&self) -> Option<&[String]> {
        self.inner.outputs.as_ref().map(|outputs| outputs.names.as_slice())
    }

    /// Whether results may be sent to this name ([`Output::to`]): that of an output, its
    /// topic's, or one of `allowed_kafka_topics`. A module whose configuration names
    /// outputs asks when it opens; otherwise every document fails as `unknown-output`.
    /// True where no runtime calls.
    #[must_use]
    pub fn has_output(&self, name: &str) -> bool {
        self.inner.outputs.as_ref().is_none_or(|outputs| {
            outputs.names.iter().any(|known| known == name) || outputs.topics.iter().any(|topic| topic.as_str() == name)
        })
    }

    /// A folder of this step's own in this instance. It may not exist yet.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.inner.data
    }

    /// In [`Module::process_batch`]: the lane of each document, in their order.
    /// Documents of one lane (of one key, as a rule) must be worked on in their
    /// order; the numbers mean nothing else. Empty where no runtime calls.
    #[must_use]
    pub fn lanes(&self) -> &[u64] {
        self.lanes.as_deref().unwrap_or_default()
    }

    /// From now on, what happens in this step in this instance, but for each single
    /// document that goes its way; see [`crate::event`]. Without events where no runtime
    /// calls.
    #[must_use]
    pub fn events(&self) -> Subscription {
        // Of a stream that nobody holds, the subscription has ended.
        let events = self.inner.events.clone().unwrap_or_default();
        events.subscribe().of_step(self.inner.id.clone())
    }

    /// Resolves when the step is to stop. A connector's `run` should return soon
    /// after; everything else is finished by the runtime.
    pub async fn stopping(&self) {
        self.inner.stopping.cancelled().await;
    }

    /// Whether the step is to stop.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.inner.stopping.is_cancelled()
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
    /// for each, in order. Default: [`process`](Self::process), documents of one
    /// lane ([`Step::lanes`]) one after the other, lanes side by side.
    ///
    /// After a failure the later ones of its lane count as not done, whatever
    /// their results. A batch that fails as a whole (it panics, or takes too
    /// long) says nothing of any one document: each is tried again alone.
    fn process_batch(&self, docs: Vec<PipeDoc>, step: &Step) -> impl Future<Output = Vec<Result<Output>>> + Send {
        crate::batches::process_each(self, docs, step)
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
    /// batch are done; the commit waits for everything piped meanwhile. Batches of
    /// one partition come one after the other, those of different ones side by side.
    ///
    /// After an error the records that were marked as consumed stay done, the others
    /// come again, in order, as a batch of the next attempt. When the attempts are
    /// spent, or the error is permanent, `on_exhausted` applies to the first of the
    /// others (to the record itself, where one could not be piped), and the rest
    /// starts anew. A future that is dropped (timeout) counts as a failed attempt.
    fn process(&self, batch: &RecordBatch, context: &RecordContext) -> impl Future<Output = Result<()>> + Send;

    /// May change what is piped for a record, last of all: headers, key and value
    /// are as they would be sent. Default: changes nothing.
    fn enhance(&self, _message: &mut Message, _record: &Record) {}

    /// A partition was given to this instance; its batches follow. An error is told
    /// and changes nothing.
    fn assigned(&self, _partition: &TopicPartition, _step: &Step) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }

    /// A partition goes to another instance: its last batch has ended. It may take as
    /// long as `revoke_grace` lasts. Also called, later, for a partition that was lost.
    fn revoked(&self, _partition: &TopicPartition, _step: &Step) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }

    /// The step stops: all batches have ended, and what is done is committed. Comes
    /// once, instead of [`revoked`](Self::revoked) for each partition, and before
    /// [`close`](Self::close). It may take as long as `revoke_grace` lasts.
    fn shutdown(&self, _step: &Step) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }

    /// Called once when the step stops.
    fn close(self) -> impl Future<Output = ()> + Send {
        async {}
    }
}
