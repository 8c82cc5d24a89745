//! The pipelines that are tormented, one for each guarantee, of three steps: one is
//! slow, one fails at random, one is plain and pipes records. A process runs one step
//! of each pipeline.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pipedoc_model::names::{ClusterName, Generation, Topic};
use pipedoc_model::plan::{Plan, plan};
use pipedoc_model::step::{Delivery, StepPlan};
use pipedoc_sdk::event::{Event, Observer};
use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::instance::{Instance, InstanceConfig};
use pipedoc_sdk::prelude::*;
use pipedoc_transport::log::{Log, TopicSettings, TopicSpec};
use pipedoc_transport::objects::Objects;

use crate::system::worker::Worker;

/// Where the log is, for the processes.
pub const URL: &str = "PIPEDOC_TEST_LOG";
pub const PARTITIONS: i32 = 4;
/// The steps' names, in order.
pub const STEPS: [&str; 3] = ["slow", "flaky", "plain"];
/// How many processes of a step there may be at once.
pub const PLACES: usize = 3;

/// Says which guarantee alone is to be tried.
const GUARANTEE: &str = "PIPEDOC_TEST_GUARANTEE";

/// A guarantee that is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promise {
    pub delivery: Delivery,
    /// As pipeline files name it.
    pub text: &'static str,
    /// The pipeline's name.
    pipeline: &'static str,
}

const PROMISES: [Promise; 2] = [
    Promise { delivery: Delivery::AtLeastOnce, text: "AT_LEAST_ONCE", pipeline: "least" },
    Promise { delivery: Delivery::ExactlyOnce, text: "EXACTLY_ONCE", pipeline: "once" },
];

/// The guarantees that are to be tried.
pub fn promises() -> Vec<Promise> {
    let only = std::env::var(GUARANTEE).unwrap_or_default();
    let wanted: Vec<_> = PROMISES.into_iter().filter(|promise| only.is_empty() || promise.text == only).collect();
    let known = PROMISES.map(|promise| promise.text);
    assert!(!wanted.is_empty(), "{GUARANTEE}={only:?}: found none of {known:?}");
    wanted
}

/// The plan of a pipeline for each guarantee, in the cluster that is named like the
/// test's folder.
pub fn planned(folder: &Path) -> Plan {
    let cluster = cluster(folder);
    let known = factories().iter().map(|one| (one.info().module.clone(), one.info().clone())).collect();
    let pipelines = promises().into_iter().map(|promise| {
        let text = text(&cluster, promise);
        pipedoc_model::pipeline::parse(&text, promise.pipeline, &Default::default(), &known, false).unwrap().config
    });
    plan(&cluster, &pipelines.collect::<Vec<_>>(), &Default::default())
}

fn factories() -> Vec<Factory> {
    vec![Factory::module::<Trial>(), Factory::records::<Relay>()]
}

fn cluster(folder: &Path) -> ClusterName {
    ClusterName::new(folder.file_name().unwrap().to_str().unwrap()).unwrap()
}

fn text(cluster: &ClusterName, promise: Promise) -> String {
    let Promise { text: delivery, pipeline: name, .. } = promise;
    // Short sessions: a frozen process is given up soon. Many attempts: what fails at
    // random is never given up on.
    format!(
        "pipeline: {name}
defaults:
  partitions: {PARTITIONS}
  delivery: {delivery}
  retries: {{attempts: 12, initial: 10ms, max: 50ms}}
  kafka: {{consumer: {{session.timeout.ms: 6000, heartbeat.interval.ms: 1000}}}}
steps:
- {{name: slow, type: PIPELINE, module: trial, concurrency: 16, config: {{delay: 8}}, outputs: [{{to: flaky}}]}}
- name: flaky
  type: PIPELINE
  module: trial
  concurrency: 8
  config: {{retryable: 0.1, permanent: 0.005, panics: 0.001}}
  outputs: [{{to: plain}}]
- name: plain
  type: PIPELINE
  module: relay
  config: {{to: {cluster}-{name}-end}}
  output_kafka_topics: [{cluster}-{name}-end]
"
    )
}

/// The topics and groups of one pipeline.
pub struct Chain {
    pub promise: Promise,
    pub input: Topic,
    pub end: Topic,
    pub dead_letters: Vec<Topic>,
    /// Each group, with the topic that it reads.
    pub groups: Vec<(String, Topic)>,
}

impl Chain {
    pub fn of(plan: &Plan, promise: Promise) -> Self {
        let is_its = |step: &&StepPlan| step.id.pipeline.as_str() == promise.pipeline;
        let steps: Vec<&StepPlan> = plan.steps.iter().filter(is_its).collect();
        let groups: Vec<_> =
            steps.iter().map(|step| (step.group.clone(), step.id.input_topic(&step.cluster))).collect();
        Self {
            promise,
            input: groups[0].1.clone(),
            end: steps[STEPS.len() - 1].outputs[0].topic.clone(),
            dead_letters: steps.iter().map(|step| step.dead_letters.clone()).collect(),
            groups,
        }
    }

    /// Whether nothing may be there twice.
    pub fn is_exactly_once(&self) -> bool {
        self.promise.delivery == Delivery::ExactlyOnce
    }

    /// Where records end: the final topic and the dead letters.
    pub fn outlets(&self) -> Vec<Topic> {
        std::iter::once(&self.end).chain(&self.dead_letters).cloned().collect()
    }

    /// How many records of the generator and of the steps are not done with; none while
    /// the log cannot tell.
    pub async fn behind(&self, log: &dyn Log) -> Option<i64> {
        let mut behind = 0;
        for (group, topic) in &self.groups {
            let ends = log.ends(topic).await.ok()?;
            let committed = log.group_offsets_of(group, std::slice::from_ref(topic)).await.ok()?;
            let done: i64 = committed.values().map(|committed| committed.offset).sum();
            behind += ends.iter().map(|ends| ends.end).sum::<i64>() - done;
        }
        Some(behind)
    }
}

/// Makes all topics of a plan, and those where its records end.
pub async fn make_topics(log: &dyn Log, plan: &Plan, chains: &[Chain]) {
    let planned = plan.topics.iter().map(|planned| (planned.topic.clone(), planned.compacted));
    let ends = chains.iter().map(|chain| (chain.end.clone(), false));
    for (topic, compacted) in planned.chain(ends) {
        let settings = TopicSettings { compact: Some(compacted), ..TopicSettings::default() };
        log.ensure_topic(&TopicSpec { topic, partitions: PARTITIONS, replication: None, settings }).await.unwrap();
    }
}

/// The name of the file that tells all processes to print how their steps do.
pub const REPORT: &str = "report";

/// The name of the file that tells a process to leave.
pub fn leave(slot: usize, life: u64) -> String {
    format!("leave-{slot}-{life}")
}

/// Runs a step of all pipelines until told to leave, or that all is done.
pub async fn work(worker: &Worker) {
    let url = std::env::var(URL).unwrap();
    let log = loop {
        match pipedoc_transport::open::open(&url).await {
            Ok(log) => break log,
            // The broker may be away.
            Err(error) => eprintln!("the log cannot be opened yet: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let data = worker.folder.join(format!("data-{}", worker.slot));
    let instance = Instance::start(InstanceConfig {
        log,
        objects: Arc::new(Objects::local(&data.join("objects")).unwrap()),
        // Who is started anew keeps it, and fences what was before.
        id: format!("instance-{}", worker.slot),
        data,
        factories: factories(),
        observer: Arc::new(Chronicle),
        layers: Default::default(),
    });
    let mut steps = planned(&worker.folder).steps;
    steps.retain(|step| step.id.step.as_str() == STEPS[worker.slot / PLACES]);
    instance.apply(Generation(1), steps);
    let leave = leave(worker.slot, worker.life);
    let mut has_reported = false;
    while !worker.is_told_to("done") && !worker.is_told_to(&leave) {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if !has_reported && worker.is_told_to(REPORT) {
            has_reported = true;
            eprintln!("{:#?}", instance.status());
        }
    }
    instance.stop(Duration::from_secs(20)).await;
}

/// Prints what happens to the step, not to its documents.
struct Chronicle;

impl Observer for Chronicle {
    fn event(&self, step: &pipedoc_model::names::StepId, event: &Event) {
        let is_of_a_document = matches!(
            event,
            Event::Done { .. } | Event::Retrying { .. } | Event::DeadLetter { .. } | Event::Skipped { .. }
        );
        if !is_of_a_document {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            eprintln!("{}.{:03} {step} {event:?}", now.as_secs(), now.subsec_millis());
        }
    }

    fn heeds_documents(&self) -> bool {
        false
    }
}

/// How a step treats documents.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Manners {
    /// Milliseconds that a document takes, on average.
    #[serde(default)]
    delay: u64,
    /// Share of the attempts that fail and may be repeated.
    #[serde(default)]
    retryable: f64,
    /// Share of the documents that always fail for good.
    #[serde(default)]
    permanent: f64,
    /// Share of the documents that always make it panic.
    #[serde(default)]
    panics: f64,
}

/// A number from 0 to 1, at random and always the same for a document: what is given up
/// on is given up on again when it is delivered again, so that it never passes behind
/// those of its key that came after it.
fn fate(doc: &PipeDoc) -> f64 {
    let mut hasher = DefaultHasher::new();
    (&doc.id, &doc.title).hash(&mut hasher);
    (hasher.finish() >> 11) as f64 / (1_u64 << 53) as f64
}

/// Passes documents on, slowly or not, and fails at random.
struct Trial(Manners);

impl Module for Trial {
    type Config = Manners;
    const NAME: &'static str = "trial";

    async fn open(manners: Manners, _step: &Step) -> Result<Self> {
        Ok(Self(manners))
    }

    async fn process(&self, doc: PipeDoc, _step: &Step) -> Result<Output> {
        let Manners { delay, retryable, permanent, panics } = self.0;
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(rand::random_range(0..=2 * delay))).await;
        }
        let fate = fate(&doc);
        if fate < panics {
            panic!("made to panic");
        }
        if fate < panics + permanent {
            return Err(Error::permanent("made to fail for good"));
        }
        if rand::random::<f64>() < retryable {
            return Err(Error::retryable("made to fail"));
        }
        Ok(doc.into())
    }
}

/// Where a step pipes its records.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Target {
    /// Name of the output.
    to: String,
}

/// Pipes records on as they are.
struct Relay(Target);

impl RecordModule for Relay {
    type Config = Target;
    const NAME: &'static str = "relay";

    async fn open(target: Target, _step: &Step) -> Result<Self> {
        Ok(Self(target))
    }

    async fn process(&self, batch: &RecordBatch, context: &RecordContext) -> Result<()> {
        drop(context.pipe_many(&batch.records, &self.0.to));
        Ok(())
    }
}
