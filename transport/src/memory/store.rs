//! What the memory log holds: topics, records, groups. Plain data under a lock
//! that others hold; knows no waiting.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use pipedoc_model::names::Topic;

use crate::embedded::balance::Group;
use crate::embedded::outgoing::{Turns, check_size, now_millis};
use crate::embedded::{Fetched, Grant, Joining, Limits, MemberId, MemberOffsets};
use crate::error::{Error, Result};
use crate::log::{
    Commit, Committed, Delivered, Ends, OutgoingRecord, Record, TopicInfo, TopicPartition, TopicSettings, TopicSpec,
};
use crate::size;

/// Records between two compactions of a partition, at least.
const COMPACT_AFTER: usize = 1000;

#[derive(Debug)]
pub(super) struct TopicState {
    settings: TopicSettings,
    partitions: Vec<Partition>,
}

#[derive(Debug, Default)]
struct Partition {
    start: i64,
    end: i64,
    records: VecDeque<Record>,
    /// Bytes of all records.
    bytes: i64,
    /// How many records were there after the last compaction.
    compacted: usize,
}

#[derive(Debug, Default)]
struct GroupState {
    group: Group,
    clients: BTreeMap<MemberId, String>,
    offsets: BTreeMap<TopicPartition, Committed>,
}

/// Everything in the log.
#[derive(Debug, Default)]
pub(super) struct Store {
    topics: BTreeMap<Topic, TopicState>,
    groups: HashMap<String, GroupState>,
    epochs: HashMap<String, i64>,
    last_member: MemberId,
    turns: Turns,
}

impl Store {
    pub(super) fn ensure(&mut self, spec: &TopicSpec) -> Result<TopicInfo> {
        let state = self.topics.entry(spec.topic.clone()).or_insert_with(|| TopicState {
            settings: TopicSettings {
                compact: Some(false),
                retention_ms: Some(-1),
                retention_bytes: Some(-1),
                max_message_bytes: i32::try_from(size::DEFAULT_LIMIT).ok(),
            },
            partitions: Vec::new(),
        });
        let (found, wanted) = (state.partitions.len() as i32, spec.partitions.max(1));
        if wanted < found {
            return Err(Error::PartitionsShrink { topic: spec.topic.clone(), found, wanted });
        }
        state.partitions.resize_with(wanted as usize, Partition::default);
        let (old, new) = (&mut state.settings, &spec.settings);
        old.compact = new.compact.or(old.compact);
        old.retention_ms = new.retention_ms.or(old.retention_ms);
        old.retention_bytes = new.retention_bytes.or(old.retention_bytes);
        old.max_message_bytes = new.max_message_bytes.or(old.max_message_bytes);
        Ok(info(&spec.topic, state))
    }

    pub(super) fn remove(&mut self, topic: &Topic) {
        self.topics.remove(topic);
        for state in self.groups.values_mut() {
            state.offsets.retain(|source, _| source.topic != *topic);
        }
        self.divide_all();
    }

    pub(super) fn info(&self, topic: &Topic) -> Option<TopicInfo> {
        self.topics.get(topic).map(|state| info(topic, state))
    }

    pub(super) fn sizes(&self) -> BTreeMap<Topic, i32> {
        self.topics.iter().map(|(topic, state)| (topic.clone(), state.partitions.len() as i32)).collect()
    }

    fn topic(&self, topic: &Topic) -> Result<&TopicState> {
        self.topics.get(topic).ok_or_else(|| Error::UnknownTopic { topic: topic.clone() })
    }

    fn partition(&self, source: &TopicPartition) -> Result<&Partition> {
        let index = usize::try_from(source.partition).ok();
        let state = self.topic(&source.topic)?;
        index
            .and_then(|index| state.partitions.get(index))
            .ok_or_else(|| Error::UnknownPartition { partition: source.clone() })
    }

    fn partition_mut(&mut self, source: &TopicPartition) -> Option<&mut Partition> {
        let index = usize::try_from(source.partition).ok()?;
        self.topics.get_mut(&source.topic)?.partitions.get_mut(index)
    }

    pub(super) fn ends(&self, topic: &Topic) -> Result<Vec<Ends>> {
        Ok(self.topic(topic)?.partitions.iter().map(Partition::ends).collect())
    }

    pub(super) fn ends_of(&self, source: &TopicPartition) -> Result<Ends> {
        Ok(self.partition(source)?.ends())
    }

    pub(super) fn offsets_at(&self, topic: &Topic, millis: i64) -> Result<Vec<i64>> {
        let first = |partition: &Partition| {
            let found = partition.records.iter().find(|record| record.timestamp >= millis);
            found.map_or(partition.end, |record| record.offset)
        };
        Ok(self.topic(topic)?.partitions.iter().map(first).collect())
    }

    pub(super) fn truncate(&mut self, source: &TopicPartition, before: i64) -> Result<()> {
        self.partition(source)?;
        if let Some(partition) = self.partition_mut(source) {
            partition.start = before.clamp(partition.start, partition.end);
            while partition.records.front().is_some_and(|record| record.offset < partition.start) {
                partition.remove_oldest();
            }
        }
        Ok(())
    }

    /// Refuses a record that cannot be written, else tells its partition.
    pub(super) fn place(&self, record: &OutgoingRecord) -> Result<i32> {
        let state = self.topic(&record.topic)?;
        check_size(record, state.settings.max_message_bytes.unwrap_or(i32::MAX))?;
        self.turns.choose(record, state.partitions.len() as i32)
    }

    /// Writes a record to the partition that [`place`](Self::place) told.
    pub(super) fn append(&mut self, record: OutgoingRecord, partition: i32) -> Result<(TopicPartition, Delivered)> {
        let source = TopicPartition::new(record.topic.clone(), partition);
        let settings = self.topic(&record.topic)?.settings.clone();
        let timestamp = record.timestamp.unwrap_or_else(now_millis);
        let Some(partition) = self.partition_mut(&source) else {
            return Err(Error::UnknownPartition { partition: source });
        };
        let offset = partition.end;
        partition.end += 1;
        let OutgoingRecord { key, value, headers, .. } = record;
        let record = Record { offset, timestamp, key, value, headers };
        partition.bytes += length(&record);
        partition.records.push_back(record);
        if settings.compact == Some(true) {
            partition.compact();
        } else {
            partition.retain(&settings);
        }
        Ok((source.clone(), Delivered { partition: source.partition, offset, timestamp }))
    }

    pub(super) fn read(&self, source: &TopicPartition, from: i64, limits: Limits) -> Result<Fetched> {
        let partition = self.partition(source)?;
        let first = partition.records.partition_point(|record| record.offset < from);
        let (mut records, mut bytes) = (Vec::new(), 0);
        for record in partition.records.range(first..) {
            bytes += record.key.as_ref().map_or(0, |key| key.len()) + record.value.as_ref().map_or(0, |v| v.len());
            if records.len() == limits.records || (!records.is_empty() && bytes > limits.bytes) {
                let next = record.offset;
                return Ok(Fetched { records, ends: partition.ends(), next });
            }
            records.push(record.clone());
        }
        Ok(Fetched { records, ends: partition.ends(), next: from.max(partition.end) })
    }

    fn divide_all(&mut self) {
        let sizes = self.sizes();
        for state in self.groups.values_mut() {
            state.group.divide(&sizes);
        }
    }

    fn divide(&mut self, group: &str) {
        let sizes = self.sizes();
        if let Some(state) = self.groups.get_mut(group) {
            state.group.divide(&sizes);
        }
    }

    pub(super) fn join(&mut self, joining: &Joining, topics: &BTreeSet<Topic>) -> MemberId {
        self.last_member += 1;
        let member = self.last_member;
        if joining.from_ends && !self.groups.contains_key(&joining.group) {
            let ends: Vec<Commit> = topics.iter().flat_map(|topic| self.commits_at_ends(topic)).collect();
            self.set_offsets(&joining.group, ends.iter());
        }
        let state = self.groups.entry(joining.group.clone()).or_default();
        state.group.members.insert(member, topics.clone());
        state.clients.insert(member, joining.client_id.clone());
        self.divide(&joining.group);
        member
    }

    /// The ends of a topic, if it is there, as places to commit.
    fn commits_at_ends(&self, topic: &Topic) -> Vec<Commit> {
        let partitions = self.topics.get(topic).map_or(&[][..], |state| &state.partitions);
        let commit = |(partition, at): (i32, &Partition)| {
            let source = TopicPartition::new(topic.clone(), partition);
            Commit { source, offset: at.end, metadata: String::new() }
        };
        (0..).zip(partitions).map(commit).collect()
    }

    pub(super) fn subscribe(&mut self, group: &str, member: MemberId, topics: &BTreeSet<Topic>) {
        let wants = self.groups.get_mut(group).and_then(|state| state.group.members.get_mut(&member));
        if let Some(wants) = wants {
            *wants = topics.clone();
            self.divide(group);
        }
    }

    pub(super) fn leave(&mut self, group: &str, member: MemberId) {
        if let Some(state) = self.groups.get_mut(group) {
            state.group.remove(member);
            state.clients.remove(&member);
            self.divide(group);
        }
    }

    pub(super) fn release(&mut self, group: &str, member: MemberId, partitions: &[(TopicPartition, i64)]) {
        if let Some(state) = self.groups.get_mut(group) {
            for (source, epoch) in partitions {
                state.group.release(member, source, *epoch);
            }
        }
    }

    /// Members with a client id, of all groups.
    pub(super) fn members_named(&self, client: &str) -> Vec<(String, MemberId)> {
        let named = |(group, state): (&String, &GroupState)| {
            let members: Vec<_> = state.clients.iter().filter(|(_, name)| *name == client).map(|(m, _)| *m).collect();
            let group = group.clone();
            members.into_iter().map(move |member| (group.clone(), member)).collect::<Vec<_>>()
        };
        self.groups.iter().flat_map(named).collect()
    }

    pub(super) fn grants(&self, group: &str, member: MemberId) -> Option<Vec<Grant>> {
        let state = self.groups.get(group).filter(|state| state.group.members.contains_key(&member))?;
        let held = state.group.leases.iter().filter(|(_, lease)| lease.owner == Some(member));
        let grants = held.filter_map(|(source, lease)| {
            Some(Grant {
                source: source.clone(),
                epoch: lease.epoch,
                wanted_away: lease.wanted_away(),
                committed: state.offsets.get(source).cloned(),
                ends: self.ends_of(source).ok()?,
            })
        });
        Some(grants.collect())
    }

    /// Fails unless the member holds all of it.
    pub(super) fn check_owner(&self, offsets: &MemberOffsets) -> Result<()> {
        let group = self.groups.get(&offsets.group).map(|state| &state.group);
        let holds = |group: &Group| {
            let mut owned = offsets.commits.iter();
            owned.all(|owned| group.holds(offsets.member, &owned.commit.source, owned.epoch))
        };
        if group.is_some_and(holds) {
            return Ok(());
        }
        Err(Error::Fenced { who: format!("a member of group {}", offsets.group) })
    }

    pub(super) fn set_offsets<'a>(&mut self, group: &str, commits: impl Iterator<Item = &'a Commit>) {
        let state = self.groups.entry(group.to_owned()).or_default();
        for commit in commits {
            let committed = Committed { offset: commit.offset, metadata: commit.metadata.clone() };
            state.offsets.insert(commit.source.clone(), committed);
        }
    }

    pub(super) fn offsets(&self, group: &str) -> BTreeMap<TopicPartition, Committed> {
        self.groups.get(group).map(|state| state.offsets.clone()).unwrap_or_default()
    }

    pub(super) fn members(&self, group: &str) -> usize {
        self.groups.get(group).map_or(0, |state| state.group.members.len())
    }

    pub(super) fn fence(&mut self, id: &str) -> i64 {
        let epoch = self.epochs.entry(id.to_owned()).or_default();
        *epoch += 1;
        *epoch
    }

    pub(super) fn check_epoch(&self, id: &str, epoch: i64) -> Result<()> {
        if self.epochs.get(id) == Some(&epoch) {
            return Ok(());
        }
        Err(Error::Fenced { who: format!("transactional id {id}") })
    }
}

impl Partition {
    fn ends(&self) -> Ends {
        Ends { start: self.start, end: self.end }
    }

    /// Keeps the newest record of each key once enough has come together.
    fn compact(&mut self) {
        if self.records.len() < 2 * self.compacted + COMPACT_AFTER {
            return;
        }
        let newest: HashMap<_, _> =
            self.records.iter().filter_map(|record| Some((record.key.clone()?, record.offset))).collect();
        self.records.retain(|record| match &record.key {
            Some(key) => newest.get(key) == Some(&record.offset),
            None => false,
        });
        self.compacted = self.records.len();
        self.bytes = self.records.iter().map(length).sum();
    }

    /// Removes what is too old or too much, the oldest first.
    fn retain(&mut self, settings: &TopicSettings) {
        let oldest = settings.retention_ms.filter(|age| *age >= 0).map(|age| now_millis() - age);
        let most = settings.retention_bytes.filter(|bytes| *bytes >= 0);
        while let Some(first) = self.records.front() {
            let too_old = oldest.is_some_and(|oldest| first.timestamp < oldest);
            let too_much = most.is_some_and(|most| self.bytes - length(first) >= most);
            if !too_old && !too_much {
                return;
            }
            self.remove_oldest();
            self.start = self.records.front().map_or(self.end, |record| record.offset);
        }
    }

    fn remove_oldest(&mut self) {
        self.bytes -= self.records.pop_front().as_ref().map_or(0, length);
    }
}

/// Bytes of a record's content.
fn length(record: &Record) -> i64 {
    [&record.key, &record.value].into_iter().flatten().map(|bytes| bytes.len() as i64).sum()
}

fn info(topic: &Topic, state: &TopicState) -> TopicInfo {
    TopicInfo { topic: topic.clone(), partitions: state.partitions.len() as i32, settings: state.settings.clone() }
}
