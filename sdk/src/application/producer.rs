//! Writes records for an application.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use pipedoc_model::names::Topic;
use pipedoc_transport::log::{self, Delivered, Log, OutgoingRecord, ProducerConfig};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::error::{Error, Result};
use crate::record::{Message, of_log};

/// Writes records. Shared freely; records that are sent one after the other to one
/// partition lie there in that order.
pub struct Producer {
    log: Arc<dyn log::Producer>,
    sends: Mutex<Sends>,
}

/// Sends that nobody may be waiting for.
#[derive(Default)]
struct Sends {
    closed: bool,
    next: u64,
    tasks: JoinSet<()>,
    open: Arc<Mutex<Open>>,
}

#[derive(Default)]
struct Open {
    /// What is not acknowledged yet, by the number of its send.
    sends: std::collections::BTreeMap<u64, Vec<Named>>,
    /// What could not be written and nobody has heard of.
    failed: Vec<Unsent>,
}

/// Which record something is about.
#[derive(Debug, Clone)]
struct Named {
    topic: Topic,
    key: Option<Bytes>,
}

/// A record that could not be written, as far as is known.
#[derive(Debug, Clone)]
pub struct Unsent {
    /// The topic that it was for.
    pub topic: Topic,
    /// Its key.
    pub key: Option<Bytes>,
    /// Why; none: it was not acknowledged in time, and may still be written.
    pub error: Option<log::Error>,
}

/// Resolves when the log has acknowledged what was sent together: one result for
/// each record, in order.
///
/// It may be dropped: the records are on their way all the same, and what goes wrong
/// with them is told by [`Producer::close`].
pub struct Pending(oneshot::Receiver<log::Reports>);

impl Future for Pending {
    type Output = Result<Vec<Result<Delivered>>>;
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|reports| match reports {
            Ok(reports) => Ok(reports.into_iter().map(|report| report.map_err(of_log)).collect()),
            Err(_) => Err(Error::retryable("the producer was closed before this was acknowledged")),
        })
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pending")
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("open", &self.sends.lock().open.lock().sends.len()).finish()
    }
}

impl Producer {
    /// A producer with the log's own settings. `client_id` names it for people.
    ///
    /// # Errors
    /// When the log cannot be used.
    pub async fn open(log: &Arc<dyn Log>, client_id: &str) -> Result<Self> {
        Self::with(log, ProducerConfig { client_id: client_id.to_owned(), ..ProducerConfig::default() }).await
    }

    /// A producer with settings of its own.
    ///
    /// # Errors
    /// When the log cannot be used, or does not know a setting.
    pub async fn with(log: &Arc<dyn Log>, config: ProducerConfig) -> Result<Self> {
        let log = log.producer(config).await.map_err(of_log)?;
        Ok(Self { log, sends: Mutex::default() })
    }

    /// Sends a record and waits until it is acknowledged.
    ///
    /// # Errors
    /// When it could not be written.
    pub async fn send_sync(&self, topic: &Topic, message: Message) -> Result<Delivered> {
        let reports = self.send(topic, message).await?.await?;
        let lost = || Err(Error::retryable("the log gave no report"));
        reports.into_iter().next().unwrap_or_else(lost)
    }

    /// Sends a record: returns when the producer has room for it. The partition is
    /// the message's own, else by its key.
    ///
    /// # Errors
    /// When the producer cannot be used any more, or was closed.
    pub async fn send(&self, topic: &Topic, message: Message) -> Result<Pending> {
        self.send_many(vec![(topic.clone(), message)]).await
    }

    /// Sends several records, in order, and waits until all are settled: one result
    /// for each.
    ///
    /// # Errors
    /// When the producer cannot be used any more, or was closed.
    pub async fn send_many_sync(&self, messages: Vec<(Topic, Message)>) -> Result<Vec<Result<Delivered>>> {
        self.send_many(messages).await?.await
    }

    /// Sends several records, in order: returns when the producer has room for all.
    ///
    /// # Errors
    /// When the producer cannot be used any more, or was closed.
    pub async fn send_many(&self, messages: Vec<(Topic, Message)>) -> Result<Pending> {
        let records: Vec<OutgoingRecord> = messages.into_iter().map(|(topic, message)| message.to(topic)).collect();
        let named = records.iter().map(|record| Named { topic: record.topic.clone(), key: record.key.clone() });
        let named: Vec<Named> = named.collect();
        if self.sends.lock().closed {
            return Err(Error::permanent(log::Error::Closed { what: "producer" }));
        }
        let receipt = self.log.send(records).await.map_err(of_log)?;
        let (done, pending) = oneshot::channel();
        let mut sends = self.sends.lock();
        // Those that have ended are let go of.
        while sends.tasks.try_join_next().is_some() {}
        sends.next += 1;
        let (number, open) = (sends.next, Arc::clone(&sends.open));
        open.lock().sends.insert(number, named);
        sends.tasks.spawn(async move {
            let reports = receipt.await;
            let mut open = open.lock();
            let named = open.sends.remove(&number).unwrap_or_default();
            let Err(unheard) = done.send(reports) else { return };
            for (named, report) in named.into_iter().zip(unheard) {
                if let Err(error) = report {
                    open.failed.push(Unsent { topic: named.topic, key: named.key, error: Some(error) });
                }
            }
        });
        Ok(Pending(pending))
    }

    /// Waits until everything that was sent is settled, for `timeout` at most. Gives
    /// what could not be written and nobody has heard of, and what is still open.
    /// Further sends fail.
    pub async fn close(&self, timeout: Duration) -> Vec<Unsent> {
        let (mut tasks, open) = {
            let mut sends = self.sends.lock();
            sends.closed = true;
            (std::mem::take(&mut sends.tasks), Arc::clone(&sends.open))
        };
        let all = async { while tasks.join_next().await.is_some() {} };
        // What is open then is told.
        let _ = tokio::time::timeout(timeout, all).await;
        let mut open = open.lock();
        let mut unsent = std::mem::take(&mut open.failed);
        let late = std::mem::take(&mut open.sends).into_values().flatten();
        unsent.extend(late.map(|named| Unsent { topic: named.topic, key: named.key, error: None }));
        unsent
    }
}
