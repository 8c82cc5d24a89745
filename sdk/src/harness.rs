//! The test kit with the real runtime: a module on the memory log, where faults
//! can be asked for.
//!
//! ```no_run
//! # use pipedoc_sdk::prelude::*;
//! # use pipedoc_sdk::{harness::Harness, serde_json};
//! # async fn test<Greeter: Module>(doc: PipeDoc) -> Result<()> {
//! let mut harness = Harness::new::<Greeter>(serde_json::json!({"prefix": "Hello"})).await?;
//! harness.send(doc).await?;
//! harness.faults().fail_acks(3, true); // the log will stumble
//! harness.settle().await?; // runs until everything is done, or a dead letter
//! assert_eq!(harness.results().await?.len(), 1); // and nothing is lost
//! # Ok(())
//! # }
//! ```
//!
//! Knows no engine: the step is planned here, with one output.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pipedoc_model::headers::{DOCUMENT_ID, ERROR_MESSAGE, ERROR_TYPE};
use pipedoc_model::names::{ClusterName, Generation, PipelineName, StepId, StepName, Topic};
use pipedoc_model::step::{
    ControlState, Delivery, Format, Hydration, Input, InputSource, OnExhausted, Ordering, Output, Retries, StepPlan,
    StepType,
};
use pipedoc_proto::PipeDoc;
use pipedoc_transport::log::{
    ConsumerConfig, Event, Log, OutgoingRecord, ProducerConfig, Record, Start, Subscription, TopicPartition,
    TopicSettings, TopicSpec,
};
use pipedoc_transport::memory::{Faults, MemoryLog};
use pipedoc_transport::objects::Objects;
use prost::Message;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::event::Unobserved;
use crate::factory::Factory;
use crate::instance::{Instance, InstanceConfig, StepState};
use crate::layers::Layers;
use crate::module::Module;

/// Partitions of every topic here: more than one, so that order across them is
/// never taken for granted.
const PARTITIONS: i32 = 2;

/// How long [`Harness::settle`] waits at most.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A module with a log of its own. It works while [`settle`](Self::settle) waits
/// and afterwards, until [`stop`](Self::stop); sending before that lets faults be
/// set up first.
pub struct Harness {
    factory: Factory,
    layers: Layers,
    plan: StepPlan,
    log: MemoryLog,
    data: PathBuf,
    running: Option<Instance>,
}

/// A document that was given up on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its id.
    pub document: String,
    /// Kind of the error, a stable word.
    pub kind: String,
    /// The error with its chain.
    pub error: String,
}

impl Harness {
    /// A harness for a module with this configuration, and its topics.
    ///
    /// # Errors
    /// When the log refuses a topic.
    pub async fn new<M: Module>(config: Value) -> Result<Self> {
        let factory = Factory::module::<M>();
        let plan = plan(&factory, config)?;
        let log = MemoryLog::new();
        for topic in [input(&plan)?, output(&plan)?, &plan.dead_letters] {
            let settings = TopicSettings::default();
            let spec = TopicSpec { topic: topic.clone(), partitions: PARTITIONS, replication: None, settings };
            log.ensure_topic(&spec).await?;
        }
        let data = std::env::temp_dir().join(format!("pipedoc-harness-{}", uuid::Uuid::new_v4()));
        Ok(Self { factory, layers: Layers::new(), plan, log, data, running: None })
    }

    /// The step's plan, to be changed before it runs: concurrency, retries, batch,
    /// ordering …
    pub fn plan(&mut self) -> &mut StepPlan {
        &mut self.plan
    }

    /// Layers around the module, to be set before it runs.
    pub fn layers(&mut self) -> &mut Layers {
        &mut self.layers
    }

    /// The log's fault switches.
    #[must_use]
    pub fn faults(&self) -> Faults {
        self.log.faults()
    }

    /// The log, for what is not offered here.
    #[must_use]
    pub fn log(&self) -> &MemoryLog {
        &self.log
    }

    /// Puts a document into the step's input. Faults strike here too: ask for them
    /// afterwards.
    ///
    /// # Errors
    /// When the log refuses the record.
    pub async fn send(&self, doc: PipeDoc) -> Result<()> {
        let value = Bytes::from(doc.encode_to_vec());
        self.put(doc.id, Some(value)).await
    }

    /// Puts the deletion of a document into the step's input.
    ///
    /// # Errors
    /// When the log refuses the record.
    pub async fn delete(&self, id: &str) -> Result<()> {
        self.put(id.to_owned(), None).await
    }

    async fn put(&self, id: String, value: Option<Bytes>) -> Result<()> {
        let mut record = OutgoingRecord::new(input(&self.plan)?.clone(), Some(Bytes::from(id.clone())), value);
        record.headers.set(DOCUMENT_ID, id);
        let producer = self.log.producer(ProducerConfig::default()).await?;
        for report in producer.send(vec![record]).await?.await {
            report?;
        }
        Ok(())
    }

    /// Runs the step, unless it runs, and waits until all that was sent is done or
    /// given up on, and committed.
    ///
    /// # Errors
    /// When the module cannot be opened, or it takes more than half a minute.
    pub async fn settle(&mut self) -> Result<()> {
        let instance = self.run()?;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let mut opened = true;
            for status in instance.status() {
                opened &= status.state != StepState::Starting;
                if status.state == StepState::Failed {
                    return Err(Error::permanent(status.last_error).context("the step could not be opened"));
                }
            }
            if opened && self.is_settled().await? {
                return Ok(());
            }
            if tokio::time::Instant::now() > deadline {
                let status = instance.status();
                return Err(Error::retryable(format!("{status:?}")).context(format!("not settled in {PATIENCE:?}")));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn is_settled(&self) -> Result<bool> {
        let topic = input(&self.plan)?;
        let committed = self.log.group_offsets(&self.plan.group).await?;
        let ends = self.log.ends(topic).await?;
        Ok((0..).zip(ends).all(|(partition, ends)| {
            let source = TopicPartition::new(topic.clone(), partition);
            ends.end == 0 || committed.get(&source).is_some_and(|committed| committed.offset >= ends.end)
        }))
    }

    fn run(&mut self) -> Result<Instance> {
        if let Some(instance) = &self.running {
            return Ok(instance.clone());
        }
        let instance = Instance::start(InstanceConfig {
            log: Arc::new(self.log.clone()),
            objects: Arc::new(Objects::local(&self.data.join("objects"))?),
            id: "harness".to_owned(),
            data: self.data.clone(),
            factories: vec![self.factory.clone()],
            observer: Arc::new(Unobserved),
            layers: self.layers.clone(),
        });
        instance.apply(Generation(1), vec![self.plan.clone()]);
        self.running = Some(instance.clone());
        Ok(instance)
    }

    /// Stops the step; [`settle`](Self::settle) starts it anew, with another
    /// module opened, where this one had committed.
    pub async fn stop(&mut self) {
        if let Some(instance) = self.running.take() {
            instance.stop(Duration::from_secs(10)).await;
        }
    }

    /// Documents on the step's output, partition by partition in order.
    ///
    /// # Errors
    /// When a record is no document.
    pub async fn results(&self) -> Result<Vec<PipeDoc>> {
        let records = self.records(output(&self.plan)?).await?;
        let values = records.into_iter().filter_map(|record| record.value);
        values.map(|value| Ok(PipeDoc::decode(value)?)).collect()
    }

    /// Ids of the deletions on the step's output.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn deletions(&self) -> Result<Vec<String>> {
        let records = self.records(output(&self.plan)?).await?;
        Ok(records.iter().filter(|record| record.value.is_none()).map(document_id).collect())
    }

    /// What was given up on.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn dead_letters(&self) -> Result<Vec<DeadLetter>> {
        let text = |record: &Record, name| record.headers.get_str(name).unwrap_or_default().to_owned();
        let records = self.records(&self.plan.dead_letters).await?;
        let letter = |record: &Record| DeadLetter {
            document: document_id(record),
            kind: text(record, ERROR_TYPE),
            error: text(record, ERROR_MESSAGE),
        };
        Ok(records.iter().map(letter).collect())
    }

    /// All records of a topic.
    async fn records(&self, topic: &Topic) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        for (partition, ends) in (0..).zip(self.log.ends(topic).await?) {
            if ends.start == ends.end {
                continue;
            }
            let source = TopicPartition::new(topic.clone(), partition);
            let subscription = Subscription::Assigned(vec![(source, Start::Earliest)]);
            let consumer = self.log.consumer(ConsumerConfig::new("harness", subscription)).await?;
            loop {
                match consumer.next().await? {
                    Event::Records(batch) => records.extend(batch.records),
                    Event::EndOfPartition { .. } => break,
                    _ => {}
                }
            }
            consumer.close().await?;
        }
        Ok(records)
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = std::fs::remove_dir_all(&self.data);
    }
}

fn document_id(record: &Record) -> String {
    let key = || record.key.as_ref().map(|key| String::from_utf8_lossy(key).into_owned()).unwrap_or_default();
    record.headers.get_str(DOCUMENT_ID).map_or_else(key, str::to_owned)
}

fn input(plan: &StepPlan) -> Result<&Topic> {
    match plan.inputs.first().map(|input| &input.source) {
        Some(InputSource::Topic(topic)) => Ok(topic),
        _ => Err(Error::permanent("the harness needs the input topic that it planned")),
    }
}

fn output(plan: &StepPlan) -> Result<&Topic> {
    plan.outputs
        .first()
        .map(|output| &output.topic)
        .ok_or_else(|| Error::permanent("the harness needs the output that it planned"))
}

/// A step with one input and one output, and little patience.
fn plan(factory: &Factory, config: Value) -> Result<StepPlan> {
    let info = factory.info();
    let cluster = ClusterName::new("harness")?;
    let id = StepId::new(PipelineName::new("harness")?, StepName::new("step")?);
    let output = Output {
        name: "out".to_owned(),
        topic: Topic::new("harness.out")?,
        format: Format::Pipedoc,
        when: None,
        otherwise: false,
        weight: None,
        key: None,
        compacted: false,
    };
    let source = InputSource::Topic(id.input_topic(&cluster));
    Ok(StepPlan {
        step_type: info.step_types.first().copied().unwrap_or(StepType::Pipeline),
        module: info.module.clone(),
        group: id.group(&cluster),
        inputs: vec![Input { source, format: Format::Pipedoc }],
        dead_letters: id.dead_letter_topic(&cluster),
        state: None,
        outputs: vec![output],
        allowed_topics: Vec::new(),
        config,
        control: ControlState::Running,
        delivery: Delivery::AtLeastOnce,
        ordering: Ordering::Key,
        concurrency: 4,
        batch: None,
        retries: Retries { initial: Duration::from_millis(5), max: Duration::from_millis(50), ..Retries::default() },
        on_exhausted: OnExhausted::DeadLetter,
        stop_at_failure_rate: None,
        timeout: Duration::from_secs(10),
        revoke_grace: Duration::from_secs(1),
        max_hops: None,
        claim_threshold: 512 << 10,
        hydration: Hydration::Eager,
        hydrate_max: 64 << 20,
        consumer_settings: Default::default(),
        producer_settings: Default::default(),
        id,
        cluster,
    })
}
