//! The reading side of the embedded logs: one consumer, alone or in a group.
//!
//! Rebalances happen only inside `next`, as on Kafka. What `next` awaits is kept
//! between calls, so a cancelled call loses nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::membership::{InGroup, Shared, State, watch_polls};
use super::owned::{OwnedPartitions, Wanted, place};
use super::patterns::Selection;
use super::{
    Backend, Fetched, Joining, Limits, METADATA_LIMIT, MemberOffsets, MemberSnapshot, OwnedCommit, SESSION_TIMEOUT,
};
use crate::error::{Error, Result};
use crate::log::{Commit, Consumer, ConsumerConfig, Ends, Event, GroupMetadata, Start, Subscription, TopicPartition};

/// How often patterns are looked up even if nobody told of new topics.
const LOOK_UP: Duration = Duration::from_secs(5);

/// A consumer over some backend.
pub(crate) struct Reader<B: Backend> {
    shared: Arc<Shared<B>>,
    underway: tokio::sync::Mutex<Underway>,
}

/// What `next` waits for; kept between its calls.
#[derive(Default)]
struct Underway {
    reads: FuturesUnordered<BoxFuture<'static, (Wanted, Result<Fetched>)>>,
    /// Work for the group. With many partitions it takes longer than an impatient
    /// caller of `next` waits, and must come to its end all the same.
    attending: Option<tokio::task::JoinHandle<Result<()>>>,
}

impl<B: Backend> Reader<B> {
    /// Makes a consumer; a group is joined with the first call of `next`.
    pub(crate) async fn open(backend: Arc<B>, config: ConsumerConfig) -> Result<Self> {
        let (group, assigned) = match config.subscription {
            Subscription::Assigned(assigned) => (None, assigned),
            Subscription::Group { group, topics, patterns, start } => {
                let joining = Joining {
                    group,
                    client_id: config.client_id.clone(),
                    session_timeout: config.session_timeout.unwrap_or(SESSION_TIMEOUT),
                    from_ends: start == Start::Latest,
                };
                (Some(InGroup { joining, selection: Selection::new(&topics, &patterns), start }), Vec::new())
            }
        };
        let ear = backend.hub().listen(group.as_ref().map(|group| group.joining.group.as_str()));
        let mut state = State {
            member: None,
            topics: BTreeMap::new(),
            owned: OwnedPartitions::default(),
            events: VecDeque::new(),
            epochs: VecDeque::new(),
            told: BTreeMap::new(),
            assigned_once: false,
            polling: false,
            polled_at: Instant::now(),
        };
        if group.is_none() {
            // Interest comes before the ends are read, so no growth is missed.
            ear.interest(assigned.iter().map(|(source, _)| source.clone()).collect());
            let mut told = Vec::new();
            for (source, start) in assigned {
                let ends = backend.ends_of(&source).await?;
                told.push(state.owned.assign(source, start, ends));
            }
            state.events.push_back(Event::Assigned(told));
        }
        let shared = Arc::new(Shared {
            backend,
            group,
            client_id: config.client_id,
            limits: Limits { records: config.max_records.max(1), bytes: config.max_bytes },
            max_poll_interval: config.max_poll_interval,
            ear,
            state: Mutex::new(state),
            closed: CancellationToken::new(),
            runtime: tokio::runtime::Handle::current(),
        });
        if shared.group.is_some() {
            tokio::spawn(watch_polls(Arc::downgrade(&shared), shared.closed.clone()));
        }
        Ok(Self { shared, underway: tokio::sync::Mutex::default() })
    }
}

/// Says that `next` is running.
struct Polling<'a>(&'a Mutex<State>);

impl<'a> Polling<'a> {
    fn begin(state: &'a Mutex<State>) -> Self {
        state.lock().polling = true;
        Self(state)
    }
}

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.polling = false;
        state.polled_at = Instant::now();
    }
}

#[async_trait]
impl<B: Backend> Consumer for Reader<B> {
    async fn next(&self) -> Result<Event> {
        let mut underway = self.underway.lock().await;
        let Underway { reads, attending } = &mut *underway;
        let shared = &self.shared;
        let _polling = Polling::begin(&shared.state);
        loop {
            if shared.closed.is_cancelled() {
                return Err(Error::Closed { what: "consumer" });
            }
            if attending.is_none() {
                *attending = shared.hear(shared.ear.take());
            }
            if let Some(task) = attending {
                let attended = tokio::select! {
                    attended = task => attended,
                    () = shared.closed.cancelled() => continue,
                };
                *attending = None;
                attended.map_err(|_| Error::Closed { what: "log" })??;
            }
            {
                let mut state = shared.state.lock();
                let event = state.pop().or_else(|| state.owned.hand_out());
                for wanted in state.owned.wanted() {
                    let read = shared.backend.read(&wanted.source, wanted.from, shared.limits);
                    reads.push(Box::pin(async move { (wanted, read.await) }));
                }
                if let Some(event) = event {
                    return Ok(event);
                }
            }
            let look_up = shared.group.as_ref().is_some_and(|group| group.selection.has_patterns());
            tokio::select! {
                Some((wanted, read)) = reads.next(), if !reads.is_empty() => match read {
                    Ok(fetched) => {
                        let mut state = shared.state.lock();
                        if let Some(gone) = state.owned.read(&wanted, fetched) {
                            state.events.push_back(gone);
                        }
                    }
                    Err(Error::UnknownTopic { .. } | Error::UnknownPartition { .. }) if shared.group.is_some() => {
                        // The topic was removed; the group will say so.
                        shared.ear.hear_topics();
                        shared.ear.hear_group();
                    }
                    Err(error) => {
                        shared.state.lock().owned.read_failed(&wanted);
                        return Err(error);
                    }
                },
                () = shared.ear.changed() => {}
                () = shared.closed.cancelled() => {}
                () = tokio::time::sleep(LOOK_UP), if look_up => shared.ear.hear_topics(),
            }
        }
    }

    async fn commit(&self, commits: Vec<Commit>) -> Result<()> {
        let shared = &self.shared;
        let Some(group) = &shared.group else {
            return Err(Error::Misuse { operation: "commit", reason: "the consumer is in no group" });
        };
        if shared.closed.is_cancelled() {
            return Err(Error::Closed { what: "consumer" });
        }
        if commits.is_empty() {
            return Ok(());
        }
        check_metadata(&commits)?;
        let offsets = {
            let state = shared.state.lock();
            let member = state.member.ok_or_else(|| shared.fenced())?;
            let owned = commits.into_iter().map(|commit| {
                let epoch = *state.told.get(&commit.source).ok_or_else(|| shared.fenced())?;
                Ok(OwnedCommit { commit, epoch })
            });
            MemberOffsets { group: group.joining.group.clone(), member, commits: owned.collect::<Result<_>>()? }
        };
        shared.backend.commit(offsets).await.map_err(|error| match error {
            Error::Fenced { .. } => {
                shared.ear.hear_group();
                shared.fenced()
            }
            other => other,
        })
    }

    fn pause(&self, partitions: &[TopicPartition]) {
        self.shared.state.lock().owned.pause(partitions, true);
    }

    fn resume(&self, partitions: &[TopicPartition]) {
        self.shared.state.lock().owned.pause(partitions, false);
        self.shared.ear.wake();
    }

    async fn seek(&self, partition: &TopicPartition, to: Start) -> Result<()> {
        let shared = &self.shared;
        let to = match to {
            Start::At(offset) => offset,
            Start::Earliest | Start::Latest => {
                let ends: Ends = shared.backend.ends_of(partition).await?;
                place(to, ends)
            }
        };
        let owned = shared.state.lock().owned.seek(partition, to);
        if !owned {
            return Err(Error::Misuse { operation: "seek", reason: "the partition is not owned" });
        }
        shared.ear.wake();
        Ok(())
    }

    fn positions(&self) -> BTreeMap<TopicPartition, i64> {
        self.shared.state.lock().owned.positions()
    }

    fn known_ends(&self) -> BTreeMap<TopicPartition, i64> {
        self.shared.state.lock().owned.ends()
    }

    fn group_metadata(&self) -> Option<GroupMetadata> {
        let group = self.shared.group.as_ref()?;
        let state = self.shared.state.lock();
        let member = state.member.filter(|_| state.assigned_once)?;
        let snapshot = MemberSnapshot { group: group.joining.group.clone(), member, epochs: state.told.clone() };
        Some(GroupMetadata(Arc::new(snapshot)))
    }

    async fn close(&self) -> Result<()> {
        self.shared.closed.cancel();
        let member = {
            let mut state = self.shared.state.lock();
            let member = state.member.take();
            state.owned.clear();
            state.events.clear();
            state.epochs.clear();
            state.told.clear();
            member
        };
        match (&self.shared.group, member) {
            (Some(group), Some(member)) => self.shared.backend.leave(&group.joining.group, member).await,
            _ => Ok(()),
        }
    }
}

impl<B: Backend> Drop for Reader<B> {
    fn drop(&mut self) {
        self.shared.closed.cancel();
        let member = self.shared.state.lock().member.take();
        if let Some(member) = member {
            let shared = self.shared.clone();
            self.shared.runtime.spawn(async move { shared.leave(member).await });
        }
    }
}

/// Refuses metadata that is too long.
pub(crate) fn check_metadata(commits: &[Commit]) -> Result<()> {
    match commits.iter().find(|commit| commit.metadata.len() > METADATA_LIMIT) {
        Some(commit) => Err(Error::MetadataTooLarge { partition: commit.source.clone(), size: commit.metadata.len() }),
        None => Ok(()),
    }
}
