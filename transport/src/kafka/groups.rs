//! Offsets of groups seen and set from outside, and offsets by time.
//!
//! Both need a consumer that never subscribes: the broker answers one that has
//! the group's name, and refuses its commits while the group has members.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pipedoc_model::kafka::{Client, Settings};
use pipedoc_model::names::Topic;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::{Offset, TopicPartitionList};

use super::contact::PlainContext;
use super::failure::{Attempt, not_made};
use super::topics::Listing;
use super::{KafkaLog, blocking, settings};
use crate::log::{Commit, Committed, ConsumerConfig, Error, Result, Subscription, TopicPartition};

/// Longest text that Kafka keeps beside an offset, by default.
const METADATA_BYTES: usize = 4096;

/// How long a client that asks for a group is kept for the next question.
const KEPT: Duration = Duration::from_secs(30);

/// Clients with a group's name are kept so long, and no more of them: each has
/// connections and threads.
const CLIENTS: usize = 16;

/// A client with a group's name that never joins it.
type Outsider = Arc<BaseConsumer<PlainContext>>;

/// Clients that have asked for groups a moment ago: whoever watches a group asks
/// again and again.
#[derive(Default)]
pub(super) struct Outsiders(Mutex<BTreeMap<String, (Instant, Outsider)>>);

impl Outsiders {
    fn get(&self, log: &KafkaLog, group: &str) -> Result<Outsider> {
        let mut kept = self.0.lock();
        kept.retain(|_, (used, _)| used.elapsed() < KEPT);
        if let Some((used, client)) = kept.get_mut(group) {
            *used = Instant::now();
            return Ok(client.clone());
        }
        let client = Arc::new(outsider(log, group)?);
        while kept.len() >= CLIENTS {
            let oldest = kept.iter().min_by_key(|(_, (used, _))| *used).map(|(group, _)| group.clone());
            oldest.and_then(|oldest| kept.remove(&oldest));
        }
        kept.insert(group.to_owned(), (Instant::now(), client.clone()));
        Ok(client)
    }
}

/// How long one look at a group's offsets may take, and how soon it is looked again.
const LOOK: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(100);

/// All that a group has committed. The client library can only ask for
/// partitions it names, so it names all.
pub(super) async fn offsets(log: &KafkaLog, group: &str) -> Result<BTreeMap<TopicPartition, Committed>> {
    let listing = log.topics.list().await?;
    offsets_in(log, group, listing, false).await
}

/// What a group has committed in some topics.
pub(super) async fn offsets_of(
    log: &KafkaLog,
    group: &str,
    topics: &[Topic],
) -> Result<BTreeMap<TopicPartition, Committed>> {
    let mut listing = Listing::new();
    for topic in topics {
        if let Some(partitions) = log.topics.partitions(topic).await? {
            listing.insert(topic.clone(), partitions);
        }
    }
    offsets_in(log, group, listing, true).await
}

/// `named`: errors of single topics count.
async fn offsets_in(
    log: &KafkaLog,
    group: &str,
    listing: Listing,
    named: bool,
) -> Result<BTreeMap<TopicPartition, Committed>> {
    let (log, group) = (log.clone(), group.to_owned());
    blocking(move || {
        let mut asked = TopicPartitionList::new();
        for (topic, partitions) in &listing {
            for partition in 0..*partitions {
                asked.add_partition(topic.as_str(), partition);
            }
        }
        if asked.count() == 0 {
            return Ok(BTreeMap::new());
        }
        let attempt =
            Attempt::new("asking for a group's offsets", &log.contact, log.config.timeout).looking_at_group(&group);
        let client = log.outsiders.get(&log, &group)?;
        let end = Instant::now() + log.config.timeout;
        let found = loop {
            let found = client.committed_offsets(asked.clone(), LOOK.min(log.config.timeout));
            // Its events are served by nobody else, and they alone tell that the group is refused.
            let refused = refusal(&client);
            let error = match found {
                Ok(found) => break found,
                Err(error) => attempt.failed(refused.unwrap_or(error)),
            };
            // A coordinator that has just started does not know the group yet.
            if !error.is_retryable() || Instant::now() > end {
                return Err(error);
            }
            std::thread::sleep(AGAIN);
        };
        // Of all topics of a cluster, some may be nobody's business.
        for element in found.elements().iter().filter(|_| named) {
            match (element.error(), Topic::new(element.topic())) {
                (Err(error), Ok(topic)) => return Err(attempt.failed_on(&topic, error)),
                (Err(error), Err(_)) => return Err(attempt.failed(error)),
                (Ok(()), _) => {}
            }
        }
        Ok(committed(&found))
    })
    .await
}

/// What a client was told of its group being refused.
fn refusal(client: &BaseConsumer<PlainContext>) -> Option<KafkaError> {
    let told = (0..16).filter_map(|_| client.poll(Duration::ZERO)?.err());
    told.into_iter().find(|error| error.rdkafka_error_code() == Some(Code::GroupAuthorizationFailed))
}

/// Sets a group's offsets; refused while it has members.
pub(super) async fn set_offsets(log: &KafkaLog, group: &str, commits: &[Commit]) -> Result<()> {
    let offsets = commit_list(commits)?;
    for commit in commits {
        let TopicPartition { topic, partition } = &commit.source;
        match log.topics.partitions(topic).await? {
            None => return Err(Error::UnknownTopic { topic: topic.clone() }),
            Some(count) if *partition < 0 || *partition >= count => {
                return Err(Error::UnknownPartition { partition: commit.source.clone() });
            }
            Some(_) => {}
        }
    }
    let (log, group) = (log.clone(), group.to_owned());
    blocking(move || {
        let attempt = Attempt::new("setting a group's offsets", &log.contact, log.config.timeout).of_group(&group);
        let client = outsider(&log, &group)?;
        match client.commit(&offsets, CommitMode::Sync) {
            Ok(()) => Ok(()),
            Err(error) => match error.rdkafka_error_code() {
                Some(Code::UnknownMemberId | Code::IllegalGeneration | Code::RebalanceInProgress) => {
                    let groups = client.fetch_group_list(Some(&group), log.config.timeout);
                    let members = groups.ok().and_then(|found| found.groups().first().map(|info| info.members().len()));
                    Err(Error::GroupNotEmpty { group, members: members.unwrap_or(1) })
                }
                _ => Err(attempt.failed(error)),
            },
        }
    })
    .await
}

/// For each partition the offset of the first record of `millis` or later.
pub(super) async fn offsets_at(log: &KafkaLog, topic: &Topic, millis: i64) -> Result<Vec<i64>> {
    let ends = log.topics.ends(topic).await?;
    let (log, topic) = (log.clone(), topic.clone());
    blocking(move || {
        let attempt = Attempt::new("asking for offsets by time", &log.contact, log.config.timeout);
        let mut asked = TopicPartitionList::new();
        for partition in 0..ends.len() as i32 {
            // Times before the epoch would read as one of Kafka's special offsets.
            let added = asked.add_partition_offset(topic.as_str(), partition, Offset::Offset(millis.max(0)));
            added.map_err(|error| attempt.failed(error))?;
        }
        let found = log.topics.query().offsets_for_times(asked, log.config.timeout);
        let found = found.map_err(|error| attempt.failed_on(&topic, error))?;
        let mut offsets: Vec<i64> = ends.iter().map(|ends| ends.end).collect();
        for element in found.elements() {
            element.error().map_err(|error| attempt.failed_on(&topic, error))?;
            if let (Offset::Offset(offset), Some(slot)) =
                (element.offset(), offsets.get_mut(element.partition() as usize))
            {
                *slot = offset.min(*slot);
            }
        }
        Ok(offsets)
    })
    .await
}

/// Commits as librdkafka takes them.
pub(super) fn commit_list(commits: &[Commit]) -> Result<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(commits.len());
    for commit in commits {
        if commit.metadata.len() > METADATA_BYTES {
            return Err(Error::MetadataTooLarge { partition: commit.source.clone(), size: commit.metadata.len() });
        }
        let mut element = list.add_partition(commit.source.topic.as_str(), commit.source.partition);
        let offset = Offset::Offset(commit.offset);
        if element.set_offset(offset).is_err() {
            return Err(Error::Misuse { operation: "a commit", reason: "offsets are not below 0" });
        }
        if !commit.metadata.is_empty() {
            element.set_metadata(&commit.metadata);
        }
    }
    Ok(list)
}

/// Offsets as librdkafka gives them; partitions without one are left out.
pub(super) fn committed(list: &TopicPartitionList) -> BTreeMap<TopicPartition, Committed> {
    let found = list.elements().into_iter().filter_map(|element| {
        let Offset::Offset(offset) = element.offset() else { return None };
        let source = TopicPartition::new(Topic::new(element.topic()).ok()?, element.partition());
        Some((source, Committed { offset, metadata: element.metadata().to_owned() }))
    });
    found.collect()
}

/// A client with a group's name that never joins it.
fn outsider(log: &KafkaLog, group: &str) -> Result<BaseConsumer<PlainContext>> {
    let own = log.config.settings(Client::Consumer, &Settings::new())?;
    let asked =
        ConsumerConfig { settings: own, ..ConsumerConfig::new("pipedoc-admin", Subscription::Assigned(Vec::new())) };
    let mut config = settings::consumer(&log.config, &asked, group, false);
    // Offsets in an open transaction are not committed yet. A reader of committed
    // records would wait for the transaction's end before it tells of the others.
    config.set("isolation.level", "read_uncommitted");
    // Nobody takes them from its queue.
    config.set("statistics.interval.ms", "0").remove("debug");
    config.create_with_context(PlainContext::new(log.contact.clone())).map_err(not_made(&config))
}
