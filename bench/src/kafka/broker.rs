//! The broker that arms share: a real one, run as Kafka's own scripts would run it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use futures::executor::block_on;
use pipedoc_model::headers;
use pipedoc_tests::bed::kafka::Kafka;
use pipedoc_tests::bed::kafka::setup::Setup;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use super::bed::{Bed, PARTITIONS};
use super::count::{Arrived, PATIENCE, Tally};
use super::documents::Records;
use super::settings::{self, Quiet};

/// How long the broker may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A broker that runs.
pub struct Broker {
    admin: AdminClient<Quiet>,
    /// Asks for ends, read committed.
    asking: BaseConsumer<Quiet>,
    /// Dropped last: its clients would complain.
    kafka: Kafka,
}

impl Broker {
    /// Starts it.
    ///
    /// # Errors
    /// Says what is missing on this machine.
    pub fn start() -> anyhow::Result<Self> {
        let kafka = Kafka::start_as(Setup::new().as_in_production()).map_err(|reason| anyhow!(reason))?;
        let config = settings::consumer(&kafka.bootstrap(), "bench.ends");
        let admin = config.create_with_context(Quiet).context("making a client")?;
        let asking = config.create_with_context(Quiet).context("making a client")?;
        Ok(Self { admin, asking, kafka })
    }

    fn options() -> AdminOptions {
        AdminOptions::new().operation_timeout(Some(TIMEOUT))
    }
}

impl Bed for Broker {
    fn url(&self) -> String {
        format!("kafka:{}", self.kafka.bootstrap())
    }

    fn server(&self) -> Option<u32> {
        Some(self.kafka.id())
    }

    fn create_topic(&self, name: &str) -> anyhow::Result<()> {
        let topic = NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1))
            // Appended by the broker: what arms say of time does not count.
            .set("message.timestamp.type", "LogAppendTime")
            .set("retention.ms", "-1");
        let made = block_on(self.admin.create_topics([&topic], &Self::options())).context("making a topic")?;
        for result in made {
            result.map_err(|(name, code)| anyhow!("topic {name}: {code}"))?;
        }
        // A topic just made is not known to every client at once.
        let began = Instant::now();
        while let Err(error) = self.ends(name) {
            ensure!(began.elapsed() < TIMEOUT, error.context("a new topic was not to be seen"));
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn delete_topic(&self, name: &str) -> anyhow::Result<()> {
        block_on(self.admin.delete_topics(&[name], &Self::options())).context("removing a topic")?;
        Ok(())
    }

    fn write(&self, topic: &str, records: Records) -> anyhow::Result<()> {
        let delivered = Delivered::default();
        let producer: ThreadedProducer<Delivered> = settings::producer(&self.kafka.bootstrap())
            .create_with_context(delivered.clone())
            .context("making a producer")?;
        for record in records.all() {
            let all = record.headers();
            let empty = OwnedHeaders::new_with_capacity(all.len());
            let headers =
                all.iter().fold(empty, |headers, (key, value)| headers.insert(Header { key, value: Some(value) }));
            let mut outgoing = BaseRecord::to(topic).key(&record.id).payload(&record.value).headers(headers);
            // The queue bounds how far we are ahead of the broker.
            while let Err((error, back)) = producer.send(outgoing) {
                ensure!(error == KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), "writing: {error}");
                outgoing = back;
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        producer.flush(Duration::from_secs(120)).context("writing the records")?;
        let delivered = delivered.0.load(Ordering::Acquire);
        ensure!(delivered == records.count, "{delivered} of {} records could be written", records.count);
        Ok(())
    }

    fn ends(&self, topic: &str) -> anyhow::Result<Vec<i64>> {
        let end = |partition| {
            let ends = self.asking.fetch_watermarks(topic, partition, TIMEOUT);
            ends.map(|(_, end)| end).with_context(|| format!("asking for the end of {topic}[{partition}]"))
        };
        (0..PARTITIONS).map(end).collect()
    }

    fn count(&self, topic: &str, records: Records) -> anyhow::Result<Arrived> {
        let config = settings::consumer(&self.kafka.bootstrap(), "bench.count");
        let consumer: BaseConsumer<Quiet> = config.create_with_context(Quiet).context("making a consumer")?;
        let mut list = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            list.add_partition_offset(topic, partition, Offset::Beginning)?;
        }
        consumer.assign(&list).context("assigning")?;
        let (mut tally, mut heard) = (Tally::new(records)?, Instant::now());
        while !tally.is_complete() {
            let message = match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => message,
                None | Some(Err(KafkaError::PartitionEOF(_))) if heard.elapsed() < PATIENCE => continue,
                None | Some(Err(KafkaError::PartitionEOF(_))) => return Err(tally.missing()),
                Some(Err(error)) => return Err(error).context("reading"),
            };
            heard = Instant::now();
            let headers = message.headers();
            let mut all = headers.into_iter().flat_map(|headers| headers.iter());
            let version = all.find(|header| header.key == headers::VERSION).and_then(|header| header.value);
            let at = message.timestamp().to_millis().unwrap_or(0);
            tally.take(records.number(message.key(), version), at, message.partition(), message.offset())?;
        }
        Ok(tally.end())
    }
}

/// Counts what the broker has acknowledged.
#[derive(Debug, Clone, Default)]
struct Delivered(Arc<AtomicU64>);

impl ClientContext for Delivered {}

impl ProducerContext for Delivered {
    type DeliveryOpaque = ();
    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if result.is_ok() {
            self.0.fetch_add(1, Ordering::AcqRel);
        }
    }
}
