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
//!    └──── the first is buried or skipped; the rest starts anew
//! ```
//!
//! Knows nothing of other partitions, of commits or of the consumer.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, StreamExt};
use pipedoc_model::step::OnExhausted;
use pipedoc_telemetry::propagation::continue_trace;
use pipedoc_transport::log::{self, Record, RecordBatch, TopicPartition};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tracing::Instrument;

use super::Station;
use super::pipe::{self, Outcome, Pipe, Sending, Source};
use super::progress::Progress;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::record::RecordContext;
use crate::runtime::dead_letter::{self, Reason};
use crate::runtime::outbox::is_of_the_record;
use crate::runtime::process::panicked;
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
struct Load {
    /// None when all of it is done, and only its place in the order counts.
    batch: Option<Arc<RecordBatch>>,
    /// When it is done, everything below this offset is.
    next: i64,
    records: usize,
    bytes: usize,
    /// Attempts that failed.
    attempts: u32,
    /// Times that it could not be tried, through no fault of its own.
    setbacks: u32,
}

/// What has become of the load in hand.
enum Turn {
    /// The module has returned; what it piped is on its way.
    Returned(Sending),
    /// The attempt failed.
    Failed { error: Error, patient: bool, culprit: Option<i64>, marks: Vec<bool> },
    /// The record at this offset lies in the dead letters.
    Buried { offset: i64, about: About, reason: Reason },
}

/// One partition's worker.
pub(super) struct Worker {
    station: Arc<Station>,
    source: Arc<Source>,
    progress: Arc<Progress>,
    inbox: UnboundedReceiver<RecordBatch>,
    tasks: watch::Receiver<Task>,
    /// Not begun, or to be done again.
    queue: VecDeque<Load>,
    /// Since when something waits for a batch to fill.
    waiting_since: Option<Instant>,
    /// Until when nothing is begun, as something failed.
    rest_until: Option<Instant>,
    in_hand: Option<(Load, BoxFuture<'static, Turn>)>,
    /// Returned by the module, not acknowledged: the loads, and what comes of each.
    afloat: VecDeque<Load>,
    outcomes: FuturesOrdered<BoxFuture<'static, Outcome>>,
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
        inbox: UnboundedReceiver<RecordBatch>,
        tasks: watch::Receiver<Task>,
    ) -> Self {
        let source = Arc::new(Source::new(place, &station.shop.plan.group));
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
                if self.in_hand.is_none() && self.afloat.is_empty() {
                    return;
                }
            }
            let deadline = if self.in_hand.is_none() && task != Task::Rest { self.begin() } else { None };
            tokio::select! {
                biased;
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

    fn take_in(&mut self, batch: RecordBatch) {
        let Some(last) = batch.records.last() else { return };
        let load = Load {
            next: last.offset + 1,
            records: batch.records.len(),
            bytes: bytes_of(&batch.records),
            batch: Some(Arc::new(batch)),
            attempts: 0,
            setbacks: 0,
        };
        self.queue.push_back(load);
    }

    /// Drops what was not begun: it comes again elsewhere.
    fn let_go(&mut self) {
        self.inbox.close();
        self.queue.clear();
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
            self.afloat.push_back(load);
            self.outcomes.push_back(std::future::ready(Outcome::default()).boxed());
        }
        if let Some(until) = self.fill(now) {
            return Some(until);
        }
        let load = self.queue.pop_front()?;
        self.waiting_since = None;
        let batch = Arc::clone(load.batch.as_ref()?);
        let turn = attempt(Arc::clone(&self.station), Arc::clone(&self.source), batch, load.attempts);
        self.in_hand = Some((load, turn.boxed()));
        None
    }

    /// Makes batches of the size that the step asks for; says until when to wait
    /// for more.
    fn fill(&mut self, now: Instant) -> Option<Instant> {
        let bounds = self.station.shop.plan.batch?;
        let fresh = |load: &Load| load.attempts == 0 && load.setbacks == 0 && load.batch.is_some();
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
                self.afloat.push_back(load);
                self.outcomes.push_back(sending.settled().boxed());
            }
            Turn::Failed { error, patient, culprit, marks } => {
                let load = self.keep_marked(load, &marks);
                self.attempt_failed(load, error, patient, culprit);
            }
            Turn::Buried { offset, about, reason } => {
                let board = &self.station.board;
                board.failed();
                let Reason { kind, message, .. } = reason;
                let step = &self.station.shop.plan.id;
                tracing::warn!(%step, document = about.document, kind, error = message, "dead letter");
                let About { document, version, .. } = about;
                board.event(&Event::DeadLetter { document, version, kind: kind.to_owned(), error: message });
                self.start_anew_without(load, offset);
            }
        }
    }

    /// The oldest load afloat has its reports.
    fn acknowledged(&mut self, outcome: Outcome) {
        let Some(load) = self.afloat.pop_front() else { return };
        match outcome.failed {
            None => self.done(&load, outcome.sent),
            Some((error, culprit)) => {
                // It and all after it are done anew.
                self.outcomes = FuturesOrdered::new();
                let in_hand = self.in_hand.take().map(|(load, _)| load);
                for later in self.afloat.drain(..).chain(in_hand).rev() {
                    self.queue.push_front(later);
                }
                let (error, patient) = self.of_send(error);
                self.attempt_failed(load, error, patient, culprit);
            }
        }
    }

    fn done(&self, load: &Load, sent: usize) {
        if let Some(batch) = &load.batch {
            told_done(&self.station, &batch.records, sent);
        }
        self.progress.settle(load.next, load.records, load.bytes);
        self.station.news.notify_one();
    }

    /// What a send's error means: whose fault it is, and whether these clients can
    /// go on.
    fn of_send(&self, error: log::Error) -> (Error, bool) {
        judge(&self.station, error, &self.source.place)
    }

    /// Settles the marked records of a failed load; gives the rest.
    fn keep_marked(&mut self, load: Load, marks: &[bool]) -> Load {
        let Some(batch) = load.batch.as_ref().filter(|_| marks.contains(&true)) else { return load };
        let marked = |at: &usize| marks.get(*at).copied().unwrap_or(false);
        let part = |wanted: bool| -> Vec<Record> {
            let records = batch.records.iter().enumerate();
            records.filter(|(at, _)| marked(at) == wanted).map(|(_, record)| record.clone()).collect()
        };
        let (done, rest) = (part(true), part(false));
        told_done(&self.station, &done, 0);
        let bytes = bytes_of(&done);
        let next = rest.first().map_or(load.next, |first| first.offset);
        self.pass(next, done.len(), bytes);
        let batch = RecordBatch { source: batch.source.clone(), records: rest };
        let records = batch.records.len();
        let batch = (records > 0).then(|| Arc::new(batch));
        Load { batch, records, bytes: load.bytes - bytes, ..load }
    }

    /// Something is done whose turn has come; what is afloat before it comes first.
    fn pass(&mut self, next: i64, records: usize, bytes: usize) {
        self.afloat.push_back(Load { batch: None, next, records, bytes, attempts: 0, setbacks: 0 });
        self.outcomes.push_back(std::future::ready(Outcome::default()).boxed());
    }

    fn attempt_failed(&mut self, mut load: Load, error: Error, patient: bool, culprit: Option<i64>) {
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
    fn give_up(&mut self, load: Load, error: &Error, culprit: Option<i64>) {
        let Some(batch) = &load.batch else { return };
        let found = batch.records.iter().find(|record| Some(record.offset) == culprit);
        let Some(record) = found.or_else(|| batch.records.first()).cloned() else { return };
        match self.station.shop.plan.on_exhausted {
            OnExhausted::Skip => {
                let document = About::of(&record).document;
                tracing::warn!(step = %self.station.shop.plan.id, document, %error, "skipped");
                self.station.board.failed();
                self.station.board.event(&Event::Skipped { document, error: error.to_string() });
                self.start_anew_without(load, record.offset);
            }
            // A step that asks for PAUSE does not open yet.
            OnExhausted::DeadLetter | OnExhausted::Pause => {
                let reason = Reason::new(error, load.attempts);
                let burial = bury(Arc::clone(&self.station), Arc::clone(&self.source), record, reason);
                self.in_hand = Some((load, burial.boxed()));
            }
        }
    }

    /// The record at this offset is done with; the rest starts anew.
    fn start_anew_without(&mut self, load: Load, offset: i64) {
        let Some(batch) = &load.batch else { return };
        let marks: Vec<bool> = batch.records.iter().map(|record| record.offset == offset).collect();
        let gone: Vec<Record> = batch.records.iter().filter(|record| record.offset == offset).cloned().collect();
        let rest: Vec<Record> =
            batch.records.iter().zip(&marks).filter(|(_, gone)| !**gone).map(|(record, _)| record.clone()).collect();
        let bytes = bytes_of(&gone);
        let next = rest.first().map_or(load.next, |first| first.offset);
        self.pass(next, gone.len(), bytes);
        if rest.is_empty() {
            return;
        }
        let records = rest.len();
        let batch = RecordBatch { source: batch.source.clone(), records: rest };
        let batch = Some(Arc::new(batch));
        self.queue.push_front(Load { batch, records, bytes: load.bytes - bytes, attempts: 0, setbacks: 0, ..load });
    }
}

/// One attempt at a batch.
async fn attempt(station: Arc<Station>, source: Arc<Source>, batch: Arc<RecordBatch>, attempts: u32) -> Turn {
    // Closed only when the step has ended.
    let _hand = station.hands.acquire().await;
    let shop = &station.shop;
    let span = tracing::info_span!(
        "process", step = %shop.plan.id, source = %source.place, records = batch.records.len()
    );
    if let Some(first) = batch.records.first() {
        continue_trace(&span, &first.headers);
    }
    let partitions = match shop.partitions().await {
        Ok(partitions) => Arc::new(partitions),
        Err(error) => {
            return Turn::Failed { error: error.into(), patient: true, culprit: None, marks: Vec::new() };
        }
    };
    let pipe =
        Pipe::new(Arc::clone(&station), Arc::clone(&source), Arc::clone(&batch), attempts, partitions, &span);
    let mut sending = Sending::new(&pipe);
    let context = RecordContext::new(pipe);
    let result = {
        let module = AssertUnwindSafe(station.program.process(&batch, &context)).catch_unwind();
        let module = tokio::time::timeout(shop.plan.timeout, module);
        let mut module = std::pin::pin!(module.instrument(span));
        pipe::drive(&context.pipe, &mut sending, module.as_mut()).await
    };
    let result = match result {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => Err(panicked(panic.as_ref())),
        Err(_) => Err(Error::retryable("no answer in time").with_kind("timeout")),
    };
    match result.and_then(|()| context.pipe.take_refused().map_or(Ok(()), Err)) {
        Ok(()) => Turn::Returned(sending),
        Err(error) => {
            // Marks count only when all that was piped is acknowledged.
            let marks = context.pipe.take_marks();
            match sending.settled().await.failed {
                None => Turn::Failed { error, patient: false, culprit: None, marks },
                Some((failed, culprit)) => {
                    let of_the_record = is_of_the_record(&failed);
                    let (of_send, patient) = judge(&station, failed, &source.place);
                    // The module may only have passed on what its report said.
                    let (error, culprit) = if of_the_record { (of_send, culprit) } else { (error, None) };
                    Turn::Failed { error, patient, culprit, marks: Vec::new() }
                }
            }
        }
    }
}

/// What a send's error means: the module's view of it, and whether it is none of the
/// records' fault. One that these clients cannot get over ends them.
fn judge(station: &Station, error: log::Error, place: &TopicPartition) -> (Error, bool) {
    if is_of_the_record(&error) {
        let kind = if matches!(error, log::Error::RecordTooLarge { .. }) { "too-large" } else { "unknown-topic" };
        return (Error::permanent(error).with_kind(kind), false);
    }
    if !error.is_retryable() {
        let fatal = Error::from(error.clone()).context("the producer cannot be used any more");
        station.fatal.lock().get_or_insert(fatal);
        station.news.notify_one();
    }
    let error = Error::from(error).context(format!("sending for {place} failed"));
    station.board.trouble(&error);
    (error, true)
}

/// Makes a record's dead letter and sends it, for as long as it takes.
async fn bury(station: Arc<Station>, source: Arc<Source>, record: Record, reason: Reason) -> Turn {
    let mut failures = 0_u32;
    loop {
        let sent = async {
            let letter = dead_letter::of_record(&station.shop, &record, &source.place, &reason).await?;
            for report in station.producer.send(vec![letter]).await?.await {
                report?;
            }
            Ok::<(), Error>(())
        };
        match sent.await {
            Ok(()) => return Turn::Buried { offset: record.offset, about: About::of(&record), reason },
            Err(error) => {
                failures = failures.saturating_add(1);
                station.board.trouble(&error.context("a dead letter cannot be made"));
                tokio::time::sleep(retry::backoff(&retry::patient(), failures)).await;
            }
        }
    }
}

/// Tells that records are done.
fn told_done(station: &Station, records: &[Record], sent: usize) {
    station.board.done_many(records.len());
    if !station.board.heeds_documents() {
        return;
    }
    let sent = usize::from(sent > 0);
    for record in records {
        let About { document, tombstone, .. } = About::of(record);
        station.board.event(&Event::Done { document, sent, tombstone });
    }
}

/// Runs one of a module's callbacks; what goes wrong with it is told.
pub(super) async fn told(station: &Station, what: &str, callback: BoxFuture<'_, Result<()>>) {
    let limit = station.shop.plan.revoke_grace;
    let told = tokio::time::timeout(limit, AssertUnwindSafe(callback).catch_unwind());
    let result = match told.await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => Err(panicked(panic.as_ref())),
        Err(_) => Err(Error::retryable(format!("it took longer than revoke_grace ({limit:?})"))),
    };
    if let Err(error) = result {
        station.board.trouble(&error.context(format!("the module's `{what}` failed")));
    }
}

/// Bytes that records hold.
pub(super) fn bytes_of(records: &[Record]) -> usize {
    /// What a header takes, with its name and its share of the batch's memory.
    const HEADER: usize = 64;
    let length = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, bytes::Bytes::len);
    let of_headers = |record: &Record| {
        record.headers.iter().map(|header| HEADER + header.value().map_or(0, bytes::Bytes::len)).sum::<usize>()
    };
    records.iter().map(|record| length(&record.key) + length(&record.value) + of_headers(record)).sum()
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
