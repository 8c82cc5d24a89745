//! Transactions: all or nothing, read committed.

use std::time::Duration;

use super::Bed;
use super::tools::*;
use crate::error::Error;
use crate::log::{Commit, TransactionalConfig};

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
