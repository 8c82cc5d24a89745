//! Moves one step's records: owns its consumer, windows, lanes and outbox.
//!
//! One task; everything that takes long runs beside it and comes back as a
//! signal. What happens to deliveries is in [`outcome`], what happens to
//! partitions in [`ownership`]; here is the loop that holds both together.

mod exact;
mod first;
mod outcome;
mod ownership;
mod stops;
mod task;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use pipedoc_model::step::{Delivery as Promise, Ordering};
use pipedoc_transport::log::{self, Commit, Consumer, Event as LogEvent, RecordBatch};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::breaker::Breaker;
use super::deliveries::{Deliveries, Delivery, Stage};
use super::exact::Desks;
use super::lanes::{DeliveryId, LaneKey, Lanes};
use super::partitions::{Bounds, Partitions};
use super::status::{Board, Obstacle, StepState};
use super::window::{Admission, Mark};
use super::work::Workshop;
use super::{Order, retry};
use crate::error::{Error, Result};
use crate::event::Event;
pub(crate) use exact::Out;
use exact::Sent;
use ownership::Revoking;
pub(crate) use task::Signal;

/// How often offsets are committed while work goes on.
const COMMIT_EVERY: Duration = Duration::from_secs(1);
/// How soon they are when there is nothing left to do.
const COMMIT_WHEN_DRAINED: Duration = Duration::from_millis(50);
/// How long tasks that were aborted may take to end.
const GHOSTS_MAY_TAKE: Duration = Duration::from_secs(2);

/// So many deliveries of a quick module make a row.
const ROW: usize = 64;

/// No work begins while so many bytes of outputs are on their way.
const OUTBOX_BYTES: usize = 64 << 20;

/// Moves one step's records.
pub(crate) struct Pump {
    shop: Arc<Workshop>,
    board: Arc<Board>,
    consumer: Arc<dyn Consumer>,
    partitions: Partitions,
    deliveries: Deliveries,
    lanes: Lanes,
    out: Out,
    signals: mpsc::UnboundedReceiver<Signal>,
    signaller: mpsc::UnboundedSender<Signal>,
    revoking: Vec<Revoking>,
    next: Option<BoxFuture<'static, log::Result<LogEvent>>>,
    /// After an error: when to ask the consumer again.
    next_at: Option<Instant>,
    consumer_failures: u32,
    commit: Option<BoxFuture<'static, Committing>>,
    last_commit: Instant,
    commit_failed: bool,
    /// Since when something waits for a batch to fill.
    batch_since: Option<Instant>,
    order: Order,
    breaker: Breaker,
    /// Partitions that stand still go on when their transactions have ended.
    resume_later: bool,
    /// What makes going on with these clients impossible.
    fatal: Option<Error>,
}

/// What was to be committed, and what came of it.
type Committing = (Vec<Committable>, log::Result<()>);

/// What is to be committed of a partition.
#[derive(Debug)]
struct Committable {
    commit: Commit,
    mark: Mark,
    /// Number of the partition's ownership.
    number: u64,
}

impl Pump {
    pub(crate) fn new(
        shop: Arc<Workshop>,
        board: Arc<Board>,
        consumer: Arc<dyn Consumer>,
        out: Out,
        bounds: Bounds,
        concurrency: usize,
    ) -> Self {
        let (signaller, signals) = mpsc::unbounded_channel();
        let partitions = match out.desks() {
            None if shop.plan.delivery == Promise::AtMostOnce => Partitions::offset_first(bounds),
            None => Partitions::new(bounds),
            Some(desks) => Partitions::with_desks(bounds, desks.len()),
        };
        let breaker = Breaker::new(shop.plan.stop_at_failure_rate);
        Self {
            shop,
            board,
            consumer,
            partitions,
            deliveries: Deliveries::default(),
            lanes: Lanes::new(concurrency),
            out,
            signals,
            signaller,
            revoking: Vec::new(),
            next: None,
            next_at: None,
            consumer_failures: 0,
            commit: None,
            last_commit: Instant::now(),
            commit_failed: false,
            batch_since: None,
            order: Order::Run,
            breaker,
            resume_later: false,
            fatal: None,
        }
    }

    /// Works until ordered to stop; then everything in flight has ended, what is
    /// done is committed and the group left.
    ///
    /// # Errors
    /// When the clients cannot be used any more: make new ones. Nothing is lost
    /// then, but what was in flight comes again.
    pub(crate) async fn run(mut self, orders: &mut watch::Receiver<Order>) -> Result<()> {
        self.obey(*orders.borrow_and_update());
        let result = self.work(orders).await;
        self.deliveries.drop_all(|_| true);
        self.board.set_consumer(None);
        self.board.set_in_flight(0);
        self.await_ghosts().await;
        let closed = self.consumer.close().await;
        result.and_then(|()| closed.map_err(Error::from))
    }

    async fn work(&mut self, orders: &mut watch::Receiver<Order>) -> Result<()> {
        loop {
            // Nothing is written after it: what became of the last transaction is not known.
            if let Some(error) = self.fatal.take() {
                return Err(error);
            }
            let now = Instant::now();
            self.lanes.wake(now);
            if std::mem::take(&mut self.resume_later) {
                self.resume(now);
            }
            self.start_work(now);
            self.restart_partitions(now).await?;
            self.advance_revocations(now);
            self.adjust_flow();
            self.begin_commit(now);
            if self.has_stopped(now) {
                return Ok(());
            }
            self.show();
            self.ask_consumer(now);
            let deadline = self.next_deadline(now);
            tokio::select! {
                Some(signal) = self.signals.recv() => {
                    self.take(signal);
                    while let Ok(signal) = self.signals.try_recv() {
                        self.take(signal);
                    }
                }
                sent = self.out.next() => match sent {
                    Sent::Settled(settled) => settled.into_iter().for_each(|settled| self.settled(settled)),
                    Sent::Written(ended) => self.written(ended),
                },
                (commits, result) = poll_option(&mut self.commit) => {
                    self.commit = None;
                    self.committed(commits, result);
                }
                event = poll_option(&mut self.next) => {
                    self.next = None;
                    self.consumed(event)?;
                }
                () = sleep_until(deadline) => {}
                () = self.board.resumed() => self.resume(now),
                changed = orders.changed() => {
                    // Whoever gave orders is gone: stop at once, as if told to.
                    let order = if changed.is_ok() { *orders.borrow_and_update() } else { Order::Stop { by: now } };
                    self.obey(order);
                }
            }
        }
    }

    fn obey(&mut self, order: Order) {
        let was_paused = std::mem::replace(&mut self.order, order) == Order::Pause;
        if was_paused && order == Order::Run {
            self.resume(Instant::now());
        }
        self.board.set_state(match order {
            Order::Run => StepState::Running,
            Order::Pause => StepState::Paused,
            Order::Stop { .. } => StepState::Stopping,
        });
        if matches!(order, Order::Stop { .. }) {
            let all: Vec<_> = self.partitions.iter().map(|partition| partition.source.as_ref().clone()).collect();
            self.trim(&all);
        }
    }

    fn ask_consumer(&mut self, now: Instant) {
        if self.next.is_none() && self.next_at.is_none_or(|at| at <= now) {
            self.next_at = None;
            let consumer = Arc::clone(&self.consumer);
            self.next = Some(Box::pin(async move { consumer.next().await }));
        }
    }

    fn consumed(&mut self, event: log::Result<LogEvent>) -> Result<()> {
        match event {
            Ok(event) => {
                self.consumer_failures = 0;
                self.board.heard(&event);
                self.happened(event);
                Ok(())
            }
            Err(error) if error.is_retryable() => {
                self.consumer_failures = self.consumer_failures.saturating_add(1);
                self.next_at = Some(Instant::now() + retry::backoff(&retry::patient(), self.consumer_failures));
                let obstacle = Obstacle::to_reading(&error);
                self.board.hindered(obstacle, &Error::from(error).context("reading failed; it is tried again"));
                Ok(())
            }
            Err(error) => Err(Error::from(error).context("reading failed")),
        }
    }

    /// Takes records in, each into its lane.
    fn admit(&mut self, batch: RecordBatch) {
        let commits_first = self.commits_first();
        let Some(partition) = self.partitions.get_mut(&batch.source) else { return };
        for record in batch.records {
            let id = self.deliveries.next_id();
            let key = match (self.shop.plan.ordering, &record.key) {
                (Ordering::Key, Some(key)) => LaneKey::Key(key),
                (Ordering::Key, None) | (Ordering::Partition, _) => LaneKey::Partition(&partition.source),
                (Ordering::None, _) => LaneKey::Alone(id),
            };
            let lane = self.lanes.lane(&key);
            if partition.admit(record.offset, record.bytes(), lane) != Admission::Open {
                continue;
            }
            let source = Arc::clone(&partition.source);
            if commits_first {
                partition.gate.push_back((record.offset, id));
            } else {
                self.lanes.push(lane, id);
            }
            let delivery = Delivery::new(source, Arc::new(record), lane);
            self.deliveries.insert(id, delivery);
        }
    }

    /// Starts what may start.
    fn start_work(&mut self, now: Instant) {
        // What comes out may be far more than what goes in.
        if self.order == Order::Pause || self.bytes_out() >= OUTBOX_BYTES {
            // Nothing waits for a batch to fill while none can begin.
            self.batch_since = None;
            return;
        }
        if self.shop.plan.batch.is_some() {
            return self.start_batches(now);
        }
        if self.shop.pace.is_quick() {
            return self.start_rows();
        }
        while let Some(id) = self.lanes.start() {
            let Some(delivery) = self.deliveries.get_mut(id) else {
                // Dropped deliveries are forgotten by the lanes; this one slipped through.
                self.lanes.work_ended();
                continue;
            };
            let task = task::work(&self.shop, vec![(id, delivery.job())], false, &self.signaller);
            delivery.stage = Stage::Working(task);
        }
    }

    /// Starts rows of deliveries of a quick module.
    fn start_rows(&mut self) {
        loop {
            let (deliveries, mut jobs) = (&self.deliveries, Vec::new());
            self.lanes.start_batch(ROW, |id| {
                let job = deliveries.get(id).map(Delivery::job);
                jobs.extend(job.map(|job| (id, job)));
                true
            });
            if jobs.is_empty() {
                return;
            }
            let ids: Vec<DeliveryId> = jobs.iter().map(|(id, _)| *id).collect();
            let task = task::work_in_a_row(&self.shop, jobs, &self.signaller);
            for id in ids {
                if let Some(delivery) = self.deliveries.get_mut(id) {
                    delivery.stage = Stage::Working(task.clone());
                }
            }
        }
    }

    fn start_batches(&mut self, now: Instant) {
        let Some(bounds) = self.shop.plan.batch else { return };
        let most = bounds.records.max(1);
        while self.lanes.has_room() {
            let startable = self.lanes.startable(most);
            if startable == 0 {
                self.batch_since = None;
                return;
            }
            let since = *self.batch_since.get_or_insert(now);
            let in_a_hurry = matches!(self.order, Order::Stop { .. }) || !self.revoking.is_empty();
            let bytes_wait = self.partitions.iter().map(|partition| partition.window.bytes()).sum::<usize>();
            if startable < most && bytes_wait < bounds.bytes && now < since + bounds.wait && !in_a_hurry {
                return;
            }
            self.batch_since = None;
            let (mut bytes, mut jobs, mut alone) = (0, Vec::new(), false);
            let deliveries = &self.deliveries;
            self.lanes.start_batch(most, |id| {
                let Some(delivery) = deliveries.get(id) else { return false };
                let size = delivery.record.bytes();
                if !jobs.is_empty() && (alone || delivery.alone || bytes + size > bounds.bytes) {
                    return false;
                }
                alone = delivery.alone;
                bytes += size;
                jobs.push((id, delivery.job()));
                true
            });
            if jobs.is_empty() {
                return;
            }
            let ids: Vec<DeliveryId> = jobs.iter().map(|(id, _)| *id).collect();
            let task = task::work(&self.shop, jobs, true, &self.signaller);
            for id in ids {
                if let Some(delivery) = self.deliveries.get_mut(id) {
                    delivery.stage = Stage::Working(task.clone());
                }
            }
        }
    }

    /// Tells the consumer which partitions to hold back.
    fn adjust_flow(&mut self) {
        self.partitions.measure();
        let all_rest = self.order != Order::Run;
        let (mut rest, mut go) = (Vec::new(), Vec::new());
        for partition in self.partitions.iter() {
            let must_rest = all_rest || self.partitions.must_rest(partition);
            if must_rest != partition.resting {
                if must_rest { &mut rest } else { &mut go }.push(partition.source.as_ref().clone());
            }
        }
        for (sources, resting) in [(&rest, true), (&go, false)] {
            for source in sources {
                if let Some(partition) = self.partitions.get_mut(source) {
                    partition.resting = resting;
                }
            }
        }
        if !rest.is_empty() {
            self.consumer.pause(&rest);
        }
        if !go.is_empty() {
            self.consumer.resume(&go);
        }
    }

    /// Whether a stop is complete: everything in flight has ended, or its time is
    /// up, and what is done is committed.
    fn has_stopped(&mut self, now: Instant) -> bool {
        let Order::Stop { by } = self.order else { return false };
        if now >= by && self.deliveries.len() > 0 {
            self.deliveries.drop_all(|_| true);
            self.forget_dropped();
        }
        let committed = !self.partitions.iter().any(|partition| partition.window.uncommitted().is_some());
        let commit_failed = self.commit_failed || self.out.desks().is_some_and(Desks::is_failing);
        self.deliveries.is_quiet()
            && self.commit.is_none()
            && self.revoking.is_empty()
            && (committed || commit_failed || now >= by + GHOSTS_MAY_TAKE)
            || now >= by + GHOSTS_MAY_TAKE
    }

    async fn await_ghosts(&mut self) {
        let deadline = Instant::now() + GHOSTS_MAY_TAKE;
        while self.deliveries.has_ghosts() {
            match tokio::time::timeout_at(deadline, self.signals.recv()).await {
                Ok(Some(signal)) => self.take(signal),
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn show(&self) {
        let partitions = self.partitions.iter().map(|p| (p.source.as_ref().clone(), p.window.committed_offset()));
        let paused = self.partitions.stopped();
        self.board.progress(self.deliveries.len(), self.partitions.are_drained(), partitions, paused);
    }

    /// When the loop, which last looked at `now`, must look again though nothing
    /// has happened.
    fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let batch = self.shop.plan.batch.and_then(|bounds| self.batch_since.map(|since| since + bounds.wait));
        let stop = match self.order {
            Order::Stop { by } if self.deliveries.len() > 0 => Some(by),
            Order::Stop { by } => Some(by + GHOSTS_MAY_TAKE),
            _ => None,
        };
        let restarts = self.partitions.iter().filter_map(|partition| partition.restart_at);
        // Those whose time was up wait for a commit, which tells when it has ended.
        let revocations = self.revoking.iter().map(|revoking| revoking.by).filter(|by| *by > now);
        let next_at = if self.next.is_none() { self.next_at } else { None };
        [self.lanes.next_wake(), batch, stop, next_at, self.commit_due(now)]
            .into_iter()
            .flatten()
            .chain(restarts)
            .chain(revocations)
            .min()
    }

    /// Lets lanes and outbox forget what is no delivery any more.
    fn forget_dropped(&mut self) {
        let deliveries = &self.deliveries;
        self.lanes.forget(|id| !deliveries.has_lane(id));
        match &mut self.out {
            Out::Plain(outbox) => outbox.retain(|id| deliveries.contains(*id)),
            Out::Exact(_) => {
                self.partitions.iter_mut().for_each(|partition| partition.row.retain(|id| deliveries.contains(id)));
            }
        }
        // Dead letters may have waited for what was dropped.
        for lane in self.deliveries.lanes_held() {
            self.send_letters(lane);
        }
    }

    fn event(&self, event: Event) {
        self.board.event(&event);
    }
}

/// Bytes that a record holds.
async fn poll_option<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
