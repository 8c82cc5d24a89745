//! Reading: a few connections that all readers of a process share, and how
//! records come off the file.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::Semaphore;

use super::file;
use super::headers;
use super::problem::{Fault, explain};
use crate::embedded::{Fetched, Limits};
use crate::error::{Error, Result};
use crate::log::{Ends, Record, TopicPartition};
use pipedoc_model::headers::Headers;

/// Connections at most; more would not read faster, and each costs memory.
const CONNECTIONS: usize = 4;

/// The readers of a log file in this process.
#[derive(Clone)]
pub(super) struct Readers {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    free: Arc<Semaphore>,
}

impl Readers {
    pub(super) fn new(path: &Path) -> Self {
        let shared =
            Shared { path: path.to_owned(), idle: Mutex::default(), free: Arc::new(Semaphore::new(CONNECTIONS)) };
        Self { shared: Arc::new(shared) }
    }

    /// Runs something with a connection, on a thread that may block.
    pub(super) async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T> {
        let closed = || Error::Closed { what: "log" };
        let permit = self.shared.free.clone().acquire_owned().await.map_err(|_| closed())?;
        let shared = self.shared.clone();
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let fail = |fault: Fault| fault.explain(&shared.path, "read");
            let idle = shared.idle.lock().pop();
            let connection = match idle {
                Some(connection) => connection,
                None => file::reader(&shared.path).map_err(|error| explain(&shared.path, "open", error))?,
            };
            let result = work(&connection).map_err(fail);
            // A connection that failed may be in a bad way; it is not used again.
            if !matches!(result, Err(Error::File { .. } | Error::Backend { .. })) && connection.is_autocommit() {
                shared.idle.lock().push(connection);
            }
            result
        });
        task.await.map_err(|_| closed())?
    }
}

/// Row of a partition: its id and its ends.
pub(super) fn partition(connection: &Connection, source: &TopicPartition) -> Result<(i64, Ends), Fault> {
    let found = connection
        .prepare_cached(
            "SELECT p.id, p.start, p.next FROM topics t JOIN partitions p ON p.topic = t.id
             WHERE t.name = ? AND p.partition = ?",
        )?
        .query_row(params![source.topic.as_str(), source.partition], |row| {
            Ok((row.get(0)?, Ends { start: row.get(1)?, end: row.get(2)? }))
        })
        .optional()?;
    if let Some(found) = found {
        return Ok(found);
    }
    let topic_exists =
        connection.prepare_cached("SELECT 1 FROM topics WHERE name = ?")?.exists([source.topic.as_str()])?;
    Err(Fault::Refused(if topic_exists {
        Error::UnknownPartition { partition: source.clone() }
    } else {
        Error::UnknownTopic { topic: source.topic.clone() }
    }))
}

/// Where a record's parts lie in the memory of its batch.
struct Places {
    offset: i64,
    timestamp: i64,
    key: Option<Range<usize>>,
    value: Option<Range<usize>>,
    headers: Option<Range<usize>>,
}

/// Reads records from an offset on. All of a batch share one piece of memory.
pub(super) fn read(
    connection: &Connection,
    source: &TopicPartition,
    from: i64,
    limits: Limits,
) -> Result<Fetched, Fault> {
    let _snapshot = connection.unchecked_transaction()?;
    let (id, ends) = partition(connection, source)?;
    let begin = from.max(ends.start);
    if begin >= ends.end {
        return Ok(Fetched { records: Vec::new(), ends, next: from.max(ends.end) });
    }
    let mut statement = connection.prepare_cached(
        "SELECT offset, timestamp, key, value, headers FROM records
         WHERE partition = ? AND offset >= ? AND offset < ? ORDER BY offset LIMIT ?",
    )?;
    // One more than is wanted tells whether there are more.
    let limit = i64::try_from(limits.records).unwrap_or(i64::MAX).saturating_add(1);
    let mut rows = statement.query(params![id, begin, ends.end, limit])?;
    let mut memory = BytesMut::with_capacity(limits.bytes.min(256 << 10));
    let mut places: Vec<Places> = Vec::with_capacity(limits.records.min(512));
    let mut next = ends.end;
    while let Some(row) = rows.next()? {
        let offset: i64 = row.get(0)?;
        let parts = [row.get_ref(2)?, row.get_ref(3)?, row.get_ref(4)?];
        let mut bytes = 0;
        for part in parts {
            bytes += part.as_bytes_or_null().map_err(rusqlite::Error::from)?.map_or(0, <[u8]>::len);
        }
        if places.len() == limits.records || (!places.is_empty() && memory.len() + bytes > limits.bytes) {
            next = offset;
            break;
        }
        let mut store = |part: rusqlite::types::ValueRef<'_>| -> rusqlite::Result<Option<Range<usize>>> {
            let part = part.as_bytes_or_null()?;
            Ok(part.map(|bytes| {
                let begin = memory.len();
                memory.extend_from_slice(bytes);
                begin..memory.len()
            }))
        };
        let [key, value, headers] = [store(parts[0])?, store(parts[1])?, store(parts[2])?];
        places.push(Places { offset, timestamp: row.get(1)?, key, value, headers });
    }
    let memory = memory.freeze();
    Ok(Fetched { records: places.into_iter().map(|place| record(&memory, place)).collect(), ends, next })
}

fn record(memory: &Bytes, place: Places) -> Record {
    Record {
        offset: place.offset,
        timestamp: place.timestamp,
        key: place.key.map(|range| memory.slice(range)),
        value: place.value.map(|range| memory.slice(range)),
        headers: place.headers.map_or_else(Headers::new, |range| headers::decode(memory.slice(range))),
    }
}

/// The first offset of each partition of a topic whose record is not older.
pub(super) fn offsets_at(connection: &Connection, sources: &[TopicPartition], millis: i64) -> Result<Vec<i64>, Fault> {
    let _snapshot = connection.unchecked_transaction()?;
    let find = |source: &TopicPartition| {
        let (id, ends) = partition(connection, source)?;
        // Everything before this mark is older.
        let mark: Option<i64> = connection
            .prepare_cached("SELECT max(offset) FROM marks WHERE partition = ? AND newest < ?")?
            .query_row(params![id, millis], |row| row.get(0))?;
        let from = ends.start.max(mark.unwrap_or(0));
        let found: Option<i64> = connection
            .prepare_cached(
                "SELECT offset FROM records WHERE partition = ? AND offset >= ? AND timestamp >= ?
                 ORDER BY offset LIMIT 1",
            )?
            .query_row(params![id, from, millis], |row| row.get(0))
            .optional()?;
        Ok(found.unwrap_or(ends.end))
    };
    sources.iter().map(find).collect()
}
