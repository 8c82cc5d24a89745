//! Looks a log file over, and gives its free room back; for `pipedoc doctor`.
//!
//! Works on a file that others use. Knows what must hold in the tables (see
//! `checks`); repairs nothing: what is damaged is said.

mod checks;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};

use super::file;
use super::problem::{explain, problem};
use super::schema::{self, Kind};
use super::turn::beside;
use crate::error::{FileProblem, Result};

pub use super::schema::VERSION as NEWEST_FORMAT;

/// How long other users of a file are waited for before it is compacted.
const PATIENCE: Duration = Duration::from_secs(5);
/// What is told at most of SQLite's own findings.
const FINDINGS: i64 = 100;

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// A log, in this format.
    Log {
        /// Its format; [`NEWEST_FORMAT`] is the newest.
        format: i64,
    },
    /// Another SQLite database, or one whose schema cannot be read; only what holds
    /// for all of them is looked at.
    Other {
        /// Its `application_id`; 0: it has none.
        application: i64,
    },
}

/// How large a file is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// The file itself.
    pub file: u64,
    /// The write-ahead log beside it.
    pub wal: u64,
    /// What of the file is free, to be used again.
    pub free: u64,
}

/// How much there is of everything in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Contents {
    /// Topics.
    pub topics: u64,
    /// Partitions of all topics.
    pub partitions: u64,
    /// Records, with those that are to be removed.
    pub records: u64,
    /// Consumer groups.
    pub groups: u64,
    /// Members of all groups.
    pub members: u64,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; nothing is lost.
    Notice,
    /// Records or positions may be lost or wrong.
    Damage,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Which check found it.
    pub check: &'static str,
    /// What was found, for people.
    pub found: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.check, self.found)
    }
}

/// What was seen of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The file.
    pub path: PathBuf,
    /// What it holds.
    pub holds: Holds,
    /// How large it is.
    pub sizes: Sizes,
    /// What is in it; none where it is no log of the newest format, or damaged.
    pub contents: Option<Contents>,
    /// What is not as it should be.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether nothing is damaged.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity < Severity::Damage)
    }
}

/// Looks a file over, reading all of it. Blocks; others may go on writing.
///
/// # Errors
/// [`crate::error::Error::File`] when the file is missing, no SQLite database, of
/// a newer format, or cannot be read at all. What is damaged inside is no error
/// but in the report.
pub fn examine(path: &Path) -> Result<Report> {
    let connection = open(path)?;
    let mut findings = Vec::new();
    let mut holds = Holds::Other { application: 0 };
    match schema::look(&connection) {
        Ok(Kind::Log(found)) if found > NEWEST_FORMAT => {
            return Err(problem(path, FileProblem::TooNew { found, known: NEWEST_FORMAT }));
        }
        Ok(Kind::Log(format)) => holds = Holds::Log { format },
        Ok(Kind::Empty | Kind::Foreign) => {
            let application = connection.pragma_query_value(None, "application_id", |row| row.get(0)).unwrap_or(0);
            holds = Holds::Other { application };
        }
        Err(error) if is_damage(&error) => findings.push(unreadable("schema", &error)),
        Err(error) => return Err(explain(path, "examine", error)),
    }
    // One view of the file for all that follows, while others write on.
    connection.execute_batch("BEGIN").map_err(|error| explain(path, "examine", error))?;
    let mut contents = None;
    if findings.is_empty() {
        findings = integrity(&connection).or_else(|error| told("integrity", path, error))?;
        if holds == (Holds::Log { format: NEWEST_FORMAT }) {
            for check in &checks::CHECKS {
                findings.extend(check.run(&connection).or_else(|error| told(check.name, path, error))?);
            }
            contents = checks::contents(&connection).ok();
        }
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let sizes = sizes(path, &connection);
    Ok(Report { path: path.to_owned(), holds, sizes, contents, findings })
}

/// Gives the free room of a file back to the file system and puts what is left in
/// order; gives the sizes before and after. Blocks.
///
/// Takes about as much room again meanwhile, part of it in the folder of
/// temporary files. The file is this caller's alone while it lasts: nobody else
/// may have it open.
///
/// # Errors
/// [`FileProblem::Locked`] when others still have the file open after a few
/// seconds; else as [`examine`], and [`FileProblem::Corrupt`] when it is damaged.
pub fn compact(path: &Path) -> Result<(Sizes, Sizes)> {
    let failed = |error| explain(path, "compact", error);
    let connection = open(path)?;
    connection.busy_timeout(Duration::from_millis(100)).map_err(failed)?;
    // With the write-ahead log, this lock is only given to who is alone.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE").map_err(failed)?;
    let began = Instant::now();
    let kind = loop {
        let alone = connection.execute_batch("BEGIN IMMEDIATE; COMMIT").and_then(|()| schema::look(&connection));
        match alone {
            Ok(kind) => break kind,
            Err(error) if is_busy(&error) && began.elapsed() < PATIENCE => {
                // A lock that was given in part would keep the others from going on.
                let _ = connection.execute_batch("ROLLBACK");
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => return Err(failed(error)),
        }
    };
    match kind {
        Kind::Log(found) if found > NEWEST_FORMAT => {
            return Err(problem(path, FileProblem::TooNew { found, known: NEWEST_FORMAT }));
        }
        // Files without an owner's mark are surely none of ours.
        Kind::Foreign | Kind::Empty
            if connection.pragma_query_value(None, "application_id", |row| row.get(0)).unwrap_or(0_i64) == 0 =>
        {
            return Err(problem(path, FileProblem::NotALog));
        }
        Kind::Log(_) | Kind::Foreign | Kind::Empty => {}
    }
    // So that the sizes are those of the file alone.
    let gather = || connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(failed);
    gather()?;
    let before = sizes(path, &connection);
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL").map_err(failed)?;
    connection.execute_batch("VACUUM").map_err(failed)?;
    gather()?;
    let after = sizes(path, &connection);
    Ok((before, after))
}

fn open(path: &Path) -> Result<Connection> {
    if !path.is_file() {
        return Err(problem(path, if path.exists() { FileProblem::NotALog } else { FileProblem::CannotOpen }));
    }
    file::examiner(path).map_err(|error| explain(path, "open", error))
}

/// What SQLite itself finds.
fn integrity(connection: &Connection) -> rusqlite::Result<Vec<Finding>> {
    let mut statement = connection.prepare(&format!("PRAGMA integrity_check({FINDINGS})"))?;
    let lines: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let damage = |found| Finding { severity: Severity::Damage, check: "integrity", found };
    Ok(lines.into_iter().filter(|line| line != "ok").map(damage).collect())
}

/// A damage that kept a check from its end is what it found.
fn told(check: &'static str, path: &Path, error: rusqlite::Error) -> Result<Vec<Finding>> {
    if is_damage(&error) { Ok(vec![unreadable(check, &error)]) } else { Err(explain(path, "examine", error)) }
}

fn unreadable(check: &'static str, error: &rusqlite::Error) -> Finding {
    Finding { severity: Severity::Damage, check, found: error.to_string() }
}

/// Whether the file's content is at fault: pages that are no pages, tables that
/// are not there.
fn is_damage(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) => {
            matches!(failure.code, ErrorCode::DatabaseCorrupt | ErrorCode::Unknown)
        }
        rusqlite::Error::SqlInputError { .. }
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::QueryReturnedNoRows => true,
        _ => false,
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

fn sizes(path: &Path, connection: &Connection) -> Sizes {
    let length = |path: &Path| path.metadata().map_or(0, |metadata| metadata.len());
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap_or(0).unsigned_abs();
    Sizes {
        file: length(path),
        wal: length(&beside(path, "-wal")),
        free: number("PRAGMA freelist_count") * number("PRAGMA page_size"),
    }
}
