//! Gives what an attempt pipes to the producer, in order, and hears what becomes of it.
//!
//! Runs within the attempt's own task: what a module pipes needs no other task to be
//! sent, and no channel to be heard of.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use pipedoc_transport::log::{self, Producer, Receipt, Reports};

use super::pipe::{NONE, Pipe, Shipment};
use crate::record::{Ledger, Settled};
use crate::runtime::outbox::is_of_the_record;

/// What came of everything that an attempt has piped.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// How many records were piped.
    pub(super) sent: usize,
    /// The error that says most, and the offset that it is about: one that may pass
    /// before one that will not, as then all are sent again.
    pub(super) failed: Option<(log::Error, Option<i64>)>,
    /// What was not acknowledged of a shipment that is sent once, each with the offset
    /// that it was piped for, or [`NONE`].
    pub(super) lost: Vec<(i64, log::Error)>,
}

impl Outcome {
    fn note(&mut self, error: log::Error, origin: i64) {
        if self.failed.as_ref().is_none_or(|(known, _)| is_of_the_record(known) && !is_of_the_record(&error)) {
            self.failed = Some((error, (origin != NONE).then_some(origin)));
        }
    }
}

/// Sends a shipment, and hears what becomes of it: it is not sent again.
pub(super) async fn send_once(producer: Arc<dyn Producer>, shipment: Shipment) -> Outcome {
    let Shipment { records, origins, .. } = shipment;
    let sent = records.len();
    let reports = match producer.send(records).await {
        Ok(receipt) => receipt.await,
        Err(error) => origins.iter().map(|_| Err(error.clone())).collect(),
    };
    let lost = reports.into_iter().zip(origins).filter_map(|(report, origin)| Some((origin, report.err()?)));
    Outcome { sent, lost: lost.collect(), ..Outcome::default() }
}

/// Gives what an attempt pipes to the producer, in order, and hears what becomes of it.
pub(super) struct Sending {
    producer: Arc<dyn Producer>,
    ledger: Arc<Ledger>,
    taking: Option<(Way, BoxFuture<'static, log::Result<Receipt>>)>,
    receipts: FuturesUnordered<BoxFuture<'static, (Way, Reports)>>,
    outcome: Outcome,
}

/// What a shipment's reports are about.
struct Way {
    first: u64,
    origins: Vec<i64>,
}

impl Sending {
    pub(super) fn new(pipe: &Pipe) -> Self {
        Self {
            producer: pipe.producer(),
            ledger: pipe.ledger(),
            taking: None,
            receipts: FuturesUnordered::new(),
            outcome: Outcome::default(),
        }
    }

    /// Sends what waits; ready when the producer has taken it all.
    pub(super) fn poll_taken(&mut self, pipe: &Pipe, context: &mut Context<'_>) -> Poll<()> {
        if pipe.is_gathered() {
            return Poll::Ready(());
        }
        loop {
            if self.taking.is_none() {
                let shipment = pipe.take_waiting();
                if shipment.records.is_empty() {
                    return Poll::Ready(());
                }
                let way = Way { first: shipment.first, origins: shipment.origins };
                self.outcome.sent += shipment.records.len();
                if self.outcome.failed.as_ref().is_some_and(|(error, _)| !is_of_the_record(error)) {
                    // Nothing overtakes what has to be sent again.
                    let closed = || Err(log::Error::Closed { what: "batch" });
                    self.settle(way, shipment.records.iter().map(|_| closed()).collect());
                    continue;
                }
                let producer = Arc::clone(&self.producer);
                let taking = async move { producer.send(shipment.records).await }.boxed();
                self.taking = Some((way, taking));
            }
            let Some((_, taking)) = &mut self.taking else { return Poll::Ready(()) };
            let Poll::Ready(taken) = taking.poll_unpin(context) else { return Poll::Pending };
            let Some((way, _)) = self.taking.take() else { return Poll::Ready(()) };
            match taken {
                Ok(receipt) => self.receipts.push(receipt.map(move |reports| (way, reports)).boxed()),
                Err(error) => {
                    let reports = way.origins.iter().map(|_| Err(error.clone())).collect();
                    self.settle(way, reports);
                }
            }
        }
    }

    /// Hears of acknowledgements; ready when none is awaited.
    pub(super) fn poll_settled(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            match self.receipts.poll_next_unpin(context) {
                Poll::Ready(Some((way, reports))) => self.settle(way, reports),
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Waits for all acknowledgements. Everything must have been taken.
    pub(super) async fn settled(mut self) -> Outcome {
        std::future::poll_fn(|context| self.poll_settled(context)).await;
        std::mem::take(&mut self.outcome)
    }

    fn settle(&mut self, way: Way, mut reports: Reports) {
        // A report that is missing is one that says nothing good.
        reports.resize_with(way.origins.len(), || Err(log::Error::Closed { what: "producer" }));
        for (report, origin) in reports.iter().zip(&way.origins) {
            if let Err(error) = report {
                self.outcome.note(error.clone(), *origin);
            }
        }
        self.ledger.settle(way.first, Settled::Reports(reports));
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.ledger.close();
    }
}

/// Runs a module's future and sends what it pipes, until it has returned and all of
/// it was taken.
pub(super) async fn drive<T>(
    pipe: &Pipe,
    sending: &mut Sending,
    mut module: Pin<&mut (dyn Future<Output = T> + Send)>,
) -> T {
    let mut result = None;
    std::future::poll_fn(|context| {
        if result.is_none()
            && let Poll::Ready(value) = module.as_mut().poll(context)
        {
            result = Some(value);
        }
        let taken = sending.poll_taken(pipe, context);
        // Reports that the module awaits are settled here.
        let _ = sending.poll_settled(context);
        match (taken, result.take()) {
            (Poll::Ready(()), Some(value)) => Poll::Ready(value),
            (_, kept) => {
                result = kept;
                Poll::Pending
            }
        }
    })
    .await
}
