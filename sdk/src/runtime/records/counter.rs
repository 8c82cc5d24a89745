//! What is gathered for a partition's transactions, and their turn.
//!
//! ```text
//!  gathered ─ a parcel of some, or a module's own alone ─▶ being written ─▶ done
//!     ▲                                                       │ refused
//!     └──── each on its own; a dead letter, after a while ◀───┘
//! ```
//!
//! Work goes on while a transaction is written: what comes meanwhile is the next one.

use std::collections::VecDeque;
use std::task::Poll;

use futures::FutureExt;
use futures::future::BoxFuture;
use pipedoc_transport::log::{self, Commit, Delivered};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::exact::{Parcel, Refused, Writer};
use super::pipe::{Job, Shipment};
use super::worker::{Load, Task, Worker};
use crate::error::Error;
use crate::runtime::exact::{COMMIT_EVERY, PARCEL_BYTES};
use crate::runtime::retry;

/// Something to be written with its offset.
pub(super) struct Entry {
    /// What is done with it; none for a module's own transaction.
    load: Option<Load>,
    /// Everything below is done with it.
    next: i64,
    /// What is done with it beyond others that are not.
    done: Vec<i64>,
    /// Its records are in the parcel while that is being written.
    shipment: Shipment,
    reply: Option<oneshot::Sender<log::Result<Vec<Delivered>>>>,
}

impl Entry {
    /// Whether it is a dead letter: its record is done with, and the letter still to be
    /// written.
    fn is_letter(&self) -> bool {
        let is_done = self.load.as_ref().is_some_and(|load| load.batch.is_none());
        is_done && !self.shipment.records.is_empty()
    }
}

type Writing = (Writer, Written);

/// A transaction that has ended: what it was to write, and how it went.
pub(super) struct Written {
    entries: Vec<Entry>,
    parcel: Parcel,
    outcome: Result<Vec<Delivered>, Refused>,
}

/// What a partition has to write in transactions.
pub(super) struct Counter {
    gathered: VecDeque<Entry>,
    bytes: usize,
    /// Away while something is written.
    writer: Option<Writer>,
    writing: Option<BoxFuture<'static, Writing>>,
    last: Option<Instant>,
    /// How many entries are written on their own, as one of them was refused.
    singly: usize,
    /// Until when nothing is written, as a dead letter was refused,
    rests_until: Option<Instant>,
    /// so many times by now.
    setbacks: u32,
    jobs: UnboundedReceiver<Job>,
    sender: UnboundedSender<Job>,
}

impl Counter {
    pub(super) fn new(writer: Writer) -> Self {
        let (sender, jobs) = unbounded_channel();
        Self {
            gathered: VecDeque::new(),
            bytes: 0,
            writer: Some(writer),
            writing: None,
            last: None,
            singly: 0,
            rests_until: None,
            setbacks: 0,
            jobs,
            sender,
        }
    }

    /// Where modules' own transactions come in.
    pub(super) fn jobs(&self) -> UnboundedSender<Job> {
        self.sender.clone()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.gathered.is_empty() && self.writing.is_none()
    }

    /// Takes something in to be written.
    pub(super) fn gather(&mut self, load: Option<Load>, done: Vec<i64>, shipment: Shipment) {
        self.bytes += shipment.bytes();
        let next = load.as_ref().map_or(i64::MIN, |load| load.next);
        self.gathered.push_back(Entry { load, next, done, shipment, reply: None });
    }

    /// When the next transaction is due: at once when it is full, is waited for, or
    /// nothing more is coming; else a while after the last one ([`COMMIT_EVERY`]).
    fn due(&self, idle: bool) -> Option<Instant> {
        if self.writing.is_some() || self.gathered.is_empty() {
            return None;
        }
        let waited_for = self.gathered.iter().any(|entry| entry.reply.is_some());
        let now = Instant::now();
        let at_once = idle || waited_for || self.singly > 0 || self.bytes >= PARCEL_BYTES;
        let due = if at_once { now } else { self.last.map_or(now, |last| last + COMMIT_EVERY) };
        Some(self.rests_until.map_or(due, |until| due.max(until)))
    }

    /// The entries of the next transaction: a module's own stand alone.
    fn take(&mut self) -> Vec<Entry> {
        let (mut entries, mut bytes): (Vec<Entry>, usize) = (Vec::new(), 0);
        while let Some(entry) = self.gathered.front() {
            let size = entry.shipment.bytes();
            let alone = entry.reply.is_some() || self.singly > 0;
            if !entries.is_empty() && (alone || bytes + size > PARCEL_BYTES) {
                break;
            }
            bytes += size;
            entries.extend(self.gathered.pop_front());
            if alone {
                self.singly = self.singly.saturating_sub(1);
                break;
            }
        }
        self.bytes -= bytes;
        entries
    }
}

impl Worker {
    /// Begins a transaction, if one is due; else says when it will be. `rests`: nothing
    /// is begun for now.
    pub(super) fn begin_writing(&mut self, rests: bool) -> Option<Instant> {
        let finishing = matches!(*self.tasks.borrow(), Task::Finish { .. });
        let nothing_coming = self.progress.has_nothing_coming() && self.queue.is_empty() && self.inbox.is_empty();
        let idle = finishing || self.in_hand.is_none() && (rests || nothing_coming);
        let counter = self.counter.as_mut()?;
        let due = counter.due(idle)?;
        if due > Instant::now() {
            return Some(due);
        }
        let mut writer = counter.writer.take()?;
        let mut entries = counter.take();
        let Some(last) = entries.last() else {
            counter.writer = Some(writer);
            return None;
        };
        let offset = last.next;
        let done: Vec<i64> = entries.iter().flat_map(|entry| entry.done.iter().copied()).collect();
        let metadata = self.progress.metadata(offset, &done);
        let mut parcel = Parcel::new(Commit { source: writer.source().clone(), offset, metadata });
        entries.iter_mut().for_each(|entry| parcel.take(&mut entry.shipment));
        counter.last = Some(Instant::now());
        counter.writing = Some(
            async move {
                let outcome = writer.write(&parcel).await;
                (writer, Written { entries, parcel, outcome })
            }
            .boxed(),
        );
        None
    }

    /// Something has happened to transactions.
    pub(super) fn heard(&mut self, news: News) {
        match news {
            News::Written(written) => self.written(written),
            News::Job(job) => self.take_job(job),
        }
    }

    /// A module's own transaction, for the batch in hand.
    fn take_job(&mut self, job: Job) {
        let Job { shipment, marks, reply } = job;
        let Some(counter) = &mut self.counter else { return };
        // The attempt that it belongs to may have been dropped: so is its reply then.
        let Some((load, _)) = self.in_hand.as_ref().filter(|_| !reply.is_closed()) else { return };
        let gathered = |offset: i64| counter.gathered.iter().any(|entry| entry.done.contains(&offset));
        let is_done = |offset: i64| marks.contains(&offset) || self.progress.is_done(offset) || gathered(offset);
        let mut records = load.batch.iter().flat_map(|batch| &batch.records);
        let next = records.find(|record| !is_done(record.offset)).map_or(load.next, |record| record.offset);
        counter.bytes += shipment.bytes();
        counter.gathered.push_back(Entry { load: None, next, done: marks, shipment, reply: Some(reply) });
    }

    /// A transaction has ended.
    fn written(&mut self, written: Written) {
        let Written { mut entries, parcel, outcome } = written;
        let offset = parcel.commit.offset;
        match outcome {
            Ok(delivered) => {
                if let Some(counter) = &mut self.counter {
                    (counter.rests_until, counter.setbacks) = (None, 0);
                }
                let sent = delivered.len();
                let mut delivered = Some(delivered);
                for entry in entries {
                    self.progress.add_beyond(entry.done);
                    if let Some(reply) = entry.reply {
                        // Nobody hears it when the attempt was dropped meanwhile.
                        let _ = reply.send(Ok(delivered.take().unwrap_or_default()));
                    }
                    if let Some(load) = entry.load {
                        self.done(&load, sent);
                    }
                }
                self.progress.commit(offset);
                self.progress.settle(offset, 0, 0);
                self.station.news.notify_one();
            }
            Err((error, culprit)) => {
                parcel.give_back(entries.iter_mut().map(|entry| &mut entry.shipment));
                self.refused(entries, error, culprit);
            }
        }
    }

    /// A transaction can never be written as it is.
    fn refused(&mut self, entries: Vec<Entry>, error: log::Error, culprit: Option<i64>) {
        let Some(counter) = &mut self.counter else { return };
        if entries.len() > 1 {
            // Which of them it is shows when each is written on its own.
            counter.singly = entries.len();
            counter.bytes += entries.iter().map(|entry| entry.shipment.bytes()).sum::<usize>();
            entries.into_iter().rev().for_each(|entry| counter.gathered.push_front(entry));
            return;
        }
        let Some(entry) = entries.into_iter().next() else { return };
        if entry.is_letter() {
            // It has nowhere else to go: it waits for what is missing.
            counter.setbacks = counter.setbacks.saturating_add(1);
            counter.rests_until = Some(Instant::now() + retry::backoff(&retry::patient(), counter.setbacks));
            counter.bytes += entry.shipment.bytes();
            counter.gathered.push_front(entry);
            let trouble = Error::from(error).context("a dead letter cannot be written; it is tried again");
            return self.station.board.trouble(&trouble);
        }
        if let Some(reply) = entry.reply {
            let _ = reply.send(Err(error));
            return;
        }
        let Some(load) = entry.load else { return };
        self.station.fuse.undone(load.count());
        // All after it is done anew; a module's own transactions among it are dropped.
        counter.bytes = 0;
        counter.singly = 0;
        let later: Vec<Load> = counter.gathered.drain(..).filter_map(|entry| entry.load).collect();
        self.take_back(later);
        let kind = if matches!(error, log::Error::UnknownTopic { .. }) { "unknown-topic" } else { "too-large" };
        self.attempt_failed(load, Error::permanent(error).with_kind(kind), false, culprit);
    }
}

/// What a counter tells its worker.
pub(super) enum News {
    /// A transaction has ended.
    Written(Written),
    /// A module has a transaction of its own.
    Job(Job),
}

/// Waits for news; for ever where there is no counter.
pub(super) async fn news(counter: &mut Option<Counter>) -> News {
    let Some(counter) = counter else { return std::future::pending().await };
    std::future::poll_fn(|context| {
        if let Some(writing) = &mut counter.writing
            && let Poll::Ready((writer, written)) = writing.poll_unpin(context)
        {
            counter.writing = None;
            counter.writer = Some(writer);
            return Poll::Ready(News::Written(written));
        }
        match counter.jobs.poll_recv(context) {
            Poll::Ready(Some(job)) => Poll::Ready(News::Job(job)),
            // It never ends: the counter has a sender itself.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    })
    .await
}
