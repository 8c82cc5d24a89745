//! `delivery: EXACTLY_ONCE` for connectors: what comes of emissions is written in
//! transactions together with their state changes, in the order of the emissions.
//!
//! ```text
//!  made ─▶ row (one lane) ─▶ parcel ─▶ desk ─▶ written ─▶ settled
//!            ▲                          │ not written
//!            └──────────────────────────┘
//! ```
//!
//! There is one writer at a time. All instances write under the same transactional id, so
//! that an owner that takes it has ended whatever the one before it had open, before it
//! reads the state. And each transaction commits a place of the state's partition as its
//! owner: who owns it no more is refused by the log, however late it wakes up. Nothing is
//! read from that place; the text beside it is of this transaction alone, and tells
//! whether one of which nothing was heard was written.

use std::sync::Arc;
use std::time::Duration;

use pipedoc_transport::log::{self, Commit, Consumer, OutgoingRecord, TopicPartition};
use tokio::time::Instant;
use uuid::Uuid;

use super::{Emissions, Out, find};
use crate::error::{Error, Result};
use crate::runtime::exact::{Claim, Desks, Ended, Entry, Office, PARCEL_BYTES, Parcel, Row};
use crate::runtime::lanes::LaneId;
use crate::runtime::retry;

/// There is one desk,
const DESK: usize = 0;
/// what it writes has one claim,
const CLAIM: usize = 0;
/// and is in order.
const LANE: LaneId = 0;

/// What is to be written in transactions, and what is being written.
pub(crate) struct Transactions {
    desks: Desks<()>,
    row: Row,
    member: Arc<dyn Consumer>,
    /// The partition whose owner may write.
    home: TopicPartition,
    /// Tells these transactions from those of every other run.
    run: Uuid,
    /// How many were begun.
    begun: u64,
}

impl Transactions {
    /// Takes the office's first transactional id: whatever was open under it has ended
    /// then. `member`: owns `home`, or may not write.
    ///
    /// # Errors
    /// When the log refuses.
    pub(crate) async fn open(office: Office, member: Arc<dyn Consumer>, home: TopicPartition) -> log::Result<Self> {
        let desks = Desks::one(office).await?;
        Ok(Self { desks, row: Row::default(), member, home, run: Uuid::new_v4(), begun: 0 })
    }

    /// Puts what is to be written of an emission last; in the place of what was held, in
    /// its place.
    pub(super) fn push(&mut self, number: u64, records: Vec<OutgoingRecord>) {
        self.row.push(Entry { id: number, lane: LANE, offset: 0, records, until: None });
    }

    /// What follows an emission waits for what comes in its place.
    pub(super) fn hold(&mut self, number: u64) {
        self.row.refuse(number, LANE);
    }

    /// Nothing comes in the place of one that was held.
    pub(super) fn forgive(&mut self, number: u64) {
        self.row.forgive(number);
    }

    /// Begins the next transaction if it is due; else says when it is, if anything is to
    /// be written. `every`: how long after the last.
    pub(super) fn begin_due(&mut self, every: Duration, now: Instant) -> Option<Instant> {
        if self.desks.is_busy(DESK) {
            return None;
        }
        let ready = self.row.ready_at(now)?;
        let is_full = self.row.bytes() >= PARCEL_BYTES;
        let due = if is_full { ready } else { ready.max(self.desks.last(DESK)? + every) };
        let due = self.desks.rests_until(DESK).map_or(due, |until| due.max(until));
        if due > now {
            return Some(due);
        }
        self.begin(now);
        None
    }

    fn begin(&mut self, now: Instant) {
        let entries = self.row.take(PARCEL_BYTES, self.desks.most(DESK), now);
        if entries.is_empty() {
            return;
        }
        self.begun += 1;
        // Where the state ends, as far as is known: whoever looks at groups finds no lag.
        let offset = self.member.known_ends().get(&self.home).copied().unwrap_or(0);
        let metadata = format!("{}.{}", self.run, self.begun);
        let commit = Commit { source: self.home.clone(), offset, metadata };
        let mut parcel = Parcel::new();
        parcel.add(Claim { commit, note: () }, entries);
        self.desks.begin(DESK, parcel, &self.member, now);
    }

    /// Waits until a transaction has ended; for ever while none is open. Cancelling it
    /// loses nothing.
    ///
    /// # Errors
    /// When the desk has broken.
    pub(super) async fn written(&mut self) -> Result<Ended<()>> {
        self.desks.written().await
    }
}

impl Emissions {
    /// A transaction has ended. What it did not write is written anew, in order, but for
    /// what the log has refused.
    pub(super) fn written(&mut self, ended: Result<Ended<()>>) {
        let Out::Exact(transactions) = &mut self.out else { return };
        let now = Instant::now();
        let (parcel, mut verdict) = match ended {
            Ok(ended) => transactions.desks.judge(ended, &self.board, now),
            Err(error) => {
                self.fatal = Some(error);
                return;
            }
        };
        if let Some(error) = verdict.fatal.take() {
            self.fatal = Some(error);
            return;
        }
        if verdict.is_written(CLAIM) {
            for number in parcel.ids(CLAIM) {
                if let Some(entry) = find(&mut self.sending, number) {
                    entry.acknowledged = true;
                }
            }
            self.failures = 0;
            return self.advance();
        }
        let culprits = verdict.refusal.as_ref().map(|error| parcel.culprits(error)).unwrap_or_default();
        let (mut again, mut given_up) = (Vec::new(), Vec::new());
        for mut entry in parcel.take_apart().into_iter().flat_map(|(_, entries)| entries) {
            if culprits.contains(&entry.id) {
                let emission = find(&mut self.sending, entry.id);
                if emission.is_some_and(|emission| emission.dead.is_none() && emission.skipped.is_none()) {
                    transactions.hold(entry.id);
                    given_up.push(entry.id);
                    continue;
                }
                // A dead letter, or a state, has nowhere else to go: it waits for what is
                // missing.
                self.failures = self.failures.saturating_add(1);
                entry.until = Some(now + retry::backoff(&retry::patient(), self.failures));
            }
            again.push(entry);
        }
        transactions.row.give_back(again);
        let Some(error) = verdict.refusal else { return };
        if given_up.is_empty() {
            self.board.trouble(&Error::from(error.clone()).context("a transaction was refused"));
        }
        for number in given_up {
            self.refused(number, &Error::permanent(error.clone()).with_kind("refused"));
        }
    }
}
