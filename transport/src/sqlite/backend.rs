//! The file as the shared machinery of the embedded logs sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::BoxFuture;
use pipedoc_model::names::Topic;
use rusqlite::{OptionalExtension, params};

use super::watch::Watch;
use super::{Shared, groups, readers, topics};
use crate::embedded::hub::Hub;
use crate::embedded::{self, Fetched, Grant, Joining, Limits, MemberId, MemberOffsets};
use crate::error::{Error, Result};
use crate::log::{Delivered, Ends, OutgoingRecord, TopicPartition};

/// How long a member that could not be taken out of its group waits to be so,
/// at first and at most.
const LEAVE_AGAIN: Duration = Duration::from_millis(500);
const LEAVE_AT_LAST: Duration = Duration::from_secs(10);

/// One handle on the file. Producers need less and outlive it.
pub(super) struct Backend {
    pub(super) shared: Arc<Shared>,
    pub(super) _watch: Watch,
}

#[async_trait]
impl embedded::Backend for Backend {
    fn hub(&self) -> &Hub {
        &self.shared.bell.hub
    }

    fn read(&self, source: &TopicPartition, from: i64, limits: Limits) -> BoxFuture<'static, Result<Fetched>> {
        let (readers, source) = (self.shared.readers.clone(), source.clone());
        let task = tokio::spawn(async move {
            readers.with(move |connection| readers::read(connection, &source, from, limits)).await
        });
        task.map(|read| read.unwrap_or(Err(Error::Closed { what: "log" }))).boxed()
    }

    async fn ends_of(&self, source: &TopicPartition) -> Result<Ends> {
        let source = source.clone();
        self.shared.readers.with(move |connection| Ok(readers::partition(connection, &source)?.1)).await
    }

    async fn topic_sizes(&self) -> Result<BTreeMap<Topic, i32>> {
        self.shared.readers.with(|connection| Ok(topics::sizes(connection)?)).await
    }

    async fn join(&self, joining: &Joining, topics: &BTreeSet<Topic>) -> Result<MemberId> {
        let session = self.shared.session.clone();
        let (id, wanted, who) = (session.id, topics.clone(), joining.clone());
        let member = self.shared.writer.call(false, move |tx| groups::join(tx, id, &who, &wanted)).await?;
        session.joined(member, joining.session_timeout);
        Ok(member)
    }

    async fn subscribe(&self, group: &str, member: MemberId, topics: &BTreeSet<Topic>) -> Result<()> {
        let (group, topics) = (group.to_owned(), topics.clone());
        self.shared.writer.call(false, move |tx| groups::subscribe(tx, &group, member, &topics)).await
    }

    async fn grants(&self, group: &str, member: MemberId) -> Result<Option<Vec<Grant>>> {
        let group = group.to_owned();
        let grants =
            self.shared.readers.with(move |connection| Ok(groups::grants(connection, &group, member)?)).await?;
        if grants.is_none() {
            self.shared.session.left(member);
        }
        Ok(grants)
    }

    async fn release(&self, group: &str, member: MemberId, partitions: &[(TopicPartition, i64)]) -> Result<()> {
        let (group, partitions) = (group.to_owned(), partitions.to_vec());
        self.shared.writer.call(false, move |tx| groups::release(tx, &group, member, &partitions)).await
    }

    async fn leave(&self, group: &str, member: MemberId) -> Result<()> {
        self.shared.session.left(member);
        let left = self.shared.leave(group, member).await;
        if left.is_err() {
            // The session goes on with other members: nobody else would ever take
            // this one out.
            tokio::spawn(leave_later(Arc::downgrade(&self.shared), group.to_owned(), member));
        }
        left
    }

    async fn commit(&self, offsets: MemberOffsets) -> Result<()> {
        let work = move |tx: &mut super::tx::Tx<'_>| {
            groups::check_owner(tx, &offsets)?;
            groups::set_offsets(tx, &offsets.group, offsets.commits.iter().map(|owned| &owned.commit))
        };
        self.shared.writer.call(true, work).await
    }

    fn session_is_fresh(&self) -> bool {
        self.shared.session.is_fresh()
    }

    async fn check(&self, records: &[OutgoingRecord]) -> Result<()> {
        // Sizes and topics are looked at where they are known for sure: in the
        // transaction. Only what is cheap to see is refused before.
        let wanted: BTreeSet<Topic> = records.iter().map(|record| record.topic.clone()).collect();
        let infos = self.shared.readers.with(move |connection| {
            let mut infos = BTreeMap::new();
            for topic in wanted {
                let info = topics::info(connection, &topic)?.ok_or(Error::UnknownTopic { topic: topic.clone() })?;
                infos.insert(topic, info);
            }
            Ok(infos)
        });
        let infos = infos.await?;
        let turns = embedded::outgoing::Turns::default();
        for record in records {
            let Some(info) = infos.get(&record.topic) else { continue };
            embedded::outgoing::check_size(record, info.settings.max_message_bytes.unwrap_or(i32::MAX))?;
            turns.choose(record, info.partitions)?;
        }
        Ok(())
    }

    async fn fence(&self, transactional_id: &str) -> Result<i64> {
        let id = transactional_id.to_owned();
        let work = move |tx: &mut super::tx::Tx<'_>| {
            let sql = "INSERT INTO transactional (id, epoch) VALUES (?, 1)
                       ON CONFLICT (id) DO UPDATE SET epoch = epoch + 1 RETURNING epoch";
            Ok(tx.sql().prepare_cached(sql)?.query_row([id], |row| row.get(0))?)
        };
        self.shared.writer.call(true, work).await
    }

    async fn write(
        &self,
        transactional_id: &str,
        epoch: i64,
        records: Vec<OutgoingRecord>,
        offsets: Vec<MemberOffsets>,
    ) -> Result<Vec<Delivered>> {
        let id = transactional_id.to_owned();
        let work = move |tx: &mut super::tx::Tx<'_>| {
            // All that can be refused comes before the first change.
            let newest: Option<i64> = tx
                .sql()
                .prepare_cached("SELECT epoch FROM transactional WHERE id = ?")?
                .query_row(params![id], |row| row.get(0))
                .optional()?;
            if newest != Some(epoch) {
                return Err(Error::Fenced { who: format!("transactional id {id}") }.into());
            }
            for member in &offsets {
                groups::check_owner(tx, member)?;
            }
            let places: Vec<_> = records.iter().map(|record| tx.place(record)).collect::<Result<_>>()?;
            let mut delivered = Vec::with_capacity(records.len());
            for (record, place) in records.iter().zip(places) {
                delivered.push(tx.append(record, place)?);
            }
            for member in &offsets {
                groups::set_offsets(tx, &member.group, member.commits.iter().map(|owned| &owned.commit))?;
            }
            Ok(delivered)
        };
        self.shared.writer.call(true, work).await
    }
}

impl Shared {
    async fn leave(&self, group: &str, member: MemberId) -> Result<()> {
        let group = group.to_owned();
        self.writer.call(false, move |tx| groups::leave(tx, &group, member)).await
    }
}

/// Takes a member out of its group as soon as the file can be written again.
async fn leave_later(shared: Weak<Shared>, group: String, member: MemberId) {
    let mut wait = LEAVE_AGAIN;
    loop {
        tokio::time::sleep(wait).await;
        wait = LEAVE_AT_LAST.min(wait * 2);
        let Some(shared) = shared.upgrade() else { return };
        if shared.leave(&group, member).await.is_ok() {
            return;
        }
    }
}
