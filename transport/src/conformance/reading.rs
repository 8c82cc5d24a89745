//! Reading: pause, seek, where it begins, what is gone, cancelling.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Bed;
use super::tools::*;
use crate::error::Error;
use crate::log::{Commit, ConsumerConfig, Start, Subscription};

/// Long enough for a record to arrive that must not.
const QUIET: Duration = Duration::from_millis(700);

pub async fn a_paused_partition_rests_and_goes_on(bed: &dyn Bed) {
    let log = bed.open().await;
    let topic = new_topic(&*log, "pause", 2).await;
    send(&*log, [numbered(&topic, 0, 0..50), numbered(&topic, 1, 0..50)].concat()).await;
    let config = ConsumerConfig { max_records: 10, ..ConsumerConfig::new("p", in_group(&fresh("g"), &[&topic])) };
    let mut reader = Reader::with(bed, &*log, config).await;
    reader.until("the first records", |reader| !reader.records.is_empty()).await;
    reader.consumer.pause(&[at(&topic, 0)]);
    let of_paused = |reader: &Reader| reader.records.iter().filter(|(source, _)| source.partition == 0).count();
    let before = of_paused(&reader);
    reader.until("all of the other partition", |reader| reader.records.len() - of_paused(reader) == 50).await;
    reader.idle(QUIET).await;
    assert_eq!(of_paused(&reader), before, "nothing comes of a paused partition");
    send(&*log, numbered(&topic, 0, 50..60)).await;
    reader.consumer.resume(&[at(&topic, 0)]);
    reader.until("all of the paused partition", |reader| of_paused(reader) == 60).await;
    let numbers: Vec<String> =
        reader.records.iter().filter(|(source, _)| source.partition == 0).map(|(_, record)| text(record)).collect();
    assert_eq!(numbers, (0..60).map(|n| n.to_string()).collect::<Vec<_>>(), "nothing was left out, nothing came twice");
    reader.close().await;
}

pub async fn seeking_goes_on_elsewhere(bed: &dyn Bed) {
    let log = bed.open().await;
    let topic = new_topic(&*log, "seek", 1).await;
    let delivered = send(&*log, numbered(&topic, 0, 0..100)).await;
    let config = ConsumerConfig { max_records: 10, ..ConsumerConfig::new("s", in_group(&fresh("g"), &[&topic])) };
    let mut reader = Reader::with(bed, &*log, config).await;
    let source = at(&topic, 0);
    reader.until("the first records", |reader| !reader.records.is_empty()).await;

    reader.records.clear();
    reader.consumer.seek(&source, Start::At(delivered[40].offset)).await.unwrap();
    reader.until("records after the seek", |reader| reader.records.len() >= 60).await;
    assert_eq!(reader.values(), (40..100).map(|n| n.to_string()).collect::<Vec<_>>());

    reader.records.clear();
    reader.consumer.seek(&source, Start::Earliest).await.unwrap();
    reader.until("all records again", |reader| reader.records.len() >= 100).await;
    assert_eq!(reader.values()[0], "0");

    reader.consumer.seek(&source, Start::Earliest).await.unwrap();
    reader.consumer.seek(&source, Start::Latest).await.unwrap();
    reader.records.clear();
    send(&*log, numbered(&topic, 0, 100..101)).await;
    reader.until("the newest record", |reader| !reader.records.is_empty()).await;
    assert_eq!(reader.values(), ["100"]);
    reader.close().await;
}

pub async fn a_cancelled_next_loses_nothing(bed: &dyn Bed) {
    let log = bed.open().await;
    let topic = new_topic(&*log, "cancel", 2).await;
    let config = ConsumerConfig { max_records: 3, ..ConsumerConfig::new("c", in_group(&fresh("g"), &[&topic])) };
    let mut reader = Reader::with(bed, &*log, config).await;
    let producer = log.producer(Default::default()).await.unwrap();
    let mut sent = 0;
    let deadline = tokio::time::Instant::now() + bed.patience();
    while reader.records.len() < 400 {
        assert!(tokio::time::Instant::now() < deadline, "only {} of 400 records came", reader.records.len());
        if sent < 400 {
            let batch = [numbered(&topic, 0, sent..sent + 5), numbered(&topic, 1, sent + 5..sent + 10)].concat();
            let reports = producer.send(batch).await.unwrap().await;
            assert!(reports.iter().all(Result::is_ok));
            sent += 10;
        }
        for micros in [0, 20, 100, 500, 2000] {
            reader.step(Duration::from_micros(micros)).await;
        }
    }
    let mut numbers: Vec<usize> = reader.values().iter().map(|value| value.parse().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..400).collect::<Vec<_>>());
    reader.close().await;
}

pub async fn reading_begins_where_it_was_told(bed: &dyn Bed) {
    let log = bed.open().await;
    let topic = new_topic(&*log, "start", 1).await;
    let delivered = send(&*log, numbered(&topic, 0, 0..10)).await;
    let middle = delivered[4].offset;
    for (start, first) in [(Start::Earliest, "0"), (Start::At(middle), "4"), (Start::Latest, "10")] {
        let topic = new_topic(&*log, "start", 1).await;
        send(&*log, numbered(&topic, 0, 0..10)).await;
        let alone = Subscription::Assigned(vec![(at(&topic, 0), start)]);
        let grouped =
            Subscription::Group { group: fresh("g"), topics: vec![topic.clone()], patterns: Vec::new(), start };
        let mut alone = Reader::open(bed, &*log, alone).await;
        let mut grouped = Reader::open(bed, &*log, grouped).await;
        together(&mut [&mut alone, &mut grouped], "both have their partition and their end", |readers| {
            readers.iter().all(|reader| !reader.assigned.is_empty() && !reader.ended.is_empty())
        })
        .await;
        send(&*log, numbered(&topic, 0, 10..11)).await;
        together(&mut [&mut alone, &mut grouped], "both have read to the end", |readers| {
            readers.iter().all(|reader| reader.values().last().is_some_and(|last| last == "10"))
        })
        .await;
        assert_eq!((alone.values()[0].as_str(), grouped.values()[0].as_str()), (first, first), "{start:?}");
        let source = at(&topic, 0);
        let commit = Commit { source, offset: 1, metadata: String::new() };
        let refused = alone.consumer.commit(vec![commit]).await;
        assert!(matches!(refused, Err(Error::Misuse { .. })), "no group, no commit: {refused:?}");
        assert!(alone.consumer.group_metadata().is_none());
        alone.close().await;
        grouped.close().await;
    }
}

pub async fn overtaken_offsets_are_told(bed: &dyn Bed) {
    let log = bed.open().await;
    let topic = new_topic(&*log, "gone", 1).await;
    let delivered = send(&*log, numbered(&topic, 0, 0..20)).await;
    match log.delete_records(&at(&topic, 0), delivered[12].offset).await {
        Ok(()) => {}
        Err(Error::Misuse { reason, .. }) => {
            eprintln!("SKIPPED overtaken_offsets_are_told: {reason}");
            return;
        }
        Err(error) => panic!("{error:?}"),
    }
    let start = delivered[12].offset;
    assert_eq!(log.ends(&topic).await.unwrap()[0].start, start);
    let wanted = delivered[3].offset;
    let alone = Subscription::Assigned(vec![(at(&topic, 0), Start::At(wanted))]);
    let mut reader = Reader::open(bed, &*log, alone).await;
    reader.until("what is left", |reader| reader.records.len() == 8).await;
    assert_eq!(reader.values()[0], "12");
    assert_eq!(reader.gone, [(wanted, start)]);
    reader.close().await;

    // The same by a group whose committed offset is gone.
    let group = fresh("g");
    let commit = Commit { source: at(&topic, 0), offset: wanted, metadata: String::new() };
    log.set_group_offsets(&group, &[commit]).await.unwrap();
    let mut reader = Reader::open(bed, &*log, in_group(&group, &[&topic])).await;
    reader.until("what is left", |reader| reader.records.len() == 8).await;
    assert_eq!((reader.values()[0].as_str(), &reader.gone[..]), ("12", &[(wanted, start)][..]));
    reader.close().await;
}

pub async fn positions_and_ends_are_known(bed: &dyn Bed) {
    let log = bed.open().await;
    let topic = new_topic(&*log, "positions", 1).await;
    let delivered = send(&*log, numbered(&topic, 0, 0..25)).await;
    let config = ConsumerConfig { max_records: 10, ..ConsumerConfig::new("p", in_group(&fresh("g"), &[&topic])) };
    let mut reader = Reader::with(bed, &*log, config).await;
    reader.until("some records", |reader| !reader.records.is_empty()).await;
    let source = at(&topic, 0);
    let last = reader.records.last().unwrap().1.offset;
    assert_eq!(reader.consumer.positions().get(&source), Some(&(last + 1)));
    reader.until("the end", |reader| !reader.ended.is_empty()).await;
    let end = delivered[24].offset + 1;
    assert_eq!(reader.ended, BTreeMap::from([(source.clone(), end)]));
    assert_eq!(reader.consumer.positions(), BTreeMap::from([(source.clone(), end)]));
    let more = send(&*log, numbered(&topic, 0, 25..30)).await[4].offset + 1;
    reader.consumer.pause(std::slice::from_ref(&source));
    reader.consumer.resume(std::slice::from_ref(&source));
    reader.until("the new end is heard of", |r| r.consumer.known_ends().get(&source) == Some(&more)).await;
    reader.close().await;
}
