//! A partition's transactions: outputs, dead letters and the input's offset, all or
//! nothing, one transaction after the other.
//!
//! What is to be written is held in memory until it is written: a failed attempt
//! leaves nothing to undo, and the same is tried again until it is there. Whether a
//! commit of which nothing was heard has succeeded is asked of the log, once the
//! transactional id was taken anew, which settles it.

use std::sync::Arc;

use pipedoc_transport::log::{self, Commit, Consumer, Delivered, OutgoingRecord, TopicPartition};
use pipedoc_transport::size;

use super::Station;
use super::pipe::{NONE, Shipment};
use crate::error::Error;
use crate::runtime::exact::{Desk, Office, Unwritten};
use crate::runtime::outbox::is_of_the_record;
use crate::runtime::retry;

/// What a step's transactions have in common.
pub(crate) struct Exact {
    office: Arc<Office>,
    consumer: Arc<dyn Consumer>,
}

impl Exact {
    pub(crate) fn new(office: Office, consumer: Arc<dyn Consumer>) -> Self {
        Self { office: Arc::new(office), consumer }
    }
}

/// What one transaction writes.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) records: Vec<OutgoingRecord>,
    /// Offset of the record that each was piped for, or [`NONE`].
    pub(super) origins: Vec<i64>,
    pub(super) commit: Commit,
    /// How many of the records are of each shipment.
    counts: Vec<usize>,
}

impl Parcel {
    pub(super) fn new(commit: Commit) -> Self {
        Self { records: Vec::new(), origins: Vec::new(), commit, counts: Vec::new() }
    }

    /// Takes in what a shipment holds.
    pub(super) fn take(&mut self, shipment: &mut Shipment) {
        self.counts.push(shipment.records.len());
        self.records.append(&mut shipment.records);
        self.origins.append(&mut shipment.origins);
    }

    /// Gives what was taken back to the shipments, in the same order.
    pub(super) fn give_back<'a>(self, shipments: impl Iterator<Item = &'a mut Shipment>) {
        let (mut records, mut origins) = (self.records.into_iter(), self.origins.into_iter());
        for (shipment, count) in shipments.zip(self.counts) {
            shipment.records.extend(records.by_ref().take(count));
            shipment.origins.extend(origins.by_ref().take(count));
        }
    }
}

/// Why a parcel can never be written as it is, and the offset that it is about.
pub(super) type Refused = (log::Error, Option<i64>);

/// Writes a partition's parcels.
pub(super) struct Writer {
    station: Arc<Station>,
    exact: Arc<Exact>,
    source: Arc<TopicPartition>,
    desk: Desk,
    /// Whether the parcel at hand may have been written already.
    in_doubt: bool,
    /// The offset that was written last.
    last: Option<Commit>,
}

impl Writer {
    pub(super) fn new(station: Arc<Station>, exact: Arc<Exact>, source: Arc<TopicPartition>) -> Self {
        let desk = exact.office.desk();
        Self { station, exact, source, desk, in_doubt: false, last: None }
    }

    pub(super) fn source(&self) -> &TopicPartition {
        &self.source
    }

    /// Writes a parcel, for as long as it takes. Gives where its records lie, as far
    /// as is known.
    pub(super) async fn write(&mut self, parcel: &Parcel) -> Result<Vec<Delivered>, Refused> {
        let mut failures = 0_u32;
        loop {
            let error = match self.try_write(parcel).await {
                Ok(delivered) => {
                    self.last = Some(parcel.commit.clone());
                    return Ok(delivered);
                }
                Err(error) => error,
            };
            let refused = is_of_the_record(&error) || matches!(error, log::Error::TransactionTooLarge { .. });
            // A transaction that moves no offset leaves no trace to look for.
            let no_trace = self.in_doubt && self.last.as_ref() == Some(&parcel.commit);
            if no_trace {
                self.in_doubt = false;
                return Err((error, None));
            }
            if refused && !self.in_doubt {
                return Err((error, self.culprit(parcel).await));
            }
            failures = failures.saturating_add(1);
            let trouble = Error::from(error).context(format!("a transaction of {} failed", self.source));
            self.station.board.trouble(&trouble);
            tokio::time::sleep(retry::backoff(&retry::patient(), failures)).await;
        }
    }

    async fn try_write(&mut self, parcel: &Parcel) -> log::Result<Vec<Delivered>> {
        let commits = vec![parcel.commit.clone()];
        if self.in_doubt {
            let written = self.desk.settle(&commits).await?;
            self.in_doubt = false;
            if written.iter().all(|written| *written) {
                return Ok(Vec::new());
            }
        }
        let member = self.exact.consumer.group_metadata();
        self.desk.write(&parcel.records, commits, member).await.map_err(|Unwritten { error, in_doubt }| {
            self.in_doubt = in_doubt;
            error
        })
    }

    /// The offset of the record that is too large for its topic, if one is.
    async fn culprit(&mut self, parcel: &Parcel) -> Option<i64> {
        for (record, origin) in parcel.records.iter().zip(&parcel.origins) {
            let limit = self.station.shop.topics.limit(&record.topic).await;
            if size::above(limit, record.key.as_deref(), record.value.as_deref(), &record.headers).is_some() {
                return (*origin != NONE).then_some(*origin);
            }
        }
        None
    }
}
