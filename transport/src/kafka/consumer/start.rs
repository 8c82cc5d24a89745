//! Where reading of a partition begins: always an explicit offset.

use std::collections::BTreeMap;
use std::time::Duration;

use pipedoc_model::names::Topic;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};

use super::super::groups;
use super::super::topics::Listing;
use super::shared::PollerContext;
use crate::log::{AssignedPartition, Committed, Start, TopicPartition};

/// Asks for what the group has committed, and for the ends of partitions where
/// it has not.
pub(super) fn of_group(
    client: &BaseConsumer<PollerContext>,
    partitions: &TopicPartitionList,
    start: Start,
    timeout: Duration,
) -> KafkaResult<Vec<AssignedPartition>> {
    let mut committed = committed(client, partitions.clone(), timeout)?;
    // Where the group began at the ends, they are committed; other partitions came later.
    let start = if start == Start::Latest { Start::Earliest } else { start };
    let place = |source: TopicPartition| {
        let committed = committed.remove(&source);
        let position = match &committed {
            Some(committed) => committed.offset,
            None => resolve(client, &source, start, timeout)?,
        };
        Ok(AssignedPartition { source, committed, position })
    };
    sources(partitions).into_iter().map(place).collect()
}

/// Whether a group has committed anything in topics.
pub(super) fn has_begun(
    client: &BaseConsumer<PollerContext>,
    topics: &Listing,
    timeout: Duration,
) -> KafkaResult<bool> {
    Ok(!committed(client, everything(topics), timeout)?.is_empty())
}

/// Commits the ends of topics as the place where a group begins. Only one member
/// may do so, and before anybody has begun to read.
pub(super) fn begin_at_ends(
    client: &BaseConsumer<PollerContext>,
    topics: &Listing,
    timeout: Duration,
) -> KafkaResult<()> {
    let mut ends = everything(topics);
    for source in sources(&ends) {
        let end = resolve(client, &source, Start::Latest, timeout)?;
        ends.set_partition_offset(source.topic.as_str(), source.partition, Offset::Offset(end))?;
    }
    client.commit(&ends, CommitMode::Sync)
}

/// Every partition of topics.
fn everything(topics: &Listing) -> TopicPartitionList {
    let mut all = TopicPartitionList::new();
    for (topic, partitions) in topics {
        if *partitions > 0 {
            all.add_partition_range(topic.as_str(), 0, partitions - 1);
        }
    }
    all
}

fn committed(
    client: &BaseConsumer<PollerContext>,
    partitions: TopicPartitionList,
    timeout: Duration,
) -> KafkaResult<BTreeMap<TopicPartition, Committed>> {
    if partitions.count() == 0 {
        return Ok(BTreeMap::new());
    }
    let found = client.committed_offsets(partitions, timeout)?;
    for element in found.elements() {
        element.error()?;
    }
    Ok(groups::committed(&found))
}

/// As asked for, without a group.
pub(super) fn as_asked(
    client: &BaseConsumer<PollerContext>,
    partitions: &[(TopicPartition, Start)],
    timeout: Duration,
) -> KafkaResult<Vec<AssignedPartition>> {
    let place = |(source, start): &(TopicPartition, Start)| {
        let position = resolve(client, source, *start, timeout)?;
        Ok(AssignedPartition { source: source.clone(), committed: None, position })
    };
    partitions.iter().map(place).collect()
}

/// A place as an offset.
pub(super) fn resolve(
    client: &BaseConsumer<PollerContext>,
    source: &TopicPartition,
    start: Start,
    timeout: Duration,
) -> KafkaResult<i64> {
    let ends = || client.fetch_watermarks(source.topic.as_str(), source.partition, timeout);
    match start {
        Start::At(offset) => Ok(offset.max(0)),
        Start::Earliest => ends().map(|(start, _)| start),
        Start::Latest => ends().map(|(_, end)| end),
    }
}

/// Partitions with explicit offsets, as librdkafka takes them.
pub(super) fn list(places: &[AssignedPartition]) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(places.len());
    for place in places {
        let TopicPartition { topic, partition } = &place.source;
        list.add_partition_offset(topic.as_str(), *partition, Offset::Offset(place.position))?;
    }
    Ok(list)
}

/// The partitions of a list.
pub(super) fn sources(list: &TopicPartitionList) -> Vec<TopicPartition> {
    let elements = list.elements().into_iter();
    // Kafka has no topics whose names are refused here.
    elements
        .filter_map(|element| Some(TopicPartition::new(Topic::new(element.topic()).ok()?, element.partition())))
        .collect()
}
