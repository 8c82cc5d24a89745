//! Tells readers that something was written: those of this process directly,
//! those of others by a byte in the bell file, which they watch.
//!
//! A write to the log's own files would not do: SQLite's shared memory is not
//! seen by inotify. A process that dies between commit and bell leaves it
//! unrung, so there is a slow poll beside it (see `watch`).

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};

use rusqlite::Connection;

use super::turn::open_beside;
use super::tx::Changes;
use crate::embedded::hub::Hub;
use crate::log::TopicPartition;
use pipedoc_model::names::Topic;

/// The bell of one log file, as one process has it.
#[derive(Debug)]
pub(super) struct Bell {
    /// Who is woken in this process.
    pub(super) hub: Hub,
    file: File,
    /// Number of the last transaction whose changes this process was told of.
    seen: AtomicI64,
}

impl Bell {
    /// Opens the bell file, making it if it is missing. What was written before
    /// `seen` is known.
    pub(super) fn open(path: &Path, seen: i64) -> std::io::Result<Self> {
        Ok(Self { hub: Hub::default(), file: open_beside(path, ".bell")?, seen: AtomicI64::new(seen) })
    }

    /// Tells of a transaction of this process.
    pub(super) fn ring(&self, changes: &Changes) {
        let Some(sequence) = changes.sequence else { return };
        self.hub.appended(&changes.ends);
        for group in &changes.groups {
            self.hub.group_changed(group);
        }
        if changes.topics {
            self.hub.topics_changed();
        }
        // With nothing unseen in between there is nothing left to look up.
        let _ = self.seen.compare_exchange(sequence - 1, sequence, Ordering::AcqRel, Ordering::Acquire);
        let mut file = &self.file;
        if let Err(error) = file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(b"!")) {
            // A full disk, perhaps. Others look on their own before long.
            tracing::debug!(%error, "the bell did not ring");
        }
    }

    /// Looks up what other processes changed, and tells of it.
    pub(super) fn look(&self, connection: &Connection) -> rusqlite::Result<()> {
        let seen = self.seen.load(Ordering::Acquire);
        let transaction = connection.unchecked_transaction()?;
        let sequence: i64 = connection.prepare_cached("SELECT sequence FROM state")?.query_row([], |row| row.get(0))?;
        if sequence == seen {
            return Ok(());
        }
        let mut ends = Vec::new();
        let mut statement = connection.prepare_cached(
            "SELECT t.name, p.partition, p.next FROM partitions p JOIN topics t ON t.id = p.topic WHERE p.changed > ?",
        )?;
        let mut rows = statement.query([seen])?;
        while let Some(row) = rows.next()? {
            if let Ok(topic) = Topic::new(row.get_ref(0)?.as_str()?) {
                ends.push((TopicPartition::new(topic, row.get(1)?), row.get(2)?));
            }
        }
        drop(rows);
        let mut statement = connection.prepare_cached("SELECT name FROM groups WHERE changed > ?")?;
        let groups: Vec<String> = statement.query_map([seen], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        let topics: bool = connection
            .prepare_cached("SELECT topics_changed_at > ? FROM state")?
            .query_row([seen], |row| row.get(0))?;
        drop(transaction);
        self.hub.appended(&ends);
        for group in groups {
            self.hub.group_changed(&group);
        }
        if topics {
            self.hub.topics_changed();
        }
        self.seen.fetch_max(sequence, Ordering::AcqRel);
        Ok(())
    }
}
