//! Whether a consumer's client is of any use: it has a connection, learns where to
//! begin, asks for records, can commit. librdkafka tries again for ever and mostly gets there; a
//! client that does not is noticed here, and given up by whoever asks.
//!
//! Sees what the client tells of itself and how commits end. Knows nothing of
//! whether the cluster answers others: without that, silence is nobody's fault.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::Statistics;

use crate::log::TopicPartition;

/// Since when a client fails at something.
#[derive(Debug)]
pub(super) struct Vigil {
    /// A request for records may be under way for so long without an answer.
    longest_fetch: Duration,
    marks: Mutex<Marks>,
}

#[derive(Debug, Default)]
struct Marks {
    cut_off: Option<Instant>,
    idle: Option<Instant>,
    commits: Option<Instant>,
    places: Option<Instant>,
    /// Requests for records that the client had sent at the last look.
    fetches: Option<i64>,
}

/// What a client fails at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failing {
    /// As in «it ⟨what⟩ for 60 s».
    pub(super) what: &'static str,
    pub(super) since: Instant,
}

impl Vigil {
    /// `longest_fetch`: how long the broker may hold back its answer.
    pub(super) fn new(longest_fetch: Duration) -> Self {
        Self { longest_fetch, marks: Mutex::default() }
    }

    /// Takes in what a client tells of itself; `wanted` are the partitions that it
    /// is to read now.
    pub(super) fn look(&self, statistics: &Statistics, wanted: &[TopicPartition]) {
        let connected = statistics.brokers.values().any(|broker| broker.state == "UP");
        let fetches = statistics.brokers.values().filter_map(|broker| broker.req.get("Fetch")).sum();
        let partitions = wanted.iter().filter_map(|source| {
            let topic = statistics.topics.get(source.topic.as_str())?;
            // Without a leader nobody can read it.
            topic.partitions.get(&source.partition).filter(|partition| partition.leader >= 0)
        });
        let (mut stuck, mut hungry) = (false, false);
        for partition in partitions {
            stuck |= partition.fetch_state != "active";
            hungry |= partition.fetchq_cnt == 0;
        }
        let mut marks = self.marks.lock();
        let asked = marks.fetches.replace(fetches).is_none_or(|before| before != fetches);
        mark(&mut marks.cut_off, !connected, Duration::ZERO);
        mark(&mut marks.idle, connected && (stuck || hungry && !asked), self.longest_fetch);
    }

    /// A commit has ended.
    pub(super) fn committed(&self, well: bool) {
        mark(&mut self.marks.lock().commits, !well, Duration::ZERO);
    }

    /// The client was given partitions and has asked where to begin in them. While it does
    /// not know, its group waits for it with the next rebalance.
    pub(super) fn asked_where_to_begin(&self, well: bool) {
        mark(&mut self.marks.lock().places, !well, Duration::ZERO);
    }

    /// What the client has failed at for longest.
    pub(super) fn failing(&self) -> Option<Failing> {
        let marks = self.marks.lock();
        let all = [
            ("has had no connection", marks.cut_off),
            ("has asked for no records", marks.idle),
            ("could not commit", marks.commits),
            ("could not learn where to begin", marks.places),
        ];
        let failing = all.into_iter().filter_map(|(what, since)| Some(Failing { what, since: since? }));
        failing.min_by_key(|failing| failing.since)
    }
}

impl Failing {
    /// For how long, looking back no further than to `moment`.
    pub(super) fn lasts_since(&self, moment: Instant) -> Duration {
        self.since.max(moment).elapsed()
    }
}

/// Notes that something fails, from `grace` after now on.
fn mark(since: &mut Option<Instant>, failing: bool, grace: Duration) {
    if failing {
        since.get_or_insert_with(|| Instant::now() + grace);
    } else {
        *since = None;
    }
}

#[cfg(test)]
mod tests {
    use pipedoc_model::names::Topic;

    use super::*;

    /// A client with one broker and one partition.
    fn told(state: &str, fetches: i64, fetch_state: &str, queued: i64, leader: i32) -> Statistics {
        let mut statistics = Statistics::default();
        let broker = statistics.brokers.entry("one".to_owned()).or_default();
        state.clone_into(&mut broker.state);
        broker.req.insert("Fetch".to_owned(), fetches);
        let topic = statistics.topics.entry("t".to_owned()).or_default();
        let partition = topic.partitions.entry(0).or_default();
        fetch_state.clone_into(&mut partition.fetch_state);
        (partition.fetchq_cnt, partition.leader) = (queued, leader);
        statistics
    }

    fn failing_at(looks: &[Statistics], wanted: bool) -> Option<&'static str> {
        let vigil = Vigil::new(Duration::ZERO);
        let source = TopicPartition::new(Topic::new("t").unwrap(), 0);
        let wanted: Vec<_> = wanted.then_some(source).into_iter().collect();
        for look in looks {
            vigil.look(look, &wanted);
        }
        vigil.failing().map(|failing| failing.what)
    }

    #[test]
    fn a_client_that_reads_is_left_alone() {
        let reads = [told("UP", 5, "active", 0, 1), told("UP", 7, "active", 0, 1)];
        assert_eq!(failing_at(&reads, true), None);
        let is_full = [told("UP", 5, "active", 900, 1), told("UP", 5, "active", 900, 1)];
        assert_eq!(failing_at(&is_full, true), None, "what it has read ahead is enough");
        let is_paused = [told("UP", 5, "active", 0, 1), told("UP", 5, "active", 0, 1)];
        assert_eq!(failing_at(&is_paused, false), None, "nothing is wanted");
        let leaderless = [told("UP", 5, "offset-query", 0, -1), told("UP", 5, "offset-query", 0, -1)];
        assert_eq!(failing_at(&leaderless, true), None, "nobody could read it");
    }

    #[test]
    fn a_client_that_is_of_no_use_is_noticed_and_forgiven_when_it_recovers() {
        let silent = [told("UP", 5, "active", 0, 1), told("UP", 5, "active", 0, 1)];
        assert_eq!(failing_at(&silent, true), Some("has asked for no records"));
        assert_eq!(failing_at(&[told("UP", 5, "stopped", 0, 1)], true), Some("has asked for no records"));
        let cut_off = told("TRY_CONNECT", 5, "active", 0, 1);
        assert_eq!(failing_at(std::slice::from_ref(&cut_off), true), Some("has had no connection"));
        let recovered = [cut_off, told("UP", 6, "active", 0, 1), told("UP", 7, "active", 0, 1)];
        assert_eq!(failing_at(&recovered, true), None);
        let vigil = Vigil::new(Duration::ZERO);
        vigil.committed(false);
        assert_eq!(vigil.failing().map(|failing| failing.what), Some("could not commit"));
        vigil.committed(true);
        vigil.asked_where_to_begin(false);
        assert_eq!(vigil.failing().map(|failing| failing.what), Some("could not learn where to begin"));
        vigil.asked_where_to_begin(true);
        assert_eq!(vigil.failing(), None);
    }

    #[test]
    fn what_is_nobodys_fault_does_not_count() {
        let vigil = Vigil::new(Duration::ZERO);
        vigil.committed(false);
        let failing = vigil.failing().unwrap();
        let later = failing.since + Duration::from_secs(3600);
        assert_eq!(failing.lasts_since(later), Duration::ZERO);
        let patient = Vigil::new(Duration::from_secs(3600));
        let source = TopicPartition::new(Topic::new("t").unwrap(), 0);
        for _ in 0..2 {
            patient.look(&told("UP", 5, "active", 0, 1), std::slice::from_ref(&source));
        }
        let failing = patient.failing().unwrap();
        assert_eq!(failing.lasts_since(Instant::now() - Duration::from_secs(1)), Duration::ZERO, "a slow fetch");
    }
}
