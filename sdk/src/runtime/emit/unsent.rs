//! What becomes of what a connector gave and that cannot be sent: a dead letter, nothing,
//! or the step stands still, as `on_exhausted` and `stop_at_failure_rate` say, or because
//! a dead letter would be too large for its topic.

use std::sync::Arc;
use std::time::SystemTime;

use pipedoc_model::step::OnExhausted;
use pipedoc_transport::log::{OutgoingRecord, TopicPartition};

use super::make::{self, Buried};
use super::{Emissions, Out, find, place};
use crate::error::Error;
use crate::event::Event;
use crate::runtime::dead_letter::{self, Reason};
use crate::runtime::status::{PauseReason, PausedPartition};

impl Emissions {
    /// The log does not take what was made of a document.
    pub(super) fn refused(&mut self, number: u64, error: &Error) {
        if find(&mut self.sending, number).is_some_and(|entry| !entry.silent) {
            self.breaker.undone(1);
        }
        self.give_up(number, error);
    }

    /// A document can never be sent.
    pub(super) fn give_up(&mut self, number: u64, error: &Error) {
        self.board.error(&error.to_string());
        let on_exhausted = self.shop.plan.on_exhausted;
        let trips = self.breaker.gives_up();
        let rate = self.breaker.reason();
        if rate.is_some() || on_exhausted == OnExhausted::Pause {
            return self.stop(number, error, rate, trips);
        }
        match on_exhausted {
            OnExhausted::Skip => {
                let Some(entry) = find(&mut self.sending, number) else { return };
                self.bytes -= OutgoingRecord::bytes_of(&entry.records);
                entry.records = Vec::new();
                entry.skipped = Some(error.to_string());
                entry.burying = false;
                match self.out {
                    Out::Plain(_) => entry.acknowledged = true,
                    // Its state is still to be written, in its place.
                    Out::Exact(_) => self.send(number),
                }
                self.advance();
            }
            // PAUSE has stopped the step.
            OnExhausted::DeadLetter | OnExhausted::Pause => self.bury(number, Reason::new(error, 1)),
        }
    }

    /// The step stands still, for a document that is forgotten. `rate`: because too many
    /// failed; `trips`: this one was one too many.
    fn stop(&mut self, number: u64, error: &Error, rate: Option<String>, trips: bool) {
        let Some(at) = place(&self.sending, number) else { return };
        let Some(entry) = self.sending.remove(at) else { return };
        if let Out::Exact(transactions) = &mut self.out {
            transactions.forgive(number);
        }
        self.bytes -= OutgoingRecord::bytes_of(&entry.records);
        if let Some(rate) = rate.as_ref().filter(|_| trips) {
            self.board.error(rate);
            self.board.event(&Event::FailureRateReached { reason: rate.clone() });
        }
        if let Some(topic) = self.shop.plan.state.clone().filter(|_| self.stopped.is_none()) {
            self.stopped = Some(PausedPartition {
                partition: TopicPartition::new(topic, 0),
                since: SystemTime::now(),
                reason: if rate.is_some() { PauseReason::FailureRate } else { PauseReason::Exhausted },
                offset: None,
                document: dead_letter::name(&entry.about.document),
                error: rate.map_or_else(|| error.to_string(), |rate| format!("{rate}; at last: {error}")),
            });
        }
        self.advance();
    }

    /// A document that can never be written becomes a dead letter. It keeps its
    /// place in the row, so that states stay in order.
    fn bury(&mut self, number: u64, reason: Reason) {
        let Some(entry) = find(&mut self.sending, number) else { return };
        let Some(content) = entry.original.take() else { return };
        self.bytes -= OutgoingRecord::bytes_of(&entry.records);
        entry.records = Vec::new();
        entry.burying = true;
        entry.dead = Some(reason.clone());
        if let Out::Exact(transactions) = &mut self.out {
            transactions.hold(number);
        }
        let (shop, board, about) = (Arc::clone(&self.shop), Arc::clone(&self.board), entry.about.clone());
        self.burying.push_back(tokio::spawn(async move {
            let letter = make::bury(&shop, &board, &content, &about, &reason).await;
            Buried { number, letter, content }
        }));
    }

    pub(super) fn buried(&mut self, buried: Buried) {
        let Buried { number, letter, content } = buried;
        let letter = match letter {
            Ok(letter) => letter,
            Err(error) => {
                self.board.error(&error.to_string());
                return self.stop(number, &error, None, false);
            }
        };
        let Some(entry) = find(&mut self.sending, number) else { return };
        entry.records = vec![letter];
        entry.original = Some(content);
        entry.burying = false;
        self.bytes += OutgoingRecord::bytes_of(&entry.records);
        self.send(number);
    }
}
