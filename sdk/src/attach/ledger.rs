//! Which assignment an instance takes. Pure: no IO, no clock.
//!
//! ```text
//!              older generation, other cluster or log, wrong body ─▶ refused, nothing changes
//! assignment ─┤
//!              bodies missing ─▶ waits until they are there
//!              all bodies held ─▶ runs
//! ```
//!
//! Generations never move backwards, over restarts too: what was kept on disk
//! counts from the start, whether it runs or not, with the generation that began to
//! do it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use pipedoc_model::names::{self, ClusterName, Generation, ModuleName, PipelineName, StepId, StepName};
use pipedoc_model::plan::hash_of;
use pipedoc_model::step::StepPlan;
use pipedoc_proto::v1;

use super::kept::{Kept, KeptStep};

/// So many bodies are asked for at once.
pub const ASKED_AT_ONCE: usize = 100;

/// A log: which it is, and what it is called here. Empty: not known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogName {
    /// The same for all who work on it; see
    /// [`Log::identity`](pipedoc_transport::log::Log::identity).
    pub identity: String,
    /// For people.
    pub name: String,
}

impl LogName {
    /// Whether they are two logs, as far as that is known.
    #[must_use]
    pub fn is_another(&self, identity: &str) -> bool {
        !self.identity.is_empty() && !identity.is_empty() && self.identity != identity
    }
}

impl std::fmt::Display for LogName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name, self.identity)
    }
}

/// Why an assignment is refused. What ran before goes on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is older than what the instance has.
    #[error("generation {offered} is older than {held}, which this instance has")]
    Older {
        /// Generation of the assignment.
        offered: Generation,
        /// Generation that the instance has.
        held: Generation,
    },
    /// It is another cluster's.
    #[error(
        "the assignment is for cluster {offered:?}, but this instance belongs to {own}; give both the same --cluster"
    )]
    OtherCluster {
        /// Cluster of the assignment.
        offered: String,
        /// Cluster of the instance.
        own: ClusterName,
    },
    /// It is for another log.
    #[error("the engine works on {offered}, this instance on {own}; start both with the same --log")]
    OtherLog {
        /// The engine's.
        offered: LogName,
        /// The instance's.
        own: LogName,
    },
    /// A body is not what its hash says.
    #[error("a step body does not have the hash {hash} that came with it")]
    WrongHash {
        /// The hash.
        hash: String,
    },
    /// A step's name cannot be one.
    #[error("step {pipeline:?}/{step:?} cannot be named so")]
    Name {
        /// Name of the pipeline.
        pipeline: String,
        /// Name of the step.
        step: String,
        /// What is wrong.
        #[source]
        source: names::Error,
    },
    /// A body cannot be read.
    #[error("the body of step {step} cannot be read; this module may be older than its engine")]
    Body {
        /// The step.
        step: StepId,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A body is another step's or another module's.
    #[error("the body of step {step} is that of {found} for module {module}")]
    OtherStep {
        /// The step.
        step: StepId,
        /// The step in the body.
        found: StepId,
        /// The module in the body.
        module: ModuleName,
    },
}

/// What follows from an assignment.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// It is to run, and to be kept.
    Run(Taken),
    /// It runs already, or what is missing was asked for.
    Nothing,
    /// It waits for so many bodies.
    Wait(usize),
}

/// An assignment that was taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Taken {
    /// What to keep on disk.
    pub kept: Kept,
    /// Whether it does anything else than what was held before.
    pub changed: bool,
    /// What to run: all of it, or what `--serve` leaves.
    pub steps: Vec<StepPlan>,
}

/// What an instance holds of assignments.
#[derive(Debug)]
pub struct Ledger {
    cluster: ClusterName,
    module: ModuleName,
    serve: BTreeSet<StepId>,
    log: LogName,
    /// The newest assignment taken, or found on disk.
    held: Option<Kept>,
    /// Whether it runs.
    running: bool,
    /// Bodies that came for an assignment that is not complete yet.
    waiting: BTreeMap<String, String>,
    /// Hashes of the bodies that it lacks to be complete.
    lacking: BTreeSet<String>,
}

impl Ledger {
    /// What an instance holds at its start: what lay on its disk, if anything.
    /// With `serve` not empty, only those steps run.
    #[must_use]
    pub fn new(cluster: ClusterName, module: ModuleName, serve: BTreeSet<StepId>, on_disk: Option<Kept>) -> Self {
        let held = on_disk.filter(|kept| kept.cluster == cluster);
        let (waiting, lacking) = (BTreeMap::new(), BTreeSet::new());
        Self { cluster, module, serve, log: LogName::default(), held, running: false, waiting, lacking }
    }

    /// The log that the instance works on: what was kept for another one is left
    /// alone, and what is assigned for another one is refused. Default: not known.
    #[must_use]
    pub fn on_log(mut self, log: LogName) -> Self {
        self.held = self.held.filter(|kept| !log.is_another(&kept.log));
        Self { log, ..self }
    }

    /// Generation of what it holds; 0 when it holds nothing.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.held.as_ref().map_or(Generation(0), |kept| kept.generation)
    }

    /// Whether an assignment runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// The steps of what it holds, as a session begins with them.
    pub fn list(&self) -> impl Iterator<Item = v1::AssignedStep> {
        self.held.iter().flat_map(|kept| &kept.steps).map(|step| v1::AssignedStep {
            pipeline: step.id.pipeline.to_string(),
            step: step.id.step.to_string(),
            hash: step.hash.clone(),
        })
    }

    /// Hashes of bodies that the newest assignment names and that did not come: the
    /// first of them, so that a report does not grow long.
    #[must_use]
    pub fn lacking(&self) -> Vec<String> {
        self.lacking.iter().take(ASKED_AT_ONCE).cloned().collect()
    }

    /// Takes what lay on disk, when nothing runs yet.
    ///
    /// # Errors
    /// When a body on disk cannot be read.
    pub fn take_from_disk(&mut self) -> Result<Option<Taken>, Error> {
        match &self.held {
            Some(kept) if !self.running => {
                let taken = Taken { kept: kept.clone(), changed: false, steps: self.plans(&kept.steps)? };
                self.running = true;
                Ok(Some(taken))
            }
            _ => Ok(None),
        }
    }

    /// Looks at an assignment that an engine sent.
    ///
    /// # Errors
    /// When it is refused; what is held and what runs stay as they are.
    pub fn offer(&mut self, assignment: v1::Assignment) -> Result<Verdict, Error> {
        let offered = Generation(assignment.generation);
        if assignment.cluster != self.cluster.as_str() {
            return Err(Error::OtherCluster { offered: assignment.cluster, own: self.cluster.clone() });
        }
        if self.log.is_another(&assignment.log) {
            let offered = LogName { identity: assignment.log, name: assignment.log_name };
            return Err(Error::OtherLog { offered, own: self.log.clone() });
        }
        if offered < self.generation() {
            return Err(Error::Older { offered, held: self.generation() });
        }
        // Bodies that came for what was offered before, and is not wanted any more, go.
        let wanted: BTreeSet<&str> = assignment.steps.iter().map(|step| step.hash.as_str()).collect();
        self.waiting.retain(|hash, _| wanted.contains(hash.as_str()));
        for body in assignment.bodies {
            if hash_of(&body.json) != body.hash {
                return Err(Error::WrongHash { hash: body.hash });
            }
            self.waiting.insert(body.hash, body.json);
        }
        let mut steps = Vec::with_capacity(assignment.steps.len());
        let mut missing = BTreeSet::new();
        let bodies = self.bodies();
        for step in assignment.steps {
            let id = step_id(&step.pipeline, &step.step)?;
            match bodies.get(step.hash.as_str()) {
                Some(body) => steps.push(KeptStep { id, body: (*body).to_owned(), hash: step.hash }),
                None => {
                    missing.insert(step.hash);
                }
            }
        }
        if !missing.is_empty() {
            self.lacking = missing;
            return Ok(Verdict::Wait(self.lacking.len()));
        }
        let plans = self.plans(&steps)?;
        let kept = Kept { generation: offered, cluster: self.cluster.clone(), log: self.log.identity.clone(), steps };
        self.waiting.clear();
        self.lacking.clear();
        if self.running && self.held.as_ref() == Some(&kept) {
            return Ok(Verdict::Nothing);
        }
        self.running = true;
        let changed = self.held.as_ref().is_none_or(|held| !held.does_the_same_as(&kept));
        self.held = Some(kept.clone());
        Ok(Verdict::Run(Taken { kept, changed, steps: plans }))
    }

    /// All bodies at hand, by their hashes.
    fn bodies(&self) -> HashMap<&str, &str> {
        let held = self.held.iter().flat_map(|kept| &kept.steps);
        let held = held.map(|step| (step.hash.as_str(), step.body.as_str()));
        held.chain(self.waiting.iter().map(|(hash, body)| (hash.as_str(), body.as_str()))).collect()
    }

    /// Reads the bodies of the steps that this instance is to run.
    fn plans(&self, steps: &[KeptStep]) -> Result<Vec<StepPlan>, Error> {
        let served = steps.iter().filter(|step| self.serve.is_empty() || self.serve.contains(&step.id));
        served
            .map(|step| {
                let plan: StepPlan =
                    StepPlan::from_json(&step.body).map_err(|source| Error::Body { step: step.id.clone(), source })?;
                if plan.id != step.id || plan.module != self.module {
                    return Err(Error::OtherStep { step: step.id.clone(), found: plan.id, module: plan.module });
                }
                Ok(plan)
            })
            .collect()
    }
}

/// A step by its names.
pub(super) fn step_id(pipeline: &str, step: &str) -> Result<StepId, Error> {
    let wrong = |source| Error::Name { pipeline: pipeline.to_owned(), step: step.to_owned(), source };
    Ok(StepId::new(PipelineName::new(pipeline).map_err(wrong)?, StepName::new(step).map_err(wrong)?))
}
