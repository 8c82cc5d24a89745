//! The runtime as the engine's sessions see it: assignments in, reports out.

use pipedoc_model::names::{Generation, StepId};
use pipedoc_model::step::StepPlan;
use pipedoc_proto::v1;

use super::Runs;
use crate::instance::{Instance, PauseReason, PausedPartition, StepState, StepStatus};

impl Runs for Instance {
    fn apply(&self, generation: Generation, steps: Vec<StepPlan>) {
        Instance::apply(self, generation, steps);
    }

    fn reports(&self) -> Vec<v1::StepReport> {
        self.status().into_iter().map(report).collect()
    }

    fn resume(&self, step: &StepId) {
        Instance::resume(self, step);
    }
}

fn report(status: StepStatus) -> v1::StepReport {
    let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    v1::StepReport {
        pipeline: status.id.pipeline.to_string(),
        step: status.id.step.to_string(),
        state: state(status.state).into(),
        lag: status.lag,
        in_flight: count(status.in_flight),
        done: count(status.done),
        failed: count(status.failed),
        last_error: status.last_error,
        last_error_at: status.last_error_at.map(Into::into),
        partitions: status.partitions.iter().map(ToString::to_string).collect(),
        hash: status.hash,
        drained: status.drained,
        paused: status.paused.into_iter().map(paused).collect(),
    }
}

fn paused(paused: PausedPartition) -> v1::PausedPartition {
    let PausedPartition { partition, since, reason, offset, document, error } = paused;
    let reason = match reason {
        PauseReason::Exhausted => v1::PauseReason::Exhausted,
        PauseReason::FailureRate => v1::PauseReason::FailureRate,
    };
    let (partition, since) = (partition.to_string(), Some(since.into()));
    v1::PausedPartition { partition, since, reason: reason.into(), offset, document, error }
}

fn state(state: StepState) -> v1::StepState {
    match state {
        StepState::Starting => v1::StepState::Starting,
        StepState::Running => v1::StepState::Running,
        StepState::Paused => v1::StepState::Paused,
        StepState::Stopping => v1::StepState::Stopping,
        StepState::Stopped => v1::StepState::Stopped,
        StepState::Failed => v1::StepState::Failed,
        StepState::Completed => v1::StepState::Completed,
    }
}
