//! Fencing: who has lost its place changes nothing any more.

use super::Bed;
use super::tools::*;
use crate::error::Error;
use crate::log::{Commit, ConsumerConfig, TransactionalConfig};

/// Opens a member and lets another take its place, by not polling it; gives the
/// stale one, the new owner, and the stale one's group metadata.
async fn stalled(bed: &dyn Bed, topic: &pipedoc_model::names::Topic, group: &str) -> (Reader, Reader) {
    let (log, other) = (bed.open().await, bed.open().await);
    let stalls =
        ConsumerConfig { max_poll_interval: STALL, ..ConsumerConfig::new("stalls", in_group(group, &[topic])) };
    let mut stale = Reader::with(bed, &*log, stalls).await;
    stale.until("all records", |reader| reader.records.len() == 5).await;
    let mut owner = Reader::open(bed, &*other, in_group(group, &[topic])).await;
    owner.until("the other takes over", |reader| reader.records.len() == 5).await;
    (stale, owner)
}

pub async fn a_member_that_is_not_polled_is_fenced(bed: &dyn Bed) {
    let log = bed.open().await;
    let topic = new_topic(&*log, "stale", 1).await;
    let group = fresh("g");
    let delivered = send(&*log, numbered(&topic, 0, 0..5)).await;
    let (mut stale, mut owner) = stalled(bed, &topic, &group).await;
    let commit = |n: usize| Commit { source: at(&topic, 0), offset: delivered[n].offset, metadata: String::new() };
    let refused = stale.consumer.commit(vec![commit(1)]).await;
    assert!(matches!(refused, Err(Error::Fenced { .. })), "{refused:?}");
    owner.consumer.commit(vec![commit(3)]).await.expect("the owner commits");
    assert_eq!(log.group_offsets(&group).await.unwrap()[&at(&topic, 0)].offset, delivered[3].offset);
    // Polled again, it learns of its loss and is a member once more.
    together(&mut [&mut stale, &mut owner], "it learns what it lost", |readers| readers[0].lost == [at(&topic, 0)])
        .await;
    owner.close().await;
    stale.until("it owns the partition again", |reader| reader.assigned.contains_key(&at(&topic, 0))).await;
    stale.close().await;
}

pub async fn an_offset_of_a_stale_member_fails_the_transaction(bed: &dyn Bed) {
    let log = bed.open().await;
    let (input, output) = (new_topic(&*log, "in", 1).await, new_topic(&*log, "out", 1).await);
    let group = fresh("g");
    send(&*log, numbered(&input, 0, 0..5)).await;
    // The metadata is taken while it still is a member.
    let mut early = Reader::open(bed, &*log, in_group(&group, &[&input])).await;
    early.until("all records", |reader| reader.records.len() == 5).await;
    let member = early.consumer.group_metadata().unwrap();
    early.close().await;
    let mut owner = Reader::open(bed, &*log, in_group(&group, &[&input])).await;
    owner.until("another takes over", |reader| reader.records.len() == 5).await;

    let mut transactional = log.transactional(TransactionalConfig::new(fresh("t"))).await.unwrap();
    transactional.begin().await.unwrap();
    transactional.send(vec![record(&output, 0, "stale")]).await.unwrap();
    let commit = Commit { source: at(&input, 0), offset: 5, metadata: String::new() };
    let refused = match transactional.send_offsets(vec![commit], &member).await {
        Ok(()) => transactional.commit().await.map(drop),
        refused => refused,
    };
    assert!(matches!(refused, Err(Error::Fenced { .. })), "{refused:?}");
    let _ = transactional.abort().await;
    drop(transactional);
    assert!(read_all(bed, &*log, &output).await.is_empty());
    assert!(log.group_offsets(&group).await.unwrap().is_empty());
    owner.close().await;
}

pub async fn a_new_transactional_id_fences_the_old(bed: &dyn Bed) {
    let (log, other) = (bed.open().await, bed.open().await);
    let topic = new_topic(&*log, "zombie", 1).await;
    let id = fresh("t");
    let mut old = log.transactional(TransactionalConfig::new(&id)).await.unwrap();
    old.begin().await.unwrap();
    old.send(vec![record(&topic, 0, "old")]).await.unwrap();

    let mut new = other.transactional(TransactionalConfig::new(&id)).await.unwrap();
    new.begin().await.unwrap();
    new.send(vec![record(&topic, 0, "new")]).await.unwrap();
    let refused = old.commit().await;
    assert!(matches!(refused, Err(Error::Fenced { .. })), "{refused:?}");
    new.commit().await.unwrap();
    assert!(matches!(old.begin().await, Err(Error::Fenced { .. })), "fencing ends the producer");
    let values: Vec<String> = read_all(bed, &*log, &topic).await.iter().map(|(_, record)| text(record)).collect();
    assert_eq!(values, ["new"]);
}

pub async fn a_zombie_that_wakes_up_commits_no_transaction(bed: &dyn Bed) {
    let log = bed.open().await;
    let (input, output) = (new_topic(&*log, "in", 1).await, new_topic(&*log, "out", 1).await);
    let group = fresh("g");
    let delivered = send(&*log, numbered(&input, 0, 0..5)).await;
    let commit = |n: usize, metadata: &str| Commit {
        source: at(&input, 0),
        offset: delivered[n].offset,
        metadata: metadata.to_owned(),
    };
    let (stale, owner) = stalled(bed, &input, &group).await;
    let mut other = log.transactional(TransactionalConfig::new(fresh("t"))).await.unwrap();
    other.begin().await.unwrap();
    other.send(vec![record(&output, 0, "owner")]).await.unwrap();
    other.send_offsets(vec![commit(4, "owner")], &owner.consumer.group_metadata().unwrap()).await.unwrap();
    other.commit().await.expect("the owner's transaction");

    // The zombie wakes up in the middle of its work; it has heard of nothing.
    let mut zombie = log.transactional(TransactionalConfig::new(fresh("t"))).await.unwrap();
    zombie.begin().await.unwrap();
    zombie.send(vec![record(&output, 0, "zombie")]).await.unwrap();
    let refused = match stale.consumer.group_metadata() {
        // It is known here already that it is no member.
        None => Err(Error::Fenced { who: "the zombie".to_owned() }),
        Some(member) => match zombie.send_offsets(vec![commit(2, "zombie")], &member).await {
            Ok(()) => zombie.commit().await.map(drop),
            refused => refused,
        },
    };
    assert!(matches!(refused, Err(Error::Fenced { .. })), "{refused:?}");
    let _ = zombie.abort().await;
    drop(zombie);
    let refused = stale.consumer.commit(vec![commit(1, "zombie")]).await;
    assert!(matches!(refused, Err(Error::Fenced { .. })), "{refused:?}");
    let values: Vec<String> = read_all(bed, &*log, &output).await.iter().map(|(_, record)| text(record)).collect();
    assert_eq!(values, ["owner"]);
    let committed = &log.group_offsets(&group).await.unwrap()[&at(&input, 0)];
    assert_eq!((committed.offset, committed.metadata.as_str()), (delivered[4].offset, "owner"));
    stale.close().await;
    owner.close().await;
}
