//! What every pipeline comes to: read, planned and judged once for each revision,
//! wish and registration, and then kept.
//!
//! ```text
//! revision, wishes ─▶ steps and topics    modules' registrations ─▶ problems
//! ```
//!
//! Where one pipeline of hundreds changes, only that one is looked at, and of its
//! steps those that say the same go on as the same objects. Pure but for being
//! slow: to be called where that holds up nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pipedoc_model::names::{ClusterName, ModuleName, PipelineName};
use pipedoc_model::pipeline;
use pipedoc_model::plan::{Controls, TopicPlan, plan_one};
use pipedoc_model::problem::{Problem, Problems};
use pipedoc_model::registry::Modules;

use crate::catalog::{Head, Revision, Wishes};
use crate::snapshot::Facts;
use crate::view::ReadyStep;

/// Why pipelines cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A step has no JSON.
    #[error("step {step} cannot be written down")]
    Step {
        /// The step.
        step: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A revision that nothing is known of yet cannot be read: to go on without it
    /// would stop its steps.
    #[error("{0}")]
    Text(Problems),
}

/// All pipelines of a head.
#[derive(Debug, Default)]
pub(crate) struct Pipelines(BTreeMap<PipelineName, Prepared>);

/// What a pipeline comes to.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The newest revision looked at, and the number of the one that the steps are
    /// of: an older one, when the newest cannot be read.
    looked: Arc<Revision>,
    revision: u64,
    /// The wishes planned with.
    wishes: Option<Arc<Wishes>>,
    steps: Arc<[Arc<ReadyStep>]>,
    topics: Vec<TopicPlan>,
    /// Why the newest revision cannot be read.
    unreadable: Vec<Problem>,
    /// What modules make of it; none: nobody has looked yet.
    judged: Option<Judgement>,
}

/// What the modules that are known make of a revision.
#[derive(Debug, Clone, PartialEq)]
struct Judgement {
    /// Registrations of those that the steps name.
    registered: BTreeMap<ModuleName, u64>,
    /// All of them, where the steps name one that is not among them.
    known: Option<BTreeSet<ModuleName>>,
    /// What is wrong by those registrations.
    problems: Vec<Problem>,
    /// Steps whose modules were never seen.
    unseen: Vec<Problem>,
}

impl Prepared {
    /// Revision that runs.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// Its steps, in the file's order.
    pub(crate) fn steps(&self) -> &Arc<[Arc<ReadyStep>]> {
        &self.steps
    }

    /// The topics it needs.
    pub(crate) fn topics(&self) -> &[TopicPlan] {
        &self.topics
    }
}

impl Pipelines {
    /// Brings all up to date with what a head refers to.
    ///
    /// # Errors
    /// When a pipeline cannot be read that no steps are known of. All that could be
    /// done has been done then.
    pub(crate) fn update(&mut self, cluster: &ClusterName, facts: &Facts) -> Result<(), Error> {
        self.0.retain(|name, _| facts.revisions.contains_key(name));
        let mut unknown = Vec::new();
        for (name, (number, revision)) in &facts.revisions {
            let wishes = facts.wishes.get(name).map(|(_, wishes)| wishes);
            let known = self.0.remove(name);
            // Objects, not numbers: those begin anew when a store has lost its data.
            let same = known.as_ref().is_some_and(|known| {
                Arc::ptr_eq(&known.looked, revision)
                    && known.wishes.as_ref().map(Arc::as_ptr) == wishes.map(Arc::as_ptr)
            });
            let prepared = match known {
                Some(known) if same => Ok(known),
                known => prepare(cluster, name, *number, revision, facts, known),
            };
            match prepared {
                Ok(prepared) => drop(self.0.insert(name.clone(), prepared)),
                Err(Error::Text(Problems(problems))) => unknown.extend(problems),
                Err(error) => return Err(error),
            }
        }
        if unknown.is_empty() { Ok(()) } else { Err(Error::Text(Problems(unknown))) }
    }

    /// Notes what the registrations of modules make of the revisions, for about as
    /// long as `limit`; tells whether it is done. A module's registration may
    /// concern all pipelines, and changes must not wait for that.
    pub(crate) fn judge(&mut self, head: &Head, facts: &Facts, limit: Duration) -> bool {
        let begun = Instant::now();
        for (name, prepared) in &mut self.0 {
            let Some((_, revision)) = facts.revisions.get(name) else { continue };
            if prepared.judge(head, revision, &facts.modules) && begun.elapsed() >= limit {
                return false;
            }
        }
        true
    }

    /// The pipelines, by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&PipelineName, &Prepared)> {
        self.0.iter()
    }

    /// What is wrong with current revisions.
    pub(crate) fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.0.values().flat_map(|prepared| {
            prepared.unreadable.iter().chain(prepared.judged.iter().flat_map(|judged| &judged.problems))
        })
    }

    /// Steps that wait for modules which were never seen.
    pub(crate) fn unseen(&self) -> impl Iterator<Item = &Problem> {
        self.0.values().filter_map(|prepared| prepared.judged.as_ref()).flat_map(|judged| &judged.unseen)
    }
}

/// Reads and plans a revision. Steps that say the same as before stay.
fn prepare(
    cluster: &ClusterName,
    name: &PipelineName,
    number: u64,
    revision: &Arc<Revision>,
    facts: &Facts,
    known: Option<Prepared>,
) -> Result<Prepared, Error> {
    // Without modules: a revision was good once, and a newer registration of a
    // module does not make it unreadable.
    let parsed = pipeline::parse(&revision.text, &revision.file, &revision.variables, &Modules::new(), false);
    let config = match (parsed, known) {
        (Ok(parsed), known) => Ok((parsed.config, known)),
        (Err(Problems(problems)), Some(known)) => {
            Err(Prepared { looked: Arc::clone(revision), unreadable: problems, ..known })
        }
        (Err(problems), None) => return Err(Error::Text(problems)),
    };
    let (config, known) = match config {
        Ok(read) => read,
        Err(last_good) => return Ok(last_good),
    };
    let mut controls = Controls::default();
    let wishes = facts.wishes.get(name);
    if let Some((_, wishes)) = wishes {
        wishes.add_to(name, &mut controls);
    }
    let plan = plan_one(cluster, &config, &controls);
    let mut steps = Vec::with_capacity(plan.steps.len());
    for step in plan.steps {
        let id = step.id.clone();
        let ready = ReadyStep::new(step).map_err(|source| Error::Step { step: id.to_string(), source })?;
        let before = known.iter().flat_map(|known| &*known.steps).find(|before| before.hash == ready.hash);
        steps.push(before.cloned().unwrap_or_else(|| Arc::new(ready)));
    }
    let wishes = wishes.map(|(_, wishes)| Arc::clone(wishes));
    let (steps, topics) = (steps.into(), plan.topics);
    Ok(Prepared {
        looked: Arc::clone(revision),
        revision: number,
        wishes,
        steps,
        topics,
        unreadable: Vec::new(),
        judged: None,
    })
}

impl Prepared {
    /// Notes what the registrations of its steps' modules make of the revision, where
    /// these are others than before; tells whether they were. Of a module that was
    /// never seen it notes which ones are known.
    fn judge(&mut self, head: &Head, revision: &Revision, modules: &Modules) -> bool {
        if !self.unreadable.is_empty() {
            return false;
        }
        let named: BTreeSet<&ModuleName> = self.steps.iter().map(|step| &step.plan.module).collect();
        let registered = named.iter().filter_map(|name| Some(((*name).clone(), *head.modules.get(*name)?)));
        let registered: BTreeMap<_, _> = registered.collect();
        let known = (registered.len() < named.len()).then(|| head.modules.keys().cloned().collect());
        if self.judged.as_ref().is_some_and(|judged| judged.registered == registered && judged.known == known) {
            return false;
        }
        let parsed = pipeline::parse(&revision.text, &revision.file, &revision.variables, modules, false);
        let (problems, unseen) = match parsed {
            Ok(parsed) => (Vec::new(), parsed.unseen),
            Err(Problems(problems)) => (problems, Vec::new()),
        };
        self.judged = Some(Judgement { registered, known, problems, unseen });
        true
    }
}

#[cfg(test)]
mod tests {
    use pipedoc_model::registry::ModuleInfo;
    use pipedoc_model::step::{ControlState, StepType};

    use super::*;
    use crate::catalog::{Made, Road};

    fn cluster() -> ClusterName {
        ClusterName::new("local").unwrap()
    }

    fn name(name: &str) -> PipelineName {
        name.parse().unwrap()
    }

    fn text(pipeline: &str, concurrency: usize) -> String {
        format!(
            "pipeline: {pipeline}\nsteps:\n  - {{name: a, type: PIPELINE, module: m, outputs: [{{to: b}}]}}\n  - {{name: b, type: SINK, module: m, concurrency: {concurrency}}}\n"
        )
    }

    fn facts(texts: &[(&str, u64, String)]) -> Facts {
        let made = Made { at: 0, by: String::new(), road: Road::Apply, replaces: 0 };
        let revision = |text: &String| Revision::new(text.clone(), "file".into(), BTreeMap::new(), 2, made.clone());
        let revisions =
            texts.iter().map(|(pipeline, number, text)| (name(pipeline), (*number, Arc::new(revision(text)))));
        Facts { revisions: revisions.collect(), ..Facts::default() }
    }

    fn steps(pipelines: &Pipelines, pipeline: &str) -> Vec<Arc<ReadyStep>> {
        pipelines.0[&name(pipeline)].steps.to_vec()
    }

    fn shared(before: &[Arc<ReadyStep>], after: &[Arc<ReadyStep>]) -> Vec<bool> {
        before.iter().zip(after).map(|(before, after)| Arc::ptr_eq(before, after)).collect()
    }

    #[test]
    fn a_change_of_one_pipeline_leaves_all_other_steps_as_they_are() {
        let mut pipelines = Pipelines::default();
        pipelines.update(&cluster(), &facts(&[("one", 1, text("one", 1)), ("two", 1, text("two", 1))])).unwrap();
        let (one, two) = (steps(&pipelines, "one"), steps(&pipelines, "two"));
        pipelines.update(&cluster(), &facts(&[("one", 2, text("one", 7)), ("two", 1, text("two", 1))])).unwrap();
        assert_eq!(shared(&one, &steps(&pipelines, "one")), [true, false], "only the step that changed");
        assert_eq!(shared(&two, &steps(&pipelines, "two")), [true, true]);
        assert_eq!(pipelines.0[&name("one")].revision(), 2);
        pipelines.update(&cluster(), &facts(&[("two", 1, text("two", 1))])).unwrap();
        assert_eq!(pipelines.iter().count(), 1, "what is gone is gone");
    }

    #[test]
    fn a_text_that_cannot_be_read_leaves_the_last_good_steps() {
        let mut pipelines = Pipelines::default();
        pipelines.update(&cluster(), &facts(&[("one", 1, text("one", 1)), ("two", 1, text("two", 1))])).unwrap();
        let one = steps(&pipelines, "one");
        let broken = facts(&[("one", 2, "pipeline: one\nsteps: 7\n".into()), ("two", 2, text("two", 5))]);
        pipelines.update(&cluster(), &broken).unwrap();
        assert_eq!(shared(&one, &steps(&pipelines, "one")), [true, true]);
        assert_eq!((pipelines.0[&name("one")].revision(), pipelines.0[&name("two")].revision()), (1, 2));
        assert!(pipelines.problems().count() > 0);
        pipelines.update(&cluster(), &facts(&[("one", 3, text("one", 1)), ("two", 2, text("two", 5))])).unwrap();
        assert_eq!((pipelines.problems().count(), pipelines.0[&name("one")].revision()), (0, 3));
        // One that nothing is known of is not left out: instances would stop its steps.
        let unknown = Pipelines::default().update(&cluster(), &broken);
        assert!(matches!(unknown, Err(Error::Text(_))), "{unknown:?}");
    }

    #[test]
    fn wishes_change_the_steps_they_are_of() {
        let mut pipelines = Pipelines::default();
        let mut facts = facts(&[("one", 1, text("one", 1)), ("two", 1, text("two", 1))]);
        pipelines.update(&cluster(), &facts).unwrap();
        let two = steps(&pipelines, "two");
        let wishes =
            Wishes { steps: BTreeMap::from([("b".parse().unwrap(), ControlState::Paused)]), ..Wishes::default() };
        facts.wishes.insert(name("one"), (1, Arc::new(wishes)));
        pipelines.update(&cluster(), &facts).unwrap();
        let controls: Vec<_> = steps(&pipelines, "one").iter().map(|step| step.plan.control).collect();
        assert_eq!(controls, [ControlState::Running, ControlState::Paused]);
        assert_eq!(shared(&two, &steps(&pipelines, "two")), [true, true]);
    }

    #[test]
    fn a_registration_judges_only_who_names_the_module() {
        let mut pipelines = Pipelines::default();
        let mut head = Head::default();
        let mut facts = facts(&[("one", 1, text("one", 1))]);
        pipelines.update(&cluster(), &facts).unwrap();
        let module = ModuleName::new("m").unwrap();
        let info = ModuleInfo {
            module: module.clone(),
            version: "1.0.0".into(),
            step_types: vec![StepType::Pipeline],
            config_schema: true.into(),
            description: String::new(),
        };
        facts.modules = Arc::new(Modules::from([(module.clone(), info)]));
        head.modules.insert(module, 1);
        pipelines.update(&cluster(), &facts).unwrap();
        assert!(!pipelines.judge(&head, &facts, Duration::ZERO), "there may be more to do");
        assert!(pipelines.judge(&head, &facts, Duration::ZERO));
        assert_eq!(pipelines.problems().count(), 1, "the module is no sink");
        assert_eq!(pipelines.0[&name("one")].steps.len(), 2, "what was applied before runs on");
        let judged = pipelines.0[&name("one")].judged.clone();
        head.modules.insert(ModuleName::new("other").unwrap(), 1);
        assert!(pipelines.judge(&head, &facts, Duration::ZERO), "another module is none of its business");
        assert_eq!(pipelines.0[&name("one")].judged, judged);
    }

    #[test]
    fn a_module_never_seen_is_told_of_with_those_that_are_known_until_it_registers() {
        let mut pipelines = Pipelines::default();
        let (mut head, mut facts) = (Head::default(), facts(&[("one", 1, text("one", 1))]));
        pipelines.update(&cluster(), &facts).unwrap();
        let mut told = |head: &Head, facts: &Facts| {
            while !pipelines.judge(head, facts, Duration::ZERO) {}
            assert_eq!(pipelines.problems().count(), 0, "that is no mistake");
            pipelines.unseen().map(ToString::to_string).collect::<Vec<_>>()
        };
        let unseen = told(&head, &facts);
        assert_eq!(unseen.len(), 2, "{unseen:?}");
        assert!(unseen[0].starts_with("file:3:") && unseen[0].contains("\"m\" was never seen; step a"), "{unseen:?}");
        let register = |module: &str, head: &mut Head, facts: &mut Facts| {
            let module = ModuleName::new(module).unwrap();
            let info = ModuleInfo {
                module: module.clone(),
                version: "1.0.0".into(),
                step_types: vec![StepType::Pipeline, StepType::Sink],
                config_schema: true.into(),
                description: String::new(),
            };
            head.modules.insert(module.clone(), 1);
            Arc::make_mut(&mut facts.modules).insert(module, info);
        };
        register("another", &mut head, &mut facts);
        let unseen = told(&head, &facts);
        assert!(unseen.len() == 2 && unseen.iter().all(|unseen| unseen.contains("known are another")), "{unseen:?}");
        register("m", &mut head, &mut facts);
        assert_eq!(told(&head, &facts), [""; 0]);
    }
}
