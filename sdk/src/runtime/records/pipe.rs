//! What one attempt at a batch pipes on: made into records, numbered, and given to
//! the producer in order.
//!
//! Knows headers and the producer; knows nothing of attempts before or after.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use pipedoc_model::headers::Headers;
use pipedoc_model::names::Topic;
use pipedoc_model::partition;
use pipedoc_model::step::Delivery;
use pipedoc_telemetry::propagation::{continue_trace, write_trace};
use pipedoc_transport::log::{self, Delivered, OutgoingRecord, Producer, Record, RecordBatch, TopicPartition};

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::Station;
use crate::error::{Error, Result};
use crate::module::Step;
use crate::record::{Ledger, Message, Report, Settled, of_log};
use crate::runtime::hop;

/// Where records come from.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) place: Arc<TopicPartition>,
    /// As headers say it.
    named: hop::Source,
}

impl Source {
    pub(super) fn new(place: Arc<TopicPartition>, group: &str) -> Self {
        Self { named: hop::Source::new(&place, group), place }
    }
}

/// An attempt at a batch, or a transaction within one, as a module sees it.
pub(crate) struct Pipe {
    trial: Arc<Trial>,
    ledger: Arc<Ledger>,
    notes: Mutex<Notes>,
}

/// An attempt at a batch.
struct Trial {
    station: Arc<Station>,
    source: Arc<Source>,
    batch: Arc<RecordBatch>,
    attempt: u32,
    /// Partitions of each topic that may be written to.
    partitions: HashMap<Topic, i32>,
    /// Whether each piped record goes on with a trace of its own.
    traced: bool,
    /// Takes transactions, in steps that have them.
    jobs: Option<UnboundedSender<Job>>,
}

/// A transaction to be committed.
pub(super) struct Job {
    pub(super) shipment: Shipment,
    /// Offsets of the records that are done with it.
    pub(super) marks: Vec<i64>,
    pub(super) reply: oneshot::Sender<log::Result<Vec<Delivered>>>,
}

/// What the module has said so far.
#[derive(Debug, Default)]
struct Notes {
    waiting: Shipment,
    /// Number of the next record.
    next: u64,
    /// Which records of the batch are marked; empty when none is.
    marks: Vec<bool>,
    /// The first thing that could not be piped.
    refused: Option<Error>,
    /// Nothing is taken any more.
    ended: bool,
}

/// Records to be sent together.
#[derive(Debug, Default)]
pub(super) struct Shipment {
    /// Number of the first.
    pub(super) first: u64,
    pub(super) records: Vec<OutgoingRecord>,
    /// Offset of the record that each was piped for, or [`NONE`].
    pub(super) origins: Vec<i64>,
}

/// Sent for no record in particular.
pub(super) const NONE: i64 = -1;

impl Shipment {
    /// One record, sent for none in particular.
    pub(super) fn of(record: OutgoingRecord) -> Self {
        Self { first: 0, records: vec![record], origins: vec![NONE] }
    }

    /// Bytes of its records.
    pub(super) fn bytes(&self) -> usize {
        OutgoingRecord::bytes_of(&self.records)
    }
}

impl Pipe {
    pub(super) fn new(
        station: Arc<Station>,
        source: Arc<Source>,
        batch: Arc<RecordBatch>,
        attempt: u32,
        partitions: HashMap<Topic, i32>,
        jobs: Option<UnboundedSender<Job>>,
        span: &tracing::Span,
    ) -> Self {
        let mut probe = Headers::new();
        write_trace(span, &mut probe);
        let traced = !probe.is_empty();
        let trial = Trial { station, source, batch, attempt, partitions, traced, jobs };
        Self { trial: Arc::new(trial), ledger: Arc::default(), notes: Mutex::default() }
    }

    /// The same for a transaction; none where the step has no transactions.
    pub(crate) fn branch(&self) -> Option<Self> {
        self.trial.jobs.as_ref()?;
        Some(Self { trial: Arc::clone(&self.trial), ledger: Arc::default(), notes: Mutex::default() })
    }

    /// The step's delivery, as pipeline files write it.
    pub(crate) fn delivery(&self) -> &'static str {
        match self.trial.station.shop.plan.delivery {
            Delivery::AtLeastOnce => "AT_LEAST_ONCE",
            Delivery::ExactlyOnce => "EXACTLY_ONCE",
            Delivery::AtMostOnce => "AT_MOST_ONCE",
        }
    }

    /// Commits what a branch has gathered.
    pub(crate) async fn commit(&self, branch: &Self) -> Result<Vec<Delivered>> {
        branch.end();
        if let Some(error) = branch.take_refused() {
            return Err(error);
        }
        let (reply, answer) = oneshot::channel();
        let marks = branch.take_marks().into_iter().zip(&self.trial.batch.records);
        let marks = marks.filter(|(marked, _)| *marked).map(|(_, record)| record.offset).collect();
        if let Some(jobs) = &self.trial.jobs {
            // When the worker has ended, the reply is dropped.
            let _ = jobs.send(Job { shipment: branch.take_waiting(), marks, reply });
        }
        match answer.await {
            Ok(result) => result.map_err(of_log),
            Err(_) => Err(Error::retryable("the partition was given up before the transaction was committed")),
        }
    }

    /// Takes nothing any more.
    pub(crate) fn end(&self) {
        self.notes.lock().ended = true;
    }

    /// Whether what is piped is kept until the batch has returned.
    pub(super) fn is_gathered(&self) -> bool {
        self.trial.station.gathers()
    }

    pub(super) fn producer(&self) -> Arc<dyn Producer> {
        Arc::clone(&self.trial.station.producer)
    }

    pub(super) fn ledger(&self) -> Arc<Ledger> {
        Arc::clone(&self.ledger)
    }

    /// All that was piped and not taken yet.
    pub(super) fn take_waiting(&self) -> Shipment {
        std::mem::take(&mut self.notes.lock().waiting)
    }

    pub(crate) fn step(&self) -> &Step {
        &self.trial.station.shop.step
    }

    pub(crate) fn source(&self) -> &TopicPartition {
        &self.trial.source.place
    }

    pub(crate) fn attempt(&self) -> u32 {
        self.trial.attempt
    }

    /// Marks the record at an offset; `false` when the batch has none there.
    pub(crate) fn mark(&self, offset: i64) -> bool {
        let Ok(at) = self.trial.batch.records.binary_search_by_key(&offset, |record| record.offset) else {
            return false;
        };
        let mut notes = self.notes.lock();
        notes.marks.resize(self.trial.batch.records.len(), false);
        notes.marks[at] = true;
        true
    }

    /// Which records are marked; empty when none is.
    pub(super) fn take_marks(&self) -> Vec<bool> {
        std::mem::take(&mut self.notes.lock().marks)
    }

    /// What could not be piped at all.
    pub(super) fn take_refused(&self) -> Option<Error> {
        self.notes.lock().refused.take()
    }

    /// Pipes records on, in order, to an output or an allowed topic.
    pub(crate) fn pipe<'a>(&self, records: impl Iterator<Item = &'a Record>, to: &str) -> Report {
        let (topic, partitions) = match self.topic(to) {
            Ok(found) => found,
            Err(error) => return self.refuse(error),
        };
        let keyless = partition::for_source(self.source().partition, partitions);
        let mut outgoing = Vec::with_capacity(records.size_hint().0);
        let mut origins = Vec::with_capacity(records.size_hint().0);
        for record in records {
            let mut message = Message {
                key: record.key.clone(),
                value: record.value.clone(),
                headers: self.headers(record),
                partition: None,
                timestamp: None,
            };
            self.trial.station.program.enhance(&mut message, record);
            if message.key.is_none() && message.partition.is_none() {
                message.partition = Some(keyless);
            }
            outgoing.push(message.to(topic.clone()));
            origins.push(record.offset);
        }
        self.enqueue(outgoing, origins)
    }

    /// Sends messages of the module's own.
    pub(crate) fn send(&self, messages: Vec<Message>, to: &str) -> Report {
        match self.topic(to) {
            Ok((topic, _)) => {
                let origins = vec![NONE; messages.len()];
                self.enqueue(messages.into_iter().map(|message| message.to(topic.clone())).collect(), origins)
            }
            Err(error) => self.refuse(error),
        }
    }

    fn topic(&self, to: &str) -> Result<(&Topic, i32)> {
        let router = &self.trial.station.shop.router;
        let topic = router.topic(to).ok_or_else(|| router.unknown(to))?;
        match self.trial.partitions.get(topic) {
            Some(partitions) => Ok((topic, *partitions)),
            None => Err(Error::permanent(log::Error::UnknownTopic { topic: topic.clone() }).with_kind("unknown-topic")),
        }
    }

    fn refuse(&self, error: Error) -> Report {
        let report = Report::failed(error.duplicate());
        self.notes.lock().refused.get_or_insert(error);
        report
    }

    fn enqueue(&self, records: Vec<OutgoingRecord>, origins: Vec<i64>) -> Report {
        let mut notes = self.notes.lock();
        if notes.ended {
            return Report::failed(Error::permanent("the transaction has ended").with_kind("ended"));
        }
        let numbers = notes.next..notes.next + records.len() as u64;
        notes.next = numbers.end;
        let waiting = &mut notes.waiting;
        if waiting.records.is_empty() {
            *waiting = Shipment { first: numbers.start, records, origins };
        } else {
            waiting.records.extend(records);
            waiting.origins.extend(origins);
        }
        drop(notes);
        let report = self.ledger.report(numbers.clone());
        if self.is_gathered() {
            // It is written with its transaction, or sent once.
            self.ledger.settle(numbers.start, Settled::Taken((numbers.end - numbers.start) as usize));
        }
        report
    }

    /// Headers of what is piped for a record.
    fn headers(&self, record: &Record) -> Headers {
        let mut next = hop::piped(record, &self.trial.source.named);
        if self.trial.traced {
            // Each record has a trace of its own, so each hop a span of its own.
            let span = tracing::debug_span!("pipe", source = %self.source(), offset = record.offset);
            continue_trace(&span, &record.headers);
            write_trace(&span, &mut next);
        }
        next
    }
}
