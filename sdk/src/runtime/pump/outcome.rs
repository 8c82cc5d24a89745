//! What becomes of deliveries: one exhaustive step from each stage to the next.

use std::collections::HashSet;
use std::sync::Arc;

use pipedoc_model::step::OnExhausted;
use pipedoc_transport::log::{self, OutgoingRecord, Record};
use tokio::time::Instant;

use super::Pump;
use super::task::{self, Signal};
use crate::error::Error;
use crate::event::Event;
use crate::runtime::dead_letter::Reason;
use crate::runtime::deliveries::{Delivery, Obituary, Stage};
use crate::runtime::lanes::{DeliveryId, LaneId};
use crate::runtime::outbox::{Settled, is_of_the_record};
use crate::runtime::retry;
use crate::runtime::work::{About, Failed, Job, Worked};

impl Delivery {
    /// One that waits for its first attempt.
    pub(super) fn new(source: Arc<log::TopicPartition>, record: Arc<Record>, lane: u64) -> Self {
        Self { source, record, attempts: 0, setbacks: 0, alone: false, lane, stage: Stage::Waiting }
    }

    /// What a task is to do.
    pub(super) fn job(&self) -> Job {
        let (record, source) = (Arc::clone(&self.record), Arc::clone(&self.source));
        Job { record, source, lane: self.lane, attempt: self.attempts }
    }
}

impl Pump {
    /// A task has something to say.
    pub(super) fn take(&mut self, signal: Signal) {
        match signal {
            Signal::Worked(ids, results) => self.worked(ids, results),
            Signal::Row { results, goes_on, spent } => {
                drop(spent);
                if !goes_on {
                    self.lanes.work_ended();
                }
                self.row(results);
            }
            Signal::Buried(id, letter) => self.buried(id, letter),
        }
    }

    fn worked(&mut self, ids: Vec<DeliveryId>, results: Option<Vec<Result<Worked, Failed>>>) {
        self.lanes.work_ended();
        // Those dropped leave their lanes first: what goes back to waiting stands at
        // the head of its lane then.
        let mut aborted = false;
        // After a failure the later ones of its lane in the batch count as not done. One
        // that was dropped meanwhile may have failed: nothing is concluded of those behind it.
        let mut failed_lanes = HashSet::new();
        for id in &ids {
            if let Some(lane) = self.deliveries.lay_ghost(*id) {
                self.lanes.leave(lane, *id);
                failed_lanes.insert(lane);
                aborted |= results.is_none();
            }
        }
        let mut results = results.map(Vec::into_iter);
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
                    let about = delivery.about(None);
                    let error = Error::retryable("dropped without an answer").with_kind("dropped");
                    self.attempt_failed(id, Failed::new(about, error));
                }
            }
        }
        self.drop_what_is_stopped();
    }

    /// What became of a row, or of a part of it.
    fn row(&mut self, results: Vec<(DeliveryId, Option<Result<Worked, Failed>>)>) {
        for (id, _) in &results {
            if let Some(lane) = self.deliveries.lay_ghost(*id) {
                self.lanes.leave(lane, *id);
            }
        }
        for (id, result) in results {
            let Some(delivery) = self.deliveries.get_mut(id) else { continue };
            match result {
                Some(Ok(worked)) => self.succeeded(id, worked),
                Some(Err(failed)) => self.attempt_failed(id, failed),
                None => {
                    delivery.stage = Stage::Waiting;
                    let lane = delivery.lane;
                    self.lanes.wait(lane, id, None);
                }
            }
        }
        self.drop_what_is_stopped();
    }

    fn succeeded(&mut self, id: DeliveryId, worked: Worked) {
        let Some(delivery) = self.deliveries.get_mut(id) else { return };
        for output in worked.unable {
            let document = delivery.about(worked.about.as_deref()).document;
            self.board.event(&Event::DeletionEnded { document, output });
        }
        // Counted as early as failures are: acknowledgements come late, and many at once.
        self.breaker.done(1);
        let partial = worked.partial.map(|loss| loss.to_string().into());
        let sent = worked.records.len();
        let left = worked.records.iter().any(|record| self.shop.router.leaves(&record.topic));
        delivery.stage = Stage::Sending { about: worked.about, sent, left, partial };
        let lane = delivery.lane;
        self.deliveries.sent(lane, id);
        self.send(id, worked.records);
        // Sends go out in this order, so the lane may go on.
        self.lanes.leave(lane, id);
    }

    fn attempt_failed(&mut self, id: DeliveryId, failed: Failed) {
        let retries = self.shop.plan.retries;
        let Some(delivery) = self.deliveries.get_mut(id) else { return };
        let Failed { about, error, patient, of_batch } = failed;
        if of_batch {
            // Nobody knows which of them it was: each is tried alone.
            delivery.alone = true;
            delivery.stage = Stage::Waiting;
            let lane = delivery.lane;
            self.lanes.wait(lane, id, None);
            return self.board.error(&error.to_string());
        }
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
        self.board.error(&error);
        self.event(Event::Retrying { document: about.document, attempts, error });
    }

    /// No further attempt is made.
    fn give_up(&mut self, id: DeliveryId, about: About, error: &Error) {
        self.board.error(&error.to_string());
        let on_exhausted = self.shop.plan.on_exhausted;
        if self.stops_instead(id, &about, error, on_exhausted == OnExhausted::Pause) {
            return;
        }
        let Some(delivery) = self.deliveries.get_mut(id) else { return };
        match on_exhausted {
            OnExhausted::Skip => self.skip(id, about.document, error.to_string()),
            // PAUSE has stopped the partition.
            OnExhausted::DeadLetter | OnExhausted::Pause => {
                let record = Arc::clone(&delivery.record);
                let reason = Reason::new(error, delivery.attempts);
                let source = Arc::clone(&delivery.source);
                let task = task::bury(&self.shop, &self.board, id, record, source, reason.clone(), &self.signaller);
                delivery.stage = Stage::Burying { task, obituary: Box::new(Obituary { about, reason }) };
            }
        }
    }

    /// A delivery is given up on and dropped.
    pub(super) fn skip(&mut self, id: DeliveryId, document: String, error: String) {
        let Some(delivery) = self.deliveries.get(id) else { return };
        self.board.failed();
        self.board.event(&Event::Skipped { document, error });
        let lane = delivery.lane;
        self.lanes.leave(lane, id);
        self.is_settled(id);
    }

    fn buried(&mut self, id: DeliveryId, letter: Option<Result<OutgoingRecord, Error>>) {
        if let Some(lane) = self.deliveries.lay_ghost(id) {
            return self.lanes.leave(lane, id);
        }
        let Some(delivery) = self.deliveries.get_mut(id) else { return };
        let Stage::Burying { obituary, .. } = std::mem::replace(&mut delivery.stage, Stage::Waiting) else {
            return;
        };
        let letter = match letter {
            Some(Ok(letter)) => letter,
            Some(Err(error)) => return self.unburied(id, obituary.about, &error),
            None => {
                // The task ended without its letter: begin again.
                let record = Arc::clone(&delivery.record);
                let source = Arc::clone(&delivery.source);
                let reason = obituary.reason.clone();
                let task = task::bury(&self.shop, &self.board, id, record, source, reason, &self.signaller);
                delivery.stage = Stage::Burying { task, obituary };
                return;
            }
        };
        delivery.stage = Stage::Buried { letter: Box::new(letter), obituary };
        let lane = delivery.lane;
        self.deliveries.hold(lane, id);
        self.send_letters(lane);
    }

    /// Sends the dead letters of a lane that are made, each after all that was sent
    /// before it and could become one: they lie in the order of their records.
    pub(super) fn send_letters(&mut self, lane: LaneId) {
        while let Some(id) = self.deliveries.next_letter(lane) {
            self.deliveries.let_go(lane, id);
            self.deliveries.arrived(lane, id);
            let Some(delivery) = self.deliveries.get_mut(id) else { continue };
            match std::mem::replace(&mut delivery.stage, Stage::Waiting) {
                Stage::Buried { letter, obituary } => {
                    delivery.stage = Stage::SendingDeadLetter(obituary);
                    self.send(id, vec![*letter]);
                    self.lanes.leave(lane, id);
                }
                other => delivery.stage = other,
            }
        }
    }

    /// The log has acknowledged something, or has not.
    pub(super) fn settled(&mut self, settled: Settled<DeliveryId>) {
        if let Err(error) = &settled.result
            && !error.is_retryable()
            && !is_of_the_record(error)
        {
            self.fatal = Some(Error::from(error.clone()).context("the producer cannot be used any more"));
        }
        match settled.result {
            Ok(_) => self.acknowledged(settled.ticket),
            Err(error) => self.refused(settled.ticket, error),
        }
    }

    pub(super) fn acknowledged(&mut self, id: DeliveryId) {
        let Some(delivery) = self.deliveries.get_mut(id) else { return };
        match std::mem::replace(&mut delivery.stage, Stage::Waiting) {
            Stage::Sending { about, sent, left, partial } => {
                self.board.done();
                let heeded = self.board.heeds_documents();
                if heeded || partial.is_some() {
                    let About { document, tombstone, .. } = delivery.about(about.as_deref());
                    if let Some(error) = partial {
                        self.board.event(&Event::Partial { document: document.clone(), error: error.into() });
                    }
                    if heeded {
                        self.board.event(&Event::Done { document, sent, left, tombstone });
                    }
                }
                self.is_settled(id);
            }
            Stage::SendingDeadLetter(obituary) => {
                self.board.failed();
                let Obituary { about, reason } = *obituary;
                let Reason { kind, message, .. } = reason;
                let About { document, version, .. } = about;
                self.board.event(&Event::DeadLetter { document, version, kind: kind.to_owned(), error: message });
                self.is_settled(id);
            }
            stage @ (Stage::Waiting | Stage::Working(_) | Stage::Burying { .. } | Stage::Buried { .. }) => {
                delivery.stage = stage;
            }
        }
    }

    fn refused(&mut self, id: DeliveryId, error: log::Error) {
        let Some(delivery) = self.deliveries.get(id) else { return };
        if is_of_the_record(&error) && matches!(delivery.stage, Stage::Sending { .. }) {
            return self.refused_for_good(id, error);
        }
        if self.commits_first() {
            return self.lost(id, error);
        }
        if let Some((about, error)) = self.unwritable(id, &error) {
            return self.unburied(id, about, &error);
        }
        let source = Arc::clone(&delivery.source);
        self.restart(&source, &error);
    }

    /// The outputs of a delivery can never be written.
    pub(super) fn refused_for_good(&mut self, id: DeliveryId, error: log::Error) {
        let Some(delivery) = self.deliveries.get_mut(id) else { return };
        let Stage::Sending { about, .. } = &delivery.stage else { return };
        let about = delivery.about(about.as_deref());
        self.breaker.undone(1);
        delivery.attempts += 1;
        let kind = match error {
            log::Error::RecordTooLarge { .. } | log::Error::TransactionTooLarge { .. } => "too-large",
            _ => "unknown-topic",
        };
        self.give_up(id, about, &Error::permanent(error).with_kind(kind));
    }

    /// A delivery is done with, which has left its lane.
    pub(super) fn is_settled(&mut self, id: DeliveryId) {
        let Some(delivery) = self.deliveries.remove(id) else { return };
        self.deliveries.arrived(delivery.lane, id);
        self.send_letters(delivery.lane);
        if let Some(partition) = self.partitions.get_mut(&delivery.source) {
            partition.row.forgive(id);
            partition.settle(delivery.record.offset);
        }
    }
}
