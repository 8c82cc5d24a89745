//! Which batch a delivery report belongs to, without an allocation per record.
//!
//! A record carries one number through librdkafka: its batch and its place in
//! the batch. Reports come on the client's own thread and fill the places; the
//! last one settles the batch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pipedoc_model::names::Topic;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::ProducerContext;
use rdkafka::{ClientContext, Statistics};
use tokio::sync::{Notify, oneshot};

use super::KafkaLog;
use super::contact::{self, Contact};
use super::failure::{Attempt, is_unknown_topic};
use super::statistics::StatisticsObserver;
use super::topics::Topics;
use crate::log::{Delivered, Error, Receipt, Reports, Result, TopicPartition};

/// A batch holds at most so many records: its places are numbered with 16 bits.
pub(super) const BATCH_RECORDS: usize = 1 << 16;

/// How long no report may come before what is open is not waited for.
const STALLED: Duration = Duration::from_millis(500);

const _: () = assert!(usize::BITS >= 64, "batch and place are packed into one pointer");

/// Number of a record: its batch, then its place in it.
pub(super) type Ticket = usize;

/// The batches on their way, shared by all clients of a producer.
pub(super) struct Deliveries {
    contact: Arc<Contact>,
    topics: Arc<Topics>,
    statistics: StatisticsObserver,
    timeout: Duration,
    /// Who writes, for errors of fencing.
    who: String,
    open: Mutex<Open>,
    /// Some record was settled: there is room, or a batch is done.
    settled: Notify,
    /// How many wait for that.
    waiting: AtomicUsize,
    /// No record is without a report any more, or one has failed.
    all_settled: Notify,
    /// A record has timed out, and none was written since.
    timed_out: AtomicBool,
    /// The client has ended, as it may write to no topic at all.
    may_not_write: AtomicBool,
}

#[derive(Debug, Default)]
struct Open {
    last: u64,
    batches: BTreeMap<u64, Batch>,
    /// Somebody waits until none is left.
    awaited: bool,
    /// Why a record was not written: the first, since somebody has asked.
    failed: Option<Error>,
}

impl Open {
    /// Places without a report, of all batches.
    fn left(&self) -> usize {
        self.batches.values().map(|batch| batch.open).sum()
    }
}

#[derive(Debug)]
struct Batch {
    reports: Vec<Option<Result<Delivered>>>,
    /// Places without a report, and one for the sender while it sends.
    open: usize,
    done: oneshot::Sender<Reports>,
}

/// Counts as one that waits until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A batch that is being sent. Dropped before its end, the batch is forgotten:
/// nobody holds its receipt.
pub(super) struct Sending<'a> {
    deliveries: &'a Deliveries,
    batch: u64,
    receipt: Option<oneshot::Receiver<Reports>>,
}

impl Deliveries {
    /// `timeout`: how long a record is tried before it is given up.
    pub(super) fn new(log: &KafkaLog, timeout: Duration, who: String) -> Self {
        let (contact, topics) = (log.contact.clone(), log.topics.clone());
        Self {
            contact,
            topics,
            statistics: log.config.statistics.clone(),
            timeout,
            who,
            open: Mutex::default(),
            settled: Notify::new(),
            waiting: AtomicUsize::new(0),
            all_settled: Notify::new(),
            timed_out: AtomicBool::new(false),
            may_not_write: AtomicBool::new(false),
        }
    }

    /// Opens a batch of `records`, at most [`BATCH_RECORDS`].
    pub(super) fn begin(&self, records: usize) -> Sending<'_> {
        let (done, receipt) = oneshot::channel();
        let mut open = self.open.lock();
        open.last += 1;
        let batch = open.last;
        open.batches.insert(batch, Batch { reports: vec![None; records], open: records + 1, done });
        Sending { deliveries: self, batch, receipt: Some(receipt) }
    }

    /// Waits until some record was settled, for a moment at most.
    pub(super) async fn room(&self) {
        // A report between the caller's look and this call goes unnoticed; hence the bound.
        let _waiting = Waiting::new(&self.waiting);
        let _ = tokio::time::timeout(Duration::from_millis(20), self.settled.notified()).await;
    }

    /// Waits until no record is without a report: true. False when none is settled for
    /// a while.
    ///
    /// # Errors
    /// That of the first record that was not written, as soon as it is known.
    pub(super) async fn all(&self) -> Result<bool> {
        loop {
            let left = {
                let mut open = self.open.lock();
                if let Some(error) = open.failed.take() {
                    return Err(error);
                }
                open.awaited = !open.batches.is_empty();
                open.left()
            };
            if left == 0 {
                return Ok(true);
            }
            let told = tokio::time::timeout(STALLED, self.all_settled.notified()).await.is_ok();
            let mut open = self.open.lock();
            if !told && open.left() == left {
                open.awaited = false;
                return Ok(false);
            }
        }
    }

    /// Forgets what has failed so far.
    pub(super) fn forgive(&self) {
        self.open.lock().failed = None;
    }

    /// Waits until all batches opened so far are settled; gives the number of
    /// records that are not when `limit` has passed.
    pub(super) async fn flush(&self, limit: Duration) -> usize {
        let mark = self.open.lock().last;
        let end = tokio::time::Instant::now() + limit;
        loop {
            let left: usize = self.open.lock().batches.range(..=mark).map(|(_, batch)| batch.open).sum();
            if left == 0 || tokio::time::Instant::now() >= end {
                return left;
            }
            self.room().await;
        }
    }

    /// Whether records time out although the cluster answers others.
    pub(super) fn has_timed_out(&self) -> bool {
        self.timed_out.load(Ordering::Relaxed) && self.contact.silent_for().is_none()
    }

    /// Another client takes over.
    pub(super) fn begin_anew(&self) {
        self.timed_out.store(false, Ordering::Relaxed);
        self.may_not_write.store(false, Ordering::Relaxed);
    }

    /// The error for a record that was not written.
    pub(super) fn failure(&self, topic: &str, partition: i32, error: KafkaError) -> Error {
        let attempt = Attempt::new("writing a record", &self.contact, self.timeout).by(&self.who).needs("Write");
        let Ok(topic) = Topic::new(topic) else { return attempt.failed(error) };
        match error.rdkafka_error_code() {
            Some(code) if is_unknown_topic(code) => {
                self.topics.forget(&topic);
                Error::UnknownTopic { topic }
            }
            // Who may write nowhere gets no number for its records, which ends the client.
            Some(Code::Fatal | Code::PurgeQueue | Code::PurgeInflight)
                if self.may_not_write.load(Ordering::Relaxed) =>
            {
                attempt.refused_on(&topic, Code::TopicAuthorizationFailed)
            }
            // The client is spent, and replaced; the record was not to blame.
            Some(Code::Fatal) => attempt.passing(error),
            Some(Code::MessageTimedOut) => {
                self.timed_out.store(true, Ordering::Relaxed);
                attempt.failed_on(&topic, error)
            }
            // The topic's limit was lowered a moment ago. Sent again, the record
            // meets the limit that is known then.
            Some(Code::MessageSizeTooLarge | Code::InvalidMessageSize) => {
                self.topics.forget(&topic);
                attempt.passing(error)
            }
            Some(Code::UnknownPartition) => {
                Error::UnknownPartition { partition: TopicPartition::new(topic, partition) }
            }
            Some(Code::PurgeQueue | Code::PurgeInflight) => Error::Closed { what: "producer" },
            _ => attempt.failed_on(&topic, error),
        }
    }

    fn settle(&self, batch: u64, place: Option<(usize, Result<Delivered>)>) {
        let mut open = self.open.lock();
        // The sender of a forgotten batch has gone.
        let Some(found) = open.batches.get_mut(&batch) else { return };
        let mut failure = None;
        if let Some((place, report)) = place
            && let Some(slot) = found.reports.get_mut(place)
        {
            failure = report.as_ref().err().cloned();
            *slot = Some(report);
        }
        found.open -= 1;
        let done = if found.open == 0 { open.batches.remove(&batch) } else { None };
        if open.awaited && (failure.is_some() || open.batches.is_empty()) {
            open.awaited = false;
            self.all_settled.notify_one();
        }
        if failure.is_some() && open.failed.is_none() {
            open.failed = failure;
        }
        if let Some(batch) = done {
            let missing = || Err(Error::Closed { what: "producer" });
            let reports = batch.reports.into_iter().map(|report| report.unwrap_or_else(missing)).collect();
            // Nobody may be waiting for it.
            let _ = batch.done.send(reports);
        }
    }
}

impl Sending<'_> {
    /// Number that the record at `place` takes along.
    pub(super) fn ticket(&self, place: usize) -> Ticket {
        (self.batch as usize) << 16 | place
    }

    /// The record at `place` was refused before it was sent.
    pub(super) fn refuse(&self, place: usize, error: Error) {
        self.deliveries.settle(self.batch, Some((place, Err(error))));
    }

    /// All records are sent or refused.
    pub(super) fn end(mut self) -> Receipt {
        self.deliveries.settle(self.batch, None);
        let receipt = self.receipt.take();
        Receipt::new(async move {
            match receipt {
                // The sender side goes only with the client, after it has settled all.
                Some(receipt) => receipt.await.unwrap_or_default(),
                None => Reports::new(),
            }
        })
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        if self.receipt.is_some() {
            self.deliveries.open.lock().batches.remove(&self.batch);
        }
    }
}

/// Context of a client that writes.
#[derive(Clone)]
pub(super) struct WriterContext(pub(super) Arc<Deliveries>);

impl ClientContext for WriterContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        contact::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(Code::ClusterAuthorizationFailed) {
            self.0.may_not_write.store(true, Ordering::Relaxed);
        }
        self.0.contact.trouble(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        self.0.statistics.tell(&statistics, None);
    }
}

impl ProducerContext for WriterContext {
    type DeliveryOpaque = Ticket;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Ticket) {
        let report = match result {
            Ok(message) => {
                self.0.contact.heard();
                if self.0.timed_out.load(Ordering::Relaxed) {
                    self.0.begin_anew();
                }
                Ok(Delivered {
                    partition: message.partition(),
                    offset: message.offset(),
                    timestamp: message.timestamp().to_millis().unwrap_or(-1),
                })
            }
            Err((error, message)) => Err(self.0.failure(message.topic(), message.partition(), error.clone())),
        };
        self.0.settle((ticket >> 16) as u64, Some((ticket & (BATCH_RECORDS - 1), report)));
        // Rarely does anybody wait, and each record comes by here.
        if self.0.waiting.load(Ordering::Relaxed) > 0 {
            self.0.settled.notify_waiters();
        }
    }
}
