//! One attempt at a batch, and one burial: what the module says and what becomes of
//! what it piped.
//!
//! Knows nothing of other batches, of attempts before or after.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use pipedoc_telemetry::propagation::continue_trace;
use pipedoc_transport::log::{self, Record, RecordBatch, TopicPartition};
use tokio::sync::mpsc::UnboundedSender;
use tracing::Instrument;

use super::Station;
use super::pipe::{Job, Pipe, Shipment, Source};
use super::sending::{Sending, drive};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::record::RecordContext;
use crate::runtime::dead_letter::{self, Reason};
use crate::runtime::outbox::is_of_the_record;
use crate::runtime::process::panicked;
use crate::runtime::retry;
use crate::runtime::work::About;

/// What has become of the load in hand.
pub(super) enum Turn {
    /// The module has returned; what it piped is on its way.
    Returned(Sending),
    /// The module has returned; what it piped is to be written in a transaction, or
    /// sent once.
    Gathered(Shipment),
    /// The attempt failed.
    Failed { error: Error, patient: bool, culprit: Option<i64>, marks: Vec<bool> },
    /// This record cannot become a dead letter.
    Unburied { record: Record, error: Error },
    /// The record at this offset lies in the dead letters.
    Buried { offset: i64, about: About, reason: Reason, letter: Shipment },
}

/// One attempt at a batch.
pub(super) async fn attempt(
    station: Arc<Station>,
    source: Arc<Source>,
    batch: Arc<RecordBatch>,
    attempts: u32,
    jobs: Option<UnboundedSender<Job>>,
) -> Turn {
    // Closed only when the step has ended.
    let _hand = station.hands.acquire().await;
    let shop = &station.shop;
    let span = tracing::debug_span!(
        "process", step = %shop.plan.id, source = %source.place, records = batch.records.len()
    );
    if let Some(first) = batch.records.first() {
        continue_trace(&span, &first.headers);
    }
    let partitions = match shop.partitions().await {
        Ok(partitions) => partitions,
        Err(error) => {
            return Turn::Failed { error: error.into(), patient: true, culprit: None, marks: Vec::new() };
        }
    };
    let pipe =
        Pipe::new(Arc::clone(&station), Arc::clone(&source), Arc::clone(&batch), attempts, partitions, jobs, &span);
    let mut sending = Sending::new(&pipe);
    let context = RecordContext::new(pipe);
    let result = {
        let module = AssertUnwindSafe(station.program.process(&batch, &context)).catch_unwind();
        let module = tokio::time::timeout(shop.plan.timeout, module);
        let mut module = std::pin::pin!(module.instrument(span));
        drive(&context.pipe, &mut sending, module.as_mut()).await
    };
    let result = match result {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => Err(panicked(panic.as_ref())),
        Err(_) => Err(Error::retryable("no answer in time").with_kind("timeout")),
    };
    match result.and_then(|()| context.pipe.take_refused().map_or(Ok(()), Err)) {
        Ok(()) if station.gathers() => Turn::Gathered(context.pipe.take_waiting()),
        Ok(()) => Turn::Returned(sending),
        // Nothing of it was sent, and its own transaction is none, marks included.
        Err(error) if station.gathers() => Turn::Failed { error, patient: false, culprit: None, marks: Vec::new() },
        Err(error) => {
            // Marks count only when all that was piped is acknowledged.
            let marks = context.pipe.take_marks();
            match sending.settled().await.failed {
                None => Turn::Failed { error, patient: false, culprit: None, marks },
                Some((failed, culprit)) => {
                    let of_the_record = is_of_the_record(&failed);
                    let (of_send, patient) = judge(&station, failed, &source.place);
                    // The module may only have passed on what its report said.
                    let (error, culprit) = if of_the_record { (of_send, culprit) } else { (error, None) };
                    Turn::Failed { error, patient, culprit, marks: Vec::new() }
                }
            }
        }
    }
}

/// What a send's error means: the module's view of it, and whether it is none of the
/// records' fault. One that these clients cannot get over ends them.
pub(super) fn judge(station: &Station, error: log::Error, place: &TopicPartition) -> (Error, bool) {
    if is_of_the_record(&error) {
        let kind = if matches!(error, log::Error::RecordTooLarge { .. }) { "too-large" } else { "unknown-topic" };
        return (Error::permanent(error).with_kind(kind), false);
    }
    if !error.is_retryable() {
        let fatal = Error::from(error.clone()).context("the producer cannot be used any more");
        station.fatal.lock().get_or_insert(fatal);
        station.news.notify_one();
    }
    let error = Error::from(error).context(format!("sending for {place} failed"));
    station.board.trouble(&error);
    (error, true)
}

/// Makes a record's dead letter and sends it, for as long as it takes, unless the log
/// can never take it.
pub(super) async fn bury(station: Arc<Station>, source: Arc<Source>, record: Record, reason: Reason) -> Turn {
    let mut failures = 0_u32;
    loop {
        let sent = async {
            let letter = dead_letter::of_record(&station.shop, &record, &source.place, &reason).await?;
            if station.gathers() {
                return Ok(Shipment::of(letter));
            }
            let sent = async {
                for report in station.producer.send(vec![letter]).await?.await {
                    report?;
                }
                log::Result::Ok(())
            };
            let refused = |error: log::Error| {
                let who = format!("{}@{}", source.place, record.offset);
                dead_letter::unwritable(who, &error, &reason).unwrap_or_else(|| error.into())
            };
            sent.await.map(|()| Shipment::default()).map_err(refused)
        };
        match sent.await {
            Ok(letter) => {
                return Turn::Buried { offset: record.offset, about: About::of(&record), reason, letter };
            }
            Err(error) if dead_letter::is_unwritable(&error) => return Turn::Unburied { record, error },
            Err(error) => {
                failures = failures.saturating_add(1);
                station.board.trouble(&error.context("a dead letter cannot be made"));
                tokio::time::sleep(retry::backoff(&retry::patient(), failures)).await;
            }
        }
    }
}

/// Tells that records are done.
pub(super) fn told_done(station: &Station, records: &[Record], sent: usize) {
    station.board.done_many(records.len());
    if !station.board.heeds_documents() {
        return;
    }
    let sent = usize::from(sent > 0);
    let left = sent > 0 && station.shop.router.only_leaves();
    for record in records {
        let About { document, tombstone, .. } = About::of(record);
        station.board.event(&Event::Done { document, sent, left, tombstone });
    }
}

/// Runs one of a module's callbacks; what goes wrong with it is told.
pub(super) async fn told(station: &Station, what: &str, callback: BoxFuture<'_, Result<()>>) {
    let limit = station.shop.plan.revoke_grace;
    let told = tokio::time::timeout(limit, AssertUnwindSafe(callback).catch_unwind());
    let result = match told.await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => Err(panicked(panic.as_ref())),
        Err(_) => Err(Error::retryable(format!("it took longer than revoke_grace ({limit:?})"))),
    };
    if let Err(error) = result {
        station.board.trouble(&error.context(format!("the module's `{what}` failed")));
    }
}
