//! What applications that are no modules are promised: records written and read.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails panics")]

mod bed;

use std::sync::Arc;
use std::time::Duration;

use bed::{Bed, topic};
use pipedoc_sdk::application::{Consumer, ConsumerOptions, PartitionNews, Producer};
use pipedoc_sdk::prelude::*;
use pipedoc_transport::log::Log;
use pipedoc_transport::memory::MemoryLog;

async fn bed() -> (Bed, Arc<dyn Log>, MemoryLog) {
    let (bed, memory) = Bed::memory();
    bed.topic("t", 4).await;
    let log: Arc<dyn Log> = Arc::new(memory.clone());
    (bed, log, memory)
}

fn message(key: &str) -> Message {
    Message::new(key.to_owned(), format!("value of {key}"))
}

#[tokio::test]
async fn a_synchronous_send_tells_where_the_record_lies() {
    let (bed, log, _) = bed().await;
    let producer = Producer::open(&log, "test").await.unwrap();
    let delivered = producer.send_sync(&topic("t"), message("a")).await.unwrap();
    let read = bed.read("t").await.remove(0);
    assert_eq!((read.source.partition, read.record.offset), (delivered.partition, delivered.offset));
    let chosen = Message { partition: Some(3), ..message("b") };
    assert_eq!(producer.send_sync(&topic("t"), chosen).await.unwrap().partition, 3);
    assert!(producer.close(Duration::from_secs(30)).await.is_empty());
}

#[tokio::test]
async fn many_records_each_have_their_own_report() {
    let (bed, log, _) = bed().await;
    let producer = Producer::open(&log, "test").await.unwrap();
    let mut messages: Vec<_> = (0..10).map(|n| (topic("t"), message(&format!("k{n}")))).collect();
    messages.insert(5, (topic("missing"), message("lost")));
    let reports = producer.send_many_sync(messages).await.unwrap();
    assert_eq!(reports.iter().filter(|report| report.is_ok()).count(), 10);
    assert!(reports[5].as_ref().unwrap_err().to_string().contains("missing"));
    assert_eq!(bed.read("t").await.len(), 10);
    assert!(producer.close(Duration::from_secs(30)).await.is_empty(), "what was heard of is not told again");
}

#[tokio::test]
async fn closing_waits_for_what_nobody_awaits_and_tells_what_was_not_sent() {
    let (bed, log, memory) = bed().await;
    let producer = Producer::open(&log, "test").await.unwrap();
    drop(producer.send(&topic("t"), message("fine")).await.unwrap());
    drop(producer.send(&topic("missing"), message("lost")).await.unwrap());
    let unsent = producer.close(Duration::from_secs(30)).await;
    assert_eq!(unsent.len(), 1, "{unsent:?}");
    assert_eq!((unsent[0].topic.as_str(), unsent[0].key.as_deref()), ("missing", Some(&b"lost"[..])));
    assert!(unsent[0].error.is_some());
    assert_eq!(bed.read("t").await.len(), 1);
    assert!(producer.send(&topic("t"), message("late")).await.is_err(), "it is closed");

    let slow = Producer::open(&log, "test").await.unwrap();
    memory.faults().hold_acks();
    drop(slow.send(&topic("t"), message("slow")).await.unwrap());
    let unsent = slow.close(Duration::from_millis(50)).await;
    assert!(unsent.len() == 1 && unsent[0].error.is_none(), "it may still be written: {unsent:?}");
    memory.faults().release_acks();
}

#[tokio::test]
async fn a_consumer_goes_on_after_what_was_marked() {
    let (_bed, log, _) = bed().await;
    let producer = Producer::open(&log, "test").await.unwrap();
    let of = |partition, key: &str| (topic("t"), Message { partition: Some(partition), ..message(key) });
    producer.send_many_sync(vec![of(0, "a"), of(0, "b"), of(1, "c")]).await.unwrap();

    let mut first = Consumer::open(&log, ConsumerOptions::new("group", [topic("t")])).await.unwrap();
    let mut seen = 0;
    while seen < 3 {
        let batch = tokio::time::timeout(bed::PATIENCE, first.next()).await.unwrap().unwrap();
        seen += batch.records.len();
        if batch.source.partition == 0 {
            first.mark_record_as_consumed(&batch.source, &batch.records[0]);
        } else {
            first.mark_as_consumed(&batch);
        }
    }
    assert!(matches!(first.partition_news(), Some(PartitionNews::Assigned(partitions)) if partitions.len() == 4));
    first.close().await.unwrap();

    let mut second = Consumer::open(&log, ConsumerOptions::new("group", [topic("t")])).await.unwrap();
    let batch = tokio::time::timeout(bed::PATIENCE, second.next()).await.unwrap().unwrap();
    let keys: Vec<_> = batch.records.iter().map(|record| record.key.as_deref().unwrap()).collect();
    assert_eq!(keys, [b"b"], "only what was not marked");
    second.close().await.unwrap();
}

#[tokio::test]
async fn marks_are_committed_before_partitions_move() {
    let (_bed, log, _) = bed().await;
    let producer = Producer::open(&log, "test").await.unwrap();
    let messages = (0..40).map(|n| (topic("t"), Message { partition: Some(n % 4), ..message(&format!("k{n}")) }));
    producer.send_many_sync(messages.collect()).await.unwrap();

    let mut first = Consumer::open(&log, ConsumerOptions::new("group", [topic("t")])).await.unwrap();
    let mut seen = 0;
    while seen < 40 {
        let batch = tokio::time::timeout(bed::PATIENCE, first.next()).await.unwrap().unwrap();
        seen += batch.records.len();
        first.mark_as_consumed(&batch);
    }
    let mut second = Consumer::open(&log, ConsumerOptions::new("group", [topic("t")])).await.unwrap();
    let news = async {
        loop {
            // Nothing is left to be read: it only hears of its partitions.
            let next = tokio::time::timeout(Duration::from_millis(20), first.next()).await;
            assert!(next.is_err(), "{next:?}");
            match first.partition_news() {
                Some(PartitionNews::Revoked(partitions)) if !partitions.is_empty() => return partitions,
                _ => {}
            }
        }
    };
    let moved = tokio::select! {
        moved = tokio::time::timeout(bed::PATIENCE, news) => moved.unwrap(),
        batch = second.next() => panic!("it was committed, and comes again: {batch:?}"),
    };
    let committed = log.group_offsets("group").await.unwrap();
    assert!(moved.iter().all(|source| committed[source].offset == 10), "{committed:?}");
    first.close().await.unwrap();
    second.close().await.unwrap();
}
