//! One partition's worker: holds its open batches, tries them one after the other,
//! and settles them in order.
//!
//! ```text
//!  queue ─▶ in hand ─ returned ─▶ afloat ─ all acknowledged ─▶ done: the watermark passes
//!    ▲         │                    │
//!    │         │ failed             │ one could not be written: it and all after it
//!    │         ▼                    ▼
//!    ├──── marked ones stay done; the rest waits out a backoff
//!    │         │ permanent, or no attempts left
//!    │         ▼
//!    ├──── the first is buried or skipped; the rest starts anew
//!    └──── or the partition stands still until it is resumed, as it does where what
//!          is buried is too large for that
//! ```
//!
//! Knows nothing of other partitions, of commits or of the consumer.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, StreamExt};
use pipedoc_model::step::OnExhausted;
use pipedoc_transport::log::{self, Record, RecordBatch, TopicPartition};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::Station;
use super::attempt::{Turn, attempt, bury, judge, told, told_done};
use super::counter::{self, Counter};
use super::exact::Writer;
use super::pipe::{Shipment, Source};
use super::progress::Progress;
use super::sending::{Outcome, send_once};
use crate::error::Error;
use crate::event::Event;
use crate::runtime::dead_letter::Reason;
use crate::runtime::retry;
use crate::runtime::work::About;

/// What a worker is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// Work.
    Go,
    /// Begin nothing.
    Rest,
    /// Finish what was begun, then end; with it, whether the partition goes elsewhere.
    Finish { revoked: bool },
}

/// A batch, or what is left of one.
pub(super) struct Load {
    /// None when all of it is done, and only its place in the order counts.
    pub(super) batch: Option<Arc<RecordBatch>>,
    /// When it is done, everything below this offset is.
    pub(super) next: i64,
    pub(super) records: usize,
    pub(super) bytes: usize,
    /// Attempts that failed.
    pub(super) attempts: u32,
    /// Times that it could not be tried, through no fault of its own.
    setbacks: u32,
    /// Its records are given up on, one after the other, for this.
    pub(super) doomed: Option<Error>,
}

impl Load {
    /// A batch as it was admitted. None: all of it is done already.
    fn new(batch: Option<Arc<RecordBatch>>, next: i64, records: usize, bytes: usize) -> Self {
        Self { batch, next, records, bytes, attempts: 0, setbacks: 0, doomed: None }
    }

    /// The same, with all its attempts.
    pub(super) fn anew(self) -> Self {
        Self { attempts: 0, setbacks: 0, ..self }
    }

    /// How many records are to be worked on.
    pub(super) fn count(&self) -> usize {
        self.batch.as_ref().map_or(0, |batch| batch.records.len())
    }
}

/// A batch, and the bytes that its records hold.
pub(super) type Measured = (RecordBatch, usize);

/// One partition's worker.
pub(super) struct Worker {
    pub(super) station: Arc<Station>,
    source: Arc<Source>,
    pub(super) progress: Arc<Progress>,
    pub(super) inbox: UnboundedReceiver<Measured>,
    pub(super) tasks: watch::Receiver<Task>,
    /// Not begun, or to be done again.
    pub(super) queue: VecDeque<Load>,
    /// Since when something waits for a batch to fill.
    waiting_since: Option<Instant>,
    /// Until when nothing is begun, as something failed.
    rest_until: Option<Instant>,
    pub(super) in_hand: Option<(Load, BoxFuture<'static, Turn>)>,
    /// Returned by the module, not acknowledged: the loads, and what comes of each.
    afloat: VecDeque<Load>,
    outcomes: FuturesOrdered<BoxFuture<'static, Outcome>>,
    /// Under `delivery: EXACTLY_ONCE`: what takes the place of what is afloat.
    pub(super) counter: Option<Counter>,
}

/// Tells that the worker has ended, whatever ended it.
struct Ends(Arc<Station>, Arc<Progress>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.1.end();
        self.0.news.notify_one();
    }
}

impl Worker {
    pub(super) fn new(
        station: Arc<Station>,
        place: Arc<TopicPartition>,
        progress: Arc<Progress>,
        inbox: UnboundedReceiver<Measured>,
        tasks: watch::Receiver<Task>,
    ) -> Self {
        let source = Arc::new(Source::new(place, &station.shop.plan.group));
        let counter = station
            .exact
            .clone()
            .map(|exact| Counter::new(Writer::new(Arc::clone(&station), exact, Arc::clone(&source.place))));
        Self {
            station,
            source,
            progress,
            inbox,
            tasks,
            queue: VecDeque::new(),
            waiting_since: None,
            rest_until: None,
            in_hand: None,
            afloat: VecDeque::new(),
            outcomes: FuturesOrdered::new(),
            counter,
        }
    }

    /// Works until told to finish. `seat`: held by one worker of a partition at a
    /// time, so that one that was aborted has ended before the next begins.
    pub(super) async fn run(mut self, seat: Arc<Semaphore>) {
        let ends = Ends(Arc::clone(&self.station), Arc::clone(&self.progress));
        let Ok(_seat) = seat.acquire().await else { return };
        let (program, step) = (Arc::clone(&self.station.program), self.station.shop.step.clone());
        let place = Arc::clone(&self.source.place);
        told(&self.station, "assigned", program.assigned(&place, &step)).await;
        self.work().await;
        if matches!(*self.tasks.borrow(), Task::Finish { revoked: true }) {
            told(&self.station, "revoked", program.revoked(&place, &step)).await;
        }
        self.progress.finish();
        drop(ends);
    }

    async fn work(&mut self) {
        loop {
            let task = *self.tasks.borrow_and_update();
            if matches!(task, Task::Finish { .. }) {
                self.let_go();
                let written = self.counter.as_ref().is_none_or(Counter::is_empty);
                if self.in_hand.is_none() && self.queue.is_empty() && self.afloat.is_empty() && written {
                    return;
                }
            }
            let rests = task == Task::Rest || self.progress.is_stopped() || self.station.fuse.is_blown();
            let deadline = if self.in_hand.is_none() && !rests { self.begin() } else { None };
            let deadline = deadline.into_iter().chain(self.begin_writing(rests)).min();
            tokio::select! {
                biased;
                news = counter::news(&mut self.counter) => self.heard(news),
                Some(outcome) = self.outcomes.next() => self.acknowledged(outcome),
                turn = in_hand(&mut self.in_hand) => {
                    if let Some((load, _)) = self.in_hand.take() {
                        self.turned(load, turn);
                    }
                }
                changed = self.tasks.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                Some(batch) = self.inbox.recv() => {
                    self.take_in(batch);
                    while let Ok(batch) = self.inbox.try_recv() {
                        self.take_in(batch);
                    }
                }
                () = sleep_until(deadline) => {}
            }
        }
    }

    /// `bytes`: what its records hold.
    fn take_in(&mut self, (mut batch, bytes): Measured) {
        let Some(last) = batch.records.last() else { return };
        let (next, records) = (last.offset + 1, batch.records.len());
        if self.progress.has_beyond() {
            // An owner before this one has done some of them.
            batch.records.retain(|record| !self.progress.is_done(record.offset));
        }
        let batch = (!batch.records.is_empty()).then(|| Arc::new(batch));
        self.queue.push_back(Load::new(batch, next, records, bytes));
    }

    /// Drops what was not begun: it comes again elsewhere. What is committed does not.
    fn let_go(&mut self) {
        self.inbox.close();
        if !self.station.commits_first() {
            return self.queue.clear();
        }
        while let Ok(batch) = self.inbox.try_recv() {
            self.take_in(batch);
        }
        let committing = self.progress.committing();
        self.queue.retain(|load| load.next <= committing);
    }

    /// The partition.
    pub(super) fn place(&self) -> &TopicPartition {
        &self.source.place
    }

    /// Takes the next load in hand, if it may be; else says when to look again.
    fn begin(&mut self) -> Option<Instant> {
        let now = Instant::now();
        if let Some(until) = self.rest_until.filter(|until| *until > now) {
            return Some(until);
        }
        self.rest_until = None;
        while self.queue.front().is_some_and(|load| load.batch.is_none()) {
            let load = self.queue.pop_front()?;
            self.pass(load, Vec::new(), Shipment::default());
        }
        // What was sent once and fails is given up on before others begin.
        if self.station.commits_first() && !(self.afloat.is_empty() && self.is_first_committed()) {
            return None;
        }
        if let Some(until) = self.fill(now) {
            return Some(until);
        }
        let mut load = self.queue.pop_front()?;
        self.waiting_since = None;
        if let Some(error) = load.doomed.take() {
            let doom = error.duplicate();
            self.give_up(Load { doomed: Some(doom), ..load }, &error, None);
            return Some(now);
        }
        let batch = Arc::clone(load.batch.as_ref()?);
        let jobs = self.counter.as_ref().map(Counter::jobs);
        let turn = attempt(Arc::clone(&self.station), Arc::clone(&self.source), batch, load.attempts, jobs);
        self.in_hand = Some((load, turn.boxed()));
        None
    }

    /// Makes batches of the size that the step asks for; says until when to wait
    /// for more.
    fn fill(&mut self, now: Instant) -> Option<Instant> {
        let bounds = self.station.shop.plan.batch?;
        let (progress, commits_first) = (Arc::clone(&self.progress), self.station.commits_first());
        let fresh = |load: &Load| {
            let begins = !commits_first || load.next <= progress.committed();
            load.attempts == 0 && load.setbacks == 0 && load.doomed.is_none() && load.batch.is_some() && begins
        };
        while let [first, second, ..] = self.queue.make_contiguous()
            && fresh(first)
            && fresh(second)
            && first.records + second.records <= bounds.records.max(1)
            && first.bytes + second.bytes <= bounds.bytes
        {
            let (Some(mut first), Some(second)) = (self.queue.pop_front(), self.queue.pop_front()) else { break };
            if let (Some(into), Some(more)) = (&mut first.batch, &second.batch) {
                Arc::make_mut(into).records.extend(more.records.iter().cloned());
            }
            first.next = second.next;
            first.records += second.records;
            first.bytes += second.bytes;
            self.queue.push_front(first);
        }
        let only = match self.queue.front() {
            Some(only) if self.queue.len() == 1 && fresh(only) => only,
            _ => return None,
        };
        let full = only.records >= bounds.records || only.bytes >= bounds.bytes;
        let finishing = matches!(*self.tasks.borrow(), Task::Finish { .. });
        let until = *self.waiting_since.get_or_insert(now) + bounds.wait;
        (!full && !finishing && until > now).then_some(until)
    }

    fn turned(&mut self, load: Load, turn: Turn) {
        match turn {
            Turn::Returned(sending) => {
                self.station.fuse.done(load.count());
                self.afloat.push_back(load);
                self.outcomes.push_back(sending.settled().boxed());
            }
            Turn::Gathered(shipment) => {
                self.station.fuse.done(load.count());
                self.pass(load, Vec::new(), shipment);
            }
            Turn::Failed { error, patient, culprit, marks } => {
                let load = self.keep_marked(load, &marks);
                self.attempt_failed(load, error, patient, culprit);
            }
            Turn::Unburied { record, error } => self.unburied(load, &record, &error),
            Turn::Buried { offset, about, reason, letter } => {
                let board = &self.station.board;
                board.failed();
                let Reason { kind, message, .. } = reason;
                let About { document, version, .. } = about;
                board.event(&Event::DeadLetter { document, version, kind: kind.to_owned(), error: message });
                self.start_anew_without(load, offset, letter);
            }
        }
    }

    /// The oldest load afloat has its reports.
    fn acknowledged(&mut self, outcome: Outcome) {
        let Some(load) = self.afloat.pop_front() else { return };
        if self.station.commits_first() {
            return self.sent_once(load, outcome);
        }
        match outcome.failed {
            None => self.done(&load, outcome.sent),
            Some((error, culprit)) => {
                // It and all after it are done anew.
                self.outcomes = FuturesOrdered::new();
                let afloat = std::mem::take(&mut self.afloat);
                self.station.fuse.undone(load.count());
                self.take_back(afloat);
                let (error, patient) = self.of_send(error);
                self.attempt_failed(load, error, patient, culprit);
            }
        }
    }

    pub(super) fn done(&self, load: &Load, sent: usize) {
        if let Some(batch) = &load.batch {
            told_done(&self.station, &batch.records, sent);
        }
        self.settle(load);
    }

    /// A load is done with.
    pub(super) fn settle(&self, load: &Load) {
        self.progress.settle(load.next, load.records, load.bytes);
        self.station.news.notify_one();
    }

    /// Puts loads back that were worked on and whose turn comes again, and with them
    /// what is in hand.
    pub(super) fn take_back(&mut self, loads: impl IntoIterator<Item = Load, IntoIter: DoubleEndedIterator>) {
        let in_hand = self.in_hand.take().map(|(load, _)| load);
        let fuse = &self.station.fuse;
        let loads = loads.into_iter().inspect(|load| fuse.undone(load.count()));
        for later in loads.chain(in_hand).rev() {
            self.queue.push_front(later);
        }
    }

    /// What a send's error means: whose fault it is, and whether these clients can
    /// go on.
    fn of_send(&self, error: log::Error) -> (Error, bool) {
        judge(&self.station, error, &self.source.place)
    }

    /// Settles the records of a failed load that are done: those marked, and those of
    /// transactions. Gives the rest.
    fn keep_marked(&mut self, load: Load, marks: &[bool]) -> Load {
        let Some(batch) = &load.batch else { return load };
        let (records, progress) = (batch.records.iter().enumerate(), &self.progress);
        let is_done = |at: usize, record: &Record| {
            marks.get(at).copied().unwrap_or(false) || self.counter.is_some() && progress.is_done(record.offset)
        };
        let done: Vec<Record> =
            records.filter(|(at, record)| is_done(*at, record)).map(|(_, record)| record.clone()).collect();
        self.station.fuse.done(done.len());
        told_done(&self.station, &done, 0);
        let done: Vec<i64> = done.iter().map(|record| record.offset).collect();
        self.split(load, &done, Shipment::default())
    }

    /// Settles these records of a load, with what is to be written for them; gives
    /// the rest.
    pub(super) fn split(&mut self, load: Load, done: &[i64], shipment: Shipment) -> Load {
        let Some(batch) = load.batch.as_ref().filter(|_| !done.is_empty()) else { return load };
        let records = batch.records.iter().cloned();
        let (gone, rest): (Vec<Record>, Vec<Record>) = records.partition(|record| done.contains(&record.offset));
        let next = rest.first().map_or(load.next, |first| first.offset);
        let held: usize = gone.iter().map(Record::bytes).sum();
        let (records, bytes) = (gone.len().min(load.records), held.min(load.bytes));
        let rest = (!rest.is_empty()).then(|| Arc::new(RecordBatch { source: batch.source.clone(), records: rest }));
        let gone = RecordBatch { source: batch.source.clone(), records: gone };
        self.pass(
            Load::new(None, next, records, bytes),
            gone.records.iter().map(|record| record.offset).collect(),
            shipment,
        );
        Load { batch: rest, records: load.records - records, bytes: load.bytes - bytes, ..load }
    }

    /// A load has been worked on; what is before it comes first. `done`: its offsets,
    /// where others before them are not done.
    fn pass(&mut self, load: Load, done: Vec<i64>, shipment: Shipment) {
        if let Some(counter) = &mut self.counter {
            return counter.gather(Some(load), done, shipment);
        }
        self.progress.add_beyond(done);
        self.afloat.push_back(load);
        self.outcomes.push_back(match shipment.records.is_empty() {
            true => std::future::ready(Outcome::default()).boxed(),
            // Only what is sent once has not been sent yet.
            false => send_once(Arc::clone(&self.station.producer), shipment).boxed(),
        });
    }

    pub(super) fn attempt_failed(&mut self, mut load: Load, error: Error, patient: bool, culprit: Option<i64>) {
        let board = &self.station.board;
        board.error(&error.to_string());
        let retries = self.station.shop.plan.retries;
        let Some(first) = load.batch.as_ref().and_then(|batch| batch.records.first()) else {
            // All was marked; nothing is left to be tried.
            return self.queue.push_front(load);
        };
        // Full storage is not the records' fault either: they wait for room.
        let patient = patient || (error.is_retryable() && error.is_storage_full());
        let wait = if patient {
            load.setbacks = load.setbacks.saturating_add(1);
            retry::backoff(&retry::patient(), load.setbacks)
        } else {
            load.attempts += 1;
            if !error.is_retryable() || load.attempts >= retries.attempts {
                return self.give_up(load, &error, culprit);
            }
            retry::backoff(&retries, load.attempts)
        };
        board.tell_of_storage(&error);
        let About { document, .. } = About::of(first);
        board.event(&Event::Retrying { document, attempts: load.attempts, error: error.to_string() });
        self.rest_until = Some(Instant::now() + wait);
        self.queue.push_front(load);
    }

    /// No further attempt is made: the record that could not be piped, or the first,
    /// is given up on.
    pub(super) fn give_up(&mut self, load: Load, error: &Error, culprit: Option<i64>) {
        let Some(batch) = &load.batch else { return };
        let found = batch.records.iter().find(|record| Some(record.offset) == culprit);
        let Some(record) = found.or_else(|| batch.records.first()).cloned() else { return };
        let on_exhausted = self.station.shop.plan.on_exhausted;
        let rate = self.station.fuse.gives_up();
        if rate.is_some() || on_exhausted == OnExhausted::Pause {
            return self.stop(load, &record, error, rate);
        }
        match on_exhausted {
            OnExhausted::Skip => self.skip(load, &record, error.to_string()),
            // PAUSE has stopped the partition.
            OnExhausted::DeadLetter | OnExhausted::Pause => {
                let reason = Reason::new(error, load.attempts);
                let burial = bury(Arc::clone(&self.station), Arc::clone(&self.source), record, reason);
                self.in_hand = Some((load, burial.boxed()));
            }
        }
    }

    /// A record is given up on and dropped; the rest starts anew.
    pub(super) fn skip(&mut self, load: Load, record: &Record, error: String) {
        self.station.board.failed();
        self.station.board.event(&Event::Skipped { document: About::of(record).document, error });
        self.start_anew_without(load, record.offset, Shipment::default());
    }

    /// The record at this offset is done with; the rest starts anew.
    fn start_anew_without(&mut self, load: Load, offset: i64, letter: Shipment) {
        let rest = self.split(load, &[offset], letter);
        self.queue.push_front(rest.anew());
    }
}

async fn in_hand(in_hand: &mut Option<(Load, BoxFuture<'static, Turn>)>) -> Turn {
    match in_hand {
        Some((_, turn)) => turn.await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
