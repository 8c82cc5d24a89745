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
