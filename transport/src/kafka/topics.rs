//! Topics: made, grown, described, removed; and what is remembered of them.
//!
//! Every send asks for a topic's limit and whether it exists, so both are kept
//! for a while: librdkafka itself would answer a send to a missing topic only
//! by a timeout.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pipedoc_model::names::Topic;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::admin::{ConfigResource, ConfigSource};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::metadata::MetadataTopic;
use rdkafka::{Offset, TopicPartitionList};

use super::contact::{Contact, PlainContext};
use super::failure::{Attempt, is_unknown_topic, not_made};
use super::settings::Cluster;
use super::{blocking, settings};
use crate::error::Resource;
use crate::log::{Ends, Error, Result, TopicInfo, TopicPartition, TopicSettings, TopicSpec};
use crate::size;

/// How long what is known of a topic is believed.
const FACTS_AGE: Duration = Duration::from_secs(30);

/// How old a listing of all topics may be for those who look for patterns.
const LISTING_AGE: Duration = Duration::from_secs(2);

/// How often events are looked at.
const EVENTS_PERIOD: Duration = Duration::from_millis(500);

/// Kafka's own topics, which are nobody's to read by a pattern.
const KAFKAS_OWN: [&str; 4] =
    ["__consumer_offsets", "__transaction_state", "__share_group_state", "__remote_log_metadata"];

/// A name that no topic has, to ask for as little as possible.
const NO_TOPIC: &str = "pipedoc.no-topic";

/// All topics with their number of partitions.
pub(super) type Listing = BTreeMap<Topic, i32>;

/// What a sender must know of a topic.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    pub(super) partitions: i32,
    /// `max.message.bytes`.
    pub(super) limit: usize,
    pub(super) read: Instant,
}

pub(super) struct Topics {
    /// Changes things. Its own events cannot be polled, so it is kept from making any.
    admin: AdminClient<PlainContext>,
    /// Asks. Outside any group; its events tell whether the cluster answers.
    query: BaseConsumer<PlainContext>,
    contact: Arc<Contact>,
    timeout: Duration,
    facts: Mutex<HashMap<Topic, Facts>>,
    listing: tokio::sync::Mutex<Option<(Instant, Arc<Listing>)>>,
}

impl Topics {
    pub(super) fn new(cluster: &Cluster, contact: Arc<Contact>) -> Result<Arc<Self>> {
        let mut config = settings::common(cluster, "pipedoc-admin", &cluster.settings.common);
        let query = config.create_with_context(PlainContext::new(contact.clone())).map_err(not_made(&config))?;
        config.remove("debug").set_log_level(RDKafkaLogLevel::Emerg);
        let admin = config.create_with_context(PlainContext::new(contact.clone())).map_err(not_made(&config))?;
        let (facts, listing) = (Mutex::default(), tokio::sync::Mutex::default());
        let topics = Arc::new(Self { admin, query, contact, timeout: cluster.timeout, facts, listing });
        serve_events(Arc::downgrade(&topics));
        Ok(topics)
    }

    /// The client that asks.
    pub(super) fn query(&self) -> &BaseConsumer<PlainContext> {
        &self.query
    }

    /// Serves the events of the client that asks.
    fn serve(&self) {
        self.query.context().served.drain(&self.query, |_| {});
    }

    /// What the cluster calls itself.
    pub(super) async fn cluster_id(self: &Arc<Self>) -> Result<String> {
        let this = self.clone();
        blocking(move || {
            let attempt = Attempt::new("asking for the cluster's id", &this.contact, this.timeout);
            this.query.client().fetch_cluster_id(this.timeout).ok_or_else(|| attempt.timed_out())
        })
        .await
    }

    /// Whether the cluster answers within `limit`.
    pub(super) async fn answers(self: &Arc<Self>, limit: Duration) -> Result<()> {
        let this = self.clone();
        blocking(move || {
            let attempt = Attempt::new("connecting", &this.contact, limit);
            let end = Instant::now() + limit;
            loop {
                // In short looks: events tell why it does not, and must be served meanwhile.
                let look = Duration::from_millis(250).min(limit);
                let answer = this.query.fetch_metadata(Some(NO_TOPIC), look);
                this.serve();
                match answer.map_err(|error| attempt.failed(error)) {
                    Ok(_) => {
                        this.contact.heard();
                        return Ok(());
                    }
                    Err(error) if !error.is_retryable() || Instant::now() >= end => return Err(error),
                    Err(_) => {}
                }
            }
        })
        .await
    }

    /// All topics but Kafka's own, asked for now.
    pub(super) async fn list(self: &Arc<Self>) -> Result<Listing> {
        let this = self.clone();
        blocking(move || {
            let metadata = this.query.fetch_metadata(None, this.timeout);
            // What was wrong has been told by an event.
            this.query.poll(Duration::ZERO);
            let metadata = metadata.map_err(|error| this.attempt("listing topics").failed(error))?;
            this.contact.heard();
            let topics = metadata.topics().iter().filter(|topic| !KAFKAS_OWN.contains(&topic.name()));
            Ok(topics
                .filter_map(|topic| Some((Topic::new(topic.name()).ok()?, topic.partitions().len() as i32)))
                .collect())
        })
        .await
    }

    /// All topics as of a few seconds ago; many may ask at once.
    pub(super) async fn listing(self: &Arc<Self>) -> Result<Arc<Listing>> {
        let mut kept = self.listing.lock().await;
        match &*kept {
            Some((read, listing)) if read.elapsed() < LISTING_AGE => Ok(listing.clone()),
            _ => {
                let listing = Arc::new(self.list().await?);
                *kept = Some((Instant::now(), listing.clone()));
                Ok(listing)
            }
        }
    }

    /// How many partitions a topic has; `None` when it does not exist.
    pub(super) async fn partitions(self: &Arc<Self>, topic: &Topic) -> Result<Option<i32>> {
        self.look(topic, |found| found.partitions().len() as i32).await
    }

    /// What a sender must know; asked of the broker now and then.
    pub(super) async fn facts(self: &Arc<Self>, topic: &Topic) -> Result<Facts> {
        let known = self.facts.lock().get(topic).copied();
        if let Some(facts) = known.filter(|facts| facts.read.elapsed() < FACTS_AGE) {
            return Ok(facts);
        }
        match self.describe(topic).await {
            Ok(Some(info)) => Ok(self.remember(&info)),
            Ok(None) => {
                self.facts.lock().remove(topic);
                Err(Error::UnknownTopic { topic: topic.clone() })
            }
            // Old news are better than none while the broker is away.
            Err(error) if error.is_retryable() => known.ok_or(error),
            Err(error) => Err(error),
        }
    }

    /// What is known of a topic is in doubt.
    pub(super) fn forget(&self, topic: &Topic) {
        self.facts.lock().remove(topic);
    }

    /// A topic as it is; `None` when it does not exist.
    pub(super) async fn describe(self: &Arc<Self>, topic: &Topic) -> Result<Option<TopicInfo>> {
        let Some(partitions) = self.partitions(topic).await? else { return Ok(None) };
        let settings = match self.configuration(topic).await {
            // librdkafka has a reason for each resource, which rdkafka does not give; every
            // topic has settings, and one that is there hides them only from the unentitled.
            Ok(resource) if resource.entries.is_empty() => {
                return match self.partitions(topic).await? {
                    None => Ok(None),
                    Some(_) => Err(Error::Unauthorized {
                        operation: "describing a topic",
                        right: "DescribeConfigs",
                        resource: Resource::Topic(topic.clone()),
                    }),
                };
            }
            Ok(resource) => read_settings(&resource),
            Err(Error::UnknownTopic { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let info = TopicInfo { topic: topic.clone(), partitions, settings };
        self.remember(&info);
        Ok(Some(info))
    }

    /// Makes a topic, or grows and changes the one that exists.
    pub(super) async fn ensure(self: &Arc<Self>, spec: &TopicSpec) -> Result<TopicInfo> {
        if spec.partitions < 1 {
            return Err(Error::Misuse { operation: "making a topic", reason: "it needs at least one partition" });
        }
        self.forget(&spec.topic);
        let is_new = self.partitions(&spec.topic).await?.is_none();
        let made = is_new && self.create(spec).await?;
        if is_new {
            // Also when somebody else was faster: it is shown only a moment after it was made.
            self.wait_for_leaders(&spec.topic, if made { spec.partitions } else { 1 }).await?;
        }
        if !made {
            self.grow(spec).await?;
            self.change(&spec.topic, &spec.settings).await?;
        }
        match self.describe(&spec.topic).await? {
            Some(info) => Ok(info),
            None => Err(Error::UnknownTopic { topic: spec.topic.clone() }),
        }
    }

    /// Removes a topic and waits until it is gone.
    pub(super) async fn delete(self: &Arc<Self>, topic: &Topic) -> Result<()> {
        let attempt = self.attempt("deleting a topic").needs("Delete");
        let results = self.admin.delete_topics(&[topic.as_str()], &self.options()).await;
        for result in results.map_err(|error| attempt.failed(error))? {
            match result {
                Ok(_) => {}
                Err((_, code)) if is_unknown_topic(code) => {}
                Err((_, code)) => return Err(attempt.refused_on(topic, code)),
            }
        }
        self.forget(topic);
        let end = Instant::now() + self.timeout;
        while self.partitions(topic).await?.is_some() {
            if Instant::now() > end {
                return Err(attempt.timed_out());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Ends of all partitions, open transactions not counted.
    pub(super) async fn ends(self: &Arc<Self>, topic: &Topic) -> Result<Vec<Ends>> {
        let Some(partitions) = self.partitions(topic).await? else {
            return Err(Error::UnknownTopic { topic: topic.clone() });
        };
        let (this, topic) = (self.clone(), topic.clone());
        blocking(move || {
            let attempt = this.attempt("asking for the ends of a topic");
            let ask = |partition| this.query.fetch_watermarks(topic.as_str(), partition, this.timeout);
            let ends = (0..partitions).map(ask).map(|ends| ends.map(|(start, end)| Ends { start, end }));
            ends.collect::<Result<_, _>>().map_err(|error| attempt.failed_on(&topic, error))
        })
        .await
    }

    /// Removes all records of a partition before an offset.
    pub(super) async fn delete_records(&self, source: &TopicPartition, before: i64) -> Result<()> {
        let attempt = self.attempt("deleting records").needs("Delete");
        let refused = |error: KafkaError| match error.rdkafka_error_code() {
            Some(Code::OffsetOutOfRange) => {
                Error::Misuse { operation: "delete_records", reason: "the offset is not between the partition's ends" }
            }
            _ => attempt.failed_on(&source.topic, error),
        };
        let mut asked = TopicPartitionList::new();
        let (topic, offset) = (source.topic.as_str(), Offset::Offset(before));
        asked.add_partition_offset(topic, source.partition, offset).map_err(refused)?;
        let deleted = self.admin.delete_records(&asked, &self.options()).await.map_err(refused)?;
        deleted.elements().iter().try_for_each(|element| element.error()).map_err(refused)
    }

    fn attempt(&self, operation: &'static str) -> Attempt<'_> {
        Attempt::new(operation, &self.contact, self.timeout)
    }

    fn options(&self) -> AdminOptions {
        AdminOptions::new().request_timeout(Some(self.timeout)).operation_timeout(Some(self.timeout))
    }

    fn remember(&self, info: &TopicInfo) -> Facts {
        let limit = info.settings.max_message_bytes.map_or(size::DEFAULT_LIMIT, |limit| limit.max(0) as usize);
        let facts = Facts { partitions: info.partitions, limit, read: Instant::now() };
        self.facts.lock().insert(info.topic.clone(), facts);
        facts
    }

    /// Looks at a topic's metadata; `None` when it does not exist.
    async fn look<T: Send + 'static>(
        self: &Arc<Self>,
        topic: &Topic,
        see: impl FnOnce(&MetadataTopic) -> T + Send + 'static,
    ) -> Result<Option<T>> {
        let (this, topic) = (self.clone(), topic.clone());
        blocking(move || {
            let attempt = this.attempt("asking for a topic");
            let metadata = match this.query.fetch_metadata(Some(topic.as_str()), this.timeout) {
                Ok(metadata) => metadata,
                Err(error) if error.rdkafka_error_code().is_some_and(is_unknown_topic) => return Ok(None),
                Err(error) => return Err(attempt.failed(error)),
            };
            this.contact.heard();
            let Some(found) = metadata.topics().first() else { return Ok(None) };
            match found.error().map(Code::from) {
                Some(code) if is_unknown_topic(code) => Ok(None),
                // A leader is being elected: the topic is there.
                Some(Code::LeaderNotAvailable) | None if found.partitions().is_empty() => Ok(None),
                Some(Code::LeaderNotAvailable) | None => Ok(Some(see(found))),
                Some(code) => Err(attempt.refused_on(&topic, code)),
            }
        })
        .await
    }

    async fn configuration(&self, topic: &Topic) -> Result<ConfigResource> {
        let attempt = self.attempt("describing a topic").needs("DescribeConfigs");
        let asked = [ResourceSpecifier::Topic(topic.as_str())];
        let answers = self.admin.describe_configs(&asked, &AdminOptions::new().request_timeout(Some(self.timeout)));
        let answer = answers.await.map_err(|error| attempt.failed_on(topic, error))?.pop();
        match answer {
            Some(Ok(resource)) => Ok(resource),
            Some(Err(code)) if is_unknown_topic(code) => Err(Error::UnknownTopic { topic: topic.clone() }),
            Some(Err(code)) => Err(attempt.refused_on(topic, code)),
            None => Err(Error::UnknownTopic { topic: topic.clone() }),
        }
    }

    /// Makes a topic; false when somebody else was faster.
    async fn create(&self, spec: &TopicSpec) -> Result<bool> {
        let settings = written_settings(&spec.settings);
        // -1: the cluster's default.
        let replication = TopicReplication::Fixed(spec.replication.unwrap_or(-1));
        let mut topic = NewTopic::new(spec.topic.as_str(), spec.partitions, replication);
        for (name, value) in &settings {
            topic = topic.set(name, value);
        }
        let attempt = self.attempt("making a topic").needs("Create");
        let results = self.admin.create_topics([&topic], &self.options()).await;
        match results.map_err(|error| attempt.failed(error))?.pop() {
            Some(Err((_, Code::TopicAlreadyExists))) => Ok(false),
            Some(Err((_, code))) => Err(attempt.refused_on(&spec.topic, code)),
            Some(Ok(_)) | None => Ok(true),
        }
    }

    async fn grow(self: &Arc<Self>, spec: &TopicSpec) -> Result<()> {
        let found = self.partitions(&spec.topic).await?.unwrap_or(0);
        if spec.partitions < found {
            return Err(Error::PartitionsShrink { topic: spec.topic.clone(), found, wanted: spec.partitions });
        }
        if spec.partitions == found {
            return Ok(());
        }
        let attempt = self.attempt("adding partitions").needs("Alter");
        let grown = NewPartitions::new(spec.topic.as_str(), spec.partitions as usize);
        let results = self.admin.create_partitions([&grown], &self.options()).await;
        match results.map_err(|error| attempt.failed(error))?.pop() {
            // Somebody else has added them meanwhile.
            Some(Err((_, Code::InvalidPartitions))) | Some(Ok(_)) | None => {}
            Some(Err((_, code))) => return Err(attempt.refused_on(&spec.topic, code)),
        }
        self.wait_for_leaders(&spec.topic, spec.partitions).await
    }

    /// Changes the settings that differ. Kafka replaces all of a topic's settings
    /// at once, so the others are sent along as they are.
    async fn change(&self, topic: &Topic, wanted: &TopicSettings) -> Result<()> {
        let resource = self.configuration(topic).await?;
        let found = read_settings(&resource);
        let found = written_settings(&found);
        let mut changes = written_settings(wanted);
        changes.retain(|change| !found.contains(change));
        if changes.is_empty() {
            return Ok(());
        }
        let own = resource.entries.iter().filter(|entry| entry.source == ConfigSource::DynamicTopic);
        let mut all: BTreeMap<&str, &str> =
            own.filter_map(|entry| Some((entry.name.as_str(), entry.value.as_deref()?))).collect();
        all.extend(changes.iter().map(|(name, value)| (*name, value.as_str())));
        let mut altered = AlterConfig::new(ResourceSpecifier::Topic(topic.as_str()));
        for (name, value) in all {
            altered = altered.set(name, value);
        }
        let attempt = self.attempt("changing a topic's settings").needs("AlterConfigs");
        let results = self.admin.alter_configs([&altered], &AdminOptions::new().request_timeout(Some(self.timeout)));
        if let Some(Err((_, code))) = results.await.map_err(|error| attempt.failed(error))?.pop() {
            return Err(attempt.refused_on(topic, code));
        }
        // The controller has taken them; the broker that is asked hears of it a little
        // later. librdkafka has a reason for each resource here, which rdkafka does not
        // give: settings that never come were refused for want of the right.
        let end = Instant::now() + self.timeout;
        loop {
            let found = written_settings(&read_settings(&self.configuration(topic).await?));
            if changes.iter().all(|change| found.contains(change)) {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(Error::Unauthorized {
                    operation: "changing a topic's settings",
                    right: "AlterConfigs",
                    resource: Resource::Topic(topic.clone()),
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A new partition can be written only when it has a leader.
    async fn wait_for_leaders(self: &Arc<Self>, topic: &Topic, partitions: i32) -> Result<()> {
        let end = Instant::now() + self.timeout;
        loop {
            let led = self.look(topic, |found| found.partitions().iter().filter(|part| part.leader() >= 0).count());
            if led.await?.is_some_and(|led| led as i32 >= partitions) {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(self.attempt("waiting for a topic's leaders").timed_out());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Polls the events of the client that asks, now and then, while it lives.
fn serve_events(topics: Weak<Topics>) {
    let serve = move || {
        while let Some(topics) = topics.upgrade() {
            topics.serve();
            drop(topics);
            std::thread::sleep(EVENTS_PERIOD);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("kafka-events".to_owned()).spawn(serve) {
        tracing::warn!(%error, "no thread for kafka's events");
    }
}

fn read_settings(resource: &ConfigResource) -> TopicSettings {
    let value = |name: &str| resource.get(name).and_then(|entry| entry.value.as_deref());
    TopicSettings {
        compact: value("cleanup.policy").map(|policy| policy.split(',').any(|part| part.trim() == "compact")),
        retention_ms: value("retention.ms").and_then(|text| text.parse().ok()),
        retention_bytes: value("retention.bytes").and_then(|text| text.parse().ok()),
        max_message_bytes: value("max.message.bytes").and_then(|text| text.parse().ok()),
    }
}

fn written_settings(settings: &TopicSettings) -> Vec<(&'static str, String)> {
    let mut written = Vec::new();
    if let Some(compact) = settings.compact {
        written.push(("cleanup.policy", if compact { "compact" } else { "delete" }.to_owned()));
    }
    if let Some(millis) = settings.retention_ms {
        written.push(("retention.ms", millis.to_string()));
    }
    if let Some(bytes) = settings.retention_bytes {
        written.push(("retention.bytes", bytes.to_string()));
    }
    if let Some(bytes) = settings.max_message_bytes {
        written.push(("max.message.bytes", bytes.to_string()));
    }
    written
}
