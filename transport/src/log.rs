//! The log contract: topics, producers, consumers in groups, transactions.
//!
//! Everything above this module works on any log that keeps these promises:
//! `memory`, `sqlite` and `kafka` do, and `conformance` checks them. The words
//! are Kafka's. What the contract demands is what librdkafka can give: rebalances
//! happen between two calls of [`Consumer::next`], a revoked partition may still
//! be committed until its [`Revocation`] is dropped, and nothing borrowed from
//! the log outlives a call.
//!
//! ```text
//! Log ── ensure_topic, describe, offsets …        (administration)
//!  ├── producer(..)      ─▶ Producer      ── send(batch) ─▶ Receipt ─▶ reports
//!  ├── transactional(..) ─▶ Transactional ── begin, send, send_offsets, commit | abort
//!  └── consumer(..)      ─▶ Consumer      ── next() ─▶ Event::{Assigned, Records, EndOfPartition, Revoked, Lost}
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pipedoc_model::headers::Headers;
use pipedoc_model::names::Topic;

pub use crate::error::{Error, Result};

/// A partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic.
    pub topic: Topic,
    /// The partition, from 0.
    pub partition: i32,
}

impl TopicPartition {
    /// Names a partition.
    #[must_use]
    pub fn new(topic: Topic, partition: i32) -> Self {
        Self { topic, partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.topic, self.partition)
    }
}

/// A record read from a log. Its parts share the memory of the batch it came in.
#[derive(Debug, Clone)]
pub struct Record {
    /// Offset within the partition. Offsets grow, with gaps (control records,
    /// compaction).
    pub offset: i64,
    /// Milliseconds since the Unix epoch, as the producer set it.
    pub timestamp: i64,
    /// The key; none is not the same as an empty one.
    pub key: Option<Bytes>,
    /// The value; none is a tombstone, which is not the same as an empty one.
    pub value: Option<Bytes>,
    /// The headers, in order.
    pub headers: Headers,
}

impl Record {
    /// Bytes of its key, value and headers.
    #[must_use]
    pub fn bytes(&self) -> usize {
        bytes(self.key.as_ref(), self.value.as_ref(), &self.headers)
    }
}

fn bytes(key: Option<&Bytes>, value: Option<&Bytes>, headers: &Headers) -> usize {
    key.map_or(0, Bytes::len) + value.map_or(0, Bytes::len) + headers.bytes()
}

/// Records of one partition, in order of offset; never empty.
#[derive(Debug, Clone)]
pub struct RecordBatch {
    /// Where they come from.
    pub source: TopicPartition,
    /// The records.
    pub records: Vec<Record>,
}

/// A record to be written.
#[derive(Debug, Clone)]
pub struct OutgoingRecord {
    /// Topic to write to.
    pub topic: Topic,
    /// Partition; none: by the key as [`pipedoc_model::partition::for_key`]
    /// computes it, and any partition when there is no key.
    pub partition: Option<i32>,
    /// Milliseconds since the Unix epoch; none: now.
    pub timestamp: Option<i64>,
    /// The key.
    pub key: Option<Bytes>,
    /// The value; none writes a tombstone.
    pub value: Option<Bytes>,
    /// The headers.
    pub headers: Headers,
}

impl OutgoingRecord {
    /// A record with a key and a value, partitioned by its key, without headers.
    #[must_use]
    pub fn new(topic: Topic, key: Option<Bytes>, value: Option<Bytes>) -> Self {
        Self { topic, partition: None, timestamp: None, key, value, headers: Headers::new() }
    }

    /// Bytes of its key, value and headers.
    #[must_use]
    pub fn bytes(&self) -> usize {
        bytes(self.key.as_ref(), self.value.as_ref(), &self.headers)
    }

    /// Bytes of several.
    #[must_use]
    pub fn bytes_of(records: &[Self]) -> usize {
        records.iter().map(Self::bytes).sum()
    }
}

/// Where an acknowledged record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivered {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Its timestamp.
    pub timestamp: i64,
}

/// One result for each record of a batch, in the batch's order.
pub type Reports = Vec<Result<Delivered>>;

/// Resolves when the log has acknowledged a batch, or given up on it.
///
/// Dropping it takes nothing back: the records are on their way all the same.
#[must_use = "a record whose receipt is not awaited may be lost unnoticed"]
pub struct Receipt(futures::future::BoxFuture<'static, Reports>);

impl Receipt {
    /// Makes a receipt of a future.
    pub fn new(future: impl Future<Output = Reports> + Send + 'static) -> Self {
        Self(Box::pin(future))
    }

    /// A receipt that is settled already.
    pub fn ready(reports: Reports) -> Self {
        Self::new(std::future::ready(reports))
    }
}

impl Future for Receipt {
    type Output = Reports;
    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Reports> {
        self.0.as_mut().poll(cx)
    }
}

/// What a topic is to be. Settings that are `None` are the log's own and are
/// left as they are on a topic that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec {
    /// Its name.
    pub topic: Topic,
    /// How many partitions, at least 1. Partitions only grow.
    pub partitions: i32,
    /// How many replicas; none: the cluster's default. Ignored by embedded logs.
    pub replication: Option<i32>,
    /// What may be removed from it.
    pub settings: TopicSettings,
}

/// Settings of a topic, named as Kafka's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TopicSettings {
    /// `cleanup.policy=compact`: only the newest record of each key is kept,
    /// and tombstones for a while.
    pub compact: Option<bool>,
    /// `retention.ms`; -1: for ever.
    pub retention_ms: Option<i64>,
    /// `retention.bytes` of each partition; -1: without bound.
    pub retention_bytes: Option<i64>,
    /// `max.message.bytes`: how large an uncompressed v2 batch with the record
    /// alone may be; see [`crate::size::of_record`]. Default 1,048,588.
    pub max_message_bytes: Option<i32>,
}

/// A topic as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicInfo {
    /// Its name.
    pub topic: Topic,
    /// How many partitions it has.
    pub partitions: i32,
    /// Its settings, all known.
    pub settings: TopicSettings,
}

/// Ends of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// Offset of the first record still there.
    pub start: i64,
    /// Offset that the next record will have (the last stable offset: records of
    /// open transactions are not counted).
    pub end: i64,
}

/// A group's committed place in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Offset of the first record that is not done.
    pub offset: i64,
    /// Text kept beside it, at most 4,096 bytes; empty when there is none.
    pub metadata: String,
}

/// A place to commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The partition.
    pub source: TopicPartition,
    /// Offset of the first record that is not done.
    pub offset: i64,
    /// Text to keep beside it, at most 4,096 bytes.
    pub metadata: String,
}

/// Where reading begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the first record still there.
    Earliest,
    /// After the last record. In a group this holds for what was there when the
    /// group's first member joined; topics and partitions that came later, and
    /// those of which nothing is committed otherwise, begin at their start.
    Latest,
    /// At this offset; one that retention has overtaken: at the first record
    /// still there, with an [`Event::OffsetsGone`].
    At(i64),
}

/// What a consumer reads.
#[derive(Debug, Clone)]
pub enum Subscription {
    /// As a member of a group: partitions of these topics and of all topics,
    /// present or to come, whose whole name matches one of these patterns
    /// (internal topics never do, see [`Topic::is_internal`]), divided among
    /// the group's members. Patterns are looked up every 5 s at the latest.
    Group {
        /// The group.
        group: String,
        /// Topics by name. One that does not exist yet, or not any more, is awaited;
        /// on Kafka that is told as [`Error::Awaited`].
        topics: Vec<Topic>,
        /// Topics by pattern.
        patterns: Vec<regex::Regex>,
        /// Where a partition begins in which the group has no offset.
        start: Start,
    },
    /// On its own, outside any group: just these partitions, all at once.
    /// Such a consumer cannot commit.
    Assigned(Vec<(TopicPartition, Start)>),
}

/// How a consumer is made.
#[derive(Clone)]
pub struct ConsumerConfig {
    /// What it reads.
    pub subscription: Subscription,
    /// Name of the member, for people; need not be unique.
    pub client_id: String,
    /// A member that is not heard of for so long loses its partitions. Default 6 s
    /// on the embedded logs, 15 s on Kafka. On the sqlite log a process that has
    /// ended is noticed sooner.
    pub session_timeout: Option<Duration>,
    /// A member that does not call `next` for so long leaves the group and
    /// loses its partitions. Default 5 min.
    pub max_poll_interval: Duration,
    /// A batch holds at most so many records. Default 500.
    pub max_records: usize,
    /// A batch holds at most so many bytes, but at least one record. Default 1 MiB.
    pub max_bytes: usize,
    /// Further settings of the log's client, by its own names. Unknown to
    /// embedded logs, which ignore them.
    pub settings: BTreeMap<String, String>,
}

impl ConsumerConfig {
    /// A consumer with the defaults.
    #[must_use]
    pub fn new(client_id: impl Into<String>, subscription: Subscription) -> Self {
        Self {
            subscription,
            client_id: client_id.into(),
            session_timeout: None,
            max_poll_interval: Duration::from_secs(300),
            max_records: 500,
            max_bytes: 1 << 20,
            settings: BTreeMap::new(),
        }
    }
}

/// How a producer is made.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ProducerConfig {
    /// Name of the client, for people.
    pub client_id: String,
    /// Further settings of the log's client, by its own names.
    pub settings: BTreeMap<String, String>,
}

/// How a transactional producer is made.
#[derive(Clone)]
pub struct TransactionalConfig {
    /// Its identity. A new producer of the same id fences the one before it and
    /// aborts what that left open.
    pub transactional_id: String,
    /// A transaction open for so long is aborted by the log. Default 15 s.
    pub timeout: Duration,
    /// Further settings of the log's client, by its own names.
    pub settings: BTreeMap<String, String>,
}

impl TransactionalConfig {
    /// A transactional producer with the defaults.
    #[must_use]
    pub fn new(transactional_id: impl Into<String>) -> Self {
        Self { transactional_id: transactional_id.into(), timeout: Duration::from_secs(15), settings: BTreeMap::new() }
    }
}

/// A partition that a consumer was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignedPartition {
    /// The partition.
    pub source: TopicPartition,
    /// What the group had committed; reading begins there.
    pub committed: Option<Committed>,
    /// Where reading begins.
    pub position: i64,
}

/// What a consumer learns.
#[derive(Debug)]
pub enum Event {
    /// These partitions are the consumer's from now on.
    Assigned(Vec<AssignedPartition>),
    /// Records, at most one batch of one partition at a time.
    Records(RecordBatch),
    /// Every record of the partition was handed out; it ends here for now.
    /// Comes again each time the end is reached anew.
    EndOfPartition {
        /// The partition.
        source: TopicPartition,
        /// Offset after all that was handed out, counting control records.
        position: i64,
    },
    /// These partitions go to another member once the revocation is dropped.
    /// Until then they may be committed; no more of their records come.
    Revoked(Revocation),
    /// These partitions belong to somebody else already. Nothing of them can be
    /// committed.
    Lost(Vec<TopicPartition>),
    /// The place where reading was to go on is gone; it goes on at `resumed_at`.
    OffsetsGone {
        /// The partition.
        source: TopicPartition,
        /// Where it was to go on.
        wanted: i64,
        /// Where it goes on.
        resumed_at: i64,
    },
}

/// Holds partitions back from their next owner until it is dropped.
///
/// Held for longer than the session timeout allows, the partitions may be
/// taken; later commits then fail as fenced.
#[derive(Debug)]
pub struct Revocation {
    /// The partitions that are taken away.
    pub partitions: Vec<TopicPartition>,
    /// Dropped with the revocation; the log waits for that.
    release: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Revocation {
    /// A revocation, and what resolves (with an error) when it is dropped.
    #[must_use]
    pub fn new(partitions: Vec<TopicPartition>) -> (Self, tokio::sync::oneshot::Receiver<()>) {
        let (release, released) = tokio::sync::oneshot::channel();
        (Self { partitions, release: Some(release) }, released)
    }

    /// Gives the partitions up.
    pub fn release(mut self) {
        drop(self.release.take());
    }
}

/// Identity of a group's member at a moment, to fence transactions with.
/// Opaque: only the log that made it can read it.
#[derive(Clone)]
pub struct GroupMetadata(pub Arc<dyn std::any::Any + Send + Sync>);

impl fmt::Debug for GroupMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GroupMetadata")
    }
}

/// A log.
#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// Where it is, for people: a file or addresses.
    fn describe(&self) -> String;

    /// Which log it is, whichever way it is reached: two processes with the same
    /// answer work on the same records. Default: [`Log::describe`].
    async fn identity(&self) -> Result<String> {
        Ok(self.describe())
    }

    /// Makes a topic, or grows and changes the one that exists. Shrinking it is
    /// an error. Returns it as it is then.
    async fn ensure_topic(&self, spec: &TopicSpec) -> Result<TopicInfo>;

    /// Removes a topic with all that lies in it. Missing is no error.
    async fn delete_topic(&self, topic: &Topic) -> Result<()>;

    /// A topic as it is; `None` when it does not exist.
    async fn topic(&self, topic: &Topic) -> Result<Option<TopicInfo>>;

    /// Names of all topics, sorted.
    async fn topics(&self) -> Result<Vec<Topic>>;

    /// Ends of all partitions of a topic, in order. Unknown topic: an error.
    async fn ends(&self, topic: &Topic) -> Result<Vec<Ends>>;

    /// For each partition of a topic the offset of the first record whose
    /// timestamp is `millis` or later; the end where there is none.
    async fn offsets_at(&self, topic: &Topic, millis: i64) -> Result<Vec<i64>>;

    /// Removes all records of a partition before an offset, as retention does.
    ///
    /// A log that cannot do it answers with [`Error::Misuse`], as this default does.
    async fn delete_records(&self, source: &TopicPartition, before: i64) -> Result<()> {
        let _ = (source, before);
        Err(Error::Misuse { operation: "delete_records", reason: "this log keeps its records" })
    }

    /// All that a group has committed. On Kafka the cost grows with the partitions
    /// of the cluster; see [`Log::group_offsets_of`].
    async fn group_offsets(&self, group: &str) -> Result<BTreeMap<TopicPartition, Committed>>;

    /// What a group has committed in some topics; one that does not exist has
    /// nothing.
    async fn group_offsets_of(&self, group: &str, topics: &[Topic]) -> Result<BTreeMap<TopicPartition, Committed>> {
        let mut committed = self.group_offsets(group).await?;
        committed.retain(|source, _| topics.contains(&source.topic));
        Ok(committed)
    }

    /// Sets a group's offsets from outside. An error while the group has members.
    async fn set_group_offsets(&self, group: &str, commits: &[Commit]) -> Result<()>;

    /// Makes a producer.
    async fn producer(&self, config: ProducerConfig) -> Result<Arc<dyn Producer>>;

    /// Makes a transactional producer, fencing the one before it of the same id.
    async fn transactional(&self, config: TransactionalConfig) -> Result<Box<dyn Transactional>>;

    /// Makes a consumer. Joining a group happens in the background; the first
    /// events tell of it.
    async fn consumer(&self, config: ConsumerConfig) -> Result<Arc<dyn Consumer>>;
}

/// Writes records. Shared freely; all calls may run at once.
#[async_trait]
pub trait Producer: Send + Sync + 'static {
    /// Takes records for writing, in order: of two records to one partition that
    /// are sent one after the other, the first has the lower offset.
    ///
    /// Waits while the producer has no room; returns when all are taken. The
    /// receipt tells what became of them. A record that can never be written
    /// (too large, unknown topic) is reported there as well, and does not keep
    /// the others from being written.
    async fn send(&self, records: Vec<OutgoingRecord>) -> Result<Receipt>;

    /// Waits until everything taken so far is settled, at most for `timeout`;
    /// gives the number of records that are still open.
    async fn flush(&self, timeout: Duration) -> Result<usize>;
}

/// Writes records and offsets, all or nothing.
///
/// At most one transaction is open at a time. An error in between fails the
/// transaction: only `abort` may follow. [`Error::Fenced`] ends the producer.
#[async_trait]
pub trait Transactional: Send {
    /// Begins a transaction.
    async fn begin(&mut self) -> Result<()>;

    /// Takes records into the transaction. Returns when the log has taken them
    /// (embedded logs buffer until the commit).
    async fn send(&mut self, records: Vec<OutgoingRecord>) -> Result<()>;

    /// The same for records that the caller keeps, to send them again should the
    /// transaction fail. A log that copies them anyway need not say how.
    async fn send_kept(&mut self, records: &[OutgoingRecord]) -> Result<()> {
        self.send(records.to_vec()).await
    }

    /// Adds a group's offsets to the transaction. They are refused as fenced, now
    /// or at the commit, when the member does not own the partitions any more.
    async fn send_offsets(&mut self, commits: Vec<Commit>, member: &GroupMetadata) -> Result<()>;

    /// Makes all of it visible at once. Gives where the records lie, in the
    /// order they were sent.
    async fn commit(&mut self) -> Result<Vec<Delivered>>;

    /// Undoes all of it. Readers never see the records.
    async fn abort(&mut self) -> Result<()>;
}

/// Reads records, alone or as a member of a group; always read committed.
///
/// One task calls `next`; the other calls may come from anywhere meanwhile.
/// Dropping a consumer leaves its group without a commit.
#[async_trait]
pub trait Consumer: Send + Sync + 'static {
    /// Waits for what comes next. Cancelling it loses nothing.
    ///
    /// An error that may be retried leaves the consumer usable; after any other,
    /// make a new one.
    async fn next(&self) -> Result<Event>;

    /// Writes the group's offsets. [`Error::Fenced`] when a partition is not this
    /// member's any more; then none of them was written on embedded logs, and
    /// those of other partitions may have been on Kafka.
    async fn commit(&self, commits: Vec<Commit>) -> Result<()>;

    /// Hands out no more records of these partitions until `resume`; membership
    /// and positions stay, and what was prefetched is kept. Cheap: this is how
    /// backpressure works. Partitions that are not owned are ignored.
    fn pause(&self, partitions: &[TopicPartition]);

    /// Takes `pause` back.
    fn resume(&self, partitions: &[TopicPartition]);

    /// Goes on at another place. After it returns, `next` gives no record of the
    /// partition from before the seek.
    async fn seek(&self, partition: &TopicPartition, to: Start) -> Result<()>;

    /// Offset after the last record handed out of each owned partition.
    fn positions(&self) -> BTreeMap<TopicPartition, i64>;

    /// Ends of the owned partitions as last heard of: cheap, may be a little old,
    /// and may lack partitions of which nothing was heard yet.
    fn known_ends(&self) -> BTreeMap<TopicPartition, i64>;

    /// This member at this moment, with the partitions that were handed out as
    /// assigned and not as lost since; `None` outside groups and before the first
    /// assignment.
    fn group_metadata(&self) -> Option<GroupMetadata>;

    /// Leaves the group and stops. Owned partitions are free at once; no
    /// `Revoked` is sent for them. Further calls of `next` fail as closed.
    async fn close(&self) -> Result<()>;
}
