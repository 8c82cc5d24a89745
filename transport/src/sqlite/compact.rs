//! Compaction: of the records of a key only the newest stays, and tombstones go
//! after a while.
//!
//! Works like Kafka's log cleaner: a pass takes the next records that were not
//! looked at yet, as many as have [`KEYS`] keys, remembers the newest offset of
//! each key (by its hash), and then walks over the partition from its start to
//! there, removing what is superseded. So memory is bounded, however many keys a
//! partition has.

use std::collections::HashMap;
use std::ops::Range;

use rusqlite::{Connection, OptionalExtension, params};
use sha2::{Digest, Sha256};

use super::Shared;
use super::clean::{Meanwhile, remove};
use crate::embedded::outgoing::now_millis;

/// Records that must have come since the last compaction of a partition.
const COMPACT_AFTER: i64 = 1000;
/// Keys that one pass remembers: about 6 MiB.
const KEYS: usize = 100_000;
/// Rows read at a time: a longer look would hold up the write-ahead log.
const PAGE: i64 = 2000;
/// Records removed by one transaction, at most.
const STEP: usize = 500;
/// How long a tombstone stays after it was written, in milliseconds, as Kafka's
/// `delete.retention.ms`.
const TOMBSTONES: i64 = 24 * 3600 * 1000;

/// What stands for a key: half of its SHA-256, so that nobody can make two keys
/// that look the same.
type Hash = [u8; 16];

fn hash(key: &[u8]) -> Hash {
    let mut hash = Hash::default();
    let digest: [u8; 32] = Sha256::digest(key).into();
    hash.copy_from_slice(&digest[..16]);
    hash
}

/// A record as compaction sees it.
struct Row {
    offset: i64,
    /// None: the record has no key.
    key: Option<Hash>,
    tombstone: bool,
}

/// Compacts one partition as far as it is worth while.
pub(super) fn compact(
    shared: &Shared,
    connection: &Connection,
    meanwhile: Meanwhile<'_>,
    id: i64,
) -> rusqlite::Result<()> {
    loop {
        let bounds = connection
            .prepare_cached("SELECT start, next, max(cleaned, start) FROM partitions WHERE id = ?")?
            .query_row([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .optional()?;
        // The topic may just have been removed.
        let Some((start, next, cleaned)): Option<(i64, i64, i64)> = bounds else { return Ok(()) };
        if next - cleaned < COMPACT_AFTER {
            return Ok(());
        }
        let mut newest = HashMap::new();
        let upto = remember(connection, meanwhile, id, cleaned..next, &mut newest)?;
        let done = sweep(shared, connection, meanwhile, id, start..upto, &newest)?
            && shared.writer.wait(move |tx| {
                tx.sql().execute("UPDATE partitions SET cleaned = ? WHERE id = ?", [upto, id])?;
                Ok(())
            });
        if !done {
            return Ok(());
        }
    }
}

/// Remembers the newest offset of each key; gives the offset up to which it came.
fn remember(
    connection: &Connection,
    meanwhile: Meanwhile<'_>,
    id: i64,
    range: Range<i64>,
    newest: &mut HashMap<Hash, i64>,
) -> rusqlite::Result<i64> {
    let mut from = range.start;
    loop {
        let rows = page(connection, id, from..range.end)?;
        let Some(last) = rows.last() else { return Ok(range.end) };
        from = last.offset + 1;
        for row in rows {
            if let Some(key) = row.key {
                newest.insert(key, row.offset);
            }
        }
        if newest.len() >= KEYS {
            return Ok(from);
        }
        meanwhile(connection);
    }
}

/// Removes what is superseded or forgotten; whether all of it could be done.
fn sweep(
    shared: &Shared,
    connection: &Connection,
    meanwhile: Meanwhile<'_>,
    id: i64,
    range: Range<i64>,
    newest: &HashMap<Hash, i64>,
) -> rusqlite::Result<bool> {
    // Written before a mark that is old enough; the producer's clock says nothing
    // about when a tombstone could first be read.
    let forgotten: i64 = connection
        .prepare_cached("SELECT max(offset) FROM marks WHERE partition = ? AND written_at < ?")?
        .query_row(params![id, now_millis() - TOMBSTONES], |row| row.get::<_, Option<i64>>(0))?
        .unwrap_or(0);
    let mut from = range.start;
    loop {
        let rows = page(connection, id, from..range.end)?;
        let Some(last) = rows.last() else { return Ok(true) };
        from = last.offset + 1;
        let goes = |row: &Row| match row.key {
            // A record without key has no place in a compacted topic.
            None => true,
            Some(key) => {
                newest.get(&key).is_some_and(|newest| *newest > row.offset) || (row.tombstone && row.offset < forgotten)
            }
        };
        let gone: Vec<i64> = rows.iter().filter(|row| goes(row)).map(|row| row.offset).collect();
        for offsets in gone.chunks(STEP) {
            let offsets = offsets.to_vec();
            let removed = shared.writer.wait(move |tx| {
                for offset in offsets {
                    remove(tx.sql(), id, offset, offset + 1)?;
                }
                Ok(())
            });
            if !removed {
                return Ok(false);
            }
            meanwhile(connection);
        }
        meanwhile(connection);
    }
}

/// The next records of a range.
fn page(connection: &Connection, id: i64, range: Range<i64>) -> rusqlite::Result<Vec<Row>> {
    let mut statement = connection.prepare_cached(
        "SELECT offset, key, value IS NULL FROM records
         WHERE partition = ? AND offset >= ? AND offset < ? ORDER BY offset LIMIT ?",
    )?;
    let rows = statement.query_map(params![id, range.start, range.end, PAGE], |row| {
        let key = row.get_ref(1)?.as_bytes_or_null()?.map(hash);
        Ok(Row { offset: row.get(0)?, key, tombstone: row.get(2)? })
    })?;
    rows.collect()
}
