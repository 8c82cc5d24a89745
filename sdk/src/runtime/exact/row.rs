//! What is to be written for a partition, in the order in which it was worked on.
//!
//! Pure: told the time, asks no clock. The entries of a lane are taken in the order
//! of its deliveries: one that has to wait holds those behind it in its lane, and no
//! others.

use std::collections::{BTreeMap, HashSet, VecDeque};

use pipedoc_transport::log::OutgoingRecord;
use tokio::time::Instant;

use crate::runtime::lanes::{DeliveryId, LaneId};

/// What is to be written for one delivery.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: DeliveryId,
    pub(crate) lane: LaneId,
    /// Of the delivery's record.
    pub(crate) offset: i64,
    pub(crate) records: Vec<OutgoingRecord>,
    /// Until when it waits.
    pub(crate) until: Option<Instant>,
}

/// What is to be written for a partition.
#[derive(Debug, Default)]
pub(crate) struct Row {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// How many entries wait until a moment.
    waiting: usize,
    /// Refused by the log and not given up on yet, with their lanes.
    refused: BTreeMap<DeliveryId, LaneId>,
}

impl Row {
    /// Puts an entry last; what comes in the place of one that was refused, in its
    /// place.
    pub(crate) fn push(&mut self, entry: Entry) {
        self.bytes += OutgoingRecord::bytes_of(&entry.records);
        self.waiting += usize::from(entry.until.is_some());
        let at = self
            .refused
            .remove(&entry.id)
            .and_then(|lane| self.entries.iter().position(|other| other.lane == lane && other.id > entry.id));
        self.entries.insert(at.unwrap_or(self.entries.len()), entry);
    }

    /// Puts entries back that were taken, in their order.
    pub(crate) fn give_back(&mut self, entries: Vec<Entry>) {
        for entry in entries.into_iter().rev() {
            self.bytes += OutgoingRecord::bytes_of(&entry.records);
            self.waiting += usize::from(entry.until.is_some());
            self.entries.push_front(entry);
        }
    }

    /// Takes entries of at most so many bytes, and at most so many, but at least one
    /// where any may be taken.
    pub(crate) fn take(&mut self, most_bytes: usize, most: usize, now: Instant) -> Vec<Entry> {
        let (mut taken, mut kept, mut bytes) = (Vec::new(), VecDeque::new(), 0);
        let mut held = HashSet::new();
        while let Some(entry) = self.entries.front() {
            let size = OutgoingRecord::bytes_of(&entry.records);
            if taken.len() == most || (!taken.is_empty() && bytes + size > most_bytes) {
                break;
            }
            let Some(mut entry) = self.entries.pop_front() else { break };
            if self.is_held(&entry, &mut held, now) {
                kept.push_back(entry);
                continue;
            }
            bytes += size;
            self.waiting -= usize::from(entry.until.take().is_some());
            taken.push(entry);
        }
        self.bytes -= bytes;
        if !kept.is_empty() {
            kept.append(&mut self.entries);
            self.entries = kept;
        }
        taken
    }

    /// Whether an entry may not be taken now: it waits, or one before it in its lane.
    fn is_held(&self, entry: &Entry, held: &mut HashSet<LaneId>, now: Instant) -> bool {
        if self.waiting == 0 && self.refused.is_empty() {
            return false;
        }
        let waits = entry.until.is_some_and(|until| until > now)
            || held.contains(&entry.lane)
            || self.refused.range(..entry.id).any(|(_, lane)| *lane == entry.lane);
        if waits {
            held.insert(entry.lane);
        }
        waits
    }

    /// When something may be taken: `now`, or later.
    pub(crate) fn ready_at(&self, now: Instant) -> Option<Instant> {
        let mut held = HashSet::new();
        if self.entries.iter().any(|entry| !self.is_held(entry, &mut held, now)) {
            return Some(now);
        }
        self.entries.iter().filter_map(|entry| entry.until).min()
    }

    /// The log has refused an entry that was taken: those behind it in its lane wait
    /// for what comes in its place.
    pub(crate) fn refuse(&mut self, id: DeliveryId, lane: LaneId) {
        self.refused.insert(id, lane);
    }

    /// Nothing comes in the place of one that was refused.
    pub(crate) fn forgive(&mut self, id: DeliveryId) {
        self.refused.remove(&id);
    }

    /// Takes out what waits behind one that was refused, for which nothing comes for
    /// now; gives the deliveries.
    pub(crate) fn take_behind(&mut self, id: DeliveryId) -> Vec<DeliveryId> {
        let Some(lane) = self.refused.remove(&id) else { return Vec::new() };
        let is_behind = |entry: &Entry| entry.lane == lane && entry.id > id;
        let behind: Vec<DeliveryId> =
            self.entries.iter().filter(|entry| is_behind(entry)).map(|entry| entry.id).collect();
        self.retain(|other| !behind.contains(&other));
        behind
    }

    /// Keeps what is still wanted.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(DeliveryId) -> bool) {
        self.refused.retain(|id, _| keep(*id));
        let (bytes, waiting) = (&mut self.bytes, &mut self.waiting);
        self.entries.retain(|entry| {
            let keeps = keep(entry.id);
            if !keeps {
                *bytes -= OutgoingRecord::bytes_of(&entry.records);
                *waiting -= usize::from(entry.until.is_some());
            }
            keeps
        });
    }

    /// How many deliveries it is of.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of its values.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn entry(id: DeliveryId, lane: LaneId) -> Entry {
        Entry { id, lane, offset: id as i64, records: Vec::new(), until: None }
    }

    fn row(entries: &[(DeliveryId, LaneId)]) -> Row {
        let mut row = Row::default();
        entries.iter().for_each(|(id, lane)| row.push(entry(*id, *lane)));
        row
    }

    fn ids(entries: &[Entry]) -> Vec<DeliveryId> {
        entries.iter().map(|entry| entry.id).collect()
    }

    #[test]
    fn what_follows_one_that_was_refused_waits_for_what_comes_in_its_place() {
        let now = Instant::now();
        let mut row = row(&[(1, 7), (2, 8), (3, 7), (4, 7), (5, 8)]);
        let taken = row.take(usize::MAX, 1, now);
        assert_eq!(ids(&taken), [1]);
        row.refuse(1, 7);
        assert_eq!(ids(&row.take(usize::MAX, 9, now)), [2, 5]);
        assert_eq!(row.ready_at(now), None);
        row.push(entry(6, 9));
        row.push(entry(1, 7));
        assert_eq!(ids(&row.take(usize::MAX, 9, now)), [1, 3, 4, 6]);
    }

    #[test]
    fn one_that_waits_holds_its_lane_alone() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut row = row(&[(2, 8), (3, 7)]);
        row.give_back(vec![Entry { until: Some(later), ..entry(1, 7) }]);
        assert_eq!(ids(&row.take(usize::MAX, 9, now)), [2]);
        assert_eq!(row.ready_at(now), Some(later));
        assert_eq!(ids(&row.take(usize::MAX, 9, later)), [1, 3]);
        assert_eq!((row.len(), row.bytes(), row.waiting), (0, 0, 0));
    }

    #[test]
    fn what_stands_behind_one_that_stays_open_is_taken_out() {
        let now = Instant::now();
        let mut row = row(&[(1, 7), (2, 8), (3, 7)]);
        drop(row.take(usize::MAX, 1, now));
        row.refuse(1, 7);
        assert_eq!(row.take_behind(1), [3]);
        assert_eq!(ids(&row.take(usize::MAX, 9, now)), [2]);
        assert!(row.take_behind(1).is_empty());
    }
}
