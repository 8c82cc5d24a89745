//! Groups: sharing, taking over, going on where the group stands, patterns.

use std::time::Duration;

use regex::Regex;

use super::Bed;
use super::tools::*;
use crate::error::Error;
use crate::log::{Commit, Start, Subscription};

pub async fn members_share_partitions_and_take_over(bed: &dyn Bed) {
    let (log, other) = (bed.open().await, bed.open().await);
    let topic = new_topic(&*log, "share", 4).await;
    let group = fresh("g");
    let mut first = Reader::open(bed, &*log, in_group(&group, &[&topic])).await;
    first.until("one member has all", |reader| reader.assigned.len() == 4).await;

    let mut second = Reader::open(bed, &*other, in_group(&group, &[&topic])).await;
    together(&mut [&mut first, &mut second], "two members have two each", |readers| {
        readers.iter().all(|reader| reader.assigned.len() == 2)
    })
    .await;
    assert!(first.assigned.keys().all(|source| !second.assigned.contains_key(source)), "no partition has two owners");

    let all: Vec<_> = (0..4).flat_map(|partition| numbered(&topic, partition, 0..10)).collect();
    send(&*log, all).await;
    together(&mut [&mut first, &mut second], "both read what is theirs", |readers| {
        readers.iter().all(|reader| reader.records.len() >= 20)
    })
    .await;
    for reader in [&first, &second] {
        assert!(reader.records.iter().all(|(source, _)| reader.assigned.contains_key(source)));
    }

    // Dropped, not closed: it leaves all the same.
    drop(first);
    second.until("the one that is left has all", |reader| reader.assigned.len() == 4).await;
    second.until("what was not committed comes again", |reader| reader.records.len() >= 40).await;
    second.close().await;
}

pub async fn reading_resumes_where_the_group_committed(bed: &dyn Bed) {
    let (log, other) = (bed.open().await, bed.open().await);
    let topic = new_topic(&*log, "resume", 1).await;
    let group = fresh("g");
    let delivered = send(&*log, numbered(&topic, 0, 0..10)).await;
    let mut reader = Reader::open(bed, &*log, in_group(&group, &[&topic])).await;
    reader.until("all records", |reader| reader.records.len() == 10).await;
    assert!(reader.assigned.values().all(|assigned| assigned.committed.is_none()));
    let commit = Commit { source: at(&topic, 0), offset: delivered[6].offset, metadata: "beyond: 8–9 ✓".into() };
    reader.consumer.commit(vec![commit]).await.unwrap();
    reader.close().await;

    let committed = log.group_offsets(&group).await.unwrap();
    assert_eq!(committed[&at(&topic, 0)].offset, delivered[6].offset);
    let mut reader = Reader::open(bed, &*other, in_group(&group, &[&topic])).await;
    reader.until("the rest", |reader| reader.records.len() == 4).await;
    assert_eq!(reader.values(), ["6", "7", "8", "9"]);
    let assigned = &reader.assigned[&at(&topic, 0)];
    assert_eq!(assigned.position, delivered[6].offset);
    let committed = assigned.committed.as_ref().expect("what was committed");
    assert_eq!((committed.offset, committed.metadata.as_str()), (delivered[6].offset, "beyond: 8–9 ✓"));
    reader.close().await;
}

pub async fn a_pattern_picks_up_topics_made_later(bed: &dyn Bed) {
    let log = bed.open().await;
    let word = fresh("later");
    let named = |suffix: &str| pipedoc_model::names::Topic::new(&format!("{word}.{suffix}")).unwrap();
    let (early, late, awaited) = (named("early"), named("late"), fresh_topic("awaited"));
    log.ensure_topic(&spec(&early, 1)).await.unwrap();
    send(&*log, vec![record(&early, 0, "early")]).await;
    let subscription = Subscription::Group {
        group: fresh("g"),
        topics: vec![awaited.clone()],
        patterns: vec![Regex::new(&format!(r"{word}\.[a-z]+|{word}")).unwrap()],
        start: Start::Earliest,
    };
    let mut reader = Reader::open(bed, &*log, subscription).await;
    reader.until("the topic that was there", |reader| reader.values() == ["early"]).await;

    // Another process makes them, and writes before anybody reads.
    let other = bed.open().await;
    let unwanted = [named("early.more"), named("dlq"), named("state"), named("upper-CASE")];
    for topic in unwanted.iter().chain([&late, &awaited]) {
        other.ensure_topic(&spec(topic, 2)).await.unwrap();
        send(&*other, vec![record(topic, 1, topic.as_str().to_owned())]).await;
    }
    reader.until("the topics that came later", |reader| reader.records.len() >= 3).await;
    reader.idle(Duration::from_millis(500)).await;
    let mut values = reader.values();
    values.sort();
    let mut expected = vec!["early".to_owned(), late.to_string(), awaited.to_string()];
    expected.sort();
    assert_eq!(values, expected);
    reader.close().await;
}

pub async fn a_revocation_holds_partitions_back_while_it_lasts(bed: &dyn Bed) {
    let (log, other) = (bed.open().await, bed.open().await);
    let topic = new_topic(&*log, "hold", 2).await;
    let group = fresh("g");
    let all = [numbered(&topic, 0, 0..10), numbered(&topic, 1, 0..10)].concat();
    let delivered = send(&*log, all).await;
    let mut first = Reader::open(bed, &*log, in_group(&group, &[&topic])).await;
    first.hold = true;
    first.until("all records", |reader| reader.records.len() == 20).await;

    let mut second = Reader::open(bed, &*other, in_group(&group, &[&topic])).await;
    together(&mut [&mut first, &mut second], "the first is asked to give up", |readers| !readers[0].held.is_empty())
        .await;
    let revoked = first.held[0].partitions.clone();
    // Work on what was handed out before may still finish and be committed.
    together(&mut [&mut first, &mut second], "time passes", {
        let until = tokio::time::Instant::now() + Duration::from_millis(700);
        move |_| tokio::time::Instant::now() >= until
    })
    .await;
    assert!(revoked.iter().all(|source| !second.assigned.contains_key(source)), "held partitions have no new owner");
    let middle = delivered[5].offset;
    let commit = |source: &crate::log::TopicPartition| Commit {
        source: source.clone(),
        offset: middle,
        metadata: "held".to_owned(),
    };
    first.consumer.commit(revoked.iter().map(commit).collect()).await.expect("a commit while held");
    first.hold = false;
    first.held.clear();
    let moved = revoked.iter().find(|source| !first.assigned.contains_key(source)).unwrap().clone();
    together(&mut [&mut first, &mut second], "one partition each", |readers| {
        readers.iter().all(|reader| reader.assigned.len() == 1)
    })
    .await;
    let source = second.assigned.keys().next().unwrap().clone();
    assert!(revoked.contains(&source), "{source} moved, {moved} was given up");
    let committed = second.assigned[&source].committed.clone().expect("the commit made while held");
    assert_eq!((committed.offset, committed.metadata.as_str()), (middle, "held"));
    second.until("the rest of the moved partition", |reader| reader.records.len() >= 5).await;
    let refused = first.consumer.commit(vec![commit(&source)]).await;
    assert!(matches!(refused, Err(Error::Fenced { .. })), "{refused:?}");
    first.close().await;
    second.close().await;
}

pub async fn a_closed_consumer_frees_its_partitions_at_once(bed: &dyn Bed) {
    let (log, other) = (bed.open().await, bed.open().await);
    let topic = new_topic(&*log, "close", 2).await;
    let group = fresh("g");
    let mut first = Reader::open(bed, &*log, in_group(&group, &[&topic])).await;
    first.until("all partitions", |reader| reader.assigned.len() == 2).await;
    let waiting = first.consumer.clone();
    let next = tokio::spawn(async move {
        loop {
            match waiting.next().await {
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    });
    first.close().await;
    let error = tokio::time::timeout(bed.patience(), next).await.expect("a waiting next ends").unwrap();
    assert!(matches!(error, Error::Closed { .. }), "{error:?}");
    assert!(matches!(first.consumer.next().await, Err(Error::Closed { .. })));
    let mut second = Reader::open(bed, &*other, in_group(&group, &[&topic])).await;
    second.until("all partitions again", |reader| reader.assigned.len() == 2).await;
    second.close().await;
}

pub async fn nothing_is_lost_while_members_come_and_go(bed: &dyn Bed) {
    const TOTAL: usize = 1200;
    let log = bed.open().await;
    let topic = new_topic(&*log, "churn", 4).await;
    let group = fresh("g");
    let producer = log.producer(Default::default()).await.unwrap();
    let mut members: Vec<Reader> = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    let mut done = std::collections::BTreeMap::new();
    let mut sent = 0;
    let deadline = tokio::time::Instant::now() + 3 * bed.patience();
    while seen.len() < TOTAL {
        assert!(tokio::time::Instant::now() < deadline, "{} of {TOTAL} records came", seen.len());
        if sent < TOTAL {
            let batch = (sent..sent + 20).map(|n| record(&topic, (n % 4) as i32, n.to_string()));
            assert!(producer.send(batch.collect()).await.unwrap().await.iter().all(Result::is_ok));
            // Somebody joins or leaves at each fifth of the way.
            if sent % (TOTAL / 5) == 0 {
                if members.len() < 2 || sent % (TOTAL * 2 / 5) == 0 {
                    members.push(Reader::open(bed, &*bed.open().await, in_group(&group, &[&topic])).await);
                } else {
                    members.remove(0).close().await;
                }
            }
            sent += 20;
        }
        for member in &mut members {
            member.step(Duration::from_millis(5)).await;
            let mut commits = std::collections::BTreeMap::new();
            for (source, record) in member.records.drain(..) {
                seen.insert(text(&record).parse::<usize>().unwrap());
                commits.insert(source, record.offset + 1);
            }
            let commit = |(source, offset)| Commit { source, offset, metadata: String::new() };
            match member.consumer.commit(commits.clone().into_iter().map(commit).collect()).await {
                Ok(()) => {
                    for (source, offset) in commits {
                        let before = done.insert(source.clone(), offset).unwrap_or(0);
                        assert!(before <= offset, "{source} went back from {before} to {offset}");
                    }
                }
                // Another has it by now, and gets the records as well.
                Err(Error::Fenced { .. }) => {}
                Err(error) => assert!(error.is_retryable(), "{error:?}"),
            }
        }
    }
    assert_eq!(seen, (0..TOTAL).collect());
    for member in members {
        member.close().await;
    }
}
