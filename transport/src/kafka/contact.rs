//! Whether the cluster answers, and since when it does not.
//!
//! librdkafka reconnects for ever and says so only in events. They are kept here,
//! so that an error can tell which address is out of reach and for how long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{ClientContext, Statistics};

use crate::log::Error;

/// What is known of the way to a cluster.
#[derive(Debug)]
pub(super) struct Contact {
    addresses: String,
    lost: AtomicBool,
    outage: Mutex<Option<Outage>>,
}

/// Why the cluster does not answer.
#[derive(Debug)]
struct Outage {
    since: Instant,
    reason: String,
    /// It answers, but does not accept who this is.
    refused: bool,
}

impl Contact {
    pub(super) fn new(addresses: &str) -> Self {
        Self { addresses: addresses.to_owned(), lost: AtomicBool::new(false), outage: Mutex::new(None) }
    }

    /// The addresses given.
    pub(super) fn addresses(&self) -> &str {
        &self.addresses
    }

    /// The cluster for an error message.
    pub(super) fn target(&self) -> String {
        format!("kafka {}", self.addresses)
    }

    /// The error for silence, when its cause is known.
    pub(super) fn out_of_reach(&self, operation: &'static str) -> Option<Error> {
        let outage = self.outage.lock();
        let Outage { since, reason, refused } = outage.as_ref()?;
        let (address, reason) = (self.addresses.clone(), reason.clone());
        Some(if *refused {
            Error::Authentication { address, reason }
        } else {
            Error::Unreachable { operation, address, since: since.elapsed(), reason }
        })
    }

    /// Why the credentials were not accepted, when they were not.
    pub(super) fn refusal(&self) -> Option<String> {
        self.outage.lock().as_ref().filter(|outage| outage.refused).map(|outage| outage.reason.clone())
    }

    /// For how long nothing has answered.
    pub(super) fn silent_for(&self) -> Option<Duration> {
        self.outage.lock().as_ref().map(|outage| outage.since.elapsed())
    }

    /// It has answered. Cheap when that is no news.
    pub(super) fn heard(&self) {
        if self.lost.load(Ordering::Relaxed)
            && self.lost.swap(false, Ordering::Relaxed)
            && let Some(outage) = self.outage.lock().take()
        {
            tracing::info!(kafka = %self.addresses, seconds = outage.since.elapsed().as_secs(), "kafka answers again");
        }
    }

    /// An event of a client tells of trouble.
    pub(super) fn trouble(&self, error: &KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(
                RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed | RDKafkaErrorCode::SSL,
            ) => {
                self.lose(plain(reason), true);
            }
            // It says nothing that the broker's own event has not said.
            Some(RDKafkaErrorCode::AllBrokersDown) if self.lost.load(Ordering::Relaxed) => {}
            Some(
                RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::Resolve,
            ) => self.lose(plain(reason), false),
            // No trouble: it is told as an event to those who read.
            Some(RDKafkaErrorCode::PartitionEOF) => {}
            // Missing topics are noticed by those who look them up.
            Some(RDKafkaErrorCode::UnknownTopicOrPartition) => tracing::debug!(reason, "kafka client"),
            _ => tracing::warn!(kafka = %self.addresses, %error, reason, "kafka client"),
        }
    }

    fn lose(&self, reason: String, refused: bool) {
        let mut outage = self.outage.lock();
        match &mut *outage {
            Some(known) if known.refused || !refused => {}
            known => {
                if refused {
                    tracing::error!(kafka = %self.addresses, reason, "kafka does not accept the credentials");
                } else {
                    tracing::warn!(kafka = %self.addresses, reason, "kafka is out of reach");
                }
                let since = known.as_ref().map_or_else(Instant::now, |known| known.since);
                *known = Some(Outage { since, reason, refused });
                self.lost.store(true, Ordering::Relaxed);
            }
        }
    }
}

/// What librdkafka says of a broken connection, without its own bookkeeping:
/// `127.0.0.1:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection refused (after 0ms in state CONNECT)`.
fn plain(reason: &str) -> String {
    let reason = reason.split(" (after ").next().unwrap_or(reason);
    reason.replace("/bootstrap: ", ": ").replace("ipv4#", "").replace("ipv6#", "")
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

/// Counts what a client's queue has handed to its context. A poll that was given
/// such an event looks as if the queue were empty, so this tells whether it was.
#[derive(Debug, Default)]
pub(super) struct Served(AtomicU64);

impl Served {
    pub(super) fn one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Serves what is in a client's main queue, to its end: a debugging client
    /// writes hundreds of lines into it, and rebalances wait behind them.
    pub(super) fn drain<C: ConsumerContext>(&self, client: &BaseConsumer<C>, mut trouble: impl FnMut(KafkaError)) {
        // Some events are counted by nobody; those that follow are seen next time.
        let mut in_vain = 0;
        while in_vain < 2 {
            let before = self.0.load(Ordering::Relaxed);
            match client.poll(Duration::ZERO) {
                // Whoever reads has a queue for each partition, so no record comes here.
                Some(Ok(_)) | Some(Err(KafkaError::PartitionEOF(_))) => in_vain = 0,
                Some(Err(error)) => {
                    in_vain = 0;
                    trouble(error);
                }
                None if self.0.load(Ordering::Relaxed) != before => in_vain = 0,
                None => in_vain += 1,
            }
        }
    }
}

/// Context of clients that need no more than [`Contact`].
#[derive(Debug, Clone)]
pub(super) struct PlainContext {
    contact: Arc<Contact>,
    pub(super) served: Arc<Served>,
}

impl PlainContext {
    pub(super) fn new(contact: Arc<Contact>) -> Self {
        Self { contact, served: Arc::default() }
    }
}

impl ClientContext for PlainContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.served.one();
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.contact.trouble(&error, reason);
    }

    fn stats(&self, _: Statistics) {
        self.served.one();
    }
}

impl ConsumerContext for PlainContext {}
