//! Whose turn it is to write: a fair queue of the processes on one file.
//!
//! SQLite lets waiting writers sleep and try again, so one that is done and
//! begins at once starves the others. Here a writer first locks the queue file,
//! then the bell file, and only then lets go of the queue: who is done has to
//! queue behind those who wait already.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

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

/// The queue of writers.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: File,
    writing: File,
}

impl Queue {
    /// Opens the queue of a log file.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { waiting: open_beside(path, ".turn")?, writing: open_beside(path, ".bell")? })
    }

    /// Waits for the turn; it ends when the result is dropped. File systems
    /// without locks leave the order to SQLite.
    pub(super) fn enter(&self) -> Turn<'_> {
        let queued = self.waiting.lock().is_ok();
        let locked = self.writing.lock().is_ok();
        if queued {
            let _ = self.waiting.unlock();
        }
        Turn { writing: locked.then_some(&self.writing) }
    }
}

/// A turn to write.
pub(super) struct Turn<'a> {
    writing: Option<&'a File>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(writing) = self.writing {
            let _ = writing.unlock();
        }
    }
}
