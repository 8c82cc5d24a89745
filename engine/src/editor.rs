//! Changes the head: what is applied, deleted, taken and registered ends here.
//!
//! Every change reads the head, makes the next one and puts it in its place by
//! check-and-set; whoever was slower looks again. Texts and registrations are
//! written before the head that names them.

mod leader;
mod modules;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use parking_lot::Mutex;
use pipedoc_model::names::{ClusterName, Generation, ModuleName, PipelineName};
use pipedoc_model::pipeline::{self, PipelineConfig};
use pipedoc_model::plan::{Controls, plan};
use pipedoc_model::problem::{Problem, Problems};
use pipedoc_model::registry::{ModuleInfo, Modules};
use pipedoc_transport::log::Log;

use crate::backlog;
use crate::catalog::{Catalog, CurrentHead, Deleted, Head, Made, Revision, Road};
use crate::store::{self, Error};
use crate::topics;

/// How callers give up on what waits for a step.
const ABANDON: &str = "give them up with --abandon (they stay in its topic)";

/// Changes the head.
pub(crate) struct Editor {
    cluster: ClusterName,
    catalog: Catalog,
    log: Arc<dyn Log>,
    /// Highest generation that any instance reported; a new head is above it, so
    /// that instances which remember a lost one take what comes now.
    reported: Mutex<Generation>,
    /// What modules said of themselves here; a head made anew knows them, also when
    /// the store has lost them.
    registered: Mutex<BTreeMap<ModuleName, ModuleInfo>>,
}

/// A text somebody wants to be a pipeline's newest revision.
#[derive(Debug, Clone)]
pub(crate) struct Proposal {
    pub(crate) text: String,
    /// Name of the file it came from; may be empty.
    pub(crate) file: String,
    pub(crate) variables: BTreeMap<String, String>,
    pub(crate) road: Road,
    /// Only look; write nothing.
    pub(crate) dry_run: bool,
    pub(crate) terms: Terms,
}

/// Under which circumstances somebody wants a change.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    /// Revision that must be the current one; 0: none; not given: whatever is there.
    pub(crate) expected: Option<u64>,
    /// Also when records are left behind.
    pub(crate) abandon: bool,
    /// Who wants it, as they say.
    pub(crate) by: String,
}

/// A proposal that was taken, or a pipeline that was deleted.
#[derive(Debug)]
pub(crate) struct Applied {
    pub(crate) pipeline: PipelineName,
    /// The current revision; of a deleted pipeline its last one.
    pub(crate) revision: u64,
    pub(crate) generation: Generation,
    pub(crate) warnings: Vec<Problem>,
    /// Whether all of it was so already.
    pub(crate) unchanged: bool,
}

/// A change that was not made.
#[derive(Debug)]
pub(crate) enum NotApplied {
    Refused(Problems),
    /// Another revision is the current one than was expected.
    Conflict {
        pipeline: PipelineName,
        expected: u64,
        current: Option<Box<(u64, Revision)>>,
    },
    Store(Error),
}

impl From<Error> for NotApplied {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl Editor {
    pub(crate) fn new(cluster: ClusterName, catalog: Catalog, log: Arc<dyn Log>) -> Self {
        Self { cluster, catalog, log, reported: Mutex::new(Generation(0)), registered: Mutex::default() }
    }

    /// Notes the generation that an instance reported; tells whether it is news.
    pub(crate) fn heard_of(&self, generation: Generation) -> bool {
        let mut reported = self.reported.lock();
        let news = generation > *reported;
        *reported = generation.max(*reported);
        news
    }

    /// The highest generation that an instance reported.
    pub(crate) fn reported(&self) -> Generation {
        *self.reported.lock()
    }

    /// Validates a text and makes it the newest revision of its pipeline. A text
    /// that is the current revision's is taken and changes nothing.
    pub(crate) async fn apply(&self, proposal: Proposal, now: i64) -> Result<Applied, NotApplied> {
        loop {
            let current = self.catalog.head().await?;
            let head = current.as_ref().map(|current| &current.head);
            let Proposal { text, file, variables, road, dry_run, terms } = &proposal;
            let modules = self.modules(head).await?;
            let mut parsed = pipeline::parse(text, file, variables, &modules, false).map_err(NotApplied::Refused)?;
            let name = parsed.config.name.clone();
            let replaces = head.map_or(0, |head| head.last_revision(&name));
            let made = Made { at: now, by: terms.by.clone(), road: *road, replaces };
            let revision =
                Revision::new(text.clone(), file.clone(), variables.clone(), parsed.config.steps.len(), made);
            let known = self.current_revision(head, &name).await?;
            let generation = head.map_or(Generation(0), |head| head.generation);
            check_expected(&name, terms.expected, known.as_ref())?;
            if let Some((number, _)) = known.as_ref().filter(|(_, known)| known.same_as(&revision)) {
                let (revision, warnings) = (*number, parsed.warnings);
                return Ok(Applied { pipeline: name, revision, generation, warnings, unchanged: true });
            }
            self.check_size(&revision).map_err(NotApplied::Refused)?;
            self.check_topics(&parsed.config, file).await.map_err(NotApplied::Refused)?;
            if let Some((_, known)) = known.as_ref().filter(|_| !terms.abandon) {
                self.check_backlog(known, Some(&parsed.config), ABANDON).await.map_err(NotApplied::Refused)?;
            }
            parsed.warnings.extend(self.growth(&parsed.config, file).await);
            parsed.warnings.extend(self.loss(head));
            if *dry_run {
                let revision = known.map_or(0, |(number, _)| number);
                let warnings = parsed.warnings;
                return Ok(Applied { pipeline: name, revision, generation, warnings, unchanged: false });
            }
            let number = self.catalog.add_revision(&name, &revision).await?;
            let mut next = self.next(current.as_ref()).await?;
            next.pipelines.insert(name.clone(), number);
            next.deleted.remove(&name);
            match self.catalog.set_head(current.as_ref(), &next, None).await {
                Ok(()) => {
                    tracing::info!(pipeline = %name, revision = number, generation = %next.generation, ?road, by = terms.by, "applied");
                    self.forget_old_revisions(&name, number).await;
                    let (revision, generation, warnings) = (number, next.generation, parsed.warnings);
                    return Ok(Applied { pipeline: name, revision, generation, warnings, unchanged: false });
                }
                Err(Error::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Removes a pipeline from the head; none: there is no such pipeline. Its topics,
    /// revisions and what is left in the inbox are not touched here.
    pub(crate) async fn delete(
        &self,
        name: &PipelineName,
        terms: &Terms,
        now: i64,
    ) -> Result<Option<Applied>, NotApplied> {
        loop {
            let current = self.catalog.head().await?;
            let head = current.as_ref().map(|current| &current.head);
            let Some((revision, known)) = self.current_revision(head, name).await? else {
                return Ok(None);
            };
            check_expected(name, terms.expected, Some(&(revision, known.clone())))?;
            if !terms.abandon {
                self.check_backlog(&known, None, ABANDON).await.map_err(NotApplied::Refused)?;
            }
            let mut next = self.next(current.as_ref()).await?;
            remove(&mut next, name, now, &terms.by);
            match self.catalog.set_head(current.as_ref(), &next, None).await {
                Ok(()) => {
                    let generation = next.generation;
                    tracing::info!(pipeline = %name, revision, %generation, by = terms.by, "deleted; its topics stay");
                    let (pipeline, warnings) = (name.clone(), Vec::new());
                    return Ok(Some(Applied { pipeline, revision, generation, warnings, unchanged: false }));
                }
                Err(Error::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Refuses a revision that no value of the store can hold.
    pub(crate) fn check_size(&self, revision: &Revision) -> Result<(), Problems> {
        let Some((size, limit)) = self.catalog.excess(revision) else { return Ok(()) };
        let message = format!(
            "the pipeline is {size} bytes long, its variables included; the store holds at most {limit} bytes in a value: split it in two, or shorten it"
        );
        Err(Problems(vec![Problem { file: revision.file.clone(), message, ..Problem::default() }]))
    }

    /// Refuses a pipeline whose topics cannot be what it needs. A log that cannot
    /// be asked now is no reason: topics are ensured again before anything runs.
    pub(crate) async fn check_topics(&self, config: &PipelineConfig, file: &str) -> Result<(), Problems> {
        let plan = plan(&self.cluster, std::slice::from_ref(config), &Controls::default());
        let unfit = topics::check(self.log.as_ref(), &plan).await.unwrap_or_default();
        if unfit.is_empty() {
            return Ok(());
        }
        let problem =
            |unfit: topics::Unfit| Problem { file: file.to_owned(), message: unfit.to_string(), ..Problem::default() };
        Err(Problems(unfit.into_iter().map(problem).collect()))
    }

    /// Refuses to let steps go for which records wait.
    pub(crate) async fn check_backlog(
        &self,
        now: &Revision,
        then: Option<&PipelineConfig>,
        remedy: &str,
    ) -> Result<(), Problems> {
        // Without modules: it was good once.
        let now = pipeline::parse(&now.text, &now.file, &now.variables, &Modules::new(), false)?.config;
        let problems = backlog::left_behind(self.log.as_ref(), &self.cluster, &now, then, remedy).await;
        if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
    }

    /// The highest generation that was ever heard of here.
    pub(crate) fn highest(&self) -> Generation {
        self.reported().max(self.catalog.highest_generation())
    }

    /// The next head after `current`: the same with a greater generation.
    async fn next(&self, current: Option<&CurrentHead>) -> store::Result<Head> {
        let mut next = match current {
            Some(current) => current.head.clone(),
            // Modules that registered while there was no head, or before one was lost.
            None => {
                let mut modules = self.catalog.newest_modules().await?;
                let known = self.registered.lock().clone();
                for (name, info) in known {
                    if let Entry::Vacant(lost) = modules.entry(name) {
                        lost.insert(self.catalog.add_module(&info).await?);
                    }
                }
                Head { born: uuid::Uuid::new_v4().to_string(), modules, ..Head::default() }
            }
        };
        next.generation = Generation(next.generation.max(self.highest()).0 + 1);
        Ok(next)
    }

    async fn current_revision(
        &self,
        head: Option<&Head>,
        name: &PipelineName,
    ) -> store::Result<Option<(u64, Revision)>> {
        let Some(number) = head.and_then(|head| head.pipelines.get(name).copied()) else { return Ok(None) };
        Ok(self.catalog.revision(name, number).await?.map(|revision| (number, revision)))
    }

    async fn forget_old_revisions(&self, name: &PipelineName, current: u64) {
        // The next change tries again.
        if let Err(error) = self.catalog.forget_old_revisions(name, current).await {
            tracing::debug!(pipeline = %name, %error, "old revisions are not removed yet");
        }
    }

    /// A warning to who makes the first head of a store that has lost its data.
    fn loss(&self, head: Option<&Head>) -> Option<Problem> {
        if head.is_some() || self.highest() == Generation(0) {
            return None;
        }
        let message = format!(
            "{} has lost its data: what else still runs stops now, until it is there again",
            self.catalog.store().describe()
        );
        Some(Problem { message, ..Problem::default() })
    }

    /// A warning for each topic that gets more partitions: keys move then.
    async fn growth(&self, config: &PipelineConfig, file: &str) -> Vec<Problem> {
        let plan = plan(&self.cluster, std::slice::from_ref(config), &Controls::default());
        // A log that does not answer is told of where the topics are made.
        let growing = topics::growing(self.log.as_ref(), &plan).await.unwrap_or_default();
        let warning =
            |grows: topics::Grows| Problem { file: file.to_owned(), message: grows.to_string(), ..Problem::default() };
        growing.into_iter().map(warning).collect()
    }
}

fn remove(head: &mut Head, name: &PipelineName, at: i64, by: &str) {
    head.controls.remove(name);
    if let Some(revision) = head.pipelines.remove(name) {
        head.deleted.insert(name.clone(), Deleted { revision, at, by: by.to_owned() });
    }
}

fn check_expected(
    pipeline: &PipelineName,
    expected: Option<u64>,
    current: Option<&(u64, Revision)>,
) -> Result<(), NotApplied> {
    let found = current.map_or(0, |(number, _)| *number);
    match expected {
        Some(expected) if expected != found => {
            let current = current.cloned().map(Box::new);
            Err(NotApplied::Conflict { pipeline: pipeline.clone(), expected, current })
        }
        _ => Ok(()),
    }
}
