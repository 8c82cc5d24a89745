//! Groups in the file: members, leases, offsets. How partitions are divided is
//! decided by [`crate::embedded::balance`]; here it is read and written.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pipedoc_model::names::Topic;
use rusqlite::{Connection, OptionalExtension, params};

use super::judge::Seen;
use super::liveness;
use super::problem::Fault;
use super::tx::Tx;
use crate::embedded::balance::{Group, Lease};
use crate::embedded::{Grant, Joining, MemberId, MemberOffsets};
use crate::error::Error;
use crate::log::{Commit, Committed, Ends, TopicPartition};

/// Id of a group.
fn id_of(connection: &Connection, group: &str) -> rusqlite::Result<Option<i64>> {
    connection.prepare_cached("SELECT id FROM groups WHERE name = ?")?.query_row([group], |row| row.get(0)).optional()
}

/// Id of a group, which is made if it is missing.
fn ensure(tx: &Tx<'_>, group: &str) -> rusqlite::Result<i64> {
    if let Some(id) = id_of(tx.sql(), group)? {
        return Ok(id);
    }
    tx.sql()
        .prepare_cached("INSERT INTO groups (name, changed) VALUES (?, ?)")?
        .execute(params![group, tx.sequence()])?;
    Ok(tx.sql().last_insert_rowid())
}

fn write_topics(topics: &BTreeSet<Topic>) -> String {
    topics.iter().map(Topic::as_str).collect::<Vec<_>>().join("\n")
}

fn read_topics(text: &str) -> BTreeSet<Topic> {
    text.lines().filter_map(|name| Topic::new(name).ok()).collect()
}

/// A partition's place, of a row that begins with its topic and number.
fn source_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<TopicPartition>> {
    // Only valid names are ever written.
    let topic = Topic::new(row.get_ref(0)?.as_str()?).ok();
    let partition = row.get(1)?;
    Ok(topic.map(|topic| TopicPartition::new(topic, partition)))
}

/// A group as it is in the file.
fn load(connection: &Connection, id: i64) -> rusqlite::Result<Group> {
    let mut group = Group {
        last_epoch: connection
            .prepare_cached("SELECT last_epoch FROM groups WHERE id = ?")?
            .query_row([id], |row| row.get(0))?,
        ..Group::default()
    };
    let mut statement = connection.prepare_cached("SELECT id, topics FROM members WHERE grp = ?")?;
    let mut rows = statement.query([id])?;
    while let Some(row) = rows.next()? {
        group.members.insert(row.get(0)?, read_topics(row.get_ref(1)?.as_str()?));
    }
    let mut statement = connection.prepare_cached(
        "SELECT t.name, p.partition, l.owner, l.target, l.epoch FROM leases l
         JOIN partitions p ON p.id = l.partition JOIN topics t ON t.id = p.topic WHERE l.grp = ?",
    )?;
    let mut rows = statement.query([id])?;
    while let Some(row) = rows.next()? {
        if let Some(source) = source_of(row)? {
            let lease = Lease { owner: row.get(2)?, target: row.get(3)?, epoch: row.get(4)? };
            group.leases.insert(source, lease);
        }
    }
    Ok(group)
}

/// Changes a group's leases, writing only what differs.
fn change(tx: &mut Tx<'_>, name: &str, id: i64, work: impl FnOnce(&mut Group)) -> rusqlite::Result<()> {
    let before = load(tx.sql(), id)?;
    let mut after = before.clone();
    work(&mut after);
    after.divide(&tx.sizes());
    if after == before {
        return Ok(());
    }
    for (source, lease) in &after.leases {
        if before.leases.get(source) == Some(lease) {
            continue;
        }
        let Ok(partition) = tx.partition(source) else { continue };
        tx.sql()
            .prepare_cached(
                "INSERT OR REPLACE INTO leases (grp, partition, owner, target, epoch) VALUES (?, ?, ?, ?, ?)",
            )?
            .execute(params![id, partition, lease.owner, lease.target, lease.epoch])?;
    }
    tx.sql().prepare_cached("UPDATE groups SET last_epoch = ? WHERE id = ?")?.execute(params![after.last_epoch, id])?;
    tx.group_changed(name);
    Ok(())
}

/// Takes in a member of a session; members that are dead already make room.
pub(super) fn join(
    tx: &mut Tx<'_>,
    session: i64,
    joining: &Joining,
    topics: &BTreeSet<Topic>,
) -> Result<MemberId, Fault> {
    let is_new = id_of(tx.sql(), &joining.group)?.is_none();
    let id = ensure(tx, &joining.group)?;
    if is_new && joining.from_ends {
        commit_ends(tx.sql(), id, topics)?;
    }
    // In this order: expiring removes sessions without members, and this one may have none yet.
    expire_gone(tx)?;
    see(tx.sql(), session)?;
    let timeout = i64::try_from(joining.session_timeout.as_millis()).unwrap_or(i64::MAX);
    tx.sql()
        .prepare_cached("INSERT INTO members (grp, session, client, timeout_ms, topics) VALUES (?, ?, ?, ?, ?)")?
        .execute(params![id, session, joining.client_id, timeout, write_topics(topics)])?;
    let member = tx.sql().last_insert_rowid();
    change(tx, &joining.group, id, |_| {})?;
    tx.group_changed(&joining.group);
    Ok(member)
}

/// Commits the ends of all partitions that topics have now, records of this
/// very transaction included.
fn commit_ends(connection: &Connection, group: i64, topics: &BTreeSet<Topic>) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO offsets (grp, partition, offset, metadata)
         SELECT ?1, p.id, max(p.next, (SELECT ifnull(max(r.offset) + 1, 0) FROM records r WHERE r.partition = p.id)), ''
         FROM partitions p JOIN topics t ON t.id = p.topic WHERE t.name = ?2",
    )?;
    for topic in topics {
        statement.execute(params![group, topic.as_str()])?;
    }
    Ok(())
}

/// Changes what a member wants.
pub(super) fn subscribe(tx: &mut Tx<'_>, group: &str, member: MemberId, topics: &BTreeSet<Topic>) -> Result<(), Fault> {
    let Some(id) = id_of(tx.sql(), group)? else { return Ok(()) };
    tx.sql()
        .prepare_cached("UPDATE members SET topics = ? WHERE id = ?")?
        .execute(params![write_topics(topics), member])?;
    change(tx, group, id, |_| {})?;
    Ok(())
}

/// Takes a member out.
pub(super) fn leave(tx: &mut Tx<'_>, group: &str, member: MemberId) -> Result<(), Fault> {
    let Some(id) = id_of(tx.sql(), group)? else { return Ok(()) };
    remove(tx, group, id, member)?;
    Ok(())
}

fn remove(tx: &mut Tx<'_>, group: &str, id: i64, member: MemberId) -> rusqlite::Result<()> {
    change(tx, group, id, |group| group.remove(member))?;
    tx.sql().prepare_cached("DELETE FROM members WHERE id = ?")?.execute([member])?;
    tx.group_changed(group);
    Ok(())
}

/// Gives partitions up.
pub(super) fn release(
    tx: &mut Tx<'_>,
    group: &str,
    member: MemberId,
    partitions: &[(TopicPartition, i64)],
) -> Result<(), Fault> {
    let Some(id) = id_of(tx.sql(), group)? else { return Ok(()) };
    change(tx, group, id, |group| {
        for (source, epoch) in partitions {
            group.release(member, source, *epoch);
        }
    })?;
    tx.group_changed(group);
    Ok(())
}

/// Divides the partitions of all groups anew, after topics changed.
pub(super) fn divide_all(tx: &mut Tx<'_>) -> rusqlite::Result<()> {
    let groups: Vec<(i64, String)> = {
        let mut statement =
            tx.sql().prepare_cached("SELECT id, name FROM groups WHERE id IN (SELECT grp FROM members)")?;
        let groups = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        groups.collect::<rusqlite::Result<_>>()?
    };
    for (id, name) in groups {
        change(tx, &name, id, |_| {})?;
    }
    Ok(())
}

/// Says that a session is alive.
pub(super) fn see(connection: &Connection, session: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO sessions (id, beats, process) VALUES (?1, 1, ?2)
             ON CONFLICT (id) DO UPDATE SET beats = beats + 1",
        )?
        .execute(params![session, liveness::this_process()])?;
    Ok(())
}

/// All members of all groups, with what tells whether they live.
pub(super) fn watched(connection: &Connection) -> rusqlite::Result<Vec<Seen>> {
    let mut statement = connection.prepare_cached(
        "SELECT m.id, ifnull(s.beats, 0), m.timeout_ms FROM members m LEFT JOIN sessions s ON s.id = m.session",
    )?;
    let seen = statement.query_map([], |row| {
        let timeout: i64 = row.get(2)?;
        let timeout = Duration::from_millis(timeout.unsigned_abs());
        Ok(Seen { member: row.get(0)?, beats: row.get(1)?, timeout })
    })?;
    seen.collect()
}

/// Members that are surely dead: their process is gone, or their session.
pub(super) fn gone(connection: &Connection) -> rusqlite::Result<Vec<(MemberId, i64, String)>> {
    let mut statement = connection.prepare_cached(
        "SELECT m.id, m.grp, g.name, s.process FROM members m
         JOIN groups g ON g.id = m.grp LEFT JOIN sessions s ON s.id = m.session",
    )?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    let mut known: BTreeMap<String, bool> = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let gone = match row.get_ref(3)?.as_str_or_null()? {
            None => true,
            Some(process) => match known.get(process) {
                Some(gone) => *gone,
                None => *known.entry(process.to_owned()).or_insert_with(|| liveness::is_gone(process)),
            },
        };
        if gone {
            found.push((row.get(0)?, row.get(1)?, row.get(2)?));
        }
    }
    Ok(found)
}

/// Takes out the members that are surely dead.
pub(super) fn expire_gone(tx: &mut Tx<'_>) -> rusqlite::Result<()> {
    let gone = gone(tx.sql())?;
    expire(tx, gone)
}

/// Takes out the members that were silent for too long, unless they have been
/// heard of meanwhile.
pub(super) fn expire_silent(tx: &mut Tx<'_>, silent: &[(MemberId, i64)]) -> rusqlite::Result<()> {
    let mut still = Vec::new();
    for (member, beats) in silent {
        let found = tx
            .sql()
            .prepare_cached(
                "SELECT m.grp, g.name FROM members m JOIN groups g ON g.id = m.grp
                 LEFT JOIN sessions s ON s.id = m.session WHERE m.id = ? AND ifnull(s.beats, 0) = ?",
            )?
            .query_row([member, beats], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        if let Some((id, group)) = found {
            still.push((*member, id, group));
        }
    }
    expire(tx, still)
}

fn expire(tx: &mut Tx<'_>, dead: Vec<(MemberId, i64, String)>) -> rusqlite::Result<()> {
    for (member, id, group) in &dead {
        tracing::info!(group, member, "a member's session is over; its partitions move");
        remove(tx, group, *id, *member)?;
    }
    if !dead.is_empty() {
        tx.sql().execute("DELETE FROM sessions WHERE id NOT IN (SELECT session FROM members)", [])?;
    }
    Ok(())
}

/// Whether a group has members of which nothing but their silence can tell
/// whether they live: their processes cannot be seen from here.
pub(super) fn may_be_dead(connection: &Connection, group: &str) -> rusqlite::Result<bool> {
    let mut statement = connection.prepare_cached(
        "SELECT s.process FROM members m JOIN groups g ON g.id = m.grp JOIN sessions s ON s.id = m.session
         WHERE g.name = ?",
    )?;
    let mut rows = statement.query([group])?;
    while let Some(row) = rows.next()? {
        if liveness::is_here(row.get_ref(0)?.as_str()?) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What a member holds; `None` when it is no member any more.
pub(super) fn grants(connection: &Connection, group: &str, member: MemberId) -> rusqlite::Result<Option<Vec<Grant>>> {
    let _snapshot = connection.unchecked_transaction()?;
    let is_member = connection.prepare_cached("SELECT 1 FROM members WHERE id = ?")?.exists([member])?;
    if !is_member {
        return Ok(None);
    }
    let mut statement = connection.prepare_cached(
        "SELECT t.name, p.partition, l.epoch, l.target IS NOT l.owner, p.start, p.next, o.offset, o.metadata
         FROM groups g JOIN leases l ON l.grp = g.id
         JOIN partitions p ON p.id = l.partition JOIN topics t ON t.id = p.topic
         LEFT JOIN offsets o ON o.grp = g.id AND o.partition = l.partition
         WHERE g.name = ? AND l.owner = ?",
    )?;
    let mut rows = statement.query(params![group, member])?;
    let mut grants = Vec::new();
    while let Some(row) = rows.next()? {
        let Some(source) = source_of(row)? else { continue };
        let committed = match row.get::<_, Option<i64>>(6)? {
            Some(offset) => Some(Committed { offset, metadata: row.get(7)? }),
            None => None,
        };
        let ends = Ends { start: row.get(4)?, end: row.get(5)? };
        grants.push(Grant { source, epoch: row.get(2)?, wanted_away: row.get(3)?, committed, ends });
    }
    Ok(Some(grants))
}

/// Fails unless the member holds all of it, under the epochs named.
pub(super) fn check_owner(tx: &Tx<'_>, offsets: &MemberOffsets) -> Result<(), Fault> {
    let fenced = || Error::Fenced { who: format!("a member of group {}", offsets.group) };
    let id = id_of(tx.sql(), &offsets.group)?.ok_or_else(fenced)?;
    let mut statement =
        tx.sql().prepare_cached("SELECT 1 FROM leases WHERE grp = ? AND partition = ? AND owner = ? AND epoch = ?")?;
    for owned in &offsets.commits {
        let partition = tx.partition(&owned.commit.source)?;
        if !statement.exists(params![id, partition, offsets.member, owned.epoch])? {
            return Err(fenced().into());
        }
    }
    Ok(())
}

/// Writes offsets of partitions that exist.
pub(super) fn set_offsets<'c>(
    tx: &Tx<'_>,
    group: &str,
    commits: impl Iterator<Item = &'c Commit>,
) -> Result<(), Fault> {
    let id = ensure(tx, group)?;
    let mut statement = tx
        .sql()
        .prepare_cached("INSERT OR REPLACE INTO offsets (grp, partition, offset, metadata) VALUES (?, ?, ?, ?)")?;
    for commit in commits {
        statement.execute(params![id, tx.partition(&commit.source)?, commit.offset, commit.metadata])?;
    }
    Ok(())
}

/// How many members a group has.
pub(super) fn members(connection: &Connection, group: &str) -> rusqlite::Result<usize> {
    let count: i64 = connection
        .prepare_cached("SELECT count(*) FROM members m JOIN groups g ON g.id = m.grp WHERE g.name = ?")?
        .query_row([group], |row| row.get(0))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// All offsets of a group.
pub(super) fn offsets(connection: &Connection, group: &str) -> rusqlite::Result<BTreeMap<TopicPartition, Committed>> {
    let mut statement = connection.prepare_cached(
        "SELECT t.name, p.partition, o.offset, o.metadata FROM groups g JOIN offsets o ON o.grp = g.id
         JOIN partitions p ON p.id = o.partition JOIN topics t ON t.id = p.topic WHERE g.name = ?",
    )?;
    let mut rows = statement.query([group])?;
    let mut offsets = BTreeMap::new();
    while let Some(row) = rows.next()? {
        if let Some(source) = source_of(row)? {
            offsets.insert(source, Committed { offset: row.get(2)?, metadata: row.get(3)? });
        }
    }
    Ok(offsets)
}
