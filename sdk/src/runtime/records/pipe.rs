//! What one attempt at a batch pipes on: made into records, numbered, and given to
//! the producer in order.
//!
//! Knows headers and the producer; knows nothing of attempts before or after.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use pipedoc_model::headers::{self, Headers};
use pipedoc_model::names::Topic;
use pipedoc_model::partition;
use pipedoc_telemetry::propagation::{continue_trace, write_trace};
use pipedoc_transport::log::{self, OutgoingRecord, Producer, Receipt, Record, RecordBatch, Reports, TopicPartition};

use super::Station;
use crate::error::{Error, Result};
use crate::module::Step;
use crate::record::{Ledger, Message, Report, Settled};
use crate::runtime::hop;
use crate::runtime::outbox::is_of_the_record;

/// Where records come from, in the form in which headers say so.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) place: Arc<TopicPartition>,
    topic: Bytes,
    partition: Bytes,
    group: Bytes,
}

impl Source {
    pub(super) fn new(place: Arc<TopicPartition>, group: &str) -> Self {
        Self {
            topic: Bytes::copy_from_slice(place.topic.as_str().as_bytes()),
            partition: Bytes::from(place.partition.to_string()),
            group: Bytes::copy_from_slice(group.as_bytes()),
            place,
        }
    }
}

/// An attempt at a batch, as its context sees it.
pub(crate) struct Pipe {
    station: Arc<Station>,
    source: Arc<Source>,
    batch: Arc<RecordBatch>,
    attempt: u32,
    /// Partitions of each topic that may be written to.
    partitions: Arc<HashMap<Topic, i32>>,
    /// Whether each piped record goes on with a trace of its own.
    traced: bool,
    ledger: Arc<Ledger>,
    notes: Mutex<Notes>,
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
}

/// Records to be sent together.
#[derive(Debug, Default)]
struct Shipment {
    /// Number of the first.
    first: u64,
    records: Vec<OutgoingRecord>,
    /// Offset of the record that each was piped for, or [`NONE`].
    origins: Vec<i64>,
}

/// Sent for no record in particular.
const NONE: i64 = -1;

impl Pipe {
    pub(super) fn new(
        station: Arc<Station>,
        source: Arc<Source>,
        batch: Arc<RecordBatch>,
        attempt: u32,
        partitions: Arc<HashMap<Topic, i32>>,
        span: &tracing::Span,
    ) -> Self {
        let mut probe = Headers::new();
        write_trace(span, &mut probe);
        let traced = !probe.is_empty();
        let ledger = Arc::default();
        Self { station, source, batch, attempt, partitions, traced, ledger, notes: Mutex::default() }
    }

    pub(crate) fn step(&self) -> &Step {
        &self.station.shop.step
    }

    pub(crate) fn source(&self) -> &TopicPartition {
        &self.source.place
    }

    pub(crate) fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Marks the record at an offset; `false` when the batch has none there.
    pub(crate) fn mark(&self, offset: i64) -> bool {
        let Ok(at) = self.batch.records.binary_search_by_key(&offset, |record| record.offset) else { return false };
        let mut notes = self.notes.lock();
        notes.marks.resize(self.batch.records.len(), false);
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
        let keyless = partition::for_source(self.source.place.partition, partitions);
        let mut hops = Hops::default();
        let mut outgoing = Vec::with_capacity(records.size_hint().0);
        let mut origins = Vec::with_capacity(records.size_hint().0);
        for record in records {
            let mut message = Message {
                key: record.key.clone(),
                value: record.value.clone(),
                headers: self.headers(record, &mut hops),
                partition: None,
                timestamp: None,
            };
            self.station.program.enhance(&mut message, record);
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
        let router = &self.station.shop.router;
        let topic = router.topic(to).ok_or_else(|| router.unknown(to))?;
        match self.partitions.get(topic) {
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
        self.ledger.report(numbers)
    }

    /// Headers of what is piped for a record: foreign ones as they are and in order,
    /// then ours.
    fn headers(&self, record: &Record, hops: &mut Hops) -> Headers {
        let mut next = Headers::with_capacity(record.headers.len() + 7);
        let (mut hop, mut stream, mut event_time, mut identity) = (0, false, false, false);
        for header in record.headers.iter() {
            match header.name() {
                headers::SOURCE_TOPIC
                | headers::SOURCE_PARTITION
                | headers::SOURCE_OFFSET
                | headers::SOURCE_CONSUMER_GROUP => continue,
                headers::HOP => {
                    let value = header.value().and_then(|value| std::str::from_utf8(value).ok());
                    // The last one counts, even where it cannot be read.
                    hop = value.and_then(|value| value.parse::<i64>().ok()).unwrap_or(0);
                    continue;
                }
                headers::STREAM_ID => stream = true,
                headers::EVENT_TIME => event_time = true,
                headers::DOCUMENT_ID => identity = true,
                _ => {}
            }
            next.push(header.clone());
        }
        next.append_ours(headers::SOURCE_TOPIC, self.source.topic.clone());
        next.append_ours(headers::SOURCE_PARTITION, self.source.partition.clone());
        next.append_ours(headers::SOURCE_OFFSET, hops.number(record.offset));
        next.append_ours(headers::SOURCE_CONSUMER_GROUP, self.source.group.clone());
        next.append_ours(headers::HOP, hops.hop(hop.saturating_add(1)));
        if !stream {
            next.append_ours(headers::STREAM_ID, Bytes::from(hop::new_stream()));
        }
        if !event_time {
            next.append_ours(headers::EVENT_TIME, Bytes::from(headers::format_time(record.timestamp)));
        }
        if !identity && let Some(key) = record.key.as_ref().filter(|key| is_text(key)) {
            next.append_ours(headers::DOCUMENT_ID, key.clone());
        }
        if self.traced {
            // Each record has a trace of its own, so each hop a span of its own.
            let span = tracing::info_span!("pipe", source = %self.source.place, offset = record.offset);
            continue_trace(&span, &record.headers);
            write_trace(&span, &mut next);
        }
        next
    }
}

fn is_text(key: &Bytes) -> bool {
    !key.is_empty() && std::str::from_utf8(key).is_ok()
}

/// Numbers as text, many in one piece of memory.
#[derive(Debug, Default)]
struct Hops {
    memory: BytesMut,
    /// The last hop written: nearly always that of the next record as well.
    last: Option<(i64, Bytes)>,
}

/// Numbers are written into pieces of so many bytes.
const PIECE: usize = 4096;
/// The longest number: 19 digits and a sign.
const LONGEST: usize = 20;

impl Hops {
    fn number(&mut self, number: i64) -> Bytes {
        if self.memory.capacity() < LONGEST {
            self.memory = BytesMut::with_capacity(PIECE);
        }
        // Writing into memory does not fail.
        let _ = write!(self.memory, "{number}");
        self.memory.split().freeze()
    }

    fn hop(&mut self, hop: i64) -> Bytes {
        if let Some((last, text)) = &self.last
            && *last == hop
        {
            return text.clone();
        }
        let text = self.number(hop);
        self.last = Some((hop, text.clone()));
        text
    }
}

/// What came of everything that an attempt has piped.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// How many records were piped.
    pub(super) sent: usize,
    /// The error that says most, and the offset that it is about: one that may pass
    /// before one that will not, as then all are sent again.
    pub(super) failed: Option<(log::Error, Option<i64>)>,
}

impl Outcome {
    fn note(&mut self, error: log::Error, origin: i64) {
        if self.failed.as_ref().is_none_or(|(known, _)| is_of_the_record(known) && !is_of_the_record(&error)) {
            self.failed = Some((error, (origin != NONE).then_some(origin)));
        }
    }
}

/// Gives what an attempt pipes to the producer, in order, and hears what becomes of it.
pub(super) struct Sending {
    producer: Arc<dyn Producer>,
    ledger: Arc<Ledger>,
    taking: Option<(Way, BoxFuture<'static, log::Result<Receipt>>)>,
    receipts: FuturesUnordered<BoxFuture<'static, (Way, Reports)>>,
    outcome: Outcome,
}

/// What a shipment's reports are about.
struct Way {
    first: u64,
    origins: Vec<i64>,
}

impl Sending {
    pub(super) fn new(pipe: &Pipe) -> Self {
        Self {
            producer: Arc::clone(&pipe.station.producer),
            ledger: Arc::clone(&pipe.ledger),
            taking: None,
            receipts: FuturesUnordered::new(),
            outcome: Outcome::default(),
        }
    }

    /// Sends what waits; ready when the producer has taken it all.
    pub(super) fn poll_taken(&mut self, pipe: &Pipe, context: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.taking.is_none() {
                let shipment = std::mem::take(&mut pipe.notes.lock().waiting);
                if shipment.records.is_empty() {
                    return Poll::Ready(());
                }
                let way = Way { first: shipment.first, origins: shipment.origins };
                self.outcome.sent += shipment.records.len();
                if self.outcome.failed.as_ref().is_some_and(|(error, _)| !is_of_the_record(error)) {
                    // Nothing overtakes what has to be sent again.
                    let closed = || Err(log::Error::Closed { what: "batch" });
                    self.settle(way, shipment.records.iter().map(|_| closed()).collect());
                    continue;
                }
                let producer = Arc::clone(&self.producer);
                let taking = async move { producer.send(shipment.records).await }.boxed();
                self.taking = Some((way, taking));
            }
            let Some((_, taking)) = &mut self.taking else { return Poll::Ready(()) };
            let Poll::Ready(taken) = taking.poll_unpin(context) else { return Poll::Pending };
            let Some((way, _)) = self.taking.take() else { return Poll::Ready(()) };
            match taken {
                Ok(receipt) => self.receipts.push(receipt.map(move |reports| (way, reports)).boxed()),
                Err(error) => {
                    let reports = way.origins.iter().map(|_| Err(error.clone())).collect();
                    self.settle(way, reports);
                }
            }
        }
    }

    /// Hears of acknowledgements; ready when none is awaited.
    pub(super) fn poll_settled(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            match self.receipts.poll_next_unpin(context) {
                Poll::Ready(Some((way, reports))) => self.settle(way, reports),
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Waits for all acknowledgements. Everything must have been taken.
    pub(super) async fn settled(mut self) -> Outcome {
        std::future::poll_fn(|context| self.poll_settled(context)).await;
        std::mem::take(&mut self.outcome)
    }

    fn settle(&mut self, way: Way, mut reports: Reports) {
        // A report that is missing is one that says nothing good.
        reports.resize_with(way.origins.len(), || Err(log::Error::Closed { what: "producer" }));
        for (report, origin) in reports.iter().zip(&way.origins) {
            if let Err(error) = report {
                self.outcome.note(error.clone(), *origin);
            }
        }
        self.ledger.settle(way.first, Settled::Reports(reports));
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.ledger.close();
    }
}

/// Runs a module's future and sends what it pipes, until it has returned and all of
/// it was taken.
pub(super) async fn drive<T>(
    pipe: &Pipe,
    sending: &mut Sending,
    mut module: Pin<&mut (dyn Future<Output = T> + Send)>,
) -> T {
    let mut result = None;
    std::future::poll_fn(|context| {
        if result.is_none()
            && let Poll::Ready(value) = module.as_mut().poll(context)
        {
            result = Some(value);
        }
        let taken = sending.poll_taken(pipe, context);
        // Reports that the module awaits are settled here.
        let _ = sending.poll_settled(context);
        match (taken, result.take()) {
            (Poll::Ready(()), Some(value)) => Poll::Ready(value),
            (_, kept) => {
                result = kept;
                Poll::Pending
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_share_memory_and_stay_what_they_were() {
        let mut hops = Hops::default();
        let numbers: Vec<i64> = (0..2000).map(|n| n * 7_919 - 1000).chain([i64::MIN, i64::MAX]).collect();
        let texts: Vec<Bytes> = numbers.iter().map(|number| hops.number(*number)).collect();
        for (number, text) in numbers.iter().zip(texts) {
            assert_eq!(text, number.to_string().as_bytes());
        }
        assert_eq!((hops.hop(2), hops.hop(2), hops.hop(3)), ("2".into(), "2".into(), "3".into()));
    }
}
