//! The life of one step: open its program, run it as the plan says, begin again
//! when clients break, end when told to.
//!
//! Knows programs and clients; knows nothing of what happens to records.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use pipedoc_model::kafka::Settings;
use pipedoc_model::names::{ModuleName, Topic};
use pipedoc_model::step::{ControlState, Delivery, InputSource, StepPlan, StepType, broken_promises};
use pipedoc_transport::log::{Consumer, ConsumerConfig, Log, Producer, ProducerConfig, Start, Subscription};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::claims::{Claims, Shelf};
use super::clients;
use super::connect::{self, Means};
use super::exact::{Desks, Office};
use super::format::Formats;
use super::outbox::Outbox;
use super::pace::Pace;
use super::partitions::Bounds;
use super::pump::{Out, Pump};
use super::records::{Exact, RecordPump, Station};
use super::route::Router;
use super::status::{Board, Obstacle, StepState};
use super::topics::Topics;
use super::work::Workshop;
use super::{Order, process, retry};
use crate::error::{Error, Result, ResultExt};
use crate::event::{Event, Events, Observer};
use crate::factory::{Factory, Program};
use crate::layers::Layers;
use crate::module::Step;
use crate::secrets::{self, Secrets};

/// How long a step whose plan has changed may take beyond its timeout to finish
/// what is in flight.
const CHANGE_GRACE: Duration = Duration::from_secs(5);

/// How long a step that panicked rests at least: what it had begun ends meanwhile.
const PANIC_REST: Duration = Duration::from_secs(1);
/// A step that has lived for so long has not failed again, but anew.
const LONG: Duration = Duration::from_secs(60);
/// How long a module's `close` may take.
const CLOSE_MAY_TAKE: Duration = Duration::from_secs(10);

/// What all steps of an instance share.
pub(crate) struct Surroundings {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) shelf: Arc<dyn Shelf>,
    pub(crate) id: String,
    pub(crate) data: PathBuf,
    pub(crate) factories: HashMap<ModuleName, Factory>,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) events: Events,
    pub(crate) layers: Layers,
    pub(crate) bounds: Bounds,
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
    /// It panicked, outside of all that is a module's.
    Panicked,
}

/// Runs a step through all its plans until nobody can want anything of it any more.
pub(crate) async fn supervise(around: Arc<Surroundings>, mut wanted: watch::Receiver<Wanted>, board: Arc<Board>) {
    let mut panics = 0_u32;
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
        let began = Instant::now();
        let life = guarded(live(&around, &plan, &board, order), &board);
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
        match ended {
            // Nobody can want anything any more: the plan last wanted is not run anew.
            Ended::Stopped if wanted.has_changed().is_err() => break,
            Ended::Stopped => {}
            Ended::Failed => {
                board.set_state(StepState::Failed);
                if !another_plan(&plan, &mut wanted, &board).await {
                    break;
                }
            }
            Ended::Panicked => {
                // It says so for a while, and begins anew where it had committed.
                board.set_state(StepState::Failed);
                board.set_consumer(None);
                board.set_in_flight(0);
                panics = if began.elapsed() > LONG { 1 } else { panics.saturating_add(1) };
                let rest = PANIC_REST.saturating_add(retry::backoff(&retry::patient(), panics));
                // What is wanted stays to be looked at.
                let mut news = wanted.clone();
                tokio::select! {
                    () = tokio::time::sleep(rest) => {}
                    _ = news.changed() => {}
                }
            }
        }
    }
    board.set_state(StepState::Stopped);
}

/// A life whose panic is an end like others.
async fn guarded(life: impl Future<Output = Ended>, board: &Board) -> Ended {
    let life = futures::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(life));
    life.await.unwrap_or_else(|panic| {
        let error = process::panicked_in("the step", panic.as_ref());
        tracing::error!(step = %board.id(), %error, "a step panicked");
        // Observers are not told: it may have been one of them.
        board.error(&error.context("the step begins again soon").to_string());
        Ended::Panicked
    })
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
    let step = Step::planned(plan, data, stopping.clone()).hearing(around.events.clone());
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
    close(program, board).await;
    ended
}

/// Closes the program, for a while.
async fn close(program: Program, board: &Board) {
    let closing = std::panic::AssertUnwindSafe(tokio::time::timeout(CLOSE_MAY_TAKE, program.close()));
    match futures::FutureExt::catch_unwind(closing).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => {
            let seconds = CLOSE_MAY_TAKE.as_secs();
            board.trouble(&Error::retryable(format!(
                "the module's close had not ended after {seconds} s and was let go"
            )));
        }
        Err(panic) => board.trouble(&process::panicked(panic.as_ref()).context("the module cannot be closed")),
    }
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
                Ok(opened) => {
                    board.is_over(|obstacle| *obstacle == Obstacle::Opening);
                    return Some(Ok(opened));
                }
                Err(error) if !error.is_retryable() => return Some(Err(error)),
                Err(error) => error,
            },
            () = stop_ordered(orders) => return None,
        };
        failures = failures.saturating_add(1);
        board.hindered(Obstacle::Opening, &error.context("the step cannot be opened yet; it is tried again"));
        tokio::select! {
            () = tokio::time::sleep(retry::backoff(&retry::patient(), failures)) => {}
            () = stop_ordered(orders) => return None,
        }
    }
}

async fn open_once(around: &Surroundings, plan: &StepPlan, step: &Step) -> Result<(Program, Secrets)> {
    refuse_broken_promises(plan)?;
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

/// Refuses what no step can keep, or not yet, though the plan promises it.
fn refuse_broken_promises(plan: &StepPlan) -> Result<()> {
    let broken = broken_promises(plan.step_type, plan.delivery, plan.on_exhausted, plan.stop_at_failure_rate);
    match broken.is_empty() {
        true => Ok(()),
        false => Err(Error::permanent(broken.join("; ")).with_kind("unsupported")),
    }
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
        if began.elapsed() > LONG {
            failures = 0;
        }
        failures = failures.saturating_add(1);
        board.set_consumer(None);
        let error = error.context("the step begins again with new connections");
        board.note(Obstacle::Connections, error.to_string());
        board.tell_of_storage(&error);
        board.event(&Event::ConnectionsRenewed { error: error.to_string() });
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
    let (router, formats) = match Router::new(plan).and_then(|router| Ok((router, Formats::new(plan)?))) {
        Ok(ready) => ready,
        Err(error) => {
            board.trouble(&error);
            return Ok(Ended::Failed);
        }
    };
    let bounds = around.bounds;
    let concurrency = match plan.concurrency {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        given => given,
    };
    let service = match program {
        Program::Documents(module) => Some(process::Stack::new(Arc::clone(module), &around.layers, plan.timeout)),
        Program::Connector(_) | Program::Records(_) => None,
    };
    let shop = Arc::new(Workshop {
        plan: Arc::clone(plan),
        step: step.clone(),
        router,
        formats,
        claims: Arc::new(Claims::new(Arc::clone(&around.shelf), plan, bounds.bytes as u64)),
        topics: Topics::new(Arc::clone(&around.log)),
        service,
        pace: Pace::default(),
    });
    let settings = clients::settings("producer", &plan.producer_settings)?;
    let exact = plan.delivery == Delivery::ExactlyOnce;
    let office = || Office::new(Arc::clone(&around.log), plan.group.clone(), around.id.clone(), settings.clone());
    let span = tracing::info_span!("step", step = %plan.id);
    match program {
        Program::Documents(_) => {
            // Before anything is read: what an earlier life has left open ends with it.
            let out = match exact {
                true => Out::Exact(Desks::several(office()).await.context("transactions cannot be made")?),
                false => Out::Plain(Outbox::new(producer(around, settings.clone()).await?)),
            };
            let consumer = input_consumer(around, plan).await?;
            board.set_consumer(Some(Arc::clone(&consumer)));
            let pump = Pump::new(shop, Arc::clone(board), consumer, out, bounds, concurrency);
            pump.run(orders).instrument(span).await?;
        }
        Program::Records(program) => {
            let producer = producer(around, settings.clone()).await?;
            let consumer = input_consumer(around, plan).await?;
            board.set_consumer(Some(Arc::clone(&consumer)));
            let exact = exact.then(|| Exact::new(office(), Arc::clone(&consumer)));
            let station = Station::new(shop, Arc::clone(program), producer, Arc::clone(board), concurrency, exact);
            RecordPump::new(Arc::new(station), consumer, bounds).run(orders).instrument(span).await?;
        }
        Program::Connector(connector) => {
            let means = match exact {
                true => Means::Exact(settings),
                false => Means::Plain(producer(around, settings).await?),
            };
            let consumer = state_consumer(around, plan).await?;
            connect::run(around, shop, connector, board, consumer, means, orders).await?;
        }
    }
    Ok(Ended::Stopped)
}

async fn producer(around: &Surroundings, settings: Settings) -> Result<Arc<dyn Producer>> {
    let producer = around.log.producer(ProducerConfig { client_id: around.id.clone(), settings });
    producer.await.context("a producer cannot be made")
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
    config.max_records = around.bounds.batch_records();
    config.max_bytes = around.bounds.batch_bytes();
    config.settings = clients::settings("consumer", &plan.consumer_settings)?;
    around.log.consumer(config.tuned()).await.context("a consumer cannot be made")
}

async fn stop_ordered(orders: &mut watch::Receiver<Order>) {
    // When whoever gives orders is gone, nothing is ordered any more but to stop.
    let _ = orders.wait_for(|order| matches!(order, Order::Stop { .. })).await;
}
