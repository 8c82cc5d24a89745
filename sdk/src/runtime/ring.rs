//! Values by numbers that only grow, most of them close together.
//!
//! Pure. What is open of a stream lies side by side in memory, where a hash table
//! costs a miss of the cache or two at each look. A number that stays while many come
//! after it moves aside, so that memory is bounded by how many there are.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

/// So many places may be empty, and as many as are taken.
const EMPTY: usize = 1024;

/// Values by their numbers.
#[derive(Debug)]
pub(crate) struct Ring<T> {
    /// Those from `first` on, each at its place.
    near: VecDeque<Option<T>>,
    first: u64,
    /// How many places of `near` are taken.
    taken: usize,
    /// Those that stayed behind.
    behind: FxHashMap<u64, T>,
}

impl<T> Default for Ring<T> {
    fn default() -> Self {
        Self { near: VecDeque::new(), first: 0, taken: 0, behind: FxHashMap::default() }
    }
}

impl<T> Ring<T> {
    /// Puts a value in; one of the same number gives way.
    pub(crate) fn insert(&mut self, number: u64, value: T) {
        if self.near.is_empty() {
            self.first = self.first.max(number);
        }
        let Some(at) = self.place(number) else {
            self.behind.insert(number, value);
            return;
        };
        if self.near.len() <= at {
            self.near.resize_with(at + 1, || None);
        }
        self.taken += usize::from(self.near[at].replace(value).is_none());
        self.tidy();
    }

    pub(crate) fn get(&self, number: u64) -> Option<&T> {
        match self.place(number) {
            Some(at) => self.near.get(at)?.as_ref(),
            None => self.behind.get(&number),
        }
    }

    pub(crate) fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        match self.place(number) {
            Some(at) => self.near.get_mut(at)?.as_mut(),
            None => self.behind.get_mut(&number),
        }
    }

    pub(crate) fn remove(&mut self, number: u64) -> Option<T> {
        let Some(at) = self.place(number) else { return self.behind.remove(&number) };
        let value = self.near.get_mut(at)?.take()?;
        self.taken -= 1;
        self.tidy();
        Some(value)
    }

    pub(crate) fn contains(&self, number: u64) -> bool {
        self.get(number).is_some()
    }

    pub(crate) fn len(&self) -> usize {
        self.taken + self.behind.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All values, in no order.
    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.behind.values().chain(self.near.iter().flatten())
    }

    /// Keeps what it is told to; asks in no order.
    pub(crate) fn retain(&mut self, mut keeps: impl FnMut(u64, &T) -> bool) {
        self.behind.retain(|number, value| keeps(*number, value));
        for (place, number) in self.near.iter_mut().zip(self.first..) {
            if place.as_ref().is_some_and(|value| !keeps(number, value)) {
                *place = None;
                self.taken -= 1;
            }
        }
        self.tidy();
    }

    fn place(&self, number: u64) -> Option<usize> {
        usize::try_from(number.checked_sub(self.first)?).ok()
    }

    /// Gives empty places up at the front, and those before too many empty ones.
    fn tidy(&mut self) {
        while let Some(front) = self.near.front() {
            if front.is_some() && self.near.len() <= self.taken * 2 + EMPTY {
                break;
            }
            if let Some(value) = self.near.pop_front().flatten() {
                self.behind.insert(self.first, value);
                self.taken -= 1;
            }
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_that_stays_costs_no_memory_for_those_that_came_after_it() {
        let mut ring = Ring::default();
        ring.insert(0, 0);
        for number in 1..100_000 {
            ring.insert(number, number);
            assert_eq!(ring.remove(number), Some(number));
        }
        assert_eq!((ring.len(), ring.get(0)), (1, Some(&0)));
        assert!(ring.near.capacity() <= 4 * EMPTY, "{}", ring.near.capacity());
    }

    proptest! {
        /// Whatever comes, goes and is skipped: it holds what a map would.
        #[test]
        fn it_is_a_map(acts in proptest::collection::vec((0..5_u8, 0..3000_u64), 1..300)) {
            let (mut ring, mut map, mut next) = (Ring::default(), BTreeMap::new(), 0_u64);
            for (act, by) in acts {
                match act {
                    0 | 1 => {
                        next += 1 + if act == 0 { 0 } else { by };
                        ring.insert(next, by);
                        map.insert(next, by);
                    }
                    2 => {
                        let number = next.saturating_sub(by);
                        prop_assert_eq!(ring.remove(number), map.remove(&number));
                    }
                    3 => if let Some((number, _)) = map.pop_first() {
                        prop_assert!(ring.remove(number).is_some());
                    },
                    _ => {
                        ring.retain(|number, _| number % 3 != by % 3);
                        map.retain(|number, _| number % 3 != by % 3);
                    }
                }
                prop_assert_eq!(ring.len(), map.len());
                prop_assert_eq!(ring.is_empty(), map.is_empty());
                for (number, value) in &map {
                    prop_assert_eq!(ring.get(*number), Some(value));
                    prop_assert_eq!(ring.get_mut(*number).copied(), Some(*value));
                }
                prop_assert!(!ring.contains(next + 1));
                let mut values: Vec<u64> = ring.values().copied().collect();
                values.sort_unstable();
                let mut expected: Vec<u64> = map.values().copied().collect();
                expected.sort_unstable();
                prop_assert_eq!(values, expected);
            }
        }
    }
}
