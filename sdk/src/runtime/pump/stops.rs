//! Partitions that stand still because a record of theirs was given up on
//! (`on_exhausted: PAUSE`, or too large for its dead letter topic), or because too many
//! were (`stop_at_failure_rate`).
//!
//! ```text
//!  read on ──given up──▶ stopped: nothing new begins, what is at work may end
//!     ▲                     │
//!     └── resume: everything open is dropped, read anew from the watermark ──┘
//! ```
//!
//! What is done behind the record stays done; it is named in the commits.

use std::sync::Arc;
use std::time::SystemTime;

use pipedoc_transport::log;
use tokio::time::Instant;

use super::Pump;
use crate::error::Error;
use crate::event::Event;
use crate::runtime::deliveries::{Obituary, Stage};
use crate::runtime::lanes::DeliveryId;
use crate::runtime::status::{PauseReason, PausedPartition, StepState};
use crate::runtime::work::About;
use crate::runtime::{Order, dead_letter};

impl Pump {
    /// A delivery is about to be given up on: whether the step stops instead.
    pub(super) fn stops_instead(&mut self, id: DeliveryId, about: &About, error: &Error, pauses: bool) -> bool {
        let trips = self.breaker.gives_up();
        let Some(rate) = self.breaker.reason() else {
            if pauses {
                self.stop_for(id, about, PauseReason::Exhausted, error.to_string());
            }
            return pauses;
        };
        self.stop_for(id, about, PauseReason::FailureRate, format!("{rate}; at last: {error}"));
        if trips {
            self.board.error(&rate);
            self.event(Event::FailureRateReached { reason: rate.clone() });
            self.board.set_state(StepState::Paused);
        }
        self.stop_all(&rate);
        true
    }

    /// A delivery that is given up on cannot become a dead letter. What is committed
    /// already is dropped; else its partition stands still, and loses nothing.
    pub(super) fn unburied(&mut self, id: DeliveryId, about: About, error: &Error) {
        let error = error.to_string();
        self.board.error(&error);
        if self.commits_first() {
            return self.skip(id, about.document, error);
        }
        self.stop_for(id, &about, PauseReason::Exhausted, error);
    }

    /// What is said of a delivery whose dead letter the log has refused as too large.
    pub(super) fn unwritable(&self, id: DeliveryId, error: &log::Error) -> Option<(About, Error)> {
        let delivery = self.deliveries.get(id)?;
        let Stage::SendingDeadLetter(obituary) = &delivery.stage else { return None };
        let Obituary { about, reason } = obituary.as_ref();
        let who = format!("{}@{}", delivery.source, delivery.record.offset);
        Some((about.clone(), dead_letter::unwritable(who, error, reason)?))
    }

    /// Stops every partition that does not stand still yet, for the rate of failures.
    pub(super) fn stop_all(&mut self, rate: &str) {
        let sources: Vec<_> = self.partitions.iter().map(|partition| Arc::clone(&partition.source)).collect();
        for source in sources {
            self.stop(PausedPartition {
                partition: source.as_ref().clone(),
                since: SystemTime::now(),
                reason: PauseReason::FailureRate,
                offset: None,
                document: String::new(),
                error: rate.to_owned(),
            });
        }
    }

    /// Stops the partition of a delivery that is given up on, which comes again
    /// when the partition is read on.
    fn stop_for(&mut self, id: DeliveryId, about: &About, reason: PauseReason, error: String) {
        let Some(delivery) = self.deliveries.remove(id) else { return };
        self.lanes.leave(delivery.lane, id);
        self.deliveries.arrived(delivery.lane, id);
        self.send_letters(delivery.lane);
        let (offset, source) = (delivery.record.offset, delivery.source);
        // What follows it in its lane comes after it, when both are read again.
        let behind = self.partitions.get_mut(&source).map(|partition| partition.row.take_behind(id));
        for id in behind.unwrap_or_default() {
            self.deliveries.remove(id);
            self.deliveries.arrived(delivery.lane, id);
        }
        self.stop(PausedPartition {
            partition: source.as_ref().clone(),
            since: SystemTime::now(),
            reason,
            offset: Some(offset),
            document: dead_letter::name(&about.document),
            error,
        });
    }

    fn stop(&mut self, paused: PausedPartition) {
        let Some(partition) = self.partitions.get_mut(&paused.partition) else { return };
        if partition.stopped.is_none() {
            partition.stopped = Some(paused.clone());
            self.event(Event::PartitionPaused(paused));
        }
        self.drop_what_is_stopped();
    }

    /// Nothing of a stopped partition waits for its turn.
    pub(super) fn drop_what_is_stopped(&mut self) {
        let stopped = self.partitions.stopped();
        if !stopped.is_empty() {
            self.deliveries.drop_waiting(|source| stopped.iter().any(|paused| paused.partition == *source));
            self.forget_dropped();
        }
    }

    /// Reads on where partitions stand still: what stopped them is tried again.
    pub(super) fn resume(&mut self, now: Instant) {
        let stopped = self.partitions.stopped();
        if stopped.iter().any(|paused| self.out.is_writing(&paused.partition)) {
            // What is being written would be worked on anew.
            self.resume_later = true;
            return;
        }
        self.breaker.reset();
        for PausedPartition { partition: source, .. } in stopped {
            // What is still at work would be done beside itself.
            self.deliveries.drop_all(|other| *other == source);
            if let Some(partition) = self.partitions.get_mut(&source) {
                partition.resume(now);
            }
            self.event(Event::PartitionResumed { source });
        }
        self.forget_dropped();
        if self.order == Order::Run {
            self.board.set_state(StepState::Running);
        }
    }
}
