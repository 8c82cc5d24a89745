//! Lanes: what must stay in order waits in one lane, different lanes go side by side.
//!
//! Pure: told the time, asks no clock. A lane is a queue of deliveries. The ones
//! at its head are at work (one, or several that share a batch), or wait out a
//! backoff; the others wait for their turn. A lane exists only while something
//! is in it.

use std::cmp::Reverse;
use std::collections::hash_map::{Entry, OccupiedEntry};
use std::collections::{BinaryHeap, VecDeque};
use std::hash::{BuildHasher, RandomState};

use pipedoc_transport::log::TopicPartition;
use rustc_hash::FxHashMap;
use tokio::time::Instant;

/// A delivery, by a number that is never used again.
pub(crate) type DeliveryId = u64;

/// A lane, by hash: two keys of one hash share a lane, which does no harm.
pub(crate) type LaneId = u64;

/// What a lane holds together.
#[derive(Hash)]
pub(crate) enum LaneKey<'a> {
    /// Records of this key.
    Key(&'a [u8]),
    /// Records of this partition.
    Partition(&'a TopicPartition),
    /// This delivery alone.
    Alone(DeliveryId),
}

/// All lanes of a step.
#[derive(Debug)]
pub(crate) struct Lanes {
    lanes: FxHashMap<LaneId, Lane>,
    /// Lanes whose head may start.
    ready: VecDeque<LaneId>,
    /// Lanes that wait until a moment.
    waiting: BinaryHeap<Reverse<(Instant, LaneId)>>,
    /// Deliveries at work.
    working: usize,
    /// Deliveries that may be at work at once.
    concurrency: usize,
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Lane {
    queue: Queue,
    /// How many at the head of the queue are at work.
    taken: usize,
    /// Until when the head waits.
    until: Option<Instant>,
    /// Whether it stands in `ready`.
    ready: bool,
}

/// Deliveries in order. Most lanes hold one, which needs no memory of its own.
#[derive(Debug, Default)]
struct Queue {
    head: Option<DeliveryId>,
    rest: VecDeque<DeliveryId>,
}

impl Lanes {
    /// No lanes. `concurrency` is at least 1.
    pub(crate) fn new(concurrency: usize) -> Self {
        Self {
            lanes: FxHashMap::default(),
            ready: VecDeque::new(),
            waiting: BinaryHeap::new(),
            working: 0,
            concurrency: concurrency.max(1),
            hasher: RandomState::new(),
        }
    }

    /// The lane of a key.
    pub(crate) fn lane(&self, key: &LaneKey<'_>) -> LaneId {
        self.hasher.hash_one(key)
    }

    /// Puts a delivery at the end of a lane.
    pub(crate) fn push(&mut self, lane: LaneId, delivery: DeliveryId) {
        let state = self.lanes.entry(lane).or_default();
        state.queue.push(delivery);
        if state.becomes_ready() {
            self.ready.push_back(lane);
        }
    }

    /// The next delivery whose turn it is, if there is room for it; it is at work
    /// from now on.
    pub(crate) fn start(&mut self) -> Option<DeliveryId> {
        if self.working >= self.concurrency {
            return None;
        }
        let lane = self.next_ready()?;
        let state = self.lanes.get_mut(&lane)?;
        let delivery = state.queue.get(0)?;
        state.taken = 1;
        self.working += 1;
        Some(delivery)
    }

    /// Up to `max` deliveries that may share a batch: several of one lane are in
    /// their order. `fits` is asked about each before it is taken. The batch
    /// counts as one against the concurrency.
    pub(crate) fn start_batch(&mut self, max: usize, mut fits: impl FnMut(DeliveryId) -> bool) -> Vec<DeliveryId> {
        let mut batch = Vec::new();
        if self.working >= self.concurrency {
            return batch;
        }
        'lanes: while batch.len() < max {
            let Some(lane) = self.next_ready() else { break };
            let Some(state) = self.lanes.get_mut(&lane) else { continue };
            while let Some(delivery) = state.queue.get(state.taken) {
                if batch.len() == max || !fits(delivery) {
                    if state.taken == 0 {
                        state.ready = true;
                        self.ready.push_front(lane);
                    }
                    break 'lanes;
                }
                batch.push(delivery);
                state.taken += 1;
            }
        }
        self.working += usize::from(!batch.is_empty());
        batch
    }

    /// How many deliveries could start now, counted up to `enough`.
    pub(crate) fn startable(&self, enough: usize) -> usize {
        let mut sum = 0;
        for lane in self.ready.iter().filter_map(|lane| self.lanes.get(lane)).filter(|lane| lane.may_start()) {
            sum += lane.queue.len();
            if sum >= enough {
                break;
            }
        }
        sum
    }

    /// The work that [`start`](Self::start) or one
    /// [`start_batch`](Self::start_batch) began has ended.
    pub(crate) fn work_ended(&mut self) {
        self.working = self.working.saturating_sub(1);
    }

    /// A delivery at work leaves its lane, which goes on.
    pub(crate) fn leave(&mut self, lane: LaneId, delivery: DeliveryId) {
        let Entry::Occupied(mut entry) = self.lanes.entry(lane) else { return };
        let state = entry.get_mut();
        if let Some(at) = state.place_of(delivery) {
            state.queue.remove(at);
            state.taken -= 1;
        }
        tidy(entry, &mut self.ready);
    }

    /// A delivery at work goes back to waiting at its place, for a while or not.
    pub(crate) fn wait(&mut self, lane: LaneId, delivery: DeliveryId, until: Option<Instant>) {
        let Some(state) = self.lanes.get_mut(&lane) else { return };
        if let Some(at) = state.place_of(delivery) {
            // Results of one batch are taken in its order: what stands before it has
            // left, or becomes a dead letter and stays at work until that is made.
            debug_assert!(at == 0 || until.is_none(), "only the head waits out a backoff");
            state.taken = at;
            if let Some(until) = until {
                state.until = Some(until);
                self.waiting.push(Reverse((until, lane)));
            }
        }
        self.refresh(lane);
    }

    /// Forgets deliveries, wherever they stand. What still runs of them must keep
    /// its lane busy, so it is not gone yet.
    pub(crate) fn forget(&mut self, mut gone: impl FnMut(DeliveryId) -> bool) {
        let all: Vec<LaneId> = self.lanes.keys().copied().collect();
        for lane in all {
            if let Some(state) = self.lanes.get_mut(&lane) {
                let (taken, head) = (state.taken, state.queue.get(0));
                let mut at = 0;
                state.queue.retain(|delivery| {
                    at += 1;
                    let stays = !gone(delivery);
                    state.taken -= usize::from(at <= taken && !stays);
                    stays
                });
                if state.queue.get(0) != head {
                    // The backoff was that delivery's own.
                    state.until = None;
                }
            }
            self.refresh(lane);
        }
    }

    /// Lets those go on whose backoff is over.
    pub(crate) fn wake(&mut self, now: Instant) {
        while let Some(Reverse((until, lane))) = self.waiting.peek().copied() {
            if until > now {
                break;
            }
            self.waiting.pop();
            if let Some(state) = self.lanes.get_mut(&lane)
                && state.until.is_some_and(|until| until <= now)
            {
                state.until = None;
                self.refresh(lane);
            }
        }
    }

    /// When the next backoff is over.
    pub(crate) fn next_wake(&self) -> Option<Instant> {
        self.waiting.peek().map(|Reverse((until, _))| *until)
    }

    /// Whether nothing is in any lane.
    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Whether another delivery may be at work.
    pub(crate) fn has_room(&self) -> bool {
        self.working < self.concurrency
    }

    /// Takes the next lane out of `ready` that really is.
    fn next_ready(&mut self) -> Option<LaneId> {
        while let Some(lane) = self.ready.pop_front() {
            if let Some(state) = self.lanes.get_mut(&lane) {
                state.ready = false;
                if state.may_start() {
                    return Some(lane);
                }
            }
        }
        None
    }

    /// Puts a lane into `ready` when its head may start, and removes an empty one.
    fn refresh(&mut self, lane: LaneId) {
        if let Entry::Occupied(entry) = self.lanes.entry(lane) {
            tidy(entry, &mut self.ready);
        }
    }
}

fn tidy(mut entry: OccupiedEntry<'_, LaneId, Lane>, ready: &mut VecDeque<LaneId>) {
    if entry.get().queue.is_empty() {
        entry.remove();
    } else if entry.get_mut().becomes_ready() {
        ready.push_back(*entry.key());
    }
}

impl Lane {
    fn may_start(&self) -> bool {
        self.taken == 0 && self.until.is_none() && !self.queue.is_empty()
    }

    /// Whether it is to be put into `ready`, where it is from now on.
    fn becomes_ready(&mut self) -> bool {
        self.may_start() && !std::mem::replace(&mut self.ready, true)
    }

    /// Where a delivery stands that is at work.
    fn place_of(&self, delivery: DeliveryId) -> Option<usize> {
        (0..self.taken).find(|at| self.queue.get(*at) == Some(delivery))
    }
}

impl Queue {
    fn push(&mut self, delivery: DeliveryId) {
        match self.head {
            None => self.head = Some(delivery),
            Some(_) => self.rest.push_back(delivery),
        }
    }

    fn get(&self, at: usize) -> Option<DeliveryId> {
        match at.checked_sub(1) {
            None => self.head,
            Some(at) => self.rest.get(at).copied(),
        }
    }

    fn remove(&mut self, at: usize) {
        match at.checked_sub(1) {
            None => self.head = self.rest.pop_front(),
            Some(at) => {
                self.rest.remove(at);
            }
        }
    }

    /// Keeps what it is told to; asks in order.
    fn retain(&mut self, mut keeps: impl FnMut(DeliveryId) -> bool) {
        let head = self.head.filter(|head| keeps(*head));
        self.rest.retain(|delivery| keeps(*delivery));
        self.head = head.or_else(|| self.rest.pop_front());
    }

    fn len(&self) -> usize {
        usize::from(self.head.is_some()) + self.rest.len()
    }

    fn is_empty(&self) -> bool {
        self.head.is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use proptest::prelude::*;

    use std::collections::HashMap;

    use super::*;

    #[test]
    fn one_lane_goes_one_by_one_and_others_beside_it() {
        let mut lanes = Lanes::new(8);
        for (lane, delivery) in [(1, 10), (1, 11), (2, 20)] {
            lanes.push(lane, delivery);
        }
        assert_eq!((lanes.start(), lanes.start(), lanes.start()), (Some(10), Some(20), None));
        lanes.work_ended();
        lanes.leave(1, 10);
        assert_eq!(lanes.start(), Some(11));
    }

    #[test]
    fn a_backoff_holds_up_its_own_lane_only() {
        let mut lanes = Lanes::new(1);
        let now = Instant::now();
        lanes.push(1, 10);
        lanes.push(1, 11);
        lanes.push(2, 20);
        assert_eq!(lanes.start(), Some(10));
        lanes.work_ended();
        lanes.wait(1, 10, Some(now + Duration::from_secs(1)));
        assert_eq!(lanes.start(), Some(20));
        lanes.work_ended();
        lanes.leave(2, 20);
        assert_eq!(lanes.start(), None);
        lanes.wake(now + Duration::from_secs(1));
        assert_eq!(lanes.start(), Some(10), "the one that failed, not the one behind it");
    }

    #[test]
    fn a_batch_takes_several_of_a_lane_in_order_and_gives_back_those_not_done() {
        let mut lanes = Lanes::new(1);
        for delivery in 1..=4 {
            lanes.push(7, delivery);
        }
        assert_eq!(lanes.start_batch(3, |_| true), [1, 2, 3]);
        assert_eq!(lanes.start_batch(3, |_| true), [] as [u64; 0], "one batch counts as one at work");
        lanes.work_ended();
        lanes.leave(7, 1);
        lanes.wait(7, 2, None);
        assert_eq!(lanes.start_batch(9, |_| true), [2, 3, 4]);
    }

    #[test]
    fn a_lane_goes_on_once_all_at_its_head_have_left_or_are_forgotten() {
        let mut lanes = Lanes::new(4);
        lanes.push(1, 10);
        lanes.push(1, 11);
        assert_eq!(lanes.start(), Some(10));
        lanes.forget(|delivery| delivery == 11);
        lanes.push(1, 12);
        assert_eq!(lanes.start(), None, "10 has not ended");
        lanes.work_ended();
        lanes.leave(1, 10);
        assert_eq!(lanes.start(), Some(12));
        lanes.work_ended();
        lanes.push(1, 13);
        assert_eq!(lanes.start(), None, "12 holds its lane");
        lanes.forget(|delivery| delivery == 12);
        assert_eq!(lanes.start(), Some(13));
    }

    proptest! {
        /// Whatever ends, fails or is forgotten: no lane has two at work, the
        /// order within a lane is kept, nothing is lost and no more than allowed run.
        #[test]
        fn lanes_keep_order_and_lose_nothing(acts in proptest::collection::vec((0..4_u8, 0..5_u64), 1..200)) {
            let mut lanes = Lanes::new(3);
            let mut now = Instant::now();
            let mut next = 0_u64;
            let mut expected: HashMap<LaneId, VecDeque<DeliveryId>> = HashMap::new();
            let mut lane_of: HashMap<DeliveryId, LaneId> = HashMap::new();
            let mut working: Vec<DeliveryId> = Vec::new();
            for (act, number) in acts {
                match act {
                    0 | 1 => {
                        lanes.push(number, next);
                        expected.entry(number).or_default().push_back(next);
                        lane_of.insert(next, number);
                        next += 1;
                    }
                    2 => if let Some(delivery) = working.pop() {
                        let lane = lane_of[&delivery];
                        lanes.work_ended();
                        lanes.leave(lane, delivery);
                        let queue = expected.get_mut(&lane).unwrap();
                        prop_assert_eq!(queue.pop_front(), Some(delivery));
                    },
                    _ => if let Some(delivery) = working.pop() {
                        lanes.work_ended();
                        now += Duration::from_millis(1);
                        lanes.wait(lane_of[&delivery], delivery, Some(now));
                    },
                }
                lanes.wake(now);
                while let Some(delivery) = lanes.start() {
                    prop_assert_eq!(expected[&lane_of[&delivery]].front(), Some(&delivery));
                    working.push(delivery);
                }
                prop_assert!(working.len() <= 3);
                let busy: HashSet<_> = working.iter().map(|delivery| lane_of[delivery]).collect();
                prop_assert_eq!(busy.len(), working.len());
            }
            while let Some(delivery) = working.pop().or_else(|| lanes.start()) {
                lanes.work_ended();
                lanes.leave(lane_of[&delivery], delivery);
                prop_assert_eq!(expected.get_mut(&lane_of[&delivery]).unwrap().pop_front(), Some(delivery));
            }
            prop_assert!(lanes.is_empty());
            prop_assert!(expected.values().all(VecDeque::is_empty));
        }
    }
}
