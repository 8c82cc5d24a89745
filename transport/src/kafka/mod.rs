//! The log on Apache Kafka, through librdkafka. This folder alone names rdkafka.
//!
//! Thin on purpose: topics, groups and transactions are Kafka's own; what is
//! added is what the contract asks for beyond librdkafka. Knows nothing of what
//! is in the records.
//!
//! # Threads and who owns what
//!
//! ```text
//! KafkaLog ── Topics (a client that asks, one that changes; a thread for their events)
//! Producer ── one for each set of settings: a few writers, one for each limit on batches; their threads
//!             settle the batches of [`delivery`], senders only enqueue
//! Transactional ── one writer; blocking calls on tokio's blocking threads
//! Consumer ── poller thread ─ owns the BaseConsumer and one queue per partition
//!                 │ unbounded channel, bounded by counting the batches in it
//!                 ▼
//!             next() ─ positions, stale records dropped by epoch
//! ```
//!
//! librdkafka's blocking calls (metadata, commits, transactions) never run on an
//! async worker: they go to `spawn_blocking` or to threads of ours.

mod consumer;
mod contact;
mod delivery;
mod failure;
mod files;
mod groups;
mod producer;
mod settings;
mod statistics;
mod topics;
mod transactional;
mod writer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pipedoc_model::kafka::{self, Settings};
use pipedoc_model::names::Topic;

use self::contact::Contact;
use self::groups::Outsiders;
use self::producer::Producers;
use self::settings::Cluster;
pub use self::statistics::{BrokerStatistics, ClientStatistics, PartitionStatistics, StatisticsObserver};
use self::topics::Topics;
use crate::log::{
    Commit, Committed, Consumer, ConsumerConfig, Ends, Error, Log, Producer, ProducerConfig, Result, TopicInfo,
    TopicPartition, TopicSpec, Transactional, TransactionalConfig,
};

/// Where a cluster is and how to talk to it.
#[derive(Clone)]
pub struct KafkaConfig {
    /// Addresses to begin with, `HOST:PORT[,HOST:PORT…]`.
    pub bootstrap: String,
    /// Settings of the process, for all clients that know them: by librdkafka's
    /// names, or `consumer.NAME` and `producer.NAME`; secrets in place. See
    /// [`pipedoc_model::kafka::check_process`].
    pub settings: Settings,
    /// How long the calls of administration, and the first one above all, wait
    /// for the cluster. Default 10 s.
    pub timeout: Duration,
    /// A consumer that has no connection, fetches nothing or cannot commit for so
    /// long, while the cluster answers others, fails as [`Error::Stalled`]: whoever
    /// reads makes a new one. Default 60 s.
    pub patience: Duration,
    /// Who hears what the clients tell of themselves. Default: nobody but the log
    /// lines of level debug.
    pub statistics: StatisticsObserver,
}

impl std::fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaConfig")
            .field("bootstrap", &self.bootstrap)
            .field("settings", &kafka::shown(&self.settings))
            .field("timeout", &self.timeout)
            .finish()
    }
}

impl KafkaConfig {
    /// A cluster without further settings.
    #[must_use]
    pub fn new(bootstrap: impl Into<String>) -> Self {
        Self {
            bootstrap: bootstrap.into(),
            settings: Settings::new(),
            timeout: Duration::from_secs(10),
            patience: Duration::from_secs(60),
            statistics: StatisticsObserver::default(),
        }
    }
}

/// How long the first look at a cluster may take before it is said that it is
/// waited for.
const FIRST_LOOK: Duration = Duration::from_secs(2);

/// A Kafka cluster as a log. Cheap to clone; clones share their clients.
#[derive(Clone)]
pub struct KafkaLog {
    config: Arc<Cluster>,
    contact: Arc<Contact>,
    topics: Arc<Topics>,
    producers: Arc<Producers>,
    outsiders: Arc<Outsiders>,
}

impl std::fmt::Debug for KafkaLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("KafkaLog").field(&self.config.bootstrap).finish()
    }
}

impl KafkaLog {
    /// Reaches a cluster.
    ///
    /// # Errors
    /// When settings cannot be used (all of them named), when the cluster does not
    /// accept the credentials, and (this may be tried again) when no broker has
    /// answered within the configured time.
    pub async fn connect(config: KafkaConfig) -> Result<Self> {
        let log = Self::made(config)?;
        log.topics.list().await?;
        Ok(log)
    }

    /// As [`connect`](Self::connect), but waits while no broker answers: `wait`
    /// long, or for ever. Says so to `told`, once, and again when the reason
    /// changes.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn wait_for(
        config: KafkaConfig,
        wait: Option<Duration>,
        told: &(dyn Fn(&Error) + Send + Sync),
    ) -> Result<Self> {
        let log = Self::made(config)?;
        let end = wait.map(|wait| tokio::time::Instant::now() + wait);
        let mut known = None;
        loop {
            let left = end.map(|end| end.saturating_duration_since(tokio::time::Instant::now()));
            let limit = left.map_or(FIRST_LOOK, |left| left.min(FIRST_LOOK));
            let error = match log.topics.answers(limit).await {
                Ok(()) => return Ok(log),
                Err(error) if !error.is_retryable() || left.is_some_and(|left| left <= limit) => return Err(error),
                Err(error) => error,
            };
            let reason = match &error {
                Error::Unreachable { reason, .. } => Some(reason.clone()),
                _ => None,
            };
            if known != Some(reason.clone()) {
                told(&error);
                known = Some(reason);
            }
        }
    }

    /// Checks the settings and makes the clients, which connect by themselves.
    fn made(config: KafkaConfig) -> Result<Self> {
        let cluster = Cluster::of(config)?;
        let contact = Arc::new(Contact::new(&cluster.bootstrap));
        let topics = Topics::new(&cluster, contact.clone())?;
        Ok(Self { config: Arc::new(cluster), contact, topics, producers: Arc::default(), outsiders: Arc::default() })
    }
}

#[async_trait]
impl Log for KafkaLog {
    fn describe(&self) -> String {
        format!("kafka {}", self.config.bootstrap)
    }

    async fn identity(&self) -> Result<String> {
        Ok(format!("kafka cluster {}", self.topics.cluster_id().await?))
    }

    async fn ensure_topic(&self, spec: &TopicSpec) -> Result<TopicInfo> {
        self.topics.ensure(spec).await
    }

    async fn delete_topic(&self, topic: &Topic) -> Result<()> {
        self.topics.delete(topic).await
    }

    async fn topic(&self, topic: &Topic) -> Result<Option<TopicInfo>> {
        self.topics.describe(topic).await
    }

    async fn topics(&self) -> Result<Vec<Topic>> {
        Ok(self.topics.list().await?.into_keys().collect())
    }

    async fn ends(&self, topic: &Topic) -> Result<Vec<Ends>> {
        self.topics.ends(topic).await
    }

    async fn offsets_at(&self, topic: &Topic, millis: i64) -> Result<Vec<i64>> {
        groups::offsets_at(self, topic, millis).await
    }

    async fn delete_records(&self, source: &TopicPartition, before: i64) -> Result<()> {
        self.topics.delete_records(source, before).await
    }

    async fn group_offsets(&self, group: &str) -> Result<BTreeMap<TopicPartition, Committed>> {
        groups::offsets(self, group).await
    }

    async fn group_offsets_of(&self, group: &str, topics: &[Topic]) -> Result<BTreeMap<TopicPartition, Committed>> {
        groups::offsets_of(self, group, topics).await
    }

    async fn set_group_offsets(&self, group: &str, commits: &[Commit]) -> Result<()> {
        groups::set_offsets(self, group, commits).await
    }

    async fn producer(&self, config: ProducerConfig) -> Result<Arc<dyn Producer>> {
        Ok(self.producers.get(self, config)?)
    }

    async fn transactional(&self, config: TransactionalConfig) -> Result<Box<dyn Transactional>> {
        Ok(Box::new(transactional::KafkaTransactional::new(self, config).await?))
    }

    async fn consumer(&self, config: ConsumerConfig) -> Result<Arc<dyn Consumer>> {
        Ok(Arc::new(consumer::KafkaConsumer::new(self, config).await?))
    }
}

/// Runs a call of librdkafka that blocks.
async fn blocking<T: Send + 'static>(call: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(call).await {
        Ok(result) => result,
        // Only when the runtime shuts down, or the call panicked.
        Err(_) => Err(Error::Closed { what: "runtime" }),
    }
}
