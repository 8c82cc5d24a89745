//! How a step is doing, for whoever asks.
//!
//! Written by the step's tasks, read from anywhere; never waits for either.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use pipedoc_model::names::{StepId, Topic};
use pipedoc_transport::log::{self, Consumer, TopicPartition};
use tokio::sync::Notify;

use crate::error::Error;
use crate::event::{Event, Observer};

/// State of a step in one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepState {
    /// Opening: clients, models, state.
    Starting,
    /// At work.
    Running,
    /// At rest by an operator's wish; keeps membership and position.
    Paused,
    /// Finishing what is in flight.
    Stopping,
    /// Stopped.
    Stopped,
    /// Could not open, or has panicked; `last_error` says why. After a panic it
    /// begins again by itself, soon.
    Failed,
    /// A connector whose `run` has ended with everything settled.
    Completed,
}

/// How a step is doing in one instance.
#[derive(Debug, Clone)]
pub struct StepStatus {
    /// The step.
    pub id: StepId,
    /// What it is doing.
    pub state: StepState,
    /// Records between the committed position and the end as last heard of, over
    /// the partitions owned here.
    pub lag: i64,
    /// Deliveries open now.
    pub in_flight: u64,
    /// Deliveries done since the step came to this process.
    pub done: u64,
    /// Deliveries given up on (dead letters and skips) since then.
    pub failed: u64,
    /// What stands in the step's way, with its chain, until it is over; else the
    /// newest error of a document. Empty when there was none.
    pub last_error: String,
    /// When it was; for what stands in the way: since when.
    pub last_error_at: Option<SystemTime>,
    /// Partitions owned.
    pub partitions: Vec<TopicPartition>,
    /// Partitions owned that stand still, in their order.
    pub paused: Vec<PausedPartition>,
    /// Hash of the plan that it runs.
    pub hash: String,
    /// Whether the end of every owned partition was seen, nothing is open and all
    /// of it is committed. False while no partition is owned.
    pub drained: bool,
}

/// A partition that stands still until the step is resumed or begins anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PausedPartition {
    /// The partition; of a connector that of its state topic.
    pub partition: TopicPartition,
    /// Since when.
    pub since: SystemTime,
    /// Why.
    pub reason: PauseReason,
    /// The record that was given up on; none where the partition stands still for
    /// others, or is a connector's.
    pub offset: Option<i64>,
    /// The document of that record, or the one that a connector could not give;
    /// empty where the partition stands still for others.
    pub document: String,
    /// What went wrong, the whole chain.
    pub error: String,
}

/// Why a partition stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PauseReason {
    /// A record of it was given up on (`on_exhausted: PAUSE`, or too large for its dead
    /// letter topic).
    Exhausted,
    /// Too many deliveries of the step failed (`stop_at_failure_rate`).
    FailureRate,
}

/// What stands in a step's way until it is seen to be over.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Obstacle {
    /// It cannot be opened; over when it is.
    Opening,
    /// Its clients broke; over when new ones are heard of.
    Connections,
    /// Its log is not to be read; over with the next event.
    Reading,
    /// A topic that it reads is not there; over when it is read again.
    Awaited(Topic),
    /// Its offsets cannot be committed; over with the next commit.
    Committing,
}

impl Obstacle {
    /// The obstacle that an error of reading tells of.
    pub(crate) fn to_reading(error: &log::Error) -> Self {
        match error {
            log::Error::Awaited { topic } => Self::Awaited(topic.clone()),
            _ => Self::Reading,
        }
    }
}

/// Where a step's tasks write how it is doing.
pub(crate) struct Board {
    id: StepId,
    observer: Arc<dyn Observer>,
    done: AtomicU64,
    failed: AtomicU64,
    in_flight: AtomicU64,
    /// Whether something stands in the way: most looks find nothing.
    hindered: AtomicBool,
    face: Mutex<Face>,
    resumed: Notify,
}

struct Face {
    state: StepState,
    hash: String,
    last_error: String,
    last_error_at: Option<SystemTime>,
    /// In words, each with when it began.
    obstacles: BTreeMap<Obstacle, (String, SystemTime)>,
    /// Committed offset of each owned partition.
    partitions: BTreeMap<TopicPartition, i64>,
    drained: bool,
    paused: Vec<PausedPartition>,
    consumer: Option<Arc<dyn Consumer>>,
}

impl Board {
    pub(crate) fn new(id: StepId, observer: Arc<dyn Observer>, hash: String) -> Self {
        Self {
            id,
            observer,
            done: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            hindered: AtomicBool::new(false),
            face: Mutex::new(Face {
                state: StepState::Starting,
                hash,
                last_error: String::new(),
                last_error_at: None,
                obstacles: BTreeMap::new(),
                partitions: BTreeMap::new(),
                drained: false,
                paused: Vec::new(),
                consumer: None,
            }),
            resumed: Notify::new(),
        }
    }

    pub(crate) fn id(&self) -> &StepId {
        &self.id
    }

    pub(crate) fn set_state(&self, state: StepState) {
        let before = std::mem::replace(&mut self.face.lock().state, state);
        if before != state {
            // Also told outside of what is guarded against panics of observers.
            let tell = std::panic::AssertUnwindSafe(|| self.event(&Event::State(state)));
            if std::panic::catch_unwind(tell).is_err() {
                tracing::error!(step = %self.id, "an observer panicked");
            }
        }
    }

    /// Lets partitions go on that stand still.
    pub(crate) fn resume(&self) {
        self.resumed.notify_one();
    }

    /// Waits until partitions that stand still are to go on. Cancelling it loses
    /// nothing.
    pub(crate) async fn resumed(&self) {
        self.resumed.notified().await;
    }

    pub(crate) fn state(&self) -> StepState {
        self.face.lock().state
    }

    pub(crate) fn set_hash(&self, hash: String) {
        self.face.lock().hash = hash;
    }

    /// The client that knows the ends of the partitions.
    pub(crate) fn set_consumer(&self, consumer: Option<Arc<dyn Consumer>>) {
        let mut face = self.face.lock();
        if consumer.is_none() {
            face.partitions.clear();
            face.paused.clear();
            face.drained = false;
            // Those of the clients end with them.
            face.obstacles.retain(|obstacle, _| matches!(obstacle, Obstacle::Opening | Obstacle::Connections));
        }
        face.consumer = consumer;
    }

    pub(crate) fn progress(
        &self,
        in_flight: usize,
        drained: bool,
        partitions: impl Iterator<Item = (TopicPartition, i64)>,
        mut paused: Vec<PausedPartition>,
    ) {
        self.in_flight.store(in_flight as u64, Ordering::Relaxed);
        paused.sort_by(|a, b| a.partition.cmp(&b.partition));
        let mut face = self.face.lock();
        face.drained = drained;
        face.partitions = partitions.collect();
        face.paused = paused;
    }

    pub(crate) fn set_in_flight(&self, in_flight: usize) {
        self.in_flight.store(in_flight as u64, Ordering::Relaxed);
    }

    /// A delivery was done.
    pub(crate) fn done(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    /// Deliveries were done.
    pub(crate) fn done_many(&self, count: usize) {
        self.done.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Whether the observer wants to hear of each document.
    pub(crate) fn heeds_documents(&self) -> bool {
        self.observer.heeds_documents()
    }

    /// A delivery was given up on.
    pub(crate) fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Something went wrong with a document or the step: shown as its last error.
    pub(crate) fn error(&self, error: &str) {
        let mut face = self.face.lock();
        error.clone_into(&mut face.last_error);
        face.last_error_at = Some(SystemTime::now());
    }

    /// Something stands in the step's way: told, and shown until it is over.
    pub(crate) fn hindered(&self, by: Obstacle, error: &Error) {
        let words = error.to_string();
        self.note(by, words.clone());
        self.tell_of_storage(error);
        self.event(&Event::Error { error: words });
    }

    /// As [`hindered`](Self::hindered), for what is told in another way.
    pub(crate) fn note(&self, by: Obstacle, words: String) {
        let mut face = self.face.lock();
        let entry = face.obstacles.entry(by).or_insert_with(|| (String::new(), SystemTime::now()));
        entry.0 = words;
        self.hindered.store(true, Ordering::Release);
    }

    /// What is so is not in the way any more. Cheap when nothing is.
    pub(crate) fn is_over(&self, over: impl Fn(&Obstacle) -> bool) {
        if !self.hindered.load(Ordering::Acquire) {
            return;
        }
        let mut face = self.face.lock();
        face.obstacles.retain(|obstacle, _| !over(obstacle));
        self.hindered.store(!face.obstacles.is_empty(), Ordering::Release);
    }

    /// The log was heard of.
    pub(crate) fn heard(&self, event: &log::Event) {
        self.is_over(|obstacle| match (obstacle, event) {
            (Obstacle::Reading | Obstacle::Connections, _) => true,
            (Obstacle::Awaited(topic), log::Event::Assigned(assigned)) => {
                assigned.iter().any(|partition| partition.source.topic == *topic)
            }
            _ => false,
        });
    }

    /// Tells the observer.
    pub(crate) fn event(&self, event: &Event) {
        self.observer.event(&self.id, event);
    }

    /// An error that concerns no single document: shown and told.
    pub(crate) fn trouble(&self, error: &Error) {
        let words = error.to_string();
        self.error(&words);
        self.tell_of_storage(error);
        self.event(&Event::Error { error: words });
    }

    /// Tells of full storage or of a broken log, if that is what is wrong.
    pub(crate) fn tell_of_storage(&self, error: &Error) {
        if error.is_storage_full() {
            self.event(&Event::StorageFull { error: error.to_string() });
        } else if error.is_log_broken() {
            self.event(&Event::LogBroken { error: error.to_string() });
        }
    }

    pub(crate) fn status(&self) -> StepStatus {
        let face = self.face.lock();
        let ends = face.consumer.as_ref().map(|consumer| consumer.known_ends()).unwrap_or_default();
        let lag = face
            .partitions
            .iter()
            .filter_map(|(partition, committed)| ends.get(partition).map(|end| (end - committed).max(0)))
            .sum();
        // Why it has failed is the last thing that it had to say.
        let shown = face.obstacles.values().filter(|_| face.state != StepState::Failed);
        let newest = shown.max_by_key(|(_, since)| *since).cloned();
        let (last_error, last_error_at) = match newest {
            Some((words, since)) => (words, Some(since)),
            None => (face.last_error.clone(), face.last_error_at),
        };
        StepStatus {
            id: self.id.clone(),
            state: face.state,
            lag,
            in_flight: self.in_flight.load(Ordering::Relaxed),
            done: self.done.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            last_error,
            last_error_at,
            partitions: face.partitions.keys().cloned().collect(),
            paused: face.paused.clone(),
            hash: face.hash.clone(),
            drained: face.drained,
        }
    }
}
