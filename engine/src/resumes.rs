//! Steps that an attached instance is still to be told to resume.
//!
//! Each at most once, however often it is asked for: what waits here stays small.
//! Knows nothing of whether anything stands still there.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use pipedoc_model::names::StepId;
use pipedoc_proto::v1;
use tokio::sync::Notify;

/// Steps to be told to one instance.
#[derive(Debug, Default)]
pub(crate) struct Resumes {
    steps: Mutex<BTreeSet<StepId>>,
    news: Notify,
}

impl Resumes {
    /// A step is to be told.
    pub(crate) fn add(&self, step: StepId) {
        self.steps.lock().insert(step);
        self.news.notify_one();
    }

    /// Waits until there are any, and takes them. Cancelling it loses nothing.
    pub(crate) async fn next(&self) -> v1::Resume {
        loop {
            let steps = std::mem::take(&mut *self.steps.lock());
            if !steps.is_empty() {
                let name = |StepId { pipeline, step }: StepId| v1::StepName {
                    pipeline: pipeline.to_string(),
                    step: step.to_string(),
                };
                return v1::Resume { steps: steps.into_iter().map(name).collect() };
            }
            self.news.notified().await;
        }
    }
}
