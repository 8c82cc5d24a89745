//! What the memory log and the sqlite log share: groups by leases, the reading
//! side of a consumer, buffered transactions, and who is woken by what.
//!
//! Knows nothing of how records are stored: that is behind [`Backend`].

pub(crate) mod balance;
pub(crate) mod consumer;
pub(crate) mod hub;
mod membership;
pub(crate) mod outgoing;
pub(crate) mod owned;
pub(crate) mod patterns;
pub(crate) mod transaction;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use pipedoc_model::names::Topic;

use crate::log::{Commit, Committed, Delivered, Ends, OutgoingRecord, Record, Result, TopicPartition};
use hub::Hub;

/// Longest metadata of a commit, in bytes, as Kafka's default.
pub(crate) const METADATA_LIMIT: usize = 4096;

/// Session timeout of the embedded logs where none is given. With a heartbeat
/// every 1.5 s it leaves room for three missed ones, and moves a dead
/// process's partitions well within 10 s.
pub(crate) const SESSION_TIMEOUT: Duration = Duration::from_secs(6);

/// A member of a group; never used twice in one log.
pub(crate) type MemberId = i64;

/// How much one read may bring.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) records: usize,
    pub(crate) bytes: usize,
}

/// What a read brought.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// In order of offset; all at or after the offset asked for.
    pub(crate) records: Vec<Record>,
    /// The partition's ends at that moment.
    pub(crate) ends: Ends,
    /// Where the next read has to begin: the end when all was read.
    pub(crate) next: i64,
}

/// A partition that a member holds.
#[derive(Debug, Clone)]
pub(crate) struct Grant {
    pub(crate) source: TopicPartition,
    /// Grows with every change of owner; commits are checked against it.
    pub(crate) epoch: i64,
    /// Whether it is wanted by another member.
    pub(crate) wanted_away: bool,
    pub(crate) committed: Option<Committed>,
    pub(crate) ends: Ends,
}

/// Who joins a group.
#[derive(Debug, Clone)]
pub(crate) struct Joining {
    pub(crate) group: String,
    pub(crate) client_id: String,
    pub(crate) session_timeout: Duration,
    /// Whether a group that nobody was in before begins at the ends of what is
    /// there ([`Start::Latest`](crate::log::Start::Latest)). The ends are committed
    /// as the first member joins, so that later members, topics and partitions
    /// miss nothing.
    pub(crate) from_ends: bool,
}

/// A commit by the owner of a partition.
#[derive(Debug, Clone)]
pub(crate) struct OwnedCommit {
    pub(crate) commit: Commit,
    /// Epoch of the lease it is made under.
    pub(crate) epoch: i64,
}

/// Offsets of one member within a transaction.
#[derive(Debug, Clone)]
pub(crate) struct MemberOffsets {
    pub(crate) group: String,
    pub(crate) member: MemberId,
    pub(crate) commits: Vec<OwnedCommit>,
}

/// What [`GroupMetadata`](crate::log::GroupMetadata) of an embedded log holds.
#[derive(Debug)]
pub(crate) struct MemberSnapshot {
    pub(crate) group: String,
    pub(crate) member: MemberId,
    pub(crate) epochs: BTreeMap<TopicPartition, i64>,
}

/// Storage and coordination below a consumer and a transaction.
#[async_trait]
pub(crate) trait Backend: Send + Sync + 'static {
    /// Who is woken by changes.
    fn hub(&self) -> &Hub;

    /// Reads committed records from an offset on. The work begins with the call,
    /// so that it runs on while the result is not awaited.
    fn read(&self, source: &TopicPartition, from: i64, limits: Limits) -> BoxFuture<'static, Result<Fetched>>;

    /// Ends of one partition.
    async fn ends_of(&self, source: &TopicPartition) -> Result<Ends>;

    /// All topics with their numbers of partitions.
    async fn topic_sizes(&self) -> Result<BTreeMap<Topic, i32>>;

    /// Takes a new member into a group.
    async fn join(&self, joining: &Joining, topics: &BTreeSet<Topic>) -> Result<MemberId>;

    /// Says which topics a member wants and divides the partitions anew.
    async fn subscribe(&self, group: &str, member: MemberId, topics: &BTreeSet<Topic>) -> Result<()>;

    /// All that a member holds; `None` when it is no member any more.
    async fn grants(&self, group: &str, member: MemberId) -> Result<Option<Vec<Grant>>>;

    /// Gives partitions up, each with the epoch it was held under.
    async fn release(&self, group: &str, member: MemberId, partitions: &[(TopicPartition, i64)]) -> Result<()>;

    /// Leaves the group; what the member held is free at once.
    async fn leave(&self, group: &str, member: MemberId) -> Result<()>;

    /// Writes offsets if the member still holds all of the partitions.
    async fn commit(&self, offsets: MemberOffsets) -> Result<()>;

    /// Whether the sessions of this process are surely alive.
    fn session_is_fresh(&self) -> bool;

    /// Refuses a record that can never be written.
    async fn check(&self, records: &[OutgoingRecord]) -> Result<()>;

    /// Gives a transactional id to a new producer, fencing the one before it;
    /// returns the new epoch.
    async fn fence(&self, transactional_id: &str) -> Result<i64>;

    /// Writes records and offsets, all or nothing, if the epoch is the newest.
    async fn write(
        &self,
        transactional_id: &str,
        epoch: i64,
        records: Vec<OutgoingRecord>,
        offsets: Vec<MemberOffsets>,
    ) -> Result<Vec<Delivered>>;
}
