//! Stops a step before it empties a topic into its dead letters: counts what is
//! given up on among the last deliveries.
//!
//! Pure: no clock, no IO. Counts anew after each stop and with each new life of
//! the step.

use std::collections::VecDeque;

use pipedoc_model::step::FailureRate;

/// Counts failures.
#[derive(Debug)]
pub(crate) struct Breaker {
    /// None: it never trips.
    rate: Option<FailureRate>,
    /// How many deliveries were counted.
    seen: u64,
    /// The number of each of the last ones that failed.
    failed: VecDeque<u64>,
    tripped: bool,
}

impl Breaker {
    pub(crate) fn new(rate: Option<FailureRate>) -> Self {
        Self { rate, seen: 0, failed: VecDeque::new(), tripped: false }
    }

    /// Deliveries were done.
    pub(crate) fn done(&mut self, deliveries: usize) {
        if let Some(rate) = self.rate.filter(|_| !self.tripped) {
            self.count(deliveries as u64, rate);
        }
    }

    /// Deliveries that were counted as done are not: they are given up on after all, or
    /// done again.
    pub(crate) fn undone(&mut self, deliveries: usize) {
        self.seen = self.seen.saturating_sub(deliveries as u64);
    }

    /// A delivery is about to be given up on. Returns whether this one trips it.
    pub(crate) fn gives_up(&mut self) -> bool {
        let Some(rate) = self.rate.filter(|_| !self.tripped) else { return false };
        self.failed.push_back(self.seen);
        self.count(1, rate);
        // So many are enough, however many there were before: a step that fails
        // from its first record on need not fail all of the last ones.
        self.tripped = self.failed.len() as f64 >= rate.percent / 100.0 * f64::from(rate.last);
        self.tripped
    }

    /// So many more were seen: failures from before the last ones are forgotten.
    fn count(&mut self, deliveries: u64, rate: FailureRate) {
        self.seen += deliveries;
        let first = self.seen.saturating_sub(u64::from(rate.last));
        while self.failed.front().is_some_and(|number| *number < first) {
            self.failed.pop_front();
        }
    }

    /// Why it has tripped, if it has.
    pub(crate) fn reason(&self) -> Option<String> {
        let rate = self.rate.filter(|_| self.tripped)?;
        let (failed, seen) = (self.failed.len(), self.seen.min(u64::from(rate.last)));
        Some(format!("stop_at_failure_rate {rate} is reached: {failed} of the last {seen} deliveries failed"))
    }

    /// Begins to count anew.
    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.rate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(percent: f64, last: u32) -> Breaker {
        Breaker::new(Some(FailureRate { percent, last }))
    }

    #[test]
    fn it_trips_at_the_share_of_the_last_ones_and_not_before() {
        let mut breaker = rate(20.0, 10);
        assert!(!breaker.gives_up());
        breaker.done(9);
        assert_eq!([breaker.gives_up(), breaker.gives_up()], [false, true], "the first failure is out of sight");
        assert!(breaker.reason().unwrap().contains("2 of the last 10"), "{:?}", breaker.reason());
        breaker.reset();
        assert_eq!(breaker.reason(), None);
        assert!(!breaker.gives_up());
        breaker.done(100);
        assert!(!breaker.gives_up(), "what lies behind many that were done counts no more");
        assert!(breaker.gives_up());
    }

    #[test]
    fn failures_from_the_start_on_need_not_wait_for_the_whole_row() {
        let mut breaker = rate(50.0, 8);
        assert_eq!((0..5).map(|_| breaker.gives_up()).collect::<Vec<_>>(), [false, false, false, true, false]);
        assert!(!Breaker::new(None).gives_up());
    }
}
