//! `control.db`: keys and values with versions, shared by the processes of a machine.
//!
//! One row a key. Versions come from one counter of the file, so that a value
//! that was removed and made again never has a version it had before.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode, OptionalExtension, TransactionBehavior};

use crate::store::{Error, Expected, FileProblem, Key, Result, Value, Version};

/// `PIPC`: the file says whose it is.
pub const APPLICATION_ID: i64 = 0x5049_5043;
const FORMAT: i64 = 1;
/// How long to wait for another process's lock.
const BUSY: Duration = Duration::from_secs(5);

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value TEXT NOT NULL, version INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS counter (id INTEGER PRIMARY KEY CHECK (id = 0), version INTEGER NOT NULL) STRICT;
INSERT OR IGNORE INTO counter VALUES (0, 0);
";

/// The open file.
pub(super) struct Database {
    path: PathBuf,
    bell: PathBuf,
    connection: Mutex<Connection>,
}

impl Database {
    /// Opens the file, making it and its folder where they are missing.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let trouble = |problem, source| Error::File { path: path.to_owned(), problem, source: Some(source) };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| trouble(FileProblem::CannotOpen, Arc::new(error)))?;
        }
        let connection = Connection::open(path).map_err(|error| explain(path, "opening", error))?;
        let since = Instant::now();
        while let Err(error) = prepare(path, &connection) {
            let error = match error {
                Trouble::Known(problem) => Error::File { path: path.to_owned(), problem, source: None },
                Trouble::Sqlite(error) => explain(path, "opening", error),
            };
            // Going over to WAL does not wait for other processes that do the same.
            if !error.is_retryable() || since.elapsed() > BUSY {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let bell = path.with_extension("bell");
        if !bell.exists() {
            std::fs::write(&bell, b"\0").map_err(|error| trouble(FileProblem::ReadOnly, Arc::new(error)))?;
        }
        Ok(Self { path: path.to_owned(), bell, connection: Mutex::new(connection) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file that is touched after every change, for others to watch.
    pub(super) fn bell(&self) -> &Path {
        &self.bell
    }

    pub(super) fn get(&self, key: &Key) -> Result<Option<Value>> {
        self.with("reading", |connection| {
            connection
                .prepare_cached("SELECT value, version FROM entries WHERE key = ?1")?
                .query_row([key.as_str()], |row| {
                    let version: i64 = row.get(1)?;
                    Ok(Value { text: row.get(0)?, version: Version(version.unsigned_abs()) })
                })
                .optional()
        })
    }

    /// `None` when the value is not what was expected.
    pub(super) fn put(&self, key: &Key, text: &str, expected: Expected) -> Result<Option<Version>> {
        let written = self.with("writing", |connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let found: Option<i64> = transaction
                .query_row("SELECT version FROM entries WHERE key = ?1", [key.as_str()], |row| row.get(0))
                .optional()?;
            let fits = match expected {
                Expected::Absent => found.is_none(),
                Expected::Is(Version(version)) => found.map(i64::unsigned_abs) == Some(version),
                Expected::Anything => true,
            };
            if !fits {
                return Ok(None);
            }
            let version: i64 =
                transaction
                    .query_row("UPDATE counter SET version = version + 1 RETURNING version", [], |row| row.get(0))?;
            transaction.execute(
                "INSERT INTO entries VALUES (?1, ?2, ?3)
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value, version = excluded.version",
                (key.as_str(), text, version),
            )?;
            transaction.commit()?;
            Ok(Some(Version(version.unsigned_abs())))
        })?;
        if written.is_some() {
            self.ring();
        }
        Ok(written)
    }

    pub(super) fn remove(&self, key: &Key) -> Result<()> {
        let removed = self
            .with("writing", |connection| connection.execute("DELETE FROM entries WHERE key = ?1", [key.as_str()]))?;
        if removed > 0 {
            self.ring();
        }
        Ok(())
    }

    pub(super) fn list(&self, prefix: &Key) -> Result<Vec<String>> {
        let prefix = format!("{prefix}/");
        self.with("reading", |connection| {
            connection
                .prepare_cached("SELECT substr(key, length(?1) + 1) FROM entries WHERE substr(key, 1, length(?1)) = ?1 ORDER BY key")?
                .query_map([&prefix], |row| row.get(0))?
                .collect()
        })
    }

    pub(super) fn read_all(&self, prefix: &Key) -> Result<Vec<(String, Value)>> {
        let prefix = format!("{prefix}/");
        self.with("reading", |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT substr(key, length(?1) + 1), value, version FROM entries WHERE substr(key, 1, length(?1)) = ?1 ORDER BY key",
            )?;
            let rows = statement.query_map([&prefix], |row| {
                let version: i64 = row.get(2)?;
                Ok((row.get(0)?, Value { text: row.get(1)?, version: Version(version.unsigned_abs()) }))
            })?;
            rows.collect()
        })
    }

    fn with<T>(&self, operation: &'static str, work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T> {
        work(&mut self.connection.lock()).map_err(|error| explain(&self.path, operation, error))
    }

    /// Tells the other processes. Whoever misses it looks again soon by itself.
    fn ring(&self) {
        if let Err(error) = std::fs::write(&self.bell, b"\0") {
            tracing::debug!(file = %self.bell.display(), %error, "the change is not announced");
        }
    }
}

enum Trouble {
    Known(FileProblem),
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// Checks whose file it is, and makes what is missing.
fn prepare(path: &Path, connection: &Connection) -> std::result::Result<(), Trouble> {
    connection.busy_timeout(BUSY)?;
    // In this order: a process that makes the file meanwhile writes both at once.
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let application: i64 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if application != APPLICATION_ID && (application != 0 || tables > 0) {
        return Err(Trouble::Known(FileProblem::NotOurs));
    }
    let format: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if format > FORMAT {
        return Err(Trouble::Known(FileProblem::TooNew));
    }
    if std::fs::metadata(path).is_ok_and(|file| file.permissions().readonly()) {
        return Err(Trouble::Known(FileProblem::ReadOnly));
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    if application != APPLICATION_ID {
        // In one transaction, so that nobody sees tables without the id.
        connection.execute_batch(&format!(
            "BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT}; {SCHEMA} COMMIT;"
        ))?;
    }
    Ok(())
}

fn explain(path: &Path, operation: &'static str, error: rusqlite::Error) -> Error {
    let problem = match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => FileProblem::NotOurs,
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => FileProblem::ReadOnly,
        Some(ErrorCode::DiskFull) => FileProblem::Full,
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => FileProblem::Locked,
        Some(ErrorCode::DatabaseCorrupt) => FileProblem::Corrupt,
        Some(ErrorCode::CannotOpen) => FileProblem::CannotOpen,
        _ => {
            return Error::Backend {
                operation,
                target: path.display().to_string(),
                retryable: false,
                source: Arc::new(error),
            };
        }
    };
    Error::File { path: path.to_owned(), problem, source: Some(Arc::new(error)) }
}
