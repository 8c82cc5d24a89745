//! What an engine has planned last: the whole of it, published at once.
//!
//! Whoever serves instances, callers or operators reads only this; nobody waits
//! for a reconciliation in progress.

use std::sync::Arc;

use pipedoc_model::names::{Generation, ModuleName, PipelineName};
use pipedoc_model::problem::Problem;
use pipedoc_model::step::StepPlan;

/// A planned step as it travels.
#[derive(Debug, PartialEq)]
pub struct ReadyStep {
    /// The step.
    pub plan: StepPlan,
    /// The step as canonical JSON.
    pub json: String,
    /// SHA-256 of that JSON, in hex.
    pub hash: String,
}

impl ReadyStep {
    /// Writes a step down.
    ///
    /// # Errors
    /// Never for a step that the planner made.
    pub fn new(plan: StepPlan) -> Result<Self, serde_json::Error> {
        let json = plan.to_json()?;
        let hash = pipedoc_model::plan::hash_of(&json);
        Ok(Self { plan, json, hash })
    }
}

/// A pipeline that runs.
#[derive(Debug, Clone, PartialEq)]
pub struct PipelineView {
    /// Its name.
    pub name: PipelineName,
    /// Its revision.
    pub revision: u64,
    /// Its steps, in the file's order.
    pub steps: Vec<Arc<ReadyStep>>,
}

/// What an engine has planned last.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct View {
    /// Whether the store was looked at: before that, nothing is known of pipelines.
    pub looked: bool,
    /// Generation of the head that was planned; none while there is no head,
    /// which is "no news": instances are told nothing then.
    pub generation: Option<Generation>,
    /// Newest generation that was looked at, planned or not.
    pub seen: Generation,
    /// The pipelines, by name.
    pub pipelines: Vec<PipelineView>,
    /// What is wrong with the configuration, for status.
    pub problems: Vec<Problem>,
}

impl View {
    /// A pipeline by name.
    #[must_use]
    pub fn pipeline(&self, name: &str) -> Option<&PipelineView> {
        self.pipelines.iter().find(|pipeline| pipeline.name.as_str() == name)
    }

    /// The steps that an instance of a module has to run: all of its module, or
    /// those of them that it is narrowed to (`pipeline/step`).
    pub fn steps_for(&self, module: &ModuleName, serve: &[String]) -> Vec<&Arc<ReadyStep>> {
        let all = self.pipelines.iter().flat_map(|pipeline| &pipeline.steps);
        all.filter(|step| serves(&step.plan, module, serve)).collect()
    }
}

/// Whether an instance of `module`, narrowed to `serve`, runs a step.
#[must_use]
pub fn serves(step: &StepPlan, module: &ModuleName, serve: &[String]) -> bool {
    step.module == *module && (serve.is_empty() || serve.contains(&step.id.to_string()))
}
