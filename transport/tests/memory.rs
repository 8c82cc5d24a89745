//! The memory log's fault switches, and that it follows paused time.

// Helpers of tests may fail as tests do.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use pipedoc_model::names::Topic;
use pipedoc_transport::error::Error;
use pipedoc_transport::log::{
    Commit, Consumer, ConsumerConfig, Event, Log, OutgoingRecord, ProducerConfig, Start, Subscription, TopicPartition,
    TopicSettings, TopicSpec, TransactionalConfig,
};
use pipedoc_transport::memory::MemoryLog;

fn topic() -> Topic {
    Topic::new("t").unwrap()
}

async fn new_log() -> MemoryLog {
    let log = MemoryLog::new();
    let settings = TopicSettings::default();
    log.ensure_topic(&TopicSpec { topic: topic(), partitions: 1, replication: None, settings }).await.unwrap();
    log
}

fn record(value: &'static str) -> OutgoingRecord {
    OutgoingRecord::new(topic(), None, Some(value.into()))
}

fn member(client: &str) -> ConsumerConfig {
    let subscription =
        Subscription::Group { group: "g".into(), topics: vec![topic()], patterns: Vec::new(), start: Start::Earliest };
    ConsumerConfig { max_poll_interval: Duration::from_secs(300), ..ConsumerConfig::new(client, subscription) }
}

async fn end(log: &MemoryLog) -> i64 {
    log.ends(&topic()).await.unwrap()[0].end
}

async fn assigned(consumer: &dyn Consumer) {
    loop {
        if let Event::Assigned(_) = consumer.next().await.unwrap() {
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn sends_and_acknowledgements_fail_on_demand() {
    let log = new_log().await;
    let faults = log.faults();
    let producer = log.producer(ProducerConfig::default()).await.unwrap();

    faults.fail_sends(1, true);
    let refused = producer.send(vec![record("a")]).await.map(drop);
    assert!(matches!(refused, Err(Error::Injected { operation: "send", retryable: true })));
    assert_eq!(end(&log).await, 0, "nothing was taken");

    faults.fail_acks(2, false);
    let reports = producer.send(vec![record("a"), record("b"), record("c")]).await.unwrap().await;
    let failed: Vec<bool> = reports.iter().map(Result::is_err).collect();
    assert_eq!(failed, [true, true, false]);
    assert!(!reports[0].as_ref().unwrap_err().is_retryable());
    assert_eq!(end(&log).await, 1, "what failed is not stored");

    faults.lose_acks(1, true);
    let reports = producer.send(vec![record("d")]).await.unwrap().await;
    assert!(reports[0].as_ref().is_err_and(Error::is_retryable));
    assert_eq!(end(&log).await, 2, "what was lost on the way back is stored");
}

#[tokio::test(start_paused = true)]
async fn held_acknowledgements_wait_until_told() {
    let log = new_log().await;
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    log.faults().hold_acks();
    let mut receipt = producer.send(vec![record("a")]).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(3600), &mut receipt).await.is_err());
    assert_eq!(producer.flush(Duration::from_secs(1)).await.unwrap(), 1, "it is still open");
    log.faults().release_acks();
    assert!(receipt.await[0].is_ok());
    assert_eq!(producer.flush(Duration::from_secs(1)).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn commits_reads_and_transactions_fail_on_demand() {
    let log = new_log().await;
    let consumer = log.consumer(member("c")).await.unwrap();
    assigned(&*consumer).await;
    let commit = || vec![Commit { source: TopicPartition::new(topic(), 0), offset: 0, metadata: "m".into() }];
    log.faults().fail_commits(1, true);
    assert!(consumer.commit(commit()).await.unwrap_err().is_retryable());
    assert!(log.group_offsets("g").await.unwrap().is_empty());
    consumer.commit(commit()).await.unwrap();

    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    let _ = producer.send(vec![record("a")]).await.unwrap().await;
    log.faults().fail_reads(1, true);
    let (mut failures, mut records) = (0, 0);
    while records == 0 {
        match consumer.next().await {
            Ok(Event::Records(batch)) => records += batch.records.len(),
            Ok(_) => {}
            Err(error) => {
                assert!(error.is_retryable());
                failures += 1;
            }
        }
    }
    assert_eq!((failures, records), (1, 1), "after a failed read it goes on");

    let mut transactional = log.transactional(TransactionalConfig::new("t")).await.unwrap();
    transactional.begin().await.unwrap();
    transactional.send(vec![record("b")]).await.unwrap();
    log.faults().fail_transactions(1, true);
    assert!(transactional.commit().await.is_err());
    transactional.abort().await.unwrap();
    assert_eq!(end(&log).await, 1);
    transactional.begin().await.unwrap();
    tokio::time::advance(Duration::from_secs(16)).await;
    assert!(matches!(transactional.commit().await, Err(Error::TimedOut { .. })), "open for too long");
}

#[tokio::test(start_paused = true)]
async fn an_expired_member_loses_all_and_joins_anew() {
    let log = new_log().await;
    let consumer = log.consumer(member("c")).await.unwrap();
    assigned(&*consumer).await;
    assert_eq!(log.expire("c"), 1);
    let commit = vec![Commit { source: TopicPartition::new(topic(), 0), offset: 0, metadata: String::new() }];
    assert!(matches!(consumer.commit(commit.clone()).await, Err(Error::Fenced { .. })));
    loop {
        if let Event::Lost(partitions) = consumer.next().await.unwrap() {
            assert_eq!(partitions, [TopicPartition::new(topic(), 0)]);
            break;
        }
    }
    assigned(&*consumer).await;
    consumer.commit(commit).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_member_that_is_not_polled_leaves_in_paused_time_too() {
    let log = new_log().await;
    let (slow, quick) = (log.consumer(member("slow")).await.unwrap(), log.consumer(member("quick")).await.unwrap());
    assigned(&*slow).await;
    let began = tokio::time::Instant::now();
    assigned(&*quick).await;
    assert!(began.elapsed() >= Duration::from_secs(299), "{:?}", began.elapsed());
    loop {
        if let Event::Lost(_) = slow.next().await.unwrap() {
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_revocation_held_too_long_is_taken_away() {
    let log = new_log().await;
    log.ensure_topic(&TopicSpec {
        topic: topic(),
        partitions: 2,
        replication: None,
        settings: TopicSettings::default(),
    })
    .await
    .unwrap();
    let first = log.consumer(member("first")).await.unwrap();
    assigned(&*first).await;
    let second = log.consumer(member("second")).await.unwrap();
    let joining = tokio::spawn(async move {
        assigned(&*second).await;
        second
    });
    let held = loop {
        if let Event::Revoked(revocation) = first.next().await.unwrap() {
            break revocation;
        }
    };
    let second = joining.await.unwrap();
    let commit = Commit { source: held.partitions[0].clone(), offset: 0, metadata: String::new() };
    assert!(matches!(first.commit(vec![commit]).await, Err(Error::Fenced { .. })));
    drop(second);
}
