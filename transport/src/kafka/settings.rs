//! librdkafka's settings: ours first, then the process's, then the step's, then
//! those that keep promises. What they may be is checked by `pipedoc_model::kafka`.

use std::time::Duration;

use pipedoc_model::kafka::{self, Client, Finding, Place, ProcessSettings, Settings};
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use super::statistics::StatisticsObserver;
use super::{KafkaConfig, files};
use crate::log::{ConsumerConfig, Error, Result};

/// A batch of several records holds at most so many bytes, unless a setting says
/// otherwise; below the default limit of topics.
pub(super) const BATCH_BYTES: usize = 1_000_000;

/// For how long records gather before they are sent, unless a setting says otherwise:
/// as long as in Kafka Streams. An idempotent client has one request of a partition on
/// its way, and its thread spins while others have waited for longer than this behind
/// it: so it is more than a request takes under full load, where 20 ms cost a fifth
/// more CPU. (librdkafka 2.12, `rd_kafka_toppar_producer_serve`.)
const LINGER: Duration = Duration::from_millis(100);

/// The same within transactions, of which librdkafka is given one request's worth
/// for each partition at a time.
const LINGER_IN_TRANSACTIONS: Duration = Duration::from_millis(5);

/// Unless a setting says otherwise.
const CLIENTS: usize = 2;

/// A member that is not heard of for so long loses its partitions, unless a
/// setting says otherwise.
const SESSION_TIMEOUT: Duration = Duration::from_secs(15);

/// Settings that mean something to us before librdkafka hears of them, if it does.
const OURS: [&str; 4] = ["max.poll.records", "group.instance.id", "auto.offset.reset", kafka::CONNECTIONS];

/// A cluster with settings that were checked.
pub(super) struct Cluster {
    pub(super) bootstrap: String,
    pub(super) settings: ProcessSettings,
    /// How long calls of administration wait.
    pub(super) timeout: Duration,
    /// How long a client may be of no use while the cluster answers others.
    pub(super) patience: Duration,
    pub(super) statistics: StatisticsObserver,
}

impl Cluster {
    /// A cluster, if all that was given can be used.
    pub(super) fn of(config: KafkaConfig) -> Result<Self> {
        let KafkaConfig { bootstrap, settings, timeout, patience, statistics } = config;
        let (brokers, settings) = (kafka::brokers(&bootstrap), kafka::check_process(&settings));
        match (brokers, settings) {
            (Ok(bootstrap), Ok(settings)) => match files::unreadable(&settings) {
                none if none.is_empty() => Ok(Self { bootstrap, settings, timeout, patience, statistics }),
                findings => Err(refused(findings)),
            },
            (brokers, settings) => {
                let findings = brokers.err().into_iter().chain(settings.err()).flatten();
                Err(refused(findings.collect()))
            }
        }
    }

    /// All settings of a client: the process's, and over them its own.
    pub(super) fn settings(&self, client: Client, own: &Settings) -> Result<Settings> {
        let (side, process) = match client {
            Client::Consumer => ("consumer", &self.settings.consumer),
            Client::Producer => ("producer", &self.settings.producer),
        };
        // By librdkafka's own names first, so that one setting is not there twice.
        let mut own = kafka::check(client, Place::Step { at_most_once: true }, own);
        let written = std::mem::take(&mut own.written);
        let own = accept(own, |name| format!("kafka.{side}.{name}"))?;
        let all = process.iter().chain(&own).map(|(name, value)| (name.clone(), value.clone())).collect();
        accept(kafka::check(client, Place::Client, &all), |name| match written.get(name) {
            Some(written) => format!("kafka.{side}.{written}"),
            None => format!("{side}.{name} (of the process)"),
        })
    }
}

/// The error for settings that cannot be used.
pub(super) fn refused(findings: Vec<Finding>) -> Error {
    Error::Settings { source: findings.into() }
}

/// What was found good, or all that was not, each under the name that `named` gives it.
fn accept(checked: kafka::Checked, named: impl Fn(&str) -> String) -> Result<Settings> {
    if checked.findings.is_empty() {
        return Ok(checked.settings);
    }
    let renamed = |finding: Finding| Finding { name: named(&finding.name), ..finding };
    Err(refused(checked.findings.into_iter().map(renamed).collect()))
}

/// What all clients have in common.
pub(super) fn common(cluster: &Cluster, client_id: &str, settings: &Settings) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set_log_level(RDKafkaLogLevel::Warning);
    config.set("bootstrap.servers", &cluster.bootstrap);
    if !client_id.is_empty() {
        config.set("client.id", client_id);
    }
    // A restarted broker is found again soon: librdkafka's own bound is 10 s.
    config.set("reconnect.backoff.ms", "50").set("reconnect.backoff.max.ms", "1000");
    config.set("topic.metadata.refresh.interval.ms", "10000");
    // Found at once when another client has just made it.
    config.set("topic.metadata.refresh.fast.interval.ms", "100");
    take_over(&mut config, settings);
    config
}

/// Takes settings over into a client's, all but those that are ours to read.
fn take_over(config: &mut ClientConfig, settings: &Settings) {
    for (name, value) in settings.iter().filter(|(name, _)| !OURS.contains(&name.as_str())) {
        config.set(name, value);
    }
    if settings.contains_key("debug") {
        // What is to be debugged is told in lines of a level of its own.
        config.set_log_level(RDKafkaLogLevel::Debug);
    }
}

/// The bound on batches that the settings ask for.
pub(super) fn asked_batch_bytes(settings: &Settings) -> usize {
    settings.get("batch.size").and_then(|text| text.parse().ok()).unwrap_or(BATCH_BYTES)
}

/// Over how many clients a plain producer shares out its partitions.
pub(super) fn clients(settings: &Settings) -> usize {
    settings.get(kafka::CONNECTIONS).and_then(|text| text.parse().ok()).unwrap_or(CLIENTS)
}

/// How long a record is tried before it is given up: librdkafka's own default, or
/// what the settings say; 0 there is for ever.
pub(super) fn record_timeout(settings: &Settings) -> Duration {
    let asked = settings.get("message.timeout.ms").and_then(|text| text.parse().ok());
    Duration::from_millis(asked.unwrap_or(300_000))
}

/// A producer whose batches keep below `batch_bytes`.
pub(super) fn producer(cluster: &Cluster, client_id: &str, settings: &Settings, batch_bytes: usize) -> ClientConfig {
    let mut config = common(cluster, client_id, &Settings::new());
    // How much may wait for the broker before `send` waits for room.
    config.set("queue.buffering.max.kbytes", "65536").set("queue.buffering.max.messages", "100000");
    // No record may gather for longer than it is tried.
    let limit = record_timeout(settings);
    let linger = if limit.is_zero() { LINGER } else { LINGER.min(limit / 2) };
    config.set("queue.buffering.max.ms", linger.as_millis().to_string());
    config.set("statistics.interval.ms", "15000");
    take_over(&mut config, settings);
    config.set("batch.size", batch_bytes.to_string());
    // The topic's own limit is checked by us, with the same measure on every log.
    config.set("message.max.bytes", "1000000000");
    config.set("partitioner", "murmur2_random");
    // Fewer acknowledgements leave nothing to number records for.
    let all = settings.get("request.required.acks").is_none_or(|acks| acks == "all");
    config.set("enable.idempotence", if all { "true" } else { "false" });
    config
}

/// A producer of transactions.
pub(super) fn transactional(
    cluster: &Cluster,
    id: &str,
    timeout: Duration,
    settings: &Settings,
    batch_bytes: usize,
) -> ClientConfig {
    let mut config = producer(cluster, id, settings, batch_bytes);
    config.set("transactional.id", id).set("transaction.timeout.ms", timeout.as_millis().to_string());
    config.set("request.required.acks", "all").set("enable.idempotence", "true");
    // Each round of a transaction is waited for, so it never gathers for longer.
    let asked: Option<f64> = settings.get("queue.buffering.max.ms").and_then(|text| text.parse().ok());
    let longest = LINGER_IN_TRANSACTIONS.as_millis() as f64;
    config.set("queue.buffering.max.ms", asked.map_or(longest, |asked| asked.min(longest)).to_string());
    // A record cannot be waited for longer than its transaction lives.
    config.set("message.timeout.ms", timeout.as_millis().to_string());
    config
}

/// How long a member may be silent.
pub(super) fn session_timeout(config: &ConsumerConfig) -> Duration {
    let asked = config.settings.get("session.timeout.ms").and_then(|text| text.parse().ok());
    config.session_timeout.or(asked.map(Duration::from_millis)).unwrap_or(SESSION_TIMEOUT)
}

/// How long the broker may wait for records before it answers a fetch: librdkafka's
/// own default, or what the settings say.
pub(super) fn longest_fetch(config: &ConsumerConfig) -> Duration {
    let asked = config.settings.get("fetch.wait.max.ms").and_then(|text| text.parse().ok());
    Duration::from_millis(asked.unwrap_or(500))
}

/// A consumer that is a member of a group, or none: then `group` is a name that
/// is never joined. The settings of `config` are whole.
pub(super) fn consumer(cluster: &Cluster, config: &ConsumerConfig, group: &str, member: bool) -> ClientConfig {
    let mut asked = common(cluster, &config.client_id, &Settings::new());
    // What is prefetched is bounded by bytes for the whole consumer.
    asked.set("queued.max.messages.kbytes", "65536").set("queued.min.messages", "100000");
    // Fetching goes on soon after the queue had been full (default: 1 s).
    asked.set("fetch.queue.backoff.ms", "20").set("fetch.error.backoff.ms", "200");
    // Ends of partitions come with the statistics.
    asked.set("statistics.interval.ms", "5000");
    take_over(&mut asked, &config.settings);
    if config.settings.get("group.protocol").is_none_or(|protocol| protocol == "classic") {
        let session = session_timeout(config);
        // The caller's pace is watched by us; librdkafka sees only the polling thread, which never stops.
        let interval = config.max_poll_interval.max(session);
        asked.set("max.poll.interval.ms", interval.as_millis().to_string());
        asked.set("session.timeout.ms", session.as_millis().to_string());
        if !config.settings.contains_key("heartbeat.interval.ms") {
            // Members hear of a rebalance with their next heartbeat; librdkafka's own 3 s
            // would make each take several seconds.
            asked.set("heartbeat.interval.ms", (session.as_millis() / 5).clamp(1, 1000).to_string());
        }
        if !config.settings.contains_key("partition.assignment.strategy") {
            asked.set("partition.assignment.strategy", "cooperative-sticky");
        }
    }
    if let Some(id) = config.settings.get("group.instance.id").filter(|_| member) {
        asked.set("group.instance.id", id.replace("{instance}", &config.client_id));
    }
    asked.set("group.id", group);
    asked.set("isolation.level", "read_committed");
    asked.set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
    asked.set("enable.partition.eof", "true");
    // A place that is gone is told, never silently replaced.
    asked.set("auto.offset.reset", "error");
    asked.set("allow.auto.create.topics", "false");
    asked
}

#[cfg(test)]
mod tests;
