//! Removes what need not be kept: records of removed topics, records before the
//! start of a partition, records beyond retention, and superseded records of
//! compacted topics. In small steps, so that writers never wait long; one
//! process at a time.

use std::collections::HashMap;
use std::fs::File;

use rusqlite::{Connection, OptionalExtension, params};

use super::Shared;
use super::problem::Fault;
use super::turn::open_beside;
use super::tx::load_topics;
use crate::embedded::outgoing::now_millis;

/// Records removed by one transaction, at most.
const STEP: i64 = 500;
/// Records that must have come since the last compaction of a partition.
const COMPACT_AFTER: i64 = 1000;
/// How long a tombstone stays, as Kafka's `delete.retention.ms`.
const TOMBSTONES: i64 = 24 * 3600 * 1000;

/// What is to be done between two transactions.
type Meanwhile<'a> = &'a mut dyn FnMut(&Connection);

/// What one process remembers of its cleaning.
#[derive(Debug, Default)]
pub(super) struct Cleaner {
    lock: Option<File>,
}

impl Cleaner {
    /// Cleans once over everything, if no other process does. That may take long:
    /// `meanwhile` is called after each transaction.
    pub(super) fn step(
        &mut self,
        shared: &Shared,
        connection: &Connection,
        meanwhile: Meanwhile<'_>,
    ) -> rusqlite::Result<()> {
        let lock = match &self.lock {
            Some(lock) => lock,
            None => {
                let Ok(lock) = open_beside(&shared.path, ".clean") else { return Ok(()) };
                self.lock.insert(lock)
            }
        };
        if lock.try_lock().is_err() {
            return Ok(());
        }
        let cleaned = clean(shared, connection, meanwhile);
        let _ = lock.unlock();
        cleaned
    }
}

fn clean(shared: &Shared, connection: &Connection, meanwhile: Meanwhile<'_>) -> rusqlite::Result<()> {
    for topic in load_topics(connection)?.into_values() {
        let settings = &topic.info.settings;
        for id in topic.partitions {
            let age = settings.retention_ms.filter(|age| *age >= 0 && settings.compact != Some(true));
            let size = settings.retention_bytes.filter(|size| *size >= 0 && settings.compact != Some(true));
            if (age.is_some() || size.is_some())
                && let Some(before) = beyond_retention(connection, id, age, size)?
            {
                shared.writer.wait(move |tx| {
                    tx.sql().execute(
                        "UPDATE partitions SET start = max(start, min(next, ?1)) WHERE id = ?2",
                        [before, id],
                    )?;
                    tx.sql()
                        .execute("INSERT OR REPLACE INTO garbage (partition, before) VALUES (?, ?)", [id, before])?;
                    Ok(())
                });
            }
            if settings.compact == Some(true) {
                compact(shared, connection, meanwhile, id)?;
            }
        }
    }
    collect(shared, connection, meanwhile)
}

/// Where a partition has to begin so that nothing in it is too old or too much.
fn beyond_retention(
    connection: &Connection,
    id: i64,
    age: Option<i64>,
    size: Option<i64>,
) -> rusqlite::Result<Option<i64>> {
    let (start, next, bytes): (i64, i64, i64) = connection
        .prepare_cached("SELECT start, next, bytes FROM partitions WHERE id = ?")?
        .query_row([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let mut excess = size.map_or(0, |size| bytes - size);
    let oldest = age.map(|age| now_millis() - age);
    let mut statement = connection.prepare_cached(
        "SELECT offset, timestamp, ifnull(length(key), 0) + ifnull(length(value), 0) + ifnull(length(headers), 0)
         FROM records WHERE partition = ? AND offset >= ? ORDER BY offset",
    )?;
    let mut rows = statement.query([id, start])?;
    let mut before = start;
    while let Some(row) = rows.next()? {
        let (offset, timestamp, length): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let too_old = oldest.is_some_and(|oldest| timestamp < oldest);
        if !too_old && excess < length {
            before = offset;
            break;
        }
        excess -= length;
        before = next;
    }
    Ok((before > start).then_some(before))
}

/// Removes records that a newer one of the same key has superseded, and
/// tombstones that are old enough. The newest record of each key stays.
fn compact(shared: &Shared, connection: &Connection, meanwhile: Meanwhile<'_>, id: i64) -> rusqlite::Result<()> {
    let (next, cleaned): (i64, i64) = connection
        .prepare_cached("SELECT next, cleaned FROM partitions WHERE id = ?")?
        .query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if next - cleaned < COMPACT_AFTER {
        return Ok(());
    }
    let forgotten = now_millis() - TOMBSTONES;
    let mut newest: HashMap<Vec<u8>, (i64, bool)> = HashMap::new();
    let mut superseded = Vec::new();
    {
        let mut statement = connection.prepare_cached(
            "SELECT offset, key, value IS NULL AND timestamp < ? FROM records
             WHERE partition = ? AND offset < ? ORDER BY offset",
        )?;
        let mut rows = statement.query(params![forgotten, id, next])?;
        while let Some(row) = rows.next()? {
            let offset = row.get(0)?;
            match row.get_ref(1)?.as_bytes_or_null()? {
                Some(key) => {
                    if let Some((older, _)) = newest.insert(key.to_vec(), (offset, row.get(2)?)) {
                        superseded.push(older);
                    }
                }
                // A record without key has no place in a compacted topic.
                None => superseded.push(offset),
            }
        }
    }
    superseded.extend(newest.into_values().filter(|(_, forgotten)| *forgotten).map(|(offset, _)| offset));
    for offsets in superseded.chunks(STEP as usize) {
        let offsets = offsets.to_vec();
        shared.writer.wait(move |tx| {
            for offset in offsets {
                remove(tx.sql(), id, offset, offset + 1)?;
            }
            Ok(())
        });
        meanwhile(connection);
    }
    shared.writer.wait(move |tx| {
        tx.sql().execute("UPDATE partitions SET cleaned = ? WHERE id = ?", [next, id])?;
        Ok(())
    });
    Ok(())
}

/// Removes what was marked as garbage.
fn collect(shared: &Shared, connection: &Connection, meanwhile: Meanwhile<'_>) -> rusqlite::Result<()> {
    loop {
        let marked: Option<(i64, i64)> = connection
            .prepare_cached("SELECT partition, before FROM garbage LIMIT 1")?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((id, before)) = marked else { return Ok(()) };
        let done = shared.writer.wait(move |tx| {
            let last: Option<i64> = tx
                .sql()
                .prepare_cached(
                    "SELECT max(offset) FROM
                     (SELECT offset FROM records WHERE partition = ? AND offset < ? ORDER BY offset LIMIT ?)",
                )?
                .query_row([id, before, STEP], |row| row.get(0))?;
            match last {
                Some(last) => remove(tx.sql(), id, 0, last + 1)?,
                None => {
                    tx.sql().execute("DELETE FROM garbage WHERE partition = ? AND before <= ?", [id, before])?;
                }
            }
            Ok(())
        });
        if !done {
            return Ok(());
        }
        meanwhile(connection);
    }
}

/// Removes the records of a range of offsets and counts their bytes off.
fn remove(connection: &Connection, id: i64, from: i64, to: i64) -> Result<(), Fault> {
    let bytes: i64 = connection
        .prepare_cached(
            "SELECT ifnull(sum(ifnull(length(key), 0) + ifnull(length(value), 0) + ifnull(length(headers), 0)), 0)
             FROM records WHERE partition = ? AND offset >= ? AND offset < ?",
        )?
        .query_row([id, from, to], |row| row.get(0))?;
    connection
        .prepare_cached("DELETE FROM records WHERE partition = ? AND offset >= ? AND offset < ?")?
        .execute([id, from, to])?;
    connection.prepare_cached("UPDATE partitions SET bytes = max(0, bytes - ?) WHERE id = ?")?.execute([bytes, id])?;
    Ok(())
}
