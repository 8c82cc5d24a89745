//! Open deliveries, each at its stage.
//!
//! Pure. The stages and what leads from one to the other are drawn in
//! [`crate::runtime`].

use std::collections::HashMap;
use std::sync::Arc;

use pipedoc_transport::log::{Record, RecordBatch, TopicPartition};
use tokio::task::AbortHandle;

use super::dead_letter::Reason;
use super::lanes::{DeliveryId, LaneId};
use super::work::About;

/// Something from the log that is being worked on, its fate still open.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) source: Arc<TopicPartition>,
    pub(crate) load: Load,
    /// Attempts that failed.
    pub(crate) attempts: u32,
    /// Times that it could not be tried, through no fault of its own.
    pub(crate) setbacks: u32,
    pub(crate) lane: LaneId,
    pub(crate) stage: Stage,
}

/// What a delivery is of.
#[derive(Debug, Clone)]
pub(crate) enum Load {
    /// One record, for modules that take documents.
    Record(Record),
    /// A batch of one partition, for modules that take records.
    Batch(Arc<RecordBatch>),
}

/// Where a delivery is on its way.
#[derive(Debug)]
pub(crate) enum Stage {
    /// In its lane: for its turn, or until a backoff is over.
    Waiting,
    /// A task is at work on it.
    Working(AbortHandle),
    /// A task makes its dead letter.
    Burying { task: AbortHandle, about: About, reason: Reason },
    /// Its module has returned; what it piped is on its way. Its lane waits.
    Piping,
    /// Its outputs are on their way; its lane goes on.
    Sending { about: About, sent: usize, partial: Option<String> },
    /// Its dead letter is on its way.
    SendingDeadLetter { about: About, reason: Reason },
}

impl Load {
    /// All its records, in order.
    pub(crate) fn records(&self) -> &[Record] {
        match self {
            Self::Record(record) => std::slice::from_ref(record),
            Self::Batch(batch) => &batch.records,
        }
    }

    /// The first record.
    pub(crate) fn first(&self) -> Option<&Record> {
        self.records().first()
    }
}

impl Delivery {
    /// Whether it has not been begun.
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self.stage, Stage::Waiting)
    }

    fn last_offset(&self) -> i64 {
        self.load.records().last().map_or(i64::MIN, |record| record.offset)
    }
}

/// The open deliveries of a step, and what still runs of those dropped.
#[derive(Debug, Default)]
pub(crate) struct Deliveries {
    open: HashMap<DeliveryId, Delivery>,
    /// Dropped while at work: they keep their lanes until their tasks have ended,
    /// so that no key is ever at work twice.
    ghosts: HashMap<DeliveryId, LaneId>,
    next: DeliveryId,
}

impl Deliveries {
    /// A number for the next delivery.
    pub(crate) fn next_id(&mut self) -> DeliveryId {
        self.next += 1;
        self.next
    }

    pub(crate) fn insert(&mut self, id: DeliveryId, delivery: Delivery) {
        self.open.insert(id, delivery);
    }

    pub(crate) fn get(&self, id: DeliveryId) -> Option<&Delivery> {
        self.open.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: DeliveryId) -> Option<&mut Delivery> {
        self.open.get_mut(&id)
    }

    pub(crate) fn remove(&mut self, id: DeliveryId) -> Option<Delivery> {
        self.open.remove(&id)
    }

    pub(crate) fn contains(&self, id: DeliveryId) -> bool {
        self.open.contains_key(&id)
    }

    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// Nothing is open and nothing of what was dropped still runs.
    pub(crate) fn is_quiet(&self) -> bool {
        self.open.is_empty() && self.ghosts.is_empty()
    }

    pub(crate) fn has_ghosts(&self) -> bool {
        !self.ghosts.is_empty()
    }

    /// Whether it is open, or dropped and still runs: its lane must know it.
    pub(crate) fn has_lane(&self, id: DeliveryId) -> bool {
        self.open.contains_key(&id) || self.ghosts.contains_key(&id)
    }

    /// The task of a dropped delivery has ended: its lane.
    pub(crate) fn lay_ghost(&mut self, id: DeliveryId) -> Option<LaneId> {
        self.ghosts.remove(&id)
    }

    /// Drops the deliveries of the partitions selected; their tasks are aborted.
    pub(crate) fn drop_all(&mut self, selected: impl Fn(&TopicPartition) -> bool) {
        let ghosts = &mut self.ghosts;
        self.open.retain(|id, delivery| {
            if !selected(&delivery.source) {
                return true;
            }
            if let Stage::Working(task) | Stage::Burying { task, .. } = &delivery.stage {
                task.abort();
                ghosts.insert(*id, delivery.lane);
            }
            false
        });
    }

    /// Highest offset of a partition on which work has begun.
    pub(crate) fn highest_begun(&self, source: &TopicPartition) -> Option<i64> {
        let begun = self.open.values().filter(|delivery| !delivery.is_waiting() && *delivery.source == *source);
        begun.map(Delivery::last_offset).max()
    }

    /// Drops what waits beyond an offset of a partition.
    pub(crate) fn drop_waiting_beyond(&mut self, source: &TopicPartition, offset: i64) {
        self.open.retain(|_, delivery| {
            *delivery.source != *source
                || !delivery.is_waiting()
                || delivery.load.first().is_none_or(|record| record.offset <= offset)
        });
    }
}
