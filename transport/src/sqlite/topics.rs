//! Topics in the file: making, growing, removing, truncating.

use std::collections::BTreeMap;

use pipedoc_model::names::Topic;
use rusqlite::{Connection, OptionalExtension, params};

use super::groups;
use super::problem::Fault;
use super::tx::Tx;
use crate::error::Error;
use crate::log::{Ends, TopicInfo, TopicPartition, TopicSettings, TopicSpec};
use crate::size;

/// Makes a topic, or grows and changes it.
pub(super) fn ensure(tx: &mut Tx<'_>, spec: &TopicSpec) -> Result<TopicInfo, Fault> {
    let wanted = spec.partitions.max(1);
    let found = tx.topic(&spec.topic).ok().cloned();
    let partitions = found.as_ref().map_or(0, |row| row.info.partitions);
    if wanted < partitions {
        return Err(Error::PartitionsShrink { topic: spec.topic.clone(), found: partitions, wanted }.into());
    }
    let settings = &spec.settings;
    let old = found.as_ref().map(|row| row.info.settings.clone()).unwrap_or_default();
    let compact = settings.compact.or(old.compact).unwrap_or(false);
    let retention_ms = settings.retention_ms.or(old.retention_ms).unwrap_or(-1);
    let retention_bytes = settings.retention_bytes.or(old.retention_bytes).unwrap_or(-1);
    let default_limit = i32::try_from(size::DEFAULT_LIMIT).unwrap_or(i32::MAX);
    let limit = settings.max_message_bytes.or(old.max_message_bytes).unwrap_or(default_limit);
    let values = params![spec.topic.as_str(), compact, retention_ms, retention_bytes, limit];
    let id = match &found {
        Some(row) => {
            let new = (Some(compact), Some(retention_ms), Some(retention_bytes), Some(limit));
            if wanted == partitions
                && new == (old.compact, old.retention_ms, old.retention_bytes, old.max_message_bytes)
            {
                return Ok(row.info.clone());
            }
            tx.sql().execute(
                "UPDATE topics SET compact = ?2, retention_ms = ?3, retention_bytes = ?4, max_message_bytes = ?5
                 WHERE name = ?1",
                values,
            )?;
            row.id
        }
        None => {
            tx.sql().execute(
                "INSERT INTO topics (name, compact, retention_ms, retention_bytes, max_message_bytes)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
                values,
            )?;
            tx.sql().last_insert_rowid()
        }
    };
    for partition in partitions..wanted {
        tx.sql()
            .prepare_cached("INSERT INTO partitions (topic, partition, changed) VALUES (?, ?, ?)")?
            .execute(params![id, partition, tx.sequence()])?;
    }
    tx.reload_topic(&spec.topic)?;
    groups::divide_all(tx)?;
    Ok(tx.topic(&spec.topic)?.info.clone())
}

/// Removes a topic. Its records go later, in small steps.
pub(super) fn remove(tx: &mut Tx<'_>, topic: &Topic) -> Result<(), Fault> {
    let Ok(row) = tx.topic(topic).cloned() else { return Ok(()) };
    for partition in row.partitions {
        for sql in [
            "INSERT OR REPLACE INTO garbage (partition, before) VALUES (?, 9223372036854775807)",
            "DELETE FROM leases WHERE partition = ?",
            "DELETE FROM offsets WHERE partition = ?",
            "DELETE FROM partitions WHERE id = ?",
        ] {
            tx.sql().prepare_cached(sql)?.execute([partition])?;
        }
    }
    tx.sql().execute("DELETE FROM topics WHERE id = ?", [row.id])?;
    tx.reload_topics()?;
    groups::divide_all(tx)?;
    // Members that held its partitions are to notice, even where nothing moved.
    let all: Vec<String> = {
        let mut statement = tx.sql().prepare_cached("SELECT name FROM groups WHERE id IN (SELECT grp FROM members)")?;
        let names = statement.query_map([], |row| row.get(0))?;
        names.collect::<rusqlite::Result<_>>()?
    };
    all.iter().for_each(|group| tx.group_changed(group));
    Ok(())
}

/// Lets a partition begin at an offset. What lay before it goes later.
pub(super) fn truncate(tx: &mut Tx<'_>, source: &TopicPartition, before: i64) -> Result<(), Fault> {
    let id = tx.partition(source)?;
    tx.sql()
        .prepare_cached("UPDATE partitions SET start = max(start, min(next, ?)) WHERE id = ?")?
        .execute([before, id])?;
    tx.sql()
        .prepare_cached(
            "INSERT OR REPLACE INTO garbage (partition, before) SELECT id, start FROM partitions WHERE id = ?",
        )?
        .execute([id])?;
    Ok(())
}

/// All topics with their numbers of partitions.
pub(super) fn sizes(connection: &Connection) -> rusqlite::Result<BTreeMap<Topic, i32>> {
    let mut statement = connection
        .prepare_cached("SELECT t.name, count(*) FROM topics t JOIN partitions p ON p.topic = t.id GROUP BY t.id")?;
    let mut rows = statement.query([])?;
    let mut sizes = BTreeMap::new();
    while let Some(row) = rows.next()? {
        if let Ok(topic) = Topic::new(row.get_ref(0)?.as_str()?) {
            sizes.insert(topic, row.get(1)?);
        }
    }
    Ok(sizes)
}

/// One topic as it is.
pub(super) fn info(connection: &Connection, topic: &Topic) -> rusqlite::Result<Option<TopicInfo>> {
    let mut statement = connection.prepare_cached(
        "SELECT compact, retention_ms, retention_bytes, max_message_bytes,
                (SELECT count(*) FROM partitions WHERE topic = topics.id)
         FROM topics WHERE name = ?",
    )?;
    statement
        .query_row([topic.as_str()], |row| {
            let settings = TopicSettings {
                compact: Some(row.get(0)?),
                retention_ms: Some(row.get(1)?),
                retention_bytes: Some(row.get(2)?),
                max_message_bytes: Some(row.get(3)?),
            };
            Ok(TopicInfo { topic: topic.clone(), partitions: row.get(4)?, settings })
        })
        .optional()
}

/// Ends of all partitions of a topic.
pub(super) fn ends(connection: &Connection, topic: &Topic) -> Result<Vec<Ends>, Fault> {
    let mut statement = connection.prepare_cached(
        "SELECT p.start, p.next FROM topics t JOIN partitions p ON p.topic = t.id WHERE t.name = ? ORDER BY p.partition",
    )?;
    let rows = statement.query_map([topic.as_str()], |row| Ok(Ends { start: row.get(0)?, end: row.get(1)? }))?;
    let ends: Vec<Ends> = rows.collect::<rusqlite::Result<_>>()?;
    if ends.is_empty() {
        return Err(Error::UnknownTopic { topic: topic.clone() }.into());
    }
    Ok(ends)
}
