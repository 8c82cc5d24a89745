//! Partitions of a record module that stand still because a record of theirs was
//! given up on (`on_exhausted: PAUSE`, or too large for its dead letter topic), or because
//! too many were (`stop_at_failure_rate`).
//!
//! ```text
//!  at work ──given up──▶ stopped: nothing new begins, nothing more is read
//!     ▲                     │
//!     └── resume: the same batch is tried again, from memory, with all attempts
//! ```

use std::time::SystemTime;

use pipedoc_transport::log::{Record, TopicPartition};

use super::fuse::Blown;
use super::owned::Owned;
use super::pump::RecordPump;
use super::worker::{Load, Worker};
use crate::error::Error;
use crate::event::Event;
use crate::runtime::status::{PauseReason, PausedPartition, StepState};
use crate::runtime::work::About;
use crate::runtime::{Order, dead_letter};

impl Worker {
    /// The partition stands still at a record. `rate`: why the whole step does.
    pub(super) fn stop(&mut self, load: Load, record: &Record, error: &Error, rate: Option<String>) {
        let (reason, error) = match rate {
            Some(rate) => (PauseReason::FailureRate, format!("{rate}; at last: {error}")),
            None => (PauseReason::Exhausted, error.to_string()),
        };
        let paused = PausedPartition {
            partition: self.place().clone(),
            since: SystemTime::now(),
            reason,
            offset: Some(record.offset),
            document: dead_letter::name(&About::of(record).document),
            error,
        };
        self.queue.push_front(load.anew());
        self.progress.stop(paused.clone());
        self.station.has_changed();
        self.station.board.event(&Event::PartitionPaused(paused));
        self.station.news.notify_one();
    }

    /// A record that is given up on cannot become a dead letter. What is committed already
    /// is dropped; else the partition stands still, and loses nothing.
    pub(super) fn unburied(&mut self, load: Load, record: &Record, error: &Error) {
        self.station.board.error(&error.to_string());
        if self.station.commits_first() {
            return self.skip(load, record, error.to_string());
        }
        self.stop(load, record, error, None);
    }
}

impl RecordPump {
    /// Tells once that the step stands still for the rate of failures.
    pub(super) fn notice_rate(&mut self) {
        let Some(blown) = self.station.fuse.blown().filter(|_| self.blown.is_none()) else { return };
        let board = &self.station.board;
        board.error(&blown.rate);
        board.event(&Event::FailureRateReached { reason: blown.rate.clone() });
        board.set_state(StepState::Paused);
        for (source, _) in self.owned.iter().filter(|(_, owned)| !owned.is_stopped()) {
            board.event(&Event::PartitionPaused(of_rate(source, &blown)));
        }
        self.blown = Some(blown);
        self.station.has_changed();
    }

    /// A partition came while the step stands still.
    pub(super) fn came_while_blown(&self, source: &TopicPartition) {
        if let Some(blown) = &self.blown {
            self.station.board.event(&Event::PartitionPaused(of_rate(source, blown)));
        }
    }

    /// Partitions that stand still.
    pub(super) fn paused(&self) -> Vec<PausedPartition> {
        let paused = |(source, owned): (&TopicPartition, &Owned)| {
            owned.stopped().or_else(|| self.blown.as_ref().map(|blown| of_rate(source, blown)))
        };
        self.owned.iter().filter_map(paused).collect()
    }

    /// Lets go on what stands still.
    pub(super) fn resume(&mut self) {
        let paused = self.paused();
        self.station.fuse.mend();
        self.blown = None;
        self.owned.values().for_each(Owned::resume);
        self.station.has_changed();
        for PausedPartition { partition: source, .. } in paused {
            self.station.board.event(&Event::PartitionResumed { source });
        }
        if self.order == Order::Run {
            self.station.board.set_state(StepState::Running);
        }
    }
}

fn of_rate(source: &TopicPartition, blown: &Blown) -> PausedPartition {
    PausedPartition {
        partition: source.clone(),
        since: blown.since,
        reason: PauseReason::FailureRate,
        offset: None,
        document: String::new(),
        error: blown.rate.clone(),
    }
}
