//! What must hold in a log of the newest format, as questions to the file: each
//! row of an answer is a finding.

use rusqlite::Connection;

use super::{Contents, Finding, Severity};

/// Rows told of each check, at most.
const FINDINGS: usize = 20;

/// A question whose answer should be empty.
pub(super) struct Check {
    pub(super) name: &'static str,
    severity: Severity,
    /// Gives one text a row.
    sql: &'static str,
}

impl Check {
    /// Asks.
    pub(super) fn run(&self, connection: &Connection) -> rusqlite::Result<Vec<Finding>> {
        let mut statement = connection.prepare(self.sql)?;
        let rows = statement
            .query_map([], |row| Ok(Finding { severity: self.severity, check: self.name, found: row.get(0)? }))?;
        rows.take(FINDINGS).collect()
    }
}

/// How much there is of everything.
pub(super) fn contents(connection: &Connection) -> rusqlite::Result<Contents> {
    let count = |table: &str| {
        let sql = format!("SELECT count(*) FROM {table}");
        connection.query_row(&sql, [], |row| row.get::<_, i64>(0)).map(i64::unsigned_abs)
    };
    Ok(Contents {
        topics: count("topics")?,
        partitions: count("partitions")?,
        records: count("records")?,
        groups: count("groups")?,
        members: count("members")?,
    })
}

/// All of them.
pub(super) const CHECKS: [Check; 15] = [
    Check {
        name: "state",
        severity: Severity::Damage,
        sql: "SELECT format('%d rows say how far the file is, not one', count(*)) FROM state HAVING count(*) != 1",
    },
    Check {
        name: "partitions",
        severity: Severity::Damage,
        sql: "SELECT format('topic %s has %d partitions, the highest being %s', t.name, count(p.id), max(p.partition))
              FROM topics t LEFT JOIN partitions p ON p.topic = t.id GROUP BY t.id
              HAVING count(p.id) = 0 OR min(p.partition) != 0 OR max(p.partition) != count(p.id) - 1",
    },
    Check {
        name: "partitions",
        severity: Severity::Damage,
        sql: "SELECT format('partition %d (id %d) belongs to no topic', partition, id)
              FROM partitions WHERE topic NOT IN (SELECT id FROM topics)",
    },
    Check {
        name: "ends",
        severity: Severity::Damage,
        sql: "SELECT format('%s[%d] begins at %d and ends at %d', t.name, p.partition, p.start, p.next)
              FROM partitions p JOIN topics t ON t.id = p.topic WHERE p.start < 0 OR p.start > p.next",
    },
    Check {
        name: "ends",
        severity: Severity::Damage,
        sql: "SELECT format('%s[%d] ends at %d and holds a record at %d', name, partition, next, last) FROM (
                  SELECT t.name, p.partition, p.next, (SELECT max(offset) FROM records WHERE partition = p.id) AS last
                  FROM partitions p JOIN topics t ON t.id = p.topic
              ) WHERE last >= next",
    },
    // Compaction leaves gaps, also where it was turned off since.
    Check {
        name: "gaps",
        severity: Severity::Damage,
        sql: "SELECT format('%s[%d] has %d records from offset %d to %d', name, partition, found, start, next) FROM (
                  SELECT t.name, p.partition, p.start, p.next,
                         (SELECT count(*) FROM records WHERE partition = p.id AND offset >= p.start) AS found
                  FROM partitions p JOIN topics t ON t.id = p.topic WHERE t.compact = 0 AND p.cleaned = 0
              ) WHERE found != next - start",
    },
    Check {
        name: "times",
        severity: Severity::Damage,
        sql: "SELECT format('%s[%d] has a record of %d, newer than its newest of %d', name, partition, found, newest)
              FROM (
                  SELECT t.name, p.partition, p.newest,
                         (SELECT max(timestamp) FROM records WHERE partition = p.id) AS found
                  FROM partitions p JOIN topics t ON t.id = p.topic
              ) WHERE found > newest",
    },
    Check {
        name: "times",
        severity: Severity::Damage,
        sql: "SELECT format('%s[%d] has a mark at %d of %d, beyond its end or its newest record', t.name, p.partition,
                            m.offset, m.newest)
              FROM marks m JOIN partitions p ON p.id = m.partition JOIN topics t ON t.id = p.topic
              WHERE m.offset > p.next OR m.newest > p.newest",
    },
    Check {
        name: "offsets",
        severity: Severity::Damage,
        sql: "SELECT format('offset %d of group %d in partition %d belongs to a group or partition that is not there',
                            offset, grp, partition)
              FROM offsets WHERE offset < 0 OR grp NOT IN (SELECT id FROM groups)
                                 OR partition NOT IN (SELECT id FROM partitions)",
    },
    Check {
        name: "offsets",
        severity: Severity::Notice,
        sql: "SELECT format('group %s is at %d in %s[%d], which ends at %d; it will begin at the start again', g.name,
                            o.offset, t.name, p.partition, p.next)
              FROM offsets o JOIN groups g ON g.id = o.grp JOIN partitions p ON p.id = o.partition
              JOIN topics t ON t.id = p.topic WHERE o.offset > p.next",
    },
    Check {
        name: "leases",
        severity: Severity::Damage,
        sql: "SELECT format('group %d holds partition %d for a member that is not in it (%s, %s)', grp, partition,
                            owner, target)
              FROM leases l WHERE (owner NOT NULL AND owner NOT IN (SELECT id FROM members WHERE grp = l.grp))
                               OR (target NOT NULL AND target NOT IN (SELECT id FROM members WHERE grp = l.grp))",
    },
    Check {
        name: "leases",
        severity: Severity::Damage,
        sql: "SELECT format('group %d holds partition %d under epoch %d; it or the group is not there, or not so far',
                            l.grp, l.partition, l.epoch)
              FROM leases l LEFT JOIN groups g ON g.id = l.grp LEFT JOIN partitions p ON p.id = l.partition
              WHERE g.id IS NULL OR p.id IS NULL OR l.epoch > g.last_epoch",
    },
    Check {
        name: "members",
        severity: Severity::Damage,
        sql: "SELECT format('member %s (%d) is in group %d, which is not there', client, id, grp)
              FROM members WHERE grp NOT IN (SELECT id FROM groups)",
    },
    Check {
        name: "garbage",
        severity: Severity::Notice,
        sql: "SELECT format('records of partition %d are read by nobody and marked for removal by nobody', partition)
              FROM (SELECT DISTINCT partition FROM records) r
              WHERE NOT EXISTS (SELECT 1 FROM garbage WHERE partition = r.partition)
                AND NOT EXISTS (
                    SELECT 1 FROM partitions p WHERE p.id = r.partition
                    AND p.start <= (SELECT min(offset) FROM records WHERE partition = p.id)
                )",
    },
    Check {
        name: "sizes",
        severity: Severity::Notice,
        sql: "SELECT format('%s[%d] counts %d bytes and has %d', name, partition, bytes, found) FROM (
                  SELECT t.name, p.partition, p.bytes,
                         (SELECT ifnull(sum(ifnull(length(key), 0) + ifnull(length(value), 0)
                                            + ifnull(length(headers), 0)), 0)
                          FROM records WHERE partition = p.id) AS found
                  FROM partitions p JOIN topics t ON t.id = p.topic
              ) WHERE found != bytes",
    },
];
