//! The road of a change, walked again and again from the whole state:
//!
//! ```text
//! inbox ─▶ review (pure) ─▶ revisions, head ─▶ plan (pure) ─▶ topics ensured ─▶ view published
//! ```
//!
//! Runs when something may have changed and every few seconds, and looks at all
//! there is, never at what the event said. Several engines do it side by side on
//! one store. All plan, ensure the topics (which may be repeated) and publish; only
//! the leader takes the inbox in, and its writes carry its lease.
//! Whatever goes wrong leaves the last view in place, with the problem in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pipedoc_model::names::{ClusterName, Generation, PipelineName, Topic};
use pipedoc_model::pipeline::{self, PipelineConfig};
use pipedoc_model::plan::{self, Controls, Plan};
use pipedoc_model::problem::{Problem, Problems};
use pipedoc_model::registry::Modules;
use pipedoc_model::step::{InputSource, StepPlan};
use pipedoc_transport::log::Log;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::catalog::{Catalog, Head, Note};
use crate::clock;
use crate::editor::Editor;
use crate::inbox::{Review, Reviewer};
use crate::snapshot::{Facts, Reader, Snapshot};
use crate::store::{self, Leadership, Lease};
use crate::topics;
use crate::view::{PipelineView, ReadyStep, View};
use pipedoc_model::problem::chain;

/// How soon after something went wrong.
const AGAIN: Duration = Duration::from_secs(1);
/// How long changes are gathered, so that a burst is looked at once.
const GATHER: Duration = Duration::from_millis(20);
/// How often topics are looked at though the plan is the same: somebody may have
/// deleted one.
const TOPICS_EVERY: Duration = Duration::from_secs(60);

/// Reconciles; owned by its task.
pub(crate) struct Reconciler {
    cluster: ClusterName,
    catalog: Catalog,
    log: Arc<dyn Log>,
    editor: Arc<Editor>,
    variables: BTreeMap<String, String>,
    /// Whether this engine leads: followers look at the inbox, but leave it alone.
    leadership: watch::Receiver<Leadership>,
    view: watch::Sender<Arc<View>>,
    nudge: Arc<Notify>,
    reader: Reader,
    reviewer: Reviewer,
    /// What was planned last, and when its topics were all well.
    planned: Option<(Head, Instant)>,
    /// What was judged last, and what came of it.
    judged: Option<(Facts, Vec<Problem>)>,
}

/// How a pass ended.
struct Outcome {
    problems: Vec<Problem>,
    /// When to look again at the latest.
    again: Instant,
}

/// Why a pass was given up.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("step {step} cannot be written down")]
    Step {
        step: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("{0}")]
    Text(Problems),
}

impl Reconciler {
    pub(crate) fn new(
        cluster: ClusterName,
        catalog: Catalog,
        log: Arc<dyn Log>,
        editor: Arc<Editor>,
        variables: BTreeMap<String, String>,
        leadership: watch::Receiver<Leadership>,
        nudge: Arc<Notify>,
    ) -> Self {
        Self {
            cluster,
            reader: Reader::new(catalog.clone()),
            catalog,
            log,
            editor,
            variables,
            leadership,
            view: watch::Sender::new(Arc::default()),
            nudge,
            reviewer: Reviewer::default(),
            planned: None,
            judged: None,
        }
    }

    /// What is published.
    pub(crate) fn view(&self) -> watch::Receiver<Arc<View>> {
        self.view.subscribe()
    }

    /// Reconciles until `shutdown`.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut changes = self.catalog.store().changes();
        let mut leadership = self.leadership.clone();
        loop {
            // What changes from here on is looked at in the next pass.
            changes.mark_unchanged();
            leadership.mark_unchanged();
            let again = self.pass().await;
            let heard = async {
                tokio::select! {
                    () = change_of(&mut changes) => {}
                    () = change_of(&mut leadership) => {}
                    () = self.nudge.notified() => {}
                    () = tokio::time::sleep_until(again.into()) => return,
                }
                tokio::time::sleep(GATHER).await;
            };
            if shutdown.run_until_cancelled(heard).await.is_none() {
                return;
            }
        }
    }

    /// One pass; gives when the next is due at the latest.
    async fn pass(&mut self) -> Instant {
        let mut looked = false;
        let outcome = match self.look().await {
            Ok(outcome) => {
                looked = true;
                outcome
            }
            // Another engine was faster: look at what it did.
            Err(Error::Store(store::Error::Conflict { .. })) => return Instant::now() + GATHER,
            // Another one leads, which will be heard of.
            Err(Error::Store(store::Error::NotLeading { .. })) => return Instant::now() + AGAIN,
            Err(Error::Text(Problems(problems))) => Outcome { problems, again: Instant::now() + AGAIN },
            Err(error) => {
                let problem = Problem { message: chain(&error), ..Problem::default() };
                Outcome { problems: vec![problem], again: Instant::now() + AGAIN }
            }
        };
        self.view.send_if_modified(|view| {
            if view.problems == outcome.problems && (view.looked || !looked) {
                return false;
            }
            for problem in outcome.problems.iter().filter(|problem| !view.problems.contains(problem)) {
                tracing::warn!(%problem, "something is wrong; what runs goes on");
            }
            let view = Arc::make_mut(view);
            view.problems = outcome.problems;
            view.looked |= looked;
            true
        });
        outcome.again
    }

    async fn look(&mut self) -> Result<Outcome, Error> {
        let lease = self.leadership.borrow().lease().cloned();
        let mut snapshot = self.reader.snapshot().await?;
        let store = self.catalog.store();
        if snapshot.current.is_none() && matches!(snapshot.inbox, Err(store::Error::InboxMissing { .. })) {
            // A store that nobody has used yet.
            snapshot.inbox = Ok(Vec::new());
        }
        let review =
            self.reviewer.review(&snapshot, |name| store.inbox_name(name), &self.variables, clock::now_millis());
        let again = review.look_again;
        let mut problems = match &lease {
            Some(lease) => {
                let (problems, changed) = self.carry_out(review, &snapshot, lease).await?;
                if changed {
                    snapshot = self.reader.snapshot().await?;
                }
                problems
            }
            None => review.problems,
        };
        let soon = Instant::now() + self.catalog.store().look_every();
        let mut outcome = Outcome { problems: Vec::new(), again: again.map_or(soon, |again| again.min(soon)) };
        let Some(current) = &snapshot.current else {
            let remembered = self.editor.reported();
            if remembered > Generation(0) {
                let message = format!(
                    "{} has no head, but instances run generation {remembered}: what runs goes on; restore the store, or apply the pipelines again",
                    self.catalog.store().describe()
                );
                problems.push(Problem { message, ..Problem::default() });
            }
            outcome.problems = problems;
            return Ok(outcome);
        };
        if let Some(lease) = &lease
            && self.editor.reported() > current.head.generation
        {
            self.editor.raise(current, lease).await?;
            return Err(store::Error::Conflict { key: store::Key::new(&["head"]) }.into());
        }
        if self.judged.as_ref().is_none_or(|(facts, _)| *facts != snapshot.facts) {
            self.judged = Some((snapshot.facts.clone(), judge(&snapshot.facts)));
        }
        problems.extend(self.judged.iter().flat_map(|(_, problems)| problems.clone()));
        let well = self.planned.as_ref().is_some_and(|(head, at)| *head == current.head && at.elapsed() < TOPICS_EVERY);
        if !well {
            let troubles = self.plan(&current.head, &snapshot.facts).await?;
            if troubles.is_empty() {
                self.planned = Some((current.head.clone(), Instant::now()));
            } else {
                outcome.again = outcome.again.min(Instant::now() + AGAIN);
                self.planned = None;
            }
            problems.extend(troubles);
        }
        outcome.problems = problems;
        Ok(outcome)
    }

    /// Does what a review says; gives the problems, and whether the head changed.
    async fn carry_out(
        &self,
        review: Review,
        snapshot: &Snapshot,
        lease: &Lease,
    ) -> Result<(Vec<Problem>, bool), Error> {
        let Review { takes, removals, mut notes, forgotten, rewrites, mut problems, look_again: _ } = review;
        let mut good = Vec::new();
        for (entry, name, revision) in &takes {
            let none = Modules::new();
            let fits = match pipeline::parse(&revision.text, &revision.file, &revision.variables, &none, false) {
                Ok(parsed) => self.editor.check_topics(&parsed.config, &revision.file).await,
                Err(problems) => Err(problems),
            };
            match fits {
                Ok(()) => good.push((entry, name, revision)),
                Err(Problems(unfit)) => problems.extend(unfit),
            }
        }
        let removals: BTreeSet<_> =
            removals.into_iter().filter(|name| snapshot.facts.revisions.contains_key(name)).collect();
        let changed = !good.is_empty() || !removals.is_empty();
        if changed {
            let texts: Vec<_> = good.iter().map(|(_, name, revision)| ((*name).clone(), *revision)).collect();
            let numbers = self.editor.take(snapshot.current.as_ref(), &texts, &removals, lease).await?;
            for ((entry, name, revision), number) in good.into_iter().zip(numbers) {
                let hash = revision.hash.clone();
                let note = Note { hash, pipeline: Some(name.clone()), taken: true, revision: number };
                notes.insert(entry.clone(), note);
            }
        }
        for (entry, name) in rewrites {
            let Some((number, revision)) = snapshot.facts.revisions.get(&name) else { continue };
            match self.catalog.store().write_inbox(&entry, &revision.text, snapshot.entry_text(&entry)).await {
                Ok(()) => {
                    let note =
                        Note { hash: revision.hash.clone(), pipeline: Some(name), taken: true, revision: *number };
                    notes.insert(entry, note);
                }
                // Edited meanwhile: the next look takes that in.
                Err(store::Error::Conflict { .. }) => {}
                Err(error) => problems.push(Problem { message: chain(&error), ..Problem::default() }),
            }
        }
        for (entry, note) in &notes {
            if snapshot.notes.get(entry) != Some(note) {
                self.catalog.set_note(entry, note, lease).await?;
            }
        }
        for entry in &forgotten {
            self.catalog.remove_note(entry, lease).await?;
        }
        Ok((problems, changed))
    }

    /// Plans a head, ensures the topics and publishes what came of it. Pipelines
    /// whose topics are not there keep the steps they had.
    async fn plan(&self, head: &Head, facts: &Facts) -> Result<Vec<Problem>, Error> {
        let configs = facts.revisions.values().map(|(_, revision)| {
            // Without modules: a revision was good once, and a newer registration
            // of a module does not make it unreadable.
            pipeline::parse(&revision.text, &revision.file, &revision.variables, &Modules::new(), false)
                .map(|parsed| parsed.config)
        });
        let configs: Vec<PipelineConfig> = configs.collect::<Result<_, _>>().map_err(Error::Text)?;
        let mut controls = Controls::default();
        for (name, wishes) in &facts.wishes {
            wishes.add_to(name, &mut controls);
        }
        let plan = plan::plan(&self.cluster, &configs, &controls);
        let troubles = topics::ensure_each(self.log.as_ref(), &plan).await;
        let problems: Vec<_> =
            troubles.iter().map(|(_, error)| Problem { message: chain(error), ..Problem::default() }).collect();
        if troubles.iter().any(|(_, error)| error.is_retryable()) {
            // The log is away for now; who runs goes on as before.
            return Ok(problems);
        }
        let lacking: BTreeSet<_> = troubles.into_iter().map(|(topic, _)| topic).collect();
        self.publish(head, facts, plan, &lacking)?;
        Ok(problems)
    }

    fn publish(&self, head: &Head, facts: &Facts, plan: Plan, lacking: &BTreeSet<Topic>) -> Result<(), Error> {
        let mut steps: BTreeMap<PipelineName, Vec<Arc<ReadyStep>>> = BTreeMap::new();
        let mut held: BTreeSet<PipelineName> = BTreeSet::new();
        for step in plan.steps {
            let name = step.id.pipeline.clone();
            if needs(&step).any(|topic| lacking.contains(topic)) {
                held.insert(name.clone());
            }
            let id = step.id.to_string();
            let step = ReadyStep::new(step).map_err(|source| Error::Step { step: id, source })?;
            steps.entry(name).or_default().push(Arc::new(step));
        }
        let old = Arc::clone(&self.view.borrow());
        let pipelines = steps.into_iter().filter_map(|(name, steps)| {
            if held.contains(&name) {
                return old.pipeline(name.as_str()).cloned();
            }
            let revision = facts.revisions.get(&name).map_or(0, |(number, _)| *number);
            Some(PipelineView { name, revision, steps })
        });
        let view = View {
            looked: true,
            generation: Some(head.generation),
            seen: head.generation,
            pipelines: pipelines.collect(),
            problems: old.problems.clone(),
        };
        self.view.send_if_modified(|published| {
            let news = **published != view;
            if news {
                *published = Arc::new(view);
            }
            news
        });
        Ok(())
    }
}

/// Returns at the next change; never, when nobody tells of changes any more: the
/// timer remains.
async fn change_of<T>(watched: &mut watch::Receiver<T>) {
    if watched.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What the modules that are known now make of the current revisions.
fn judge(facts: &Facts) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (_, revision) in facts.revisions.values() {
        match pipeline::parse(&revision.text, &revision.file, &revision.variables, &facts.modules, false) {
            // Modules that have not registered yet show in their steps' state.
            Ok(_) => {}
            Err(Problems(found)) => problems.extend(found),
        }
    }
    problems
}

/// Topics without which a step cannot run.
fn needs(step: &StepPlan) -> impl Iterator<Item = &Topic> {
    let inputs = step.inputs.iter().filter_map(|input| match &input.source {
        InputSource::Topic(topic) => Some(topic),
        InputSource::Pattern(_) => None,
    });
    let outputs = step.outputs.iter().map(|output| &output.topic);
    inputs.chain(outputs).chain(&step.allowed_topics).chain([&step.dead_letters]).chain(&step.state)
}

/// Waits until a generation was looked at; tells whether it came in time.
pub(crate) async fn wait_for(view: &mut watch::Receiver<Arc<View>>, generation: Generation, limit: Duration) -> bool {
    let seen = view.wait_for(|view| view.seen >= generation);
    matches!(tokio::time::timeout(limit, seen).await, Ok(Ok(_)))
}
