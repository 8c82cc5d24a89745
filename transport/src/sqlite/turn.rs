//! Whose turn it is to write: a fair queue of the processes on one file.
//!
//! SQLite lets waiting writers sleep and try again, so one that is done and
//! begins at once starves the others. Here a writer first locks the queue file,
//! then the bell file, and only then lets go of the queue: who is done has to
//! queue behind those who wait already.
//!
//! The queue is a courtesy, not what keeps writers apart: that is SQLite's own
//! lock. So nobody waits for a turn for ever. A process that was stopped while it
//! held its place keeps the others for [`PATIENCE`] once; they then go on without
//! the queue until it lets go. The system's file locks know no time limit, so a
//! thread of its own waits for them, and only where there is somebody to wait for.
//!
//! ```text
//!   free at once ──▶ Turn ──dropped──▶ free
//!   somebody has it ──▶ the helper waits ──in time──▶ Turn
//!                              └──too late──▶ no turn, and none for those after
//!                                             it, until the helper has seen it free
//! ```

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;

/// How long a turn is waited for. More than ten processes need on a slow disk,
/// less than a session lasts.
const PATIENCE: Duration = Duration::from_secs(3);

/// The path of a file beside the log file.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Opens a file beside the log file, making it if it is missing.
pub(super) fn open_beside(path: &Path, suffix: &str) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).read(true).write(true).open(beside(path, suffix))
}

/// The two files that are locked.
#[derive(Debug)]
struct Locks {
    waiting: File,
    writing: File,
}

impl Locks {
    /// Takes the turn if nobody has it or waits for it.
    fn try_take(&self) -> bool {
        if self.waiting.try_lock().is_err() {
            return false;
        }
        let taken = self.writing.try_lock().is_ok();
        let _ = self.waiting.unlock();
        taken
    }

    /// Waits for the turn, however long that takes.
    fn take(&self) -> io::Result<()> {
        self.waiting.lock()?;
        let taken = self.writing.lock();
        let _ = self.waiting.unlock();
        taken
    }
}

/// What became of the turn that the helper waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// Nothing is waited for.
    No,
    /// The writer waits.
    Yes,
    /// The writer went on without it; whoever gets it gives it back.
    GivenUp,
}

/// The queue of writers.
#[derive(Debug)]
pub(super) struct Queue {
    locks: Arc<Locks>,
    asked: Arc<Mutex<Asked>>,
    helper: Option<Helper>,
}

#[derive(Debug)]
struct Helper {
    ask: SyncSender<()>,
    /// Whether the turn was taken: file systems without locks have none.
    answer: Receiver<bool>,
}

impl Queue {
    /// Opens the queue of a log file.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let locks = Locks { waiting: open_beside(path, ".turn")?, writing: open_beside(path, ".bell")? };
        Ok(Self { locks: Arc::new(locks), asked: Arc::new(Mutex::new(Asked::No)), helper: None })
    }

    /// Waits for the turn, which ends when the result is dropped; none where
    /// somebody holds it for too long, or files cannot be locked.
    pub(super) fn enter(&mut self) -> Option<Turn> {
        // Looked at first: while the helper still waits it uses the same files.
        if *self.asked.lock() == Asked::GivenUp {
            return None;
        }
        if self.locks.try_take() {
            return Some(Turn(self.locks.clone()));
        }
        if self.helper.is_none() {
            self.helper = start(self.locks.clone(), self.asked.clone()).ok();
        }
        let helper = self.helper.as_ref()?;
        *self.asked.lock() = Asked::Yes;
        if helper.ask.try_send(()).is_err() {
            *self.asked.lock() = Asked::No;
            return None;
        }
        let taken = match helper.answer.recv_timeout(PATIENCE) {
            Ok(taken) => taken,
            Err(RecvTimeoutError::Disconnected) => false,
            Err(RecvTimeoutError::Timeout) => {
                let mut asked = self.asked.lock();
                match *asked {
                    Asked::Yes => {
                        *asked = Asked::GivenUp;
                        tracing::warn!("another process holds its turn to write for long; going on without turns");
                        false
                    }
                    // It came just now.
                    Asked::No | Asked::GivenUp => helper.answer.try_recv().unwrap_or(false),
                }
            }
        };
        taken.then(|| Turn(self.locks.clone()))
    }
}

/// Starts the thread that waits for turns; it ends when the queue is dropped.
fn start(locks: Arc<Locks>, asked: Arc<Mutex<Asked>>) -> io::Result<Helper> {
    let (ask, questions) = sync_channel::<()>(1);
    let (answers, answer) = sync_channel(1);
    std::thread::Builder::new().name("log-turn".to_owned()).spawn(move || {
        while questions.recv().is_ok() {
            let taken = locks.take().is_ok();
            let mut asked = asked.lock();
            match std::mem::replace(&mut *asked, Asked::No) {
                Asked::Yes => {
                    // There is room for one answer, and one question at a time.
                    if answers.try_send(taken).is_err() && taken {
                        let _ = locks.writing.unlock();
                    }
                }
                Asked::No | Asked::GivenUp => {
                    if taken {
                        let _ = locks.writing.unlock();
                    }
                }
            }
        }
    })?;
    Ok(Helper { ask, answer })
}

/// A turn to write.
#[derive(Debug)]
pub(super) struct Turn(Arc<Locks>);

impl Drop for Turn {
    fn drop(&mut self) {
        let _ = self.0.writing.unlock();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn nobody_waits_for_ever_for_a_turn_that_is_not_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.db");
        let (mut stopped, mut other) = (Queue::open(&path).unwrap(), Queue::open(&path).unwrap());
        let held = stopped.enter();
        assert!(held.is_some());
        let began = Instant::now();
        assert!(other.enter().is_none());
        assert!(began.elapsed() >= PATIENCE);
        let again = Instant::now();
        assert!(other.enter().is_none());
        assert!(again.elapsed() < PATIENCE / 2, "it is waited for once");
        drop(held);
        let deadline = Instant::now() + Duration::from_secs(60);
        while other.enter().is_none() {
            assert!(Instant::now() < deadline, "turns come again once it was given back");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(stopped.enter().is_some());
    }

    #[test]
    fn a_turn_is_one_writer_s_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.db");
        let inside = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let writers: Vec<_> = (0..4)
            .map(|_| {
                let (mut queue, inside) = (Queue::open(&path).unwrap(), inside.clone());
                std::thread::spawn(move || {
                    for _ in 0..200 {
                        let turn = queue.enter().expect("a turn in time");
                        assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                        drop(turn);
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
    }
}
