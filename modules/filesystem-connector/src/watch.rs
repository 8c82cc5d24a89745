//! Learns of changes in the folder, and waits until a changed file has been left
//! alone for a while.
//!
//! The operating system's word is a hint, never the truth: a scan of everything
//! follows from time to time, at once when hints were lost, and alone where the
//! folder cannot be watched. Reads no file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tracing::warn;

use crate::config::Config;
use crate::walk::Ground;

/// Paths remembered before a scan of everything is cheaper.
const MAX_PATHS: usize = 10_000;
/// A file that is never left alone is read all the same after this many times the
/// time it should have been.
const PATIENCE: u32 = 10;

/// What has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// Anything may have.
    Everything,
    /// These paths, and what is below them.
    Paths(Vec<PathBuf>),
}

/// Watches a folder while it lives.
#[derive(Debug)]
pub struct Watch {
    hints: Arc<Hints>,
    debounce: Duration,
    rescan: Duration,
    next_rescan: Instant,
    /// Ends the watching when dropped; none where the folder cannot be watched.
    _watcher: Option<RecommendedWatcher>,
}

#[derive(Debug, Default)]
struct Hints {
    pending: Mutex<Pending>,
    came: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    /// When each path changed first and last.
    paths: HashMap<PathBuf, (Instant, Instant)>,
    lost: bool,
}

impl Watch {
    /// Starts to watch.
    pub fn start(ground: &Ground, config: &Config) -> Self {
        let hints = Arc::new(Hints::default());
        let watcher = watcher(ground, config, Arc::clone(&hints))
            .inspect_err(|error| {
                let (folder, every) = (ground.root.display(), config.rescan);
                warn!(%folder, %error, "folder cannot be watched; it is looked through every {every} only");
            })
            .ok();
        let rescan = config.rescan.0.max(Duration::from_millis(10));
        Self { hints, debounce: config.debounce.0, rescan, next_rescan: Instant::now() + rescan, _watcher: watcher }
    }

    /// Waits until something has changed and has been left alone since, or until it
    /// is time to look at everything.
    pub async fn changed(&mut self) -> Changed {
        loop {
            let came = self.hints.came.notified();
            let now = Instant::now();
            if now >= self.next_rescan {
                self.hints.lock().clear();
                self.next_rescan = now + self.rescan;
                return Changed::Everything;
            }
            let until = match self.hints.lock().settled(now, self.debounce) {
                Ok(changed) => return changed,
                Err(until) => until.unwrap_or(self.next_rescan).min(self.next_rescan),
            };
            tokio::select! {
                () = came => {}
                () = tokio::time::sleep_until(until.into()) => {}
            }
        }
    }
}

impl Hints {
    fn lock(&self) -> std::sync::MutexGuard<'_, Pending> {
        // Nothing in here is left half done by a panic.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, event: notify::Result<notify::Event>) {
        let mut pending = self.lock();
        match event {
            Ok(event) if event.need_rescan() => pending.lost = true,
            Ok(event) if is_change(event.kind) => {
                let now = Instant::now();
                for path in event.paths {
                    pending.paths.entry(path).or_insert((now, now)).1 = now;
                }
                pending.lost |= pending.paths.len() > MAX_PATHS;
            }
            Ok(_) => return,
            Err(_) => pending.lost = true,
        }
        if pending.lost {
            pending.paths.clear();
        }
        drop(pending);
        self.came.notify_one();
    }
}

impl Pending {
    fn clear(&mut self) {
        self.paths.clear();
        self.lost = false;
    }

    /// What has been left alone long enough; else when that will be, if anything
    /// is waiting.
    fn settled(&mut self, now: Instant, debounce: Duration) -> Result<Changed, Option<Instant>> {
        if std::mem::take(&mut self.lost) {
            return Ok(Changed::Everything);
        }
        let due = |&(first, last): &(Instant, Instant)| (last + debounce).min(first + debounce * PATIENCE);
        let mut settled: Vec<_> = self.paths.extract_if(|_, times| due(times) <= now).map(|(path, _)| path).collect();
        if settled.is_empty() {
            return Err(self.paths.values().map(due).min());
        }
        // What is below another one is scanned with it, and must not be twice.
        settled.sort_unstable();
        settled.dedup_by(|later, kept| later.starts_with(kept));
        Ok(Changed::Paths(settled))
    }
}

fn watcher(ground: &Ground, config: &Config, hints: Arc<Hints>) -> notify::Result<RecommendedWatcher> {
    let settings = notify::Config::default().with_follow_symlinks(config.follow_symlinks);
    let mut watcher = RecommendedWatcher::new(move |event| hints.take(event), settings)?;
    let mode = if config.recursive { RecursiveMode::Recursive } else { RecursiveMode::NonRecursive };
    watcher.watch(Path::new(&ground.root), mode)?;
    Ok(watcher)
}

/// Reading changes nothing; our own reading would wake us for ever.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBOUNCE: Duration = Duration::from_secs(1);

    #[test]
    fn a_path_is_due_when_it_was_left_alone_or_has_waited_too_long() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pending = Pending::default();
        assert_eq!(pending.settled(start, DEBOUNCE), Err(None));
        pending.paths.insert("quiet".into(), (start, start));
        pending.paths.insert("busy".into(), (start, at(1)));
        assert_eq!(pending.settled(start, DEBOUNCE), Err(Some(at(1))));
        assert_eq!(pending.settled(at(1), DEBOUNCE), Ok(Changed::Paths(vec!["quiet".into()])));
        pending.paths.insert("busy".into(), (start, at(10)));
        assert_eq!(pending.settled(at(10), DEBOUNCE), Ok(Changed::Paths(vec!["busy".into()])));
    }

    #[test]
    fn what_is_below_another_path_goes_with_it() {
        let start = Instant::now();
        let mut pending = Pending::default();
        for path in ["a/b/c", "a", "a/b", "a.txt", "ab"] {
            pending.paths.insert(path.into(), (start, start));
        }
        let settled = pending.settled(start + DEBOUNCE, DEBOUNCE);
        assert_eq!(settled, Ok(Changed::Paths(vec!["a".into(), "a.txt".into(), "ab".into()])));
    }

    #[test]
    fn lost_hints_mean_everything() {
        let mut pending = Pending { lost: true, ..Pending::default() };
        assert_eq!(pending.settled(Instant::now(), DEBOUNCE), Ok(Changed::Everything));
        assert_eq!(pending.settled(Instant::now(), DEBOUNCE), Err(None));
    }
}
