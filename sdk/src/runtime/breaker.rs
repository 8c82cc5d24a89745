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
    /// Whether each of the last deliveries failed.
    last: VecDeque<bool>,
    failed: u32,
    tripped: bool,
}

impl Breaker {
    pub(crate) fn new(rate: Option<FailureRate>) -> Self {
        Self { rate, last: VecDeque::new(), failed: 0, tripped: false }
    }

    /// A delivery was done, or is about to be given up on. Returns whether this
    /// one trips it.
    pub(crate) fn count(&mut self, failed: bool) -> bool {
        let Some(rate) = self.rate.filter(|_| !self.tripped) else { return false };
        self.last.push_back(failed);
        self.failed += u32::from(failed);
        if self.last.len() > rate.last as usize
            && let Some(oldest) = self.last.pop_front()
        {
            self.failed -= u32::from(oldest);
        }
        // So many are enough, however many there were before: a step that fails
        // from its first record on need not fail all of the last ones.
        self.tripped = failed && f64::from(self.failed) >= rate.percent / 100.0 * f64::from(rate.last);
        self.tripped
    }

    /// Why it has tripped, if it has.
    pub(crate) fn reason(&self) -> Option<String> {
        let rate = self.rate.filter(|_| self.tripped)?;
        let (failed, seen) = (self.failed, self.last.len());
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
        let acts = [true, false, false, false, false, false, false, false, false, false, true, true];
        let tripped: Vec<bool> = acts.iter().map(|failed| breaker.count(*failed)).collect();
        assert_eq!(tripped.iter().position(|tripped| *tripped), Some(11), "the first failure is out of sight");
        assert!(breaker.reason().unwrap().contains("2 of the last 10"), "{:?}", breaker.reason());
        breaker.reset();
        assert_eq!(breaker.reason(), None);
        assert!(!breaker.count(true));
    }

    #[test]
    fn failures_from_the_start_on_need_not_wait_for_the_whole_row() {
        let mut breaker = rate(50.0, 8);
        assert_eq!((0..5).map(|_| breaker.count(true)).collect::<Vec<_>>(), [false, false, false, true, false]);
        assert!(!Breaker::new(None).count(true));
    }
}
