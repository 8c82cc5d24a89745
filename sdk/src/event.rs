//! What happens in the runtime, as typed events for whoever wants to know:
//! logs, metrics, the summary of `pipedoc run`.

use pipedoc_model::names::StepId;
use pipedoc_transport::log::TopicPartition;

use crate::runtime::status::StepState;

/// Something that happened in a step.
///
/// Document ids are those of whole documents: events about parts name the parent.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A connector found a document (sent, unchanged, or unreadable).
    Found {
        /// The document.
        document: String,
    },
    /// A connector found a document that has not changed since it was last sent.
    Unchanged {
        /// The document.
        document: String,
    },
    /// A connector found a document deleted and sent its tombstone.
    Deleted {
        /// The document.
        document: String,
    },
    /// A delivery is done; for a sink: the document is stored.
    Done {
        /// The document.
        document: String,
        /// How many records it became, over all outputs.
        sent: usize,
        /// Whether it was a tombstone.
        tombstone: bool,
    },
    /// An attempt failed and will be repeated.
    Retrying {
        /// The document.
        document: String,
        /// Attempts made.
        attempts: u32,
        /// What went wrong.
        error: String,
    },
    /// A delivery was given up on and lies in the dead letters.
    DeadLetter {
        /// The document.
        document: String,
        /// Its version; 0 when unknown.
        version: i64,
        /// Kind of the error.
        kind: String,
        /// What went wrong, the whole chain.
        error: String,
    },
    /// A delivery was given up on and dropped (`on_exhausted: SKIP`).
    Skipped {
        /// The document.
        document: String,
        /// What went wrong, the whole chain.
        error: String,
    },
    /// Done with losses.
    Partial {
        /// The document.
        document: String,
        /// What was lost.
        error: String,
    },
    /// A deletion ended at an output that cannot carry it, as its key reads the
    /// document.
    DeletionEnded {
        /// The document.
        document: String,
        /// Name of the output.
        output: String,
    },
    /// A record was given up on, and its partition stands still until the step is
    /// resumed or begins anew (`on_exhausted: PAUSE`, `stop_at_failure_rate`).
    PartitionPaused {
        /// The partition.
        source: TopicPartition,
        /// The document; empty when the partition stands still for others.
        document: String,
        /// Why, the whole chain.
        error: String,
    },
    /// A partition that stood still is read on.
    PartitionResumed {
        /// The partition.
        source: TopicPartition,
    },
    /// Too many deliveries failed (`stop_at_failure_rate`): the step stands still.
    FailureRateReached {
        /// How many of how many.
        reason: String,
    },
    /// The step's state in this instance has changed.
    State(StepState),
    /// Partitions came.
    Assigned(Vec<TopicPartition>),
    /// Partitions went.
    Revoked(Vec<TopicPartition>),
    /// Partitions were lost without a chance to commit.
    Lost(Vec<TopicPartition>),
    /// Reading could not go on where it was to: records are gone.
    OffsetsGone {
        /// The partition.
        source: TopicPartition,
        /// Where it was to go on.
        wanted: i64,
        /// Where it went on.
        resumed_at: i64,
    },
    /// A commit failed; what it named may come again.
    CommitFailed {
        /// Why.
        error: String,
    },
    /// A disk is full. The step waits for room, however long that takes: nothing is
    /// given up for it, and no attempt is counted.
    StorageFull {
        /// What could not be written, the whole chain.
        error: String,
    },
    /// The log's file is damaged or cannot be used. The step tries again for as long as
    /// it is wanted, but only a person can mend that.
    LogBroken {
        /// What could not be done, the whole chain.
        error: String,
    },
    /// Something else failed that concerns no single document.
    Error {
        /// What.
        error: String,
    },
}

/// Learns of events, in the thread where they happen; must not block.
pub trait Observer: Send + Sync + 'static {
    /// Something happened.
    fn event(&self, step: &StepId, event: &Event);

    /// Whether [`Event::Done`] is wanted for every record. Without it a runtime that
    /// moves whole batches need not look at each record. Default: yes.
    fn heeds_documents(&self) -> bool {
        true
    }
}

/// An observer that does not care.
#[derive(Debug, Default, Clone, Copy)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn event(&self, _: &StepId, _: &Event) {}

    fn heeds_documents(&self) -> bool {
        false
    }
}
