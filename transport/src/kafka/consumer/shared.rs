//! What the poller and the handle both see.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, ConsumerGroupMetadata, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Statistics, TopicPartitionList};
use tokio::sync::{Notify, oneshot};

use super::super::contact::{self, Contact, Served};
use super::super::statistics::StatisticsObserver;
use super::super::topics::Listing;
use super::vigil::Vigil;
use crate::log::{
    AssignedPartition, Commit, ConsumerConfig, Error, Event, RecordBatch, Result, Revocation, Start, Subscription,
    TopicPartition,
};

/// So many batches may be on their way from the poller to the caller.
pub(super) const BATCHES_ON_THE_WAY: usize = 8;

/// Distinguishes what was read before an assignment or a seek from what comes after.
pub(super) type Epoch = u64;

/// What the handle asks of the poller.
pub(super) enum Command {
    /// Tell the caller of trouble that passes.
    Tell(Error),
    /// Be a member of the group for these topics.
    Subscribe(Listing),
    /// End in failure: it does not recover by itself.
    GiveUp(Error),
    /// Go on at another place.
    Seek { partition: TopicPartition, to: Start, done: oneshot::Sender<Result<()>> },
}

/// What the poller sends to the handle, in order.
pub(super) enum Item {
    Assigned(Vec<(AssignedPartition, Epoch)>),
    Records {
        epoch: Epoch,
        batch: RecordBatch,
    },
    End {
        epoch: Epoch,
        source: TopicPartition,
        position: i64,
    },
    OffsetsGone {
        epoch: Epoch,
        source: TopicPartition,
        wanted: i64,
        resumed_at: i64,
    },
    /// `expired` is set when the partitions had to be given up before the caller
    /// heard of it, or held them for too long.
    Revoked {
        revocation: Revocation,
        expired: Arc<AtomicBool>,
    },
    Lost(Vec<TopicPartition>),
    Failed(Error),
}

impl Item {
    /// The one partition it is about.
    pub(super) fn source(&self) -> Option<&TopicPartition> {
        match self {
            Self::Records { batch, .. } => Some(&batch.source),
            Self::End { source, .. } | Self::OffsetsGone { source, .. } => Some(source),
            Self::Assigned(_) | Self::Revoked { .. } | Self::Lost(_) | Self::Failed(_) => None,
        }
    }

    /// The partitions it takes away.
    pub(super) fn gone(&self) -> Option<&[TopicPartition]> {
        match self {
            Self::Revoked { revocation, .. } => Some(&revocation.partitions),
            Self::Lost(partitions) => Some(partitions),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Owned {
    epoch: Epoch,
    position: i64,
    end: Option<i64>,
}

/// State of a consumer that both sides see. No lock is held across a call of
/// librdkafka or an await.
pub(in super::super) struct Shared {
    client_id: String,
    group: Option<String>,
    pub(super) session_timeout: Duration,
    pub(super) max_poll_interval: Duration,
    poller: Mutex<Option<Thread>>,
    commands: Mutex<VecDeque<Command>>,
    owned: Mutex<HashMap<TopicPartition, Owned>>,
    paused: Mutex<HashSet<TopicPartition>>,
    on_the_way: AtomicUsize,
    closed: AtomicBool,
    /// Partitions were given to the client.
    given: AtomicBool,
    /// The caller has heard of partitions.
    assigned: AtomicBool,
    /// How many calls of `next` are waiting, and when the last one ended.
    callers: AtomicUsize,
    last_call: Mutex<Instant>,
    /// Whether this client is of any use.
    pub(super) vigil: Vigil,
    /// A paused partition may have something to hand out again.
    pub(super) resumed: Notify,
}

/// Marks a call of `next` as running.
pub(super) struct CallerIsHere<'a>(&'a Shared);

impl Drop for CallerIsHere<'_> {
    fn drop(&mut self) {
        *self.0.last_call.lock() = Instant::now();
        self.0.callers.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Shared {
    pub(super) fn new(config: &ConsumerConfig, session_timeout: Duration, longest_fetch: Duration) -> Self {
        let group = match &config.subscription {
            Subscription::Group { group, .. } => Some(group.clone()),
            Subscription::Assigned(_) => None,
        };
        Self {
            client_id: config.client_id.clone(),
            group,
            session_timeout,
            max_poll_interval: config.max_poll_interval,
            poller: Mutex::default(),
            commands: Mutex::default(),
            owned: Mutex::default(),
            paused: Mutex::default(),
            on_the_way: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            given: AtomicBool::new(false),
            assigned: AtomicBool::new(false),
            callers: AtomicUsize::new(0),
            last_call: Mutex::new(Instant::now()),
            vigil: Vigil::new(longest_fetch),
            resumed: Notify::new(),
        }
    }

    /// Who is fenced when this consumer is.
    pub(super) fn who(&self) -> String {
        match &self.group {
            Some(group) => format!("member {} of group {group}", self.client_id),
            None => format!("consumer {}", self.client_id),
        }
    }

    /// The group it is a member of.
    pub(super) fn group(&self) -> Option<&str> {
        self.group.as_deref()
    }

    // The poller's life.

    pub(super) fn poller_is(&self, thread: Thread) {
        *self.poller.lock() = Some(thread);
    }

    pub(super) fn wake(&self) {
        if let Some(thread) = &*self.poller.lock() {
            thread.unpark();
        }
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.wake();
        // Ends a waiting `next`.
        self.resumed.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Asks the poller for something. Dropped, which its sender hears, when it has ended.
    pub(super) fn command(&self, command: Command) {
        let mut commands = self.commands.lock();
        if self.is_closed() {
            return;
        }
        commands.push_back(command);
        drop(commands);
        self.wake();
    }

    pub(super) fn next_command(&self) -> Option<Command> {
        self.commands.lock().pop_front()
    }

    /// Looks whether the poller's client does what it is there for.
    fn look_at(&self, statistics: &Statistics) {
        let paused = self.paused.lock().clone();
        let wanted: Vec<_> = self.owned.lock().keys().filter(|source| !paused.contains(source)).cloned().collect();
        self.vigil.look(statistics, &wanted);
    }

    // Backpressure.

    pub(super) fn caller_is_here(&self) -> CallerIsHere<'_> {
        self.callers.fetch_add(1, Ordering::AcqRel);
        if self.last_call.lock().elapsed() > self.max_poll_interval {
            self.wake();
        }
        CallerIsHere(self)
    }

    /// Whether `next` has not been called for too long.
    pub(super) fn caller_is_away(&self) -> bool {
        self.callers.load(Ordering::Acquire) == 0 && self.last_call.lock().elapsed() > self.max_poll_interval
    }

    pub(super) fn has_room(&self) -> bool {
        self.on_the_way.load(Ordering::Acquire) < BATCHES_ON_THE_WAY
    }

    pub(super) fn batch_sent(&self) {
        self.on_the_way.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn batch_taken(&self) {
        // Woken at half, so that the poller does not wake for every batch.
        if self.on_the_way.fetch_sub(1, Ordering::AcqRel) == BATCHES_ON_THE_WAY / 2 {
            self.wake();
        }
    }

    pub(super) fn pause(&self, partitions: &[TopicPartition]) {
        let owned = self.owned.lock();
        self.paused.lock().extend(partitions.iter().filter(|source| owned.contains_key(source)).cloned());
    }

    pub(super) fn resume(&self, partitions: &[TopicPartition]) {
        let mut paused = self.paused.lock();
        partitions.iter().for_each(|source| drop(paused.take(source)));
        drop(paused);
        self.wake();
        self.resumed.notify_one();
    }

    pub(super) fn is_paused(&self, source: &TopicPartition) -> bool {
        self.paused.lock().contains(source)
    }

    // What is owned.

    /// These are not ours any more.
    pub(super) fn disown<'a>(&self, partitions: impl IntoIterator<Item = &'a TopicPartition>) {
        let (mut owned, mut paused) = (self.owned.lock(), self.paused.lock());
        for source in partitions {
            owned.remove(source);
            paused.remove(source);
        }
    }

    /// Reading goes on elsewhere.
    pub(super) fn sought(&self, source: &TopicPartition, epoch: Epoch, position: i64) {
        if let Some(owned) = self.owned.lock().get_mut(source) {
            owned.epoch = epoch;
            owned.position = position;
        }
    }

    pub(super) fn check_owned(&self, commits: &[Commit]) -> Result<()> {
        let owned = self.owned.lock();
        if commits.iter().all(|commit| owned.contains_key(&commit.source)) {
            Ok(())
        } else {
            Err(Error::Fenced { who: self.who() })
        }
    }

    /// Partitions were given to the client, which has asked where to begin in them.
    pub(super) fn asked_where_to_begin(&self, well: bool) {
        self.given.store(true, Ordering::Release);
        self.vigil.asked_where_to_begin(well);
    }

    /// Whether the group has given partitions to the client, though it may not have begun.
    pub(super) fn was_given_partitions(&self) -> bool {
        self.given.load(Ordering::Acquire)
    }

    pub(super) fn was_assigned(&self) -> bool {
        self.assigned.load(Ordering::Acquire)
    }

    pub(super) fn positions(&self) -> BTreeMap<TopicPartition, i64> {
        self.owned.lock().iter().map(|(source, owned)| (source.clone(), owned.position)).collect()
    }

    pub(super) fn known_ends(&self) -> BTreeMap<TopicPartition, i64> {
        self.owned.lock().iter().filter_map(|(source, owned)| Some((source.clone(), owned.end?))).collect()
    }

    /// The event of an item, noted in what is owned; `None` when it is stale.
    pub(super) fn hand_out(&self, item: Item) -> Option<Event> {
        let mut owned = self.owned.lock();
        match item {
            Item::Assigned(partitions) => {
                self.assigned.store(true, Ordering::Release);
                let partitions = partitions.into_iter().map(|(partition, epoch)| {
                    let place = Owned { epoch, position: partition.position, end: None };
                    owned.insert(partition.source.clone(), place);
                    partition
                });
                Some(Event::Assigned(partitions.collect()))
            }
            Item::Records { epoch, batch } => {
                let place = owned.get_mut(&batch.source).filter(|place| place.epoch == epoch)?;
                place.position = batch.records.last()?.offset + 1;
                place.end = place.end.map(|end| end.max(place.position));
                Some(Event::Records(batch))
            }
            Item::End { epoch, source, position } => {
                let place = owned.get_mut(&source).filter(|place| place.epoch == epoch)?;
                place.position = place.position.max(position);
                place.end = Some(place.position);
                Some(Event::EndOfPartition { source, position: place.position })
            }
            Item::OffsetsGone { epoch, source, wanted, resumed_at } => {
                let place = owned.get_mut(&source).filter(|place| place.epoch == epoch)?;
                place.position = resumed_at;
                Some(Event::OffsetsGone { source, wanted, resumed_at })
            }
            Item::Revoked { revocation, expired } if expired.load(Ordering::Acquire) => {
                drop(owned);
                self.disown(&revocation.partitions);
                Some(Event::Lost(revocation.partitions.clone()))
            }
            Item::Revoked { revocation, .. } => Some(Event::Revoked(revocation)),
            Item::Lost(partitions) => {
                drop(owned);
                self.disown(&partitions);
                Some(Event::Lost(partitions))
            }
            // `next` has taken it out before.
            Item::Failed(_) => None,
        }
    }
}

/// A member at a moment, for transactions.
pub(in super::super) struct Membership {
    pub(in super::super) metadata: ConsumerGroupMetadata,
    pub(super) shared: Arc<Shared>,
}

impl Membership {
    pub(in super::super) fn who(&self) -> String {
        self.shared.who()
    }

    /// Kafka compares only the member's generation. Whether the member has the
    /// partitions is ours to say.
    pub(in super::super) fn check_owned(&self, commits: &[Commit]) -> Result<()> {
        self.shared.check_owned(commits)
    }
}

/// What librdkafka wants done about the assignment.
pub(super) enum Rebalance {
    Assign(TopicPartitionList),
    Revoke(TopicPartitionList),
}

/// Context of the poller's client. A rebalance is only noted here, within the
/// call that polls; the poller acts on it afterwards, so that it can go on
/// polling while a revocation is waited for. librdkafka waits for the answer.
pub(super) struct PollerContext {
    pub(super) contact: Arc<Contact>,
    pub(super) statistics: StatisticsObserver,
    pub(super) shared: Arc<Shared>,
    pub(super) rebalances: Mutex<VecDeque<Rebalance>>,
    /// Set when the client ends: rebalances are then answered at once.
    pub(super) ending: AtomicBool,
    pub(super) served: Served,
}

impl ClientContext for PollerContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.served.one();
        contact::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.contact.trouble(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        self.served.one();
        self.statistics.tell(&statistics, self.shared.group());
        self.shared.look_at(&statistics);
        let mut owned = self.shared.owned.lock();
        for (source, place) in owned.iter_mut() {
            let topic = statistics.topics.get(source.topic.as_str());
            let Some(partition) = topic.and_then(|topic| topic.partitions.get(&source.partition)) else { continue };
            // The last stable offset; what lies beyond it is not to be read yet.
            let end = if partition.ls_offset >= 0 { partition.ls_offset } else { partition.hi_offset };
            if end >= 0 {
                place.end = Some(end.max(place.position));
            }
        }
    }
}

impl ConsumerContext for PollerContext {
    fn rebalance(&self, client: &BaseConsumer<Self>, what: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        self.served.one();
        let assign = what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if self.ending.load(Ordering::Acquire) {
            let answered = if assign { take(client, &TopicPartitionList::new()) } else { give_up(client, partitions) };
            if let Err(error) = answered {
                tracing::debug!(%error, "leaving a group");
            }
            return;
        }
        let partitions = partitions.clone();
        let rebalance = if assign { Rebalance::Assign(partitions) } else { Rebalance::Revoke(partitions) };
        self.rebalances.lock().push_back(rebalance);
    }
}

/// Answers an assignment, in the way of the group's protocol.
pub(super) fn take(client: &BaseConsumer<PollerContext>, partitions: &TopicPartitionList) -> KafkaResult<()> {
    match client.rebalance_protocol() {
        RebalanceProtocol::Cooperative => client.incremental_assign(partitions),
        RebalanceProtocol::Eager | RebalanceProtocol::None => client.assign(partitions),
    }
}

/// Answers a revocation, in the way of the group's protocol.
pub(super) fn give_up(client: &BaseConsumer<PollerContext>, partitions: &TopicPartitionList) -> KafkaResult<()> {
    match client.rebalance_protocol() {
        RebalanceProtocol::Cooperative => client.incremental_unassign(partitions),
        RebalanceProtocol::Eager | RebalanceProtocol::None => client.unassign(),
    }
}
