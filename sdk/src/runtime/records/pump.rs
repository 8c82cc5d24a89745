//! One step's loop: hands batches to the workers of their partitions, bounds what
//! is open, commits, lets partitions go.
//!
//! Knows the consumer and how far each partition is; knows nothing of attempts.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use pipedoc_transport::log::{
    self, AssignedPartition, Commit, Consumer, Event as LogEvent, Revocation, TopicPartition,
};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::Station;
use super::attempt::told;
use super::fuse::Blown;
use super::owned::Owned;
use super::worker::Task;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::runtime::partitions::Bounds;
use crate::runtime::status::{Obstacle, StepState};
use crate::runtime::{Order, retry};

/// How often offsets are committed while work goes on.
const COMMIT_EVERY: Duration = Duration::from_secs(1);
/// How soon they are when there is nothing left to do.
const COMMIT_WHEN_DRAINED: Duration = Duration::from_millis(50);
/// How long workers that were aborted, and last commits, may take.
const LAST_MOMENT: Duration = Duration::from_secs(2);

/// Moves one step's records.
pub(crate) struct RecordPump {
    pub(super) station: Arc<Station>,
    consumer: Arc<dyn Consumer>,
    bounds: Bounds,
    pub(super) owned: HashMap<TopicPartition, Owned>,
    /// A seat for each partition's worker, also of those that were taken away.
    seats: HashMap<TopicPartition, Arc<Semaphore>>,
    revoking: Vec<Revoking>,
    next: Option<BoxFuture<'static, log::Result<LogEvent>>>,
    /// After an error: when to ask the consumer again.
    next_at: Option<Instant>,
    consumer_failures: u32,
    commit: Option<BoxFuture<'static, Committing>>,
    last_commit: Instant,
    commit_failed: bool,
    pub(super) order: Order,
    /// Why the step stands still, once that was told.
    pub(super) blown: Option<Blown>,
    next_number: u64,
    /// What the board was last told.
    shown: Option<Shown>,
}

/// What was to be committed, each with the number of its partition's ownership;
/// and what came of it.
type Committing = (Vec<(Commit, u64)>, log::Result<()>);

/// What the board is told, as far as it may have changed: whether all is drained, the
/// sum of what is committed, the changes of partitions.
type Shown = (bool, i64, u64);

/// Partitions that are being taken away.
struct Revoking {
    revocation: Revocation,
    /// Until when what was begun may finish.
    by: Instant,
    /// Whether what is done was committed, or could not be.
    tried_to_commit: bool,
}

impl RecordPump {
    pub(crate) fn new(station: Arc<Station>, consumer: Arc<dyn Consumer>, bounds: Bounds) -> Self {
        Self {
            station,
            consumer,
            bounds,
            owned: HashMap::new(),
            seats: HashMap::new(),
            revoking: Vec::new(),
            next: None,
            next_at: None,
            consumer_failures: 0,
            commit: None,
            last_commit: Instant::now(),
            commit_failed: false,
            order: Order::Run,
            blown: None,
            next_number: 0,
            shown: None,
        }
    }

    /// Works until ordered to stop; then everything that was begun has ended, what is
    /// done is committed and the group left.
    ///
    /// # Errors
    /// When the clients cannot be used any more: make new ones. Nothing is lost
    /// then, but what was in flight comes again.
    pub(crate) async fn run(mut self, orders: &mut watch::Receiver<Order>) -> Result<()> {
        self.obey(*orders.borrow_and_update());
        let result = self.work(orders).await;
        let left: Vec<TopicPartition> = self.owned.keys().cloned().collect();
        self.abort(&left, result.is_err());
        self.station.board.set_consumer(None);
        self.station.board.set_in_flight(0);
        self.await_seats().await;
        if result.is_ok() {
            let (program, step) = (Arc::clone(&self.station.program), self.station.shop.step.clone());
            told(&self.station, "shutdown", program.shutdown(&step)).await;
        }
        let closed = self.consumer.close().await;
        result.and_then(|()| closed.map_err(Error::from))
    }

    async fn work(&mut self, orders: &mut watch::Receiver<Order>) -> Result<()> {
        let station = Arc::clone(&self.station);
        loop {
            let now = Instant::now();
            self.notice_rate();
            self.advance_revocations(now);
            self.adjust_flow();
            self.begin_commit(now);
            if let Some(error) = self.station.fatal.lock().take() {
                return Err(error);
            }
            if self.has_stopped(now) {
                return Ok(());
            }
            self.show();
            self.ask_consumer(now);
            let deadline = self.next_deadline(now);
            tokio::select! {
                (commits, result) = poll_option(&mut self.commit) => {
                    self.commit = None;
                    self.committed(commits, result)?;
                }
                event = poll_option(&mut self.next) => {
                    self.next = None;
                    self.consumed(event)?;
                }
                () = station.news.notified() => {}
                () = station.board.resumed() => self.resume(),
                () = sleep_until(deadline) => {}
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
            self.resume();
        }
        self.station.board.set_state(match order {
            Order::Run => StepState::Running,
            Order::Pause => StepState::Paused,
            Order::Stop { .. } => StepState::Stopping,
        });
        let task = self.task();
        self.owned.values_mut().filter(|owned| !owned.revoking).for_each(|owned| owned.tell(task));
    }

    /// What workers are to do as things stand.
    fn task(&self) -> Task {
        match self.order {
            Order::Run => Task::Go,
            Order::Pause => Task::Rest,
            Order::Stop { .. } => Task::Finish { revoked: false },
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
                self.station.board.heard(&event);
                self.happened(event);
                Ok(())
            }
            Err(error) if error.is_retryable() => {
                self.consumer_failures = self.consumer_failures.saturating_add(1);
                self.next_at = Some(Instant::now() + retry::backoff(&retry::patient(), self.consumer_failures));
                let obstacle = Obstacle::to_reading(&error);
                self.station.board.hindered(obstacle, &Error::from(error).context("reading failed; it is tried again"));
                Ok(())
            }
            Err(error) => Err(Error::from(error).context("reading failed")),
        }
    }

    fn happened(&mut self, event: LogEvent) {
        match event {
            LogEvent::Records(batch) => {
                if let Some(owned) = self.owned.get_mut(&batch.source) {
                    owned.admit(batch);
                }
            }
            LogEvent::EndOfPartition { source, position } => {
                if let Some(owned) = self.owned.get_mut(&source) {
                    owned.end_seen(position);
                }
            }
            LogEvent::Assigned(assigned) => {
                let sources: Vec<TopicPartition> = assigned.iter().map(|partition| partition.source.clone()).collect();
                self.begin_anew(&sources);
                assigned.iter().for_each(|partition| self.assign(partition));
                self.station.board.event(&Event::Assigned(sources));
                self.tell_owned();
            }
            LogEvent::Revoked(revocation) => {
                for source in &revocation.partitions {
                    if let Some(owned) = self.owned.get_mut(source) {
                        owned.revoking = true;
                        owned.tell(Task::Finish { revoked: true });
                    }
                }
                let by = Instant::now() + self.station.shop.plan.revoke_grace;
                self.revoking.push(Revoking { revocation, by, tried_to_commit: false });
            }
            LogEvent::Lost(sources) => {
                self.abort(&sources, true);
                self.station.board.event(&Event::Lost(sources));
                self.tell_owned();
            }
            LogEvent::OffsetsGone { source, wanted, resumed_at } => {
                let trouble = if resumed_at < wanted {
                    // The log is shorter than it was: what is known of its offsets is
                    // of another past.
                    self.begin_anew(std::slice::from_ref(&source));
                    self.assign(&AssignedPartition { source: source.clone(), committed: None, position: resumed_at });
                    format!("{source}: offset {wanted} is beyond its end; reading goes on at {resumed_at}")
                } else {
                    if let Some(owned) = self.owned.get_mut(&source) {
                        owned.skip_to(resumed_at);
                    }
                    let last = resumed_at - 1;
                    format!("{source}: offsets {wanted} to {last} are gone; reading goes on at {resumed_at}")
                };
                self.station.board.error(&trouble);
                self.station.board.event(&Event::OffsetsGone { source, wanted, resumed_at });
            }
        }
    }

    fn assign(&mut self, assigned: &AssignedPartition) {
        self.next_number += 1;
        let seat = self.seats.entry(assigned.source.clone()).or_insert_with(|| Arc::new(Semaphore::new(1)));
        let owned = Owned::begin(&self.station, assigned, self.next_number, Arc::clone(seat), self.task());
        self.owned.insert(assigned.source.clone(), owned);
        self.station.has_changed();
        self.came_while_blown(&assigned.source);
    }

    /// Forgets whatever was known of partitions whose ownership begins: the log
    /// may have taken them and given them back while they were being given up.
    fn begin_anew(&mut self, sources: &[TopicPartition]) {
        for revoking in &mut self.revoking {
            revoking.revocation.partitions.retain(|source| !sources.contains(source));
        }
        self.abort(sources, true);
    }

    /// Ends the workers of partitions at once. `tell`: the module hears of it when
    /// its last batch has ended.
    fn abort(&mut self, sources: &[TopicPartition], tell: bool) {
        for source in sources {
            let Some(owned) = self.owned.remove(source) else { continue };
            self.station.has_changed();
            let finished = owned.abort();
            if finished || !tell {
                continue;
            }
            let (station, source) = (Arc::clone(&self.station), source.clone());
            let seat = self.seats.get(&source).cloned();
            tokio::spawn(async move {
                let _seat = match &seat {
                    Some(seat) => seat.acquire().await.ok(),
                    None => None,
                };
                told(&station, "revoked", station.program.revoked(&source, &station.shop.step)).await;
            });
        }
    }

    /// Waits a moment for workers that were aborted.
    async fn await_seats(&mut self) {
        let deadline = Instant::now() + LAST_MOMENT;
        for seat in self.seats.values() {
            // Whoever does not end in time is left behind.
            let _ = tokio::time::timeout_at(deadline, seat.acquire()).await;
        }
    }

    /// Gives partitions up whose workers have ended or had their time.
    fn advance_revocations(&mut self, now: Instant) {
        for at in (0..self.revoking.len()).rev() {
            let sources = self.revoking[at].revocation.partitions.clone();
            let owned = || sources.iter().filter_map(|source| self.owned.get(source));
            if owned().any(|owned| !owned.has_ended()) {
                if now < self.revoking[at].by {
                    continue;
                }
                owned().for_each(Owned::halt);
            }
            if owned().any(|owned| owned.uncommitted().is_some()) && !self.revoking[at].tried_to_commit {
                if self.commit.is_none() {
                    self.commit_now(Some(&sources));
                    self.revoking[at].tried_to_commit = true;
                }
                continue;
            }
            if self.revoking[at].tried_to_commit && self.commit.is_some() {
                continue;
            }
            self.abort(&sources, true);
            self.revoking.remove(at).revocation.release();
            if !sources.is_empty() {
                self.station.board.event(&Event::Revoked(sources));
                self.tell_owned();
            }
        }
    }

    /// Tells what is owned after the group was divided anew.
    fn tell_owned(&self) {
        let mut owned: Vec<_> = self.owned.keys().cloned().collect();
        owned.sort();
        self.station.board.event(&Event::Rebalanced { owned });
    }

    /// Tells the consumer which partitions to hold back: a partition whose share of
    /// the bounds is used up, until half of it is free.
    fn adjust_flow(&mut self) {
        let shares = self.owned.len().max(1);
        let (records, bytes) = ((self.bounds.records / shares).max(1), (self.bounds.bytes / shares).max(1));
        let all_rest = self.order != Order::Run || self.blown.is_some();
        let (mut rest, mut go) = (Vec::new(), Vec::new());
        for (source, owned) in &mut self.owned {
            let must_rest = owned.measure(records, bytes) || all_rest || owned.revoking || owned.is_stopped();
            if must_rest != owned.is_resting() {
                owned.rest(must_rest);
                if must_rest { &mut rest } else { &mut go }.push(source.clone());
            }
        }
        if !rest.is_empty() {
            self.consumer.pause(&rest);
        }
        if !go.is_empty() {
            self.consumer.resume(&go);
        }
    }

    /// Whether a stop is complete: everything that was begun has ended, or its time
    /// is up, and what is done is committed.
    fn has_stopped(&mut self, now: Instant) -> bool {
        let Order::Stop { by } = self.order else { return false };
        if now >= by {
            self.owned.values().for_each(Owned::halt);
        }
        let ended = self.owned.values().all(Owned::has_ended);
        let committed = !self.owned.values().any(|owned| owned.uncommitted().is_some());
        ended && self.commit.is_none() && self.revoking.is_empty() && (committed || self.commit_failed)
            || now >= by + LAST_MOMENT
    }

    fn show(&mut self) {
        let board = &self.station.board;
        board.set_in_flight(self.owned.values().map(|owned| owned.open().0).sum());
        let drained = !self.owned.is_empty()
            && self.owned.values().all(|owned| owned.is_drained() && owned.uncommitted().is_none());
        // Batches come far more often than anybody looks.
        let committed: i64 = self.owned.values().map(Owned::committed_offset).sum();
        let now = (drained, committed, self.station.changes());
        if self.shown != Some(now) {
            let in_flight = self.owned.values().map(|owned| owned.open().0).sum();
            let places = self.owned.iter().map(|(source, owned)| (source.clone(), owned.committed_offset()));
            board.progress(in_flight, drained, places, self.paused());
            self.shown = Some(now);
        }
    }

    /// When the loop, which last looked at `now`, must look again though nothing
    /// has happened.
    fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let stop = match self.order {
            Order::Stop { by } if by > now => Some(by),
            Order::Stop { by } => Some(by + LAST_MOMENT),
            _ => None,
        };
        let revocations = self.revoking.iter().map(|revoking| revoking.by).filter(|by| *by > now);
        let next_at = if self.next.is_none() { self.next_at } else { None };
        [stop, next_at, self.commit_due()].into_iter().flatten().chain(revocations).min()
    }

    /// When the next commit is due, if there is anything to commit.
    fn commit_due(&self) -> Option<Instant> {
        if self.commit.is_some() {
            return None;
        }
        let due = |owned: &Owned| {
            owned.uncommitted()?;
            if owned.is_gated() && !self.commit_failed {
                return Some(self.last_commit);
            }
            let hurry = (owned.is_drained() || owned.has_ended()) && !self.commit_failed;
            Some(self.last_commit + if hurry { COMMIT_WHEN_DRAINED } else { COMMIT_EVERY })
        };
        self.owned.values().filter_map(due).min()
    }

    fn begin_commit(&mut self, now: Instant) {
        if self.commit_due().is_some_and(|due| due <= now) {
            self.commit_now(None);
        }
    }

    /// Commits the watermarks of these partitions, or of all.
    fn commit_now(&mut self, only: Option<&[TopicPartition]>) {
        let wanted = |source: &TopicPartition, owned: &Owned| match only {
            Some(only) => only.contains(source),
            // One that the log has taken already must not keep others from being
            // committed; each is committed on its own when it goes.
            None => !(owned.revoking && self.commit_failed),
        };
        let commits: Vec<(Commit, u64)> = self
            .owned
            .iter()
            .filter(|(source, owned)| wanted(source, owned))
            .filter_map(|(source, owned)| {
                let offset = owned.uncommitted()?;
                owned.commits(offset);
                let metadata = owned.metadata(offset);
                Some((Commit { source: source.clone(), offset, metadata }, owned.number))
            })
            .collect();
        self.last_commit = Instant::now();
        if commits.is_empty() {
            return;
        }
        let consumer = Arc::clone(&self.consumer);
        self.commit = Some(Box::pin(async move {
            let plain = commits.iter().map(|(commit, _)| commit.clone()).collect();
            let result = consumer.commit(plain).await;
            (commits, result)
        }));
    }

    fn committed(&mut self, commits: Vec<(Commit, u64)>, result: log::Result<()>) -> Result<()> {
        self.commit_failed = result.is_err();
        let Err(error) = result else {
            self.station.board.is_over(|obstacle| *obstacle == Obstacle::Committing);
            for (commit, number) in commits {
                if let Some(owned) = self.owned.get_mut(&commit.source).filter(|owned| owned.number == number) {
                    owned.has_committed(commit.offset);
                }
            }
            return Ok(());
        };
        // Fenced ones hear of their loss from the consumer; what is passing is tried
        // again with the next commit.
        let unusable = !error.is_retryable() && !matches!(error, log::Error::Fenced { .. });
        let error = Error::from(error).context("committing failed");
        let board = &self.station.board;
        board.note(Obstacle::Committing, error.to_string());
        board.tell_of_storage(&error);
        board.event(&Event::CommitFailed { error: error.to_string() });
        if unusable { Err(error) } else { Ok(()) }
    }
}

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
