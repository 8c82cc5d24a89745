//! Writes JSON Lines: files of documents and deletions as they came, that never
//! change once they are there.
//!
//! One thread writes. While it is busy with one file, what comes gathers for the
//! next, so that files grow with the load. Which version of a document counts is
//! settled when the files are [merged](crate::merge).

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot};

use crate::error::Error;
use crate::place::Place;

/// Lines that may wait to be written.
const WAITING: usize = 1024;
/// Lines of one file at most.
const MAX_LINES: usize = 10_000;
/// Bytes of one file, about, at most.
const MAX_BYTES: usize = 64 << 20;

/// Takes lines to be written.
#[derive(Debug)]
pub struct Lines {
    queue: mpsc::Sender<Job>,
}

struct Job {
    line: String,
    written: oneshot::Sender<Result<(), Arc<Error>>>,
}

impl Lines {
    /// Starts the thread; it ends when the last of these is gone.
    pub fn start(place: Place) -> Self {
        let (queue, jobs) = mpsc::channel(WAITING);
        tokio::task::spawn_blocking(move || write_all(&place, jobs));
        Self { queue }
    }

    /// Writes a line, which ends in a line break; returns when it is in its place.
    pub async fn write(&self, line: String) -> Result<(), Arc<Error>> {
        let (written, answer) = oneshot::channel();
        self.queue.send(Job { line, written }).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }
}

fn write_all(place: &Place, mut jobs: mpsc::Receiver<Job>) {
    let mut last = 0;
    while let Some(first) = jobs.blocking_recv() {
        let mut bytes = first.line.len();
        let mut batch = vec![first];
        while batch.len() < MAX_LINES
            && bytes < MAX_BYTES
            && let Ok(next) = jobs.try_recv()
        {
            bytes += next.line.len();
            batch.push(next);
        }
        let name = next_name(place, &mut last);
        let result = write_file(place, &name, &batch).map_err(Arc::new);
        for job in batch {
            // Whoever no longer waits sends it again.
            let _ = job.written.send(result.clone());
        }
    }
}

/// Names sort in the order in which files are made, also over processes as far as
/// their clocks agree.
fn next_name(place: &Place, last: &mut u128) -> PathBuf {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    *last = now.max(*last + 1);
    PathBuf::from(format!("part-{last:020}-{}.jsonl", place.nonce()))
}

fn write_file(place: &Place, name: &Path, batch: &[Job]) -> Result<(), Error> {
    let (path, file) = place.temporary_file()?;
    let mut writer = BufWriter::new(file);
    let written = batch.iter().try_for_each(|job| writer.write_all(job.line.as_bytes()));
    let written = written.and_then(|()| writer.flush()).and_then(|()| place.sync(writer.get_ref()));
    if let Err(source) = written {
        let _ = fs::remove_file(&path);
        return Err(Error::Io { what: "written", path, source });
    }
    place.put(&path, name)
}
