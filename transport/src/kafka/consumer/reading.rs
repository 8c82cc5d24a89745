//! One partition being read: its queue, and a batch at a time out of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rdkafka::consumer::BaseConsumer;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::batch::Collector;
use super::shared::{Epoch, Item, PollerContext};
use crate::log::{ConsumerConfig, RecordBatch, TopicPartition};

/// A partition being read. Dropped when the partition is taken away: a queue that
/// is kept would take its records when it comes back.
pub(super) struct Reading {
    pub(super) source: TopicPartition,
    pub(super) epoch: Epoch,
    /// Offset that comes next.
    pub(super) expected: i64,
    /// The place to go on at is gone.
    pub(super) gone: bool,
    batch: Collector,
    queue: PartitionQueue<PollerContext>,
    /// The queue may hold something.
    ready: Arc<AtomicBool>,
}

/// How reading a batch ended.
pub(super) enum Read {
    /// The queue is empty.
    Empty,
    /// It may hold more.
    More,
    /// The end of the partition was reached.
    End,
    Trouble(KafkaError),
}

impl Reading {
    /// Gives a partition a queue of its own, which wakes this thread. To be called
    /// before it is fetched, so that nothing of it lands in the main queue.
    pub(super) fn split(
        client: &Arc<BaseConsumer<PollerContext>>,
        source: TopicPartition,
        epoch: Epoch,
        expected: i64,
    ) -> Option<Self> {
        let mut queue = client.split_partition_queue(source.topic.as_str(), source.partition)?;
        let (ready, thread) = (Arc::new(AtomicBool::new(true)), thread::current());
        let flag = ready.clone();
        queue.set_nonempty_callback(move || {
            flag.store(true, Ordering::Release);
            thread.unpark();
        });
        Some(Self { source, epoch, expected, gone: false, batch: Collector::default(), queue, ready })
    }

    /// Whether its queue may hold something.
    pub(super) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// It was told to read on elsewhere.
    pub(super) fn go_on_at(&mut self, place: i64) {
        self.expected = place;
        self.gone = false;
        self.ready.store(true, Ordering::Release);
    }

    /// Reads a batch, or two when the first gets too large.
    pub(super) fn read(&mut self, config: &ConsumerConfig, send: impl Fn(Item)) -> Read {
        // Before the queue is looked at: what comes meanwhile sets it again.
        self.ready.store(false, Ordering::Release);
        let batch = &mut self.batch;
        let read = loop {
            if batch.len() >= config.max_records || batch.bytes() >= config.max_bytes {
                break Read::More;
            }
            match self.queue.poll(Duration::ZERO) {
                None => break Read::Empty,
                Some(Ok(message)) => {
                    // Headers are small, and not counted beforehand.
                    let bytes = message.key_len() + message.payload_len();
                    if batch.len() > 0 && batch.bytes() + bytes > config.max_bytes {
                        self.expected = ship(batch, &self.source, self.epoch, &send).unwrap_or(self.expected);
                    }
                    batch.push(&message);
                }
                Some(Err(KafkaError::PartitionEOF(_))) => break Read::End,
                Some(Err(error)) if error.rdkafka_error_code() == Some(Code::AutoOffsetReset) => {
                    self.gone = true;
                    break Read::More;
                }
                Some(Err(error)) => break Read::Trouble(error),
            }
        };
        self.expected = ship(batch, &self.source, self.epoch, &send).unwrap_or(self.expected);
        if matches!(read, Read::End) {
            batch.rest();
        }
        if !matches!(read, Read::Empty) {
            self.ready.store(true, Ordering::Release);
        }
        read
    }
}

/// Sends what was collected; gives the offset after it.
fn ship(batch: &mut Collector, source: &TopicPartition, epoch: Epoch, send: impl Fn(Item)) -> Option<i64> {
    let records = batch.finish();
    let next = records.last()?.offset + 1;
    send(Item::Records { epoch, batch: RecordBatch { source: source.clone(), records } });
    Some(next)
}
