//! What is on its way into the log, in order: one send after the other, all that
//! gathered meanwhile in the next one.
//!
//! Knows the producer; what it carries has tickets, whose meaning it does not know.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use pipedoc_transport::log::{self, Delivered, OutgoingRecord, Producer, Receipt, Reports};

/// A send holds at most so many bytes of values, but at least one shipment.
const BYTES_A_SEND: usize = 4 << 20;

/// What became of everything sent under one ticket.
#[derive(Debug)]
pub(crate) struct Settled<T> {
    pub(crate) ticket: T,
    /// Where the records lie; or the error that says most about all of them: one
    /// that may pass before one that will not, as then all are sent again.
    pub(crate) result: log::Result<Vec<Delivered>>,
}

/// Sends in order.
pub(crate) struct Outbox<T> {
    producer: Arc<dyn Producer>,
    waiting: VecDeque<(T, Vec<OutgoingRecord>)>,
    sending: Option<BoxFuture<'static, (Spans<T>, log::Result<Receipt>)>>,
    receipts: FuturesUnordered<BoxFuture<'static, (Spans<T>, Reports)>>,
}

/// Tickets of a send, with the number of records of each.
type Spans<T> = Vec<(T, usize)>;

impl<T: Send + 'static> Outbox<T> {
    pub(crate) fn new(producer: Arc<dyn Producer>) -> Self {
        Self { producer, waiting: VecDeque::new(), sending: None, receipts: FuturesUnordered::new() }
    }

    /// Puts records last in the row. No records are settled at once, in their turn.
    pub(crate) fn push(&mut self, ticket: T, records: Vec<OutgoingRecord>) {
        self.waiting.push_back((ticket, records));
    }

    /// Takes back what is not on its way yet.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.waiting.retain(|(ticket, _)| keep(ticket));
    }

    /// Whether nothing is on its way or waits for it.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.sending.is_none() && self.receipts.is_empty()
    }

    /// Sends what waits, and tells what was settled. Waits for ever when nothing
    /// is on its way. Cancelling it loses nothing.
    pub(crate) async fn settled(&mut self) -> Vec<Settled<T>> {
        poll_fn(|context| self.poll_settled(context)).await
    }

    fn poll_settled(&mut self, context: &mut Context<'_>) -> Poll<Vec<Settled<T>>> {
        let mut settled = Vec::new();
        loop {
            if self.sending.is_none() {
                self.sending = self.next_send();
            }
            let Some(sending) = &mut self.sending else { break };
            let Poll::Ready((spans, result)) = sending.poll_unpin(context) else { break };
            self.sending = None;
            match result {
                Ok(receipt) => self.receipts.push(receipt.map(move |reports| (spans, reports)).boxed()),
                Err(error) => {
                    settled.extend(spans.into_iter().map(|(ticket, _)| Settled { ticket, result: Err(error.clone()) }))
                }
            }
        }
        while let Poll::Ready(Some((spans, reports))) = self.receipts.poll_next_unpin(context) {
            settle(spans, reports, &mut settled);
        }
        if settled.is_empty() { Poll::Pending } else { Poll::Ready(settled) }
    }

    fn next_send(&mut self) -> Option<BoxFuture<'static, (Spans<T>, log::Result<Receipt>)>> {
        let (mut spans, mut records, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some((_, shipment)) = self.waiting.front() {
            let size: usize = shipment.iter().map(|record| record.value.as_ref().map_or(0, |value| value.len())).sum();
            if !spans.is_empty() && bytes + size > BYTES_A_SEND {
                break;
            }
            bytes += size;
            let (ticket, shipment) = self.waiting.pop_front()?;
            spans.push((ticket, shipment.len()));
            records.extend(shipment);
        }
        if spans.is_empty() {
            return None;
        }
        if records.is_empty() {
            return Some(std::future::ready((spans, Ok(Receipt::ready(Vec::new())))).boxed());
        }
        let producer = Arc::clone(&self.producer);
        Some(async move { (spans, producer.send(records).await) }.boxed())
    }
}

fn settle<T>(spans: Spans<T>, reports: Reports, settled: &mut Vec<Settled<T>>) {
    let mut reports = reports.into_iter();
    for (ticket, count) in spans {
        let mut delivered = Vec::with_capacity(count);
        let mut worst: Option<log::Error> = None;
        for _ in 0..count {
            // A report that is missing is one that says nothing good.
            let report = reports.next().unwrap_or(Err(log::Error::Closed { what: "producer" }));
            match report {
                Ok(report) => delivered.push(report),
                Err(error) if worst.as_ref().is_none_or(is_of_the_record) => worst = Some(error),
                Err(_) => {}
            }
        }
        settled.push(Settled { ticket, result: worst.map_or(Ok(delivered), Err) });
    }
}

/// Whether an error of a send is the record's own, so that sending it again
/// would meet it again.
pub(crate) fn is_of_the_record(error: &log::Error) -> bool {
    matches!(
        error,
        log::Error::RecordTooLarge { .. } | log::Error::UnknownTopic { .. } | log::Error::UnknownPartition { .. }
    )
}
