//! What librdkafka's clients tell of themselves, as numbers that mean something
//! to those who run pipelines. Knows no exporter; whoever has one takes them with
//! [`KafkaConfig::statistics`](super::KafkaConfig::statistics).
//!
//! They come every `statistics.interval.ms`: 5 s for consumers, 15 s for
//! producers, unless a setting says otherwise. Totals count from the making of the
//! client on. Fields: librdkafka's `STATISTICS.md`.

use std::fmt;
use std::sync::Arc;

use pipedoc_model::names::Topic;
use rdkafka::Statistics;

use crate::log::TopicPartition;

type Observe = dyn Fn(&ClientStatistics) + Send + Sync;

/// Who is told.
#[derive(Clone, Default)]
pub struct StatisticsObserver(Option<Arc<Observe>>);

impl StatisticsObserver {
    /// Tells `observe`, on a thread of the client: it must not wait for anything.
    pub fn new(observe: impl Fn(&ClientStatistics) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(observe)))
    }

    pub(super) fn tell(&self, statistics: &Statistics, group: Option<&str>) {
        let logged = tracing::enabled!(tracing::Level::DEBUG);
        if self.0.is_none() && !logged {
            return;
        }
        let told = ClientStatistics::read(statistics, group);
        if logged {
            tracing::debug!(
                client = told.client_id,
                group,
                connected = told.brokers.iter().filter(|broker| broker.up).count(),
                sent = told.sent_records,
                received = told.received_records,
                queued = told.queued_records,
                lag = told.partitions.iter().filter_map(|partition| partition.lag).sum::<i64>(),
                "kafka client statistics"
            );
        }
        if let Some(observe) = &self.0 {
            observe(&told);
        }
    }
}

impl fmt::Debug for StatisticsObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StatisticsObserver").field(&self.0.is_some()).finish()
    }
}

/// A client at a moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClientStatistics {
    /// Its name within the process (`rdkafka#consumer-3`).
    pub name: String,
    /// Its `client.id`.
    pub client_id: String,
    /// The group that it is a member of.
    pub group: Option<String>,
    /// State of its membership as librdkafka calls it (`up`, `wait-assn-cb`).
    pub group_state: Option<String>,
    /// How often the group was divided anew.
    pub rebalances: u64,
    /// Records that wait to be written, and their bytes.
    pub queued_records: u64,
    /// Bytes of the records that wait to be written.
    pub queued_bytes: u64,
    /// Records written, in all.
    pub sent_records: u64,
    /// Bytes of records written, in all.
    pub sent_bytes: u64,
    /// Records read, in all.
    pub received_records: u64,
    /// Bytes of records read, in all.
    pub received_bytes: u64,
    /// Requests sent to brokers, in all.
    pub requests: u64,
    /// The brokers it knows, sorted by name.
    pub brokers: Vec<BrokerStatistics>,
    /// The partitions it reads, sorted.
    pub partitions: Vec<PartitionStatistics>,
}

/// A client's way to a broker.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BrokerStatistics {
    /// `HOST:PORT/ID`.
    pub name: String,
    /// Whether it is connected.
    pub up: bool,
    /// Connections tried, in all.
    pub connects: u64,
    /// Connections lost, in all.
    pub disconnects: u64,
    /// Requests that were not answered in time, in all.
    pub timeouts: u64,
    /// Requests that failed to be sent, in all.
    pub errors: u64,
    /// Time from request to answer, 99th percentile of the last period; microseconds.
    pub round_trip_p99_micros: Option<i64>,
    /// How long the broker made the client wait, average of the last period;
    /// milliseconds.
    pub throttled_millis: Option<i64>,
}

/// A partition that a client reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionStatistics {
    /// The partition.
    pub source: TopicPartition,
    /// Records between what was handed out and the last stable end, when known.
    pub lag: Option<i64>,
    /// Records read ahead.
    pub prefetched: i64,
}

impl ClientStatistics {
    fn read(statistics: &Statistics, group: Option<&str>) -> Self {
        let total = |number: i64| u64::try_from(number).unwrap_or(0);
        let mut brokers: Vec<_> = statistics
            .brokers
            .values()
            // Those of the address list are one more connection to a broker that has a number.
            .filter(|broker| broker.nodeid >= 0 || broker.state == "UP")
            .map(|broker| BrokerStatistics {
                name: broker.name.clone(),
                up: broker.state == "UP",
                connects: total(broker.connects.unwrap_or(0)),
                disconnects: total(broker.disconnects.unwrap_or(0)),
                timeouts: broker.req_timeouts,
                errors: broker.txerrs,
                round_trip_p99_micros: broker.rtt.as_ref().map(|window| window.p99),
                throttled_millis: broker.throttle.as_ref().map(|window| window.avg),
            })
            .collect();
        brokers.sort_by(|a, b| a.name.cmp(&b.name));
        let mut partitions = Vec::new();
        if group.is_some() {
            for (topic, found) in &statistics.topics {
                let Ok(topic) = Topic::new(topic) else { continue };
                let read = found.partitions.values().filter(|partition| partition.fetch_state == "active");
                partitions.extend(read.map(|partition| {
                    PartitionStatistics {
                        source: TopicPartition::new(topic.clone(), partition.partition),
                        lag: Some(partition.ls_offset - partition.app_offset)
                            .filter(|_| partition.ls_offset >= 0 && partition.app_offset >= 0),
                        prefetched: partition.fetchq_cnt,
                    }
                }));
            }
            partitions.sort_by(|a, b| a.source.cmp(&b.source));
        }
        Self {
            name: statistics.name.clone(),
            client_id: statistics.client_id.clone(),
            group: group.map(str::to_owned),
            group_state: statistics.cgrp.as_ref().map(|group| group.state.clone()),
            rebalances: statistics.cgrp.as_ref().map_or(0, |group| total(group.rebalance_cnt)),
            queued_records: statistics.msg_cnt,
            queued_bytes: statistics.msg_size,
            sent_records: total(statistics.txmsgs),
            sent_bytes: total(statistics.txmsg_bytes),
            received_records: total(statistics.rxmsgs),
            received_bytes: total(statistics.rxmsg_bytes),
            requests: total(statistics.tx),
            brokers,
            partitions,
        }
    }
}
