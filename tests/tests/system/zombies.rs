//! A process that is frozen in the middle of its work and wakes up after others
//! have taken its place: neither its transaction nor its plain commit changes
//! anything, on every log that processes share.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pipedoc_model::names::Topic;
use pipedoc_tests::bed::{kafka, sqlite, wait_for};
use pipedoc_transport::error::{Error, Result};
use pipedoc_transport::log::{
    Commit, Consumer, ConsumerConfig, Event, Log, OutgoingRecord, ProducerConfig, Record, Start, Subscription,
    TopicPartition, TopicSettings, TopicSpec, TransactionalConfig,
};

use super::worker::{self, Worker};

const URL: &str = "PIPEDOC_TEST_LOG";
const RECORDS: usize = 5;
/// So long that no transaction ends by it while a process is frozen.
const TRANSACTION: Duration = Duration::from_secs(60);

fn input(name: &str) -> Topic {
    Topic::new(&format!("{name}.in")).unwrap()
}

fn output(name: &str) -> Topic {
    Topic::new(&format!("{name}.out")).unwrap()
}

fn record(topic: Topic, value: &str) -> OutgoingRecord {
    OutgoingRecord { partition: Some(0), ..OutgoingRecord::new(topic, None, Some(value.to_owned().into())) }
}

fn commit(name: &str, offset: i64, metadata: &str) -> Commit {
    Commit { source: TopicPartition::new(input(name), 0), offset, metadata: metadata.to_owned() }
}

/// A member of the group that has read all records.
async fn reader(log: &dyn Log, name: &str) -> Arc<dyn Consumer> {
    let subscription = Subscription::Group {
        group: name.to_owned(),
        topics: vec![input(name)],
        patterns: Vec::new(),
        start: Start::Earliest,
    };
    let config = ConsumerConfig {
        session_timeout: Some(Duration::from_secs(6)),
        ..ConsumerConfig::new("zombies", subscription)
    };
    let consumer = log.consumer(config).await.unwrap();
    let mut read = 0;
    while read < RECORDS {
        let next = tokio::time::timeout(Duration::from_secs(90), consumer.next()).await.expect("records in time");
        if let Event::Records(batch) = next.unwrap() {
            read += batch.records.len();
        }
    }
    consumer
}

/// Reads, begins a transaction, and says so; is frozen then. Awake, it goes on.
pub async fn be_frozen(worker: &Worker) {
    let url = std::env::var(URL).unwrap();
    let log = pipedoc_transport::open::open(&url).await.unwrap();
    let name = worker.folder.file_name().unwrap().to_str().unwrap();
    let consumer = reader(&*log, name).await;
    let config = TransactionalConfig { timeout: TRANSACTION, ..TransactionalConfig::new(format!("{name}-zombie")) };
    let mut transactional = log.transactional(config).await.unwrap();
    transactional.begin().await.unwrap();
    transactional.send(vec![record(output(name), "zombie")]).await.unwrap();
    let member = consumer.group_metadata().unwrap();
    worker.tell(&["working".to_owned()]);
    // Its own threads go on until it is frozen, but it does not ask for records.
    while !worker.is_told_to("wake") {
        std::thread::sleep(Duration::from_millis(10));
    }
    let done = match transactional.send_offsets(vec![commit(name, 2, "zombie")], &member).await {
        Ok(()) => transactional.commit().await.map(drop),
        refused => refused,
    };
    let is_fenced = |result: Result<()>| matches!(result, Err(Error::Fenced { .. }));
    worker.tell(&[format!("transaction fenced: {} {done:?}", is_fenced(done.clone()))]);
    let done = consumer.commit(vec![commit(name, 1, "zombie")]).await;
    worker.tell(&[format!("commit fenced: {} {done:?}", is_fenced(done.clone()))]);
    let _ = transactional.abort().await;
    let _ = consumer.close().await;
}

async fn a_frozen_process_is_fenced(folder: &Path, url: &str) {
    let name = folder.file_name().unwrap().to_str().unwrap();
    let log = pipedoc_transport::open::open(url).await.unwrap();
    for topic in [input(name), output(name)] {
        let settings = TopicSettings::default();
        log.ensure_topic(&TopicSpec { topic, partitions: 1, replication: None, settings }).await.unwrap();
    }
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    let records = (0..RECORDS).map(|n| record(input(name), &n.to_string())).collect();
    assert!(producer.send(records).await.unwrap().await.iter().all(Result::is_ok));

    let mut zombie = worker::start("zombie", folder, 0, 1, &[(URL, url)]);
    let told = |text: &str| worker::told(folder, "zombie", 0).into_iter().find(|line| line.contains(text));
    wait_for("the zombie works", Duration::from_secs(90), || told("working"));
    sqlite::stop_between_writes(&zombie, &worker::log_file(folder));
    let owner = reader(&*log, name).await;
    let mut transactional = log.transactional(TransactionalConfig::new(format!("{name}-owner"))).await.unwrap();
    transactional.begin().await.unwrap();
    transactional.send(vec![record(output(name), "owner")]).await.unwrap();
    let member = owner.group_metadata().unwrap();
    transactional.send_offsets(vec![commit(name, 5, "owner")], &member).await.unwrap();
    transactional.commit().await.expect("the owner's transaction");

    std::fs::write(folder.join("wake"), "").unwrap();
    zombie.signal("CONT");
    let transaction = wait_for("the zombie commits", Duration::from_secs(60), || told("transaction"));
    assert!(transaction.contains("fenced: true"), "{transaction}");
    let plain = wait_for("the zombie commits again", Duration::from_secs(60), || told("commit fenced"));
    assert!(plain.contains("fenced: true"), "{plain}");
    assert!(zombie.wait(Duration::from_secs(60)).success(), "{}", zombie.output());

    let committed = log.group_offsets(name).await.unwrap();
    let committed = &committed[&TopicPartition::new(input(name), 0)];
    assert_eq!((committed.offset, committed.metadata.as_str()), (5, "owner"));
    let values: Vec<_> = read(&*log, &output(name)).await.into_iter().map(|record| record.value.unwrap()).collect();
    assert_eq!(values, ["owner"]);
    owner.close().await.unwrap();
}

/// All records of partition 0, up to its end.
async fn read(log: &dyn Log, topic: &Topic) -> Vec<Record> {
    let all = Subscription::Assigned(vec![(TopicPartition::new(topic.clone(), 0), Start::Earliest)]);
    let consumer = log.consumer(ConsumerConfig::new("checker", all)).await.unwrap();
    let mut records = Vec::new();
    loop {
        match tokio::time::timeout(Duration::from_secs(90), consumer.next()).await.expect("an end in time").unwrap() {
            Event::Records(batch) => records.extend(batch.records),
            Event::EndOfPartition { .. } => return records,
            _ => {}
        }
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("zombies-").rand_bytes(12).tempdir().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_sqlite_a_frozen_process_that_wakes_up_changes_nothing() {
    let folder = folder();
    let url = format!("sqlite:{}", worker::log_file(folder.path()).display());
    a_frozen_process_is_fenced(folder.path(), &url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_kafka_a_frozen_process_that_wakes_up_changes_nothing() {
    let Some(kafka) = kafka::shared("on_kafka_a_frozen_process_that_wakes_up_changes_nothing") else { return };
    let folder = folder();
    a_frozen_process_is_fenced(folder.path(), &format!("kafka:{}", kafka.bootstrap())).await;
}
