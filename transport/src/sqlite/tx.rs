//! One write transaction, in which many callers' work is done: what it sees of
//! topics and partitions, and what it changed.
//!
//! Beside the records it keeps *marks*: for about every thousandth record of a
//! partition, the newest timestamp before it and when it was written. They make
//! it cheap to find a record by time, and to know how long a tombstone has lain.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use pipedoc_model::names::Topic;
use rusqlite::{CachedStatement, Connection, params};

use super::headers;
use super::problem::Fault;
use super::schema::VERSION;
use crate::embedded::outgoing::{Turns, check_size, now_millis};
use crate::error::{Error, FileProblem};
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
    /// Where partitions end, by their ids.
    tails: HashMap<i64, Tail>,
    turns: Turns,
}

/// Where a partition ends.
#[derive(Debug, Clone, Copy)]
struct Tail {
    /// Offset that the next record gets.
    next: i64,
    /// The newest timestamp of all records that there ever were.
    newest: i64,
    /// Offset of the last mark, and when it was made.
    marked: i64,
    marked_at: i64,
}

/// Records from one mark to the next, at least, unless the last is old.
const MARK_EVERY: i64 = 1000;
/// Milliseconds after which a mark is made for any record that comes.
const MARK_AFTER: i64 = 3_600_000;

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
    /// Encoded headers of the record being written.
    headers: Vec<u8>,
}

/// Where a record is to be written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    partition: i32,
    id: i64,
}

impl<'a> Tx<'a> {
    /// Begins, knowing of all that others committed before.
    pub(super) fn begin(connection: &'a Connection, memory: &'a mut Memory, path: &Path) -> Result<Self, Fault> {
        connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let version: i64 = connection.prepare_cached("PRAGMA user_version")?.query_row([], |row| row.get(0))?;
        if version != VERSION {
            // A newer process has brought the file further.
            let problem = FileProblem::TooNew { found: version, known: VERSION };
            return Err(Error::File { path: path.to_owned(), problem, source: None }.into());
        }
        let (sequence, topics_changed) = connection
            .prepare_cached("SELECT sequence, topics_changed_at FROM state")?
            .query_row([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?)))?;
        if memory.sequence != sequence {
            memory.sequence = sequence;
            memory.tails.clear();
        }
        let tx = Self {
            connection,
            memory,
            insert: None,
            grown: BTreeMap::new(),
            groups: BTreeSet::new(),
            topics: false,
            headers: Vec::new(),
        };
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
        self.memory.tails.clear();
        Ok(())
    }

    /// As [`reload_topics`](Self::reload_topics), where only one was made or changed:
    /// ten thousand topics are made one after the other.
    pub(super) fn reload_topic(&mut self, topic: &Topic) -> rusqlite::Result<()> {
        let Some(info) = super::topics::info(self.connection, topic)? else { return self.reload_topics() };
        let select = "SELECT id FROM topics WHERE name = ?";
        let id: i64 = self.connection.prepare_cached(select)?.query_row([topic.as_str()], |row| row.get(0))?;
        let select = "SELECT id FROM partitions WHERE topic = ? ORDER BY partition";
        let mut statement = self.connection.prepare_cached(select)?;
        let partitions = statement.query_map([id], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        self.topics = true;
        self.memory.topics.insert(topic.clone(), TopicRow { id, info, partitions });
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
        let timestamp = record.timestamp.unwrap_or_else(now_millis);
        let tail = tail(self.connection, &mut self.memory.tails, id)?;
        let offset = tail.next;
        self.headers.clear();
        headers::encode(&record.headers, &mut self.headers);
        let headers = (!self.headers.is_empty()).then_some(&self.headers[..]);
        let length = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len) as i64;
        let (key, value) = (record.key.as_deref(), record.value.as_deref());
        let insert = match &mut self.insert {
            Some(insert) => insert,
            None => self.insert.insert(self.connection.prepare_cached(
                "INSERT INTO records (partition, offset, timestamp, key, value, headers) VALUES (?, ?, ?, ?, ?, ?)",
            )?),
        };
        insert.execute(params![id, offset, timestamp, key, value, headers])?;
        tail.next = offset + 1;
        tail.newest = tail.newest.max(timestamp);
        let growth = self
            .grown
            .entry(id)
            .or_insert_with(|| Growth { source: TopicPartition::new(record.topic.clone(), partition), bytes: 0 });
        growth.bytes += length(key) + length(value) + length(headers);
        Ok(Delivered { partition, offset, timestamp })
    }

    /// Commits, and tells what there is to tell.
    pub(super) fn commit(self) -> rusqlite::Result<Changes> {
        let mut changes = Changes { groups: self.groups, topics: self.topics, ..Changes::default() };
        let sequence = self.memory.sequence + 1;
        let now = now_millis();
        for (id, growth) in self.grown {
            let tail = tail(self.connection, &mut self.memory.tails, id)?;
            if tail.next - tail.marked >= MARK_EVERY || now - tail.marked_at >= MARK_AFTER {
                (tail.marked, tail.marked_at) = (tail.next, now);
                self.connection
                    .prepare_cached(
                        "INSERT OR REPLACE INTO marks (partition, offset, newest, written_at) VALUES (?, ?, ?, ?)",
                    )?
                    .execute(params![id, tail.next, tail.newest, now])?;
            }
            let Tail { next, newest, marked, marked_at } = *tail;
            self.connection
                .prepare_cached(
                    "UPDATE partitions SET next = ?, newest = ?, marked = ?, marked_at = ?, bytes = bytes + ?,
                     changed = ? WHERE id = ?",
                )?
                .execute(params![next, newest, marked, marked_at, growth.bytes, sequence, id])?;
            changes.ends.push((growth.source, next));
        }
        for group in &changes.groups {
            self.connection
                .prepare_cached("UPDATE groups SET changed = ? WHERE name = ?")?
                .execute(params![sequence, group])?;
        }
        if !changes.ends.is_empty() || !changes.groups.is_empty() || changes.topics {
            self.connection
                .prepare_cached("UPDATE state SET sequence = ?1, topics_changed_at = iif(?2, ?1, topics_changed_at)")?
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

/// Where a partition ends, read if it is not known.
fn tail<'m>(connection: &Connection, tails: &'m mut HashMap<i64, Tail>, id: i64) -> rusqlite::Result<&'m mut Tail> {
    Ok(match tails.entry(id) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(unknown) => {
            let mut statement =
                connection.prepare_cached("SELECT next, newest, marked, marked_at FROM partitions WHERE id = ?")?;
            unknown.insert(statement.query_row([id], |row| {
                Ok(Tail { next: row.get(0)?, newest: row.get(1)?, marked: row.get(2)?, marked_at: row.get(3)? })
            })?)
        }
    })
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
