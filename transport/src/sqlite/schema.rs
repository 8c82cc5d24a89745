//! The tables of a log file, and how older files become newer ones.
//!
//! Each step is one SQL script in `schema/` that never changes once it was
//! released: a file of any older version walks through those it lacks, in one
//! transaction. What a step does to a file is seen by processes of older versions
//! that still have it open: each write transaction looks at `user_version` and
//! refuses to go on (see `tx`).

use rusqlite::{Connection, TransactionBehavior};

/// `PRAGMA application_id` of a log file: "PDoc".
pub(super) const APPLICATION_ID: i64 = 0x5044_6f63;

/// What brings a file from each version to the next; an empty file has version 0.
const STEPS: [&str; 2] = [include_str!("schema/1.sql"), include_str!("schema/2.sql")];

/// Newest format known here.
pub const VERSION: i64 = STEPS.len() as i64;

/// What a file turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing is in it yet.
    Empty,
    /// A log of this format.
    Log(i64),
    /// A database of something else.
    Foreign,
}

/// Looks at a file without changing it.
pub(super) fn look(connection: &Connection) -> rusqlite::Result<Kind> {
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    let tables = number("SELECT count(*) FROM sqlite_schema")?;
    let application = number("SELECT application_id FROM pragma_application_id")?;
    let version = number("SELECT user_version FROM pragma_user_version")?;
    Ok(match (application, tables) {
        (APPLICATION_ID, _) if version > 0 => Kind::Log(version),
        (0, 0) if version == 0 => Kind::Empty,
        _ => Kind::Foreign,
    })
}

/// Brings an empty or older file to the newest format. Many processes may do so
/// at once; one does the work.
pub(super) fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    if look(connection)? == Kind::Log(VERSION) {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let from = match look(&transaction)? {
        Kind::Empty => 0,
        Kind::Log(version) => version,
        Kind::Foreign => return Ok(()),
    };
    let done = usize::try_from(from).unwrap_or(0);
    for step in STEPS.iter().skip(done) {
        transaction.execute_batch(step)?;
    }
    if from < VERSION {
        tracing::debug!(from, to = VERSION, "log file brought to the newest format");
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    transaction.commit()
}
