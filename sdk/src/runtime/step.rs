//! The life of one step: open its program, run it as the plan says, begin again
//! when clients break, end when told to.
//!
//! Knows programs and clients; knows nothing of what happens to records.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use pipedoc_model::names::{ModuleName, Topic};
use pipedoc_model::step::{ControlState, Delivery, Format, Hydration, InputSource, OnExhausted, StepPlan, StepType};
use pipedoc_transport::log::{Consumer, ConsumerConfig, Log, Producer, ProducerConfig, Start, Subscription};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::claims::{Claims, Shelf};
use super::connect;
use super::partitions::Bounds;
use super::pump::{Pump, Worker};
use super::route::Router;
use super::status::{Board, StepState};
use super::topics::Topics;
use super::work::Workshop;
use super::{Order, process, retry};
use crate::error::{Error, Result, ResultExt};
use crate::event::Observer;
use crate::factory::{Factory, Program};
use crate::layers::Layers;
use crate::module::Step;
use crate::secrets::{self, Secrets};

/// How long a step whose plan has changed may take beyond its timeout to finish
/// what is in flight.
const CHANGE_GRACE: Duration = Duration::from_secs(5);

/// What all steps of an instance share.
pub(crate) struct Surroundings {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) shelf: Arc<dyn Shelf>,
    pub(crate) id: String,
    pub(crate) data: PathBuf,
    pub(crate) factories: HashMap<ModuleName, Factory>,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) layers: Layers,
}

/// What is wanted of a step.
#[derive(Debug, Clone)]
pub(crate) enum Wanted {
    /// To run this plan, whose hash stands beside it.
    Plan(Arc<StepPlan>, String),
    /// To end, by then.
    Gone { by: Instant },
}

/// How a life ended by itself.
enum Ended {
    /// It was told to stop.
    Stopped,
    /// It cannot go on until something changes.
    Failed,
}

/// Runs a step through all its plans until nobody can want anything of it any more.
pub(crate) async fn supervise(around: Arc<Surroundings>, mut wanted: watch::Receiver<Wanted>, board: Arc<Board>) {
    loop {
        let now = wanted.borrow_and_update().clone();
        let (plan, hash) = match now {
            Wanted::Plan(plan, hash) => (plan, hash),
            Wanted::Gone { .. } => {
                board.set_state(StepState::Stopped);
                // It may be wanted again.
                if wanted.changed().await.is_err() {
                    break;
                }
                continue;
            }
        };
        board.set_hash(hash);
        if plan.control == ControlState::Stopped {
            board.set_state(StepState::Stopped);
            if wanted.changed().await.is_err() {
                break;
            }
            continue;
        }
        let (orders, order) = watch::channel(order_of(&plan));
        let life = live(&around, &plan, &board, order);
        tokio::pin!(life);
        let ended = loop {
            tokio::select! {
                ended = &mut life => break ended,
                changed = wanted.changed() => {
                    let next = if changed.is_ok() {
                        wanted.borrow_and_update().clone()
                    } else {
                        Wanted::Gone { by: Instant::now() }
                    };
                    match next {
                        Wanted::Plan(next, hash) if goes_on(&plan, &next) => {
                            board.set_hash(hash);
                            orders.send_replace(order_of(&next));
                        }
                        Wanted::Plan(..) => {
                            wanted.mark_changed();
                            let by = Instant::now() + plan.timeout + CHANGE_GRACE;
                            break end(life.as_mut(), &orders, by, &mut wanted).await;
                        }
                        Wanted::Gone { by } => break end(life.as_mut(), &orders, by, &mut wanted).await,
                    }
                }
            }
        };
        if let Ended::Failed = ended {
            board.set_state(StepState::Failed);
            if !another_plan(&plan, &mut wanted, &board).await {
                break;
            }
        }
    }
    board.set_state(StepState::Stopped);
}

/// Ends a life by then, or sooner when that comes to be wanted. What is wanted is
/// left to be looked at.
async fn end(
    mut life: Pin<&mut impl Future<Output = Ended>>,
    orders: &watch::Sender<Order>,
    mut by: Instant,
    wanted: &mut watch::Receiver<Wanted>,
) -> Ended {
    orders.send_replace(Order::Stop { by });
    let mut news = wanted.clone();
    wanted.mark_changed();
    loop {
        let next = tokio::select! {
            ended = &mut life => return ended,
            changed = news.changed() => match changed {
                Ok(()) => news.borrow_and_update().clone(),
                Err(_) => return life.await,
            },
        };
        if let Wanted::Gone { by: sooner } = next
            && sooner < by
        {
            by = sooner;
            orders.send_replace(Order::Stop { by });
        }
    }
}

/// Waits until something else is wanted than a plan that failed; `false` when
/// nobody can want anything any more.
async fn another_plan(failed: &StepPlan, wanted: &mut watch::Receiver<Wanted>, board: &Board) -> bool {
    loop {
        let next = wanted.borrow_and_update().clone();
        match next {
            Wanted::Plan(next, hash) if goes_on(failed, &next) => {
                board.set_hash(hash);
            }
            _ => {
                wanted.mark_changed();
                return true;
            }
        }
        if wanted.changed().await.is_err() {
            return false;
        }
    }
}

fn order_of(plan: &StepPlan) -> Order {
    match plan.control {
        ControlState::Running | ControlState::Stopped => Order::Run,
        ControlState::Paused => Order::Pause,
    }
}

/// Whether a step goes on as it is: nothing has changed but a pause.
fn goes_on(now: &StepPlan, next: &StepPlan) -> bool {
    if next.control == ControlState::Stopped {
        return false;
    }
    let next = StepPlan { control: now.control, ..next.clone() };
    now == &next
}

/// Opens the step and runs it until ordered to stop.
async fn live(
    around: &Arc<Surroundings>,
    plan: &Arc<StepPlan>,
    board: &Arc<Board>,
    mut orders: watch::Receiver<Order>,
) -> Ended {
    let stopping = CancellationToken::new();
    let _stops_with_us = stopping.clone().drop_guard();
    let data = around.data.join("steps").join(plan.id.pipeline.as_str()).join(plan.id.step.as_str());
    let step = Step::new(plan.cluster.clone(), plan.id.clone(), plan.step_type, data, stopping.clone());
    board.set_state(StepState::Starting);
    let (program, secrets) = match open(around, plan, &step, board, &mut orders).await {
        Some(Ok(opened)) => opened,
        Some(Err(error)) => {
            board.trouble(&error.context("the step cannot be opened"));
            return Ended::Failed;
        }
        None => return Ended::Stopped,
    };
    let ended = run(around, plan, &step, &program, &secrets, board, &mut orders).await;
    stopping.cancel();
    program.close().await;
    ended
}

/// Opens the program, for as long as it takes; `None` when ordered to stop.
async fn open(
    around: &Surroundings,
    plan: &StepPlan,
    step: &Step,
    board: &Board,
    orders: &mut watch::Receiver<Order>,
) -> Option<Result<(Program, Secrets)>> {
    let mut failures = 0_u32;
    loop {
        let opening = open_once(around, plan, step);
        let error = tokio::select! {
            opened = opening => match opened {
                Ok(opened) => return Some(Ok(opened)),
                Err(error) if !error.is_retryable() => return Some(Err(error)),
                Err(error) => error,
            },
            () = stop_ordered(orders) => return None,
        };
        failures = failures.saturating_add(1);
        board.trouble(&error.context("the step cannot be opened yet; it is tried again"));
        tokio::select! {
            () = tokio::time::sleep(retry::backoff(&retry::patient(), failures)) => {}
            () = stop_ordered(orders) => return None,
        }
    }
}

async fn open_once(around: &Surroundings, plan: &StepPlan, step: &Step) -> Result<(Program, Secrets)> {
    refuse_what_comes_later(plan)?;
    let factory = around.factories.get(&plan.module).ok_or_else(|| {
        Error::permanent(format!("this process has no module {}", plan.module)).with_kind("unknown-module")
    })?;
    let (config, secrets) = secrets::expand_and_tell(&plan.config).permanent()?;
    let opened = std::panic::AssertUnwindSafe(factory.open(config, step));
    let opened = futures::FutureExt::catch_unwind(opened).await;
    let program = opened.unwrap_or_else(|panic| Err(process::panicked(panic.as_ref()))).map_err(|error| {
        // What a module says of its configuration may quote it.
        scrubbed(&error, &secrets)
    })?;
    let fits = match &program {
        Program::Documents(_) | Program::Records(_) => plan.step_type != StepType::Connector,
        Program::Connector(_) => plan.step_type == StepType::Connector,
    };
    if !fits {
        return Err(Error::permanent(format!("module {} cannot be a {:?} step", plan.module, plan.step_type)));
    }
    Ok((program, secrets))
}

fn scrubbed(error: &Error, secrets: &Secrets) -> Error {
    error.duplicate_with(|words| secrets.scrub(&words))
}

/// Settings that a plan may have and this runtime does not keep yet.
fn refuse_what_comes_later(plan: &StepPlan) -> Result<()> {
    let mut missing = Vec::new();
    match plan.delivery {
        Delivery::AtLeastOnce => {}
        Delivery::ExactlyOnce => missing.push("delivery: EXACTLY_ONCE"),
        Delivery::AtMostOnce => missing.push("delivery: AT_MOST_ONCE"),
    }
    if plan.on_exhausted == OnExhausted::Pause {
        missing.push("on_exhausted: PAUSE");
    }
    if plan.hydration == Hydration::Lazy {
        missing.push("hydration: LAZY");
    }
    let formats = plan.inputs.iter().map(|input| input.format).chain(plan.outputs.iter().map(|output| output.format));
    if formats.into_iter().any(|format| format != Format::Pipedoc) {
        missing.push("format: JSON and RAW");
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::permanent(format!("not supported yet: {}", missing.join(", "))).with_kind("unsupported"))
}

/// Runs the program, with new clients whenever the old ones break.
async fn run(
    around: &Arc<Surroundings>,
    plan: &Arc<StepPlan>,
    step: &Step,
    program: &Program,
    secrets: &Secrets,
    board: &Arc<Board>,
    orders: &mut watch::Receiver<Order>,
) -> Ended {
    let mut failures = 0_u32;
    loop {
        if let Order::Stop { .. } = *orders.borrow_and_update() {
            return Ended::Stopped;
        }
        let began = Instant::now();
        let error = match run_once(around, plan, step, program, board, orders).await {
            Ok(ended) => return ended,
            Err(error) => scrubbed(&error, secrets),
        };
        if began.elapsed() > Duration::from_secs(60) {
            failures = 0;
        }
        failures = failures.saturating_add(1);
        board.set_consumer(None);
        board.trouble(&error.context("the step begins again with new connections"));
        tokio::select! {
            () = tokio::time::sleep(retry::backoff(&retry::patient(), failures)) => {}
            () = stop_ordered(orders) => return Ended::Stopped,
        }
    }
}

async fn run_once(
    around: &Arc<Surroundings>,
    plan: &Arc<StepPlan>,
    step: &Step,
    program: &Program,
    board: &Arc<Board>,
    orders: &mut watch::Receiver<Order>,
) -> Result<Ended> {
    let router = match Router::new(plan) {
        Ok(router) => router,
        Err(error) => {
            board.trouble(&error);
            return Ok(Ended::Failed);
        }
    };
    let bounds = Bounds::default();
    let concurrency = match plan.concurrency {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        given => given,
    };
    let service = match program {
        Program::Documents(module) => {
            Some(process::stack(Arc::clone(module), &around.layers, concurrency, plan.timeout))
        }
        Program::Connector(_) | Program::Records(_) => None,
    };
    let shop = Arc::new(Workshop {
        plan: Arc::clone(plan),
        step: step.clone(),
        router,
        claims: Claims::new(Arc::clone(&around.shelf), plan, bounds.bytes as u64),
        topics: Topics::new(Arc::clone(&around.log)),
        service,
    });
    let producer =
        around.log.producer(ProducerConfig { client_id: around.id.clone(), settings: plan.producer_settings.clone() });
    let producer: Arc<dyn Producer> = producer.await.context("a producer cannot be made")?;
    let worker = match program {
        Program::Documents(_) => Worker::Documents,
        Program::Records(program) => Worker::Records(Arc::clone(program)),
        Program::Connector(connector) => {
            let consumer = state_consumer(around, plan).await?;
            connect::run(around, shop, connector, board, consumer, producer, orders).await?;
            return Ok(Ended::Stopped);
        }
    };
    let consumer = input_consumer(around, plan).await?;
    board.set_consumer(Some(Arc::clone(&consumer)));
    let pump = Pump::new(shop, worker, Arc::clone(board), consumer, producer, bounds, concurrency);
    pump.run(orders).await?;
    Ok(Ended::Stopped)
}

async fn input_consumer(around: &Surroundings, plan: &StepPlan) -> Result<Arc<dyn Consumer>> {
    let (mut topics, mut patterns) = (Vec::new(), Vec::new());
    for input in &plan.inputs {
        match &input.source {
            InputSource::Topic(topic) => topics.push(topic.clone()),
            InputSource::Pattern(pattern) => {
                let pattern = regex::Regex::new(&format!("^(?:{pattern})$")).permanent();
                patterns.push(pattern.context("an input's pattern is wrong")?);
            }
        }
    }
    group_consumer(around, plan, topics, patterns).await
}

/// A member of the group whose owner of partition 0 runs the connector.
async fn state_consumer(around: &Surroundings, plan: &StepPlan) -> Result<Arc<dyn Consumer>> {
    let Some(state) = &plan.state else { return Err(Error::permanent("the plan names no state topic")) };
    group_consumer(around, plan, vec![state.clone()], Vec::new()).await
}

async fn group_consumer(
    around: &Surroundings,
    plan: &StepPlan,
    topics: Vec<Topic>,
    patterns: Vec<regex::Regex>,
) -> Result<Arc<dyn Consumer>> {
    let group = plan.group.clone();
    let subscription = Subscription::Group { group, topics, patterns, start: Start::Earliest };
    let mut config = ConsumerConfig::new(around.id.clone(), subscription);
    config.settings.clone_from(&plan.consumer_settings);
    around.log.consumer(config).await.context("a consumer cannot be made")
}

async fn stop_ordered(orders: &mut watch::Receiver<Order>) {
    // When whoever gives orders is gone, nothing is ordered any more but to stop.
    let _ = orders.wait_for(|order| matches!(order, Order::Stop { .. })).await;
}
