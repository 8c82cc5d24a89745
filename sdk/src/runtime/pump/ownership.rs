//! What happens to partitions: they come, are read, fail, are committed, go.

use std::sync::Arc;
use std::time::Duration;

use pipedoc_transport::log::{self, AssignedPartition, Commit, Event as LogEvent, Revocation, Start, TopicPartition};
use tokio::time::Instant;

use super::{COMMIT_EVERY, COMMIT_WHEN_DRAINED, Committable, Pump};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::runtime::Order;
use crate::runtime::status::Obstacle;

/// How long a seek may take before the consumer is made anew.
const SEEK_TIMEOUT: Duration = Duration::from_secs(10);

/// Partitions that are being taken away.
#[derive(Debug)]
pub(super) struct Revoking {
    revocation: Revocation,
    /// Until when open deliveries may finish.
    pub(super) by: Instant,
    /// Whether what is done was committed, or could not be.
    tried_to_commit: bool,
}

impl Pump {
    pub(super) fn happened(&mut self, event: LogEvent) {
        match event {
            LogEvent::Assigned(assigned) => {
                let sources: Vec<TopicPartition> = assigned.iter().map(|partition| partition.source.clone()).collect();
                self.begin_anew(&sources);
                for partition in &assigned {
                    self.partitions.assign(partition);
                }
                self.event(Event::Assigned(sources));
                self.tell_owned();
                if let Some(reason) = self.breaker.reason() {
                    self.stop_all(&reason);
                }
            }
            LogEvent::Records(batch) => self.admit(batch),
            LogEvent::EndOfPartition { source, position } => {
                if let Some(partition) = self.partitions.get_mut(&source) {
                    partition.end_seen(position);
                }
            }
            LogEvent::Revoked(revocation) => self.revoke(revocation),
            LogEvent::Lost(sources) => {
                self.deliveries.drop_all(|source| sources.contains(source));
                for source in &sources {
                    self.partitions.remove(source);
                }
                self.forget_dropped();
                self.event(Event::Lost(sources));
                self.tell_owned();
            }
            LogEvent::OffsetsGone { source, wanted, resumed_at } => {
                let trouble = if resumed_at < wanted {
                    // The log is shorter than it was: what is known of its offsets is
                    // of another past.
                    self.begin_anew(std::slice::from_ref(&source));
                    self.partitions.assign(&AssignedPartition {
                        source: source.clone(),
                        committed: None,
                        position: resumed_at,
                    });
                    format!("{source}: offset {wanted} is beyond its end; reading goes on at {resumed_at}")
                } else {
                    if let Some(partition) = self.partitions.get_mut(&source) {
                        partition.skip_to(resumed_at);
                    }
                    let last = resumed_at - 1;
                    format!("{source}: offsets {wanted} to {last} are gone; reading goes on at {resumed_at}")
                };
                self.board.error(&trouble);
                self.event(Event::OffsetsGone { source, wanted, resumed_at });
            }
        }
    }

    /// Forgets whatever was known of partitions whose ownership begins: the log
    /// may have taken them and given them back while they were being given up.
    fn begin_anew(&mut self, sources: &[TopicPartition]) {
        for revoking in &mut self.revoking {
            revoking.revocation.partitions.retain(|source| !sources.contains(source));
        }
        self.deliveries.drop_all(|source| sources.contains(source));
        for source in sources {
            self.partitions.remove(source);
        }
        self.forget_dropped();
    }

    fn revoke(&mut self, revocation: Revocation) {
        for source in &revocation.partitions {
            if let Some(partition) = self.partitions.get_mut(source) {
                partition.revoking = true;
            }
        }
        self.trim(&revocation.partitions.clone());
        let by = Instant::now() + self.shop.plan.revoke_grace;
        self.revoking.push(Revoking { revocation, by, tried_to_commit: false });
    }

    /// Drops what has not been begun and lies beyond all that has: it comes again
    /// elsewhere, and no commit has to wait for it.
    pub(super) fn trim(&mut self, sources: &[TopicPartition]) {
        for source in sources {
            if self.commits_first() {
                self.shut_gate(source);
                continue;
            }
            let Some(partition) = self.partitions.get_mut(source) else { continue };
            let begun = self.deliveries.highest_begun(source);
            let highest = begun.max(partition.window.highest_done()).unwrap_or(i64::MIN);
            self.deliveries.drop_waiting_beyond(source, highest);
            partition.window.cut_after(highest);
        }
        self.forget_dropped();
    }

    /// Gives partitions up whose deliveries have ended or had their time.
    pub(super) fn advance_revocations(&mut self, now: Instant) {
        for at in (0..self.revoking.len()).rev() {
            let sources = self.revoking[at].revocation.partitions.clone();
            if self.deliveries.has_any(&sources) {
                if now < self.revoking[at].by {
                    continue;
                }
                self.deliveries.drop_all(|source| sources.contains(source));
                self.forget_dropped();
            }
            let owned = || sources.iter().filter_map(|source| self.partitions.get(source));
            let uncommitted = owned().any(|partition| partition.window.uncommitted().is_some());
            if self.out.desks().is_some() {
                // A transaction is under way, or tried again until the time is up.
                if uncommitted && now < self.revoking[at].by {
                    continue;
                }
            } else if uncommitted && !self.revoking[at].tried_to_commit {
                if self.commit.is_none() {
                    self.commit_now(Some(&sources));
                    self.revoking[at].tried_to_commit = true;
                }
                continue;
            }
            if self.revoking[at].tried_to_commit && self.commit.is_some() {
                continue;
            }
            for source in &sources {
                self.partitions.remove(source);
            }
            self.revoking.remove(at).revocation.release();
            if !sources.is_empty() {
                self.event(Event::Revoked(sources));
                self.tell_owned();
            }
        }
    }

    /// Tells what is owned after the group was divided anew.
    fn tell_owned(&self) {
        let mut owned: Vec<_> = self.partitions.iter().map(|partition| partition.source.as_ref().clone()).collect();
        owned.sort();
        self.board.event(&Event::Rebalanced { owned });
    }

    /// Everything of a partition that is in flight is dropped; reading goes on
    /// from the watermark after a while, so that order is kept.
    pub(super) fn restart(&mut self, source: &Arc<TopicPartition>, error: &log::Error) {
        let error = Error::from(error.clone()).context(format!("sending for {source} failed"));
        self.board.trouble(&error);
        let Some(partition) = self.partitions.get_mut(source) else { return };
        partition.restart(Instant::now());
        self.deliveries.drop_all(|other| *other == **source);
        self.forget_dropped();
    }

    /// Reads on from the watermark where a restart is due.
    pub(super) async fn restart_partitions(&mut self, now: Instant) -> Result<()> {
        let due: Vec<(Arc<TopicPartition>, i64)> = self
            .partitions
            .iter()
            .filter(|partition| partition.restart_at.is_some_and(|at| at <= now))
            .map(|partition| (Arc::clone(&partition.source), partition.window.watermark()))
            .collect();
        for (source, offset) in due {
            // What the consumer is about to hand out is of the time before.
            self.next = None;
            let seek = self.consumer.seek(&source, Start::At(offset));
            let error = match tokio::time::timeout(SEEK_TIMEOUT, seek).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(Error::from(error).context(format!("going back in {source} failed"))),
                Err(_) => Some(Error::retryable(format!("going back in {source} took too long"))),
            };
            let Some(partition) = self.partitions.get_mut(&source) else { continue };
            match error {
                None => partition.went_back(),
                // The partition may have been lost, of which the consumer tells when it
                // is asked: only one that cannot be read on by any means needs new clients.
                Some(error) if partition.cannot_go_back(now) => return Err(error),
                Some(error) => tracing::debug!(%error, "going back is tried again"),
            }
        }
        Ok(())
    }

    /// When the next commit is due, if there is anything to commit.
    pub(super) fn commit_due(&self, now: Instant) -> Option<Instant> {
        if let Some(desks) = self.out.desks() {
            return self.transaction_due(desks, now);
        }
        if self.commit.is_some() {
            return None;
        }
        let mut due = None;
        for partition in self.partitions.iter() {
            if partition.window.uncommitted().is_none() {
                continue;
            }
            let hurry = partition.window.is_drained() && !self.commit_failed;
            if partition.window.is_new() && !self.commit_failed {
                // Where reading begins is written down at once: an owner that asks
                // anew might begin elsewhere.
                return Some(self.last_commit);
            }
            if !partition.gate.is_empty() && !self.commit_failed {
                return Some(now);
            }
            let wait = if hurry { COMMIT_WHEN_DRAINED } else { COMMIT_EVERY };
            let at = self.last_commit + wait;
            due = Some(due.map_or(at, |due: Instant| due.min(at)));
        }
        due
    }

    pub(super) fn begin_commit(&mut self, now: Instant) {
        if self.out.desks().is_some() {
            return self.begin_transactions(now);
        }
        let stopping = matches!(self.order, Order::Stop { .. }) && self.deliveries.len() == 0 && !self.commit_failed;
        match self.commit_due(now) {
            Some(due) if due <= now || stopping => self.commit_now(None),
            _ => {}
        }
    }

    /// Commits the watermarks of these partitions, or of all.
    fn commit_now(&mut self, only: Option<&[TopicPartition]>) {
        let commits: Vec<Committable> = self
            .partitions
            .iter_mut()
            .filter(|partition| match only {
                Some(only) => only.contains(&partition.source),
                // One that the log has taken already must not keep others from
                // being committed; each is committed on its own when it goes.
                None => !(partition.revoking && self.commit_failed),
            })
            .filter_map(|partition| {
                let mark = partition.window.uncommitted()?;
                partition.committing = partition.committing.max(mark.offset);
                let source = partition.source.as_ref().clone();
                let commit = Commit { source, offset: mark.offset, metadata: partition.window.metadata() };
                Some(Committable { commit, mark, number: partition.number })
            })
            .collect();
        self.last_commit = Instant::now();
        if commits.is_empty() {
            return;
        }
        let consumer = Arc::clone(&self.consumer);
        self.commit = Some(Box::pin(async move {
            let plain = commits.iter().map(|committable| committable.commit.clone()).collect();
            let result = consumer.commit(plain).await;
            (commits, result)
        }));
    }

    pub(super) fn committed(&mut self, commits: Vec<Committable>, result: log::Result<()>) {
        self.commit_failed = result.is_err();
        match result {
            Ok(()) => {
                self.board.is_over(|obstacle| *obstacle == Obstacle::Committing);
                let commits_first = self.commits_first();
                for Committable { commit, mark, number } in commits {
                    if let Some(partition) = self.partitions.get_mut(&commit.source)
                        && partition.number == number
                    {
                        partition.window.committed(mark);
                    } else {
                        continue;
                    }
                    if commits_first {
                        self.open_gate(&commit.source, mark.offset);
                    }
                }
            }
            Err(error) => {
                // Fenced ones hear of their loss from the consumer; what is passing
                // is tried again with the next commit.
                let unusable = !error.is_retryable() && !matches!(error, log::Error::Fenced { .. });
                let error = Error::from(error).context("committing failed");
                self.board.note(Obstacle::Committing, error.to_string());
                self.board.tell_of_storage(&error);
                self.event(Event::CommitFailed { error: error.to_string() });
                if unusable {
                    self.fatal = Some(error);
                }
            }
        }
    }
}
