//! Who is dead: a watcher of other processes' sessions that trusts no clock but
//! its own.
//!
//! A session in the file is a count of heartbeats. The judge remembers when *it*
//! saw the count change, by a clock that no one can set and that stands still
//! while the machine sleeps. While it cannot look or write itself, time counts
//! against nobody: perhaps nobody else could write either.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::embedded::MemberId;

/// A member as it is in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) member: MemberId,
    /// Heartbeats of its session so far.
    pub(super) beats: i64,
    pub(super) timeout: Duration,
}

/// What was seen, and when.
#[derive(Debug, Default)]
pub(super) struct Judge {
    members: HashMap<MemberId, (i64, Instant)>,
    looked: Option<Instant>,
}

impl Judge {
    /// Takes in what is in the file now. Gives the members, with their counts,
    /// whose count has not changed for as long as their timeout, watched all the time.
    /// `regular`: whether this process could write all the while; `gap`: the time
    /// between two looks beyond which somebody or something was asleep.
    pub(super) fn look(&mut self, now: Instant, regular: bool, gap: Duration, seen: &[Seen]) -> Vec<(MemberId, i64)> {
        let awake = self.looked.is_none_or(|looked| now.duration_since(looked) <= gap);
        self.looked = Some(now);
        let before = std::mem::take(&mut self.members);
        let mut dead = Vec::new();
        for seen in seen {
            let since = match before.get(&seen.member) {
                Some((beats, since)) if *beats == seen.beats && awake && regular => *since,
                _ => now,
            };
            if now.duration_since(since) > seen.timeout {
                dead.push((seen.member, seen.beats));
            }
            self.members.insert(seen.member, (seen.beats, since));
        }
        dead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GAP: Duration = Duration::from_secs(3);

    fn seen(beats: i64) -> Vec<Seen> {
        vec![Seen { member: 1, beats, timeout: Duration::from_secs(6) }]
    }

    /// The seconds after which a session is taken for dead, looked at each second.
    fn dies(beats: impl Fn(u64) -> i64, regular: impl Fn(u64) -> bool, looks: impl Fn(u64) -> bool) -> Option<u64> {
        let (mut judge, began) = (Judge::default(), Instant::now());
        (0..60).filter(|second| looks(*second)).find(|second| {
            let now = began + Duration::from_secs(*second);
            !judge.look(now, regular(*second), GAP, &seen(beats(*second))).is_empty()
        })
    }

    #[test]
    fn who_beats_lives_and_who_does_not_dies() {
        assert_eq!(dies(|second| second as i64 / 5, |_| true, |_| true), None);
        assert_eq!(dies(|_| 7, |_| true, |_| true), Some(7));
        assert_eq!(dies(|second| second.min(10) as i64, |_| true, |_| true), Some(17));
    }

    #[test]
    fn no_time_counts_while_the_judge_could_not_write_or_look() {
        assert_eq!(dies(|_| 7, |second| !(3..20).contains(&second), |_| true), Some(26));
        assert_eq!(dies(|_| 7, |_| true, |second| !(3..20).contains(&second)), Some(27));
        assert_eq!(dies(|_| 7, |_| false, |_| true), None);
    }
}
