//! Whether the cluster answers, and since when it does not.
//!
//! librdkafka reconnects for ever and says so only in events. They are kept here,
//! so that an error can tell which address is out of reach and for how long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// What is known of the way to a cluster.
#[derive(Debug)]
pub(super) struct Contact {
    addresses: String,
    lost: AtomicBool,
    outage: Mutex<Option<(Instant, String)>>,
}

impl Contact {
    pub(super) fn new(addresses: &str) -> Self {
        Self { addresses: addresses.to_owned(), lost: AtomicBool::new(false), outage: Mutex::new(None) }
    }

    /// The cluster for an error message: its addresses, and what is wrong with them.
    pub(super) fn target(&self) -> String {
        match &*self.outage.lock() {
            Some((since, reason)) => {
                format!("kafka {} (out of reach for {} s: {reason})", self.addresses, since.elapsed().as_secs())
            }
            None => format!("kafka {}", self.addresses),
        }
    }

    /// It has answered. Cheap when that is no news.
    pub(super) fn heard(&self) {
        if self.lost.swap(false, Ordering::Relaxed)
            && let Some((since, _)) = self.outage.lock().take()
        {
            tracing::info!(kafka = %self.addresses, seconds = since.elapsed().as_secs(), "kafka answers again");
        }
    }

    /// An event of a client tells of trouble.
    pub(super) fn trouble(&self, error: &KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(
                RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::Resolve,
            ) => {
                let mut outage = self.outage.lock();
                if outage.is_none() {
                    tracing::warn!(kafka = %self.addresses, reason, "kafka is out of reach");
                    *outage = Some((Instant::now(), reason.to_owned()));
                    self.lost.store(true, Ordering::Relaxed);
                }
            }
            // No trouble: it is told as an event to those who read.
            Some(RDKafkaErrorCode::PartitionEOF) => {}
            // Missing topics are noticed by those who look them up.
            Some(RDKafkaErrorCode::UnknownTopicOrPartition) => tracing::debug!(reason, "kafka client"),
            _ => tracing::warn!(kafka = %self.addresses, %error, reason, "kafka client"),
        }
    }
}

/// Passes a client's own log lines on.
pub(super) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::error!(target: "librdkafka", facility, "{message}");
        }
        // Lost connections and the like: `Contact` tells of those that matter.
        RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => {
            tracing::debug!(target: "librdkafka", facility, "{message}");
        }
        _ => tracing::trace!(target: "librdkafka", facility, "{message}"),
    }
}

/// Context of clients that need no more than [`Contact`].
#[derive(Debug, Clone)]
pub(super) struct PlainContext(pub(super) Arc<Contact>);

impl ClientContext for PlainContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.trouble(&error, reason);
    }
}

impl rdkafka::consumer::ConsumerContext for PlainContext {}
