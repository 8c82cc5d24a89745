//! What happens in the runtime, as typed events for whoever wants to know.
//!
//! ```text
//! a step ─▶ event ─┬─▶ lines of the log
//!                  ├─▶ subscribers: bounded, never waited for
//!                  └─▶ the observer: metrics, the summary of `pipedoc run`
//! ```
//!
//! A module subscribes to its own step's, a program to all of its instance's:
//!
//! ```no_run
//! use pipedoc_sdk::event::{Event, Heard};
//! use pipedoc_sdk::module::Step;
//!
//! /// To be called in a module's `open`.
//! fn watch(step: &Step) {
//!     let mut events = step.events();
//!     tokio::spawn(async move {
//!         while let Some(heard) = events.next().await {
//!             match heard {
//!                 Heard::Event(happened) => match &happened.event {
//!                     Event::DeadLetter { document, error, .. } => eprintln!("{document}: {error}"),
//!                     Event::PartitionPaused(paused) => eprintln!("{} stands still", paused.partition),
//!                     other => eprintln!("{}", other.name()),
//!                 },
//!                 Heard::Missed(events) => eprintln!("{events} events went by"),
//!             }
//!         }
//!     });
//! }
//! ```
//!
//! docs/events.md lists all of them.

mod lines;
mod stream;

use std::sync::Arc;

use pipedoc_model::names::StepId;
use pipedoc_transport::log::TopicPartition;

use crate::runtime::status::{PausedPartition, StepState};
pub use stream::{CAPACITY, Events, Happened, Heard, Subscription};

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
        /// Whether any of them went to a topic that is not the pipeline's own: it has
        /// left the pipeline there. Of record modules it is known only where all their
        /// outputs are such topics.
        left: bool,
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
    PartitionPaused(PausedPartition),
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
    /// The group was divided anew: partitions have come, gone or were lost.
    Rebalanced {
        /// What the step owns in this instance now, in order.
        owned: Vec<TopicPartition>,
    },
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
    /// The step's clients were of no use any more (a consumer that stalled, a producer
    /// that broke), and new ones are made. What was in flight comes again.
    ConnectionsRenewed {
        /// Why, the whole chain.
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

impl Event {
    /// Its name in lines and metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Found { .. } => "document.found",
            Self::Unchanged { .. } => "document.unchanged",
            Self::Deleted { .. } => "document.deleted",
            Self::Done { .. } => "delivery.done",
            Self::Retrying { .. } => "delivery.retrying",
            Self::DeadLetter { .. } => "dead_letter.sent",
            Self::Skipped { .. } => "delivery.skipped",
            Self::Partial { .. } => "delivery.partial",
            Self::DeletionEnded { .. } => "deletion.ended",
            Self::PartitionPaused(_) => "partition.paused",
            Self::PartitionResumed { .. } => "partition.resumed",
            Self::FailureRateReached { .. } => "failure_rate.reached",
            Self::State(_) => "step.state",
            Self::Assigned(_) => "partitions.assigned",
            Self::Revoked(_) => "partitions.revoked",
            Self::Lost(_) => "partitions.lost",
            Self::Rebalanced { .. } => "group.rebalanced",
            Self::OffsetsGone { .. } => "offsets.gone",
            Self::CommitFailed { .. } => "commit.failed",
            Self::ConnectionsRenewed { .. } => "connections.renewed",
            Self::StorageFull { .. } => "storage.full",
            Self::LogBroken { .. } => "log.broken",
            Self::Error { .. } => "error.occurred",
        }
    }

    /// Whether it is of a single document that goes its way: as many as there are
    /// documents.
    #[must_use]
    pub fn is_routine(&self) -> bool {
        matches!(self, Self::Found { .. } | Self::Unchanged { .. } | Self::Deleted { .. } | Self::Done { .. })
    }
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

/// Gives an instance's events to all who hear of them.
pub(crate) struct Fanout {
    observer: Arc<dyn Observer>,
    events: Events,
}

impl Fanout {
    pub(crate) fn new(observer: Arc<dyn Observer>, events: Events) -> Self {
        Self { observer, events }
    }
}

impl Observer for Fanout {
    fn event(&self, step: &StepId, event: &Event) {
        lines::write(step, event);
        self.events.tell(step, event);
        self.observer.event(step, event);
    }

    fn heeds_documents(&self) -> bool {
        self.observer.heeds_documents() || self.events.heeds_documents()
    }
}
