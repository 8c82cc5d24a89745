//! Opens connections to a log file, and refuses what is no log. Knows nothing
//! of what is in the tables.
//!
//! The file is never opened but through SQLite: closing any other descriptor of
//! it would drop the locks that SQLite holds for this process.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::problem::{explain, problem};
use super::schema::{self, Kind, VERSION};
use crate::error::{FileProblem, Result};

/// How long SQLite itself waits for a lock. Our own writers queue before they
/// ask for it, so only other programs can make one wait.
pub(super) const BUSY: Duration = Duration::from_secs(20);
/// The log beside the file is cut to this once it was larger and is empty.
const WAL_LIMIT: i64 = 16 << 20;
/// Pages in the write-ahead log before they are copied into the file.
const CHECKPOINT_PAGES: i64 = 4000;
/// Bytes of the smallest SQLite database there is: one page.
const SMALLEST: u64 = 512;
/// Statements kept prepared by each connection.
const STATEMENTS: usize = 64;

/// How much is surely on the disk when a write is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sync {
    /// Everything; acknowledged records survive a loss of power.
    #[default]
    Full,
    /// Acknowledged records survive the end of any process; a loss of power may
    /// cost the last ones, never the file. Faster on slow disks.
    Normal,
}

impl Sync {
    pub(super) fn as_pragma(self) -> &'static str {
        match self {
            Self::Full => "FULL",
            Self::Normal => "NORMAL",
        }
    }
}

/// Makes sure that the file is a log of the newest format, making it if it is missing.
pub(super) fn prepare(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(problem(path, FileProblem::NotALog));
    }
    let length = path.metadata().map(|metadata| metadata.len()).ok();
    // SQLite takes a file of a few bytes for an empty one, and would overwrite it.
    if length.is_some_and(|length| (1..SMALLEST).contains(&length)) {
        return Err(problem(path, FileProblem::NotALog));
    }
    let existed = length.is_some();
    let missing_rights = |error: rusqlite::Error| {
        let error = explain(path, "open", error);
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder_is_there = folder.is_none_or(Path::is_dir);
        match error {
            // The folder is there, so what is missing is the right to write in it.
            crate::error::Error::File { problem: FileProblem::CannotOpen, source, .. } if folder_is_there => {
                crate::error::Error::File { path: path.to_owned(), problem: FileProblem::ReadOnly, source }
            }
            other => other,
        }
    };
    let mut connection =
        connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE).map_err(missing_rights)?;
    let look = || schema::look(&connection).map_err(missing_rights);
    match look()? {
        Kind::Foreign => return Err(problem(path, FileProblem::NotALog)),
        Kind::Log(found) if found > VERSION => {
            return Err(problem(path, FileProblem::TooNew { found, known: VERSION }));
        }
        Kind::Log(_) | Kind::Empty => {}
    }
    if existed && connection.is_readonly("main").map_err(missing_rights)? {
        return Err(problem(path, FileProblem::ReadOnly));
    }
    // Holds for a file that is empty yet, so it comes before all else is written.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL").map_err(missing_rights)?;
    go_over_to_wal(&connection).map_err(missing_rights)?;
    schema::migrate(&mut connection).map_err(missing_rights)?;
    match schema::look(&connection).map_err(missing_rights)? {
        Kind::Log(VERSION) => Ok(()),
        Kind::Log(found) => Err(problem(path, FileProblem::TooNew { found, known: VERSION })),
        Kind::Empty | Kind::Foreign => Err(problem(path, FileProblem::NotALog)),
    }
}

/// Turns the write-ahead log on. SQLite does not wait for others that do the same,
/// as it does for all else.
fn go_over_to_wal(connection: &Connection) -> rusqlite::Result<()> {
    let began = Instant::now();
    loop {
        match connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0)) {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && began.elapsed() < BUSY => {
                std::thread::sleep(Duration::from_millis(10));
            }
            done => return done.map(drop),
        }
    }
}

fn connect(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

/// A connection for writing.
pub(super) fn writer(path: &Path, sync: Sync) -> rusqlite::Result<Connection> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.pragma_update(None, "synchronous", sync.as_pragma())?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    connection.pragma_update(None, "journal_size_limit", WAL_LIMIT)?;
    connection.pragma_update(None, "cache_size", -4096)?;
    Ok(connection)
}

/// A connection that looks a file over, or puts it in order; the file is there.
pub(super) fn examiner(path: &Path) -> rusqlite::Result<Connection> {
    connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
}

/// A connection for reading, small, since many processes hold some.
pub(super) fn reader(path: &Path) -> rusqlite::Result<Connection> {
    // Opened for writing all the same: the first reader after a crash recovers
    // the write-ahead log.
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.pragma_update(None, "query_only", true)?;
    connection.pragma_update(None, "cache_size", -512)?;
    Ok(connection)
}
