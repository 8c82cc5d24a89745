//! Whether a module is so quick that a task for each document costs more than it.
//!
//! Documents of a quick one are worked on in rows, a task for each row. Anything else
//! has a task for each document, so that it may use all cores and holds nobody up.
//! A module shows that it is quick by some documents in a row that took microseconds
//! and waited for nothing; one that takes longer, or waits, has to show it anew.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A row that took longer than this is given back.
pub(crate) const LONG_ROW: Duration = Duration::from_millis(2);
/// A document that took less than this was quick.
const QUICK: Duration = Duration::from_micros(100);
/// So many quick ones in a row make a quick module.
const ENOUGH: u32 = 8;

/// Remembers how quick a step's module was of late.
#[derive(Debug, Default)]
pub(crate) struct Pace(AtomicU32);

impl Pace {
    /// Whether documents may be worked on in rows.
    pub(crate) fn is_quick(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= ENOUGH
    }

    /// A document was worked on for so long, without waiting.
    pub(crate) fn worked(&self, elapsed: Duration) {
        // Tasks may overlap; whose count gets lost does not matter.
        let before = self.0.load(Ordering::Relaxed);
        let row = if elapsed < QUICK { (before + 1).min(ENOUGH) } else { 0 };
        // Written only when it changes: tasks on all cores come by here for each document.
        if row != before {
            self.0.store(row, Ordering::Relaxed);
        }
    }

    /// A document had to wait for something.
    pub(crate) fn waited(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_quick_ones_in_a_row_make_a_quick_module_and_one_that_waits_ends_it() {
        let pace = Pace::default();
        let quick = Duration::from_micros(5);
        (1..ENOUGH).for_each(|_| pace.worked(quick));
        assert!(!pace.is_quick());
        pace.worked(QUICK * 2);
        (1..ENOUGH).for_each(|_| pace.worked(quick));
        assert!(!pace.is_quick(), "the row was broken");
        pace.worked(quick);
        assert!(pace.is_quick());
        pace.waited();
        assert!(!pace.is_quick());
    }
}
