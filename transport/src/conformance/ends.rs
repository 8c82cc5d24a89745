//! The end of a partition: told each time it is reached, also behind transactions.

use super::Bed;
use super::tools::*;
use crate::log::{Commit, ProducerConfig, Start, Subscription, TopicPartition, TransactionalConfig};

pub async fn the_end_of_a_partition_is_told_each_time(bed: &dyn Bed) {
    let log = bed.open().await;
    let topic = new_topic(&*log, "end", 1).await;
    let mut reader = Reader::open(bed, &*log, in_group(&fresh("g"), &[&topic])).await;
    reader.until("the end of an empty partition", |reader| !reader.ended.is_empty()).await;
    assert_eq!(reader.ended[&at(&topic, 0)], 0);
    for round in 1..=3 {
        let told = reader.ends_told;
        let delivered = send(&*log, numbered(&topic, 0, 0..7)).await;
        let end = delivered[6].offset + 1;
        reader.until("the end again", |reader| reader.ended.get(&at(&topic, 0)) == Some(&end)).await;
        assert_eq!(reader.records.len(), 7 * round);
        assert!(reader.ends_told > told);
    }
    reader.close().await;
}

pub async fn the_end_is_told_behind_transactions(bed: &dyn Bed) {
    let log = bed.open().await;
    let topic = new_topic(&*log, "end", 1).await;
    let mut transactional = log.transactional(TransactionalConfig::new(fresh("t"))).await.unwrap();
    transactional.begin().await.unwrap();
    transactional.send(numbered(&topic, 0, 0..3)).await.unwrap();
    transactional.commit().await.unwrap();
    transactional.begin().await.unwrap();
    transactional.send(numbered(&topic, 0, 3..5)).await.unwrap();
    transactional.abort().await.unwrap();

    let alone = Subscription::Assigned(vec![(at(&topic, 0), Start::Earliest)]);
    let mut reader = Reader::open(bed, &*log, alone).await;
    reader.until("the end", |reader| !reader.ended.is_empty()).await;
    assert_eq!(reader.values(), ["0", "1", "2"], "all of it was handed out before the end was told");
    let end = log.ends(&topic).await.unwrap()[0].end;
    assert_eq!(reader.ended[&at(&topic, 0)], end, "the position counts what is not handed out");

    // Going on from there, nothing is missed.
    transactional.begin().await.unwrap();
    transactional.send(numbered(&topic, 0, 5..6)).await.unwrap();
    transactional.commit().await.unwrap();
    let alone = Subscription::Assigned(vec![(at(&topic, 0), Start::At(end))]);
    let mut next = Reader::open(bed, &*log, alone).await;
    next.until("the next record", |reader| reader.values() == ["5"]).await;
    assert!(next.gone.is_empty());
    next.close().await;
    reader.close().await;
}

pub async fn committed_ends_leave_no_lag_and_skip_nothing_while_others_append(bed: &dyn Bed) {
    const ROUNDS: usize = 12;
    let log = bed.open().await;
    let topic = new_topic(&*log, "lag", 2).await;
    let group = fresh("g");
    let mut reader = Reader::open(bed, &*log, in_group(&group, &[&topic])).await;
    reader.until("both ends", |reader| reader.ended.len() == 2).await;
    let writing = {
        let (log, topic) = (bed.open().await, topic.clone());
        tokio::spawn(async move {
            let producer = log.producer(ProducerConfig::default()).await.unwrap();
            let mut transactional = log.transactional(TransactionalConfig::new(fresh("t"))).await.unwrap();
            for round in 0..ROUNDS {
                transactional.begin().await.unwrap();
                let records = [record(&topic, 0, "transaction"), record(&topic, 1, "transaction")];
                transactional.send(records.to_vec()).await.unwrap();
                // Appended while the transaction is open.
                assert!(producer.send(vec![record(&topic, 0, "plain")]).await.unwrap().await[0].is_ok());
                if round % 2 == 0 {
                    transactional.commit().await.unwrap();
                } else {
                    transactional.abort().await.unwrap();
                }
            }
        })
    };
    // Each end told: the partition, the position, and how many of its records had come.
    let mut told: Vec<(TopicPartition, i64, usize)> = Vec::new();
    let deadline = tokio::time::Instant::now() + bed.patience();
    loop {
        let before = reader.ends_told;
        reader.step(std::time::Duration::from_millis(50)).await;
        if reader.ends_told > before {
            let position = |(source, offset): (&TopicPartition, &i64)| Commit {
                source: source.clone(),
                offset: *offset,
                metadata: String::new(),
            };
            let commits: Vec<Commit> = reader.ended.iter().map(position).collect();
            for Commit { source, offset, .. } in &commits {
                let come = reader.records.iter().filter(|(from, _)| from == source).count();
                told.push((source.clone(), *offset, come));
            }
            reader.consumer.commit(commits).await.expect("a commit of ends");
        }
        if writing.is_finished() {
            let committed = log.group_offsets(&group).await.unwrap();
            let ends = log.ends(&topic).await.unwrap();
            let lag: Vec<i64> = (0..2)
                .map(|n| ends[n as usize].end - committed.get(&at(&topic, n)).map_or(0, |place| place.offset))
                .collect();
            if lag == [0, 0] {
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "the lag stays at {lag:?}");
        }
    }
    writing.await.unwrap();
    assert_eq!(reader.records.len(), ROUNDS + ROUNDS, "half of the transactions' two each, and the plain ones");
    for (source, position, come) in told {
        let lie_before = reader.records.iter().filter(|(from, record)| *from == source && record.offset < position);
        assert_eq!(lie_before.count(), come, "records of {source} before {position} came after its end was told");
    }
    reader.close().await;
}
