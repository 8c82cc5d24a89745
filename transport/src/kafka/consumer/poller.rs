//! The thread that polls: it alone reads librdkafka's queues and answers rebalances.
//!
//! ```text
//! loop: commands ─ main queue ─ rebalance ─ one batch of each ready partition ─ park
//! ```
//!
//! It parks when there is nothing to do and is woken by librdkafka when a queue
//! gets its first entry, by the handle when it has room again or asks for
//! something, and by a revocation that is dropped.
//!
//! A rebalance is answered when it can be: an assignment when the places to begin
//! at are known, a revocation when the caller has let go of it. Meanwhile the
//! loop goes on. (librdkafka itself hands out nothing new in that time; what had
//! been read before goes its way.)

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use pipedoc_model::names::Topic;
use rdkafka::consumer::{BaseConsumer, Consumer as _, RebalanceProtocol};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use self::rebalance::Pending;
use super::super::contact::Served;
use super::super::failure::{Attempt, is_passing, not_made};
use super::super::topics::Listing;
use super::super::{KafkaLog, settings};
use super::reading::{Read, Reading};
use super::shared::{Command, Epoch, Item, PollerContext, Rebalance, Shared, give_up, take};
use super::start;
use crate::log::{ConsumerConfig, Error, Result, Start, Subscription, TopicPartition};

mod rebalance;

/// Longest time without a look at everything, should a wake-up get lost.
const PARK: Duration = Duration::from_secs(1);

/// How soon a step that failed for a passing reason is tried again.
const AGAIN: Duration = Duration::from_millis(200);

/// A poller that runs.
pub(super) struct Started {
    pub(super) client: Weak<BaseConsumer<PollerContext>>,
    pub(super) items: UnboundedReceiver<Item>,
    /// Resolves, with an error, when the thread has ended.
    pub(super) ended: oneshot::Receiver<()>,
}

/// Starts the thread; returns when its client is made.
pub(super) async fn start(log: &KafkaLog, config: ConsumerConfig, shared: Arc<Shared>) -> Result<Started> {
    let (made, making) = oneshot::channel();
    let (sender, items) = unbounded_channel();
    let (ends, ended) = oneshot::channel();
    let log = log.clone();
    let run = move || {
        let _ends: oneshot::Sender<()> = ends;
        shared.poller_is(thread::current());
        match Poller::new(&log, config, shared, sender) {
            Ok(poller) => {
                // Nobody is left to hear of it when the call was cancelled; the loop sees that it is closed.
                if made.send(Ok(Arc::downgrade(&poller.client))).is_ok() {
                    poller.run();
                } else {
                    poller.leave();
                }
            }
            Err(error) => drop(made.send(Err(error))),
        }
    };
    let spawned = thread::Builder::new().name("kafka-poller".to_owned()).spawn(run);
    spawned.map_err(|error| Error::Backend {
        operation: "starting a thread",
        target: "this machine".to_owned(),
        retryable: true,
        source: Arc::new(error),
    })?;
    let client = making.await.map_err(|_| Error::Closed { what: "consumer" })??;
    Ok(Started { client, items, ended })
}

struct Poller {
    client: Arc<BaseConsumer<PollerContext>>,
    shared: Arc<Shared>,
    config: ConsumerConfig,
    /// For calls of librdkafka that wait for the broker.
    timeout: Duration,
    items: UnboundedSender<Item>,
    /// The main queue got an entry.
    main_ready: Arc<AtomicBool>,
    readings: Vec<Reading>,
    /// Which partition is first in the next round.
    turn: usize,
    epoch: Epoch,
    /// A rebalance that librdkafka awaits the answer of.
    pending: Option<Pending>,
    /// The topics as of the first look: where `Start::Latest` holds.
    first_seen: Option<Listing>,
    /// Whether the group surely has its place in those topics.
    has_begun: bool,
    /// Since when another member is awaited that says where the group begins.
    waits_since: Option<Instant>,
    subscribed: Listing,
    /// The caller does not call, so the group was left.
    away: bool,
    not_before: Instant,
}

impl Poller {
    fn new(log: &KafkaLog, config: ConsumerConfig, shared: Arc<Shared>, items: UnboundedSender<Item>) -> Result<Self> {
        let context = PollerContext {
            contact: log.contact.clone(),
            statistics: log.config.statistics.clone(),
            shared: shared.clone(),
            rebalances: parking_lot::Mutex::default(),
            ending: AtomicBool::new(false),
            served: Served::default(),
        };
        let mut client = client(log, &config, context)?;
        let (main_ready, thread) = (Arc::new(AtomicBool::new(true)), thread::current());
        let ready = main_ready.clone();
        client.set_nonempty_callback(move || {
            ready.store(true, Ordering::Release);
            thread.unpark();
        });
        Ok(Self {
            client: Arc::new(client),
            shared,
            config,
            timeout: log.config.timeout,
            items,
            main_ready,
            readings: Vec::new(),
            turn: 0,
            epoch: 0,
            // Outside groups the assignment is not librdkafka's to give.
            pending: None,
            first_seen: None,
            has_begun: false,
            waits_since: None,
            subscribed: Listing::new(),
            away: false,
            not_before: Instant::now(),
        })
    }

    fn run(mut self) {
        if matches!(self.config.subscription, Subscription::Assigned(_)) {
            self.pending = Some(Pending::Assign(TopicPartitionList::new()));
        }
        while !self.shared.is_closed() {
            self.serve_commands();
            self.serve_main_queue();
            self.serve_rebalance();
            self.serve_gone_places();
            self.watch_caller();
            if !self.read() {
                thread::park_timeout(if self.is_owed_something() { AGAIN } else { PARK });
            }
        }
        self.leave();
    }

    /// Leaves the group and ends the client.
    fn leave(mut self) {
        // The queues keep the client alive, and must not outlive its assignment.
        self.readings.clear();
        self.client.context().ending.store(true, Ordering::Release);
        let noted: Vec<_> = self.client.context().rebalances.lock().drain(..).collect();
        let answer = match self.pending.take() {
            Some(Pending::Assign(_)) if self.in_group() => take(&self.client, &TopicPartitionList::new()),
            Some(Pending::Assign(_)) | None => Ok(()),
            Some(Pending::Revoke { partitions, .. }) => give_up(&self.client, &partitions),
        };
        let answers = noted.iter().map(|rebalance| match rebalance {
            Rebalance::Assign(_) => take(&self.client, &TopicPartitionList::new()),
            Rebalance::Revoke(partitions) => give_up(&self.client, partitions),
        });
        for error in std::iter::once(answer).chain(answers).filter_map(Result::err) {
            tracing::debug!(%error, "leaving a group");
        }
        // Whoever waits for an answer hears that there will be none.
        while self.shared.next_command().is_some() {}
        // A commit may still hold the client for a moment; who drops it last ends it.
        let mut client = self.client;
        let end = Instant::now() + self.timeout;
        while let Err(shared) = Arc::try_unwrap(client) {
            client = shared;
            if Instant::now() > end {
                break;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether there is something to be tried again soon.
    fn is_owed_something(&self) -> bool {
        self.pending.is_some() || self.readings.iter().any(|reading| reading.gone)
    }

    fn in_group(&self) -> bool {
        matches!(self.config.subscription, Subscription::Group { .. })
    }

    fn attempt<'a>(&'a self, operation: &'static str) -> Attempt<'a> {
        Attempt::new(operation, &self.client.context().contact, self.timeout)
    }

    fn send(&self, item: Item) {
        if matches!(item, Item::Records { .. }) {
            self.shared.batch_sent();
        }
        // The handle may be gone; the loop sees that it is closed.
        let _ = self.items.send(item);
    }

    fn next_epoch(&mut self) -> Epoch {
        self.epoch += 1;
        self.epoch
    }

    fn reading(&mut self, source: &TopicPartition) -> Option<&mut Reading> {
        self.readings.iter_mut().find(|reading| reading.source == *source)
    }

    // Commands.

    fn serve_commands(&mut self) {
        while let Some(command) = self.shared.next_command() {
            match command {
                Command::Tell(error) => self.send(Item::Failed(error)),
                Command::Subscribe(topics) => {
                    self.first_seen.get_or_insert_with(|| topics.clone());
                    self.subscribed = topics;
                    if !self.away {
                        self.subscribe();
                    }
                }
                Command::GiveUp(error) => self.send(Item::Failed(error)),
                Command::Seek { partition, to, done } => {
                    let sought = self.seek(&partition, to);
                    // The caller may have given up.
                    let _ = done.send(sought);
                }
            }
        }
    }

    fn subscribe(&self) {
        if self.subscribed.is_empty() {
            // Not even a member: a topic that is awaited does not need one.
            self.client.unsubscribe();
            return;
        }
        let names: Vec<&str> = self.subscribed.keys().map(AsRef::as_ref).collect();
        if let Err(error) = self.client.subscribe(&names) {
            self.send(Item::Failed(self.attempt("subscribing").failed(error)));
        }
    }

    fn seek(&mut self, source: &TopicPartition, to: Start) -> Result<()> {
        if self.reading(source).is_none() {
            return Err(Error::Misuse { operation: "seek", reason: "the partition is not owned" });
        }
        let place = start::resolve(&self.client, source, to, self.timeout);
        let place = place.map_err(|error| self.attempt("seeking").failed_on(&source.topic, error))?;
        self.go_to(source, place)?;
        let epoch = self.next_epoch();
        if let Some(reading) = self.reading(source) {
            reading.epoch = epoch;
        }
        self.shared.sought(source, epoch, place);
        Ok(())
    }

    /// Tells librdkafka to read on elsewhere.
    fn go_to(&mut self, source: &TopicPartition, place: i64) -> Result<()> {
        let end = Instant::now() + self.timeout;
        let offset = Offset::Offset(place);
        // Right after an assignment the partition is not being fetched yet, and refuses.
        while let Err(error) = self.client.seek(source.topic.as_str(), source.partition, offset, self.timeout) {
            if Instant::now() > end || self.shared.is_closed() {
                return Err(self.attempt("seeking").failed(error));
            }
            thread::sleep(Duration::from_millis(5));
        }
        if let Some(reading) = self.reading(source) {
            reading.go_on_at(place);
        }
        Ok(())
    }

    /// Assigns a partition anew at another place: librdkafka has stopped reading
    /// it, and refuses to seek then.
    fn restart(&mut self, source: &TopicPartition, place: i64) -> Result<()> {
        if let Some(reading) = self.reading(source) {
            reading.go_on_at(place);
        }
        let one = |source: &TopicPartition, place: i64| {
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(source.topic.as_str(), source.partition, Offset::Offset(place)).map(|()| list)
        };
        let again = match self.client.rebalance_protocol() {
            RebalanceProtocol::Eager => {
                let mut all = TopicPartitionList::new();
                let added = self.readings.iter().try_for_each(|reading| {
                    let TopicPartition { topic, partition } = &reading.source;
                    all.add_partition_offset(topic.as_str(), *partition, Offset::Offset(reading.expected))
                });
                added.and_then(|()| self.client.assign(&all))
            }
            RebalanceProtocol::Cooperative | RebalanceProtocol::None => one(source, place).and_then(|list| {
                self.client.incremental_unassign(&list).and_then(|()| self.client.incremental_assign(&list))
            }),
        };
        if again.is_err()
            && let Some(reading) = self.reading(source)
        {
            reading.gone = true;
        }
        again.map_err(|error| self.attempt("reading on").failed(error))
    }

    // Rebalances and errors.

    fn serve_main_queue(&mut self) {
        if self.main_ready.swap(false, Ordering::AcqRel) {
            // Every partition has a queue of its own before it is fetched, so nothing
            // but events comes here.
            self.client.context().served.drain(&self.client, |error| self.trouble(None, error));
        } else if let Some(Err(error)) = self.client.poll(Duration::ZERO)
            && !matches!(error, KafkaError::PartitionEOF(_))
        {
            self.trouble(None, error);
        }
    }

    fn trouble(&self, topic: Option<&Topic>, error: KafkaError) {
        let fatal = matches!(error, KafkaError::MessageConsumptionFatal(_));
        let forbidden = matches!(
            error.rdkafka_error_code(),
            Some(
                Code::TopicAuthorizationFailed
                    | Code::GroupAuthorizationFailed
                    | Code::Authentication
                    | Code::SaslAuthenticationFailed
                    | Code::UnsupportedVersion
                    | Code::UnsupportedFeature
            )
        );
        if fatal || forbidden {
            let (who, group) = (self.shared.who(), self.shared.group().unwrap_or_default());
            let attempt = self.attempt("reading").by(&who).of_group(group).needs("Read");
            self.send(Item::Failed(match topic {
                Some(topic) => attempt.failed_on(topic, error),
                None => attempt.failed(error),
            }));
        } else if error.rdkafka_error_code().is_none_or(|code| !is_passing(code)) {
            tracing::debug!(%error, "kafka consumer");
        }
    }

    /// Leaves the group when nobody calls `next`, and comes back when somebody does.
    fn watch_caller(&mut self) {
        if !self.in_group() {
            return;
        }
        let away = self.shared.caller_is_away();
        if away && !self.away {
            tracing::warn!(who = %self.shared.who(), "left its group: it does not ask for records");
            let lost: Vec<_> = self.readings.drain(..).map(|reading| reading.source).collect();
            self.shared.disown(&lost);
            if !lost.is_empty() {
                self.send(Item::Lost(lost));
            }
            self.client.unsubscribe();
        } else if !away && self.away {
            self.subscribe();
        }
        self.away = away;
    }

    // Records.

    /// Reads a batch of each partition that has something; false when none had.
    fn read(&mut self) -> bool {
        let count = self.readings.len();
        let mut any = false;
        for place in 0..count {
            if !self.shared.has_room() {
                break;
            }
            let index = (self.turn + place) % count;
            let Some(reading) = self.readings.get_mut(index) else { continue };
            if reading.gone || self.shared.is_paused(&reading.source) || !reading.is_ready() {
                continue;
            }
            let read = reading.read(&self.config, |item| {
                if matches!(item, Item::Records { .. }) {
                    self.shared.batch_sent();
                }
                let _ = self.items.send(item);
            });
            any = true;
            match read {
                Read::Empty | Read::More => {}
                Read::End => self.end_of(index),
                Read::Trouble(error) => {
                    let topic = self.readings.get(index).map(|reading| reading.source.topic.clone());
                    self.trouble(topic.as_ref(), error);
                }
            }
        }
        self.turn = self.turn.wrapping_add(1);
        any
    }

    /// The end of a partition came out of its queue.
    fn end_of(&mut self, index: usize) {
        let positions = self.client.position();
        let Some(reading) = self.readings.get_mut(index) else { return };
        let source = reading.source.clone();
        // It counts control records, which are never handed out.
        if let Ok(positions) = positions
            && let Some(found) = positions.find_partition(source.topic.as_str(), source.partition)
            && let Offset::Offset(position) = found.offset()
        {
            reading.expected = reading.expected.max(position);
        }
        let item = Item::End { epoch: reading.epoch, source, position: reading.expected };
        self.send(item);
    }

    /// Goes on at the first record still there where the place to go on is gone.
    fn serve_gone_places(&mut self) {
        if Instant::now() < self.not_before {
            return;
        }
        let gone = self.readings.iter().filter(|reading| reading.gone);
        let gone: Vec<_> = gone.map(|reading| (reading.source.clone(), reading.epoch, reading.expected)).collect();
        for (source, epoch, wanted) in gone {
            let resumed = start::resolve(&self.client, &source, Start::Earliest, self.timeout)
                .map_err(|error| self.attempt("asking where to go on").failed(error))
                .and_then(|place| self.restart(&source, place).map(|()| place));
            match resumed {
                Ok(resumed_at) => self.send(Item::OffsetsGone { epoch, source, wanted, resumed_at }),
                Err(error) => {
                    tracing::debug!(%error, %source, "going on where records are");
                    self.not_before = Instant::now() + AGAIN;
                }
            }
        }
    }
}

fn client(log: &KafkaLog, config: &ConsumerConfig, context: PollerContext) -> Result<BaseConsumer<PollerContext>> {
    let (group, member) = match &config.subscription {
        Subscription::Group { group, .. } => (group.clone(), true),
        // librdkafka assigns only within a group; this one is never joined or committed to.
        Subscription::Assigned(_) => (format!("pipedoc.alone.{}", uuid::Uuid::new_v4()), false),
    };
    let asked = settings::consumer(&log.config, config, &group, member);
    asked.create_with_context(context).map_err(not_made(&asked))
}
