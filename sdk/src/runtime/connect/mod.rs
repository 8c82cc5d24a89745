//! Runs a connector where this instance owns its state, and nowhere else.
//!
//! The owner of partition 0 of the state topic runs it. Ownership comes and goes
//! here; what is sent meanwhile is [`super::emit`]'s. Who has lost it and does not know
//! yet may still send, but under `EXACTLY_ONCE`: there the log refuses it.

mod member;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use pipedoc_model::kafka::Settings;
use pipedoc_model::names::Topic;
use pipedoc_transport::log::{
    Consumer, ConsumerConfig, Event as LogEvent, Producer, Start, Subscription, TopicPartition,
};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::emit::{Emissions, Out, Transactions};
use super::exact::Office;
use super::outbox::Outbox;
use super::process::panicked;
use super::status::{Board, PausedPartition, StepState};
use super::step::Surroundings;
use super::work::Workshop;
use super::{Order, retry};
use crate::connector::{Emitter, State};
use crate::error::{Error, Result, ResultExt};
use crate::event::Event;
use crate::factory::Connects;
use crate::module::Step;
use member::{Change, Member};

/// How many emissions wait to be taken.
const QUEUE: usize = 16;

/// Who holds the transactional ids, whichever instance it is: there is one owner.
const HOLDER: &str = "connector";

/// What a connector's runs write with.
pub(super) enum Means {
    /// A producer.
    Plain(Arc<dyn Producer>),
    /// Transactions, of clients with these settings.
    Exact(Settings),
}

/// Runs a connector whenever its state is owned here, until ordered to stop.
///
/// # Errors
/// When the clients cannot be used any more: make new ones.
pub(super) async fn run(
    around: &Surroundings,
    shop: Arc<Workshop>,
    connector: &Arc<dyn Connects>,
    board: &Arc<Board>,
    consumer: Arc<dyn Consumer>,
    means: Means,
    orders: &mut watch::Receiver<Order>,
) -> Result<()> {
    let Some(topic) = shop.plan.state.clone() else { return Err(Error::permanent("the plan names no state topic")) };
    let home = TopicPartition::new(topic, 0);
    let mut member = Member::new(consumer, Arc::clone(board), home);
    let result = own_and_run(around, &shop, connector, board, &mut member, &means, orders).await;
    board.set_consumer(None);
    board.set_in_flight(0);
    let closed = member.consumer.close().await;
    result.and_then(|()| closed.map_err(Error::from))
}

async fn own_and_run(
    around: &Surroundings,
    shop: &Arc<Workshop>,
    connector: &Arc<dyn Connects>,
    board: &Arc<Board>,
    member: &mut Member,
    means: &Means,
    orders: &mut watch::Receiver<Order>,
) -> Result<()> {
    let consumer = Arc::clone(&member.consumer);
    loop {
        show_order(board, *orders.borrow_and_update());
        // Another instance may run it: this one stands by.
        tokio::select! {
            change = member.next() => match change? {
                Change::Owned => {}
                Change::Taken(_) | Change::Lost => continue,
            },
            () = stop_ordered(orders) => return Ok(()),
        }
        let parts = Parts { around, shop, connector, board, means, consumer: &consumer };
        match while_owned(parts, member, orders).await? {
            Some(change) => drop(change),
            None => return Ok(()),
        }
    }
}

#[derive(Clone, Copy)]
struct Parts<'a> {
    around: &'a Surroundings,
    shop: &'a Arc<Workshop>,
    connector: &'a Arc<dyn Connects>,
    board: &'a Arc<Board>,
    means: &'a Means,
    /// Whose membership says who may write.
    consumer: &'a Arc<dyn Consumer>,
}

/// Runs the connector until it is taken away (then what holds its next owner
/// back is returned, to be dropped) or ordered to stop.
async fn while_owned(
    parts: Parts<'_>,
    member: &mut Member,
    orders: &mut watch::Receiver<Order>,
) -> Result<Option<Change>> {
    let mut failures = 0_u32;
    loop {
        let stopping = CancellationToken::new();
        let deadline = watch::channel(None::<Instant>).0;
        // What holds the next owner back, and whether the log has thought better of it.
        let (mut taken, mut returned) = (None, false);
        let running = run_once(parts, stopping.clone(), deadline.subscribe(), orders.clone());
        tokio::pin!(running);
        let ended = loop {
            tokio::select! {
                ended = &mut running => break ended,
                // A member is heard of while its run ends, too: or it would be taken
                // for dead, or go on when it is.
                change = member.next() => match change? {
                    Change::Owned => returned = taken.is_some(),
                    Change::Lost => return Ok(Some(Change::Lost)),
                    Change::Taken(revocation) => {
                        stopping.cancel();
                        let by = Instant::now() + parts.shop.plan.revoke_grace;
                        deadline.send_if_modified(|deadline| {
                            let sooner = deadline.is_none_or(|deadline| by < deadline);
                            if sooner {
                                *deadline = Some(by);
                            }
                            sooner
                        });
                        (taken, returned) = (Some(revocation), false);
                    }
                },
                by = sooner_stop(orders, *deadline.borrow()), if taken.is_none() => {
                    parts.board.set_state(StepState::Stopping);
                    stopping.cancel();
                    deadline.send_replace(Some(by));
                }
            }
        };
        match taken {
            // It came back meanwhile: the run that was to end has ended, and another begins.
            Some(revocation) if returned => {
                revocation.release();
                continue;
            }
            Some(revocation) => return Ok(Some(Change::Taken(revocation))),
            None => {}
        }
        if deadline.borrow().is_some() {
            return Ok(None);
        }
        // It has come to an end by itself.
        let wait = match ended {
            Ok(()) => {
                parts.board.set_state(StepState::Completed);
                parts.board.progress(0, true, member.partitions(), Vec::new());
                None
            }
            Err(Failure::Connector(error)) if !error.is_retryable() => {
                parts.board.trouble(&error);
                parts.board.set_state(StepState::Failed);
                None
            }
            Err(Failure::Connector(error)) => {
                failures = failures.saturating_add(1);
                parts.board.trouble(&error.context("the connector failed; it is run again"));
                Some(retry::backoff(&retry::patient(), failures))
            }
            Err(Failure::Clients(error)) => return Err(error),
            Err(Failure::StandsStill(paused)) => {
                if let Some(change) = stand_still(parts.board, member, orders, paused).await? {
                    return Ok(change);
                }
                continue;
            }
        };
        if let Some(change) = rest(member, orders, wait).await? {
            return Ok(change);
        }
        show_order(parts.board, *orders.borrow_and_update());
    }
}

/// Stays a member, for a while or until something happens: `Some` ends ownership
/// or the step, `None` begins anew.
#[allow(clippy::option_option, reason = "whether it is over, and how")]
async fn rest(
    member: &mut Member,
    orders: &mut watch::Receiver<Order>,
    wait: Option<std::time::Duration>,
) -> Result<Option<Option<Change>>> {
    let over = wait.map(|wait| Instant::now() + wait);
    loop {
        tokio::select! {
            change = member.next() => match change? {
                Change::Owned => {}
                change @ (Change::Taken(_) | Change::Lost) => return Ok(Some(Some(change))),
            },
            () = stop_ordered(orders) => return Ok(Some(None)),
            () = tokio::time::sleep_until(over.unwrap_or_else(Instant::now)), if over.is_some() => return Ok(None),
        }
    }
}

/// Stays a member until the step is resumed: `None` begins anew, `Some` ends ownership
/// or the step.
#[allow(clippy::option_option, reason = "whether it is over, and how")]
async fn stand_still(
    board: &Board,
    member: &mut Member,
    orders: &mut watch::Receiver<Order>,
    paused: PausedPartition,
) -> Result<Option<Option<Change>>> {
    // One that came while there was nothing to resume.
    while board.resumed().now_or_never().is_some() {}
    board.set_in_flight(0);
    board.set_state(StepState::Paused);
    board.progress(0, false, member.partitions(), vec![paused.clone()]);
    board.event(&Event::PartitionPaused(paused.clone()));
    let mut order = *orders.borrow_and_update();
    let over = loop {
        if let Order::Stop { .. } = order {
            break Some(None);
        }
        tokio::select! {
            change = member.next() => match change? {
                Change::Owned => board.progress(0, false, member.partitions(), vec![paused.clone()]),
                change @ (Change::Taken(_) | Change::Lost) => break Some(Some(change)),
            },
            () = board.resumed() => break None,
            changed = orders.changed() => {
                if changed.is_err() {
                    break Some(None);
                }
                let was_paused = std::mem::replace(&mut order, *orders.borrow_and_update()) == Order::Pause;
                if was_paused && order == Order::Run {
                    break None;
                }
            }
        }
    };
    if over.is_none() {
        board.progress(0, false, member.partitions(), Vec::new());
        board.event(&Event::PartitionResumed { source: paused.partition });
        show_order(board, order);
    }
    Ok(over)
}

/// Why a run ended in failure.
enum Failure {
    /// The connector's own.
    Connector(Error),
    /// The clients cannot be used any more.
    Clients(Error),
    /// None: the step is to stand still.
    StandsStill(PausedPartition),
}

/// One run: reads the state, runs the connector, sends what it gives, and waits
/// until all of it is settled.
async fn run_once(
    parts: Parts<'_>,
    stopping: CancellationToken,
    deadline: watch::Receiver<Option<Instant>>,
    orders: watch::Receiver<Order>,
) -> Result<(), Failure> {
    let Parts { around, shop, connector, board, .. } = parts;
    let plan = &shop.plan;
    let Some(topic) = &plan.state else { return Ok(()) };
    let step = Step::planned(plan, shop.step.data().to_owned(), stopping).hearing(around.events.clone());
    let state = State::create(&shop.step.data().join("state.sqlite")).map_err(Failure::Connector)?;
    let ready = async {
        // Before the state is read: what an earlier owner has left open ends with it.
        let out = open_out(parts, topic).await?;
        read_state(around, topic, &state).await.map(|()| out)
    };
    let out = tokio::select! {
        out = ready => out.map_err(Failure::Clients)?,
        () = passed(deadline.clone()) => return Ok(()),
    };
    let (queue, emitted) = mpsc::channel(QUEUE);
    let emitter = Emitter::new(queue);
    let emissions = Emissions::new(Arc::clone(shop), Arc::clone(board), out, state.clone());
    let (end, ended) = watch::channel(false);
    let running = async {
        let result = AssertUnwindSafe(connector.run(&step, &emitter, &state)).catch_unwind().await;
        end.send_replace(true);
        result.unwrap_or_else(|panic| Err(panicked(panic.as_ref())))
    };
    let sending = emissions.run(emitted, ended, orders);
    let both = async {
        tokio::pin!(running, sending);
        let mut result = None;
        loop {
            tokio::select! {
                ran = &mut running, if result.is_none() => result = Some(ran),
                sent = &mut sending => {
                    if let Some(paused) = sent.map_err(Failure::Clients)? {
                        return Err(Failure::StandsStill(paused));
                    }
                    // It ends only after the connector has.
                    return result.unwrap_or(Ok(())).map_err(Failure::Connector);
                }
            }
        }
    };
    tokio::select! {
        result = both => result,
        () = passed(deadline) => Ok(()),
    }
}

/// What a run writes with.
async fn open_out(parts: Parts<'_>, state: &Topic) -> Result<Out> {
    let Parts { around, shop, means, consumer, .. } = parts;
    match means {
        Means::Plain(producer) => Ok(Out::Plain(Outbox::new(Arc::clone(producer)))),
        Means::Exact(settings) => {
            // Of its own, so that each run takes the same transactional id.
            let (log, group) = (Arc::clone(&around.log), shop.plan.group.clone());
            let office = Office::new(log, group, HOLDER.to_owned(), settings.clone());
            let opened = Transactions::open(office, Arc::clone(consumer), TopicPartition::new(state.clone(), 0));
            Ok(Out::Exact(opened.await.context("transactions cannot be made")?))
        }
    }
}

/// Reads the state topic to its end.
async fn read_state(around: &Surroundings, topic: &Topic, state: &State) -> Result<()> {
    let ends = around.log.ends(topic).await.context("the state topic cannot be read")?;
    let partitions: Vec<TopicPartition> =
        (0..).zip(&ends).map(|(partition, _)| TopicPartition::new(topic.clone(), partition)).collect();
    let mut left = partitions.len();
    let all = partitions.into_iter().map(|partition| (partition, Start::Earliest)).collect();
    let config = ConsumerConfig::new(around.id.clone(), Subscription::Assigned(all));
    let reader = around.log.consumer(config).await.context("the state topic cannot be read")?;
    let mut ended = std::collections::HashSet::new();
    while left > 0 {
        match reader.next().await.context("the state topic cannot be read")? {
            LogEvent::Records(batch) => {
                let changes = batch.records.iter().filter_map(|record| {
                    let key = std::str::from_utf8(record.key.as_ref()?).ok()?;
                    Some((key, record.value.as_deref()))
                });
                state.apply(changes)?;
            }
            LogEvent::EndOfPartition { source, .. } => left -= usize::from(ended.insert(source)),
            LogEvent::Assigned(_) | LogEvent::Revoked(_) | LogEvent::Lost(_) | LogEvent::OffsetsGone { .. } => {}
        }
    }
    reader.close().await?;
    Ok(())
}

fn show_order(board: &Board, order: Order) {
    board.set_state(match order {
        Order::Run => StepState::Running,
        Order::Pause => StepState::Paused,
        Order::Stop { .. } => StepState::Stopping,
    });
}

async fn stop_ordered(orders: &mut watch::Receiver<Order>) {
    stop_order(orders).await;
}

/// Waits for the order to stop; by when.
async fn stop_order(orders: &mut watch::Receiver<Order>) -> Instant {
    let order = orders.wait_for(|order| matches!(order, Order::Stop { .. })).await;
    match order.as_deref() {
        Ok(Order::Stop { by }) => *by,
        _ => Instant::now(),
    }
}

/// Waits for an order to stop that is sooner than one known; by when.
async fn sooner_stop(orders: &mut watch::Receiver<Order>, known: Option<Instant>) -> Instant {
    let sooner = |order: &Order| match order {
        Order::Stop { by } => known.is_none_or(|known| *by < known),
        Order::Run | Order::Pause => false,
    };
    let order = orders.wait_for(sooner).await.map(|order| *order);
    match (order, known) {
        (Ok(Order::Stop { by }), _) => by,
        (_, None) => Instant::now(),
        // Whoever gave orders is gone: what was ordered stands.
        (_, Some(_)) => std::future::pending().await,
    }
}

/// Waits until a deadline is set and over; it may come to be sooner.
async fn passed(mut deadline: watch::Receiver<Option<Instant>>) {
    loop {
        let by = *deadline.borrow_and_update();
        let over = async {
            match by {
                Some(by) => tokio::time::sleep_until(by).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => return,
            changed = deadline.changed() => if changed.is_err() {
                return std::future::pending().await;
            },
        }
    }
}
