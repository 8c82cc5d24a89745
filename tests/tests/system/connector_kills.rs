//! A connector under `delivery: EXACTLY_ONCE` whose processes are killed, and frozen until
//! others have taken their place: its documents and its state are there once, and say the
//! same, on every log that processes share.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pipedoc_model::names::{ClusterName, Generation, Topic};
use pipedoc_model::plan::{Plan, plan};
use pipedoc_sdk::event::Unobserved;
use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::instance::{Instance, InstanceConfig, StepState};
use pipedoc_sdk::prelude::*;
use pipedoc_tests::bed::{kafka, sqlite, wait_for};
use pipedoc_transport::log::{
    self, Consumer, ConsumerConfig, Event, Log, Start, Subscription, TopicPartition, TopicSettings, TopicSpec,
};
use pipedoc_transport::objects::Objects;

use super::worker::{self, Worker};

const URL: &str = "PIPEDOC_TEST_LOG";
const DOCUMENTS: usize = 400;
const PATIENCE: Duration = Duration::from_secs(120);

/// Gives the same documents each time it is run, but for those that it has given.
struct Steady;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Nothing {}

impl Connector for Steady {
    type Config = Nothing;
    const NAME: &'static str = "steady";

    async fn open(_: Nothing, _: &Step) -> Result<Self> {
        Ok(Self)
    }

    async fn run(&self, step: &Step, out: &Emitter, state: &State) -> Result<()> {
        for n in 0..DOCUMENTS {
            let id = format!("doc-{n:04}");
            if state.get(&id)?.is_some() {
                continue;
            }
            let doc = PipeDoc { id: id.clone(), version: 1, ..PipeDoc::default() };
            drop(out.send(doc, vec![(id, Some("given".into()))]).await?);
            tokio::time::sleep(Duration::from_millis(10)).await;
            if step.is_stopping() {
                break;
            }
        }
        Ok(())
    }
}

/// The plan, in the cluster that is named like the test's folder.
fn planned(folder: &Path) -> Plan {
    let cluster = ClusterName::new(folder.file_name().unwrap().to_str().unwrap()).unwrap();
    // Short sessions and transactions: a frozen process is given up soon, and what it had
    // open in the middle of its freeze.
    let text = format!(
        "pipeline: once
defaults:
  partitions: 1
  delivery: EXACTLY_ONCE
  kafka:
    consumer: {{session.timeout.ms: 6000, heartbeat.interval.ms: 1000}}
    producer: {{transaction.timeout.ms: 6000}}
steps:
- {{name: source, type: CONNECTOR, module: steady, output_kafka_topics: [{cluster}-end]}}
"
    );
    let factory = Factory::connector::<Steady>();
    let known = BTreeMap::from([(factory.info().module.clone(), factory.info().clone())]);
    let parsed = pipedoc_model::pipeline::parse(&text, "p.yaml", &BTreeMap::new(), &known, true);
    plan(&cluster, &[parsed.unwrap_or_else(|problems| panic!("{problems}")).config], &Default::default())
}

/// Runs the connector until told that all is done; tells when it has given all.
pub async fn work(worker: &Worker) {
    let log = pipedoc_transport::open::open(&std::env::var(URL).unwrap()).await.unwrap();
    let data = worker.folder.join(format!("data-{}", worker.slot));
    let instance = Instance::start(InstanceConfig {
        log,
        objects: Arc::new(Objects::local(&data.join("objects")).unwrap()),
        id: format!("instance-{}", worker.slot),
        data,
        factories: vec![Factory::connector::<Steady>()],
        observer: Arc::new(Unobserved),
        layers: Default::default(),
    });
    instance.apply(Generation(1), planned(&worker.folder).steps);
    let mut has_told = false;
    while !worker.is_told_to("done") {
        tokio::time::sleep(Duration::from_millis(20)).await;
        if !has_told && instance.status().iter().any(|status| status.state == StepState::Completed) {
            worker.tell(&["completed".to_owned()]);
            has_told = true;
        }
    }
    instance.stop(Duration::from_secs(20)).await;
}

/// Partition 0 of a topic, read on from its beginning.
struct Pile {
    consumer: Arc<dyn Consumer>,
    keys: Vec<String>,
}

impl Pile {
    async fn of(log: &dyn Log, topic: &Topic) -> Self {
        let all = Subscription::Assigned(vec![(TopicPartition::new(topic.clone(), 0), Start::Earliest)]);
        Self { consumer: log.consumer(ConsumerConfig::new("checker", all)).await.unwrap(), keys: Vec::new() }
    }

    /// Reads on; whether the end was reached.
    async fn read(&mut self) -> bool {
        match tokio::time::timeout(PATIENCE, self.consumer.next()).await.expect("records in time") {
            Ok(Event::Records(batch)) => {
                let key = |record: &log::Record| String::from_utf8(record.key.clone().unwrap().to_vec()).unwrap();
                self.keys.extend(batch.records.iter().map(key));
                false
            }
            Ok(event) => matches!(event, Event::EndOfPartition { .. }),
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                false
            }
        }
    }

    async fn holds(&mut self, count: usize) {
        while self.keys.len() < count {
            self.read().await;
        }
    }

    /// Reads all that lies there now: each document once.
    async fn assert_whole(mut self) {
        while !self.read().await {}
        let distinct: BTreeSet<&String> = self.keys.iter().collect();
        assert_eq!((self.keys.len(), distinct.len()), (DOCUMENTS, DOCUMENTS));
        self.consumer.close().await.unwrap();
    }
}

async fn each_document_is_given_once(folder: &Path, url: &str) {
    let log = pipedoc_transport::open::open(url).await.unwrap();
    let plan = planned(folder);
    let step = &plan.steps[0];
    let (end, state) = (step.outputs[0].topic.clone(), step.state.clone().unwrap());
    for (topic, compact) in [(&end, false), (&step.dead_letters, false), (&state, true)] {
        let settings = TopicSettings { compact: Some(compact), ..TopicSettings::default() };
        log.ensure_topic(&TopicSpec { topic: topic.clone(), partitions: 1, replication: None, settings })
            .await
            .unwrap();
    }
    let start = |slot| worker::start("connector", folder, slot, 0, &[(URL, url)]);
    let mut out = Pile::of(&*log, &end).await;
    let mut killed = start(0);
    out.holds(30).await;
    killed.kill();
    let mut frozen = start(1);
    out.holds(120).await;
    sqlite::stop_between_writes(&frozen, &worker::log_file(folder));
    let mut last = start(2);
    out.holds(250).await;
    frozen.signal("CONT");
    wait_for("all documents to be given", PATIENCE, || {
        let told = |slot| worker::told(folder, "connector", slot).contains(&"completed".to_owned());
        (told(1) || told(2)).then_some(())
    });
    std::fs::write(folder.join("done"), "").unwrap();
    for process in [&mut frozen, &mut last] {
        assert!(process.wait(PATIENCE).success(), "{}", process.output());
    }
    for topic in [&end, &state] {
        Pile::of(&*log, topic).await.assert_whole().await;
    }
}

fn folder() -> tempfile::TempDir {
    let letters = uuid::Uuid::new_v4().simple().to_string();
    tempfile::Builder::new().prefix(&format!("once-{}", &letters[..10])).rand_bytes(0).tempdir().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_sqlite_a_connector_gives_each_document_once_whatever_ends_its_processes() {
    let folder = folder();
    let url = format!("sqlite:{}", worker::log_file(folder.path()).display());
    each_document_is_given_once(folder.path(), &url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_kafka_a_connector_gives_each_document_once_whatever_ends_its_processes() {
    let test = "on_kafka_a_connector_gives_each_document_once_whatever_ends_its_processes";
    let Some(kafka) = kafka::shared(test) else { return };
    let folder = folder();
    each_document_is_given_once(folder.path(), &format!("kafka:{}", kafka.bootstrap())).await;
}
