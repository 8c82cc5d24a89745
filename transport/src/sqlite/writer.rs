//! The one thread of a process that writes: it gathers what callers want
//! written into as few transactions as possible. Knows nothing of what the work
//! is.
//!
//! ```text
//!   wait for work ─▶ wait for the turn ─▶ gather all that came ─▶ BEGIN … COMMIT ─▶ ring ─▶ answer
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};
use tokio::sync::oneshot;

use super::bell::Bell;
use super::file::{self, Sync};
use super::problem::Fault;
use super::turn::{Queue, beside};
use super::tx::{Changes, Memory, Tx};
use crate::error::{Error, Result};

/// Bytes gathered into one transaction, about.
const GATHER: usize = 4 << 20;
/// How often the lock of another program is waited for, each time as long as
/// [`file`] says, before callers learn of it.
const PATIENCE: usize = 3;

/// Bytes of the write-ahead log beyond which it is started anew by force.
const WAL_BOUND: u64 = 64 << 20;
/// How long readers are waited for then. They look for moments only; one that was
/// stopped within such a moment must not hold up the writers.
const READERS: Duration = Duration::from_millis(300);

/// Work for the writer thread.
pub(super) trait Work: Send {
    /// Does it within a transaction. A refusal is kept for `finish`, and must
    /// come before the first change; an error undoes the whole transaction.
    fn run(&mut self, tx: &mut Tx<'_>) -> rusqlite::Result<()>;

    /// Answers the caller: the transaction was committed, or failed.
    fn finish(self: Box<Self>, failure: Option<Error>);

    /// Bytes it writes, about.
    fn weight(&self) -> usize {
        0
    }

    /// Whether it has to survive a loss of power.
    fn must_last(&self) -> bool {
        true
    }
}

/// Hands work to the writer thread.
#[derive(Clone)]
pub(super) struct Writer {
    queue: mpsc::Sender<Box<dyn Work>>,
}

impl Writer {
    /// Starts the thread. It ends when the last handle is dropped and all work is done.
    pub(super) fn start(path: &Path, sync: Sync, bell: Arc<Bell>) -> Result<Self> {
        let backend = |source: std::io::Error| Error::Backend {
            operation: "open",
            target: path.display().to_string(),
            retryable: false,
            source: Arc::new(source),
        };
        let (queue, work) = mpsc::channel();
        let mut thread = Thread {
            path: path.to_owned(),
            sync,
            connection: None,
            lasting: true,
            memory: Memory::default(),
            bell,
            wal: beside(path, "-wal"),
            wal_bound: WAL_BOUND,
        };
        let mut turns = Queue::open(path).map_err(backend)?;
        std::thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || {
                while let Ok(first) = work.recv() {
                    thread.serve(first, &work, &mut turns);
                }
            })
            .map_err(backend)?;
        Ok(Self { queue })
    }

    /// Hands over work.
    pub(super) fn submit(&self, work: Box<dyn Work>) {
        if let Err(mpsc::SendError(work)) = self.queue.send(work) {
            work.finish(Some(Error::Closed { what: "log" }));
        }
    }

    /// Runs something within a transaction and waits until it is committed.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        must_last: bool,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.later(must_last, work, move |result| {
            // The caller may have gone away.
            let _ = reply.send(result);
        });
        answer.await.unwrap_or(Err(Error::Closed { what: "log" }))
    }

    /// Runs something within a transaction and hands its result on, on the
    /// writer thread.
    pub(super) fn later<T: Send + 'static>(
        &self,
        must_last: bool,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, Fault> + Send + 'static,
        then: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        self.submit(Box::new(Call { work: Some(work), result: None, then, must_last }));
    }

    /// Runs something that need not last within a transaction and waits for it,
    /// on a thread that may block; whether it was done.
    pub(super) fn wait(&self, work: impl FnOnce(&mut Tx<'_>) -> Result<(), Fault> + Send + 'static) -> bool {
        let (reply, answer) = mpsc::sync_channel(1);
        self.later(false, work, move |result| {
            let _ = reply.send(result.is_ok());
        });
        answer.recv().unwrap_or(false)
    }
}

struct Call<T, F, H> {
    work: Option<F>,
    result: Option<Result<T>>,
    then: H,
    must_last: bool,
}

impl<T, F, H> Work for Call<T, F, H>
where
    T: Send,
    F: FnOnce(&mut Tx<'_>) -> Result<T, Fault> + Send,
    H: FnOnce(Result<T>) + Send,
{
    fn run(&mut self, tx: &mut Tx<'_>) -> rusqlite::Result<()> {
        let Some(work) = self.work.take() else { return Ok(()) };
        self.result = Some(match work(tx) {
            Ok(value) => Ok(value),
            Err(Fault::Refused(error)) => Err(error),
            Err(Fault::Sql(error)) => return Err(error),
        });
        Ok(())
    }

    fn finish(self: Box<Self>, failure: Option<Error>) {
        let result = match failure {
            Some(error) => Err(error),
            None => self.result.unwrap_or(Err(Error::Closed { what: "log" })),
        };
        (self.then)(result);
    }

    fn must_last(&self) -> bool {
        self.must_last
    }
}

struct Thread {
    path: PathBuf,
    sync: Sync,
    connection: Option<Connection>,
    /// Whether the connection is set to write what must last.
    lasting: bool,
    memory: Memory,
    bell: Arc<Bell>,
    /// The write-ahead log, and the length at which it is seen to next.
    wal: PathBuf,
    wal_bound: u64,
}

impl Thread {
    fn serve(&mut self, first: Box<dyn Work>, more: &mpsc::Receiver<Box<dyn Work>>, turns: &mut Queue) {
        let mut batch = vec![first];
        let turn = turns.enter();
        let mut weight: usize = batch.iter().map(|work| work.weight()).sum();
        while weight < GATHER
            && let Ok(work) = more.try_recv()
        {
            weight += work.weight();
            batch.push(work);
        }
        let connection = match self.connection.take() {
            Some(connection) => Ok(connection),
            None => file::writer(&self.path, self.sync),
        };
        let written = connection.map_err(Fault::from).and_then(|connection| {
            let lasting = batch.iter().any(|work| work.must_last());
            let written = self.write(&connection, lasting, &mut batch);
            if written.is_ok() || undo(&connection) {
                self.bound_wal(&connection);
                self.connection = Some(connection);
            }
            written
        });
        drop(turn);
        match written {
            Ok(changes) => {
                self.bell.ring(&changes);
                batch.into_iter().for_each(|work| work.finish(None));
            }
            Err(error) => {
                self.memory.forget();
                let error = error.explain(&self.path, "write");
                batch.into_iter().for_each(|work| work.finish(Some(error.clone())));
            }
        }
    }

    fn write(&mut self, connection: &Connection, lasting: bool, batch: &mut [Box<dyn Work>]) -> Result<Changes, Fault> {
        if lasting != self.lasting {
            // What need not last is not worth a flush of the disk.
            let sync = if lasting { self.sync } else { Sync::Normal };
            connection.pragma_update(None, "synchronous", sync.as_pragma())?;
            self.lasting = lasting;
        }
        let mut tries = 0;
        let mut tx = loop {
            match Tx::begin(connection, &mut self.memory, &self.path) {
                Ok(tx) => break tx,
                Err(Fault::Sql(error))
                    if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && tries < PATIENCE =>
                {
                    tries += 1;
                    tracing::warn!(path = %self.path.display(), "another program holds a lock on the log file");
                }
                Err(error) => return Err(error),
            }
        };
        for work in batch {
            work.run(&mut tx)?;
        }
        Ok(tx.commit()?)
    }
}

impl Thread {
    /// Starts the write-ahead log anew once it has grown too long. By itself SQLite
    /// does so only in a moment in which nobody reads, and under load there may be
    /// none for long.
    fn bound_wal(&mut self, connection: &Connection) {
        let length = self.wal.metadata().map_or(0, |metadata| metadata.len());
        if length < self.wal_bound {
            return;
        }
        let restarted = connection.busy_timeout(READERS).and_then(|()| {
            let busy = connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| row.get::<_, i64>(0));
            connection.busy_timeout(file::BUSY).and(busy)
        });
        // The next write begins at its start and cuts the rest off.
        self.wal_bound = if matches!(restarted, Ok(0)) { WAL_BOUND } else { length + WAL_BOUND / 4 };
    }
}

/// Undoes what is open; whether the connection can be used again.
fn undo(connection: &Connection) -> bool {
    connection.is_autocommit() || connection.execute_batch("ROLLBACK").is_ok()
}
