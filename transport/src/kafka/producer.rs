//! The plain producer: idempotent, acknowledged by all replicas.
//!
//! A broker refuses a batch larger than its topic's limit, and librdkafka's bound
//! on batches holds for a whole client. So topics with lower limits get clients
//! of their own, one for each power of two.
//!
//! A broker answers one request of a connection after the other. So partitions are
//! shared out over several clients, each partition always to the same; one that
//! nothing is sent by is not made.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pipedoc_model::kafka::Client;
use pipedoc_model::names::Topic;
use pipedoc_model::partition;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _};

use super::delivery::{BATCH_RECORDS, Deliveries, Ticket, WriterContext};
use super::topics::{Facts, Topics};
use super::writer::Writer;
use super::{KafkaLog, settings};
use crate::log::{Error, OutgoingRecord, Producer, ProducerConfig, Receipt, Reports, Result, TopicPartition};
use crate::size;

/// How long a dropped producer may still write what it had taken.
const LAST_FLUSH: Duration = Duration::from_secs(30);

pub(super) struct KafkaProducer {
    log: KafkaLog,
    config: ProducerConfig,
    deliveries: Arc<Deliveries>,
    /// The bound on batches to topics whose limit is no lower.
    batch_bytes: usize,
    /// Over how many clients the partitions are shared out.
    clients: usize,
    writers: Mutex<BTreeMap<Post, Arc<Writer>>>,
}

/// Which of a producer's clients writes a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Post {
    /// The bound on its batches.
    batch_bytes: usize,
    /// Its number among those of the same bound.
    number: usize,
}

/// The producers in use: one for each set of settings, shared by all who ask for
/// the same. A connection, its threads and its buffer cost more than a step.
#[derive(Default)]
pub(super) struct Producers(Mutex<Vec<(ProducerConfig, Weak<KafkaProducer>)>>);

impl Producers {
    /// The producer of these settings.
    pub(super) fn get(&self, log: &KafkaLog, mut config: ProducerConfig) -> Result<Arc<KafkaProducer>> {
        config.settings = log.config.settings(Client::Producer, &config.settings)?;
        let mut producers = self.0.lock();
        producers.retain(|(_, producer)| producer.strong_count() > 0);
        let same = producers.iter().find(|(other, _)| *other == config);
        if let Some(producer) = same.and_then(|(_, producer)| producer.upgrade()) {
            return Ok(producer);
        }
        let producer = Arc::new(KafkaProducer::new(log, config.clone())?);
        producers.push((config, Arc::downgrade(&producer)));
        Ok(producer)
    }
}

impl KafkaProducer {
    /// `config`: its settings are whole.
    fn new(log: &KafkaLog, config: ProducerConfig) -> Result<Self> {
        let who = format!("producer {}", config.client_id);
        let timeout = settings::record_timeout(&config.settings);
        let deliveries = Arc::new(Deliveries::new(log, timeout, who));
        let batch_bytes = settings::asked_batch_bytes(&config.settings);
        let clients = settings::clients(&config.settings);
        let producer = Self { log: log.clone(), config, deliveries, batch_bytes, clients, writers: Mutex::default() };
        // Made at once, so that a wrong setting is told at once.
        producer.writer(Post { batch_bytes, number: 0 })?;
        Ok(producer)
    }

    /// Who writes a record. A key stays with its partition's client, so that its
    /// records stay in order.
    fn post(&self, record: &OutgoingRecord, facts: &Facts) -> Post {
        let number = match self.clients {
            1 => 0,
            clients => usize::try_from(partition_of(record, facts).unwrap_or(0)).unwrap_or(0) % clients,
        };
        Post { batch_bytes: batch_bytes(facts.limit, self.batch_bytes), number }
    }

    fn writer(&self, post: Post) -> Result<Arc<Writer>> {
        let mut writers = self.writers.lock();
        if let Some(writer) = writers.get(&post) {
            // After a fatal error (a sequence number was lost) a client never writes again.
            let spent = writer.client().fatal_error().is_some();
            // Its records timed out, while the cluster answers others: it does not
            // recover. What it still has on its way would be overtaken.
            let stuck = self.deliveries.has_timed_out() && writer.in_flight_count() == 0;
            if !spent && !stuck {
                return Ok(writer.clone());
            }
            tracing::warn!(client = %self.config.client_id, spent, stuck, "a producer does not recover; a new one takes its place");
            self.deliveries.begin_anew();
        }
        let config =
            settings::producer(&self.log.config, &self.config.client_id, &self.config.settings, post.batch_bytes);
        let writer = Writer::make(&config, WriterContext(self.deliveries.clone()))?;
        if let Some(spent) = writers.insert(post, writer.clone()) {
            retire(spent);
        }
        Ok(writer)
    }

    /// Sends at most [`BATCH_RECORDS`].
    async fn send_some(&self, records: &[OutgoingRecord]) -> Result<Receipt> {
        let known = Known::of(&self.log.topics, records).await;
        let sending = self.deliveries.begin(records.len());
        // Looked up once in a batch: the same few are asked for again and again.
        let mut writers: Vec<(Post, Arc<Writer>)> = Vec::new();
        for (place, record) in records.iter().enumerate() {
            let facts = known.facts(&record.topic);
            let sent = match facts.and_then(|facts| check(record, &facts).map(|()| self.post(record, &facts))) {
                Ok(post) => {
                    let at = match writers.iter().position(|(of, _)| *of == post) {
                        Some(at) => at,
                        None => {
                            writers.push((post, self.writer(post)?));
                            writers.len() - 1
                        }
                    };
                    send_when_room(&writers[at].1, &self.deliveries, record, sending.ticket(place)).await
                }
                Err(error) => Err(error),
            };
            if let Err(error) = sent {
                if matches!(error, Error::UnknownTopic { .. }) {
                    self.log.topics.forget(&record.topic);
                }
                sending.refuse(place, error);
            }
        }
        Ok(sending.end())
    }
}

#[async_trait]
impl Producer for KafkaProducer {
    async fn send(&self, records: Vec<OutgoingRecord>) -> Result<Receipt> {
        if records.len() <= BATCH_RECORDS {
            return self.send_some(&records).await;
        }
        let mut receipts = Vec::new();
        for some in records.chunks(BATCH_RECORDS) {
            receipts.push(self.send_some(some).await?);
        }
        Ok(Receipt::new(async move {
            let mut all = Reports::new();
            for receipt in receipts {
                all.extend(receipt.await);
            }
            all
        }))
    }

    async fn flush(&self, timeout: Duration) -> Result<usize> {
        Ok(self.deliveries.flush(timeout).await)
    }
}

impl Drop for KafkaProducer {
    fn drop(&mut self) {
        std::mem::take(&mut *self.writers.lock()).into_values().for_each(retire);
    }
}

/// What is known of the topics of a batch's records.
pub(super) struct Known<'a>(Vec<(&'a Topic, Result<Facts>)>);

impl<'a> Known<'a> {
    pub(super) async fn of(topics: &Arc<Topics>, records: &'a [OutgoingRecord]) -> Self {
        let mut known = Self(Vec::new());
        for OutgoingRecord { topic, .. } in records {
            if known.find(topic).is_none() {
                known.0.push((topic, topics.facts(topic).await));
            }
        }
        known
    }

    /// What is known of one of the topics.
    pub(super) fn facts(&self, topic: &Topic) -> Result<Facts> {
        self.find(topic).unwrap_or_else(|| Err(Error::UnknownTopic { topic: topic.clone() }))
    }

    /// Batches go to few topics, mostly to one: the last one found is the first looked at.
    fn find(&self, topic: &Topic) -> Option<Result<Facts>> {
        self.0.iter().rev().find(|(known, _)| *known == topic).map(|(_, facts)| facts.clone())
    }
}

/// Where a record goes, by what is known of its topic. `None`: anywhere.
pub(super) fn partition_of(record: &OutgoingRecord, facts: &Facts) -> Option<i32> {
    record.partition.or_else(|| record.key.as_deref().map(|key| partition::for_key(key, facts.partitions)))
}

/// Refuses what can never be written.
pub(super) fn check(record: &OutgoingRecord, facts: &Facts) -> Result<()> {
    size::check(record, facts.limit)?;
    match record.partition {
        Some(partition) if partition < 0 || partition >= facts.partitions => {
            Err(Error::UnknownPartition { partition: TopicPartition::new(record.topic.clone(), partition) })
        }
        _ => Ok(()),
    }
}

/// The bound on batches for a topic with this limit, where `asked` is wanted.
pub(super) fn batch_bytes(limit: usize, asked: usize) -> usize {
    if limit > asked {
        return asked;
    }
    // The largest power of two that is not above the limit.
    1 << limit.max(1).ilog2()
}

/// Gives a record to librdkafka, waiting while it has no room.
pub(super) async fn send_when_room(
    writer: &Writer,
    deliveries: &Deliveries,
    record: &OutgoingRecord,
    ticket: Ticket,
) -> Result<()> {
    loop {
        match writer.send(outgoing(record, ticket)) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(Code::QueueFull), _)) => deliveries.room().await,
            Err((error, _)) => {
                let partition = record.partition.unwrap_or(-1);
                return Err(deliveries.failure(record.topic.as_str(), partition, error));
            }
        }
    }
}

/// Lets a client write what it has taken, then ends it, on a thread of its own:
/// both block.
pub(super) fn retire(writer: Arc<Writer>) {
    let retiring = std::thread::Builder::new().name("kafka-flush".to_owned()).spawn(move || {
        if let Err(error) = writer.flush(LAST_FLUSH) {
            tracing::warn!(%error, left = writer.in_flight_count(), "a closing producer could not write all it had taken");
        }
    });
    if let Err(error) = retiring {
        tracing::warn!(%error, "no thread for a closing producer");
    }
}

fn outgoing<'a>(record: &'a OutgoingRecord, ticket: Ticket) -> BaseRecord<'a, [u8], [u8], Ticket> {
    let headers = (!record.headers.is_empty()).then(|| {
        let empty = OwnedHeaders::new_with_capacity(record.headers.len());
        record
            .headers
            .iter()
            .fold(empty, |headers, header| headers.insert(Header { key: header.name(), value: header.value() }))
    });
    BaseRecord {
        topic: record.topic.as_str(),
        // Without one librdkafka takes the partition by the key, with the same
        // function as ours and its own, fresher count of partitions.
        partition: record.partition,
        payload: record.value.as_deref(),
        key: record.key.as_deref(),
        timestamp: record.timestamp,
        headers,
        delivery_opaque: ticket,
    }
}
