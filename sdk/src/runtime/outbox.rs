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
use pipedoc_transport::log::{self, OutgoingRecord, Producer, Receipt, Reports};

/// A send holds at most so many bytes of values, but at least one shipment.
const BYTES_A_SEND: usize = 4 << 20;

/// What became of everything sent under one ticket.
#[derive(Debug)]
pub(crate) struct Settled<T> {
    pub(crate) ticket: T,
    /// The error that says most about all of them: one that may pass before one that
    /// will not, as then all are sent again.
    pub(crate) result: log::Result<()>,
}

/// Sends in order.
pub(crate) struct Outbox<T> {
    producer: Arc<dyn Producer>,
    waiting: VecDeque<(T, Vec<OutgoingRecord>)>,
    sending: Option<BoxFuture<'static, (Spans<T>, log::Result<Receipt>)>>,
    receipts: FuturesUnordered<BoxFuture<'static, (Spans<T>, Reports)>>,
    bytes: usize,
}

/// What is sent together.
type Spans<T> = Vec<Span<T>>;

/// The part of a send that stands under one ticket.
struct Span<T> {
    ticket: T,
    /// How many records.
    count: usize,
    /// Bytes of their values.
    bytes: usize,
}

impl<T: Send + 'static> Outbox<T> {
    pub(crate) fn new(producer: Arc<dyn Producer>) -> Self {
        Self { producer, waiting: VecDeque::new(), sending: None, receipts: FuturesUnordered::new(), bytes: 0 }
    }

    /// Puts records last in the row. No records are settled at once, in their turn.
    pub(crate) fn push(&mut self, ticket: T, records: Vec<OutgoingRecord>) {
        self.bytes += OutgoingRecord::bytes_of(&records);
        self.waiting.push_back((ticket, records));
    }

    /// Bytes of values that wait or are on their way.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes back what is not on its way yet.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        let bytes = &mut self.bytes;
        self.waiting.retain(|(ticket, records)| {
            let keeps = keep(ticket);
            if !keeps {
                *bytes -= OutgoingRecord::bytes_of(records);
            }
            keeps
        });
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
        let mut settled: Vec<Settled<T>> = Vec::new();
        loop {
            while let Poll::Ready(Some((spans, reports))) = self.receipts.poll_next_unpin(context) {
                self.bytes -= spans.iter().map(|span| span.bytes).sum::<usize>();
                settle(spans, reports, &mut settled);
            }
            // What waits may be taken back once its owner knows of a failure, so
            // that nothing overtakes what is to be sent again.
            if settled.iter().any(|settled| settled.result.is_err()) {
                break;
            }
            if self.sending.is_none() {
                self.sending = self.next_send();
            }
            let Some(sending) = &mut self.sending else { break };
            let Poll::Ready((spans, result)) = sending.poll_unpin(context) else { break };
            self.sending = None;
            match result {
                Ok(receipt) => self.receipts.push(receipt.map(move |reports| (spans, reports)).boxed()),
                Err(error) => {
                    self.bytes -= spans.iter().map(|span| span.bytes).sum::<usize>();
                    let failed = |span: Span<T>| Settled { ticket: span.ticket, result: Err(error.clone()) };
                    settled.extend(spans.into_iter().map(failed));
                }
            }
        }
        if settled.is_empty() { Poll::Pending } else { Poll::Ready(settled) }
    }

    fn next_send(&mut self) -> Option<BoxFuture<'static, (Spans<T>, log::Result<Receipt>)>> {
        let (mut spans, mut records, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some((_, shipment)) = self.waiting.front() {
            let size = OutgoingRecord::bytes_of(shipment);
            if !spans.is_empty() && bytes + size > BYTES_A_SEND {
                break;
            }
            bytes += size;
            let (ticket, shipment) = self.waiting.pop_front()?;
            spans.push(Span { ticket, count: shipment.len(), bytes: size });
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
    for Span { ticket, count, .. } in spans {
        let mut worst: Option<log::Error> = None;
        for _ in 0..count {
            // A report that is missing is one that says nothing good.
            let report = reports.next().unwrap_or(Err(log::Error::Closed { what: "producer" }));
            match report {
                Err(error) if worst.as_ref().is_none_or(is_of_the_record) => worst = Some(error),
                Ok(_) | Err(_) => {}
            }
        }
        settled.push(Settled { ticket, result: worst.map_or(Ok(()), Err) });
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

#[cfg(test)]
mod tests {
    use pipedoc_model::names::Topic;
    use pipedoc_transport::log::{Log, ProducerConfig, TopicSettings, TopicSpec};
    use pipedoc_transport::memory::MemoryLog;

    use super::*;

    async fn outbox() -> (MemoryLog, Outbox<u8>) {
        let log = MemoryLog::new();
        let topic = Topic::new("t").unwrap();
        let spec = TopicSpec { topic, partitions: 1, replication: None, settings: TopicSettings::default() };
        log.ensure_topic(&spec).await.unwrap();
        let outbox = Outbox::new(log.producer(ProducerConfig::default()).await.unwrap());
        (log, outbox)
    }

    fn record(topic: &str, size: usize) -> OutgoingRecord {
        OutgoingRecord::new(Topic::new(topic).unwrap(), None, Some(vec![0; size].into()))
    }

    async fn settle_all(outbox: &mut Outbox<u8>) -> Vec<(u8, log::Result<()>)> {
        let mut all = Vec::new();
        while !outbox.is_empty() {
            let settled = outbox.settled().await.into_iter();
            all.extend(settled.map(|settled| (settled.ticket, settled.result)));
        }
        all.sort_by_key(|(ticket, _)| *ticket);
        all
    }

    #[tokio::test]
    async fn each_ticket_learns_of_its_own_records_alone() {
        let (_log, mut outbox) = outbox().await;
        outbox.push(1, vec![record("t", 10), record("t", 10)]);
        outbox.push(2, vec![]);
        outbox.push(3, vec![record("t", 10), record("missing", 10)]);
        outbox.push(4, vec![record("t", 2 << 20)]);
        outbox.push(5, vec![record("t", 10)]);
        let settled = settle_all(&mut outbox).await;
        assert!(matches!(settled[0], (1, Ok(()))) && matches!(settled[1], (2, Ok(()))), "{settled:?}");
        assert!(matches!(settled[2], (3, Err(log::Error::UnknownTopic { .. }))), "{settled:?}");
        assert!(matches!(settled[3], (4, Err(log::Error::RecordTooLarge { .. }))), "{settled:?}");
        assert!(matches!(settled[4], (5, Ok(()))), "{settled:?}");
        assert_eq!(outbox.bytes(), 0);
    }

    #[tokio::test]
    async fn an_error_that_may_pass_says_more_than_one_that_will_not() {
        let (log, mut outbox) = outbox().await;
        log.faults().fail_acks(1, true);
        outbox.push(1, vec![record("missing", 1), record("t", 1)]);
        let settled = settle_all(&mut outbox).await;
        assert!(matches!(&settled[0], (1, Err(error)) if error.is_retryable()), "{settled:?}");
    }

    #[tokio::test]
    async fn nothing_is_sent_after_a_failure_until_it_is_told() {
        let (log, mut outbox) = outbox().await;
        log.faults().fail_sends(1, true);
        outbox.push(1, vec![record("t", BYTES_A_SEND)]);
        outbox.push(2, vec![record("t", 1)]);
        let settled = outbox.settled().await;
        assert!(matches!(settled[..], [Settled { ticket: 1, result: Err(_) }]), "{settled:?}");
        outbox.retain(|_| false);
        assert!(outbox.is_empty(), "the second was still to be had back");
    }

    #[tokio::test]
    async fn what_is_taken_back_is_not_sent() {
        let (log, mut outbox) = outbox().await;
        outbox.push(1, vec![record("t", 3)]);
        outbox.push(2, vec![record("t", 5)]);
        outbox.retain(|ticket| *ticket != 1);
        assert_eq!(outbox.bytes(), 5);
        assert_eq!(settle_all(&mut outbox).await.len(), 1);
        assert_eq!(log.ends(&Topic::new("t").unwrap()).await.unwrap()[0].end, 1);
    }
}
