//! What an engine has planned last: the whole of it, published at once.
//!
//! Whoever serves instances, callers or operators reads only this; nobody waits
//! for a reconciliation in progress. What has not changed is the same object from
//! one view to the next, so that a change costs what it touches, however large the
//! rest is.

use std::collections::BTreeMap;
use std::sync::Arc;

use pipedoc_model::assignment::list_hash;
use pipedoc_model::names::{Generation, ModuleName, PipelineName, StepId};
use pipedoc_model::problem::Problem;
use pipedoc_model::registry::Modules;
use pipedoc_model::step::StepPlan;

/// A planned step as it travels.
#[derive(Debug)]
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

/// The hash says all that a step is.
impl PartialEq for ReadyStep {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
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
    pub steps: Arc<[Arc<ReadyStep>]>,
}

/// The steps of one module, in the order of their names: what an instance of it is told.
#[derive(Debug)]
pub struct StepList {
    steps: Vec<Arc<ReadyStep>>,
    hash: String,
}

impl StepList {
    /// A list of these steps.
    #[must_use]
    pub fn new(mut steps: Vec<Arc<ReadyStep>>) -> Self {
        steps.sort_by(|a, b| a.plan.id.cmp(&b.plan.id));
        let hash = list_hash(steps.iter().map(|step| {
            let StepId { pipeline, step: name } = &step.plan.id;
            (pipeline.as_str(), name.as_str(), step.hash.as_str())
        }));
        Self { steps, hash }
    }

    /// The steps.
    #[must_use]
    pub fn steps(&self) -> &[Arc<ReadyStep>] {
        &self.steps
    }

    /// What names the list: see `Assignment.list_hash` in `gateway.proto`.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// A step by its names.
    #[must_use]
    pub fn step(&self, pipeline: &str, step: &str) -> Option<&Arc<ReadyStep>> {
        let place = |ready: &Arc<ReadyStep>| {
            let StepId { pipeline: of, step: name } = &ready.plan.id;
            (of.as_str(), name.as_str()).cmp(&(pipeline, step))
        };
        self.steps.binary_search_by(place).ok().map(|at| &self.steps[at])
    }
}

/// The list without steps.
impl Default for StepList {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl PartialEq for StepList {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
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
    /// The modules' registrations that go with it.
    pub modules: Arc<Modules>,
    /// What is wrong with the configuration, for status.
    pub problems: Vec<Problem>,
    /// What operators should know of it though it runs.
    pub warnings: Vec<Problem>,
    lists: BTreeMap<ModuleName, Arc<StepList>>,
}

impl View {
    /// A view of these pipelines after `old`, whose lists go on where they are the
    /// same.
    #[must_use]
    pub fn after(old: &Self, generation: Generation, pipelines: Vec<PipelineView>, modules: Arc<Modules>) -> Self {
        let mut steps: BTreeMap<&ModuleName, Vec<Arc<ReadyStep>>> = BTreeMap::new();
        for step in pipelines.iter().flat_map(|pipeline| &*pipeline.steps) {
            steps.entry(&step.plan.module).or_default().push(Arc::clone(step));
        }
        let lists = steps.into_iter().map(|(module, mut steps)| {
            steps.sort_by(|a, b| a.plan.id.cmp(&b.plan.id));
            let same = |old: &&Arc<StepList>| {
                old.steps.len() == steps.len() && old.steps.iter().zip(&steps).all(|(old, new)| old == new)
            };
            let list = old.lists.get(module).filter(same).cloned().unwrap_or_else(|| Arc::new(StepList::new(steps)));
            (module.clone(), list)
        });
        let lists = lists.collect();
        let (problems, warnings) = (old.problems.clone(), old.warnings.clone());
        let (looked, seen, generation) = (true, generation, Some(generation));
        Self { looked, generation, seen, pipelines, modules, problems, warnings, lists }
    }

    /// A pipeline by name.
    #[must_use]
    pub fn pipeline(&self, name: &str) -> Option<&PipelineView> {
        let found = self.pipelines.binary_search_by(|pipeline| pipeline.name.as_str().cmp(name));
        found.ok().map(|at| &self.pipelines[at])
    }

    /// The steps of a module; none of a module that no step names.
    #[must_use]
    pub fn list(&self, module: &ModuleName) -> Option<&Arc<StepList>> {
        self.lists.get(module)
    }
}

/// Whether an instance of `module`, narrowed to `serve`, runs a step.
#[must_use]
pub fn serves(step: &StepPlan, module: &ModuleName, serve: &[String]) -> bool {
    step.module == *module && (serve.is_empty() || serve.contains(&step.id.to_string()))
}

#[cfg(test)]
pub(crate) mod tests {
    use pipedoc_model::names::ClusterName;
    use pipedoc_model::pipeline;
    use pipedoc_model::plan::{Controls, plan};

    use super::*;

    /// Steps of a pipeline whose modules are `m0`, `m1` in turn.
    pub(crate) fn pipeline_view(name: &str, concurrency: &[usize]) -> PipelineView {
        let mut text = format!("pipeline: {name}\nsteps:\n");
        for (n, concurrency) in concurrency.iter().enumerate() {
            let module = n % 2;
            text += &format!("  - {{name: s{n}, type: SINK, module: m{module}, concurrency: {concurrency}}}\n");
        }
        let parsed = pipeline::parse(&text, "test", &BTreeMap::new(), &Modules::new(), false).unwrap();
        let plan = plan(&ClusterName::new("local").unwrap(), &[parsed.config], &Controls::default());
        let steps = plan.steps.into_iter().map(|step| Arc::new(ReadyStep::new(step).unwrap()));
        PipelineView { name: name.parse().unwrap(), revision: 1, steps: steps.collect() }
    }

    pub(crate) fn view_of(old: &View, pipelines: Vec<PipelineView>) -> View {
        View::after(old, Generation(old.seen.0 + 1), pipelines, Arc::default())
    }

    pub(crate) fn module(name: &str) -> ModuleName {
        ModuleName::new(name).unwrap()
    }

    #[test]
    fn a_change_leaves_the_lists_of_other_modules_untouched() {
        let (one, other) = (pipeline_view("one", &[1, 1]), pipeline_view("other", &[1, 1]));
        let before = view_of(&View::default(), vec![one, other.clone()]);
        let after = view_of(&before, vec![pipeline_view("one", &[1, 7]), other]);
        let list = |view: &View, name: &str| Arc::clone(view.list(&module(name)).unwrap());
        assert!(Arc::ptr_eq(&list(&before, "m0"), &list(&after, "m0")));
        assert_ne!(list(&before, "m1").hash(), list(&after, "m1").hash());
        assert_eq!(after.list(&module("m2")), None);
        assert_eq!(after.pipeline("other").unwrap().name.as_str(), "other");
        assert!(after.pipeline("another").is_none());
    }

    #[test]
    fn a_list_finds_its_steps_by_name() {
        let view = view_of(&View::default(), vec![pipeline_view("b", &[1, 1, 1]), pipeline_view("b-1", &[1])]);
        let list = view.list(&module("m0")).unwrap();
        let names: Vec<_> = list.steps().iter().map(|step| step.plan.id.to_string()).collect();
        assert_eq!(names, ["b/s0", "b/s2", "b-1/s0"]);
        assert_eq!(list.step("b", "s2").unwrap().plan.id.to_string(), "b/s2");
        assert!(list.step("b", "s1").is_none());
    }
}
