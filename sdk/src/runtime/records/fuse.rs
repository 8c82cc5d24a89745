//! Stops a step of records before it empties a topic into its dead letters
//! (`stop_at_failure_rate`): counts over all its partitions, of which each has a
//! worker of its own.
//!
//! Knows no partitions; whoever asks stops its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use pipedoc_model::step::FailureRate;

use crate::runtime::breaker::Breaker;

/// Counts what becomes of a step's records, and blows.
pub(super) struct Fuse {
    breaker: Mutex<Breaker>,
    /// Whether nothing has to be counted.
    idle: bool,
    is_blown: AtomicBool,
    blown: Mutex<Option<Blown>>,
}

/// Why and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blown {
    pub(super) rate: String,
    pub(super) since: SystemTime,
}

impl Fuse {
    pub(super) fn new(rate: Option<FailureRate>) -> Self {
        Self {
            breaker: Mutex::new(Breaker::new(rate)),
            idle: rate.is_none(),
            is_blown: AtomicBool::new(false),
            blown: Mutex::default(),
        }
    }

    /// So many records were done: counted as soon as that is known, as failures are.
    pub(super) fn done(&self, records: usize) {
        if !self.idle {
            self.breaker.lock().done(records);
        }
    }

    /// So many that were counted as done are not: they are given up on after all, or
    /// done again.
    pub(super) fn undone(&self, records: usize) {
        if !self.idle {
            self.breaker.lock().undone(records);
        }
    }

    /// A record is about to be given up on: why the step stops instead, if it does.
    pub(super) fn gives_up(&self) -> Option<String> {
        if self.idle {
            return None;
        }
        let mut breaker = self.breaker.lock();
        breaker.gives_up();
        let rate = breaker.reason()?;
        self.blown.lock().get_or_insert_with(|| Blown { rate: rate.clone(), since: SystemTime::now() });
        self.is_blown.store(true, Ordering::Release);
        Some(rate)
    }

    /// Whether the step stands still.
    pub(super) fn is_blown(&self) -> bool {
        self.is_blown.load(Ordering::Acquire)
    }

    /// Why it does, if it does.
    pub(super) fn blown(&self) -> Option<Blown> {
        if self.is_blown() { self.blown.lock().clone() } else { None }
    }

    /// Begins to count anew.
    pub(super) fn mend(&self) {
        self.breaker.lock().reset();
        *self.blown.lock() = None;
        self.is_blown.store(false, Ordering::Release);
    }
}
