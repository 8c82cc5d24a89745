//! A log in one SQLite file, shared by any number of processes on a machine.
//!
//! ```text
//!  producers ─┐                                   ┌─ readers (a few connections) ◀─ consumers
//!  commits  ──┼─▶ writer thread ─▶ log.db (WAL) ──┤                                    ▲
//!  groups   ──┘        │                          └─ watcher thread ── wakes ──────────┘
//!                      └── rings log.db.bell ─────────────▲ (other processes)
//! ```
//!
//! **Files.** `log.db` holds everything; `-wal` and `-shm` are SQLite's own.
//! `.bell` is touched after each commit and watched by others; `.turn` and
//! `.bell` are locked in turn so that writing is fair; `.clean` is locked by who
//! cleans. The last three are empty or nearly so and may be removed while nothing
//! runs.
//!
//! **Tables.** `topics` and `partitions` (with the offset that comes next and
//! the transaction that last changed it); `records`, a rowid table with a unique
//! index on (partition, offset), which is much faster than one without rowids,
//! since large rows would spill; `groups`, `offsets`, `sessions`, `members`,
//! `leases`; `transactional` (id and epoch); `garbage` (what is to be removed);
//! `marks` (newest timestamp and time of writing, for each thousandth record);
//! `state` (number of the last transaction). `application_id` and `user_version`
//! mark the file; older files are brought to the newest version when they are
//! opened.
//!
//! **Size.** What retention, compaction or a removed topic leaves free is used
//! again; of more than that some is given back to the file system, see `clean`.
//!
//! **Writing.** One thread writes what all callers of the process want written,
//! gathered into as few transactions as possible, and answers them after the
//! commit.
//!
//! **Groups.** A handle has a session, a count of heartbeats that need no flush
//! of the disk; its consumers are members under it. One that does not beat while
//! somebody watches (see `judge`), or whose process is gone, is over, and whoever
//! notices divides the partitions anew. Each partition has a lease:
//!
//! ```text
//!   free ──▶ held (owner, epoch) ──another is to have it──▶ wanted away ──released──▶ free
//!                 └───────── owner left, or its session is over ──────────────────────▲
//! ```
//!
//! Commits and transactions check owner and epoch within the SQL transaction that
//! writes them, so a member that was away too long changes nothing.

mod backend;
mod bell;
mod clean;
mod compact;
pub mod doctor;
mod file;
mod groups;
mod headers;
mod judge;
mod liveness;
mod problem;
mod producer;
mod readers;
mod schema;
mod sessions;
mod topics;
mod turn;
mod tx;
mod watch;
mod writer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pipedoc_model::names::Topic;
use tokio::sync::Semaphore;

pub use file::Sync;

use crate::embedded::consumer::{Reader, check_metadata};
use crate::embedded::transaction::Buffered;
use crate::error::{Error, Result};
use crate::log::{
    Commit, Committed, Consumer, ConsumerConfig, Ends, Log, Producer, ProducerConfig, TopicInfo, TopicPartition,
    TopicSpec, Transactional, TransactionalConfig,
};
use bell::Bell;
use problem::Fault;
use readers::Readers;
use sessions::Session;
use writer::Writer;

/// After so long a member with the default session timeout is surely taken out
/// of its group if it is silent.
const SILENCE: Duration = Duration::from_secs(9);

/// How a log file is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// How much is surely on the disk when a write is acknowledged.
    pub sync: Sync,
}

/// A log in a file; clones share one handle.
#[derive(Clone)]
pub struct SqliteLog {
    backend: Arc<backend::Backend>,
}

/// What all users of a handle share.
struct Shared {
    path: PathBuf,
    writer: Writer,
    readers: Readers,
    bell: Arc<Bell>,
    session: Arc<Session>,
    /// Room for records that wait for the writer thread.
    room: Arc<Semaphore>,
}

impl SqliteLog {
    /// Opens a log file, making it if it is missing. Its folder must exist.
    ///
    /// # Errors
    /// [`Error::File`] when the file is something else, newer, damaged, locked,
    /// or cannot be written.
    pub async fn open(path: impl AsRef<Path>, options: Options) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let opened = tokio::task::spawn_blocking(move || Self::open_blocking(&path, options)).await;
        opened.map_err(|_| Error::Closed { what: "log" })?
    }

    fn open_blocking(path: &Path, options: Options) -> Result<Self> {
        file::prepare(path)?;
        // The working directory may change later.
        let path = &std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let failed = |source: std::io::Error| Error::Backend {
            operation: "open",
            target: path.display().to_string(),
            retryable: false,
            source: Arc::new(source),
        };
        let reader = file::reader(path).map_err(|error| problem::explain(path, "open", error))?;
        let seen = reader.query_row("SELECT sequence FROM state", [], |row| row.get(0));
        let seen = seen.map_err(|error| problem::explain(path, "open", error))?;
        let bell = Arc::new(Bell::open(path, seen).map_err(failed)?);
        let shared = Arc::new(Shared {
            path: path.clone(),
            writer: Writer::start(path, options.sync, bell.clone())?,
            readers: Readers::new(path),
            bell,
            session: Arc::new(Session::new()),
            room: Arc::new(Semaphore::new(producer::WAITING)),
        });
        let watch = watch::start(&shared).map_err(failed)?;
        Ok(Self { backend: Arc::new(backend::Backend { shared, _watch: watch }) })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared().path
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.backend.shared
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&rusqlite::Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T> {
        self.shared().readers.with(work).await
    }
}

#[async_trait]
impl Log for SqliteLog {
    fn describe(&self) -> String {
        self.shared().path.display().to_string()
    }

    /// The file itself, by whichever path it was opened.
    async fn identity(&self) -> Result<String> {
        use std::os::unix::fs::MetadataExt;
        let found = std::fs::metadata(&self.shared().path);
        Ok(found.map_or_else(|_| self.describe(), |file| format!("sqlite file {}-{}", file.dev(), file.ino())))
    }

    async fn ensure_topic(&self, spec: &TopicSpec) -> Result<TopicInfo> {
        let spec = spec.clone();
        self.shared().writer.call(true, move |tx| topics::ensure(tx, &spec)).await
    }

    async fn delete_topic(&self, topic: &Topic) -> Result<()> {
        let topic = topic.clone();
        self.shared().writer.call(true, move |tx| topics::remove(tx, &topic)).await
    }

    async fn topic(&self, topic: &Topic) -> Result<Option<TopicInfo>> {
        let topic = topic.clone();
        self.read(move |connection| Ok(topics::info(connection, &topic)?)).await
    }

    async fn topics(&self) -> Result<Vec<Topic>> {
        self.read(|connection| Ok(topics::sizes(connection)?.into_keys().collect())).await
    }

    async fn ends(&self, topic: &Topic) -> Result<Vec<Ends>> {
        let topic = topic.clone();
        self.read(move |connection| topics::ends(connection, &topic)).await
    }

    async fn offsets_at(&self, topic: &Topic, millis: i64) -> Result<Vec<i64>> {
        let topic = topic.clone();
        self.read(move |connection| {
            let partitions = topics::ends(connection, &topic)?.len() as i32;
            let sources: Vec<_> = (0..partitions).map(|n| TopicPartition::new(topic.clone(), n)).collect();
            readers::offsets_at(connection, &sources, millis)
        })
        .await
    }

    async fn delete_records(&self, source: &TopicPartition, before: i64) -> Result<()> {
        let source = source.clone();
        self.shared().writer.call(true, move |tx| topics::truncate(tx, &source, before)).await
    }

    async fn group_offsets(&self, group: &str) -> Result<BTreeMap<TopicPartition, Committed>> {
        let group = group.to_owned();
        self.read(move |connection| Ok(groups::offsets(connection, &group)?)).await
    }

    async fn set_group_offsets(&self, group: &str, commits: &[Commit]) -> Result<()> {
        check_metadata(commits)?;
        let began = Instant::now();
        loop {
            let (name, commits) = (group.to_owned(), commits.to_vec());
            let work = move |tx: &mut tx::Tx<'_>| {
                groups::expire_gone(tx)?;
                let members = groups::members(tx.sql(), &name)?;
                if members > 0 {
                    return Err(Error::GroupNotEmpty { group: name, members }.into());
                }
                for commit in &commits {
                    tx.partition(&commit.source)?;
                }
                groups::set_offsets(tx, &name, commits.iter())
            };
            let set = self.shared().writer.call(true, work).await;
            if !matches!(set, Err(Error::GroupNotEmpty { .. })) || began.elapsed() > SILENCE {
                return set;
            }
            // Members that may be dead are given the time to show that they live.
            let name = group.to_owned();
            if !self.read(move |connection| Ok(groups::may_be_dead(connection, &name)?)).await? {
                return set;
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    async fn producer(&self, _config: ProducerConfig) -> Result<Arc<dyn Producer>> {
        let shared = self.shared();
        Ok(Arc::new(producer::SqliteProducer::new(shared.writer.clone(), shared.room.clone())))
    }

    async fn transactional(&self, config: TransactionalConfig) -> Result<Box<dyn Transactional>> {
        Ok(Box::new(Buffered::open(self.backend.clone(), config).await?))
    }

    async fn consumer(&self, config: ConsumerConfig) -> Result<Arc<dyn Consumer>> {
        Ok(Arc::new(Reader::open(self.backend.clone(), config).await?))
    }
}
