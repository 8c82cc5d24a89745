//! The poller's answers to rebalances: taking partitions, and letting go of them.
//!
//! ```text
//! librdkafka asks ─┬─ assign ─▶ places known? ──▶ split queues, Assigned, answer
//!                  └─ revoke ─▶ lost? ─ yes ──▶ Lost, answer
//!                                     └ no ───▶ Revoked … released or too late ──▶ answer
//! ```

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Instant;

use rdkafka::TopicPartitionList;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaResult;
use tokio::sync::oneshot;

use super::super::reading::Reading;
use super::super::shared::{Item, Rebalance, give_up, take};
use super::super::start;
use super::{AGAIN, Poller};
use crate::log::{AssignedPartition, Revocation, Start, Subscription};

/// A rebalance that librdkafka waits for the answer of.
pub(super) enum Pending {
    Assign(TopicPartitionList),
    Revoke { partitions: TopicPartitionList, released: oneshot::Receiver<()>, until: Instant, expired: Arc<AtomicBool> },
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl Poller {
    pub(super) fn serve_rebalance(&mut self) {
        if self.pending.is_none() {
            let next = self.client.context().rebalances.lock().pop_front();
            match next {
                Some(Rebalance::Assign(partitions)) => self.pending = Some(Pending::Assign(partitions)),
                Some(Rebalance::Revoke(partitions)) => self.revoke(partitions),
                None => {}
            }
        }
        match self.pending.take() {
            Some(Pending::Assign(partitions)) => self.assign(partitions),
            Some(Pending::Revoke { partitions, released, until, expired }) => {
                self.finish_revocation(partitions, released, until, expired);
            }
            None => {}
        }
    }

    fn assign(&mut self, partitions: TopicPartitionList) {
        if self.away {
            // The group was left meanwhile; librdkafka only wants its answer.
            if let Err(error) = take(&self.client, &TopicPartitionList::new()) {
                tracing::debug!(%error, "refusing an assignment");
            }
            return;
        }
        if Instant::now() < self.not_before {
            self.pending = Some(Pending::Assign(partitions));
            return;
        }
        let places = match &self.config.subscription {
            Subscription::Assigned(asked) => start::as_asked(&self.client, asked, self.timeout),
            Subscription::Group { start, .. } => {
                let start = *start;
                match self.begin_group(start, &partitions) {
                    Ok(true) => start::of_group(&self.client, &partitions, start, self.timeout),
                    Ok(false) => {
                        self.not_before = Instant::now() + AGAIN;
                        self.pending = Some(Pending::Assign(partitions));
                        return;
                    }
                    Err(error) => Err(error),
                }
            }
        };
        let places = places.and_then(|places| start::list(&places).map(|list| (places, list)));
        self.shared.asked_where_to_begin(places.is_ok());
        match places {
            Ok((places, list)) => self.begin(places, &list),
            Err(error) => {
                let (who, group) = (self.shared.who(), self.shared.group().unwrap_or_default());
                let error = self.attempt("asking where to begin").by(&who).of_group(group).failed(error);
                if !error.is_retryable() {
                    self.send(Item::Failed(error));
                }
                self.not_before = Instant::now() + AGAIN;
                self.pending = Some(Pending::Assign(partitions));
            }
        }
    }

    /// A new group that begins at the ends commits those of all topics that are
    /// there, before anybody reads: so later members, topics and partitions miss
    /// nothing. The owner of the first partition does so; the others wait for it,
    /// up to a limit. Gives whether it is done.
    fn begin_group(&mut self, start: Start, partitions: &TopicPartitionList) -> KafkaResult<bool> {
        let Some(seen) = self.first_seen.as_ref().filter(|_| start == Start::Latest && !self.has_begun) else {
            return Ok(true);
        };
        let first = seen.iter().find(|(_, count)| **count > 0).map(|(topic, _)| topic.as_str());
        let waits_since = *self.waits_since.get_or_insert_with(Instant::now);
        if first.is_some() && !start::has_begun(&self.client, seen, self.timeout)? {
            let is_first = first.is_some_and(|topic| partitions.find_partition(topic, 0).is_some());
            if !is_first && waits_since.elapsed() < self.timeout {
                return Ok(false);
            }
            start::begin_at_ends(&self.client, seen, self.timeout)?;
        }
        self.has_begun = true;
        Ok(true)
    }

    /// Reads partitions from now on.
    fn begin(&mut self, places: Vec<AssignedPartition>, list: &TopicPartitionList) {
        let mut assigned = Vec::with_capacity(places.len());
        for place in places {
            let epoch = self.next_epoch();
            let Some(reading) = Reading::split(&self.client, place.source.clone(), epoch, place.position) else {
                continue;
            };
            self.readings.push(reading);
            assigned.push((place, epoch));
        }
        if !assigned.is_empty() {
            self.send(Item::Assigned(assigned));
        }
        let taken = if self.in_group() { take(&self.client, list) } else { self.client.assign(list) };
        if let Err(error) = taken {
            self.send(Item::Failed(self.attempt("taking an assignment").failed(error)));
        }
    }

    fn revoke(&mut self, partitions: TopicPartitionList) {
        let sources = start::sources(&partitions);
        // Dropped first: a queue that is kept would take the records of its partition when it comes back.
        self.readings.retain(|reading| !sources.contains(&reading.source));
        if self.away || sources.is_empty() || self.client.assignment_lost() {
            self.shared.disown(&sources);
            if !self.away && !sources.is_empty() {
                self.send(Item::Lost(sources));
            }
            self.answer_revocation(&partitions);
            return;
        }
        let (revocation, released) = Revocation::new(sources);
        let expired = Arc::new(AtomicBool::new(false));
        self.send(Item::Revoked { revocation, expired: expired.clone() });
        let until = Instant::now() + self.shared.session_timeout;
        self.pending = Some(Pending::Revoke { partitions, released, until, expired });
    }

    fn finish_revocation(
        &mut self,
        partitions: TopicPartitionList,
        mut released: oneshot::Receiver<()>,
        until: Instant,
        expired: Arc<AtomicBool>,
    ) {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let late = Instant::now() > until;
        if Pin::new(&mut released).poll(&mut Context::from_waker(&waker)) == Poll::Pending && !late && !self.away {
            self.pending = Some(Pending::Revoke { partitions, released, until, expired });
            return;
        }
        expired.store(true, Ordering::Release);
        self.shared.disown(&start::sources(&partitions));
        self.answer_revocation(&partitions);
    }

    fn answer_revocation(&self, partitions: &TopicPartitionList) {
        if let Err(error) = give_up(&self.client, partitions) {
            tracing::warn!(%error, "giving up partitions");
        }
    }
}
