//! What is the same for all records to be written: which partition they go to,
//! and how many are still open.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pipedoc_model::partition;
use tokio::sync::watch;

use crate::error::{Error, Result};
use crate::log::{OutgoingRecord, TopicPartition};
use crate::size;

/// Milliseconds since the Unix epoch.
pub(crate) fn now_millis() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Chooses partitions for records that name none and have no key: in turn.
#[derive(Debug, Default)]
pub(crate) struct Turns(AtomicU32);

impl Turns {
    /// The partition of a record in a topic that has `partitions`.
    pub(crate) fn choose(&self, record: &OutgoingRecord, partitions: i32) -> Result<i32> {
        match (record.partition, &record.key) {
            (Some(partition), _) if (0..partitions).contains(&partition) => Ok(partition),
            (Some(partition), _) => {
                Err(Error::UnknownPartition { partition: TopicPartition::new(record.topic.clone(), partition) })
            }
            (None, Some(key)) => Ok(partition::for_key(key, partitions)),
            (None, None) => {
                let turn = self.0.fetch_add(1, Ordering::Relaxed);
                Ok((turn % partitions.max(1).unsigned_abs()) as i32)
            }
        }
    }
}

/// What a record takes beside what it says, about.
const OVERHEAD: usize = 64;

/// Bytes of memory that a record takes, about.
pub(crate) fn weight(record: &OutgoingRecord) -> usize {
    OVERHEAD + record.bytes()
}

/// Refuses a record larger than its topic takes.
pub(crate) fn check_size(record: &OutgoingRecord, limit: i32) -> Result<()> {
    size::check(record, usize::try_from(limit).unwrap_or(0))
}

/// How many records a producer has taken that are not settled.
#[derive(Debug, Clone)]
pub(crate) struct Open(Arc<watch::Sender<usize>>);

impl Default for Open {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }
}

impl Open {
    /// So many more were taken.
    pub(crate) fn add(&self, records: usize) {
        self.0.send_modify(|open| *open += records);
    }

    /// So many were settled.
    pub(crate) fn settle(&self, records: usize) {
        self.0.send_modify(|open| *open = open.saturating_sub(records));
    }

    /// Waits until none is open, at most for `timeout`; how many still are.
    pub(crate) async fn drained(&self, timeout: Duration) -> usize {
        let mut watch = self.0.subscribe();
        let _ = tokio::time::timeout(timeout, watch.wait_for(|open| *open == 0)).await;
        *self.0.borrow()
    }
}
