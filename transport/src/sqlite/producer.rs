//! Producers of the sqlite log: records queue for the writer thread, which
//! writes those of all producers together.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::tx::Tx;
use super::writer::{Work, Writer};
use crate::embedded::outgoing::{Open, weight};
use crate::error::{Error, Result};
use crate::log::{Delivered, OutgoingRecord, Producer, Receipt, Reports};

/// Bytes of records that may wait for the writer thread of a process.
pub(super) const WAITING: usize = 32 << 20;

pub(super) struct SqliteProducer {
    writer: Writer,
    room: Arc<Semaphore>,
    open: Open,
}

impl SqliteProducer {
    pub(super) fn new(writer: Writer, room: Arc<Semaphore>) -> Self {
        Self { writer, room, open: Open::default() }
    }
}

#[async_trait]
impl Producer for SqliteProducer {
    async fn send(&self, records: Vec<OutgoingRecord>) -> Result<Receipt> {
        let weight = records.iter().map(weight).sum();
        // More than fits at all waits until nothing else does.
        let permits = u32::try_from(usize::min(weight, WAITING)).unwrap_or(u32::MAX);
        let room = self.room.clone().acquire_many_owned(permits).await;
        let room = room.map_err(|_| Error::Closed { what: "log" })?;
        let (reply, answer) = oneshot::channel();
        let count = records.len();
        self.open.add(count);
        let append =
            Append { records, reports: Vec::with_capacity(count), weight, reply, open: self.open.clone(), _room: room };
        self.writer.submit(Box::new(append));
        Ok(Receipt::new(answer.map(move |reports| {
            reports.unwrap_or_else(|_| (0..count).map(|_| Err(Error::Closed { what: "log" })).collect())
        })))
    }

    async fn flush(&self, timeout: Duration) -> Result<usize> {
        Ok(self.open.drained(timeout).await)
    }
}

/// Records of one call, on their way into the file.
struct Append {
    records: Vec<OutgoingRecord>,
    reports: Reports,
    weight: usize,
    reply: oneshot::Sender<Reports>,
    open: Open,
    _room: OwnedSemaphorePermit,
}

impl Work for Append {
    fn run(&mut self, tx: &mut Tx<'_>) -> rusqlite::Result<()> {
        for record in &self.records {
            self.reports.push(append(tx, record)?);
        }
        Ok(())
    }

    fn finish(self: Box<Self>, failure: Option<Error>) {
        let count = self.records.len();
        let reports = match failure {
            None => self.reports,
            Some(error) => {
                // What was refused for itself stays refused for that.
                let mut reports = self.reports;
                reports.resize_with(count, || Err(error.clone()));
                let failed = |report: Result<Delivered>| report.and(Err(error.clone()));
                reports.into_iter().map(failed).collect()
            }
        };
        let _ = self.reply.send(reports);
        self.open.settle(count);
    }

    fn weight(&self) -> usize {
        self.weight
    }
}

/// Writes one record, or reports why it never can be.
fn append(tx: &mut Tx<'_>, record: &OutgoingRecord) -> rusqlite::Result<Result<Delivered>> {
    match tx.place(record) {
        Ok(place) => tx.append(record, place).map(Ok),
        Err(refused) => Ok(Err(refused)),
    }
}
