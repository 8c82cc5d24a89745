//! Changes the head: what is applied, taken, removed and registered ends here.
//!
//! Every change reads the head, makes the next one and puts it in its place by
//! check-and-set; whoever was slower looks again. Texts and registrations are
//! written before the head that names them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use pipedoc_model::names::{ClusterName, Generation, ModuleName, PipelineName};
use pipedoc_model::pipeline;
use pipedoc_model::plan::{Controls, plan};
use pipedoc_model::problem::{Problem, Problems};
use pipedoc_model::registry::ModuleInfo;
use pipedoc_transport::log::Log;

use crate::catalog::{Catalog, CurrentHead, Head, Revision};
use crate::snapshot::Reader;
use crate::store::{self, Error, Lease};
use crate::topics;

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
    /// Only look; write nothing.
    pub(crate) dry_run: bool,
}

/// A proposal that was taken.
#[derive(Debug)]
pub(crate) struct Applied {
    pub(crate) pipeline: PipelineName,
    pub(crate) revision: u64,
    pub(crate) generation: Generation,
    pub(crate) warnings: Vec<Problem>,
}

/// A proposal that was not taken.
#[derive(Debug)]
pub(crate) enum NotApplied {
    Refused(Problems),
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
                Head { modules, ..Head::default() }
            }
        };
        next.generation = Generation(next.generation.max(self.reported()).0 + 1);
        Ok(next)
    }

    /// Validates a text and makes it the newest revision of its pipeline.
    pub(crate) async fn apply(&self, proposal: Proposal, now: i64) -> Result<Applied, NotApplied> {
        let mut reader = Reader::new(self.catalog.clone());
        let mut written = None;
        loop {
            let current = self.catalog.head().await?;
            let facts = reader.facts(current.as_ref().map(|current| &current.head)).await?;
            let Proposal { text, file, variables, dry_run } = &proposal;
            let mut parsed =
                pipeline::parse(text, file, variables, &facts.modules, false).map_err(NotApplied::Refused)?;
            self.check_topics(&parsed.config, file).await.map_err(NotApplied::Refused)?;
            parsed.warnings.extend(self.growth(&parsed.config, file).await);
            let name = parsed.config.name;
            let revision = Revision::new(text.clone(), file.clone(), variables.clone(), now);
            let known = facts.revisions.get(&name);
            let generation = current.as_ref().map_or(Generation(0), |current| current.head.generation);
            let same = known.is_some_and(|(_, known)| known.same_as(&revision));
            if same || *dry_run {
                let revision = known.map_or(0, |(number, _)| *number);
                return Ok(Applied { pipeline: name, revision, generation, warnings: parsed.warnings });
            }
            let number = match written {
                Some(number) => number,
                None => *written.insert(self.catalog.add_revision(&name, &revision).await?),
            };
            let mut next = self.next(current.as_ref()).await?;
            next.pipelines.insert(name.clone(), number);
            match self.catalog.set_head(current.as_ref(), &next, None).await {
                Ok(()) => {
                    tracing::info!(pipeline = %name, revision = number, generation = %next.generation, "applied");
                    let warnings = parsed.warnings;
                    return Ok(Applied { pipeline: name, revision: number, generation: next.generation, warnings });
                }
                Err(Error::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Makes revisions of texts that were validated against `current`, removes
    /// pipelines, and gives the revisions' numbers.
    ///
    /// A leader's duty. Fails with a conflict when the head is another one by now.
    pub(crate) async fn take(
        &self,
        current: Option<&CurrentHead>,
        takes: &[(PipelineName, &Revision)],
        removals: &BTreeSet<PipelineName>,
        lease: &Lease,
    ) -> store::Result<Vec<u64>> {
        let mut next = self.next(current).await?;
        let mut numbers = Vec::with_capacity(takes.len());
        for name in removals {
            next.pipelines.remove(name);
            next.controls.remove(name);
        }
        for (name, revision) in takes {
            let number = self.catalog.add_revision(name, revision).await?;
            next.pipelines.insert(name.clone(), number);
            numbers.push(number);
        }
        self.catalog.set_head(current, &next, Some(lease)).await?;
        for ((pipeline, revision), number) in takes.iter().zip(&numbers) {
            tracing::info!(%pipeline, revision = number, file = revision.file, generation = %next.generation, "taken from the inbox");
        }
        for pipeline in removals {
            tracing::info!(%pipeline, generation = %next.generation, "removed; its topics stay");
        }
        Ok(numbers)
    }

    /// Makes a head above what instances remember of an earlier one. A leader's duty.
    pub(crate) async fn raise(&self, current: &CurrentHead, lease: &Lease) -> store::Result<()> {
        let next = self.next(Some(current)).await?;
        tracing::warn!(from = %current.head.generation, to = %next.generation,
            "instances remember a newer generation than the store; going on above it");
        self.catalog.set_head(Some(current), &next, Some(lease)).await
    }

    /// Takes a module's registration in when it is new or another one. Older
    /// versions than the known one change nothing. Tells whether anything did.
    pub(crate) async fn register(&self, info: &ModuleInfo) -> store::Result<bool> {
        self.registered.lock().insert(info.module.clone(), info.clone());
        let mut written = None;
        loop {
            let current = self.catalog.head().await?;
            let known = match &current {
                Some(current) => current.head.modules.get(&info.module).copied(),
                None => self.catalog.newest_modules().await?.get(&info.module).copied(),
            };
            if let Some(number) = known
                && let Some(known) = self.catalog.module(&info.module, number).await?
                && (known == *info || precedence(&known.version) > precedence(&info.version))
            {
                return Ok(false);
            }
            let number = match written {
                Some(number) => number,
                None => *written.insert(self.catalog.add_module(info).await?),
            };
            let Some(current) = current else {
                if self.catalog.head().await?.is_some() {
                    // Made meanwhile, perhaps by somebody who did not find the registration yet.
                    continue;
                }
                // No head is no news; whoever makes one finds the registration.
                return Ok(true);
            };
            let mut next = self.next(Some(&current)).await?;
            next.modules.insert(info.module.clone(), number);
            match self.catalog.set_head(Some(&current), &next, None).await {
                Ok(()) => {
                    tracing::info!(module = %info.module, version = info.version, generation = %next.generation, "registered");
                    return Ok(true);
                }
                Err(Error::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Refuses a pipeline whose topics cannot be what it needs. A log that cannot
    /// be asked now is no reason: topics are ensured again before anything runs.
    pub(crate) async fn check_topics(&self, config: &pipeline::PipelineConfig, file: &str) -> Result<(), Problems> {
        let plan = plan(&self.cluster, std::slice::from_ref(config), &Controls::default());
        let unfit = topics::check(self.log.as_ref(), &plan).await.unwrap_or_default();
        if unfit.is_empty() {
            return Ok(());
        }
        let problem =
            |unfit: topics::Unfit| Problem { file: file.to_owned(), message: unfit.to_string(), ..Problem::default() };
        Err(Problems(unfit.into_iter().map(problem).collect()))
    }

    /// A warning for each topic that gets more partitions: keys move then.
    async fn growth(&self, config: &pipeline::PipelineConfig, file: &str) -> Vec<Problem> {
        let plan = plan(&self.cluster, std::slice::from_ref(config), &Controls::default());
        // A log that does not answer is told of where the topics are made.
        let growing = topics::growing(self.log.as_ref(), &plan).await.unwrap_or_default();
        let warning =
            |grows: topics::Grows| Problem { file: file.to_owned(), message: grows.to_string(), ..Problem::default() };
        growing.into_iter().map(warning).collect()
    }
}

/// Order of versions as semver has it, as far as it matters here: three numbers,
/// and a pre-release before its release. What cannot be read comes first.
fn precedence(version: &str) -> (u64, u64, u64, bool) {
    let version = version.split('+').next().unwrap_or_default();
    let (numbers, pre) = version.split_once('-').map_or((version, ""), |(numbers, pre)| (numbers, pre));
    let mut numbers = numbers.split('.').map(|number| number.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next(), next(), pre.is_empty())
}

#[cfg(test)]
mod tests {
    use super::precedence;

    #[test]
    fn versions_are_ordered_as_semver_has_it() {
        let rising = ["0.9.9", "0.10.0-rc1", "0.10.0", "1.0.0+build", "1.2.3"];
        assert!(rising.windows(2).all(|pair| precedence(pair[0]) < precedence(pair[1])));
    }
}
