//! Kafka's clients as their settings ask for them, on a real broker: protocols of
//! groups, compression, acknowledgements, waiting for a cluster, and what the
//! command says of settings that cannot be used.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pipedoc_model::names::Topic;
use pipedoc_tests::bed::kafka::{self, Kafka};
use pipedoc_tests::bed::{eventually, pipedoc};
use pipedoc_transport::error::Error;
use pipedoc_transport::kafka::{ClientStatistics, KafkaConfig, KafkaLog, StatisticsObserver};
use pipedoc_transport::log::{
    Commit, Consumer, ConsumerConfig, Event, Log, OutgoingRecord, ProducerConfig, Start, Subscription, TopicPartition,
    TopicSettings, TopicSpec,
};

const PATIENCE: Duration = Duration::from_secs(60);

async fn log(kafka: &Kafka) -> KafkaLog {
    KafkaLog::connect(KafkaConfig::new(kafka.bootstrap())).await.unwrap()
}

async fn topic(log: &KafkaLog, name: &str, partitions: i32) -> Topic {
    let topic = Topic::new(&format!("{name}-{}", uuid::Uuid::new_v4())).unwrap();
    let settings = TopicSettings::default();
    log.ensure_topic(&TopicSpec { topic: topic.clone(), partitions, replication: None, settings }).await.unwrap();
    topic
}

fn record(topic: &Topic, partition: i32, value: impl Into<Bytes>) -> OutgoingRecord {
    OutgoingRecord { partition: Some(partition), ..OutgoingRecord::new(topic.clone(), None, Some(value.into())) }
}

fn producer(settings: &[(&str, &str)]) -> ProducerConfig {
    let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    ProducerConfig { client_id: "test".to_owned(), settings }
}

fn member(id: &str, topic: &Topic, settings: &[(&str, &str)]) -> ConsumerConfig {
    let subscription = Subscription::Group {
        group: format!("group-{topic}"),
        topics: vec![topic.clone()],
        patterns: Vec::new(),
        start: Start::Earliest,
    };
    let mut config = ConsumerConfig::new(id, subscription);
    config.settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    config
}

async fn next(consumer: &Arc<dyn Consumer>) -> Event {
    tokio::time::timeout(PATIENCE, consumer.next()).await.expect("an event in time").unwrap()
}

/// Reads until so many values came, and commits them. Partitions that are taken
/// away are given up.
async fn read(consumer: &Arc<dyn Consumer>, count: usize) -> BTreeSet<Bytes> {
    let mut values = BTreeSet::new();
    while values.len() < count {
        if let Event::Records(batch) = next(consumer).await {
            let offset = batch.records.last().unwrap().offset + 1;
            values.extend(batch.records.into_iter().filter_map(|record| record.value));
            consumer.commit(vec![Commit { source: batch.source, offset, metadata: String::new() }]).await.unwrap();
        }
    }
    values
}

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
async fn every_compression_is_written_and_read() {
    let Some(kafka) = kafka::shared("every_compression_is_written_and_read") else { return };
    let log = log(kafka).await;
    let topic = topic(&log, "compressed", 1).await;
    let codecs = ["gzip", "snappy", "lz4", "zstd", "none"];
    for codec in codecs {
        let writer = log.producer(producer(&[("compression.type", codec), ("linger.ms", "20")])).await.unwrap();
        let records = (0..50).map(|n| record(&topic, 0, format!("{codec} {n} {}", "text ".repeat(200)))).collect();
        for report in writer.send(records).await.unwrap().await {
            report.unwrap();
        }
    }
    let reader = log.consumer(member("reader", &topic, &[])).await.unwrap();
    assert_eq!(read(&reader, 250).await.len(), 250);
    reader.close().await.unwrap();
    // The broker keeps batches as they were written.
    let segment = kafka.file(&format!("data/{topic}-0/00000000000000000000.log"));
    let dumped = kafka.tool("org.apache.kafka.tools.DumpLogSegments", &["--files", &segment.to_string_lossy()]);
    for codec in codecs {
        assert!(dumped.contains(&format!("compresscodec: {codec}")), "{codec}: {dumped}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_settings_share_one_producer() {
    let Some(kafka) = kafka::shared("the_same_settings_share_one_producer") else { return };
    let log = log(kafka).await;
    let one = log.producer(producer(&[("linger.ms", "20")])).await.unwrap();
    let same = log.producer(producer(&[("queue.buffering.max.ms", "20")])).await.unwrap();
    let other = log.producer(producer(&[("linger.ms", "21")])).await.unwrap();
    assert!(Arc::ptr_eq(&one, &same), "one setting by two names");
    assert!(!Arc::ptr_eq(&one, &other));
    // It ends with the last who holds it; the next is a new one, and works.
    drop((one, same, other));
    let topic = topic(&log, "shared", 1).await;
    for settings in [vec![("linger.ms", "20")], vec![("acks", "1")], vec![("acks", "0")]] {
        let writer = log.producer(producer(&settings)).await.unwrap();
        let reports = writer.send(vec![record(&topic, 0, "x")]).await.unwrap().await;
        assert!(reports[0].is_ok(), "{settings:?}: {reports:?}");
    }
}

/// A group of two members under some settings: both get their share, the one who
/// stays takes over, and nothing is lost or read twice where it was committed.
async fn a_group_divides_its_partitions(kafka: &Kafka, settings: &[(&str, &str)]) {
    let log = log(kafka).await;
    let topic = topic(&log, "group", 2).await;
    let group = format!("group-{topic}");
    let writer = log.producer(producer(&[])).await.unwrap();
    let send = async |from: i32| {
        let records = (from..from + 10).map(|n| record(&topic, n % 2, n.to_string())).collect();
        for report in writer.send(records).await.unwrap().await {
            report.unwrap();
        }
    };
    send(0).await;
    let first = log.consumer(member("first", &topic, settings)).await.unwrap();
    assert_eq!(assigned(&first).await, [0, 1], "{settings:?}");
    assert_eq!(read(&first, 10).await.len(), 10);
    let second = log.consumer(member("second", &topic, settings)).await.unwrap();
    // A member lets go as soon as it is asked to.
    let stays = first.clone();
    let serving = tokio::spawn(async move { while stays.next().await.is_ok() {} });
    assert_eq!(assigned(&second).await.len(), 1, "{settings:?}");
    let busy = log.set_group_offsets(&group, &[commit(&topic, 0, 0)]).await.unwrap_err();
    assert!(matches!(busy, Error::GroupNotEmpty { .. }), "{settings:?}: {busy}");
    first.close().await.unwrap();
    serving.await.unwrap();
    assert_eq!(assigned(&second).await.len(), 1, "{settings:?}: the other's partition comes over");
    send(10).await;
    let expected: BTreeSet<Bytes> = (10..20).map(|n| Bytes::from(n.to_string())).collect();
    assert_eq!(read(&second, 10).await, expected, "{settings:?}");
    second.close().await.unwrap();
    let offsets = log.group_offsets(&group).await.unwrap();
    assert_eq!(offsets.values().map(|committed| committed.offset).collect::<Vec<_>>(), [10, 10], "{settings:?}");
    let of = log.group_offsets_of(&group, &[topic.clone(), Topic::new("no-such-topic").unwrap()]).await.unwrap();
    assert_eq!(of, offsets, "those of its topics are all it has");
    // Members have left, so the group may be set back.
    log.set_group_offsets(&group, &[commit(&topic, 0, 3)]).await.unwrap();
    let offsets = log.group_offsets(&group).await.unwrap();
    assert_eq!(offsets[&TopicPartition::new(topic.clone(), 0)].offset, 3, "{settings:?}");
}

fn commit(topic: &Topic, partition: i32, offset: i64) -> Commit {
    Commit { source: TopicPartition::new(topic.clone(), partition), offset, metadata: String::new() }
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_work_under_the_brokers_own_protocol() {
    let Some(kafka) = kafka::shared("groups_work_under_the_brokers_own_protocol") else { return };
    a_group_divides_its_partitions(kafka, &[("group.protocol", "consumer")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_work_with_assignors_that_take_all_away() {
    let Some(kafka) = kafka::shared("groups_work_with_assignors_that_take_all_away") else { return };
    let log = log(kafka).await;
    let topic = topic(&log, "eager", 2).await;
    let settings = [("partition.assignment.strategy", "range"), ("session.timeout.ms", "10000")];
    let writer = log.producer(producer(&[])).await.unwrap();
    for report in writer.send((0..10).map(|n| record(&topic, n % 2, n.to_string())).collect()).await.unwrap().await {
        report.unwrap();
    }
    let first = log.consumer(member("first", &topic, &settings)).await.unwrap();
    assert_eq!(assigned(&first).await, [0, 1]);
    assert_eq!(read(&first, 10).await.len(), 10);
    let second = log.consumer(member("second", &topic, &settings)).await.unwrap();
    let stays = first.clone();
    let serving = tokio::spawn(async move { while stays.next().await.is_ok() {} });
    assert_eq!(assigned(&second).await.len(), 1);
    first.close().await.unwrap();
    serving.await.unwrap();
    assert_eq!(assigned(&second).await, [0, 1], "all were taken away and given anew");
    second.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_member_comes_back_to_its_partitions_without_a_rebalance() {
    let Some(kafka) = kafka::shared("a_static_member_comes_back_to_its_partitions_without_a_rebalance") else { return };
    let log = log(kafka).await;
    let topic = topic(&log, "static", 2).await;
    let settings = [("group.instance.id", "{instance}"), ("session.timeout.ms", "30000")];
    let first = log.consumer(member("first", &topic, &settings)).await.unwrap();
    assert_eq!(assigned(&first).await, [0, 1]);
    let second = log.consumer(member("second", &topic, &settings)).await.unwrap();
    let stays = first.clone();
    let disturbed = Arc::new(AtomicUsize::new(0));
    let counted = disturbed.clone();
    let serving = tokio::spawn(async move {
        while let Ok(event) = stays.next().await {
            counted.fetch_add(usize::from(matches!(event, Event::Revoked(_) | Event::Lost(_))), Ordering::SeqCst);
        }
    });
    let own = assigned(&second).await;
    assert_eq!(own.len(), 1);
    let before = disturbed.load(Ordering::SeqCst);
    second.close().await.unwrap();
    let again = log.consumer(member("second", &topic, &settings)).await.unwrap();
    assert_eq!(assigned(&again).await, own, "the same ones");
    assert_eq!(disturbed.load(Ordering::SeqCst), before, "the other has noticed nothing");
    again.close().await.unwrap();
    first.close().await.unwrap();
    serving.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_was_lowered_is_told_with_the_next_try() {
    let Some(kafka) = kafka::shared("a_limit_that_was_lowered_is_told_with_the_next_try") else { return };
    let log = log(kafka).await;
    let topic = topic(&log, "lowered", 1).await;
    let writer = log.producer(producer(&[])).await.unwrap();
    let large = || record(&topic, 0, vec![b'x'; 200_000]);
    writer.send(vec![large()]).await.unwrap().await.remove(0).unwrap();
    // Somebody else lowers it, and keeps what others have set.
    let other = self::log(kafka).await;
    let settings = TopicSettings { max_message_bytes: Some(100_000), ..TopicSettings::default() };
    other.ensure_topic(&TopicSpec { topic: topic.clone(), partitions: 1, replication: None, settings }).await.unwrap();
    let first = writer.send(vec![large()]).await.unwrap().await.remove(0).unwrap_err();
    assert!(first.is_retryable(), "{first:?}");
    let second = writer.send(vec![large()]).await.unwrap().await.remove(0).unwrap_err();
    let Error::RecordTooLarge { size, limit, .. } = &second else { panic!("{second:?}") };
    assert!(*size > 200_000 && *limit == 100_000 && !second.is_retryable());
    assert!(second.to_string().contains("a claim would carry it"), "{second}");
    writer.send(vec![record(&topic, 0, "small")]).await.unwrap().await.remove(0).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_tell_of_themselves() {
    let Some(kafka) = kafka::shared("clients_tell_of_themselves") else { return };
    let told = Arc::new(Mutex::new(Vec::<ClientStatistics>::new()));
    let mut config = KafkaConfig::new(kafka.bootstrap());
    let hears = told.clone();
    config.statistics = StatisticsObserver::new(move |statistics| hears.lock().unwrap().push(statistics.clone()));
    config.settings.insert("statistics.interval.ms".to_owned(), "100".to_owned());
    let log = KafkaLog::connect(config).await.unwrap();
    let topic = topic(&log, "statistics", 1).await;
    let writer = log.producer(producer(&[])).await.unwrap();
    for report in writer.send((0..10).map(|n| record(&topic, 0, n.to_string())).collect()).await.unwrap().await {
        report.unwrap();
    }
    let reader = log.consumer(member("reader", &topic, &[])).await.unwrap();
    assert_eq!(read(&reader, 10).await.len(), 10);
    let group = format!("group-{topic}");
    eventually("both clients tell", PATIENCE, async || {
        let told = told.lock().unwrap();
        let wrote =
            told.iter().any(|client| client.sent_records == 10 && client.brokers.iter().any(|broker| broker.up));
        let read = told.iter().any(|client| {
            client.group.as_ref() == Some(&group)
                && client.received_records == 10
                && client.partitions.iter().any(|partition| partition.lag == Some(0))
        });
        (wrote && read).then_some(())
    })
    .await;
    reader.close().await.unwrap();
}

/// librdkafka writes hundreds of lines, before which rebalances must not wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_is_debugged_reads_all_the_same() {
    let Some(kafka) = kafka::shared("a_consumer_that_is_debugged_reads_all_the_same") else { return };
    let mut config = KafkaConfig::new(kafka.bootstrap());
    config.settings.insert("debug".to_owned(), "all".to_owned());
    let debugged = KafkaLog::connect(config).await.unwrap();
    let topic = topic(&log(kafka).await, "debugged", 1).await;
    let writer = debugged.producer(producer(&[])).await.unwrap();
    writer.send(vec![record(&topic, 0, "x")]).await.unwrap().await.remove(0).unwrap();
    let reader = debugged.consumer(member("reader", &topic, &[])).await.unwrap();
    assert_eq!(read(&reader, 1).await.len(), 1);
    assert_eq!(debugged.group_offsets(&format!("group-{topic}")).await.unwrap().len(), 1);
    reader.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_itself_whichever_way_it_is_reached() {
    let Some(kafka) = kafka::shared("a_cluster_is_itself_whichever_way_it_is_reached") else { return };
    let identity = log(kafka).await.identity().await.unwrap();
    let other = kafka.bootstrap().replace("127.0.0.1", "localhost");
    assert_eq!(KafkaLog::connect(KafkaConfig::new(other)).await.unwrap().identity().await.unwrap(), identity);
    assert!(identity.starts_with("kafka cluster "), "{identity}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_away_is_waited_for_with_one_line() {
    let told = AtomicUsize::new(0);
    let began = Instant::now();
    let wait = Some(Duration::from_secs(5));
    let tell = |error: &Error| {
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
        told.fetch_add(1, Ordering::SeqCst);
    };
    let error = KafkaLog::wait_for(KafkaConfig::new("127.0.0.1:1"), wait, &tell).await.unwrap_err();
    assert!(began.elapsed() >= Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(told.load(Ordering::SeqCst), 1, "one line");
    let Error::Unreachable { address, reason, .. } = &error else { panic!("{error:?}") };
    assert!(address == "127.0.0.1:1" && reason.contains("Connection refused"), "{error}");
    assert!(error.is_retryable());
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_cannot_be_used_are_all_told() {
    let mut config = KafkaConfig::new("127.0.0.1:1");
    for (name, value) in [("group.id", "x"), ("lingr.ms", "5"), ("sasl.username", "me"), ("fetch.min.bytes", "many")] {
        config.settings.insert(name.to_owned(), value.to_owned());
    }
    let error = KafkaLog::connect(config).await.unwrap_err();
    let Error::Settings { source } = &error else { panic!("{error:?}") };
    assert_eq!(source.0.len(), 4, "{source}");
    // What only the library can see is told in the same way: here a file that is missing.
    let mut config = KafkaConfig::new("127.0.0.1:1");
    config.settings.insert("security.protocol".to_owned(), "ssl".to_owned());
    config.settings.insert("ssl.ca.location".to_owned(), "/no/such/ca.pem".to_owned());
    let error = KafkaLog::connect(config).await.unwrap_err();
    let Error::Settings { source } = &error else { panic!("{error:?}") };
    assert!(source.to_string().contains("ssl.ca.location"), "{source}");
}

#[test]
fn the_command_refuses_settings_and_waits_no_longer_than_told() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = folder.path().join("pipeline.yaml");
    let text =
        "pipeline: p\nsteps:\n- {name: a, type: PIPELINE, module: echo, kafka: {producer: {acks: 1, lingr.ms: 5}}}\n";
    std::fs::write(&pipeline, text).unwrap();
    let pipeline = pipeline.to_string_lossy().into_owned();
    let out = folder.path().join("out").to_string_lossy().into_owned();
    let run = |more: &[&str]| {
        let arguments = ["run", &pipeline, "--out", &out, "--kafka", "127.0.0.1:1", "--wait", "5s"];
        let output = pipedoc::command(arguments.into_iter().chain(more.iter().copied())).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, told) = run(&[]);
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("pipeline.yaml:3:") && told.contains("did you mean linger.ms?"), "{told}");
    assert!(told.contains("AT_MOST_ONCE"), "{told}");
    std::fs::write(&pipeline, "pipeline: p\nsteps:\n- {name: a, type: PIPELINE, module: echo}\n").unwrap();
    let (code, told) = run(&["--kafka-setting", "enable.auto.commit=true", "--kafka-setting", "sasl.password=s3cret"]);
    assert_eq!(code, Some(2), "{told}");
    assert!(
        told.contains("enable.auto.commit: is not to be set") && told.contains("sasl.password: has no effect"),
        "{told}"
    );
    assert!(!told.contains("s3cret"), "{told}");
    let (code, told) = run(&[]);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("127.0.0.1:1 is out of reach") && told.contains("Connection refused"), "{told}");
}
