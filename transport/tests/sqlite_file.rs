//! What the sqlite log promises about its file: older versions are brought
//! forward, newer ones refused; damage is found; its size is bounded.

// Helpers of tests may fail as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pipedoc_model::names::Topic;
use pipedoc_transport::error::{Error, FileProblem};
use pipedoc_transport::log::{
    Commit, ConsumerConfig, Event, Log, OutgoingRecord, Producer, ProducerConfig, Record, Start, Subscription,
    TopicPartition, TopicSettings, TopicSpec, TransactionalConfig,
};
use pipedoc_transport::sqlite::doctor::{self, Holds, NEWEST_FORMAT, Severity};
use pipedoc_transport::sqlite::{Options, SqliteLog};

const PATIENCE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

fn topic() -> Topic {
    Topic::new("t").unwrap()
}

fn at(partition: i32) -> TopicPartition {
    TopicPartition::new(topic(), partition)
}

async fn open(path: &Path) -> SqliteLog {
    SqliteLog::open(path, Options::default()).await.unwrap()
}

async fn ensure(log: &SqliteLog, partitions: i32, settings: TopicSettings) {
    log.ensure_topic(&TopicSpec { topic: topic(), partitions, replication: None, settings }).await.unwrap();
}

fn record(partition: i32, value: impl Into<Bytes>) -> OutgoingRecord {
    OutgoingRecord { partition: Some(partition), ..OutgoingRecord::new(topic(), None, Some(value.into())) }
}

async fn send(producer: &dyn Producer, records: Vec<OutgoingRecord>) {
    let reports = producer.send(records).await.unwrap().await;
    assert!(reports.iter().all(Result::is_ok), "{reports:?}");
}

async fn read_all(log: &SqliteLog, partition: i32) -> Vec<Record> {
    let subscription = Subscription::Assigned(vec![(at(partition), Start::Earliest)]);
    let consumer = log.consumer(ConsumerConfig::new("reader", subscription)).await.unwrap();
    let mut records = Vec::new();
    loop {
        match consumer.next().await.unwrap() {
            Event::Records(batch) => records.extend(batch.records),
            Event::EndOfPartition { .. } => return records,
            _ => {}
        }
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Another program's view of the file.
fn sql(path: &Path) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection.busy_timeout(PATIENCE).unwrap();
    connection
}

/// Waits until the threads of a dropped handle have closed the file.
async fn closed(path: &Path) {
    until("the file is closed", async || doctor::compact(path).is_ok()).await;
}

// ---- Versions. ----

/// A file as version 1 made it: its schema, some records, a member at work.
fn make_version_1(path: &Path) {
    let connection = sql(path);
    connection.pragma_update(None, "journal_mode", "WAL").unwrap();
    connection.execute_batch(include_str!("../src/sqlite/schema/1.sql")).unwrap();
    connection
        .execute_batch(
            "PRAGMA application_id = 0x50446f63;
             PRAGMA user_version = 1;
             UPDATE state SET sequence = 7, topics_changed = 1;
             INSERT INTO topics VALUES (1, 't', 0, -1, -1, 1048588);
             INSERT INTO partitions (id, topic, partition, start, next, bytes, changed) VALUES (1, 1, 0, 0, 3, 12, 7);
             INSERT INTO partitions (id, topic, partition, start, next, bytes, changed) VALUES (2, 1, 1, 0, 0, 0, 1);
             INSERT INTO records (partition, offset, timestamp, key, value)
                 VALUES (1, 0, 1000, 'k', 'one'), (1, 1, 3000, 'k', 'two'), (1, 2, 2000, NULL, 'four');
             INSERT INTO groups VALUES (1, 'g', 4, 7);
             INSERT INTO offsets VALUES (1, 1, 2, 'note');
             INSERT INTO sessions VALUES (9, 12345, 'boot pid:[1] 1 1');
             INSERT INTO members VALUES (5, 1, 9, 'old', 6000, 't');
             INSERT INTO leases VALUES (1, 1, 5, 5, 3), (1, 2, 5, 5, 4);
             INSERT INTO transactional VALUES ('tx', 6);",
        )
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_the_first_version_is_brought_to_the_newest() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.db");
    make_version_1(&path);
    let report = doctor::examine(&path).unwrap();
    assert_eq!((report.holds, report.is_sound()), (Holds::Log { format: 1 }, true), "{report:?}");

    // Many open it at once; one brings it forward.
    let opened = futures::future::join_all((0..4).map(|_| open(&path))).await;
    let log = &opened[0];
    let version: i64 =
        sql(&path).query_row("SELECT user_version FROM pragma_user_version", [], |row| row.get(0)).unwrap();
    assert_eq!(version, NEWEST_FORMAT);
    let values: Vec<Bytes> = read_all(log, 0).await.into_iter().map(|record| record.value.unwrap()).collect();
    assert_eq!(values, ["one", "two", "four"]);
    let committed = log.group_offsets("g").await.unwrap();
    assert_eq!((committed[&at(0)].offset, committed[&at(0)].metadata.as_str()), (2, "note"));
    assert_eq!(log.offsets_at(&topic(), 1500).await.unwrap(), [1, 0]);
    assert_eq!(log.offsets_at(&topic(), 3001).await.unwrap(), [3, 0]);

    // The group goes on where it was, its old member being gone with its version.
    let group =
        Subscription::Group { group: "g".into(), topics: vec![topic()], patterns: Vec::new(), start: Start::Earliest };
    let consumer = log.consumer(ConsumerConfig::new("new", group)).await.unwrap();
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    send(&*producer, vec![record(0, "five")]).await;
    let mut read = Vec::new();
    let reading = async {
        while read.len() < 2 {
            if let Event::Records(batch) = consumer.next().await.unwrap() {
                read.extend(batch.records.into_iter().map(|record| (record.offset, record.value.unwrap())));
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the group reads on");
    assert_eq!(read, [(2, Bytes::from("four")), (3, Bytes::from("five"))]);
    consumer.commit(vec![Commit { source: at(0), offset: 4, metadata: String::new() }]).await.unwrap();
    let report = doctor::examine(&path).unwrap();
    assert_eq!((report.holds, report.findings.len()), (Holds::Log { format: NEWEST_FORMAT }, 0), "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_a_newer_process_took_further_is_written_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.db");
    let log = open(&path).await;
    ensure(&log, 1, TopicSettings::default()).await;
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    send(&*producer, vec![record(0, "before")]).await;
    sql(&path).pragma_update(None, "user_version", NEWEST_FORMAT + 1).unwrap();
    let reports = producer.send(vec![record(0, "after")]).await.unwrap().await;
    let error = reports[0].as_ref().unwrap_err();
    let problem = FileProblem::TooNew { found: NEWEST_FORMAT + 1, known: NEWEST_FORMAT };
    assert!(matches!(error, Error::File { problem: found, .. } if *found == problem), "{error:?}");
    let text = error.to_string();
    assert!(!error.is_retryable() && text.contains("3") && text.contains("2") && text.contains("log.db"), "{text}");
    assert!(matches!(doctor::examine(&path), Err(Error::File { problem: FileProblem::TooNew { .. }, .. })));
}

// ---- What the doctor sees. ----

async fn some_log(path: &Path) {
    let log = open(path).await;
    ensure(&log, 2, TopicSettings::default()).await;
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    for n in 0..20 {
        send(&*producer, (0..50).map(|m| record(n % 2, format!("{m:0>1000}"))).collect()).await;
    }
    let commit = Commit { source: at(0), offset: 100, metadata: String::new() };
    log.set_group_offsets("g", &[commit]).await.unwrap();
    drop((producer, log));
    closed(path).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sound_log_has_no_findings() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.db");
    some_log(&path).await;
    let report = doctor::examine(&path).unwrap();
    assert!(report.is_sound() && report.findings.is_empty(), "{report:?}");
    let contents = report.contents.unwrap();
    assert_eq!((contents.topics, contents.partitions, contents.records, contents.groups), (1, 2, 1000, 1));
    assert!(report.sizes.file > MIB, "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_found_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.db");
    some_log(&path).await;
    let damages = [
        ("gaps", "DELETE FROM records WHERE partition = 1 AND offset = 17"),
        ("ends", "UPDATE partitions SET next = 5 WHERE id = 2"),
        ("ends", "UPDATE partitions SET start = 501 WHERE id = 1"),
        ("partitions", "UPDATE partitions SET partition = 3 WHERE id = 2"),
        ("partitions", "DELETE FROM topics"),
        ("times", "UPDATE partitions SET newest = 0 WHERE id = 1"),
        ("times", "UPDATE marks SET offset = 1000"),
        ("offsets", "INSERT INTO offsets VALUES (77, 1, 0, '')"),
        ("leases", "INSERT INTO leases VALUES (1, 1, 99, 99, 0)"),
        ("leases", "INSERT INTO leases VALUES (1, 1, NULL, NULL, 99)"),
        ("members", "INSERT INTO members VALUES (1, 99, 1, 'm', 6000, 't')"),
        ("state", "DELETE FROM state"),
    ];
    for (check, damage) in damages {
        let connection = sql(&path);
        connection.execute_batch(&format!("BEGIN; {damage};")).unwrap();
        assert_ne!(connection.changes(), 0, "{damage}");
        connection.execute_batch("COMMIT").unwrap();
        let copy = folder.path().join("copy.db");
        let _ = std::fs::remove_file(&copy);
        connection.execute("VACUUM INTO ?", [copy.to_str().unwrap()]).unwrap();
        drop(connection);
        let report = doctor::examine(&copy).unwrap();
        let found =
            report.findings.iter().any(|finding| finding.check == check && finding.severity == Severity::Damage);
        assert!(found && !report.is_sound(), "{damage}: {report:?}");
        std::fs::remove_file(&path).unwrap();
        some_log(&path).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_is_no_page_is_found_and_the_error_names_the_doctor() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.db");
    some_log(&path).await;
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 3 * 4096].fill(0xa5);
    std::fs::write(&path, bytes).unwrap();
    let report = doctor::examine(&path).unwrap();
    assert!(!report.is_sound() && report.findings.iter().any(|finding| finding.check == "integrity"), "{report:?}");
    let message = FileProblem::Corrupt.to_string();
    assert!(message.contains("pipedoc doctor"), "{message}");
    let compacted = doctor::compact(&path);
    assert!(matches!(compacted, Err(Error::File { problem: FileProblem::Corrupt, .. })), "{compacted:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_compacted_by_who_has_it_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.db");
    let log = open(&path).await;
    ensure(&log, 1, TopicSettings::default()).await;
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    for _ in 0..30 {
        send(&*producer, (0..200).map(|n| record(0, format!("{n:0>1000}"))).collect()).await;
    }
    log.delete_records(&at(0), 5_990).await.unwrap();
    let refused = doctor::compact(&path);
    assert!(matches!(refused, Err(Error::File { problem: FileProblem::Locked, .. })), "{refused:?}");
    send(&*producer, vec![record(0, "still writing")]).await;
    until("the records are gone", async || {
        sql(&path).query_row("SELECT count(*) FROM records", [], |row| row.get::<_, i64>(0)).unwrap() == 11
    })
    .await;
    drop((producer, log));
    let mut sizes = None;
    until("the file is closed", async || {
        sizes = sizes.or_else(|| doctor::compact(&path).ok());
        sizes.is_some()
    })
    .await;
    let (before, after) = sizes.unwrap();
    assert!(before.file > 5 * MIB && after.file < MIB && after.free == 0, "{before:?} {after:?}");
    assert_eq!(read_all(&open(&path).await, 0).await.len(), 11);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_the_first_version_shrinks_by_itself_once_it_was_compacted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.db");
    make_version_1(&path);
    let vacuum = || sql(&path).query_row("PRAGMA auto_vacuum", [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(vacuum(), 0);
    doctor::compact(&path).unwrap();
    assert_eq!(vacuum(), 2);
}

// ---- Its size. ----

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_under_retention_stops_growing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.db");
    let log = open(&path).await;
    ensure(&log, 2, TopicSettings { retention_bytes: Some(1 << 20), ..TopicSettings::default() }).await;
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    let began = Instant::now();
    let (mut written, mut largest) = (0, 0);
    // Four rounds of cleaning and more, at about 2 MiB a second.
    while began.elapsed() < Duration::from_secs(22) || written < 40 * MIB {
        send(&*producer, (0..200).map(|n| record(n % 2, format!("{n:0>1000}"))).collect()).await;
        written += 200_000;
        largest = largest.max(path.metadata().unwrap().len());
        tokio::time::sleep(Duration::from_millis(90)).await;
    }
    // Twice what may be kept, and what came between two cleanings.
    assert!(largest < written / 2, "{largest} of {written}");
    let report = doctor::examine(&path).unwrap();
    assert!(report.is_sound(), "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_write_ahead_log_is_bounded_though_somebody_always_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.db");
    let log = open(&path).await;
    ensure(&log, 1, TopicSettings::default()).await;
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let reading = std::thread::spawn({
        let (path, done) = (path.clone(), done.clone());
        move || {
            // One begins before the other ends.
            let readers = [sql(&path), sql(&path)];
            let begin = |n: usize| {
                readers[n].execute_batch("BEGIN").unwrap();
                readers[n].query_row("SELECT count(*) FROM state", [], |_| Ok(())).unwrap();
            };
            begin(0);
            for n in 1.. {
                begin(n % 2);
                std::thread::sleep(Duration::from_millis(5));
                readers[(n + 1) % 2].execute_batch("COMMIT").unwrap();
                if done.load(std::sync::atomic::Ordering::Relaxed) {
                    return;
                }
            }
        }
    });
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    let value = Bytes::from(vec![b'x'; 500_000]);
    let mut longest = 0;
    for _ in 0..50 {
        send(&*producer, (0..8).map(|_| record(0, value.clone())).collect()).await;
        longest = longest.max(path.with_extension("db-wal").metadata().unwrap().len());
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    reading.join().unwrap();
    assert!(longest < 120 * MIB, "{longest}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_mostly_free_shrinks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.db");
    let log = open(&path).await;
    ensure(&log, 1, TopicSettings::default()).await;
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    let value = Bytes::from(vec![b'x'; 100_000]);
    for _ in 0..40 {
        send(&*producer, (0..10).map(|_| record(0, value.clone())).collect()).await;
    }
    assert!(path.metadata().unwrap().len() + path.with_extension("db-wal").metadata().unwrap().len() > 40_000_000);
    log.delete_records(&at(0), 400).await.unwrap();
    until("the file shrinks", async || {
        // The end of the file is cut off when its pages are copied from the log beside it.
        send(&*producer, vec![record(0, "tick")]).await;
        let _ = sql(&path).query_row("PRAGMA wal_checkpoint", [], |_| Ok(()));
        path.metadata().unwrap().len() < 20 * MIB
    })
    .await;
}

// ---- Finding by time, and tombstones. ----

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_are_found_by_time_though_times_jump() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(&folder.path().join("log.db")).await;
    ensure(&log, 1, TopicSettings::default()).await;
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    let time = |n: i64| 1_000 * n + if n % 700 == 0 { 2_000_000 } else { 0 } - if n % 300 == 0 { 900_000 } else { 0 };
    for batch in 0..20 {
        let records = (batch * 250..(batch + 1) * 250)
            .map(|n| OutgoingRecord { timestamp: Some(time(n)), ..record(0, "v") })
            .collect();
        send(&*producer, records).await;
    }
    let marks: i64 = sql(log.path()).query_row("SELECT count(*) FROM marks", [], |row| row.get(0)).unwrap();
    assert!(marks >= 4, "{marks}");
    for millis in (-1_000_000..8_000_000).step_by(123_457) {
        let expected = (0..5_000).find(|n| time(*n) >= millis).unwrap_or(5_000);
        assert_eq!(log.offsets_at(&topic(), millis).await.unwrap(), [expected], "{millis}");
    }
    log.delete_records(&at(0), 2_000).await.unwrap();
    for millis in (-1_000_000..8_000_000).step_by(323_457) {
        let expected = (2_000..5_000).find(|n| time(*n) >= millis).unwrap_or(5_000);
        assert_eq!(log.offsets_at(&topic(), millis).await.unwrap(), [expected], "{millis}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tombstone_stays_for_a_day_after_it_was_written_whatever_its_timestamp() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(&folder.path().join("log.db")).await;
    ensure(&log, 1, TopicSettings { compact: Some(true), ..TopicSettings::default() }).await;
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    let keyed = |key: String, value: Option<Bytes>| OutgoingRecord {
        partition: Some(0),
        timestamp: Some(1_000),
        ..OutgoingRecord::new(topic(), Some(key.into()), value)
    };
    send(&*producer, vec![keyed("gone".into(), Some("v".into())), keyed("gone".into(), None)]).await;
    let fill = || (0..1_500).map(|n| keyed(format!("{}", n % 3), Some("v".into()))).collect::<Vec<_>>();
    send(&*producer, fill()).await;
    let keys = async || {
        let records = read_all(&log, 0).await;
        let mut keys: Vec<_> = records.into_iter().map(|record| record.key.unwrap()).collect();
        keys.sort();
        keys
    };
    until("compaction", async || keys().await.len() <= 4).await;
    assert_eq!(keys().await, ["0", "1", "2", "gone"], "the tombstone is young, however old its timestamp is");
    sql(log.path()).execute("UPDATE marks SET written_at = written_at - 25 * 3600 * 1000", []).unwrap();
    send(&*producer, fill()).await;
    until("the tombstone goes", async || keys().await == ["0", "1", "2"]).await;
}

// ---- Transactions. ----

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_would_not_fit_into_memory_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(&folder.path().join("log.db")).await;
    ensure(&log, 1, TopicSettings::default()).await;
    let mut transactional = log.transactional(TransactionalConfig::new("big")).await.unwrap();
    transactional.begin().await.unwrap();
    // All share one piece of memory; they count all the same.
    let value = Bytes::from(vec![b'x'; 1_000_000]);
    let mut sent = 0;
    let error = loop {
        match transactional.send(vec![record(0, value.clone())]).await {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        assert!(sent < 1_000, "it was never refused");
    };
    assert!(sent > 100, "only {sent}");
    assert!(matches!(error, Error::TransactionTooLarge { .. }) && !error.is_retryable(), "{error:?}");
    assert!(transactional.commit().await.is_err());
    transactional.abort().await.unwrap();
    assert!(read_all(&log, 0).await.is_empty());
    transactional.begin().await.unwrap();
    transactional.send(vec![record(0, "small")]).await.unwrap();
    assert_eq!(transactional.commit().await.unwrap()[0].offset, 0);
}
