//! What a partition's worker tells the pump, without a lock.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};

/// How far a partition is.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Everything below this offset is done.
    done: AtomicI64,
    /// Records and bytes that were admitted and are done or dropped.
    records: AtomicUsize,
    bytes: AtomicUsize,
    ended: AtomicBool,
    finished: AtomicBool,
}

impl Progress {
    /// A partition of which everything below this offset is done.
    pub(super) fn new(done: i64) -> Self {
        Self { done: AtomicI64::new(done), ..Self::default() }
    }

    /// Everything below this offset is done, so many records and bytes more.
    pub(super) fn settle(&self, below: i64, records: usize, bytes: usize) {
        self.records.fetch_add(records, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.done.fetch_max(below, Ordering::Release);
    }

    pub(super) fn done(&self) -> i64 {
        self.done.load(Ordering::Acquire)
    }

    /// Records and bytes that are open no more.
    pub(super) fn settled(&self) -> (usize, usize) {
        (self.records.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// Its worker has ended as it should.
    pub(super) fn finish(&self) {
        self.finished.store(true, Ordering::Release);
    }

    /// Its worker has ended, or was aborted.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Whether its worker has ended as it should.
    pub(super) fn has_finished(&self) -> bool {
        self.finished.load(Ordering::Acquire)
    }

    /// Whether its worker has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}
