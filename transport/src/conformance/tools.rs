//! What the cases have in common: names nobody else uses, records, and a reader
//! that remembers all it was told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pipedoc_model::names::Topic;
use tokio::time::Instant;

use super::Bed;
use crate::log::{
    AssignedPartition, Consumer, ConsumerConfig, Delivered, Event, Log, OutgoingRecord, ProducerConfig, Record,
    Revocation, Start, Subscription, TopicPartition, TopicSettings, TopicSpec,
};

/// How long a member of those tests may go unpolled whose matter is that it stalls.
/// Others are polled much more often, also on a slow machine.
pub(super) const STALL: Duration = Duration::from_secs(3);

/// A name that nobody has used.
pub(super) fn fresh(word: &str) -> String {
    format!("{word}-{}", uuid::Uuid::new_v4().simple())
}

/// A topic's name that nobody has used.
pub(super) fn fresh_topic(word: &str) -> Topic {
    Topic::new(&fresh(word)).unwrap()
}

/// A topic with so many partitions.
pub(super) fn spec(topic: &Topic, partitions: i32) -> TopicSpec {
    TopicSpec { topic: topic.clone(), partitions, replication: None, settings: TopicSettings::default() }
}

/// Makes a new topic.
pub(super) async fn new_topic(log: &dyn Log, word: &str, partitions: i32) -> Topic {
    let topic = fresh_topic(word);
    log.ensure_topic(&spec(&topic, partitions)).await.expect("a new topic");
    topic
}

/// A partition.
pub(super) fn at(topic: &Topic, partition: i32) -> TopicPartition {
    TopicPartition::new(topic.clone(), partition)
}

/// A record for a partition.
pub(super) fn record(topic: &Topic, partition: i32, value: impl Into<Bytes>) -> OutgoingRecord {
    let value: Bytes = value.into();
    OutgoingRecord { partition: Some(partition), ..OutgoingRecord::new(topic.clone(), None, Some(value)) }
}

/// Records `from..to` for a partition; the value is the number.
pub(super) fn numbered(topic: &Topic, partition: i32, numbers: std::ops::Range<usize>) -> Vec<OutgoingRecord> {
    numbers.map(|n| record(topic, partition, n.to_string())).collect()
}

/// Sends records and waits until all are acknowledged.
pub(super) async fn send(log: &dyn Log, records: Vec<OutgoingRecord>) -> Vec<Delivered> {
    let producer = log.producer(ProducerConfig::default()).await.expect("a producer");
    let reports = producer.send(records).await.expect("records taken").await;
    reports.into_iter().map(|report| report.expect("a record acknowledged")).collect()
}

/// A group's subscription to topics, from the earliest record.
pub(super) fn in_group(group: &str, topics: &[&Topic]) -> Subscription {
    Subscription::Group {
        group: group.to_owned(),
        topics: topics.iter().map(|topic| (*topic).clone()).collect(),
        patterns: Vec::new(),
        start: Start::Earliest,
    }
}

/// Reads all partitions of a topic from the start, up to the end told for each.
pub(super) async fn read_all(bed: &dyn Bed, log: &dyn Log, topic: &Topic) -> Vec<(TopicPartition, Record)> {
    let partitions = log.topic(topic).await.unwrap().expect("the topic").partitions;
    let all = (0..partitions).map(|partition| (at(topic, partition), Start::Earliest)).collect();
    let mut reader = Reader::open(bed, log, Subscription::Assigned(all)).await;
    let wanted = partitions as usize;
    reader.until("all partitions read to their ends", |reader| reader.ended.len() == wanted).await;
    reader.close().await;
    reader.records
}

/// A consumer that remembers all it was told.
pub(super) struct Reader {
    pub(super) consumer: Arc<dyn Consumer>,
    pub(super) records: Vec<(TopicPartition, Record)>,
    /// What it owns.
    pub(super) assigned: BTreeMap<TopicPartition, AssignedPartition>,
    /// The ends told, the last one for each partition.
    pub(super) ended: BTreeMap<TopicPartition, i64>,
    /// How often an end was told.
    pub(super) ends_told: usize,
    pub(super) lost: Vec<TopicPartition>,
    /// Wanted offset and where it went on.
    pub(super) gone: Vec<(i64, i64)>,
    /// Whether revocations are kept, rather than dropped at once.
    pub(super) hold: bool,
    pub(super) held: Vec<Revocation>,
    patience: Duration,
}

impl Reader {
    pub(super) async fn open(bed: &dyn Bed, log: &dyn Log, subscription: Subscription) -> Self {
        Self::with(bed, log, ConsumerConfig::new("conformance", subscription)).await
    }

    pub(super) async fn with(bed: &dyn Bed, log: &dyn Log, config: ConsumerConfig) -> Self {
        Self {
            consumer: log.consumer(config).await.expect("a consumer"),
            records: Vec::new(),
            assigned: BTreeMap::new(),
            ended: BTreeMap::new(),
            ends_told: 0,
            lost: Vec::new(),
            gone: Vec::new(),
            hold: false,
            held: Vec::new(),
            patience: bed.patience(),
        }
    }

    /// Takes one event, if one comes soon.
    pub(super) async fn step(&mut self, soon: Duration) {
        let Ok(next) = tokio::time::timeout(soon, self.consumer.next()).await else { return };
        match next {
            Ok(event) => self.remember(event),
            Err(error) if error.is_retryable() => eprintln!("passing: {error}"),
            Err(error) => panic!("next failed: {error:?}"),
        }
    }

    fn remember(&mut self, event: Event) {
        match event {
            Event::Assigned(partitions) => {
                for partition in partitions {
                    let before = self.assigned.insert(partition.source.clone(), partition);
                    assert!(before.is_none(), "{before:?} was assigned twice");
                }
            }
            Event::Records(batch) => {
                assert!(!batch.records.is_empty(), "a batch without records");
                assert!(self.assigned.contains_key(&batch.source), "records of {} that is not owned", batch.source);
                self.ended.remove(&batch.source);
                for record in batch.records {
                    self.records.push((batch.source.clone(), record));
                }
            }
            Event::EndOfPartition { source, position } => {
                self.ends_told += 1;
                self.ended.insert(source, position);
            }
            Event::Revoked(revocation) => {
                for source in &revocation.partitions {
                    assert!(self.assigned.remove(source).is_some(), "{source} was revoked but not owned");
                }
                if self.hold {
                    self.held.push(revocation);
                }
            }
            Event::Lost(partitions) => {
                for source in partitions {
                    self.assigned.remove(&source);
                    self.lost.push(source);
                }
            }
            Event::OffsetsGone { wanted, resumed_at, .. } => self.gone.push((wanted, resumed_at)),
        }
    }

    /// Polls until something holds.
    pub(super) async fn until(&mut self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        together(&mut [self], what, |readers| holds(readers[0])).await;
    }

    /// Polls for a while, though nothing is expected.
    pub(super) async fn idle(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        while Instant::now() < deadline {
            self.step(Duration::from_millis(50)).await;
        }
    }

    /// Values as text, in the order they came.
    pub(super) fn values(&self) -> Vec<String> {
        self.records.iter().map(|(_, record)| text(record)).collect()
    }

    pub(super) async fn close(&self) {
        self.consumer.close().await.expect("closing");
    }
}

/// The value as text.
pub(super) fn text(record: &Record) -> String {
    String::from_utf8(record.value.as_ref().expect("a value").to_vec()).unwrap()
}

/// Polls several readers in turn until something holds for all of them.
pub(super) async fn together(readers: &mut [&mut Reader], what: &str, mut holds: impl FnMut(&[&mut Reader]) -> bool) {
    let patience = readers[0].patience;
    let deadline = Instant::now() + patience;
    while !holds(readers) {
        assert!(
            Instant::now() < deadline,
            "not within {patience:?}: {what}; owned: {:?}, records: {:?}",
            readers.iter().map(|reader| reader.assigned.keys().cloned().collect::<Vec<_>>()).collect::<Vec<_>>(),
            readers.iter().map(|reader| reader.records.len()).collect::<Vec<_>>(),
        );
        for reader in readers.iter_mut() {
            reader.step(Duration::from_millis(20)).await;
        }
    }
}
