//! Transactions: librdkafka's, with its calls that block on blocking threads.
//!
//! ```text
//! Idle ──begin──▶ Open ──commit──▶ Idle
//!                  │ ▲ error
//!                  │ └──────▶ Failed ──abort──▶ Idle
//!                  └─────abort──────────────────▲
//! any ── fenced ──▶ Fenced (for good)
//! Failed ── abort, fatal ──▶ Idle, with a new client
//! ```
//!
//! `send` returns when librdkafka has taken the records; whether the broker has
//! them shows at the commit, which waits for all of them. Waiting for each send
//! would cost a round trip every time and tell nothing that the commit does not.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pipedoc_model::kafka::Client;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::producer::Producer as _;

use super::consumer::Membership;
use super::contact::Contact;
use super::delivery::{BATCH_RECORDS, Deliveries, WriterContext};
use super::failure::Attempt;
use super::producer::{batch_bytes, check, retire, send_when_room};
use super::writer::Writer;
use super::{KafkaLog, blocking, groups, settings};
use crate::log::{Commit, Delivered, Error, GroupMetadata, OutgoingRecord, Receipt, Result};
use crate::log::{Transactional, TransactionalConfig};

/// How long an abort waits for what is on its way.
const SETTLE: Duration = Duration::from_secs(5);

/// Room for the coordinator's answer, beside a transaction's own timeout.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Open,
    Failed,
    Fenced,
}

pub(super) struct KafkaTransactional {
    log: KafkaLog,
    config: TransactionalConfig,
    deliveries: Arc<Deliveries>,
    writer: Arc<Writer>,
    /// The bound on the writer's batches.
    batch_bytes: usize,
    /// What it should be from the next transaction on.
    wanted_batch_bytes: usize,
    state: State,
    receipts: Vec<Receipt>,
}

impl KafkaTransactional {
    pub(super) async fn new(log: &KafkaLog, mut config: TransactionalConfig) -> Result<Self> {
        config.settings = log.config.settings(Client::Producer, &config.settings)?;
        if let Some(millis) = config.settings.get("transaction.timeout.ms").and_then(|text| text.parse().ok()) {
            config.timeout = Duration::from_millis(millis);
        }
        let who = format!("transactional id {}", config.transactional_id);
        let deliveries = Arc::new(Deliveries::new(log, config.timeout, who));
        let batch_bytes = settings::asked_batch_bytes(&config.settings);
        let writer = open(log, &config, &deliveries, batch_bytes).await?;
        let log = log.clone();
        Ok(Self {
            log,
            config,
            deliveries,
            writer,
            batch_bytes,
            wanted_batch_bytes: batch_bytes,
            state: State::Idle,
            receipts: Vec::new(),
        })
    }

    fn expect(&self, operation: &'static str, state: State, reason: &'static str) -> Result<()> {
        match self.state {
            State::Fenced => Err(self.fenced()),
            found if found == state => Ok(()),
            _ => Err(Error::Misuse { operation, reason }),
        }
    }

    fn fenced(&self) -> Error {
        Error::Fenced { who: format!("transactional id {}", self.config.transactional_id) }
    }

    /// Notes an error within the transaction.
    fn fail(&mut self, error: Error) -> Error {
        self.state = State::Failed;
        // A fenced producer hears of it in many ways; librdkafka keeps the first as fatal.
        if self.writer.client().fatal_error().is_some_and(|(code, _)| super::failure::is_fenced(code)) {
            self.state = State::Fenced;
            return self.fenced();
        }
        error
    }

    /// Makes a call of librdkafka that blocks, again while it says that this may help.
    async fn call(
        &mut self,
        operation: &'static str,
        member: Option<String>,
        call: impl Fn(&Writer) -> KafkaResult<()> + Send + 'static,
    ) -> Result<()> {
        let who = member.unwrap_or_else(|| format!("transactional id {}", self.config.transactional_id));
        call_writer(self.writer.clone(), self.log.contact.clone(), self.config.timeout, operation, who, call).await
    }

    /// Replaces the writer by one with the batches wanted. Making it fences the one
    /// before it, and what that had open is aborted.
    async fn renew(&mut self) -> Result<()> {
        let writer = open(&self.log, &self.config, &self.deliveries, self.wanted_batch_bytes).await?;
        retire(std::mem::replace(&mut self.writer, writer));
        self.batch_bytes = self.wanted_batch_bytes;
        Ok(())
    }

    /// Makes room for topics with a lower limit than those before.
    async fn fit(&mut self, bytes: usize) -> Result<()> {
        self.wanted_batch_bytes = bytes.min(self.batch_bytes);
        if self.wanted_batch_bytes == self.batch_bytes {
            return Ok(());
        }
        if !self.receipts.is_empty() {
            return Err(Error::Misuse {
                operation: "sending to a topic with a lower limit",
                reason: "the transaction holds larger batches already; abort it, the next one fits",
            });
        }
        let limit = self.config.timeout + GRACE;
        self.call("aborting a transaction", None, move |writer| writer.abort_transaction(limit)).await?;
        self.renew().await?;
        self.call("beginning a transaction", None, |writer| writer.begin_transaction()).await
    }

    async fn try_send(&mut self, records: &[OutgoingRecord]) -> Result<()> {
        let mut facts = Vec::with_capacity(records.len());
        for record in records {
            let found = self.log.topics.facts(&record.topic).await?;
            check(record, &found)?;
            facts.push(found);
        }
        let narrowest =
            facts.iter().map(|facts| batch_bytes(facts.limit, self.batch_bytes)).min().unwrap_or(self.batch_bytes);
        self.fit(narrowest).await?;
        for some in records.chunks(BATCH_RECORDS) {
            let sending = self.deliveries.begin(some.len());
            for (place, record) in some.iter().enumerate() {
                send_when_room(&self.writer, &self.deliveries, record, sending.ticket(place)).await?;
            }
            self.receipts.push(sending.end());
        }
        Ok(())
    }

    async fn try_send_offsets(&mut self, commits: &[Commit], member: &GroupMetadata) -> Result<()> {
        let Some(member) = member.0.downcast_ref::<Arc<Membership>>().cloned() else {
            return Err(Error::Misuse { operation: "adding offsets", reason: "the member is of another log" });
        };
        member.check_owned(commits)?;
        let offsets = groups::commit_list(commits)?;
        let (limit, who) = (self.config.timeout, Some(member.who()));
        self.call("adding offsets to a transaction", who, move |writer| {
            writer.send_offsets_to_transaction(&offsets, &member.metadata, limit)
        })
        .await
    }

    async fn try_commit(&mut self) -> Result<Vec<Delivered>> {
        let limit = self.config.timeout + GRACE;
        let committed =
            self.call("committing a transaction", None, move |writer| writer.commit_transaction(limit)).await;
        let mut delivered = Vec::new();
        // Settled all, as the commit has waited for them, or else has failed.
        for receipt in std::mem::take(&mut self.receipts) {
            if committed.is_ok() {
                for report in receipt.await {
                    delivered.push(report?);
                }
            }
        }
        committed.map(|()| delivered)
    }
}

#[async_trait]
impl Transactional for KafkaTransactional {
    async fn begin(&mut self) -> Result<()> {
        self.expect("begin", State::Idle, "a transaction is open")?;
        if self.wanted_batch_bytes < self.batch_bytes {
            self.renew().await?;
        }
        let begun = self.call("beginning a transaction", None, |writer| writer.begin_transaction()).await;
        match begun {
            Ok(()) => {
                self.state = State::Open;
                Ok(())
            }
            Err(error) => {
                let error = self.fail(error);
                // Nothing was begun, so there is nothing to abort.
                if self.state == State::Failed {
                    self.state = State::Idle;
                }
                Err(error)
            }
        }
    }

    async fn send(&mut self, records: Vec<OutgoingRecord>) -> Result<()> {
        self.send_kept(&records).await
    }

    async fn send_kept(&mut self, records: &[OutgoingRecord]) -> Result<()> {
        self.expect("send", State::Open, "no transaction is open, or it has failed")?;
        match self.try_send(records).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.fail(error)),
        }
    }

    async fn send_offsets(&mut self, commits: Vec<Commit>, member: &GroupMetadata) -> Result<()> {
        self.expect("send_offsets", State::Open, "no transaction is open, or it has failed")?;
        match self.try_send_offsets(&commits, member).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.fail(error)),
        }
    }

    async fn commit(&mut self) -> Result<Vec<Delivered>> {
        self.expect("commit", State::Open, "no transaction is open, or it has failed")?;
        match self.try_commit().await {
            Ok(delivered) => {
                self.state = State::Idle;
                Ok(delivered)
            }
            Err(error) => Err(self.fail(error)),
        }
    }

    async fn abort(&mut self) -> Result<()> {
        match self.state {
            State::Fenced => return Err(self.fenced()),
            State::Idle => return Err(Error::Misuse { operation: "abort", reason: "no transaction is open" }),
            State::Open | State::Failed => {}
        }
        // librdkafka may ask to end a transaction before it has told the broker of its
        // first partition, which refuses then (librdkafka#4849). So what is on its
        // way arrives first; what cannot arrive holds this up only briefly.
        let underway = futures::future::join_all(std::mem::take(&mut self.receipts));
        if tokio::time::timeout(SETTLE, underway).await.is_err() {
            tracing::debug!(id = self.config.transactional_id, "aborting over records that are on their way");
        }
        let limit = self.config.timeout + GRACE;
        let aborted = self.call("aborting a transaction", None, move |writer| writer.abort_transaction(limit)).await;
        let error = match aborted {
            Ok(()) => {
                self.state = State::Idle;
                return Ok(());
            }
            Err(error) => self.fail(error),
        };
        // After a fatal error a client never works again. A new one of the same id
        // makes the broker abort what this one left open.
        if self.state == State::Failed && self.writer.client().fatal_error().is_some() {
            tracing::warn!(%error, id = %self.config.transactional_id, "a producer is spent; a new one takes its place");
            self.renew().await?;
            self.state = State::Idle;
            return Ok(());
        }
        Err(error)
    }
}

impl Drop for KafkaTransactional {
    fn drop(&mut self) {
        let (writer, open, limit) = (self.writer.clone(), self.state != State::Idle, self.config.timeout);
        // Readers wait at the end of an open transaction, so it does not wait for its timeout.
        let ending = std::thread::Builder::new().name("kafka-abort".to_owned()).spawn(move || {
            if open && let Err(error) = writer.abort_transaction(limit) {
                tracing::debug!(%error, "a dropped transaction ends by its timeout");
            }
        });
        if let Err(error) = ending {
            tracing::warn!(%error, "no thread for a closing producer");
        }
    }
}

/// Makes a writer; from then on the one before it of the same id is fenced.
async fn open(
    log: &KafkaLog,
    config: &TransactionalConfig,
    deliveries: &Arc<Deliveries>,
    batch_bytes: usize,
) -> Result<Arc<Writer>> {
    let (id, timeout) = (&config.transactional_id, config.timeout);
    let settings = settings::transactional(&log.config, id, timeout, &config.settings, batch_bytes);
    let writer = Writer::make(&settings, WriterContext(deliveries.clone()))?;
    let limit = log.config.timeout;
    let operation = "taking over a transactional id";
    call_writer(
        writer.clone(),
        log.contact.clone(),
        limit,
        operation,
        format!("transactional id {id}"),
        move |writer| writer.init_transactions(limit),
    )
    .await?;
    Ok(writer)
}

async fn call_writer(
    writer: Arc<Writer>,
    contact: Arc<Contact>,
    limit: Duration,
    operation: &'static str,
    who: String,
    call: impl Fn(&Writer) -> KafkaResult<()> + Send + 'static,
) -> Result<()> {
    blocking(move || {
        let id = who.strip_prefix("transactional id ").unwrap_or(&who);
        let attempt = Attempt::new(operation, &contact, limit).by(&who).of_id(id).of_group(&who);
        let end = std::time::Instant::now() + limit;
        loop {
            match call(&writer) {
                Ok(()) => return Ok(()),
                Err(KafkaError::Transaction(error)) if error.is_retriable() && std::time::Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(error) => return Err(attempt.failed(error)),
            }
        }
    })
    .await
}
