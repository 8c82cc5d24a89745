//! Members of groups at bad moments: told of everything they lose, gone for good
//! when they leave, and alive while their process is busy.

// Helpers of tests may fail as tests do.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pipedoc_model::names::Topic;
use pipedoc_transport::log::{
    Consumer, ConsumerConfig, Event, Log, OutgoingRecord, ProducerConfig, Start, Subscription, TopicPartition,
    TopicSettings, TopicSpec,
};
use pipedoc_transport::memory::MemoryLog;
use pipedoc_transport::sqlite::{Options, SqliteLog};

const PATIENCE: Duration = Duration::from_secs(60);

fn topic(name: &str) -> Topic {
    Topic::new(name).unwrap()
}

async fn ensure(log: &dyn Log, name: &str, partitions: i32) {
    let settings = TopicSettings::default();
    log.ensure_topic(&TopicSpec { topic: topic(name), partitions, replication: None, settings }).await.unwrap();
}

async fn member(log: &dyn Log, client: &str, topics: &[&str], session: Duration) -> Arc<dyn Consumer> {
    let topics = topics.iter().map(|name| topic(name)).collect();
    let subscription = Subscription::Group { group: "g".into(), topics, patterns: Vec::new(), start: Start::Earliest };
    let config = ConsumerConfig { session_timeout: Some(session), ..ConsumerConfig::new(client, subscription) };
    log.consumer(config).await.unwrap()
}

/// Polls a consumer until it owns so many partitions.
async fn own(consumer: &dyn Consumer, wanted: usize) {
    let mut owned = BTreeSet::new();
    let owning = async {
        while owned.len() != wanted {
            match consumer.next().await.unwrap() {
                Event::Assigned(partitions) => owned.extend(partitions.into_iter().map(|partition| partition.source)),
                Event::Revoked(gone) => owned.retain(|source| !gone.partitions.contains(source)),
                Event::Lost(gone) => owned.retain(|source| !gone.contains(source)),
                _ => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, owning).await.unwrap_or_else(|_| panic!("not {wanted} partitions in time"));
}

#[tokio::test(start_paused = true)]
async fn a_member_taken_for_dead_is_told_of_what_was_about_to_be_revoked() {
    let log = MemoryLog::new();
    ensure(&log, "t", 2).await;
    ensure(&log, "u", 2).await;
    let session = Duration::from_secs(6);
    let consumer = member(&log, "a", &["t", "u"], session).await;
    own(&*consumer, 4).await;
    let other = member(&log, "b", &["t"], session).await;
    let _ = tokio::time::timeout(Duration::from_millis(10), other.next()).await;
    log.delete_topic(&topic("u")).await.unwrap();
    let mut told = BTreeSet::new();
    match consumer.next().await.unwrap() {
        Event::Lost(partitions) => told.extend(partitions),
        other => panic!("{other:?}"),
    }
    log.expire("a");
    while told.len() < 4 {
        let next = tokio::time::timeout(Duration::from_secs(60), consumer.next()).await;
        match next.unwrap_or_else(|_| panic!("told of {told:?} alone")).unwrap() {
            Event::Lost(partitions) => told.extend(partitions),
            Event::Revoked(revocation) => told.extend(revocation.partitions.clone()),
            Event::Assigned(_) => panic!("told of {told:?} alone"),
            _ => {}
        }
    }
    assert!(told.contains(&TopicPartition::new(topic("t"), 0)) && told.contains(&TopicPartition::new(topic("t"), 1)));
}

async fn open(folder: &Path) -> SqliteLog {
    SqliteLog::open(folder.join("log.db"), Options::default()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_could_not_leave_does_so_later() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path()).await;
    ensure(&log, "t", 2).await;
    let session = Duration::from_secs(6);
    let leaving = member(&log, "a", &["t"], session).await;
    own(&*leaving, 2).await;
    let staying = member(&log, "b", &["t"], session).await;
    let _ =
        tokio::time::timeout(Duration::from_millis(500), async { tokio::join!(leaving.next(), staying.next()) }).await;
    let file = rusqlite::Connection::open(folder.path().join("log.db")).unwrap();
    file.execute_batch("CREATE TRIGGER t BEFORE DELETE ON members BEGIN SELECT RAISE(ABORT, 'not now'); END").unwrap();
    assert!(leaving.close().await.is_err());
    file.execute_batch("DROP TRIGGER t").unwrap();
    own(&*staying, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_stay_while_their_process_cleans_up() {
    let folder = tempfile::tempdir().unwrap();
    let logs = [open(folder.path()).await, open(folder.path()).await];
    ensure(&logs[0], "t", 2).await;
    ensure(&logs[0], "old", 1).await;
    let producer = logs[0].producer(ProducerConfig::default()).await.unwrap();
    for _ in 0..60 {
        let records = (0..5000).map(|_| OutgoingRecord::new(topic("old"), None, Some("x".into()))).collect();
        assert!(producer.send(records).await.unwrap().await.iter().all(Result::is_ok));
    }
    let session = Duration::from_secs(2);
    let one = member(&logs[0], "one", &["t"], session).await;
    own(&*one, 2).await;
    let two = member(&logs[1], "two", &["t"], session).await;
    let stay = |consumer: Arc<dyn Consumer>| async move {
        loop {
            if let Event::Lost(partitions) = consumer.next().await.unwrap() {
                panic!("lost {partitions:?}");
            }
        }
    };
    let cleaned = async {
        logs[0].delete_topic(&topic("old")).await.unwrap();
        let file = rusqlite::Connection::open(folder.path().join("log.db")).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while file.query_row("SELECT count(*) FROM garbage", [], |row| row.get::<_, i64>(0)).unwrap() > 0 {
            assert!(Instant::now() < deadline, "not cleaned in time");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    tokio::select! {
        () = cleaned => {}
        () = stay(one) => {}
        () = stay(two) => {}
    }
}

/// Lets the file look as if a newer version had taken it further, or takes that back.
fn set_version(folder: &Path, version: i64) {
    let file = rusqlite::Connection::open(folder.join("log.db")).unwrap();
    file.busy_timeout(PATIENCE).unwrap();
    file.pragma_update(None, "user_version", version).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_could_not_be_given_up_are_read_by_somebody_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path()).await;
    ensure(&log, "t", 2).await;
    // Its session does not end meanwhile.
    let session = Duration::from_secs(120);
    let first = member(&log, "a", &["t"], session).await;
    own(&*first, 2).await;
    let second = member(&log, "b", &["t"], session).await;
    let _ = tokio::time::timeout(Duration::from_millis(500), second.next()).await;
    let revocation = loop {
        if let Event::Revoked(revocation) = first.next().await.unwrap() {
            break revocation;
        }
    };
    set_version(folder.path(), 99);
    drop(revocation);
    // What cannot succeed when it is tried again ends the membership, and joining
    // anew cannot succeed either.
    let failing = async { while first.next().await.is_ok() {} };
    tokio::time::timeout(PATIENCE, failing).await.expect("it tells that it cannot go on");
    set_version(folder.path(), 2);
    let told = async {
        loop {
            if let Ok(Event::Lost(partitions)) = first.next().await {
                return partitions;
            }
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("it learns that it holds nothing any more");
    // The member that could not leave is taken out, and both share the topic anew.
    let share = async |consumer: &dyn Consumer, got: &std::cell::Cell<usize>| {
        loop {
            match consumer.next().await {
                Ok(Event::Assigned(partitions)) => got.set(got.get() + partitions.len()),
                Ok(Event::Revoked(gone)) => got.set(got.get().saturating_sub(gone.partitions.len())),
                Ok(Event::Lost(gone)) => got.set(got.get().saturating_sub(gone.len())),
                _ => {}
            }
        }
    };
    let (one, two) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let shared = async {
        while (one.get(), two.get()) != (1, 1) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let shared = async {
        tokio::select! {
            () = shared => {}
            () = async { tokio::join!(share(&*first, &one), share(&*second, &two)); } => {}
        }
    };
    tokio::time::timeout(PATIENCE, shared).await.unwrap_or_else(|_| panic!("{} and {}", one.get(), two.get()));
}
