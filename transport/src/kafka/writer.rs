//! A client of librdkafka that writes, and the thread that takes its reports.
//!
//! rdkafka has one of its own, `ThreadedProducer`. It looks every 100 ms and spins
//! through the last millisecond of each look, which costs a producer that has
//! nothing to do 0.6 % of a core; this one looks seldom. A report ends the look.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::BaseProducer;

use super::delivery::WriterContext;
use super::failure::not_made;
use crate::log::{Error, Result};

/// How long one look for reports takes when none come. The client ends at most so
/// long after it was dropped.
const LOOK: Duration = Duration::from_secs(2);

/// A client that writes. Its reports are taken for as long as it lives.
pub(super) struct Writer {
    client: Arc<BaseProducer<WriterContext>>,
    ended: Arc<AtomicBool>,
}

impl Writer {
    /// Makes a client, which connects by itself.
    pub(super) fn make(config: &ClientConfig, context: WriterContext) -> Result<Arc<Self>> {
        let client: BaseProducer<_> = config.create_with_context(context).map_err(not_made(config))?;
        let writer = Self { client: Arc::new(client), ended: Arc::default() };
        let (client, ended) = (writer.client.clone(), writer.ended.clone());
        let take_reports = move || {
            while !ended.load(Ordering::Acquire) {
                client.poll(LOOK);
            }
        };
        let started = std::thread::Builder::new().name("kafka-reports".to_owned()).spawn(take_reports);
        started.map_err(|error| Error::Backend {
            operation: "starting a thread",
            target: "this machine".to_owned(),
            retryable: true,
            source: Arc::new(error),
        })?;
        Ok(Arc::new(writer))
    }
}

impl Deref for Writer {
    type Target = BaseProducer<WriterContext>;
    fn deref(&self) -> &Self::Target {
        &self.client
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
    }
}
