//! What a careful author would write without us: one connection, prepared
//! statements, one transaction a batch that reads from one table, writes to
//! another of the same columns and indexes, and keeps the position.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::ensure;
use rusqlite::{Connection, params};

use super::Input;
use crate::cpu;
use crate::method::{Arm, Run};

/// A transaction holds at most so much.
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    /// Records.
    pub records: usize,
    /// Bytes of keys, values and headers; at least one record.
    pub bytes: usize,
}

/// The arm.
pub struct Raw<'a> {
    name: &'static str,
    input: &'a Input,
    file: PathBuf,
    bound: Bound,
}

impl<'a> Raw<'a> {
    /// Makes its file from the log's, once.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn new(name: &'static str, input: &'a Input, bound: Bound) -> anyhow::Result<Self> {
        let file = input.folder.path().join("raw.db");
        if !file.exists() {
            fill(input, &Connection::open(&file)?)?;
            input.settle(&file)?;
        }
        Ok(Self { name, input, file, bound })
    }
}

/// Takes the records over, in the log's order, and nothing else.
fn fill(input: &Input, connection: &Connection) -> anyhow::Result<()> {
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    connection.execute("ATTACH ? AS log", [input.file().to_string_lossy()])?;
    for table in ["input", "output"] {
        connection.execute_batch(&format!(
            "CREATE TABLE {table} (
                 id INTEGER PRIMARY KEY, partition INTEGER NOT NULL, offset INTEGER NOT NULL,
                 timestamp INTEGER NOT NULL, key BLOB, value BLOB, headers BLOB
             );
             CREATE UNIQUE INDEX {table}_by_place ON {table} (partition, offset);"
        ))?;
    }
    connection.execute_batch("CREATE TABLE positions (partition INTEGER PRIMARY KEY, offset INTEGER NOT NULL)")?;
    connection.execute(
        "INSERT INTO input SELECT r.id, p.partition, r.offset, r.timestamp, r.key, r.value, r.headers
         FROM log.records r JOIN log.partitions p ON p.id = r.partition JOIN log.topics t ON t.id = p.topic
         WHERE t.name = ? ORDER BY r.id",
        [input.step.input.as_str()],
    )?;
    connection.execute("INSERT INTO positions SELECT partition, 0 FROM input GROUP BY partition", [])?;
    connection.execute("DETACH log", [])?;
    Ok(())
}

impl Arm for Raw<'_> {
    fn name(&self) -> &str {
        self.name
    }

    fn run(&mut self) -> anyhow::Result<Run> {
        let (_folder, file) = self.input.copy(&self.file)?;
        let connection = Connection::open(&file)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        let (cpu, start) = (cpu::of_process(std::process::id())?, Instant::now());
        for partition in 0..self.input.step.partitions() {
            while move_batch(&connection, partition, self.bound)? {}
        }
        let (wall, cpu) = (start.elapsed(), cpu::of_process(std::process::id())?.saturating_sub(cpu));
        let arrived: i64 = connection.query_row("SELECT count(*) FROM output", [], |row| row.get(0))?;
        let records = u64::try_from(arrived)?;
        ensure!(records == self.input.records, "{records} of {} records arrived", self.input.records);
        Ok(Run { wall, cpu, records, figures: BTreeMap::new() })
    }
}

/// Moves the next records of a partition; whether there were any.
fn move_batch(connection: &Connection, partition: i32, bound: Bound) -> rusqlite::Result<bool> {
    connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    let position: i64 = connection
        .prepare_cached("SELECT coalesce(max(offset), 0) FROM positions WHERE partition = ?")?
        .query_row([partition], |row| row.get(0))?;
    let mut next = position;
    {
        let mut select = connection.prepare_cached(
            "SELECT offset, timestamp, key, value, headers FROM input
             WHERE partition = ? AND offset >= ? ORDER BY offset LIMIT ?",
        )?;
        let mut insert = connection.prepare_cached(
            "INSERT INTO output (partition, offset, timestamp, key, value, headers) VALUES (?, ?, ?, ?, ?, ?)",
        )?;
        let mut rows = select.query(params![partition, position, i64::try_from(bound.records).unwrap_or(i64::MAX)])?;
        let mut bytes = 0;
        while bytes < bound.bytes
            && let Some(row) = rows.next()?
        {
            let offset: i64 = row.get(0)?;
            let timestamp: i64 = row.get(1)?;
            let part = |n| Ok::<_, rusqlite::Error>(row.get_ref(n)?.as_bytes_or_null()?);
            let (key, value, headers) = (part(2)?, part(3)?, part(4)?);
            bytes += [key, value, headers].into_iter().flatten().map(<[u8]>::len).sum::<usize>();
            insert.execute(params![partition, offset, timestamp, key, value, headers])?;
            next = offset + 1;
        }
    }
    connection
        .prepare_cached("UPDATE positions SET offset = ? WHERE partition = ?")?
        .execute(params![next, partition])?;
    connection.prepare_cached("COMMIT")?.execute([])?;
    Ok(next > position)
}
