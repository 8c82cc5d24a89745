//! Open deliveries, each at its stage.
//!
//! Pure. The stages and what leads from one to the other are drawn in
//! [`crate::runtime`].

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use pipedoc_transport::log::{OutgoingRecord, Record, TopicPartition};
use rustc_hash::FxHashMap;
use tokio::task::AbortHandle;

use super::dead_letter::Reason;
use super::lanes::{DeliveryId, LaneId};
use super::ring::Ring;
use super::work::About;

/// Something from the log that is being worked on, its fate still open.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) source: Arc<TopicPartition>,
    /// Shared with the task that works on it: a copy of its headers costs as much as
    /// a small module.
    pub(crate) record: Arc<Record>,
    /// Attempts that failed.
    pub(crate) attempts: u32,
    /// Times that it could not be tried, through no fault of its own.
    pub(crate) setbacks: u32,
    /// It shares no batch: one that it was in failed as a whole.
    pub(crate) alone: bool,
    pub(crate) lane: LaneId,
    pub(crate) stage: Stage,
}

/// Where a delivery is on its way.
#[derive(Debug)]
pub(crate) enum Stage {
    /// In its lane: for its turn, or until a backoff is over.
    Waiting,
    /// A task is at work on it.
    Working(AbortHandle),
    /// A task makes its dead letter.
    Burying { task: AbortHandle, obituary: Box<Obituary> },
    /// Its dead letter is made, and follows those of its lane that were sent before
    /// and may still be refused.
    Buried { letter: Box<OutgoingRecord>, obituary: Box<Obituary> },
    /// Its outputs are on their way; its lane goes on. `about`: none where the record itself
    /// says it; `left`: some leave the pipeline.
    Sending { about: Option<Box<About>>, sent: usize, left: bool, partial: Option<Box<str>> },
    /// Its dead letter is on its way.
    SendingDeadLetter(Box<Obituary>),
}

/// What became a dead letter, and why.
#[derive(Debug)]
pub(crate) struct Obituary {
    pub(crate) about: About,
    pub(crate) reason: Reason,
}

impl Stage {
    /// The task that runs for it.
    fn task(&self) -> Option<&AbortHandle> {
        match self {
            Self::Working(task) | Self::Burying { task, .. } => Some(task),
            Self::Waiting | Self::Buried { .. } | Self::Sending { .. } | Self::SendingDeadLetter(_) => None,
        }
    }
}

impl Delivery {
    /// Whether it has not been begun.
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self.stage, Stage::Waiting)
    }

    /// Which document it is about: as its work has found, else as the record itself says.
    pub(crate) fn about(&self, found: Option<&About>) -> About {
        found.cloned().unwrap_or_else(|| About::of(&self.record))
    }
}

/// The open deliveries of a step, and what still runs of those dropped.
#[derive(Debug, Default)]
pub(crate) struct Deliveries {
    open: Ring<Delivery>,
    /// Dropped while at work: they keep their lanes until their tasks have ended,
    /// so that no key is ever at work twice.
    ghosts: FxHashMap<DeliveryId, LaneId>,
    /// By lane: those whose outputs are on their way, and those refused since whose
    /// dead letters are not.
    on_their_way: FxHashMap<LaneId, Underway>,
    /// By lane: those whose dead letters wait for their predecessors.
    held: FxHashMap<LaneId, BTreeSet<DeliveryId>>,
    next: DeliveryId,
}

/// The deliveries of a lane that are on their way: at least one, mostly one alone.
#[derive(Debug)]
struct Underway {
    first: DeliveryId,
    others: BTreeSet<DeliveryId>,
}

impl Underway {
    fn insert(&mut self, id: DeliveryId) {
        match id.cmp(&self.first) {
            Ordering::Equal => {}
            Ordering::Greater => {
                self.others.insert(id);
            }
            Ordering::Less => {
                self.others.insert(std::mem::replace(&mut self.first, id));
            }
        }
    }

    /// Takes one out; says whether anything is left.
    fn remove(&mut self, id: DeliveryId) -> bool {
        if id != self.first {
            self.others.remove(&id);
            return true;
        }
        let next = self.others.pop_first();
        self.first = next.unwrap_or(id);
        next.is_some()
    }

    /// Keeps what it is told to; says whether anything is left.
    fn retain(&mut self, keeps: impl Fn(DeliveryId) -> bool) -> bool {
        self.others.retain(|id| keeps(*id));
        keeps(self.first) || self.remove(self.first)
    }
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        // Nothing works on for a step that has ended, however it did.
        for delivery in self.open.values() {
            if let Some(task) = delivery.stage.task() {
                task.abort();
            }
        }
    }
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
        self.open.get(id)
    }

    pub(crate) fn get_mut(&mut self, id: DeliveryId) -> Option<&mut Delivery> {
        self.open.get_mut(id)
    }

    pub(crate) fn remove(&mut self, id: DeliveryId) -> Option<Delivery> {
        self.open.remove(id)
    }

    pub(crate) fn contains(&self, id: DeliveryId) -> bool {
        self.open.contains(id)
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
        self.open.contains(id) || self.ghosts.contains_key(&id)
    }

    /// The task of a dropped delivery has ended: its lane.
    pub(crate) fn lay_ghost(&mut self, id: DeliveryId) -> Option<LaneId> {
        self.ghosts.remove(&id)
    }

    /// Whether an earlier delivery of its lane is on its way, or on its way to the
    /// dead letters: whatever of this lane is given up on must follow it.
    pub(crate) fn follows(&self, id: DeliveryId) -> bool {
        let Some(delivery) = self.open.get(id) else { return false };
        self.on_their_way.get(&delivery.lane).is_some_and(|underway| underway.first < id)
    }

    /// A delivery's outputs are on their way.
    pub(crate) fn sent(&mut self, lane: LaneId, id: DeliveryId) {
        match self.on_their_way.entry(lane) {
            Entry::Vacant(entry) => {
                entry.insert(Underway { first: id, others: BTreeSet::new() });
            }
            Entry::Occupied(mut entry) => entry.get_mut().insert(id),
        }
    }

    /// Its outputs were acknowledged, or its dead letter follows its predecessors'.
    pub(crate) fn arrived(&mut self, lane: LaneId, id: DeliveryId) {
        if let Entry::Occupied(mut entry) = self.on_their_way.entry(lane)
            && !entry.get_mut().remove(id)
        {
            entry.remove();
        }
    }

    /// Those of a lane whose dead letters are made and need wait no longer.
    pub(crate) fn next_letter(&self, lane: LaneId) -> Option<DeliveryId> {
        let held = self.held.get(&lane)?;
        held.first().copied().filter(|id| !self.follows(*id))
    }

    /// Its dead letter is made and waits for its predecessors.
    pub(crate) fn hold(&mut self, lane: LaneId, id: DeliveryId) {
        self.held.entry(lane).or_default().insert(id);
    }

    /// Lanes in which dead letters wait.
    pub(crate) fn lanes_held(&self) -> Vec<LaneId> {
        self.held.keys().copied().collect()
    }

    /// Its dead letter goes.
    pub(crate) fn let_go(&mut self, lane: LaneId, id: DeliveryId) {
        if let Some(ids) = self.held.get_mut(&lane) {
            ids.remove(&id);
            if ids.is_empty() {
                self.held.remove(&lane);
            }
        }
    }

    /// Drops the deliveries of the partitions selected; their tasks are aborted.
    pub(crate) fn drop_all(&mut self, selected: impl Fn(&TopicPartition) -> bool) {
        let ghosts = &mut self.ghosts;
        self.open.retain(|id, delivery| {
            if !selected(&delivery.source) {
                return true;
            }
            if let Some(task) = delivery.stage.task() {
                task.abort();
                ghosts.insert(id, delivery.lane);
            }
            false
        });
        let open = &self.open;
        self.on_their_way.retain(|_, underway| underway.retain(|id| open.contains(id)));
        self.held.retain(|_, ids| {
            ids.retain(|id| open.contains(*id));
            !ids.is_empty()
        });
    }

    /// Highest offset of a partition on which work has begun.
    pub(crate) fn highest_begun(&self, source: &TopicPartition) -> Option<i64> {
        let begun = self.open.values().filter(|delivery| !delivery.is_waiting() && *delivery.source == *source);
        begun.map(|delivery| delivery.record.offset).max()
    }

    /// Whether anything of these partitions is open.
    pub(crate) fn has_any(&self, sources: &[TopicPartition]) -> bool {
        self.open.values().any(|delivery| sources.contains(&delivery.source))
    }

    /// Drops what waits of the partitions selected.
    pub(crate) fn drop_waiting(&mut self, selected: impl Fn(&TopicPartition) -> bool) {
        self.open.retain(|_, delivery| !delivery.is_waiting() || !selected(&delivery.source));
    }

    /// Drops what waits beyond an offset of a partition.
    pub(crate) fn drop_waiting_beyond(&mut self, source: &TopicPartition, offset: i64) {
        self.open.retain(|_, delivery| {
            *delivery.source != *source || !delivery.is_waiting() || delivery.record.offset <= offset
        });
    }
}
