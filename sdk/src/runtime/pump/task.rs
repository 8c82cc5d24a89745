//! The tasks beside the pump, and the signals they come back with.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use pipedoc_transport::log::{OutgoingRecord, Record, TopicPartition};
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::AbortHandle;
use tracing::Instrument;

use crate::runtime::dead_letter::{self, Reason};
use crate::runtime::lanes::DeliveryId;
use crate::runtime::retry;
use crate::runtime::status::Board;
use crate::runtime::work::{Failed, Job, Worked, Workshop};

/// What a task tells the pump.
#[derive(Debug)]
pub(crate) enum Signal {
    /// Work has ended, with one result for each delivery; without any when the
    /// task was dropped.
    Worked(Vec<DeliveryId>, Option<Vec<Result<Worked, Failed>>>),
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
}

impl Drop for Promise {
    fn drop(&mut self) {
        if let Some(signal) = self.signal.take() {
            // Nobody listens any more when the pump has ended.
            let _ = self.signaller.send(signal);
        }
    }
}

/// How work on a delivery went on.
pub(super) enum Begun {
    /// It has ended; without a result when it panicked.
    Ended(Option<Result<Worked, Failed>>),
    /// A task is at it.
    Runs(AbortHandle),
}

/// Begins work on one delivery here and now, which costs far less than a task of
/// its own; a task goes on with it where it has to wait for something.
pub(super) fn work_here(shop: &Arc<Workshop>, id: DeliveryId, job: Job, signaller: &UnboundedSender<Signal>) -> Begun {
    let began = Instant::now();
    let shared = Arc::clone(shop);
    let mut work = Box::pin(async move { shared.one(&job).await });
    let mut nobody = Context::from_waker(Waker::noop());
    match std::panic::catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(&mut nobody))) {
        Ok(Poll::Ready(result)) => {
            shop.pace.worked_here(began.elapsed());
            Begun::Ended(Some(result))
        }
        Ok(Poll::Pending) => {
            let promise = Promise::new(signaller, Signal::Worked(vec![id], None));
            let task = async move { promise.keep(Signal::Worked(vec![id], Some(vec![work.await]))) };
            // The task's first poll asks anew to be woken.
            Begun::Runs(tokio::spawn(task.in_current_span()).abort_handle())
        }
        Err(_) => Begun::Ended(None),
    }
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
