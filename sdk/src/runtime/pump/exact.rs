//! `delivery: EXACTLY_ONCE`: what came of deliveries, and all commits, are written in
//! transactions. When one is due, what it holds, and what becomes of it.

use std::time::Duration;

use pipedoc_transport::log::{self, OutgoingRecord, TopicPartition};
use tokio::task::JoinError;
use tokio::time::Instant;

use super::{COMMIT_WHEN_DRAINED, Pump};
use crate::error::Error;
use crate::event::Event;
use crate::runtime::deliveries::Stage;
use crate::runtime::exact::{COMMIT_EVERY, Claim, Desks, Entry, Outcome, PARCEL_BYTES, Parcel};
use crate::runtime::lanes::DeliveryId;
use crate::runtime::outbox::{Outbox, Settled, is_of_the_record};
use crate::runtime::partitions::Partition;
use crate::runtime::status::Obstacle;
use crate::runtime::{Order, retry};

/// How soon a place is committed that comes with no records, while others are read.
const PLACES_EVERY: Duration = Duration::from_secs(1);

/// Where what came of deliveries goes.
pub(crate) enum Out {
    /// To a producer; offsets are committed once it is acknowledged.
    Plain(Outbox<DeliveryId>),
    /// Into transactions, with the offsets.
    Exact(Desks),
}

/// What became of something that went out.
pub(super) enum Sent {
    Settled(Vec<Settled<DeliveryId>>),
    Written(Result<(usize, Parcel, Outcome), JoinError>),
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

    pub(super) fn desks(&self) -> Option<&Desks> {
        match self {
            Self::Plain(_) => None,
            Self::Exact(desks) => Some(desks),
        }
    }

    fn desks_mut(&mut self) -> Option<&mut Desks> {
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
    pub(super) fn transaction_due(&self, desks: &Desks, now: Instant) -> Option<Instant> {
        (0..desks.len()).filter_map(|desk| self.due_at(desks, desk, now)).min()
    }

    fn due_at(&self, desks: &Desks, desk: usize, now: Instant) -> Option<Instant> {
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
        let mut parcel = Parcel::default();
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
    pub(super) fn written(&mut self, ended: Result<(usize, Parcel, Outcome), JoinError>) {
        let now = Instant::now();
        let (desk, parcel, outcome) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                self.fatal = Some(Error::retryable(error).context("a transaction broke off"));
                return;
            }
        };
        match outcome {
            Outcome::Written => {
                self.has_written(desk);
                let all = vec![true; parcel.claims.len()];
                self.conclude(parcel, &all, None, now);
            }
            Outcome::Settled(written, error) => {
                if written.iter().all(|written| *written) {
                    self.has_written(desk);
                } else {
                    self.has_failed(desk, error, now);
                }
                self.conclude(parcel, &written, None, now);
            }
            Outcome::Aborted(error) => {
                let of_records = is_of_the_record(&error) || matches!(error, log::Error::TransactionTooLarge { .. });
                if !of_records {
                    self.has_failed(desk, error, now);
                    return self.conclude(parcel, &[], None, now);
                }
                let entries = parcel.len();
                if parcel.culprits(&error).is_empty()
                    && let Some(desks) = self.out.desks_mut()
                {
                    desks.write_singly(desk, entries);
                }
                self.conclude(parcel, &[], Some(&error), now);
            }
            Outcome::Fatal(error) => {
                self.fatal = Some(Error::from(error).context("the transactional producer cannot be used any more"));
            }
        }
    }

    fn has_written(&mut self, desk: usize) {
        self.board.is_over(|obstacle| *obstacle == Obstacle::Committing);
        if let Some(desks) = self.out.desks_mut() {
            desks.has_written(desk);
        }
    }

    fn has_failed(&mut self, desk: usize, error: log::Error, now: Instant) {
        let goes_on = self.out.desks_mut().is_none_or(|desks| desks.has_failed(desk, &error, now));
        let error = Error::from(error).context("a transaction failed; it is tried again");
        self.board.note(Obstacle::Committing, error.to_string());
        self.board.tell_of_storage(&error);
        self.event(Event::CommitFailed { error: error.to_string() });
        if !goes_on {
            self.fatal = Some(error);
        }
    }

    /// Settles what is written of a parcel, by claim; the rest is written anew, but for
    /// what was refused.
    fn conclude(&mut self, parcel: Parcel, written: &[bool], refusal: Option<&log::Error>, now: Instant) {
        let is_written = |at: usize| written.get(at).copied().unwrap_or(false);
        for at in (0..parcel.claims.len()).filter(|at| is_written(*at)) {
            for id in parcel.ids(at) {
                self.acknowledged(id);
            }
            let Claim { commit, mark, number } = &parcel.claims[at];
            if let Some(partition) = self.partitions.get_mut(&commit.source).filter(|one| one.number == *number) {
                partition.window.committed(*mark);
            }
        }
        if (0..parcel.claims.len()).all(is_written) {
            return;
        }
        let culprits = refusal.map(|error| parcel.culprits(error)).unwrap_or_default();
        let mut given_up = Vec::new();
        for (at, (claim, entries)) in parcel.take_apart().into_iter().enumerate() {
            let Some(partition) = self.partitions.get_mut(&claim.commit.source) else { continue };
            if is_written(at) || partition.number != claim.number {
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
                    // A dead letter has nowhere else to go: it waits for what is missing.
                    delivery.setbacks = delivery.setbacks.saturating_add(1);
                    entry.until = Some(now + retry::backoff(&retry::patient(), delivery.setbacks));
                }
                again.push(entry);
            }
            partition.row.give_back(again);
        }
        let Some(error) = refusal else { return };
        if given_up.is_empty() {
            self.board.trouble(&Error::from(error.clone()).context("a transaction was refused"));
        }
        for id in given_up {
            self.refused_for_good(id, error.clone());
        }
    }
}

/// What a transaction commits of a partition that writes these entries; of those for
/// which there is no room beside the offset, the ones behind stay where they are.
fn claim(partition: &mut Partition, mut entries: Vec<Entry>) -> Option<(Claim, Vec<Entry>)> {
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
    Some((Claim { commit, mark, number: partition.number }, entries))
}
