//! Copies the records of a poll into one piece of memory.
//!
//! A message of librdkafka cannot outlive the poll, so one copy is forced. All of
//! a batch goes into one piece of memory, of which the records are slices. When all
//! of them are gone it serves again: freeing and asking for so much each time would
//! cost more than the copy.

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::BytesMut;
use pipedoc_model::headers::Reading;
use rdkafka::message::{BorrowedMessage, Headers as _, Message};

use crate::log::Record;

/// So many pieces of memory are kept for a partition.
const IN_USE: usize = 8;

/// Records being collected.
#[derive(Default)]
pub(super) struct Collector {
    /// What the batch before took: the next one will be about as large.
    last: (usize, usize),
    memory: BytesMut,
    /// Pieces of memory that batches still lie in, oldest first.
    in_use: VecDeque<BytesMut>,
    records: Vec<Sketch>,
}

/// A record whose parts are places in the memory.
struct Sketch {
    offset: i64,
    timestamp: i64,
    key: Option<Range<usize>>,
    value: Option<Range<usize>>,
    headers: Reading,
}

impl Collector {
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// Bytes collected so far.
    pub(super) fn bytes(&self) -> usize {
        self.memory.len()
    }

    /// Copies a message.
    pub(super) fn push(&mut self, message: &BorrowedMessage<'_>) {
        if self.records.is_empty() {
            self.begin();
        }
        let key = message.key().map(|bytes| self.copy(bytes));
        let value = message.payload().map(|bytes| self.copy(bytes));
        let mut read = Reading::default();
        if let Some(headers) = message.headers() {
            read = Reading::with_capacity(headers.count());
            // rdkafka panics at a header name that is no UTF-8. Such a record must
            // not end the consumer; what comes before that header is kept.
            let copied = catch_unwind(AssertUnwindSafe(|| {
                for header in headers.iter() {
                    read.push(header.key, header.value, &mut self.memory);
                }
            }));
            if copied.is_err() {
                tracing::warn!(
                    topic = message.topic(),
                    partition = message.partition(),
                    offset = message.offset(),
                    "a record has a header whose name is no UTF-8; it and those after it are dropped"
                );
            }
        }
        self.records.push(Sketch {
            offset: message.offset(),
            timestamp: message.timestamp().to_millis().unwrap_or(-1),
            key,
            value,
            headers: read,
        });
    }

    /// The records; the collector is empty then.
    pub(super) fn finish(&mut self) -> Vec<Record> {
        if self.records.is_empty() {
            return Vec::new();
        }
        self.last = (self.memory.len(), self.records.len());
        let memory = self.memory.split().freeze();
        let slice = |range: &Range<usize>| memory.slice(range.clone());
        let record = |sketch: Sketch| {
            let (key, value) = (sketch.key.as_ref().map(slice), sketch.value.as_ref().map(slice));
            let headers = sketch.headers.within(memory.clone());
            Record { offset: sketch.offset, timestamp: sketch.timestamp, key, value, headers }
        };
        std::mem::take(&mut self.records).into_iter().map(record).collect()
    }

    /// Lets go of memory that is kept for the next batches: none are coming.
    pub(super) fn rest(&mut self) {
        self.in_use.clear();
        self.memory = BytesMut::new();
    }

    /// Finds room for a batch as large as the last one: growing step by step would
    /// copy all of it several times.
    fn begin(&mut self) {
        let (bytes, records) = self.last;
        self.records.reserve(records);
        if self.memory.try_reclaim(bytes) {
            return;
        }
        let oldest_is_free = self.in_use.front_mut().is_some_and(|oldest| oldest.try_reclaim(bytes));
        let next = if oldest_is_free { self.in_use.pop_front() } else { None };
        let spent = std::mem::replace(&mut self.memory, next.unwrap_or_else(|| BytesMut::with_capacity(bytes)));
        self.in_use.push_back(spent);
        if self.in_use.len() > IN_USE {
            self.in_use.pop_front();
        }
    }

    fn copy(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.memory.len();
        self.memory.extend_from_slice(bytes);
        start..self.memory.len()
    }
}
