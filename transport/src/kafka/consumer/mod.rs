//! The consumer: one thread that polls, and a handle that hands out.
//!
//! ```text
//!            commands (seek, subscribe), unpark                 librdkafka
//!  handle ───────────────────────────────────▶ poller thread ◀── main queue: rebalances, errors
//!    ▲                                            │    ◀── one queue per partition: records, ends
//!    └────────── items, in order ◀────────────────┘
//! ```
//!
//! - The poller ([`poller`]) alone reads queues. It stops reading when enough
//!   batches are on their way or the partition is paused; what librdkafka has
//!   prefetched stays there. It serves rebalances all the while.
//! - The handle turns items into events. An assignment of a partition, and each
//!   seek, has an epoch of its own; items of an older one are dropped.
//! - Commits go from the caller's side straight into librdkafka, which is safe
//!   from any thread, also while a revocation is waited for.
//! - Which topics a pattern means is looked up by a task ([`lookup`]).

mod batch;
mod lookup;
mod poller;
mod reading;
mod shared;
mod start;
mod vigil;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pipedoc_model::kafka::Client;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::RDKafkaErrorCode as Code;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;

pub(super) use self::shared::Membership;
use self::shared::{Command, Item, PollerContext, Shared};
use super::failure::Attempt;
use super::{KafkaLog, blocking, groups, settings};
use crate::log::{
    Commit, Consumer, ConsumerConfig, Error, Event, GroupMetadata, Result, Start, Subscription, TopicPartition,
};

/// How long a seek may take.
const SEEK_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) struct KafkaConsumer {
    log: KafkaLog,
    shared: Arc<Shared>,
    /// The poller's client; gone when the poller has ended.
    client: Weak<BaseConsumer<PollerContext>>,
    inbox: tokio::sync::Mutex<Inbox>,
    lookup: Option<tokio::task::JoinHandle<()>>,
    ended: Mutex<Option<oneshot::Receiver<()>>>,
}

/// What is on its way to the caller.
struct Inbox {
    items: UnboundedReceiver<Item>,
    /// Items of paused partitions.
    held: HashMap<TopicPartition, VecDeque<Item>>,
}

impl KafkaConsumer {
    pub(super) async fn new(log: &KafkaLog, mut config: ConsumerConfig) -> Result<Self> {
        config.settings = log.config.settings(Client::Consumer, &config.settings)?;
        let config = config.tuned();
        if let Subscription::Assigned(partitions) = &config.subscription {
            check_partitions(log, partitions).await?;
        }
        let shared =
            Arc::new(Shared::new(&config, settings::session_timeout(&config), settings::longest_fetch(&config)));
        let started = poller::start(log, config.clone(), shared.clone()).await?;
        let lookup = match config.subscription {
            Subscription::Group { topics, patterns, .. } => {
                let wanted = lookup::Wanted::new(topics, &patterns)?;
                let patience = log.config.patience;
                Some(tokio::spawn(lookup::run(log.topics.clone(), wanted, shared.clone(), patience)))
            }
            Subscription::Assigned(_) => None,
        };
        Ok(Self {
            log: log.clone(),
            shared,
            client: started.client,
            inbox: tokio::sync::Mutex::new(Inbox { items: started.items, held: HashMap::new() }),
            lookup,
            ended: Mutex::new(Some(started.ended)),
        })
    }

    fn stop(&self) {
        if let Some(lookup) = &self.lookup {
            lookup.abort();
        }
        self.shared.close();
    }
}

#[async_trait]
impl Consumer for KafkaConsumer {
    async fn next(&self) -> Result<Event> {
        let mut inbox = self.inbox.lock().await;
        let _here = self.shared.caller_is_here();
        loop {
            if self.shared.is_closed() {
                return Err(Error::Closed { what: "consumer" });
            }
            if let Some(event) = inbox.resumed(&self.shared) {
                return Ok(event);
            }
            // Both branches may be cancelled without a loss.
            let item = tokio::select! {
                item = inbox.items.recv() => item,
                () = self.shared.resumed.notified() => continue,
            };
            match item {
                None => return Err(Error::Closed { what: "consumer" }),
                Some(Item::Failed(error)) => return Err(error),
                Some(item) => {
                    if let Some(event) = inbox.take(item, &self.shared) {
                        return Ok(event);
                    }
                }
            }
        }
    }

    async fn commit(&self, commits: Vec<Commit>) -> Result<()> {
        if self.lookup.is_none() {
            return Err(Error::Misuse { operation: "commit", reason: "the consumer is in no group" });
        }
        if commits.is_empty() {
            return Ok(());
        }
        let offsets = groups::commit_list(&commits)?;
        self.shared.check_owned(&commits)?;
        let client = self.client.upgrade().ok_or(Error::Closed { what: "consumer" })?;
        let (contact, who, limit) = (self.log.contact.clone(), self.shared.who(), self.shared.session_timeout);
        let committed = blocking(move || {
            let attempt = Attempt::new("committing offsets", &contact, limit).by(&who);
            let end = std::time::Instant::now() + limit;
            loop {
                match client.commit(&offsets, CommitMode::Sync) {
                    Ok(()) => return Ok(()),
                    // Passes as soon as the members have joined anew.
                    Err(error)
                        if error.rdkafka_error_code() == Some(Code::RebalanceInProgress)
                            && std::time::Instant::now() < end =>
                    {
                        std::thread::sleep(Duration::from_millis(50));
                    }
                    Err(error) => return Err(attempt.failed(error)),
                }
            }
        })
        .await;
        self.shared.vigil.committed(committed.is_ok());
        committed
    }

    fn pause(&self, partitions: &[TopicPartition]) {
        self.shared.pause(partitions);
    }

    fn resume(&self, partitions: &[TopicPartition]) {
        self.shared.resume(partitions);
    }

    async fn seek(&self, partition: &TopicPartition, to: Start) -> Result<()> {
        let (done, answer) = oneshot::channel();
        self.shared.command(Command::Seek { partition: partition.clone(), to, done });
        match tokio::time::timeout(SEEK_TIMEOUT, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::Closed { what: "consumer" }),
            Err(_) => Err(Attempt::new("seeking", &self.log.contact, SEEK_TIMEOUT).timed_out()),
        }
    }

    fn positions(&self) -> BTreeMap<TopicPartition, i64> {
        self.shared.positions()
    }

    fn known_ends(&self) -> BTreeMap<TopicPartition, i64> {
        self.shared.known_ends()
    }

    fn group_metadata(&self) -> Option<GroupMetadata> {
        if self.lookup.is_none() || !self.shared.was_assigned() {
            return None;
        }
        let metadata = self.client.upgrade()?.group_metadata()?;
        Some(GroupMetadata(Arc::new(Arc::new(Membership { metadata, shared: self.shared.clone() }))))
    }

    async fn close(&self) -> Result<()> {
        self.stop();
        let ended = self.ended.lock().take();
        if let Some(ended) = ended {
            // An error means that the poller has ended, which is what is waited for.
            let _ = ended.await;
        }
        Ok(())
    }
}

impl Drop for KafkaConsumer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Inbox {
    /// The next event of a partition that was paused and is not any more.
    fn resumed(&mut self, shared: &Shared) -> Option<Event> {
        while let Some(source) = self.held.keys().find(|source| !shared.is_paused(source)).cloned() {
            while let Some(item) = self.held.get_mut(&source).and_then(VecDeque::pop_front) {
                if let Some(event) = shared.hand_out(item) {
                    return Some(event);
                }
            }
            self.held.remove(&source);
        }
        None
    }

    /// The event of an item; `None` when it is stale or has to wait.
    fn take(&mut self, item: Item, shared: &Shared) -> Option<Event> {
        if matches!(item, Item::Records { .. }) {
            shared.batch_taken();
        }
        match item.source() {
            // Behind those that were held, also when the partition was resumed this moment.
            Some(source) if shared.is_paused(source) || self.held.contains_key(source) => {
                self.held.entry(source.clone()).or_default().push_back(item);
                None
            }
            _ => {
                if let Some(gone) = item.gone() {
                    self.held.retain(|source, _| !gone.contains(source));
                }
                shared.hand_out(item)
            }
        }
    }
}

/// All partitions of an assignment must exist.
async fn check_partitions(log: &KafkaLog, partitions: &[(TopicPartition, Start)]) -> Result<()> {
    for (source, _) in partitions {
        match log.topics.partitions(&source.topic).await? {
            None => return Err(Error::UnknownTopic { topic: source.topic.clone() }),
            Some(count) if source.partition < 0 || source.partition >= count => {
                return Err(Error::UnknownPartition { partition: source.clone() });
            }
            Some(_) => {}
        }
    }
    Ok(())
}
