//! What PipeDoc's record road is measured against: the loop that one writes by
//! hand with rdkafka.
//!
//! A `BaseConsumer` polled on its own thread and a `ThreadedProducer` with a
//! delivery callback: both cost less a record than `StreamConsumer` and
//! `FutureProducer`, which allocate a future for each. A batch is what is there,
//! at most [`BATCH`]; all of it is sent, all its delivery reports are awaited, its
//! offsets are committed, and the next one begins. Meanwhile librdkafka fetches
//! ahead. The headers written are those that PipeDoc's record road writes.
//!
//! Reports are counted as they come: `flush` of rdkafka looks for them once in 100 ms
//! while another thread takes them. And records gather for [`LINGER_MS`] only, as
//! nothing comes after the last of a batch.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use pipedoc_model::headers;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, DeliveryResult, Header, Headers as _, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use super::settings::{self, Quiet};

/// Records of a batch at most. Larger ones gain nothing more; smaller ones wait
/// for the broker more often.
const BATCH: usize = 10_000;

/// How long a batch waits for its first record.
const PATIENCE: Duration = Duration::from_millis(100);

/// For how long records gather, in milliseconds.
const LINGER_MS: &str = "5";

/// How long the broker may take to acknowledge a batch.
const ACKNOWLEDGED: Duration = Duration::from_secs(60);

/// Headers that are written anew at each hop.
const REPLACED: [&str; 6] = [
    headers::SOURCE_TOPIC,
    headers::SOURCE_PARTITION,
    headers::SOURCE_OFFSET,
    headers::SOURCE_CONSUMER_GROUP,
    headers::HOP,
    headers::TRACEPARENT,
];

/// Pipes one topic into another until the process is ended.
///
/// # Errors
/// When anything fails: a loop by hand has no second try.
pub fn run(bootstrap: &str, group: &str, input: &str, output: &str) -> anyhow::Result<()> {
    let mut config = settings::consumer(bootstrap, group);
    config.set("auto.offset.reset", "earliest");
    let consumer: BaseConsumer<Quiet> = config.create_with_context(Quiet).context("making the consumer")?;
    consumer.subscribe(&[input]).context("subscribing")?;
    let reports = Reports::default();
    let producer: ThreadedProducer<Reports> = settings::producer(bootstrap)
        .set("queue.buffering.max.ms", LINGER_MS)
        .create_with_context(reports.clone())
        .context("making the producer")?;
    let mut hop = Hop::new(group, input);
    // Offset after the last record of each partition in the batch.
    let mut next: BTreeMap<i32, i64> = BTreeMap::new();
    loop {
        let mut sent = 0;
        hop.begin_batch();
        while sent < BATCH {
            let message = match consumer.poll(if sent == 0 { PATIENCE } else { Duration::ZERO }) {
                None => break,
                Some(Err(KafkaError::PartitionEOF(_))) => continue,
                Some(message) => message.context("reading")?,
            };
            send(&producer, &message, output, hop.headers(&message))?;
            next.insert(message.partition(), message.offset() + 1);
            sent += 1;
        }
        if sent == 0 {
            continue;
        }
        reports.wait_for(sent)?;
        let mut offsets = TopicPartitionList::with_capacity(next.len());
        for (partition, offset) in &next {
            offsets.add_partition_offset(input, *partition, Offset::Offset(*offset))?;
        }
        consumer.commit(&offsets, CommitMode::Async).context("committing")?;
        next.clear();
    }
}

fn send(
    producer: &ThreadedProducer<Reports>,
    message: &BorrowedMessage<'_>,
    output: &str,
    headers: OwnedHeaders,
) -> anyhow::Result<()> {
    let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(output).headers(headers);
    record.key = message.key();
    record.payload = message.payload();
    while let Err((error, back)) = producer.send(record) {
        ensure!(error == KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), "writing: {error}");
        record = back;
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Counts what became of the records of a batch.
#[derive(Debug, Clone, Default)]
struct Reports(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    written: AtomicUsize,
    failed: AtomicUsize,
}

impl Reports {
    /// Waits until so many were written; begins to count anew.
    fn wait_for(&self, sent: usize) -> anyhow::Result<()> {
        let began = Instant::now();
        while self.0.written.load(Ordering::Acquire) < sent {
            ensure!(self.0.failed.load(Ordering::Acquire) == 0, "a record could not be written");
            ensure!(began.elapsed() < ACKNOWLEDGED, "a record was not acknowledged within {ACKNOWLEDGED:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        self.0.written.fetch_sub(sent, Ordering::AcqRel);
        Ok(())
    }
}

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();
    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let count = if result.is_ok() { &self.0.written } else { &self.0.failed };
        count.fetch_add(1, Ordering::AcqRel);
    }
}

/// Makes the headers of what is sent on. Texts are made in place, without an
/// allocation a record.
struct Hop {
    group: String,
    topic: String,
    trace: String,
    batches: u64,
    number: String,
    offset: String,
    partition: String,
}

impl Hop {
    fn new(group: &str, topic: &str) -> Self {
        let (group, topic) = (group.to_owned(), topic.to_owned());
        let [trace, number, offset, partition] = [const { String::new() }; 4];
        Self { group, topic, trace, batches: 0, number, offset, partition }
    }

    /// A batch is one span of a trace, as in PipeDoc.
    fn begin_batch(&mut self) {
        self.batches += 1;
        rewrite(&mut self.trace, format_args!("00-4bf92f3577b34da6a3ce929d0e0e4736-{:016x}-01", self.batches));
    }

    /// All headers of the record, those of ours replaced.
    fn headers(&mut self, message: &BorrowedMessage<'_>) -> OwnedHeaders {
        let found = message.headers();
        let mut next = OwnedHeaders::new_with_capacity(found.map_or(0, |found| found.count()) + REPLACED.len());
        let mut hops = 0_u64;
        for header in found.into_iter().flat_map(|found| found.iter()) {
            if !REPLACED.contains(&header.key) {
                next = next.insert(header);
            } else if header.key == headers::HOP {
                let text = header.value.and_then(|value| std::str::from_utf8(value).ok());
                hops = text.and_then(|text| text.parse().ok()).unwrap_or(0);
            }
        }
        rewrite(&mut self.partition, format_args!("{}", message.partition()));
        rewrite(&mut self.offset, format_args!("{}", message.offset()));
        rewrite(&mut self.number, format_args!("{}", hops + 1));
        let ours = [
            (headers::SOURCE_TOPIC, &self.topic),
            (headers::SOURCE_PARTITION, &self.partition),
            (headers::SOURCE_OFFSET, &self.offset),
            (headers::SOURCE_CONSUMER_GROUP, &self.group),
            (headers::HOP, &self.number),
            (headers::TRACEPARENT, &self.trace),
        ];
        ours.into_iter().fold(next, |next, (key, value)| next.insert(Header { key, value: Some(value) }))
    }
}

/// Replaces a text, keeping its memory.
fn rewrite(text: &mut String, with: std::fmt::Arguments<'_>) {
    text.clear();
    // Writing to a text cannot fail.
    let _ = text.write_fmt(with);
}
