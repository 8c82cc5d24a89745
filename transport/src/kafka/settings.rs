//! librdkafka's settings: ours first, then the user's, then those that keep promises.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use super::KafkaConfig;

/// A batch of several records holds at most so many bytes; below the default
/// limit of topics.
pub(super) const BATCH_BYTES: usize = 1_000_000;

/// What all clients have in common.
pub(super) fn common(kafka: &KafkaConfig, client_id: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set_log_level(RDKafkaLogLevel::Warning);
    config.set("bootstrap.servers", &kafka.bootstrap);
    if !client_id.is_empty() {
        config.set("client.id", client_id);
    }
    // A restarted broker is found again soon: librdkafka's own bound is 10 s.
    config.set("reconnect.backoff.ms", "50").set("reconnect.backoff.max.ms", "1000");
    config.set("topic.metadata.refresh.interval.ms", "10000");
    // Found at once when another client has just made it.
    config.set("topic.metadata.refresh.fast.interval.ms", "100");
    apply(&mut config, &kafka.settings);
    config
}

/// A producer whose batches keep below `batch_bytes`.
pub(super) fn producer(
    kafka: &KafkaConfig,
    client_id: &str,
    settings: &BTreeMap<String, String>,
    batch_bytes: usize,
) -> ClientConfig {
    let mut config = common(kafka, client_id);
    // How much may wait for the broker before `send` waits for room.
    config.set("queue.buffering.max.kbytes", "65536").set("queue.buffering.max.messages", "100000");
    apply(&mut config, settings);
    let asked = settings.get("batch.size").and_then(|text| text.parse().ok()).unwrap_or(batch_bytes);
    config.set("batch.size", asked.min(batch_bytes).to_string());
    // The topic's own limit is checked by us, with the same measure on every log.
    config.set("message.max.bytes", "1000000000");
    config.set("partitioner", "murmur2_random");
    config.set("enable.idempotence", "true").set("acks", "all");
    config
}

/// A producer of transactions.
pub(super) fn transactional(
    kafka: &KafkaConfig,
    id: &str,
    timeout: Duration,
    settings: &BTreeMap<String, String>,
    batch_bytes: usize,
) -> ClientConfig {
    let mut config = producer(kafka, id, settings, batch_bytes);
    config.set("transactional.id", id).set("transaction.timeout.ms", timeout.as_millis().to_string());
    // A record cannot be waited for longer than its transaction lives.
    config.set("message.timeout.ms", timeout.as_millis().to_string());
    config
}

/// A consumer; `group` is its group, or a name that is never used for commits.
pub(super) fn consumer(
    kafka: &KafkaConfig,
    client_id: &str,
    group: &str,
    settings: &BTreeMap<String, String>,
) -> ClientConfig {
    let mut config = common(kafka, client_id);
    // Members hear of a rebalance with their next heartbeat; librdkafka's own 3 s
    // would make each take several seconds.
    config.set("session.timeout.ms", "15000").set("heartbeat.interval.ms", "1000");
    config.set("partition.assignment.strategy", "cooperative-sticky");
    // What is prefetched is bounded per consumer, not only per partition.
    config.set("queued.max.messages.kbytes", "16384").set("queued.min.messages", "10000");
    // Fetching goes on soon after the queue had been full (default: 1 s).
    config.set("fetch.queue.backoff.ms", "20").set("fetch.error.backoff.ms", "200");
    // Ends of partitions come with the statistics.
    config.set("statistics.interval.ms", "5000");
    apply(&mut config, settings);
    config.set("group.id", group);
    config.set("isolation.level", "read_committed");
    config.set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
    config.set("enable.partition.eof", "true");
    // A place that is gone is told, never silently replaced.
    config.set("auto.offset.reset", "error");
    config.set("allow.auto.create.topics", "false");
    config
}

fn apply(config: &mut ClientConfig, settings: &BTreeMap<String, String>) {
    for (name, value) in settings {
        config.set(name, value);
    }
}
