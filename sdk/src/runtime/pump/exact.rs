//! `delivery: EXACTLY_ONCE`: what came of deliveries, and all commits, are written in
//! transactions. When one is due, what it holds, and what becomes of it.

use std::collections::HashMap;
use std::time::Duration;

use pipedoc_transport::log::{self, OutgoingRecord, TopicPartition};
use tokio::time::Instant;

use super::{COMMIT_WHEN_DRAINED, Pump};
use crate::error::Error;
use crate::runtime::deliveries::Stage;
use crate::runtime::exact::{COMMIT_EVERY, Claim, Desks, Ended, Entry, PARCEL_BYTES, Parcel, Verdict};
use crate::runtime::lanes::DeliveryId;
use crate::runtime::outbox::{Outbox, Settled};
use crate::runtime::partitions::Partition;
use crate::runtime::window::Mark;
use crate::runtime::work::About;
use crate::runtime::{Order, retry};

/// How soon a place is committed that comes with no records, while others are read.
const PLACES_EVERY: Duration = Duration::from_secs(1);

/// Where what came of deliveries goes.
pub(crate) enum Out {
    /// To a producer; offsets are committed once it is acknowledged.
    Plain(Outbox<DeliveryId>),
    /// Into transactions, with the offsets.
    Exact(Desks<Reached>),
}

/// Where a transaction leaves a partition.
#[derive(Debug)]
pub(crate) struct Reached {
    mark: Mark,
    /// Number of the partition's ownership.
    number: u64,
}

/// What became of something that went out.
pub(super) enum Sent {
    Settled(Vec<Settled<DeliveryId>>),
    Written(Result<Ended<Reached>, Error>),
}

impl Out {
    /// Waits for what becomes of what went out; for ever when there is nothing.
    /// Cancelling it loses nothing.
    pub(super) async fn next(&mut self) -> Sent {
        match self {
            Self::Plain(outbox) => Sent::Settled(outbox.settled().await),
            Self::Exact(desks) => Sent::Written(desks.written().await),
        }
    }

    pub(super) fn desks(&self) -> Option<&Desks<Reached>> {
        match self {
            Self::Plain(_) => None,
            Self::Exact(desks) => Some(desks),
        }
    }

    /// Whether a transaction over a partition is open.
    pub(super) fn is_writing(&self, source: &TopicPartition) -> bool {
        self.desks().is_some_and(|desks| desks.is_writing(source))
    }
}

impl Pump {
    /// Gives away what came of a delivery.
    pub(super) fn send(&mut self, id: DeliveryId, records: Vec<OutgoingRecord>) {
        if let Out::Plain(outbox) = &mut self.out {
            return outbox.push(id, records);
        }
        let Some(delivery) = self.deliveries.get(id) else { return };
        let (lane, offset) = (delivery.lane, delivery.record.offset);
        if let Some(partition) = self.partitions.get_mut(&delivery.source) {
            partition.row.push(Entry { id, lane, offset, records, until: None });
        }
    }

    /// Bytes of outputs that wait or are on their way.
    pub(super) fn bytes_out(&self) -> usize {
        match &self.out {
            Out::Plain(outbox) => outbox.bytes(),
            Out::Exact(desks) => {
                desks.bytes() + self.partitions.iter().map(|partition| partition.row.bytes()).sum::<usize>()
            }
        }
    }

    /// When the next transaction is due, if any is.
    pub(super) fn transaction_due(&self, desks: &Desks<Reached>, now: Instant) -> Option<Instant> {
        (0..desks.len()).filter_map(|desk| self.due_at(desks, desk, now)).min()
    }

    fn due_at(&self, desks: &Desks<Reached>, desk: usize, now: Instant) -> Option<Instant> {
        if desks.is_busy(desk) {
            return None;
        }
        let last = desks.last(desk)?;
        let hurry = matches!(self.order, Order::Stop { .. }) || !self.revoking.is_empty();
        let gathered = desks.entries() + self.partitions.iter().map(|partition| partition.row.len()).sum::<usize>();
        let all_gathered = self.deliveries.len() <= gathered;
        let due = |partition: &Partition| {
            if let Some(ready) = partition.row.ready_at(now) {
                let at_once =
                    hurry || partition.row.bytes() >= PARCEL_BYTES || (all_gathered && partition.has_nothing_coming());
                return Some(if at_once { ready } else { ready.max(last + COMMIT_EVERY) });
            }
            partition.window.uncommitted()?;
            Some(match partition.window.is_drained() {
                // Where reading begins is written down at once: an owner that asks anew
                // might begin elsewhere.
                _ if partition.window.is_new() || hurry => now,
                true => last + COMMIT_WHEN_DRAINED,
                false => last + PLACES_EVERY,
            })
        };
        let due = self.partitions.iter().filter(|partition| partition.desk == desk).filter_map(due).min()?;
        Some(desks.rests_until(desk).map_or(due, |until| due.max(until)))
    }

    /// Begins the transactions that are due.
    pub(super) fn begin_transactions(&mut self, now: Instant) {
        for desk in 0..self.out.desks().map_or(0, Desks::len) {
            let due = self.out.desks().and_then(|desks| self.due_at(desks, desk, now));
            if due.is_some_and(|due| due <= now) {
                self.begin_transaction(desk, now);
            }
        }
    }

    fn begin_transaction(&mut self, desk: usize, now: Instant) {
        let Out::Exact(desks) = &mut self.out else { return };
        let most = desks.most(desk);
        let sharing = self.partitions.iter().filter(|partition| partition.desk == desk && partition.row.len() > 0);
        let share = PARCEL_BYTES / sharing.count().max(1);
        let mut parcel = Parcel::new();
        for partition in self.partitions.iter_mut().filter(|partition| partition.desk == desk) {
            let most = most.saturating_sub(parcel.len());
            let entries = partition.row.take(share, most, now);
            if let Some((claim, entries)) = claim(partition, entries) {
                parcel.add(claim, entries);
            }
        }
        desks.begin(desk, parcel, &self.consumer, now);
    }

    /// A transaction has ended.
    pub(super) fn written(&mut self, ended: Result<Ended<Reached>, Error>) {
        let Out::Exact(desks) = &mut self.out else { return };
        let now = Instant::now();
        match ended {
            Ok(ended) => {
                let (parcel, mut verdict) = desks.judge(ended, &self.board, now);
                if let Some(error) = verdict.fatal.take() {
                    self.fatal = Some(error);
                }
                self.conclude(parcel, &verdict, now);
            }
            Err(error) => self.fatal = Some(error),
        }
    }

    /// Settles what is written of a parcel, by claim; the rest is written anew, but for
    /// what was refused.
    fn conclude(&mut self, parcel: Parcel<Reached>, verdict: &Verdict, now: Instant) {
        for at in (0..parcel.claims.len()).filter(|at| verdict.is_written(*at)) {
            for id in parcel.ids(at) {
                self.acknowledged(id);
            }
            let Claim { commit, note: Reached { mark, number } } = &parcel.claims[at];
            if let Some(partition) = self.partitions.get_mut(&commit.source).filter(|one| one.number == *number) {
                partition.window.committed(*mark);
            }
        }
        if (0..parcel.claims.len()).all(|at| verdict.is_written(at)) {
            return;
        }
        let refusal = verdict.refusal.as_ref();
        let culprits = refusal.map(|error| parcel.culprits(error)).unwrap_or_default();
        let mut unwritable: HashMap<DeliveryId, (About, Error)> = culprits
            .iter()
            .filter_map(|id| Some((*id, refusal.and_then(|error| self.unwritable(*id, error))?)))
            .collect();
        let (mut given_up, mut unburied) = (Vec::new(), Vec::new());
        for (at, (claim, entries)) in parcel.take_apart().into_iter().enumerate() {
            let Some(partition) = self.partitions.get_mut(&claim.commit.source) else { continue };
            if verdict.is_written(at) || partition.number != claim.note.number {
                continue;
            }
            let mut again = Vec::new();
            for mut entry in entries {
                partition.window.give_back(entry.offset);
                // Those dropped meanwhile come again by themselves.
                let Some(delivery) = self.deliveries.get_mut(entry.id) else { continue };
                if culprits.contains(&entry.id) {
                    if matches!(delivery.stage, Stage::Sending { .. }) {
                        partition.row.refuse(entry.id, entry.lane);
                        given_up.push(entry.id);
                        continue;
                    }
                    if let Some((about, error)) = unwritable.remove(&entry.id) {
                        partition.row.refuse(entry.id, entry.lane);
                        unburied.push((entry.id, about, error));
                        continue;
                    }
                    // A dead letter has nowhere else to go: it waits for what is missing.
                    delivery.setbacks = delivery.setbacks.saturating_add(1);
                    entry.until = Some(now + retry::backoff(&retry::patient(), delivery.setbacks));
                }
                again.push(entry);
            }
            partition.row.give_back(again);
        }
        let Some(error) = refusal else { return };
        if given_up.is_empty() && unburied.is_empty() {
            self.board.trouble(&Error::from(error.clone()).context("a transaction was refused"));
        }
        for id in given_up {
            self.refused_for_good(id, error.clone());
        }
        for (id, about, error) in unburied {
            self.unburied(id, about, &error);
        }
    }
}

/// What a transaction commits of a partition that writes these entries; of those for
/// which there is no room beside the offset, the ones behind stay where they are.
fn claim(partition: &mut Partition, mut entries: Vec<Entry>) -> Option<(Claim<Reached>, Vec<Entry>)> {
    entries.iter().for_each(|entry| partition.window.take(entry.offset));
    let (mark, metadata) = loop {
        let draft = partition.window.draft();
        if let Some(metadata) = draft.metadata {
            break (draft.mark, metadata);
        }
        if entries.is_empty() {
            return None;
        }
        // Those of the lowest offsets take the least room, and free some.
        let mut offsets: Vec<i64> = entries.iter().map(|entry| entry.offset).collect();
        offsets.sort_unstable();
        offsets.truncate(offsets.len() / 2);
        let last = offsets.last().copied().unwrap_or(i64::MIN);
        let (first, behind): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(|entry| entry.offset <= last);
        behind.iter().for_each(|entry| partition.window.give_back(entry.offset));
        partition.row.give_back(behind);
        entries = first;
    };
    if entries.is_empty() && !partition.window.is_news(mark) {
        return None;
    }
    let commit = log::Commit { source: partition.source.as_ref().clone(), offset: mark.offset, metadata };
    Some((Claim { commit, note: Reached { mark, number: partition.number } }, entries))
}
