//! Balance: members that join, leave, die or stall, and what becomes of their share.

use std::collections::BTreeSet;

use super::Bed;
use super::tools::*;
use crate::log::{Commit, ConsumerConfig, ProducerConfig};

/// A member that is given up soon when it is not polled.
fn impatient(group: &str, topic: &pipedoc_model::names::Topic) -> ConsumerConfig {
    ConsumerConfig { max_poll_interval: STALL, ..ConsumerConfig::new("balance", in_group(group, &[topic])) }
}

/// Polls members until each has an equal share of so many partitions; nothing
/// may have two owners on the way.
async fn settle(members: &mut [Reader], partitions: usize, what: &str) {
    let share = partitions / members.len();
    let mut members: Vec<&mut Reader> = members.iter_mut().collect();
    together(&mut members, what, |members| {
        let mut owned = BTreeSet::new();
        for source in members.iter().flat_map(|member| member.assigned.keys()) {
            assert!(owned.insert(source.clone()), "{source} has two owners");
        }
        owned.len() == partitions && members.iter().all(|member| member.assigned.len() == share)
    })
    .await;
}

pub async fn shares_stay_equal_through_join_leave_and_death(bed: &dyn Bed) {
    let log = bed.open().await;
    let topic = new_topic(&*log, "balance", 6).await;
    let group = fresh("g");
    let mut members = Vec::new();
    for number in 1..=3 {
        members.push(Reader::with(bed, &*bed.open().await, impatient(&group, &topic)).await);
        settle(&mut members, 6, &format!("{number} members share six partitions")).await;
    }
    members.remove(1).close().await;
    settle(&mut members, 6, "one has left, the others have three each").await;
    // A member that is never polled again is as good as dead.
    let dead = members.remove(0);
    settle(&mut members, 6, "one has died, the last has all").await;
    assert!(dead.lost.is_empty(), "it was told nothing, for it did not ask");
    members.remove(0).close().await;
}

pub async fn others_go_on_while_a_member_stalls(bed: &dyn Bed) {
    let (log, other) = (bed.open().await, bed.open().await);
    let topic = new_topic(&*log, "stall", 2).await;
    let group = fresh("g");
    let first = Reader::with(bed, &*log, impatient(&group, &topic)).await;
    let second = Reader::open(bed, &*other, in_group(&group, &[&topic])).await;
    let mut members = [first, second];
    settle(&mut members, 2, "one partition each").await;
    let [mut stalled, mut lively] = members;
    let producer = log.producer(ProducerConfig::default()).await.expect("a producer");
    let mine = lively.assigned.keys().next().unwrap().partition;
    let theirs = 1 - mine;
    send(&*log, numbered(&topic, theirs, 0..3)).await;

    let mut sent = 0;
    let deadline = tokio::time::Instant::now() + bed.patience();
    while lively.assigned.len() < 2 {
        assert!(tokio::time::Instant::now() < deadline, "the stalled member keeps its partition");
        let reports = producer.send(vec![record(&topic, mine, format!("lively {sent}"))]).await.expect("a send").await;
        assert!(reports[0].is_ok(), "{reports:?}");
        sent += 1;
        lively.until("its own records go on", |reader| of(reader, mine) == sent).await;
    }
    assert!(sent > 0, "no record came while the other stalled");
    lively.until("what the stalled one left", |reader| of(reader, theirs) == 3).await;
    let commit = |source: &crate::log::TopicPartition| Commit {
        source: source.clone(),
        offset: lively
            .records
            .iter()
            .filter(|(from, _)| from == source)
            .map(|(_, record)| record.offset)
            .max()
            .unwrap()
            + 1,
        metadata: String::new(),
    };
    let commits = lively.assigned.keys().map(commit).collect();
    lively.consumer.commit(commits).await.expect("its own commit");

    // Awake again, the other learns of its loss and gets a share anew.
    together(&mut [&mut stalled, &mut lively], "both have a share again", |readers| {
        readers[0].lost.len() == 1 && readers.iter().all(|reader| reader.assigned.len() == 1)
    })
    .await;
    stalled.close().await;
    lively.close().await;
}

/// How many records of a partition came.
fn of(reader: &Reader, partition: i32) -> usize {
    reader.records.iter().filter(|(source, _)| source.partition == partition).count()
}
