//! A steady load with known keys and numbers, a watcher of what comes out, and the
//! checks that hold both against each other.
//!
//! Knows the log and the headers of a hop; nothing of the processes in between.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use pipedoc_model::headers;
use pipedoc_model::names::Topic;
use pipedoc_proto::v1::PipeDoc;
use pipedoc_tests::bed::eventually;
use pipedoc_transport::kafka::{KafkaConfig, KafkaLog};
use pipedoc_transport::log::{
    ConsumerConfig, Event, Log, OutgoingRecord, ProducerConfig, Record, Start, Subscription, TopicPartition,
};
use prost::Message;

/// How many keys there are.
const KEYS: u32 = 60;
/// How often records are sent.
const TICK: Duration = Duration::from_millis(20);
/// How many records a tick sends; some 400 a second.
const A_TICK: u32 = 8;

/// A document: which key it has, and its number among those of that key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Document {
    pub key: u32,
    pub number: u32,
}

impl Document {
    fn record(self, topic: &Topic) -> OutgoingRecord {
        let id = format!("key-{}", self.key);
        let doc =
            PipeDoc { id: id.clone(), title: self.number.to_string(), body: "x".repeat(200), ..PipeDoc::default() };
        OutgoingRecord::new(topic.clone(), Some(id.into()), Some(doc.encode_to_vec().into()))
    }

    fn read(key: &Bytes, value: &Bytes) -> Self {
        let doc = PipeDoc::decode(value.clone()).expect("a document");
        assert_eq!(doc.id.as_bytes(), key.as_ref(), "the key is the id");
        let number = doc.title.parse().expect("its number");
        Self { key: doc.id["key-".len()..].parse().expect("its key"), number }
    }
}

/// The way that generator and watcher take to the cluster.
pub async fn log(bootstrap: &str) -> KafkaLog {
    KafkaLog::connect(KafkaConfig::new(bootstrap)).await.expect("the cluster answers")
}

/// Sends documents until it is stopped.
pub struct Load {
    acknowledged: Arc<Mutex<Vec<(Document, Instant)>>>,
    stop: Arc<AtomicBool>,
    sending: tokio::task::JoinHandle<u32>,
}

impl Load {
    /// Begins to send to a topic.
    pub async fn start(log: &KafkaLog, topic: &Topic) -> Self {
        Self::go_on(log, topic, 0).await
    }

    /// Begins to send to a topic where so many documents were sent before; those of
    /// a key are numbered on.
    pub async fn go_on(log: &KafkaLog, topic: &Topic, sent: u32) -> Self {
        let producer = log.producer(ProducerConfig::default()).await.expect("a producer");
        let (acknowledged, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (noted, stopped, topic) = (Arc::clone(&acknowledged), Arc::clone(&stop), topic.clone());
        let sending = tokio::spawn(async move {
            let mut receipts = tokio::task::JoinSet::new();
            let mut tick = tokio::time::interval(TICK);
            // A machine that is late sends less, not all at once.
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut sent = sent;
            while !stopped.load(Ordering::Relaxed) {
                tick.tick().await;
                let batch: Vec<_> =
                    (sent..sent + A_TICK).map(|n| Document { key: n % KEYS, number: n / KEYS }).collect();
                sent += A_TICK;
                let records = batch.iter().map(|document| document.record(&topic)).collect();
                let receipt = producer.send(records).await.expect("records are taken");
                let noted = Arc::clone(&noted);
                receipts.spawn(async move {
                    let reports = receipt.await;
                    let now = Instant::now();
                    let written = batch.into_iter().zip(reports).filter(|(_, report)| report.is_ok());
                    noted.lock().extend(written.map(|(document, _)| (document, now)));
                });
            }
            // What is under way is acknowledged, or given up on, before the load counts as stopped.
            while receipts.join_next().await.is_some() {}
            sent
        });
        Self { acknowledged, stop, sending }
    }

    /// Ends it; gives how many documents were sent since the first load, and which of
    /// its own are acknowledged.
    pub async fn stop(self) -> (u32, BTreeSet<Document>) {
        self.stop.store(true, Ordering::Relaxed);
        let sent = tokio::time::timeout(Duration::from_secs(120), self.sending).await;
        let sent = sent.expect("all is acknowledged in time").expect("the sender lives");
        (sent, self.acknowledged.lock().iter().map(|(document, _)| *document).collect())
    }

    /// Those acknowledged since then.
    fn acknowledged_since(&self, moment: Instant) -> BTreeSet<Document> {
        self.acknowledged.lock().iter().filter(|(_, at)| *at > moment).map(|(document, _)| *document).collect()
    }
}

/// A document that came out.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    pub document: Document,
    /// Partition and offset of the record that it was made from.
    pub source: (i64, i64),
    pub at: Instant,
}

/// Reads a topic of outputs, all its partitions, from the start on.
pub struct Watch {
    log: KafkaLog,
    topic: Topic,
    seen: Arc<Mutex<Vec<Seen>>>,
    reading: tokio::task::JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Watch {
    pub async fn start(log: &KafkaLog, topic: &Topic) -> Self {
        // Its leaders may be chosen only now.
        let ends = eventually("its ends are known", Duration::from_secs(60), async || log.ends(topic).await.ok()).await;
        let partitions = 0..i32::try_from(ends.len()).expect("few partitions");
        let all = partitions.map(|n| (TopicPartition::new(topic.clone(), n), Start::Earliest)).collect();
        let config = ConsumerConfig::new("watch", Subscription::Assigned(all));
        let consumer = log.consumer(config).await.expect("a consumer");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&seen);
        let reading = tokio::spawn(async move {
            loop {
                if let Ok(Event::Records(batch)) = consumer.next().await {
                    let at = Instant::now();
                    noted.lock().extend(batch.records.iter().map(|record| read(record, at)));
                }
            }
        });
        Self { log: log.clone(), topic: topic.clone(), seen, reading }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    /// Waits until a document comes out that was acknowledged after `moment`; how
    /// long after it that was.
    pub async fn recovered(&self, load: &Load, moment: Instant, limit: Duration) -> Duration {
        eventually("documents come out again", limit, async || {
            let fresh = load.acknowledged_since(moment);
            let seen = self.seen.lock();
            let first = seen.iter().find(|seen| seen.at > moment && fresh.contains(&seen.document));
            first.map(|seen| seen.at - moment)
        })
        .await
    }

    /// Waits until documents that were acknowledged after `moment` have come out of so
    /// many partitions of the input; how long after it that was.
    pub async fn recovered_in(&self, load: &Load, moment: Instant, partitions: usize, limit: Duration) -> Duration {
        eventually("documents of all partitions come out again", limit, async || {
            let fresh = load.acknowledged_since(moment);
            let seen = self.seen.lock();
            let mut first = BTreeMap::new();
            for seen in seen.iter().filter(|seen| seen.at > moment && fresh.contains(&seen.document)) {
                first.entry(seen.source.0).or_insert(seen.at - moment);
            }
            first.values().max().copied().filter(|_| first.len() == partitions)
        })
        .await
    }

    /// Waits until every document that was acknowledged has come out.
    pub async fn complete(&self, acknowledged: &BTreeSet<Document>, limit: Duration) {
        let mut missing = BTreeSet::new();
        let end = Instant::now() + limit;
        while Instant::now() < end {
            let seen: BTreeSet<_> = self.seen.lock().iter().map(|seen| seen.document).collect();
            missing = acknowledged.difference(&seen).copied().collect();
            if missing.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // Whether the topic lacks them or the watcher does is not the same fault.
        let again = Self::start(&self.log, &self.topic).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let there: BTreeSet<_> = again.seen().iter().map(|seen| seen.document).collect();
        let keys: BTreeSet<_> = missing.iter().map(|document| document.key).collect();
        let numbers: BTreeSet<_> = missing.iter().map(|document| document.number).collect();
        panic!(
            "{} of {} acknowledged documents are missing, {} of them in the topic as well: keys {keys:?}, numbers {:?} to {:?}",
            missing.len(),
            acknowledged.len(),
            missing.difference(&there).count(),
            numbers.first(),
            numbers.last(),
        );
    }
}

fn read(record: &Record, at: Instant) -> Seen {
    let (Some(key), Some(value)) = (&record.key, &record.value) else { panic!("a record without key or value") };
    let number = |name| record.headers.get_i64(name).unwrap_or_else(|| panic!("no header {name}"));
    let source = (number(headers::SOURCE_PARTITION), number(headers::SOURCE_OFFSET));
    Seen { document: Document::read(key, value), source, at }
}

/// Holds what came out against the order of each key within its source partition,
/// apart from redeliveries: the first time that each document came out. Gives how
/// many came again.
pub fn in_order(seen: &[Seen]) -> usize {
    let mut known: BTreeSet<(i64, i64)> = BTreeSet::new();
    let mut last: BTreeMap<(i64, u32), Seen> = BTreeMap::new();
    let mut again = 0;
    for one in seen {
        if !known.insert(one.source) {
            again += 1;
            continue;
        }
        if let Some(before) = last.insert((one.source.0, one.document.key), *one) {
            assert!(
                before.source.1 < one.source.1 && before.document.number < one.document.number,
                "{one:?} came out after {before:?}"
            );
        }
    }
    again
}
