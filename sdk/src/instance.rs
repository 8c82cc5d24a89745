//! A process's share of the work: runs the steps it is told to, reconciles on
//! every change, and tells how they do.
//!
//! Knows plans and clients; knows nothing of engines or how plans come here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pipedoc_model::names::{Generation, StepId};
use pipedoc_model::step::StepPlan;
use pipedoc_transport::log::Log;
use pipedoc_transport::objects::Objects;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::event::{Events, Fanout, Observer};
use crate::factory::Factory;
use crate::layers::Layers;
pub use crate::runtime::partitions::Bounds;
use crate::runtime::status::Board;
pub use crate::runtime::status::{PauseReason, PausedPartition, StepState, StepStatus};
use crate::runtime::step::{Surroundings, Wanted, supervise};

/// How long a step that is wanted no more may take to finish what is in flight.
const REMOVAL_GRACE: Duration = Duration::from_secs(30);

/// What an instance needs.
#[derive(Clone)]
pub struct InstanceConfig {
    /// The log.
    pub log: Arc<dyn Log>,
    /// The object stores.
    pub objects: Arc<Objects>,
    /// The instance's id, random, made once.
    pub id: String,
    /// A folder of the instance's own.
    pub data: PathBuf,
    /// The modules that it can run.
    pub factories: Vec<Factory>,
    /// Learns of what happens in steps.
    pub observer: Arc<dyn Observer>,
    /// Layers around every module.
    pub layers: Layers,
}

/// Runs steps. Clones are the same instance; it stops with the last of them.
#[derive(Clone)]
pub struct Instance(Arc<Inner>);

struct Inner {
    around: Arc<Surroundings>,
    steps: Mutex<Steps>,
}

#[derive(Default)]
struct Steps {
    generation: Generation,
    running: BTreeMap<StepId, Running>,
    stopped: bool,
}

/// A step that runs, or is about to end.
struct Running {
    wanted: watch::Sender<Wanted>,
    board: Arc<Board>,
    task: JoinHandle<()>,
}

impl Instance {
    /// An instance without steps.
    #[must_use]
    pub fn start(config: InstanceConfig) -> Self {
        Self::start_within(config, Bounds::default())
    }

    /// An instance without steps, each of which may hold so much open.
    #[must_use]
    pub fn start_within(config: InstanceConfig, bounds: Bounds) -> Self {
        let InstanceConfig { log, objects, id, data, factories, observer, layers } = config;
        let factories = factories.into_iter().map(|factory| (factory.info().module.clone(), factory)).collect();
        let events = Events::default();
        let observer = Arc::new(Fanout::new(observer, events.clone()));
        let around = Surroundings { log, shelf: objects, id, data, factories, observer, events, layers, bounds };
        Self(Arc::new(Inner { around: Arc::new(around), steps: Mutex::default() }))
    }

    /// Takes over what is to be run, whole. Returns at once: steps that are new
    /// start, those that changed finish what is in flight and start anew, those
    /// that are missing end, and those that are as they were do not notice. An
    /// older generation than the newest is ignored.
    pub fn apply(&self, generation: Generation, plans: Vec<StepPlan>) {
        let mut steps = self.0.steps.lock();
        if steps.stopped || generation < steps.generation {
            return;
        }
        steps.generation = generation;
        steps.running.retain(|_, running| !running.has_ended());
        let mut plans: BTreeMap<StepId, StepPlan> = plans.into_iter().map(|plan| (plan.id.clone(), plan)).collect();
        for (id, running) in &steps.running {
            match plans.remove(id) {
                Some(plan) => running.want(plan),
                None => running.end(REMOVAL_GRACE),
            }
        }
        for (id, plan) in plans {
            let running = Running::start(&self.0.around, plan);
            steps.running.insert(id, running);
        }
    }

    /// The newest generation taken over.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.0.steps.lock().generation
    }

    /// How each step is doing, in order of their names.
    #[must_use]
    pub fn status(&self) -> Vec<StepStatus> {
        let boards: Vec<Arc<Board>> = {
            let steps = self.0.steps.lock();
            let running = steps.running.values().filter(|running| !running.has_ended());
            running.map(|running| Arc::clone(&running.board)).collect()
        };
        boards.into_iter().map(|board| board.status()).collect()
    }

    /// What happens in its steps, to be subscribed to.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.0.around.events
    }

    /// Lets the partitions of a step go on that stand still because of
    /// `on_exhausted: PAUSE` or `stop_at_failure_rate`: what stopped them is tried
    /// again. A step that is paused and then runs again does the same. Returns
    /// whether the step is here.
    pub fn resume(&self, step: &StepId) -> bool {
        let steps = self.0.steps.lock();
        steps.running.get(step).is_some_and(|running| {
            running.board.resume();
            true
        })
    }

    /// Stops all steps: nothing new is taken, what is in flight may finish within
    /// `grace`, what is done is committed. The instance is of no use afterwards.
    pub async fn stop(&self, grace: Duration) {
        let running = {
            let mut steps = self.0.steps.lock();
            steps.stopped = true;
            std::mem::take(&mut steps.running)
        };
        for running in running.values() {
            running.end(grace);
        }
        for Running { wanted, task, .. } in running.into_values() {
            drop(wanted);
            // A step that panicked has ended as well.
            let _ = task.await;
        }
    }
}

impl Running {
    fn start(around: &Arc<Surroundings>, plan: StepPlan) -> Self {
        let hash = hash(&plan);
        let board = Arc::new(Board::new(plan.id.clone(), Arc::clone(&around.observer), hash.clone()));
        let (wanted, changes) = watch::channel(Wanted::Plan(Arc::new(plan), hash));
        let task = tokio::spawn(supervise(Arc::clone(around), changes, Arc::clone(&board)));
        Self { wanted, board, task }
    }

    fn want(&self, plan: StepPlan) {
        let hash = hash(&plan);
        self.wanted.send_if_modified(|wanted| {
            if matches!(wanted, Wanted::Plan(_, now) if *now == hash) {
                return false;
            }
            *wanted = Wanted::Plan(Arc::new(plan), hash);
            true
        });
    }

    /// Whether it is wanted no more and has stopped.
    fn has_ended(&self) -> bool {
        matches!(*self.wanted.borrow(), Wanted::Gone { .. }) && self.board.state() == StepState::Stopped
    }

    fn end(&self, grace: Duration) {
        self.wanted.send_if_modified(|wanted| {
            let by = Instant::now() + grace;
            // An end that is nearer than this one stands.
            if matches!(wanted, Wanted::Gone { by: sooner } if *sooner <= by) {
                return false;
            }
            *wanted = Wanted::Gone { by };
            true
        });
    }
}

fn hash(plan: &StepPlan) -> String {
    // The planner's own plans always have one; another is merely never unchanged.
    plan.hash().unwrap_or_default()
}
