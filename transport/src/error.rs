//! What can go wrong with a log, and whether trying again may help.

use std::path::PathBuf;
use std::time::Duration;

use pipedoc_model::names::Topic;
use pipedoc_model::problem::Problems;

use crate::log::TopicPartition;

/// Result of an operation on a log.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Cause of an error, shared so that errors can be reported to many.
pub type Cause = std::sync::Arc<dyn std::error::Error + Send + Sync>;

/// What went wrong.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The topic does not exist.
    #[error("topic {topic} does not exist")]
    UnknownTopic {
        /// The topic.
        topic: Topic,
    },
    /// The topic has no such partition.
    #[error("{partition} does not exist")]
    UnknownPartition {
        /// The partition.
        partition: TopicPartition,
    },
    /// A topic cannot lose partitions.
    #[error("topic {topic} has {found} partitions and cannot shrink to {wanted}")]
    PartitionsShrink {
        /// The topic.
        topic: Topic,
        /// How many it has.
        found: i32,
        /// How many it was to have.
        wanted: i32,
    },
    /// The record is larger than its topic takes.
    #[error("a record of {size} bytes is too large for topic {topic}, which takes {limit}; a claim would carry it")]
    RecordTooLarge {
        /// The topic.
        topic: Topic,
        /// Size of an uncompressed v2 batch that holds it alone.
        size: usize,
        /// The topic's `max.message.bytes`.
        limit: usize,
    },
    /// The metadata of a commit is longer than 4,096 bytes.
    #[error("commit metadata of {size} bytes is too long for {partition}; 4096 fit")]
    MetadataTooLarge {
        /// The partition.
        partition: TopicPartition,
        /// Its size.
        size: usize,
    },
    /// Somebody else has taken this member's or producer's place.
    #[error("{who} was fenced: a newer owner has taken its place")]
    Fenced {
        /// The group's member or the transactional id.
        who: String,
    },
    /// The transaction holds more than a log buffers.
    #[error("a transaction of more than {limit} bytes is too large for {who}; commit more often")]
    TransactionTooLarge {
        /// The transactional id.
        who: String,
        /// Bytes that a transaction may hold.
        limit: usize,
    },
    /// A group's offsets cannot be set from outside while it has members.
    #[error("group {group} has {members} members; stop them first")]
    GroupNotEmpty {
        /// The group.
        group: String,
        /// How many members it has.
        members: usize,
    },
    /// The call does not fit the state of the object it was made on.
    #[error("{operation} is not possible: {reason}")]
    Misuse {
        /// What was called.
        operation: &'static str,
        /// Why it is not possible.
        reason: &'static str,
    },
    /// The log was closed.
    #[error("the {what} is closed")]
    Closed {
        /// What was closed.
        what: &'static str,
    },
    /// A topic that is read does not exist; it is awaited.
    #[error("topic {topic} does not exist; reading goes on when it is there")]
    Awaited {
        /// The topic.
        topic: Topic,
    },
    /// The log could not be reached, for now.
    #[error("{operation} on {target} did not succeed within {waited:?}")]
    TimedOut {
        /// What was tried.
        operation: &'static str,
        /// Where.
        target: String,
        /// For how long.
        waited: Duration,
    },
    /// No broker of the cluster answers, for now.
    #[error("{operation}: {address} is out of reach for {} s: {reason}", since.as_secs())]
    Unreachable {
        /// What was tried.
        operation: &'static str,
        /// Where: the addresses given.
        address: String,
        /// For how long nothing has answered.
        since: Duration,
        /// What the last attempt to connect met.
        reason: String,
    },
    /// A client does not recover, although the cluster answers others.
    #[error("{who} {what} for {} s, while the cluster answers others; a new client goes on from the committed place", since.as_secs())]
    Stalled {
        /// The client.
        who: String,
        /// What it fails at: `has had no connection`, `has asked for no records`,
        /// `could not commit`.
        what: &'static str,
        /// For how long.
        since: Duration,
    },
    /// The cluster does not accept who this is.
    #[error("{address} does not accept the credentials: {reason}")]
    Authentication {
        /// Where: the addresses given.
        address: String,
        /// What the broker said.
        reason: String,
    },
    /// The cluster does not allow this to who this is.
    #[error("{operation} is not allowed: the principal needs the right {right} on {resource}")]
    Unauthorized {
        /// What was tried.
        operation: &'static str,
        /// The operation of Kafka's access lists that is missing.
        right: &'static str,
        /// On what.
        resource: Resource,
    },
    /// The brokers are too old, or do not do this.
    #[error("{operation}: the brokers at {address} do not support it; {needs}")]
    UnsupportedBroker {
        /// What was tried.
        operation: &'static str,
        /// Where.
        address: String,
        /// What it needs.
        needs: &'static str,
    },
    /// Settings of the log's client that cannot be used.
    #[error("settings cannot be used")]
    Settings {
        /// All that is wrong with them.
        #[source]
        source: Problems,
    },
    /// The log's file cannot be used.
    #[error("log file {}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what can be done.
        problem: FileProblem,
        /// The cause, when there is one.
        #[source]
        source: Option<Cause>,
    },
    /// The log's client or database reported something else.
    #[error("{operation} on {target} failed")]
    Backend {
        /// What was tried.
        operation: &'static str,
        /// Where: a file, a topic, a group, addresses.
        target: String,
        /// Whether trying again may help.
        retryable: bool,
        /// The cause.
        #[source]
        source: Cause,
    },
    /// A fault that a test asked for.
    #[error("injected fault in {operation}")]
    Injected {
        /// Where it struck.
        operation: &'static str,
        /// Whether it pretends to be passing.
        retryable: bool,
    },
}

/// What access lists speak of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Resource {
    /// A topic.
    Topic(Topic),
    /// Some topic; which one was not told.
    SomeTopic,
    /// A consumer group.
    Group(String),
    /// A transactional id.
    TransactionalId(String),
    /// The cluster as a whole.
    Cluster,
}

impl std::fmt::Display for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Topic(topic) => write!(f, "topic {topic}"),
            Self::SomeTopic => f.write_str("the topic"),
            Self::Group(group) => write!(f, "group {group}"),
            Self::TransactionalId(id) => write!(f, "transactional id {id}"),
            Self::Cluster => f.write_str("the cluster"),
        }
    }
}

/// What can be wrong with a log's file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileProblem {
    /// It is something else.
    #[error("it is not a PipeDoc log; give another path or move it away")]
    NotALog,
    /// It was written by a newer version of PipeDoc.
    #[error("its format {found} is newer than this version knows ({known}); use a newer pipedoc")]
    TooNew {
        /// Its format.
        found: i64,
        /// The newest format known here.
        known: i64,
    },
    /// It cannot be written.
    #[error("it cannot be written; check its permissions and those of its folder")]
    ReadOnly,
    /// There is no room.
    #[error("its disk is full; nothing that was acknowledged is lost, and it goes on when there is room")]
    Full,
    /// Its content is damaged.
    #[error(
        "it is damaged (`pipedoc doctor` says where); move it and its -wal and -shm files away, and what was not finished is sent anew"
    )]
    Corrupt,
    /// Somebody has locked it for too long.
    #[error("another program holds a lock on it")]
    Locked,
    /// It cannot be opened.
    #[error("it cannot be opened; check that its folder exists and may be entered")]
    CannotOpen,
}

impl Error {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::TimedOut { .. } | Self::Unreachable { .. } | Self::Awaited { .. } => true,
            Self::File { problem, .. } => matches!(problem, FileProblem::Full | FileProblem::Locked),
            Self::Backend { retryable, .. } | Self::Injected { retryable, .. } => *retryable,
            Self::UnknownTopic { .. }
            | Self::UnknownPartition { .. }
            | Self::PartitionsShrink { .. }
            | Self::RecordTooLarge { .. }
            | Self::MetadataTooLarge { .. }
            | Self::Fenced { .. }
            | Self::TransactionTooLarge { .. }
            | Self::Authentication { .. }
            | Self::Stalled { .. }
            | Self::Unauthorized { .. }
            | Self::UnsupportedBroker { .. }
            | Self::Settings { .. }
            | Self::GroupNotEmpty { .. }
            | Self::Misuse { .. }
            | Self::Closed { .. } => false,
        }
    }
}
