//! A simulated module instance: attached to every engine over connections of its
//! own, it takes assignments and reports as the SDK does, in the SDK's parts, and
//! runs nothing.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use parking_lot::Mutex;
use pipedoc_proto::v1;
use pipedoc_proto::v1::gateway_message::Kind;
use pipedoc_proto::v1::module_gateway_client::ModuleGatewayClient;
use pipedoc_sdk::attach::ledger::ASKED_AT_ONCE;
use pipedoc_sdk::attach::news::parts;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use super::lists::{List, Lists};

/// Time between two reports, as the SDK has it.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Pause before an engine is tried again.
const AGAIN: Duration = Duration::from_millis(200);

/// A simulated instance.
pub struct Instance {
    id: String,
    module: String,
    /// Which of its module's instances it is, of how many.
    place: (usize, usize),
    lists: Arc<Lists>,
    state: Mutex<State>,
    changed: watch::Sender<()>,
    /// How often an assignment came that could not be taken whole.
    lacked: AtomicU64,
}

/// What it holds, and what its engines know of that.
struct State {
    generation: u64,
    list: Arc<List>,
    /// Bodies that came for an assignment that is not complete yet.
    bodies: HashSet<String>,
    lacking: Vec<String>,
    confirmed: Confirmed,
}

/// What an instance has confirmed, and since when.
#[derive(Debug, Clone)]
pub struct Confirmed {
    /// The generation that it reported to run.
    pub generation: u64,
    /// When it first did.
    pub generation_at: Instant,
    /// The list of steps that goes with it.
    pub list: Arc<List>,
    /// When it first reported to run that.
    pub list_at: Instant,
}

impl Instance {
    /// An instance of `module` that holds nothing; `place` is which of how many.
    pub fn new(module: String, place: (usize, usize), lists: Arc<Lists>) -> Self {
        let list = Arc::new(List::new(Default::default()));
        let now = Instant::now();
        let confirmed = Confirmed { generation: 0, generation_at: now, list: Arc::clone(&list), list_at: now };
        let state = State { generation: 0, list, bodies: HashSet::new(), lacking: Vec::new(), confirmed };
        let id = format!("{module}-{}", place.0);
        let changed = watch::Sender::new(());
        Self { id, module, place, lists, state: Mutex::new(state), changed, lacked: AtomicU64::new(0) }
    }

    /// What it has confirmed.
    pub fn confirmed(&self) -> Confirmed {
        self.state.lock().confirmed.clone()
    }

    /// How often an assignment came that could not be taken whole.
    pub fn lacked(&self) -> u64 {
        self.lacked.load(Ordering::Relaxed)
    }

    /// Stays attached to an engine, for ever. `told` counts assignments by session.
    pub async fn stay_attached(self: Arc<Self>, engine: String, told: Arc<AtomicU64>) {
        loop {
            // An engine that is not there is tried again.
            let _ = self.session(&engine, &told).await;
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn session(&self, engine: &str, told: &AtomicU64) -> anyhow::Result<()> {
        let channel = Endpoint::from_shared(engine.to_owned())?
            .connect_timeout(Duration::from_secs(5))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(20))
            .keep_alive_while_idle(true)
            .connect()
            .await?;
        let mut client = ModuleGatewayClient::new(channel).max_decoding_message_size(64 << 20);
        let mut changed = self.changed.subscribe();
        let (reports, outgoing) = mpsc::channel(1);
        let mut base = Arc::clone(&self.state.lock().list);
        reports.send(self.first_report(&base)).await?;
        let mut messages = client.attach(ReceiverStream::new(outgoing)).await?.into_inner();
        let begin = tokio::time::Instant::now() + REPORT_EVERY.mul_f64(self.place.0 as f64 * 0.618 % 1.0);
        let mut tick = tokio::time::interval_at(begin, REPORT_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut begun: Option<v1::Assignment> = None;
        let mut heard = false;
        // The list that was reported last, what of the report is still to be sent, and
        // whether another one is due.
        let mut reported = Arc::new(List::new(Default::default()));
        let (mut left, mut due) = (VecDeque::new(), false);
        loop {
            tokio::select! {
                message = messages.message() => {
                    let Some(message) = message? else { return Ok(()) };
                    let Some(Kind::Assignment(part)) = message.kind else { continue };
                    let assignment = match begun.take() {
                        None => part,
                        Some(begun) => joined(begun, part),
                    };
                    if assignment.more {
                        begun = Some(assignment);
                        continue;
                    }
                    self.take(assignment, &mut base)?;
                    if !std::mem::replace(&mut heard, true) {
                        told.fetch_add(1, Ordering::Relaxed);
                    }
                    due = true;
                }
                _ = tick.tick() => due = true,
                _ = changed.changed() => due = true,
                place = reports.reserve(), if due || !left.is_empty() => {
                    let Ok(place) = place else { return Ok(()) };
                    if left.is_empty() {
                        due = false;
                        left = parts(self.report(&mut reported));
                    }
                    let Some(part) = left.pop_front() else { continue };
                    let generation = part.generation;
                    place.send(part);
                    if left.is_empty() {
                        self.confirm(generation, &reported);
                    }
                }
            }
        }
    }

    /// Takes an assignment when all its bodies are there. `base` is the list told
    /// last in the session.
    fn take(&self, assignment: v1::Assignment, base: &mut Arc<List>) -> anyhow::Result<()> {
        let list = self.lists.take(base, &assignment)?;
        for body in &assignment.bodies {
            self.lists.check(body)?;
        }
        let mut state = self.state.lock();
        let by_changes = assignment.base_hash == state.list.hash;
        *base = Arc::clone(&list);
        ensure!(!list.hash.is_empty(), "the engine does not say which list it is");
        if assignment.generation < state.generation {
            return Ok(());
        }
        state.bodies.extend(assignment.bodies.into_iter().map(|body| body.hash));
        if !Arc::ptr_eq(&state.list, &list) {
            let lacks = |hash: &&String| !state.bodies.contains(*hash);
            let lacking: Vec<String> = if by_changes {
                assignment.steps.iter().map(|step| &step.hash).filter(lacks).cloned().collect()
            } else {
                let held = |step: &(&(String, String), &String)| state.list.steps.get(step.0) == Some(step.1);
                let new = list.steps.iter().filter(|step| !held(step)).map(|(_, hash)| hash);
                new.filter(lacks).cloned().collect()
            };
            if !lacking.is_empty() {
                self.lacked.fetch_add(1, Ordering::Relaxed);
                state.lacking = lacking;
                return Ok(());
            }
        }
        let news = state.generation != assignment.generation || !Arc::ptr_eq(&state.list, &list);
        state.generation = assignment.generation;
        state.list = list;
        state.bodies.clear();
        state.lacking.clear();
        drop(state);
        if news {
            self.changed.send_replace(());
        }
        Ok(())
    }

    /// Notes that a report has gone out.
    fn confirm(&self, generation: u64, list: &Arc<List>) {
        let now = Instant::now();
        let mut state = self.state.lock();
        let confirmed = &mut state.confirmed;
        if generation > confirmed.generation {
            (confirmed.generation, confirmed.generation_at) = (generation, now);
        }
        if !Arc::ptr_eq(list, &confirmed.list) {
            (confirmed.list, confirmed.list_at) = (Arc::clone(list), now);
        }
    }

    fn first_report(&self, base: &List) -> v1::InstanceReport {
        v1::InstanceReport {
            instance_id: self.id.clone(),
            registration: Some(v1::ServiceRegistration {
                module: self.module.clone(),
                version: "1.0.0".into(),
                step_types: vec![v1::StepType::Pipeline.into(), v1::StepType::Sink.into()],
                config_schema: super::pipelines::SCHEMA.into(),
                description: "Simulated.".into(),
            }),
            generation: self.state.lock().generation,
            list_hash: base.hash.clone(),
            ..v1::InstanceReport::default()
        }
    }

    /// What is news since `reported`, the list that was reported last in the session.
    fn report(&self, reported: &mut Arc<List>) -> v1::InstanceReport {
        let (generation, list, lacking_hashes) = {
            let state = self.state.lock();
            let lacking = state.lacking.iter().take(ASKED_AT_ONCE).cloned().collect();
            (state.generation, Arc::clone(&state.list), lacking)
        };
        let before = std::mem::replace(reported, Arc::clone(&list));
        let mut report = v1::InstanceReport {
            instance_id: self.id.clone(),
            generation,
            lacking_hashes,
            partial: true,
            ..v1::InstanceReport::default()
        };
        if !Arc::ptr_eq(&before, &list) {
            let news = list.steps.iter().filter(|(step, hash)| before.steps.get(*step) != Some(*hash));
            report.steps = news.map(|((pipeline, step), hash)| self.step(pipeline, step, hash)).collect();
            let gone = before.steps.keys().filter(|step| !list.steps.contains_key(*step));
            report.gone = gone.map(|(pipeline, step)| format!("{pipeline}/{step}")).collect();
        }
        report
    }

    fn step(&self, pipeline: &str, step: &str, hash: &str) -> v1::StepReport {
        let (number, of) = self.place;
        // The one partition of a step is one instance's.
        let owner =
            hash.bytes().take(8).fold(0, |sum: usize, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) % of;
        let partitions = if owner == number { vec![format!("bench.{pipeline}.{step}[0]")] } else { Vec::new() };
        v1::StepReport {
            pipeline: pipeline.to_owned(),
            step: step.to_owned(),
            state: v1::StepState::Running.into(),
            partitions,
            hash: hash.to_owned(),
            drained: true,
            ..v1::StepReport::default()
        }
    }
}

fn joined(mut begun: v1::Assignment, part: v1::Assignment) -> v1::Assignment {
    begun.steps.extend(part.steps);
    begun.gone.extend(part.gone);
    begun.bodies.extend(part.bodies);
    begun.more = part.more;
    begun
}
