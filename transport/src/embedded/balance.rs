//! How a group's partitions are divided among its members: sticky, balanced,
//! cooperative. A pure state; storing it and telling members is not its affair.
//!
//! Each partition has a lease:
//!
//! ```text
//!            divide: target chosen                       divide: another target
//!   free ───────────────────────────▶ held by owner ───────────────────────────▶ wanted away
//!    ▲                              (epoch grows by 1)                                │
//!    │                                                                               │
//!    └────────── owner releases it, leaves, or its session expires ◀─────────────────┘
//! ```
//!
//! A partition moves only through `free`, so two members never hold it at once;
//! a commit names the epoch it was made under, and one of an older epoch is
//! refused.

use std::collections::{BTreeMap, BTreeSet};

use pipedoc_model::names::Topic;

use super::MemberId;
use crate::log::TopicPartition;

/// One partition's place in a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Lease {
    /// Who holds it.
    pub(crate) owner: Option<MemberId>,
    /// Who is to hold it.
    pub(crate) target: Option<MemberId>,
    /// Under which the owner holds it; grows with each new owner.
    pub(crate) epoch: i64,
}

impl Lease {
    /// Whether its owner is asked to give it up.
    pub(crate) fn wanted_away(&self) -> bool {
        self.owner.is_some() && self.owner != self.target
    }

    /// Hands a free lease to whom it is meant for.
    fn settle(&mut self, last_epoch: &mut i64) {
        if self.owner.is_none() && self.target.is_some() {
            *last_epoch += 1;
            self.owner = self.target;
            self.epoch = *last_epoch;
        }
    }
}

/// Members of a group and the leases they hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Group {
    /// The topics each member wants.
    pub(crate) members: BTreeMap<MemberId, BTreeSet<Topic>>,
    /// The leases.
    pub(crate) leases: BTreeMap<TopicPartition, Lease>,
    /// The last epoch given. One count for the whole group, so that a topic made
    /// anew under an old name gets no epoch twice.
    pub(crate) last_epoch: i64,
}

impl Group {
    /// Divides the partitions of `topics` among the members.
    pub(crate) fn divide(&mut self, topics: &BTreeMap<Topic, i32>) {
        let exists = |source: &TopicPartition| topics.get(&source.topic).is_some_and(|n| source.partition < *n);
        self.leases.retain(|source, _| exists(source));
        let wanted: BTreeSet<&Topic> = self.members.values().flatten().collect();
        for topic in wanted {
            for partition in 0..topics.get(topic).copied().unwrap_or(0) {
                self.leases.entry(TopicPartition::new(topic.clone(), partition)).or_default();
            }
        }
        let mut division = Division::of(&self.members, &self.leases);
        division.fill();
        division.level();
        let targets = division.targets;
        for (source, lease) in &mut self.leases {
            lease.target = targets.get(source).copied();
            if lease.owner.is_some_and(|owner| !self.members.contains_key(&owner)) {
                lease.owner = None;
            }
            lease.settle(&mut self.last_epoch);
        }
    }

    /// Takes a member out; what it held is free.
    pub(crate) fn remove(&mut self, member: MemberId) {
        self.members.remove(&member);
        for lease in self.leases.values_mut() {
            if lease.owner == Some(member) {
                lease.owner = None;
            }
        }
    }

    /// Gives one partition up, if the member holds it under that epoch.
    pub(crate) fn release(&mut self, member: MemberId, source: &TopicPartition, epoch: i64) {
        if let Some(lease) = self.leases.get_mut(source)
            && lease.owner == Some(member)
            && lease.epoch == epoch
        {
            lease.owner = None;
            lease.settle(&mut self.last_epoch);
        }
    }

    /// Whether the member holds the partition under that epoch.
    pub(crate) fn holds(&self, member: MemberId, source: &TopicPartition, epoch: i64) -> bool {
        self.leases.get(source).is_some_and(|lease| lease.owner == Some(member) && lease.epoch == epoch)
    }
}

/// A division in the making.
struct Division<'a> {
    members: &'a BTreeMap<MemberId, BTreeSet<Topic>>,
    partitions: Vec<&'a TopicPartition>,
    targets: BTreeMap<TopicPartition, MemberId>,
    loads: BTreeMap<MemberId, usize>,
}

impl<'a> Division<'a> {
    /// Begins with what members hold or are promised already, as far as they still want it.
    fn of(members: &'a BTreeMap<MemberId, BTreeSet<Topic>>, leases: &'a BTreeMap<TopicPartition, Lease>) -> Self {
        let mut division = Self {
            members,
            partitions: leases.keys().collect(),
            targets: BTreeMap::new(),
            loads: members.keys().map(|member| (*member, 0)).collect(),
        };
        for (source, lease) in leases {
            let kept = [lease.target, lease.owner].into_iter().flatten().find(|member| division.wants(*member, source));
            if let Some(member) = kept {
                division.give(source, member);
            }
        }
        division
    }

    fn wants(&self, member: MemberId, source: &TopicPartition) -> bool {
        self.members.get(&member).is_some_and(|topics| topics.contains(&source.topic))
    }

    fn load(&self, member: MemberId) -> usize {
        self.loads.get(&member).copied().unwrap_or(0)
    }

    fn give(&mut self, source: &TopicPartition, member: MemberId) {
        if let Some(before) = self.targets.insert(source.clone(), member) {
            *self.loads.entry(before).or_default() -= 1;
        }
        *self.loads.entry(member).or_default() += 1;
    }

    /// The member with the least to do of those that want the partition.
    fn idlest(&self, source: &TopicPartition) -> Option<MemberId> {
        let candidates = self.members.keys().copied().filter(|member| self.wants(*member, source));
        candidates.min_by_key(|member| (self.load(*member), *member))
    }

    /// Gives every partition to somebody who wants it.
    fn fill(&mut self) {
        for source in self.partitions.clone() {
            if !self.targets.contains_key(source)
                && let Some(member) = self.idlest(source)
            {
                self.give(source, member);
            }
        }
    }

    /// Moves partitions until nobody has two more than somebody who would take
    /// one. Each move makes the loads more even, so this ends.
    fn level(&mut self) {
        loop {
            let mut moved = false;
            for source in self.partitions.clone() {
                let Some(owner) = self.targets.get(source).copied() else { continue };
                if let Some(idlest) = self.idlest(source)
                    && self.load(idlest) + 1 < self.load(owner)
                {
                    self.give(source, idlest);
                    moved = true;
                }
            }
            if !moved {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn topic(name: &str) -> Topic {
        Topic::new(name).unwrap()
    }

    fn at(name: &str, partition: i32) -> TopicPartition {
        TopicPartition::new(topic(name), partition)
    }

    fn held(group: &Group, member: MemberId) -> Vec<TopicPartition> {
        let of_member = group.leases.iter().filter(|(_, lease)| lease.owner == Some(member));
        of_member.map(|(source, _)| source.clone()).collect()
    }

    #[test]
    fn a_partition_moves_only_after_its_owner_released_it() {
        let topics = BTreeMap::from([(topic("t"), 2)]);
        let mut group = Group::default();
        group.members.insert(1, BTreeSet::from([topic("t")]));
        group.divide(&topics);
        assert_eq!(held(&group, 1).len(), 2);

        group.members.insert(2, BTreeSet::from([topic("t")]));
        group.divide(&topics);
        assert_eq!((held(&group, 1).len(), held(&group, 2).len()), (2, 0));
        let moving = group.leases.iter().find(|(_, lease)| lease.wanted_away()).unwrap().0.clone();
        let epoch = group.leases[&moving].epoch;
        group.release(1, &moving, epoch);
        assert_eq!(held(&group, 2), std::slice::from_ref(&moving));
        assert!(group.leases[&moving].epoch > epoch);
        assert!(!group.holds(1, &moving, epoch));
    }

    #[test]
    fn a_member_that_leaves_frees_what_it_held_and_the_rest_stays() {
        let topics = BTreeMap::from([(topic("t"), 4)]);
        let mut group = Group::default();
        group.members.insert(1, BTreeSet::from([topic("t")]));
        group.members.insert(2, BTreeSet::from([topic("t")]));
        group.divide(&topics);
        for (source, lease) in group.leases.clone().iter().filter(|(_, lease)| lease.wanted_away()) {
            group.release(1, source, lease.epoch);
        }
        let before = held(&group, 2);
        assert_eq!(before.len(), 2);
        let epochs = group.leases.clone();
        group.remove(1);
        group.divide(&topics);
        let after = held(&group, 2);
        assert_eq!(after.len(), 4);
        assert!(before.iter().all(|source| after.contains(source)));
        assert!(before.iter().all(|source| group.leases[source] == epochs[source]));
        assert_eq!(group.leases[&at("t", 0)].owner, Some(2));
    }

    proptest! {
        #[test]
        fn every_wanted_partition_is_given_and_loads_are_level(
            wants in proptest::collection::vec(proptest::collection::btree_set(0..4_usize, 1..4), 1..6),
            sizes in proptest::collection::vec(1..7_i32, 4),
        ) {
            let names: Vec<Topic> = (0..4).map(|n| topic(&format!("t{n}"))).collect();
            let topics: BTreeMap<Topic, i32> = names.iter().cloned().zip(sizes).collect();
            let mut group = Group::default();
            for (member, wanted) in wants.iter().enumerate() {
                group.members.insert(member as i64, wanted.iter().map(|n| names[*n].clone()).collect());
                group.divide(&topics);
                // Every owner gives up at once what is wanted away.
                let away: Vec<_> = group.leases.iter().filter(|(_, l)| l.wanted_away()).map(|(s, l)| (s.clone(), l.clone())).collect();
                for (source, lease) in away {
                    group.release(lease.owner.unwrap(), &source, lease.epoch);
                }
            }
            let loads: BTreeMap<i64, usize> =
                group.members.keys().map(|member| (*member, held(&group, *member).len())).collect();
            for (source, lease) in &group.leases {
                let owner = lease.owner.unwrap();
                prop_assert!(group.members[&owner].contains(&source.topic));
                for (other, topics) in &group.members {
                    if topics.contains(&source.topic) {
                        prop_assert!(loads[&owner] <= loads[other] + 1);
                    }
                }
            }
        }
    }
}
