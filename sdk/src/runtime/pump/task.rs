//! The tasks beside the pump, and the signals they come back with.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use futures::FutureExt;
use pipedoc_transport::log::{OutgoingRecord, Record, TopicPartition};
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::AbortHandle;
use tracing::Instrument;

use crate::error::Error;
use crate::runtime::dead_letter::{self, Reason};
use crate::runtime::lanes::DeliveryId;
use crate::runtime::pace;
use crate::runtime::retry;
use crate::runtime::status::Board;
use crate::runtime::topics::Facts;
use crate::runtime::work::{About, Failed, Job, Worked, Workshop};

/// What a task tells the pump.
#[derive(Debug)]
pub(crate) enum Signal {
    /// Work has ended, with one result for each delivery; without any when the
    /// task was dropped.
    Worked(Vec<DeliveryId>, Option<Vec<Result<Worked, Failed>>>),
    /// Of a row: what became of these; nothing of those that were not begun. It may
    /// go on with another one. `spent` are the jobs that are over, to be dropped where the
    /// pump counts their other owners.
    Row { results: Vec<(DeliveryId, Option<Result<Worked, Failed>>)>, goes_on: bool, spent: Vec<Job> },
    /// A dead letter is made, or can never be written; neither, when the task was
    /// dropped.
    Buried(DeliveryId, Option<Result<OutgoingRecord, Error>>),
}

/// Sends its signal when it is dropped, whatever ends the task.
struct Promise {
    signaller: UnboundedSender<Signal>,
    signal: Option<Signal>,
}

impl Promise {
    fn new(signaller: &UnboundedSender<Signal>, unless_kept: Signal) -> Self {
        Self { signaller: signaller.clone(), signal: Some(unless_kept) }
    }

    fn keep(mut self, signal: Signal) {
        self.signal = Some(signal);
    }

    /// What is to be said instead when nothing is kept.
    fn replace(&mut self, unless_kept: Signal) {
        self.signal = Some(unless_kept);
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        if let Some(signal) = self.signal.take() {
            // Nobody listens any more when the pump has ended.
            let _ = self.signaller.send(signal);
        }
    }
}

/// Works on deliveries of a quick module one after the other, which costs far less
/// than a task for each. Where one has to wait for something, those done before it
/// are told at once, those behind it are given back, and the task goes on with that
/// one alone. A row that turns out slow is given back as well.
///
/// Each stands for itself: what becomes of one, a panic included, is charged to no
/// other.
pub(super) fn work_in_a_row(
    shop: &Arc<Workshop>,
    jobs: Vec<(DeliveryId, Job)>,
    signaller: &UnboundedSender<Signal>,
) -> AbortHandle {
    let (shop, signaller) = (Arc::clone(shop), signaller.clone());
    let not_begun = jobs.iter().map(|(id, _)| (*id, None)).collect();
    let mut promise = Promise::new(&signaller, Signal::Row { results: not_begun, goes_on: false, spent: Vec::new() });
    let row = async move {
        let began = Instant::now();
        let mut now = began;
        let mut results = Vec::with_capacity(jobs.len());
        let (mut failed_lanes, mut facts) = (HashSet::new(), Facts::default());
        let mut spent = Vec::with_capacity(jobs.len());
        let mut jobs = jobs.into_iter();
        while let Some((id, job)) = jobs.next() {
            if failed_lanes.contains(&job.lane) || now.duration_since(began) > pace::LONG_ROW {
                results.push((id, None));
                spent.push(job);
                continue;
            }
            let result = {
                let work = pin!(shop.one(&job, &mut facts));
                let mut work = AssertUnwindSafe(work).catch_unwind();
                match futures::poll!(&mut work) {
                    Poll::Ready(result) => {
                        let before = std::mem::replace(&mut now, Instant::now());
                        shop.pace.worked(now.duration_since(before));
                        result.unwrap_or_else(|_| Err(dropped(&job)))
                    }
                    Poll::Pending => {
                        shop.pace.waited();
                        for (id, job) in jobs {
                            results.push((id, None));
                            spent.push(job);
                        }
                        promise.replace(Signal::Row { results: vec![(id, None)], goes_on: false, spent: Vec::new() });
                        let _ = signaller.send(Signal::Row { results, goes_on: true, spent });
                        let result = work.await.unwrap_or_else(|_| Err(dropped(&job)));
                        let results = vec![(id, Some(result))];
                        return promise.keep(Signal::Row { results, goes_on: false, spent: Vec::new() });
                    }
                }
            };
            if result.is_err() {
                failed_lanes.insert(job.lane);
            }
            results.push((id, Some(result)));
            spent.push(job);
        }
        drop(shop);
        promise.keep(Signal::Row { results, goes_on: false, spent });
    };
    tokio::spawn(row.in_current_span()).abort_handle()
}

/// What is said of work that ended without an answer, as by a panic outside the
/// module.
fn dropped(job: &Job) -> Failed {
    let error = Error::retryable("dropped without an answer").with_kind("dropped");
    Failed::new(About::of(&job.record), error)
}

/// Works on one delivery, or on several that share a batch.
pub(super) fn work(
    shop: &Arc<Workshop>,
    jobs: Vec<(DeliveryId, Job)>,
    batch: bool,
    signaller: &UnboundedSender<Signal>,
) -> AbortHandle {
    let shop = Arc::clone(shop);
    let (ids, jobs): (Vec<DeliveryId>, Vec<Job>) = jobs.into_iter().unzip();
    let promise = Promise::new(signaller, Signal::Worked(ids.clone(), None));
    let work = async move {
        let results = match jobs.as_slice() {
            [job] if !batch => {
                let began = Instant::now();
                let mut facts = Facts::default();
                let mut work = pin!(shop.one(job, &mut facts));
                match futures::poll!(work.as_mut()) {
                    Poll::Ready(result) => {
                        shop.pace.worked(began.elapsed());
                        vec![result]
                    }
                    Poll::Pending => {
                        shop.pace.waited();
                        vec![work.await]
                    }
                }
            }
            jobs => shop.batch(jobs).await,
        };
        drop(shop);
        promise.keep(Signal::Worked(ids, Some(results)));
    };
    tokio::spawn(work.in_current_span()).abort_handle()
}

/// Makes a dead letter, for as long as it takes.
pub(super) fn bury(
    shop: &Arc<Workshop>,
    board: &Arc<Board>,
    id: DeliveryId,
    record: Arc<Record>,
    source: Arc<TopicPartition>,
    reason: Reason,
    signaller: &UnboundedSender<Signal>,
) -> AbortHandle {
    let (shop, board) = (Arc::clone(shop), Arc::clone(board));
    let promise = Promise::new(signaller, Signal::Buried(id, None));
    let task = tokio::spawn(async move {
        let mut failures = 0_u32;
        let letter = loop {
            match dead_letter::of_record(&shop, &record, &source, &reason).await {
                Ok(letter) => break Ok(letter),
                Err(error) if dead_letter::is_unwritable(&error) => break Err(error),
                Err(error) => {
                    failures = failures.saturating_add(1);
                    board.trouble(&error.context("a dead letter cannot be made"));
                    tokio::time::sleep(retry::backoff(&retry::patient(), failures)).await;
                }
            }
        };
        drop(shop);
        promise.keep(Signal::Buried(id, Some(letter)));
    });
    task.abort_handle()
}
