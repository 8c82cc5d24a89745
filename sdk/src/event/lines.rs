//! Events as lines of the log: one place that says how loud each is.

use pipedoc_model::names::StepId;

use super::Event;
use crate::runtime::status::PausedPartition;

/// Writes an event down. What happens to each single document is not.
pub(crate) fn write(step: &StepId, event: &Event) {
    let name = event.name();
    match event {
        Event::Found { .. } | Event::Unchanged { .. } | Event::Deleted { .. } | Event::Done { .. } => {}
        // Whoever tells of these tells of the error as well.
        Event::StorageFull { .. } | Event::LogBroken { .. } => {}
        Event::Retrying { document, attempts, error } => {
            tracing::debug!(%step, event = name, document, attempts, error, "an attempt failed");
        }
        Event::DeadLetter { document, kind, error, .. } => {
            tracing::warn!(%step, event = name, document, kind, error, "dead letter");
        }
        Event::Skipped { document, error } => tracing::warn!(%step, event = name, document, error, "skipped"),
        Event::Partial { document, error } => tracing::warn!(%step, event = name, document, error, "done with losses"),
        Event::DeletionEnded { document, output } => {
            tracing::debug!(%step, event = name, document, output, "an output cannot carry the deletion");
        }
        Event::PartitionPaused(PausedPartition { partition, offset, document, error, .. }) => {
            tracing::warn!(%step, event = name, %partition, offset, document, error, "the partition stands still");
        }
        Event::PartitionResumed { source } => {
            tracing::info!(%step, event = name, partition = %source, "the partition goes on");
        }
        Event::FailureRateReached { reason } => {
            tracing::warn!(%step, event = name, error = reason, "the step stands still");
        }
        Event::State(state) => tracing::debug!(%step, event = name, ?state, "the step's state has changed"),
        Event::Assigned(partitions) => tracing::debug!(%step, event = name, ?partitions, "partitions came"),
        Event::Revoked(partitions) => tracing::debug!(%step, event = name, ?partitions, "partitions went"),
        Event::Lost(partitions) => tracing::warn!(%step, event = name, ?partitions, "partitions were lost"),
        Event::Rebalanced { owned } => {
            tracing::info!(%step, event = name, owned = owned.len(), "the group was divided anew");
        }
        Event::OffsetsGone { source, wanted, resumed_at } => {
            tracing::warn!(%step, event = name, partition = %source, wanted, resumed_at, "offsets are gone");
        }
        Event::CommitFailed { error } => tracing::warn!(%step, event = name, error, "a commit failed"),
        Event::ConnectionsRenewed { error } => tracing::warn!(%step, event = name, error, "connections are made anew"),
        Event::Error { error } => tracing::warn!(%step, event = name, error, "the step has trouble"),
    }
}
