//! Hears of changes: in the folder of pipeline files, and of the bell that rings
//! after each write to `control.db`.
//!
//! The folder may appear, vanish and appear again while we watch; so whether it is
//! still the one we watch is looked at every second, which costs one `stat`.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// How often the watched paths are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Watches until it is dropped.
pub(super) struct Watcher {
    changes: watch::Sender<u64>,
    _task: AbortOnDropHandle<()>,
}

impl Watcher {
    /// Watches a folder and a file.
    pub(super) fn start(folder: PathBuf, bell: PathBuf) -> Self {
        let changes = watch::Sender::new(0);
        let task = tokio::spawn(keep_watching(vec![folder, bell], changes.clone()));
        Self { changes, _task: AbortOnDropHandle::new(task) }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// Device and inode: whether a path is still what it was.
type Identity = Option<(u64, u64)>;

async fn keep_watching(paths: Vec<PathBuf>, changes: watch::Sender<u64>) {
    let mut watched: Vec<(Identity, Option<RecommendedWatcher>)> = paths.iter().map(|_| (None, None)).collect();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        for (path, (identity, watcher)) in paths.iter().zip(&mut watched) {
            let found = tokio::fs::metadata(path).await.ok().map(|file| (file.dev(), file.ino()));
            if found == *identity && (watcher.is_some() || found.is_none()) {
                continue;
            }
            *watcher = found.and_then(|_| watch_path(path, changes.clone()));
            *identity = found;
            bump(&changes);
        }
    }
}

fn watch_path(path: &Path, changes: watch::Sender<u64>) -> Option<RecommendedWatcher> {
    let heard = move |event: notify::Result<notify::Event>| match event {
        // Reading is no change, and we read ourselves.
        Ok(event) if event.kind.is_access() => {}
        Ok(_) => bump(&changes),
        Err(error) => tracing::debug!(%error, "a change may have been missed"),
    };
    let watching = notify::recommended_watcher(heard).and_then(|mut watcher| {
        notify::Watcher::watch(&mut watcher, path, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    watching
        .inspect_err(
            |error| tracing::warn!(path = %path.display(), %error, "not watched; looked at now and then instead"),
        )
        .ok()
}

fn bump(changes: &watch::Sender<u64>) {
    changes.send_modify(|count| *count = count.wrapping_add(1));
}
