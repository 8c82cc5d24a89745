//! The checker: holds what was generated against what lies in the final topic and in
//! the dead letters. Pure: knows no log.
//!
//! - *Lost*: acknowledged to the generator, and in neither.
//! - *Duplicate*: each time beyond the first that something is there, in whichever.
//! - *Disorder*: within a key and a topic, by the first time that each record is there,
//!   a later number before an earlier one; or one key in two partitions. Under at least
//!   once a record may be a dead letter in one delivery and pass in another; such a
//!   one has no place of its own in the order, and counts as a duplicate anyway.
//! - *Strange*: never generated, or not as it was generated.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

/// So many findings of a kind are told one by one.
const TOLD: usize = 5;

/// A generated record: which key it has, and its number among those of that key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    pub key: u32,
    pub number: u32,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {} number {}", self.key, self.number)
    }
}

/// A record that was found.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    pub mark: Mark,
    /// Partition and offset where it lies.
    pub place: (i32, i64),
    /// Partition and offset of the record that it was made of.
    pub source: (i64, i64),
    /// Whether it is as it was generated.
    pub intact: bool,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mark, place, source, .. } = self;
        write!(f, "{mark} at {}:{} (made of {}:{})", place.0, place.1, source.0, source.1)
    }
}

/// What was generated.
#[derive(Debug, Clone, Default)]
pub struct Generated {
    /// What the log has acknowledged.
    pub acknowledged: HashSet<Mark>,
    /// What it has neither acknowledged nor surely refused: it may be there.
    pub unsure: HashSet<Mark>,
}

/// What was found in a topic, in the order of its partitions.
#[derive(Debug, Clone, Default)]
pub struct Pile {
    pub name: String,
    pub found: Vec<Found>,
}

/// The result.
#[derive(Debug, Clone, Default)]
pub struct Account {
    /// How many records were acknowledged to the generator.
    pub generated: usize,
    /// How many of them reached the final topic.
    pub delivered: usize,
    /// How many are dead letters.
    pub dead_letters: usize,
    pub duplicates: Vec<String>,
    pub lost: Vec<Mark>,
    pub disorder: Vec<String>,
    pub strange: Vec<String>,
}

impl Account {
    /// Takes stock.
    pub fn of(generated: &Generated, end: &Pile, dead: &[Pile]) -> Self {
        let passed: HashSet<Mark> = end.found.iter().map(|found| found.mark).collect();
        let given_up: HashSet<Mark> = dead.iter().flat_map(|pile| &pile.found).map(|found| found.mark).collect();
        let there = |mark: &Mark| passed.contains(mark) || given_up.contains(mark);
        let mut account = Self {
            generated: generated.acknowledged.len(),
            delivered: passed.len(),
            dead_letters: given_up.len(),
            lost: generated.acknowledged.iter().filter(|mark| !there(mark)).copied().collect(),
            ..Self::default()
        };
        account.lost.sort_unstable();
        let both: HashSet<Mark> = passed.intersection(&given_up).copied().collect();
        let mut first: HashMap<Mark, (&str, Found)> = HashMap::new();
        for pile in std::iter::once(end).chain(dead) {
            for found in &pile.found {
                let is_known = generated.acknowledged.contains(&found.mark) || generated.unsure.contains(&found.mark);
                if !is_known || !found.intact {
                    account.strange.push(format!("{found} of {}", pile.name));
                }
                if let Some((name, before)) = first.get(&found.mark) {
                    account.duplicates.push(format!("{found} of {}, after {before} of {name}", pile.name));
                } else {
                    first.insert(found.mark, (pile.name.as_str(), *found));
                }
            }
            account.disorder.extend(disorder(pile, &both));
        }
        account
    }

    /// What must not be.
    pub fn complaints(&self, exactly_once: bool) -> Vec<String> {
        let lost: Vec<String> = self.lost.iter().map(Mark::to_string).collect();
        let mut all = vec![("lost", &lost), ("order violations", &self.disorder), ("strange", &self.strange)];
        if exactly_once {
            all.push(("duplicates", &self.duplicates));
        }
        let told = |(what, list): (&str, &Vec<String>)| {
            let some = list.iter().take(TOLD).map(String::as_str).collect::<Vec<_>>().join("; ");
            format!("{} {what}: {some}", list.len())
        };
        all.into_iter().filter(|(_, list)| !list.is_empty()).map(told).collect()
    }
}

/// Where the order within a key is not kept, by the first time that each record is there.
fn disorder(pile: &Pile, both: &HashSet<Mark>) -> Vec<String> {
    let mut broken = Vec::new();
    let mut seen: HashSet<Mark> = HashSet::new();
    let mut last: BTreeMap<u32, Found> = BTreeMap::new();
    let mut homes: BTreeMap<u32, BTreeSet<i32>> = BTreeMap::new();
    for found in &pile.found {
        homes.entry(found.mark.key).or_default().insert(found.place.0);
        if both.contains(&found.mark) || !seen.insert(found.mark) {
            continue;
        }
        match last.get(&found.mark.key) {
            Some(before) if before.mark.number > found.mark.number => {
                broken.push(format!("{found} of {} after {before}", pile.name));
            }
            _ => drop(last.insert(found.mark.key, *found)),
        }
    }
    let scattered = homes.into_iter().filter(|(_, partitions)| partitions.len() > 1);
    broken.extend(scattered.map(|(key, partitions)| format!("key {key} of {} in {partitions:?}", pile.name)));
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: u32 = 5;
    const EACH: u32 = 20;

    /// All that was generated, and a final topic in which all of it lies as it should.
    fn perfect() -> (Generated, Pile) {
        let marks = (0..EACH).flat_map(|number| (0..KEYS).map(move |key| Mark { key, number }));
        let acknowledged: HashSet<Mark> = marks.clone().collect();
        let found = marks.enumerate().map(|(n, mark)| found(mark.key, mark.number, n as i64)).collect();
        (Generated { acknowledged, ..Generated::default() }, pile(found))
    }

    fn pile(found: Vec<Found>) -> Pile {
        Pile { name: "end".to_owned(), found }
    }

    fn found(key: u32, number: u32, offset: i64) -> Found {
        Found { mark: Mark { key, number }, place: (key as i32 % 2, offset), source: (0, offset), intact: true }
    }

    /// A final topic in which one key's numbers lie so.
    fn of_one_key(numbers: &[u32]) -> (Generated, Pile) {
        let acknowledged = numbers.iter().map(|number| Mark { key: 1, number: *number }).collect();
        let found = (0..).zip(numbers).map(|(offset, number)| found(1, *number, offset)).collect();
        (Generated { acknowledged, ..Generated::default() }, pile(found))
    }

    #[test]
    fn what_is_as_it_should_be_gives_no_complaint() {
        let (generated, end) = perfect();
        let account = Account::of(&generated, &end, &[]);
        assert_eq!((account.generated, account.delivered), (100, 100));
        assert!(account.complaints(true).is_empty(), "{:?}", account.complaints(true));
    }

    #[test]
    fn each_record_that_is_removed_is_found_lost() {
        let (generated, end) = perfect();
        for n in 0..end.found.len() {
            let mut end = end.clone();
            let removed = end.found.remove(n);
            let account = Account::of(&generated, &end, &[]);
            assert_eq!(account.lost, [removed.mark]);
            assert_eq!(account.complaints(false).len(), 1, "{:?}", account.complaints(false));
        }
    }

    #[test]
    fn each_record_that_is_doubled_is_found_wherever_its_double_lies() {
        let (generated, end) = perfect();
        for n in 0..end.found.len() {
            for at in n..=end.found.len() {
                let mut end = end.clone();
                end.found.insert(at, end.found[n]);
                let account = Account::of(&generated, &end, &[]);
                assert_eq!((account.duplicates.len(), account.disorder.len()), (1, 0), "{n} again at {at}");
                assert_eq!((account.complaints(true).len(), account.complaints(false).len()), (1, 0));
            }
        }
    }

    #[test]
    fn two_records_of_a_key_that_are_swapped_are_found_and_of_two_keys_they_may_be() {
        let (generated, end) = perfect();
        for one in 0..end.found.len() {
            for other in one + 1..end.found.len() {
                let mut end = end.clone();
                end.found.swap(one, other);
                let keys = [one, other].map(|n| end.found[n].mark.key);
                let account = Account::of(&generated, &end, &[]);
                assert!(account.lost.is_empty() && account.duplicates.is_empty());
                // Those of other keys are passed by as well, unless they stand beside each other.
                if keys[0] == keys[1] || other - one >= KEYS as usize {
                    assert!(!account.disorder.is_empty(), "{one} and {other} were swapped");
                } else {
                    assert!(account.disorder.is_empty(), "{:?}", account.disorder);
                }
            }
        }
    }

    #[test]
    fn what_comes_again_after_it_was_there_keeps_the_order() {
        let (generated, end) = of_one_key(&[0, 1, 2, 1, 2, 3, 0, 4]);
        let account = Account::of(&generated, &end, &[]);
        assert_eq!((account.duplicates.len(), account.disorder.len()), (3, 0));
        let (generated, end) = of_one_key(&[0, 2, 1, 2, 3]);
        assert_eq!(Account::of(&generated, &end, &[]).disorder.len(), 1, "2 was there before 1 ever was");
    }

    #[test]
    fn a_dead_letter_is_not_lost_and_has_its_order_too() {
        let (generated, mut end) = of_one_key(&[0, 1, 2, 3]);
        let dead = pile(vec![end.found.remove(1), end.found.remove(1)]);
        let account = Account::of(&generated, &end, std::slice::from_ref(&dead));
        assert_eq!((account.delivered, account.dead_letters), (2, 2));
        assert!(account.complaints(true).is_empty());
        let dead = pile(dead.found.into_iter().rev().collect());
        assert_eq!(Account::of(&generated, &end, &[dead]).disorder.len(), 1);
    }

    #[test]
    fn one_that_is_in_both_is_a_duplicate_and_stands_nowhere_in_the_order() {
        let (generated, end) = of_one_key(&[0, 2, 1, 3]);
        let dead = pile(vec![found(1, 1, 9)]);
        let account = Account::of(&generated, &end, &[dead]);
        assert_eq!((account.duplicates.len(), account.disorder.len()), (1, 0));
        assert_eq!(account.complaints(true).len(), 1);
    }

    #[test]
    fn what_was_never_generated_or_is_altered_is_strange() {
        let (generated, mut end) = perfect();
        end.found.push(found(77, 0, 1000));
        end.found[3].intact = false;
        assert_eq!(Account::of(&generated, &end, &[]).strange.len(), 2);
    }

    #[test]
    fn what_nobody_acknowledged_may_be_there_or_not() {
        let (mut generated, end) = perfect();
        let unsure = end.found[7].mark;
        generated.acknowledged.remove(&unsure);
        generated.unsure = [unsure, Mark { key: 0, number: EACH }].into();
        let account = Account::of(&generated, &end, &[]);
        assert!(account.complaints(true).is_empty(), "{:?}", account.complaints(true));
    }

    #[test]
    fn a_key_in_two_partitions_has_no_order() {
        let (generated, mut end) = perfect();
        end.found[0].place.0 += 1;
        assert_eq!(Account::of(&generated, &end, &[]).disorder.len(), 1);
    }
}
