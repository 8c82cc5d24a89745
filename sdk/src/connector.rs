//! What a connector is given: a way out for its documents, and its state.
//!
//! The [`Emitter`] hands what a connector sends to the runtime; it knows nothing
//! of topics. [`State`] is a view of the step's state topic in a local file.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use pipedoc_proto::PipeDoc;
use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, Result};

/// Changes of a connector's state: keys with their new values, or none to forget them.
pub type StateChanges = Vec<(String, Option<Bytes>)>;

/// What a connector hands to the runtime. The changes are written for every kind,
/// for `Unchanged`, where nothing is sent, too.
#[derive(Debug)]
pub(crate) struct Emission {
    pub(crate) content: EmissionContent,
    pub(crate) changes: StateChanges,
    pub(crate) settled: oneshot::Sender<Result<()>>,
}

/// Kinds of what a connector hands over.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "documents are the rule")]
pub(crate) enum EmissionContent {
    Document(PipeDoc),
    Deletion { id: String, version: i64 },
    Unreadable { id: String, version: i64, error: Error },
    Unchanged { id: String },
}

/// The way out for a connector's documents.
#[derive(Debug, Clone)]
pub struct Emitter {
    queue: mpsc::Sender<Emission>,
}

impl Emitter {
    /// An emitter and the runtime's end of it.
    pub(crate) fn new(queue: mpsc::Sender<Emission>) -> Self {
        Self { queue }
    }

    /// Sends a document to the step's outputs. Waits for room, and while the step
    /// is paused. The state changes are written once all outputs of the document
    /// have acknowledged it; under `delivery: EXACTLY_ONCE` in one transaction with it.
    ///
    /// # Errors
    /// When the step has stopped.
    pub async fn send(&self, doc: PipeDoc, changes: StateChanges) -> Result<Receipt> {
        self.hand_over(EmissionContent::Document(doc), changes).await
    }

    /// Sends the deletion of a document to all outputs.
    ///
    /// # Errors
    /// When the step has stopped.
    pub async fn delete(&self, id: &str, version: i64, changes: StateChanges) -> Result<Receipt> {
        self.hand_over(EmissionContent::Deletion { id: id.to_owned(), version }, changes).await
    }

    /// Makes a document that cannot be read a dead letter, keyed by its id.
    ///
    /// # Errors
    /// When the step has stopped.
    pub async fn unreadable(&self, id: &str, version: i64, error: Error, changes: StateChanges) -> Result<Receipt> {
        self.hand_over(EmissionContent::Unreadable { id: id.to_owned(), version, error }, changes).await
    }

    /// Says that a document was found as it was last time; nothing is sent.
    ///
    /// # Errors
    /// When the step has stopped.
    pub async fn unchanged(&self, id: &str) -> Result<()> {
        self.hand_over(EmissionContent::Unchanged { id: id.to_owned() }, StateChanges::new()).await.map(drop)
    }

    /// Says that a document was found as it was last time, though what the state
    /// says of it must change (the same content with a new time). Nothing is sent.
    ///
    /// # Errors
    /// When the step has stopped.
    pub async fn refreshed(&self, id: &str, changes: StateChanges) -> Result<Receipt> {
        self.hand_over(EmissionContent::Unchanged { id: id.to_owned() }, changes).await
    }

    async fn hand_over(&self, content: EmissionContent, changes: StateChanges) -> Result<Receipt> {
        let (settled, receipt) = oneshot::channel();
        let emission = Emission { content, changes, settled };
        self.queue.send(emission).await.map_err(|_| Error::retryable("the step has stopped"))?;
        Ok(Receipt(receipt))
    }
}

/// Resolves when a sent document is acknowledged by all outputs and its state
/// changes are written; under `delivery: EXACTLY_ONCE` when their transaction is
/// committed. Nobody need await it: `run` ends only when all are settled.
#[derive(Debug)]
pub struct Receipt(oneshot::Receiver<Result<()>>);

impl Future for Receipt {
    type Output = Result<()>;
    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<()>> {
        std::pin::Pin::new(&mut self.0)
            .poll(cx)
            .map(|settled| settled.unwrap_or_else(|_| Err(Error::retryable("the step has stopped"))))
    }
}

/// A connector's state, as acknowledged documents have left it: read to its end
/// before `run` starts, kept in a local file, not in memory.
#[derive(Debug, Clone)]
pub struct State(Arc<Mutex<rusqlite::Connection>>);

impl State {
    /// Opens an empty view in a file, removing what was there.
    pub(crate) fn create(file: &Path) -> Result<Self> {
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        match std::fs::remove_file(file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let connection = rusqlite::Connection::open(file)?;
        // A copy of what the log holds: it need survive nothing.
        connection.execute_batch(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;
             CREATE TABLE state(key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;",
        )?;
        Ok(Self(Arc::new(Mutex::new(connection))))
    }

    /// Takes changes over, all at once.
    pub(crate) fn apply<'a>(&self, changes: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>) -> Result<()> {
        let mut connection = self.0.lock();
        let transaction = connection.transaction()?;
        for (key, value) in changes {
            match value {
                Some(value) => {
                    transaction.prepare_cached("INSERT OR REPLACE INTO state VALUES (?1, ?2)")?.execute((key, value))?
                }
                None => transaction.prepare_cached("DELETE FROM state WHERE key = ?1")?.execute([key])?,
            };
        }
        transaction.commit()?;
        Ok(())
    }

    /// Value of a key.
    ///
    /// # Errors
    /// When the local file cannot be read.
    pub fn get(&self, key: &str) -> Result<Option<Bytes>> {
        let connection = self.0.lock();
        let mut query = connection.prepare_cached("SELECT value FROM state WHERE key = ?1")?;
        let mut rows = query.query([key])?;
        Ok(match rows.next()? {
            Some(row) => Some(Bytes::from(row.get::<_, Vec<u8>>(0)?)),
            None => None,
        })
    }

    /// Up to `limit` keys that begin with `prefix` and come after `after`, in
    /// order: page through with the last key of the page before.
    ///
    /// # Errors
    /// When the local file cannot be read.
    pub fn keys(&self, prefix: &str, after: &str, limit: usize) -> Result<Vec<String>> {
        let connection = self.0.lock();
        let mut query = connection.prepare_cached(
            "SELECT key FROM state WHERE key >= ?1 AND key > ?2 AND substr(key, 1, length(?1)) = ?1 ORDER BY key LIMIT ?3",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let keys = query.query_map((prefix, after, limit), |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(keys)
    }
}
