//! The partitions a consumer owns: where each stands, what is buffered of it,
//! and what is to be handed out next. No IO: the consumer feeds it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Fetched, Grant};
use crate::log::{AssignedPartition, Committed, Ends, Event, RecordBatch, Start, TopicPartition};

/// One owned partition.
#[derive(Debug)]
struct Owned {
    /// Epoch of its lease; 0 outside groups.
    epoch: i64,
    /// Offset after the last record handed out.
    position: i64,
    /// Its end as last heard of.
    end: i64,
    paused: bool,
    /// Its revocation was handed out or is queued; no more of its records come.
    revoked: bool,
    /// Whether there may be something to read.
    hungry: bool,
    /// Whether the end was told since it was reached.
    end_told: bool,
    /// Whether the end was reached: everything up to `position` was read.
    at_end: bool,
    /// Whether a read of it is under way.
    reading: bool,
    /// Grows with each seek, so that reads from before it are thrown away.
    generation: u64,
    buffered: Option<Fetched>,
}

/// A read to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) source: TopicPartition,
    pub(super) from: i64,
    pub(super) generation: u64,
}

/// What applying the grants of a group changed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) lost: Vec<TopicPartition>,
    pub(super) revoked: Vec<TopicPartition>,
    pub(super) assigned: Vec<AssignedPartition>,
    /// Wanted away before anybody was told of them: to be released at once.
    pub(super) returned: Vec<(TopicPartition, i64)>,
}

/// All owned partitions.
#[derive(Debug, Default)]
pub(super) struct OwnedPartitions {
    partitions: BTreeMap<TopicPartition, Owned>,
    /// Newest epoch given up of each partition: grants that are not newer were
    /// read before the release.
    released: BTreeMap<TopicPartition, i64>,
    /// Whose turn it is: the first after this one.
    turn: Option<TopicPartition>,
    generations: u64,
}

/// Reads and buffered batches at once, over all partitions of a consumer: one
/// is handed out while the next is read.
const AHEAD: usize = 2;

impl OwnedPartitions {
    /// Owns a partition from now on.
    fn add(&mut self, source: TopicPartition, epoch: i64, position: i64, ends: Ends) {
        self.generations += 1;
        let owned = Owned {
            epoch,
            position,
            end: ends.end,
            paused: false,
            revoked: false,
            hungry: true,
            end_told: false,
            at_end: false,
            reading: false,
            generation: self.generations,
            buffered: None,
        };
        self.partitions.insert(source, owned);
    }

    /// Owns a partition outside any group.
    pub(super) fn assign(&mut self, source: TopicPartition, start: Start, ends: Ends) -> AssignedPartition {
        let position = place(start, ends);
        self.add(source.clone(), 0, position, ends);
        AssignedPartition { source, committed: None, position }
    }

    /// Makes what is owned agree with what the group grants.
    pub(super) fn apply(&mut self, grants: Vec<Grant>, start: Start) -> Changes {
        let mut changes = Changes::default();
        let granted: BTreeSet<TopicPartition> = grants.iter().map(|grant| grant.source.clone()).collect();
        self.partitions.retain(|source, owned| {
            let kept = granted.contains(source);
            if !kept && !owned.revoked {
                changes.lost.push(source.clone());
            }
            kept
        });
        for grant in grants {
            match self.partitions.get_mut(&grant.source) {
                Some(owned) if owned.epoch == grant.epoch => {
                    if grant.wanted_away && !owned.revoked {
                        owned.revoked = true;
                        owned.buffered = None;
                        changes.revoked.push(grant.source);
                    }
                    continue;
                }
                Some(owned) if !owned.revoked => changes.lost.push(grant.source.clone()),
                _ => {}
            }
            self.partitions.remove(&grant.source);
            if self.released.get(&grant.source).is_some_and(|epoch| *epoch >= grant.epoch) {
                continue;
            }
            if grant.wanted_away {
                changes.returned.push((grant.source, grant.epoch));
                continue;
            }
            let position = match &grant.committed {
                Some(Committed { offset, .. }) => *offset,
                // What was there when the group began has its end committed; this came later.
                None if start == Start::Latest => grant.ends.start,
                None => place(start, grant.ends),
            };
            self.add(grant.source.clone(), grant.epoch, position, grant.ends);
            changes.assigned.push(AssignedPartition { source: grant.source, committed: grant.committed, position });
        }
        changes
    }

    /// Forgets partitions that were given up.
    pub(super) fn forget(&mut self, released: &[(TopicPartition, i64)]) {
        for (source, epoch) in released {
            self.released.insert(source.clone(), *epoch);
            if self.partitions.get(source).is_some_and(|owned| owned.epoch == *epoch) {
                self.partitions.remove(source);
            }
        }
    }

    /// Owns nothing any more; gives what nobody was told of yet.
    pub(super) fn clear(&mut self) -> Vec<TopicPartition> {
        let all = std::mem::take(&mut self.partitions);
        all.into_iter().filter(|(_, owned)| !owned.revoked).map(|(source, _)| source).collect()
    }

    /// The epoch under which a partition is held.
    pub(super) fn epoch(&self, source: &TopicPartition) -> Option<i64> {
        self.partitions.get(source).map(|owned| owned.epoch)
    }

    /// All that is owned.
    pub(super) fn sources(&self) -> BTreeSet<TopicPartition> {
        self.partitions.keys().cloned().collect()
    }

    /// Where each partition stands.
    pub(super) fn positions(&self) -> BTreeMap<TopicPartition, i64> {
        self.partitions.iter().map(|(source, owned)| (source.clone(), owned.position)).collect()
    }

    /// The ends last heard of.
    pub(super) fn ends(&self) -> BTreeMap<TopicPartition, i64> {
        self.partitions.iter().map(|(source, owned)| (source.clone(), owned.end)).collect()
    }

    /// Pauses or resumes.
    pub(super) fn pause(&mut self, partitions: &[TopicPartition], paused: bool) {
        for source in partitions {
            if let Some(owned) = self.partitions.get_mut(source) {
                owned.paused = paused;
            }
        }
    }

    /// Goes on elsewhere; `false` when the partition is not owned.
    pub(super) fn seek(&mut self, source: &TopicPartition, to: i64) -> bool {
        self.generations += 1;
        let Some(owned) = self.partitions.get_mut(source) else { return false };
        owned.position = to;
        owned.generation = self.generations;
        owned.buffered = None;
        owned.reading = false;
        owned.hungry = true;
        owned.at_end = false;
        owned.end_told = false;
        true
    }

    /// A partition has grown.
    pub(super) fn grew(&mut self, source: &TopicPartition, end: i64) {
        if let Some(owned) = self.partitions.get_mut(source)
            && end > owned.end
        {
            owned.end = end;
            owned.hungry = true;
        }
    }

    /// Owned partitions, the one whose turn it is first.
    fn in_turn(&self) -> Vec<TopicPartition> {
        let after = self.partitions.keys().filter(|source| self.turn.as_ref().is_none_or(|turn| *source > turn));
        let before = self.partitions.keys().filter(|source| self.turn.as_ref().is_some_and(|turn| *source <= turn));
        after.chain(before).cloned().collect()
    }

    /// The next event of a partition, taken in turn.
    pub(super) fn hand_out(&mut self) -> Option<Event> {
        for source in self.in_turn() {
            let Some(owned) = self.partitions.get_mut(&source) else { continue };
            if owned.paused || owned.revoked {
                continue;
            }
            if let Some(fetched) = owned.buffered.take() {
                owned.position = fetched.next;
                owned.at_end = fetched.next >= fetched.ends.end;
                owned.end_told = false;
                owned.hungry |= !owned.at_end;
                self.turn = Some(source.clone());
                return Some(Event::Records(RecordBatch { source, records: fetched.records }));
            }
            if owned.at_end && !owned.end_told && !owned.hungry && !owned.reading {
                owned.end_told = true;
                let position = owned.position;
                self.turn = Some(source.clone());
                return Some(Event::EndOfPartition { source, position });
            }
        }
        None
    }

    /// The reads to begin now, in turn; they count as under way.
    pub(super) fn wanted(&mut self) -> Vec<Wanted> {
        // Of those paused or taken away nothing is waited for.
        let busy = |owned: &Owned| !owned.paused && !owned.revoked && (owned.reading || owned.buffered.is_some());
        let mut room = AHEAD.saturating_sub(self.partitions.values().filter(|owned| busy(owned)).count());
        let mut wanted = Vec::new();
        for source in self.in_turn() {
            if room == 0 {
                break;
            }
            let Some(owned) = self.partitions.get_mut(&source) else { continue };
            if owned.hungry && !owned.paused && !owned.revoked && !owned.reading && owned.buffered.is_none() {
                owned.hungry = false;
                owned.reading = true;
                room -= 1;
                wanted.push(Wanted { source, from: owned.position, generation: owned.generation });
            }
        }
        wanted
    }

    /// A read came back. Gives an event when the place it began at is gone.
    pub(super) fn read(&mut self, wanted: &Wanted, fetched: Fetched) -> Option<Event> {
        let owned = self.partitions.get_mut(&wanted.source)?;
        if owned.generation != wanted.generation || owned.revoked {
            return None;
        }
        owned.reading = false;
        owned.end = owned.end.max(fetched.ends.end);
        let gone = wanted.from < fetched.ends.start || wanted.from > fetched.ends.end;
        if wanted.from > fetched.ends.end {
            owned.position = fetched.ends.start;
            owned.hungry = true;
        } else if fetched.records.is_empty() {
            // Nothing lies between here and there: compacted away, or the end.
            let moved = fetched.next > owned.position || owned.position < fetched.ends.start;
            owned.position = fetched.next.max(fetched.ends.start);
            let reached = !owned.at_end || moved;
            owned.at_end = owned.position >= fetched.ends.end;
            owned.end_told &= !reached;
            owned.hungry |= !owned.at_end;
        } else {
            owned.buffered = Some(fetched);
        }
        gone.then(|| Event::OffsetsGone {
            source: wanted.source.clone(),
            wanted: wanted.from,
            resumed_at: self.resumed_at(&wanted.source),
        })
    }

    /// Where a partition goes on: at what is buffered of it, else its position.
    fn resumed_at(&self, source: &TopicPartition) -> i64 {
        let Some(owned) = self.partitions.get(source) else { return 0 };
        owned.buffered.as_ref().map_or(owned.position, |fetched| fetched.ends.start)
    }

    /// A read failed and has to be made again.
    pub(super) fn read_failed(&mut self, wanted: &Wanted) {
        if let Some(owned) = self.partitions.get_mut(&wanted.source)
            && owned.generation == wanted.generation
        {
            owned.reading = false;
            owned.hungry = true;
        }
    }
}

/// Offset of a start.
pub(super) fn place(start: Start, ends: Ends) -> i64 {
    match start {
        Start::Earliest => ends.start,
        Start::Latest => ends.end,
        Start::At(offset) => offset,
    }
}

/// Events in the order in which they are to be told: first what is gone.
pub(super) fn tell(events: &mut VecDeque<Event>, lost: Vec<TopicPartition>) {
    if !lost.is_empty() {
        events.push_back(Event::Lost(lost));
    }
}

#[cfg(test)]
mod tests {
    use pipedoc_model::names::Topic;

    use super::*;

    fn grants(away: &[i32]) -> Vec<Grant> {
        let grant = |partition| Grant {
            source: TopicPartition::new(Topic::new("t").unwrap(), partition),
            epoch: i64::from(partition) + 1,
            wanted_away: away.contains(&partition),
            committed: None,
            ends: Ends { start: 0, end: 10 },
        };
        (0..3).map(grant).collect()
    }

    #[test]
    fn others_are_read_while_partitions_are_given_up() {
        let mut owned = OwnedPartitions::default();
        owned.apply(grants(&[]), Start::Earliest);
        let reading: Vec<i32> = owned.wanted().iter().map(|wanted| wanted.source.partition).collect();
        assert_eq!(reading, [0, 1]);
        assert_eq!(owned.apply(grants(&[0, 1]), Start::Earliest).revoked.len(), 2);
        let reading: Vec<i32> = owned.wanted().iter().map(|wanted| wanted.source.partition).collect();
        assert_eq!(reading, [2]);
    }
}
