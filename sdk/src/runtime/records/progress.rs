//! What a partition's worker and the pump tell each other, without a lock.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::progress;
use crate::runtime::status::PausedPartition;

/// How far a partition is.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Everything below this offset is done.
    done: AtomicI64,
    /// Records and bytes that were admitted and are done or dropped.
    records: AtomicUsize,
    /// Offsets that are done beyond it.
    beyond: Mutex<BTreeSet<i64>>,
    /// What the group has committed, where the worker has to know: in transactions, or
    /// before it works on it; -1: nothing.
    committed: AtomicI64,
    /// What was given to be committed before it is worked on.
    committing: AtomicI64,
    stopped: Mutex<Option<PausedPartition>>,
    is_stopped: AtomicBool,
    /// No further records are coming for now.
    nothing_coming: AtomicBool,
    bytes: AtomicUsize,
    ended: AtomicBool,
    finished: AtomicBool,
}

impl Progress {
    /// A partition of which everything below this offset is done.
    pub(super) fn new(done: i64) -> Self {
        let (committed, committing) = (AtomicI64::new(-1), AtomicI64::new(done));
        Self { done: AtomicI64::new(done), committed, committing, ..Self::default() }
    }

    /// The partition stands still.
    pub(super) fn stop(&self, paused: PausedPartition) {
        *self.stopped.lock() = Some(paused);
        self.is_stopped.store(true, Ordering::Release);
    }

    /// The partition goes on.
    pub(super) fn resume(&self) {
        *self.stopped.lock() = None;
        self.is_stopped.store(false, Ordering::Release);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Acquire)
    }

    /// Why it stands still, if it does.
    pub(super) fn stopped(&self) -> Option<PausedPartition> {
        if self.is_stopped() { self.stopped.lock().clone() } else { None }
    }

    /// Says whether further records are coming. Gives whether that is news.
    pub(super) fn set_nothing_coming(&self, nothing_coming: bool) -> bool {
        self.nothing_coming.swap(nothing_coming, Ordering::AcqRel) != nothing_coming
    }

    /// Whether no further records are coming for now: the end of the partition was
    /// reached, or it is held back.
    pub(super) fn has_nothing_coming(&self) -> bool {
        self.nothing_coming.load(Ordering::Acquire)
    }

    /// Everything below this offset is given to be committed, and will be worked on.
    pub(super) fn commits(&self, offset: i64) {
        self.committing.fetch_max(offset, Ordering::AcqRel);
    }

    pub(super) fn committing(&self) -> i64 {
        self.committing.load(Ordering::Acquire)
    }

    /// Everything below this offset is done, so many records and bytes more.
    pub(super) fn settle(&self, below: i64, records: usize, bytes: usize) {
        self.records.fetch_add(records, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.done.fetch_max(below, Ordering::Release);
    }

    /// These are done, beyond what is not.
    pub(super) fn add_beyond(&self, offsets: impl IntoIterator<Item = i64>) {
        self.beyond.lock().extend(offsets);
    }

    /// Whether anything is done beyond what is not.
    pub(super) fn has_beyond(&self) -> bool {
        !self.beyond.lock().is_empty()
    }

    /// Whether this offset is done already.
    pub(super) fn is_done(&self, offset: i64) -> bool {
        offset < self.done() || self.beyond.lock().contains(&offset)
    }

    /// What to write beside a watermark: what is done beyond it, and these.
    pub(super) fn metadata(&self, watermark: i64, more: &[i64]) -> String {
        let mut beyond = self.beyond.lock();
        *beyond = beyond.split_off(&self.done().min(watermark));
        if beyond.is_empty() && more.is_empty() {
            return String::new();
        }
        let mut all: Vec<i64> = beyond.iter().chain(more).copied().filter(|offset| *offset > watermark).collect();
        all.sort_unstable();
        all.dedup();
        let mut runs: Vec<Range<i64>> = Vec::new();
        for offset in all {
            match runs.last_mut() {
                Some(run) if run.end == offset => run.end = offset + 1,
                _ => runs.push(offset..offset + 1),
            }
        }
        progress::encode(watermark, &runs, progress::LIMIT)
    }

    /// This offset is committed.
    pub(super) fn commit(&self, offset: i64) {
        self.committed.store(offset, Ordering::Release);
    }

    pub(super) fn committed(&self) -> i64 {
        self.committed.load(Ordering::Acquire)
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
