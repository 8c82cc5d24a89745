//! A partition's transactions: outputs, dead letters and the input's offset, all or
//! nothing, one transaction after the other.
//!
//! What is to be written is held in memory until it is written: a failed attempt
//! leaves nothing to undo, and the same is tried again until it is there. Whether a
//! commit of which nothing was heard has succeeded is asked of the log, once the
//! transactional id was taken anew, which settles it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pipedoc_model::kafka::Settings;
use pipedoc_transport::log::{
    self, Commit, Consumer, Delivered, Log, OutgoingRecord, TopicPartition, Transactional, TransactionalConfig,
};
use pipedoc_transport::size;

use super::Station;
use super::pipe::{NONE, Shipment};
use crate::error::Error;
use crate::runtime::outbox::is_of_the_record;
use crate::runtime::retry;

/// What a step's transactions have in common.
pub(crate) struct Exact {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) consumer: Arc<dyn Consumer>,
    /// Id of the instance.
    pub(crate) instance: String,
    pub(crate) settings: Settings,
    /// Numbers of the transactional ids in use.
    numbers: Mutex<BTreeSet<usize>>,
}

impl Exact {
    pub(crate) fn new(log: Arc<dyn Log>, consumer: Arc<dyn Consumer>, instance: String, settings: Settings) -> Self {
        Self { log, consumer, instance, settings, numbers: Mutex::default() }
    }

    /// The lowest number that is free, so that a restart takes the same ones again
    /// and fences what was before.
    fn take_number(&self) -> usize {
        let mut numbers = self.numbers.lock();
        let free = (0..).find(|number| !numbers.contains(number)).unwrap_or_default();
        numbers.insert(free);
        free
    }
}

/// What one transaction writes.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) records: Vec<OutgoingRecord>,
    /// Offset of the record that each was piped for, or [`NONE`].
    pub(super) origins: Vec<i64>,
    pub(super) commit: Commit,
}

impl Parcel {
    pub(super) fn new(commit: Commit) -> Self {
        Self { records: Vec::new(), origins: Vec::new(), commit }
    }

    pub(super) fn add(&mut self, shipment: &Shipment) {
        self.records.extend(shipment.records.iter().cloned());
        self.origins.extend(&shipment.origins);
    }
}

/// Why a parcel can never be written as it is, and the offset that it is about.
pub(super) type Refused = (log::Error, Option<i64>);

/// Writes a partition's parcels.
pub(super) struct Desk {
    station: Arc<Station>,
    exact: Arc<Exact>,
    source: Arc<TopicPartition>,
    number: usize,
    transactional: Option<Box<dyn Transactional>>,
    /// Whether the parcel at hand may have been written already.
    in_doubt: bool,
    /// The offset that was written last.
    last: Option<Commit>,
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.exact.numbers.lock().remove(&self.number);
    }
}

impl Desk {
    pub(super) fn new(station: Arc<Station>, exact: Arc<Exact>, source: Arc<TopicPartition>) -> Self {
        let number = exact.take_number();
        Self { station, exact, source, number, transactional: None, in_doubt: false, last: None }
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
        if self.transactional.is_none() {
            let id = format!("{}.{}.{}", self.station.shop.plan.group, self.exact.instance, self.number);
            let mut config = TransactionalConfig::new(id);
            config.settings.clone_from(&self.exact.settings);
            self.transactional = Some(self.exact.log.transactional(config).await?);
        }
        if self.in_doubt {
            if self.is_written(parcel).await? {
                self.in_doubt = false;
                return Ok(Vec::new());
            }
            self.in_doubt = false;
        }
        let Some(transactional) = &mut self.transactional else {
            return Err(log::Error::Closed { what: "transactional producer" });
        };
        transactional.begin().await?;
        let member = self.exact.consumer.group_metadata();
        let filled = async {
            if !parcel.records.is_empty() {
                transactional.send(parcel.records.clone()).await?;
            }
            let Some(member) = member else { return Err(log::Error::Closed { what: "consumer" }) };
            transactional.send_offsets(vec![parcel.commit.clone()], &member).await
        };
        if let Err(error) = filled.await {
            if transactional.abort().await.is_err() {
                // It is taken anew, which aborts what is open.
                self.transactional = None;
            }
            return Err(error);
        }
        match transactional.commit().await {
            Ok(delivered) => Ok(delivered),
            Err(error) => {
                // Taking the id anew settles what became of it.
                self.transactional = None;
                self.in_doubt = true;
                Err(error)
            }
        }
    }

    async fn is_written(&mut self, parcel: &Parcel) -> log::Result<bool> {
        let offsets = self.exact.log.group_offsets(&self.station.shop.plan.group).await?;
        let Commit { offset, metadata, .. } = &parcel.commit;
        Ok(offsets.get(&self.source).is_some_and(|found| found.offset == *offset && found.metadata == *metadata))
    }

    /// The offset of the record that is too large for its topic, if one is.
    async fn culprit(&mut self, parcel: &Parcel) -> Option<i64> {
        for (record, origin) in parcel.records.iter().zip(&parcel.origins) {
            let limit = self.station.shop.topics.limit(&record.topic).await;
            if size::of_record(record.key.as_deref(), record.value.as_deref(), &record.headers) > limit {
                return (*origin != NONE).then_some(*origin);
            }
        }
        None
    }
}

/// How often transactions are committed while work goes on.
pub(super) const COMMIT_EVERY: Duration = Duration::from_millis(100);

/// A transaction holds at most so many bytes of values, but at least one entry.
pub(super) const PARCEL_BYTES: usize = 8 << 20;
