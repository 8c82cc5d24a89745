//! What becomes of deliveries: one exhaustive step from each stage to the next.

use std::collections::HashSet;
use std::sync::Arc;

use pipedoc_model::step::OnExhausted;
use pipedoc_transport::log::{self, Delivered, OutgoingRecord, RecordBatch};
use tokio::time::Instant;

use super::task::{self, Signal};
use super::{Pump, Ticket};
use crate::error::Error;
use crate::event::Event;
use crate::runtime::dead_letter::Reason;
use crate::runtime::deliveries::{Delivery, Load, Stage};
use crate::runtime::lanes::DeliveryId;
use crate::runtime::outbox::{Settled, is_of_the_record};
use crate::runtime::records::Reply;
use crate::runtime::retry;
use crate::runtime::work::{About, Failed, Job, Worked};

impl Delivery {
    /// One that waits for its first attempt.
    pub(super) fn new(source: Arc<log::TopicPartition>, load: Load, lane: u64) -> Self {
        Self { source, load, attempts: 0, setbacks: 0, lane, stage: Stage::Waiting }
    }

    /// What a task is to do. Empty for batches of records, which have their own.
    pub(super) fn job(&self) -> Job {
        let record = match &self.load {
            Load::Record(record) => record.clone(),
            Load::Batch(batch) => batch.records[0].clone(),
        };
        Job { record, source: Arc::clone(&self.source), attempt: self.attempts }
    }
}

impl Pump {
    /// A task has something to say.
    pub(super) fn take(&mut self, signal: Signal) {
        match signal {
            Signal::Worked(ids, results) => self.worked(ids, results),
            Signal::Buried(id, letter) => self.buried(id, letter),
            Signal::Pipe(id, records, reply) => self.pipe(id, records, reply),
        }
    }

    fn worked(&mut self, ids: Vec<DeliveryId>, results: Option<Vec<Result<Worked, Failed>>>) {
        self.lanes.work_ended();
        // Those dropped leave their lanes first: what goes back to waiting stands at
        // the head of its lane then.
        let mut aborted = false;
        for id in &ids {
            if let Some(lane) = self.deliveries.lay_ghost(*id) {
                self.lanes.leave(lane, *id);
                aborted |= results.is_none();
            }
        }
        let mut results = results.map(Vec::into_iter);
        // After a failure the later ones of its lane in the batch count as not done.
        let mut failed_lanes = HashSet::new();
        for id in ids {
            let result = results.as_mut().and_then(Iterator::next);
            let Some(delivery) = self.deliveries.get_mut(id) else { continue };
            let lane = delivery.lane;
            // Those that shared a batch with what was dropped have not failed.
            if aborted || failed_lanes.contains(&lane) {
                delivery.stage = Stage::Waiting;
                self.lanes.wait(lane, id, None);
                continue;
            }
            match result {
                Some(Ok(worked)) => self.succeeded(id, worked),
                Some(Err(failed)) => {
                    failed_lanes.insert(lane);
                    self.attempt_failed(id, failed);
                }
                None => {
                    failed_lanes.insert(lane);
                    let about = delivery.load.first().map(About::of).unwrap_or_default();
                    let error = Error::retryable("dropped without an answer").with_kind("dropped");
                    self.attempt_failed(id, Failed { about, error, patient: false });
                }
            }
        }
    }

    fn succeeded(&mut self, id: DeliveryId, worked: Worked) {
        let Some(delivery) = self.deliveries.get_mut(id) else { return };
        if matches!(delivery.load, Load::Batch(_)) {
            delivery.stage = Stage::Piping;
            if let Some(piping) = self.piping.get_mut(&id) {
                piping.ended = true;
            }
            return self.check_piping(id);
        }
        for output in worked.unable {
            self.board.event(&Event::DeletionEnded { document: worked.about.document.clone(), output });
        }
        let partial = worked.partial.map(|loss| loss.to_string());
        delivery.stage = Stage::Sending { about: worked.about, sent: worked.records.len(), partial };
        let lane = delivery.lane;
        self.outbox.push(Ticket::Delivery(id), worked.records);
        // Sends go out in this order, so the lane may go on.
        self.lanes.leave(lane, id);
    }

    fn attempt_failed(&mut self, id: DeliveryId, failed: Failed) {
        self.piping.remove(&id);
        let retries = self.shop.plan.retries;
        let Some(delivery) = self.deliveries.get_mut(id) else { return };
        let Failed { about, error, patient } = failed;
        // Full storage is not the document's fault either: it waits for room.
        let patient = patient || (error.is_retryable() && error.is_storage_full());
        let wait = if patient {
            delivery.setbacks = delivery.setbacks.saturating_add(1);
            retry::backoff(&retry::patient(), delivery.setbacks)
        } else {
            delivery.attempts += 1;
            if !error.is_retryable() || delivery.attempts >= retries.attempts {
                return self.give_up(id, about, &error);
            }
            retry::backoff(&retries, delivery.attempts)
        };
        delivery.stage = Stage::Waiting;
        let (lane, attempts) = (delivery.lane, delivery.attempts);
        self.lanes.wait(lane, id, Some(Instant::now() + wait));
        self.board.tell_of_storage(&error);
        let error = error.to_string();
        tracing::debug!(step = %self.shop.plan.id, document = about.document, attempts, error, "an attempt failed");
        self.board.error(&error);
        self.event(Event::Retrying { document: about.document, attempts, error });
    }

    /// No further attempt is made.
    fn give_up(&mut self, id: DeliveryId, about: About, error: &Error) {
        self.board.error(&error.to_string());
        let Some(delivery) = self.deliveries.get_mut(id) else { return };
        match self.shop.plan.on_exhausted {
            OnExhausted::Skip => {
                tracing::warn!(step = %self.shop.plan.id, document = about.document, %error, "skipped");
                self.board.failed();
                self.board.event(&Event::Skipped { document: about.document, error: error.to_string() });
                self.first_is_settled(id);
            }
            // A step that asks for PAUSE does not open yet.
            OnExhausted::DeadLetter | OnExhausted::Pause => {
                let Some(record) = delivery.load.first().cloned() else { return };
                let reason = Reason::new(error, delivery.attempts);
                let source = Arc::clone(&delivery.source);
                let task = task::bury(&self.shop, &self.board, id, record, source, reason.clone(), &self.signaller);
                delivery.stage = Stage::Burying { task, about, reason };
            }
        }
    }

    fn buried(&mut self, id: DeliveryId, letter: Option<OutgoingRecord>) {
        if let Some(lane) = self.deliveries.lay_ghost(id) {
            return self.lanes.leave(lane, id);
        }
        let Some(delivery) = self.deliveries.get_mut(id) else { return };
        let Stage::Burying { about, reason, .. } = std::mem::replace(&mut delivery.stage, Stage::Waiting) else {
            return;
        };
        let Some(letter) = letter else {
            // The task ended without its letter: begin again.
            let Some(record) = delivery.load.first().cloned() else { return };
            let source = Arc::clone(&delivery.source);
            let task = task::bury(&self.shop, &self.board, id, record, source, reason.clone(), &self.signaller);
            delivery.stage = Stage::Burying { task, about, reason };
            return;
        };
        delivery.stage = Stage::SendingDeadLetter { about, reason };
        let (lane, whole) = (delivery.lane, matches!(delivery.load, Load::Record(_)));
        self.outbox.push(Ticket::Delivery(id), vec![letter]);
        if whole {
            self.lanes.leave(lane, id);
        }
    }

    /// The log has acknowledged something, or has not.
    pub(super) fn settled(&mut self, settled: Settled<Ticket>) {
        if let Err(error) = &settled.result
            && !error.is_retryable()
            && !is_of_the_record(error)
        {
            self.fatal = Some(Error::from(error.clone()).context("the producer cannot be used any more"));
        }
        match settled.ticket {
            Ticket::Delivery(id) => match settled.result {
                Ok(_) => self.acknowledged(id),
                Err(error) => self.refused(id, error),
            },
            Ticket::Pipe(id, reply) => self.piped(id, reply, settled.result),
        }
    }

    fn acknowledged(&mut self, id: DeliveryId) {
        let Some(delivery) = self.deliveries.get_mut(id) else { return };
        match std::mem::replace(&mut delivery.stage, Stage::Waiting) {
            Stage::Sending { about, sent, partial } => {
                self.board.done();
                if let Some(error) = partial {
                    tracing::warn!(step = %self.shop.plan.id, document = about.document, error, "done with losses");
                    self.board.event(&Event::Partial { document: about.document.clone(), error });
                }
                let About { document, tombstone, .. } = about;
                self.board.event(&Event::Done { document, sent, tombstone });
                self.first_is_settled(id);
            }
            Stage::SendingDeadLetter { about, reason } => {
                self.board.failed();
                let Reason { kind, message, .. } = reason;
                tracing::warn!(step = %self.shop.plan.id, document = about.document, kind, error = message, "dead letter");
                let About { document, version, .. } = about;
                self.board.event(&Event::DeadLetter { document, version, kind: kind.to_owned(), error: message });
                self.first_is_settled(id);
            }
            stage @ (Stage::Waiting | Stage::Working(_) | Stage::Burying { .. } | Stage::Piping) => {
                delivery.stage = stage
            }
        }
    }

    fn refused(&mut self, id: DeliveryId, error: log::Error) {
        let Some(delivery) = self.deliveries.get_mut(id) else { return };
        if is_of_the_record(&error)
            && let Stage::Sending { about, .. } = &delivery.stage
        {
            let about = about.clone();
            delivery.attempts += 1;
            let kind = if matches!(error, log::Error::RecordTooLarge { .. }) { "too-large" } else { "unknown-topic" };
            return self.give_up(id, about, &Error::permanent(error).with_kind(kind));
        }
        let source = Arc::clone(&delivery.source);
        self.restart(&source, &error);
    }

    /// The record of a delivery, or the first of its batch, is done with. The rest
    /// of a batch starts anew.
    fn first_is_settled(&mut self, id: DeliveryId) {
        let Some(delivery) = self.deliveries.remove(id) else { return };
        self.lanes.leave(delivery.lane, id);
        let Some(first) = delivery.load.first() else { return };
        if let Some(partition) = self.partitions.get_mut(&delivery.source) {
            partition.settle(first.offset);
        }
        if let Load::Batch(batch) = &delivery.load
            && batch.records.len() > 1
        {
            let rest = RecordBatch { source: batch.source.clone(), records: batch.records[1..].to_vec() };
            let id = self.deliveries.next_id();
            let load = Load::Batch(Arc::new(rest));
            self.deliveries.insert(id, Delivery::new(delivery.source, load, delivery.lane));
            self.lanes.push_front(delivery.lane, id);
        }
    }

    fn pipe(&mut self, id: DeliveryId, records: Vec<OutgoingRecord>, reply: Reply) {
        match self.piping.get_mut(&id).filter(|piping| !piping.ended) {
            Some(piping) => {
                piping.open += 1;
                piping.records += records.len();
                self.outbox.push(Ticket::Pipe(id, reply), records);
            }
            None => reply.send(Err(log::Error::Closed { what: "batch" })),
        }
    }

    fn piped(&mut self, id: DeliveryId, reply: Reply, result: log::Result<Vec<Delivered>>) {
        if let Some(piping) = self.piping.get_mut(&id) {
            piping.open -= 1;
            if let Err(error) = &result
                && piping.failed.as_ref().is_none_or(is_of_the_record)
            {
                piping.failed = Some(error.clone());
            }
        }
        reply.send(result);
        self.check_piping(id);
    }

    /// A batch is done when its module has returned and all that it piped is
    /// acknowledged.
    fn check_piping(&mut self, id: DeliveryId) {
        let Some(piping) = self.piping.get(&id).filter(|piping| piping.ended && piping.open == 0) else { return };
        let (failed, sent) = (piping.failed.clone(), usize::from(piping.records > 0));
        let Some(delivery) = self.deliveries.get(id) else { return };
        match failed {
            Some(error) if is_of_the_record(&error) => {
                let about = delivery.load.first().map(About::of).unwrap_or_default();
                self.attempt_failed(id, Failed { about, error: Error::permanent(error), patient: false });
            }
            Some(error) => {
                let source = Arc::clone(&delivery.source);
                self.lanes.leave(delivery.lane, id);
                self.restart(&source, &error);
            }
            None => {
                self.piping.remove(&id);
                let Some(delivery) = self.deliveries.remove(id) else { return };
                self.lanes.leave(delivery.lane, id);
                for record in delivery.load.records() {
                    self.board.done();
                    let About { document, tombstone, .. } = About::of(record);
                    self.board.event(&Event::Done { document, sent, tombstone });
                    if let Some(partition) = self.partitions.get_mut(&delivery.source) {
                        partition.settle(record.offset);
                    }
                }
            }
        }
    }
}
