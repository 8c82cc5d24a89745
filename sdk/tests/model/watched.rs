//! Stands between one instance and its log: tells the model what passes, and
//! breaks what it is told to break. Works over any log.
//!
//! A *crash* cuts the instance off for good: nothing that it asks for is
//! answered any more, and its membership ends, as when a process is killed. What
//! it runs goes on in vain, as a zombie would.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use parking_lot::Mutex;
use pipedoc_model::headers::{DOCUMENT_ID, SOURCE_OFFSET, SOURCE_PARTITION};
use pipedoc_model::names::Topic;
use pipedoc_sdk::progress;
use pipedoc_transport::log::*;
use pipedoc_transport::size;
use tokio::sync::watch;

use super::world::World;

/// What is to fail next.
#[derive(Debug, Default)]
pub struct Faults {
    pub sends: (usize, bool),
    pub acks: (usize, bool),
    pub lost_acks: (usize, bool),
    pub commits: (usize, bool),
    pub lost_commits: usize,
    pub reads: (usize, bool),
    /// Transactions that end in nothing, or are written and reported as failed.
    pub transactions: (usize, bool),
    pub lost_transactions: usize,
}

/// The log as one instance sees it.
#[derive(Clone)]
pub struct WatchedLog(Arc<Watch>);

struct Watch {
    inner: Arc<dyn Log>,
    world: Arc<World>,
    instance: String,
    input: Topic,
    dead_letters: Topic,
    faults: Mutex<Faults>,
    /// Whether acknowledgements go their way.
    free: watch::Sender<bool>,
    crashed: watch::Sender<bool>,
    /// Outputs above so many bytes are refused late, with their report.
    late_limit: usize,
    /// Transactional ids that the instance has taken.
    ids: Mutex<BTreeSet<String>>,
}

impl WatchedLog {
    pub fn new(inner: Arc<dyn Log>, world: Arc<World>, instance: &str, input: Topic, dead_letters: Topic) -> Self {
        Self(Arc::new(Watch {
            inner,
            world,
            instance: instance.to_owned(),
            input,
            dead_letters,
            faults: Mutex::default(),
            free: watch::Sender::new(true),
            crashed: watch::Sender::new(false),
            late_limit: 4096,
            ids: Mutex::default(),
        }))
    }

    pub fn break_next(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.0.faults.lock());
    }

    pub fn heal(&self) {
        *self.0.faults.lock() = Faults::default();
        self.0.free.send_replace(true);
    }

    /// Holds acknowledgements back, or lets them go.
    pub fn hold(&self, held: bool) {
        self.0.free.send_replace(!held);
    }

    /// Takes the instance's transactional ids away from it.
    pub async fn fence(&self) {
        let ids = self.0.ids.lock().clone();
        for id in ids {
            drop(self.0.inner.transactional(TransactionalConfig::new(id)).await);
        }
    }

    pub fn crash(&self) {
        self.0.crashed.send_replace(true);
    }
}

impl Watch {
    fn is_crashed(&self) -> bool {
        *self.crashed.borrow()
    }

    /// What the log says, unless the instance crashes before.
    async fn alive<T>(&self, call: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            () = is_true(self.crashed.subscribe()) => pending().await,
            answer = call => answer,
        }
    }

    fn strike(&self, operation: &'static str, fault: impl FnOnce(&mut Faults) -> &mut (usize, bool)) -> Result<()> {
        let mut faults = self.faults.lock();
        let (left, retryable) = fault(&mut faults);
        if *left == 0 {
            return Ok(());
        }
        *left -= 1;
        Err(Error::Injected { operation, retryable: *retryable })
    }
}

/// Waits until a switch is on.
async fn is_true(mut switch: watch::Receiver<bool>) {
    // A switch that is gone is never on any more.
    if switch.wait_for(|on| *on).await.is_err() {
        pending::<()>().await;
    }
}

#[async_trait]
impl Log for WatchedLog {
    fn describe(&self) -> String {
        self.0.inner.describe()
    }
    async fn ensure_topic(&self, spec: &TopicSpec) -> Result<TopicInfo> {
        self.0.alive(self.0.inner.ensure_topic(spec)).await
    }
    async fn delete_topic(&self, topic: &Topic) -> Result<()> {
        self.0.alive(self.0.inner.delete_topic(topic)).await
    }
    async fn topic(&self, topic: &Topic) -> Result<Option<TopicInfo>> {
        self.0.alive(self.0.inner.topic(topic)).await
    }
    async fn topics(&self) -> Result<Vec<Topic>> {
        self.0.alive(self.0.inner.topics()).await
    }
    async fn ends(&self, topic: &Topic) -> Result<Vec<Ends>> {
        self.0.alive(self.0.inner.ends(topic)).await
    }
    async fn offsets_at(&self, topic: &Topic, millis: i64) -> Result<Vec<i64>> {
        self.0.alive(self.0.inner.offsets_at(topic, millis)).await
    }
    async fn group_offsets(&self, group: &str) -> Result<BTreeMap<TopicPartition, Committed>> {
        self.0.alive(self.0.inner.group_offsets(group)).await
    }
    async fn set_group_offsets(&self, group: &str, commits: &[Commit]) -> Result<()> {
        self.0.alive(self.0.inner.set_group_offsets(group, commits)).await
    }
    async fn producer(&self, config: ProducerConfig) -> Result<Arc<dyn Producer>> {
        let inner = self.0.alive(self.0.inner.producer(config)).await?;
        Ok(Arc::new(WatchedProducer { watch: Arc::clone(&self.0), inner }))
    }
    async fn transactional(&self, config: TransactionalConfig) -> Result<Box<dyn Transactional>> {
        let id = config.transactional_id.clone();
        let inner = self.0.alive(self.0.inner.transactional(config)).await?;
        self.0.ids.lock().insert(id);
        let watch = Arc::clone(&self.0);
        let inner = Arc::new(tokio::sync::Mutex::new(inner));
        Ok(Box::new(WatchedTransactional { watch, inner, records: Vec::new(), commits: Vec::new() }))
    }
    async fn consumer(&self, config: ConsumerConfig) -> Result<Arc<dyn Consumer>> {
        let inner = self.0.alive(self.0.inner.consumer(config)).await?;
        let consumer = Arc::new(WatchedConsumer { watch: Arc::clone(&self.0), inner: Mutex::new(Some(inner)) });
        let (weak, crashed) = (Arc::downgrade(&consumer), self.0.crashed.subscribe());
        tokio::spawn(async move {
            is_true(crashed).await;
            if let Some(consumer) = weak.upgrade() {
                // Dropping it ends its membership without a commit.
                drop(consumer.inner.lock().take());
            }
        });
        Ok(consumer)
    }
}

struct WatchedProducer {
    watch: Arc<Watch>,
    inner: Arc<dyn Producer>,
}

/// Whose record it is: the input's document, and the output's own id.
struct Whose {
    root: String,
    output: String,
    dead: bool,
}

#[async_trait]
impl Producer for WatchedProducer {
    async fn send(&self, records: Vec<OutgoingRecord>) -> Result<Receipt> {
        let watch = &self.watch;
        if watch.is_crashed() {
            pending::<()>().await;
        }
        watch.strike("send", |faults| &mut faults.sends)?;
        // What each record is to be reported as, before it is stored or after.
        let (mut refused, mut lost, mut whose, mut taken) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for record in records {
            let dead = record.topic == watch.dead_letters;
            let size = size::of_record(record.key.as_deref(), record.value.as_deref(), &record.headers);
            whose.push(Whose::of(&record, watch));
            let refusal = if !dead && size > watch.late_limit {
                Err(Error::RecordTooLarge { topic: record.topic.clone(), size, limit: watch.late_limit })
            } else {
                watch.strike("acknowledge", |faults| &mut faults.acks)
            };
            lost.push(match &refusal {
                Ok(()) => watch.strike("acknowledge", |faults| &mut faults.lost_acks).err(),
                Err(_) => None,
            });
            if refusal.is_ok() {
                taken.push(record);
            }
            refused.push(refusal.err());
        }
        let receipt = watch.alive(self.inner.send(taken)).await?;
        let watch = Arc::clone(watch);
        Ok(Receipt::new(
            async move {
                let mut stored = receipt.await.into_iter();
                watch.alive(is_true(watch.free.subscribe())).await;
                let mut reports = Vec::new();
                for ((refused, lost), whose) in refused.into_iter().zip(lost).zip(whose) {
                    let report = match refused {
                        Some(error) => Err(error),
                        None => stored.next().unwrap(),
                    };
                    let report = match (report, lost) {
                        (Ok(_), Some(error)) => Err(error),
                        (report, _) => report,
                    };
                    if report.is_ok() {
                        whose.acknowledged(&watch);
                    }
                    reports.push(report);
                }
                reports
            }
            .boxed(),
        ))
    }

    async fn flush(&self, timeout: Duration) -> Result<usize> {
        self.watch.alive(self.inner.flush(timeout)).await
    }
}

/// Tells the model of a transaction when it is there, all at once.
struct WatchedTransactional {
    watch: Arc<Watch>,
    /// Shared with a task that commits, which ends even if nobody waits for it.
    inner: Arc<tokio::sync::Mutex<Box<dyn Transactional>>>,
    records: Vec<Whose>,
    commits: Vec<Commit>,
}

#[async_trait]
impl Transactional for WatchedTransactional {
    async fn begin(&mut self) -> Result<()> {
        self.records.clear();
        self.commits.clear();
        let watch = Arc::clone(&self.watch);
        watch.alive(async { self.inner.lock().await.begin().await }).await
    }

    async fn send(&mut self, records: Vec<OutgoingRecord>) -> Result<()> {
        let watch = Arc::clone(&self.watch);
        watch.strike("send", |faults| &mut faults.sends)?;
        watch.strike("send", |faults| &mut faults.acks)?;
        for record in &records {
            let dead = record.topic == watch.dead_letters;
            let size = size::of_record(record.key.as_deref(), record.value.as_deref(), &record.headers);
            if !dead && size > watch.late_limit {
                return Err(Error::RecordTooLarge { topic: record.topic.clone(), size, limit: watch.late_limit });
            }
            self.records.push(Whose::of(record, &watch));
        }
        watch.alive(async { self.inner.lock().await.send(records).await }).await
    }

    async fn send_offsets(&mut self, commits: Vec<Commit>, member: &GroupMetadata) -> Result<()> {
        let watch = Arc::clone(&self.watch);
        watch.strike("commit", |faults| &mut faults.commits)?;
        self.commits.extend(commits.iter().cloned());
        watch.alive(async { self.inner.lock().await.send_offsets(commits, member).await }).await
    }

    async fn commit(&mut self) -> Result<Vec<Delivered>> {
        let watch = Arc::clone(&self.watch);
        watch.strike("transaction", |faults| &mut faults.transactions)?;
        watch.alive(is_true(watch.free.subscribe())).await;
        let (inner, told) = (Arc::clone(&self.inner), Arc::clone(&watch));
        let (records, commits) = (std::mem::take(&mut self.records), std::mem::take(&mut self.commits));
        let committing = tokio::spawn(async move {
            let delivered = inner.lock().await.commit().await?;
            told.tell(&records, &commits);
            Ok(delivered)
        });
        let delivered = watch.alive(committing).await.unwrap()?;
        let mut faults = watch.faults.lock();
        let lost = std::mem::take(&mut faults.lost_acks.0)
            + std::mem::take(&mut faults.lost_commits)
            + std::mem::take(&mut faults.lost_transactions);
        if lost > 0 {
            return Err(Error::Injected { operation: "transaction", retryable: true });
        }
        Ok(delivered)
    }

    async fn abort(&mut self) -> Result<()> {
        let watch = Arc::clone(&self.watch);
        watch.alive(async { self.inner.lock().await.abort().await }).await
    }
}

impl Watch {
    /// A transaction is there.
    fn tell(&self, records: &[Whose], commits: &[Commit]) {
        for whose in records {
            whose.acknowledged(self);
        }
        for commit in commits {
            let beyond: Vec<i64> = progress::decode(commit.offset, &commit.metadata).into_iter().flatten().collect();
            self.world.commits_exactly(&self.instance, commit.source.partition, commit.offset, &beyond);
            self.world.committed(commit.source.partition, commit.offset);
        }
    }
}

impl Whose {
    fn of(record: &OutgoingRecord, watch: &Watch) -> Self {
        let output = record.headers.get_str(DOCUMENT_ID).unwrap_or_default().to_owned();
        let root = output.split('#').next().unwrap_or_default().to_owned();
        if record.headers.get_str(SOURCE_PARTITION).is_none() || record.headers.get_str(SOURCE_OFFSET).is_none() {
            watch.world.violated(format!("{output} does not say where it was piped from"));
        }
        Self { root, output, dead: record.topic == watch.dead_letters }
    }

    fn acknowledged(&self, watch: &Watch) {
        if self.dead {
            watch.world.was_written(&self.root);
            watch.world.was_given_up(&self.root);
        } else {
            watch.world.was_acknowledged(&self.root, &self.output);
        }
    }
}

struct WatchedConsumer {
    watch: Arc<Watch>,
    inner: Mutex<Option<Arc<dyn Consumer>>>,
}

impl WatchedConsumer {
    /// The consumer; whoever holds it when the instance crashes must let it go.
    async fn inner(&self) -> Arc<dyn Consumer> {
        let inner = self.inner.lock().clone();
        match inner {
            Some(inner) if !self.watch.is_crashed() => inner,
            _ => pending().await,
        }
    }
}

#[async_trait]
impl Consumer for WatchedConsumer {
    async fn next(&self) -> Result<Event> {
        let watch = &self.watch;
        watch.strike("read", |faults| &mut faults.reads)?;
        let inner = self.inner().await;
        let event = watch.alive(async move { inner.next().await }).await?;
        if let Event::Records(batch) = &event
            && batch.source.topic == watch.input
        {
            for record in &batch.records {
                let id = record.headers.get_str(DOCUMENT_ID).unwrap_or_default();
                watch.world.was_read((batch.source.partition, record.offset), id);
            }
        }
        Ok(event)
    }

    async fn commit(&self, commits: Vec<Commit>) -> Result<()> {
        let watch = &self.watch;
        let inner = self.inner().await;
        for commit in &commits {
            let beyond: Vec<i64> = progress::decode(commit.offset, &commit.metadata).into_iter().flatten().collect();
            watch.world.commits(&watch.instance, commit.source.partition, commit.offset, &beyond);
        }
        watch.strike("commit", |faults| &mut faults.commits)?;
        let written: Vec<_> = commits.iter().map(|commit| (commit.source.partition, commit.offset)).collect();
        watch.alive(async move { inner.commit(commits).await }).await?;
        for (partition, offset) in written {
            watch.world.committed(partition, offset);
        }
        let lost = &mut watch.faults.lock().lost_commits;
        if *lost > 0 {
            *lost -= 1;
            return Err(Error::Injected { operation: "commit", retryable: true });
        }
        Ok(())
    }

    fn pause(&self, partitions: &[TopicPartition]) {
        if let Some(inner) = &*self.inner.lock() {
            inner.pause(partitions);
        }
    }
    fn resume(&self, partitions: &[TopicPartition]) {
        if let Some(inner) = &*self.inner.lock() {
            inner.resume(partitions);
        }
    }
    async fn seek(&self, partition: &TopicPartition, to: Start) -> Result<()> {
        let inner = self.inner().await;
        self.watch.alive(async move { inner.seek(partition, to).await }).await
    }
    fn positions(&self) -> BTreeMap<TopicPartition, i64> {
        self.inner.lock().as_ref().map(|inner| inner.positions()).unwrap_or_default()
    }
    fn known_ends(&self) -> BTreeMap<TopicPartition, i64> {
        self.inner.lock().as_ref().map(|inner| inner.known_ends()).unwrap_or_default()
    }
    fn group_metadata(&self) -> Option<GroupMetadata> {
        self.inner.lock().as_ref().and_then(|inner| inner.group_metadata())
    }
    async fn close(&self) -> Result<()> {
        let inner = self.inner().await;
        self.watch.alive(async move { inner.close().await }).await
    }
}
