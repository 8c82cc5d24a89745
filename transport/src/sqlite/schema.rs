//! The tables of a log file, and how older files become newer ones.

use rusqlite::{Connection, TransactionBehavior};

/// `PRAGMA application_id` of a log file: "PDoc".
pub(super) const APPLICATION_ID: i64 = 0x5044_6f63;

/// What brings a file from each version to the next; an empty file has version 0.
const STEPS: [&str; 1] = ["
CREATE TABLE state (
    id INTEGER PRIMARY KEY CHECK (id = 0),
    sequence INTEGER NOT NULL,
    topics_changed INTEGER NOT NULL
);
INSERT INTO state VALUES (0, 0, 0);
CREATE TABLE topics (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    compact INTEGER NOT NULL,
    retention_ms INTEGER NOT NULL,
    retention_bytes INTEGER NOT NULL,
    max_message_bytes INTEGER NOT NULL
);
CREATE TABLE partitions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    topic INTEGER NOT NULL,
    partition INTEGER NOT NULL,
    start INTEGER NOT NULL DEFAULT 0,
    next INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0,
    cleaned INTEGER NOT NULL DEFAULT 0,
    changed INTEGER NOT NULL,
    UNIQUE (topic, partition)
);
CREATE INDEX partitions_by_change ON partitions (changed);
CREATE TABLE records (
    id INTEGER PRIMARY KEY,
    partition INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    timestamp INTEGER NOT NULL,
    key BLOB,
    value BLOB,
    headers BLOB
);
CREATE UNIQUE INDEX records_by_place ON records (partition, offset);
CREATE TABLE garbage (
    partition INTEGER PRIMARY KEY,
    before INTEGER NOT NULL
);
CREATE TABLE groups (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    last_epoch INTEGER NOT NULL DEFAULT 0,
    changed INTEGER NOT NULL
);
CREATE INDEX groups_by_change ON groups (changed);
CREATE TABLE offsets (
    grp INTEGER NOT NULL,
    partition INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    metadata TEXT NOT NULL,
    PRIMARY KEY (grp, partition)
) WITHOUT ROWID;
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    seen_at INTEGER NOT NULL,
    process TEXT NOT NULL
);
CREATE TABLE members (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    grp INTEGER NOT NULL,
    session INTEGER NOT NULL,
    client TEXT NOT NULL,
    timeout_ms INTEGER NOT NULL,
    topics TEXT NOT NULL
);
CREATE INDEX members_by_group ON members (grp);
CREATE TABLE leases (
    grp INTEGER NOT NULL,
    partition INTEGER NOT NULL,
    owner INTEGER,
    target INTEGER,
    epoch INTEGER NOT NULL,
    PRIMARY KEY (grp, partition)
) WITHOUT ROWID;
CREATE TABLE transactional (
    id TEXT PRIMARY KEY,
    epoch INTEGER NOT NULL
) WITHOUT ROWID;
"];

/// Newest format known here.
pub(super) const VERSION: i64 = STEPS.len() as i64;

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
        (APPLICATION_ID, _) => Kind::Log(version),
        (0, 0) if version == 0 => Kind::Empty,
        _ => Kind::Foreign,
    })
}

/// Brings an empty or older file to the newest format. Many processes may do so
/// at once; one does the work.
pub(super) fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
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
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    transaction.commit()
}
