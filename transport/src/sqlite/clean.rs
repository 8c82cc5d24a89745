//! Removes what need not be kept: records of removed topics, records before the
//! start of a partition, records beyond retention, and superseded records of
//! compacted topics (see `compact`). In small steps, so that writers never wait
//! long; one process at a time.
//!
//! The pages that this leaves free are used again, so a file under retention
//! stops growing. A reserve of them stays; when more than half of the file is
//! free, it shrinks.

use std::fs::File;

use rusqlite::{Connection, OptionalExtension};

use super::Shared;
use super::compact::compact;
use super::problem::Fault;
use super::turn::open_beside;
use super::tx::load_topics;
use crate::embedded::outgoing::now_millis;

/// Records, and about how many of their bytes, that one transaction removes.
const STEP: i64 = 1000;
const STEP_BYTES: i64 = 4 << 20;
/// Free bytes that a file may always keep.
const RESERVE: i64 = 16 << 20;
/// Pages given back by one transaction.
const STEP_PAGES: i64 = 500;

/// What is to be done between two transactions.
pub(super) type Meanwhile<'a> = &'a mut dyn FnMut(&Connection);

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
    collect(shared, connection, meanwhile)?;
    shrink(shared, connection, meanwhile)
}

/// Where a partition has to begin so that nothing in it is too old or too much.
fn beyond_retention(
    connection: &Connection,
    id: i64,
    age: Option<i64>,
    size: Option<i64>,
) -> rusqlite::Result<Option<i64>> {
    // What lies before the start is garbage that could not be removed yet.
    let found = connection
        .prepare_cached(
            "SELECT start, next, bytes - (
                 SELECT ifnull(sum(ifnull(length(key), 0) + ifnull(length(value), 0) + ifnull(length(headers), 0)), 0)
                 FROM records WHERE partition = p.id AND offset < p.start
             ) FROM partitions p WHERE id = ?",
        )?
        .query_row([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    // The topic may just have been removed.
    let Some((start, next, bytes)): Option<(i64, i64, i64)> = found else { return Ok(None) };
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

/// Removes what was marked as garbage.
fn collect(shared: &Shared, connection: &Connection, meanwhile: Meanwhile<'_>) -> rusqlite::Result<()> {
    loop {
        let marked: Option<(i64, i64)> = connection
            .prepare_cached("SELECT partition, before FROM garbage LIMIT 1")?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((id, before)) = marked else { return Ok(()) };
        let done = shared.writer.wait(move |tx| {
            match next_step(tx.sql(), id, before)? {
                Some(last) => remove(tx.sql(), id, 0, last + 1)?,
                None => {
                    tx.sql().execute("DELETE FROM garbage WHERE partition = ? AND before <= ?", [id, before])?;
                    tx.sql().execute("DELETE FROM marks WHERE partition = ? AND offset <= ?", [id, before])?;
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

/// The last offset that one step removes; none when nothing is left.
fn next_step(connection: &Connection, id: i64, before: i64) -> rusqlite::Result<Option<i64>> {
    let mut statement = connection.prepare_cached(
        "SELECT offset, ifnull(length(key), 0) + ifnull(length(value), 0) + ifnull(length(headers), 0)
         FROM records WHERE partition = ? AND offset < ? ORDER BY offset LIMIT ?",
    )?;
    let mut rows = statement.query([id, before, STEP])?;
    let (mut last, mut bytes) = (None, 0);
    while bytes < STEP_BYTES
        && let Some(row) = rows.next()?
    {
        last = Some(row.get(0)?);
        bytes += row.get::<_, i64>(1)?;
    }
    Ok(last)
}

/// Gives free pages back to the file system while there are far too many.
fn shrink(shared: &Shared, connection: &Connection, meanwhile: Meanwhile<'_>) -> rusqlite::Result<()> {
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    let page = number("PRAGMA page_size")?.max(1);
    // Files of the first version get theirs only by `pipedoc doctor --compact`.
    let incremental = number("PRAGMA auto_vacuum")? == 2;
    let (free, pages) = (number("PRAGMA freelist_count")?, number("PRAGMA page_count")?);
    if !incremental || free * page <= RESERVE || free * 2 <= pages {
        return Ok(());
    }
    let mut left = free - (RESERVE / page / 2).max(free / 10);
    while left > 0 {
        let given = left.min(STEP_PAGES);
        let done = shared.writer.wait(move |tx| {
            let mut statement = tx.sql().prepare(&format!("PRAGMA incremental_vacuum({given})"))?;
            let mut steps = statement.query([])?;
            while steps.next()?.is_some() {}
            Ok(())
        });
        if !done {
            return Ok(());
        }
        left -= given;
        meanwhile(connection);
    }
    Ok(())
}

/// Removes the records of a range of offsets and counts their bytes off.
pub(super) fn remove(connection: &Connection, id: i64, from: i64, to: i64) -> Result<(), Fault> {
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
