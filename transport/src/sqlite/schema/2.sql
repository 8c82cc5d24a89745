-- Processes of version 1 that still run cannot read this table any more: they stop
-- writing, rather than write without what is new below.
ALTER TABLE state RENAME COLUMN topics_changed TO topics_changed_at;

-- A session counts its heartbeats. Who watches it takes the time by its own clock,
-- so that no clock is shared. All members join anew.
DROP TABLE sessions;
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    beats INTEGER NOT NULL,
    process TEXT NOT NULL
);
DELETE FROM members;
UPDATE leases SET owner = NULL, target = NULL;

-- Marks, one for about a thousand records: all records before `offset` have
-- timestamps up to `newest` and were written by `written_at` (milliseconds since
-- the Unix epoch). A partition remembers its newest timestamp and its last mark.
CREATE TABLE marks (
    partition INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    newest INTEGER NOT NULL,
    written_at INTEGER NOT NULL,
    PRIMARY KEY (partition, offset)
) WITHOUT ROWID;
ALTER TABLE partitions ADD COLUMN newest INTEGER NOT NULL DEFAULT -9223372036854775807;
ALTER TABLE partitions ADD COLUMN marked INTEGER NOT NULL DEFAULT 0;
ALTER TABLE partitions ADD COLUMN marked_at INTEGER NOT NULL DEFAULT 0;
UPDATE partitions SET
    newest = ifnull((SELECT max(timestamp) FROM records WHERE records.partition = partitions.id), newest),
    marked = next;
