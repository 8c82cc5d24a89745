//! Lets steps go on whose partitions instances have paused by themselves.
//!
//! Asks the instances that are attached here, which are all there are where each
//! attaches to every engine. Nothing is kept: what an operator wants for good is a
//! control of the configuration.

use std::sync::Arc;

use pipedoc_model::step::StepPlan;
use pipedoc_proto::v1;

use super::Engine;
use crate::error::Error;
use crate::sessions::Attached;
use crate::view::serves;

impl Engine {
    /// Tells every attached instance that runs one of these steps to resume it.
    ///
    /// # Errors
    /// When there is no such pipeline or step.
    pub async fn resume(&self, request: v1::ResumeRequest) -> Result<v1::ResumeResponse, Error> {
        let view = self.planned().await?;
        let Some(pipeline) = view.pipeline(&request.pipeline) else {
            return Err(self.unknown(request.pipeline).await);
        };
        let wanted = |plan: &StepPlan| request.step.is_empty() || plan.id.step.as_str() == request.step;
        let steps: Vec<_> = pipeline.steps.iter().map(|step| &step.plan).filter(|plan| wanted(plan)).collect();
        if steps.is_empty() {
            return Err(Error::NoSuchStep {
                pipeline: pipeline.name.clone(),
                known: pipeline.steps.iter().map(|step| step.plan.id.step.to_string()).collect(),
                found: request.step,
            });
        }
        let instances = self.sessions().all();
        Ok(v1::ResumeResponse { steps: steps.into_iter().map(|plan| resume(plan, &instances)).collect() })
    }
}

fn resume(plan: &StepPlan, instances: &[Arc<Attached>]) -> v1::ResumedStep {
    let mut resumed = v1::ResumedStep { step: plan.id.step.to_string(), ..v1::ResumedStep::default() };
    for attached in instances.iter().filter(|attached| serves(plan, &attached.module, &attached.serve)) {
        resumed.instances += 1;
        let now = attached.step(plan.id.pipeline.as_str(), plan.id.step.as_str());
        resumed.paused.extend(now.iter().flat_map(|now| now.paused()).cloned());
        attached.resumes.add(plan.id.clone());
    }
    resumed
}
