//! The partitions that a step owns: their windows, and why one may not be read
//! for the moment.
//!
//! Pure but for the log's names. Decides; the pump acts.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use pipedoc_transport::log::{AssignedPartition, TopicPartition};
use rustc_hash::FxHashMap;
use tokio::time::Instant;

use super::exact::Row;
use super::lanes::{DeliveryId, LaneId};
use super::retry;
use super::status::PausedPartition;
use super::window::{Admission, Window};
use crate::progress;

/// How much a step may hold open. One batch of the log may come on top: that
/// which fills the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Records, over all partitions. Default 40,000. At most ten times as many
    /// are remembered that were done behind one that is not.
    pub records: usize,
    /// Bytes of these records. Default 64 MiB.
    pub bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { records: 40_000, bytes: 64 << 20 }
    }
}

impl Bounds {
    /// The same where all that is done stays open until a transaction is written:
    /// what comes in meanwhile needs room of its own.
    pub(crate) fn for_transactions(self) -> Self {
        Self { records: self.records.saturating_mul(UNTIL_WRITTEN), ..self }
    }

    /// How many records a batch of the log may hold.
    #[must_use]
    pub fn batch_records(&self) -> usize {
        (self.records / 20).clamp(1, 500)
    }

    /// How many bytes a batch of the log may hold, unless one record is larger.
    #[must_use]
    pub fn batch_bytes(&self) -> usize {
        (self.bytes / 64).clamp(1, 1 << 20)
    }
}

/// For each open record, so many may be remembered that were done beyond the
/// watermark: they take little memory, but a crash repeats them.
const DONE_BEYOND: usize = 10;

/// So many times as many records may be open where they wait for transactions, of
/// which one is gathered and one is written at any time.
const UNTIL_WRITTEN: usize = 5;

/// Bytes beside an offset that are kept for a batch that comes on top.
const SLACK: usize = 256;

/// How often going back is tried, and how long between.
const SEEKS: u32 = 5;
const BETWEEN_SEEKS: Duration = Duration::from_secs(1);

/// A partition owned.
#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) source: Arc<TopicPartition>,
    /// Tells this ownership from an earlier one of the same partition.
    pub(crate) number: u64,
    pub(crate) window: Window,
    /// What its transactions are to write, where it has some.
    pub(crate) row: Row,
    /// Those of its deliveries that are not worked on before they are committed, with
    /// their offsets.
    pub(crate) gate: VecDeque<(i64, DeliveryId)>,
    /// Everything below is committed, or is being committed.
    pub(crate) committing: i64,
    /// Which of the step's desks writes them.
    pub(crate) desk: usize,
    /// Nothing new is admitted: it is being taken away.
    pub(crate) revoking: bool,
    /// Why it stands still, if it does, until it is told to go on.
    pub(crate) stopped: Option<PausedPartition>,
    /// When reading goes on from the watermark, after a send failed.
    pub(crate) restart_at: Option<Instant>,
    /// After a restart, an end of partition seen before the first record is of
    /// the time before it.
    restarted: bool,
    failures: u32,
    /// How often going back has failed since the restart.
    stuck: u32,
    /// Which part of its share of the bounds is used up.
    full: Full,
    /// Whether the consumer was told to rest.
    pub(crate) resting: bool,
}

/// All partitions owned.
#[derive(Debug, Default)]
pub(crate) struct Partitions {
    owned: FxHashMap<TopicPartition, Partition>,
    next_number: u64,
    bounds: Bounds,
    /// Which of the bounds are used up.
    full: Full,
    /// How many desks write transactions; 0: none does.
    desks: usize,
    /// Whether records are committed before they are worked on.
    offset_first: bool,
    /// The desk of each partition, for good: no other may write for one that comes
    /// back while its last transaction is still open.
    homes: HashMap<TopicPartition, usize>,
}

/// What is used up, and stays so until less than half of it is used: each on its
/// own, so that one cannot keep another from being free again.
#[derive(Debug, Clone, Copy, Default)]
struct Full {
    records: bool,
    remembered: bool,
    bytes: bool,
    /// What is done could come to take more room than there is beside an offset.
    named: bool,
}

impl Full {
    fn any(self) -> bool {
        self.records || self.remembered || self.bytes || self.named
    }
}

impl Partitions {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// The same where transactions commit, written by so many desks.
    pub(crate) fn with_desks(bounds: Bounds, desks: usize) -> Self {
        Self { desks, ..Self::new(bounds.for_transactions()) }
    }

    /// The same where records are committed before they are worked on.
    pub(crate) fn offset_first(bounds: Bounds) -> Self {
        Self { offset_first: true, ..Self::new(bounds) }
    }

    /// The desk of a partition: of the first time, one with the fewest others.
    fn desk(&mut self, source: &TopicPartition) -> usize {
        if let Some(desk) = self.homes.get(source) {
            return *desk;
        }
        let load = |desk: &usize| self.homes.values().filter(|home| *home == desk).count();
        let desk = (0..self.desks).min_by_key(load).unwrap_or_default();
        self.homes.insert(source.clone(), desk);
        desk
    }

    pub(crate) fn assign(&mut self, assigned: &AssignedPartition) {
        self.next_number += 1;
        let desk = if self.desks > 0 { self.desk(&assigned.source) } else { 0 };
        let committed = assigned.committed.as_ref();
        let metadata = committed.map_or("", |committed| committed.metadata.as_str());
        let window = Window::new(assigned.position, committed.map(|committed| committed.offset), metadata);
        let partition = Partition {
            source: Arc::new(assigned.source.clone()),
            number: self.next_number,
            window: if self.offset_first { window.offset_first() } else { window },
            row: Row::default(),
            gate: VecDeque::new(),
            committing: assigned.position,
            desk,
            revoking: false,
            stopped: None,
            restart_at: None,
            restarted: false,
            failures: 0,
            stuck: 0,
            full: Full::default(),
            resting: false,
        };
        self.owned.insert(assigned.source.clone(), partition);
    }

    pub(crate) fn remove(&mut self, source: &TopicPartition) {
        self.owned.remove(source);
    }

    pub(crate) fn get(&self, source: &TopicPartition) -> Option<&Partition> {
        self.owned.get(source)
    }

    pub(crate) fn get_mut(&mut self, source: &TopicPartition) -> Option<&mut Partition> {
        self.owned.get_mut(source)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Partition> {
        self.owned.values()
    }

    /// Those that stand still, and why.
    pub(crate) fn stopped(&self) -> Vec<PausedPartition> {
        self.owned.values().filter_map(|partition| partition.stopped.clone()).collect()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Partition> {
        self.owned.values_mut()
    }

    /// Whether there are partitions, all read to their end with nothing open and
    /// everything committed.
    pub(crate) fn are_drained(&self) -> bool {
        !self.owned.is_empty()
            && self
                .owned
                .values()
                .all(|partition| partition.window.is_drained() && partition.window.uncommitted().is_none())
    }

    /// Decides anew which partitions are full: one is when its share is used up,
    /// until less than half of it is; all are when everything is used up, until
    /// less than half of that is.
    pub(crate) fn measure(&mut self) {
        let (mut records, mut bytes) = (0, 0);
        for partition in self.owned.values() {
            records += partition.window.len();
            bytes += partition.window.bytes();
        }
        let Bounds { records: most_records, bytes: most_bytes } = self.bounds;
        self.full.records = is_full(self.full.records, records, most_records);
        self.full.bytes = is_full(self.full.bytes, bytes, most_bytes);
        let shares = self.owned.len().max(1);
        let exact = self.desks > 0;
        for partition in self.owned.values_mut() {
            let window = &partition.window;
            let full = &mut partition.full;
            let share = (most_records / shares).max(1);
            full.records = is_full(full.records, window.len(), share);
            full.remembered = is_full(full.remembered, window.span(), share.saturating_mul(DONE_BEYOND));
            full.bytes = is_full(full.bytes, window.bytes(), (most_bytes / shares).max(1));
            full.named = exact && is_full(full.named, window.naming(), progress::ROOM - SLACK);
        }
    }

    /// Whether a partition must not be read now.
    pub(crate) fn must_rest(&self, partition: &Partition) -> bool {
        self.full.any() || partition.full.any() || !partition.takes_records()
    }
}

fn is_full(was_full: bool, used: usize, most: usize) -> bool {
    used >= if was_full { most.div_ceil(2) } else { most }
}

impl Partition {
    fn takes_records(&self) -> bool {
        !self.revoking && self.restart_at.is_none() && self.stopped.is_none()
    }

    /// Goes on after it stood still, from the watermark.
    pub(crate) fn resume(&mut self, now: Instant) {
        self.stopped = None;
        self.window.reset();
        self.restart_at = Some(now);
        self.restarted = true;
    }

    /// Takes a record in, into a lane.
    #[must_use]
    pub(crate) fn admit(&mut self, offset: i64, bytes: usize, lane: LaneId) -> Admission {
        if !self.takes_records() {
            return Admission::Refused;
        }
        let admission = self.window.admit(offset, bytes, lane);
        self.restarted &= admission == Admission::Refused;
        admission
    }

    pub(crate) fn end_seen(&mut self, position: i64) {
        // One of the time before a restart lies beyond what was open then. One at the
        // very place to which reading went back says that nothing was.
        let is_of_now = !self.restarted || position == self.window.watermark();
        if is_of_now && self.restart_at.is_none() {
            self.window.end_seen(position);
        }
    }

    /// Records are gone; reading goes on later.
    pub(crate) fn skip_to(&mut self, position: i64) {
        self.window.skip_to(position);
        self.restarted = false;
    }

    /// A send failed: everything open is forgotten, and reading goes on from the
    /// watermark after a while.
    pub(crate) fn restart(&mut self, now: Instant) -> Duration {
        self.window.reset();
        self.failures = self.failures.saturating_add(1);
        let wait = retry::backoff(&retry::patient(), self.failures);
        self.restart_at = Some(now + wait);
        self.restarted = true;
        wait
    }

    /// Reading goes on from the watermark.
    pub(crate) fn went_back(&mut self) {
        self.restart_at = None;
        self.stuck = 0;
    }

    /// Going back has failed: whether it has too often to be tried again.
    pub(crate) fn cannot_go_back(&mut self, now: Instant) -> bool {
        self.stuck += 1;
        self.restart_at = Some(now + BETWEEN_SEEKS);
        self.stuck > SEEKS
    }

    /// Whether a transaction would find nothing more to write by waiting.
    pub(crate) fn has_nothing_coming(&self) -> bool {
        self.window.is_at_end() || self.resting || self.full.any()
    }

    /// A delivery was done.
    pub(crate) fn settle(&mut self, offset: i64) {
        self.failures = 0;
        self.window.settle(offset);
    }
}

#[cfg(test)]
mod tests {
    use pipedoc_model::names::Topic;

    use super::*;

    fn owned(bounds: Bounds, count: i32) -> Partitions {
        let mut partitions = Partitions::new(bounds);
        for partition in 0..count {
            let source = TopicPartition::new(Topic::new("t").unwrap(), partition);
            partitions.assign(&AssignedPartition { source, committed: None, position: 0 });
        }
        partitions
    }

    #[test]
    fn a_full_partition_rests_until_half_of_its_share_is_free() {
        let mut partitions = owned(Bounds { records: 8, bytes: 1000 }, 2);
        let first = TopicPartition::new(Topic::new("t").unwrap(), 0);
        let rests = |partitions: &mut Partitions, source: &TopicPartition| {
            partitions.measure();
            partitions.must_rest(partitions.get(source).unwrap())
        };
        for offset in 0..4 {
            assert!(!rests(&mut partitions, &first));
            assert_eq!(partitions.get_mut(&first).unwrap().admit(offset, 1, 0), Admission::Open);
        }
        assert!(rests(&mut partitions, &first));
        assert!(!rests(&mut partitions, &TopicPartition::new(Topic::new("t").unwrap(), 1)));
        for (offset, still) in [(0, true), (1, true), (2, false)] {
            partitions.get_mut(&first).unwrap().settle(offset);
            assert_eq!(rests(&mut partitions, &first), still, "after {offset}");
        }
    }

    #[test]
    fn an_end_seen_before_a_restart_is_not_believed_after_it() {
        let mut partitions = owned(Bounds::default(), 1);
        let partition = partitions.iter_mut().next().unwrap();
        for offset in 0..3 {
            assert_eq!(partition.admit(offset, 1, 0), Admission::Open);
        }
        partition.restart(Instant::now());
        assert_eq!(partition.admit(3, 1, 0), Admission::Refused, "of the time before");
        partition.restart_at = None;
        partition.end_seen(3);
        assert_eq!(partition.window.watermark(), 0);
        assert_eq!(partition.admit(0, 1, 0), Admission::Open);
    }
}
