//! A log with topics, an instance over it, and a module that does what its
//! documents say. Knows nothing of what a test wants to see.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "what helps a test fails with it")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pipedoc_model::headers::Headers;
use pipedoc_model::names::{ClusterName, Generation, StepId, Topic};
use pipedoc_model::step::{
    ControlState, Delivery, Hydration, Input, InputSource, OnExhausted, Ordering, Output as Way, Retries, StepPlan,
    StepType,
};
use pipedoc_sdk::event::{Event, Observer};
use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::instance::{Instance, InstanceConfig, StepState, StepStatus};
use pipedoc_sdk::layers::Layers;
use pipedoc_sdk::module::{Connector, Deletion, Module, RecordModule, Step};
use pipedoc_sdk::prelude::*;
use pipedoc_transport::log::{
    ConsumerConfig, Event as LogEvent, Log, OutgoingRecord, ProducerConfig, Start, Subscription, TopicPartition,
    TopicSettings, TopicSpec,
};
use pipedoc_transport::memory::MemoryLog;
use pipedoc_transport::objects::Objects;
use prost::Message;

/// No condition takes longer than this.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Does what a document's title says; several words, one after the other:
/// `slow:MS`, `fail:N` (the first N attempts), `bad`, `panic`, `many:N`,
/// `parts:N`, `to:NAME`, `delete`, `outdated`, `skip`, `noid`, `hang`, `partial`.
pub struct Actor {
    attempts: Mutex<HashMap<String, u32>>,
    at_work: Mutex<HashSet<String>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nothing {
    /// Fails `open` so: `retry`, `bad`, or `output:NAME` where there is no such output.
    #[serde(default)]
    open: Option<String>,
}

impl Actor {
    async fn act(&self, doc: &mut PipeDoc) -> Result<Output> {
        let mut to = None;
        let mut output = None;
        for word in doc.title.clone().split_whitespace() {
            let (verb, argument) = word.split_once(':').unwrap_or((word, ""));
            let number = argument.parse::<u64>().unwrap_or(0);
            match verb {
                "slow" => tokio::time::sleep(Duration::from_millis(number)).await,
                "hang" => std::future::pending().await,
                "fail" => {
                    let made = *self.attempts.lock().entry(doc.id.clone()).and_modify(|made| *made += 1).or_insert(1);
                    if u64::from(made) <= number {
                        return Err(Error::retryable("not yet").context(format!("attempt {made}")));
                    }
                }
                "bad" => return Err(Error::permanent("no good").with_kind("bad")),
                "panic" => panic!("oh no"),
                "to" => to = Some(argument.to_owned()),
                "many" => {
                    output = Some(Output::many(
                        (0..number).map(|n| PipeDoc { id: format!("{}-{n}", doc.id), ..doc.clone() }),
                    ));
                }
                "parts" => {
                    output = Some(Output::many((0..number).map(|n| PipeDoc {
                        id: format!("{}#{n}", doc.id),
                        parent_id: doc.id.clone(),
                        part: n as i32,
                        parts: number as i32,
                        ..doc.clone()
                    })));
                }
                "delete" => output = Some(Output::delete(doc.id.clone())),
                "outdated" => output = Some(Output::outdated(doc.id.clone())),
                "skip" => output = Some(Output::skip()),
                "noid" => output = Some(Output::from(PipeDoc::default())),
                "partial" => output = Some(Output::from(doc.clone()).partial(Error::retryable("a page"))),
                _ => {}
            }
        }
        let output = output.unwrap_or_else(|| Output::from(doc.clone()));
        Ok(match to {
            Some(to) => output.to(&to),
            None => output,
        })
    }
}

impl Module for Actor {
    type Config = Nothing;
    const NAME: &'static str = "actor";
    const STEP_TYPES: &'static [StepType] = &[StepType::Pipeline, StepType::Sink];

    async fn open(config: Nothing, step: &Step) -> Result<Self> {
        match config.open.as_deref() {
            Some("bad") => Err(Error::permanent("never opens")),
            Some(name) if name.starts_with("output:") && !step.has_output(&name[7..]) => {
                Err(Error::permanent(format!("no output {}, but {:?}", &name[7..], step.outputs())))
            }
            Some("retry") => Err(Error::retryable("not open yet")),
            _ => Ok(Self { attempts: Mutex::default(), at_work: Mutex::default() }),
        }
    }

    async fn process(&self, mut doc: PipeDoc, _: &Step) -> Result<Output> {
        let key = doc.source_uri.clone();
        if !key.is_empty() && !self.at_work.lock().insert(key.clone()) {
            return Err(Error::permanent(format!("{key} is at work twice")).with_kind("overlap"));
        }
        let leaves = Leaves(self, key);
        let result = self.act(&mut doc).await;
        drop(leaves);
        result
    }

    async fn deleted(&self, deletion: Deletion, _: &Step) -> Result<Output> {
        Ok(Output::delete(deletion.id))
    }
}

struct Leaves<'a>(&'a Actor, String);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.at_work.lock().remove(&self.1);
    }
}

/// Collects events.
#[derive(Default)]
pub struct Events(Mutex<Vec<(String, Event)>>);

impl Observer for Events {
    fn event(&self, step: &StepId, event: &Event) {
        self.0.lock().push((step.step.to_string(), event.clone()));
    }
}

impl Events {
    pub fn all(&self) -> Vec<Event> {
        self.0.lock().iter().map(|(_, event)| event.clone()).collect()
    }

    pub fn named(&self) -> Vec<(String, Event)> {
        self.0.lock().clone()
    }

    pub fn count(&self, is: impl Fn(&Event) -> bool) -> usize {
        self.0.lock().iter().filter(|(_, event)| is(event)).count()
    }
}

/// A log, its topics, and an instance over it.
pub struct Bed {
    pub log: Arc<dyn Log>,
    pub instance: Instance,
    pub events: Arc<Events>,
    pub objects: Arc<Objects>,
    pub data: tempfile::TempDir,
    generation: Mutex<u64>,
}

impl Bed {
    pub fn memory() -> (Self, MemoryLog) {
        let log = MemoryLog::new();
        (Self::over(Arc::new(log.clone())), log)
    }

    pub fn over(log: Arc<dyn Log>) -> Self {
        Self::with(log, Vec::new(), Layers::new())
    }

    pub fn with(log: Arc<dyn Log>, more: Vec<Factory>, layers: Layers) -> Self {
        let data = tempfile::tempdir().unwrap();
        let objects = Arc::new(Objects::local(&data.path().join("objects")).unwrap());
        Self::at(log, objects, data, "one", more, layers)
    }

    /// Another instance beside this one.
    pub fn beside(&self, id: &str, more: Vec<Factory>) -> Self {
        let data = tempfile::tempdir().unwrap();
        Self::at(Arc::clone(&self.log), Arc::clone(&self.objects), data, id, more, Layers::new())
    }

    /// Another instance, with another handle on the log.
    pub fn over_again(&self, log: Arc<dyn Log>, id: &str, more: Vec<Factory>) -> Self {
        Self::at(log, Arc::clone(&self.objects), tempfile::tempdir().unwrap(), id, more, Layers::new())
    }

    fn at(
        log: Arc<dyn Log>,
        objects: Arc<Objects>,
        data: tempfile::TempDir,
        id: &str,
        more: Vec<Factory>,
        layers: Layers,
    ) -> Self {
        let events = Arc::new(Events::default());
        let mut factories = vec![Factory::module::<Actor>()];
        factories.extend(more);
        let instance = Instance::start(InstanceConfig {
            log: Arc::clone(&log),
            objects: Arc::clone(&objects),
            id: id.to_owned(),
            data: data.path().to_owned(),
            factories,
            observer: Arc::clone(&events) as Arc<dyn Observer>,
            layers,
        });
        Self { log, instance, events, objects, data, generation: Mutex::new(0) }
    }

    pub async fn topic(&self, name: &str, partitions: i32) {
        self.topic_with(name, partitions, TopicSettings::default()).await;
    }

    pub async fn topic_with(&self, name: &str, partitions: i32, settings: TopicSettings) {
        let spec = TopicSpec { topic: topic(name), partitions, replication: None, settings };
        self.log.ensure_topic(&spec).await.unwrap();
    }

    /// Makes the topics of a plan, with 4 partitions each, and runs it.
    pub async fn run(&self, plans: &[StepPlan]) {
        for plan in plans {
            for input in &plan.inputs {
                if let InputSource::Topic(topic) = &input.source {
                    self.topic(topic.as_str(), 4).await;
                }
            }
            for output in &plan.outputs {
                self.topic(output.topic.as_str(), 4).await;
            }
            self.topic(plan.dead_letters.as_str(), 4).await;
            if let Some(state) = &plan.state {
                let settings = TopicSettings { compact: Some(true), ..TopicSettings::default() };
                self.topic_with(state.as_str(), 1, settings).await;
            }
        }
        self.apply(plans);
    }

    pub fn apply(&self, plans: &[StepPlan]) {
        let mut generation = self.generation.lock();
        *generation += 1;
        self.instance.apply(Generation(*generation), plans.to_vec());
    }

    pub fn status(&self, step: &str) -> StepStatus {
        self.instance.status().into_iter().find(|status| status.id.step.as_str() == step).unwrap()
    }

    pub async fn state(&self, step: &str, state: StepState) -> StepStatus {
        until(&format!("{step} to be {state:?}"), || {
            let status = self.status(step);
            (status.state == state).then_some(status)
        })
        .await
    }

    pub async fn drained(&self, step: &str) -> StepStatus {
        until(&format!("{step} to be drained"), || {
            let status = self.status(step);
            (status.drained && status.in_flight == 0 && status.lag == 0).then_some(status)
        })
        .await
    }

    pub async fn send(&self, to: &str, docs: impl IntoIterator<Item = PipeDoc>) {
        let records = docs.into_iter().map(|doc| record(to, &doc)).collect();
        self.send_records(records).await;
    }

    pub async fn send_records(&self, records: Vec<OutgoingRecord>) {
        let producer = self.log.producer(ProducerConfig::default()).await.unwrap();
        for report in producer.send(records).await.unwrap().await {
            report.unwrap();
        }
    }

    /// All that lies in a topic now, by partition.
    pub async fn read(&self, name: &str) -> Vec<Read> {
        let ends = self.log.ends(&topic(name)).await.unwrap();
        let parts: Vec<_> =
            (0..).zip(&ends).map(|(n, _)| (TopicPartition::new(topic(name), n), Start::Earliest)).collect();
        let mut open: HashSet<_> = parts.iter().map(|(part, _)| part.clone()).collect();
        let config = ConsumerConfig::new("test", Subscription::Assigned(parts));
        let consumer = self.log.consumer(config).await.unwrap();
        let mut all = Vec::new();
        while !open.is_empty() {
            let next = tokio::time::timeout(PATIENCE, consumer.next()).await.unwrap();
            if next.as_ref().is_err_and(pipedoc_transport::log::Error::is_retryable) {
                continue;
            }
            match next.unwrap() {
                LogEvent::Records(batch) => {
                    all.extend(batch.records.into_iter().map(|record| Read { source: batch.source.clone(), record }));
                }
                LogEvent::EndOfPartition { source, .. } => {
                    open.remove(&source);
                }
                _ => {}
            }
        }
        consumer.close().await.unwrap();
        all
    }

    /// Waits until a topic holds at least so many records.
    pub async fn await_records(&self, name: &str, count: i64) -> Vec<Read> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let ends = self.log.ends(&topic(name)).await.unwrap();
            let found: i64 = ends.iter().map(|ends| ends.end - ends.start).sum();
            if found >= count {
                return self.read(name).await;
            }
            assert!(tokio::time::Instant::now() < deadline, "{name} holds {found} of {count} records");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn committed(&self, plan: &StepPlan) -> BTreeMap<i32, i64> {
        let offsets = self.log.group_offsets(&plan.group).await.unwrap();
        offsets.into_iter().map(|(source, committed)| (source.partition, committed.offset)).collect()
    }
}

/// A record read.
#[derive(Debug, Clone)]
pub struct Read {
    pub source: TopicPartition,
    pub record: pipedoc_transport::log::Record,
}

impl Read {
    pub fn doc(&self) -> PipeDoc {
        PipeDoc::decode(self.record.value.clone().unwrap()).unwrap()
    }

    pub fn key(&self) -> String {
        String::from_utf8(self.record.key.clone().unwrap().to_vec()).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.record.headers.get_str(name)
    }
}

/// Numbers of each key (`part` and `source_uri` of its documents) in the order of
/// their last deliveries: what a reader is left with. When a send fails after
/// later ones of its key were stored, these are stored again after it.
pub fn last_deliveries(read: &[Read]) -> HashMap<String, Vec<i32>> {
    let mut order: HashMap<String, Vec<i32>> = HashMap::new();
    for doc in read.iter().map(Read::doc) {
        let numbers = order.entry(doc.source_uri).or_default();
        numbers.retain(|number| *number != doc.part);
        numbers.push(doc.part);
    }
    order
}

pub fn topic(name: &str) -> Topic {
    Topic::new(name).unwrap()
}

pub fn doc(id: &str, title: &str) -> PipeDoc {
    PipeDoc { id: id.to_owned(), title: title.to_owned(), version: 1, ..PipeDoc::default() }
}

pub fn record(to: &str, doc: &PipeDoc) -> OutgoingRecord {
    OutgoingRecord::new(topic(to), Some(doc.id.clone().into()), Some(doc.encode_to_vec().into()))
}

/// Records of one partition, keys `a`, `b`, …, with these values.
pub fn letters(values: &[&str]) -> Vec<OutgoingRecord> {
    let letters = ('a'..).zip(values).map(|(key, value)| {
        let mut record =
            OutgoingRecord::new(topic("in"), Some(key.to_string().into()), Some((*value).to_owned().into()));
        record.partition = Some(0);
        record
    });
    letters.collect()
}

pub fn tombstone(to: &str, id: &str) -> OutgoingRecord {
    OutgoingRecord { headers: Headers::new(), ..OutgoingRecord::new(topic(to), Some(id.to_owned().into()), None) }
}

/// A step `NAME` that reads `in` and writes to `out`.
pub fn plan(name: &str) -> StepPlan {
    let cluster = ClusterName::new("test").unwrap();
    let id = StepId::new("p".parse().unwrap(), name.parse().unwrap());
    StepPlan {
        group: id.group(&cluster),
        dead_letters: id.dead_letter_topic(&cluster),
        cluster,
        id,
        step_type: StepType::Pipeline,
        module: "actor".parse().unwrap(),
        inputs: vec![input("in")],
        state: None,
        outputs: vec![way("out")],
        allowed_topics: Vec::new(),
        config: serde_json::json!({}),
        control: ControlState::Running,
        delivery: Delivery::AtLeastOnce,
        ordering: Ordering::Key,
        concurrency: 16,
        batch: None,
        retries: Retries { attempts: 3, initial: Duration::from_millis(20), jitter: 0.0, ..Retries::default() },
        on_exhausted: OnExhausted::DeadLetter,
        stop_at_failure_rate: None,
        timeout: Duration::from_secs(10),
        revoke_grace: Duration::from_secs(5),
        max_hops: None,
        claim_threshold: 1 << 16,
        hydration: Hydration::Eager,
        hydrate_max: 1 << 20,
        consumer_settings: BTreeMap::new(),
        producer_settings: BTreeMap::new(),
    }
}

pub fn input(name: &str) -> Input {
    serde_json::from_value(serde_json::json!({"source": {"topic": name}})).unwrap()
}

pub fn way(to: &str) -> Way {
    serde_json::from_value(serde_json::json!({
        "name": to, "topic": to, "when": null, "otherwise": false, "weight": null, "key": null
    }))
    .unwrap()
}

pub const DEAD: &str = "test.p.s.dlq";

/// Waits for a condition.
pub async fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(met) = condition() {
            return met;
        }
        assert!(tokio::time::Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A record module that pipes everything to `out`.
pub struct Pipes;

impl RecordModule for Pipes {
    type Config = Nothing;
    const NAME: &'static str = "pipes";

    async fn open(_: Nothing, _: &Step) -> Result<Self> {
        Ok(Self)
    }

    async fn process(&self, batch: &RecordBatch, context: &RecordContext) -> Result<()> {
        if batch.records.iter().any(|record| record.key.as_deref() == Some(b"poison")) {
            return Err(Error::permanent("poison"));
        }
        drop(context.pipe_many(&batch.records, "out"));
        Ok(())
    }
}

/// A connector that gives `count` documents that it has not given before.
pub struct Counter {
    config: Counting,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Counting {
    count: usize,
    /// Fails after so many.
    #[serde(default)]
    fail_after: Option<usize>,
    /// Stays until it is told to stop.
    #[serde(default)]
    watch: bool,
    /// Title of the documents.
    #[serde(default)]
    title: String,
}

impl Connector for Counter {
    type Config = Counting;
    const NAME: &'static str = "counter";

    async fn open(config: Counting, _: &Step) -> Result<Self> {
        Ok(Self { config })
    }

    async fn run(&self, step: &Step, out: &Emitter, state: &State) -> Result<()> {
        let mut sent = 0;
        for n in 0..self.config.count {
            let id = format!("doc-{n:04}");
            if state.get(&id)?.is_some() {
                out.unchanged(&id).await?;
                continue;
            }
            if self.config.fail_after.is_some_and(|most| sent >= most) {
                return Err(Error::retryable("the source went away"));
            }
            let changes = vec![(id.clone(), Some("1".into()))];
            if n % 10 == 7 {
                out.unreadable(&id, 5, Error::permanent("torn").with_kind("unreadable"), changes).await?;
            } else {
                out.send(doc(&id, &self.config.title), changes).await?;
            }
            sent += 1;
        }
        if self.config.watch {
            step.stopping().await;
        }
        Ok(())
    }
}
