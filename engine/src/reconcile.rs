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

use pipedoc_model::names::{ClusterName, Generation, Topic};
use pipedoc_model::plan::join_topics;
use pipedoc_model::problem::{Problem, Problems};
use pipedoc_model::step::{InputSource, StepPlan};
use pipedoc_transport::log::Log;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::catalog::{Catalog, Head};
use crate::clock;
use crate::editor::Editor;
use crate::inbox::Reviewer;
use crate::prepared::{self, Pipelines};
use crate::snapshot::{Facts, Reader};
use crate::store::{self, Leadership};
use crate::taking;
use crate::topics::Keeper;
use crate::view::{PipelineView, ReadyStep, View};
use pipedoc_model::problem::chain;

/// How soon after something went wrong.
const AGAIN: Duration = Duration::from_secs(1);
/// How long changes are gathered, so that a burst is looked at once.
const GATHER: Duration = Duration::from_millis(20);
/// How long pipelines are judged before changes have their turn.
const JUDGE_FOR: Duration = Duration::from_millis(200);

/// Reconciles; owned by its task.
pub(crate) struct Reconciler {
    cluster: ClusterName,
    catalog: Catalog,
    editor: Arc<Editor>,
    variables: BTreeMap<String, String>,
    /// Whether this engine leads: followers look at the inbox, but leave it alone.
    leadership: watch::Receiver<Leadership>,
    view: watch::Sender<Arc<View>>,
    nudge: Arc<Notify>,
    reader: Reader,
    reviewer: Reviewer,
    pipelines: Pipelines,
    topics: Keeper,
    /// The head that was planned last, with all its topics well.
    planned: Option<Head>,
    /// The head whose modules have judged all pipelines.
    judged: Option<Head>,
    /// The warnings that this engine has told of as the leader.
    told: BTreeSet<Problem>,
}

/// How a pass ended.
struct Outcome {
    problems: Vec<Problem>,
    /// None: they could not be looked at, and are what they were.
    warnings: Option<Vec<Problem>>,
    /// When to look again at the latest.
    again: Instant,
}

/// Why a pass was given up.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Prepare(#[from] prepared::Error),
    #[error("planning broke off")]
    Broken(#[from] tokio::task::JoinError),
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
            editor,
            variables,
            leadership,
            view: watch::Sender::new(Arc::default()),
            nudge,
            reviewer: Reviewer::default(),
            pipelines: Pipelines::default(),
            topics: Keeper::new(log),
            planned: None,
            judged: None,
            told: BTreeSet::new(),
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
        let _looking_after = AbortOnDropHandle::new(tokio::spawn(self.topics.look_after(Arc::clone(&self.nudge))));
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
        let (mut looked, mut silent) = (false, false);
        let outcome = match self.look().await {
            Ok(outcome) => {
                looked = true;
                outcome
            }
            // Another engine was faster: look at what it did.
            Err(Error::Store(store::Error::Conflict { .. })) => return Instant::now() + GATHER,
            // Another one leads, which will be heard of.
            Err(Error::Store(store::Error::NotLeading { .. })) => return Instant::now() + AGAIN,
            Err(Error::Prepare(prepared::Error::Text(Problems(problems)))) => {
                Outcome { problems, warnings: None, again: Instant::now() + AGAIN }
            }
            Err(error) => {
                silent = matches!(error, Error::Store(store::Error::Unreachable { .. }));
                let problem = Problem { message: chain(&error), ..Problem::default() };
                Outcome { problems: vec![problem], warnings: None, again: Instant::now() + AGAIN }
            }
        };
        if let Some(warnings) = &outcome.warnings {
            self.tell(warnings);
        }
        self.view.send_if_modified(|view| {
            let warnings = outcome.warnings.unwrap_or_else(|| view.warnings.clone());
            if view.problems == outcome.problems && view.warnings == warnings && (view.looked || !looked) {
                return false;
            }
            // A store that is away tells of that itself, once and not each second.
            for problem in outcome.problems.iter().filter(|problem| !silent && !view.problems.contains(problem)) {
                tracing::warn!(%problem, "something is wrong; what runs goes on");
            }
            let view = Arc::make_mut(view);
            view.problems = outcome.problems;
            view.warnings = warnings;
            view.looked |= looked;
            true
        });
        outcome.again
    }

    /// Tells of new warnings, where it leads: one engine is enough.
    fn tell(&mut self, warnings: &[Problem]) {
        if self.leadership.borrow().lease().is_none() {
            return;
        }
        // Which modules are known changes as they come; that is no news for the log.
        let gist = |warning: &Problem| {
            let message = warning.message.split(';').next().unwrap_or_default().to_owned();
            Problem { message, ..warning.clone() }
        };
        for warning in warnings.iter().filter(|warning| !self.told.contains(&gist(warning))) {
            tracing::warn!("{warning}");
        }
        self.told = warnings.iter().map(gist).collect();
    }

    async fn look(&mut self) -> Result<Outcome, Error> {
        let lease = self.leadership.borrow().lease().cloned();
        let store = self.catalog.store();
        let snapshot = self.reader.snapshot().await;
        match &snapshot {
            Ok(_) => store.may_lead(true),
            // Whoever leads must be able to read what it changes.
            Err(store::Error::TooNew { .. }) => store.may_lead(false),
            Err(_) => {}
        }
        let mut snapshot = snapshot?;
        if snapshot.current.is_none() && matches!(snapshot.inbox, Err(store::Error::InboxMissing { .. })) {
            // A store that nobody has used yet.
            snapshot.inbox = Ok(Vec::new());
        }
        let lost = snapshot.current.is_none() && self.editor.highest() > Generation(0);
        let name = |pipeline: &str| store.inbox_name(pipeline);
        let review = self.reviewer.review(&snapshot, lost, name, &self.variables, clock::now_millis());
        let again = review.look_again;
        if let Some(lease) = &lease
            && snapshot.current.is_none()
            && self.editor.recover(&snapshot.notes, lease).await?
        {
            return Err(store::Error::Conflict { key: store::Key::new(&["head"]) }.into());
        }
        let carried = taking::carry_out(&self.catalog, &self.editor, review, &snapshot, lease.as_ref()).await?;
        if carried.changed {
            snapshot = self.reader.snapshot().await?;
        }
        let mut problems = carried.problems;
        let pause = if carried.waiting { AGAIN } else { self.catalog.store().look_every() };
        let soon = Instant::now() + pause;
        let again = again.map_or(soon, |again| again.min(soon));
        let mut outcome = Outcome { problems: Vec::new(), warnings: Some(Vec::new()), again };
        let Some(current) = &snapshot.current else {
            let remembered = self.editor.highest();
            if remembered > Generation(0) {
                let message = format!(
                    "{} has no head, though there was generation {remembered}: its data are lost; what runs goes on; restore them, or apply the pipelines again",
                    self.catalog.store().describe()
                );
                problems.push(Problem { message, ..Problem::default() });
            }
            outcome.problems = problems;
            return Ok(outcome);
        };
        if self.editor.register_lost(&current.head).await? {
            return Err(store::Error::Conflict { key: store::Key::new(&["head"]) }.into());
        }
        if let Some(lease) = &lease
            && self.editor.reported() > current.head.generation
        {
            self.editor.raise(current, lease).await?;
            return Err(store::Error::Conflict { key: store::Key::new(&["head"]) }.into());
        }
        self.prepare(&current.head, &snapshot.facts).await?;
        if self.planned.as_ref() != Some(&current.head) || self.topics.has_suspects() {
            let troubles = self.plan(&current.head, &snapshot.facts).await;
            if troubles.is_empty() {
                self.planned = Some(current.head.clone());
            } else {
                outcome.again = outcome.again.min(Instant::now() + AGAIN);
                self.planned = None;
            }
            problems.extend(troubles);
        }
        if self.judged.as_ref() != Some(&current.head) {
            if self.judge(&current.head, &snapshot.facts).await? {
                self.judged = Some(current.head.clone());
            } else {
                outcome.again = Instant::now();
            }
        }
        problems.extend(self.pipelines.problems().cloned());
        outcome.problems = problems;
        outcome.warnings = Some(self.pipelines.unseen().cloned().collect());
        Ok(outcome)
    }

    /// Brings what the pipelines come to up to date. Reading hundreds of them takes a
    /// while, in which instances are served.
    async fn prepare(&mut self, head: &Head, facts: &Facts) -> Result<(), Error> {
        if self.planned.as_ref() == Some(head) {
            return Ok(());
        }
        let (cluster, facts) = (self.cluster.clone(), facts.clone());
        Ok(self.aside(move |pipelines| pipelines.update(&cluster, &facts)).await??)
    }

    /// Lets the registrations of modules judge the pipelines, for a while; tells
    /// whether that is done.
    async fn judge(&mut self, head: &Head, facts: &Facts) -> Result<bool, Error> {
        let (head, facts) = (head.clone(), facts.clone());
        self.aside(move |pipelines| pipelines.judge(&head, &facts, JUDGE_FOR)).await
    }

    /// Works on the pipelines where that holds up nobody.
    async fn aside<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Pipelines) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let mut pipelines = std::mem::take(&mut self.pipelines);
        let work = move || {
            let done = work(&mut pipelines);
            (pipelines, done)
        };
        let (pipelines, done) = tokio::task::spawn_blocking(work).await?;
        self.pipelines = pipelines;
        Ok(done)
    }

    /// Ensures the topics of a head and publishes what came of it. Pipelines whose
    /// topics are not there keep the steps they had.
    async fn plan(&mut self, head: &Head, facts: &Facts) -> Vec<Problem> {
        let topics = join_topics(self.pipelines.iter().flat_map(|(_, prepared)| prepared.topics()));
        let troubles = self.topics.ensure(topics).await;
        let problems = troubles.iter().map(|(_, error)| Problem { message: chain(error), ..Problem::default() });
        let problems = problems.collect();
        // Where the log is away for now, who runs goes on as before.
        if !troubles.iter().any(|(_, error)| error.is_retryable()) {
            let lacking: BTreeSet<_> = troubles.into_iter().map(|(topic, _)| topic).collect();
            self.publish(head, facts, &lacking);
        }
        problems
    }

    fn publish(&self, head: &Head, facts: &Facts, lacking: &BTreeSet<Topic>) {
        let old = Arc::clone(&self.view.borrow());
        let pipelines = self.pipelines.iter().filter_map(|(name, prepared)| {
            let lacks = |step: &Arc<ReadyStep>| needs(&step.plan).any(|topic| lacking.contains(topic));
            if !lacking.is_empty() && prepared.steps().iter().any(lacks) {
                return old.pipeline(name.as_str()).cloned();
            }
            let steps = Arc::clone(prepared.steps());
            Some(PipelineView { name: name.clone(), revision: prepared.revision(), steps })
        });
        let view = View::after(&old, head.generation, pipelines.collect(), Arc::clone(&facts.modules));
        self.view.send_if_modified(|published| {
            let news = **published != view;
            if news {
                *published = Arc::new(view);
            }
            news
        });
    }
}

/// Returns at the next change; never, when nobody tells of changes any more: the
/// timer remains.
async fn change_of<T>(watched: &mut watch::Receiver<T>) {
    if watched.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
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
