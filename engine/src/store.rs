//! The store contract: where configuration and control state lie.
//!
//! Small keys with values that are changed by check-and-set, a way to hear of
//! changes, and an inbox of pipeline texts that people edit. That is what a
//! folder with an SQLite file can do, and what Consul can do; `conformance.rs`
//! holds what every store must pass. What the keys mean is the business of
//! [`crate::catalog`].
//!
//! ```text
//! head                     the one value that all engines watch
//! revisions/<pipeline>/<n> immutable texts            modules/<module>/<n>  immutable registrations
//! controls/<pipeline>/<n>  immutable wishes           notes/<entry>         what became of an inbox entry
//! ```

#[cfg(feature = "conformance")]
pub mod conformance;
pub mod folder;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::sync::watch;

/// Result of an operation on a store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Cause of an error, shared so that errors can be kept for status.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// What can go wrong with a store.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Somebody else changed the value first.
    #[error("{key} was changed by somebody else")]
    Conflict {
        /// The key.
        key: Key,
    },
    /// A value is not what this version writes.
    #[error("{key} cannot be read; it may be of another version of PipeDoc")]
    Unreadable {
        /// The key.
        key: Key,
        /// What is wrong with it.
        #[source]
        source: Cause,
    },
    /// A newer version of PipeDoc wrote a value; what this one made of it would be wrong.
    #[error(
        "{key} was written by a newer version of PipeDoc (format {found}; this one knows {known}): run that version; until then this engine does not lead; what runs goes on"
    )]
    TooNew {
        /// The key.
        key: Key,
        /// Its format.
        found: u32,
        /// The newest format that is known here.
        known: u32,
    },
    /// Another engine leads by now: the write was not made.
    #[error("{key} was not written: this engine leads no more")]
    NotLeading {
        /// The key.
        key: Key,
    },
    /// A value is longer than the store can hold.
    #[error(
        "{key} is {size} bytes long; the store holds at most {limit} in a value: split the pipeline in two, or shorten it"
    )]
    TooLarge {
        /// The key.
        key: Key,
        /// Its size, in bytes.
        size: usize,
        /// The most there may be, in bytes.
        limit: usize,
    },
    /// The store does not answer.
    #[error("the configuration store at {address} {}; what runs goes on", silent(*.since))]
    Unreachable {
        /// Where it should be.
        address: String,
        /// Since when; none: since now.
        since: Option<SystemTime>,
        /// The cause.
        #[source]
        source: Cause,
    },
    /// The store lets others do that, but not us.
    #[error("{operation} {target} is not allowed ({message}); the token needs {right}")]
    Denied {
        /// What was tried.
        operation: &'static str,
        /// Where.
        target: String,
        /// What is missing.
        right: String,
        /// What the store said.
        message: String,
    },
    /// The inbox is not there. Nothing is concluded from that.
    #[error("{place} is missing; what runs goes on, and nothing is removed: restore it, or apply the pipelines again")]
    InboxMissing {
        /// Where it should be.
        place: String,
    },
    /// The inbox as a whole cannot be read. Nothing is concluded from that.
    #[error("pipeline folder {} cannot be read; what runs goes on", path.display())]
    Inbox {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: Cause,
    },
    /// An inbox entry cannot be written.
    #[error("{} cannot be written; check that its folder exists and may be written to", path.display())]
    InboxEntry {
        /// The entry's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The store's file cannot be used.
    #[error("control file {}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what can be done.
        problem: FileProblem,
        /// The cause.
        #[source]
        source: Option<Cause>,
    },
    /// The store reported something else.
    #[error("{operation} on {target} failed")]
    Backend {
        /// What was tried.
        operation: &'static str,
        /// Where.
        target: String,
        /// Whether trying again may help.
        retryable: bool,
        /// The cause.
        #[source]
        source: Cause,
    },
}

/// What can be wrong with a store's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FileProblem {
    /// It is something else.
    #[error("it is not PipeDoc's; give another data folder or move it away")]
    NotOurs,
    /// It was written by a newer version of PipeDoc.
    #[error("a newer version of PipeDoc wrote it; use that one")]
    TooNew,
    /// It cannot be written.
    #[error("it cannot be written; check its permissions and those of its folder")]
    ReadOnly,
    /// There is no room.
    #[error("its disk is full; it goes on when there is room")]
    Full,
    /// Somebody has locked it for too long.
    #[error("another program holds a lock on it")]
    Locked,
    /// Its content is damaged.
    #[error("it is damaged; move it away, and the pipelines in the folder are taken anew")]
    Corrupt,
    /// It cannot be opened.
    #[error("it cannot be opened; check that its folder exists and may be entered")]
    CannotOpen,
}

impl Error {
    /// Whether the same call may succeed later. After a conflict, look again first.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Conflict { .. }
            | Self::NotLeading { .. }
            | Self::Unreachable { .. }
            | Self::InboxMissing { .. }
            | Self::Inbox { .. } => true,
            Self::File { problem, .. } => matches!(problem, FileProblem::Full | FileProblem::Locked),
            Self::Backend { retryable, .. } => *retryable,
            Self::Unreadable { .. }
            | Self::TooNew { .. }
            | Self::InboxEntry { .. }
            | Self::TooLarge { .. }
            | Self::Denied { .. } => false,
        }
    }
}

/// That somebody gives no answer, as part of a sentence. The moment it began does not
/// change, so that what is said of it stays the same while it lasts.
pub(crate) fn silent(since: Option<SystemTime>) -> String {
    let since = since.and_then(|since| time::OffsetDateTime::from(since).replace_nanosecond(0).ok());
    let since = since.and_then(|since| since.format(&time::format_description::well_known::Rfc3339).ok());
    since.map_or_else(|| "does not answer".to_owned(), |since| format!("has not answered since {since}"))
}

/// An engine as it stands for leadership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Name of the process, unlike any other's.
    pub name: String,
    /// Where it serves, `HOST:PORT`, as others reach it.
    pub address: String,
}

impl Candidate {
    /// A candidate with a random name.
    #[must_use]
    pub fn new(address: impl Into<String>) -> Self {
        Self { name: uuid::Uuid::new_v4().to_string(), address: address.into() }
    }
}

/// An engine as the store's catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Where it serves, `HOST:PORT`.
    pub address: String,
    /// Whether it passes its health check.
    pub healthy: bool,
}

/// Whether this engine leads those that share its store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leadership {
    /// It leads; its writes carry the lease.
    Leads(Lease),
    /// Another one does, by its address, or none that is known.
    Follows(Option<String>),
    /// It can neither lead nor tell who does, for this reason.
    Hindered(String),
}

impl Leadership {
    /// The lease of an engine that leads.
    #[must_use]
    pub fn lease(&self) -> Option<&Lease> {
        match self {
            Self::Leads(lease) => Some(lease),
            Self::Follows(_) | Self::Hindered(_) => None,
        }
    }

    /// Tells it where it is news; what hinders an engine stands in its log as well.
    pub(crate) fn tell(self, to: &watch::Sender<Self>) {
        to.send_if_modified(|known| {
            let is_news = *known != self;
            if let (true, Self::Hindered(reason)) = (is_news, &self) {
                tracing::warn!("this engine can neither lead nor tell who does: {reason}; trying again");
            }
            *known = self;
            is_news
        });
    }
}

/// Proof of leading, checked by the store with every write that carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease(pub(crate) String);

/// Name of a value: parts joined by `/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// A key of its parts, which hold no `/`.
    #[must_use]
    pub fn new(parts: &[&str]) -> Self {
        Self(parts.join("/"))
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// State of a value at a moment; every change makes another one. Only good for
/// check-and-set, and never 0 (Consul's `ModifyIndex`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version(pub u64);

/// A value with its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// The text.
    pub text: String,
    /// Its version.
    pub version: Version,
}

/// What a value must be for a write to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Not there (Consul's check-and-set 0).
    Absent,
    /// Of this version.
    Is(Version),
    /// Anything.
    Anything,
}

/// A pipeline text as somebody left it in the inbox.
#[derive(Debug, Clone)]
pub struct InboxEntry {
    /// Name of the entry within the inbox: a file's name, a key's last part.
    pub name: String,
    /// Where it lies, for people: a path, a key.
    pub origin: String,
    /// The text, or why it cannot be read.
    pub text: std::result::Result<String, String>,
}

/// Where configuration and control state of one cluster lie.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Where it is, for people.
    fn describe(&self) -> String;

    /// Longest text of a value, in bytes; none: so long that it does not matter.
    fn value_limit(&self) -> Option<usize> {
        None
    }

    /// A value; `None` when it does not exist.
    async fn get(&self, key: &Key) -> Result<Option<Value>>;

    /// Writes a value of at most [`Store::value_limit`], which is 512 KiB or more, and
    /// gives its new version.
    /// [`Error::Conflict`] when it is not what was expected, [`Error::NotLeading`]
    /// when a lease is given that is over; then nothing is written.
    async fn put(&self, key: &Key, text: &str, expected: Expected, lease: Option<&Lease>) -> Result<Version>;

    /// Removes a value. Missing is no error. A lease as in [`Store::put`].
    async fn remove(&self, key: &Key, lease: Option<&Lease>) -> Result<()>;

    /// Keys that begin with `prefix` and `/`, without that, sorted.
    async fn list(&self, prefix: &Key) -> Result<Vec<String>>;

    /// Values whose keys begin with `prefix` and `/`, by the rest of the key, sorted.
    async fn read_all(&self, prefix: &Key) -> Result<Vec<(String, Value)>>;

    /// All entries of the inbox, by name. An inbox that is missing or cannot be
    /// read is [`Error::Inbox`], which is not the same as an empty one.
    async fn inbox(&self) -> Result<Vec<InboxEntry>>;

    /// Makes the inbox where a store needs that; called before the first head.
    async fn make_inbox(&self) -> Result<()> {
        Ok(())
    }

    /// Writes an entry of the inbox, whole or not at all, in the place of the text
    /// `replaces`; none: of no entry. [`Error::Conflict`] when another is there:
    /// somebody has edited it.
    async fn write_inbox(&self, name: &str, text: &str, replaces: Option<&str>) -> Result<()>;

    /// Removes an entry of the inbox that holds the text `removes`. Missing is no
    /// error; [`Error::Conflict`] when it holds another: somebody has edited it.
    async fn remove_inbox(&self, name: &str, removes: &str) -> Result<()>;

    /// Name of the entry that a pipeline gets when it has none yet.
    fn inbox_name(&self, pipeline: &str) -> String;

    /// Changes whenever the head or the inbox may have changed, also by other
    /// processes. It may miss one when machines break; so look also now and then.
    fn changes(&self) -> watch::Receiver<u64>;

    /// How often to look though nothing was heard. Default: 5 s.
    fn look_every(&self) -> Duration {
        Duration::from_secs(5)
    }

    /// Stands for leadership, and tells how that goes until the store is closed. Of all
    /// engines that share the store at most one leads.
    fn campaign(&self, candidate: Candidate) -> watch::Receiver<Leadership>;

    /// Engines in the store's catalog; none where it has no catalog.
    async fn engines(&self) -> Result<Vec<Peer>> {
        Ok(Vec::new())
    }

    /// Says whether this engine may lead, which it may at first. One that may not gives
    /// its leadership away, and stands for it again when it may.
    fn may_lead(&self, may: bool);

    /// Gives back what the engine holds, such as its leadership, within seconds.
    async fn close(&self);
}
