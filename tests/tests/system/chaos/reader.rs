//! Reads topics from their start on, as everybody reads: what is committed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pipedoc_model::headers;
use pipedoc_model::names::Topic;
use pipedoc_proto::PipeDoc;
use pipedoc_tests::bed::eventually;
use pipedoc_transport::log::{
    ConsumerConfig, Event, Log, OutgoingRecord, ProducerConfig, Record, RecordBatch, Start, Subscription,
    TopicPartition,
};
use prost::Message;
use tokio::task::JoinHandle;

use super::account::{Found, Mark, Pile};
use super::chain::PARTITIONS;
use super::generator::document;

/// Key of the record that is put behind everything in a partition.
const STONE: &str = "the end";

/// Reads topics until it is dropped.
pub struct Reader {
    read: Arc<Mutex<Read>>,
    reading: JoinHandle<()>,
}

/// What was read.
#[derive(Default)]
struct Read {
    piles: BTreeMap<Topic, Vec<Found>>,
    /// Where to go on in each partition.
    positions: BTreeMap<TopicPartition, i64>,
    stones: usize,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Reader {
    /// Begins to read.
    pub fn start(log: &Arc<dyn Log>, topics: &[Topic]) -> Self {
        let partitions = topics
            .iter()
            .flat_map(|topic| (0..PARTITIONS).map(|partition| (TopicPartition::new(topic.clone(), partition), 0)));
        let piles = topics.iter().map(|topic| (topic.clone(), Vec::new())).collect();
        let read = Arc::new(Mutex::new(Read { piles, positions: partitions.collect(), stones: 0 }));
        let reading = tokio::spawn(go(Arc::clone(log), Arc::clone(&read)));
        Self { read, reading }
    }

    /// Shows what was read of each topic so far.
    pub fn look<T>(&self, look: impl FnOnce(&BTreeMap<Topic, Vec<Found>>) -> T) -> T {
        look(&self.read.lock().piles)
    }

    /// What lies in each topic, once all of them were read to their stones.
    pub async fn finish(self, limit: Duration) -> Vec<Pile> {
        eventually("all is read", limit, async || {
            let read = self.read.lock();
            (read.stones >= read.positions.len()).then_some(())
        })
        .await;
        let piles = std::mem::take(&mut self.read.lock().piles);
        piles.into_iter().map(|(topic, found)| Pile { name: topic.to_string(), found }).collect()
    }
}

/// Puts a stone behind everything: who reads what is committed comes to it only when
/// no transaction before it is open any more.
pub async fn put_stones(log: &dyn Log, topics: &[Topic]) {
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    let stone = |topic: &Topic, partition| OutgoingRecord {
        partition: Some(partition),
        ..OutgoingRecord::new(topic.clone(), Some(STONE.into()), Some(STONE.into()))
    };
    let stones = topics.iter().flat_map(|topic| (0..PARTITIONS).map(move |partition| stone(topic, partition)));
    let reports = producer.send(stones.collect()).await.unwrap().await;
    assert!(reports.iter().all(Result::is_ok), "{reports:?}");
}

async fn go(log: Arc<dyn Log>, read: Arc<Mutex<Read>>) {
    loop {
        let from = read.lock().positions.iter().map(|(source, at)| (source.clone(), Start::At(*at))).collect();
        let config = ConsumerConfig::new("checker", Subscription::Assigned(from));
        if let Ok(consumer) = log.consumer(config).await {
            loop {
                match consumer.next().await {
                    Ok(Event::Records(batch)) => read.lock().take(batch),
                    Ok(_) => {}
                    Err(error) if error.is_retryable() => tokio::time::sleep(Duration::from_millis(100)).await,
                    Err(_) => break,
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

impl Read {
    fn take(&mut self, batch: RecordBatch) {
        let RecordBatch { source, records } = batch;
        if let Some(last) = records.last() {
            self.positions.insert(source.clone(), last.offset + 1);
        }
        let pile = self.piles.entry(source.topic).or_default();
        for record in records {
            if record.key.as_deref() == Some(STONE.as_bytes()) {
                self.stones += 1;
            } else {
                pile.push(found(source.partition, &record));
            }
        }
    }
}

fn found(partition: i32, record: &Record) -> Found {
    let doc = record.value.clone().and_then(|value| PipeDoc::decode(value).ok()).unwrap_or_default();
    let key = doc.id.strip_prefix("key-").and_then(|key| key.parse().ok());
    let mark = Mark { key: key.unwrap_or(u32::MAX), number: doc.title.parse().unwrap_or(u32::MAX) };
    let number = |name| record.headers.get_i64(name).unwrap_or(-1);
    let as_generated = document(mark);
    Found {
        mark,
        place: (partition, record.offset),
        source: (number(headers::SOURCE_PARTITION), number(headers::SOURCE_OFFSET)),
        intact: (&doc.id, &doc.title, &doc.body) == (&as_generated.id, &as_generated.title, &as_generated.body)
            && record.key.as_deref() == Some(doc.id.as_bytes()),
    }
}
