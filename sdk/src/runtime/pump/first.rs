//! `delivery: AT_MOST_ONCE`: a record is committed, then worked on, and never again.
//!
//! ```text
//!  admitted ─▶ gate ── committed ──▶ lane ─▶ worked on ─▶ sent ─▶ done
//!                                                           └ not acknowledged: given up on
//! ```
//!
//! While it is in memory it is tried as often as elsewhere; what has been sent is not
//! sent again, as it may be there.

use std::sync::Arc;

use pipedoc_model::step::Delivery;
use pipedoc_transport::log::{self, TopicPartition};

use super::Pump;
use crate::error::Error;
use crate::event::Event;
use crate::runtime::deliveries::Stage;
use crate::runtime::lanes::DeliveryId;

impl Pump {
    /// Whether records are committed before they are worked on.
    pub(super) fn commits_first(&self) -> bool {
        self.shop.plan.delivery == Delivery::AtMostOnce
    }

    /// Everything below an offset is committed: it may be worked on.
    pub(super) fn open_gate(&mut self, source: &TopicPartition, offset: i64) {
        let Some(partition) = self.partitions.get_mut(source) else { return };
        while partition.gate.front().is_some_and(|(at, _)| *at < offset) {
            let Some((_, id)) = partition.gate.pop_front() else { return };
            // One that was dropped meanwhile comes again nowhere: it is committed.
            if let Some(delivery) = self.deliveries.get(id) {
                self.lanes.push(delivery.lane, id);
            }
        }
    }

    /// Drops what is neither committed nor about to be: it comes again elsewhere.
    pub(super) fn shut_gate(&mut self, source: &TopicPartition) {
        let Some(partition) = self.partitions.get_mut(source) else { return };
        let last = partition.committing - 1;
        self.deliveries.drop_waiting_beyond(source, last);
        partition.gate.retain(|(offset, _)| *offset <= last);
        partition.window.cut_after(last);
    }

    /// What was sent for a delivery may be there or not.
    pub(super) fn lost(&mut self, id: DeliveryId, error: log::Error) {
        let Some(delivery) = self.deliveries.get(id) else { return };
        let document = match &delivery.stage {
            Stage::Sending { about, .. } => delivery.about(about.as_deref()).document,
            Stage::SendingDeadLetter(obituary) => obituary.about.document.clone(),
            Stage::Waiting | Stage::Working(_) | Stage::Burying { .. } | Stage::Buried { .. } => return,
        };
        let source = Arc::clone(&delivery.source);
        let error = Error::from(error).context(format!("sending for {source} failed, and is not tried again"));
        self.board.trouble(&error);
        self.board.failed();
        self.event(Event::Skipped { document, error: error.to_string() });
        self.is_settled(id);
    }
}
