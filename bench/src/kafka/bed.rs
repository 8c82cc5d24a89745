//! What arms run on: a log full of records, and where they write to.

use anyhow::Context;
use pipedoc_model::names::Topic;
use pipedoc_transport::log::{
    ConsumerConfig, Event, Log, OutgoingRecord, ProducerConfig, Start, Subscription, TopicPartition, TopicSettings,
    TopicSpec,
};
use tokio::runtime::Runtime;

use super::count::{Arrived, Tally};
use super::documents::Records;

/// Partitions of each topic.
pub const PARTITIONS: i32 = 4;

/// A log for arms to run on.
pub trait Bed: Send + Sync {
    /// Where it is, as `pipedoc_transport::open` takes it.
    fn url(&self) -> String;

    /// The process that serves it, if there is one.
    fn server(&self) -> Option<u32>;

    /// Makes a topic whose records bear the time at which they arrived.
    ///
    /// # Errors
    /// When it is refused.
    fn create_topic(&self, name: &str) -> anyhow::Result<()>;

    /// Removes a topic with all that lies in it.
    ///
    /// # Errors
    /// When it is refused.
    fn delete_topic(&self, name: &str) -> anyhow::Result<()>;

    /// Writes all records to a topic, in the order of their numbers.
    ///
    /// # Errors
    /// When one could not be written.
    fn write(&self, topic: &str, records: Records) -> anyhow::Result<()>;

    /// The offset up to which each partition can be read.
    ///
    /// # Errors
    /// When the log does not answer.
    fn ends(&self, topic: &str) -> anyhow::Result<Vec<i64>>;

    /// Reads a topic until every record has been seen.
    ///
    /// # Errors
    /// When records are lost, came twice, or came out of order.
    fn count(&self, topic: &str, records: Records) -> anyhow::Result<Arrived>;
}

/// A log of this machine alone, in one SQLite file.
pub struct Embedded {
    url: String,
    log: std::sync::Arc<dyn Log>,
    runtime: Runtime,
    _folder: tempfile::TempDir,
}

impl Embedded {
    /// Makes it, in a folder that goes with it.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("a folder for the log")?;
        let url = format!("sqlite:{}", folder.path().join("log.db").display());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let log = runtime.block_on(pipedoc_transport::open::open(&url)).context("opening the log")?;
        Ok(Self { url, log, runtime, _folder: folder })
    }
}

impl Bed for Embedded {
    fn url(&self) -> String {
        self.url.clone()
    }

    fn server(&self) -> Option<u32> {
        None
    }

    fn create_topic(&self, name: &str) -> anyhow::Result<()> {
        let settings = TopicSettings::default();
        let spec = TopicSpec { topic: Topic::new(name)?, partitions: PARTITIONS, replication: None, settings };
        self.runtime.block_on(self.log.ensure_topic(&spec))?;
        Ok(())
    }

    fn delete_topic(&self, name: &str) -> anyhow::Result<()> {
        Ok(self.runtime.block_on(self.log.delete_topic(&Topic::new(name)?))?)
    }

    fn write(&self, topic: &str, records: Records) -> anyhow::Result<()> {
        let topic = Topic::new(topic)?;
        self.runtime.block_on(async {
            let producer = self.log.producer(ProducerConfig::default()).await?;
            let all: Vec<_> = records.all().collect();
            for some in all.chunks(1000) {
                let outgoing = some.iter().map(|one| {
                    let mut outgoing =
                        OutgoingRecord::new(topic.clone(), Some(one.id.clone().into()), Some(one.value.clone().into()));
                    for (name, value) in one.headers() {
                        outgoing.headers.set(name, value);
                    }
                    outgoing
                });
                for report in producer.send(outgoing.collect()).await?.await {
                    report?;
                }
            }
            Ok(())
        })
    }

    fn ends(&self, topic: &str) -> anyhow::Result<Vec<i64>> {
        let ends = self.runtime.block_on(self.log.ends(&Topic::new(topic)?))?;
        Ok(ends.into_iter().map(|ends| ends.end).collect())
    }

    fn count(&self, topic: &str, records: Records) -> anyhow::Result<Arrived> {
        let topic = Topic::new(topic)?;
        let all = (0..PARTITIONS).map(|partition| (TopicPartition::new(topic.clone(), partition), Start::Earliest));
        let config = ConsumerConfig::new("bench.count", Subscription::Assigned(all.collect()));
        self.runtime.block_on(async {
            let consumer = self.log.consumer(config).await?;
            let mut tally = Tally::new(records)?;
            while !tally.is_complete() {
                let event = tokio::time::timeout(super::count::PATIENCE, consumer.next()).await;
                let Ok(event) = event else { return Err(tally.missing()) };
                let Event::Records(batch) = event? else { continue };
                for record in &batch.records {
                    let number =
                        records.number(record.key.as_deref(), record.headers.get(pipedoc_model::headers::VERSION));
                    tally.take(number, record.timestamp, batch.source.partition, record.offset)?;
                }
            }
            consumer.close().await?;
            Ok(tally.end())
        })
    }
}
