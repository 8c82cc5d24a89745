//! Runs record modules: hands them batches and pipes on what they say.
//!
//! Decodes nothing. The batch's delivery is done when the module has returned and
//! everything it piped is acknowledged.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use pipedoc_model::headers;
use pipedoc_model::names::Topic;
use pipedoc_model::partition;
use pipedoc_telemetry::propagation::{continue_trace, write_trace};
use pipedoc_transport::log::{self, Delivered, OutgoingRecord, Record, RecordBatch, TopicPartition};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tracing::Instrument;

use super::hop;
use super::lanes::DeliveryId;
use super::process::panicked;
use super::pump::Signal;
use super::work::{About, Failed, Worked, Workshop};
use crate::error::{Error, Result};
use crate::factory::WorksOnRecords;
use crate::record::{RecordContext, Report};

/// What a batch has piped on.
#[derive(Debug, Default)]
pub(crate) struct Piping {
    /// Pipes that are not settled.
    pub(crate) open: usize,
    /// Records piped, in all.
    pub(crate) records: usize,
    /// Whether the module has returned.
    pub(crate) ended: bool,
    /// The error that says most.
    pub(crate) failed: Option<log::Error>,
}

/// Tells whoever waits for a report; nobody need.
#[derive(Debug)]
pub(crate) struct Reply(pub(crate) oneshot::Sender<log::Result<Vec<Delivered>>>);

impl Reply {
    pub(crate) fn send(self, result: log::Result<Vec<Delivered>>) {
        // Nobody waits when the report was dropped.
        let _ = self.0.send(result);
    }
}

/// What a context needs to pipe records.
pub(crate) struct Pipe {
    shop: Arc<Workshop>,
    source: TopicPartition,
    delivery: DeliveryId,
    signaller: UnboundedSender<Signal>,
    /// Partitions of each topic that may be written to.
    partitions: HashMap<Topic, i32>,
    span: tracing::Span,
    /// The first thing that could not be piped.
    failed: parking_lot::Mutex<Option<Error>>,
}

impl Pipe {
    /// Pipes records on, in order, to an output or an allowed topic.
    pub(crate) fn send<'a>(&self, records: impl IntoIterator<Item = &'a Record>, to: &str) -> Report {
        match self.outgoing(records, to) {
            Ok(outgoing) => {
                let (reply, report) = oneshot::channel();
                // When the pump has ended, the reply is dropped and the report says so.
                let _ = self.signaller.send(Signal::Pipe(self.delivery, outgoing, Reply(reply)));
                Report::new(report)
            }
            Err(error) => {
                let report = Report::failed(error.duplicate());
                self.failed.lock().get_or_insert(error);
                report
            }
        }
    }

    fn outgoing<'a>(&self, records: impl IntoIterator<Item = &'a Record>, to: &str) -> Result<Vec<OutgoingRecord>> {
        let topic = self.shop.router.topic(to).ok_or_else(|| self.shop.router.unknown(to))?;
        let Some(partitions) = self.partitions.get(topic) else {
            return Err(Error::permanent(log::Error::UnknownTopic { topic: topic.clone() }).with_kind("unknown-topic"));
        };
        Ok(records.into_iter().map(|record| self.hop(record, topic, *partitions)).collect())
    }

    fn hop(&self, record: &Record, topic: &Topic, partitions: i32) -> OutgoingRecord {
        let mut next = hop::next(record, &self.source, &self.shop.plan.group);
        if !next.contains(headers::DOCUMENT_ID)
            && let Some(id) = hop::document_id(record)
        {
            next.set(headers::DOCUMENT_ID, id);
        }
        write_trace(&self.span, &mut next);
        let mut outgoing = OutgoingRecord::new(topic.clone(), record.key.clone(), record.value.clone());
        if record.key.is_none() {
            outgoing.partition = Some(partition::for_source(self.source.partition, partitions));
        }
        outgoing.headers = next;
        outgoing
    }
}

/// Hands a batch to a module.
pub(crate) async fn work(
    shop: Arc<Workshop>,
    program: Arc<dyn WorksOnRecords>,
    batch: &Arc<RecordBatch>,
    delivery: DeliveryId,
    attempt: u32,
    signaller: UnboundedSender<Signal>,
) -> Result<Worked, Failed> {
    let about = batch.records.first().map(About::of).unwrap_or_default();
    let span =
        tracing::info_span!("process", step = %shop.plan.id, source = %batch.source, records = batch.records.len());
    if let Some(first) = batch.records.first() {
        continue_trace(&span, &first.headers);
    }
    let partitions = match shop.partitions().await {
        Ok(partitions) => partitions,
        Err(error) => return Err(Failed { about, error: error.into(), patient: true }),
    };
    let (step, timeout) = (shop.step.clone(), shop.plan.timeout);
    let pipe = Pipe {
        shop,
        source: batch.source.clone(),
        delivery,
        signaller,
        partitions,
        span: span.clone(),
        failed: parking_lot::Mutex::new(None),
    };
    let context = RecordContext::new(step, attempt, pipe);
    let process = AssertUnwindSafe(program.process(batch, &context)).catch_unwind().instrument(span);
    let result = match tokio::time::timeout(timeout, process).await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => Err(panicked(panic.as_ref())),
        Err(_) => Err(Error::retryable("no answer in time").with_kind("timeout")),
    };
    let refused = context.pipe.failed.lock().take();
    match result.and_then(|()| refused.map_or(Ok(()), Err)) {
        Ok(()) => Ok(Worked { about, records: Vec::new(), partial: None, unable: Vec::new() }),
        Err(error) => Err(Failed { about, error, patient: false }),
    }
}
