//! The reading side of the embedded logs: one consumer, alone or in a group.
//!
//! Rebalances happen only inside `next`, as on Kafka. What `next` awaits is kept
//! between calls, so a cancelled call loses nothing.
//!
//! ```text
//!   Joining ──joined──▶ Member ──session expired, polled too late──▶ Joining
//!      └───────────────── close ─────────────┴──────▶ Closed
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use pipedoc_model::names::Topic;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::hub::{Ear, Heard};
use super::owned::{OwnedPartitions, Wanted, place, tell};
use super::patterns::Selection;
use super::{
    Backend, Fetched, Joining, Limits, METADATA_LIMIT, MemberId, MemberOffsets, MemberSnapshot, OwnedCommit,
    SESSION_TIMEOUT,
};
use crate::error::{Error, Result};
use crate::log::{
    Commit, Consumer, ConsumerConfig, Ends, Event, GroupMetadata, Revocation, Start, Subscription, TopicPartition,
};

/// How often patterns are looked up even if nobody told of new topics.
const LOOK_UP: Duration = Duration::from_secs(5);
/// How long a failed release waits before it is tried again.
const RETRY: Duration = Duration::from_millis(200);

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

/// What a group's member is made of.
struct InGroup {
    joining: Joining,
    selection: Selection,
    start: Start,
}

struct Shared<B: Backend> {
    backend: Arc<B>,
    group: Option<InGroup>,
    client_id: String,
    limits: Limits,
    max_poll_interval: Duration,
    ear: Arc<Ear>,
    state: Mutex<State>,
    closed: CancellationToken,
    runtime: tokio::runtime::Handle,
}

struct State {
    member: Option<MemberId>,
    topics: BTreeMap<Topic, i32>,
    owned: OwnedPartitions,
    events: VecDeque<Event>,
    assigned_once: bool,
    /// Whether `next` is running, and when it last was.
    polling: bool,
    polled_at: Instant,
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

/// Makes a member leave whose `next` is not called any more.
async fn watch_polls<B: Backend>(shared: std::sync::Weak<Shared<B>>, closed: CancellationToken) {
    loop {
        let due = {
            let Some(shared) = shared.upgrade() else { return };
            let state = shared.state.lock();
            let since = if state.polling || state.member.is_none() { Instant::now() } else { state.polled_at };
            since + shared.max_poll_interval
        };
        tokio::select! {
            () = closed.cancelled() => return,
            () = tokio::time::sleep_until(due) => {}
        }
        let Some(shared) = shared.upgrade() else { return };
        let late = {
            let mut state = shared.state.lock();
            let late = !state.polling && state.polled_at.elapsed() >= shared.max_poll_interval;
            if late { shared.expel(&mut state) } else { None }
        };
        if let Some(member) = late {
            tracing::warn!(client = %shared.client_id, interval = ?shared.max_poll_interval, "left its group: not polled");
            shared.leave(member).await;
        }
    }
}

impl<B: Backend> Shared<B> {
    /// Ends the membership on this side; what was owned is told as lost.
    fn expel(&self, state: &mut State) -> Option<MemberId> {
        let member = state.member.take()?;
        state.topics.clear();
        let mut lost = state.owned.clear();
        // What was queued speaks of partitions that are gone. That they go must be
        // told all the same, or their reader would take them for its own for ever.
        for event in state.events.drain(..) {
            match event {
                Event::Lost(sources) => lost.extend(sources),
                Event::Revoked(revocation) => lost.extend(revocation.partitions.iter().cloned()),
                Event::Assigned(_) | Event::Records(_) | Event::EndOfPartition { .. } | Event::OffsetsGone { .. } => {}
            }
        }
        tell(&mut state.events, lost);
        self.ear.interest(BTreeSet::new());
        Some(member)
    }

    async fn leave(&self, member: MemberId) {
        let Some(group) = &self.group else { return };
        if let Err(error) = self.backend.leave(&group.joining.group, member).await {
            // The session's end frees the partitions all the same.
            tracing::warn!(client = %self.client_id, %error, "did not leave its group in order");
        }
    }

    /// Becomes a member if it is none.
    async fn join(&self, group: &InGroup) -> Result<()> {
        if self.state.lock().member.is_some() {
            return Ok(());
        }
        let present = self.backend.topic_sizes().await?;
        let topics = group.selection.resolve(present.keys());
        // A call cancelled after the backend took the member leaves one behind
        // that nobody polls; so joining runs to its end on a task of its own.
        let (backend, joining, wanted) = (self.backend.clone(), group.joining.clone(), topics.clone());
        let task = tokio::spawn(async move { backend.join(&joining, &wanted).await });
        let mut abandoned = Abandoned { shared: self, task: Some(task) };
        let joined = match abandoned.task.as_mut() {
            Some(task) => task.await,
            None => return Ok(()),
        };
        abandoned.task = None;
        let member = joined.map_err(|_| Error::Closed { what: "log" })??;
        let mut state = self.state.lock();
        if self.closed.is_cancelled() {
            drop(state);
            self.leave(member).await;
            return Err(Error::Closed { what: "consumer" });
        }
        state.member = Some(member);
        state.topics = sizes(&topics, &present);
        drop(state);
        self.ear.hear_group();
        Ok(())
    }

    /// Says again what is wanted, if topics came, grew or went.
    async fn resolve(&self, group: &InGroup) -> Result<()> {
        let present = self.backend.topic_sizes().await?;
        let topics = group.selection.resolve(present.keys());
        let now = sizes(&topics, &present);
        let (member, changed) = {
            let state = self.state.lock();
            (state.member, state.topics != now)
        };
        let Some(member) = member.filter(|_| changed) else { return Ok(()) };
        self.backend.subscribe(&group.joining.group, member, &topics).await?;
        self.state.lock().topics = now;
        self.ear.hear_group();
        Ok(())
    }

    /// Makes what is owned agree with the group.
    async fn sync(self: &Arc<Self>, group: &InGroup) -> Result<()> {
        let Some(member) = self.state.lock().member else { return Ok(()) };
        let grants = self.backend.grants(&group.joining.group, member).await?;
        let mut state = self.state.lock();
        if state.member != Some(member) {
            return Ok(());
        }
        let Some(grants) = grants else {
            tracing::warn!(client = %self.client_id, group = %group.joining.group, "its session expired; joining anew");
            self.expel(&mut state);
            // Joins at once: it may be long until somebody else changes the group.
            self.ear.hear_group();
            return Ok(());
        };
        let changes = state.owned.apply(grants, group.start);
        self.ear.interest(state.owned.sources());
        tell(&mut state.events, changes.lost);
        if !changes.revoked.is_empty() {
            let held: Vec<_> =
                changes.revoked.iter().map(|source| (source.clone(), state.owned.epoch(source).unwrap_or(0))).collect();
            let (revocation, released) = Revocation::new(changes.revoked);
            state.events.push_back(Event::Revoked(revocation));
            tokio::spawn(release(self.clone(), member, held, Some(released)));
        }
        if !changes.returned.is_empty() {
            tokio::spawn(release(self.clone(), member, changes.returned, None));
        }
        if !changes.assigned.is_empty() {
            state.assigned_once = true;
            state.events.push_back(Event::Assigned(changes.assigned));
        }
        Ok(())
    }

    /// Acts on what was heard; gives what takes time.
    fn hear(self: &Arc<Self>, heard: Heard) -> Option<tokio::task::JoinHandle<Result<()>>> {
        let is_member = {
            let mut state = self.state.lock();
            for (source, end) in &heard.ends {
                state.owned.grew(source, *end);
            }
            state.member.is_some()
        };
        self.group.as_ref()?;
        if is_member && !heard.topics && !heard.group && self.backend.session_is_fresh() {
            return None;
        }
        let shared = self.clone();
        Some(self.runtime.spawn(async move { shared.attend(heard).await }))
    }

    /// Acts on what was heard of the group. What could not be done is heard again.
    async fn attend(self: &Arc<Self>, heard: Heard) -> Result<()> {
        let Some(group) = &self.group else { return Ok(()) };
        let again = HearAgain { ear: &self.ear, topics: heard.topics, group: heard.group };
        self.join(group).await?;
        if heard.topics {
            self.resolve(group).await?;
        }
        if heard.group || !self.backend.session_is_fresh() {
            self.sync(group).await?;
        }
        std::mem::forget(again);
        Ok(())
    }

    fn fenced(&self) -> Error {
        let group = self.group.as_ref().map_or("", |group| group.joining.group.as_str());
        Error::Fenced { who: format!("member {} of group {group}", self.client_id) }
    }
}

/// Hears again what was not attended to: the call failed or was cancelled.
struct HearAgain<'a> {
    ear: &'a Ear,
    topics: bool,
    group: bool,
}

impl Drop for HearAgain<'_> {
    fn drop(&mut self) {
        if self.topics {
            self.ear.hear_topics();
        }
        if self.group {
            self.ear.hear_group();
        }
    }
}

/// A join whose caller went away: whoever comes out of it leaves again.
struct Abandoned<'a, B: Backend> {
    shared: &'a Shared<B>,
    task: Option<tokio::task::JoinHandle<Result<MemberId>>>,
}

impl<B: Backend> Drop for Abandoned<'_, B> {
    fn drop(&mut self) {
        let (Some(task), Some(group)) = (self.task.take(), &self.shared.group) else { return };
        let (backend, name) = (self.shared.backend.clone(), group.joining.group.clone());
        self.shared.runtime.spawn(async move {
            if let Ok(Ok(member)) = task.await {
                let _ = backend.leave(&name, member).await;
            }
        });
    }
}

fn sizes(topics: &BTreeSet<Topic>, present: &BTreeMap<Topic, i32>) -> BTreeMap<Topic, i32> {
    topics.iter().map(|topic| (topic.clone(), present.get(topic).copied().unwrap_or(0))).collect()
}

/// Gives partitions up once their revocation is dropped, or has been held for
/// longer than a session lasts.
async fn release<B: Backend>(
    shared: Arc<Shared<B>>,
    member: MemberId,
    held: Vec<(TopicPartition, i64)>,
    released: Option<tokio::sync::oneshot::Receiver<()>>,
) {
    let Some(group) = &shared.group else { return };
    if let Some(released) = released {
        tokio::select! {
            _ = released => {}
            () = tokio::time::sleep(group.joining.session_timeout) => {}
            () = shared.closed.cancelled() => {}
        }
    }
    while let Err(error) = shared.backend.release(&group.joining.group, member, &held).await {
        if !error.is_retryable() {
            tracing::warn!(client = %shared.client_id, %error, "did not release partitions in order");
            return;
        }
        tokio::time::sleep(RETRY).await;
    }
    let mut state = shared.state.lock();
    if state.member == Some(member) {
        state.owned.forget(&held);
        shared.ear.interest(state.owned.sources());
    }
    drop(state);
    shared.ear.hear_group();
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
                let event = state.events.pop_front().or_else(|| state.owned.hand_out());
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
                let epoch = state.owned.epoch(&commit.source).ok_or_else(|| shared.fenced())?;
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
        let snapshot = MemberSnapshot { group: group.joining.group.clone(), member, epochs: state.owned.epochs() };
        Some(GroupMetadata(Arc::new(snapshot)))
    }

    async fn close(&self) -> Result<()> {
        self.shared.closed.cancel();
        let member = {
            let mut state = self.shared.state.lock();
            let member = state.member.take();
            state.owned.clear();
            state.events.clear();
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
