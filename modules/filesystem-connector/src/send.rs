//! Does what a scan has found: reads files, hands documents and deletions over.
//!
//! The scan runs in a blocking thread and never gets far ahead; several files are
//! read side by side, within `max_file_size` bytes in all.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use futures::stream::FuturesUnordered;
use futures::{StreamExt, TryStreamExt, stream};
use pipedoc_sdk::connector::Receipt;
use pipedoc_sdk::prelude::*;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::spawn_blocking;

use crate::config::Config;
use crate::known::Known;
use crate::read::{self, Outcome};
use crate::scan::{self, Finding};
use crate::walk::Ground;
use crate::watch::Changed;

/// Findings that may wait to be dealt with.
const AHEAD: usize = 256;
/// Files read side by side.
const READERS: usize = 4;
/// Receipts kept before waiting for one of them.
const OPEN_RECEIPTS: usize = 10_000;
/// What one permit of the memory for reading stands for.
const PERMIT_BYTES: u64 = 1024;

/// Sends what scans find.
pub struct Sender<'a> {
    ground: Arc<Ground>,
    config: &'a Config,
    out: &'a Emitter,
    state: &'a State,
    /// Bounds the memory of files being read.
    memory: Semaphore,
    permits: u32,
    last_version: AtomicI64,
}

impl<'a> Sender<'a> {
    /// A sender that has sent nothing yet.
    pub fn new(ground: Arc<Ground>, config: &'a Config, out: &'a Emitter, state: &'a State) -> Self {
        let permits = config.max_file_size.0.div_ceil(PERMIT_BYTES).saturating_add(1);
        let permits = u32::try_from(permits).unwrap_or(u32::MAX).min(Semaphore::MAX_PERMITS as u32);
        let memory = Semaphore::new(permits as usize);
        Self { ground, config, out, state, memory, permits, last_version: AtomicI64::new(0) }
    }

    /// Scans what has changed, or, with none, everything for the first time: only
    /// then is told of files that are unchanged. With `watch`, returns when all that
    /// was sent is settled, so that the next scan sees it in the state.
    pub async fn scan(&self, changed: Option<Changed>) -> Result<()> {
        let first = changed.is_none();
        let (findings, mut incoming) = mpsc::channel(AHEAD);
        let scan = self.start(changed.unwrap_or(Changed::Everything), findings);
        let mut dealt_with = stream::poll_fn(move |context| incoming.poll_recv(context))
            .map(|finding| self.deal_with(finding, first))
            .buffer_unordered(READERS);
        let mut open = FuturesUnordered::new();
        while let Some(receipt) = dealt_with.try_next().await? {
            if self.config.watch {
                open.extend(receipt);
                if open.len() >= OPEN_RECEIPTS {
                    open.next().await;
                }
            }
        }
        scan.await??;
        // What was not taken is found again by the next scan.
        while open.next().await.is_some() {}
        Ok(())
    }

    /// Scans in a blocking thread, which ends early when nobody listens any more.
    fn start(&self, changed: Changed, findings: mpsc::Sender<Finding>) -> tokio::task::JoinHandle<Result<()>> {
        let (ground, state) = (Arc::clone(&self.ground), self.state.clone());
        let max_size = self.config.max_file_size.0;
        spawn_blocking(move || {
            let mut take = |finding| findings.blocking_send(finding).is_ok();
            match changed {
                Changed::Everything => scan::everything(&ground, &state, max_size, &mut take),
                Changed::Paths(paths) => {
                    paths.iter().try_for_each(|path| scan::path(&ground, path, &state, max_size, &mut take))
                }
            }
        })
    }

    async fn deal_with(&self, finding: Finding, tell_unchanged: bool) -> Result<Option<Receipt>> {
        match finding {
            Finding::Unchanged { id } => {
                if tell_unchanged {
                    self.out.unchanged(&id).await?;
                }
                Ok(None)
            }
            Finding::Gone { id, known } => self.gone(id, known.as_ref()).await,
            Finding::Trouble { id, path, stat, known, error } => {
                let version = self.version(known.as_ref());
                let now = Known { version, stat, sha256: String::new(), failed: Some(read::UNREADABLE.into()) };
                let error = read::unreadable(&path, error);
                Ok(Some(self.out.unreadable(&id, version, error, now.change(&id)?).await?))
            }
            Finding::Look { id, path, stat, known } => {
                let permits = u32::try_from(stat.size.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX).min(self.permits);
                let _memory = self.memory.acquire_many(permits.max(1)).await?;
                let max_size = self.config.max_file_size.0;
                let (path, outcome) = spawn_blocking(move || {
                    let outcome = read::read(&path, max_size);
                    (path, outcome)
                })
                .await?;
                match outcome {
                    Outcome::Vanished if known.is_some() => self.gone(id, known.as_ref()).await,
                    // It came and went without having been seen by anybody.
                    Outcome::Vanished => Ok(None),
                    Outcome::Failed(kind, error) => {
                        let version = self.version(known.as_ref());
                        let now = Known { version, stat, sha256: String::new(), failed: Some(kind.to_owned()) };
                        Ok(Some(self.out.unreadable(&id, version, error, now.change(&id)?).await?))
                    }
                    Outcome::Content(content) => {
                        let sha256 = content.hex();
                        match known {
                            Some(known) if known.failed.is_none() && known.sha256 == sha256 => {
                                let now = Known { stat: content.stat, ..known };
                                let changes = now.change(&id)?;
                                Ok(Some(self.out.refreshed(&id, changes).await?))
                            }
                            known => {
                                let version = self.version(known.as_ref());
                                let now = Known { version, stat: content.stat, sha256, failed: None };
                                let changes = now.change(&id)?;
                                let doc = content.into_document(&id, version, &path);
                                Ok(Some(self.out.send(doc, changes).await?))
                            }
                        }
                    }
                }
            }
        }
    }

    async fn gone(&self, id: String, known: Option<&Known>) -> Result<Option<Receipt>> {
        let version = self.version(known);
        Ok(Some(self.out.delete(&id, version, vec![(id.clone(), None)]).await?))
    }

    /// Microseconds since 1970, later than any given before and than the one known.
    fn version(&self, known: Option<&Known>) -> i64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(now.as_micros()).unwrap_or(i64::MAX);
        let at_least = now.max(known.map_or(0, |known| known.version.saturating_add(1)));
        let next = |last: i64| at_least.max(last.saturating_add(1));
        let last = self.last_version.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last)));
        last.map_or(at_least, next)
    }
}
