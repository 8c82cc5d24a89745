//! A consumer's membership in its group: joining, agreeing with what the group
//! grants, giving partitions up, leaving. Rebalances become events here; handing
//! them out, and reading, is [`consumer`](super::consumer)'s.
//!
//! ```text
//!   Joining ──joined──▶ Member ──session expired, polled too late──▶ Joining
//!      └───────────────── close ─────────────┴──────▶ Closed
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use pipedoc_model::names::Topic;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::hub::{Ear, Heard};
use super::owned::{OwnedPartitions, tell};
use super::patterns::Selection;
use super::{Backend, Joining, Limits, MemberId};
use crate::error::{Error, Result};
use crate::log::{AssignedPartition, Event, Revocation, Start, TopicPartition};

/// How long a failed release waits before it is tried again.
const RETRY: Duration = Duration::from_millis(200);

/// What a group's member is made of.
pub(super) struct InGroup {
    pub(super) joining: Joining,
    pub(super) selection: Selection,
    pub(super) start: Start,
}

/// What a consumer's calls and tasks share.
pub(super) struct Shared<B: Backend> {
    pub(super) backend: Arc<B>,
    pub(super) group: Option<InGroup>,
    pub(super) client_id: String,
    pub(super) limits: Limits,
    pub(super) max_poll_interval: Duration,
    pub(super) ear: Arc<Ear>,
    pub(super) state: Mutex<State>,
    pub(super) closed: CancellationToken,
    pub(super) runtime: tokio::runtime::Handle,
}

/// What changes while a consumer lives.
pub(super) struct State {
    pub(super) member: Option<MemberId>,
    pub(super) topics: BTreeMap<Topic, i32>,
    pub(super) owned: OwnedPartitions,
    pub(super) events: VecDeque<Event>,
    /// Epochs of the partitions of each assignment among `events`.
    pub(super) epochs: VecDeque<Vec<(TopicPartition, i64)>>,
    /// Epochs of the partitions that were handed out: what a caller knows of. It may
    /// have a partition's events of another ownership still before it.
    pub(super) told: BTreeMap<TopicPartition, i64>,
    pub(super) assigned_once: bool,
    /// Whether `next` is running, and when it last was.
    pub(super) polling: bool,
    pub(super) polled_at: Instant,
}

impl State {
    /// The next event that waits, noted in what was told.
    pub(super) fn pop(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        match &event {
            Event::Assigned(_) => self.told.extend(self.epochs.pop_front().unwrap_or_default()),
            Event::Lost(sources) => self.told.retain(|source, _| !sources.contains(source)),
            Event::Records(_) | Event::EndOfPartition { .. } | Event::Revoked(_) | Event::OffsetsGone { .. } => {}
        }
        Some(event)
    }
}

/// Makes a member leave whose `next` is not called any more.
pub(super) async fn watch_polls<B: Backend>(shared: Weak<Shared<B>>, closed: CancellationToken) {
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
        state.epochs.clear();
        tell(&mut state.events, lost);
        self.ear.interest(BTreeSet::new());
        Some(member)
    }

    /// Leaves the group.
    pub(super) async fn leave(&self, member: MemberId) {
        let Some(group) = &self.group else { return };
        if let Err(error) = self.backend.leave(&group.joining.group, member).await {
            // The session's end frees the partitions all the same.
            tracing::warn!(client = %self.client_id, %error, "did not leave its group in order");
        }
    }

    /// Ends a membership that is not in order and joins anew: what it holds would
    /// be read by nobody.
    async fn start_over(&self, member: MemberId) {
        let expelled = {
            let mut state = self.state.lock();
            if state.member == Some(member) { self.expel(&mut state) } else { None }
        };
        if let Some(member) = expelled {
            self.leave(member).await;
            self.ear.hear_group();
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
            let epoch = |assigned: &AssignedPartition| {
                let source = assigned.source.clone();
                let epoch = state.owned.epoch(&source)?;
                Some((source, epoch))
            };
            let epochs = changes.assigned.iter().filter_map(epoch).collect();
            state.epochs.push_back(epochs);
            state.events.push_back(Event::Assigned(changes.assigned));
        }
        Ok(())
    }

    /// Acts on what was heard; gives what takes time.
    pub(super) fn hear(self: &Arc<Self>, heard: Heard) -> Option<tokio::task::JoinHandle<Result<()>>> {
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

    /// What a call gets for partitions that are not this member's.
    pub(super) fn fenced(&self) -> Error {
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
            tracing::warn!(client = %shared.client_id, %error, "did not release partitions; leaves its group");
            shared.start_over(member).await;
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
