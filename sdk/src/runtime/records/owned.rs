//! A partition that the pump owns: what was admitted, how far it is, its worker.

use std::sync::Arc;

use pipedoc_transport::log::{AssignedPartition, Record, RecordBatch};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;

use super::Station;
use super::progress::Progress;
use super::worker::{Measured, Task, Worker};
use crate::runtime::status::PausedPartition;

/// A partition owned.
pub(super) struct Owned {
    /// Tells this ownership from an earlier one of the same partition.
    pub(super) number: u64,
    /// What the group has committed; -1: nothing.
    pub(super) committed: i64,
    /// Whether transactions commit its offsets, all but the end of the partition.
    exact: bool,
    /// Whether records are committed before they are worked on.
    first: bool,
    /// Nothing new is admitted: it is being taken away.
    pub(super) revoking: bool,
    /// The worker was told to end; nothing more is given to be committed first.
    finishing: bool,
    /// Whether the consumer was told to hold it back.
    resting: bool,
    /// Where the next record is read.
    position: i64,
    /// Offset after the last record that was admitted.
    admitted: i64,
    records: usize,
    bytes: usize,
    /// Whether everything up to `position` was the partition's end.
    at_end: bool,
    /// Its share of the bounds is used up.
    full: bool,
    progress: Arc<Progress>,
    batches: UnboundedSender<Measured>,
    tasks: watch::Sender<Task>,
    worker: AbortHandle,
}

impl Owned {
    /// Begins to work on a partition.
    pub(super) fn begin(
        station: &Arc<Station>,
        assigned: &AssignedPartition,
        number: u64,
        seat: Arc<Semaphore>,
        task: Task,
    ) -> Self {
        let AssignedPartition { source, committed, position } = assigned;
        let progress = Arc::new(Progress::new(*position));
        if let Some(committed) = committed {
            let done = crate::progress::decode(committed.offset, &committed.metadata);
            progress.add_beyond(done.into_iter().flatten());
        }
        let (batches, inbox) = unbounded_channel();
        let (tasks, to_do) = watch::channel(task);
        let place = Arc::new(source.clone());
        let worker = Worker::new(Arc::clone(station), place, Arc::clone(&progress), inbox, to_do);
        Self {
            number,
            // A group that has committed nothing is as good as one that committed the
            // place where reading begins, except that the first commit writes it down.
            committed: committed.as_ref().map_or(-1, |committed| committed.offset),
            exact: station.exact.is_some(),
            first: station.commits_first(),
            revoking: false,
            finishing: matches!(task, Task::Finish { .. }),
            resting: false,
            position: *position,
            admitted: *position,
            records: 0,
            bytes: 0,
            at_end: false,
            full: false,
            progress,
            batches,
            tasks,
            worker: tokio::spawn(worker.run(seat)).abort_handle(),
        }
    }

    /// Tells the worker what to do.
    pub(super) fn tell(&mut self, task: Task) {
        self.finishing = matches!(task, Task::Finish { .. });
        self.tasks.send_if_modified(|now| std::mem::replace(now, task) != task);
    }

    /// Goes on, if it stands still.
    pub(super) fn resume(&self) {
        self.progress.resume();
        self.wake();
    }

    /// Has the worker look again.
    fn wake(&self) {
        self.tasks.send_modify(|_| {});
    }

    /// Why it stands still by itself, if it does.
    pub(super) fn stopped(&self) -> Option<PausedPartition> {
        self.progress.stopped()
    }

    /// Whether it stands still by itself.
    pub(super) fn is_stopped(&self) -> bool {
        self.progress.is_stopped()
    }

    /// This is about to be committed.
    pub(super) fn commits(&self, offset: i64) {
        self.progress.commits(offset);
    }

    /// The group has committed.
    pub(super) fn has_committed(&mut self, offset: i64) {
        self.committed = self.committed.max(offset);
        if self.first {
            self.progress.commit(self.committed);
            self.wake();
        }
    }

    /// Whether records wait to be committed before they are worked on.
    pub(super) fn is_gated(&self) -> bool {
        self.first && !self.finishing && self.admitted > self.committed
    }

    /// Takes a batch in. Offsets below the position were seen already.
    pub(super) fn admit(&mut self, mut batch: RecordBatch) {
        if batch.records.first().is_some_and(|first| first.offset < self.position) {
            batch.records.retain(|record| record.offset >= self.position);
        }
        let Some(last) = batch.records.last().filter(|_| !self.revoking) else { return };
        self.position = last.offset + 1;
        self.admitted = self.position;
        self.at_end = false;
        self.say_what_is_coming();
        let (records, bytes) = (batch.records.len(), batch.records.iter().map(Record::bytes).sum());
        // A worker that is finishing takes nothing; it is not missed then.
        if self.batches.send((batch, bytes)).is_ok() {
            self.records += records;
            self.bytes += bytes;
        }
    }

    /// The partition ends at `position` for now.
    pub(super) fn end_seen(&mut self, position: i64) {
        if position >= self.position {
            self.position = position;
            self.at_end = true;
            self.say_what_is_coming();
        }
    }

    /// It is held back, or is not any more.
    pub(super) fn rest(&mut self, resting: bool) {
        self.resting = resting;
        self.say_what_is_coming();
    }

    /// Tells the worker whether further records are coming: transactions wait for them.
    fn say_what_is_coming(&self) {
        let nothing_coming = self.at_end || self.resting;
        if self.progress.set_nothing_coming(nothing_coming) && nothing_coming && self.exact {
            self.wake();
        }
    }

    /// Reading goes on elsewhere, as records are gone: nothing before is awaited.
    pub(super) fn skip_to(&mut self, position: i64) {
        self.position = self.position.max(position);
    }

    /// Records and bytes that are open.
    pub(super) fn open(&self) -> (usize, usize) {
        let (records, bytes) = self.progress.settled();
        (self.records.saturating_sub(records), self.bytes.saturating_sub(bytes))
    }

    /// Whether the consumer was told to hold it back.
    pub(super) fn is_resting(&self) -> bool {
        self.resting
    }

    /// Decides anew whether its share is used up.
    pub(super) fn measure(&mut self, most_records: usize, most_bytes: usize) -> bool {
        let part = |most: usize| if self.full { most.div_ceil(2) } else { most };
        let (records, bytes) = self.open();
        self.full = records >= part(most_records) || bytes >= part(most_bytes);
        self.full
    }

    /// Everything below it is done, or is to be committed before it is.
    fn watermark(&self) -> i64 {
        if self.first && self.finishing {
            return self.progress.committing();
        }
        let done = if self.first { self.admitted } else { self.progress.done() };
        if done >= self.admitted { self.position } else { done }
    }

    /// What to commit, when the group has not committed it yet.
    pub(super) fn uncommitted(&self) -> Option<i64> {
        if self.exact && !self.is_drained() {
            return None;
        }
        let watermark = self.watermark();
        (watermark > self.committed.max(self.progress.committed())).then_some(watermark)
    }

    /// What to write beside what is committed.
    pub(super) fn metadata(&self, offset: i64) -> String {
        self.progress.metadata(offset, &[])
    }

    /// What the group has committed as far as is known; where reading began when
    /// it has nothing.
    pub(super) fn committed_offset(&self) -> i64 {
        let committed = self.committed.max(self.progress.committed());
        if committed < 0 { self.watermark() } else { committed }
    }

    /// Whether the end of the partition was seen and nothing is open.
    pub(super) fn is_drained(&self) -> bool {
        self.at_end && self.progress.done() >= self.admitted
    }

    pub(super) fn has_ended(&self) -> bool {
        self.progress.has_ended()
    }

    /// Ends the worker; what is done may still be committed.
    pub(super) fn halt(&self) {
        self.worker.abort();
    }

    /// Ends the worker; says whether it had ended as it should.
    pub(super) fn abort(self) -> bool {
        let finished = self.progress.has_finished();
        self.worker.abort();
        finished
    }
}
