//! The store of one machine: a watched folder of pipeline files, and one SQLite
//! file for all the rest, shared by any number of processes, of which one leads.
//!
//! Knows files and keys; knows nothing of what the values mean.

mod campaign;
mod database;
mod files;
mod watcher;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use pipedoc_model::names::ClusterName;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use self::campaign::Campaign;
pub use self::database::APPLICATION_ID;
use self::database::Database;
use self::watcher::Watcher;
use super::{Candidate, Error, Expected, InboxEntry, Key, Leadership, Lease, Result, Store, Value, Version};

/// The store of one machine.
pub struct FolderStore {
    folder: PathBuf,
    /// Prefix of all keys, so that clusters can share a data folder.
    cluster: ClusterName,
    database: Arc<Database>,
    watcher: Watcher,
    may_lead: watch::Sender<bool>,
    campaign: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl FolderStore {
    /// Opens the store: pipeline files in `folder`, which need not exist yet, and
    /// `control.db` in `data`, which is made where it is missing.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub async fn open(cluster: ClusterName, folder: impl Into<PathBuf>, data: impl Into<PathBuf>) -> Result<Self> {
        let (folder, data) = (folder.into(), data.into());
        let file = data.join("control.db");
        let database = blocking(move || Database::open(&file)).await?;
        let watcher = Watcher::start(folder.clone(), database.bell().to_owned());
        let database = Arc::new(database);
        Ok(Self { folder, cluster, database, watcher, may_lead: watch::Sender::new(true), campaign: Mutex::default() })
    }

    fn full(&self, key: &Key) -> Key {
        Key::new(&[self.cluster.as_str(), key.as_str()])
    }
}

#[async_trait]
impl Store for FolderStore {
    fn describe(&self) -> String {
        format!("{} and {}", self.folder.display(), self.database.path().display())
    }

    async fn get(&self, key: &Key) -> Result<Option<Value>> {
        let (database, key) = (Arc::clone(&self.database), self.full(key));
        blocking(move || database.get(&key)).await
    }

    async fn put(&self, key: &Key, text: &str, expected: Expected, _: Option<&Lease>) -> Result<Version> {
        let (database, full, value) = (Arc::clone(&self.database), self.full(key), text.to_owned());
        let version = blocking(move || database.put(&full, &value, expected)).await?;
        version.ok_or_else(|| Error::Conflict { key: key.clone() })
    }

    async fn remove(&self, key: &Key, _: Option<&Lease>) -> Result<()> {
        let (database, key) = (Arc::clone(&self.database), self.full(key));
        blocking(move || database.remove(&key)).await
    }

    async fn list(&self, prefix: &Key) -> Result<Vec<String>> {
        let (database, prefix) = (Arc::clone(&self.database), self.full(prefix));
        blocking(move || database.list(&prefix)).await
    }

    async fn read_all(&self, prefix: &Key) -> Result<Vec<(String, Value)>> {
        let (database, prefix) = (Arc::clone(&self.database), self.full(prefix));
        blocking(move || database.read_all(&prefix)).await
    }

    async fn inbox(&self) -> Result<Vec<InboxEntry>> {
        let folder = self.folder.clone();
        blocking(move || files::read(&folder)).await
    }

    async fn write_inbox(&self, name: &str, text: &str, replaces: Option<&str>) -> Result<()> {
        let (folder, name, text) = (self.folder.clone(), name.to_owned(), text.to_owned());
        let replaces = replaces.map(str::to_owned);
        blocking(move || files::write(&folder, &name, &text, replaces.as_deref())).await
    }

    async fn remove_inbox(&self, name: &str, removes: &str) -> Result<()> {
        let (folder, name, removes) = (self.folder.clone(), name.to_owned(), removes.to_owned());
        blocking(move || files::remove(&folder, &name, &removes)).await
    }

    fn inbox_name(&self, pipeline: &str) -> String {
        format!("{pipeline}.yaml")
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.watcher.subscribe()
    }

    fn campaign(&self, candidate: Candidate) -> watch::Receiver<Leadership> {
        let lock = self.database.path().with_file_name(format!("leader-{}.lock", self.cluster));
        let (leadership, running) = Campaign { lock, candidate, may_lead: self.may_lead.subscribe() }.start();
        *self.campaign.lock() = Some(AbortOnDropHandle::new(tokio::spawn(running)));
        leadership
    }

    fn may_lead(&self, may: bool) {
        self.may_lead.send_if_modified(|known| std::mem::replace(known, may) != may);
    }

    async fn close(&self) {
        let campaign = self.campaign.lock().take();
        if let Some(campaign) = campaign {
            campaign.abort();
            let _ = campaign.await;
        }
    }
}

/// Files are slow at times; workers of the runtime must not wait for them.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(Error::Backend {
            operation: "a blocking call",
            target: "the folder store".into(),
            retryable: false,
            source: Arc::new(error),
        })
    })
}
