//! A log within one process, gone with its last handle: for tests, and for
//! pipelines that need no memory of their past.
//!
//! Works under paused tokio time. [`Faults`] make hard cases happen on demand.
//! Compaction and retention are applied as records come, never between.

mod faults;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use pipedoc_model::names::Topic;

pub use faults::Faults;

use crate::embedded::consumer::{Reader, check_metadata};
use crate::embedded::hub::Hub;
use crate::embedded::outgoing::Open;
use crate::embedded::transaction::Buffered;
use crate::embedded::{Backend, Fetched, Grant, Joining, Limits, MemberId, MemberOffsets};
use crate::error::{Error, Result};
use crate::log::{
    Commit, Committed, Consumer, ConsumerConfig, Delivered, Ends, Log, OutgoingRecord, Producer, ProducerConfig,
    Receipt, TopicInfo, TopicPartition, TopicSpec, Transactional, TransactionalConfig,
};
use faults::Place;
use store::Store;

/// A log in memory; clones are handles on the same log.
#[derive(Clone, Default)]
pub struct MemoryLog {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    store: Mutex<Store>,
    hub: Hub,
    faults: Faults,
}

impl MemoryLog {
    /// An empty log.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Its fault switches.
    #[must_use]
    pub fn faults(&self) -> Faults {
        self.shared.faults.clone()
    }

    /// Ends the sessions of all members with this client id, as if they had not
    /// been heard of for too long; gives their number. Their consumers learn that
    /// their partitions are lost, and join anew.
    pub fn expire(&self, client_id: &str) -> usize {
        let members = self.shared.store.lock().members_named(client_id);
        for (group, member) in &members {
            self.shared.store.lock().leave(group, *member);
            self.shared.hub.group_changed(group);
        }
        members.len()
    }
}

#[async_trait]
impl Log for MemoryLog {
    fn describe(&self) -> String {
        "memory".to_owned()
    }

    async fn ensure_topic(&self, spec: &TopicSpec) -> Result<TopicInfo> {
        let info = self.shared.store.lock().ensure(spec)?;
        self.shared.hub.topics_changed();
        Ok(info)
    }

    async fn delete_topic(&self, topic: &Topic) -> Result<()> {
        self.shared.store.lock().remove(topic);
        self.shared.hub.groups_changed();
        self.shared.hub.topics_changed();
        Ok(())
    }

    async fn topic(&self, topic: &Topic) -> Result<Option<TopicInfo>> {
        Ok(self.shared.store.lock().info(topic))
    }

    async fn topics(&self) -> Result<Vec<Topic>> {
        Ok(self.shared.store.lock().sizes().into_keys().collect())
    }

    async fn ends(&self, topic: &Topic) -> Result<Vec<Ends>> {
        self.shared.store.lock().ends(topic)
    }

    async fn offsets_at(&self, topic: &Topic, millis: i64) -> Result<Vec<i64>> {
        self.shared.store.lock().offsets_at(topic, millis)
    }

    async fn delete_records(&self, source: &TopicPartition, before: i64) -> Result<()> {
        self.shared.store.lock().truncate(source, before)
    }

    async fn group_offsets(&self, group: &str) -> Result<BTreeMap<TopicPartition, Committed>> {
        Ok(self.shared.store.lock().offsets(group))
    }

    async fn set_group_offsets(&self, group: &str, commits: &[Commit]) -> Result<()> {
        check_metadata(commits)?;
        let mut store = self.shared.store.lock();
        let members = store.members(group);
        if members > 0 {
            return Err(Error::GroupNotEmpty { group: group.to_owned(), members });
        }
        for commit in commits {
            store.ends_of(&commit.source)?;
        }
        store.set_offsets(group, commits.iter());
        Ok(())
    }

    async fn producer(&self, _config: ProducerConfig) -> Result<Arc<dyn Producer>> {
        Ok(Arc::new(MemoryProducer { shared: self.shared.clone(), open: Open::default() }))
    }

    async fn transactional(&self, config: TransactionalConfig) -> Result<Box<dyn Transactional>> {
        Ok(Box::new(Buffered::open(self.shared.clone(), config).await?))
    }

    async fn consumer(&self, config: ConsumerConfig) -> Result<Arc<dyn Consumer>> {
        Ok(Arc::new(Reader::open(self.shared.clone(), config).await?))
    }
}

impl Shared {
    /// Tells readers where partitions end now.
    fn grown(&self, sources: BTreeSet<TopicPartition>) {
        let ends: Vec<_> = {
            let store = self.store.lock();
            sources.into_iter().filter_map(|source| Some((source.clone(), store.ends_of(&source).ok()?.end))).collect()
        };
        self.hub.appended(&ends);
    }
}

struct MemoryProducer {
    shared: Arc<Shared>,
    open: Open,
}

#[async_trait]
impl Producer for MemoryProducer {
    async fn send(&self, records: Vec<OutgoingRecord>) -> Result<Receipt> {
        let faults = &self.shared.faults;
        faults.strike(Place::Send)?;
        let mut grown = BTreeSet::new();
        let reports: Vec<_> = {
            let mut store = self.shared.store.lock();
            let mut append = |record: OutgoingRecord| {
                // What can never be written is refused before faults may strike.
                let partition = store.place(&record)?;
                faults.strike(Place::Ack)?;
                let (source, delivered) = store.append(record, partition)?;
                grown.insert(source);
                faults.strike(Place::LostAck)?;
                Ok(delivered)
            };
            records.into_iter().map(&mut append).collect()
        };
        self.shared.grown(grown);
        self.open.add(reports.len());
        let (open, faults) = (self.open.clone(), faults.clone());
        // Settled by a task, so that `flush` does not depend on the receipt being polled.
        let settled = tokio::spawn(async move {
            faults.acknowledged().await;
            open.settle(reports.len());
            reports
        });
        Ok(Receipt::new(settled.map(Result::unwrap_or_default)))
    }

    async fn flush(&self, timeout: Duration) -> Result<usize> {
        Ok(self.open.drained(timeout).await)
    }
}

#[async_trait]
impl Backend for Shared {
    fn hub(&self) -> &Hub {
        &self.hub
    }

    fn read(&self, source: &TopicPartition, from: i64, limits: Limits) -> BoxFuture<'static, Result<Fetched>> {
        let fetched = self.faults.strike(Place::Read).and_then(|()| self.store.lock().read(source, from, limits));
        std::future::ready(fetched).boxed()
    }

    async fn ends_of(&self, source: &TopicPartition) -> Result<Ends> {
        self.store.lock().ends_of(source)
    }

    async fn topic_sizes(&self) -> Result<BTreeMap<Topic, i32>> {
        Ok(self.store.lock().sizes())
    }

    async fn join(&self, joining: &Joining, topics: &BTreeSet<Topic>) -> Result<MemberId> {
        let member = self.store.lock().join(joining, topics);
        self.hub.group_changed(&joining.group);
        Ok(member)
    }

    async fn subscribe(&self, group: &str, member: MemberId, topics: &BTreeSet<Topic>) -> Result<()> {
        self.store.lock().subscribe(group, member, topics);
        self.hub.group_changed(group);
        Ok(())
    }

    async fn grants(&self, group: &str, member: MemberId) -> Result<Option<Vec<Grant>>> {
        Ok(self.store.lock().grants(group, member))
    }

    async fn release(&self, group: &str, member: MemberId, partitions: &[(TopicPartition, i64)]) -> Result<()> {
        self.store.lock().release(group, member, partitions);
        self.hub.group_changed(group);
        Ok(())
    }

    async fn leave(&self, group: &str, member: MemberId) -> Result<()> {
        self.store.lock().leave(group, member);
        self.hub.group_changed(group);
        Ok(())
    }

    async fn commit(&self, offsets: MemberOffsets) -> Result<()> {
        let mut store = self.store.lock();
        store.check_owner(&offsets)?;
        self.faults.strike(Place::Commit)?;
        store.set_offsets(&offsets.group, offsets.commits.iter().map(|owned| &owned.commit));
        Ok(())
    }

    fn session_is_fresh(&self) -> bool {
        true
    }

    async fn check(&self, records: &[OutgoingRecord]) -> Result<()> {
        let store = self.store.lock();
        records.iter().try_for_each(|record| store.place(record).map(drop))
    }

    async fn fence(&self, transactional_id: &str) -> Result<i64> {
        Ok(self.store.lock().fence(transactional_id))
    }

    async fn write(
        &self,
        transactional_id: &str,
        epoch: i64,
        records: Vec<OutgoingRecord>,
        offsets: Vec<MemberOffsets>,
    ) -> Result<Vec<Delivered>> {
        let mut grown = BTreeSet::new();
        let delivered = {
            let mut store = self.store.lock();
            // All that can fail comes before the first change.
            store.check_epoch(transactional_id, epoch)?;
            offsets.iter().try_for_each(|offsets| store.check_owner(offsets))?;
            let places: Vec<i32> = records.iter().map(|record| store.place(record)).collect::<Result<_>>()?;
            self.faults.strike(Place::Transaction)?;
            let mut delivered = Vec::with_capacity(records.len());
            for (record, partition) in records.into_iter().zip(places) {
                let (source, report) = store.append(record, partition)?;
                grown.insert(source);
                delivered.push(report);
            }
            for member in &offsets {
                store.set_offsets(&member.group, member.commits.iter().map(|owned| &owned.commit));
            }
            delivered
        };
        self.grown(grown);
        Ok(delivered)
    }
}
