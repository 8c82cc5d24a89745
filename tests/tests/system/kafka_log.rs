//! What the log on Kafka promises beyond the conformance suite: things that only
//! a real broker does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pipedoc_model::names::Topic;
use pipedoc_tests::bed::kafka::{self, Kafka};
use pipedoc_transport::error::Error;
use pipedoc_transport::kafka::{KafkaConfig, KafkaLog};
use pipedoc_transport::log::{
    Commit, Consumer, ConsumerConfig, Event, Log, OutgoingRecord, ProducerConfig, Start, Subscription, TopicPartition,
    TopicSettings, TopicSpec, TransactionalConfig,
};

const PATIENCE: Duration = Duration::from_secs(30);

async fn log(kafka: &Kafka) -> KafkaLog {
    KafkaLog::connect(KafkaConfig::new(kafka.bootstrap())).await.unwrap()
}

/// A topic of its own for each test.
async fn topic(log: &KafkaLog, name: &str, partitions: i32, settings: TopicSettings) -> Topic {
    let topic = Topic::new(&format!("{name}-{}", uuid::Uuid::new_v4())).unwrap();
    log.ensure_topic(&TopicSpec { topic: topic.clone(), partitions, replication: None, settings }).await.unwrap();
    topic
}

fn record(topic: &Topic, value: impl Into<Bytes>) -> OutgoingRecord {
    OutgoingRecord { partition: Some(0), ..OutgoingRecord::new(topic.clone(), None, Some(value.into())) }
}

fn member(group: &str, topic: &Topic, start: Start) -> ConsumerConfig {
    let (group, topics) = (group.to_owned(), vec![topic.clone()]);
    ConsumerConfig::new("test", Subscription::Group { group, topics, patterns: Vec::new(), start })
}

fn alone(topic: &Topic, start: Start) -> ConsumerConfig {
    ConsumerConfig::new("test", Subscription::Assigned(vec![(TopicPartition::new(topic.clone(), 0), start)]))
}

async fn next(consumer: &Arc<dyn Consumer>) -> Event {
    tokio::time::timeout(PATIENCE, consumer.next()).await.expect("an event in time").unwrap()
}

/// Values up to the end of partition 0, and the position there.
async fn read_to_end(consumer: &Arc<dyn Consumer>) -> (Vec<Bytes>, i64) {
    let mut values = Vec::new();
    loop {
        match next(consumer).await {
            Event::Records(batch) => values.extend(batch.records.into_iter().filter_map(|record| record.value)),
            Event::EndOfPartition { position, .. } => return (values, position),
            Event::Assigned(_) => {}
            other => panic!("unexpected: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_position_at_the_end_counts_control_records() {
    let Some(kafka) = kafka::shared("the_position_at_the_end_counts_control_records") else { return };
    let log = log(kafka).await;
    let topic = topic(&log, "control", 1, TopicSettings::default()).await;
    let mut transactional = log.transactional(TransactionalConfig::new(format!("{topic}"))).await.unwrap();
    for commit in [true, false, true, false] {
        transactional.begin().await.unwrap();
        transactional.send(vec![record(&topic, if commit { "kept" } else { "dropped" })]).await.unwrap();
        if commit {
            transactional.commit().await.unwrap();
        } else {
            transactional.abort().await.unwrap();
        }
    }
    let ends = log.ends(&topic).await.unwrap();
    let consumer = log.consumer(alone(&topic, Start::Earliest)).await.unwrap();
    let (values, position) = read_to_end(&consumer).await;
    assert_eq!(values, ["kept", "kept"]);
    assert_eq!(position, ends[0].end, "the end behind the last control record");
    assert!(position >= 4, "two records and their control records: {position}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_retention_has_overtaken_is_told() {
    let Some(kafka) = kafka::shared("a_place_that_retention_has_overtaken_is_told") else { return };
    let log = log(kafka).await;
    let topic = topic(&log, "gone", 1, TopicSettings::default()).await;
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    let records = (0..10).map(|n| record(&topic, n.to_string())).collect();
    for report in producer.send(records).await.unwrap().await {
        report.unwrap();
    }
    let partition = TopicPartition::new(topic.clone(), 0);
    let consumer = log.consumer(alone(&topic, Start::At(1000))).await.unwrap();
    loop {
        match next(&consumer).await {
            Event::Assigned(_) => {}
            Event::OffsetsGone { source, wanted, resumed_at } => {
                assert_eq!((source, wanted, resumed_at), (partition.clone(), 1000, 0));
                break;
            }
            other => panic!("unexpected: {other:?}"),
        }
    }
    let (values, position) = read_to_end(&consumer).await;
    assert_eq!((values.len(), position), (10, 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn ends_come_again_after_a_seek_and_after_new_records() {
    let Some(kafka) = kafka::shared("ends_come_again_after_a_seek_and_after_new_records") else { return };
    let log = log(kafka).await;
    let topic = topic(&log, "ends", 1, TopicSettings::default()).await;
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    let consumer = log.consumer(alone(&topic, Start::Earliest)).await.unwrap();
    assert_eq!(read_to_end(&consumer).await, (vec![], 0));
    producer.send(vec![record(&topic, "a"), record(&topic, "b")]).await.unwrap().await;
    let mut values = Vec::new();
    while values.len() < 2 {
        values.extend(read_to_end(&consumer).await.0);
    }
    consumer.seek(&TopicPartition::new(topic.clone(), 0), Start::At(1)).await.unwrap();
    let (again, position) = read_to_end(&consumer).await;
    assert_eq!((again, position), (vec![Bytes::from("b")], 2));
    consumer.seek(&TopicPartition::new(topic.clone(), 0), Start::Latest).await.unwrap();
    assert_eq!(read_to_end(&consumer).await, (vec![], 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_changed_without_resetting_the_others() {
    let Some(kafka) = kafka::shared("settings_are_changed_without_resetting_the_others") else { return };
    let log = log(kafka).await;
    let first = TopicSettings { retention_ms: Some(7_200_000), compact: Some(true), ..TopicSettings::default() };
    let topic = topic(&log, "settings", 2, first).await;
    let second = TopicSettings { max_message_bytes: Some(2_000_000), ..TopicSettings::default() };
    let spec = TopicSpec { topic: topic.clone(), partitions: 5, replication: Some(1), settings: second };
    let info = log.ensure_topic(&spec).await.unwrap();
    assert_eq!(info.partitions, 5);
    assert_eq!(info.settings.retention_ms, Some(7_200_000));
    assert_eq!(info.settings.compact, Some(true));
    assert_eq!(info.settings.max_message_bytes, Some(2_000_000));
    let shrunk = log.ensure_topic(&TopicSpec { partitions: 3, ..spec }).await.unwrap_err();
    assert!(matches!(shrunk, Error::PartitionsShrink { found: 5, wanted: 3, .. }), "{shrunk}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_is_told_at_once() {
    let Some(kafka) = kafka::shared("a_missing_topic_is_told_at_once") else { return };
    let log = log(kafka).await;
    let missing = Topic::new("there-is-no-such-topic").unwrap();
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    let begun = Instant::now();
    let reports = producer.send(vec![record(&missing, "x")]).await.unwrap().await;
    assert!(matches!(reports[0], Err(Error::UnknownTopic { .. })), "{reports:?}");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_keep_below_the_limit_of_their_topic() {
    let Some(kafka) = kafka::shared("batches_keep_below_the_limit_of_their_topic") else { return };
    let log = log(kafka).await;
    let limit = TopicSettings { max_message_bytes: Some(5_000), ..TopicSettings::default() };
    let topic = topic(&log, "narrow", 1, limit).await;
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    let records = (0..200).map(|_| record(&topic, vec![b'x'; 1_000])).collect();
    for report in producer.send(records).await.unwrap().await {
        report.unwrap();
    }
    let mut transactional = log.transactional(TransactionalConfig::new(format!("{topic}"))).await.unwrap();
    transactional.begin().await.unwrap();
    transactional.send((0..200).map(|_| record(&topic, vec![b'x'; 1_000])).collect()).await.unwrap();
    assert_eq!(transactional.commit().await.unwrap().len(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn kafkas_own_tool_sees_our_group_without_lag() {
    let Some(kafka) = kafka::shared("kafkas_own_tool_sees_our_group_without_lag") else { return };
    let log = log(kafka).await;
    let topic = topic(&log, "lag", 1, TopicSettings::default()).await;
    let mut transactional = log.transactional(TransactionalConfig::new(format!("{topic}"))).await.unwrap();
    transactional.begin().await.unwrap();
    transactional.send(vec![record(&topic, "a")]).await.unwrap();
    transactional.commit().await.unwrap();
    let group = format!("group-{topic}");
    let consumer = log.consumer(member(&group, &topic, Start::Earliest)).await.unwrap();
    let (_, position) = read_to_end(&consumer).await;
    let source = TopicPartition::new(topic.clone(), 0);
    let commit = Commit { source: source.clone(), offset: position, metadata: "beyond: 7".to_owned() };
    consumer.commit(vec![commit]).await.unwrap();
    let offsets = log.group_offsets(&group).await.unwrap();
    assert_eq!(offsets[&source].metadata, "beyond: 7");
    assert_eq!(consumer.known_ends(), BTreeMap::from([(source, position)]));
    let bootstrap = kafka.bootstrap();
    let arguments = ["--bootstrap-server", &bootstrap, "--describe", "--group", &group];
    let shown = kafka.tool("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand", &arguments);
    let line = shown.lines().find(|line| line.contains(topic.as_str())).expect(&shown);
    assert_eq!(line.split_whitespace().nth(5), Some("0"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_broker_is_named() {
    let mut config = KafkaConfig::new("127.0.0.1:1");
    config.timeout = Duration::from_secs(2);
    let error = KafkaLog::connect(config).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    let text = error.to_string();
    assert!(text.contains("127.0.0.1:1") && text.contains("out of reach"), "{text}");
}
