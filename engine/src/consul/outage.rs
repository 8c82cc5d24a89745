//! Tells people of an agent that does not answer: once it lasts, then at growing
//! intervals, and once when it is back. Whoever asks the agent stays silent about it.

use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

/// An answer that fails once is no outage yet: servers choose leaders, connections
/// break.
const LASTING: Duration = Duration::from_secs(1);
/// Shortest and longest time between two messages.
const PAUSE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

/// Whether the agent answers.
#[derive(Debug, Default)]
pub(super) struct Outage(Mutex<Option<Away>>);

#[derive(Debug)]
struct Away {
    since: SystemTime,
    began: Instant,
    /// When to tell of it next; how long after that again.
    next: Instant,
    pause: Duration,
    told: bool,
}

impl Away {
    fn new(now: Instant) -> Self {
        Self { since: SystemTime::now(), began: now, next: now + LASTING, pause: PAUSE.0, told: false }
    }

    /// Whether to tell of it now.
    fn is_due(&mut self, now: Instant) -> bool {
        if now < self.next {
            return false;
        }
        self.told = true;
        self.next = now + self.pause;
        self.pause = (self.pause * 2).min(PAUSE.1);
        true
    }
}

impl Outage {
    /// A request found no answer; gives the moment since when that is so.
    pub(super) fn failed(&self, address: &str, cause: &(dyn std::error::Error + 'static)) -> SystemTime {
        let now = Instant::now();
        let mut away = self.0.lock();
        let away = away.get_or_insert_with(|| Away::new(now));
        if away.is_due(now) {
            let seconds = now.duration_since(away.began).as_secs();
            let reason = pipedoc_model::problem::chain(cause);
            tracing::warn!(
                "Consul at {address} has not answered for {seconds} s ({reason}); what runs goes on, and it is asked again and again"
            );
        }
        away.since
    }

    /// A request found an answer, be it a refusal.
    pub(super) fn answered(&self, address: &str) {
        let away = self.0.lock().take();
        if let Some(away) = away.filter(|away| away.told) {
            tracing::info!("Consul at {address} answers again, after {} s", away.began.elapsed().as_secs());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_of_a_day_is_told_of_at_growing_intervals() {
        let began = Instant::now();
        let mut away = Away::new(began);
        let seconds: Vec<u64> =
            (0..24 * 3600).filter(|second| away.is_due(began + Duration::from_secs(*second))).collect();
        assert_eq!(seconds[..5], [1, 11, 31, 71, 151]);
        assert!(seconds.len() < 160, "{} messages", seconds.len());
    }
}
