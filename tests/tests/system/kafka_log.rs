//! What the log on Kafka promises beyond the conformance suite: things that only
//! a real broker does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pipedoc_engine::store::Candidate;
use pipedoc_engine::store::folder::FolderStore;
use pipedoc_engine::{Engine, EngineConfig};
use pipedoc_model::names::{ClusterName, Topic};
use pipedoc_tests::bed::kafka::{self, Kafka};
use pipedoc_tests::bed::{eventually, missing};
use pipedoc_transport::error::Error;
use pipedoc_transport::kafka::{KafkaConfig, KafkaLog};
use pipedoc_transport::log::{
    Commit, Consumer, ConsumerConfig, Event, Log, OutgoingRecord, ProducerConfig, Start, Subscription, TopicPartition,
    TopicSettings, TopicSpec, TransactionalConfig,
};
use pipedoc_transport::objects::Objects;

const PATIENCE: Duration = Duration::from_secs(90);

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

/// The next values; ends of partitions may be told again before they come.
async fn values_that_come(consumer: &Arc<dyn Consumer>) -> Vec<Bytes> {
    loop {
        let (values, _) = read_to_end(consumer).await;
        if !values.is_empty() {
            return values;
        }
    }
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
    // The last control record is written a moment after the abort was answered.
    let whole = async || (log.ends(&topic).await.unwrap()[0].end == 8).then_some(());
    eventually("four records and as many control records", PATIENCE, whole).await;
    let consumer = log.consumer(alone(&topic, Start::Earliest)).await.unwrap();
    let (values, position) = read_to_end(&consumer).await;
    assert_eq!(values, ["kept", "kept"]);
    assert_eq!(position, 8, "the end behind the last control record");
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
async fn several_may_make_the_same_topics_at_once() {
    let Some(kafka) = kafka::shared("several_may_make_the_same_topics_at_once") else { return };
    let mut logs = Vec::new();
    for _ in 0..4 {
        logs.push(log(kafka).await);
    }
    for _ in 0..20 {
        let topic = Topic::new(&format!("same-{}", uuid::Uuid::new_v4())).unwrap();
        let spec = TopicSpec { topic, partitions: 3, replication: None, settings: TopicSettings::default() };
        let mut making = tokio::task::JoinSet::new();
        for log in &logs {
            let (log, spec) = (log.clone(), spec.clone());
            making.spawn(async move { log.ensure_topic(&spec).await });
        }
        while let Some(made) = making.join_next().await {
            assert_eq!(made.unwrap().unwrap().partitions, 3);
        }
    }
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
    // librdkafka alone would wait for 300 s (`message.timeout.ms`).
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
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
    // It is answered before the mark of its end is written.
    eventually("the mark is there", PATIENCE, async || (log.ends(&topic).await.unwrap()[0].end == 2).then_some(()))
        .await;
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
    let arguments = ["--bootstrap-server", &bootstrap, "--describe", "--group", &group, "--timeout", "60000"];
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

/// Reads until partitions were assigned; gives them, sorted.
async fn assigned(consumer: &Arc<dyn Consumer>) -> Vec<i32> {
    loop {
        if let Event::Assigned(partitions) = next(consumer).await {
            let mut partitions: Vec<_> = partitions.into_iter().map(|partition| partition.source.partition).collect();
            partitions.sort_unstable();
            return partitions;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_partition_waits_for_its_last_commit() {
    let Some(kafka) = kafka::shared("a_revoked_partition_waits_for_its_last_commit") else { return };
    let log = log(kafka).await;
    let topic = topic(&log, "revoked", 2, TopicSettings::default()).await;
    let group = format!("group-{topic}");
    let first = log.consumer(member(&group, &topic, Start::Earliest)).await.unwrap();
    assert_eq!(assigned(&first).await, [0, 1]);
    let second = log.consumer(member(&group, &topic, Start::Earliest)).await.unwrap();
    let reading = second.clone();
    let taken_over = tokio::spawn(async move { assigned(&reading).await });
    let revocation = loop {
        if let Event::Revoked(revocation) = next(&first).await {
            break revocation;
        }
    };
    assert_eq!(revocation.partitions.len(), 1);
    let source = revocation.partitions[0].clone();
    let commit = Commit { source: source.clone(), offset: 0, metadata: "last words".to_owned() };
    first.commit(vec![commit.clone()]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!taken_over.is_finished(), "held back");
    revocation.release();
    // The first goes on meanwhile, as its owner would.
    let other = first.clone();
    let going_on = tokio::spawn(async move { while other.next().await.is_ok() {} });
    assert_eq!(taken_over.await.unwrap(), [source.partition]);
    let offsets = log.group_offsets(&group).await.unwrap();
    assert_eq!(offsets[&source].metadata, "last words");
    let late = first.commit(vec![commit]).await.unwrap_err();
    assert!(matches!(late, Error::Fenced { .. }), "{late}");
    first.close().await.unwrap();
    second.close().await.unwrap();
    going_on.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_does_not_call_loses_its_partitions_and_may_come_back() {
    let Some(kafka) = kafka::shared("a_member_that_does_not_call_loses_its_partitions_and_may_come_back") else {
        return;
    };
    let log = log(kafka).await;
    let topic = topic(&log, "away", 1, TopicSettings::default()).await;
    let group = format!("group-{topic}");
    let mut config = member(&group, &topic, Start::Earliest);
    config.session_timeout = Some(Duration::from_secs(6));
    config.max_poll_interval = Duration::from_secs(1);
    let lazy = log.consumer(config).await.unwrap();
    assert_eq!(assigned(&lazy).await, [0]);
    let eager = log.consumer(member(&group, &topic, Start::Earliest)).await.unwrap();
    assert_eq!(assigned(&eager).await, [0]);
    let source = TopicPartition::new(topic.clone(), 0);
    let late = lazy.commit(vec![Commit { source, offset: 0, metadata: String::new() }]).await.unwrap_err();
    assert!(matches!(late, Error::Fenced { .. }), "{late}");
    eager.close().await.unwrap();
    loop {
        match next(&lazy).await {
            Event::Lost(partitions) => assert_eq!(partitions.len(), 1),
            Event::Assigned(partitions) => break assert_eq!(partitions.len(), 1),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_in_a_transaction_are_fenced_by_ownership() {
    let Some(kafka) = kafka::shared("offsets_in_a_transaction_are_fenced_by_ownership") else { return };
    let log = log(kafka).await;
    let topic = topic(&log, "fenced", 1, TopicSettings::default()).await;
    let group = format!("group-{topic}");
    let consumer = log.consumer(member(&group, &topic, Start::Earliest)).await.unwrap();
    assert!(consumer.group_metadata().is_none());
    assert_eq!(assigned(&consumer).await, [0]);
    let source = TopicPartition::new(topic.clone(), 0);
    let place = |offset| vec![Commit { source: source.clone(), offset, metadata: "txn".to_owned() }];
    let mut transactional = log.transactional(TransactionalConfig::new(format!("{topic}"))).await.unwrap();
    let current = consumer.group_metadata().unwrap();
    transactional.begin().await.unwrap();
    transactional.send(vec![record(&topic, "a")]).await.unwrap();
    transactional.send_offsets(place(1), &current).await.unwrap();
    transactional.commit().await.unwrap();
    assert_eq!(log.group_offsets(&group).await.unwrap()[&source].offset, 1);
    consumer.close().await.unwrap();
    let successor = log.consumer(member(&group, &topic, Start::Earliest)).await.unwrap();
    assert_eq!(assigned(&successor).await, [0]);
    transactional.begin().await.unwrap();
    transactional.send(vec![record(&topic, "b")]).await.unwrap();
    let refused = transactional.send_offsets(place(2), &current).await.unwrap_err();
    assert!(matches!(refused, Error::Fenced { .. }), "{refused}");
    assert!(transactional.commit().await.is_err(), "only an abort may follow");
    transactional.abort().await.unwrap();
    assert_eq!(log.group_offsets(&group).await.unwrap()[&source].offset, 1);
    // The next one with the same id ends this one.
    let mut next = log.transactional(TransactionalConfig::new(format!("{topic}"))).await.unwrap();
    transactional.begin().await.unwrap();
    transactional.send(vec![record(&topic, "c")]).await.unwrap();
    let fenced = transactional.commit().await.unwrap_err();
    assert!(matches!(fenced, Error::Fenced { .. }), "{fenced}");
    next.begin().await.unwrap();
    next.send(vec![record(&topic, "d")]).await.unwrap();
    next.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_are_set_from_outside_only_without_members() {
    let Some(kafka) = kafka::shared("offsets_are_set_from_outside_only_without_members") else { return };
    let log = log(kafka).await;
    let topic = topic(&log, "outside", 1, TopicSettings::default()).await;
    let group = format!("group-{topic}");
    let source = TopicPartition::new(topic.clone(), 0);
    let commits = [Commit { source: source.clone(), offset: 7, metadata: "rewind".to_owned() }];
    log.set_group_offsets(&group, &commits).await.unwrap();
    assert_eq!(log.group_offsets(&group).await.unwrap()[&source].offset, 7);
    let consumer = log.consumer(member(&group, &topic, Start::Earliest)).await.unwrap();
    assigned(&consumer).await;
    let refused = log.set_group_offsets(&group, &commits).await.unwrap_err();
    assert!(matches!(refused, Error::GroupNotEmpty { members: 1, .. }), "{refused}");
    consumer.close().await.unwrap();
    log.set_group_offsets(&group, &commits).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_made_later_is_picked_up_by_its_pattern() {
    let Some(kafka) = kafka::shared("a_topic_made_later_is_picked_up_by_its_pattern") else { return };
    let log = log(kafka).await;
    let prefix = format!("later-{}", uuid::Uuid::new_v4());
    let pattern = regex::Regex::new(&format!("{prefix}-.")).unwrap();
    let subscription = Subscription::Group {
        group: prefix.clone(),
        topics: Vec::new(),
        patterns: vec![pattern],
        start: Start::Latest,
    };
    let consumer = log.consumer(ConsumerConfig::new("test", subscription)).await.unwrap();
    let make = async |name: String| {
        let topic = Topic::new(&name).unwrap();
        let spec = TopicSpec { topic, partitions: 1, replication: None, settings: TopicSettings::default() };
        log.ensure_topic(&spec).await.unwrap();
        spec.topic
    };
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    make(format!("{prefix}-ab")).await;
    make(format!("{prefix}-a.dlq")).await;
    let a = make(format!("{prefix}-a")).await;
    producer.send(vec![record(&a, "before anybody looked")]).await.unwrap().await;
    let begun = Instant::now();
    let values = values_that_come(&consumer).await;
    assert_eq!(values, ["before anybody looked"], "a partition that came later begins at its start");
    let b = make(format!("{prefix}-b")).await;
    producer.send(vec![record(&b, "b")]).await.unwrap().await;
    assert_eq!(values_that_come(&consumer).await, ["b"]);
    // librdkafka alone would look again after 300 s (`topic.metadata.refresh.interval.ms`).
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    let topics: Vec<_> = consumer.positions().into_keys().map(|source| source.topic).collect();
    assert_eq!(topics, [a, b]);
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_partitions_keep_what_was_read_ahead() {
    let Some(kafka) = kafka::shared("paused_partitions_keep_what_was_read_ahead") else { return };
    let log = log(kafka).await;
    let topic = topic(&log, "paused", 1, TopicSettings::default()).await;
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    for report in producer.send((0..5000).map(|n| record(&topic, n.to_string())).collect()).await.unwrap().await {
        report.unwrap();
    }
    let mut config = alone(&topic, Start::Earliest);
    config.max_records = 100;
    let consumer = log.consumer(config).await.unwrap();
    let source = TopicPartition::new(topic.clone(), 0);
    let mut seen = 0;
    while seen < 100 {
        if let Event::Records(batch) = next(&consumer).await {
            assert!(batch.records.len() <= 100);
            seen += batch.records.len();
        }
    }
    consumer.pause(std::slice::from_ref(&source));
    let quiet = tokio::time::timeout(Duration::from_secs(1), consumer.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    consumer.resume(std::slice::from_ref(&source));
    while seen < 5000 {
        if let Event::Records(batch) = next(&consumer).await {
            assert_eq!(batch.records[0].value.as_deref(), Some(seen.to_string().as_bytes()), "in order, none twice");
            seen += batch.records.len();
        }
    }
    consumer.seek(&source, Start::At(4990)).await.unwrap();
    let (values, position) = read_to_end(&consumer).await;
    assert_eq!((values.len(), position), (10, 5000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_paused_and_resumed_at_any_moment_keeps_its_order() {
    const COUNT: usize = 20_000;
    let Some(kafka) = kafka::shared("a_partition_that_is_paused_and_resumed_at_any_moment_keeps_its_order") else {
        return;
    };
    let log = log(kafka).await;
    let topic = topic(&log, "toggled", 1, TopicSettings::default()).await;
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    for report in producer.send((0..COUNT).map(|n| record(&topic, n.to_string())).collect()).await.unwrap().await {
        report.unwrap();
    }
    let mut config = alone(&topic, Start::Earliest);
    config.max_records = 10;
    let consumer = log.consumer(config).await.unwrap();
    let source = TopicPartition::new(topic.clone(), 0);
    let (toggled, toggling) = (source.clone(), Arc::clone(&consumer));
    let toggle = tokio::spawn(async move {
        loop {
            toggling.pause(std::slice::from_ref(&toggled));
            tokio::time::sleep(Duration::from_millis(2)).await;
            toggling.resume(std::slice::from_ref(&toggled));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let mut seen = 0;
    while seen < COUNT {
        if let Event::Records(batch) = next(&consumer).await {
            assert_eq!(batch.records[0].value.as_deref(), Some(seen.to_string().as_bytes()), "in order, none twice");
            seen += batch.records.len();
        }
    }
    toggle.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_go_on_when_their_broker_comes_back() {
    const TEST: &str = "clients_go_on_when_their_broker_comes_back";
    let mut kafka = match Kafka::start(&[]) {
        Ok(kafka) => kafka,
        Err(reason) => return missing(TEST, &reason),
    };
    let log = log(&kafka).await;
    let topic = topic(&log, "restart", 1, TopicSettings::default()).await;
    let group = format!("group-{topic}");
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    let consumer = log.consumer(member(&group, &topic, Start::Earliest)).await.unwrap();
    assert_eq!(assigned(&consumer).await, [0]);
    for report in producer.send(vec![record(&topic, "before")]).await.unwrap().await {
        report.unwrap();
    }
    kafka.kill();
    let receipt = producer.send(vec![record(&topic, "while it was away")]).await.unwrap();
    let begun = Instant::now();
    kafka.restart();
    let back = Instant::now();
    for report in receipt.await {
        report.unwrap();
    }
    eprintln!("written {:?} after the broker was back, {:?} after it was gone", back.elapsed(), begun.elapsed());
    let mut values: Vec<Bytes> = Vec::new();
    while values.last().is_none_or(|last| last != "while it was away") {
        if let Event::Records(batch) = next(&consumer).await {
            values.extend(batch.records.into_iter().filter_map(|record| record.value));
        }
    }
    eprintln!("read {:?} after the broker was back", back.elapsed());
    let commit = Commit { source: TopicPartition::new(topic, 0), offset: 2, metadata: String::new() };
    consumer.commit(vec![commit.clone()]).await.unwrap();
    assert_eq!(log.group_offsets(&group).await.unwrap()[&commit.source].offset, 2);
}

/// A marker ends each transaction, in each of its partitions.
#[tokio::test(flavor = "multi_thread")]
async fn the_status_counts_dead_letters_and_not_the_markers_of_transactions() {
    let Some(kafka) = kafka::shared("the_status_counts_dead_letters_and_not_the_markers_of_transactions") else {
        return;
    };
    let log = log(kafka).await;
    let folder = tempfile::tempdir().unwrap();
    let (pipelines, data) = (folder.path().join("pipelines"), folder.path().join("data"));
    std::fs::create_dir(&pipelines).unwrap();
    let text = "pipeline: shelf\ndefaults: {partitions: 2}\nsteps:\n  \
                - {name: store, type: SINK, module: object-sink, delivery: EXACTLY_ONCE}\n";
    std::fs::write(pipelines.join("shelf.yaml"), text).unwrap();
    let cluster = format!("c{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
    let name = ClusterName::new(&cluster).unwrap();
    let engine = Engine::new(EngineConfig {
        cluster: name.clone(),
        store: Arc::new(FolderStore::open(name, pipelines, data.clone()).await.unwrap()),
        log: Arc::new(log.clone()),
        objects: Arc::new(Objects::local(&data.join("objects")).unwrap()),
        candidate: Candidate::new(""),
        variables: BTreeMap::new(),
    });
    let topic = Topic::new(&format!("{cluster}.shelf.store.dlq")).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while log.topic(&topic).await.unwrap().is_none() {
        assert!(Instant::now() < deadline, "the engine does not make {topic}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut producer = log.transactional(TransactionalConfig::new(format!("{cluster}-letters"))).await.unwrap();
    for letters in 1..=4 {
        producer.begin().await.unwrap();
        producer.send(vec![record(&topic, "dead")]).await.unwrap();
        producer.commit().await.unwrap();
        // The end that the broker tells may be a little behind.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = engine.status("shelf").await.unwrap();
            let shown = status.pipelines[0].steps[0].dead_letters;
            // A look that was not done in time says so, and counts what is left by its offsets.
            let mut told = status.warnings.iter().chain(&status.problems);
            let is_whole = !told.any(|told| told.message.contains("dead letters"));
            assert!(!is_whole || shown <= letters, "{shown} of {letters}");
            if is_whole && shown == letters {
                break;
            }
            assert!(Instant::now() < deadline, "{shown} of {letters}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
