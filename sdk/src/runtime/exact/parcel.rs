//! What one transaction writes: records, each with the delivery that it came of, and
//! where that leaves the group in each partition.

use pipedoc_transport::log::{self, Commit, OutgoingRecord};
use pipedoc_transport::size;
use tokio::time::Instant;

use super::row::Entry;
use crate::runtime::lanes::{DeliveryId, LaneId};

/// What one transaction writes.
#[derive(Debug)]
pub(crate) struct Parcel<T> {
    pub(crate) records: Vec<OutgoingRecord>,
    pub(crate) claims: Vec<Claim<T>>,
    spans: Vec<Span>,
    bytes: usize,
}

/// What is committed of a partition.
#[derive(Debug)]
pub(crate) struct Claim<T> {
    pub(crate) commit: Commit,
    /// What whoever commits it wants to know of it again.
    pub(crate) note: T,
}

/// The part of a parcel that came of one delivery.
#[derive(Debug)]
struct Span {
    id: DeliveryId,
    lane: LaneId,
    offset: i64,
    /// How many records.
    count: usize,
    /// Which of the claims names it.
    claim: usize,
}

impl<T> Parcel<T> {
    pub(crate) fn new() -> Self {
        Self { records: Vec::new(), claims: Vec::new(), spans: Vec::new(), bytes: 0 }
    }

    /// Adds what is written for a partition.
    pub(crate) fn add(&mut self, claim: Claim<T>, entries: Vec<Entry>) {
        let at = self.claims.len();
        self.claims.push(claim);
        for Entry { id, lane, offset, mut records, .. } in entries {
            self.bytes += OutgoingRecord::bytes_of(&records);
            self.spans.push(Span { id, lane, offset, count: records.len(), claim: at });
            self.records.append(&mut records);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    /// How many deliveries it is of.
    pub(crate) fn len(&self) -> usize {
        self.spans.len()
    }

    /// Bytes of its values.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn commits(&self) -> Vec<Commit> {
        self.claims.iter().map(|claim| claim.commit.clone()).collect()
    }

    /// The deliveries of one of its claims.
    pub(crate) fn ids(&self, claim: usize) -> impl Iterator<Item = DeliveryId> {
        self.spans.iter().filter(move |span| span.claim == claim).map(|span| span.id)
    }

    /// The deliveries that keep it from ever being written: those whose records the
    /// log has refused, or the only one there is. None where it is not known which.
    pub(crate) fn culprits(&self, error: &log::Error) -> Vec<DeliveryId> {
        if let [only] = self.spans.as_slice() {
            return vec![only.id];
        }
        let is_blamed = |record: &OutgoingRecord| match error {
            log::Error::UnknownTopic { topic } => record.topic == *topic,
            log::Error::UnknownPartition { partition } => {
                record.topic == partition.topic && record.partition == Some(partition.partition)
            }
            log::Error::RecordTooLarge { topic, size, .. } => {
                record.topic == *topic
                    && size::of_record(record.key.as_deref(), record.value.as_deref(), &record.headers) == *size
            }
            _ => false,
        };
        let mut records = self.records.iter();
        let mut blamed = Vec::new();
        for span in &self.spans {
            // All of its records are passed, whether one is found among them or not.
            let own = records.by_ref().take(span.count);
            if own.filter(|record| is_blamed(record)).count() > 0 {
                blamed.push(span.id);
            }
        }
        blamed
    }

    /// Its parts, to be written anew: those of each claim, in order.
    pub(crate) fn take_apart(self) -> Vec<(Claim<T>, Vec<Entry>)> {
        let mut parts: Vec<(Claim<T>, Vec<Entry>)> = self.claims.into_iter().map(|claim| (claim, Vec::new())).collect();
        let mut records = self.records.into_iter();
        for Span { id, lane, offset, count, claim } in self.spans {
            let records = records.by_ref().take(count).collect();
            if let Some((_, entries)) = parts.get_mut(claim) {
                entries.push(Entry { id, lane, offset, records, until: None::<Instant> });
            }
        }
        parts
    }
}
