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
//! Only what is more than one request for a partition goes in rounds ([`rounds`]).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pipedoc_model::kafka::Client;
use pipedoc_model::names::Topic;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::producer::Producer as _;

use super::consumer::Membership;
use super::contact::Contact;
use super::delivery::{BATCH_RECORDS, Deliveries, WriterContext};
use super::failure::Attempt;
use super::producer::{Known, batch_bytes, check, partition_of, retire, send_when_room};
use super::topics::Facts;
use super::writer::Writer;
use super::{KafkaLog, blocking, groups, settings};
use crate::log::{Commit, Delivered, Error, GroupMetadata, OutgoingRecord, Receipt, Result};
use crate::log::{Transactional, TransactionalConfig};

/// How long an abort waits for what is on its way.
const SETTLE: Duration = Duration::from_secs(5);

/// Room for the coordinator's answer, beside a transaction's own timeout.
const GRACE: Duration = Duration::from_secs(10);

/// How long a client may take to let go of records whose reports were taken.
const LETTING_GO: Duration = Duration::from_millis(50);

/// A round of a partition may hold so much, also where batches are smaller.
const LEAST_ROUND: usize = 256 << 10;

/// What the protocol adds to a record of a batch, and about as much for its headers.
const RECORD_OVERHEAD: usize = 64;

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
    /// How many records were sent.
    sent: usize,
    /// With the places of the records that each is about.
    receipts: Vec<(Vec<usize>, Receipt)>,
    /// How much was sent since nothing was underway, or was waited for.
    bytes_underway: usize,
}

impl KafkaTransactional {
    pub(super) async fn new(log: &KafkaLog, mut config: TransactionalConfig) -> Result<Self> {
        config.settings = log.config.settings(Client::Producer, &config.settings)?;
        if let Some(millis) = config.settings.get("transaction.timeout.ms").and_then(|text| text.parse().ok()) {
            config.timeout = Duration::from_millis(millis);
        }
        let deliveries = deliveries(log, &config);
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
            sent: 0,
            receipts: Vec::new(),
            bytes_underway: 0,
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

    /// Forgets what was sent; gives the receipts.
    fn forget(&mut self) -> Vec<(Vec<usize>, Receipt)> {
        (self.sent, self.bytes_underway) = (0, 0);
        self.deliveries.forgive();
        std::mem::take(&mut self.receipts)
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
        // What the one before has underway is nothing to this one.
        let deliveries = deliveries(&self.log, &self.config);
        let writer = open(&self.log, &self.config, &deliveries, self.wanted_batch_bytes).await?;
        self.deliveries = deliveries;
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
        let known = Known::of(&self.log.topics, records).await;
        let facts: Vec<Facts> = records.iter().map(|record| known.facts(&record.topic)).collect::<Result<_>>()?;
        let mut narrowest = self.batch_bytes;
        for (record, facts) in records.iter().zip(&facts) {
            check(record, facts)?;
            narrowest = narrowest.min(batch_bytes(facts.limit, self.batch_bytes));
        }
        self.fit(narrowest).await?;
        let first = self.sent;
        self.sent += records.len();
        let most = self.batch_bytes.max(LEAST_ROUND);
        let mut waits = true;
        for Round { places, bytes } in rounds(records, &facts, most) {
            if waits && self.bytes_underway > 0 && self.bytes_underway + bytes > most {
                // Where nothing is settled for a while, the rest is left to librdkafka.
                waits = self.deliveries.all().await?;
                self.bytes_underway = 0;
            }
            self.bytes_underway += bytes;
            for some in places.chunks(BATCH_RECORDS) {
                let sending = self.deliveries.begin(some.len());
                for (number, place) in some.iter().enumerate() {
                    send_when_room(&self.writer, &self.deliveries, &records[*place], sending.ticket(number)).await?;
                }
                self.receipts.push((some.iter().map(|place| first + place).collect(), sending.end()));
            }
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
        // rdkafka waits for what is underway as well, but looks once in 100 ms only. What
        // has failed is told by the commit.
        let _ = self.deliveries.all().await;
        let limit = self.config.timeout + GRACE;
        let committed = self
            .call("committing a transaction", None, move |writer| {
                let_go(writer);
                writer.commit_transaction(limit)
            })
            .await;
        // Settled all, as the commit has waited for them, or else has failed.
        let mut delivered = vec![None; self.sent];
        for (places, receipt) in self.forget() {
            if committed.is_ok() {
                for (place, report) in places.into_iter().zip(receipt.await) {
                    delivered[place] = Some(report?);
                }
            }
        }
        let delivered = delivered.into_iter().flatten().collect();
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
        let underway = futures::future::join_all(self.forget().into_iter().map(|(_, receipt)| receipt));
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

/// Records that go together: of each partition no more than one request holds.
#[derive(Debug, Default, PartialEq, Eq)]
struct Round {
    /// Which records.
    places: Vec<usize>,
    bytes: usize,
}

/// Shares records out over rounds; those of a partition keep their order.
///
/// librdkafka has one request of a partition on its way (its bound of five counts
/// records), and its thread spins while others of the partition have waited for
/// longer than `linger.ms`: `rd_kafka_toppar_producer_serve`, librdkafka 2.12. So a
/// round is given to it when the one before was acknowledged.
fn rounds(records: &[OutgoingRecord], facts: &[Facts], most: usize) -> Vec<Round> {
    // Where each partition is: its round, and its bytes in that.
    let mut partitions: Vec<(&Topic, Option<i32>, usize, usize)> = Vec::new();
    let mut rounds: Vec<Round> = Vec::new();
    for (place, (record, facts)) in records.iter().zip(facts).enumerate() {
        let bytes = record.bytes() + RECORD_OVERHEAD;
        let partition = partition_of(record, facts);
        let known = partitions.iter().position(|(topic, number, ..)| *number == partition && **topic == record.topic);
        let known = known.unwrap_or_else(|| {
            partitions.push((&record.topic, partition, 0, 0));
            partitions.len() - 1
        });
        let (_, _, round, filled) = &mut partitions[known];
        if *filled > 0 && *filled + bytes > most {
            (*round, *filled) = (*round + 1, 0);
        }
        *filled += bytes;
        if rounds.len() <= *round {
            rounds.resize_with(*round + 1, Round::default);
        }
        rounds[*round].places.push(place);
        rounds[*round].bytes += bytes;
    }
    rounds
}

fn deliveries(log: &KafkaLog, config: &TransactionalConfig) -> Arc<Deliveries> {
    let who = format!("transactional id {}", config.transactional_id);
    Arc::new(Deliveries::new(log, config.timeout, who))
}

/// Waits a moment until a client has let go of records whose reports were taken.
fn let_go(writer: &Writer) {
    let end = std::time::Instant::now() + LETTING_GO;
    while writer.in_flight_count() > 0 && std::time::Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_round_holds_one_batch_of_each_partition_and_keeps_its_order() {
        let topic = Topic::new("t").unwrap();
        let sent = |partition: Option<i32>, bytes: usize| {
            let value = Some(vec![0; bytes - RECORD_OVERHEAD].into());
            OutgoingRecord { partition, ..OutgoingRecord::new(topic.clone(), None, value) }
        };
        let records =
            [sent(Some(0), 600), sent(Some(1), 300), sent(Some(0), 500), sent(Some(0), 100), sent(Some(1), 2000)];
        let facts = Facts { partitions: 2, limit: 1 << 20, read: Instant::now() };
        let found = rounds(&records, &[facts; 5], 1000);
        let expected = [(vec![0, 1], 900), (vec![2, 3, 4], 2600)];
        assert_eq!(found, expected.map(|(places, bytes)| Round { places, bytes }));
    }
}
