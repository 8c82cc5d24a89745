//! Transactions: all or nothing, read committed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Bed;
use super::tools::*;
use crate::error::Error;
use crate::log::{Commit, ProducerConfig, TransactionalConfig};

pub async fn a_transaction_commits_records_and_offsets_at_once(bed: &dyn Bed) {
    let log = bed.open().await;
    let (input, output) = (new_topic(&*log, "in", 1).await, new_topic(&*log, "out", 2).await);
    let group = fresh("g");
    let delivered = send(&*log, numbered(&input, 0, 0..10)).await;
    let mut reader = Reader::open(bed, &*log, in_group(&group, &[&input])).await;
    reader.until("all records", |reader| reader.records.len() == 10).await;
    let mut watcher = Reader::open(bed, &*log, in_group(&fresh("w"), &[&output])).await;
    watcher.until("the watcher owns its partitions", |reader| reader.assigned.len() == 2).await;

    let mut transactional = log.transactional(TransactionalConfig::new(fresh("t"))).await.unwrap();
    transactional.begin().await.unwrap();
    transactional.send(vec![record(&output, 0, "a"), record(&output, 1, "b")]).await.unwrap();
    transactional.send(vec![record(&output, 0, "c")]).await.unwrap();
    let commit = Commit { source: at(&input, 0), offset: delivered[5].offset, metadata: "inside".into() };
    let member = reader.consumer.group_metadata().expect("a member");
    transactional.send_offsets(vec![commit], &member).await.unwrap();
    watcher.idle(Duration::from_millis(500)).await;
    assert!(watcher.records.is_empty(), "nothing is read before the commit");
    assert!(log.group_offsets(&group).await.unwrap().is_empty(), "nor committed");

    let reports = transactional.commit().await.unwrap();
    watcher.until("the committed records", |reader| reader.records.len() == 3).await;
    let lies_at = |value: &str| {
        let (source, record) = watcher.records.iter().find(|(_, record)| text(record) == value).unwrap();
        (source.partition, record.offset)
    };
    let reported: Vec<_> = reports.iter().map(|report| (report.partition, report.offset)).collect();
    assert_eq!(reported, [lies_at("a"), lies_at("b"), lies_at("c")]);
    let committed = &log.group_offsets(&group).await.unwrap()[&at(&input, 0)];
    assert_eq!((committed.offset, committed.metadata.as_str()), (delivered[5].offset, "inside"));

    // The producer goes on.
    transactional.begin().await.unwrap();
    transactional.send(vec![record(&output, 1, "d")]).await.unwrap();
    transactional.commit().await.unwrap();
    watcher.until("the next transaction's record", |reader| reader.records.len() == 4).await;
    reader.close().await;
    watcher.close().await;
}

pub async fn an_aborted_transaction_was_never_there(bed: &dyn Bed) {
    let log = bed.open().await;
    let (input, output) = (new_topic(&*log, "in", 1).await, new_topic(&*log, "out", 1).await);
    let group = fresh("g");
    send(&*log, numbered(&input, 0, 0..3)).await;
    let mut reader = Reader::open(bed, &*log, in_group(&group, &[&input])).await;
    reader.until("all records", |reader| reader.records.len() == 3).await;
    let mut transactional = log.transactional(TransactionalConfig::new(fresh("t"))).await.unwrap();

    assert!(matches!(transactional.commit().await, Err(Error::Misuse { .. })), "nothing is open");
    transactional.begin().await.unwrap();
    assert!(matches!(transactional.begin().await, Err(Error::Misuse { .. })), "one at a time");
    transactional.abort().await.unwrap();

    transactional.begin().await.unwrap();
    transactional.send(vec![record(&output, 0, "undone")]).await.unwrap();
    let commit = Commit { source: at(&input, 0), offset: 1, metadata: String::new() };
    let member = reader.consumer.group_metadata().unwrap();
    transactional.send_offsets(vec![commit], &member).await.unwrap();
    transactional.abort().await.unwrap();

    // A record that cannot be written fails the transaction; abort makes it good.
    transactional.begin().await.unwrap();
    let sent = transactional.send(vec![record(&output, 0, "too"), record(&output, 0, vec![0; 2_000_000])]).await;
    assert!(matches!(sent, Err(Error::RecordTooLarge { .. })), "{sent:?}");
    assert!(transactional.commit().await.is_err(), "a failed transaction cannot be committed");
    transactional.abort().await.unwrap();

    transactional.begin().await.unwrap();
    transactional.send(vec![record(&output, 0, "done")]).await.unwrap();
    transactional.commit().await.unwrap();
    let values: Vec<String> = read_all(bed, &*log, &output).await.iter().map(|(_, record)| text(record)).collect();
    assert_eq!(values, ["done"]);
    assert!(log.group_offsets(&group).await.unwrap().is_empty());
    reader.close().await;
}

pub async fn a_transaction_may_hold_offsets_alone(bed: &dyn Bed) {
    let log = bed.open().await;
    let input = new_topic(&*log, "in", 2).await;
    let group = fresh("g");
    send(&*log, [numbered(&input, 0, 0..4), numbered(&input, 1, 0..4)].concat()).await;
    let mut reader = Reader::open(bed, &*log, in_group(&group, &[&input])).await;
    reader.until("all records", |reader| reader.records.len() == 8).await;
    let mut transactional = log.transactional(TransactionalConfig::new(fresh("t"))).await.unwrap();
    let commit = |partition, offset, metadata: &str| Commit {
        source: at(&input, partition),
        offset,
        metadata: metadata.to_owned(),
    };
    transactional.begin().await.unwrap();
    let member = reader.consumer.group_metadata().unwrap();
    transactional.send_offsets(vec![commit(0, 1, "early")], &member).await.unwrap();
    // The later one wins within a transaction.
    transactional.send_offsets(vec![commit(0, 3, "late"), commit(1, 2, "")], &member).await.unwrap();
    assert_eq!(transactional.commit().await.unwrap(), []);
    let offsets = log.group_offsets(&group).await.unwrap();
    let found: Vec<_> = offsets.values().map(|committed| (committed.offset, committed.metadata.as_str())).collect();
    assert_eq!(found, [(3, "late"), (2, "")]);

    // Metadata has its limit here as well, and an empty transaction is one too.
    transactional.begin().await.unwrap();
    let long = transactional.send_offsets(vec![commit(0, 4, &"m".repeat(4097))], &member).await;
    assert!(matches!(long, Err(Error::MetadataTooLarge { size: 4097, .. })), "{long:?}");
    transactional.abort().await.unwrap();
    transactional.begin().await.unwrap();
    transactional.commit().await.expect("a transaction with nothing in it");
    assert_eq!(log.group_offsets(&group).await.unwrap(), offsets);
    reader.close().await;
}

pub async fn transactions_of_many_writers_are_seen_whole(bed: &dyn Bed) {
    const WRITERS: usize = 3;
    const EACH: usize = 9;
    let log = bed.open().await;
    let topic = new_topic(&*log, "whole", 2).await;
    let mut reader = Reader::open(bed, &*log, in_group(&fresh("g"), &[&topic])).await;
    reader.until("both partitions", |reader| reader.assigned.len() == 2).await;
    let mut writing = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let (log, topic) = (bed.open().await, topic.clone());
        writing.spawn(async move {
            let mut transactional = log.transactional(TransactionalConfig::new(fresh("t"))).await.unwrap();
            for number in 0..EACH {
                transactional.begin().await.unwrap();
                // Each part of it in another partition, in several sends.
                for part in 0..4 {
                    let value = format!("{writer} {number} {part}");
                    transactional.send(vec![record(&topic, part % 2, value)]).await.unwrap();
                }
                if number % 3 == 1 {
                    transactional.abort().await.unwrap();
                } else {
                    transactional.commit().await.unwrap();
                }
            }
        });
    }
    // Somebody who knows no transactions writes in between.
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    for number in 0..EACH {
        let value = format!("{WRITERS} {number} 0");
        assert!(producer.send(vec![record(&topic, 0, value)]).await.unwrap().await[0].is_ok());
    }
    while let Some(written) = writing.join_next().await {
        written.unwrap();
    }
    let committed = (0..EACH).filter(|number| number % 3 != 1).count();
    let expected = WRITERS * committed * 4 + EACH;
    reader.until("all that was committed", |reader| reader.records.len() >= expected).await;
    reader.idle(Duration::from_millis(300)).await;
    let mut parts: BTreeMap<(usize, usize), BTreeSet<usize>> = BTreeMap::new();
    let mut last: BTreeMap<(i32, usize), (usize, usize)> = BTreeMap::new();
    for (source, record) in &reader.records {
        let numbers: Vec<usize> = text(record).split(' ').map(|word| word.parse().unwrap()).collect();
        let [writer, number, part] = numbers[..] else { panic!("{numbers:?}") };
        assert!(parts.entry((writer, number)).or_default().insert(part), "{numbers:?} came twice");
        let before = last.insert((source.partition, writer), (number, part));
        assert!(before < Some((number, part)), "{numbers:?} came after {before:?}");
    }
    for writer in 0..WRITERS {
        for number in 0..EACH {
            let found = parts.get(&(writer, number)).map_or(0, BTreeSet::len);
            assert_eq!(found, if number % 3 == 1 { 0 } else { 4 }, "transaction {number} of writer {writer}");
        }
    }
    assert_eq!(reader.records.len(), expected);
    reader.close().await;
}

pub async fn a_large_transaction_keeps_the_order_of_its_records_and_reports(bed: &dyn Bed) {
    const COUNT: usize = 4000;
    const PARTITIONS: i32 = 3;
    let log = bed.open().await;
    let topic = new_topic(&*log, "large", PARTITIONS).await;
    let padding = "x".repeat(1024);
    // Two thirds of them lie in one partition: more than a request holds.
    let partition = |number: usize| if number.is_multiple_of(3) { 1 + (number / 3 % 2) as i32 } else { 0 };
    let records = |numbers: std::ops::Range<usize>| -> Vec<_> {
        numbers.map(|number| record(&topic, partition(number), format!("{number} {padding}"))).collect()
    };
    let mut transactional = log.transactional(TransactionalConfig::new(fresh("t"))).await.unwrap();
    transactional.begin().await.unwrap();
    transactional.send(records(0..COUNT - 10)).await.unwrap();
    transactional.send(records(COUNT - 10..COUNT)).await.unwrap();
    let reports = transactional.commit().await.unwrap();

    let read = read_all(bed, &*log, &topic).await;
    assert_eq!((reports.len(), read.len()), (COUNT, COUNT));
    let mut last = [None; PARTITIONS as usize];
    for (source, record) in &read {
        let number: usize = text(record).split(' ').next().unwrap().parse().unwrap();
        assert_eq!((reports[number].partition, reports[number].offset), (source.partition, record.offset), "{number}");
        let before = last[source.partition as usize].replace(number);
        assert!(before < Some(number), "{number} came after {before:?}");
    }
}
