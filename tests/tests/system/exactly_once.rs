//! A chain of two steps of plain modules under `delivery: EXACTLY_ONCE`, run by
//! processes that are killed and frozen: a reader of committed records finds each
//! document once at its end, on every log that processes share.
//!
//! `PIPEDOC_TEST_KILLS` says how often something is done to a process,
//! `PIPEDOC_TEST_SEED` repeats a run's choices (not its timing).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pipedoc_echo::Echo;
use pipedoc_model::names::{ClusterName, Generation, Topic};
use pipedoc_model::plan::{Plan, plan};
use pipedoc_proto::PipeDoc;
use pipedoc_sdk::event::Unobserved;
use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::instance::{Instance, InstanceConfig};
use pipedoc_sdk::prelude::Module as _;
use pipedoc_tests::bed::process::Process;
use pipedoc_tests::bed::{eventually, kafka};
use pipedoc_transport::log::{
    ConsumerConfig, Event, Log, OutgoingRecord, ProducerConfig, Start, Subscription, TopicPartition, TopicSettings,
    TopicSpec,
};
use pipedoc_transport::objects::Objects;
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::worker::{self, Worker};

const URL: &str = "PIPEDOC_TEST_LOG";
const PARTITIONS: i32 = 4;
const DOCUMENTS: usize = 3000;
const KEYS: usize = 50;
/// How many processes work at once.
const INSTANCES: usize = 2;

/// The plan of the chain, whose pipeline is named like the test's folder.
fn chain(folder: &Path) -> Plan {
    let name = folder.file_name().unwrap().to_str().unwrap();
    // Short sessions: a frozen process is given up soon.
    let kafka = "kafka: {consumer: {session.timeout.ms: 6000, heartbeat.interval.ms: 1000}}";
    let text = format!(
        "pipeline: {name}\n\
         defaults: {{partitions: {PARTITIONS}, delivery: EXACTLY_ONCE, {kafka}}}\n\
         steps:\n\
         - {{name: first, type: PIPELINE, module: echo, config: {{delay: 2ms}}, outputs: [{{to: second}}]}}\n\
         - {{name: second, type: PIPELINE, module: echo, output_kafka_topics: [{name}.end]}}\n"
    );
    let factory = Factory::module::<Echo>();
    let known = [(factory.info().module.clone(), factory.info().clone())].into();
    let parsed = pipedoc_model::pipeline::parse(&text, Echo::NAME, &Default::default(), &known, false).unwrap();
    plan(&ClusterName::new("test").unwrap(), &[parsed.config], &Default::default())
}

/// Runs the chain until it is told that all is done.
pub async fn run(worker: &Worker) {
    let log = pipedoc_transport::open::open(&std::env::var(URL).unwrap()).await.unwrap();
    let data = worker.folder.join(format!("data-{}", worker.slot));
    let instance = Instance::start(InstanceConfig {
        log,
        objects: Arc::new(Objects::local(&data.join("objects")).unwrap()),
        // Who is started anew keeps it, and fences what was before.
        id: format!("instance-{}", worker.slot),
        data,
        factories: vec![Factory::module::<Echo>()],
        observer: Arc::new(Unobserved),
        layers: Default::default(),
    });
    instance.apply(Generation(1), chain(&worker.folder).steps);
    while !worker.is_told_to("done") {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    instance.stop(Duration::from_secs(20)).await;
}

fn start(folder: &Path, url: &str, slot: usize, life: u64) -> Process {
    worker::start("chain", folder, slot, life, &[(URL, url)])
}

/// Keys and numbers of all documents at the end, in order of their partitions.
async fn read(log: &dyn Log, topic: &Topic) -> Vec<(String, i32)> {
    let all = (0..PARTITIONS).map(|n| (TopicPartition::new(topic.clone(), n), Start::Earliest)).collect();
    let consumer = log.consumer(ConsumerConfig::new("checker", Subscription::Assigned(all))).await.unwrap();
    let (mut found, mut ended) = (Vec::new(), std::collections::BTreeSet::new());
    while ended.len() < PARTITIONS as usize {
        match tokio::time::timeout(Duration::from_secs(60), consumer.next()).await.expect("an end in time").unwrap() {
            Event::Records(batch) => found.extend(batch.records.into_iter().map(|record| {
                let doc = PipeDoc::decode(record.value.unwrap()).unwrap();
                (doc.id, doc.part)
            })),
            Event::EndOfPartition { source, .. } => drop(ended.insert(source)),
            _ => {}
        }
    }
    found
}

async fn each_document_arrives_once(folder: &Path, url: &str) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let strikes = number("PIPEDOC_TEST_KILLS").unwrap_or(4);
    let seed = number("PIPEDOC_TEST_SEED").unwrap_or_else(rand::random);
    eprintln!("PIPEDOC_TEST_KILLS={strikes} PIPEDOC_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let log = pipedoc_transport::open::open(url).await.unwrap();
    let chain = chain(folder);
    for planned in &chain.topics {
        let settings = TopicSettings { compact: Some(planned.compacted), ..TopicSettings::default() };
        let spec = TopicSpec { topic: planned.topic.clone(), partitions: PARTITIONS, replication: None, settings };
        log.ensure_topic(&spec).await.unwrap();
    }
    let name = folder.file_name().unwrap().to_str().unwrap();
    let [input, end] = [format!("test.{name}.first"), format!("{name}.end")].map(|name| Topic::new(&name).unwrap());
    let settings = TopicSettings::default();
    log.ensure_topic(&TopicSpec { topic: end.clone(), partitions: PARTITIONS, replication: None, settings })
        .await
        .unwrap();

    let mut lives = [1; INSTANCES];
    let mut processes: Vec<Process> = (0..INSTANCES).map(|slot| start(folder, url, slot, 1)).collect();
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    let mut sent = 0;
    let parts = strikes as usize + 1;
    for part in 0..parts {
        let until = if part + 1 == parts { DOCUMENTS } else { DOCUMENTS * (part + 1) / parts };
        let record = |n: usize| {
            let key = format!("key-{}", n % KEYS);
            let doc = PipeDoc { id: key.clone(), part: (n / KEYS) as i32, ..PipeDoc::default() };
            OutgoingRecord::new(input.clone(), Some(key.into()), Some(doc.encode_to_vec().into()))
        };
        let reports = producer.send((sent..until).map(record).collect()).await.unwrap().await;
        assert!(reports.iter().all(Result::is_ok), "{reports:?}");
        sent = until;
        if part + 1 == parts {
            break;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(300..2500))).await;
        let victim = random.random_range(0..INSTANCES);
        if part % 2 == 0 {
            assert!(processes[victim].is_running(), "{}", processes[victim].output());
            processes[victim].kill();
            lives[victim] += 1;
            processes[victim] = start(folder, url, victim, lives[victim]);
        } else {
            // Beyond its session: others take its place, and then it wakes up.
            processes[victim].signal("STOP");
            tokio::time::sleep(Duration::from_secs(10)).await;
            processes[victim].signal("CONT");
        }
    }
    let steps: Vec<_> =
        chain.steps.iter().map(|step| (step.group.clone(), step.id.input_topic(&step.cluster))).collect();
    for (group, topic) in &steps {
        eventually(&format!("group {group} has done all"), Duration::from_secs(180), async || {
            let ends = log.ends(topic).await.ok()?;
            let committed = log.group_offsets_of(group, std::slice::from_ref(topic)).await.ok()?;
            let offset = |n| committed.get(&TopicPartition::new(topic.clone(), n)).map_or(0, |found| found.offset);
            (0..).zip(&ends).all(|(n, ends)| offset(n) >= ends.end).then_some(())
        })
        .await;
    }
    std::fs::write(folder.join("done"), "").unwrap();
    for process in &mut processes {
        assert!(process.wait(Duration::from_secs(90)).success(), "{}", process.output());
    }
    let found = read(&*log, &end).await;
    let mut last: BTreeMap<&str, i32> = BTreeMap::new();
    let (mut twice, mut disorder) = (0, 0);
    let mut seen = std::collections::BTreeSet::new();
    for (key, number) in &found {
        twice += usize::from(!seen.insert((key, number)));
        disorder += usize::from(last.insert(key, *number).is_some_and(|before| before > *number));
    }
    let lost = DOCUMENTS - seen.len();
    eprintln!("{strikes} strikes, {DOCUMENTS} documents: {lost} lost, {twice} twice, {disorder} out of order");
    assert_eq!((lost, twice, disorder), (0, 0, 0));
}

/// A folder whose name is one for a pipeline.
fn folder() -> tempfile::TempDir {
    let name = format!("once{}", &uuid::Uuid::new_v4().simple().to_string()[..10]);
    tempfile::Builder::new().prefix(&name).rand_bytes(0).tempdir().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_sqlite_a_chain_of_modules_that_are_killed_and_frozen_gives_each_document_once() {
    let folder = folder();
    let url = format!("sqlite:{}", worker::log_file(folder.path()).display());
    each_document_arrives_once(folder.path(), &url).await;
    worker::assert_intact(folder.path());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_kafka_a_chain_of_modules_that_are_killed_and_frozen_gives_each_document_once() {
    let name = "on_kafka_a_chain_of_modules_that_are_killed_and_frozen_gives_each_document_once";
    let Some(kafka) = kafka::shared(name) else { return };
    let folder = folder();
    each_document_arrives_once(folder.path(), &format!("kafka:{}", kafka.bootstrap())).await;
}
