//! What a log removes by itself: what is too old, too much, or superseded.
//! Brokers clean whole segments only, so what is left has a lower and an upper bound.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use pipedoc_model::names::Topic;

use super::Bed;
use super::tools::*;
use crate::log::{Commit, Log, OutgoingRecord, TopicSettings, TopicSpec};

/// How often a log is looked at that has to clean.
const LOOK: Duration = Duration::from_millis(300);

async fn cleaned_topic(log: &dyn Log, word: &str, settings: TopicSettings) -> Topic {
    let topic = fresh_topic(word);
    log.ensure_topic(&TopicSpec { settings, ..spec(&topic, 1) }).await.expect("a new topic");
    topic
}

/// A text with noise behind it, that compression does not make smaller.
fn padded(text: &str, size: usize) -> Bytes {
    let mut value = vec![0; size];
    rand::fill(&mut value[..]);
    value[..text.len()].copy_from_slice(text.as_bytes());
    value.into()
}

pub async fn records_that_are_too_old_go(bed: &dyn Bed) {
    let log = bed.open().await;
    let hour = 3_600_000;
    let topic =
        cleaned_topic(&*log, "age", TopicSettings { retention_ms: Some(hour), ..TopicSettings::default() }).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    let old = |n: usize| OutgoingRecord { timestamp: Some(now - 2 * hour), ..record(&topic, 0, n.to_string()) };
    let delivered = send(&*log, (0..20).map(old).collect()).await;
    let group = fresh("g");
    let wanted = delivered[5].offset;
    let commit = Commit { source: at(&topic, 0), offset: wanted, metadata: String::new() };
    log.set_group_offsets(&group, &[commit]).await.unwrap();
    let end = delivered[19].offset + 1;
    let deadline = tokio::time::Instant::now() + bed.patience();
    loop {
        let ends = log.ends(&topic).await.unwrap()[0];
        assert_eq!(ends.end, end, "offsets stay");
        if ends.start == end {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "records of two hours ago are still there: {ends:?}");
        tokio::time::sleep(LOOK).await;
    }
    send(&*log, vec![record(&topic, 0, "new")]).await;
    let mut reader = Reader::open(bed, &*log, in_group(&group, &[&topic])).await;
    reader.until("what is left", |reader| !reader.records.is_empty()).await;
    assert_eq!(reader.values(), ["new"]);
    assert_eq!(reader.gone, [(wanted, end)], "the group is told what it has missed");
    reader.close().await;
}

pub async fn records_that_are_too_many_go(bed: &dyn Bed) {
    const EACH: usize = 100 << 10;
    const KEPT: usize = 1 << 20;
    let log = bed.open().await;
    let settings = TopicSettings { retention_bytes: Some(KEPT as i64), ..TopicSettings::default() };
    let topic = cleaned_topic(&*log, "size", settings).await;
    let mut last = 0;
    for round in 0..7 {
        let large = |n: usize| record(&topic, 0, padded(&format!("{:04}", round * 20 + n), EACH));
        last = send(&*log, (0..20).map(large).collect()).await[19].offset;
    }
    let deadline = tokio::time::Instant::now() + bed.patience();
    loop {
        let ends = log.ends(&topic).await.unwrap()[0];
        assert_eq!(ends.end, last + 1, "offsets stay");
        if (ends.end - ends.start) as usize * EACH <= KEPT + (7 << 20) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "nothing of 14 MB goes, though 1 MB was to stay: {ends:?}");
        tokio::time::sleep(LOOK).await;
    }
    let left = loop {
        let start = log.ends(&topic).await.unwrap()[0].start;
        let left = read_all(bed, &*log, &topic).await;
        // What goes while it is read leaves a gap.
        if log.ends(&topic).await.unwrap()[0].start == start {
            break left;
        }
        assert!(tokio::time::Instant::now() < deadline, "it goes on and on: {start}");
    };
    assert!(left.len() >= KEPT / EACH, "only {} records are left, less than the bound", left.len());
    assert!(left.windows(2).all(|pair| pair[0].1.offset + 1 == pair[1].1.offset), "the oldest go first");
    assert_eq!(left.last().unwrap().1.offset, last, "the newest stays");
}

pub async fn compaction_keeps_the_newest_record_of_each_key(bed: &dyn Bed) {
    const KEYS: usize = 7;
    const TOTAL: usize = 1400;
    let log = bed.open().await;
    let topic =
        cleaned_topic(&*log, "compact", TopicSettings { compact: Some(true), ..TopicSettings::default() }).await;
    let keyed = |key: &str, value: Option<Bytes>| OutgoingRecord {
        partition: Some(0),
        ..OutgoingRecord::new(topic.clone(), Some(Bytes::copy_from_slice(key.as_bytes())), value)
    };
    send(&*log, vec![keyed("deleted", Some("once there".into())), keyed("once", Some("only".into()))]).await;
    send(&*log, vec![keyed("deleted", None)]).await;
    for round in 0..14 {
        let numbered = |n: usize| keyed(&format!("k{}", n % KEYS), Some(padded(&format!("{n:05}"), 10 << 10)));
        send(&*log, (round * 100..(round + 1) * 100).map(numbered).collect()).await;
    }
    let end = log.ends(&topic).await.unwrap()[0].end;
    let deadline = tokio::time::Instant::now() + bed.patience();
    let left = loop {
        let left = read_all(bed, &*log, &topic).await;
        let deleted = |record: &crate::log::Record| record.key.as_deref() == Some(b"deleted") && record.value.is_some();
        if left.len() < TOTAL * 3 / 4 && !left.iter().any(|(_, record)| deleted(record)) {
            break left;
        }
        assert!(tokio::time::Instant::now() < deadline, "{} of {TOTAL} superseded records are still there", left.len());
        tokio::time::sleep(LOOK).await;
    };
    assert!(left.windows(2).all(|pair| pair[0].1.offset < pair[1].1.offset), "order stays");
    assert_eq!(log.ends(&topic).await.unwrap()[0].end, end, "offsets stay");
    let mut newest: BTreeMap<String, String> = BTreeMap::new();
    for (_, record) in &left {
        let key = String::from_utf8(record.key.as_ref().unwrap().to_vec()).unwrap();
        let Some(value) = &record.value else {
            assert_eq!(key, "deleted", "only that one has a tombstone");
            continue;
        };
        newest.insert(key, String::from_utf8_lossy(&value[..5.min(value.len())]).into_owned());
    }
    let mut expected: BTreeMap<String, String> =
        (TOTAL - KEYS..TOTAL).map(|n| (format!("k{}", n % KEYS), format!("{n:05}"))).collect();
    expected.insert("once".to_owned(), "only".to_owned());
    assert_eq!(newest, expected);
}
