//! What is written comes back: order, partitions, keys, values, headers, limits.

use std::time::Duration;

use bytes::Bytes;
use pipedoc_model::headers::Headers;

use super::Bed;
use super::tools::*;
use crate::error::Error;
use crate::log::{OutgoingRecord, ProducerConfig, TopicSettings};
use crate::size;

pub async fn records_of_a_partition_keep_their_order(bed: &dyn Bed) {
    let log = bed.open().await;
    let topic = new_topic(&*log, "order", 3).await;
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    let mut receipts = Vec::new();
    for round in 0..20 {
        let batch = (0..30).map(|n| record(&topic, n % 3, format!("{:04}", round * 30 + n)));
        receipts.push(producer.send(batch.collect()).await.unwrap());
    }
    let mut delivered = Vec::new();
    for receipt in receipts {
        delivered.extend(receipt.await.into_iter().map(Result::unwrap));
    }
    assert_eq!(delivered.len(), 600);
    let records = read_all(bed, &*log, &topic).await;
    assert_eq!(records.len(), 600);
    for partition in 0..3 {
        let of_partition: Vec<_> = records.iter().filter(|(source, _)| source.partition == partition).collect();
        assert!(of_partition.windows(2).all(|pair| pair[0].1.offset < pair[1].1.offset), "offsets grow");
        let values: Vec<String> = of_partition.iter().map(|(_, record)| text(record)).collect();
        let sent: Vec<String> = (0..600).filter(|n| n % 3 == partition).map(|n| format!("{n:04}")).collect();
        assert_eq!(values, sent);
        let reported: Vec<i64> = delivered.iter().filter(|d| d.partition == partition).map(|d| d.offset).collect();
        let read: Vec<i64> = of_partition.iter().map(|(_, record)| record.offset).collect();
        assert_eq!(reported, read, "reports tell where the records lie");
    }
}

/// Hashes from `org.apache.kafka.common.utils.UtilsTest#testMurmur2`.
pub async fn keys_choose_partitions_as_kafkas_java_client_does(bed: &dyn Bed) {
    let vectors: [(&str, i32); 6] = [
        ("21", -973_932_308),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
        ("abc", 479_470_107),
    ];
    let log = bed.open().await;
    for partitions in [1, 7] {
        let topic = new_topic(&*log, "keys", partitions).await;
        let keyed = |key: &str| {
            OutgoingRecord::new(topic.clone(), Some(Bytes::copy_from_slice(key.as_bytes())), Some("v".into()))
        };
        let delivered = send(&*log, vectors.iter().map(|(key, _)| keyed(key)).collect()).await;
        let found: Vec<i32> = delivered.iter().map(|delivered| delivered.partition).collect();
        let expected: Vec<i32> = vectors.iter().map(|(_, hash)| (hash & 0x7fff_ffff) % partitions).collect();
        assert_eq!(found, expected);
        let chosen = OutgoingRecord { partition: Some(partitions - 1), ..keyed("abc") };
        assert_eq!(send(&*log, vec![chosen]).await[0].partition, partitions - 1, "a named partition wins over the key");
    }
}

pub async fn a_tombstone_is_not_an_empty_value(bed: &dyn Bed) {
    let log = bed.open().await;
    let topic = new_topic(&*log, "tombstone", 1).await;
    type Content = Option<&'static [u8]>;
    let contents: [(Content, Content); 4] =
        [(Some(b"k"), None), (Some(b"k"), Some(b"")), (Some(b""), Some(b"v")), (None, Some(b"v"))];
    let outgoing = contents.map(|(key, value)| OutgoingRecord {
        partition: Some(0),
        ..OutgoingRecord::new(topic.clone(), key.map(Bytes::from_static), value.map(Bytes::from_static))
    });
    send(&*log, outgoing.to_vec()).await;
    let records = read_all(bed, &*log, &topic).await;
    let found: Vec<_> = records.iter().map(|(_, record)| (record.key.as_deref(), record.value.as_deref())).collect();
    assert_eq!(found, contents);
}

pub async fn headers_come_back_as_they_were_sent(bed: &dyn Bed) {
    let log = bed.open().await;
    let topic = new_topic(&*log, "headers", 1).await;
    let mut headers = Headers::new();
    headers.append("repeated", Some("first".into()));
    headers.append("binary", Some(Bytes::from_static(&[0, 255, 128, 10])));
    headers.append("repeated", Some("second".into()));
    headers.append("none", None);
    headers.append("empty", Some(Bytes::new()));
    headers.append("größe", Some("ü".into()));
    headers.append("repeated", None);
    let with = OutgoingRecord { headers: headers.clone(), ..record(&topic, 0, "with") };
    send(&*log, vec![with, record(&topic, 0, "without")]).await;
    let records = read_all(bed, &*log, &topic).await;
    assert_eq!(records[0].1.headers, headers);
    assert!(records[1].1.headers.is_empty());
}

pub async fn a_large_value_comes_back_whole(bed: &dyn Bed) {
    let log = bed.open().await;
    let topic = fresh_topic("large");
    let settings = TopicSettings { max_message_bytes: Some(6_000_000), ..TopicSettings::default() };
    log.ensure_topic(&crate::log::TopicSpec { settings, ..spec(&topic, 1) }).await.unwrap();
    let large: Vec<u8> = (0..5_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    send(&*log, vec![record(&topic, 0, "before"), record(&topic, 0, large.clone()), record(&topic, 0, "after")]).await;
    let records = read_all(bed, &*log, &topic).await;
    assert_eq!(records.len(), 3);
    assert!(records[1].1.value.as_deref() == Some(&large[..]), "the large value differs");
    assert_eq!(text(&records[2].1), "after");
}

pub async fn a_record_fits_to_the_byte(bed: &dyn Bed) {
    const LIMIT: usize = 3000;
    let log = bed.open().await;
    let topic = fresh_topic("limit");
    let settings = TopicSettings { max_message_bytes: Some(LIMIT as i32), ..TopicSettings::default() };
    log.ensure_topic(&crate::log::TopicSpec { settings, ..spec(&topic, 1) }).await.unwrap();
    let mut headers = Headers::new();
    headers.append("name", Some("value".into()));
    let of_size = |size: usize| {
        let base = size::of_record(Some(b"key"), Some(&[0; 2500]), &headers);
        let value = Bytes::from(vec![b'x'; 2500 + size - base]);
        assert_eq!(size::of_record(Some(b"key"), Some(&value), &headers), size);
        let key = Some(Bytes::from_static(b"key"));
        OutgoingRecord { headers: headers.clone(), ..OutgoingRecord::new(topic.clone(), key, Some(value)) }
    };
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    let reports = producer.send(vec![of_size(LIMIT), of_size(LIMIT + 1), of_size(LIMIT)]).await.unwrap().await;
    assert!(reports[0].is_ok(), "{:?}", reports[0]);
    let refused = reports[1].as_ref().expect_err("a byte too many");
    assert!(matches!(refused, Error::RecordTooLarge { size, limit, .. } if *size == LIMIT + 1 && *limit == LIMIT));
    assert!(!refused.is_retryable());
    assert!(reports[2].is_ok(), "{:?}", reports[2]);
    assert_eq!(read_all(bed, &*log, &topic).await.len(), 2);
}

pub async fn what_cannot_be_written_does_not_hold_up_the_rest(bed: &dyn Bed) {
    let log = bed.open().await;
    let topic = new_topic(&*log, "rest", 2).await;
    let missing = fresh_topic("missing");
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    let records = vec![
        record(&topic, 0, "first"),
        record(&missing, 0, "nowhere"),
        record(&topic, 7, "no such partition"),
        record(&topic, 1, "last"),
    ];
    let reports = producer.send(records).await.unwrap().await;
    assert!(reports[0].is_ok(), "{:?}", reports[0]);
    assert!(matches!(&reports[1], Err(Error::UnknownTopic { topic }) if *topic == missing), "{:?}", reports[1]);
    assert!(matches!(&reports[2], Err(Error::UnknownPartition { partition }) if partition.partition == 7));
    assert!(reports[3].is_ok(), "{:?}", reports[3]);
}

pub async fn timestamps_are_kept_and_found(bed: &dyn Bed) {
    let log = bed.open().await;
    let topic = fresh_topic("times");
    // Old records would otherwise be removed by a broker's default retention.
    let settings = TopicSettings { retention_ms: Some(-1), ..TopicSettings::default() };
    log.ensure_topic(&crate::log::TopicSpec { settings, ..spec(&topic, 1) }).await.unwrap();
    let base = 1_700_000_000_000_i64;
    let dated = |n: i64| OutgoingRecord { timestamp: Some(base + n * 1000), ..record(&topic, 0, n.to_string()) };
    let delivered = send(&*log, (0..10).map(dated).collect()).await;
    assert_eq!(delivered[3].timestamp, base + 3000);
    let records = read_all(bed, &*log, &topic).await;
    assert_eq!(records[3].1.timestamp, base + 3000);
    assert_eq!(log.offsets_at(&topic, base + 2500).await.unwrap(), [records[3].1.offset]);
    assert_eq!(log.offsets_at(&topic, base - 1).await.unwrap(), [records[0].1.offset]);
    let end = log.ends(&topic).await.unwrap()[0].end;
    assert_eq!(log.offsets_at(&topic, base + 60_000).await.unwrap(), [end], "the end where there is none");
}

pub async fn a_flush_waits_for_what_was_sent(bed: &dyn Bed) {
    let log = bed.open().await;
    let topic = new_topic(&*log, "flush", 1).await;
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    for round in 0..10 {
        // Dropping a receipt takes nothing back.
        drop(producer.send(numbered(&topic, 0, round * 10..round * 10 + 10)).await.unwrap());
    }
    assert_eq!(producer.flush(bed.patience()).await.unwrap(), 0);
    assert_eq!(log.ends(&topic).await.unwrap()[0].end, 100);
    assert_eq!(producer.flush(Duration::ZERO).await.unwrap(), 0, "nothing is open");
}

pub async fn records_without_key_are_spread(bed: &dyn Bed) {
    let log = bed.open().await;
    let topic = new_topic(&*log, "spread", 4).await;
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    let mut used = std::collections::BTreeSet::new();
    let deadline = tokio::time::Instant::now() + bed.patience();
    while used.len() < 3 {
        assert!(tokio::time::Instant::now() < deadline, "all of them go to partitions {used:?}");
        let unkeyed = OutgoingRecord::new(topic.clone(), None, Some("v".into()));
        for report in producer.send(vec![unkeyed; 10]).await.unwrap().await {
            used.insert(report.unwrap().partition);
        }
    }
}

pub async fn the_default_limit_is_kafkas(bed: &dyn Bed) {
    let log = bed.open().await;
    let topic = new_topic(&*log, "default", 1).await;
    let info = log.topic(&topic).await.unwrap().unwrap();
    assert_eq!(info.settings.max_message_bytes, Some(1_048_588));
    let base = size::of_record(None, Some(&vec![0; 1_048_000]), &Headers::new());
    let of_size = |size: usize| record(&topic, 0, vec![b'x'; 1_048_000 + size - base]);
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    let reports = producer.send(vec![of_size(1_048_588), of_size(1_048_589)]).await.unwrap().await;
    assert!(reports[0].is_ok(), "{:?}", reports[0]);
    assert!(
        matches!(reports[1], Err(Error::RecordTooLarge { size: 1_048_589, limit: 1_048_588, .. })),
        "{:?}",
        reports[1]
    );
    // A topic that is told to take more does so, for those who write already as well.
    let settings = TopicSettings { max_message_bytes: Some(2_000_000), ..TopicSettings::default() };
    log.ensure_topic(&crate::log::TopicSpec { settings, ..spec(&topic, 1) }).await.unwrap();
    let deadline = tokio::time::Instant::now() + bed.patience();
    // A broker takes a moment to do what it has agreed to.
    while let Err(error) = &producer.send(vec![of_size(1_048_589)]).await.unwrap().await[0] {
        assert!(matches!(error, Error::RecordTooLarge { .. }), "{error:?}");
        assert!(tokio::time::Instant::now() < deadline, "the raised limit does not hold: {error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

pub async fn times_are_found_in_every_partition(bed: &dyn Bed) {
    let log = bed.open().await;
    let topic = fresh_topic("times");
    let settings = TopicSettings { retention_ms: Some(-1), ..TopicSettings::default() };
    log.ensure_topic(&crate::log::TopicSpec { settings, ..spec(&topic, 3) }).await.unwrap();
    let base = 1_700_000_000_000_i64;
    let dated = |partition: i32, n: i64| OutgoingRecord {
        timestamp: Some(base + n * 1000),
        ..record(&topic, partition, n.to_string())
    };
    // Partition 1 has nothing; in partition 2 time does not grow with the offset.
    let records = [dated(0, 0), dated(0, 5), dated(0, 9), dated(2, 7), dated(2, 1), dated(2, 8)];
    send(&*log, records.to_vec()).await;
    for (seconds, expected) in [(0, [0, 0, 0]), (5, [1, 0, 0]), (6, [2, 0, 0]), (8, [2, 0, 2]), (10, [3, 0, 3])] {
        assert_eq!(log.offsets_at(&topic, base + seconds * 1000).await.unwrap(), expected, "{seconds} s");
    }
    let missing = log.offsets_at(&fresh_topic("missing"), base).await;
    assert!(matches!(missing, Err(Error::UnknownTopic { .. })), "{missing:?}");
}
