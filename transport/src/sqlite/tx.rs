//! One write transaction, in which many callers' work is done: what it sees of
//! topics and partitions, and what it changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use pipedoc_model::names::Topic;
use rusqlite::{CachedStatement, Connection, OptionalExtension, params};

use super::headers;
use crate::embedded::outgoing::{Turns, check_size, now_millis};
use crate::error::Error;
use crate::log::{Delivered, OutgoingRecord, TopicInfo, TopicPartition, TopicSettings};

/// A topic as the writer knows it.
#[derive(Debug, Clone)]
pub(super) struct TopicRow {
    pub(super) id: i64,
    pub(super) info: TopicInfo,
    /// Ids of its partitions, in order.
    pub(super) partitions: Vec<i64>,
}

/// What the writer remembers between transactions, as long as nobody else wrote.
#[derive(Debug, Default)]
pub(super) struct Memory {
    sequence: i64,
    topics_changed: Option<i64>,
    topics: HashMap<Topic, TopicRow>,
    /// Offset that the next record of a partition gets, by partition id.
    next: HashMap<i64, i64>,
    turns: Turns,
}

/// What a transaction changed, to be told once it is committed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// The transaction's number; none: it changed nothing anybody waits for.
    pub(super) sequence: Option<i64>,
    pub(super) ends: Vec<(TopicPartition, i64)>,
    pub(super) groups: BTreeSet<String>,
    pub(super) topics: bool,
}

/// Growth of a partition within a transaction.
#[derive(Debug)]
struct Growth {
    source: TopicPartition,
    bytes: i64,
}

/// An open write transaction.
pub(super) struct Tx<'a> {
    connection: &'a Connection,
    memory: &'a mut Memory,
    /// The statement that most time goes into, looked up once.
    insert: Option<CachedStatement<'a>>,
    grown: BTreeMap<i64, Growth>,
    groups: BTreeSet<String>,
    topics: bool,
}

/// Where a record is to be written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    partition: i32,
    id: i64,
}

impl<'a> Tx<'a> {
    /// Begins, knowing of all that others committed before.
    pub(super) fn begin(connection: &'a Connection, memory: &'a mut Memory) -> rusqlite::Result<Self> {
        connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let (sequence, topics_changed) = connection
            .prepare_cached("SELECT sequence, topics_changed FROM state")?
            .query_row([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?)))?;
        if memory.sequence != sequence {
            memory.sequence = sequence;
            memory.next.clear();
        }
        let tx =
            Self { connection, memory, insert: None, grown: BTreeMap::new(), groups: BTreeSet::new(), topics: false };
        if tx.memory.topics_changed != Some(topics_changed) {
            tx.memory.topics = load_topics(connection)?;
            tx.memory.topics_changed = Some(topics_changed);
        }
        Ok(tx)
    }

    /// The connection, for SQL within the transaction.
    pub(super) fn sql(&self) -> &Connection {
        self.connection
    }

    /// Number that this transaction will have if it changes something.
    pub(super) fn sequence(&self) -> i64 {
        self.memory.sequence + 1
    }

    /// A topic.
    pub(super) fn topic(&self, topic: &Topic) -> Result<&TopicRow, Error> {
        self.memory.topics.get(topic).ok_or_else(|| Error::UnknownTopic { topic: topic.clone() })
    }

    /// All topics.
    pub(super) fn topics(&self) -> impl Iterator<Item = &TopicRow> {
        self.memory.topics.values()
    }

    /// Id of a partition.
    pub(super) fn partition(&self, source: &TopicPartition) -> Result<i64, Error> {
        let partitions = &self.topic(&source.topic)?.partitions;
        let index = usize::try_from(source.partition).ok();
        index
            .and_then(|index| partitions.get(index))
            .copied()
            .ok_or_else(|| Error::UnknownPartition { partition: source.clone() })
    }

    /// Numbers of partitions of all topics.
    pub(super) fn sizes(&self) -> BTreeMap<Topic, i32> {
        self.topics().map(|row| (row.info.topic.clone(), row.info.partitions)).collect()
    }

    /// Says that topics changed; what is known of them is read anew.
    pub(super) fn reload_topics(&mut self) -> rusqlite::Result<()> {
        self.topics = true;
        self.memory.topics = load_topics(self.connection)?;
        self.memory.next.clear();
        Ok(())
    }

    /// Says that a group changed.
    pub(super) fn group_changed(&mut self, group: &str) {
        self.groups.insert(group.to_owned());
    }

    /// Refuses a record that can never be written, else tells where it goes.
    pub(super) fn place(&self, record: &OutgoingRecord) -> Result<Place, Error> {
        let row = self.topic(&record.topic)?;
        check_size(record, row.info.settings.max_message_bytes.unwrap_or(i32::MAX))?;
        let partition = self.memory.turns.choose(record, row.info.partitions)?;
        let id = usize::try_from(partition).ok().and_then(|index| row.partitions.get(index)).copied();
        let unknown = || Error::UnknownPartition { partition: TopicPartition::new(record.topic.clone(), partition) };
        Ok(Place { partition, id: id.ok_or_else(unknown)? })
    }

    /// Writes a record to the place that [`place`](Self::place) told.
    pub(super) fn append(&mut self, record: &OutgoingRecord, place: Place) -> rusqlite::Result<Delivered> {
        let Place { partition, id } = place;
        let offset = self.next(id)?;
        let timestamp = record.timestamp.unwrap_or_else(now_millis);
        let headers = headers::encode(&record.headers);
        let length = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len) as i64;
        let (key, value) = (record.key.as_deref(), record.value.as_deref());
        let insert = match &mut self.insert {
            Some(insert) => insert,
            None => self.insert.insert(self.connection.prepare_cached(
                "INSERT INTO records (partition, offset, timestamp, key, value, headers) VALUES (?, ?, ?, ?, ?, ?)",
            )?),
        };
        insert.execute(params![id, offset, timestamp, key, value, headers])?;
        self.memory.next.insert(id, offset + 1);
        let growth = self
            .grown
            .entry(id)
            .or_insert_with(|| Growth { source: TopicPartition::new(record.topic.clone(), partition), bytes: 0 });
        growth.bytes += length(key) + length(value) + length(headers.as_deref());
        Ok(Delivered { partition, offset, timestamp })
    }

    fn next(&mut self, id: i64) -> rusqlite::Result<i64> {
        if let Some(next) = self.memory.next.get(&id) {
            return Ok(*next);
        }
        let mut statement = self.connection.prepare_cached("SELECT next FROM partitions WHERE id = ?")?;
        let next = statement.query_row([id], |row| row.get(0)).optional()?.unwrap_or(0);
        self.memory.next.insert(id, next);
        Ok(next)
    }

    /// Commits, and tells what there is to tell.
    pub(super) fn commit(self) -> rusqlite::Result<Changes> {
        let mut changes = Changes { groups: self.groups, topics: self.topics, ..Changes::default() };
        let sequence = self.memory.sequence + 1;
        for (id, growth) in self.grown {
            let next = self.memory.next.get(&id).copied().unwrap_or(0);
            self.connection
                .prepare_cached("UPDATE partitions SET next = ?, bytes = bytes + ?, changed = ? WHERE id = ?")?
                .execute(params![next, growth.bytes, sequence, id])?;
            changes.ends.push((growth.source, next));
        }
        for group in &changes.groups {
            self.connection
                .prepare_cached("UPDATE groups SET changed = ? WHERE name = ?")?
                .execute(params![sequence, group])?;
        }
        if !changes.ends.is_empty() || !changes.groups.is_empty() || changes.topics {
            self.connection
                .prepare_cached("UPDATE state SET sequence = ?1, topics_changed = iif(?2, ?1, topics_changed)")?
                .execute(params![sequence, changes.topics])?;
            changes.sequence = Some(sequence);
        }
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        if changes.sequence.is_some() {
            self.memory.sequence = sequence;
        }
        if changes.topics {
            self.memory.topics_changed = Some(sequence);
        }
        Ok(changes)
    }
}

impl Memory {
    /// Forgets everything, after a transaction that was undone.
    pub(super) fn forget(&mut self) {
        let turns = std::mem::take(&mut self.turns);
        *self = Self { turns, ..Self::default() };
        // No sequence is negative, so all is read anew.
        self.sequence = -1;
    }
}

/// Reads all topics.
pub(super) fn load_topics(connection: &Connection) -> rusqlite::Result<HashMap<Topic, TopicRow>> {
    let mut topics = HashMap::new();
    let mut names = HashMap::new();
    let mut statement = connection
        .prepare_cached("SELECT id, name, compact, retention_ms, retention_bytes, max_message_bytes FROM topics")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let id: i64 = row.get(0)?;
        // Only valid names are ever written.
        let Ok(topic) = Topic::new(&row.get::<_, String>(1)?) else { continue };
        let settings = TopicSettings {
            compact: Some(row.get(2)?),
            retention_ms: Some(row.get(3)?),
            retention_bytes: Some(row.get(4)?),
            max_message_bytes: Some(row.get(5)?),
        };
        let info = TopicInfo { topic: topic.clone(), partitions: 0, settings };
        names.insert(id, topic.clone());
        topics.insert(topic, TopicRow { id, info, partitions: Vec::new() });
    }
    let mut statement = connection.prepare_cached("SELECT topic, id FROM partitions ORDER BY topic, partition")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if let Some(row_of_topic) = names.get(&row.get(0)?).and_then(|topic| topics.get_mut(topic)) {
            row_of_topic.partitions.push(row.get(1)?);
            row_of_topic.info.partitions += 1;
        }
    }
    Ok(topics)
}
