//! The tasks beside the pump, and the signals they come back with.

use std::collections::HashSet;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use pipedoc_transport::log::{OutgoingRecord, Record, TopicPartition};
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::AbortHandle;
use tracing::Instrument;

use crate::error::Error;
use crate::runtime::dead_letter::{self, Reason};
use crate::runtime::lanes::DeliveryId;
use crate::runtime::retry;
use crate::runtime::status::Board;
use crate::runtime::work::{About, Failed, Job, Worked, Workshop};

/// What a task tells the pump.
#[derive(Debug)]
pub(crate) enum Signal {
    /// Work has ended, with one result for each delivery; without any when the
    /// task was dropped.
    Worked(Vec<DeliveryId>, Option<Vec<Result<Worked, Failed>>>),
    /// Of work in a row that goes on with another delivery: what became of these;
    /// none of those that were not begun.
    Interim(Vec<(DeliveryId, Option<Result<Worked, Failed>>)>),
    /// A dead letter is made; not, when the task was dropped.
    Buried(DeliveryId, Option<OutgoingRecord>),
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
/// one alone.
pub(super) fn work_in_a_row(
    shop: &Arc<Workshop>,
    jobs: Vec<(DeliveryId, Job)>,
    signaller: &UnboundedSender<Signal>,
) -> AbortHandle {
    let (shop, signaller) = (Arc::clone(shop), signaller.clone());
    let mut promise = Promise::new(&signaller, Signal::Worked(jobs.iter().map(|(id, _)| *id).collect(), None));
    let row = async move {
        let (mut ids, mut results) = (Vec::with_capacity(jobs.len()), Vec::with_capacity(jobs.len()));
        let mut failed_lanes = HashSet::new();
        let mut jobs = jobs.into_iter();
        while let Some((id, job)) = jobs.next() {
            if failed_lanes.contains(&job.lane) {
                // Not done, whatever is said here: an earlier one of its lane has failed.
                ids.push(id);
                results.push(Err(Failed::new(About::default(), Error::retryable("not begun"))));
                continue;
            }
            let began = Instant::now();
            let mut work = pin!(shop.one(&job));
            let result = match poll_fn(|context| Poll::Ready(work.as_mut().poll(context))).await {
                Poll::Ready(result) => {
                    shop.pace.worked_in_a_row(began.elapsed());
                    result
                }
                Poll::Pending => {
                    promise.replace(Signal::Worked(vec![id], None));
                    let done = ids.drain(..).zip(results.drain(..).map(Some));
                    let interim = done.chain(jobs.map(|(id, _)| (id, None))).collect();
                    let _ = signaller.send(Signal::Interim(interim));
                    let result = work.await;
                    shop.pace.worked_in_a_row(began.elapsed());
                    return promise.keep(Signal::Worked(vec![id], Some(vec![result])));
                }
            };
            if result.is_err() {
                failed_lanes.insert(job.lane);
            }
            ids.push(id);
            results.push(result);
        }
        promise.keep(Signal::Worked(ids, Some(results)));
    };
    tokio::spawn(row.in_current_span()).abort_handle()
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
                let result = shop.one(job).await;
                shop.pace.worked(began.elapsed());
                vec![result]
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
                Ok(letter) => break letter,
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
