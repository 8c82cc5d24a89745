//! The settings of librdkafka that PipeDoc's own clients have, for those that it
//! is measured against: `transport/src/kafka/settings.rs` says why each is so.

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, Statistics};

/// Context of clients that print nothing, statistics least of all: rdkafka's own
/// writes them out, which is work that PipeDoc's clients do not do. What fails is
/// told by the calls that fail.
#[derive(Debug, Clone, Copy)]
pub struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}
    fn stats(&self, _: Statistics) {}
    fn error(&self, _: KafkaError, _: &str) {}
}

impl ConsumerContext for Quiet {}

/// A producer as PipeDoc's: idempotent, acknowledged by all replicas.
pub fn producer(bootstrap: &str) -> ClientConfig {
    let mut config = common(bootstrap);
    config
        .set("queue.buffering.max.kbytes", "65536")
        .set("queue.buffering.max.messages", "100000")
        .set("queue.buffering.max.ms", "100")
        .set("batch.size", "1000000")
        .set("message.max.bytes", "1000000000")
        .set("partitioner", "murmur2_random")
        .set("enable.idempotence", "true")
        .set("acks", "all");
    config
}

/// A consumer as PipeDoc's, in a group or (with a group that is never joined) alone.
pub fn consumer(bootstrap: &str, group: &str) -> ClientConfig {
    let mut config = common(bootstrap);
    config
        .set("group.id", group)
        .set("session.timeout.ms", "15000")
        .set("heartbeat.interval.ms", "1000")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("queued.max.messages.kbytes", "65536")
        .set("queued.min.messages", "100000")
        .set("fetch.queue.backoff.ms", "20")
        .set("fetch.error.backoff.ms", "200")
        .set("statistics.interval.ms", "5000")
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        .set("allow.auto.create.topics", "false");
    config
}

fn common(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "1000")
        .set("topic.metadata.refresh.interval.ms", "10000")
        .set("topic.metadata.refresh.fast.interval.ms", "100");
    config
}
