//! `delivery: AT_MOST_ONCE` for record modules: a batch is committed, then worked on,
//! and never again.
//!
//! ```text
//!  queue ── its end is committed ──▶ in hand ─ returned ─▶ sent once ─▶ done
//!    ▲                                  │ failed                └ not acknowledged: given up on
//!    └──────── tried again, from memory ┘
//! ```
//!
//! What a batch pipes is kept until it has returned: an attempt that failed has sent
//! nothing.

use std::collections::BTreeMap;

use pipedoc_transport::log;

use super::attempt::{judge, told_done};
use super::pipe::Shipment;
use super::sending::Outcome;
use super::worker::{Load, Worker};
use crate::error::Error;
use crate::event::Event;
use crate::runtime::outbox::is_of_the_record;
use crate::runtime::work::About;

impl Worker {
    /// Whether the next load is committed.
    pub(super) fn is_first_committed(&self) -> bool {
        self.queue.front().is_some_and(|load| load.next <= self.progress.committed())
    }

    /// What was sent of a load is not sent again, whatever became of it.
    pub(super) fn sent_once(&mut self, load: Load, outcome: Outcome) {
        let Outcome { sent, lost, .. } = outcome;
        let passing = lost.iter().find(|(_, error)| !is_of_the_record(error));
        if let Some((_, error)) = passing {
            judge(&self.station, error.clone(), self.place());
        }
        if let (None, Some((_, error))) = (&load.batch, lost.first()) {
            // Its record is given up on, and told of.
            let error = Error::from(error.clone()).context("a dead letter was not written, and is not tried again");
            self.station.board.trouble(&error);
        }
        let Some(batch) = load.batch.clone().filter(|_| !lost.is_empty()) else { return self.done(&load, sent) };
        let mut fates: BTreeMap<i64, log::Error> = BTreeMap::new();
        for (origin, error) in lost {
            if is_of_the_record(&error) || !fates.contains_key(&origin) {
                fates.insert(origin, error);
            }
        }
        let (mut done, mut settled, mut refused) = (Vec::new(), Vec::new(), None);
        for record in &batch.records {
            match fates.remove(&record.offset) {
                Some(error) if is_of_the_record(&error) => {
                    refused.get_or_insert(error);
                    continue;
                }
                Some(error) => {
                    let error = Error::from(error).context("sending failed, and is not tried again").to_string();
                    self.station.board.failed();
                    self.station.board.event(&Event::Skipped { document: About::of(record).document, error });
                }
                None => done.push(record.clone()),
            }
            settled.push(record.offset);
        }
        self.station.fuse.undone(batch.records.len() - done.len());
        told_done(&self.station, &done, sent);
        let Some(error) = refused else {
            return self.settle(&load);
        };
        let mut rest = self.split(load, &settled, Shipment::default());
        let (error, _) = judge(&self.station, error, self.place());
        self.station.board.error(&error.to_string());
        rest.attempts += 1;
        rest.doomed = Some(error.duplicate());
        self.give_up(rest, &error, None);
    }
}
